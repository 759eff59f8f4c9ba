/* AdaMoLE's gate (arXiv 2405.00361, equations 5-7) and the fixed threshold of its equation 4. The gradient follows the published code: the
 * choice itself carries none; where no weight is left (S = 0) the divisor counts as 1. S is clamped to 1e-8 in the gradient only, since 1/S
 * is unbounded where all chosen scores are tiny. */
#include <math.h>
#include <string.h>

#include "ops/elementwise.h"

extern const struct tp_op tp_op_threshold_gate, tp_op_threshold_gate_backward;

/* Attributes: f[0] is max_threshold, times the step word i[0] if that is not 0. */

enum talpa_status talpa_threshold_gate(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                                       talpa_value raw, float max_threshold)
{
    return talpa_threshold_gate_step(weight, sel, score, graph, p, raw, max_threshold, TP_STEP_NONE);
}

enum talpa_status talpa_threshold_gate_step(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph,
                                            talpa_value p, talpa_value raw, float max_threshold, int word)
{
    const talpa_value in[] = {p, raw};
    const struct tp_attrs attrs = {.i = {word}, .f = {(double)max_threshold}};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_threshold_gate, in, 2, &attrs, out));
    *weight = out[0];
    *sel = out[1];
    *score = out[2];
    return TALPA_OK;
}

static enum talpa_status check_word(const struct tp_attrs *attrs)
{
    if (attrs->i[0] >= 0 && attrs->i[0] < TP_STEP_WORDS) return TALPA_OK;
    return tp_fail(TALPA_E_ARGUMENT, "threshold_gate: step word is %lld, expected 0 to %d (host/graph/step.h)", (long long)attrs->i[0],
                   TP_STEP_WORDS - 1);
}

/* raw of a gate over values of type `p`. */
static enum talpa_status infer_raw(const struct tp_infer *infer, int operand, const struct tp_type *p)
{
    TP_TRY(tp_infer_expect(infer, operand, 2, TALPA_F32));
    struct tp_type want = *p;
    want.shape.dim[1] = 1;
    return tp_type_equal(infer->in[operand], &want) ? TALPA_OK : tp_infer_fail(infer, operand, "[%lld, 1]", (long long)p->shape.dim[0]);
}

static enum talpa_status infer_gate(struct tp_infer *infer)
{
    TP_TRY(check_word(infer->attrs));
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    if (infer->n_in > 1 && infer->in[1]) TP_TRY(infer_raw(infer, 1, infer->in[0]));
    if (!isfinite(infer->attrs->f[0]))
        return tp_fail(TALPA_E_ARGUMENT, "threshold_gate: max_threshold is %g, expected a finite number", infer->attrs->f[0]);
    infer->out[0] = infer->out[1] = infer->out[2] = *infer->in[0];
    infer->out[1].dtype = TALPA_I32;
    infer->n_out = 3;
    return TALPA_OK;
}

enum { IN_WEIGHT, IN_SEL, IN_SCORE, IN_RAW, IN_DWEIGHT, IN_DSCORE, N_BACKWARD_IN };

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    TP_TRY(check_word(infer->attrs));
    TP_TRY(tp_infer_expect(infer, IN_WEIGHT, 2, TALPA_F32));
    for (int i = IN_SEL; i < N_BACKWARD_IN; i++) {
        if (i >= IN_RAW && (i >= infer->n_in || !infer->in[i])) continue;
        struct tp_type want = *infer->in[IN_WEIGHT];
        if (i == IN_RAW) {
            TP_TRY(infer_raw(infer, i, &want));
            continue;
        }
        if (i == IN_SEL) want.dtype = TALPA_I32;
        TP_TRY(tp_infer_expect(infer, i, 2, want.dtype));
        if (!tp_type_equal(infer->in[i], &want)) return tp_infer_fail(infer, i, "the shape of weight");
    }
    infer->out[0] = infer->out[1] = *infer->in[IN_WEIGHT];
    infer->out[1].shape.dim[1] = 1;
    infer->n_out = infer->n_in > IN_RAW && infer->in[IN_RAW] ? 2 : 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if ((out_grads[0] == TP_NONE && out_grads[2] == TP_NONE) || (!wanted[0] && !wanted[1])) return TALPA_OK;
    const talpa_value in[N_BACKWARD_IN] = {[IN_WEIGHT] = node->out[0], [IN_SEL] = node->out[1],     [IN_SCORE] = node->out[2],
                                           [IN_RAW] = node->in[1],     [IN_DWEIGHT] = out_grads[0], [IN_DSCORE] = out_grads[2]};
    talpa_value out[TP_MAX_OUT] = {TP_NONE, TP_NONE, TP_NONE, TP_NONE};
    TP_TRY(tp_graph_node(graph, &tp_op_threshold_gate_backward, in, N_BACKWARD_IN, &node->attrs, out));
    in_grads[0] = out[0];
    in_grads[1] = out[1];
    return TALPA_OK;
}

static enum talpa_status lower_gate(struct tp_lower *lower)
{
    const struct tp_type *type = tp_lower_in(lower, 0);
    const double n = (double)tp_type_elements(type);
    const bool has_raw = tp_lower_has_in(lower, 1);
    struct tp_launch *launch = tp_lower_launch(lower, "generic/threshold_gate.cl", "threshold_gate");
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_read(lower, launch, tp_in(has_raw ? 1 : 0));
    for (int o = 0; o < 3; o++) tp_launch_write(lower, launch, tp_out(o));
    tp_launch_u32(launch, (uint32_t)type->shape.dim[1]);
    tp_launch_f32(launch, (float)lower->node->attrs.f[0]);
    tp_launch_u32(launch, (uint32_t)lower->node->attrs.i[0]);
    tp_launch_u32(launch, has_raw);
    tp_elementwise_groups(lower, launch, type->shape.dim[0]);
    tp_launch_cost(launch, 4 * n, 16 * n);
    return TALPA_OK;
}

static enum talpa_status lower_backward(struct tp_lower *lower)
{
    const struct tp_type *type = tp_lower_in(lower, IN_WEIGHT);
    const double n = (double)tp_type_elements(type);
    const bool has_raw = tp_lower_has_in(lower, IN_RAW), has_dweight = tp_lower_has_in(lower, IN_DWEIGHT),
               has_dscore = tp_lower_has_in(lower, IN_DSCORE);
    struct tp_launch *launch = tp_lower_launch(lower, "generic/threshold_gate.cl", "threshold_gate_backward");
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_read(lower, launch, tp_in(IN_WEIGHT));
    tp_launch_read(lower, launch, tp_in(IN_SEL));
    tp_launch_read(lower, launch, tp_in(IN_SCORE));
    tp_launch_read(lower, launch, tp_in(has_raw ? IN_RAW : IN_WEIGHT));
    tp_launch_read(lower, launch, tp_in(has_dweight ? IN_DWEIGHT : IN_WEIGHT));
    tp_launch_read(lower, launch, tp_in(has_dscore ? IN_DSCORE : IN_WEIGHT));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_write(lower, launch, tp_out(has_raw ? 1 : 0));
    tp_launch_u32(launch, (uint32_t)type->shape.dim[1]);
    tp_launch_f32(launch, (float)lower->node->attrs.f[0]);
    tp_launch_u32(launch, (uint32_t)lower->node->attrs.i[0]);
    tp_launch_u32(launch, has_raw);
    tp_launch_u32(launch, has_dweight);
    tp_launch_u32(launch, has_dscore);
    tp_elementwise_groups(lower, launch, type->shape.dim[0]);
    tp_launch_cost(launch, 6 * n, 24 * n);
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const double n = (double)tp_type_elements(tp_graph_type(graph, node->in[0]));
    *flops = 6 * n;
    *bytes = (node->n_in + node->n_out) * 4 * n;
}

/* max_threshold of a case, as the kernels have it. */
static double bound_of(const struct tp_reference *r)
{
    const float factor = (float)r->attrs->f[0];
    float value;
    if (!r->attrs->i[0]) return (double)factor;
    memcpy(&value, &r->step->word[r->attrs->i[0]], sizeof value);
    return (double)(factor * value);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static void reference_gate(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[0].shape.dim[0], n = r->in_type[0].shape.dim[1];
    const double *raw = r->n_in > 1 ? r->in[1] : NULL;
    const double bound = bound_of(r);
    for (int64_t t = 0; t < rows; t++) {
        const double *p = r->in[0] + t * n, tau = raw ? bound * sigmoid(raw[t]) : 0;
        double *weight = r->out[0] + t * n, *sel = r->out[1] + t * n, *score = r->out[2] + t * n, sum = 0;
        for (int64_t e = 0; e < n; e++) {
            score[e] = p[e] - tau;
            sel[e] = score[e] >= (raw ? 0 : bound);
            sum += sel[e] * score[e];
        }
        for (int64_t e = 0; e < n; e++) weight[e] = sel[e] * score[e] / (sum != 0 ? sum : 1);
    }
}

static void reference_backward(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[IN_WEIGHT].shape.dim[0], n = r->in_type[IN_WEIGHT].shape.dim[1];
    const double *dweight = r->in[IN_DWEIGHT], *dscore = r->in[IN_DSCORE], *raw = r->in[IN_RAW];
    for (int64_t t = 0; t < rows; t++) {
        const double *sel = r->in[IN_SEL] + t * n, *score = r->in[IN_SCORE] + t * n;
        double sum = 0, total = 0;
        for (int64_t e = 0; e < n; e++) sum += sel[e] * score[e];
        for (int64_t e = 0; e < n; e++) {
            double grad = dscore ? dscore[t * n + e] : 0;
            for (int64_t j = 0; dweight && sel[e] != 0 && j < n; j++) {
                const double own = j == e ? 1 : 0;
                if (sum == 0) grad += dweight[t * n + j] * own;
                else if (sel[j] != 0) grad += dweight[t * n + j] * (own - score[j] / sum) / fmax(sum, 1e-8);
            }
            r->out[0][t * n + e] = grad;
            total += grad;
        }
        if (raw) {
            const double s = sigmoid(raw[t]);
            r->out[1][t] = -total * bound_of(r) * s * (1 - s);
        }
    }
}

/* Keeps every score away from 0: finite differences must not cross a decision, nor f32 decide otherwise than f64. */
static void separate(double *p, const double *raw, int64_t rows, int64_t n, double bound)
{
    for (int64_t t = 0; t < rows; t++) {
        const double tau = raw ? bound * sigmoid(raw[t]) : bound;
        for (int64_t e = 0; e < n; e++) {
            double *value = &p[t * n + e];
            if (fabs(*value - tau) < 0.015625) *value = (double)(float)(tau + (*value < tau ? -0.015625 : 0.015625));
        }
    }
}

static void separate_65_8(double *const *in) { separate(in[0], in[1], 65, 8, 0.125); }
static void separate_19_7(double *const *in) { separate(in[0], in[1], 19, 7, 0.5); }
static void separate_33_4_fixed(double *const *in) { separate(in[0], NULL, 33, 4, 0.25); }

/* weight, sel, score as the gate makes them of probabilities in `weight`. */
static void decide(double *const *in, int64_t rows, int64_t n, double bound)
{
    const struct tp_attrs attrs = {.f = {bound}};
    const struct tp_type type = tp_type_2d(TALPA_F32, TP_STEP_NONE, rows, n);
    const double *const given[] = {in[IN_WEIGHT], in[IN_RAW]};
    separate(in[IN_WEIGHT], in[IN_RAW], rows, n, bound);
    double *const made[] = {in[IN_SCORE], in[IN_SEL], in[IN_SCORE]};
    reference_gate(&(struct tp_reference){.attrs = &attrs, .in_type = &type, .in = given, .n_in = 2, .out = made, .n_out = 3});
    const double *raw = in[IN_RAW];
    for (int64_t t = 0; t < rows; t++) {
        double *p = in[IN_WEIGHT] + t * n, *sel = in[IN_SEL] + t * n, *score = in[IN_SCORE] + t * n, sum = 0;
        const double tau = raw ? bound * sigmoid(raw[t]) : 0;
        for (int64_t e = 0; e < n; e++) {
            score[e] = (double)(float)(p[e] - tau);
            sum += sel[e] * score[e];
        }
        for (int64_t e = 0; e < n; e++) p[e] = (double)(float)(sel[e] * score[e] / (sum != 0 ? sum : 1));
    }
}

static void decide_33_8(double *const *in) { decide(in, 33, 8, 0.125); }
static void decide_7_3(double *const *in) { decide(in, 7, 3, 0.25); }

/* Every chosen score exactly 0, expert 0 chosen: only dweight of chosen experts flows. */
static void nothing_left_5_4(double *const *in)
{
    for (int i = 0; i < 20; i++) {
        in[IN_SEL][i] = i % 4 == 0;
        in[IN_SCORE][i] = i % 4 == 0 ? 0 : -0.25;
    }
}

/* Two chosen scores whose sum is below the clamp. */
static void tiny_5_4(double *const *in)
{
    for (int i = 0; i < 20; i++) {
        in[IN_SEL][i] = i % 4 < 2;
        in[IN_WEIGHT][i] = i % 4 == 0 ? 0.75 : i % 4 == 1 ? 0.25 : 0;
        in[IN_SCORE][i] = i % 4 == 0 ? (double)3e-10f : i % 4 == 1 ? (double)1e-10f : -0.25;
    }
}

static const struct tp_variant variants[] = {{.tier = "generic", .lower = lower_gate}};
static const struct tp_variant backward_variants[] = {{.tier = "generic", .lower = lower_backward}};

#define ROWS(t, e, type, how, factor, wants_grad) \
    {.dtype = type, .gen = how, .scale = factor, .rows = TP_STEP_N_TOKENS, .dim = {t, e}, .grad = wants_grad}
#define PROBABILITIES(t, e, wants_grad) ROWS(t, e, TALPA_F32, TP_GEN_PROBABILITY, 1, wants_grad)
#define NORMAL(t, e, wants_grad) ROWS(t, e, TALPA_F32, TP_GEN_NORMAL, 1, wants_grad)
#define ZERO(t, e, type) ROWS(t, e, type, TP_GEN_ZERO, 1, false)

static const struct tp_case cases[] = {
    {.name = "one expert", .in = {PROBABILITIES(3, 1, true), NORMAL(3, 1, true)}, .n_in = 2, .attrs = {.f = {0.5}}},
    {.name = "eight experts",
     .in = {PROBABILITIES(65, 8, true), NORMAL(65, 1, true)},
     .n_in = 2,
     .attrs = {.f = {0.125}},
     .prepare = separate_65_8},
    {.name = "high threshold, some rows without expert, fewer rows",
     .in = {PROBABILITIES(33, 7, true), NORMAL(33, 1, true)},
     .n_in = 2,
     .attrs = {.f = {0.5}},
     .n_tokens = 19,
     .prepare = separate_19_7},
    {.name = "bound times a step word",
     .in = {PROBABILITIES(65, 8, true), NORMAL(65, 1, true)},
     .n_in = 2,
     .attrs = {.i = {TP_STEP_LOSS_SCALE}, .f = {0.5}},
     .prepare = separate_65_8},
    {.name = "fixed bound times a step word",
     .in = {PROBABILITIES(33, 4, true), {0}},
     .n_in = 2,
     .attrs = {.i = {TP_STEP_LOSS_SCALE}, .f = {1}},
     .prepare = separate_33_4_fixed},
    {.name = "fixed", .in = {PROBABILITIES(33, 4, true), {0}}, .n_in = 2, .attrs = {.f = {0.25}}, .prepare = separate_33_4_fixed},
    {.name = "fixed, none chosen", .in = {PROBABILITIES(5, 3, true), {0}}, .n_in = 2, .attrs = {.f = {2}}},
    {.name = "all scores zero", .in = {ZERO(4, 4, TALPA_F32), {0}}, .n_in = 2, .attrs = {.f = {0}}},
};
static const struct tp_case backward_cases[] = {
    {.name = "eight experts",
     .in = {PROBABILITIES(33, 8, false), ZERO(33, 8, TALPA_I32), ZERO(33, 8, TALPA_F32), NORMAL(33, 1, false), NORMAL(33, 8, false),
            NORMAL(33, 8, false)},
     .n_in = N_BACKWARD_IN,
     .attrs = {.f = {0.125}},
     .prepare = decide_33_8},
    {.name = "bound times a step word",
     .in = {PROBABILITIES(33, 8, false), ZERO(33, 8, TALPA_I32), ZERO(33, 8, TALPA_F32), NORMAL(33, 1, false), NORMAL(33, 8, false),
            NORMAL(33, 8, false)},
     .n_in = N_BACKWARD_IN,
     .attrs = {.i = {TP_STEP_LOSS_SCALE}, .f = {0.5}},
     .prepare = decide_33_8},
    {.name = "fixed, weight only, fewer rows",
     .in = {PROBABILITIES(9, 3, false), ZERO(9, 3, TALPA_I32), ZERO(9, 3, TALPA_F32), {0}, NORMAL(9, 3, false), {0}},
     .n_in = N_BACKWARD_IN,
     .attrs = {.f = {0.25}},
     .n_tokens = 7,
     .prepare = decide_7_3},
    {.name = "nothing left",
     .in = {ZERO(5, 4, TALPA_F32), ZERO(5, 4, TALPA_I32), ZERO(5, 4, TALPA_F32), NORMAL(5, 1, false), NORMAL(5, 4, false), {0}},
     .n_in = N_BACKWARD_IN,
     .attrs = {.f = {0.25}},
     .prepare = nothing_left_5_4},
    {.name = "sum below the clamp",
     .in = {ZERO(5, 4, TALPA_F32), ZERO(5, 4, TALPA_I32), ZERO(5, 4, TALPA_F32), NORMAL(5, 1, false), NORMAL(5, 4, false), {0}},
     .n_in = N_BACKWARD_IN,
     .attrs = {.f = {0.25}},
     .prepare = tiny_5_4},
};

const struct tp_op tp_op_threshold_gate = {
    .name = "threshold_gate",
    .in_names = {"p", "raw?"},
    .attr_i = {"word"},
    .attr_f = {"max_threshold"},
    .infer = infer_gate,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 1,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference_gate,
};

const struct tp_op tp_op_threshold_gate_backward = {
    .name = "threshold_gate_backward",
    .in_names = {"weight", "sel", "score", "raw?", "dweight?", "dscore?"},
    .attr_i = {"word"},
    .attr_f = {"max_threshold"},
    .infer = infer_backward,
    .no_gradient = "it is a gradient itself",
    .variants = backward_variants,
    .n_variants = 1,
    .cost = cost,
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};
