/* Attention over a cache of keys and values, as generation needs it: rows of many sequences at once, each with a range of the cache. */
#include <math.h>

#include "elementwise.h"

/* cache_write: cache (state), x, slots -> the cache's next version.
 * cached_attention: q, k_cache, v_cache, spans -> out. */
extern const struct tp_op tp_op_cache_write, tp_op_cached_attention;

enum { CACHE, X, SLOTS };                           /* inputs of cache_write */
enum { Q, K, V, SPANS };                            /* inputs of cached_attention */
enum { N_HEADS, N_KV_HEADS, HEAD_DIM };             /* its integer attributes; f[0]: scale */
enum { MAX_HEAD_DIM = 256, CPU_HEADS = 4 };         /* CPU_HEADS as in the kernel */
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static const char no_gradient[] = "a cache serves generation: train with attention over whole sequences";

/* ---- cache_write ---- */

static enum talpa_status infer_write(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, CACHE, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, X, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, SLOTS, 1, TALPA_I32));
    const struct tp_type *cache = infer->in[CACHE], *x = infer->in[X], *slots = infer->in[SLOTS];
    if (cache->rows) return tp_infer_fail(infer, CACHE, "a cache of exact size");
    if (x->shape.dim[1] != cache->shape.dim[1]) return tp_infer_fail(infer, X, "rows of %lld as in the cache", (long long)cache->shape.dim[1]);
    if (slots->shape.dim[0] != x->shape.dim[0] || slots->rows != x->rows) return tp_infer_fail(infer, SLOTS, "one slot per row of x");
    infer->out[0] = *cache;
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status lower_write(struct tp_lower *lower, bool on_cpu)
{
    const struct tp_type *x = tp_lower_in(lower, X), *cache = tp_lower_in(lower, CACHE);
    const size_t n_rows = (size_t)x->shape.dim[0], d = (size_t)x->shape.dim[1];
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/cached_attention.cl" : "generic/cached_attention.cl", "cache_write");
    tp_launch_option(launch, on_cpu ? "-DHEAD_DIM=16" : "-DHEAD_DIM=16 -DLOCAL=1"); /* of the file's other kernel */
    tp_launch_read(lower, launch, tp_in(X));
    tp_launch_read(lower, launch, tp_in(SLOTS));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_step(launch);
    tp_launch_rows(launch, x);
    tp_launch_u32(launch, (uint32_t)d);
    tp_launch_u32(launch, (uint32_t)cache->shape.dim[0]);
    if (on_cpu) {
        const uint32_t shares = tp_elementwise_row_shares((int64_t)n_rows, (int64_t)d);
        tp_launch_u32(launch, shares);
        tp_launch_groups(launch, shares, 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(lower, 64);
        tp_launch_groups(launch, (d + local - 1) / local, n_rows, 1, local, 1, 1);
    }
    tp_launch_cost(launch, 0, 8.0 * (double)(n_rows * d));
    return TALPA_OK;
}

static enum talpa_status lower_write_cpu(struct tp_lower *lower) { return lower_write(lower, true); }
static enum talpa_status lower_write_generic(struct tp_lower *lower) { return lower_write(lower, false); }

static const struct tp_variant write_variants[] = {{"cpu", NULL, NULL, lower_write_cpu}, {"generic", NULL, NULL, lower_write_generic}};

static void cost_write(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    *flops = 0;
    *bytes = 2.0 * (double)tp_type_bytes(tp_graph_type(graph, node->in[X]));
}

static void reference_write(const struct tp_reference *work)
{
    const int64_t n_slots = work->in_type[CACHE].shape.dim[0], d = work->in_type[CACHE].shape.dim[1];
    for (int64_t i = 0; i < n_slots * d; i++) work->out[0][i] = work->in[CACHE][i];
    for (int64_t t = 0; t < work->in_type[X].shape.dim[0]; t++) {
        const int64_t slot = (int64_t)work->in[SLOTS][t];
        if (slot < 0 || slot >= n_slots) continue;
        for (int64_t j = 0; j < d; j++) work->out[0][slot * d + j] = work->in[X][t * d + j];
    }
}

/* ---- cached_attention ---- */

static enum talpa_status infer_attention(struct tp_infer *infer)
{
    const int64_t n_heads = infer->attrs->i[N_HEADS], n_kv_heads = infer->attrs->i[N_KV_HEADS], head_dim = infer->attrs->i[HEAD_DIM];
    if (n_heads < 1 || n_kv_heads < 1 || n_heads % n_kv_heads)
        return tp_fail(TALPA_E_ARGUMENT, "%s: n_heads is %lld and n_kv_heads %lld, expected a multiple of it", infer->op->name, (long long)n_heads,
                       (long long)n_kv_heads);
    if (head_dim < 1 || head_dim > MAX_HEAD_DIM)
        return tp_fail(TALPA_E_ARGUMENT, "%s: head_dim is %lld, expected 1 to %d", infer->op->name, (long long)head_dim, MAX_HEAD_DIM);
    if (!isfinite(infer->attrs->f[0]))
        return tp_fail(TALPA_E_ARGUMENT, "%s: scale is %g, expected a finite number", infer->op->name, infer->attrs->f[0]);
    TP_TRY(tp_infer_expect(infer, Q, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, SPANS, 2, TALPA_I32));
    const struct tp_type *q = infer->in[Q], *spans = infer->in[SPANS];
    if (q->shape.dim[1] != n_heads * head_dim) return tp_infer_fail(infer, Q, "rows of n_heads * head_dim, %lld", (long long)(n_heads * head_dim));
    for (int i = K; i <= V; i++) {
        TP_TRY(tp_infer_expect(infer, i, 2, TALPA_F32));
        const struct tp_type *cache = infer->in[i];
        if (cache->rows || cache->shape.dim[0] != infer->in[K]->shape.dim[0] || cache->shape.dim[1] != n_kv_heads * head_dim)
            return tp_infer_fail(infer, i, "a cache of exact size, rows of n_kv_heads * head_dim, %lld", (long long)(n_kv_heads * head_dim));
    }
    if (spans->rows != q->rows || spans->shape.dim[0] != q->shape.dim[0] || spans->shape.dim[1] != 2)
        return tp_infer_fail(infer, SPANS, "[%lld, 2] with the run-time rows of q", (long long)q->shape.dim[0]);
    infer->out[0] = *q;
    infer->n_out = 1;
    return TALPA_OK;
}

static struct tp_launch *launch_attention(struct tp_lower *lower, const char *source)
{
    const struct tp_attrs *attrs = &lower->node->attrs;
    const struct tp_type *q = tp_lower_in(lower, Q);
    const double rows = (double)q->shape.dim[0], cache_rows = (double)tp_lower_in(lower, K)->shape.dim[0], width = (double)q->shape.dim[1];
    struct tp_launch *launch = tp_lower_launch(lower, source, "cached_attention");
    tp_launch_option(launch, "-DHEAD_DIM=%d", (int)attrs->i[HEAD_DIM]);
    for (int i = Q; i <= SPANS; i++) tp_launch_read(lower, launch, tp_in(i));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_step(launch);
    tp_launch_rows(launch, q);
    tp_launch_u32(launch, (uint32_t)cache_rows);
    tp_launch_u32(launch, (uint32_t)attrs->i[N_HEADS]);
    tp_launch_u32(launch, (uint32_t)attrs->i[N_KV_HEADS]);
    tp_launch_f32(launch, (float)attrs->f[0]);
    tp_launch_cost(launch, 4.0 * rows * cache_rows * width, 8.0 * cache_rows * width);
    return launch;
}

static bool applies_cpu(const struct tp_lower *lower) { return lower->node->attrs.i[HEAD_DIM] % 16 == 0; }

/* A unit of work is a row and some query heads of one kv head: as many as share a pass over the keys, unless that leaves cores idle. Every
 * head is summed by itself, so this choice does not show in the result. */
static enum talpa_status lower_attention_cpu(struct tp_lower *lower)
{
    const int64_t *attr = lower->node->attrs.i, rows = tp_lower_in(lower, Q)->shape.dim[0], group = attr[N_HEADS] / attr[N_KV_HEADS];
    const int64_t wanted = 4 * (int64_t)lower->caps->compute_units, most = wanted > 32 ? wanted : 32;
    const int64_t block = rows * attr[N_KV_HEADS] < wanted ? 1 : group < CPU_HEADS ? group : CPU_HEADS;
    const int64_t units = rows * attr[N_KV_HEADS] * ((group + block - 1) / block), groups = units < most ? units : most;
    struct tp_launch *launch = launch_attention(lower, "cpu/cached_attention.cl");
    tp_launch_u32(launch, (uint32_t)block);
    tp_launch_u32(launch, (uint32_t)groups);
    tp_launch_groups(launch, (size_t)groups, 1, 1, 1, 1, 1);
    return TALPA_OK;
}

static enum talpa_status lower_attention_generic(struct tp_lower *lower)
{
    const size_t local = tp_elementwise_local(lower, 64);
    struct tp_launch *launch = launch_attention(lower, "generic/cached_attention.cl");
    tp_launch_option(launch, "-DLOCAL=%d", (int)local);
    tp_launch_groups(launch, (size_t)tp_lower_in(lower, Q)->shape.dim[0], (size_t)lower->node->attrs.i[N_HEADS], 1, local, 1, 1);
    return TALPA_OK;
}

static const struct tp_variant attention_variants[] = {{"cpu", applies_cpu, NULL, lower_attention_cpu},
                                                       {"generic", NULL, NULL, lower_attention_generic}};

static void cost_attention(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *q = tp_graph_type(graph, node->in[Q]), *k = tp_graph_type(graph, node->in[K]);
    *flops = 4.0 * (double)tp_type_elements(q) * (double)k->shape.dim[0];
    *bytes = 2.0 * (double)tp_type_bytes(q) + 2.0 * (double)tp_type_bytes(k);
}

static void reference_attention(const struct tp_reference *work)
{
    const int64_t nh = work->attrs->i[N_HEADS], nk = work->attrs->i[N_KV_HEADS], d = work->attrs->i[HEAD_DIM];
    const int64_t n_slots = work->in_type[K].shape.dim[0];
    for (int64_t t = 0; t < work->in_type[Q].shape.dim[0]; t++) {
        const int64_t first = (int64_t)fmax(work->in[SPANS][2 * t], 0), end = (int64_t)fmin(work->in[SPANS][2 * t + 1], (double)n_slots);
        for (int64_t h = 0; h < nh; h++) {
            const int64_t kv = h / (nh / nk);
            const double *q = work->in[Q] + (t * nh + h) * d;
            double *out = work->out[0] + (t * nh + h) * d, highest = -HUGE_VAL, sum = 0;
            for (int pass = 0; pass < 2; pass++) {
                for (int64_t i = 0; i < d && pass; i++) out[i] = 0;
                for (int64_t j = first; j < end; j++) {
                    const double *key = work->in[K] + (j * nk + kv) * d, *value = work->in[V] + (j * nk + kv) * d;
                    double score = 0;
                    for (int64_t i = 0; i < d; i++) score += q[i] * key[i];
                    score *= work->attrs->f[0];
                    if (!pass) {
                        highest = fmax(highest, score);
                        continue;
                    }
                    sum += exp(score - highest);
                    for (int64_t i = 0; i < d; i++) out[i] += exp(score - highest) * value[i];
                }
            }
            for (int64_t i = 0; i < d && sum > 0; i++) out[i] /= sum;
        }
    }
}

/* ---- cases ---- */

#define ROWS(t, n) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_N_TOKENS, {t, n}, false}
#define CACHED(c, n) {TALPA_F32, TP_STATE, TP_GEN_NORMAL, 1, TP_STEP_NONE, {c, n}, false}
#define SLOT_LIST(t, c) {TALPA_I32, TP_INPUT, TP_GEN_ASCENDING, c, TP_STEP_N_TOKENS, {t}, false}
#define SPAN_LIST(t, c) {TALPA_I32, TP_INPUT, TP_GEN_INDEX, c, TP_STEP_N_TOKENS, {t, 2}, false}

static const struct tp_case write_cases[] = {
    {.name = "odd", .in = {CACHED(65, 33), ROWS(7, 33), SLOT_LIST(7, 65)}, .n_in = 3, .n_tokens = 5},
    {.name = "one", .in = {CACHED(1, 1), ROWS(1, 1), SLOT_LIST(1, 1)}, .n_in = 3},
    {.name = "slots outside", .in = {CACHED(9, 16), ROWS(4, 16), SLOT_LIST(4, 20)}, .n_in = 3},
    {.name = "model", .in = {CACHED(300, 192), ROWS(130, 192), SLOT_LIST(130, 300)}, .n_in = 3, .n_tokens = 129},
};

static void order(double *spans, int n)
{
    for (int t = 0; t < n; t++) {
        const double first = fmin(spans[2 * t], spans[2 * t + 1]), last = fmax(spans[2 * t], spans[2 * t + 1]);
        spans[2 * t] = first;
        spans[2 * t + 1] = last + 1;
    }
}
static void order_1(double *const *in) { order(in[SPANS], 1); }
static void order_5(double *const *in) { order(in[SPANS], 5); } /* what lies past the run-time rows is never read */
static void order_13(double *const *in) { order(in[SPANS], 13); }
static void whole(double *const *in)
{
    in[SPANS][0] = 0;
    in[SPANS][1] = 1000;
    in[SPANS][2] = -3;
    in[SPANS][3] = 129;
    in[SPANS][4] = 128; /* last slot alone */
    in[SPANS][5] = 129;
    in[SPANS][6] = 7; /* nothing */
    in[SPANS][7] = 7;
}

#define ATTENTION(t, c, nh, nk, d)                                                                                       \
    .in = {ROWS(t, (nh) * (d)), CACHED(c, (nk) * (d)), CACHED(c, (nk) * (d)), SPAN_LIST(t, c)}, .n_in = 4,               \
    .attrs = {.i = {nh, nk, d}, .f = {0.25}}

static const struct tp_case attention_cases[] = {
    {.name = "one row of one", ATTENTION(1, 1, 1, 1, 16), .prepare = order_1},
    {.name = "one row, 9 heads of 3", ATTENTION(1, 300, 9, 3, 64), .prepare = order_1},
    {.name = "fewer rows", ATTENTION(33, 200, 3, 3, 16), .prepare = order_5, .n_tokens = 5},
    {.name = "many rows, 9 heads of 3", ATTENTION(13, 257, 9, 3, 64), .prepare = order_13},
    {.name = "one kv head of 6", ATTENTION(13, 70, 6, 1, 32), .prepare = order_13},
    {.name = "ends of the cache", ATTENTION(4, 129, 2, 1, 48), .prepare = whole},
    {.name = "head_dim 20", ATTENTION(5, 67, 2, 1, 20), .prepare = order_5},
    {.name = "head_dim 7", ATTENTION(5, 130, 2, 2, 7), .prepare = order_5},
    {.name = "head_dim 256", ATTENTION(5, 90, 2, 1, 256), .prepare = order_5, .tolerance = 5e-5},
    {.name = "any spans", ATTENTION(40, 65, 4, 2, 16)},
};

const struct tp_op tp_op_cache_write = {
    .name = "cache_write",
    .in_names = {"cache", "x", "slots"},
    .infer = infer_write,
    .no_gradient = no_gradient,
    .variants = write_variants,
    .n_variants = COUNT(write_variants),
    .cost = cost_write,
    .updates = {1 + CACHE},
    .cases = write_cases,
    .n_cases = COUNT(write_cases),
    .reference = reference_write,
};

const struct tp_op tp_op_cached_attention = {
    .name = "cached_attention",
    .in_names = {"q", "k_cache", "v_cache", "spans"},
    .attr_i = {"n_heads", "n_kv_heads", "head_dim"},
    .attr_f = {"scale"},
    .infer = infer_attention,
    .no_gradient = no_gradient,
    .variants = attention_variants,
    .n_variants = COUNT(attention_variants),
    .cost = cost_attention,
    .cases = attention_cases,
    .n_cases = COUNT(attention_cases),
    .reference = reference_attention,
};

enum talpa_status talpa_cache_write(talpa_value *next, struct talpa_graph *graph, talpa_value cache, talpa_value x, talpa_value slots)
{
    return tp_graph_node(graph, &tp_op_cache_write, (const talpa_value[]){cache, x, slots}, 3, NULL, next);
}

enum talpa_status talpa_cached_attention(talpa_value *out, struct talpa_graph *graph, talpa_value q, talpa_value k_cache, talpa_value v_cache,
                                         talpa_value spans, int n_heads, int n_kv_heads, int head_dim, float scale)
{
    const struct tp_attrs attrs = {.i = {n_heads, n_kv_heads, head_dim}, .f = {scale}};
    return tp_graph_node(graph, &tp_op_cached_attention, (const talpa_value[]){q, k_cache, v_cache, spans}, 4, &attrs, out);
}
