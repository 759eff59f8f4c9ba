#include "elementwise.h"

#include "base/dtype.h"

extern const struct tp_op tp_op_add, tp_op_scale, tp_op_bias_add, tp_op_step_scalar, tp_op_accumulate;

size_t tp_elementwise_local(const struct tp_lower *lower, size_t wanted)
{
    size_t local = 1;
    while (local * 2 <= wanted && (!lower->caps->max_work_group_size || local * 2 <= lower->caps->max_work_group_size)) local *= 2;
    return local;
}

void tp_elementwise_groups(const struct tp_lower *lower, struct tp_launch *launch, int64_t n)
{
    const size_t local = tp_elementwise_local(lower, 64);
    tp_launch_groups(launch, n > 0 ? ((size_t)n + local - 1) / local : 1, 1, 1, local, 1, 1);
}

struct tp_launch *tp_row_launch(struct tp_lower *lower, const char *source, double flops)
{
    const struct tp_type *type = tp_lower_in(lower, 0);
    const struct tp_node *node = lower->node;
    const double n = (double)tp_type_elements(type);
    struct tp_launch *launch = tp_lower_launch(lower, source, node->op->name);
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    for (int i = 0; i < node->n_in; i++) tp_launch_read(lower, launch, tp_in(tp_lower_has_in(lower, i) ? i : 0));
    for (int o = 0; o < node->n_out; o++) tp_launch_write(lower, launch, tp_out(o));
    tp_launch_u32(launch, (uint32_t)tp_elementwise_inner(type));
    tp_elementwise_groups(lower, launch, type->shape.dim[0]);
    tp_launch_cost(launch, flops * n, 4 * (node->n_in + node->n_out) * n);
    return launch;
}

uint32_t tp_elementwise_shares(int64_t n_elements)
{
    enum { ELEMENTS_PER_SHARE = 8192, MAX_SHARES = 32 };
    const int64_t n = n_elements / ELEMENTS_PER_SHARE;
    return n < 1 ? 1 : n > MAX_SHARES ? MAX_SHARES : (uint32_t)n;
}

uint32_t tp_elementwise_row_shares(int64_t n_rows, int64_t row_elements)
{
    const uint32_t n = tp_elementwise_shares(n_rows * row_elements);
    return n_rows < (int64_t)n ? (uint32_t)n_rows : n;
}

int64_t tp_elementwise_inner(const struct tp_type *type) { return tp_type_elements(type) / type->shape.dim[0]; }

void tp_elementwise_finish(struct tp_lower *lower, struct tp_launch *launch, const struct tp_type *type, bool on_cpu, double flops,
                           int n_values)
{
    const int64_t n = tp_type_elements(type);
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)tp_elementwise_inner(type));
    if (on_cpu) {
        tp_launch_u32(launch, tp_elementwise_shares(n));
        tp_launch_groups(launch, tp_elementwise_shares(n), 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(lower, 128);
        tp_launch_groups(launch, ((size_t)n + local - 1) / local, 1, 1, local, 1, 1);
    }
    tp_launch_cost(launch, flops * (double)n, 4.0 * n_values * (double)n);
}

static void cost_of_moves(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *type = tp_graph_type(graph, node->out[0]);
    *flops = (double)tp_type_elements(type);
    *bytes = (double)tp_type_bytes(type);
    for (int i = 0; i < node->n_in; i++) *bytes += (double)tp_type_bytes(tp_graph_type(graph, node->in[i]));
}

/* ---- add ---- */

static enum talpa_status infer_add(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 0, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, 1, 0, TALPA_F32));
    if (!tp_type_equal(infer->in[0], infer->in[1])) return tp_infer_fail(infer, 1, "the same shape and run-time rows as a");
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient_add(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads,
                                      const bool *wanted, talpa_value *in_grads)
{
    (void)graph, (void)node;
    for (int i = 0; i < 2; i++)
        if (wanted[i]) in_grads[i] = out_grads[0];
    return TALPA_OK;
}

static enum talpa_status lower_add(struct tp_lower *lower, bool on_cpu)
{
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/elementwise.cl" : "generic/elementwise.cl", "add");
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_read(lower, launch, tp_in(1));
    tp_launch_write(lower, launch, tp_out(0));
    tp_elementwise_finish(lower, launch, tp_lower_out(lower, 0), on_cpu, 1, 3);
    return TALPA_OK;
}

static enum talpa_status lower_add_cpu(struct tp_lower *lower) { return lower_add(lower, true); }
static enum talpa_status lower_add_generic(struct tp_lower *lower) { return lower_add(lower, false); }

static const struct tp_variant variants_add[] = {{"cpu", NULL, NULL, lower_add_cpu},
                                                 {"generic", NULL, NULL, lower_add_generic}};

static void reference_add(const struct tp_reference *reference)
{
    const int64_t n = tp_type_elements(&reference->out_type[0]);
    for (int64_t i = 0; i < n; i++) reference->out[0][i] = reference->in[0][i] + reference->in[1][i];
}

#define ROWS(t, n)                                                                                                                         \
    {                                                                                                                                      \
        TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_N_TOKENS, {t, n}, true                                                              \
    }
#define FLAT(n)                                                                                                                            \
    {                                                                                                                                      \
        TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_NONE, {n}, true                                                                     \
    }

static const struct tp_case cases_add[] = {
    {.name = "rows", .in = {ROWS(65, 33), ROWS(65, 33)}, .n_in = 2, .n_tokens = 47},
    {.name = "one element", .in = {FLAT(1), FLAT(1)}, .n_in = 2},
    {.name = "one token of many", .in = {ROWS(7, 16), ROWS(7, 16)}, .n_in = 2, .n_tokens = 1},
    {.name = "model", .in = {ROWS(128, 576), ROWS(128, 576)}, .n_in = 2, .n_tokens = 127},
};

const struct tp_op tp_op_add = {
    .name = "add",
    .in_names = {"a", "b"},
    .infer = infer_add,
    .gradient = gradient_add,
    .variants = variants_add,
    .n_variants = 2,
    .cost = cost_of_moves,
    .inplace = {1},
    .cases = cases_add,
    .n_cases = sizeof cases_add / sizeof *cases_add,
    .reference = reference_add,
};

enum talpa_status talpa_add(talpa_value *out, struct talpa_graph *graph, talpa_value a, talpa_value b)
{
    return tp_graph_node(graph, &tp_op_add, (const talpa_value[]){a, b}, 2, NULL, out);
}

/* ---- scale: f[0] factor ---- */

static enum talpa_status infer_scale(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 0, TALPA_F32));
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient_scale(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads,
                                        const bool *wanted, talpa_value *in_grads)
{
    return wanted[0] ? talpa_scale(&in_grads[0], graph, out_grads[0], (float)node->attrs.f[0]) : TALPA_OK;
}

static enum talpa_status lower_scale(struct tp_lower *lower, bool on_cpu)
{
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/elementwise.cl" : "generic/elementwise.cl", "scale");
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_f32(launch, (float)lower->node->attrs.f[0]);
    tp_elementwise_finish(lower, launch, tp_lower_out(lower, 0), on_cpu, 1, 2);
    return TALPA_OK;
}

static enum talpa_status lower_scale_cpu(struct tp_lower *lower) { return lower_scale(lower, true); }
static enum talpa_status lower_scale_generic(struct tp_lower *lower) { return lower_scale(lower, false); }

static const struct tp_variant variants_scale[] = {{"cpu", NULL, NULL, lower_scale_cpu}, {"generic", NULL, NULL, lower_scale_generic}};

static void reference_scale(const struct tp_reference *reference)
{
    const int64_t n = tp_type_elements(&reference->out_type[0]);
    for (int64_t i = 0; i < n; i++) reference->out[0][i] = reference->attrs->f[0] * reference->in[0][i];
}

static const struct tp_case cases_scale[] = {
    {.name = "rows", .in = {ROWS(65, 33)}, .n_in = 1, .attrs = {.f = {-1.5}}, .n_tokens = 47},
    {.name = "one element", .in = {FLAT(1)}, .n_in = 1, .attrs = {.f = {0.25}}},
    {.name = "model", .in = {ROWS(128, 576)}, .n_in = 1, .attrs = {.f = {24}}, .n_tokens = 127},
};

const struct tp_op tp_op_scale = {
    .name = "scale",
    .in_names = {"x"},
    .attr_f = {"factor"},
    .flags = TP_OP_CHEAP,
    .infer = infer_scale,
    .gradient = gradient_scale,
    .variants = variants_scale,
    .n_variants = 2,
    .cost = cost_of_moves,
    .inplace = {1},
    .cases = cases_scale,
    .n_cases = sizeof cases_scale / sizeof *cases_scale,
    .reference = reference_scale,
};

enum talpa_status talpa_scale(talpa_value *out, struct talpa_graph *graph, talpa_value x, float factor)
{
    const struct tp_attrs attrs = {.f = {(double)factor}};
    return tp_graph_node(graph, &tp_op_scale, &x, 1, &attrs, out);
}

/* ---- bias_add ---- */

static enum talpa_status infer_bias_add(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, 1, 1, TALPA_F32));
    if (infer->in[1]->rows || infer->in[1]->shape.dim[0] != infer->in[0]->shape.dim[1])
        return tp_infer_fail(infer, 1, "[%lld], one value per column of x", (long long)infer->in[0]->shape.dim[1]);
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient_bias_add(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads,
                                           const bool *wanted, talpa_value *in_grads)
{
    (void)node;
    if (wanted[0]) in_grads[0] = out_grads[0];
    if (wanted[1]) TP_TRY(talpa_reduce_rows(&in_grads[1], graph, out_grads[0]));
    return TALPA_OK;
}

static struct tp_launch *launch_bias_add(struct tp_lower *lower, const char *source)
{
    const struct tp_type *type = tp_lower_out(lower, 0);
    struct tp_launch *launch = tp_lower_launch(lower, source, "bias_add");
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_read(lower, launch, tp_in(1));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)type->shape.dim[1]);
    tp_launch_cost(launch, (double)tp_type_elements(type), 8.0 * (double)tp_type_elements(type));
    return launch;
}

static enum talpa_status lower_bias_add_cpu(struct tp_lower *lower)
{
    const struct tp_type *type = tp_lower_out(lower, 0);
    const uint32_t n_groups = tp_elementwise_row_shares(type->shape.dim[0], type->shape.dim[1]);
    struct tp_launch *launch = launch_bias_add(lower, "cpu/elementwise.cl");
    tp_launch_u32(launch, n_groups);
    tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
    return TALPA_OK;
}

static enum talpa_status lower_bias_add_generic(struct tp_lower *lower)
{
    const struct tp_type *type = tp_lower_out(lower, 0);
    const size_t local = tp_elementwise_local(lower, 64);
    struct tp_launch *launch = launch_bias_add(lower, "generic/elementwise.cl");
    tp_launch_groups(launch, ((size_t)type->shape.dim[1] + local - 1) / local, (size_t)type->shape.dim[0], 1, local, 1, 1);
    return TALPA_OK;
}

static const struct tp_variant variants_bias_add[] = {{"cpu", NULL, NULL, lower_bias_add_cpu},
                                                      {"generic", NULL, NULL, lower_bias_add_generic}};

static void reference_bias_add(const struct tp_reference *reference)
{
    const int64_t n = reference->out_type[0].shape.dim[1], n_all = tp_type_elements(&reference->out_type[0]);
    for (int64_t i = 0; i < n_all; i++) reference->out[0][i] = reference->in[0][i] + reference->in[1][i % n];
}

static const struct tp_case cases_bias_add[] = {
    {.name = "threshold bias", .in = {ROWS(65, 1), FLAT(1)}, .n_in = 2, .n_tokens = 33},
    {.name = "odd", .in = {ROWS(7, 35), FLAT(35)}, .n_in = 2, .n_tokens = 3},
    {.name = "wide", .in = {ROWS(64, 577), FLAT(577)}, .n_in = 2},
};

const struct tp_op tp_op_bias_add = {
    .name = "bias_add",
    .in_names = {"x", "bias"},
    .infer = infer_bias_add,
    .gradient = gradient_bias_add,
    .variants = variants_bias_add,
    .n_variants = 2,
    .cost = cost_of_moves,
    .inplace = {1},
    .cases = cases_bias_add,
    .n_cases = sizeof cases_bias_add / sizeof *cases_bias_add,
    .reference = reference_bias_add,
};

enum talpa_status talpa_bias_add(talpa_value *out, struct talpa_graph *graph, talpa_value x, talpa_value bias)
{
    return tp_graph_node(graph, &tp_op_bias_add, (const talpa_value[]){x, bias}, 2, NULL, out);
}

/* ---- step_scalar: i[0] step word, f[0] factor ---- */

static enum talpa_status infer_step_scalar(struct tp_infer *infer)
{
    if (infer->attrs->i[0] < 0 || infer->attrs->i[0] >= TP_STEP_WORDS)
        return tp_fail(TALPA_E_ARGUMENT, "step_scalar: word is %lld, expected 0 to %d (host/graph/step.h)", (long long)infer->attrs->i[0],
                       TP_STEP_WORDS - 1);
    infer->out[0] = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status lower_step_scalar(struct tp_lower *lower)
{
    struct tp_launch *launch = tp_lower_launch(lower, "generic/elementwise.cl", "step_scalar");
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_step(launch);
    tp_launch_u32(launch, (uint32_t)lower->node->attrs.i[0]);
    tp_launch_f32(launch, (float)lower->node->attrs.f[0]);
    tp_launch_groups(launch, 1, 1, 1, 1, 1, 1);
    return TALPA_OK;
}

static const struct tp_variant variants_step_scalar[] = {{"generic", NULL, NULL, lower_step_scalar}};

static void reference_step_scalar(const struct tp_reference *reference)
{
    union {
        uint32_t u;
        float f;
    } bits = {.u = reference->step->word[reference->attrs->i[0]]};
    reference->out[0][0] = reference->attrs->f[0] * bits.f;
}

static const struct tp_case cases_step_scalar[] = {
    {.name = "one", .attrs = {.i = {TP_STEP_ONE}, .f = {0.25}}},
    {.name = "auxiliary weight", .attrs = {.i = {TP_STEP_AUX_WEIGHT}, .f = {0.001}}},
};

const struct tp_op tp_op_step_scalar = {
    .name = "step_scalar",
    .attr_i = {"word"},
    .attr_f = {"factor"},
    .infer = infer_step_scalar,
    .no_gradient = "it has no inputs",
    .variants = variants_step_scalar,
    .n_variants = 1,
    .cost = cost_of_moves,
    .cases = cases_step_scalar,
    .n_cases = sizeof cases_step_scalar / sizeof *cases_step_scalar,
    .reference = reference_step_scalar,
};

enum talpa_status talpa_step_scalar(talpa_value *out, struct talpa_graph *graph, int word, float factor)
{
    const struct tp_attrs attrs = {.i = {word}, .f = {(double)factor}};
    return tp_graph_node(graph, &tp_op_step_scalar, NULL, 0, &attrs, out);
}

/* ---- accumulate ---- */

static enum talpa_status infer_accumulate(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 0, TALPA_N_DTYPES));
    TP_TRY(tp_infer_expect(infer, 1, 0, TALPA_N_DTYPES));
    if (infer->in[0]->dtype != TALPA_F32 && infer->in[0]->dtype != TALPA_I32) return tp_infer_fail(infer, 0, "f32 or i32");
    if (!tp_type_equal(infer->in[0], infer->in[1])) return tp_infer_fail(infer, 1, "the same type as the state");
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status lower_accumulate(struct tp_lower *lower, bool on_cpu)
{
    const struct tp_type *type = tp_lower_out(lower, 0);
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/elementwise.cl" : "generic/elementwise.cl",
                                               type->dtype == TALPA_I32 ? "accumulate_i32" : "accumulate_f32");
    tp_launch_read(lower, launch, tp_in(1));
    tp_launch_write(lower, launch, tp_out(0));
    tp_elementwise_finish(lower, launch, type, on_cpu, 1, 3);
    return TALPA_OK;
}

static enum talpa_status lower_accumulate_cpu(struct tp_lower *lower) { return lower_accumulate(lower, true); }
static enum talpa_status lower_accumulate_generic(struct tp_lower *lower) { return lower_accumulate(lower, false); }

static const struct tp_variant variants_accumulate[] = {{"cpu", NULL, NULL, lower_accumulate_cpu},
                                                        {"generic", NULL, NULL, lower_accumulate_generic}};

static void reference_accumulate(const struct tp_reference *reference)
{
    const int64_t n = tp_type_elements(&reference->out_type[0]);
    const bool first = reference->step->word[TP_STEP_MICRO] == 0;
    for (int64_t i = 0; i < n; i++) reference->out[0][i] = (first ? 0 : reference->in[0][i]) + reference->in[1][i];
}

#define STATE(type, generator, scale, n)                                                                                                   \
    {                                                                                                                                      \
        type, TP_STATE, generator, scale, TP_STEP_NONE, {n}, false                                                                         \
    }
#define PLAIN(type, generator, scale, n)                                                                                                   \
    {                                                                                                                                      \
        type, TP_INPUT, generator, scale, TP_STEP_NONE, {n}, false                                                                         \
    }

static const struct tp_case cases_accumulate[] = {
    {.name = "first micro-batch", .in = {STATE(TALPA_F32, TP_GEN_NORMAL, 1, 20001), PLAIN(TALPA_F32, TP_GEN_NORMAL, 1, 20001)}, .n_in = 2},
    {.name = "later micro-batch",
     .in = {STATE(TALPA_F32, TP_GEN_NORMAL, 1, 20001), PLAIN(TALPA_F32, TP_GEN_NORMAL, 1, 20001)},
     .n_in = 2,
     .micro = 3},
    {.name = "counts, first", .in = {STATE(TALPA_I32, TP_GEN_INDEX, 9, 8), PLAIN(TALPA_I32, TP_GEN_INDEX, 9, 8)}, .n_in = 2},
    {.name = "counts, later", .in = {STATE(TALPA_I32, TP_GEN_INDEX, 9, 33), PLAIN(TALPA_I32, TP_GEN_INDEX, 9, 33)}, .n_in = 2, .micro = 1},
};

const struct tp_op tp_op_accumulate = {
    .name = "accumulate",
    .in_names = {"state", "x"},
    .infer = infer_accumulate,
    .no_gradient = "it updates a state",
    .variants = variants_accumulate,
    .n_variants = 2,
    .cost = cost_of_moves,
    .updates = {1},
    .cases = cases_accumulate,
    .n_cases = sizeof cases_accumulate / sizeof *cases_accumulate,
    .reference = reference_accumulate,
};

enum talpa_status talpa_accumulate(talpa_value *state_next, struct talpa_graph *graph, talpa_value state, talpa_value x)
{
    return tp_graph_node(graph, &tp_op_accumulate, (const talpa_value[]){state, x}, 2, NULL, state_next);
}
