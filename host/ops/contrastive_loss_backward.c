/* Gradients of contrastive_loss from what its forward part found, times dloss: dx (added to `addend`), dlora_a, dlora_bt and, for gated
 * outputs, dweight. */
#include "ops/contrastive_loss.h"

static enum talpa_status infer(struct tp_infer *request)
{
    TP_TRY(tp_contrast_check(request));
    const int64_t n_experts = request->attrs->i[TP_CONTRAST_EXPERTS], rank = request->attrs->i[TP_CONTRAST_RANK];
    const struct tp_type *x = request->in[TP_CONTRAST_X];
    const int64_t places = tp_contrast_places(request->attrs, x->shape.dim[0]);
    const struct tp_type want[] = {tp_type_1d(TALPA_I32, TP_STEP_NONE, 2 * n_experts + places),
                                   tp_type_2d(TALPA_F32, TP_STEP_NONE, places, rank + 1),
                                   tp_type_2d(TALPA_F32, TP_STEP_NONE, n_experts * rank, n_experts * rank),
                                   tp_type_1d(TALPA_F32, TP_STEP_NONE, 1),
                                   tp_type_2d(TALPA_F32, x->rows, x->shape.dim[0], n_experts),
                                   *x};
    for (int i = TP_CONTRAST_BACK_ITEMS; i < TP_CONTRAST_BACK_N_IN; i++) {
        if (i >= TP_CONTRAST_BACK_WEIGHT && (i >= request->n_in || !request->in[i])) continue;
        TP_TRY(tp_infer_expect(request, i, 0, TALPA_N_DTYPES));
        if (!tp_type_equal(request->in[i], &want[i - TP_CONTRAST_BACK_ITEMS]))
            return tp_infer_fail(request, i, "the type of contrastive_loss");
    }
    for (int i = 0; i < 3; i++) request->out[i] = *request->in[TP_CONTRAST_X + i];
    request->n_out = 3;
    if (request->n_in > TP_CONTRAST_BACK_WEIGHT && request->in[TP_CONTRAST_BACK_WEIGHT])
        request->out[request->n_out++] = *request->in[TP_CONTRAST_BACK_WEIGHT];
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *x = tp_graph_type(graph, node->in[TP_CONTRAST_X]), *bt = tp_graph_type(graph, node->in[TP_CONTRAST_BT]);
    const double n = (double)tp_contrast_places(&node->attrs, x->shape.dim[0]), rank = (double)node->attrs.i[TP_CONTRAST_RANK];
    const double n_all = (double)bt->shape.dim[0], d_in = (double)x->shape.dim[1], d_out = (double)bt->shape.dim[1];
    *flops = 4 * n * rank * d_in + 2 * n_all * n_all * d_out;
    *bytes = 4 * ((double)tp_type_elements(x) + n * d_in + 2 * n_all * (d_in + d_out));
}

static void reference(const struct tp_reference *r)
{
    const int64_t n_experts = r->attrs->i[TP_CONTRAST_EXPERTS], rank = r->attrs->i[TP_CONTRAST_RANK], n_all = n_experts * rank;
    const int64_t n_tokens = r->in_type[TP_CONTRAST_X].shape.dim[0], d_in = r->in_type[TP_CONTRAST_X].shape.dim[1];
    const int64_t d_out = r->in_type[TP_CONTRAST_BT].shape.dim[1];
    const double seed = r->in[TP_CONTRAST_BACK_DLOSS][0], *items = r->in[TP_CONTRAST_BACK_ITEMS], *dz = r->in[TP_CONTRAST_BACK_DZ];
    const double *x = r->in[TP_CONTRAST_X], *a = r->in[TP_CONTRAST_A], *bt = r->in[TP_CONTRAST_BT], *w = r->in[TP_CONTRAST_BACK_W];
    const double *addend = r->n_in > TP_CONTRAST_BACK_ADDEND ? r->in[TP_CONTRAST_BACK_ADDEND] : NULL;
    for (int64_t i = 0; i < n_tokens * d_in; i++) r->out[0][i] = addend ? addend[i] : 0;
    for (int64_t i = 0; i < n_all * d_in; i++) r->out[1][i] = 0;
    for (int64_t i = 0; r->n_out > 3 && i < n_tokens * n_experts; i++) r->out[3][i] = 0;
    for (int64_t j = 0; j < n_all; j++) {
        for (int64_t c = 0; c < d_out; c++) {
            double sum = 0;
            for (int64_t k = 0; k < n_all; k++) sum += w[j * n_all + k] * bt[k * d_out + c];
            r->out[2][j * d_out + c] = seed * sum;
        }
    }
    for (int64_t e = 0; e < n_experts; e++) {
        for (int64_t p = (int64_t)items[2 * e]; p < (int64_t)(items[2 * e] + items[2 * e + 1]); p++) {
            const int64_t t = (int64_t)items[2 * n_experts + p];
            if (r->n_out > 3) r->out[3][t * n_experts + e] = seed * dz[p * (rank + 1) + rank];
            for (int64_t q = 0; q < rank; q++) {
                const double d = seed * dz[p * (rank + 1) + q];
                for (int64_t k = 0; k < d_in; k++) {
                    r->out[0][t * d_in + k] += d * a[(e * rank + q) * d_in + k];
                    r->out[1][(e * rank + q) * d_in + k] += d * x[t * d_in + k];
                }
            }
        }
    }
}

#define ROWS(t, k)                                                                                                                         \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = { t, k }                                    \
    }
#define MATRIX(m, n)                                                                                                                       \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 0.3, .dim = { m, n }                                                            \
    }
#define ITEMS(n)                                                                                                                           \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .gen = TP_GEN_INDEX, .scale = 1048576, .dim = { n }                                                            \
    }
#define ONE                                                                                                                                \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 1, .dim = { 1 }                                                                 \
    }
#define NONE                                                                                                                               \
    {                                                                                                                                      \
        0                                                                                                                                  \
    }

/* Experts with room for `places` / n_experts items each take the tokens of every third random number; the last expert takes none. */
static void lay_out(double *items, int64_t n_experts, int64_t places, int64_t n_tokens)
{
    const int64_t room = places / n_experts;
    for (int64_t e = 0; e < n_experts; e++) {
        int64_t count = 0;
        for (int64_t t = 0; t < n_tokens && e + 1 < n_experts; t++) {
            const int64_t random = (int64_t)items[2 * n_experts + (e * 31 + t) % places];
            if ((random > 0 ? random : t) % 3 == 0 && count < room) items[2 * n_experts + e * room + count++] = (double)t;
        }
        for (int64_t i = count; i < room; i++) items[2 * n_experts + e * room + i] = -1;
        items[2 * e] = (double)(e * room);
        items[2 * e + 1] = (double)count;
    }
}
static void items_4_64_50(double *const *in) { lay_out(in[TP_CONTRAST_BACK_ITEMS], 4, 64, 50); }
static void items_3_48_20(double *const *in) { lay_out(in[TP_CONTRAST_BACK_ITEMS], 3, 48, 20); }
static void items_8_256_200(double *const *in) { lay_out(in[TP_CONTRAST_BACK_ITEMS], 8, 256, 200); }

#define CASE(title, t, k, n, e, r, m, places, used, lay, weight, add)                                                                      \
    {                                                                                                                                      \
        .name = title,                                                                                                                     \
        .in = {ROWS(t, k),                                                                                                                 \
               MATRIX((e) * (r), k),                                                                                                       \
               MATRIX((e) * (r), n),                                                                                                       \
               ITEMS(2 * (e) + (places)),                                                                                                  \
               MATRIX(places, (r) + 1),                                                                                                    \
               MATRIX((e) * (r), (e) * (r)),                                                                                               \
               ONE,                                                                                                                        \
               weight,                                                                                                                     \
               add},                                                                                                                       \
        .n_in = TP_CONTRAST_BACK_N_IN, .attrs = {.i = {e, r, m, 1, 0}, .f = {2, 0.5}}, .n_tokens = used, .tolerance = 2e-5, .prepare = lay \
    }

static const struct tp_case cases[] = {
    CASE("odd", 50, 37, 21, 4, 3, 16, 64, 0, items_4_64_50, NONE, NONE),
    CASE("added to, fewer rows", 33, 65, 131, 3, 5, 9, 48, 20, items_3_48_20, NONE, ROWS(33, 65)),
    CASE("gated", 50, 16, 64, 4, 1, 13, 64, 0, items_4_64_50, ROWS(50, 4), ROWS(50, 16)),
    CASE("m 32 of 8 experts", 200, 160, 96, 8, 4, 32, 256, 0, items_8_256_200, NONE, ROWS(200, 160)),
};

static const struct tp_variant variants[] = {
    {.tier = "cpu", .lower = tp_contrast_lower_cpu_backward},
    {.tier = "generic", .lower = tp_contrast_lower_generic_backward},
};

const struct tp_op tp_op_contrastive_loss_backward = {
    .name = "contrastive_loss_backward",
    .in_names = {"x", "lora_a", "lora_bt", "items", "dz", "w", "dloss", "weight?", "addend?"},
    .attr_i = {"n_experts", "rank", "n_samples", "normalise", "max_per_token"},
    .attr_f = {"scale", "temperature"},
    .infer = infer,
    .no_gradient = "it is a gradient itself",
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1 + TP_CONTRAST_BACK_ADDEND},
    .addend = 1 + TP_CONTRAST_BACK_ADDEND,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};
