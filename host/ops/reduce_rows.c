#include "elementwise.h"

extern const struct tp_op tp_op_reduce_rows;

enum { BLOCK = 64 }; /* as in the kernels */

static enum talpa_status infer(struct tp_infer *work)
{
    TP_TRY(tp_infer_expect(work, 0, 2, TALPA_F32));
    work->out[0] = tp_type_1d(TALPA_F32, TP_STEP_NONE, work->in[0]->shape.dim[1]);
    work->n_out = 1;
    return TALPA_OK;
}

static void stage_args(struct tp_lower *work, struct tp_launch *launch, struct tp_operand from, struct tp_operand to)
{
    const struct tp_type *type = tp_lower_in(work, 0);
    tp_launch_read(work, launch, from);
    tp_launch_write(work, launch, to);
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)type->shape.dim[1]);
}

static enum talpa_status lower(struct tp_lower *work, bool on_cpu)
{
    const char *source = on_cpu ? "cpu/reduce_rows.cl" : "generic/reduce_rows.cl";
    const struct tp_type *type = tp_lower_in(work, 0);
    const size_t n = (size_t)type->shape.dim[1], n_blocks = ((size_t)type->shape.dim[0] + BLOCK - 1) / BLOCK;
    const size_t local = on_cpu ? 1 : tp_elementwise_local(work, 64), n_columns = (n + local - 1) / local;
    const struct tp_operand partial = n_blocks > 1 ? tp_scratch(tp_lower_scratch(work, n_blocks * n * sizeof(float))) : tp_out(0);

    struct tp_launch *launch = tp_lower_launch(work, source, "reduce_rows_blocks");
    stage_args(work, launch, tp_in(0), partial);
    if (on_cpu)
        tp_launch_groups(launch, n_blocks, 1, 1, 1, 1, 1);
    else
        tp_launch_groups(launch, n_columns, n_blocks, 1, local, 1, 1);
    tp_launch_cost(launch, (double)tp_type_elements(type), (double)tp_type_bytes(type));
    if (n_blocks == 1) return TALPA_OK;

    launch = tp_lower_launch(work, source, "reduce_rows_final");
    stage_args(work, launch, partial, tp_out(0));
    if (on_cpu) {
        const uint32_t n_groups = tp_elementwise_shares((int64_t)(n_blocks * n));
        tp_launch_u32(launch, n_groups);
        tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
    } else {
        tp_launch_groups(launch, n_columns, 1, 1, local, 1, 1);
    }
    tp_launch_cost(launch, (double)(n_blocks * n), 4.0 * (double)(n_blocks * n));
    return TALPA_OK;
}

static enum talpa_status lower_cpu(struct tp_lower *work) { return lower(work, true); }
static enum talpa_status lower_generic(struct tp_lower *work) { return lower(work, false); }

static const struct tp_variant variants[] = {{"cpu", NULL, NULL, lower_cpu}, {"generic", NULL, NULL, lower_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *type = tp_graph_type(graph, node->in[0]);
    *flops = (double)tp_type_elements(type);
    *bytes = (double)tp_type_bytes(type);
}

static void reference(const struct tp_reference *work)
{
    const int64_t n_rows = work->in_type[0].shape.dim[0], n = work->in_type[0].shape.dim[1];
    for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int64_t t = 0; t < n_rows; t++) sum += work->in[0][t * n + j];
        work->out[0][j] = sum;
    }
}

#define ROWS(t, n)                                                                                                                         \
    {                                                                                                                                      \
        TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_N_TOKENS, {t, n}, false                                                             \
    }

static const struct tp_case cases[] = {
    {.name = "one column", .in = {ROWS(1000, 1)}, .n_in = 1, .n_tokens = 777},
    {.name = "one block", .in = {ROWS(33, 7)}, .n_in = 1, .n_tokens = 17},
    {.name = "one element", .in = {ROWS(1, 1)}, .n_in = 1},
    {.name = "exact block", .in = {ROWS(64, 65)}, .n_in = 1},
    {.name = "few rows of many", .in = {ROWS(200, 35)}, .n_in = 1, .n_tokens = 1},
    {.name = "blocks", .in = {ROWS(193, 577)}, .n_in = 1, .n_tokens = 129},
};

const struct tp_op tp_op_reduce_rows = {
    .name = "reduce_rows",
    .in_names = {"x"},
    .infer = infer,
    .no_gradient = "it occurs in gradients only",
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

enum talpa_status talpa_reduce_rows(talpa_value *out, struct talpa_graph *graph, talpa_value x)
{
    return tp_graph_node(graph, &tp_op_reduce_rows, &x, 1, NULL, out);
}
