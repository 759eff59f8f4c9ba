#include "gemm_emit.h"

#include <string.h>

#include "base/dtype.h"

const char *tp_gemm_weight_option(enum talpa_dtype dtype)
{
    switch (dtype) {
    case TALPA_F16: return "-DTP_WEIGHT_F16=1";
    case TALPA_BF16: return "-DTP_WEIGHT_BF16=1";
    case TALPA_Q8_0: return "-DTP_WEIGHT_Q8_0=1";
    case TALPA_Q4_0: return "-DTP_WEIGHT_Q4_0=1";
    case TALPA_Q4_1: return "-DTP_WEIGHT_Q4_1=1";
    case TALPA_Q5_0: return "-DTP_WEIGHT_Q5_0=1";
    case TALPA_Q5_1: return "-DTP_WEIGHT_Q5_1=1";
    case TALPA_Q4_K: return "-DTP_WEIGHT_Q4_K=1";
    case TALPA_Q5_K: return "-DTP_WEIGHT_Q5_K=1";
    case TALPA_Q6_K: return "-DTP_WEIGHT_Q6_K=1";
    default: return "-DTP_WEIGHT_F32=1";
    }
}

/* ---- which products a tier takes ---- */

static int n_parts(const struct tp_lower *lower, const struct tp_gemm *g)
{
    return g->b.kind == TP_OPERAND_IN ? tp_lower_n_parts(lower, g->b.index) : 1;
}

bool tp_gemm_is_few(const struct tp_lower *lower, const struct tp_type *rows)
{
    switch (lower->options->use) {
    case TP_USE_DECODE: return true;
    case TP_USE_PROMPT: return rows->rows == TP_STEP_N_LABELLED;
    default: return rows->shape.dim[0] <= TP_GEMM_FEW_ROWS;
    }
}

bool tp_gemm_accepts(const struct tp_lower *lower, const struct tp_gemm *g, const char *tier)
{
    const bool row = g->b_layout == TP_LAYOUT_ROW;
    if (!strcmp(tier, "generic")) return row;
    if (!strcmp(tier, "clblast"))
        return row && g->b_dtype == TALPA_F32 && (g->k_rows == TP_STEP_NONE || n_parts(lower, g) == 1);
    if (tp_gemv_is_dot(tier)) return tp_gemv_accepts(g) && g->b_layout == TP_LAYOUT_QUANT;
    if (tp_gemm_is_x86(tier)) return g->a_layout == TP_LAYOUT_ROW_BF16 && tp_gemm_x86_accepts(g);
    return tp_gemm_cpu_accepts(g);
}

/* ---- one launch ---- */

void tp_gemm_put_operands(struct tp_lower *lower, struct tp_launch *launch, const struct tp_gemm_piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    tp_launch_read(lower, launch, g->a);
    tp_launch_read_part(lower, launch, g->b, piece->part);
    /* The argument for c has to be some buffer even if nothing is read through it. */
    if (g->has_c && !g->accumulate) tp_launch_read(lower, launch, g->c);
    else tp_launch_write(lower, launch, g->out);
    tp_launch_write(lower, launch, g->out);
    tp_launch_step(launch);
    tp_launch_u32(launch, (uint32_t)g->m_rows);
    tp_launch_u32(launch, (uint32_t)g->m);
}

void tp_gemm_put_sizes(struct tp_launch *launch, const struct tp_gemm_piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    tp_launch_u32(launch, (uint32_t)g->k_rows);
    tp_launch_u32(launch, (uint32_t)piece->k_bound);
    tp_launch_u32(launch, (uint32_t)piece->k_first);
    tp_launch_u32(launch, (uint32_t)g->k);
    tp_launch_u32(launch, (uint32_t)g->n);
    tp_launch_u32(launch, (uint32_t)g->a_stride_m);
    tp_launch_u32(launch, (uint32_t)g->a_stride_k);
    tp_launch_u32(launch, (uint32_t)g->b_stride);
    tp_launch_u32(launch, (uint32_t)g->b_first_n);
    tp_launch_u32(launch, (uint32_t)g->b_first_k);
    tp_launch_u32(launch, (uint32_t)g->out_stride);
    tp_launch_u32(launch, (uint32_t)g->out_first_n);
    tp_launch_u32(launch, g->accumulate || g->has_c);
}

void tp_gemm_put_cost(struct tp_launch *launch, const struct tp_gemm *g)
{
    const double m = (double)g->m, n = (double)g->n, k = (double)g->k;
    const double b_bytes = g->b_layout == TP_LAYOUT_QUANT
                               ? (double)tp_layout_quant_block_bytes(g->b_dtype) / (TP_PANEL * TP_PANEL)
                           : g->b_layout == TP_LAYOUT_ROW
                               ? (double)tp_dtype_block_bytes(g->b_dtype) / (double)tp_dtype_block(g->b_dtype)
                               : tp_layout_is_bf16(g->b_layout) ? 2.0 : 4.0;
    tp_launch_cost(launch, 2.0 * m * n * k, 4.0 * (m * k + m * n) + b_bytes * n * k);
}

static void emit_generic(struct tp_lower *lower, const struct tp_gemm_piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    const uint32_t most = lower->caps->max_work_group_size;
    const int side = most == 0 || most >= 256 ? 16 : most >= 64 ? 8 : most >= 16 ? 4 : 1;
    struct tp_launch *launch = tp_lower_launch(lower, "generic/gemm.cl", "gemm");
    tp_launch_option(launch, "-DLX=%d -DLY=%d", side, side);
    tp_launch_option(launch, "%s", tp_gemm_weight_option(g->b_dtype));
    if (g->b_is_nk) tp_launch_option(launch, "-DB_IS_NK=1");
    tp_gemm_put_operands(lower, launch, piece);
    tp_gemm_put_sizes(launch, piece);
    const int64_t columns = tp_gemm_ceil_div(g->n, 4 * side), rows = tp_gemm_ceil_div(g->m, 4 * side);
    tp_launch_groups(launch, (size_t)columns, (size_t)rows, 1, (size_t)side, (size_t)side, 1);
    tp_gemm_put_cost(launch, g);
}

static void emit_clblast(struct tp_lower *lower, const struct tp_gemm_piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    if (g->has_c && !g->accumulate) {
        /* The library can only add to what is in out; c may already be out itself, then this copies it onto itself. */
        struct tp_launch *copy = tp_lower_launch(lower, "generic/gemm.cl", "gemm_copy");
        tp_launch_option(copy, "-DLX=1 -DLY=1");
        tp_launch_read(lower, copy, g->c);
        tp_launch_write(lower, copy, g->out);
        tp_launch_step(copy);
        tp_launch_u32(copy, (uint32_t)g->m_rows);
        tp_launch_u32(copy, (uint32_t)g->m);
        tp_launch_u32(copy, (uint32_t)g->n);
        tp_launch_u32(copy, (uint32_t)g->out_stride);
        tp_launch_u32(copy, (uint32_t)g->out_first_n);
        tp_launch_groups(copy, (size_t)tp_gemm_ceil_div(g->n, 64), 1, 1, 64, 1, 1);
        tp_launch_cost(copy, 0.0, 8.0 * (double)g->m * (double)g->n);
    }
    struct tp_launch *launch = tp_lower_launch(lower, "clblast", "gemm");
    if (!launch) return;
    tp_launch_read(lower, launch, g->a);
    tp_launch_read_part(lower, launch, g->b, piece->part);
    tp_launch_write(lower, launch, g->out);
    launch->is_blas = true;
    launch->blas.transpose_a = g->a_stride_k != 1;
    launch->blas.transpose_b = g->b_is_nk;
    launch->blas.accumulate = g->accumulate || g->has_c;
    launch->blas.m = g->m;
    launch->blas.n = g->n;
    launch->blas.k = g->k;
    /* With one row, or k = 1, a stride is free: the library still wants a leading dimension that is as long as a row. */
    launch->blas.lda = launch->blas.transpose_a ? tp_gemm_max(g->a_stride_k, g->m) : tp_gemm_max(g->a_stride_m, g->k);
    launch->blas.ldb = g->b_stride;
    launch->blas.ldc = g->out_stride;
    launch->blas.offset_a = piece->k_first * g->a_stride_k;
    launch->blas.offset_b = g->b_is_nk ? g->b_first_n * g->b_stride + g->b_first_k : g->b_first_k * g->b_stride + g->b_first_n;
    launch->blas.offset_c = g->out_first_n;
    launch->blas.m_rows = g->m_rows;
    launch->blas.k_rows = g->k_rows;
    tp_gemm_put_cost(launch, g);
}

static void emit_piece(struct tp_lower *lower, const struct tp_gemm_piece *piece, const char *tier)
{
    if (!strcmp(tier, "clblast")) emit_clblast(lower, piece);
    else if (!strcmp(tier, "generic")) emit_generic(lower, piece);
    else if (tp_gemv_is_dot(tier)) tp_gemv_emit(lower, piece, tier);
    else if (tp_gemm_is_x86(tier)) tp_gemm_x86_emit(lower, piece, tier);
    else tp_gemm_cpu_emit(lower, piece);
}

/* ---- split storage ---- */

/* The part's share of the columns of the product; false if it has none. `first` and `n` are in columns. */
static bool cut_columns(struct tp_gemm_piece *piece, const struct tp_gemm *g, int64_t first, int64_t n)
{
    const int64_t lo = tp_gemm_max(first, g->b_first_n), hi = tp_gemm_min(first + n, g->b_first_n + g->n);
    if (lo >= hi) return false;
    piece->gemm.n = hi - lo;
    piece->gemm.b_first_n = lo - first;
    piece->gemm.out_first_n = g->out_first_n + lo - g->b_first_n;
    return true;
}

static bool cut_contraction(struct tp_gemm_piece *piece, const struct tp_gemm *g, int64_t first, int64_t n, bool is_first)
{
    const int64_t lo = tp_gemm_max(first, g->b_first_k), hi = tp_gemm_min(first + n, g->b_first_k + g->k);
    if (lo >= hi) return false;
    piece->k_first = lo - g->b_first_k;
    piece->gemm.k = hi - lo;
    piece->gemm.b_first_k = lo - first;
    if (!is_first) piece->gemm.accumulate = true;
    return true;
}

enum talpa_status tp_gemm_emit(struct tp_lower *lower, const struct tp_gemm *gemm, const char *tier)
{
    if (!tp_gemm_accepts(lower, gemm, tier))
        return tp_fail(TALPA_E_INTERNAL, "the %s tier does not take a product with b as %s %s", tier, tp_layout_name(gemm->b_layout),
                       tp_dtype_name(gemm->b_dtype));
    const int parts = n_parts(lower, gemm);
    if (parts == 1) {
        emit_piece(lower, &(struct tp_gemm_piece){.gemm = *gemm, .k_bound = gemm->k}, tier);
        return TALPA_OK;
    }
    /* Parts are shares of the rows of the weight, or of the panels in which the product's columns lie. */
    const bool cuts_k = !gemm->b_is_nk && (gemm->b_layout == TP_LAYOUT_ROW || gemm->b_layout == TP_LAYOUT_QUANT);
    const int64_t unit = gemm->b_layout == TP_LAYOUT_ROW ? 1 : TP_PANEL;
    bool is_first = true;
    for (int part = 0; part < parts; part++) {
        int64_t first, n;
        tp_lower_part(lower, gemm->b.index, part, &first, &n);
        struct tp_gemm_piece piece = {.gemm = *gemm, .part = part, .k_bound = gemm->k};
        const bool any = cuts_k ? cut_contraction(&piece, gemm, first * unit, n * unit, is_first)
                                : cut_columns(&piece, gemm, first * unit, n * unit);
        if (!any) continue;
        emit_piece(lower, &piece, tier);
        is_first = false;
    }
    return TALPA_OK;
}
