#include "gemm.h"

#include <string.h>

#include "base/dtype.h"

/* A product whose b is one allocation, with the range of k that it adds. */
struct piece {
    struct tp_gemm gemm;
    int part;        /* of b's storage */
    int64_t k_first; /* first k of the product in this piece; gemm.k counts the k of the piece */
    int64_t k_bound; /* bound of k of the whole product */
};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

static bool is_bf16(enum tp_layout layout) { return layout == TP_LAYOUT_PANEL_BF16 || layout == TP_LAYOUT_PANEL_T_BF16; }

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

static bool is_skinny(const struct tp_gemm *g)
{
    return g->b_layout == TP_LAYOUT_ROW && g->b_dtype == TALPA_F32 && g->b_is_nk && g->n <= TP_GEMM_SKINNY && g->a_stride_k == 1 &&
           g->k_rows == TP_STEP_NONE;
}

static int n_parts(const struct tp_lower *lower, const struct tp_gemm *g)
{
    return g->b.kind == TP_OPERAND_IN ? tp_lower_n_parts(lower, g->b.index) : 1;
}

bool tp_gemm_accepts(const struct tp_lower *lower, const struct tp_gemm *g, const char *tier)
{
    const bool row = g->b_layout == TP_LAYOUT_ROW;
    if (!strcmp(tier, "generic")) return row;
    if (!strcmp(tier, "clblast"))
        return row && g->b_dtype == TALPA_F32 && (g->k_rows == TP_STEP_NONE || n_parts(lower, g) == 1);
    return row || g->b_first_n % TP_PANEL == 0;
}

bool tp_gemm_reads_rows(const struct tp_gemm *g)
{
    return g->b_layout == TP_LAYOUT_ROW && ((g->b_dtype == TALPA_F32 && !g->b_is_nk && g->n % TP_PANEL == 0) || is_skinny(g));
}

/* ---- one launch ---- */

static void put_operands(struct tp_lower *lower, struct tp_launch *launch, const struct piece *piece)
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

static void put_sizes(struct tp_launch *launch, const struct piece *piece)
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

static void put_cost(struct tp_launch *launch, const struct tp_gemm *g)
{
    const double m = (double)g->m, n = (double)g->n, k = (double)g->k;
    const double b_bytes = g->b_layout == TP_LAYOUT_ROW
                               ? (double)tp_dtype_block_bytes(g->b_dtype) / (double)tp_dtype_block(g->b_dtype)
                               : is_bf16(g->b_layout) ? 2.0 : 4.0;
    tp_launch_cost(launch, 2.0 * m * n * k, 4.0 * (m * k + m * n) + b_bytes * n * k);
}

static void emit_generic(struct tp_lower *lower, const struct piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    const uint32_t most = lower->caps->max_work_group_size;
    const int side = most == 0 || most >= 256 ? 16 : most >= 64 ? 8 : most >= 16 ? 4 : 1;
    struct tp_launch *launch = tp_lower_launch(lower, "generic/gemm.cl", "gemm");
    tp_launch_option(launch, "-DLX=%d -DLY=%d", side, side);
    tp_launch_option(launch, "%s", tp_gemm_weight_option(g->b_dtype));
    if (g->b_is_nk) tp_launch_option(launch, "-DB_IS_NK=1");
    put_operands(lower, launch, piece);
    put_sizes(launch, piece);
    tp_launch_groups(launch, (size_t)ceil_div(g->n, 4 * side), (size_t)ceil_div(g->m, 4 * side), 1, (size_t)side, (size_t)side, 1);
    put_cost(launch, g);
}

/* Enough groups to keep every core busy with little imbalance at the end, few enough that starting them costs nothing. */
static int64_t cpu_groups(const struct tp_lower *lower) { return max_i64(32, 4 * (int64_t)lower->caps->compute_units); }

/* How the cpu tier shares out the panels and the rows of out. */
struct shares {
    int64_t panels_per_group, group_columns, group_rows;
};

static bool decodes(const struct tp_gemm *g) { return g->b_layout == TP_LAYOUT_ROW && !tp_gemm_reads_rows(g); }

/* Every group that decodes needs room for a panel of its own, all together one allocation. */
static int64_t most_groups(const struct tp_lower *lower, const struct tp_gemm *g, int64_t k_bound)
{
    const int64_t groups = cpu_groups(lower);
    if (!decodes(g) || lower->caps->max_alloc_bytes == 0) return groups;
    return max_i64(1, min_i64(groups, (int64_t)(lower->caps->max_alloc_bytes / 2 / sizeof(float)) / (k_bound * TP_PANEL)));
}

static struct shares share_out(const struct tp_lower *lower, const struct tp_gemm *g, int64_t k_bound)
{
    const int64_t groups = most_groups(lower, g, k_bound), panels = ceil_div(g->n, TP_PANEL);
    struct shares shares = {.panels_per_group = ceil_div(panels, groups)};
    shares.group_columns = ceil_div(panels, shares.panels_per_group);
    shares.group_rows = min_i64(ceil_div(g->m, 12), max_i64(1, groups / shares.group_columns));
    return shares;
}

size_t tp_gemm_panel_bytes(const struct tp_lower *lower, const struct tp_gemm *g)
{
    return decodes(g) ? (size_t)(most_groups(lower, g, g->k) * g->k * TP_PANEL) * sizeof(float) : 0;
}

static void emit_cpu(struct tp_lower *lower, const struct piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    const struct shares shares = share_out(lower, g, piece->k_bound);
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/gemm.cl", "gemm");
    if (decodes(g)) {
        tp_launch_option(launch, "-DB_NATIVE=1");
        tp_launch_option(launch, "%s", tp_gemm_weight_option(g->b_dtype));
        if (g->b_is_nk) tp_launch_option(launch, "-DB_IS_NK=1");
    } else if (g->b_layout == TP_LAYOUT_ROW) {
        tp_launch_option(launch, "-DB_ROW=1");
    }
    if (is_bf16(g->b_layout)) tp_launch_option(launch, "-DB_BF16=1");
    put_operands(lower, launch, piece);
    put_sizes(launch, piece);
    tp_launch_u32(launch, (uint32_t)shares.panels_per_group);
    if (decodes(g)) tp_launch_write(lower, launch, g->panels);
    tp_launch_groups(launch, (size_t)shares.group_columns, (size_t)shares.group_rows, 1, 1, 1, 1);
    put_cost(launch, g);
}

static void emit_skinny(struct tp_lower *lower, const struct piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/gemm_skinny.cl", "gemm_skinny");
    put_operands(lower, launch, piece);
    tp_launch_u32(launch, (uint32_t)g->k);
    tp_launch_u32(launch, (uint32_t)g->n);
    tp_launch_u32(launch, (uint32_t)g->a_stride_m);
    tp_launch_u32(launch, (uint32_t)g->b_stride);
    tp_launch_u32(launch, (uint32_t)g->b_first_n);
    tp_launch_u32(launch, (uint32_t)(g->b_first_k));
    tp_launch_u32(launch, (uint32_t)g->out_stride);
    tp_launch_u32(launch, (uint32_t)g->out_first_n);
    tp_launch_u32(launch, g->accumulate || g->has_c);
    const int64_t groups = min_i64(ceil_div(g->m, 4), cpu_groups(lower));
    tp_launch_u32(launch, (uint32_t)groups);
    tp_launch_groups(launch, (size_t)groups, 1, 1, 1, 1, 1);
    put_cost(launch, g);
}

static void emit_clblast(struct tp_lower *lower, const struct piece *piece)
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
        tp_launch_groups(copy, (size_t)ceil_div(g->n, 64), 1, 1, 64, 1, 1);
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
    launch->blas.lda = launch->blas.transpose_a ? max_i64(g->a_stride_k, g->m) : max_i64(g->a_stride_m, g->k);
    launch->blas.ldb = g->b_stride;
    launch->blas.ldc = g->out_stride;
    launch->blas.offset_a = piece->k_first * g->a_stride_k;
    launch->blas.offset_b = g->b_is_nk ? g->b_first_n * g->b_stride + g->b_first_k : g->b_first_k * g->b_stride + g->b_first_n;
    launch->blas.offset_c = g->out_first_n;
    launch->blas.m_rows = g->m_rows;
    launch->blas.k_rows = g->k_rows;
    put_cost(launch, g);
}

static void emit_piece(struct tp_lower *lower, const struct piece *piece, const char *tier)
{
    if (!strcmp(tier, "clblast")) emit_clblast(lower, piece);
    else if (!strcmp(tier, "generic")) emit_generic(lower, piece);
    else if (is_skinny(&piece->gemm)) emit_skinny(lower, piece);
    else emit_cpu(lower, piece);
}

/* ---- split storage ---- */

/* The part's share of the columns of the product; false if it has none. `first` and `n` are in columns. */
static bool cut_columns(struct piece *piece, const struct tp_gemm *g, int64_t first, int64_t n)
{
    const int64_t lo = max_i64(first, g->b_first_n), hi = min_i64(first + n, g->b_first_n + g->n);
    if (lo >= hi) return false;
    piece->gemm.n = hi - lo;
    piece->gemm.b_first_n = lo - first;
    piece->gemm.out_first_n = g->out_first_n + lo - g->b_first_n;
    return true;
}

static bool cut_contraction(struct piece *piece, const struct tp_gemm *g, int64_t first, int64_t n, bool is_first)
{
    const int64_t lo = max_i64(first, g->b_first_k), hi = min_i64(first + n, g->b_first_k + g->k);
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
        emit_piece(lower, &(struct piece){.gemm = *gemm, .k_bound = gemm->k}, tier);
        return TALPA_OK;
    }
    const bool rows = gemm->b_layout == TP_LAYOUT_ROW;
    bool is_first = true;
    for (int part = 0; part < parts; part++) {
        int64_t first, n;
        tp_lower_part(lower, gemm->b.index, part, &first, &n);
        struct piece piece = {.gemm = *gemm, .part = part, .k_bound = gemm->k};
        const bool any = !rows            ? cut_columns(&piece, gemm, first * TP_PANEL, n * TP_PANEL)
                         : gemm->b_is_nk ? cut_columns(&piece, gemm, first, n)
                                         : cut_contraction(&piece, gemm, first, n, is_first);
        if (!any) continue;
        emit_piece(lower, &piece, tier);
        is_first = false;
    }
    return TALPA_OK;
}

/* ---- conversions ---- */

enum talpa_status tp_pack_emit(struct tp_lower *lower, talpa_value value, enum tp_layout layout, int part)
{
    const struct tp_type *type = tp_graph_type(lower->graph, value);
    if (layout == TP_LAYOUT_ROW || type->shape.rank != 2 || type->dtype == TALPA_I32)
        return tp_fail(TALPA_E_INTERNAL, "a %s value of rank %d has no layout %s", tp_dtype_name(type->dtype), type->shape.rank,
                       tp_layout_name(layout));
    /* A node of one input stands in for the reader, so that parts are counted and arguments made as for every other launch. */
    talpa_value in[1] = {value};
    const struct tp_node node = {.in = in, .n_in = 1, .scope = lower->node ? lower->node->scope : ""};
    const enum tp_layout row = TP_LAYOUT_ROW;
    struct tp_lower source = {.graph = lower->graph, .node = &node, .node_index = lower->node_index, .caps = lower->caps,
                              .options = lower->options, .in_layout = &row, .list = lower->list};
    struct tp_lower target = source;
    target.in_layout = &layout;
    int64_t first_panel, n_panels;
    tp_lower_part(&target, 0, part, &first_panel, &n_panels);

    const bool transposed = layout == TP_LAYOUT_PANEL_T_F32 || layout == TP_LAYOUT_PANEL_T_BF16;
    struct tp_launch *launch = tp_lower_launch(&source, "cpu/pack.cl", "pack");
    tp_launch_option(launch, "%s", tp_gemm_weight_option(type->dtype));
    if (transposed) tp_launch_option(launch, "-DTRANSPOSED=1");
    if (is_bf16(layout)) tp_launch_option(launch, "-DTO_BF16=1");
    tp_launch_read(&source, launch, tp_in(0));
    tp_launch_write(&target, launch, tp_in(0));
    if (launch) launch->args[launch->n_args - 1].part = part;
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)type->shape.dim[1]);
    tp_launch_u32(launch, (uint32_t)first_panel);
    tp_launch_u32(launch, (uint32_t)n_panels);
    const int64_t groups = cpu_groups(lower), panels_per_group = ceil_div(n_panels, groups);
    const int64_t group_panels = ceil_div(n_panels, panels_per_group);
    const int64_t pieces = ceil_div(type->shape.dim[transposed ? 0 : 1], TP_PANEL);
    tp_launch_u32(launch, (uint32_t)panels_per_group);
    tp_launch_groups(launch, (size_t)group_panels, (size_t)min_i64(pieces, max_i64(1, groups / group_panels)), 1, 1, 1, 1);
    tp_launch_cost(launch, 0.0, (double)tp_type_bytes(type) + (double)n_panels * (double)tp_layout_unit_bytes(type, layout));
    return TALPA_OK;
}
