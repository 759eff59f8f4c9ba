/* Contrastive loss among the outputs of experts (InfoNCE; a reconstruction of MoELoRA's, arXiv 2402.12851, whose text says no more than
 * that outputs of the same expert are positives and those of other experts negatives). The outputs themselves are never made: with gram =
 * lora_bt lora_bt^T, <o_a, o_b> = scale^2 z_a^T gram[i, j] z_b for z = A_e x, and what is needed of the gradient stays in that form. */
#include "ops/contrastive_loss.h"

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"

enum talpa_status talpa_contrastive_loss(talpa_value *loss, struct talpa_graph *graph, talpa_value x, talpa_value lora_a,
                                         talpa_value lora_bt, talpa_value counts, talpa_value list, talpa_value examples,
                                         talpa_value positions, talpa_value weight, const struct talpa_contrast *contrast)
{
    const talpa_value in[TP_CONTRAST_N_IN] = {x, lora_a, lora_bt, counts, list, examples, positions, weight};
    const struct tp_attrs attrs = {.i = {[TP_CONTRAST_EXPERTS] = contrast->n_experts,
                                         [TP_CONTRAST_RANK] = contrast->rank,
                                         [TP_CONTRAST_SAMPLES] = contrast->n_samples,
                                         [TP_CONTRAST_NORMALISE] = contrast->normalise,
                                         [TP_CONTRAST_PER_TOKEN] = contrast->max_per_token},
                                   .f = {(double)contrast->scale, (double)contrast->temperature},
                                   .key = contrast->stream};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_contrastive_loss, in, TP_CONTRAST_N_IN, &attrs, out));
    *loss = out[TP_CONTRAST_LOSS];
    return TALPA_OK;
}

static int64_t blocks(int64_t n) { return (n + TP_CONTRAST_BLOCK - 1) / TP_CONTRAST_BLOCK; }

int64_t tp_contrast_places(const struct tp_attrs *attrs, int64_t n_tokens)
{
    const int64_t n_experts = attrs->i[TP_CONTRAST_EXPERTS], samples = attrs->i[TP_CONTRAST_SAMPLES];
    const int64_t per_token = attrs->i[TP_CONTRAST_PER_TOKEN] ? attrs->i[TP_CONTRAST_PER_TOKEN] : n_experts;
    const int64_t by_samples = n_experts * blocks(samples && samples < n_tokens ? samples : n_tokens);
    const int64_t by_tokens = blocks(n_tokens * per_token) + n_experts;
    return TP_CONTRAST_BLOCK * (by_samples < by_tokens ? by_samples : by_tokens);
}

/* ---- types ---- */

static enum talpa_status expect(const struct tp_infer *infer, int operand, enum talpa_dtype dtype, int64_t n, int64_t m)
{
    TP_TRY(tp_infer_expect(infer, operand, 2, dtype));
    const struct tp_type want = tp_type_2d(dtype, TP_STEP_NONE, n, m);
    return tp_type_equal(infer->in[operand], &want) ? TALPA_OK : tp_infer_fail(infer, operand, "[%lld, %lld]", (long long)n, (long long)m);
}

enum talpa_status tp_contrast_check(const struct tp_infer *infer)
{
    const int64_t *attr = infer->attrs->i, n_experts = attr[TP_CONTRAST_EXPERTS], rank = attr[TP_CONTRAST_RANK];
    const char *op = infer->op->name;
    if (n_experts < 1 || n_experts > 256)
        return tp_fail(TALPA_E_ARGUMENT, "%s: n_experts is %lld, expected 1 to 256", op, (long long)n_experts);
    if (rank < 1 || rank > 4096) return tp_fail(TALPA_E_ARGUMENT, "%s: rank is %lld, expected 1 to 4096", op, (long long)rank);
    if (attr[TP_CONTRAST_SAMPLES] < 0 || attr[TP_CONTRAST_PER_TOKEN] < 0 || attr[TP_CONTRAST_PER_TOKEN] > n_experts)
        return tp_fail(TALPA_E_ARGUMENT, "%s: n_samples is %lld and max_per_token %lld, expected at least 0, the latter at most %lld", op,
                       (long long)attr[TP_CONTRAST_SAMPLES], (long long)attr[TP_CONTRAST_PER_TOKEN], (long long)n_experts);
    if (!(infer->attrs->f[0] > 0.0 && isfinite(infer->attrs->f[0])) || !(infer->attrs->f[1] > 0.0 && isfinite(infer->attrs->f[1])))
        return tp_fail(TALPA_E_ARGUMENT, "%s: scale is %g and temperature %g, expected numbers above 0", op, infer->attrs->f[0],
                       infer->attrs->f[1]);
    TP_TRY(tp_infer_expect(infer, TP_CONTRAST_X, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, TP_CONTRAST_BT, 2, TALPA_F32));
    TP_TRY(expect(infer, TP_CONTRAST_A, TALPA_F32, n_experts * rank, infer->in[TP_CONTRAST_X]->shape.dim[1]));
    return expect(infer, TP_CONTRAST_BT, TALPA_F32, n_experts * rank, infer->in[TP_CONTRAST_BT]->shape.dim[1]);
}

static enum talpa_status infer_loss(struct tp_infer *infer)
{
    TP_TRY(tp_contrast_check(infer));
    const int64_t n_experts = infer->attrs->i[TP_CONTRAST_EXPERTS], rank = infer->attrs->i[TP_CONTRAST_RANK];
    const struct tp_type *x = infer->in[TP_CONTRAST_X];
    const int64_t n_tokens = x->shape.dim[0], places = tp_contrast_places(infer->attrs, n_tokens);
    TP_TRY(tp_infer_expect(infer, TP_CONTRAST_COUNTS, 1, TALPA_I32));
    if (infer->in[TP_CONTRAST_COUNTS]->shape.dim[0] != n_experts)
        return tp_infer_fail(infer, TP_CONTRAST_COUNTS, "[%lld]", (long long)n_experts);
    TP_TRY(expect(infer, TP_CONTRAST_LIST, TALPA_I32, n_experts, n_tokens));
    for (int i = TP_CONTRAST_EXAMPLES; i <= TP_CONTRAST_POSITIONS; i++) {
        TP_TRY(tp_infer_expect(infer, i, 1, TALPA_I32));
        if (infer->in[i]->rows != x->rows || infer->in[i]->shape.dim[0] != n_tokens)
            return tp_infer_fail(infer, i, "[%lld], one number per row of x", (long long)n_tokens);
    }
    if (infer->n_in > TP_CONTRAST_WEIGHT && infer->in[TP_CONTRAST_WEIGHT]) {
        const struct tp_type want = tp_type_2d(TALPA_F32, x->rows, n_tokens, n_experts);
        if (!tp_type_equal(infer->in[TP_CONTRAST_WEIGHT], &want))
            return tp_infer_fail(infer, TP_CONTRAST_WEIGHT, "[%lld, %lld] with the run-time rows of x", (long long)n_tokens,
                                 (long long)n_experts);
    }
    infer->out[TP_CONTRAST_LOSS] = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    infer->out[TP_CONTRAST_ITEMS] = tp_type_1d(TALPA_I32, TP_STEP_NONE, 2 * n_experts + places);
    infer->out[TP_CONTRAST_DZ] = tp_type_2d(TALPA_F32, TP_STEP_NONE, places, rank + 1);
    infer->out[TP_CONTRAST_W] = tp_type_2d(TALPA_F32, TP_STEP_NONE, n_experts * rank, n_experts * rank);
    infer->n_out = 4;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    const bool gated = node->n_in > TP_CONTRAST_WEIGHT && node->in[TP_CONTRAST_WEIGHT] != TP_NONE;
    if (out_grads[TP_CONTRAST_LOSS] == TP_NONE) return TALPA_OK;
    if (!wanted[TP_CONTRAST_X] && !wanted[TP_CONTRAST_A] && !wanted[TP_CONTRAST_BT] && !(gated && wanted[TP_CONTRAST_WEIGHT]))
        return TALPA_OK;
    const talpa_value in[TP_CONTRAST_BACK_N_IN] = {node->in[TP_CONTRAST_X],
                                                   node->in[TP_CONTRAST_A],
                                                   node->in[TP_CONTRAST_BT],
                                                   node->out[TP_CONTRAST_ITEMS],
                                                   node->out[TP_CONTRAST_DZ],
                                                   node->out[TP_CONTRAST_W],
                                                   out_grads[TP_CONTRAST_LOSS],
                                                   gated ? node->in[TP_CONTRAST_WEIGHT] : TP_NONE,
                                                   TP_NONE};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_contrastive_loss_backward, in, TP_CONTRAST_BACK_N_IN, &node->attrs, out));
    for (int i = 0; i < 3; i++) in_grads[TP_CONTRAST_X + i] = out[i];
    if (gated) in_grads[TP_CONTRAST_WEIGHT] = out[3];
    return TALPA_OK;
}

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *x = tp_graph_type(graph, node->in[TP_CONTRAST_X]), *bt = tp_graph_type(graph, node->in[TP_CONTRAST_BT]);
    const double n = (double)tp_contrast_places(&node->attrs, x->shape.dim[0]), n_all = (double)bt->shape.dim[0];
    const double rank = (double)node->attrs.i[TP_CONTRAST_RANK], width = (double)x->shape.dim[1];
    *flops = n * n * (6 * rank + 60) + 2 * n_all * n_all * (double)bt->shape.dim[1] + 2 * n * rank * width;
    *bytes = 4 * (n * (width + 4 * n_all) + n_all * (double)(x->shape.dim[1] + bt->shape.dim[1]));
}

/* ---- reference: the outputs themselves, all pairs ---- */

struct items {
    int64_t n, n_experts, rank, d_out, places;
    int64_t *place, *expert, *token;                        /* [n] of those that take part */
    double *z, *o, *unit, *length, *omega, *similarity, *c; /* rows of n */
};

struct candidate {
    uint64_t key;
    int64_t token;
};

static int by_key(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key ? 1 : x->token < y->token ? -1 : x->token > y->token;
}
static int by_token(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->token < y->token ? -1 : x->token > y->token;
}

/* Fills output 1. */
static void reference_sample(const struct tp_reference *r)
{
    const int64_t n_experts = r->attrs->i[TP_CONTRAST_EXPERTS], bound = r->in_type[TP_CONTRAST_LIST].shape.dim[1];
    const int64_t places = tp_contrast_places(r->attrs, bound), most = r->attrs->i[TP_CONTRAST_SAMPLES];
    const uint32_t key[2] = {r->step->word[TP_STEP_SEED_LO] ^ (uint32_t)r->attrs->key,
                             r->step->word[TP_STEP_SEED_HI] ^ (uint32_t)(r->attrs->key >> 32)};
    struct candidate *candidates = malloc(((size_t)bound + 1) * sizeof *candidates);
    double *items = r->out[TP_CONTRAST_ITEMS];
    int64_t first = 0;
    for (int64_t p = 0; p < places; p++) items[2 * n_experts + p] = -1;
    for (int64_t e = 0; e < n_experts && candidates; e++) {
        const int64_t count = (int64_t)r->in[TP_CONTRAST_COUNTS][e], taken = most && most < count ? most : count;
        for (int64_t k = 0; k < count; k++) {
            const int64_t t = (int64_t)r->in[TP_CONTRAST_LIST][e * bound + k];
            const uint32_t counter[4] = {(uint32_t)e, (uint32_t)r->in[TP_CONTRAST_POSITIONS][t], (uint32_t)r->in[TP_CONTRAST_EXAMPLES][t],
                                         r->step->word[TP_STEP_INDEX]};
            uint32_t words[4];
            tp_rng_philox(words, counter, key);
            candidates[k] = (struct candidate){(uint64_t)words[0] << 32 | words[1], t};
        }
        qsort(candidates, (size_t)count, sizeof *candidates, by_key);
        qsort(candidates, (size_t)taken, sizeof *candidates, by_token);
        for (int64_t k = 0; k < taken; k++) items[2 * n_experts + first + k] = (double)candidates[k].token;
        items[2 * e] = (double)first;
        items[2 * e + 1] = (double)taken;
        first += TP_CONTRAST_BLOCK * blocks(taken);
    }
    free(candidates);
}

/* The items that take part, with their outputs and similarities. */
static void reference_outputs(const struct tp_reference *r, struct items *s)
{
    const int64_t d_in = r->in_type[TP_CONTRAST_X].shape.dim[1], rank = s->rank, d_out = s->d_out;
    const double scale = r->attrs->f[0], *items = r->out[TP_CONTRAST_ITEMS];
    const double *weight = r->n_in > TP_CONTRAST_WEIGHT ? r->in[TP_CONTRAST_WEIGHT] : NULL;
    for (int64_t e = 0; e < s->n_experts; e++) {
        for (int64_t p = (int64_t)items[2 * e]; p < (int64_t)(items[2 * e] + items[2 * e + 1]); p++) {
            const int64_t t = (int64_t)items[2 * s->n_experts + p], n = s->n;
            double square = 0;
            s->omega[n] = weight ? weight[t * s->n_experts + e] : 1;
            for (int64_t c = 0; c < d_out; c++) s->o[n * d_out + c] = 0;
            for (int64_t q = 0; q < rank; q++) {
                double z = 0;
                for (int64_t k = 0; k < d_in; k++)
                    z += r->in[TP_CONTRAST_X][t * d_in + k] * r->in[TP_CONTRAST_A][(e * rank + q) * d_in + k];
                s->z[n * rank + q] = z;
                for (int64_t c = 0; c < d_out; c++)
                    s->o[n * d_out + c] += scale * s->omega[n] * z * r->in[TP_CONTRAST_BT][(e * rank + q) * d_out + c];
            }
            for (int64_t c = 0; c < d_out; c++) square += s->o[n * d_out + c] * s->o[n * d_out + c];
            const bool normalise = r->attrs->i[TP_CONTRAST_NORMALISE] != 0;
            if (normalise && sqrt(square) <= 1e-8) continue;
            s->length[n] = normalise ? sqrt(square) : 1;
            for (int64_t c = 0; c < d_out; c++) s->unit[n * d_out + c] = s->o[n * d_out + c] / s->length[n];
            s->place[n] = p;
            s->expert[n] = e;
            s->token[n] = t;
            s->n++;
        }
    }
    for (int64_t a = 0; a < s->n; a++) {
        for (int64_t b = 0; b < s->n; b++) {
            double sum = 0;
            for (int64_t c = 0; c < d_out; c++) sum += s->unit[a * d_out + c] * s->unit[b * d_out + c];
            s->similarity[a * s->n + b] = sum / r->attrs->f[1];
            s->c[a * s->n + b] = 0;
        }
    }
}

/* Loss, and its derivative by every similarity. */
static double reference_pairs(struct items *s)
{
    double loss = 0;
    int64_t n_anchors = 0;
    for (int64_t a = 0; a < s->n; a++) {
        const double *row = s->similarity + a * s->n;
        double top = -INFINITY, sum = 0, share = 0;
        int64_t n_positive = 0;
        for (int64_t b = 0; b < s->n; b++) {
            if (s->expert[b] == s->expert[a])
                n_positive += b != a;
            else if (row[b] > top)
                top = row[b];
        }
        if (!n_positive || top == -INFINITY) continue;
        n_anchors++;
        for (int64_t b = 0; b < s->n; b++)
            if (s->expert[b] != s->expert[a]) sum += exp(row[b] - top);
        const double lse = top + log(sum);
        for (int64_t b = 0; b < s->n; b++) {
            if (s->expert[b] != s->expert[a] || b == a) continue;
            const double t = lse - row[b], sigmoid = 1 / (1 + exp(-t));
            loss += ((t > 0 ? t : 0) + log1p(exp(-fabs(t)))) / (double)n_positive;
            s->c[a * s->n + b] = -sigmoid / (double)n_positive;
            share += sigmoid / (double)n_positive;
        }
        for (int64_t b = 0; b < s->n; b++)
            if (s->expert[b] != s->expert[a]) s->c[a * s->n + b] = share * exp(row[b] - lse);
    }
    for (int64_t i = 0; n_anchors && i < s->n * s->n; i++) s->c[i] /= (double)n_anchors;
    return n_anchors ? loss / (double)n_anchors : 0;
}

/* dz by the outputs themselves; w, which only the form with the Gram matrix has, from its definition. */
static void reference_gradient(const struct tp_reference *r, const struct items *s)
{
    const int64_t rank = s->rank, d_out = s->d_out, n_all = s->n_experts * rank;
    const double scale = r->attrs->f[0], temperature = r->attrs->f[1], root = sqrt(temperature), *bt = r->in[TP_CONTRAST_BT];
    const bool normalise = r->attrs->i[TP_CONTRAST_NORMALISE] != 0, gated = r->n_in > TP_CONTRAST_WEIGHT && r->in[TP_CONTRAST_WEIGHT];
    double *dz = r->out[TP_CONTRAST_DZ], *w = r->out[TP_CONTRAST_W];
    double *d = malloc((size_t)(d_out + n_all) * sizeof *d), *q = d + d_out;
    for (int64_t i = 0; i < s->places * (rank + 1); i++) dz[i] = 0;
    for (int64_t i = 0; i < n_all * n_all; i++) w[i] = 0;
    for (int64_t a = 0; d && a < s->n; a++) {
        double along = 0;
        for (int64_t c = 0; c < d_out; c++) d[c] = 0;
        for (int64_t j = 0; j < n_all; j++) q[j] = 0;
        for (int64_t b = 0; b < s->n; b++) {
            const double pair = s->c[a * s->n + b] + s->c[b * s->n + a];
            for (int64_t c = 0; c < d_out; c++) d[c] += pair * s->unit[b * d_out + c] / temperature;
            for (int64_t k = 0; k < rank; k++)
                q[s->expert[b] * rank + k] += pair * scale / root * s->omega[b] * s->z[b * rank + k] / s->length[b];
        }
        for (int64_t c = 0; normalise && c < d_out; c++) along += d[c] * s->unit[a * d_out + c];
        for (int64_t c = 0; normalise && c < d_out; c++) d[c] = (d[c] - along * s->unit[a * d_out + c]) / s->length[a];
        for (int64_t k = 0; k < rank; k++) {
            const int64_t row = s->expert[a] * rank + k;
            double sum = 0;
            for (int64_t c = 0; c < d_out; c++) sum += scale * bt[row * d_out + c] * d[c];
            dz[s->place[a] * (rank + 1) + k] = s->omega[a] * sum;
            if (gated) dz[s->place[a] * (rank + 1) + rank] += sum * s->z[a * rank + k];
            q[row] -= normalise ? along * temperature * scale / root * s->omega[a] * s->z[a * rank + k] / s->length[a] : 0;
        }
        for (int64_t k = 0; k < rank; k++)
            for (int64_t j = 0; j < n_all; j++)
                w[(s->expert[a] * rank + k) * n_all + j] += scale / root * s->omega[a] * s->z[a * rank + k] / s->length[a] * q[j];
    }
    free(d);
}

static void reference(const struct tp_reference *r)
{
    struct items s = {.n_experts = r->attrs->i[TP_CONTRAST_EXPERTS],
                      .rank = r->attrs->i[TP_CONTRAST_RANK],
                      .d_out = r->in_type[TP_CONTRAST_BT].shape.dim[1],
                      .places = tp_contrast_places(r->attrs, r->in_type[TP_CONTRAST_LIST].shape.dim[1])};
    const size_t n = (size_t)s.places + 1, wide = n * (size_t)(s.rank + 2 * s.d_out + 2) + 2 * n * n;
    int64_t *numbers = malloc(3 * n * sizeof *numbers);
    double *values = malloc(wide * sizeof *values);
    reference_sample(r);
    if (numbers && values) {
        s.place = numbers;
        s.expert = numbers + n;
        s.token = numbers + 2 * n;
        s.z = values;
        s.o = s.z + n * (size_t)s.rank;
        s.unit = s.o + n * (size_t)s.d_out;
        s.length = s.unit + n * (size_t)s.d_out;
        s.omega = s.length + n;
        s.similarity = s.omega + n;
        s.c = s.similarity + n * n;
        reference_outputs(r, &s);
        r->out[TP_CONTRAST_LOSS][0] = reference_pairs(&s);
        reference_gradient(r, &s);
    }
    free(numbers);
    free(values);
}

/* ---- cases ---- */

#define X(t, k)                                                                                                                            \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, k}, .grad = true                        \
    }
#define MATRIX(m, n, wants_grad)                                                                                                           \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 0.5, .dim = {m, n}, .grad = wants_grad                                          \
    }
#define NUMBERS(t, kind)                                                                                                                   \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .gen = kind, .scale = 7, .rows = TP_STEP_N_TOKENS, .dim = { t }                                                \
    }
#define ZEROS(n)                                                                                                                           \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .gen = TP_GEN_ZERO, .dim = { n }                                                                               \
    }
#define LIST(e, t)                                                                                                                         \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .gen = TP_GEN_INDEX, .scale = 1048576, .dim = { e, t }                                                         \
    }
#define WEIGHT(t, e)                                                                                                                       \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_PROBABILITY, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, e}, .grad = true                   \
    }

#define CASE_(title, t, k, n, e, r, m, normalise, per_token, tau, used, route, weight, bt_grad)                                            \
    {                                                                                                                                      \
        .name = title, .in = {X(t, k),    MATRIX((e) * (r), k, true), MATRIX((e) * (r), n, bt_grad), ZEROS(e),                             \
                              LIST(e, t), NUMBERS(t, TP_GEN_INDEX),   NUMBERS(t, TP_GEN_POSITIONS),  weight},                              \
        .n_in = TP_CONTRAST_N_IN, .attrs = {.i = {e, r, m, normalise, per_token}, .f = {1.5, tau}, .key = 0x123456789abcdef0u},            \
        .n_tokens = used, .segment_length = 11, .tolerance = 1e-4, .grad_tolerance = 2e-3, .prepare = route                                \
    }
#define NONE                                                                                                                               \
    {                                                                                                                                      \
        0                                                                                                                                  \
    }
#define CASE(title, t, k, n, e, r, m, normalise, per_token, tau, used, route)                                                              \
    CASE_(title, t, k, n, e, r, m, normalise, per_token, tau, used, route, NONE, true)

/* How tokens choose: two experts each as list's random numbers say, or what the name of the case says. */
enum route { TWO, ONE, WITHOUT_FIRST, ONE_ITEM, ALL_ON_LAST, ALL };

static void choose(double *const *in, int64_t bound, int64_t n_tokens, int64_t n_experts, enum route route)
{
    double *counts = in[TP_CONTRAST_COUNTS], *list = in[TP_CONTRAST_LIST];
    int64_t *random = malloc((size_t)n_tokens * sizeof *random);
    for (int64_t t = 0; random && t < n_tokens; t++) random[t] = (int64_t)list[t];
    for (int64_t i = 0; i < n_experts * bound; i++) list[i] = -1;
    for (int64_t e = 0; e < n_experts; e++) counts[e] = 0;
    for (int64_t t = 0; random && t < n_tokens; t++) {
        const int64_t low = route == WITHOUT_FIRST || route == ONE_ITEM, width = n_experts - low;
        int64_t one = low + random[t] % width, two = low + (one - low + 1 + random[t] / 16 % (width > 1 ? width - 1 : 1)) % width;
        if (route == ONE || two == one) two = -1;
        if (route == ALL_ON_LAST) one = n_experts - 1, two = -1;
        if (route == ONE_ITEM && t == n_tokens / 2) two = 0;
        for (int64_t e = 0; e < n_experts; e++)
            if (route == ALL || e == one || e == two) list[e * bound + (int64_t)counts[e]++] = (double)t;
    }
    free(random);
}

#define ROUTE(function, bound, used, e, mode)                                                                                              \
    static void function(double *const *in) { choose(in, bound, used, e, mode); }
ROUTE(two_40_4, 40, 40, 4, TWO)
ROUTE(two_150_8, 150, 150, 8, TWO)
ROUTE(one_40_4, 40, 40, 4, ONE)
ROUTE(without_33_3, 33, 33, 3, WITHOUT_FIRST)
ROUTE(single_33_3, 33, 33, 3, ONE_ITEM)
ROUTE(all_on_last_20_3, 20, 20, 3, ALL_ON_LAST)
ROUTE(all_17_5, 17, 17, 5, ALL)
ROUTE(alone_9_1, 9, 9, 1, ONE)
ROUTE(token_1_2, 1, 1, 2, ALL)
ROUTE(few_130_3_4, 130, 3, 4, TWO)
ROUTE(fewer_50_29_4, 50, 29, 4, TWO)

static void no_output(double *const *in)
{
    two_40_4(in);
    for (int i = 0; i < 4 * 3 * 13; i++) in[TP_CONTRAST_BT][i] = 0;
}
static void one_expert_without_output(double *const *in)
{
    two_40_4(in);
    for (int i = 0; i < 3 * 13; i++) in[TP_CONTRAST_BT][3 * 13 + i] = 0;
}
/* The same token everywhere: its numbers alone decide. */
static void equal_keys(double *const *in)
{
    two_40_4(in);
    for (int i = 0; i < 40; i++) in[TP_CONTRAST_EXAMPLES][i] = in[TP_CONTRAST_POSITIONS][i] = 3;
}

static const struct tp_case cases[] = {
    CASE("normalised, all", 40, 21, 13, 4, 3, 0, 1, 2, 0.5, 0, two_40_4),
    CASE("raw, all", 40, 21, 13, 4, 3, 0, 0, 2, 4.0, 0, two_40_4),
    CASE("m 8 of 8 experts", 150, 33, 40, 8, 4, 8, 1, 2, 0.07, 0, two_150_8),
    CASE("m more than there are", 40, 21, 13, 4, 3, 64, 1, 2, 0.5, 0, two_40_4),
    CASE("m 1", 40, 21, 13, 4, 3, 1, 1, 2, 0.5, 0, two_40_4),
    CASE("k 1", 40, 17, 19, 4, 5, 6, 1, 1, 0.2, 0, one_40_4),
    CASE("temperature 0.01", 40, 21, 13, 4, 3, 5, 1, 2, 0.01, 0, two_40_4),
    CASE("temperature 10", 40, 21, 13, 4, 3, 5, 1, 2, 10.0, 0, two_40_4),
    CASE("an expert without item", 33, 16, 16, 3, 2, 7, 1, 2, 0.3, 0, without_33_3),
    CASE("an expert with one item", 33, 16, 16, 3, 2, 7, 1, 3, 0.3, 0, single_33_3),
    CASE("all on one expert", 20, 16, 16, 3, 2, 7, 1, 1, 0.3, 0, all_on_last_20_3),
    CASE("all experts", 17, 5, 7, 5, 1, 0, 1, 0, 0.3, 0, all_17_5),
    CASE("rank above width", 17, 5, 3, 5, 9, 0, 0, 0, 30.0, 0, all_17_5),
    CASE("one expert", 9, 5, 7, 1, 2, 0, 1, 1, 0.3, 0, alone_9_1),
    CASE("one token", 1, 5, 7, 2, 2, 3, 1, 2, 0.3, 0, token_1_2),
    CASE("3 rows of 130", 130, 33, 40, 4, 2, 4, 1, 2, 0.3, 3, few_130_3_4),
    CASE("fewer rows", 50, 33, 40, 4, 2, 9, 1, 2, 0.3, 29, fewer_50_29_4),
    CASE("equal random numbers", 40, 21, 13, 4, 3, 5, 1, 2, 0.5, 0, equal_keys),
    CASE_("gated, raw", 40, 21, 13, 4, 3, 6, 0, 2, 0.5, 0, two_40_4, WEIGHT(40, 4), true),
    CASE_("gated, normalised", 40, 21, 13, 4, 3, 6, 1, 2, 0.5, 0, two_40_4, WEIGHT(40, 4), true),
    CASE_("no outputs, as at the start", 40, 21, 13, 4, 3, 6, 1, 2, 0.07, 0, no_output, NONE, false),
    CASE_("no outputs, raw", 40, 21, 13, 4, 3, 6, 0, 2, 0.07, 0, no_output, NONE, true),
    CASE_("one expert without output", 40, 21, 13, 4, 3, 6, 1, 2, 0.07, 0, one_expert_without_output, NONE, false),
};

static const struct tp_variant variants[] = {
    {.tier = "cpu", .lower = tp_contrast_lower_cpu},
    {.tier = "generic", .lower = tp_contrast_lower_generic},
};

const struct tp_op tp_op_contrastive_loss = {
    .name = "contrastive_loss",
    .in_names = {"x", "lora_a", "lora_bt", "counts", "list", "examples", "positions", "weight?"},
    .attr_i = {"n_experts", "rank", "n_samples", "normalise", "max_per_token"},
    .attr_f = {"scale", "temperature"},
    .infer = infer_loss,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .for_gradient = {[TP_CONTRAST_DZ] = true, [TP_CONTRAST_W] = true},
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};
