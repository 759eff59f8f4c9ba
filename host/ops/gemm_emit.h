/* What the emitters of the GEMM's tiers share: gemm.c describes, dispatches and splits, each tier turns one piece into launches. */
#ifndef TP_GEMM_EMIT_H
#define TP_GEMM_EMIT_H

#include "gemm.h"

/** A product whose b is one allocation, with the range of k that it adds. */
struct tp_gemm_piece {
    struct tp_gemm gemm;
    int part;        /* of b's storage */
    int64_t k_first; /* first k of the product in this piece; gemm.k counts the k of the piece */
    int64_t k_bound; /* bound of k of the whole product */
};

static inline int64_t tp_gemm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t tp_gemm_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t tp_gemm_max(int64_t a, int64_t b) { return a > b ? a : b; }

/** The arguments a, b, c, out, step, m_symbol, m_bound of most kernels. */
void tp_gemm_put_operands(struct tp_lower *lower, struct tp_launch *launch, const struct tp_gemm_piece *piece);

/** The arguments that follow: k_symbol, k_bound, k_first, k_length, n, a_stride_m, a_stride_k, b_stride, b_first_n, b_first_k, out_stride,
 *  out_first_n, add. */
void tp_gemm_put_sizes(struct tp_launch *launch, const struct tp_gemm_piece *piece);

/** Operations and bytes of the launch. */
void tp_gemm_put_cost(struct tp_launch *launch, const struct tp_gemm *gemm);

/* ---- gemm_cpu.c: the tier `cpu` ---- */

/** Whether the tier multiplies by this b (rows of any dtype, or f32 and bf16 panels). */
bool tp_gemm_cpu_accepts(const struct tp_gemm *gemm);

/** Launches of one piece; gemm.panels must be set if tp_gemm_panel_bytes asks for it. */
void tp_gemm_cpu_emit(struct tp_lower *lower, const struct tp_gemm_piece *piece);

/** Groups of a launch that keep every core busy with little imbalance at the end, few enough that starting them costs nothing. */
int64_t tp_gemm_cpu_groups(const struct tp_lower *lower);

/* ---- gemm_x86.c: the matrix tiers x86_bf16 and x86_amx ---- */

bool tp_gemm_is_x86(const char *tier);
/** Whether the tiers multiply by this b (tiles, or quant). */
bool tp_gemm_x86_accepts(const struct tp_gemm *gemm);
/** Scratch that b is decoded to; 0 if it is kept in tiles. */
size_t tp_gemm_x86_panel_bytes(const struct tp_lower *lower, const struct tp_gemm *gemm);
/** The launch of one piece; a must be in row_bf16. */
void tp_gemm_x86_emit(struct tp_lower *lower, const struct tp_gemm_piece *piece, const char *tier);
/** The launch that rounds m rows of n f32, `stride` elements apart, to row_bf16. `rows`: run-time size of m. */
void tp_pack_rows_emit(struct tp_lower *source, struct tp_operand from, struct tp_lower *target, struct tp_operand to,
                       enum tp_step_word rows, int64_t m, int64_t n, int64_t stride);

/* ---- gemv.c: few rows on the tier `cpu` ---- */

/** Whether this is a product y = x W^T that cpu/gemv.cl can make, of any number of rows: W in the layout quant or in panels. */
bool tp_gemv_accepts(const struct tp_gemm *gemm);

/** Whether the tier multiplies by dot products of integers: x86_vnni, x86_avx2. */
bool tp_gemv_is_dot(const char *tier);

/** The launch of one piece on "cpu" or a tier of dot products, for which gemm.panels has tp_gemm_dot_bytes. */
void tp_gemv_emit(struct tp_lower *lower, const struct tp_gemm_piece *piece, const char *tier);

/** Groups that share out a weight's panels: few, as starting one costs as much as several kilobytes of weights, enough to end together. Where
 *  every group encodes the rows for itself, fewer. */
int64_t tp_gemv_groups(const struct tp_lower *lower, int64_t n_panels, bool dots);

/** Bytes for the records of one group, as tp_dot_bytes of kernels/common/quant_dot.clh, and the option that chooses the instructions. */
size_t tp_dot_group_bytes(int64_t m, int64_t k);
const char *tp_dot_option(const struct tp_lower *lower, const char *tier);

#endif
