/* Mixture of LoRA experts without any expert's own output (experts are linear, so the stacked form is exact):
 *   z = x A^T, y = y0 + (scale * weight * z) Bt, with all A_e stacked in lora_a and all B_e^T in lora_bt.
 * With a mask, x counts where it is kept, and scale is divided by 1 - p: what dropout makes of x, without a copy of it.
 * Output 1, z, is kept for the gradient; where a sparse plan runs, only what a token chose is defined in it. */
#include "ops/lora_expert.h"
#include "ops/dropout_mask.h"

#include <math.h>

enum talpa_status talpa_lora_expert(talpa_value *y, struct talpa_graph *graph, talpa_value y0, talpa_value x, talpa_value lora_a,
                                    talpa_value lora_bt, talpa_value weight, talpa_value sel, talpa_value counts, talpa_value list,
                                    int n_experts, int rank, float scale)
{
    return talpa_lora_expert_dropped(y, graph, y0, x, lora_a, lora_bt, weight, sel, counts, list, TP_NONE, n_experts, rank, scale, 0.0f);
}

enum talpa_status talpa_lora_expert_dropped(talpa_value *y, struct talpa_graph *graph, talpa_value y0, talpa_value x, talpa_value lora_a,
                                            talpa_value lora_bt, talpa_value weight, talpa_value sel, talpa_value counts, talpa_value list,
                                            talpa_value keep, int n_experts, int rank, float scale, float p)
{
    const talpa_value in[TP_LORA_N_IN] = {y0, x, lora_a, lora_bt, weight, sel, counts, list, keep};
    const struct tp_attrs attrs = {.i = {n_experts, rank}, .f = {(double)scale, (double)p}};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_lora_expert, in, TP_LORA_N_IN, &attrs, out));
    *y = out[0];
    return TALPA_OK;
}

static enum talpa_status expect_2d(const struct tp_infer *infer, int operand, enum talpa_dtype dtype, enum tp_step_word rows, int64_t n,
                                   int64_t m)
{
    TP_TRY(tp_infer_expect(infer, operand, 2, dtype));
    const struct tp_type want = tp_type_2d(dtype, rows, n, m);
    if (tp_type_equal(infer->in[operand], &want)) return TALPA_OK;
    return tp_infer_fail(infer, operand, "[%lld, %lld]%s", (long long)n, (long long)m,
                         infer->in[operand]->rows == rows ? "" : " with the run-time rows of x");
}

enum talpa_status tp_lora_expert_check(const struct tp_infer *infer, int routing)
{
    const int64_t n_experts = infer->attrs->i[0], rank = infer->attrs->i[1];
    const char *op = infer->op->name;
    if (n_experts < 1 || n_experts > 65536)
        return tp_fail(TALPA_E_ARGUMENT, "%s: n_experts is %lld, expected 1 to 65536", op, (long long)n_experts);
    if (rank < 1 || rank > 65536) return tp_fail(TALPA_E_ARGUMENT, "%s: rank is %lld, expected 1 to 65536", op, (long long)rank);
    if (!isfinite(infer->attrs->f[0]))
        return tp_fail(TALPA_E_ARGUMENT, "%s: scale is %g, expected a finite number", op, infer->attrs->f[0]);
    TP_TRY(tp_infer_expect(infer, TP_LORA_X, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, TP_LORA_Y0, 2, TALPA_F32));
    const struct tp_type *x = infer->in[TP_LORA_X], *y0 = infer->in[TP_LORA_Y0];
    const int64_t n_tokens = x->shape.dim[0];
    TP_TRY(expect_2d(infer, TP_LORA_Y0, TALPA_F32, x->rows, n_tokens, y0->shape.dim[1]));
    TP_TRY(expect_2d(infer, TP_LORA_A, TALPA_F32, TP_STEP_NONE, n_experts * rank, x->shape.dim[1]));
    TP_TRY(expect_2d(infer, TP_LORA_BT, TALPA_F32, TP_STEP_NONE, n_experts * rank, y0->shape.dim[1]));

    const int keep = routing + TP_LORA_KEEP - TP_LORA_WEIGHT;
    if (!(infer->attrs->f[1] >= 0 && infer->attrs->f[1] < 1))
        return tp_fail(TALPA_E_ARGUMENT, "%s: p is %g, expected 0 <= p < 1", op, infer->attrs->f[1]);
    if (keep < infer->n_in && infer->in[keep])
        TP_TRY(expect_2d(infer, keep, TALPA_I32, x->rows, n_tokens, tp_dropout_mask_words(x->shape.dim[1])));
    int n_given = 0;
    for (int i = routing; i < routing + 4; i++) n_given += i < infer->n_in && infer->in[i] != NULL;
    if (n_given == 0) return TALPA_OK;
    TP_TRY(expect_2d(infer, routing, TALPA_F32, x->rows, n_tokens, n_experts));
    TP_TRY(expect_2d(infer, routing + 1, TALPA_I32, x->rows, n_tokens, n_experts));
    TP_TRY(tp_infer_expect(infer, routing + 2, 1, TALPA_I32));
    if (infer->in[routing + 2]->shape.dim[0] != n_experts) return tp_infer_fail(infer, routing + 2, "[%lld]", (long long)n_experts);
    return expect_2d(infer, routing + 3, TALPA_I32, TP_STEP_NONE, n_experts, n_tokens);
}

double tp_lora_expert_kept(const struct tp_reference *r, int routing, int64_t t, int64_t k)
{
    const int keep = routing + TP_LORA_KEEP - TP_LORA_WEIGHT;
    const int64_t width = r->in_type[TP_LORA_X].shape.dim[1];
    const double *mask = keep < r->n_in ? r->in[keep] : NULL;
    return mask && !tp_dropout_mask_keeps(mask + t * tp_dropout_mask_words(width), k) ? 0 : r->in[TP_LORA_X][t * width + k];
}

double tp_lora_expert_scale(const struct tp_attrs *attrs) { return attrs->f[0] / (1 - attrs->f[1]); }

void tp_lora_expert_cost(const struct talpa_graph *graph, const struct tp_node *node, int products, double *flops, double *bytes)
{
    const struct tp_type *x = tp_graph_type(graph, node->in[TP_LORA_X]), *y0 = tp_graph_type(graph, node->in[TP_LORA_Y0]);
    const double t = (double)x->shape.dim[0], width = (double)(x->shape.dim[1] + y0->shape.dim[1]);
    const double n_all = (double)(node->attrs.i[0] * node->attrs.i[1]);
    *flops = 2 * products * t * n_all * width;
    *bytes = 4 * products * (t * width + n_all * width + 2 * t * n_all);
}

static enum talpa_status infer_forward(struct tp_infer *infer)
{
    TP_TRY(tp_lora_expert_check(infer, TP_LORA_WEIGHT));
    const struct tp_type *x = infer->in[TP_LORA_X];
    infer->out[0] = *infer->in[TP_LORA_Y0];
    infer->out[1] = tp_type_2d(TALPA_F32, x->rows, x->shape.dim[0], infer->attrs->i[0] * infer->attrs->i[1]);
    infer->n_out = 2;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (out_grads[0] == TP_NONE) return TALPA_OK;
    in_grads[TP_LORA_Y0] = out_grads[0];
    if (!wanted[TP_LORA_X] && !wanted[TP_LORA_A] && !wanted[TP_LORA_BT] && !(node->n_in > TP_LORA_WEIGHT && wanted[TP_LORA_WEIGHT]))
        return TALPA_OK;
    talpa_value in[TP_LORA_BACKWARD_N_IN] = {out_grads[0], node->in[TP_LORA_X], node->in[TP_LORA_A], node->in[TP_LORA_BT], node->out[1]};
    for (int i = TP_LORA_WEIGHT; i < TP_LORA_N_IN; i++) in[i + TP_LORA_BACKWARD_SHIFT] = i < node->n_in ? node->in[i] : TP_NONE;
    in[TP_LORA_ADDEND] = TP_NONE;
    talpa_value out[TP_MAX_OUT] = {TP_NONE, TP_NONE, TP_NONE, TP_NONE};
    TP_TRY(tp_graph_node(graph, &tp_op_lora_expert_backward, in, TP_LORA_BACKWARD_N_IN, &node->attrs, out));
    for (int i = 0; i < 4; i++)
        if (TP_LORA_X + i < node->n_in) in_grads[TP_LORA_X + i] = out[i];
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    tp_lora_expert_cost(graph, node, 1, flops, bytes);
}

/* Expert by expert, with each expert's own output. */
static void reference(const struct tp_reference *r)
{
    const int64_t n_tokens = r->in_type[TP_LORA_X].shape.dim[0], d_in = r->in_type[TP_LORA_X].shape.dim[1];
    const int64_t d_out = r->in_type[TP_LORA_Y0].shape.dim[1], n_experts = r->attrs->i[0], rank = r->attrs->i[1];
    const double *weight = r->n_in > TP_LORA_WEIGHT ? r->in[TP_LORA_WEIGHT] : NULL, *sel = weight ? r->in[TP_LORA_SEL] : NULL;
    const double scale = tp_lora_expert_scale(r->attrs);
    for (int64_t t = 0; t < n_tokens; t++) {
        double *y = r->out[0] + t * d_out, *z = r->out[1] + t * n_experts * rank;
        for (int64_t c = 0; c < d_out; c++) y[c] = r->in[TP_LORA_Y0][t * d_out + c];
        for (int64_t j = 0; j < n_experts * rank; j++) {
            z[j] = 0;
            for (int64_t k = 0; k < d_in; k++) z[j] += tp_lora_expert_kept(r, TP_LORA_WEIGHT, t, k) * r->in[TP_LORA_A][j * d_in + k];
        }
        for (int64_t e = 0; e < n_experts; e++) {
            if (sel && sel[t * n_experts + e] == 0) continue;
            for (int64_t c = 0; c < d_out; c++) {
                double own = 0;
                for (int64_t q = e * rank; q < (e + 1) * rank; q++) own += z[q] * r->in[TP_LORA_BT][q * d_out + c];
                y[c] += (weight ? weight[t * n_experts + e] : 1) * scale * own;
            }
        }
    }
}

void tp_lora_expert_route(double *const *in, int64_t bound, int64_t n_tokens, int64_t n_experts, int mode)
{
    double *weight = in[0], *sel = in[1], *counts = in[2], *list = in[3];
    for (int64_t e = 0; e < n_experts; e++) {
        counts[e] = 0;
        for (int64_t t = 0; t < bound; t++) list[e * bound + t] = -1;
        for (int64_t t = 0; t < n_tokens; t++) {
            const int64_t at = t * n_experts + e;
            if (mode == 1 && e == 0) sel[at] = 0;
            if (mode == 2) sel[at] = e == n_experts - 1;
            if (sel[at] == 0) weight[at] = 0;
            else list[e * bound + (int64_t)counts[e]++] = (double)t;
        }
    }
}

static const struct tp_variant variants[] = {
    {.tier = "cpu", .lower = tp_lora_expert_lower_cpu},
    {.tier = "generic", .lower = tp_lora_expert_lower_generic},
};

#define ROWS(t, n, size) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = size, .rows = TP_STEP_N_TOKENS, .dim = {t, n}, .grad = true}
#define MATRIX(m, n, size) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = size, .dim = {m, n}, .grad = true}
#define WEIGHT(t, e) {.dtype = TALPA_F32, .gen = TP_GEN_PROBABILITY, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, e}, .grad = true}
#define SEL(t, e, share) {.dtype = TALPA_I32, .gen = TP_GEN_SELECT, .scale = share, .rows = TP_STEP_N_TOKENS, .dim = {t, e}}
#define COUNTS(e) {.dtype = TALPA_I32, .gen = TP_GEN_ZERO, .dim = {e}}
#define KEEP(t, words) {.dtype = TALPA_I32, .gen = TP_GEN_INDEX, .scale = 2147483648.0, .rows = TP_STEP_N_TOKENS, .dim = {t, words}}
#define LIST(e, t) {.dtype = TALPA_I32, .gen = TP_GEN_ZERO, .dim = {e, t}}

#define LORA(title, t, k, n, r, used) \
    {.name = title, \
     .in = {ROWS(t, n, 1), ROWS(t, k, 1), MATRIX(r, k, 0.3), MATRIX(r, n, 0.3), {0}, {0}, {0}, {0}}, \
     .n_in = TP_LORA_N_IN, \
     .attrs = {.i = {1, r}, .f = {2}}, \
     .n_tokens = used, \
     .tolerance = 2e-5}
#define EXPERTS(title, t, k, n, e, r, share, used, is_sparse, route) \
    {.name = title, \
     .in = {ROWS(t, n, 1), ROWS(t, k, 1), MATRIX((e) * (r), k, 0.3), MATRIX((e) * (r), n, 0.3), WEIGHT(t, e), SEL(t, e, share), COUNTS(e), \
            LIST(e, t)}, \
     .n_in = TP_LORA_N_IN, \
     .attrs = {.i = {e, r}, .f = {2}}, \
     .n_tokens = used, \
     .tolerance = 2e-5, \
     .sparse = is_sparse, \
     .prepare = route}
#define DROPPED(title, is_sparse) \
    {.name = title, \
     .in = {ROWS(65, 130, 1), ROWS(65, 96, 1), MATRIX(16, 96, 0.3), MATRIX(16, 130, 0.3), WEIGHT(65, 4), SEL(65, 4, 0.5), COUNTS(4), \
            LIST(4, 65), KEEP(65, 16)}, \
     .n_in = TP_LORA_N_IN, \
     .attrs = {.i = {4, 4}, .f = {2, 0.5}}, \
     .tolerance = 5e-5, \
     .sparse = is_sparse, \
     .prepare = route_65_4}
#define BOTH(title, t, k, n, e, r, share, used, route) \
    EXPERTS(title ", dense", t, k, n, e, r, share, used, false, route), EXPERTS(title ", sparse", t, k, n, e, r, share, used, true, route)

#define ROUTE(function, bound, used, e, mode) \
    static void function(double *const *in) { tp_lora_expert_route(in + TP_LORA_WEIGHT, bound, used, e, mode); }
ROUTE(route_7_1, 7, 7, 1, 0)
ROUTE(route_65_4, 65, 65, 4, 0)
ROUTE(route_33_4_none, 33, 33, 4, 1)
ROUTE(route_33_8_last, 33, 33, 8, 2)
ROUTE(route_50_29_8, 50, 29, 8, 0)
ROUTE(route_17_3, 17, 17, 3, 0)
ROUTE(route_40_8, 40, 40, 8, 0)
ROUTE(route_130_3_8, 130, 3, 8, 0)

static const struct tp_case cases[] = {
    LORA("LoRA of one", 1, 1, 1, 1, 0),
    LORA("LoRA", 65, 96, 64, 8, 0),
    LORA("LoRA, odd, fewer rows", 33, 37, 131, 3, 18),
    BOTH("one expert", 7, 33, 35, 1, 2, 0.5, 0, route_7_1),
    BOTH("rank 4", 65, 64, 96, 4, 4, 0.5, 0, route_65_4),
    BOTH("an expert without token", 33, 65, 40, 4, 2, 0.4, 0, route_33_4_none),
    BOTH("all on one", 33, 48, 257, 8, 1, 0.5, 0, route_33_8_last),
    BOTH("fewer rows", 50, 19, 128, 8, 3, 0.25, 29, route_50_29_8),
    BOTH("odd", 17, 7, 5, 3, 5, 0.5, 0, route_17_3),
    BOTH("rank 8, two of eight", 40, 160, 224, 8, 8, 0.25, 0, route_40_8),
    {.name = "LoRA, dropout",
     .in = {ROWS(40, 67, 1), ROWS(40, 530, 0.3), MATRIX(5, 530, 0.3), MATRIX(5, 67, 0.3), {0}, {0}, {0}, {0}, KEEP(40, 32)},
     .n_in = TP_LORA_N_IN, .attrs = {.i = {1, 5}, .f = {2, 0.25}}, .n_tokens = 33, .tolerance = 5e-5},
    {.name = "LoRA, dropout, few rows",
     .in = {ROWS(5, 9, 1), ROWS(5, 21, 0.3), MATRIX(3, 21, 0.3), MATRIX(3, 9, 0.3), {0}, {0}, {0}, {0}, KEEP(5, 16)},
     .n_in = TP_LORA_N_IN, .attrs = {.i = {1, 3}, .f = {2, 0.25}}, .n_tokens = 4, .tolerance = 5e-5},
    DROPPED("dropout, dense", false),
    DROPPED("dropout, sparse", true),
    LORA("LoRA, 3 rows of 130", 130, 40, 33, 8, 3),
    BOTH("3 rows of 130", 130, 33, 40, 8, 4, 0.25, 3, route_130_3_8),
};

const struct tp_op tp_op_lora_expert = {
    .name = "lora_expert",
    .in_names = {"y0", "x", "lora_a", "lora_bt", "weight?", "sel?", "counts?", "list?", "keep?"},
    .attr_i = {"n_experts", "rank"},
    .attr_f = {"scale", "p"},
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1 + TP_LORA_Y0},
    .opaque = {false, true},
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};
