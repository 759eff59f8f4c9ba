/* Work lists of a mixture: for every expert the ascending list of the tokens that chose it, made on the device. */
#include "ops/elementwise.h"

extern const struct tp_op tp_op_dispatch;

enum talpa_status talpa_dispatch(talpa_value *counts, talpa_value *list, struct talpa_graph *graph, talpa_value sel)
{
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_dispatch, &sel, 1, NULL, out));
    *counts = out[0];
    *list = out[1];
    return TALPA_OK;
}

static enum talpa_status infer(struct tp_infer *request)
{
    TP_TRY(tp_infer_expect(request, 0, 2, TALPA_I32));
    const struct talpa_shape *shape = &request->in[0]->shape;
    request->out[0] = tp_type_1d(TALPA_I32, TP_STEP_NONE, shape->dim[1]);
    request->out[1] = tp_type_2d(TALPA_I32, TP_STEP_NONE, shape->dim[1], shape->dim[0]);
    request->n_out = 2;
    return TALPA_OK;
}

/* The lists are constant between two decisions, so nothing flows back. */
static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    (void)graph, (void)node, (void)out_grads, (void)wanted, (void)in_grads;
    return TALPA_OK;
}

static struct tp_launch *launch_dispatch(struct tp_lower *lower, const char *source)
{
    const struct tp_type *sel = tp_lower_in(lower, 0);
    const double n = (double)tp_type_elements(sel);
    struct tp_launch *launch = tp_lower_launch(lower, source, "dispatch");
    tp_launch_step(launch);
    tp_launch_rows(launch, sel);
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_u32(launch, (uint32_t)sel->shape.dim[1]);
    tp_launch_cost(launch, n, 8 * n);
    return launch;
}

static enum talpa_status lower_cpu(struct tp_lower *lower)
{
    tp_launch_groups(launch_dispatch(lower, "cpu/dispatch.cl"), (size_t)tp_lower_in(lower, 0)->shape.dim[1], 1, 1, 1, 1, 1);
    return TALPA_OK;
}

static enum talpa_status lower_generic(struct tp_lower *lower)
{
    struct tp_launch *launch = launch_dispatch(lower, "generic/dispatch.cl");
    const size_t local = tp_elementwise_local(lower, 128);
    tp_launch_local(launch, local * sizeof(uint32_t));
    tp_launch_groups(launch, (size_t)tp_lower_in(lower, 0)->shape.dim[1], 1, 1, local, 1, 1);
    return TALPA_OK;
}


static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const double n = (double)tp_type_elements(tp_graph_type(graph, node->in[0]));
    *flops = n;
    *bytes = 8 * n;
}

/* The entries past a count are -1, as the kernels leave them. */
static void reference(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[0].shape.dim[0], n = r->in_type[0].shape.dim[1], bound = r->out_type[1].shape.dim[1];
    for (int64_t i = 0; i < n * bound; i++) r->out[1][i] = -1;
    for (int64_t e = 0; e < n; e++) r->out[0][e] = 0;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t e = 0; e < n; e++)
            if (r->in[0][t * n + e] != 0) r->out[1][e * bound + (int64_t)r->out[0][e]++] = (double)t;
}

static const struct tp_variant variants[] = {
    {.tier = "cpu", .applies = NULL, .lower = lower_cpu},
    {.tier = "generic", .lower = lower_generic},
};

#define SELECT(t, e, share) {.dtype = TALPA_I32, .gen = TP_GEN_SELECT, .scale = share, .rows = TP_STEP_N_TOKENS, .dim = {t, e}}

static const struct tp_case cases[] = {
    {.name = "one by one", .in = {SELECT(1, 1, 1.0)}, .n_in = 1},
    {.name = "none", .in = {SELECT(33, 3, 0.0)}, .n_in = 1},
    {.name = "all", .in = {SELECT(129, 2, 1.0)}, .n_in = 1},
    {.name = "two of eight", .in = {SELECT(513, 8, 0.25)}, .n_in = 1},
    {.name = "fewer rows", .in = {SELECT(300, 7, 0.5)}, .n_in = 1, .n_tokens = 130},
    {.name = "3 rows of 130", .in = {SELECT(130, 8, 0.5)}, .n_in = 1, .n_tokens = 3},
};

const struct tp_op tp_op_dispatch = {
    .name = "dispatch",
    .in_names = {"sel"},
    .infer = infer,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};
