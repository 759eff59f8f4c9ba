/* Scores, threshold gate, work lists and experts of one adapted product: one launch when there are few rows, as in decoding, where the five
 * launches one by one cost several times what they compute. Dense plans only; training keeps what the gradient reads and so never fuses. */
#include "ops/router_experts.h"

#include "ops/lora_expert.h"

extern const struct tp_op tp_op_threshold_gate, tp_op_dispatch;

enum { X, GATING, DIRECTION, BIAS, A, BT, Y0 }; /* the first four as in router_scores */
enum { N_EXPERTS, RANK };                       /* integer attributes of the group; f[0]: scale, f[1]: largest threshold */
enum { MAX_ROWS = 8 };                          /* as in the kernel */

static bool match_experts(struct tp_fused *fused, const struct tp_match *match, int32_t at)
{
    const struct tp_node *router = tp_graph_node_at(match->graph, at);
    const bool has_direction = router->in[DIRECTION] != TP_NONE;
    const int32_t g = tp_match_sole_reader(match, router->out[0]);
    if (g < 0 || tp_graph_node_at(match->graph, g)->op != &tp_op_threshold_gate) return false;
    const struct tp_node *gate = tp_graph_node_at(match->graph, g);
    const talpa_value raw = gate->n_in > 1 ? gate->in[1] : TP_NONE;
    if (gate->in[0] != router->out[0] || raw != (has_direction ? router->out[1] : TP_NONE)) return false;
    const int32_t e = tp_match_sole_reader(match, gate->out[0]), d = tp_match_next(match, &tp_op_dispatch, gate->out[1], 0, g);
    if (e < 0 || d < 0 || tp_graph_node_at(match->graph, e)->op != &tp_op_lora_expert) return false;
    const struct tp_node *experts = tp_graph_node_at(match->graph, e), *lists = tp_graph_node_at(match->graph, d);
    if (experts->in[TP_LORA_X] != router->in[X] || experts->n_in <= TP_LORA_LIST || experts->in[TP_LORA_WEIGHT] != gate->out[0] ||
        experts->in[TP_LORA_SEL] != gate->out[1] || experts->in[TP_LORA_LIST] != lists->out[1] ||
        (experts->n_in > TP_LORA_KEEP && experts->in[TP_LORA_KEEP] != TP_NONE))
        return false;
    if (!tp_fused_add(fused, match, at) || !tp_fused_add(fused, match, g) || !tp_fused_add(fused, match, d) || !tp_fused_add(fused, match, e))
        return false;
    for (int i = X; i <= BIAS; i++) tp_fused_in(fused, i < router->n_in ? router->in[i] : TP_NONE);
    tp_fused_in(fused, experts->in[TP_LORA_A]);
    tp_fused_in(fused, experts->in[TP_LORA_BT]);
    tp_fused_in(fused, experts->in[TP_LORA_Y0]);
    tp_fused_out(fused, experts->out[0]);
    fused->node.attrs = (struct tp_attrs){.i = {experts->attrs.i[0], experts->attrs.i[1]},
                                          .f = {experts->attrs.f[0] / (1 - experts->attrs.f[1]), gate->attrs.f[0]}};
    return true;
}

static bool applies(const struct tp_lower *lower)
{
    return tp_lower_in(lower, X)->shape.dim[0] <= MAX_ROWS && lower->options->dispatch != TP_DISPATCH_SPARSE;
}

static enum talpa_status lower_experts(struct tp_lower *lower)
{
    const struct tp_attrs *attrs = &lower->node->attrs;
    const struct tp_type *x = tp_lower_in(lower, X);
    const int64_t rows = x->shape.dim[0], d = x->shape.dim[1], d_out = tp_lower_in(lower, Y0)->shape.dim[1];
    const int64_t n = attrs->i[N_EXPERTS], n_all = n * attrs->i[RANK];
    const bool has_direction = tp_lower_has_in(lower, DIRECTION);
    const int score = tp_lower_scratch(lower, (size_t)(rows * (n + 1)) * sizeof(float));
    const int coef = tp_lower_scratch(lower, (size_t)(rows * n_all) * sizeof(float));
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/router_experts.cl", "router_experts");
    for (int i = X; i <= Y0; i++) tp_launch_read(lower, launch, tp_in(tp_lower_has_in(lower, i) ? i : X));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_write(lower, launch, tp_scratch(score));
    tp_launch_write(lower, launch, tp_scratch(coef));
    tp_launch_step(launch);
    tp_launch_rows(launch, x);
    tp_launch_u32(launch, (uint32_t)d);
    tp_launch_u32(launch, (uint32_t)d_out);
    tp_launch_u32(launch, (uint32_t)n);
    tp_launch_u32(launch, (uint32_t)attrs->i[RANK]);
    tp_launch_u32(launch, has_direction);
    tp_launch_f32(launch, (float)attrs->f[1]);
    tp_launch_f32(launch, (float)attrs->f[0]);
    tp_launch_groups(launch, 1, 1, 1, 1, 1, 1);
    const double columns = (double)(d * (n + has_direction + n_all) + d_out * n_all);
    tp_launch_cost(launch, 2.0 * (double)rows * columns, 4.0 * (columns + (double)(rows * (d + 2 * d_out))));
    return TALPA_OK;
}

static const struct tp_variant variants[] = {{"cpu", applies, NULL, lower_experts}};

const struct tp_fusion tp_router_experts_fusion = {.name = "router, gate and experts", .match = match_experts, .variants = variants, .n_variants = 1};
