/* Gradient of the mixture of LoRA experts, with V = dy Bt^T and s = scale * weight (scale alone without weight):
 *   dweight_e = scale * <V_e, z_e> where sel, 0 elsewhere; dlora_a = (s V)^T x; dlora_bt = (s z)^T dy; dx = (s V) A.
 * An expert without a token gets exact zeros. */
#include "ops/dropout_mask.h"
#include "ops/lora_expert.h"

enum { ROUTING = TP_LORA_WEIGHT + TP_LORA_BACKWARD_SHIFT };

static enum talpa_status infer(struct tp_infer *request)
{
    TP_TRY(tp_lora_expert_check(request, ROUTING));
    const struct tp_type *x = request->in[TP_LORA_X];
    const struct tp_type z = tp_type_2d(TALPA_F32, x->rows, x->shape.dim[0], request->attrs->i[0] * request->attrs->i[1]);
    TP_TRY(tp_infer_expect(request, TP_LORA_Z, 2, TALPA_F32));
    if (request->n_in > TP_LORA_ADDEND && request->in[TP_LORA_ADDEND] && !tp_type_equal(request->in[TP_LORA_ADDEND], x))
        return tp_infer_fail(request, TP_LORA_ADDEND, "the type of x");
    if (!tp_type_equal(request->in[TP_LORA_Z], &z)) return tp_infer_fail(request, TP_LORA_Z, "output 1 of lora_expert");
    request->out[0] = *x;
    request->out[1] = *request->in[TP_LORA_A];
    request->out[2] = *request->in[TP_LORA_BT];
    request->n_out = 3;
    if (request->n_in > ROUTING && request->in[ROUTING]) request->out[request->n_out++] = *request->in[ROUTING];
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    tp_lora_expert_cost(graph, node, 2, flops, bytes);
}

static void reference(const struct tp_reference *r)
{
    const int64_t n_tokens = r->in_type[TP_LORA_X].shape.dim[0], d_in = r->in_type[TP_LORA_X].shape.dim[1];
    const int64_t d_out = r->in_type[TP_LORA_DY].shape.dim[1], n_experts = r->attrs->i[0], rank = r->attrs->i[1], n_all = n_experts * rank;
    const double *dy = r->in[TP_LORA_DY], *a = r->in[TP_LORA_A], *bt = r->in[TP_LORA_BT], *z = r->in[TP_LORA_Z];
    const double *weight = r->n_in > ROUTING ? r->in[ROUTING] : NULL, *sel = weight ? r->in[ROUTING + 1] : NULL;
    const double scale = tp_lora_expert_scale(r->attrs), *addend = r->n_in > TP_LORA_ADDEND ? r->in[TP_LORA_ADDEND] : NULL;
    const double *keep = r->n_in > ROUTING + 4 ? r->in[ROUTING + 4] : NULL;
    for (int64_t i = 0; i < n_tokens * d_in; i++) r->out[0][i] = addend ? addend[i] : 0;
    for (int64_t i = 0; i < n_all * d_in; i++) r->out[1][i] = 0;
    for (int64_t i = 0; i < n_all * d_out; i++) r->out[2][i] = 0;
    for (int64_t i = 0; weight && i < n_tokens * n_experts; i++) r->out[3][i] = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t j = 0; j < n_all; j++) {
            const int64_t at = t * n_experts + j / rank;
            if (sel && sel[at] == 0) continue;
            const double s = weight ? scale * weight[at] : scale;
            double v = 0;
            for (int64_t c = 0; c < d_out; c++) {
                v += dy[t * d_out + c] * bt[j * d_out + c];
                r->out[2][j * d_out + c] += s * z[t * n_all + j] * dy[t * d_out + c];
            }
            if (weight) r->out[3][at] += scale * v * z[t * n_all + j];
            for (int64_t k = 0; k < d_in; k++) {
                r->out[1][j * d_in + k] += s * v * tp_lora_expert_kept(r, ROUTING, t, k);
                if (!keep || tp_dropout_mask_keeps(keep + t * tp_dropout_mask_words(d_in), k))
                    r->out[0][t * d_in + k] += s * v * a[j * d_in + k];
            }
        }
    }
}

static const struct tp_variant variants[] = {
    {.tier = "cpu", .lower = tp_lora_expert_lower_cpu_backward},
    {.tier = "generic", .lower = tp_lora_expert_lower_generic_backward},
};

#define ROWS(t, n, size) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = size, .rows = TP_STEP_N_TOKENS, .dim = {t, n}}
#define MATRIX(m, n, size) {.dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = size, .dim = {m, n}}
#define WEIGHT(t, e) {.dtype = TALPA_F32, .gen = TP_GEN_PROBABILITY, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, e}}
#define SEL(t, e, share) {.dtype = TALPA_I32, .gen = TP_GEN_SELECT, .scale = share, .rows = TP_STEP_N_TOKENS, .dim = {t, e}}
#define COUNTS(e) {.dtype = TALPA_I32, .gen = TP_GEN_ZERO, .dim = {e}}
#define KEEP(t, words) {.dtype = TALPA_I32, .gen = TP_GEN_INDEX, .scale = 2147483648.0, .rows = TP_STEP_N_TOKENS, .dim = {t, words}}
#define LIST(e, t) {.dtype = TALPA_I32, .gen = TP_GEN_ZERO, .dim = {e, t}}

#define EXPERTS(title, t, k, n, e, r, share, used, is_sparse, route) \
    {.name = title, \
     .in = {ROWS(t, n, 0.3), ROWS(t, k, 0.3), MATRIX((e) * (r), k, 0.3), MATRIX((e) * (r), n, 0.3), ROWS(t, (e) * (r), 1), WEIGHT(t, e), \
            SEL(t, e, share), COUNTS(e), LIST(e, t)}, \
     .n_in = TP_LORA_BACKWARD_N_IN, \
     .attrs = {.i = {e, r}, .f = {2}}, \
     .n_tokens = used, \
     .tolerance = 2e-5, \
     .sparse = is_sparse, \
     .prepare = route}
#define DROPPED(title, is_sparse) \
    {.name = title, \
     .in = {ROWS(130, 160, 0.3), ROWS(130, 576, 0.3), MATRIX(32, 576, 0.3), MATRIX(32, 160, 0.3), ROWS(130, 32, 1), WEIGHT(130, 8), \
            SEL(130, 8, 0.5), COUNTS(8), LIST(8, 130), KEEP(130, 32), ROWS(130, 576, 1)}, \
     .n_in = TP_LORA_BACKWARD_N_IN, \
     .attrs = {.i = {8, 4}, .f = {2, 0.25}}, \
     .n_tokens = 71, \
     .tolerance = 2e-5, \
     .sparse = is_sparse, \
     .prepare = route_130_71_8}
#define BOTH(title, t, k, n, e, r, share, used, route) \
    EXPERTS(title ", dense", t, k, n, e, r, share, used, false, route), EXPERTS(title ", sparse", t, k, n, e, r, share, used, true, route)

static void route_33_4_none(double *const *in) { tp_lora_expert_route(in + ROUTING, 33, 33, 4, 1); }
static void route_65_8_last(double *const *in) { tp_lora_expert_route(in + ROUTING, 65, 65, 8, 2); }
static void route_130_71_8(double *const *in) { tp_lora_expert_route(in + ROUTING, 130, 71, 8, 0); }
static void route_130_3_8(double *const *in) { tp_lora_expert_route(in + ROUTING, 130, 3, 8, 0); }

static const struct tp_case cases[] = {
    {.name = "LoRA",
     .in = {ROWS(65, 64, 0.3), ROWS(65, 96, 0.3), MATRIX(8, 96, 0.3), MATRIX(8, 64, 0.3), ROWS(65, 8, 1), {0}, {0}, {0}, {0}},
     .n_in = TP_LORA_BACKWARD_N_IN,
     .attrs = {.i = {1, 8}, .f = {2}},
     .n_tokens = 44,
     .tolerance = 2e-5},
    BOTH("an expert without token", 33, 65, 40, 4, 3, 0.4, 0, route_33_4_none),
    BOTH("all on one", 65, 96, 33, 8, 4, 0.5, 0, route_65_8_last),
    BOTH("two of eight, fewer rows", 130, 192, 160, 8, 8, 0.25, 71, route_130_71_8),
    DROPPED("dropout, added to, dense", false),
    DROPPED("dropout, added to, sparse", true),
    {.name = "LoRA, dropout",
     .in = {ROWS(44, 64, 0.3), ROWS(44, 535, 0.3), MATRIX(8, 535, 0.3), MATRIX(8, 64, 0.3), ROWS(44, 8, 1), {0}, {0}, {0}, {0}, KEEP(44, 32)},
     .n_in = TP_LORA_BACKWARD_N_IN,
     .attrs = {.i = {1, 8}, .f = {2, 0.125}},
     .n_tokens = 43,
     .tolerance = 2e-5},
    BOTH("3 rows of 130", 130, 33, 40, 8, 4, 0.25, 3, route_130_3_8),
};

const struct tp_op tp_op_lora_expert_backward = {
    .name = "lora_expert_backward",
    .in_names = {"dy", "x", "lora_a", "lora_bt", "z", "weight?", "sel?", "counts?", "list?", "keep?", "addend?"},
    .attr_i = {"n_experts", "rank"},
    .attr_f = {"scale", "p"},
    .infer = infer,
    .no_gradient = "it is a gradient itself",
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1 + TP_LORA_ADDEND},
    .addend = 1 + TP_LORA_ADDEND,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};
