#include <string.h>

#include "gemm_emit.h"

/* ---- which products the tiers take ---- */

bool tp_gemm_is_x86(const char *tier) { return !strcmp(tier, "x86_bf16") || !strcmp(tier, "x86_amx"); }

bool tp_gemm_x86_accepts(const struct tp_gemm *g)
{
    const bool b_fits = tp_layout_is_tile(g->b_layout) || g->b_layout == TP_LAYOUT_QUANT;
    const bool out_fits = g->out_layout == TP_LAYOUT_ROW || (g->out_layout == TP_LAYOUT_ROW_BF16 && !g->accumulate && !g->has_c);
    return b_fits && out_fits && g->a_stride_k == 1 && g->k_rows == TP_STEP_NONE && g->k > 0 && g->b_first_n % TP_PANEL == 0 &&
           g->b_first_k % TP_PANEL == 0;
}

/* ---- rows in bf16 ---- */

static int64_t rounded_up(int64_t n) { return tp_gemm_ceil_div(n, TP_PANEL) * TP_PANEL; }

size_t tp_gemm_row_bytes(const struct tp_gemm *g) { return (size_t)(rounded_up(g->m) * rounded_up(g->k)) * 2; }

void tp_pack_rows_emit(struct tp_lower *source, struct tp_operand from, struct tp_lower *target, struct tp_operand to,
                       enum tp_step_word rows, int64_t m, int64_t n, int64_t stride)
{
    const int64_t groups = tp_gemm_min(m, tp_gemm_cpu_groups(source));
    struct tp_launch *launch = tp_lower_launch(source, "cpu/pack_bf16.cl", "pack_rows");
    tp_launch_read(source, launch, from);
    tp_launch_write(target, launch, to);
    tp_launch_step(launch);
    tp_launch_u32(launch, (uint32_t)rows);
    tp_launch_u32(launch, (uint32_t)m);
    tp_launch_u32(launch, (uint32_t)n);
    tp_launch_u32(launch, (uint32_t)stride);
    tp_launch_u32(launch, (uint32_t)rounded_up(n));
    tp_launch_u32(launch, (uint32_t)groups);
    tp_launch_groups(launch, (size_t)groups, 1, 1, 1, 1, 1);
    tp_launch_cost(launch, 0.0, 6.0 * (double)m * (double)n);
}

void tp_gemm_rows_emit(struct tp_lower *lower, struct tp_gemm *g, struct tp_operand scratch)
{
    tp_pack_rows_emit(lower, g->a, lower, scratch, g->m_rows, g->m, g->k, g->a_stride_m);
    g->a = scratch;
    g->a_layout = TP_LAYOUT_ROW_BF16;
    g->a_stride_m = rounded_up(g->k);
}

/* ---- the product ---- */

struct shares {
    int64_t panels_per_group, group_columns, group_rows;
};

/* Every group that decodes needs room for a panel of its own, all together one allocation. */
static int64_t most_groups(const struct tp_lower *lower, const struct tp_gemm *g, int64_t k_bound)
{
    const int64_t groups = tp_gemm_cpu_groups(lower), panel_bytes = rounded_up(k_bound) * TP_PANEL * 2;
    if (g->b_layout != TP_LAYOUT_QUANT || lower->caps->max_alloc_bytes == 0) return groups;
    return tp_gemm_max(1, tp_gemm_min(groups, (int64_t)(lower->caps->max_alloc_bytes / 2) / panel_bytes));
}

/* A group that decodes takes all rows of its panels, so that no panel is decoded twice. */
static struct shares share_out(const struct tp_lower *lower, const struct tp_gemm *g, int64_t k_bound, const char *tier)
{
    const int64_t micro = strcmp(tier, "x86_amx") ? 12 : 32;
    const int64_t groups = most_groups(lower, g, k_bound), panels = tp_gemm_ceil_div(g->n, TP_PANEL);
    struct shares shares = {.panels_per_group = tp_gemm_ceil_div(panels, groups), .group_rows = 1};
    shares.group_columns = tp_gemm_ceil_div(panels, shares.panels_per_group);
    if (g->b_layout != TP_LAYOUT_QUANT)
        shares.group_rows = tp_gemm_min(tp_gemm_ceil_div(g->m, micro), tp_gemm_max(1, groups / shares.group_columns));
    return shares;
}

size_t tp_gemm_x86_panel_bytes(const struct tp_lower *lower, const struct tp_gemm *g)
{
    return g->b_layout == TP_LAYOUT_QUANT ? (size_t)(most_groups(lower, g, g->k) * rounded_up(g->k) * TP_PANEL) * 2 : 0;
}

void tp_gemm_x86_emit(struct tp_lower *lower, const struct tp_gemm_piece *piece, const char *tier)
{
    const struct tp_gemm *g = &piece->gemm;
    const struct shares shares = share_out(lower, g, piece->k_bound, tier);
    const bool quant = g->b_layout == TP_LAYOUT_QUANT, amx = !strcmp(tier, "x86_amx");
    struct tp_launch *launch = tp_lower_launch(lower, amx ? "x86_amx/gemm.cl" : "x86_bf16/gemm.cl", "gemm");
    if (quant) {
        tp_launch_option(launch, "-DB_QUANT=1 %s", tp_gemm_weight_option(g->b_dtype));
        if (g->b_is_nk) tp_launch_option(launch, "-DB_IS_NK=1");
    }
    if (g->out_layout == TP_LAYOUT_ROW_BF16) tp_launch_option(launch, "-DOUT_BF16=1");
    if (amx && lower->options->amx_emulate) tp_launch_option(launch, "-DAMX_EMULATE=1");
    tp_gemm_put_operands(lower, launch, piece);
    tp_launch_u32(launch, (uint32_t)piece->k_first);
    tp_launch_u32(launch, (uint32_t)g->k);
    tp_launch_u32(launch, (uint32_t)g->n);
    tp_launch_u32(launch, (uint32_t)g->a_stride_m);
    tp_launch_u32(launch, (uint32_t)tp_gemm_ceil_div(g->b_stride, TP_PANEL));
    tp_launch_u32(launch, (uint32_t)g->b_first_n);
    tp_launch_u32(launch, (uint32_t)g->b_first_k);
    tp_launch_u32(launch, (uint32_t)g->out_stride);
    tp_launch_u32(launch, (uint32_t)g->out_first_n);
    tp_launch_u32(launch, g->accumulate || g->has_c);
    tp_launch_u32(launch, (uint32_t)shares.panels_per_group);
    if (quant) tp_launch_write(lower, launch, g->panels);
    tp_launch_groups(launch, (size_t)shares.group_columns, (size_t)shares.group_rows, 1, 1, 1, 1);
    const double m = (double)g->m, n = (double)g->n, k = (double)g->k;
    tp_launch_cost(launch, 2.0 * m * n * k, 2.0 * (m * k + n * k) + (g->out_layout == TP_LAYOUT_ROW_BF16 ? 2.0 : 4.0) * m * n);
}
