/* The GEMM emitter: launches for out[m, n] (+)= sum_k a(m, k) * b(k, n), shared by every op that multiplies matrices. */
#ifndef TP_GEMM_H
#define TP_GEMM_H

#include "graph/op.h"

struct tp_gemm {
    struct tp_operand a, b, out;
    int64_t m, n, k;                  /* bounds */
    enum tp_step_word m_rows, k_rows; /* run-time size of m or of k, TP_STEP_NONE = the bound is exact */
    enum tp_layout a_layout;          /* row (f32), or row_bf16 (matrix tiers; a_stride_m is then k rounded up to 32) */
    enum tp_layout out_layout;        /* row (f32), or row_bf16 (matrix tiers, nothing added; out_stride is then n rounded up to 32) */
    int64_t a_stride_m, a_stride_k;   /* a(m, k) is element m*a_stride_m + k*a_stride_k; one of the strides is 1 */
    enum tp_layout b_layout;          /* row, or a panel layout (then b(k, n) = panel n/32, position k*32 + n%32) */
    enum talpa_dtype b_dtype;         /* of the row layout */
    bool b_is_nk;                     /* row layout: b(k, n) is element n*b_stride + k (a weight as stored), else k*b_stride + n */
    int64_t b_stride;                 /* row layout: elements from row to row; panel layouts: positions k that one panel holds in storage */
    int64_t b_first_n, b_first_k;     /* first row, column or position of b in use (blocks of a vocabulary); panels: b_first_n % 32 == 0 */
    int64_t out_stride;               /* elements between rows of out */
    int64_t out_first_n;              /* first column written in out */
    bool accumulate;                  /* add to out instead of overwriting it */
    bool has_c;                       /* out = c + a b; c has the strides of out and may share its storage */
    struct tp_operand c;
    struct tp_operand panels;         /* where tp_gemm_panel_bytes is not 0: scratch of that size */
};

/** Emits launches of the given tier ("generic", "cpu", "clblast", "x86_bf16", "x86_amx", "x86_vnni", "x86_avx2"). The caller's variant must have asked for layouts that the tier's kernel
 *  reads: generic and clblast: row; cpu: panel layouts, or row f32 with b_is_nk false and n a multiple of 32 (trainable matrices,
 *  activations), or row f32 with b_is_nk and n <= TP_GEMM_SKINNY (routers), or any other rows, decoded anew in every run;
 *  x86_bf16, x86_amx: a in row_bf16, b in tiles or quant, an exact k; x86_vnni, x86_avx2: quant, few rows. If b is an
 *  input whose storage is split, one launch per part is emitted. TALPA_E_INTERNAL if tp_gemm_accepts says no. */
enum talpa_status tp_gemm_emit(struct tp_lower *lower, const struct tp_gemm *gemm, const char *tier);

enum { TP_GEMM_SKINNY = 16, TP_GEMM_FEW_ROWS = 8 };

/** Whether tp_gemm_emit accepts this product on the tier and device. */
bool tp_gemm_accepts(const struct tp_lower *lower, const struct tp_gemm *gemm, const char *tier);

/** Bytes of scratch that the cpu tier decodes b to; 0 if it reads b as it is. */
size_t tp_gemm_panel_bytes(const struct tp_lower *lower, const struct tp_gemm *gemm);

/** Whether the cpu tier keeps this input, a frozen quantised weight, in the layout quant: as many bytes as in the file, for all products. Not
 *  if a conversion was asked for (--base-dtype). */
bool tp_gemm_wants_quant(const struct tp_lower *lower, int input);

/** Whether a product with rows like these is one of few rows, a matter of reading the weight: in a plan for decoding always, in one for prompts
 *  where a sequence has one row (the vocabulary), elsewhere up to 8 rows at the bound. Never a matter of the rows at run time. */
bool tp_gemm_is_few(const struct tp_lower *lower, const struct tp_type *rows);

/** Scratch that a product of the tiers x86_vnni and x86_avx2 needs in `panels`. */
size_t tp_gemm_dot_bytes(const struct tp_lower *lower, const struct tp_gemm *gemm);

/** For the matrix tiers and an a that is no value of the graph, or part of one: bytes of a in row_bf16, and the launch that makes it there
 *  from f32 rows (a_stride_k is 1); gemm->a, a_layout and a_stride_m then say so. An input in that layout needs neither: the plan converts
 *  it once for all its readers. */
size_t tp_gemm_row_bytes(const struct tp_gemm *gemm);
void tp_gemm_rows_emit(struct tp_lower *lower, struct tp_gemm *gemm, struct tp_operand scratch);

/** Whether the cpu tier reads b, in rows, without decoding or conversion. */
bool tp_gemm_reads_rows(const struct tp_gemm *gemm);

/** " -DTP_WEIGHT_<dtype>=1" for kernels that include common/quant.clh; static string. */
const char *tp_gemm_weight_option(enum talpa_dtype dtype);

/** The launch that converts a value from row to `layout` (plan inserts it). `lower->node` may be NULL; `value` names what is converted. */
enum talpa_status tp_pack_emit(struct tp_lower *lower, talpa_value value, enum tp_layout layout, int part);

#endif
