/* A norm, the products of its rows with up to three weights (queries, keys and values; gate and up; the vocabulary) and, of gate and up, the
 * gated activation: one launch when there are few rows, as in decoding, where the products read weights and little else. */
#include "norm_products.h"

#include "base/dtype.h"
#include "gemm_emit.h"

extern const struct tp_op tp_op_matmul, tp_op_swiglu, tp_op_geglu;

enum { X, NORM, WEIGHTS, MAX_WEIGHTS = 3, MAX_ROWS = 8 }; /* MAX_ROWS as in the kernel */
enum { N_WEIGHTS, ACTIVATION, STORES_NORM };              /* integer attributes of the group; f[0]: eps */
enum { NO_ACTIVATION, SILU, GELU_TANH };

/* y = h W^T with a frozen weight and nothing added. */
static bool is_product(const struct tp_match *match, int32_t n, talpa_value h)
{
    const struct tp_node *node = tp_graph_node_at(match->graph, n);
    return node->op == &tp_op_matmul && match->group[n] < 0 && node->in[0] == h && !node->attrs.i[0] && node->attrs.i[1] &&
           (node->n_in < 3 || node->in[2] == TP_NONE) && tp_graph_value(match->graph, node->in[1])->kind == TP_WEIGHT;
}

/* The first products of h whose weights are of one type, in the order of the graph; returns their number. */
static int find_products(const struct tp_match *match, talpa_value h, int32_t *products)
{
    int n = 0;
    enum talpa_dtype dtype = TALPA_F32;
    for (int i = 0; i < tp_match_n_readers(match, h) && n < MAX_WEIGHTS; i++) {
        const int32_t reader = tp_match_reader(match, h, i);
        if (!is_product(match, reader, h)) continue;
        const enum talpa_dtype own = tp_graph_type(match->graph, tp_graph_node_at(match->graph, reader)->in[1])->dtype;
        if (n == 0) dtype = own;
        if (own == dtype) products[n++] = reader;
    }
    return n;
}

static int begin(struct tp_fused *fused, const struct tp_match *match, int32_t at, int32_t *products)
{
    const struct tp_node *norm = tp_graph_node_at(match->graph, at);
    const int n = find_products(match, norm->out[0], products);
    if (!n || !tp_fused_add(fused, match, at)) return 0;
    tp_fused_in(fused, norm->in[0]);
    tp_fused_in(fused, norm->in[1]);
    for (int i = 0; i < n; i++) {
        if (!tp_fused_add(fused, match, products[i])) return 0;
        tp_fused_in(fused, tp_graph_node_at(match->graph, products[i])->in[1]);
    }
    fused->node.attrs = norm->attrs;
    fused->node.attrs.i[N_WEIGHTS] = n;
    return n;
}

static bool match_products(struct tp_fused *fused, const struct tp_match *match, int32_t at)
{
    int32_t products[MAX_WEIGHTS];
    const int n = begin(fused, match, at, products);
    for (int i = 0; i < n; i++) tp_fused_out(fused, tp_graph_node_at(match->graph, products[i])->out[0]);
    const talpa_value h = tp_graph_node_at(match->graph, at)->out[0];
    fused->node.attrs.i[STORES_NORM] = n && tp_fused_needs(fused, match, h);
    if (fused->node.attrs.i[STORES_NORM]) tp_fused_out(fused, h);
    return n > 0;
}

static bool match_gated(struct tp_fused *fused, const struct tp_match *match, int32_t at)
{
    int32_t products[MAX_WEIGHTS];
    if (begin(fused, match, at, products) != 2) return false;
    const talpa_value gate = tp_graph_node_at(match->graph, products[0])->out[0], up = tp_graph_node_at(match->graph, products[1])->out[0];
    const int32_t n = tp_match_sole_reader(match, gate);
    if (n < 0 || tp_match_sole_reader(match, up) != n) return false;
    const struct tp_node *node = tp_graph_node_at(match->graph, n);
    if ((node->op != &tp_op_swiglu && node->op != &tp_op_geglu) || node->in[0] != gate || node->in[1] != up) return false;
    fused->node.attrs.i[ACTIVATION] = node->op == &tp_op_swiglu ? SILU : GELU_TANH;
    tp_fused_out(fused, node->out[0]);
    return tp_fused_add(fused, match, n);
}

/* ---- lowering ---- */

/* As the products' own: quantised weights as they are, others in panels; in rows (which the kernel does not read) if they are to stay so. */
static enum tp_layout weight_layout(const struct tp_lower *lower, int i)
{
    const enum tp_base_dtype base = lower->options->base_dtype;
    if (tp_gemm_wants_quant(lower, i)) return TP_LAYOUT_QUANT;
    return base == TP_BASE_NATIVE ? TP_LAYOUT_ROW : base == TP_BASE_BF16 ? TP_LAYOUT_PANEL_BF16 : TP_LAYOUT_PANEL_F32;
}

static bool applies(const struct tp_lower *lower)
{
    const struct tp_type *x = tp_lower_in(lower, X);
    const int64_t k = x->shape.dim[1];
    if (k % 32 || tp_lower_in(lower, NORM)->shape.dim[0] != k) return false;
    for (int i = 0; i < (int)lower->node->attrs.i[N_WEIGHTS]; i++) {
        const enum tp_layout layout = weight_layout(lower, WEIGHTS + i);
        if (layout == TP_LAYOUT_ROW) return false;
        if (lower->caps->max_alloc_bytes && tp_layout_bytes(tp_lower_in(lower, WEIGHTS + i), layout) > lower->caps->max_alloc_bytes) return false;
    }
    return true;
}

static bool applies_cpu(const struct tp_lower *lower)
{
    const struct tp_type *x = tp_lower_in(lower, X);
    return x->shape.dim[0] <= MAX_ROWS && tp_gemm_is_few(lower, x) && applies(lower);
}

static bool applies_dot(const struct tp_lower *lower)
{
    return tp_gemm_is_few(lower, tp_lower_in(lower, X)) && tp_gemm_wants_quant(lower, WEIGHTS) && applies(lower);
}

static void layouts(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    for (int i = 0; i < (int)lower->node->attrs.i[N_WEIGHTS]; i++) in[WEIGHTS + i] = weight_layout(lower, WEIGHTS + i);
}

static enum talpa_status lower_products(struct tp_lower *lower, const char *tier)
{
    const bool dots = tp_gemv_is_dot(tier);
    const struct tp_attrs *attrs = &lower->node->attrs;
    const struct tp_type *x = tp_lower_in(lower, X);
    const int n_weights = (int)attrs->i[N_WEIGHTS];
    const enum tp_layout layout = lower->in_layout[WEIGHTS];
    const double k = (double)x->shape.dim[1];
    int64_t n[MAX_WEIGHTS] = {0}, n_panels = 0;
    double bytes = 0, columns = 0;
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/norm_products.cl", "norm_products");
    tp_launch_option(launch, "-DN_WEIGHTS=%d", n_weights);
    if (layout == TP_LAYOUT_QUANT) tp_launch_option(launch, "-DQUANT=1 %s", tp_gemm_weight_option(tp_lower_in(lower, WEIGHTS)->dtype));
    if (dots) tp_launch_option(launch, "%s", tp_dot_option(lower, tier));
    if (layout == TP_LAYOUT_PANEL_BF16) tp_launch_option(launch, "-DB_BF16=1");
    if (attrs->i[ACTIVATION]) tp_launch_option(launch, attrs->i[ACTIVATION] == SILU ? "-DGATED=TP_SILU" : "-DGATED=TP_GELU_TANH");
    if (attrs->i[STORES_NORM]) tp_launch_option(launch, "-DSTORE_NORM=1");
    for (int i = 0; i < WEIGHTS + n_weights; i++) tp_launch_read(lower, launch, tp_in(i));
    for (int o = 0; o < lower->node->n_out; o++) tp_launch_write(lower, launch, tp_out(o));
    tp_launch_step(launch);
    tp_launch_rows(launch, x);
    tp_launch_u32(launch, (uint32_t)x->shape.dim[1]);
    tp_launch_f32(launch, (float)attrs->f[0]);
    for (int i = 0; i < n_weights; i++) {
        n[i] = tp_lower_in(lower, WEIGHTS + i)->shape.dim[0];
        if (!i || !attrs->i[ACTIVATION]) n_panels += (n[i] + TP_PANEL - 1) / TP_PANEL;
        bytes += (double)tp_layout_bytes(tp_lower_in(lower, WEIGHTS + i), layout);
        columns += (double)n[i];
    }
    for (int i = 0; i < MAX_WEIGHTS; i++) tp_launch_u32(launch, (uint32_t)n[i]);
    const int64_t groups = tp_gemv_groups(lower, n_panels, dots);
    tp_launch_u32(launch, (uint32_t)groups);
    if (dots) {
        const size_t bytes_per_group = tp_dot_group_bytes(x->shape.dim[0], x->shape.dim[1]);
        tp_launch_write(lower, launch, tp_scratch(tp_lower_scratch(lower, (size_t)groups * bytes_per_group)));
    }
    tp_launch_groups(launch, (size_t)groups, 1, 1, 1, 1, 1);
    tp_launch_cost(launch, 2.0 * (double)x->shape.dim[0] * k * columns, bytes + 4.0 * (double)x->shape.dim[0] * (k + columns));
    return TALPA_OK;
}

static enum talpa_status lower_cpu(struct tp_lower *lower) { return lower_products(lower, "cpu"); }
static enum talpa_status lower_vnni(struct tp_lower *lower) { return lower_products(lower, "x86_vnni"); }
static enum talpa_status lower_avx2(struct tp_lower *lower) { return lower_products(lower, "x86_avx2"); }

static const struct tp_variant variants[] = {{"x86_vnni", applies_dot, layouts, lower_vnni},
                                             {"x86_avx2", applies_dot, layouts, lower_avx2},
                                             {"cpu", applies_cpu, layouts, lower_cpu}};
enum { N_VARIANTS = sizeof variants / sizeof *variants };

const struct tp_fusion tp_norm_fusions[TP_N_NORM_FUSIONS] = {
    {.name = "norm and gated activation", .match = match_gated, .variants = variants, .n_variants = N_VARIANTS},
    {.name = "norm and products", .match = match_products, .variants = variants, .n_variants = N_VARIANTS},
};
