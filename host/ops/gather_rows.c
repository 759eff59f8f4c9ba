#include "elementwise.h"

extern const struct tp_op tp_op_gather_rows, tp_op_scatter_add_rows;

/* Attributes of scatter_add_rows: bound and step word of dimension 0 of its output. */
enum { N_ROWS, ROW_WORD };

static enum talpa_status infer_gather(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, 1, 1, TALPA_I32));
    const struct tp_type *rows = infer->in[1];
    infer->out[0] = tp_type_2d(TALPA_F32, rows->rows, rows->shape.dim[0], infer->in[0]->shape.dim[1]);
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status infer_scatter(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 2, TALPA_F32));
    TP_TRY(tp_infer_expect(infer, 1, 1, TALPA_I32));
    const struct tp_type *x = infer->in[0], *rows = infer->in[1];
    const int64_t *attr = infer->attrs->i;
    if (rows->shape.dim[0] != x->shape.dim[0] || rows->rows != x->rows) return tp_infer_fail(infer, 1, "one row number per row of x");
    if (attr[N_ROWS] < 1 || attr[ROW_WORD] < 0 || attr[ROW_WORD] >= TP_STEP_WORDS)
        return tp_fail(TALPA_E_ARGUMENT, "scatter_add_rows: %lld rows counted by step word %lld, expected at least 1 and a step word",
                       (long long)attr[N_ROWS], (long long)attr[ROW_WORD]);
    infer->out[0] = tp_type_2d(TALPA_F32, (enum tp_step_word)attr[ROW_WORD], attr[N_ROWS], x->shape.dim[1]);
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient_gather(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                         talpa_value *in_grads)
{
    (void)wanted;
    const struct tp_type *x = tp_graph_type(graph, node->in[0]);
    return talpa_scatter_add_rows(&in_grads[0], graph, out_grads[0], node->in[1], x->shape.dim[0], (int)x->rows);
}

static enum talpa_status gradient_scatter(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                          talpa_value *in_grads)
{
    (void)wanted;
    return talpa_gather_rows(&in_grads[0], graph, out_grads[0], node->in[1]);
}

static enum talpa_status lower(struct tp_lower *work, const char *kernel)
{
    const struct tp_type *out = tp_lower_out(work, 0);
    const size_t n_rows = (size_t)out->shape.dim[0], d = (size_t)out->shape.dim[1], local = tp_elementwise_local(work, 64);
    struct tp_launch *launch = tp_lower_launch(work, "generic/gather_rows.cl", kernel);
    tp_launch_read(work, launch, tp_in(0));
    tp_launch_read(work, launch, tp_in(1));
    tp_launch_write(work, launch, tp_out(0));
    tp_launch_step(launch);
    tp_launch_rows(launch, tp_lower_in(work, 0));
    tp_launch_rows(launch, out);
    tp_launch_u32(launch, (uint32_t)d);
    tp_launch_groups(launch, (d + local - 1) / local, n_rows, 1, local, 1, 1);
    tp_launch_cost(launch, (double)(n_rows * d), 8.0 * (double)(n_rows * d));
    return TALPA_OK;
}

static enum talpa_status lower_gather(struct tp_lower *work) { return lower(work, "gather_rows"); }
static enum talpa_status lower_scatter(struct tp_lower *work) { return lower(work, "scatter_add_rows"); }

static const struct tp_variant gather_variants[] = {{"generic", NULL, NULL, lower_gather}};
static const struct tp_variant scatter_variants[] = {{"generic", NULL, NULL, lower_scatter}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    *flops = (double)tp_type_elements(tp_graph_type(graph, node->out[0]));
    *bytes = (double)tp_type_bytes(tp_graph_type(graph, node->out[0])) + (double)tp_type_bytes(tp_graph_type(graph, node->in[0]));
}

/* out[r] += x[rows[r]] or out[rows[r]] += x[r]: both loop over the list of row numbers. */
static void move_rows(const struct tp_reference *work, bool is_scatter)
{
    const int64_t n_in = work->in_type[0].shape.dim[0], n_out = work->out_type[0].shape.dim[0], d = work->out_type[0].shape.dim[1];
    for (int64_t i = 0; i < n_out * d; i++) work->out[0][i] = 0.0;
    for (int64_t r = 0; r < work->in_type[1].shape.dim[0]; r++) {
        const int64_t row = (int64_t)work->in[1][r], from = is_scatter ? r : row, to = is_scatter ? row : r;
        if (row < 0 || row >= (is_scatter ? n_out : n_in)) continue;
        for (int64_t j = 0; j < d; j++) work->out[0][to * d + j] += work->in[0][from * d + j];
    }
}

static void reference_gather(const struct tp_reference *work) { move_rows(work, false); }
static void reference_scatter(const struct tp_reference *work) { move_rows(work, true); }

#define X(t, d, word) {TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, word, {t, d}, true}
#define ROWS(r, below, word) {TALPA_I32, TP_INPUT, TP_GEN_INDEX, below, word, {r}, false}

static void absent_rows(double *const *in) { in[1][0] = -1; }

static const struct tp_case gather_cases[] = {
    {.name = "odd", .in = {X(33, 7, TP_STEP_N_TOKENS), ROWS(9, 17, TP_STEP_N_LABELLED)}, .n_in = 2, .n_tokens = 17, .n_labelled = 5},
    {.name = "one", .in = {X(1, 1, TP_STEP_NONE), ROWS(1, 1, TP_STEP_NONE)}, .n_in = 2},
    {.name = "absent", .in = {X(5, 65, TP_STEP_NONE), ROWS(8, 5, TP_STEP_NONE)}, .n_in = 2, .prepare = absent_rows},
    {.name = "model", .in = {X(130, 576, TP_STEP_N_TOKENS), ROWS(70, 130, TP_STEP_N_LABELLED)}, .n_in = 2, .n_labelled = 3},
};

static const struct tp_case scatter_cases[] = {
    {.name = "odd", .in = {X(9, 7, TP_STEP_N_LABELLED), ROWS(9, 17, TP_STEP_N_LABELLED)}, .n_in = 2, .n_tokens = 17, .n_labelled = 5,
     .attrs = {.i = {33, TP_STEP_N_TOKENS}}},
    {.name = "one", .in = {X(1, 1, TP_STEP_NONE), ROWS(1, 1, TP_STEP_NONE)}, .n_in = 2, .attrs = {.i = {1, TP_STEP_NONE}}},
    {.name = "all to one", .in = {X(70, 33, TP_STEP_NONE), ROWS(70, 1, TP_STEP_NONE)}, .n_in = 2, .attrs = {.i = {2, TP_STEP_NONE}}},
    {.name = "absent", .in = {X(8, 65, TP_STEP_NONE), ROWS(8, 5, TP_STEP_NONE)}, .n_in = 2, .attrs = {.i = {5, TP_STEP_NONE}}, .prepare = absent_rows},
};

const struct tp_op tp_op_gather_rows = {
    .name = "gather_rows",
    .in_names = {"x", "rows"},
    .infer = infer_gather,
    .gradient = gradient_gather,
    .variants = gather_variants,
    .n_variants = 1,
    .cost = cost,
    .cases = gather_cases,
    .n_cases = sizeof gather_cases / sizeof *gather_cases,
    .reference = reference_gather,
};

const struct tp_op tp_op_scatter_add_rows = {
    .name = "scatter_add_rows",
    .in_names = {"x", "rows"},
    .attr_i = {[N_ROWS] = "n_rows", [ROW_WORD] = "row_word"},
    .infer = infer_scatter,
    .gradient = gradient_scatter,
    .variants = scatter_variants,
    .n_variants = 1,
    .cost = cost,
    .cases = scatter_cases,
    .n_cases = sizeof scatter_cases / sizeof *scatter_cases,
    .reference = reference_scatter,
};

enum talpa_status talpa_gather_rows(talpa_value *out, struct talpa_graph *graph, talpa_value x, talpa_value rows)
{
    return tp_graph_node(graph, &tp_op_gather_rows, (const talpa_value[]){x, rows}, 2, NULL, out);
}

enum talpa_status talpa_scatter_add_rows(talpa_value *out, struct talpa_graph *graph, talpa_value x, talpa_value rows, int64_t n_rows, int row_word)
{
    const struct tp_attrs attrs = {.i = {[N_ROWS] = n_rows, [ROW_WORD] = row_word}};
    return tp_graph_node(graph, &tp_op_scatter_add_rows, (const talpa_value[]){x, rows}, 2, &attrs, out);
}
