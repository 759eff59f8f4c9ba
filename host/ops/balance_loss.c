/* Load-balancing loss of a mixture (the published AdaMoLE code; Switch with the counts of all chosen experts):
 * aux = E * sum_e (counts[e] / T) * mean_t score[t, e], T the run-time number of tokens. The counts carry no gradient. */
#include "ops/elementwise.h"

extern const struct tp_op tp_op_balance_loss, tp_op_balance_loss_backward;

enum talpa_status talpa_balance_loss(talpa_value *aux, talpa_value *total, struct talpa_graph *graph, talpa_value score, talpa_value counts,
                                     talpa_value previous)
{
    const talpa_value in[] = {score, counts, previous};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_balance_loss, in, 3, NULL, out));
    *aux = out[0];
    *total = out[1];
    return TALPA_OK;
}

static enum talpa_status infer_counts(const struct tp_infer *infer, int operand, int64_t n_experts)
{
    TP_TRY(tp_infer_expect(infer, operand, 1, TALPA_I32));
    return infer->in[operand]->shape.dim[0] == n_experts ? TALPA_OK : tp_infer_fail(infer, operand, "[%lld]", (long long)n_experts);
}

static enum talpa_status infer_scalar(const struct tp_infer *infer, int operand)
{
    if (operand >= infer->n_in || !infer->in[operand]) return TALPA_OK;
    TP_TRY(tp_infer_expect(infer, operand, 1, TALPA_F32));
    return infer->in[operand]->shape.dim[0] == 1 ? TALPA_OK : tp_infer_fail(infer, operand, "[1]");
}

static enum talpa_status infer_loss(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    TP_TRY(infer_counts(infer, 1, infer->in[0]->shape.dim[1]));
    TP_TRY(infer_scalar(infer, 2));
    infer->out[0] = infer->out[1] = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    infer->n_out = 2;
    return TALPA_OK;
}

/* The scores themselves are not needed: only their type, which the attributes hold. */
enum { ATTR_N_TOKENS, ATTR_N_EXPERTS, ATTR_ROWS };

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    const int64_t *attr = infer->attrs->i;
    if (attr[ATTR_N_TOKENS] < 1 || attr[ATTR_N_EXPERTS] < 1 || attr[ATTR_ROWS] < 0 || attr[ATTR_ROWS] >= TP_STEP_WORDS)
        return tp_fail(TALPA_E_ARGUMENT, "balance_loss_backward: scores are [%lld, %lld] with row symbol %lld, expected positive sizes",
                       (long long)attr[ATTR_N_TOKENS], (long long)attr[ATTR_N_EXPERTS], (long long)attr[ATTR_ROWS]);
    TP_TRY(infer_counts(infer, 0, attr[ATTR_N_EXPERTS]));
    TP_TRY(infer_scalar(infer, 1));
    TP_TRY(infer_scalar(infer, 2));
    infer->out[0] = tp_type_2d(TALPA_F32, (enum tp_step_word)attr[ATTR_ROWS], attr[ATTR_N_TOKENS], attr[ATTR_N_EXPERTS]);
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (wanted[2]) in_grads[2] = out_grads[1];
    if (!wanted[0] || (out_grads[0] == TP_NONE && out_grads[1] == TP_NONE)) return TALPA_OK;
    const struct tp_type *score = tp_graph_type(graph, node->in[0]);
    const struct tp_attrs attrs = {
        .i = {[ATTR_N_TOKENS] = score->shape.dim[0], [ATTR_N_EXPERTS] = score->shape.dim[1], [ATTR_ROWS] = (int64_t)score->rows}};
    const talpa_value in[] = {node->in[1], out_grads[0], out_grads[1]};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_balance_loss_backward, in, 3, &attrs, out));
    in_grads[0] = out[0];
    return TALPA_OK;
}

static enum talpa_status lower_loss(struct tp_lower *lower)
{
    const struct tp_type *score = tp_lower_in(lower, 0);
    const double n = (double)tp_type_elements(score);
    const bool has_previous = tp_lower_has_in(lower, 2);
    const size_t local = tp_elementwise_local(lower, 128);
    struct tp_launch *launch = tp_lower_launch(lower, "generic/balance_loss.cl", "balance_loss");
    tp_launch_step(launch);
    tp_launch_rows(launch, score);
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_read(lower, launch, tp_in(1));
    tp_launch_read(lower, launch, tp_in(has_previous ? 2 : 0));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_u32(launch, (uint32_t)score->shape.dim[1]);
    tp_launch_u32(launch, has_previous);
    tp_launch_local(launch, local * sizeof(float));
    tp_launch_groups(launch, 1, 1, 1, local, 1, 1);
    tp_launch_cost(launch, 2 * n, 4 * n);
    return TALPA_OK;
}

static enum talpa_status lower_backward(struct tp_lower *lower)
{
    const struct tp_type *dscore = tp_lower_out(lower, 0);
    const double n = (double)tp_type_elements(dscore);
    const bool has_daux = tp_lower_has_in(lower, 1), has_dtotal = tp_lower_has_in(lower, 2);
    struct tp_launch *launch = tp_lower_launch(lower, "generic/balance_loss.cl", "balance_loss_backward");
    tp_launch_step(launch);
    tp_launch_rows(launch, dscore);
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_read(lower, launch, tp_in(has_daux ? 1 : 0));
    tp_launch_read(lower, launch, tp_in(has_dtotal ? 2 : 0));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_u32(launch, (uint32_t)dscore->shape.dim[1]);
    tp_launch_u32(launch, has_daux);
    tp_launch_u32(launch, has_dtotal);
    tp_elementwise_groups(lower, launch, tp_type_elements(dscore));
    tp_launch_cost(launch, 4 * n, 4 * n);
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const talpa_value scores = node->op == &tp_op_balance_loss ? node->in[0] : node->out[0];
    const double n = (double)tp_type_elements(tp_graph_type(graph, scores));
    *flops = 2 * n;
    *bytes = 4 * n;
}

static void reference_loss(const struct tp_reference *r)
{
    const int64_t rows = r->in_type[0].shape.dim[0], n = r->in_type[0].shape.dim[1];
    double aux = 0;
    for (int64_t e = 0; rows && e < n; e++) {
        double sum = 0;
        for (int64_t t = 0; t < rows; t++) sum += r->in[0][t * n + e];
        aux += (double)n * (r->in[1][e] / (double)rows) * (sum / (double)rows);
    }
    r->out[0][0] = aux;
    r->out[1][0] = aux + (r->n_in > 2 && r->in[2] ? r->in[2][0] : 0);
}

static void reference_backward(const struct tp_reference *r)
{
    const int64_t rows = r->out_type[0].shape.dim[0], n = r->out_type[0].shape.dim[1];
    const double seed = (r->in[1] ? r->in[1][0] : 0) + (r->in[2] ? r->in[2][0] : 0);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t e = 0; e < n; e++) r->out[0][t * n + e] = seed * (double)n * r->in[0][e] / ((double)rows * (double)rows);
}

static const struct tp_variant variants[] = {{.tier = "generic", .lower = lower_loss}};
static const struct tp_variant backward_variants[] = {{.tier = "generic", .lower = lower_backward}};

#define SCORES(t, e, wants_grad) \
    {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 0.3, .rows = TP_STEP_N_TOKENS, .dim = {t, e}, .grad = wants_grad}
#define COUNTS(e, below) {.dtype = TALPA_I32, .gen = TP_GEN_INDEX, .scale = below, .dim = {e}}
#define SCALAR(wants_grad) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 1, .dim = {1}, .grad = wants_grad}

static const struct tp_case cases[] = {
    {.name = "first", .in = {SCORES(65, 8, true), COUNTS(8, 66), {0}}, .n_in = 3},
    {.name = "next, fewer rows", .in = {SCORES(300, 3, true), COUNTS(3, 200), SCALAR(true)}, .n_in = 3, .n_tokens = 199},
    {.name = "one token", .in = {SCORES(1, 4, true), COUNTS(4, 2), SCALAR(true)}, .n_in = 3},
    {.name = "3 rows of 130", .in = {SCORES(130, 8, true), COUNTS(8, 4), {0}}, .n_in = 3, .n_tokens = 3},
};
static const struct tp_case backward_cases[] = {
    {.name = "both",
     .in = {COUNTS(8, 34), SCALAR(false), SCALAR(false)},
     .n_in = 3,
     .attrs = {.i = {33, 8, TP_STEP_N_TOKENS}},
     .n_tokens = 20},
    {.name = "total only", .in = {COUNTS(3, 8), {0}, SCALAR(false)}, .n_in = 3, .attrs = {.i = {7, 3, TP_STEP_N_TOKENS}}},
};

const struct tp_op tp_op_balance_loss = {
    .name = "balance_loss",
    .in_names = {"score", "counts", "previous?"},
    .infer = infer_loss,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 1,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference_loss,
};

const struct tp_op tp_op_balance_loss_backward = {
    .name = "balance_loss_backward",
    .in_names = {"counts", "daux?", "dtotal?"},
    .attr_i = {"n_tokens", "n_experts", "rows"},
    .infer = infer_backward,
    .no_gradient = "it is a gradient itself",
    .variants = backward_variants,
    .n_variants = 1,
    .cost = cost,
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};
