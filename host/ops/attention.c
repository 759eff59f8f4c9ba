/* Causal attention inside segments, and its gradient. Forward with an online softmax, backward from the saved log-sum-exp
 * (FlashAttention-2, arXiv 2307.08691): dq by blocks of queries, dk and dv by blocks of keys, so that nothing is added by two groups.
 * Scratch grows with T only. */
#include <math.h>

#include "elementwise.h"

/* attention: q, k, v, segments -> out, lse [T, n_heads], the log-sum-exp of the scaled scores, kept for the gradient.
 * attention_backward: q, k, v, out, lse, dout, segments -> dq, dk, dv. */
extern const struct tp_op tp_op_attention, tp_op_attention_backward;

enum { N_HEADS, N_KV_HEADS, HEAD_DIM }; /* integer attributes; f[0]: scale */
enum { MAX_HEAD_DIM = 256 };
enum { PANEL = 32, CPU_ROWS = 12, KEY_BLOCKS = 4, KEY_BLOCKS_FROM = 2048, TILE = 32, SLICE_MAX = 128 }; /* as in the kernels */

enum talpa_status talpa_attention(talpa_value *out, struct talpa_graph *graph, talpa_value q, talpa_value k, talpa_value v,
                                  talpa_value segments, int n_heads, int n_kv_heads, int head_dim, float scale)
{
    const talpa_value in[] = {q, k, v, segments};
    const struct tp_attrs attrs = {.i = {n_heads, n_kv_heads, head_dim}, .f = {scale}};
    talpa_value made[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_attention, in, 4, &attrs, made));
    *out = made[0];
    return TALPA_OK;
}

static enum talpa_status expect_rows(const struct tp_infer *request, int operand, int64_t columns, enum talpa_dtype dtype)
{
    TP_TRY(tp_infer_expect(request, operand, 2, dtype));
    const struct tp_type *q = request->in[0], *type = request->in[operand];
    if (type->rows != q->rows || type->shape.dim[0] != q->shape.dim[0] || type->shape.dim[1] != columns)
        return tp_infer_fail(request, operand, "[%lld, %lld] with the run-time rows of q", (long long)q->shape.dim[0], (long long)columns);
    return TALPA_OK;
}

static enum talpa_status expect_qkv(const struct tp_infer *request, int segments)
{
    const int64_t n_heads = request->attrs->i[N_HEADS], n_kv_heads = request->attrs->i[N_KV_HEADS], head_dim = request->attrs->i[HEAD_DIM];
    if (n_heads < 1 || n_kv_heads < 1 || n_heads % n_kv_heads)
        return tp_fail(TALPA_E_ARGUMENT, "%s: n_heads is %lld and n_kv_heads %lld, expected a multiple of it", request->op->name,
                       (long long)n_heads, (long long)n_kv_heads);
    if (head_dim < 1 || head_dim > MAX_HEAD_DIM)
        return tp_fail(TALPA_E_ARGUMENT, "%s: head_dim is %lld, expected 1 to %d", request->op->name, (long long)head_dim, MAX_HEAD_DIM);
    if (!isfinite(request->attrs->f[0]))
        return tp_fail(TALPA_E_ARGUMENT, "%s: scale is %g, expected a finite number", request->op->name, request->attrs->f[0]);
    TP_TRY(tp_infer_expect(request, 0, 2, TALPA_F32));
    TP_TRY(expect_rows(request, 0, n_heads * head_dim, TALPA_F32));
    TP_TRY(expect_rows(request, 1, n_kv_heads * head_dim, TALPA_F32));
    TP_TRY(expect_rows(request, 2, n_kv_heads * head_dim, TALPA_F32));
    return expect_rows(request, segments, 2, TALPA_I32);
}

static enum talpa_status infer_forward(struct tp_infer *request)
{
    TP_TRY(expect_qkv(request, 3));
    const struct tp_type *q = request->in[0];
    request->out[0] = *q;
    request->out[1] = tp_type_2d(TALPA_F32, q->rows, q->shape.dim[0], request->attrs->i[N_HEADS]);
    request->n_out = 2;
    return TALPA_OK;
}

static enum talpa_status infer_backward(struct tp_infer *request)
{
    TP_TRY(expect_qkv(request, 6));
    TP_TRY(expect_rows(request, 3, request->in[0]->shape.dim[1], TALPA_F32));
    TP_TRY(expect_rows(request, 4, request->attrs->i[N_HEADS], TALPA_F32));
    TP_TRY(expect_rows(request, 5, request->in[0]->shape.dim[1], TALPA_F32));
    for (int i = 0; i < 3; i++) request->out[i] = *request->in[i];
    request->n_out = 3;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (out_grads[1] != TP_NONE) return tp_fail(TALPA_E_ARGUMENT, "attention: no gradient from lse: it is kept for the gradient only");
    if (out_grads[0] == TP_NONE || !(wanted[0] || wanted[1] || wanted[2])) return TALPA_OK;
    const talpa_value in[] = {node->in[0], node->in[1], node->in[2], node->out[0], node->out[1], out_grads[0], node->in[3]};
    talpa_value out[TP_MAX_OUT];
    TP_TRY(tp_graph_node(graph, &tp_op_attention_backward, in, 7, &node->attrs, out));
    for (int i = 0; i < 3; i++) in_grads[i] = out[i];
    return TALPA_OK;
}

/* ---- lowering ---- */

struct sizes {
    int64_t rows, n_heads, n_kv_heads, head_dim, n_panels;
};

static struct sizes sizes_of(const struct tp_lower *lower)
{
    const int64_t *i = lower->node->attrs.i, rows = tp_lower_in(lower, 0)->shape.dim[0];
    return (struct sizes){rows, i[N_HEADS], i[N_KV_HEADS], i[HEAD_DIM], (rows + PANEL - 1) / PANEL};
}

/* Operations of `n_products` products over the triangle of (query, key) pairs, at the bound and for one segment. */
static double triangle_flops(int64_t rows, int64_t n_heads, int64_t head_dim, int n_products)
{
    return (double)n_products * (double)rows * (double)(rows + 1) * (double)n_heads * (double)head_dim;
}

static void launch_cost(struct tp_launch *launch, const struct sizes *size, int n_products)
{
    tp_launch_cost(launch, triangle_flops(size->rows, size->n_heads, size->head_dim, n_products),
                   16.0 * (double)(size->rows * size->n_heads * size->head_dim));
}

static struct tp_launch *launch_start(struct tp_lower *lower, const char *source, const char *kernel, const struct tp_operand *reads,
                                      int n_reads)
{
    struct tp_launch *launch = tp_lower_launch(lower, source, kernel);
    tp_launch_option(launch, "-DHEAD_DIM=%d", (int)lower->node->attrs.i[HEAD_DIM]);
    for (int i = 0; i < n_reads; i++) tp_launch_read(lower, launch, reads[i]);
    return launch;
}

/* The last arguments of all kernels: sizes, and what only the kernels over pairs have. */
static void launch_sizes(struct tp_lower *lower, struct tp_launch *launch, int64_t n_heads)
{
    tp_launch_step(launch);
    tp_launch_rows(launch, tp_lower_in(lower, 0));
    tp_launch_u32(launch, (uint32_t)n_heads);
}

static void launch_pairs(struct tp_lower *lower, struct tp_launch *launch, const struct sizes *size, int n_products)
{
    launch_sizes(lower, launch, size->n_heads);
    tp_launch_u32(launch, (uint32_t)size->n_kv_heads);
    tp_launch_f32(launch, (float)lower->node->attrs.f[0]);
    launch_cost(launch, size, n_products);
}

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
static const char cpu_source[] = "cpu/attention.cl", generic_source[] = "generic/attention.cl";

static bool applies_cpu(const struct tp_lower *lower) { return lower->node->attrs.i[HEAD_DIM] % 16 == 0; }

/* Packs an input into panels in new scratch. */
static struct tp_operand pack(struct tp_lower *lower, const struct sizes *size, int input, int64_t n_heads)
{
    const double n = (double)(size->n_panels * PANEL * n_heads * size->head_dim);
    const struct tp_operand panels = tp_scratch(tp_lower_scratch(lower, sizeof(float) * (size_t)n)), from = tp_in(input);
    struct tp_launch *launch = launch_start(lower, cpu_source, "attention_pack", &from, 1);
    tp_launch_write(lower, launch, panels);
    launch_sizes(lower, launch, n_heads);
    tp_launch_groups(launch, (size_t)size->n_panels, (size_t)n_heads, 1, 1, 1, 1);
    tp_launch_cost(launch, 0, 8 * n);
    return panels;
}

/* Groups of the cpu tier take two blocks of `rows` each. */
static size_t block_pairs(const struct sizes *size, int64_t rows) { return (size_t)((size->rows + rows - 1) / rows + 1) / 2; }

/* Groups over blocks of queries: the heads that share keys are neighbours. */
static void launch_queries(struct tp_launch *launch, const struct sizes *size)
{
    tp_launch_groups(launch, (size_t)(size->n_heads / size->n_kv_heads), block_pairs(size, CPU_ROWS), (size_t)size->n_kv_heads, 1, 1, 1);
}

static enum talpa_status lower_forward_cpu(struct tp_lower *lower)
{
    const struct sizes size = sizes_of(lower);
    const struct tp_operand kt = pack(lower, &size, 1, size.n_kv_heads), reads[] = {tp_in(0), kt, tp_in(2), tp_in(3)};
    struct tp_launch *launch = launch_start(lower, cpu_source, "attention_forward", reads, COUNT(reads));
    tp_launch_bf16_options(lower, launch, 0, 1);
    tp_launch_write_forms(lower, launch, 0);
    tp_launch_write(lower, launch, tp_out(1));
    launch_pairs(lower, launch, &size, 2);
    launch_queries(launch, &size);
    return TALPA_OK;
}

static enum talpa_status lower_backward_cpu(struct tp_lower *lower)
{
    const struct sizes size = sizes_of(lower);
    const struct tp_operand q = tp_in(0), k = tp_in(1), v = tp_in(2), out = tp_in(3), lse = tp_in(4), dout = tp_in(5), segments = tp_in(6);
    const struct tp_operand kt = pack(lower, &size, 1, size.n_kv_heads), vt = pack(lower, &size, 2, size.n_kv_heads);
    const struct tp_operand qt = pack(lower, &size, 0, size.n_heads), dt = pack(lower, &size, 5, size.n_heads);
    const size_t row_bytes = sizeof(float) * (size_t)(size.n_heads * size.n_panels * PANEL);
    const struct tp_operand delta = tp_scratch(tp_lower_scratch(lower, row_bytes)), lse_t = tp_scratch(tp_lower_scratch(lower, row_bytes));

    const struct tp_operand delta_reads[] = {out, dout, lse};
    struct tp_launch *launch = launch_start(lower, cpu_source, "attention_delta", delta_reads, COUNT(delta_reads));
    tp_launch_write(lower, launch, delta);
    tp_launch_write(lower, launch, lse_t);
    launch_sizes(lower, launch, size.n_heads);
    tp_launch_groups(launch, (size_t)size.n_panels, (size_t)size.n_heads, 1, 1, 1, 1);
    tp_launch_cost(launch, 2.0 * (double)(size.rows * size.n_heads * size.head_dim),
                   8.0 * (double)(size.rows * size.n_heads * size.head_dim));

    const struct tp_operand dq_reads[] = {q, kt, vt, k, dout, delta, lse_t, segments};
    launch = launch_start(lower, cpu_source, "attention_dq", dq_reads, COUNT(dq_reads));
    tp_launch_write(lower, launch, tp_out(0));
    launch_pairs(lower, launch, &size, 3);
    launch_queries(launch, &size);

    const struct tp_operand dkv_reads[] = {k, v, qt, dt, q, dout, delta, lse_t, segments};
    launch = launch_start(lower, cpu_source, "attention_dkv", dkv_reads, COUNT(dkv_reads));
    tp_launch_bf16_options(lower, launch, 0, 3);
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_write_forms(lower, launch, 2);
    launch_pairs(lower, launch, &size, 4);
    const int64_t together = size.rows > KEY_BLOCKS_FROM ? KEY_BLOCKS : 1;
    tp_launch_groups(launch, block_pairs(&size, together * CPU_ROWS), (size_t)size.n_kv_heads, 1, 1, 1, 1);
    return TALPA_OK;
}

/* Work-group of the generic tier, also an option of all its kernels. */
static void launch_tiles(struct tp_lower *lower, struct tp_launch *launch, const struct sizes *size, int64_t n_heads, int64_t n_slices)
{
    const size_t local = tp_elementwise_local(lower, 128), tx = local < 8 ? local : 8, ty = local / tx;
    tp_launch_option(launch, "-DTX=%d -DTY=%d", (int)tx, (int)ty);
    tp_launch_groups(launch, (size_t)((size->rows + TILE - 1) / TILE), (size_t)n_heads, (size_t)n_slices, tx, ty, 1);
}

static enum talpa_status lower_forward_generic(struct tp_lower *lower)
{
    const struct sizes size = sizes_of(lower);
    const struct tp_operand reads[] = {tp_in(0), tp_in(1), tp_in(2), tp_in(3)};
    struct tp_launch *launch = launch_start(lower, generic_source, "attention_forward", reads, COUNT(reads));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_write(lower, launch, tp_out(1));
    launch_pairs(lower, launch, &size, 2);
    launch_tiles(lower, launch, &size, size.n_heads, 1);
    return TALPA_OK;
}

static enum talpa_status lower_backward_generic(struct tp_lower *lower)
{
    const struct sizes size = sizes_of(lower);
    const struct tp_operand q = tp_in(0), k = tp_in(1), v = tp_in(2), out = tp_in(3), lse = tp_in(4), dout = tp_in(5), segments = tp_in(6);
    const struct tp_operand delta = tp_scratch(tp_lower_scratch(lower, sizeof(float) * (size_t)(size.rows * size.n_heads)));

    const struct tp_operand delta_reads[] = {out, dout};
    struct tp_launch *launch = launch_start(lower, generic_source, "attention_delta", delta_reads, COUNT(delta_reads));
    tp_launch_write(lower, launch, delta);
    launch_sizes(lower, launch, size.n_heads);
    launch_tiles(lower, launch, &size, 1, 1); /* for the options: one program for all kernels */
    const size_t local = tp_elementwise_local(lower, 64);
    tp_launch_groups(launch, ((size_t)(size.rows * size.n_heads) + local - 1) / local, 1, 1, local, 1, 1);
    tp_launch_cost(launch, 2.0 * (double)(size.rows * size.n_heads * size.head_dim),
                   8.0 * (double)(size.rows * size.n_heads * size.head_dim));

    const struct tp_operand reads[] = {q, k, v, dout, delta, lse, segments};
    launch = launch_start(lower, generic_source, "attention_dq", reads, COUNT(reads));
    tp_launch_write(lower, launch, tp_out(0));
    launch_pairs(lower, launch, &size, 3);
    launch_tiles(lower, launch, &size, size.n_heads, 1);

    launch = launch_start(lower, generic_source, "attention_dkv", reads, COUNT(reads));
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_write(lower, launch, tp_out(2));
    launch_pairs(lower, launch, &size, 4);
    launch_tiles(lower, launch, &size, size.n_kv_heads, (size.head_dim + SLICE_MAX - 1) / SLICE_MAX);
    return TALPA_OK;
}

/* out and dv go into products. */
static void layouts_forward_cpu(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)in;
    if (tp_lower_offers_bf16(lower, tp_lower_out(lower, 0))) out[0] = tp_layout_or_row(TP_LAYOUT_ROW_BF16);
}

static void layouts_backward_cpu(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)in;
    if (tp_lower_offers_bf16(lower, tp_lower_out(lower, 2))) out[2] = tp_layout_or_row(TP_LAYOUT_ROW_BF16);
}

static const struct tp_variant variants[] = {{"cpu", applies_cpu, layouts_forward_cpu, lower_forward_cpu},
                                             {"generic", NULL, NULL, lower_forward_generic}};
static const struct tp_variant backward_variants[] = {{"cpu", applies_cpu, layouts_backward_cpu, lower_backward_cpu},
                                                      {"generic", NULL, NULL, lower_backward_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const int64_t *i = node->attrs.i, rows = tp_graph_type(graph, node->in[0])->shape.dim[0];
    const bool is_backward = node->n_in == 7;
    *flops = triangle_flops(rows, i[N_HEADS], i[HEAD_DIM], is_backward ? 5 : 2);
    *bytes = (is_backward ? 8.0 : 4.0) * (double)(rows * (i[N_HEADS] + i[N_KV_HEADS]) * i[HEAD_DIM]);
}

/* ---- reference and cases ---- */

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void reference_forward(const struct tp_reference *work)
{
    const int64_t rows = work->in_type[0].shape.dim[0], nh = work->attrs->i[N_HEADS], nk = work->attrs->i[N_KV_HEADS];
    const int64_t d = work->attrs->i[HEAD_DIM];
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t h = 0; h < nh; h++) {
            const int64_t kv = h / (nh / nk), first = (int64_t)work->in[3][2 * t];
            const double *q = work->in[0] + (t * nh + h) * d;
            double *out = work->out[0] + (t * nh + h) * d, highest = -HUGE_VAL, sum = 0;
            for (int64_t j = first; j <= t; j++) highest = fmax(highest, work->attrs->f[0] * dot(q, work->in[1] + (j * nk + kv) * d, d));
            for (int64_t i = 0; i < d; i++) out[i] = 0;
            for (int64_t j = first; j <= t; j++) {
                const double e = exp(work->attrs->f[0] * dot(q, work->in[1] + (j * nk + kv) * d, d) - highest);
                sum += e;
                for (int64_t i = 0; i < d; i++) out[i] += e * work->in[2][(j * nk + kv) * d + i];
            }
            for (int64_t i = 0; i < d; i++) out[i] /= sum;
            work->out[1][t * nh + h] = highest + log(sum);
        }
    }
}

/* The chain rule pair by pair; out and lse are taken as given, consistent or not. */
static void reference_backward(const struct tp_reference *work)
{
    const int64_t rows = work->in_type[0].shape.dim[0], nh = work->attrs->i[N_HEADS], nk = work->attrs->i[N_KV_HEADS];
    const int64_t d = work->attrs->i[HEAD_DIM];
    const double scale = work->attrs->f[0];
    for (int o = 0; o < 3; o++)
        for (int64_t i = 0; i < rows * (o == 0 ? nh : nk) * d; i++) work->out[o][i] = 0;
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t h = 0; h < nh; h++) {
            const int64_t row = (t * nh + h) * d;
            const double *q = work->in[0] + row, *dout = work->in[5] + row, delta = dot(dout, work->in[3] + row, d);
            for (int64_t j = (int64_t)work->in[6][2 * t]; j <= t; j++) {
                const int64_t at = (j * nk + h / (nh / nk)) * d;
                const double p = exp(scale * dot(q, work->in[1] + at, d) - work->in[4][t * nh + h]);
                const double ds = scale * p * (dot(dout, work->in[2] + at, d) - delta);
                for (int64_t i = 0; i < d; i++) {
                    work->out[0][row + i] += ds * work->in[1][at + i];
                    work->out[1][at + i] += ds * q[i];
                    work->out[2][at + i] += p * dout[i];
                }
            }
        }
    }
}

#define ROWS(t, n, wants_grad)                                                                                                             \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_NORMAL, .scale = 1, .rows = TP_STEP_N_TOKENS, .dim = {t, n}, .grad = wants_grad                  \
    }
#define LSE(t, n)                                                                                                                          \
    {                                                                                                                                      \
        .dtype = TALPA_F32, .gen = TP_GEN_UNIFORM, .scale = 3, .rows = TP_STEP_N_TOKENS, .dim = { t, n }                                   \
    }
#define SEGMENTS(t)                                                                                                                        \
    {                                                                                                                                      \
        .dtype = TALPA_I32, .gen = TP_GEN_SEGMENTS, .rows = TP_STEP_N_TOKENS, .dim = { t, 2 }                                              \
    }
#define FORWARD(t, nh, nk, d, wants_grad)                                                                                                  \
    .in = {ROWS(t, (nh) * (d), wants_grad), ROWS(t, (nk) * (d), wants_grad), ROWS(t, (nk) * (d), wants_grad), SEGMENTS(t)}, .n_in = 4,     \
    .attrs = {.i = {nh, nk, d}, .f = {0.25}}
#define BACKWARD(t, nh, nk, d)                                                                                                             \
    .in = {ROWS(t, (nh) * (d), false),                                                                                                     \
           ROWS(t, (nk) * (d), false),                                                                                                     \
           ROWS(t, (nk) * (d), false),                                                                                                     \
           ROWS(t, (nh) * (d), false),                                                                                                     \
           LSE(t, nh),                                                                                                                     \
           ROWS(t, (nh) * (d), false),                                                                                                     \
           SEGMENTS(t)},                                                                                                                   \
    .n_in = 7, .attrs = {.i = {nh, nk, d}, .f = {0.0625}}, .tolerance = 5e-5

static const struct tp_case cases[] = {
    {.name = "one row", FORWARD(1, 1, 1, 16, true)},
    {.name = "odd, fewer rows", FORWARD(33, 3, 3, 16, true), .n_tokens = 19, .segment_length = 7},
    {.name = "three segments, 9 heads of 3", FORWARD(65, 9, 3, 64, true), .segment_length = 24},
    {.name = "one kv head", FORWARD(40, 3, 1, 16, true)},
    {.name = "long segment", FORWARD(300, 2, 1, 64, true), .n_tokens = 299},
    {.name = "head_dim 80", FORWARD(50, 2, 1, 80, true), .segment_length = 31},
    {.name = "head_dim 20", FORWARD(37, 2, 1, 20, true), .segment_length = 31},
    {.name = "head_dim 7", FORWARD(5, 1, 1, 7, true)},
    {.name = "head_dim 256", FORWARD(45, 1, 1, 256, false), .tolerance = 5e-5},
    {.name = "rows of one", FORWARD(13, 2, 2, 32, true), .segment_length = 1},
    {.name = "3 rows of 130", FORWARD(130, 3, 1, 16, true), .n_tokens = 3},
};
static const struct tp_case backward_cases[] = {
    {.name = "one row", BACKWARD(1, 1, 1, 16)},
    {.name = "odd, fewer rows", BACKWARD(33, 3, 3, 16), .n_tokens = 19, .segment_length = 7},
    {.name = "three segments, 9 heads of 3", BACKWARD(65, 9, 3, 64), .segment_length = 24},
    {.name = "one kv head, long segment", BACKWARD(300, 3, 1, 64), .n_tokens = 299},
    {.name = "head_dim 80", BACKWARD(50, 2, 1, 80), .segment_length = 31},
    {.name = "head_dim 20", BACKWARD(37, 2, 1, 20), .segment_length = 31},
    {.name = "head_dim 256", BACKWARD(45, 1, 1, 256)},
    {.name = "3 rows of 130", BACKWARD(130, 3, 1, 16), .n_tokens = 3},
    {.name = "311 of 2100 rows, three segments", BACKWARD(2100, 2, 1, 16), .n_tokens = 311, .segment_length = 120},
};

const struct tp_op tp_op_attention = {
    .name = "attention",
    .in_names = {"q", "k", "v", "segments"},
    .attr_i = {"n_heads", "n_kv_heads", "head_dim"},
    .attr_f = {"scale"},
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = COUNT(variants),
    .cost = cost,
    .opaque = {false, true}, /* no gradient from lse; a wrong one shows in the gradients of q and k */
    .cases = cases,
    .n_cases = COUNT(cases),
    .reference = reference_forward,
};

const struct tp_op tp_op_attention_backward = {
    .name = "attention_backward",
    .in_names = {"q", "k", "v", "out", "lse", "dout", "segments"},
    .attr_i = {"n_heads", "n_kv_heads", "head_dim"},
    .attr_f = {"scale"},
    .infer = infer_backward,
    .no_gradient = "it is a gradient itself",
    .variants = backward_variants,
    .n_variants = COUNT(backward_variants),
    .cost = cost,
    .cases = backward_cases,
    .n_cases = COUNT(backward_cases),
    .reference = reference_backward,
};
