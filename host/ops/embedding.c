#include "elementwise.h"

#include "base/dtype.h"
#include "gemm.h"

extern const struct tp_op tp_op_embedding;

static enum talpa_status infer(struct tp_infer *work)
{
    TP_TRY(tp_infer_expect(work, 0, 1, TALPA_I32));
    TP_TRY(tp_infer_expect(work, 1, 2, TALPA_N_DTYPES));
    const struct tp_type *ids = work->in[0], *table = work->in[1];
    if (table->dtype == TALPA_I32 || table->rows) return tp_infer_fail(work, 1, "a table [V, d] of weights");
    work->out[0] = tp_type_2d(TALPA_F32, ids->rows, ids->shape.dim[0], table->shape.dim[1]);
    work->n_out = 1;
    return TALPA_OK;
}

/* One launch per part of the table; each writes the rows of x whose ids lie in its part. */
static enum talpa_status lower(struct tp_lower *work, bool on_cpu)
{
    const struct tp_type *type = tp_lower_out(work, 0), *table = tp_lower_in(work, 1);
    const size_t n_rows = (size_t)type->shape.dim[0], d = (size_t)type->shape.dim[1];
    const bool quant = work->in_layout[1] == TP_LAYOUT_QUANT;
    const int n_parts = tp_lower_n_parts(work, 1);
    for (int part = 0; part < n_parts; part++) {
        int64_t first, n;
        tp_lower_part(work, 1, part, &first, &n);
        struct tp_launch *launch = tp_lower_launch(work, on_cpu ? "cpu/embedding.cl" : "generic/embedding.cl", "embedding");
        tp_launch_option(launch, "%s", tp_gemm_weight_option(table->dtype));
        if (quant) tp_launch_option(launch, "-DTABLE_QUANT=1");
        tp_launch_read(work, launch, tp_in(0));
        tp_launch_read_part(work, launch, tp_in(1), part);
        tp_launch_write(work, launch, tp_out(0));
        tp_launch_step(launch);
        tp_launch_rows(launch, type);
        tp_launch_u32(launch, (uint32_t)d);
        tp_launch_u32(launch, (uint32_t)(quant ? first * TP_PANEL : first));
        tp_launch_u32(launch, (uint32_t)(quant ? n * TP_PANEL : n));
        if (on_cpu) {
            const uint32_t n_groups = tp_elementwise_row_shares((int64_t)n_rows, (int64_t)d);
            tp_launch_u32(launch, n_groups);
            tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
        } else {
            const size_t local = tp_elementwise_local(work, 64);
            tp_launch_groups(launch, (d + local - 1) / local, n_rows, 1, local, 1, 1);
        }
        tp_launch_cost(launch, 0, 8.0 * (double)(n_rows * d) / n_parts);
    }
    return TALPA_OK;
}

static enum talpa_status lower_cpu(struct tp_lower *work) { return lower(work, true); }
static enum talpa_status lower_generic(struct tp_lower *work) { return lower(work, false); }

/* A quantised table is mostly the output weight too: read in the layout of that product it is stored once. */
static bool applies_quant(const struct tp_lower *lower) { return tp_gemm_wants_quant(lower, 1); }

static void layouts_quant(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out)
{
    (void)lower;
    (void)out;
    in[1] = TP_LAYOUT_QUANT;
}

static const struct tp_variant variants[] = {{"cpu", applies_quant, layouts_quant, lower_cpu},
                                             {"cpu", NULL, NULL, lower_cpu},
                                             {"generic", NULL, NULL, lower_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *type = tp_graph_type(graph, node->out[0]);
    *flops = 0;
    *bytes = (double)tp_type_bytes(type) + (double)tp_dtype_bytes(tp_graph_type(graph, node->in[1])->dtype, tp_type_elements(type));
}

static void reference(const struct tp_reference *work)
{
    const int64_t n_rows = work->out_type[0].shape.dim[0], d = work->out_type[0].shape.dim[1];
    for (int64_t t = 0; t < n_rows; t++)
        for (int64_t j = 0; j < d; j++) work->out[0][t * d + j] = work->in[1][(int64_t)work->in[0][t] * d + j];
}

#define IDS(t, v)                                                                                                                          \
    {                                                                                                                                      \
        TALPA_I32, TP_INPUT, TP_GEN_INDEX, v, TP_STEP_N_TOKENS, {t}, false                                                                 \
    }
#define TABLE(type, v, d)                                                                                                                  \
    {                                                                                                                                      \
        type, TP_WEIGHT, TP_GEN_NORMAL, 1, TP_STEP_NONE, {v, d}, false                                                                     \
    }

static const struct tp_case cases[] = {
    {.name = "f32, odd", .in = {IDS(33, 7), TABLE(TALPA_F32, 7, 35)}, .n_in = 2, .n_tokens = 17},
    {.name = "f32, one", .in = {IDS(1, 1), TABLE(TALPA_F32, 1, 1)}, .n_in = 2},
    {.name = "f32, model", .in = {IDS(64, 1000), TABLE(TALPA_F32, 1000, 576)}, .n_in = 2, .n_tokens = 63},
    {.name = "f16, odd", .in = {IDS(65, 51), TABLE(TALPA_F16, 51, 33)}, .n_in = 2, .n_tokens = 3},
    {.name = "bf16, odd", .in = {IDS(65, 51), TABLE(TALPA_BF16, 51, 33)}, .n_in = 2, .n_tokens = 3},
    {.name = "q8_0", .in = {IDS(33, 77), TABLE(TALPA_Q8_0, 77, 96)}, .n_in = 2, .n_tokens = 31},
    {.name = "q4_0", .in = {IDS(33, 77), TABLE(TALPA_Q4_0, 77, 32)}, .n_in = 2, .n_tokens = 31},
    {.name = "q4_1", .in = {IDS(33, 77), TABLE(TALPA_Q4_1, 77, 96)}, .n_in = 2, .n_tokens = 31},
    {.name = "q5_0", .in = {IDS(33, 77), TABLE(TALPA_Q5_0, 77, 96)}, .n_in = 2, .n_tokens = 31},
    {.name = "q5_1", .in = {IDS(33, 77), TABLE(TALPA_Q5_1, 77, 32)}, .n_in = 2, .n_tokens = 31},
    {.name = "q4_k", .in = {IDS(33, 17), TABLE(TALPA_Q4_K, 17, 512)}, .n_in = 2, .n_tokens = 31},
    {.name = "q5_k", .in = {IDS(33, 17), TABLE(TALPA_Q5_K, 17, 256)}, .n_in = 2, .n_tokens = 31},
    {.name = "q6_k", .in = {IDS(33, 17), TABLE(TALPA_Q6_K, 17, 256)}, .n_in = 2, .n_tokens = 31},
};

const struct tp_op tp_op_embedding = {
    .name = "embedding",
    .in_names = {"ids", "table"},
    .infer = infer,
    .no_gradient = "the table is frozen",
    .variants = variants,
    .n_variants = sizeof variants / sizeof *variants,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

enum talpa_status talpa_embedding(talpa_value *x, struct talpa_graph *graph, talpa_value ids, talpa_value table)
{
    return tp_graph_node(graph, &tp_op_embedding, (const talpa_value[]){ids, table}, 2, NULL, x);
}
