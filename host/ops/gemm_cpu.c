#include "gemm_emit.h"

/* ---- which products the tier takes ---- */

static bool is_skinny(const struct tp_gemm *g)
{
    return g->b_layout == TP_LAYOUT_ROW && g->b_dtype == TALPA_F32 && g->b_is_nk && g->n <= TP_GEMM_SKINNY && g->a_stride_k == 1 &&
           g->k_rows == TP_STEP_NONE;
}

bool tp_gemm_reads_rows(const struct tp_gemm *g)
{
    return g->b_layout == TP_LAYOUT_ROW && ((g->b_dtype == TALPA_F32 && !g->b_is_nk && g->n % TP_PANEL == 0) || is_skinny(g));
}

bool tp_gemm_cpu_accepts(const struct tp_gemm *g)
{
    return g->b_layout == TP_LAYOUT_ROW || g->b_first_n % TP_PANEL == 0;
}

/* ---- sharing out ---- */

int64_t tp_gemm_cpu_groups(const struct tp_lower *lower) { return tp_gemm_max(32, 4 * (int64_t)lower->caps->compute_units); }

/* How the cpu tier shares out the panels and the rows of out. */
struct shares {
    int64_t panels_per_group, group_columns, group_rows;
};

static bool decodes(const struct tp_gemm *g) { return g->b_layout == TP_LAYOUT_ROW && !tp_gemm_reads_rows(g); }

/* Every group that decodes needs room for a panel of its own, all together one allocation. */
static int64_t most_groups(const struct tp_lower *lower, const struct tp_gemm *g, int64_t k_bound)
{
    const int64_t groups = tp_gemm_cpu_groups(lower);
    if (!decodes(g) || lower->caps->max_alloc_bytes == 0) return groups;
    return tp_gemm_max(1, tp_gemm_min(groups, (int64_t)(lower->caps->max_alloc_bytes / 2 / sizeof(float)) / (k_bound * TP_PANEL)));
}

static struct shares share_out(const struct tp_lower *lower, const struct tp_gemm *g, int64_t k_bound)
{
    const int64_t groups = most_groups(lower, g, k_bound), panels = tp_gemm_ceil_div(g->n, TP_PANEL);
    struct shares shares = {.panels_per_group = tp_gemm_ceil_div(panels, groups)};
    shares.group_columns = tp_gemm_ceil_div(panels, shares.panels_per_group);
    shares.group_rows = tp_gemm_min(tp_gemm_ceil_div(g->m, 12), tp_gemm_max(1, groups / shares.group_columns));
    return shares;
}

size_t tp_gemm_panel_bytes(const struct tp_lower *lower, const struct tp_gemm *g)
{
    return decodes(g) ? (size_t)(most_groups(lower, g, g->k) * g->k * TP_PANEL) * sizeof(float) : 0;
}

/* ---- launches ---- */

static void emit_panels(struct tp_lower *lower, const struct tp_gemm_piece *piece)
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
    if (tp_layout_is_bf16(g->b_layout)) tp_launch_option(launch, "-DB_BF16=1");
    tp_gemm_put_operands(lower, launch, piece);
    tp_gemm_put_sizes(launch, piece);
    tp_launch_u32(launch, (uint32_t)shares.panels_per_group);
    if (decodes(g)) tp_launch_write(lower, launch, g->panels);
    tp_launch_groups(launch, (size_t)shares.group_columns, (size_t)shares.group_rows, 1, 1, 1, 1);
    tp_gemm_put_cost(launch, g);
}

static void emit_skinny(struct tp_lower *lower, const struct tp_gemm_piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/gemm_skinny.cl", "gemm_skinny");
    tp_gemm_put_operands(lower, launch, piece);
    tp_launch_u32(launch, (uint32_t)g->k);
    tp_launch_u32(launch, (uint32_t)g->n);
    tp_launch_u32(launch, (uint32_t)g->a_stride_m);
    tp_launch_u32(launch, (uint32_t)g->b_stride);
    tp_launch_u32(launch, (uint32_t)g->b_first_n);
    tp_launch_u32(launch, (uint32_t)(g->b_first_k));
    tp_launch_u32(launch, (uint32_t)g->out_stride);
    tp_launch_u32(launch, (uint32_t)g->out_first_n);
    tp_launch_u32(launch, g->accumulate || g->has_c);
    const int64_t groups = tp_gemm_min(tp_gemm_ceil_div(g->m, 4), tp_gemm_cpu_groups(lower));
    tp_launch_u32(launch, (uint32_t)groups);
    tp_launch_groups(launch, (size_t)groups, 1, 1, 1, 1, 1);
    tp_gemm_put_cost(launch, g);
}

void tp_gemm_cpu_emit(struct tp_lower *lower, const struct tp_gemm_piece *piece)
{
    if (is_skinny(&piece->gemm)) emit_skinny(lower, piece);
    else emit_panels(lower, piece);
}
