#include "gemm.h"

#include <string.h>

#include "base/dtype.h"

/* matmul: inputs a, b, c (optional); attributes i[0] transpose_a, i[1] transpose_b. */
extern const struct tp_op tp_op_matmul;

enum { A, B, C, N_IN };

/* ---- types ---- */

/* A dimension that may have a run-time size: its bound and its step word. */
struct dimension {
    int64_t n;
    enum tp_step_word rows;
};

static struct dimension dimension_of(const struct tp_type *type, bool first)
{
    return (struct dimension){type->shape.dim[first ? 0 : 1], first ? type->rows : TP_STEP_NONE};
}

static bool is_weight_dtype(enum talpa_dtype dtype) { return dtype != TALPA_I32 && dtype < TALPA_N_DTYPES; }

static enum talpa_status infer(struct tp_infer *infer)
{
    const bool ta = infer->attrs->i[0] != 0, tb = infer->attrs->i[1] != 0;
    TP_TRY(tp_infer_expect(infer, A, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, B, 2, TALPA_N_DTYPES));
    const struct tp_type *a = infer->in[A], *b = infer->in[B], *c = infer->n_in > C ? infer->in[C] : NULL;
    const struct dimension m = dimension_of(a, !ta), k = dimension_of(a, ta), kb = dimension_of(b, !tb), n = dimension_of(b, tb);
    if (!is_weight_dtype(b->dtype)) return tp_infer_fail(infer, B, "f32, f16, bf16 or a quantised type");
    if (kb.n != k.n)
        return tp_infer_fail(infer, B, "a matrix whose dimension %d is %lld, as dimension %d of a", tb ? 1 : 0, (long long)k.n, ta ? 0 : 1);
    if (kb.rows != k.rows) return tp_infer_fail(infer, B, "the same run-time size of the summed dimension as in a");
    if (n.rows) return tp_infer_fail(infer, B, "a number of columns of the result that is known beforehand, not one of run time");
    if (b->shape.dim[1] % tp_dtype_block(b->dtype)) return tp_infer_fail(infer, B, "rows of whole blocks of %d", tp_dtype_block(b->dtype));
    infer->out[0] = tp_type_2d(TALPA_F32, m.rows, m.n, n.n);
    infer->n_out = 1;
    if (c && !tp_type_equal(c, &infer->out[0]))
        return tp_infer_fail(infer, C, "[%lld, %lld] f32 with the rows of the result", (long long)m.n, (long long)n.n);
    return TALPA_OK;
}

static enum talpa_status product(talpa_value *out, struct talpa_graph *graph, talpa_value a, talpa_value b, bool transpose_a,
                                 bool transpose_b)
{
    return talpa_matmul(out, graph, a, b, TALPA_NONE, transpose_a, transpose_b);
}

/* With y = c + a' b' (a' = a or its transpose): da' = dy b'^T, db' = a'^T dy, written so that each gradient comes out as stored. */
static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    const talpa_value a = node->in[A], b = node->in[B], dy = out_grads[0];
    const bool ta = node->attrs.i[0] != 0, tb = node->attrs.i[1] != 0, b_is_f32 = tp_graph_type(graph, b)->dtype == TALPA_F32;
    if (dy == TP_NONE) return TALPA_OK;
    if (wanted[A]) {
        if (!ta) TP_TRY(product(&in_grads[A], graph, dy, b, false, !tb));
        else if (b_is_f32) TP_TRY(product(&in_grads[A], graph, b, dy, tb, true));
        else return tp_fail(TALPA_E_ARGUMENT, "matmul: no gradient with respect to a transposed a when b is not f32");
    }
    if (wanted[B]) {
        if (!b_is_f32) return tp_fail(TALPA_E_ARGUMENT, "matmul: no gradient with respect to b, which is %s; only f32 can be trained",
                                      tp_dtype_name(tp_graph_type(graph, b)->dtype));
        if (tb) TP_TRY(product(&in_grads[B], graph, dy, a, true, ta));
        else TP_TRY(product(&in_grads[B], graph, a, dy, !ta, false));
    }
    if (node->n_in > C && wanted[C]) in_grads[C] = dy;
    return TALPA_OK;
}

/* ---- lowering ---- */

static struct tp_gemm describe(const struct tp_lower *lower)
{
    const bool ta = lower->node->attrs.i[0] != 0, tb = lower->node->attrs.i[1] != 0;
    const struct tp_type *a = tp_lower_in(lower, A), *b = tp_lower_in(lower, B), *out = tp_lower_out(lower, 0);
    const struct dimension k = dimension_of(a, ta);
    struct tp_gemm gemm = {.a = tp_in(A),
                           .b = tp_in(B),
                           .out = tp_out(0),
                           .m = out->shape.dim[0],
                           .n = out->shape.dim[1],
                           .k = k.n,
                           .m_rows = out->rows,
                           .k_rows = k.rows,
                           .a_stride_m = ta ? 1 : k.n,
                           .a_stride_k = ta ? out->shape.dim[0] : 1,
                           .a_layout = lower->in_layout[A],
                           .b_layout = lower->in_layout[B],
                           .out_layout = tp_lower_out_layout(lower, 0),
                           .b_dtype = b->dtype,
                           .b_is_nk = tb,
                           .out_stride = out->shape.dim[1],
                           .has_c = tp_lower_has_in(lower, C),
                           .c = tp_in(C)};
    if (gemm.a_layout == TP_LAYOUT_ROW_BF16) gemm.a_stride_m = (k.n + TP_PANEL - 1) / TP_PANEL * TP_PANEL;
    if (gemm.out_layout == TP_LAYOUT_ROW_BF16) gemm.out_stride = (gemm.n + TP_PANEL - 1) / TP_PANEL * TP_PANEL;
    gemm.b_stride = gemm.b_layout == TP_LAYOUT_ROW || gemm.b_layout == TP_LAYOUT_QUANT ? b->shape.dim[1] : k.n;
    return gemm;
}

/* Other frozen weights are kept in panels, unless memory matters more: then they stay as in the file and each run decodes them. */
static bool applies_cpu(const struct tp_lower *lower)
{
    return tp_gemm_wants_quant(lower, B) ||
           !(lower->options->base_dtype == TP_BASE_NATIVE && tp_graph_value(lower->graph, lower->node->in[B])->kind == TP_WEIGHT);
}

static void layouts_cpu(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    if (tp_gemm_wants_quant(lower, B)) {
        in[B] = TP_LAYOUT_QUANT;
        return;
    }
    const struct tp_gemm as_rows = describe(lower);
    const bool is_weight = tp_graph_value(lower->graph, lower->node->in[B])->kind == TP_WEIGHT;
    if (tp_gemm_reads_rows(&as_rows) && (as_rows.b_is_nk || !is_weight)) return;
    const bool bf16 = is_weight && lower->options->base_dtype == TP_BASE_BF16;
    in[B] = as_rows.b_is_nk ? (bf16 ? TP_LAYOUT_PANEL_BF16 : TP_LAYOUT_PANEL_F32) : (bf16 ? TP_LAYOUT_PANEL_T_BF16 : TP_LAYOUT_PANEL_T_F32);
}

/* Frozen weights with more rows than the few that are a matter of memory bandwidth; what is trained or computed stays in f32. */
static bool applies_x86(const struct tp_lower *lower)
{
    const bool is_weight = tp_graph_value(lower->graph, lower->node->in[B])->kind == TP_WEIGHT;
    return is_weight && !lower->node->attrs.i[0] && !tp_gemm_is_few(lower, tp_lower_out(lower, 0));
}

/* y = x W^T of few rows with a quantised weight, also where bf16 was asked for: the weight is what takes time to read. */
static bool applies_dot(const struct tp_lower *lower)
{
    return tp_gemm_wants_quant(lower, B) && !lower->node->attrs.i[0] && lower->node->attrs.i[1] && tp_gemm_is_few(lower, tp_lower_out(lower, 0));
}

/* Decoding a panel of a quantised weight costs AVX512-BF16 a few percent of the product, AMX a good part of it: there it has to be asked for. */
static void choose_x86(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out, bool decodes)
{
    in[A] = TP_LAYOUT_ROW_BF16;
    in[B] = decodes && tp_gemm_wants_quant(lower, B) ? TP_LAYOUT_QUANT : lower->node->attrs.i[1] ? TP_LAYOUT_TILE_BF16 : TP_LAYOUT_TILE_T_BF16;
    /* A weight in parts may be summed up in several launches, which takes f32. */
    if (!tp_lower_has_in(lower, C) && tp_lower_n_parts(lower, B) == 1) out[0] = TP_LAYOUT_ROW_BF16;
}

static void layouts_x86_amx(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    choose_x86(lower, in, out, lower->options->base_dtype == TP_BASE_NATIVE);
}

static void layouts_x86_bf16(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    choose_x86(lower, in, out, true);
}

static bool applies_clblast(const struct tp_lower *lower)
{
    const struct tp_gemm gemm = describe(lower);
    return tp_gemm_accepts(lower, &gemm, "clblast");
}

static enum talpa_status lower_tier(struct tp_lower *lower, const char *tier)
{
    struct tp_gemm gemm = describe(lower);
    const bool decodes = strcmp(tier, "generic") && strcmp(tier, "clblast");
    const size_t panel_bytes = decodes ? tp_gemm_panel_bytes(lower, &gemm) : 0;
    if (panel_bytes) gemm.panels = tp_scratch(tp_lower_scratch(lower, panel_bytes));
    return tp_gemm_emit(lower, &gemm, tier);
}

static enum talpa_status lower_cpu(struct tp_lower *lower) { return lower_tier(lower, "cpu"); }
static enum talpa_status lower_dot(struct tp_lower *lower, const char *tier)
{
    struct tp_gemm gemm = describe(lower);
    gemm.panels = tp_scratch(tp_lower_scratch(lower, tp_gemm_dot_bytes(lower, &gemm)));
    return tp_gemm_emit(lower, &gemm, tier);
}
static enum talpa_status lower_x86_vnni(struct tp_lower *lower) { return lower_dot(lower, "x86_vnni"); }
static enum talpa_status lower_x86_avx2(struct tp_lower *lower) { return lower_dot(lower, "x86_avx2"); }
static enum talpa_status lower_x86_amx(struct tp_lower *lower) { return lower_tier(lower, "x86_amx"); }
static enum talpa_status lower_x86_bf16(struct tp_lower *lower) { return lower_tier(lower, "x86_bf16"); }
static enum talpa_status lower_clblast(struct tp_lower *lower) { return lower_tier(lower, "clblast"); }
static enum talpa_status lower_generic(struct tp_lower *lower) { return lower_tier(lower, "generic"); }

static const struct tp_variant variants[] = {{"clblast", applies_clblast, NULL, lower_clblast},
                                             {"x86_vnni", applies_dot, layouts_cpu, lower_x86_vnni},
                                             {"x86_avx2", applies_dot, layouts_cpu, lower_x86_avx2},
                                             {"x86_amx", applies_x86, layouts_x86_amx, lower_x86_amx},
                                             {"x86_bf16", applies_x86, layouts_x86_bf16, lower_x86_bf16},
                                             {"cpu", applies_cpu, layouts_cpu, lower_cpu},
                                             {"cpu", NULL, NULL, lower_cpu},
                                             {"generic", NULL, NULL, lower_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *a = tp_graph_type(graph, node->in[A]), *out = tp_graph_type(graph, node->out[0]);
    const double k = (double)a->shape.dim[node->attrs.i[0] ? 0 : 1];
    *flops = 2.0 * k * (double)tp_type_elements(out);
    *bytes = (double)tp_type_bytes(a) + (double)tp_type_bytes(tp_graph_type(graph, node->in[B])) + (double)tp_type_bytes(out);
    if (node->n_in > C && node->in[C] != TP_NONE) *bytes += (double)tp_type_bytes(out);
}

/* ---- reference and cases ---- */

static void reference(const struct tp_reference *work)
{
    const bool ta = work->attrs->i[0] != 0, tb = work->attrs->i[1] != 0;
    const int64_t *a = work->in_type[A].shape.dim, *b = work->in_type[B].shape.dim;
    const int64_t m = a[ta ? 1 : 0], k = a[ta ? 0 : 1], n = b[tb ? 0 : 1];
    const double *c = work->n_in > C ? work->in[C] : NULL;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = c ? c[i * n + j] : 0;
            for (int64_t l = 0; l < k; l++) sum += work->in[A][ta ? l * m + i : i * k + l] * work->in[B][tb ? j * k + l : l * n + j];
            work->out[0][i * n + j] = sum;
        }
}

#define ROWS(t, n, grad) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_N_TOKENS, {t, n}, grad}
#define MATRIX(n, m, grad) {TALPA_F32, TP_STATE, TP_GEN_NORMAL, 1, TP_STEP_NONE, {n, m}, grad}
#define WEIGHT(dtype, n, m) {dtype, TP_WEIGHT, TP_GEN_NORMAL, 0.5, TP_STEP_NONE, {n, m}, false}
#define ABSENT {TALPA_F32, TP_INPUT, TP_GEN_ZERO, 0, TP_STEP_NONE, {0}, false}
#define NT {.i = {0, 1}}
#define NN {.i = {0, 0}}
#define TN {.i = {1, 0}}
#define TT {.i = {1, 1}}

static const struct tp_case cases[] = {
    {.name = "x W^T", .in = {ROWS(33, 65, true), MATRIX(35, 65, true), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 17},
    {.name = "x W^T added", .in = {ROWS(29, 31, true), MATRIX(67, 31, true), ROWS(29, 67, true)},
     .n_in = 3, .attrs = NT, .n_tokens = 25},
    {.name = "x W", .in = {ROWS(13, 3, true), MATRIX(3, 33, true), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 12},
    {.name = "x W whole panels", .in = {ROWS(41, 7, true), MATRIX(7, 96, true), ROWS(41, 96, true)},
     .n_in = 3, .attrs = NN, .n_tokens = 31},
    {.name = "x^T y", .in = {ROWS(37, 19, true), ROWS(37, 64, true), ABSENT}, .n_in = 3, .attrs = TN, .n_tokens = 23},
    {.name = "x^T y odd", .in = {ROWS(9, 1, true), ROWS(9, 35, true), MATRIX(1, 35, true)}, .n_in = 3, .attrs = TN, .n_tokens = 3},
    {.name = "A^T B^T", .in = {MATRIX(5, 14, true), MATRIX(33, 5, true), ABSENT}, .n_in = 3, .attrs = TT},
    {.name = "one by one", .in = {MATRIX(1, 1, true), MATRIX(1, 1, true), MATRIX(1, 1, true)}, .n_in = 3, .attrs = NN},
    {.name = "one token", .in = {ROWS(24, 64, false), WEIGHT(TALPA_F32, 96, 64), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 1},
    {.name = "router", .in = {ROWS(50, 77, true), MATRIX(8, 77, true), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 49},
    {.name = "threshold", .in = {ROWS(6, 16, true), MATRIX(1, 16, true), ROWS(6, 1, true)}, .n_in = 3, .attrs = NT, .n_tokens = 5},
    {.name = "f32 W^T", .in = {ROWS(26, 33, true), WEIGHT(TALPA_F32, 70, 33), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 22},
    {.name = "f32 W", .in = {ROWS(26, 33, true), WEIGHT(TALPA_F32, 33, 70), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 22},
    {.name = "f16 W^T", .in = {ROWS(21, 45, true), WEIGHT(TALPA_F16, 33, 45), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 20},
    {.name = "f16 W", .in = {ROWS(21, 33, true), WEIGHT(TALPA_F16, 33, 45), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 20},
    {.name = "bf16 W^T", .in = {ROWS(21, 45, true), WEIGHT(TALPA_BF16, 33, 45), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 20},
    {.name = "bf16 W", .in = {ROWS(21, 33, true), WEIGHT(TALPA_BF16, 33, 45), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 20},
    {.name = "q8_0 W^T", .in = {ROWS(21, 96, true), WEIGHT(TALPA_Q8_0, 33, 96), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 20},
    {.name = "q8_0 W", .in = {ROWS(21, 33, true), WEIGHT(TALPA_Q8_0, 33, 96), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 20},
    {.name = "q4_0 W^T", .in = {ROWS(21, 96, true), WEIGHT(TALPA_Q4_0, 33, 96), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 20},
    {.name = "q4_0 W", .in = {ROWS(21, 33, true), WEIGHT(TALPA_Q4_0, 33, 96), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 20},
    {.name = "q4_1 W^T", .in = {ROWS(21, 96, true), WEIGHT(TALPA_Q4_1, 33, 96), ROWS(21, 33, true)},
     .n_in = 3, .attrs = NT, .n_tokens = 20},
    {.name = "q4_1 W", .in = {ROWS(21, 33, true), WEIGHT(TALPA_Q4_1, 33, 96), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 20},
    {.name = "q5_0 W^T", .in = {ROWS(21, 96, true), WEIGHT(TALPA_Q5_0, 33, 96), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 20},
    {.name = "q5_1 W", .in = {ROWS(21, 33, true), WEIGHT(TALPA_Q5_1, 33, 96), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 20},
    {.name = "q4_k W^T", .in = {ROWS(9, 256, true), WEIGHT(TALPA_Q4_K, 33, 256), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 7},
    {.name = "q4_k W", .in = {ROWS(9, 33, true), WEIGHT(TALPA_Q4_K, 33, 256), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 7},
    {.name = "q5_k W^T", .in = {ROWS(9, 512, true), WEIGHT(TALPA_Q5_K, 33, 512), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 7},
    {.name = "q6_k W^T", .in = {ROWS(9, 256, true), WEIGHT(TALPA_Q6_K, 33, 256), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 7},
    {.name = "q6_k W", .in = {ROWS(9, 33, true), WEIGHT(TALPA_Q6_K, 33, 256), ABSENT}, .n_in = 3, .attrs = NN, .n_tokens = 7},
    {.name = "q4_1 router", .in = {ROWS(7, 64, true), WEIGHT(TALPA_Q4_1, 5, 64), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 6},
    {.name = "model", .in = {ROWS(64, 576, false), WEIGHT(TALPA_Q4_1, 192, 576), ABSENT},
     .n_in = 3, .attrs = NT, .n_tokens = 63, .tolerance = 3e-5},
    {.name = "3 rows of 130", .in = {ROWS(130, 33, true), MATRIX(70, 33, true), ROWS(130, 70, true)},
     .n_in = 3, .attrs = NT, .n_tokens = 3},
    {.name = "3 rows of 130, transposed", .in = {ROWS(130, 35, true), ROWS(130, 40, true), ABSENT}, .n_in = 3, .attrs = TN, .n_tokens = 3},
    {.name = "1 row, q4_0", .in = {ROWS(1, 96, true), WEIGHT(TALPA_Q4_0, 70, 96), ABSENT}, .n_in = 3, .attrs = NT},
    {.name = "4 rows of 8, q4_1", .in = {ROWS(8, 96, true), WEIGHT(TALPA_Q4_1, 70, 96), ROWS(8, 70, true)}, .n_in = 3, .attrs = NT, .n_tokens = 4},
    {.name = "3 rows, q5_0", .in = {ROWS(3, 64, true), WEIGHT(TALPA_Q5_0, 33, 64), ABSENT}, .n_in = 3, .attrs = NT},
    {.name = "6 rows of 8, q5_1", .in = {ROWS(8, 64, true), WEIGHT(TALPA_Q5_1, 33, 64), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 6},
    {.name = "7 rows, q8_0", .in = {ROWS(7, 64, true), WEIGHT(TALPA_Q8_0, 96, 64), ROWS(7, 96, true)}, .n_in = 3, .attrs = NT},
    {.name = "5 rows of 8, q4_k", .in = {ROWS(8, 256, true), WEIGHT(TALPA_Q4_K, 33, 256), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 5},
    {.name = "2 rows, q5_k", .in = {ROWS(2, 256, true), WEIGHT(TALPA_Q5_K, 65, 256), ABSENT}, .n_in = 3, .attrs = NT},
    {.name = "8 rows, q6_k", .in = {ROWS(8, 256, true), WEIGHT(TALPA_Q6_K, 33, 256), ABSENT}, .n_in = 3, .attrs = NT},
    {.name = "3 rows, bf16", .in = {ROWS(3, 45, true), WEIGHT(TALPA_BF16, 70, 45), ABSENT}, .n_in = 3, .attrs = NT},
    {.name = "1 row of 6, f32", .in = {ROWS(6, 33, true), WEIGHT(TALPA_F32, 70, 33), ROWS(6, 70, true)}, .n_in = 3, .attrs = NT, .n_tokens = 1},
    {.name = "3 rows of 130, q8_0", .in = {ROWS(130, 64, true), WEIGHT(TALPA_Q8_0, 96, 64), ABSENT}, .n_in = 3, .attrs = NT, .n_tokens = 3},
};

const struct tp_op tp_op_matmul = {
    .name = "matmul",
    .in_names = {"a", "b", "c?"},
    .attr_i = {"transpose_a", "transpose_b"},
    .infer = infer,
    .gradient = gradient,
    .variants = variants,
    .n_variants = sizeof variants / sizeof *variants,
    .cost = cost,
    .inplace = {1 + C},
    .addend = 1 + C,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

enum talpa_status talpa_matmul(talpa_value *out, struct talpa_graph *graph, talpa_value a, talpa_value b, talpa_value c, bool transpose_a,
                               bool transpose_b)
{
    const struct tp_attrs attrs = {.i = {transpose_a, transpose_b}};
    return tp_graph_node(graph, &tp_op_matmul, (const talpa_value[]){a, b, c}, N_IN, &attrs, out);
}
