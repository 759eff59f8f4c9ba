#include <string.h>

#include "graph/op.h"

/* slice and concat: flat banks without copies. The plan resolves both by placement; neither has a launch. */
extern const struct tp_op tp_op_slice, tp_op_concat;

static enum talpa_status lower_nothing(struct tp_lower *lower)
{
    (void)lower;
    return TALPA_OK;
}

static const struct tp_variant variants[] = {{"generic", NULL, NULL, lower_nothing}};

static void cost_nothing(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    (void)graph, (void)node;
    *flops = 0;
    *bytes = 0;
}

/* ---- slice: i[0] offset in elements, i[1] rank, i[2..5] dimensions ---- */

static enum talpa_status infer_slice(struct tp_infer *infer)
{
    TP_TRY(tp_infer_expect(infer, 0, 1, TALPA_N_DTYPES));
    const struct tp_type *bank = infer->in[0];
    const int64_t *attr = infer->attrs->i;
    if (bank->rows || (bank->dtype != TALPA_F32 && bank->dtype != TALPA_I32))
        return tp_infer_fail(infer, 0, "a flat f32 or i32 bank of exact size");
    if (attr[1] < 1 || attr[1] > TALPA_MAX_RANK)
        return tp_fail(TALPA_E_ARGUMENT, "slice: rank is %lld, expected 1 to %d", (long long)attr[1], TALPA_MAX_RANK);
    int64_t n = 1;
    for (int i = 0; i < (int)attr[1]; i++) {
        if (attr[2 + i] < 1 || attr[2 + i] > bank->shape.dim[0] / n)
            return tp_infer_fail(infer, 0, "room for dimension %d of the slice, %lld", i, (long long)attr[2 + i]);
        n *= attr[2 + i];
    }
    if (attr[0] < 0 || attr[0] % TP_CONCAT_ALIGN || attr[0] > bank->shape.dim[0] - n)
        return tp_infer_fail(infer, 0, "%lld elements from offset %lld, a multiple of %d", (long long)n, (long long)attr[0],
                             TP_CONCAT_ALIGN);
    infer->out[0] = tp_type_make(bank->dtype, TP_STEP_NONE, (int)attr[1], attr + 2);
    infer->n_out = 1;
    return TALPA_OK;
}

static void reference_slice(const struct tp_reference *reference)
{
    memcpy(reference->out[0], reference->in[0] + reference->attrs->i[0],
           (size_t)tp_type_elements(&reference->out_type[0]) * sizeof(double));
}

#define BANK(type, n)                                                                                                                      \
    {                                                                                                                                      \
        type, TP_STATE, TP_GEN_INDEX, 1000, TP_STEP_NONE, {n}, false                                                                       \
    }
#define TENSOR(type, ...)                                                                                                                  \
    {                                                                                                                                      \
        type, TP_INPUT, TP_GEN_INDEX, 1000, TP_STEP_NONE, {__VA_ARGS__}, false                                                             \
    }

static const struct tp_case cases_slice[] = {
    {.name = "matrix", .in = {BANK(TALPA_F32, 1024)}, .n_in = 1, .attrs = {.i = {256, 2, 7, 33}}},
    {.name = "whole bank", .in = {BANK(TALPA_F32, 256)}, .n_in = 1, .attrs = {.i = {0, 1, 256}}},
    {.name = "last element", .in = {BANK(TALPA_I32, 513)}, .n_in = 1, .attrs = {.i = {512, 1, 1}}},
};

const struct tp_op tp_op_slice = {
    .name = "slice",
    .in_names = {"bank"},
    .attr_i = {"offset", "rank", "dim0", "dim1", "dim2", "dim3"},
    .flags = TP_OP_VIEW,
    .infer = infer_slice,
    .no_gradient = "parameters are taken as slices; ask for the gradient of the slice",
    .variants = variants,
    .n_variants = 1,
    .cost = cost_nothing,
    .cases = cases_slice,
    .n_cases = sizeof cases_slice / sizeof *cases_slice,
    .reference = reference_slice,
};

enum talpa_status talpa_slice(talpa_value *out, struct talpa_graph *graph, talpa_value bank, int64_t offset, struct talpa_shape shape)
{
    struct tp_attrs attrs = {.i = {offset, shape.rank}};
    for (int i = 0; i < TALPA_MAX_RANK && i < shape.rank; i++) attrs.i[2 + i] = shape.dim[i];
    return tp_graph_node(graph, &tp_op_slice, &bank, 1, &attrs, out);
}

/* ---- concat: the bank ends with its last input, rounded up to whole TP_CONCAT_ALIGN elements; the gaps have no defined contents ---- */

static int64_t padded(const struct tp_type *type)
{
    return (tp_type_elements(type) + TP_CONCAT_ALIGN - 1) / TP_CONCAT_ALIGN * TP_CONCAT_ALIGN;
}

static enum talpa_status infer_concat(struct tp_infer *infer)
{
    if (infer->n_in < 1) return tp_fail(TALPA_E_ARGUMENT, "concat: no inputs, expected at least 1");
    int64_t n = 0;
    for (int i = 0; i < infer->n_in; i++) {
        TP_TRY(tp_infer_expect(infer, i, 0, TALPA_N_DTYPES));
        if (infer->in[i]->dtype != TALPA_F32 && infer->in[i]->dtype != TALPA_I32) return tp_infer_fail(infer, i, "f32 or i32");
        if (infer->in[i]->rows || infer->in[i]->dtype != infer->in[0]->dtype)
            return tp_infer_fail(infer, i, "the dtype of input 0 and an exact size");
        n += padded(infer->in[i]);
    }
    infer->out[0] = tp_type_1d(infer->in[0]->dtype, TP_STEP_NONE, n);
    infer->n_out = 1;
    return TALPA_OK;
}

static void reference_concat(const struct tp_reference *reference)
{
    double *out = reference->out[0];
    memset(out, 0, (size_t)tp_type_elements(&reference->out_type[0]) * sizeof *out);
    for (int i = 0; i < reference->n_in; i++) {
        memcpy(out, reference->in[i], (size_t)tp_type_elements(&reference->in_type[i]) * sizeof *out);
        out += padded(&reference->in_type[i]);
    }
}

/* Whole multiples of the alignment: what lies in the gaps is not defined. */
static const struct tp_case cases_concat[] = {
    {.name = "one", .in = {TENSOR(TALPA_F32, 256)}, .n_in = 1},
    {.name = "three", .in = {TENSOR(TALPA_F32, 32, 8), TENSOR(TALPA_F32, 768), TENSOR(TALPA_F32, 16, 16, 2)}, .n_in = 3},
    {.name = "integers", .in = {TENSOR(TALPA_I32, 512), TENSOR(TALPA_I32, 256)}, .n_in = 2},
};

const struct tp_op tp_op_concat = {
    .name = "concat",
    .in_names = {"in"},
    .flags = TP_OP_CONCAT,
    .infer = infer_concat,
    .no_gradient = "it gathers gradients for an update and is not part of a model",
    .variants = variants,
    .n_variants = 1,
    .cost = cost_nothing,
    .cases = cases_concat,
    .n_cases = sizeof cases_concat / sizeof *cases_concat,
    .reference = reference_concat,
};

enum talpa_status talpa_concat(talpa_value *out, struct talpa_graph *graph, const talpa_value *in, int n_in)
{
    return tp_graph_node(graph, &tp_op_concat, in, n_in, NULL, out);
}
