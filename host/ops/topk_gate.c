/* Top-k gate: the k largest entries of every row, renormalised. Gradient (methods of the mixture papers, without threshold):
 * dp_e = sel_e (dweight_e - <weight, dweight>) / S. */
#include <math.h>

#include "ops/elementwise.h"

extern const struct tp_op tp_op_topk_gate, tp_op_topk_gate_backward;

enum talpa_status talpa_topk_gate(talpa_value *weight, talpa_value *sel, struct talpa_graph *graph, talpa_value p, int k)
{
    const struct tp_attrs attrs = {.i = {k}};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_topk_gate, &p, 1, &attrs, out));
    *weight = out[0];
    *sel = out[1];
    return TALPA_OK;
}

static enum talpa_status infer_gate(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    const int64_t k = infer->attrs->i[0], n_experts = infer->in[0]->shape.dim[1];
    if (k < 1 || k > n_experts)
        return tp_fail(TALPA_E_ARGUMENT, "topk_gate: k is %lld, expected 1 to %lld, the number of experts", (long long)k,
                       (long long)n_experts);
    infer->out[0] = infer->out[1] = *infer->in[0];
    infer->out[1].dtype = TALPA_I32;
    infer->n_out = 2;
    return TALPA_OK;
}

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    for (int i = 1; i < 4; i++) {
        struct tp_type want = *infer->in[0];
        if (i == 2) want.dtype = TALPA_I32;
        TP_TRY(tp_infer_expect(infer, i, 2, want.dtype));
        if (!tp_type_equal(infer->in[i], &want)) return tp_infer_fail(infer, i, "the shape of p");
    }
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (out_grads[0] == TP_NONE || !wanted[0]) return TALPA_OK;
    const talpa_value in[] = {node->in[0], node->out[0], node->out[1], out_grads[0]};
    return tp_graph_node(graph, &tp_op_topk_gate_backward, in, 4, NULL, in_grads);
}

static enum talpa_status lower_gate(struct tp_lower *lower)
{
    struct tp_launch *launch = tp_row_launch(lower, "generic/topk_gate.cl", (double)tp_lower_in(lower, 0)->shape.dim[1]);
    tp_launch_u32(launch, (uint32_t)lower->node->attrs.i[0]);
    return TALPA_OK;
}

static enum talpa_status lower_backward(struct tp_lower *lower)
{
    tp_row_launch(lower, "generic/topk_gate.cl", 5);
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const double n = (double)tp_type_elements(tp_graph_type(graph, node->in[0]));
    *flops = 5 * n;
    *bytes = (node->n_in + node->n_out) * 4 * n;
}

/* Repeated choice of the largest entry that is left: another method than the kernel's. */
static void reference_gate(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[0].shape.dim[0], n = r->in_type[0].shape.dim[1];
    for (int64_t t = 0; t < rows; t++) {
        const double *p = r->in[0] + t * n;
        double *weight = r->out[0] + t * n, *sel = r->out[1] + t * n, sum = 0;
        for (int64_t e = 0; e < n; e++) sel[e] = 0;
        for (int64_t i = 0; i < r->attrs->i[0]; i++) {
            int64_t best = -1;
            for (int64_t e = 0; e < n; e++)
                if (!sel[e] && (best < 0 || p[e] > p[best])) best = e;
            sel[best] = 1;
            sum += p[best];
        }
        for (int64_t e = 0; e < n; e++) weight[e] = sel[e] != 0 ? p[e] / (sum != 0 ? sum : 1) : 0;
    }
}

static void reference_backward(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[0].shape.dim[0], n = r->in_type[0].shape.dim[1];
    for (int64_t t = 0; t < rows; t++) {
        const double *p = r->in[0] + t * n, *sel = r->in[2] + t * n, *dweight = r->in[3] + t * n;
        double sum = 0;
        for (int64_t e = 0; e < n; e++) sum += sel[e] != 0 ? p[e] : 0;
        for (int64_t e = 0; e < n; e++) {
            double grad = 0;
            if (sel[e] != 0) {
                for (int64_t j = 0; j < n; j++)
                    if (sel[j] != 0) grad += dweight[j] * ((j == e ? 1 : 0) / sum - p[j] / (sum * sum));
            }
            r->out[0][t * n + e] = grad;
        }
    }
}

/* Keeps the k-th and the next entry of every row apart: finite differences must not cross a decision. */
static void separate(double *p, int64_t rows, int64_t n, int64_t k)
{
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t e = 0; e < n; e++) {
            int64_t before = 0;
            for (int64_t j = 0; j < n; j++) before += p[t * n + j] > p[t * n + e] || (p[t * n + j] == p[t * n + e] && j < e);
            if (before == k - 1) {
                const double kth = p[t * n + e];
                for (int64_t j = 0; j < n; j++)
                    if (p[t * n + j] >= kth) p[t * n + j] = (double)(float)(p[t * n + j] + 0.03125);
                break;
            }
        }
    }
}

static void separate_65_8_2(double *const *in) { separate(in[0], 65, 8, 2); }
static void separate_19_7_3(double *const *in) { separate(in[0], 19, 7, 3); }

/* The choice and the weights that belong to p. */
static void choose_33_8_2(double *const *in)
{
    static const struct tp_attrs attrs = {.i = {2}};
    const struct tp_type type = tp_type_2d(TALPA_F32, TP_STEP_NONE, 33, 8);
    const double *const given[] = {in[0]};
    double *const made[] = {in[1], in[2]};
    reference_gate(&(struct tp_reference){.attrs = &attrs, .in_type = &type, .in = given, .n_in = 1, .out = made, .n_out = 2});
}

static const struct tp_variant variants[] = {{.tier = "generic", .lower = lower_gate}};
static const struct tp_variant backward_variants[] = {{.tier = "generic", .lower = lower_backward}};

#define ROWS(t, e, type, how, factor, wants_grad) \
    {.dtype = type, .gen = how, .scale = factor, .rows = TP_STEP_N_TOKENS, .dim = {t, e}, .grad = wants_grad}
#define PROBABILITIES(t, e, wants_grad) ROWS(t, e, TALPA_F32, TP_GEN_PROBABILITY, 1, wants_grad)

static const struct tp_case cases[] = {
    {.name = "one expert", .in = {PROBABILITIES(3, 1, true)}, .n_in = 1, .attrs = {.i = {1}}},
    {.name = "two of eight", .in = {PROBABILITIES(65, 8, true)}, .n_in = 1, .attrs = {.i = {2}}, .prepare = separate_65_8_2},
    {.name = "three of seven, fewer rows",
     .in = {PROBABILITIES(33, 7, true)},
     .n_in = 1,
     .attrs = {.i = {3}},
     .n_tokens = 19,
     .prepare = separate_19_7_3},
    {.name = "all", .in = {PROBABILITIES(9, 4, true)}, .n_in = 1, .attrs = {.i = {4}}},
    {.name = "ties", .in = {ROWS(5, 6, TALPA_F32, TP_GEN_ONE, 1, false)}, .n_in = 1, .attrs = {.i = {2}}},
    {.name = "all zero", .in = {ROWS(2, 4, TALPA_F32, TP_GEN_ZERO, 1, false)}, .n_in = 1, .attrs = {.i = {2}}},
};
static const struct tp_case backward_cases[] = {
    {.name = "two of eight",
     .in = {PROBABILITIES(33, 8, false), ROWS(33, 8, TALPA_F32, TP_GEN_ZERO, 1, false), ROWS(33, 8, TALPA_I32, TP_GEN_ZERO, 1, false),
            ROWS(33, 8, TALPA_F32, TP_GEN_NORMAL, 1, false)},
     .n_in = 4,
     .prepare = choose_33_8_2},
};

const struct tp_op tp_op_topk_gate = {
    .name = "topk_gate",
    .in_names = {"p"},
    .attr_i = {"k"},
    .infer = infer_gate,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 1,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference_gate,
};

const struct tp_op tp_op_topk_gate_backward = {
    .name = "topk_gate_backward",
    .in_names = {"p", "weight", "sel", "dweight"},
    .infer = infer_backward,
    .no_gradient = "it is a gradient itself",
    .variants = backward_variants,
    .n_variants = 1,
    .cost = cost,
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};
