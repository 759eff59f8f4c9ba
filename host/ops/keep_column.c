#include "elementwise.h"

extern const struct tp_op tp_op_keep_column;

enum { COLUMN };

static enum talpa_status infer(struct tp_infer *work)
{
    TP_TRY(tp_infer_expect(work, 0, 2, TALPA_N_DTYPES));
    const struct tp_type *x = work->in[0];
    if (x->dtype != TALPA_F32 && x->dtype != TALPA_I32) return tp_infer_fail(work, 0, "f32 or i32");
    if (work->attrs->i[COLUMN] < 0 || work->attrs->i[COLUMN] >= x->shape.dim[1])
        return tp_fail(TALPA_E_ARGUMENT, "keep_column: column %lld of %lld", (long long)work->attrs->i[COLUMN], (long long)x->shape.dim[1]);
    work->out[0] = *x;
    work->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    (void)wanted;
    return talpa_keep_column(&in_grads[0], graph, out_grads[0], (int)node->attrs.i[COLUMN]);
}

static enum talpa_status lower(struct tp_lower *work)
{
    struct tp_launch *launch = tp_lower_launch(work, "generic/keep_column.cl", "keep_column");
    tp_launch_read(work, launch, tp_in(0));
    tp_launch_write(work, launch, tp_out(0));
    tp_launch_u32(launch, (uint32_t)work->node->attrs.i[COLUMN]);
    tp_elementwise_finish(work, launch, tp_lower_out(work, 0), false, 0, 2);
    return TALPA_OK;
}

static const struct tp_variant variants[] = {{"generic", NULL, NULL, lower}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    *flops = 0;
    *bytes = 2.0 * (double)tp_type_bytes(tp_graph_type(graph, node->out[0]));
}

static void reference(const struct tp_reference *work)
{
    const int64_t n_rows = work->out_type[0].shape.dim[0], width = work->out_type[0].shape.dim[1];
    for (int64_t i = 0; i < n_rows * width; i++) work->out[0][i] = i % width == work->attrs->i[COLUMN] ? work->in[0][i] : 0.0;
}

static const struct tp_case cases[] = {
    {.name = "f32, odd", .in = {{TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_N_TOKENS, {33, 7}, true}}, .n_in = 1, .n_tokens = 17, .attrs = {.i = {6}}},
    {.name = "f32, one", .in = {{TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_NONE, {1, 1}, true}}, .n_in = 1},
    {.name = "i32", .in = {{TALPA_I32, TP_INPUT, TP_GEN_SELECT, 0.5, TP_STEP_N_TOKENS, {65, 8}, false}}, .n_in = 1, .n_tokens = 3, .attrs = {.i = {2}}},
};

const struct tp_op tp_op_keep_column = {
    .name = "keep_column",
    .in_names = {"x"},
    .attr_i = {[COLUMN] = "column"},
    .infer = infer,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 1,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

enum talpa_status talpa_keep_column(talpa_value *out, struct talpa_graph *graph, talpa_value x, int column)
{
    const struct tp_attrs attrs = {.i = {[COLUMN] = column}};
    return tp_graph_node(graph, &tp_op_keep_column, &x, 1, &attrs, out);
}
