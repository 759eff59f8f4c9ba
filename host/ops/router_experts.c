/* Scores, threshold gates, work lists and experts of adapted products that share x (queries, keys and values), or of one: one launch when there
 * are few rows, as in decoding, where five launches per product cost several times what they compute. Dense plans only; training keeps what the gradient reads and so never fuses. */
#include "ops/router_experts.h"

#include "ops/lora_expert.h"

extern const struct tp_op tp_op_threshold_gate, tp_op_dispatch;

enum { X, GATING, DIRECTION, BIAS, A, BT, Y0 }; /* the first four as in router_scores; of the first product */
enum { N_EXPERTS, RANK };                       /* integer attributes of the group; f[0]: scale, f[1]: largest threshold */
enum { MAX_ROWS = 8 };

/* Group inputs: x, then per product those of router_scores without x, A, B^T and what is added. */
enum { MAX_PRODUCTS = 3, PER_PRODUCT = Y0 - X };

struct product {
    int32_t router, gate, lists, experts;
};

static bool find_product(struct product *out, const struct tp_match *match, int32_t at)
{
    const struct tp_node *router = tp_graph_node_at(match->graph, at);
    const bool has_direction = router->in[DIRECTION] != TP_NONE;
    const int32_t g = tp_match_sole_reader(match, router->out[0]);
    if (g < 0 || tp_graph_node_at(match->graph, g)->op != &tp_op_threshold_gate) return false;
    const struct tp_node *gate = tp_graph_node_at(match->graph, g);
    if (gate->attrs.i[0]) return false; /* the bound is not known beforehand */
    const talpa_value raw = gate->n_in > 1 ? gate->in[1] : TP_NONE;
    if (gate->in[0] != router->out[0] || raw != (has_direction ? router->out[1] : TP_NONE)) return false;
    const int32_t e = tp_match_sole_reader(match, gate->out[0]), d = tp_match_next(match, &tp_op_dispatch, gate->out[1], 0, g);
    if (e < 0 || d < 0 || tp_graph_node_at(match->graph, e)->op != &tp_op_lora_expert) return false;
    const struct tp_node *experts = tp_graph_node_at(match->graph, e), *lists = tp_graph_node_at(match->graph, d);
    if (experts->in[TP_LORA_X] != router->in[X] || experts->n_in <= TP_LORA_LIST || experts->in[TP_LORA_WEIGHT] != gate->out[0] ||
        experts->in[TP_LORA_SEL] != gate->out[1] || experts->in[TP_LORA_LIST] != lists->out[1] ||
        (experts->n_in > TP_LORA_KEEP && experts->in[TP_LORA_KEEP] != TP_NONE))
        return false;
    *out = (struct product){at, g, d, e};
    return true;
}

/* Experts, rank, scale and largest threshold. */
static struct tp_attrs product_attrs(const struct talpa_graph *graph, const struct product *p)
{
    const struct tp_attrs *experts = &tp_graph_node_at(graph, p->experts)->attrs, *gate = &tp_graph_node_at(graph, p->gate)->attrs;
    return (struct tp_attrs){.i = {experts->i[0], experts->i[1]}, .f = {experts->f[0] / (1 - experts->f[1]), gate->f[0]}};
}

static bool are_alike(const struct talpa_graph *graph, const struct product *p, const struct product *q)
{
    const struct tp_attrs a = product_attrs(graph, p), b = product_attrs(graph, q);
    const bool p_learns = tp_graph_node_at(graph, p->router)->in[DIRECTION] != TP_NONE;
    const bool q_learns = tp_graph_node_at(graph, q->router)->in[DIRECTION] != TP_NONE;
    return a.i[N_EXPERTS] == b.i[N_EXPERTS] && a.i[RANK] == b.i[RANK] && a.f[0] == b.f[0] && a.f[1] == b.f[1] && p_learns == q_learns;
}

static bool add_product(struct tp_fused *fused, const struct tp_match *match, const struct product *p)
{
    const struct tp_node *router = tp_graph_node_at(match->graph, p->router), *experts = tp_graph_node_at(match->graph, p->experts);
    if (!tp_fused_add(fused, match, p->router) || !tp_fused_add(fused, match, p->gate) || !tp_fused_add(fused, match, p->lists) ||
        !tp_fused_add(fused, match, p->experts))
        return false;
    for (int i = GATING; i <= BIAS; i++) tp_fused_in(fused, i < router->n_in ? router->in[i] : TP_NONE);
    tp_fused_in(fused, experts->in[TP_LORA_A]);
    tp_fused_in(fused, experts->in[TP_LORA_BT]);
    tp_fused_in(fused, experts->in[TP_LORA_Y0]);
    tp_fused_out(fused, experts->out[0]);
    return true;
}

static bool match_experts(struct tp_fused *fused, const struct tp_match *match, int32_t at)
{
    struct product product;
    if (!find_product(&product, match, at)) return false;
    fused->node.attrs = product_attrs(match->graph, &product);
    tp_fused_in(fused, tp_graph_node_at(match->graph, at)->in[X]);
    return add_product(fused, match, &product);
}

/* Queries, keys and values; gate and up. */
static bool match_products(struct tp_fused *fused, const struct tp_match *match, int32_t at)
{
    struct product first, next;
    if (!match_experts(fused, match, at) || !find_product(&first, match, at)) return false;
    const struct tp_node *router = tp_graph_node_at(match->graph, at);
    for (int32_t n = at; fused->node.n_out < MAX_PRODUCTS;) {
        n = tp_match_next(match, router->op, router->in[X], X, n);
        if (n < 0) break;
        if (find_product(&next, match, n) && are_alike(match->graph, &first, &next) && !add_product(fused, match, &next)) return false;
    }
    return fused->node.n_out > 1;
}

static bool applies(const struct tp_lower *lower)
{
    return tp_lower_in(lower, X)->shape.dim[0] <= MAX_ROWS && lower->options->dispatch != TP_DISPATCH_SPARSE;
}

/* Frozen matrices are packed to bf16 where products are: half the bytes, and bytes are most of what a row costs. Scores and thresholds stay in
 * f32: they choose. */
static bool applies_frozen(const struct tp_lower *lower)
{
    for (int p = 0; p < lower->node->n_out; p++)
        for (int i = A; i <= BT; i++)
            if (tp_graph_value(lower->graph, lower->node->in[p * PER_PRODUCT + i])->kind != TP_WEIGHT) return false;
    return applies(lower);
}

static void layouts_frozen(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    for (int p = 0; p < lower->node->n_out; p++) in[p * PER_PRODUCT + A] = in[p * PER_PRODUCT + BT] = TP_LAYOUT_ROW_BF16;
}

static enum talpa_status lower_experts(struct tp_lower *lower)
{
    const struct tp_attrs *attrs = &lower->node->attrs;
    const struct tp_type *x = tp_lower_in(lower, X);
    const int64_t rows = x->shape.dim[0], d = x->shape.dim[1], n = attrs->i[N_EXPERTS], n_all = n * attrs->i[RANK];
    const int n_products = lower->node->n_out;
    const bool is_learned = tp_lower_has_in(lower, DIRECTION);
    const int score = tp_lower_scratch(lower, (size_t)(n_products * rows * (n + 1)) * sizeof(float));
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/router_experts.cl", "router_experts");
    const bool in_bf16 = lower->in_layout[A] == TP_LAYOUT_ROW_BF16;
    const double matrix_bytes = in_bf16 ? 2.0 : 4.0;
    double flops = 0, bytes = 4.0 * (double)(rows * d);
    if (in_bf16) tp_launch_option(launch, "-DTP_BF16=1");
    tp_launch_read(lower, launch, tp_in(X));
    for (int p = 0; p < MAX_PRODUCTS; p++) {
        const int product = p < n_products ? p : 0, first = product * PER_PRODUCT;
        const int64_t d_out = tp_lower_in(lower, first + Y0)->shape.dim[1];
        for (int i = GATING; i <= Y0; i++) tp_launch_read(lower, launch, tp_in(tp_lower_has_in(lower, first + i) ? first + i : X));
        tp_launch_write(lower, launch, tp_out(product));
        tp_launch_u32(launch, (uint32_t)d_out);
        if (p >= n_products) continue;
        flops += 2.0 * (double)rows * (double)(d * (n + is_learned + n_all) + d_out * n_all);
        bytes += 4.0 * (double)(d * (n + is_learned) + 2 * rows * d_out) + matrix_bytes * (double)((d + d_out) * n_all);
    }
    tp_launch_write(lower, launch, tp_scratch(score));
    tp_launch_step(launch);
    tp_launch_rows(launch, x);
    tp_launch_u32(launch, (uint32_t)d);
    tp_launch_u32(launch, (uint32_t)n);
    tp_launch_u32(launch, (uint32_t)attrs->i[RANK]);
    tp_launch_u32(launch, is_learned);
    tp_launch_f32(launch, (float)attrs->f[1]);
    tp_launch_f32(launch, (float)attrs->f[0]);
    tp_launch_groups(launch, (size_t)n_products, 1, 1, 1, 1, 1);
    tp_launch_cost(launch, flops, bytes);
    return TALPA_OK;
}

static const struct tp_variant variants[] = {{"x86_amx", applies_frozen, layouts_frozen, lower_experts},
                                             {"x86_bf16", applies_frozen, layouts_frozen, lower_experts},
                                             {"cpu", applies, NULL, lower_experts}};
enum { N_VARIANTS = sizeof variants / sizeof *variants };

const struct tp_fusion tp_router_experts_fusions[TP_N_ROUTER_EXPERTS_FUSIONS] = {
    {.name = "routers, gates and experts", .match = match_products, .variants = variants, .n_variants = N_VARIANTS},
    {.name = "router, gate and experts", .match = match_experts, .variants = variants, .n_variants = N_VARIANTS}};
