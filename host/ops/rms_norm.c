#include <math.h>

#include "elementwise.h"
#include "norm_products.h"

/* rms_norm: inputs x, weight; outputs y and rstd [T, parts], which the gradient reads. A row has one part or, with a weight narrower than
 * the row, several of the weight's width, each normalised by itself. Attribute f[0]: eps. */
extern const struct tp_op tp_op_rms_norm, tp_op_rms_norm_backward;

/* Inputs of the backward op: x, weight, rstd, dy and what is added to dx. */
enum { ADDEND = 4, N_BACKWARD_IN };

static enum talpa_status expect_weight(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, 1, 1, TALPA_F32));
    if (infer->in[1]->rows || infer->in[0]->shape.dim[1] % infer->in[1]->shape.dim[0])
        return tp_infer_fail(infer, 1, "[%lld], one value per column of x, or a divisor of it", (long long)infer->in[0]->shape.dim[1]);
    return TALPA_OK;
}

static int64_t parts_per_row(const struct tp_type *x, const struct tp_type *weight) { return x->shape.dim[1] / weight->shape.dim[0]; }

static enum talpa_status infer_forward(struct tp_infer *infer)
{
    TP_TRY(expect_weight(infer));
    if (!(infer->attrs->f[0] >= 0)) return tp_fail(TALPA_E_ARGUMENT, "rms_norm: eps is %g, expected 0 or more", infer->attrs->f[0]);
    infer->out[0] = *infer->in[0];
    infer->out[1] = tp_type_2d(TALPA_F32, infer->in[0]->rows, infer->in[0]->shape.dim[0], parts_per_row(infer->in[0], infer->in[1]));
    infer->n_out = 2;
    return TALPA_OK;
}

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    TP_TRY(expect_weight(infer));
    TP_TRY(tp_infer_expect(infer, 2, 2, TALPA_F32));
    if (infer->in[2]->rows != infer->in[0]->rows || infer->in[2]->shape.dim[0] != infer->in[0]->shape.dim[0] ||
        infer->in[2]->shape.dim[1] != parts_per_row(infer->in[0], infer->in[1]))
        return tp_infer_fail(infer, 2, "[%lld, %lld], one value per part of a row of x", (long long)infer->in[0]->shape.dim[0],
                             (long long)parts_per_row(infer->in[0], infer->in[1]));
    TP_TRY(tp_infer_expect(infer, 3, 2, TALPA_F32));
    if (!tp_type_equal(infer->in[3], infer->in[0])) return tp_infer_fail(infer, 3, "the type of x");
    if (infer->n_in > ADDEND && infer->in[ADDEND] && !tp_type_equal(infer->in[ADDEND], infer->in[0]))
        return tp_infer_fail(infer, ADDEND, "the type of x");
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (wanted[1]) return tp_fail(TALPA_E_ARGUMENT, "rms_norm: no gradient with respect to weight: it is frozen");
    if (out_grads[1] != TP_NONE) return tp_fail(TALPA_E_ARGUMENT, "rms_norm: no gradient from rstd: it is kept for the gradient only");
    if (!wanted[0] || out_grads[0] == TP_NONE) return TALPA_OK;
    const talpa_value in[] = {node->in[0], node->in[1], node->out[1], out_grads[0], TP_NONE};
    return tp_graph_node(graph, &tp_op_rms_norm_backward, in, N_BACKWARD_IN, NULL, &in_grads[0]);
}

static enum talpa_status lower(struct tp_lower *work, bool is_backward, bool on_cpu)
{
    const struct tp_type *type = tp_lower_out(work, 0);
    const int n_in = is_backward ? 4 : 2, n_out = is_backward ? 1 : 2;
    const int64_t width = tp_lower_in(work, 1)->shape.dim[0], n_parts = parts_per_row(type, tp_lower_in(work, 1));
    struct tp_launch *launch =
        tp_lower_launch(work, on_cpu ? "cpu/rms_norm.cl" : "generic/rms_norm.cl", is_backward ? "rms_norm_backward" : "rms_norm");
    const bool has_addend = is_backward && tp_lower_has_in(work, ADDEND);
    for (int i = 0; i < n_in; i++) tp_launch_read(work, launch, tp_in(i));
    if (is_backward) tp_launch_read(work, launch, tp_in(has_addend ? ADDEND : 0));
    tp_launch_bf16_options(work, launch, 0, 1);
    for (int o = 0; o < n_out; o++) tp_launch_write_forms(work, launch, o);
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)n_parts);
    tp_launch_u32(launch, (uint32_t)width);
    if (is_backward) tp_launch_u32(launch, has_addend);
    else tp_launch_f32(launch, (float)work->node->attrs.f[0]);
    if (on_cpu) {
        const uint32_t n_groups = tp_elementwise_row_shares(type->shape.dim[0] * n_parts, width);
        tp_launch_u32(launch, n_groups);
        tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(work, 128);
        tp_launch_local(launch, local * sizeof(float));
        tp_launch_groups(launch, (size_t)(type->shape.dim[0] * n_parts), 1, 1, local, 1, 1);
    }
    tp_launch_cost(launch, (is_backward ? 8.0 : 4.0) * (double)tp_type_elements(type),
                   (is_backward ? 3.0 : 2.0) * (double)tp_type_bytes(type));
    return TALPA_OK;
}

/* y and dx go into products. */
static void layouts_cpu(const struct tp_lower *work, enum tp_layout *in, enum tp_layout *out)
{
    (void)in;
    const struct tp_type *type = tp_lower_out(work, 0);
    if (tp_lower_offers_bf16(work, type) && parts_per_row(type, tp_lower_in(work, 1)) == 1) out[0] = tp_layout_or_row(TP_LAYOUT_ROW_BF16);
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
    const bool is_backward = node->n_in > 2;
    *flops = (is_backward ? 8.0 : 4.0) * (double)tp_type_elements(type);
    *bytes = (is_backward ? 3.0 : 2.0) * (double)tp_type_bytes(type);
}

static void reference(const struct tp_reference *work)
{
    const int64_t d = work->in_type[1].shape.dim[0], n_rows = tp_type_elements(&work->in_type[0]) / d;
    for (int64_t t = 0; t < n_rows; t++) {
        const double *x = work->in[0] + t * d;
        double square = 0;
        for (int64_t j = 0; j < d; j++) square += x[j] * x[j];
        const double rms = sqrt(square / (double)d + work->attrs->f[0]);
        for (int64_t j = 0; j < d; j++) work->out[0][t * d + j] = x[j] / rms * work->in[1][j];
        work->out[1][t] = 1 / rms;
    }
}

/* dx = J^T dy with the full Jacobian J[i][j] = w_i (r [i == j] - x_i x_j r^3 / d). */
static void reference_backward(const struct tp_reference *work)
{
    const int64_t d = work->in_type[1].shape.dim[0], n_rows = tp_type_elements(&work->in_type[0]) / d;
    const double *w = work->in[1];
    for (int64_t t = 0; t < n_rows; t++) {
        const double *x = work->in[0] + t * d, *dy = work->in[3] + t * d, r = work->in[2][t];
        for (int64_t j = 0; j < d; j++) {
            double sum = 0;
            for (int64_t i = 0; i < d; i++) sum += dy[i] * w[i] * ((i == j ? r : 0) - x[i] * x[j] * r * r * r / (double)d);
            work->out[0][t * d + j] = sum + (work->n_in > ADDEND && work->in[ADDEND] ? work->in[ADDEND][t * d + j] : 0);
        }
    }
}

#define ROWS(t, n, scale, grad)                                                                                                            \
    {                                                                                                                                      \
        TALPA_F32, TP_INPUT, TP_GEN_NORMAL, scale, TP_STEP_N_TOKENS, {t, n}, grad                                                          \
    }
#define WEIGHT(n)                                                                                                                          \
    {                                                                                                                                      \
        TALPA_F32, TP_WEIGHT, TP_GEN_NORMAL, 1, TP_STEP_NONE, {n}, false                                                                   \
    }
#define RSTD_OF(t, n)                                                                                                                            \
    {                                                                                                                                      \
        TALPA_F32, TP_INPUT, TP_GEN_UNIFORM, 1, TP_STEP_N_TOKENS, {t, n}, false                                                            \
    }
#define RSTD(t) RSTD_OF(t, 1)

static const struct tp_case cases[] = {
    {.name = "odd", .in = {ROWS(33, 35, 1, true), WEIGHT(35)}, .n_in = 2, .attrs = {.f = {1e-5}}, .n_tokens = 17},
    {.name = "one column", .in = {ROWS(3, 1, 1, true), WEIGHT(1)}, .n_in = 2, .attrs = {.f = {1e-1}}},
    {.name = "one row", .in = {ROWS(65, 64, 1, true), WEIGHT(64)}, .n_in = 2, .attrs = {.f = {1e-5}}, .n_tokens = 1},
    {.name = "large values", .in = {ROWS(7, 129, 1000, false), WEIGHT(129)}, .n_in = 2, .attrs = {.f = {1e-6}}},
    {.name = "model", .in = {ROWS(64, 576, 1, false), WEIGHT(576)}, .n_in = 2, .attrs = {.f = {1e-5}}, .n_tokens = 63},
    {.name = "3 rows of 130", .in = {ROWS(130, 35, 1, true), WEIGHT(35)}, .n_in = 2, .attrs = {.f = {1e-5}}, .n_tokens = 3},
    {.name = "3 heads of 5", .in = {ROWS(33, 15, 1, true), WEIGHT(5)}, .n_in = 2, .attrs = {.f = {1e-6}}, .n_tokens = 17},
    {.name = "heads of 64", .in = {ROWS(65, 192, 1, false), WEIGHT(64)}, .n_in = 2, .attrs = {.f = {1e-6}}, .n_tokens = 64},
};

static const struct tp_case backward_cases[] = {
    {.name = "odd", .in = {ROWS(33, 35, 1, false), WEIGHT(35), RSTD(33), ROWS(33, 35, 1, false)}, .n_in = 4, .n_tokens = 17},
    {.name = "one column", .in = {ROWS(3, 1, 1, false), WEIGHT(1), RSTD(3), ROWS(3, 1, 1, false)}, .n_in = 4},
    {.name = "model", .in = {ROWS(16, 576, 1, false), WEIGHT(576), RSTD(16), ROWS(16, 576, 1, false)}, .n_in = 4, .n_tokens = 15},
    {.name = "3 rows of 130", .in = {ROWS(130, 35, 1, false), WEIGHT(35), RSTD(130), ROWS(130, 35, 1, false)}, .n_in = 4, .n_tokens = 3},
    {.name = "3 heads of 5", .in = {ROWS(33, 15, 1, false), WEIGHT(5), RSTD_OF(33, 3), ROWS(33, 15, 1, false)}, .n_in = 4, .n_tokens = 17},
    {.name = "heads of 64", .in = {ROWS(65, 192, 1, false), WEIGHT(64), RSTD_OF(65, 3), ROWS(65, 192, 1, false)}, .n_in = 4, .n_tokens = 64},
    {.name = "added to", .in = {ROWS(33, 35, 1, false), WEIGHT(35), RSTD(33), ROWS(33, 35, 1, false), ROWS(33, 35, 1, false)},
     .n_in = N_BACKWARD_IN, .n_tokens = 17},
};

const struct tp_op tp_op_rms_norm = {
    .name = "rms_norm",
    .in_names = {"x", "weight"},
    .attr_f = {"eps"},
    .flags = TP_OP_CHEAP,
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1},
    .fusions = tp_norm_fusions,
    .n_fusions = TP_N_NORM_FUSIONS,
    .opaque = {false, true}, /* no gradient from rstd; a wrong one shows in the gradient of x */
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

const struct tp_op tp_op_rms_norm_backward = {
    .name = "rms_norm_backward",
    .in_names = {"x", "weight", "rstd", "dy", "addend?"},
    .infer = infer_backward,
    .no_gradient = "second derivatives are not defined",
    .variants = backward_variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {4},
    .addend = 1 + ADDEND,
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};

enum talpa_status talpa_rms_norm(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value weight, float eps)
{
    const struct tp_attrs attrs = {.f = {(double)eps}};
    talpa_value out[2];
    TP_TRY(tp_graph_node(graph, &tp_op_rms_norm, (const talpa_value[]){x, weight}, 2, &attrs, out));
    *y = out[0];
    return TALPA_OK;
}
