#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "gemm.h"
#include "elementwise.h"

/* linear_cross_entropy: inputs hidden [T, d], weight [V, d], rows [R], labels [R]; outputs loss [1], nll [R], lse [R] (for the gradient).
 * linear_cross_entropy_backward: the same inputs, with the weight given twice so that the plan may keep it in two layouts (for the logits
 * and for d_hidden), then lse and the gradients of the three outputs, each optional; output d_hidden [T, d].
 * Both walk the vocabulary in blocks; the T x V matrix never exists. */
extern const struct tp_op tp_op_linear_cross_entropy, tp_op_linear_cross_entropy_backward;

enum { HIDDEN, WEIGHT, ROWS, LABELS, N_IN };
enum { B_HIDDEN, B_WEIGHT, B_WEIGHT_T, B_ROWS, B_LABELS, B_LSE, B_DLOSS, B_DNLL, B_DLSE, B_N_IN };
enum { LOSS, NLL, LSE };

enum {
    BLOCK_COLUMNS = 4096, /* a multiple of a panel */
    STRIDE_PADDING = 16   /* keeps rows of logits off the same cache set */
};

/* ---- types ---- */

static enum talpa_status infer_operands(struct tp_infer *infer, int hidden, int weight, int rows, int labels)
{
    TP_TRY(tp_infer_expect(infer, hidden, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, weight, 2, TALPA_N_DTYPES));
    TP_TRY(tp_infer_expect(infer, rows, 1, TALPA_I32));
    TP_TRY(tp_infer_expect(infer, labels, 1, TALPA_I32));
    const struct tp_type *h = infer->in[hidden], *w = infer->in[weight];
    if (w->dtype == TALPA_I32 || w->rows) return tp_infer_fail(infer, weight, "a matrix [V, d] of weights");
    if (w->shape.dim[1] != h->shape.dim[1]) return tp_infer_fail(infer, weight, "[V, %lld]", (long long)h->shape.dim[1]);
    const int block = tp_dtype_block(w->dtype);
    if (w->shape.dim[1] % block) return tp_infer_fail(infer, weight, "rows of whole blocks of %d", block);
    if (!tp_type_equal(infer->in[labels], infer->in[rows])) return tp_infer_fail(infer, labels, "one label per entry of rows");
    return TALPA_OK;
}

static enum talpa_status infer_forward(struct tp_infer *infer)
{
    TP_TRY(infer_operands(infer, HIDDEN, WEIGHT, ROWS, LABELS));
    infer->out[LOSS] = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    infer->out[NLL] = infer->out[LSE] = tp_type_1d(TALPA_F32, infer->in[ROWS]->rows, infer->in[ROWS]->shape.dim[0]);
    infer->n_out = 3;
    return TALPA_OK;
}

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    TP_TRY(infer_operands(infer, B_HIDDEN, B_WEIGHT, B_ROWS, B_LABELS));
    TP_TRY(tp_infer_expect(infer, B_WEIGHT_T, 2, TALPA_N_DTYPES));
    if (!tp_type_equal(infer->in[B_WEIGHT_T], infer->in[B_WEIGHT])) return tp_infer_fail(infer, B_WEIGHT_T, "the type of weight");
    const struct tp_type scalar = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    const struct tp_type per_row = tp_type_1d(TALPA_F32, infer->in[B_ROWS]->rows, infer->in[B_ROWS]->shape.dim[0]);
    TP_TRY(tp_infer_expect(infer, B_LSE, 1, TALPA_F32));
    if (!tp_type_equal(infer->in[B_LSE], &per_row)) return tp_infer_fail(infer, B_LSE, "one value per entry of rows");
    if (infer->in[B_DLOSS] && !tp_type_equal(infer->in[B_DLOSS], &scalar)) return tp_infer_fail(infer, B_DLOSS, "[1] f32");
    for (int i = B_DNLL; i <= B_DLSE; i++)
        if (infer->in[i] && !tp_type_equal(infer->in[i], &per_row)) return tp_infer_fail(infer, i, "one f32 value per entry of rows");
    infer->out[0] = *infer->in[B_HIDDEN];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (wanted[WEIGHT]) return tp_fail(TALPA_E_ARGUMENT, "linear_cross_entropy: no gradient with respect to weight: it is frozen");
    if (!wanted[HIDDEN]) return TALPA_OK;
    const talpa_value in[B_N_IN] = {
        [B_HIDDEN] = node->in[HIDDEN], [B_WEIGHT] = node->in[WEIGHT], [B_WEIGHT_T] = node->in[WEIGHT],
        [B_ROWS] = node->in[ROWS],     [B_LABELS] = node->in[LABELS], [B_LSE] = node->out[LSE],
        [B_DLOSS] = out_grads[LOSS],   [B_DNLL] = out_grads[NLL],     [B_DLSE] = out_grads[LSE],
    };
    return tp_graph_node(graph, &tp_op_linear_cross_entropy_backward, in, B_N_IN, NULL, &in_grads[HIDDEN]);
}

/* ---- lowering ---- */

/* What the forward and the backward part have in common. */
struct work {
    struct tp_lower *lower;
    const char *tier, *source; /* of the product and of the passes over logits */
    bool on_cpu;
    const struct tp_type *hidden, *weight, *rows;
    int64_t block, stride; /* columns of a block of logits, elements between its rows */
    struct tp_operand x, logits; /* scratch: gathered rows, logits */
    struct tp_operand panels;    /* scratch of the products, if they need any; shared, as they run one after the other */
    size_t row_bytes;
};

static const char *const GENERIC = "generic/linear_cross_entropy.cl";

static struct work begin(struct tp_lower *lower, bool on_cpu, const struct tp_type *rows)
{
    struct work work = {.lower = lower,
                        .tier = on_cpu ? "cpu" : "generic",
                        .source = on_cpu ? "cpu/linear_cross_entropy.cl" : GENERIC,
                        .on_cpu = on_cpu,
                        .hidden = tp_lower_in(lower, 0),
                        .weight = tp_lower_in(lower, 1),
                        .rows = rows};
    const int64_t n_rows = rows->shape.dim[0], vocabulary = work.weight->shape.dim[0];
    const uint64_t row_limit = lower->caps->max_alloc_bytes / sizeof(float) / (uint64_t)n_rows;
    work.block = BLOCK_COLUMNS;
    while (work.block > TP_PANEL && (uint64_t)(work.block + STRIDE_PADDING) > row_limit) work.block /= 2;
    if (work.block > vocabulary) work.block = (vocabulary + TP_PANEL - 1) / TP_PANEL * TP_PANEL;
    work.stride = work.block + STRIDE_PADDING;
    work.row_bytes = (size_t)n_rows * (size_t)work.hidden->shape.dim[1] * sizeof(float);
    work.x = tp_scratch(tp_lower_scratch(lower, work.row_bytes));
    work.logits = tp_scratch(tp_lower_scratch(lower, (size_t)n_rows * (size_t)work.stride * sizeof(float)));
    return work;
}

static struct tp_gemm describe_logits(const struct work *work, int weight_input, int64_t first, int64_t n)
{
    const int64_t d = work->hidden->shape.dim[1];
    return (struct tp_gemm){.a = work->x,
                            .b = tp_in(weight_input),
                            .out = work->logits,
                            .m = work->rows->shape.dim[0],
                            .n = n,
                            .k = d,
                            .m_rows = work->rows->rows,
                            .a_stride_m = d,
                            .a_stride_k = 1,
                            .b_layout = work->lower->in_layout[weight_input],
                            .b_dtype = work->weight->dtype,
                            .b_is_nk = true,
                            .b_stride = d,
                            .b_first_n = first,
                            .out_stride = work->stride,
                            .panels = work->panels};
}

/* dx += logits W over one block. */
static struct tp_gemm describe_back(const struct work *work, struct tp_operand dx, int64_t first, int64_t n)
{
    const int64_t d = work->hidden->shape.dim[1];
    const enum tp_layout layout = work->lower->in_layout[B_WEIGHT_T];
    return (struct tp_gemm){.a = work->logits,
                            .b = tp_in(B_WEIGHT_T),
                            .out = dx,
                            .m = work->rows->shape.dim[0],
                            .n = d,
                            .k = n,
                            .m_rows = work->rows->rows,
                            .a_stride_m = work->stride,
                            .a_stride_k = 1,
                            .b_layout = layout,
                            .b_dtype = work->weight->dtype,
                            .b_stride = layout == TP_LAYOUT_ROW || layout == TP_LAYOUT_QUANT ? d : work->weight->shape.dim[0],
                            .b_first_k = first,
                            .out_stride = d,
                            .accumulate = first > 0,
                            .panels = work->panels};
}

static void reserve_panels(struct work *work, size_t n_bytes)
{
    if (work->on_cpu && n_bytes) work->panels = tp_scratch(tp_lower_scratch(work->lower, n_bytes));
}

/* gather (hidden -> x) or scatter (x -> d_hidden): one group per row of the destination. */
static void move_rows(struct work *work, const char *kernel, struct tp_operand from, int rows_input, struct tp_operand to, int64_t n_groups)
{
    struct tp_launch *launch = tp_lower_launch(work->lower, GENERIC, kernel);
    tp_launch_read(work->lower, launch, from);
    tp_launch_read(work->lower, launch, tp_in(rows_input));
    tp_launch_write(work->lower, launch, to);
    tp_launch_step(launch);
    tp_launch_rows(launch, work->rows);
    tp_launch_rows(launch, work->hidden);
    tp_launch_u32(launch, (uint32_t)work->hidden->shape.dim[1]);
    tp_launch_groups(launch, (size_t)n_groups, 1, 1, tp_elementwise_local(work->lower, 64), 1, 1);
    tp_launch_cost(launch, 0.0, 2.0 * (double)work->row_bytes);
}

/* Ends the arguments of a pass over the logits and sets its groups: shares of the rows on a CPU, one group per row elsewhere. */
static void finish_pass(struct work *work, struct tp_launch *launch, bool uses_local, int64_t first, int64_t n)
{
    enum { MAX_SHARES = 32 };
    const int64_t n_rows = work->rows->shape.dim[0];
    tp_launch_u32(launch, (uint32_t)work->stride);
    tp_launch_u32(launch, (uint32_t)first);
    tp_launch_u32(launch, (uint32_t)n);
    if (work->on_cpu) {
        const int64_t shares = n_rows < MAX_SHARES ? n_rows : MAX_SHARES;
        tp_launch_u32(launch, (uint32_t)shares);
        tp_launch_groups(launch, (size_t)shares, 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(work->lower, 128);
        if (uses_local) tp_launch_local(launch, 2 * local * sizeof(float));
        tp_launch_groups(launch, (size_t)n_rows, 1, 1, local, 1, 1);
    }
    tp_launch_cost(launch, 8.0 * (double)n_rows * (double)n, 8.0 * (double)n_rows * (double)n);
}

static enum talpa_status lower_forward(struct tp_lower *lower, bool on_cpu)
{
    struct work work = begin(lower, on_cpu, tp_lower_in(lower, ROWS));
    const int64_t n_rows = work.rows->shape.dim[0], vocabulary = work.weight->shape.dim[0];
    const int64_t n_blocks = (vocabulary + work.block - 1) / work.block;
    const struct tp_operand state = tp_scratch(tp_lower_scratch(lower, (size_t)(1 + 2 * n_blocks) * (size_t)n_rows * sizeof(float)));
    const struct tp_gemm largest = describe_logits(&work, WEIGHT, 0, work.block);
    reserve_panels(&work, tp_gemm_panel_bytes(lower, &largest));
    move_rows(&work, "gather", tp_in(HIDDEN), ROWS, work.x, n_rows);
    for (int64_t first = 0; first < vocabulary; first += work.block) {
        const int64_t n = vocabulary - first < work.block ? vocabulary - first : work.block;
        const struct tp_gemm gemm = describe_logits(&work, WEIGHT, first, n);
        TP_TRY(tp_gemm_emit(lower, &gemm, work.tier));
        struct tp_launch *launch = tp_lower_launch(lower, work.source, "reduce");
        tp_launch_read(lower, launch, work.logits);
        tp_launch_read(lower, launch, tp_in(LABELS));
        tp_launch_write(lower, launch, state);
        tp_launch_step(launch);
        tp_launch_rows(launch, work.rows);
        tp_launch_u32(launch, (uint32_t)(first / work.block));
        finish_pass(&work, launch, true, first, n);
    }
    const size_t local = tp_elementwise_local(lower, 64);
    struct tp_launch *launch = tp_lower_launch(lower, GENERIC, "finish");
    tp_launch_read(lower, launch, state);
    tp_launch_read(lower, launch, tp_in(LABELS));
    for (int o = LOSS; o <= LSE; o++) tp_launch_write(lower, launch, tp_out(o));
    tp_launch_step(launch);
    tp_launch_rows(launch, work.rows);
    tp_launch_u32(launch, (uint32_t)n_blocks);
    tp_launch_u32(launch, (uint32_t)vocabulary);
    tp_launch_local(launch, local * sizeof(float));
    tp_launch_groups(launch, 1, 1, 1, local, 1, 1);
    tp_launch_cost(launch, 4.0 * (double)n_rows, 20.0 * (double)n_rows);
    return TALPA_OK;
}

static void emit_gradient(struct work *work, int64_t first, int64_t n)
{
    struct tp_lower *lower = work->lower;
    struct tp_launch *launch = tp_lower_launch(lower, work->source, "gradient");
    tp_launch_write(lower, launch, work->logits);
    tp_launch_read(lower, launch, tp_in(B_LABELS));
    tp_launch_read(lower, launch, tp_in(B_LSE));
    /* An absent gradient is not read, but its argument has to be some buffer. */
    for (int i = B_DLOSS; i <= B_DLSE; i++) tp_launch_read(lower, launch, tp_in(tp_lower_has_in(lower, i) ? i : B_LSE));
    tp_launch_step(launch);
    tp_launch_rows(launch, work->rows);
    for (int i = B_DLOSS; i <= B_DLSE; i++) tp_launch_u32(launch, tp_lower_has_in(lower, i));
    finish_pass(work, launch, false, first, n);
}

static enum talpa_status lower_backward(struct tp_lower *lower, bool on_cpu)
{
    struct work work = begin(lower, on_cpu, tp_lower_in(lower, B_ROWS));
    const int64_t vocabulary = work.weight->shape.dim[0];
    const struct tp_operand dx = tp_scratch(tp_lower_scratch(lower, work.row_bytes));
    const struct tp_gemm largest = describe_logits(&work, B_WEIGHT, 0, work.block), largest_back = describe_back(&work, dx, 0, work.block);
    const size_t need = tp_gemm_panel_bytes(lower, &largest), need_back = tp_gemm_panel_bytes(lower, &largest_back);
    reserve_panels(&work, need > need_back ? need : need_back);
    move_rows(&work, "gather", tp_in(B_HIDDEN), B_ROWS, work.x, work.rows->shape.dim[0]);
    for (int64_t first = 0; first < vocabulary; first += work.block) {
        const int64_t n = vocabulary - first < work.block ? vocabulary - first : work.block;
        const struct tp_gemm forward = describe_logits(&work, B_WEIGHT, first, n), back = describe_back(&work, dx, first, n);
        TP_TRY(tp_gemm_emit(lower, &forward, work.tier));
        emit_gradient(&work, first, n);
        TP_TRY(tp_gemm_emit(lower, &back, work.tier));
    }
    move_rows(&work, "scatter", dx, B_ROWS, tp_out(0), work.hidden->shape.dim[0]);
    return TALPA_OK;
}

/* As for matmul: weights in panels, or as in the file and decoded in every run. */
static bool applies_cpu(const struct tp_lower *lower)
{
    return tp_gemm_wants_quant(lower, 1) ||
           !(lower->options->base_dtype == TP_BASE_NATIVE && tp_graph_value(lower->graph, lower->node->in[1])->kind == TP_WEIGHT);
}

static enum tp_layout layout_of(const struct tp_lower *lower, bool transposed)
{
    const bool is_weight = tp_graph_value(lower->graph, lower->node->in[1])->kind == TP_WEIGHT;
    if (tp_gemm_wants_quant(lower, 1)) return TP_LAYOUT_QUANT;
    if (is_weight && lower->options->base_dtype == TP_BASE_BF16) return transposed ? TP_LAYOUT_PANEL_T_BF16 : TP_LAYOUT_PANEL_BF16;
    return transposed ? TP_LAYOUT_PANEL_T_F32 : TP_LAYOUT_PANEL_F32;
}

static void layouts_forward(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    in[WEIGHT] = layout_of(lower, false);
}

static void layouts_backward(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    in[B_WEIGHT] = layout_of(lower, false);
    in[B_WEIGHT_T] = layout_of(lower, true);
}

static enum talpa_status lower_forward_cpu(struct tp_lower *lower) { return lower_forward(lower, true); }
static enum talpa_status lower_forward_generic(struct tp_lower *lower) { return lower_forward(lower, false); }
static enum talpa_status lower_backward_cpu(struct tp_lower *lower) { return lower_backward(lower, true); }
static enum talpa_status lower_backward_generic(struct tp_lower *lower) { return lower_backward(lower, false); }

static const struct tp_variant variants[] = {{"cpu", applies_cpu, layouts_forward, lower_forward_cpu},
                                             {"cpu", NULL, NULL, lower_forward_cpu},
                                             {"generic", NULL, NULL, lower_forward_generic}};
static const struct tp_variant backward_variants[] = {{"cpu", applies_cpu, layouts_backward, lower_backward_cpu},
                                                      {"cpu", NULL, NULL, lower_backward_cpu},
                                                      {"generic", NULL, NULL, lower_backward_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const bool is_backward = node->op == &tp_op_linear_cross_entropy_backward;
    const struct tp_type *weight = tp_graph_type(graph, node->in[1]), *rows = tp_graph_type(graph, node->in[is_backward ? B_ROWS : ROWS]);
    const double times = is_backward ? 2.0 : 1.0;
    *flops = times * 2.0 * (double)rows->shape.dim[0] * (double)tp_type_elements(weight);
    *bytes = times * (double)tp_type_bytes(weight) + 2.0 * (double)tp_type_bytes(tp_graph_type(graph, node->in[0]));
}

/* ---- reference ---- */

static double loss_scale(const struct tp_step *step)
{
    float scale;
    memcpy(&scale, &step->word[TP_STEP_LOSS_SCALE], sizeof scale);
    return (double)scale;
}

static double logit(const double *hidden, const double *weight, int64_t d, int64_t row, int64_t column)
{
    double sum = 0;
    for (int64_t j = 0; j < d; j++) sum += hidden[row * d + j] * weight[column * d + j];
    return sum;
}

static void reference(const struct tp_reference *work)
{
    const int64_t d = work->in_type[HIDDEN].shape.dim[1], vocabulary = work->in_type[WEIGHT].shape.dim[0];
    const int64_t n = work->in_type[ROWS].shape.dim[0];
    double loss = 0;
    for (int64_t r = 0; r < n; r++) {
        const int64_t row = (int64_t)work->in[ROWS][r], label = (int64_t)work->in[LABELS][r];
        double largest = -INFINITY, sum = 0;
        for (int64_t v = 0; v < vocabulary; v++) largest = fmax(largest, logit(work->in[HIDDEN], work->in[WEIGHT], d, row, v));
        for (int64_t v = 0; v < vocabulary; v++) sum += exp(logit(work->in[HIDDEN], work->in[WEIGHT], d, row, v) - largest);
        work->out[LSE][r] = largest + log(sum);
        work->out[NLL][r] = work->out[LSE][r] - logit(work->in[HIDDEN], work->in[WEIGHT], d, row, label);
        loss += work->out[NLL][r];
    }
    work->out[LOSS][0] = loss * loss_scale(work->step);
}

static void reference_backward(const struct tp_reference *work)
{
    const int64_t n_tokens = work->in_type[B_HIDDEN].shape.dim[0], d = work->in_type[B_HIDDEN].shape.dim[1];
    const int64_t vocabulary = work->in_type[B_WEIGHT].shape.dim[0], n = work->in_type[B_ROWS].shape.dim[0];
    const double scale = loss_scale(work->step);
    for (int64_t i = 0; i < n_tokens * d; i++) work->out[0][i] = 0;
    for (int64_t r = 0; r < n; r++) {
        const int64_t row = (int64_t)work->in[B_ROWS][r], label = (int64_t)work->in[B_LABELS][r];
        const double g = (work->in[B_DLOSS] ? work->in[B_DLOSS][0] * scale : 0) + (work->in[B_DNLL] ? work->in[B_DNLL][r] : 0);
        const double dlse = work->in[B_DLSE] ? work->in[B_DLSE][r] : 0;
        for (int64_t v = 0; v < vocabulary; v++) {
            const double p = exp(logit(work->in[B_HIDDEN], work->in[B_WEIGHT], d, row, v) - work->in[B_LSE][r]);
            const double dlogit = p * (g + dlse) - (v == label ? g : 0);
            for (int64_t j = 0; j < d; j++) work->out[0][row * d + j] += dlogit * work->in[B_WEIGHT_T][v * d + j];
        }
    }
}

/* ---- cases ---- */

#define HIDDEN_IN(t, d, scale, grad) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, scale, TP_STEP_N_TOKENS, {t, d}, grad}
#define WEIGHT_IN(dtype, v, d) {dtype, TP_WEIGHT, TP_GEN_NORMAL, 0.3, TP_STEP_NONE, {v, d}, false}
#define ROWS_IN(r, t) {TALPA_I32, TP_INPUT, TP_GEN_ASCENDING, t, TP_STEP_N_LABELLED, {r}, false}
#define LABELS_IN(r, v) {TALPA_I32, TP_INPUT, TP_GEN_INDEX, v, TP_STEP_N_LABELLED, {r}, false}
#define LSE_IN(r) {TALPA_F32, TP_INPUT, TP_GEN_UNIFORM, 4, TP_STEP_N_LABELLED, {r}, false}
#define PER_ROW_IN(r) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 0.1, TP_STEP_N_LABELLED, {r}, false}
#define DLOSS_IN {TALPA_F32, TP_INPUT, TP_GEN_ONE, 1, TP_STEP_NONE, {1}, false}
#define ABSENT {TALPA_F32, TP_INPUT, TP_GEN_ZERO, 0, TP_STEP_NONE, {0}, false}

static const struct tp_case cases[] = {
    {.name = "odd", .in = {HIDDEN_IN(33, 17, 1, true), WEIGHT_IN(TALPA_F32, 65, 17), ROWS_IN(20, 25), LABELS_IN(20, 65)}, .n_in = 4,
     .n_tokens = 25, .n_labelled = 11},
    {.name = "every row", .in = {HIDDEN_IN(7, 32, 1, true), WEIGHT_IN(TALPA_Q8_0, 96, 32), ROWS_IN(7, 7), LABELS_IN(7, 96)}, .n_in = 4},
    {.name = "one row", .in = {HIDDEN_IN(9, 32, 1, true), WEIGHT_IN(TALPA_Q4_1, 33, 32), ROWS_IN(5, 9), LABELS_IN(5, 33)}, .n_in = 4,
     .n_labelled = 1},
    {.name = "q6_k", .in = {HIDDEN_IN(9, 256, 1, true), WEIGHT_IN(TALPA_Q6_K, 70, 256), ROWS_IN(5, 9), LABELS_IN(5, 70)}, .n_in = 4},
    {.name = "one class", .in = {HIDDEN_IN(3, 8, 1, true), WEIGHT_IN(TALPA_BF16, 1, 8), ROWS_IN(3, 3), LABELS_IN(3, 1)}, .n_in = 4},
    {.name = "large logits", .in = {HIDDEN_IN(16, 64, 30, false), WEIGHT_IN(TALPA_F16, 100, 64), ROWS_IN(12, 16), LABELS_IN(12, 100)},
     .n_in = 4, .n_labelled = 10},
    {.name = "two blocks", .in = {HIDDEN_IN(12, 32, 1, true), WEIGHT_IN(TALPA_Q4_0, 4141, 32), ROWS_IN(10, 11), LABELS_IN(10, 4141)},
     .n_in = 4, .n_tokens = 11, .n_labelled = 9},
    {.name = "3 rows of 130", .in = {HIDDEN_IN(130, 24, 1, true), WEIGHT_IN(TALPA_F32, 70, 24), ROWS_IN(130, 5), LABELS_IN(130, 70)},
     .n_in = 4, .n_tokens = 5, .n_labelled = 3},
    {.name = "3 rows of 130, two blocks",
     .in = {HIDDEN_IN(130, 32, 1, false), WEIGHT_IN(TALPA_Q8_0, 4130, 32), ROWS_IN(130, 130), LABELS_IN(130, 4130)},
     .n_in = 4, .n_labelled = 3},
};

static const struct tp_case backward_cases[] = {
    {.name = "odd",
     .in = {HIDDEN_IN(33, 17, 1, false), WEIGHT_IN(TALPA_F32, 65, 17), WEIGHT_IN(TALPA_F32, 65, 17), ROWS_IN(20, 25), LABELS_IN(20, 65),
            LSE_IN(20), DLOSS_IN, ABSENT, ABSENT},
     .n_in = B_N_IN, .n_tokens = 25, .n_labelled = 11},
    {.name = "all gradients",
     .in = {HIDDEN_IN(7, 32, 1, false), WEIGHT_IN(TALPA_Q8_0, 96, 32), WEIGHT_IN(TALPA_Q8_0, 96, 32), ROWS_IN(7, 7), LABELS_IN(7, 96),
            LSE_IN(7), DLOSS_IN, PER_ROW_IN(7), PER_ROW_IN(7)},
     .n_in = B_N_IN},
    {.name = "two blocks",
     .in = {HIDDEN_IN(12, 32, 0.3, false), WEIGHT_IN(TALPA_F32, 4141, 32), WEIGHT_IN(TALPA_F32, 4141, 32), ROWS_IN(10, 11),
            LABELS_IN(10, 4141), LSE_IN(10), ABSENT, PER_ROW_IN(10), ABSENT},
     .n_in = B_N_IN, .n_tokens = 11, .n_labelled = 9, .tolerance = 3e-5},
    {.name = "3 rows of 130",
     .in = {HIDDEN_IN(130, 24, 1, false), WEIGHT_IN(TALPA_F32, 70, 24), WEIGHT_IN(TALPA_F32, 70, 24), ROWS_IN(130, 5), LABELS_IN(130, 70),
            LSE_IN(130), DLOSS_IN, PER_ROW_IN(130), ABSENT},
     .n_in = B_N_IN, .n_tokens = 5, .n_labelled = 3},
};

const struct tp_op tp_op_linear_cross_entropy = {
    .name = "linear_cross_entropy",
    .in_names = {"hidden", "weight", "rows", "labels"},
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = sizeof variants / sizeof *variants,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

const struct tp_op tp_op_linear_cross_entropy_backward = {
    .name = "linear_cross_entropy_backward",
    .in_names = {"hidden", "weight", "weight_t", "rows", "labels", "lse", "dloss?", "dnll?", "dlse?"},
    .infer = infer_backward,
    .no_gradient = "second derivatives are not defined",
    .variants = backward_variants,
    .n_variants = sizeof backward_variants / sizeof *backward_variants,
    .cost = cost,
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};

enum talpa_status talpa_linear_cross_entropy(talpa_value *loss, talpa_value *nll, struct talpa_graph *graph, talpa_value hidden,
                                             talpa_value weight, talpa_value rows, talpa_value labels)
{
    talpa_value out[3];
    TP_TRY(tp_graph_node(graph, &tp_op_linear_cross_entropy, (const talpa_value[]){hidden, weight, rows, labels}, N_IN, NULL, out));
    *loss = out[LOSS];
    *nll = out[NLL];
    return TALPA_OK;
}
