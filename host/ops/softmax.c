/* Softmax of every row: p = softmax(x). Gradient: dx = p * (dp - <p, dp>). */
#include <math.h>

#include "ops/elementwise.h"

extern const struct tp_op tp_op_softmax, tp_op_softmax_backward;

enum talpa_status talpa_softmax(talpa_value *p, struct talpa_graph *graph, talpa_value x)
{
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_softmax, &x, 1, NULL, out));
    *p = out[0];
    return TALPA_OK;
}

static enum talpa_status infer_softmax(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, 1, 2, TALPA_F32));
    if (!tp_type_equal(infer->in[0], infer->in[1])) return tp_infer_fail(infer, 1, "the type of p");
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (out_grads[0] == TP_NONE || !wanted[0]) return TALPA_OK;
    const talpa_value in[] = {node->out[0], out_grads[0]};
    return tp_graph_node(graph, &tp_op_softmax_backward, in, 2, NULL, in_grads);
}

static enum talpa_status lower(struct tp_lower *work)
{
    tp_row_launch(work, "generic/softmax.cl", work->node->n_in > 1 ? 4 : 8);
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const double n = (double)tp_type_elements(tp_graph_type(graph, node->in[0]));
    *flops = 8 * n;
    *bytes = (node->n_in + 1) * 4 * n;
}

static void reference_softmax(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[0].shape.dim[0], n = r->in_type[0].shape.dim[1];
    for (int64_t t = 0; t < rows; t++) {
        const double *x = r->in[0] + t * n;
        double *p = r->out[0] + t * n, top = x[0], sum = 0;
        for (int64_t e = 1; e < n; e++) top = fmax(top, x[e]);
        for (int64_t e = 0; e < n; e++) sum += exp(x[e] - top);
        for (int64_t e = 0; e < n; e++) p[e] = exp(x[e] - top) / sum;
    }
}

static void reference_backward(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[0].shape.dim[0], n = r->in_type[0].shape.dim[1];
    for (int64_t t = 0; t < rows; t++) {
        const double *p = r->in[0] + t * n, *dp = r->in[1] + t * n;
        for (int64_t e = 0; e < n; e++) {
            double sum = 0;
            for (int64_t j = 0; j < n; j++) sum += p[j] * ((j == e) - p[e]) * dp[j];
            r->out[0][t * n + e] = sum;
        }
    }
}

static const struct tp_variant variants[] = {{.tier = "generic", .lower = lower}};

#define LOGITS(t, e, spread, wants_grad) \
    {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = spread, .rows = TP_STEP_N_TOKENS, .dim = {t, e}, .grad = wants_grad}
#define PROBABILITIES(t, e) \
    {.dtype = TALPA_F32, .gen = TP_GEN_PROBABILITY, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, e}}

static const struct tp_case cases[] = {
    {.name = "one by one", .in = {LOGITS(1, 1, 1, true)}, .n_in = 1},
    {.name = "eight experts", .in = {LOGITS(65, 8, 2, true)}, .n_in = 1},
    {.name = "odd, fewer rows", .in = {LOGITS(33, 7, 1, true)}, .n_in = 1, .n_tokens = 19},
    {.name = "wide rows, large logits", .in = {LOGITS(5, 129, 30, false)}, .n_in = 1},
};
static const struct tp_case backward_cases[] = {
    {.name = "eight experts", .in = {PROBABILITIES(65, 8), LOGITS(65, 8, 1, false)}, .n_in = 2},
    {.name = "odd, fewer rows", .in = {PROBABILITIES(33, 3), LOGITS(33, 3, 1, false)}, .n_in = 2, .n_tokens = 7},
};

const struct tp_op tp_op_softmax = {
    .name = "softmax",
    .in_names = {"x"},
    .infer = infer_softmax,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 1,
    .cost = cost,
    .inplace = {1},
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference_softmax,
};

const struct tp_op tp_op_softmax_backward = {
    .name = "softmax_backward",
    .in_names = {"p", "dp"},
    .infer = infer_backward,
    .no_gradient = "it is a gradient itself",
    .variants = variants,
    .n_variants = 1,
    .cost = cost,
    .inplace = {2},
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};
