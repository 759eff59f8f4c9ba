#include "gemm_emit.h"

#include <stdio.h>
#include <string.h>

#include "runtime/tuning.h"

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

bool tp_gemm_wants_quant(const struct tp_lower *lower, int input)
{
    const enum tp_base_dtype base = lower->options->base_dtype;
    return (base == TP_BASE_AUTO || base == TP_BASE_NATIVE) &&
           tp_graph_value(lower->graph, lower->node->in[input])->kind == TP_WEIGHT && tp_layout_takes_quant(tp_lower_in(lower, input));
}

bool tp_gemm_cpu_accepts(const struct tp_gemm *g)
{
    if (g->b_layout == TP_LAYOUT_QUANT && g->b_first_k % TP_PANEL != 0) return false;
    return g->b_layout == TP_LAYOUT_ROW || g->b_first_n % TP_PANEL == 0;
}

/* ---- parameters ---- */

static const char source[] = "cpu/gemm.cl";

/* Rows and columns of the micro-tile; block_panels is the least number of panels that holds whole tiles. */
struct tile {
    int rows, vectors, width, block_panels;
};

static bool has_feature(const struct talpa_device_caps *caps, const char *name)
{
    const size_t n = strlen(name);
    for (const char *p = strstr(caps->cpu_features, name); p; p = strstr(p + 1, name))
        if ((p == caps->cpu_features || p[-1] == ' ') && (p[n] == ' ' || p[n] == '\0')) return true;
    return false;
}

/* 24 of 32 registers hold sums with AVX-512 (and on processors that say nothing), 12 of 16 where vectors have 8 floats at most. Rows that lie
 * a multiple of 4096 bytes apart share a set of a first cache of 8 ways, which 12 of them thrash: then 6 rows, twice as wide. */
static struct tile tile_of(const struct tp_lower *lower, const struct tp_gemm *g)
{
    enum { ALIASED = 1024 };
    struct tile tile = {.rows = 12, .vectors = 2, .width = 16};
    if (g->a_stride_m > 0 && g->a_stride_m % ALIASED == 0) tile = (struct tile){.rows = 6, .vectors = 4, .width = 16};
    if (has_feature(lower->caps, "avx") && !has_feature(lower->caps, "avx512f")) tile = (struct tile){.rows = 6, .vectors = 2, .width = 8};
    int rows, vectors, width;
    if (sscanf(tp_tuning_word(lower->options->tuning, source, "TILE"), "%dx%dx%d", &rows, &vectors, &width) == 3)
        tile = (struct tile){.rows = rows, .vectors = vectors, .width = width};
    tile.block_panels = 1;
    while (tile.block_panels * TP_PANEL % (tile.vectors * tile.width)) tile.block_panels++;
    return tile;
}

/* ---- sharing out ---- */

int64_t tp_gemm_cpu_groups(const struct tp_lower *lower)
{
    return tp_tuning_number(lower->options->tuning, source, "GROUPS", tp_gemm_max(32, 4 * (int64_t)lower->caps->compute_units));
}

static bool decodes(const struct tp_gemm *g)
{
    return g->b_layout == TP_LAYOUT_QUANT || (g->b_layout == TP_LAYOUT_ROW && !tp_gemm_reads_rows(g));
}

/* How the tier shares out the panels and the rows of out. */
struct shares {
    int64_t panels_per_group, strip_panels, group_columns, group_rows;
};

/* Blocks of the layout quant are decoded whole, so k is rounded up. */
static int64_t panel_bytes(int64_t k_bound) { return tp_gemm_ceil_div(k_bound, TP_PANEL) * TP_PANEL * TP_PANEL * (int64_t)sizeof(float); }

/* Panels that stay in the second cache while rows pass by, at least a block. */
static int64_t most_strip(const struct tp_lower *lower, const struct tile *tile, int64_t k_bound)
{
    const int64_t bytes = 1024 * tp_tuning_number(lower->options->tuning, source, "STRIP_KB", 320);
    return tp_gemm_max(1, bytes / panel_bytes(k_bound) / tile->block_panels) * tile->block_panels;
}

/* A group that decodes has a strip of its own, which it uses again and again: few groups, so that all strips stay in caches. All strips
 * are one allocation. */
static int64_t decoding_groups(const struct tp_lower *lower, const struct tile *tile, int64_t k_bound)
{
    const int64_t groups = tp_gemm_max(8, 4 * (int64_t)lower->caps->compute_units), strip = tile->block_panels * panel_bytes(k_bound);
    if (lower->caps->max_alloc_bytes == 0) return groups;
    return tp_gemm_max(1, tp_gemm_min(groups, (int64_t)(lower->caps->max_alloc_bytes / 2) / strip));
}

static struct shares share_out(const struct tp_lower *lower, const struct tp_gemm *g, const struct tile *tile, int64_t k_bound)
{
    const int64_t groups = decodes(g) ? decoding_groups(lower, tile, k_bound) : tp_gemm_cpu_groups(lower);
    const int64_t panels = tp_gemm_ceil_div(g->n, TP_PANEL), block = tile->block_panels;
    struct shares shares = {.panels_per_group = tp_gemm_ceil_div(tp_gemm_ceil_div(panels, groups), block) * block};
    shares.group_columns = tp_gemm_ceil_div(panels, shares.panels_per_group);
    shares.strip_panels = decodes(g) ? block : tp_gemm_min(most_strip(lower, tile, k_bound), shares.panels_per_group);
    /* Each share of the rows decodes the same panels again: only where there are too few panels for the cores. */
    const bool enough = decodes(g) && shares.group_columns >= 2 * (int64_t)lower->caps->compute_units;
    shares.group_rows = tp_gemm_min(tp_gemm_ceil_div(g->m, tile->rows), enough ? 1 : tp_gemm_max(1, groups / shares.group_columns));
    return shares;
}

/* The bits of gemm and gemv are the same, so this is a matter of speed. */
static bool takes_gemv(const struct tp_gemm *g) { return g->m <= TP_GEMM_FEW_ROWS && tp_gemv_accepts(g); }

size_t tp_gemm_panel_bytes(const struct tp_lower *lower, const struct tp_gemm *g)
{
    if (g->a_layout == TP_LAYOUT_ROW_BF16) return tp_gemm_x86_panel_bytes(lower, g);
    const struct tile tile = tile_of(lower, g);
    return decodes(g) && !takes_gemv(g) ? (size_t)(decoding_groups(lower, &tile, g->k) * tile.block_panels * panel_bytes(g->k)) : 0;
}

/* ---- launches ---- */

static void emit_panels(struct tp_lower *lower, const struct tp_gemm_piece *piece)
{
    const struct tp_gemm *g = &piece->gemm;
    const struct tile tile = tile_of(lower, g);
    const struct shares shares = share_out(lower, g, &tile, piece->k_bound);
    struct tp_launch *launch = tp_lower_launch(lower, source, "gemm");
    tp_launch_option(launch, "-DROWS=%d -DVECTORS=%d -DWIDTH=%d", tile.rows, tile.vectors, tile.width);
    if (decodes(g)) {
        tp_launch_option(launch, g->b_layout == TP_LAYOUT_QUANT ? "-DB_QUANT=1" : "-DB_NATIVE=1");
        tp_launch_option(launch, "%s", tp_gemm_weight_option(g->b_dtype));
        if (g->b_is_nk) tp_launch_option(launch, "-DB_IS_NK=1");
    } else if (g->b_layout == TP_LAYOUT_ROW) {
        tp_launch_option(launch, "-DB_ROW=1");
    }
    if (tp_layout_is_bf16(g->b_layout)) tp_launch_option(launch, "-DB_BF16=1");
    tp_gemm_put_operands(lower, launch, piece);
    tp_gemm_put_sizes(launch, piece);
    tp_launch_u32(launch, (uint32_t)shares.panels_per_group);
    tp_launch_u32(launch, (uint32_t)shares.strip_panels);
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
    if (takes_gemv(&piece->gemm)) tp_gemv_emit(lower, piece, "cpu");
    else if (is_skinny(&piece->gemm)) emit_skinny(lower, piece);
    else emit_panels(lower, piece);
}
