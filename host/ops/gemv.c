/* Products of few rows on the tiers `cpu`, `x86_vnni` and `x86_avx2`: decoding. */
#include "gemm_emit.h"

#include <string.h>

#include "base/dtype.h"

bool tp_gemv_accepts(const struct tp_gemm *g)
{
    const bool panels = g->b_layout == TP_LAYOUT_QUANT || g->b_layout == TP_LAYOUT_PANEL_F32 || g->b_layout == TP_LAYOUT_PANEL_BF16;
    return panels && g->b_is_nk && g->a_stride_k == 1 && g->k_rows == TP_STEP_NONE && g->b_first_k == 0 &&
           g->b_stride == g->k && g->b_first_n % TP_PANEL == 0;
}

int64_t tp_gemv_groups(const struct tp_lower *lower, int64_t n_panels, bool dots)
{
    return tp_gemm_min(n_panels, tp_gemm_max(1, lower->caps->compute_units) * (dots ? 2 : 4));
}

size_t tp_dot_group_bytes(int64_t m, int64_t k)
{
    enum { RECORD = 128, ROWS = 4, CHUNK = 32 };
    return (size_t)(tp_gemm_min(m, CHUNK) * (k / TP_PANEL) + ROWS) * RECORD;
}

bool tp_gemv_is_dot(const char *tier) { return !strcmp(tier, "x86_vnni") || !strcmp(tier, "x86_avx2"); }

const char *tp_dot_option(const struct tp_lower *lower, const char *tier)
{
    if (!strcmp(tier, "x86_avx2")) return "-DDOT=1 -DDOT_AVX2=1";
    return lower->options->vnni_emulate ? "-DDOT=1" : "-DDOT=1 -DDOT_VNNI=1";
}

size_t tp_gemm_dot_bytes(const struct tp_lower *lower, const struct tp_gemm *g)
{
    return (size_t)tp_gemv_groups(lower, tp_gemm_ceil_div(g->n, TP_PANEL), true) * tp_dot_group_bytes(g->m, g->k);
}

void tp_gemv_emit(struct tp_lower *lower, const struct tp_gemm_piece *piece, const char *tier)
{
    const bool dots = tp_gemv_is_dot(tier);
    const struct tp_gemm *g = &piece->gemm;
    const int64_t groups = tp_gemv_groups(lower, tp_gemm_ceil_div(g->n, TP_PANEL), dots);
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/gemv.cl", "gemv");
    if (g->b_layout == TP_LAYOUT_QUANT) tp_launch_option(launch, "-DB_QUANT=1 %s", tp_gemm_weight_option(g->b_dtype));
    if (dots) tp_launch_option(launch, "%s", tp_dot_option(lower, tier));
    if (tp_layout_is_bf16(g->b_layout)) tp_launch_option(launch, "-DB_BF16=1");
    tp_gemm_put_operands(lower, launch, piece);
    tp_launch_u32(launch, (uint32_t)g->k);
    tp_launch_u32(launch, (uint32_t)g->n);
    tp_launch_u32(launch, (uint32_t)g->a_stride_m);
    tp_launch_u32(launch, (uint32_t)g->b_first_n);
    tp_launch_u32(launch, (uint32_t)g->out_stride);
    tp_launch_u32(launch, (uint32_t)g->out_first_n);
    tp_launch_u32(launch, g->accumulate || g->has_c);
    tp_launch_u32(launch, (uint32_t)groups);
    if (dots) tp_launch_write(lower, launch, g->panels);
    tp_launch_groups(launch, (size_t)groups, 1, 1, 1, 1, 1);
    tp_gemm_put_cost(launch, g);
}
