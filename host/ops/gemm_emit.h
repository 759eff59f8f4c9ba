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

#endif
