#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "gemm.h"
#include "elementwise.h"

/* linear_cross_entropy: inputs hidden [T, d], weight [V, d] twice, so that the plan may keep it in two layouts (for the logits and for
 * `expected`), rows [R], labels [R]; outputs loss [1], nll [R], lse [R] and, for the gradient, expected [R, d]: the rows of the weight
 * averaged with the softmax of the logits, sum_v softmax(logits)[r, v] weight[v, :].
 * The vocabulary is walked through once, in blocks, with a running maximum (as in FlashAttention, arXiv 2205.14135, with the weight as
 * keys and values): two products forward and none backward. Without a gradient `expected` is not computed, which leaves one product.
 * linear_cross_entropy_backward: expected, weight, rows, labels and the gradients of the three outputs, each optional; output d_hidden
 * [T, d]: d nll[r] / d hidden[rows[r]] = expected[r] - weight[labels[r]], d lse[r] / d hidden[rows[r]] = expected[r]. */
extern const struct tp_op tp_op_linear_cross_entropy, tp_op_linear_cross_entropy_backward;

enum { HIDDEN, WEIGHT, WEIGHT_T, ROWS, LABELS, N_IN };
enum { LOSS, NLL, LSE, EXPECTED, N_OUT };
enum { B_EXPECTED, B_WEIGHT, B_ROWS, B_LABELS, B_DLOSS, B_DNLL, B_DLSE, B_N_IN };
enum { N_TOKENS, TOKENS_WORD }; /* integer attributes of the backward op: bound and step word of d_hidden's rows */
enum { LOGIT_STATE, MAXIMUM_STATE, SUM_STATE, N_STATES }; /* what is kept per row between blocks, as in the kernels */

enum {
    BLOCK_COLUMNS = 4096, /* a multiple of a panel */
    STRIDE_PADDING = 16   /* keeps rows of logits off the same cache set */
};

/* ---- types ---- */

/* weight [V, d], rows and labels. */
static enum talpa_status infer_operands(struct tp_infer *infer, int weight, int rows, int labels, int64_t d)
{
    TP_TRY(tp_infer_expect(infer, weight, 2, TALPA_N_DTYPES));
    TP_TRY(tp_infer_expect(infer, rows, 1, TALPA_I32));
    TP_TRY(tp_infer_expect(infer, labels, 1, TALPA_I32));
    const struct tp_type *w = infer->in[weight];
    if (w->dtype == TALPA_I32 || w->rows) return tp_infer_fail(infer, weight, "a matrix [V, d] of weights");
    if (w->shape.dim[1] != d) return tp_infer_fail(infer, weight, "[V, %lld]", (long long)d);
    const int block = tp_dtype_block(w->dtype);
    if (w->shape.dim[1] % block) return tp_infer_fail(infer, weight, "rows of whole blocks of %d", block);
    if (!tp_type_equal(infer->in[labels], infer->in[rows])) return tp_infer_fail(infer, labels, "one label per entry of rows");
    return TALPA_OK;
}

static enum talpa_status infer_forward(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, HIDDEN, 2, TALPA_F32));
    const int64_t d = infer->in[HIDDEN]->shape.dim[1];
    TP_TRY(infer_operands(infer, WEIGHT, ROWS, LABELS, d));
    TP_TRY(tp_infer_expect(infer, WEIGHT_T, 2, TALPA_N_DTYPES));
    if (!tp_type_equal(infer->in[WEIGHT_T], infer->in[WEIGHT])) return tp_infer_fail(infer, WEIGHT_T, "the type of weight");
    const struct tp_type *rows = infer->in[ROWS];
    infer->out[LOSS] = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    infer->out[NLL] = infer->out[LSE] = tp_type_1d(TALPA_F32, rows->rows, rows->shape.dim[0]);
    infer->out[EXPECTED] = tp_type_2d(TALPA_F32, rows->rows, rows->shape.dim[0], d);
    infer->n_out = N_OUT;
    return TALPA_OK;
}

static enum talpa_status infer_backward(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, B_EXPECTED, 2, TALPA_F32));
    TP_TRY(infer_operands(infer, B_WEIGHT, B_ROWS, B_LABELS, infer->in[B_EXPECTED]->shape.dim[1]));
    const struct tp_type scalar = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    const struct tp_type *rows = infer->in[B_ROWS], *expected = infer->in[B_EXPECTED];
    const struct tp_type per_row = tp_type_1d(TALPA_F32, rows->rows, rows->shape.dim[0]);
    if (expected->rows != rows->rows || expected->shape.dim[0] != rows->shape.dim[0])
        return tp_infer_fail(infer, B_EXPECTED, "a row per entry of rows");
    if (infer->in[B_DLOSS] && !tp_type_equal(infer->in[B_DLOSS], &scalar)) return tp_infer_fail(infer, B_DLOSS, "[1] f32");
    for (int i = B_DNLL; i <= B_DLSE; i++)
        if (infer->in[i] && !tp_type_equal(infer->in[i], &per_row)) return tp_infer_fail(infer, i, "one f32 value per entry of rows");
    infer->out[0] = tp_type_2d(TALPA_F32, (enum tp_step_word)infer->attrs->i[TOKENS_WORD], infer->attrs->i[N_TOKENS], expected->shape.dim[1]);
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (wanted[WEIGHT] || wanted[WEIGHT_T])
        return tp_fail(TALPA_E_ARGUMENT, "linear_cross_entropy: no gradient with respect to weight: it is frozen");
    if (out_grads[EXPECTED] != TP_NONE)
        return tp_fail(TALPA_E_ARGUMENT, "linear_cross_entropy: no gradient from expected: it is kept for the gradient only");
    if (!wanted[HIDDEN]) return TALPA_OK;
    const talpa_value in[B_N_IN] = {
        [B_EXPECTED] = node->out[EXPECTED], [B_WEIGHT] = node->in[WEIGHT_T], [B_ROWS] = node->in[ROWS],
        [B_LABELS] = node->in[LABELS],      [B_DLOSS] = out_grads[LOSS],     [B_DNLL] = out_grads[NLL],
        [B_DLSE] = out_grads[LSE],
    };
    const struct tp_type *hidden = tp_graph_type(graph, node->in[HIDDEN]);
    const struct tp_attrs attrs = {.i = {[N_TOKENS] = hidden->shape.dim[0], [TOKENS_WORD] = hidden->rows}};
    return tp_graph_node(graph, &tp_op_linear_cross_entropy_backward, in, B_N_IN, &attrs, &in_grads[HIDDEN]);
}

/* ---- lowering ---- */

struct work {
    struct tp_lower *lower;
    const char *tier, *source; /* of the products and of the passes over logits */
    bool on_cpu, keeps;        /* keeps: `expected` is wanted */
    bool in_bf16;              /* a matrix tier: rows and exponentials are rounded before they are multiplied */
    struct tp_operand x_bf16, exponentials_bf16; /* scratch for that */
    const struct tp_type *hidden, *weight, *rows;
    int64_t block, stride; /* columns of a block of logits, elements between its rows */
    struct tp_operand x, logits, state; /* scratch: gathered rows, logits, what is kept per row between blocks */
    struct tp_operand panels;           /* scratch of the products, if they need any; shared, as they run one after the other */
    size_t row_bytes;
};

static const char *const GENERIC = "generic/linear_cross_entropy.cl";

static bool keeps_expected(const struct tp_lower *lower) { return tp_graph_is_read(lower->graph, lower->node->out[EXPECTED]); }

static struct work begin(struct tp_lower *lower, const char *tier)
{
    const bool on_cpu = strcmp(tier, "generic") != 0;
    struct work work = {.lower = lower,
                        .tier = tier,
                        .in_bf16 = on_cpu && strcmp(tier, "cpu"),
                        .source = on_cpu ? "cpu/linear_cross_entropy.cl" : GENERIC,
                        .on_cpu = on_cpu,
                        .keeps = keeps_expected(lower),
                        .hidden = tp_lower_in(lower, HIDDEN),
                        .weight = tp_lower_in(lower, WEIGHT),
                        .rows = tp_lower_in(lower, ROWS)};
    const int64_t n_rows = work.rows->shape.dim[0], vocabulary = work.weight->shape.dim[0];
    const uint64_t row_limit = lower->caps->max_alloc_bytes / sizeof(float) / (uint64_t)n_rows;
    work.block = BLOCK_COLUMNS;
    while (work.block > TP_PANEL && (uint64_t)(work.block + STRIDE_PADDING) > row_limit) work.block /= 2;
    if (work.block > vocabulary) work.block = (vocabulary + TP_PANEL - 1) / TP_PANEL * TP_PANEL;
    work.stride = work.block + STRIDE_PADDING;
    work.row_bytes = (size_t)n_rows * (size_t)work.hidden->shape.dim[1] * sizeof(float);
    work.x = tp_scratch(tp_lower_scratch(lower, work.row_bytes));
    work.logits = tp_scratch(tp_lower_scratch(lower, (size_t)n_rows * (size_t)work.stride * sizeof(float)));
    work.state = tp_scratch(tp_lower_scratch(lower, N_STATES * (size_t)n_rows * sizeof(float)));
    return work;
}

static struct tp_gemm describe_logits(const struct work *work, int64_t first, int64_t n)
{
    const int64_t d = work->hidden->shape.dim[1];
    return (struct tp_gemm){.a = work->x,
                            .b = tp_in(WEIGHT),
                            .out = work->logits,
                            .m = work->rows->shape.dim[0],
                            .n = n,
                            .k = d,
                            .m_rows = work->rows->rows,
                            .a_stride_m = d,
                            .a_stride_k = 1,
                            .b_layout = work->lower->in_layout[WEIGHT],
                            .b_dtype = work->weight->dtype,
                            .b_is_nk = true,
                            .b_stride = d,
                            .b_first_n = first,
                            .out_stride = work->stride,
                            .panels = work->panels};
}

/* expected += exponentials W over one block. */
static struct tp_gemm describe_expected(const struct work *work, int64_t first, int64_t n)
{
    const int64_t d = work->hidden->shape.dim[1];
    const enum tp_layout layout = work->lower->in_layout[WEIGHT_T];
    return (struct tp_gemm){.a = work->logits,
                            .b = tp_in(WEIGHT_T),
                            .out = tp_out(EXPECTED),
                            .m = work->rows->shape.dim[0],
                            .n = d,
                            .k = n,
                            .m_rows = work->rows->rows,
                            .a_stride_m = work->stride,
                            .a_stride_k = 1,
                            .b_layout = layout,
                            .b_dtype = work->weight->dtype,
                            /* quant and row are one storage for both products */
                            .b_stride = layout == TP_LAYOUT_ROW || layout == TP_LAYOUT_QUANT ? d : work->weight->shape.dim[0],
                            .b_first_k = first,
                            .out_stride = d,
                            .accumulate = first > 0,
                            .panels = work->panels};
}

/* A shorter last block may be shared out to more groups and so need more. */
static void reserve_panels(struct work *work)
{
    const int64_t vocabulary = work->weight->shape.dim[0], last = (vocabulary - 1) / work->block * work->block;
    const struct tp_gemm products[] = {
        describe_logits(work, 0, last ? work->block : vocabulary),
        describe_logits(work, last, vocabulary - last),
        describe_expected(work, 0, last ? work->block : vocabulary),
        describe_expected(work, last, vocabulary - last),
    };
    size_t most = 0;
    for (int i = 0; i < (work->keeps ? 4 : 2); i++) {
        struct tp_gemm product = products[i];
        if (work->in_bf16) product.a_layout = TP_LAYOUT_ROW_BF16;
        const size_t n_bytes = tp_gemm_panel_bytes(work->lower, &product);
        if (n_bytes > most) most = n_bytes;
    }
    if (work->on_cpu && most) work->panels = tp_scratch(tp_lower_scratch(work->lower, most));
}

/* hidden -> x: one group per row. */
static void emit_gather(struct work *work)
{
    struct tp_launch *launch = tp_lower_launch(work->lower, GENERIC, "gather");
    tp_launch_read(work->lower, launch, tp_in(HIDDEN));
    tp_launch_read(work->lower, launch, tp_in(ROWS));
    tp_launch_write(work->lower, launch, work->x);
    tp_launch_step(launch);
    tp_launch_rows(launch, work->rows);
    tp_launch_rows(launch, work->hidden);
    tp_launch_u32(launch, (uint32_t)work->hidden->shape.dim[1]);
    tp_launch_groups(launch, (size_t)work->rows->shape.dim[0], 1, 1, tp_elementwise_local(work->lower, 64), 1, 1);
    tp_launch_cost(launch, 0.0, 2.0 * (double)work->row_bytes);
}

/* Groups of a pass over n_rows rows: shares of the rows on a CPU, whose number is the last argument, elsewhere one group per row. */
static void launch_rows(struct tp_lower *lower, struct tp_launch *launch, bool on_cpu, int64_t n_rows, size_t most_local, bool uses_shared)
{
    enum { MAX_SHARES = 32 };
    if (on_cpu) {
        const int64_t shares = n_rows < MAX_SHARES ? n_rows : MAX_SHARES;
        tp_launch_u32(launch, (uint32_t)shares);
        tp_launch_groups(launch, (size_t)shares, 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(lower, most_local);
        if (uses_shared) tp_launch_local(launch, local * sizeof(float));
        tp_launch_groups(launch, (size_t)n_rows, 1, 1, local, 1, 1);
    }
}

static void emit_exponentials(struct work *work, int64_t first, int64_t n)
{
    struct tp_lower *lower = work->lower;
    const int64_t n_rows = work->rows->shape.dim[0];
    struct tp_launch *launch = tp_lower_launch(lower, work->source, "exponentials");
    tp_launch_write(lower, launch, work->logits);
    tp_launch_read(lower, launch, tp_in(LABELS));
    tp_launch_write(lower, launch, work->state);
    /* An output that nobody reads has no storage, but its argument has to be some buffer. */
    tp_launch_write(lower, launch, work->keeps ? tp_out(EXPECTED) : work->state);
    tp_launch_step(launch);
    tp_launch_rows(launch, work->rows);
    tp_launch_u32(launch, (uint32_t)work->hidden->shape.dim[1]);
    tp_launch_u32(launch, work->keeps);
    tp_launch_u32(launch, (uint32_t)work->stride);
    tp_launch_u32(launch, (uint32_t)first);
    tp_launch_u32(launch, (uint32_t)n);
    launch_rows(lower, launch, work->on_cpu, n_rows, 128, true);
    tp_launch_cost(launch, 8.0 * (double)n_rows * (double)n, 8.0 * (double)n_rows * (double)n);
}

static void emit_normalise(struct work *work)
{
    struct tp_launch *launch = tp_lower_launch(work->lower, work->source, "normalise");
    tp_launch_write(work->lower, launch, tp_out(EXPECTED));
    tp_launch_read(work->lower, launch, work->state);
    tp_launch_step(launch);
    tp_launch_rows(launch, work->rows);
    tp_launch_u32(launch, (uint32_t)work->hidden->shape.dim[1]);
    launch_rows(work->lower, launch, work->on_cpu, work->rows->shape.dim[0], 64, false);
    tp_launch_cost(launch, (double)work->row_bytes / 4.0, 2.0 * (double)work->row_bytes);
}

static void emit_finish(struct work *work)
{
    struct tp_lower *lower = work->lower;
    const size_t local = tp_elementwise_local(lower, 64);
    struct tp_launch *launch = tp_lower_launch(lower, GENERIC, "finish");
    tp_launch_read(lower, launch, work->state);
    tp_launch_read(lower, launch, tp_in(LABELS));
    for (int o = LOSS; o <= LSE; o++) tp_launch_write(lower, launch, tp_out(o));
    tp_launch_step(launch);
    tp_launch_rows(launch, work->rows);
    tp_launch_u32(launch, (uint32_t)work->weight->shape.dim[0]);
    tp_launch_local(launch, local * sizeof(float));
    tp_launch_groups(launch, 1, 1, 1, local, 1, 1);
    tp_launch_cost(launch, 4.0 * (double)work->rows->shape.dim[0], 20.0 * (double)work->rows->shape.dim[0]);
}

static void reserve_bf16(struct work *work)
{
    if (!work->in_bf16) return;
    const struct tp_gemm logits = describe_logits(work, 0, work->block), expected = describe_expected(work, 0, work->block);
    work->x_bf16 = tp_scratch(tp_lower_scratch(work->lower, tp_gemm_row_bytes(&logits)));
    if (work->keeps) work->exponentials_bf16 = tp_scratch(tp_lower_scratch(work->lower, tp_gemm_row_bytes(&expected)));
}

static enum talpa_status lower_forward(struct tp_lower *lower, const char *tier)
{
    struct work work = begin(lower, tier);
    const int64_t vocabulary = work.weight->shape.dim[0];
    reserve_panels(&work);
    reserve_bf16(&work);
    emit_gather(&work);
    struct tp_gemm rows = describe_logits(&work, 0, work.block);
    if (work.in_bf16) tp_gemm_rows_emit(lower, &rows, work.x_bf16);
    for (int64_t first = 0; first < vocabulary; first += work.block) {
        const int64_t n = vocabulary - first < work.block ? vocabulary - first : work.block;
        struct tp_gemm logits = describe_logits(&work, first, n), expected = describe_expected(&work, first, n);
        logits.a = rows.a;
        logits.a_layout = rows.a_layout;
        logits.a_stride_m = rows.a_stride_m;
        TP_TRY(tp_gemm_emit(lower, &logits, work.tier));
        emit_exponentials(&work, first, n);
        if (work.keeps && work.in_bf16) tp_gemm_rows_emit(lower, &expected, work.exponentials_bf16);
        if (work.keeps) TP_TRY(tp_gemm_emit(lower, &expected, work.tier));
    }
    if (work.keeps) emit_normalise(&work);
    emit_finish(&work);
    return TALPA_OK;
}

static bool is_panel_t(enum tp_layout layout) { return layout == TP_LAYOUT_PANEL_T_F32 || layout == TP_LAYOUT_PANEL_T_BF16; }

static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

/* One launch per part of the weight: parts of rows or of levels hold some labels each, parts of transposed panels some columns of all. */
static enum talpa_status lower_backward(struct tp_lower *lower, bool on_cpu)
{
    const struct tp_type *weight = tp_lower_in(lower, B_WEIGHT), *hidden = tp_lower_out(lower, 0);
    const enum tp_layout layout = lower->in_layout[B_WEIGHT];
    const int64_t d = hidden->shape.dim[1], vocabulary = weight->shape.dim[0], unit = layout == TP_LAYOUT_ROW ? 1 : TP_PANEL;
    const int n_parts = tp_lower_n_parts(lower, B_WEIGHT);
    for (int part = 0; part < n_parts; part++) {
        int64_t first, n;
        tp_lower_part(lower, B_WEIGHT, part, &first, &n);
        first *= unit;
        n = min_i64(n * unit, (is_panel_t(layout) ? d : vocabulary) - first);
        struct tp_launch *launch =
            tp_lower_launch(lower, on_cpu ? "cpu/linear_cross_entropy_backward.cl" : "generic/linear_cross_entropy_backward.cl", "scatter");
        if (is_panel_t(layout)) tp_launch_option(launch, layout == TP_LAYOUT_PANEL_T_BF16 ? "-DPANEL_T=1 -DPANEL_BF16=1" : "-DPANEL_T=1");
        else tp_launch_option(launch, "%s%s", tp_gemm_weight_option(weight->dtype), layout == TP_LAYOUT_QUANT ? " -DQUANT=1" : "");
        tp_launch_read(lower, launch, tp_in(B_EXPECTED));
        tp_launch_read_part(lower, launch, tp_in(B_WEIGHT), part);
        tp_launch_read(lower, launch, tp_in(B_ROWS));
        tp_launch_read(lower, launch, tp_in(B_LABELS));
        /* An absent gradient is not read, but its argument has to be some buffer. */
        for (int i = B_DLOSS; i <= B_DLSE; i++) tp_launch_read(lower, launch, tp_in(tp_lower_has_in(lower, i) ? i : B_EXPECTED));
        tp_launch_write(lower, launch, tp_out(0));
        tp_launch_step(launch);
        tp_launch_rows(launch, tp_lower_in(lower, B_ROWS));
        tp_launch_rows(launch, hidden);
        tp_launch_u32(launch, (uint32_t)d);
        for (int i = B_DLOSS; i <= B_DLSE; i++) tp_launch_u32(launch, tp_lower_has_in(lower, i));
        tp_launch_u32(launch, (uint32_t)(is_panel_t(layout) ? 0 : first));
        tp_launch_u32(launch, (uint32_t)(is_panel_t(layout) ? vocabulary : n));
        if (on_cpu) {
            tp_launch_u32(launch, (uint32_t)(is_panel_t(layout) ? first : 0));
            tp_launch_u32(launch, (uint32_t)(is_panel_t(layout) ? n : d));
        }
        tp_launch_u32(launch, part > 0 && !is_panel_t(layout));
        launch_rows(lower, launch, on_cpu, hidden->shape.dim[0], 64, false);
        tp_launch_cost(launch, 3.0 * (double)tp_type_elements(hidden) / n_parts, 3.0 * (double)tp_type_bytes(hidden) / n_parts);
    }
    return TALPA_OK;
}

/* As for matmul: weights in panels or in blocks of levels, or as in the file and decoded in every run. Operand 1 is the weight in both ops. */
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

/* Without a gradient the second operand is not read: it asks for no layout of its own. */
static void layouts_forward(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    in[WEIGHT] = layout_of(lower, false);
    in[WEIGHT_T] = layout_of(lower, keeps_expected(lower));
}

/* The backward part reads one row of the weight per label, from what the forward part has anyway. */
static void layouts_backward(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    in[B_WEIGHT] = layout_of(lower, true);
}

/* The matrix tiers, as in matmul: AVX512-BF16 decodes quantised weights as it goes, AMX wants tiles unless asked otherwise. */
static bool applies_x86(const struct tp_lower *lower)
{
    return tp_graph_value(lower->graph, lower->node->in[1])->kind == TP_WEIGHT && tp_lower_in(lower, ROWS)->shape.dim[0] > TP_GEMM_FEW_ROWS;
}

static bool keeps_quant(const struct tp_lower *lower, bool decodes)
{
    return (decodes || lower->options->base_dtype == TP_BASE_NATIVE) && tp_gemm_wants_quant(lower, 1);
}

static void choose_forward(const struct tp_lower *lower, enum tp_layout *in, bool decodes)
{
    const bool quant = keeps_quant(lower, decodes);
    in[WEIGHT] = quant ? TP_LAYOUT_QUANT : TP_LAYOUT_TILE_BF16;
    in[WEIGHT_T] = quant ? TP_LAYOUT_QUANT : keeps_expected(lower) ? TP_LAYOUT_TILE_T_BF16 : TP_LAYOUT_TILE_BF16;
}

static void layouts_forward_amx(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    choose_forward(lower, in, false);
}

static void layouts_forward_bf16(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    choose_forward(lower, in, true);
}

/* The row of a label comes from the file's rows where the products have tiles. */
static void layouts_backward_amx(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    if (keeps_quant(lower, false)) in[B_WEIGHT] = TP_LAYOUT_QUANT;
}

static void layouts_backward_bf16(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)out;
    if (keeps_quant(lower, true)) in[B_WEIGHT] = TP_LAYOUT_QUANT;
}

static bool applies_backward_x86(const struct tp_lower *lower)
{
    return tp_graph_value(lower->graph, lower->node->in[B_WEIGHT])->kind == TP_WEIGHT &&
           tp_lower_in(lower, B_ROWS)->shape.dim[0] > TP_GEMM_FEW_ROWS;
}

static enum talpa_status lower_forward_amx(struct tp_lower *lower) { return lower_forward(lower, "x86_amx"); }
static enum talpa_status lower_forward_bf16(struct tp_lower *lower) { return lower_forward(lower, "x86_bf16"); }
static enum talpa_status lower_forward_cpu(struct tp_lower *lower) { return lower_forward(lower, "cpu"); }
static enum talpa_status lower_forward_generic(struct tp_lower *lower) { return lower_forward(lower, "generic"); }
static enum talpa_status lower_backward_cpu(struct tp_lower *lower) { return lower_backward(lower, true); }
static enum talpa_status lower_backward_generic(struct tp_lower *lower) { return lower_backward(lower, false); }

static const struct tp_variant variants[] = {{"x86_amx", applies_x86, layouts_forward_amx, lower_forward_amx},
                                             {"x86_bf16", applies_x86, layouts_forward_bf16, lower_forward_bf16},
                                             {"cpu", applies_cpu, layouts_forward, lower_forward_cpu},
                                             {"cpu", NULL, NULL, lower_forward_cpu},
                                             {"generic", NULL, NULL, lower_forward_generic}};
static const struct tp_variant backward_variants[] = {{"x86_amx", applies_backward_x86, layouts_backward_amx, lower_backward_cpu},
                                                      {"x86_bf16", applies_backward_x86, layouts_backward_bf16, lower_backward_cpu},
                                                      {"cpu", applies_cpu, layouts_backward, lower_backward_cpu},
                                                      {"cpu", NULL, NULL, lower_backward_cpu},
                                                      {"generic", NULL, NULL, lower_backward_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *weight = tp_graph_type(graph, node->in[WEIGHT]), *rows = tp_graph_type(graph, node->in[ROWS]);
    const double products = tp_graph_is_read(graph, node->out[EXPECTED]) ? 2.0 : 1.0;
    *flops = products * 2.0 * (double)rows->shape.dim[0] * (double)tp_type_elements(weight);
    *bytes = products * (double)tp_type_bytes(weight) + 2.0 * (double)tp_type_bytes(tp_graph_type(graph, node->in[HIDDEN]));
}

static void cost_backward(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *expected = tp_graph_type(graph, node->in[B_EXPECTED]);
    *flops = 3.0 * (double)tp_type_elements(expected);
    *bytes = 2.0 * (double)tp_type_bytes(expected) + (double)tp_type_bytes(tp_graph_type(graph, node->out[0]));
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
        double largest = -INFINITY, sum = 0, *expected = work->out[EXPECTED] + r * d;
        for (int64_t v = 0; v < vocabulary; v++) largest = fmax(largest, logit(work->in[HIDDEN], work->in[WEIGHT], d, row, v));
        for (int64_t j = 0; j < d; j++) expected[j] = 0;
        for (int64_t v = 0; v < vocabulary; v++) {
            const double e = exp(logit(work->in[HIDDEN], work->in[WEIGHT], d, row, v) - largest);
            sum += e;
            for (int64_t j = 0; j < d; j++) expected[j] += e * work->in[WEIGHT_T][v * d + j];
        }
        for (int64_t j = 0; j < d; j++) expected[j] /= sum;
        work->out[LSE][r] = largest + log(sum);
        work->out[NLL][r] = work->out[LSE][r] - logit(work->in[HIDDEN], work->in[WEIGHT], d, row, label);
        loss += work->out[NLL][r];
    }
    work->out[LOSS][0] = loss * loss_scale(work->step);
}

static void reference_backward(const struct tp_reference *work)
{
    const int64_t d = work->out_type[0].shape.dim[1], n = work->in_type[B_ROWS].shape.dim[0];
    const double scale = loss_scale(work->step);
    for (int64_t i = 0; i < work->out_type[0].shape.dim[0] * d; i++) work->out[0][i] = 0;
    for (int64_t r = 0; r < n; r++) {
        const int64_t row = (int64_t)work->in[B_ROWS][r], label = (int64_t)work->in[B_LABELS][r];
        const double g = (work->in[B_DLOSS] ? work->in[B_DLOSS][0] * scale : 0) + (work->in[B_DNLL] ? work->in[B_DNLL][r] : 0);
        const double dlse = work->in[B_DLSE] ? work->in[B_DLSE][r] : 0;
        for (int64_t j = 0; j < d; j++)
            work->out[0][row * d + j] = (g + dlse) * work->in[B_EXPECTED][r * d + j] - g * work->in[B_WEIGHT][label * d + j];
    }
}

/* ---- cases ---- */

#define HIDDEN_IN(t, d, scale, grad) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, scale, TP_STEP_N_TOKENS, {t, d}, grad}
#define WEIGHT_IN(dtype, v, d) {dtype, TP_WEIGHT, TP_GEN_NORMAL, 0.3, TP_STEP_NONE, {v, d}, false}
#define ROWS_IN(r, t) {TALPA_I32, TP_INPUT, TP_GEN_ASCENDING, t, TP_STEP_N_LABELLED, {r}, false}
#define LABELS_IN(r, v) {TALPA_I32, TP_INPUT, TP_GEN_INDEX, v, TP_STEP_N_LABELLED, {r}, false}
#define PER_ROW_IN(r) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 0.1, TP_STEP_N_LABELLED, {r}, false}
#define EXPECTED_IN(r, d) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_N_LABELLED, {r, d}, false}
#define DLOSS_IN {TALPA_F32, TP_INPUT, TP_GEN_ONE, 1, TP_STEP_NONE, {1}, false}
#define ABSENT {TALPA_F32, TP_INPUT, TP_GEN_ZERO, 0, TP_STEP_NONE, {0}, false}

/* The weight is given twice: finite differences need it to be the same both times. Where it is not, `expected` shows which one is read. */
#define CASE(bound, t, r, v, d, dtype, scale, grad)                                                                                        \
    .in = {HIDDEN_IN(bound, d, scale, grad), WEIGHT_IN(dtype, v, d), WEIGHT_IN(dtype, v, d), ROWS_IN(r, t), LABELS_IN(r, v)}, .n_in = N_IN
static void same_weight(double *const *in, size_t n) { memcpy(in[WEIGHT_T], in[WEIGHT], n * sizeof **in); }
static void same_65_17(double *const *in) { same_weight(in, 65 * 17); }
static void same_96_32(double *const *in) { same_weight(in, 96 * 32); }
static void same_33_32(double *const *in) { same_weight(in, 33 * 32); }
static void same_70_256(double *const *in) { same_weight(in, 70 * 256); }
static void same_1_8(double *const *in) { same_weight(in, 1 * 8); }
static void same_4141_32(double *const *in) { same_weight(in, 4141 * 32); }
static void same_8200_16(double *const *in) { same_weight(in, 8200 * 16); }
static void same_70_24(double *const *in) { same_weight(in, 70 * 24); }

static const struct tp_case cases[] = {
    {.name = "odd", CASE(33, 25, 20, 65, 17, TALPA_F32, 1, true), .prepare = same_65_17, .n_tokens = 25, .n_labelled = 11},
    {.name = "odd, two weights", CASE(33, 25, 20, 65, 17, TALPA_F32, 1, false), .n_tokens = 25, .n_labelled = 11},
    {.name = "every row", CASE(7, 7, 7, 96, 32, TALPA_Q8_0, 1, true), .prepare = same_96_32},
    {.name = "one row", CASE(9, 9, 5, 33, 32, TALPA_Q4_1, 1, true), .prepare = same_33_32, .n_labelled = 1},
    {.name = "q6_k", CASE(9, 9, 5, 70, 256, TALPA_Q6_K, 1, true), .prepare = same_70_256},
    {.name = "one class", CASE(3, 3, 3, 1, 8, TALPA_BF16, 1, true), .prepare = same_1_8},
    {.name = "large logits", CASE(16, 16, 12, 100, 64, TALPA_F16, 30, false), .n_labelled = 10},
    {.name = "two blocks", CASE(12, 11, 10, 4141, 32, TALPA_Q4_0, 1, true), .prepare = same_4141_32, .n_tokens = 11, .n_labelled = 9},
    {.name = "three blocks, large logits", CASE(12, 11, 10, 8200, 16, TALPA_BF16, 8, true), .prepare = same_8200_16, .n_tokens = 11,
     .n_labelled = 9},
    {.name = "3 rows of 130", CASE(130, 5, 130, 70, 24, TALPA_F32, 1, true), .prepare = same_70_24, .n_tokens = 5, .n_labelled = 3},
    {.name = "3 rows of 130, two blocks", CASE(130, 130, 130, 4130, 32, TALPA_Q8_0, 1, false), .n_labelled = 3},
};

#define BACKWARD(bound, t, r, v, d, dtype)                                                                                                 \
    .in = {EXPECTED_IN(r, d), WEIGHT_IN(dtype, v, d), ROWS_IN(r, t), LABELS_IN(r, v), DLOSS_IN, PER_ROW_IN(r), PER_ROW_IN(r)},             \
    .n_in = B_N_IN, .attrs = {.i = {bound, TP_STEP_N_TOKENS}}, .n_tokens = t

static const struct tp_case backward_cases[] = {
    {.name = "loss only",
     .in = {EXPECTED_IN(20, 17), WEIGHT_IN(TALPA_F32, 65, 17), ROWS_IN(20, 25), LABELS_IN(20, 65), DLOSS_IN, ABSENT, ABSENT},
     .n_in = B_N_IN, .attrs = {.i = {33, TP_STEP_N_TOKENS}}, .n_tokens = 25, .n_labelled = 11},
    {.name = "nll only",
     .in = {EXPECTED_IN(10, 96), WEIGHT_IN(TALPA_F32, 41, 96), ROWS_IN(10, 11), LABELS_IN(10, 41), ABSENT, PER_ROW_IN(10), ABSENT},
     .n_in = B_N_IN, .attrs = {.i = {12, TP_STEP_N_TOKENS}}, .n_tokens = 11, .n_labelled = 9},
    {.name = "q8_0", BACKWARD(7, 7, 7, 96, 32, TALPA_Q8_0)},
    {.name = "q4_1, 96 columns", BACKWARD(40, 40, 25, 70, 96, TALPA_Q4_1)},
    {.name = "q6_k", BACKWARD(9, 8, 5, 70, 256, TALPA_Q6_K)},
    {.name = "bf16, odd", BACKWARD(9, 8, 5, 33, 45, TALPA_BF16)},
    {.name = "f16, odd", BACKWARD(9, 8, 5, 33, 45, TALPA_F16)},
    {.name = "3 rows of 130", BACKWARD(130, 5, 130, 70, 24, TALPA_F32), .n_labelled = 3},
};

const struct tp_op tp_op_linear_cross_entropy = {
    .name = "linear_cross_entropy",
    .in_names = {"hidden", "weight", "weight_t", "rows", "labels"},
    .infer = infer_forward,
    .gradient = gradient,
    .variants = variants,
    .n_variants = sizeof variants / sizeof *variants,
    .cost = cost,
    .for_gradient = {[EXPECTED] = true},
    .rounds_inside = true,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

const struct tp_op tp_op_linear_cross_entropy_backward = {
    .name = "linear_cross_entropy_backward",
    .in_names = {"expected", "weight", "rows", "labels", "dloss?", "dnll?", "dlse?"},
    .attr_i = {"n_tokens", "tokens_word"},
    .infer = infer_backward,
    .no_gradient = "second derivatives are not defined",
    .variants = backward_variants,
    .n_variants = sizeof backward_variants / sizeof *backward_variants,
    .cost = cost_backward,
    .rounds_inside = true, /* tiles hold the row of the label rounded, the layout quant holds it exactly */
    .cases = backward_cases,
    .n_cases = sizeof backward_cases / sizeof *backward_cases,
    .reference = reference_backward,
};

enum talpa_status talpa_linear_cross_entropy(talpa_value *loss, talpa_value *nll, struct talpa_graph *graph, talpa_value hidden,
                                             talpa_value weight, talpa_value rows, talpa_value labels)
{
    talpa_value out[N_OUT];
    const talpa_value in[N_IN] = {hidden, weight, weight, rows, labels};
    TP_TRY(tp_graph_node(graph, &tp_op_linear_cross_entropy, in, N_IN, NULL, out));
    *loss = out[LOSS];
    *nll = out[NLL];
    return TALPA_OK;
}
