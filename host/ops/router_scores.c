/* A router's scores in one op: p = softmax(x gating^T), and with a direction raw = x direction^T + bias, AdaMoLE's threshold before the
 * sigmoid (arXiv 2405.00361, equations 3 and 6). The same as products, bias and softmax one by one, but x is read once. */
#include <math.h>

#include "ops/elementwise.h"
#include "ops/router_experts.h"

extern const struct tp_op tp_op_router_scores, tp_op_router_scores_backward;

enum { X, GATING, DIRECTION, BIAS, N_IN };
/* Backward: p, dp, draw, and what is added to dx, in place of bias. */
enum { P = BIAS, DP, DRAW, ADDEND, N_BACKWARD_IN };

enum talpa_status talpa_router_scores(talpa_value *p, talpa_value *raw, struct talpa_graph *graph, talpa_value x, talpa_value gating,
                                      talpa_value direction, talpa_value bias)
{
    const talpa_value in[N_IN] = {x, gating, direction, bias};
    talpa_value out[TP_MAX_OUT] = {TP_NONE, TP_NONE, TP_NONE, TP_NONE};
    TP_TRY(tp_graph_node(graph, &tp_op_router_scores, in, N_IN, NULL, out));
    *p = out[0];
    *raw = direction == TP_NONE ? TP_NONE : out[1];
    return TALPA_OK;
}

static bool given(const struct tp_infer *infer, int operand) { return operand < infer->n_in && infer->in[operand]; }

static enum talpa_status expect(const struct tp_infer *infer, int operand, struct tp_type want)
{
    TP_TRY(tp_infer_expect(infer, operand, want.shape.rank, TALPA_F32));
    if (tp_type_equal(infer->in[operand], &want)) return TALPA_OK;
    return tp_infer_fail(infer, operand, "[%lld%s%.0lld] with the run-time rows that belong to x", (long long)want.shape.dim[0],
                         want.shape.rank > 1 ? ", " : "", want.shape.rank > 1 ? (long long)want.shape.dim[1] : 0LL);
}

/* x, gating and direction, which both ops have. */
static enum talpa_status infer_parameters(const struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, X, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, GATING, 2, TALPA_F32));
    const int64_t d = infer->in[X]->shape.dim[1];
    TP_TRY(expect(infer, GATING, tp_type_2d(TALPA_F32, TP_STEP_NONE, infer->in[GATING]->shape.dim[0], d)));
    return given(infer, DIRECTION) ? expect(infer, DIRECTION, tp_type_2d(TALPA_F32, TP_STEP_NONE, 1, d)) : TALPA_OK;
}

static struct tp_type scores(const struct tp_type *x, int64_t n) { return tp_type_2d(TALPA_F32, x->rows, x->shape.dim[0], n); }

static enum talpa_status infer_forward(struct tp_infer *infer)
{
    TP_TRY(infer_parameters(infer));
    if (given(infer, DIRECTION)) TP_TRY(expect(infer, BIAS, tp_type_1d(TALPA_F32, TP_STEP_NONE, 1)));
    infer->out[0] = scores(infer->in[X], infer->in[GATING]->shape.dim[0]);
    infer->out[1] = scores(infer->in[X], 1);
    infer->n_out = given(infer, DIRECTION) ? 2 : 1;
    return TALPA_OK;
}

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    TP_TRY(infer_parameters(infer));
    const struct tp_type *x = infer->in[X], p = scores(x, infer->in[GATING]->shape.dim[0]);
    TP_TRY(expect(infer, P, p));
    if (given(infer, DP)) TP_TRY(expect(infer, DP, p));
    if (given(infer, DRAW)) TP_TRY(expect(infer, DRAW, scores(x, 1)));
    if (given(infer, ADDEND)) TP_TRY(expect(infer, ADDEND, *x));
    infer->out[0] = *x;
    infer->out[1] = *infer->in[GATING];
    infer->n_out = 2;
    if (!given(infer, DIRECTION)) return TALPA_OK;
    infer->out[2] = *infer->in[DIRECTION];
    infer->out[3] = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    infer->n_out = 4;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    const bool has_direction = node->in[DIRECTION] != TP_NONE;
    const talpa_value dp = out_grads[0], draw = has_direction ? out_grads[1] : TP_NONE;
    (void)wanted; /* all four come out of the same sums */
    if (dp == TP_NONE && draw == TP_NONE) return TALPA_OK;
    const talpa_value in[N_BACKWARD_IN] = {node->in[X], node->in[GATING], node->in[DIRECTION], node->out[0], dp, draw, TP_NONE};
    talpa_value out[TP_MAX_OUT] = {TP_NONE, TP_NONE, TP_NONE, TP_NONE};
    TP_TRY(tp_graph_node(graph, &tp_op_router_scores_backward, in, N_BACKWARD_IN, NULL, out));
    for (int i = 0; i < (has_direction ? 4 : 2); i++) in_grads[i] = out[i];
    return TALPA_OK;
}

/* ---- launches ---- */

struct sizes {
    const struct tp_type *x;
    int64_t n_tokens, d, n;
    bool has_direction;
};

static struct sizes sizes_of(const struct tp_lower *lower)
{
    const struct tp_type *x = tp_lower_in(lower, X);
    return (struct sizes){x, x->shape.dim[0], x->shape.dim[1], tp_lower_in(lower, GATING)->shape.dim[0], tp_lower_has_in(lower, DIRECTION)};
}

static struct tp_operand or_x(const struct tp_lower *lower, int operand) { return tp_in(tp_lower_has_in(lower, operand) ? operand : X); }

static int64_t most_groups(const struct tp_lower *lower, int64_t units)
{
    const int64_t wanted = 4 * (int64_t)lower->caps->compute_units, most = wanted > 32 ? wanted : 32;
    return units < 1 ? 1 : units < most ? units : most;
}

/* Step buffer, rows of x and sizes; ends the arguments of the smaller kernels. */
static void put_sizes(struct tp_launch *launch, const struct sizes *s, bool with_width)
{
    tp_launch_step(launch);
    tp_launch_rows(launch, s->x);
    if (with_width) tp_launch_u32(launch, (uint32_t)s->d);
    tp_launch_u32(launch, (uint32_t)s->n);
    tp_launch_u32(launch, s->has_direction);
}

static void put_groups(const struct tp_lower *lower, struct tp_launch *launch, int64_t units)
{
    const int64_t groups = most_groups(lower, units);
    tp_launch_u32(launch, (uint32_t)groups);
    tp_launch_groups(launch, (size_t)groups, 1, 1, 1, 1, 1);
}

static void put_2d(const struct tp_lower *lower, struct tp_launch *launch, int64_t columns, int64_t rows)
{
    const size_t local = tp_elementwise_local(lower, 64);
    tp_launch_groups(launch, ((size_t)columns + local - 1) / local, (size_t)rows, 1, local, 1, 1);
}

static void put_cost(struct tp_launch *launch, const struct sizes *s, double x_values)
{
    const double t = (double)s->n_tokens, d = (double)s->d, n = (double)s->n + s->has_direction;
    tp_launch_cost(launch, 2 * t * d * n, 4 * (x_values * t * d + t * n + n * d));
}

static enum talpa_status lower_forward(struct tp_lower *lower, bool on_cpu)
{
    const struct sizes s = sizes_of(lower);
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/router_scores.cl" : "generic/router_scores.cl", "router_scores");
    tp_launch_read(lower, launch, tp_in(X));
    tp_launch_read(lower, launch, tp_in(GATING));
    tp_launch_read(lower, launch, or_x(lower, DIRECTION));
    tp_launch_read(lower, launch, s.has_direction ? tp_in(BIAS) : tp_in(X));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_write(lower, launch, tp_out(s.has_direction ? 1 : 0));
    put_sizes(launch, &s, true);
    if (on_cpu) put_groups(lower, launch, (s.n_tokens + 5) / 6);
    else tp_elementwise_groups(lower, launch, s.n_tokens);
    put_cost(launch, &s, 1);
    return TALPA_OK;
}

static void emit_outer(struct tp_lower *lower, const struct sizes *s, int grad, bool on_cpu)
{
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/router_scores.cl" : "generic/router_scores.cl", "router_scores_outer");
    tp_launch_read(lower, launch, tp_in(X));
    tp_launch_read(lower, launch, tp_scratch(grad));
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_write(lower, launch, tp_out(s->has_direction ? 2 : 1));
    tp_launch_write(lower, launch, tp_out(s->has_direction ? 3 : 1));
    put_sizes(launch, s, true);
    if (on_cpu) put_groups(lower, launch, ((s->n + 3) / 4 + s->has_direction) * ((s->d + 95) / 96));
    else put_2d(lower, launch, s->d, s->n + s->has_direction);
    put_cost(launch, s, 1);
}

static int reserve_grad(struct tp_lower *lower, const struct sizes *s)
{
    return tp_lower_scratch(lower, (size_t)(s->n_tokens * (s->n + s->has_direction)) * sizeof(float));
}

static enum talpa_status lower_backward_cpu(struct tp_lower *lower)
{
    const struct sizes s = sizes_of(lower);
    const int grad = reserve_grad(lower, &s);
    struct tp_launch *launch = tp_lower_launch(lower, "cpu/router_scores.cl", "router_scores_backward");
    tp_launch_read(lower, launch, tp_in(GATING));
    tp_launch_read(lower, launch, or_x(lower, DIRECTION));
    tp_launch_read(lower, launch, tp_in(P));
    for (int i = DP; i <= ADDEND; i++) tp_launch_read(lower, launch, or_x(lower, i));
    tp_launch_write(lower, launch, tp_scratch(grad));
    tp_launch_write(lower, launch, tp_out(0));
    put_sizes(launch, &s, true);
    for (int i = DP; i <= ADDEND; i++) tp_launch_u32(launch, tp_lower_has_in(lower, i));
    put_groups(lower, launch, (s.n_tokens + 31) / 32);
    put_cost(launch, &s, tp_lower_has_in(lower, ADDEND) ? 2 : 1);
    emit_outer(lower, &s, grad, true);
    return TALPA_OK;
}

static enum talpa_status lower_backward_generic(struct tp_lower *lower)
{
    const struct sizes s = sizes_of(lower);
    const int grad = reserve_grad(lower, &s);
    struct tp_launch *launch = tp_lower_launch(lower, "generic/router_scores.cl", "router_scores_grad");
    tp_launch_read(lower, launch, tp_in(P));
    tp_launch_read(lower, launch, or_x(lower, DP));
    tp_launch_read(lower, launch, or_x(lower, DRAW));
    tp_launch_write(lower, launch, tp_scratch(grad));
    put_sizes(launch, &s, false);
    tp_launch_u32(launch, tp_lower_has_in(lower, DP));
    tp_launch_u32(launch, tp_lower_has_in(lower, DRAW));
    tp_elementwise_groups(lower, launch, s.n_tokens);
    tp_launch_cost(launch, 4.0 * (double)(s.n_tokens * s.n), 12.0 * (double)(s.n_tokens * s.n));
    launch = tp_lower_launch(lower, "generic/router_scores.cl", "router_scores_backward");
    tp_launch_read(lower, launch, tp_scratch(grad));
    tp_launch_read(lower, launch, tp_in(GATING));
    tp_launch_read(lower, launch, or_x(lower, DIRECTION));
    tp_launch_read(lower, launch, or_x(lower, ADDEND));
    tp_launch_write(lower, launch, tp_out(0));
    put_sizes(launch, &s, true);
    tp_launch_u32(launch, tp_lower_has_in(lower, ADDEND));
    put_2d(lower, launch, s.d, s.n_tokens);
    put_cost(launch, &s, 2);
    emit_outer(lower, &s, grad, false);
    return TALPA_OK;
}

static enum talpa_status lower_cpu(struct tp_lower *lower) { return lower_forward(lower, true); }
static enum talpa_status lower_generic(struct tp_lower *lower) { return lower_forward(lower, false); }

static const struct tp_variant variants[] = {{"cpu", NULL, NULL, lower_cpu}, {"generic", NULL, NULL, lower_generic}};
static const struct tp_variant backward_variants[] = {{"cpu", NULL, NULL, lower_backward_cpu},
                                                      {"generic", NULL, NULL, lower_backward_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *x = tp_graph_type(graph, node->in[X]), *gating = tp_graph_type(graph, node->in[GATING]);
    const double t = (double)x->shape.dim[0], d = (double)x->shape.dim[1], n = (double)gating->shape.dim[0] + (node->in[DIRECTION] != TP_NONE);
    const double products = node->n_in == N_IN ? 1 : 2;
    *flops = 2 * products * t * d * n;
    *bytes = 4 * products * (t * d + n * d + t * n);
}

/* ---- references ---- */

static void reference(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[X].shape.dim[0], d = r->in_type[X].shape.dim[1], n = r->in_type[GATING].shape.dim[0];
    for (int64_t t = 0; t < rows; t++) {
        const double *x = r->in[X] + t * d;
        double *p = r->out[0] + t * n, sum = 0;
        for (int64_t e = 0; e < n; e++) {
            double logit = 0;
            for (int64_t k = 0; k < d; k++) logit += x[k] * r->in[GATING][e * d + k];
            p[e] = exp(logit);
            sum += p[e];
        }
        for (int64_t e = 0; e < n; e++) p[e] /= sum;
        if (r->n_out < 2) continue;
        r->out[1][t] = r->in[BIAS][0];
        for (int64_t k = 0; k < d; k++) r->out[1][t] += x[k] * r->in[DIRECTION][k];
    }
}

/* With the full Jacobian of the softmax. */
static void reference_backward(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[X].shape.dim[0], d = r->in_type[X].shape.dim[1], n = r->in_type[GATING].shape.dim[0];
    const double *dp = r->in[DP], *draw = r->in[DRAW], *addend = r->in[ADDEND];
    for (int64_t i = 0; i < rows * d; i++) r->out[0][i] = addend ? addend[i] : 0;
    for (int o = 1; o < r->n_out; o++)
        for (int64_t i = 0; i < tp_type_elements(&r->out_type[o]); i++) r->out[o][i] = 0;
    for (int64_t t = 0; t < rows; t++) {
        const double *x = r->in[X] + t * d, *p = r->in[P] + t * n;
        for (int64_t e = 0; e < n; e++) {
            double grad = 0;
            for (int64_t j = 0; dp && j < n; j++) grad += dp[t * n + j] * p[j] * ((j == e) - p[e]);
            for (int64_t k = 0; k < d; k++) {
                r->out[0][t * d + k] += grad * r->in[GATING][e * d + k];
                r->out[1][e * d + k] += grad * x[k];
            }
        }
        for (int64_t k = 0; r->n_out > 2 && draw && k < d; k++) {
            r->out[0][t * d + k] += draw[t] * r->in[DIRECTION][k];
            r->out[2][k] += draw[t] * x[k];
        }
        if (r->n_out > 2 && draw) r->out[3][0] += draw[t];
    }
}

#define ROWS(t, n, size, wants) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = size, .rows = TP_STEP_N_TOKENS, .dim = {t, n}, .grad = wants}
#define MATRIX(m, n) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 0.3, .dim = {m, n}, .grad = true}
#define FIXED(m, n) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 0.3, .dim = {m, n}}
#define BIAS_OF_1 {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 1, .dim = {1}, .grad = true}
#define P_OF(t, n) {.dtype = TALPA_F32, .gen = TP_GEN_PROBABILITY, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, n}}

static const struct tp_case cases[] = {
    {.name = "one expert", .in = {ROWS(5, 7, 1, true), MATRIX(1, 7), MATRIX(1, 7), BIAS_OF_1}, .n_in = N_IN, .tolerance = 2e-5},
    {.name = "eight experts", .in = {ROWS(65, 96, 0.5, true), MATRIX(8, 96), MATRIX(1, 96), BIAS_OF_1}, .n_in = N_IN, .tolerance = 2e-5},
    {.name = "odd, fewer rows", .in = {ROWS(33, 37, 1, true), MATRIX(5, 37), MATRIX(1, 37), BIAS_OF_1},
     .n_in = N_IN, .n_tokens = 18, .tolerance = 2e-5},
    {.name = "no direction", .in = {ROWS(40, 130, 0.5, true), MATRIX(6, 130), {0}, {0}}, .n_in = N_IN, .tolerance = 2e-5},
    {.name = "3 rows of 130", .in = {ROWS(130, 35, 1, true), MATRIX(8, 35), MATRIX(1, 35), BIAS_OF_1},
     .n_in = N_IN, .n_tokens = 3, .tolerance = 2e-5},
    {.name = "model", .in = {ROWS(64, 576, 0.3, false), MATRIX(8, 576), MATRIX(1, 576), BIAS_OF_1},
     .n_in = N_IN, .n_tokens = 63, .tolerance = 5e-5},
};
static const struct tp_case backward_cases[] = {
    {.name = "all", .in = {ROWS(65, 160, 1, false), FIXED(8, 160), FIXED(1, 160), P_OF(65, 8), ROWS(65, 8, 1, false), ROWS(65, 1, 1, false),
                           ROWS(65, 160, 1, false)},
     .n_in = N_BACKWARD_IN, .n_tokens = 44, .tolerance = 2e-5},
    {.name = "scores only", .in = {ROWS(33, 37, 1, false), FIXED(5, 37), FIXED(1, 37), P_OF(33, 5), ROWS(33, 5, 1, false), {0}, {0}},
     .n_in = N_BACKWARD_IN, .tolerance = 2e-5},
    {.name = "threshold only", .in = {ROWS(33, 40, 1, false), FIXED(5, 40), FIXED(1, 40), P_OF(33, 5), {0}, ROWS(33, 1, 1, false), {0}},
     .n_in = N_BACKWARD_IN, .tolerance = 2e-5},
    {.name = "no direction", .in = {ROWS(130, 35, 1, false), FIXED(8, 35), {0}, P_OF(130, 8), ROWS(130, 8, 1, false), {0}, ROWS(130, 35, 1, false)},
     .n_in = N_BACKWARD_IN, .n_tokens = 3, .tolerance = 2e-5},
};

const struct tp_op tp_op_router_scores = {
    .name = "router_scores",
    .in_names = {"x", "gating", "direction?", "bias?"},
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .fusions = tp_router_experts_fusions,
    .n_fusions = TP_N_ROUTER_EXPERTS_FUSIONS,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

const struct tp_op tp_op_router_scores_backward = {
    .name = "router_scores_backward",
    .in_names = {"x", "gating", "direction?", "p", "dp?", "draw?", "addend?"},
    .infer = infer_backward,
    .no_gradient = "it is a gradient itself",
    .variants = backward_variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1 + ADDEND},
    .addend = 1 + ADDEND,
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};
