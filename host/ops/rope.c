/* Rotary position embedding (Su et al., arXiv 2104.09864), rotate-half form. The transpose of a rotation is the rotation by the opposite
 * angle, so the gradient is the same op with `inverse` set. */
#include <math.h>

#include "elementwise.h"
#include "graph/fusion.h"

extern const struct tp_op tp_op_rope, tp_op_cache_write;

enum { N_HEADS, HEAD_DIM, INVERSE }; /* integer attributes; f[0]: theta, unused if there is a table of frequencies */
enum { X_IN, POSITIONS_IN, FREQUENCIES_IN };

enum talpa_status talpa_rope(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value positions, int n_heads, int head_dim,
                             float theta)
{
    const talpa_value in[] = {x, positions};
    const struct tp_attrs attrs = {.i = {n_heads, head_dim, 0}, .f = {theta}};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_rope, in, 2, &attrs, out));
    *y = out[0];
    return TALPA_OK;
}

enum talpa_status talpa_rope_table(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value positions, talpa_value frequencies,
                                   int n_heads, int head_dim)
{
    const talpa_value in[] = {x, positions, frequencies};
    const struct tp_attrs attrs = {.i = {n_heads, head_dim, 0}};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_rope, in, 3, &attrs, out));
    *y = out[0];
    return TALPA_OK;
}

static bool has_table(const struct tp_type *const *in, int n_in) { return n_in > FREQUENCIES_IN && in[FREQUENCIES_IN]; }

static enum talpa_status infer(struct tp_infer *request)
{
    const int64_t n_heads = request->attrs->i[N_HEADS], head_dim = request->attrs->i[HEAD_DIM];
    const double theta = request->attrs->f[0];
    if (n_heads < 1 || head_dim < 2 || head_dim % 2)
        return tp_fail(TALPA_E_ARGUMENT, "rope: n_heads is %lld and head_dim %lld, expected at least 1 and an even number of at least 2",
                       (long long)n_heads, (long long)head_dim);
    if (has_table(request->in, request->n_in)) {
        TP_TRY(tp_infer_expect(request, FREQUENCIES_IN, 2, TALPA_I32));
        const struct tp_type *table = request->in[FREQUENCIES_IN];
        if (table->rows || table->shape.dim[0] != head_dim / 2 || table->shape.dim[1] != 2)
            return tp_infer_fail(request, FREQUENCIES_IN, "[%lld, 2], two words per pair", (long long)head_dim / 2);
    } else if (!(theta >= 1) || !isfinite(theta)) return tp_fail(TALPA_E_ARGUMENT, "rope: theta is %g, expected a number of at least 1", theta);
    TP_TRY(tp_infer_expect(request, 0, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(request, 1, 1, TALPA_I32));
    const struct tp_type *x = request->in[0], *positions = request->in[1];
    if (x->shape.dim[1] % head_dim || x->shape.dim[1] / head_dim != n_heads)
        return tp_infer_fail(request, 0, "[rows, %lld*%lld]", (long long)n_heads, (long long)head_dim);
    if (positions->rows != x->rows || positions->shape.dim[0] != x->shape.dim[0])
        return tp_infer_fail(request, 1, "[%lld] with the run-time rows of x", (long long)x->shape.dim[0]);
    request->out[0] = *x;
    request->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (!wanted[0] || out_grads[0] == TP_NONE) return TALPA_OK;
    const talpa_value in[] = {out_grads[0], node->in[POSITIONS_IN], node->n_in > FREQUENCIES_IN ? node->in[FREQUENCIES_IN] : TP_NONE};
    struct tp_attrs attrs = node->attrs;
    attrs.i[INVERSE] = !attrs.i[INVERSE];
    return tp_graph_node(graph, &tp_op_rope, in, node->n_in, &attrs, in_grads);
}

/* How the frequencies reach the kernels: a table, or the ratio whose powers they are; as a 64-bit fraction they stay exact to 1e-14 of a
 * turn at every position. */
static void put_ratio(const struct tp_lower *lower, struct tp_launch *launch)
{
    const double ratio = pow(lower->node->attrs.f[0], -2.0 / (double)lower->node->attrs.i[HEAD_DIM]);
    const uint64_t fraction = ratio < 1 ? (uint64_t)ldexp(ratio, 64) : UINT64_MAX;
    tp_launch_u32(launch, (uint32_t)(fraction >> 32));
    tp_launch_u32(launch, (uint32_t)fraction);
}

static struct tp_launch *launch_rope(struct tp_lower *lower, const char *source)
{
    const struct tp_type *type = tp_lower_out(lower, 0);
    const int64_t *i = lower->node->attrs.i;
    const bool from_table = tp_lower_has_in(lower, FREQUENCIES_IN);
    struct tp_launch *launch = tp_lower_launch(lower, source, "rope");
    if (from_table) tp_launch_option(launch, " -DTP_ROPE_TABLE");
    tp_launch_read(lower, launch, tp_in(X_IN));
    tp_launch_read(lower, launch, tp_in(POSITIONS_IN));
    if (from_table) tp_launch_read(lower, launch, tp_in(FREQUENCIES_IN));
    tp_launch_bf16_options(lower, launch, 0, 1);
    tp_launch_write_forms(lower, launch, 0);
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)i[N_HEADS]);
    tp_launch_u32(launch, (uint32_t)i[HEAD_DIM]);
    if (!from_table) put_ratio(lower, launch);
    tp_launch_u32(launch, i[INVERSE] != 0);
    tp_launch_cost(launch, 3.0 * (double)tp_type_elements(type), 2.0 * (double)tp_type_bytes(type));
    return launch;
}

static bool applies_cpu(const struct tp_lower *lower)
{
    const int64_t head_dim = lower->node->attrs.i[HEAD_DIM];
    return head_dim % 16 == 0 && head_dim <= 512;
}

static enum talpa_status lower_cpu(struct tp_lower *lower)
{
    const struct tp_type *type = tp_lower_out(lower, 0);
    const uint32_t n_groups = tp_elementwise_row_shares(type->shape.dim[0], type->shape.dim[1]);
    struct tp_launch *launch = launch_rope(lower, "cpu/rope.cl");
    tp_launch_u32(launch, n_groups);
    tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
    return TALPA_OK;
}

static enum talpa_status lower_generic(struct tp_lower *lower)
{
    const struct tp_type *type = tp_lower_out(lower, 0);
    const size_t local = tp_elementwise_local(lower, 64);
    const size_t n_items = (size_t)type->shape.dim[0] * (size_t)(lower->node->attrs.i[HEAD_DIM] / 2);
    struct tp_launch *launch = launch_rope(lower, "generic/rope.cl");
    tp_launch_groups(launch, (n_items + local - 1) / local, 1, 1, local, 1, 1);
    return TALPA_OK;
}

/* Gradients of projections go into products. */
static void layouts_cpu(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)in;
    for (int o = 0; o < lower->node->n_out; o++)
        if (tp_lower_offers_bf16(lower, tp_lower_out(lower, o))) out[o] = tp_layout_or_row(TP_LAYOUT_ROW_BF16);
}

static const struct tp_variant variants[] = {{"cpu", applies_cpu, layouts_cpu, lower_cpu}, {"generic", NULL, NULL, lower_generic}};

/* ---- fusion: queries and keys of a layer in one launch, with the writes to the cache where there is one ---- */

/* Operands of the groups. rope+rope ends with FREQUENCIES2; its outputs are both rotated values. The other one stores the rotated keys in the
 * cache only: outputs are the rotated queries and the two caches' next versions. */
enum { QUERIES, KEYS, POSITIONS2, FREQUENCIES2, VALUES, SLOTS2 };
enum { N_KEY_HEADS = INVERSE + 1 }; /* one more integer attribute */
enum { CACHE_X = 1, CACHE_SLOTS = 2 }; /* operands of cache_write */

static bool same_rotation(const struct tp_match *match, int32_t a, int32_t b)
{
    const struct tp_node *p = tp_graph_node_at(match->graph, a), *q = tp_graph_node_at(match->graph, b);
    const talpa_value table_p = p->n_in > FREQUENCIES_IN ? p->in[FREQUENCIES_IN] : TP_NONE;
    const talpa_value table_q = q->n_in > FREQUENCIES_IN ? q->in[FREQUENCIES_IN] : TP_NONE;
    return table_p == table_q && p->attrs.i[HEAD_DIM] == q->attrs.i[HEAD_DIM] && p->attrs.i[INVERSE] == q->attrs.i[INVERSE] &&
           p->attrs.f[0] == q->attrs.f[0];
}

/* The rope at `at` and the next one that turns by the same angles. */
static bool match_pair(struct tp_fused *fused, const struct tp_match *match, int32_t at)
{
    const struct tp_node *first = tp_graph_node_at(match->graph, at);
    const int32_t n = tp_match_next(match, &tp_op_rope, first->in[POSITIONS_IN], POSITIONS_IN, at);
    if (n < 0 || !same_rotation(match, at, n)) return false;
    const struct tp_node *second = tp_graph_node_at(match->graph, n);
    if (!tp_fused_add(fused, match, at) || !tp_fused_add(fused, match, n)) return false;
    tp_fused_in(fused, first->in[X_IN]);
    tp_fused_in(fused, second->in[X_IN]);
    tp_fused_in(fused, first->in[POSITIONS_IN]);
    tp_fused_in(fused, first->n_in > FREQUENCIES_IN ? first->in[FREQUENCIES_IN] : TP_NONE);
    tp_fused_out(fused, first->out[0]);
    tp_fused_out(fused, second->out[0]);
    fused->node.attrs = first->attrs;
    fused->node.attrs.i[N_KEY_HEADS] = second->attrs.i[N_HEADS];
    return true;
}

static bool match_cached(struct tp_fused *fused, const struct tp_match *match, int32_t at)
{
    if (!match_pair(fused, match, at)) return false;
    const int32_t keys = tp_match_sole_reader(match, fused->node.out[1]);
    if (keys < 0 || tp_graph_node_at(match->graph, keys)->op != &tp_op_cache_write) return false;
    const struct tp_node *write_keys = tp_graph_node_at(match->graph, keys);
    const int32_t values = tp_match_next(match, &tp_op_cache_write, write_keys->in[CACHE_SLOTS], CACHE_SLOTS, keys);
    if (values < 0) return false;
    const struct tp_node *write_values = tp_graph_node_at(match->graph, values);
    if (!tp_type_equal(tp_graph_type(match->graph, write_keys->out[0]), tp_graph_type(match->graph, write_values->out[0]))) return false;
    if (!tp_fused_add(fused, match, keys) || !tp_fused_add(fused, match, values)) return false;
    tp_fused_in(fused, write_values->in[CACHE_X]);
    tp_fused_in(fused, write_keys->in[CACHE_SLOTS]);
    fused->node.out[1] = write_keys->out[0];
    tp_fused_out(fused, write_values->out[0]);
    return true;
}

static enum talpa_status lower_group(struct tp_lower *lower, bool cached, bool on_cpu)
{
    const struct tp_type *q = tp_lower_in(lower, QUERIES), *k = tp_lower_in(lower, KEYS);
    const int64_t *i = lower->node->attrs.i, n_rows = q->shape.dim[0], width = q->shape.dim[1] + (cached ? 2 : 1) * k->shape.dim[1];
    const bool from_table = tp_lower_has_in(lower, FREQUENCIES2);
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/rope.cl" : "generic/rope.cl", cached ? "rope_cache" : "rope_pair");
    if (from_table) tp_launch_option(launch, " -DTP_ROPE_TABLE");
    tp_launch_read(lower, launch, tp_in(QUERIES));
    tp_launch_read(lower, launch, tp_in(KEYS));
    if (cached) tp_launch_read(lower, launch, tp_in(VALUES));
    tp_launch_read(lower, launch, tp_in(POSITIONS2));
    if (cached) tp_launch_read(lower, launch, tp_in(SLOTS2));
    if (from_table) tp_launch_read(lower, launch, tp_in(FREQUENCIES2));
    tp_launch_bf16_options(lower, launch, 0, 2);
    for (int o = 0; o < (cached ? 3 : 2); o++) tp_launch_write_forms(lower, launch, o);
    tp_launch_step(launch);
    tp_launch_rows(launch, q);
    if (cached) tp_launch_u32(launch, (uint32_t)tp_lower_out(lower, 1)->shape.dim[0]);
    tp_launch_u32(launch, (uint32_t)i[N_HEADS]);
    tp_launch_u32(launch, (uint32_t)i[N_KEY_HEADS]);
    tp_launch_u32(launch, (uint32_t)i[HEAD_DIM]);
    if (!from_table) put_ratio(lower, launch);
    tp_launch_u32(launch, i[INVERSE] != 0);
    if (on_cpu) {
        const uint32_t n_groups = tp_elementwise_row_shares(n_rows, width);
        tp_launch_u32(launch, n_groups);
        tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(lower, 64), n_items = (size_t)n_rows * (size_t)(i[HEAD_DIM] / 2);
        tp_launch_groups(launch, (n_items + local - 1) / local, 1, 1, local, 1, 1);
    }
    tp_launch_cost(launch, 3.0 * (double)(tp_type_elements(q) + tp_type_elements(k)), 8.0 * (double)(n_rows * width));
    return TALPA_OK;
}

static enum talpa_status lower_pair_cpu(struct tp_lower *lower) { return lower_group(lower, false, true); }
static enum talpa_status lower_pair_generic(struct tp_lower *lower) { return lower_group(lower, false, false); }
static enum talpa_status lower_cached_cpu(struct tp_lower *lower) { return lower_group(lower, true, true); }
static enum talpa_status lower_cached_generic(struct tp_lower *lower) { return lower_group(lower, true, false); }

static const struct tp_variant cached_variants[] = {{"cpu", applies_cpu, NULL, lower_cached_cpu}, {"generic", NULL, NULL, lower_cached_generic}};
static const struct tp_variant pair_variants[] = {{"cpu", applies_cpu, layouts_cpu, lower_pair_cpu}, {"generic", NULL, NULL, lower_pair_generic}};

static const struct tp_fusion fusions[] = {
    {.name = "rope+rope+cache_write+cache_write", .match = match_cached, .variants = cached_variants, .n_variants = 2, .inplace = true},
    {.name = "rope+rope", .match = match_pair, .variants = pair_variants, .n_variants = 2, .inplace = true},
};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *type = tp_graph_type(graph, node->in[0]);
    *flops = 3.0 * (double)tp_type_elements(type);
    *bytes = 2.0 * (double)tp_type_bytes(type);
}

/* Radians per position of pair i. The table's words are 32-bit patterns that come as signed numbers. */
static double frequency(const struct tp_reference *work, int64_t i)
{
    if (work->n_in <= FREQUENCIES_IN || !work->in[FREQUENCIES_IN])
        return pow(work->attrs->f[0], -2.0 * (double)i / (double)work->attrs->i[HEAD_DIM]);
    const double *words = work->in[FREQUENCIES_IN] + 2 * i;
    return 2 * M_PI * (ldexp((double)(uint32_t)(int32_t)words[0], -32) + ldexp((double)(uint32_t)(int32_t)words[1], -64));
}

static void reference(const struct tp_reference *work)
{
    const int64_t n_rows = work->in_type[0].shape.dim[0], n_heads = work->attrs->i[N_HEADS], d = work->attrs->i[HEAD_DIM];
    for (int64_t t = 0; t < n_rows; t++) {
        for (int64_t h = 0; h < n_heads; h++) {
            const double *x = work->in[0] + (t * n_heads + h) * d;
            double *y = work->out[0] + (t * n_heads + h) * d;
            for (int64_t i = 0; i < d / 2; i++) {
                const double angle = work->in[POSITIONS_IN][t] * frequency(work, i);
                const double c = cos(angle), s = work->attrs->i[INVERSE] ? -sin(angle) : sin(angle);
                const double a = x[i], b = x[i + d / 2];
                y[i] = a * c - b * s;
                y[i + d / 2] = b * c + a * s;
            }
        }
    }
}

#define X(t, n, generator, wants_grad)                                                                                                     \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = generator, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, n}, .grad = wants_grad                      \
    }
#define POSITIONS(t)                                                                                                                       \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .gen = TP_GEN_POSITIONS, .rows = TP_STEP_N_TOKENS, .dim = { t }                                                \
    }
#define ANYWHERE(t, end)                                                                                                                   \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .gen = TP_GEN_INDEX, .scale = end, .rows = TP_STEP_N_TOKENS, .dim = { t }                                      \
    }

#define TABLE(pairs)                                                                                                                       \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .kind = TP_WEIGHT, .gen = TP_GEN_INDEX, .scale = 1 << 30, .dim = { pairs, 2 }                                  \
    }

/* With x all ones the outputs are cos - sin and cos + sin: the tolerance is on the angles' functions themselves. */
static const struct tp_case cases[] = {
    {.name = "one row", .in = {X(1, 16, TP_GEN_NORMAL, true), POSITIONS(1)}, .n_in = 2, .attrs = {.i = {1, 16}, .f = {1e4}}},
    {.name = "three heads",
     .in = {X(33, 192, TP_GEN_NORMAL, true), POSITIONS(33)},
     .n_in = 2,
     .attrs = {.i = {3, 64}, .f = {1e4}},
     .n_tokens = 19,
     .segment_length = 7},
    {.name = "inverse", .in = {X(65, 64, TP_GEN_NORMAL, true), POSITIONS(65)}, .n_in = 2, .attrs = {.i = {2, 32, 1}, .f = {1e5}}},
    {.name = "head_dim 20", .in = {X(7, 60, TP_GEN_NORMAL, true), POSITIONS(7)}, .n_in = 2, .attrs = {.i = {3, 20}, .f = {1e4}}},
    {.name = "head_dim 2", .in = {X(3, 2, TP_GEN_NORMAL, true), POSITIONS(3)}, .n_in = 2, .attrs = {.i = {1, 2}, .f = {1e4}}},
    {.name = "far positions, theta 1e4",
     .in = {X(512, 64, TP_GEN_ONE, false), ANYWHERE(512, 8193)},
     .n_in = 2,
     .attrs = {.i = {1, 64}, .f = {1e4}},
     .tolerance = 5e-7},
    {.name = "far positions, theta 1e6",
     .in = {X(512, 128, TP_GEN_ONE, false), ANYWHERE(512, 1000000)},
     .n_in = 2,
     .attrs = {.i = {1, 128}, .f = {1e6}},
     .tolerance = 5e-7},
    {.name = "theta 1, wide head",
     .in = {X(9, 256, TP_GEN_ONE, false), ANYWHERE(9, 8193)},
     .n_in = 2,
     .attrs = {.i = {1, 256}, .f = {1}},
     .tolerance = 5e-7},
    {.name = "table",
     .in = {X(33, 96, TP_GEN_NORMAL, true), POSITIONS(33), TABLE(16)},
     .n_in = 3,
     .attrs = {.i = {3, 32}},
     .n_tokens = 19,
     .segment_length = 7},
    {.name = "table, inverse, head_dim 6",
     .in = {X(7, 12, TP_GEN_NORMAL, true), POSITIONS(7), TABLE(3)},
     .n_in = 3,
     .attrs = {.i = {2, 6, 1}}},
    {.name = "table, far positions",
     .in = {X(64, 64, TP_GEN_ONE, false), ANYWHERE(64, 8193), TABLE(32)},
     .n_in = 3,
     .attrs = {.i = {1, 64}},
     .tolerance = 2e-6},
};

const struct tp_op tp_op_rope = {
    .name = "rope",
    .in_names = {"x", "positions", "frequencies?"},
    .attr_i = {"n_heads", "head_dim", "inverse"},
    .attr_f = {"theta"},
    .infer = infer,
    .gradient = gradient,
    .variants = variants,
    .n_variants = sizeof variants / sizeof *variants,
    .cost = cost,
    .inplace = {1},
    .fusions = fusions,
    .n_fusions = sizeof fusions / sizeof *fusions,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};
