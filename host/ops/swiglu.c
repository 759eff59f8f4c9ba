#include <math.h>

#include "elementwise.h"

/* Gated activations, one op each: swiglu (SiLU) and geglu (GELU, tanh form). They differ in their kernels' names and references only. */
extern const struct tp_op tp_op_swiglu, tp_op_swiglu_backward, tp_op_geglu, tp_op_geglu_backward;

static enum talpa_status infer_all_equal(struct tp_infer *infer, int n_out)
{
    for (int i = 0; i < infer->n_in; i++) {
        TP_TRY(tp_infer_expect(infer, i, 2, TALPA_F32));
        if (!tp_type_equal(infer->in[i], infer->in[0])) return tp_infer_fail(infer, i, "the same shape and run-time rows as gate");
    }
    for (int o = 0; o < n_out; o++) infer->out[o] = *infer->in[0];
    infer->n_out = n_out;
    return TALPA_OK;
}

static enum talpa_status infer_forward(struct tp_infer *infer) { return infer_all_equal(infer, 1); }
static enum talpa_status infer_backward(struct tp_infer *infer) { return infer_all_equal(infer, 2); }

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    const talpa_value in[] = {node->in[0], node->in[1], out_grads[0]};
    talpa_value out[2];
    TP_TRY(tp_graph_node(graph, node->op == &tp_op_geglu ? &tp_op_geglu_backward : &tp_op_swiglu_backward, in, 3, NULL, out));
    for (int i = 0; i < 2; i++)
        if (wanted[i]) in_grads[i] = out[i];
    return TALPA_OK;
}

static enum talpa_status lower(struct tp_lower *work, bool is_backward, bool on_cpu)
{
    struct tp_launch *launch = tp_lower_launch(work, on_cpu ? "cpu/swiglu.cl" : "generic/swiglu.cl", work->node->op->name);
    const int n_in = is_backward ? 3 : 2, n_out = is_backward ? 2 : 1;
    tp_launch_bf16_options(work, launch, n_in, n_out);
    for (int i = 0; i < n_in; i++) tp_launch_read(work, launch, tp_in(i));
    for (int o = 0; o < n_out; o++) tp_launch_write(work, launch, tp_out(o));
    tp_elementwise_finish(work, launch, tp_lower_out(work, 0), on_cpu, is_backward ? 24 : 16, n_in + n_out);
    return TALPA_OK;
}

/* gate and up are kept for the backward part: what the matrix tiers make of them in bf16 is taken so. The results go into products. */
static void layouts_cpu(const struct tp_lower *work, enum tp_layout *in, enum tp_layout *out)
{
    if (!tp_lower_offers_bf16(work, tp_lower_out(work, 0))) return;
    in[0] = in[1] = tp_layout_or_row(TP_LAYOUT_ROW_BF16);
    for (int o = 0; o < work->node->n_out; o++) out[o] = TP_LAYOUT_ROW_BF16;
}

static enum talpa_status lower_cpu(struct tp_lower *work) { return lower(work, false, true); }
static enum talpa_status lower_generic(struct tp_lower *work) { return lower(work, false, false); }
static enum talpa_status lower_backward_cpu(struct tp_lower *work) { return lower(work, true, true); }
static enum talpa_status lower_backward_generic(struct tp_lower *work) { return lower(work, true, false); }

static const struct tp_variant variants[] = {{"cpu", NULL, layouts_cpu, lower_cpu}, {"generic", NULL, NULL, lower_generic}};
static const struct tp_variant backward_variants[] = {{"cpu", NULL, layouts_cpu, lower_backward_cpu},
                                                      {"generic", NULL, NULL, lower_backward_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *type = tp_graph_type(graph, node->out[0]);
    *flops = 8.0 * node->n_in * (double)tp_type_elements(type);
    *bytes = (double)tp_type_bytes(type) * (node->n_in + node->n_out);
}

static void reference(const struct tp_reference *work)
{
    const int64_t n = tp_type_elements(&work->out_type[0]);
    for (int64_t i = 0; i < n; i++) work->out[0][i] = work->in[0][i] / (1 + exp(-work->in[0][i])) * work->in[1][i];
}

/* With silu(g) = g s(g): silu' = s + g s', s' = s (1 - s), written with tanh so that it is no copy of the kernel's formula. */
static void reference_backward(const struct tp_reference *work)
{
    const int64_t n = tp_type_elements(&work->out_type[0]);
    for (int64_t i = 0; i < n; i++) {
        const double g = work->in[0][i], up = work->in[1][i], dh = work->in[2][i];
        const double h = tanh(g / 2), s = 0.5 * (1 + h), slope = 0.25 * (1 - h * h);
        work->out[0][i] = dh * up * (s + g * slope);
        work->out[1][i] = dh * g * s;
    }
}

/* The published form of the tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415), and its derivative by the product rule. */
static void gelu_tanh(double *value, double *slope, double g)
{
    const double c = sqrt(2 / M_PI), h = tanh(c * (g + 0.044715 * g * g * g));
    *value = 0.5 * g * (1 + h);
    *slope = 0.5 * (1 + h) + 0.5 * g * (1 - h * h) * c * (1 + 3 * 0.044715 * g * g);
}

static void reference_geglu(const struct tp_reference *work)
{
    const int64_t n = tp_type_elements(&work->out_type[0]);
    for (int64_t i = 0; i < n; i++) {
        double value, slope;
        gelu_tanh(&value, &slope, work->in[0][i]);
        work->out[0][i] = value * work->in[1][i];
    }
}

static void reference_geglu_backward(const struct tp_reference *work)
{
    const int64_t n = tp_type_elements(&work->out_type[0]);
    for (int64_t i = 0; i < n; i++) {
        double value, slope;
        gelu_tanh(&value, &slope, work->in[0][i]);
        work->out[0][i] = work->in[2][i] * work->in[1][i] * slope;
        work->out[1][i] = work->in[2][i] * value;
    }
}

#define ROWS(t, n, scale, grad)                                                                                                            \
    {                                                                                                                                      \
        TALPA_F32, TP_INPUT, TP_GEN_NORMAL, scale, TP_STEP_N_TOKENS, {t, n}, grad                                                          \
    }

static const struct tp_case cases[] = {
    {.name = "odd", .in = {ROWS(33, 7, 1, true), ROWS(33, 7, 1, true)}, .n_in = 2, .n_tokens = 17},
    {.name = "one element", .in = {ROWS(1, 1, 1, true), ROWS(1, 1, 1, true)}, .n_in = 2},
    {.name = "saturated", .in = {ROWS(9, 65, 60, false), ROWS(9, 65, 1, false)}, .n_in = 2, .tolerance = 2e-5},
    {.name = "model", .in = {ROWS(64, 1536, 2, false), ROWS(64, 1536, 2, false)}, .n_in = 2, .n_tokens = 63},
};

static const struct tp_case backward_cases[] = {
    {.name = "odd", .in = {ROWS(33, 7, 1, false), ROWS(33, 7, 1, false), ROWS(33, 7, 1, false)}, .n_in = 3, .n_tokens = 17},
    {.name = "one element", .in = {ROWS(1, 1, 1, false), ROWS(1, 1, 1, false), ROWS(1, 1, 1, false)}, .n_in = 3},
    {.name = "saturated", .in = {ROWS(9, 65, 60, false), ROWS(9, 65, 1, false), ROWS(9, 65, 1, false)}, .n_in = 3, .tolerance = 2e-5},
    {.name = "model", .in = {ROWS(64, 1536, 2, false), ROWS(64, 1536, 2, false), ROWS(64, 1536, 1, false)}, .n_in = 3, .n_tokens = 63},
};

const struct tp_op tp_op_swiglu = {
    .name = "swiglu",
    .in_names = {"gate", "up"},
    .flags = TP_OP_CHEAP,
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1},
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

const struct tp_op tp_op_swiglu_backward = {
    .name = "swiglu_backward",
    .in_names = {"gate", "up", "dh"},
    .infer = infer_backward,
    .no_gradient = "second derivatives are not defined",
    .variants = backward_variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1, 2},
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};

const struct tp_op tp_op_geglu = {
    .name = "geglu",
    .in_names = {"gate", "up"},
    .flags = TP_OP_CHEAP,
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1},
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference_geglu,
};

const struct tp_op tp_op_geglu_backward = {
    .name = "geglu_backward",
    .in_names = {"gate", "up", "dh"},
    .infer = infer_backward,
    .no_gradient = "second derivatives are not defined",
    .variants = backward_variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1, 2},
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_geglu_backward,
};

enum talpa_status talpa_swiglu(talpa_value *h, struct talpa_graph *graph, talpa_value gate, talpa_value up)
{
    return tp_graph_node(graph, &tp_op_swiglu, (const talpa_value[]){gate, up}, 2, NULL, h);
}

enum talpa_status talpa_geglu(talpa_value *h, struct talpa_graph *graph, talpa_value gate, talpa_value up)
{
    return tp_graph_node(graph, &tp_op_geglu, (const talpa_value[]){gate, up}, 2, NULL, h);
}
