#include <math.h>
#include <string.h>

#include "elementwise.h"
#include "tensor_table.h"

extern const struct tp_op tp_op_grad_norm, tp_op_step_counts, tp_op_adamw;

static const char *const no_gradient = "it updates states";

static enum talpa_status expect_tensors(struct tp_infer *infer, int operand)
{
    TP_TRY(tp_infer_expect(infer, operand, 2, TALPA_I32));
    if (infer->in[operand]->rows || infer->in[operand]->shape.dim[1] != TP_TENSOR_COLUMNS)
        return tp_infer_fail(infer, operand, "[n_tensors, %d], see host/ops/tensor_table.h", TP_TENSOR_COLUMNS);
    return TALPA_OK;
}

static enum talpa_status expect_bank(struct tp_infer *infer, int operand, int like)
{
    TP_TRY(tp_infer_expect(infer, operand, 1, TALPA_F32));
    if (infer->in[operand]->rows || infer->in[operand]->shape.dim[0] != infer->in[like]->shape.dim[0])
        return tp_infer_fail(infer, operand, "a flat bank of %lld elements", (long long)infer->in[like]->shape.dim[0]);
    return TALPA_OK;
}

static enum talpa_status expect_counts(struct tp_infer *infer, int operand, int tensors)
{
    TP_TRY(tp_infer_expect(infer, operand, 1, TALPA_I32));
    if (infer->in[operand]->rows || infer->in[operand]->shape.dim[0] != infer->in[tensors]->shape.dim[0])
        return tp_infer_fail(infer, operand, "[%lld], one count per tensor", (long long)infer->in[tensors]->shape.dim[0]);
    return TALPA_OK;
}

/* `selected` may be omitted when every flag is TP_TENSOR_ALWAYS. */
static enum talpa_status expect_selected(struct tp_infer *infer, int operand)
{
    if (!infer->in[operand]) return TALPA_OK;
    TP_TRY(tp_infer_expect(infer, operand, 1, TALPA_I32));
    return infer->in[operand]->rows ? tp_infer_fail(infer, operand, "an exact size") : TALPA_OK;
}

/* Passes `selected`, or `other` with no readable element in its place. */
static uint32_t read_selected(struct tp_lower *lower, struct tp_launch *launch, int selected, int other)
{
    const bool is_given = tp_lower_has_in(lower, selected);
    tp_launch_read(lower, launch, tp_in(is_given ? selected : other));
    return is_given ? (uint32_t)tp_lower_in(lower, selected)->shape.dim[0] : 0;
}

static uint32_t max_chunks(const struct tp_lower *lower, int bank, int tensors)
{
    return (uint32_t)tp_tensor_table_max_chunks(tp_lower_in(lower, bank)->shape.dim[0], tp_lower_in(lower, tensors)->shape.dim[0]);
}

static uint32_t chunk_shares(uint32_t n_chunks) { return n_chunks < 64 ? n_chunks : 64; }

static bool is_selected(const double *selected, double flag) { return flag < 0 || selected[(int64_t)flag] > 0; }

/* Rows of a table for tensors of these sizes; those of even number start at a multiple of TP_CONCAT_ALIGN, the others where the one before
 * ends, like the experts of a stacked matrix. */
static void fill_tensors(double *tensors, const int *elements, const int *flags, int n)
{
    int offset = 0, chunk = 0;
    for (int i = 0; i < n; i++) {
        double *row = tensors + i * TP_TENSOR_COLUMNS;
        if (i % 2 == 0) offset = (offset + TP_CONCAT_ALIGN - 1) / TP_CONCAT_ALIGN * TP_CONCAT_ALIGN;
        row[0] = offset;
        row[1] = elements[i];
        row[2] = flags[i];
        row[3] = chunk;
        offset += elements[i];
        chunk += (elements[i] + TP_TENSOR_CHUNK - 1) / TP_TENSOR_CHUNK;
    }
}

#define INTS(kind, n)                                                                                                                      \
    {                                                                                                                                      \
        TALPA_I32, kind, TP_GEN_INDEX, 50, TP_STEP_NONE, {n}, false                                                                        \
    }
#define TENSORS(n)                                                                                                                         \
    {                                                                                                                                      \
        TALPA_I32, TP_INPUT, TP_GEN_ZERO, 0, TP_STEP_NONE, {n, TP_TENSOR_COLUMNS}, false                                                   \
    }
#define BANK(kind, generator, scale, n)                                                                                                    \
    {                                                                                                                                      \
        TALPA_F32, kind, generator, scale, TP_STEP_NONE, {n}, false                                                                        \
    }

/* The banks of the cases. Small: one tensor of one element. Mixed: sizes around the chunk, some flags. */
enum { N_SMALL = 256, N_MIXED_TENSORS = 7, N_MIXED = 4352 + 256 + 4096 + 256 + 512 + 8192 + 256 };
static const int small_elements[] = {1}, small_flags[] = {-1};
static const int mixed_elements[N_MIXED_TENSORS] = {4097, 7, 4096, 33, 300, 8191, 256};
static const int mixed_flags[N_MIXED_TENSORS] = {-1, 0, 1, 2, -1, 3, 0};

/* ---- grad_norm ---- */

static enum talpa_status infer_grad_norm(struct tp_infer *infer)
{
    TP_TRY(expect_bank(infer, 0, 0));
    TP_TRY(expect_tensors(infer, 1));
    infer->out[0] = infer->out[1] = tp_type_1d(TALPA_F32, TP_STEP_NONE, 1);
    infer->n_out = 2;
    return TALPA_OK;
}

static enum talpa_status lower_grad_norm(struct tp_lower *lower, bool on_cpu)
{
    const char *source = on_cpu ? "cpu/optimizer.cl" : "generic/optimizer.cl";
    const uint32_t n_chunks = max_chunks(lower, 0, 1);
    const struct tp_operand partial = tp_scratch(tp_lower_scratch(lower, n_chunks * sizeof(float)));
    const size_t local = tp_elementwise_local(lower, 128);

    struct tp_launch *launch = tp_lower_launch(lower, source, "grad_norm_chunks");
    tp_launch_read(lower, launch, tp_in(0));
    tp_launch_read(lower, launch, tp_in(1));
    tp_launch_write(lower, launch, partial);
    tp_launch_u32(launch, (uint32_t)tp_lower_in(lower, 1)->shape.dim[0]);
    if (on_cpu) {
        tp_launch_u32(launch, n_chunks);
        tp_launch_u32(launch, chunk_shares(n_chunks));
        tp_launch_groups(launch, chunk_shares(n_chunks), 1, 1, 1, 1, 1);
    } else {
        tp_launch_local(launch, local * sizeof(float));
        tp_launch_groups(launch, n_chunks, 1, 1, local, 1, 1);
    }
    tp_launch_cost(launch, 2.0 * (double)tp_type_elements(tp_lower_in(lower, 0)), (double)tp_type_bytes(tp_lower_in(lower, 0)));

    launch = tp_lower_launch(lower, source, "grad_norm_final");
    tp_launch_read(lower, launch, partial);
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_step(launch);
    tp_launch_u32(launch, n_chunks);
    if (!on_cpu) tp_launch_local(launch, local * sizeof(float));
    tp_launch_groups(launch, 1, 1, 1, on_cpu ? 1 : local, 1, 1);
    tp_launch_cost(launch, 4.0 * n_chunks, 4.0 * n_chunks);
    return TALPA_OK;
}

static enum talpa_status lower_grad_norm_cpu(struct tp_lower *lower) { return lower_grad_norm(lower, true); }
static enum talpa_status lower_grad_norm_generic(struct tp_lower *lower) { return lower_grad_norm(lower, false); }

static const struct tp_variant variants_grad_norm[] = {{"cpu", NULL, NULL, lower_grad_norm_cpu},
                                                       {"generic", NULL, NULL, lower_grad_norm_generic}};

static void cost_of_bank(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *bank = tp_graph_type(graph, node->in[0]);
    const bool is_adamw = node->op == &tp_op_adamw;
    *flops = (is_adamw ? 14.0 : 2.0) * (double)tp_type_elements(bank);
    *bytes = (is_adamw ? 7.0 : 1.0) * (double)tp_type_bytes(bank);
}

static double step_float(const struct tp_step *step, enum tp_step_word word)
{
    float f;
    memcpy(&f, &step->word[word], sizeof f);
    return (double)f;
}

static void reference_grad_norm(const struct tp_reference *reference)
{
    double sum = 0;
    for (int64_t i = 0; i < reference->in_type[1].shape.dim[0]; i++) {
        const double *row = reference->in[1] + i * TP_TENSOR_COLUMNS;
        for (int64_t k = 0; k < (int64_t)row[1]; k++) sum += pow(reference->in[0][(int64_t)row[0] + k], 2);
    }
    const double norm = sqrt(sum), max_norm = step_float(reference->step, TP_STEP_MAX_NORM);
    reference->out[0][0] = norm;
    reference->out[1][0] = !isfinite(norm) ? NAN : max_norm > 0 ? fmin(1, max_norm / (norm + 1e-6)) : 1;
}

static void prepare_norm_small(double *const *in) { fill_tensors(in[1], small_elements, small_flags, 1); }
static void prepare_norm_mixed(double *const *in) { fill_tensors(in[1], mixed_elements, mixed_flags, N_MIXED_TENSORS); }

static const struct tp_case cases_grad_norm[] = {
    {.name = "one element",
     .in = {BANK(TP_INPUT, TP_GEN_NORMAL, 1, N_SMALL), TENSORS(1)},
     .n_in = 2,
     .tolerance = 1e-6,
     .prepare = prepare_norm_small},
    {.name = "mixed",
     .in = {BANK(TP_INPUT, TP_GEN_NORMAL, 1, N_MIXED), TENSORS(N_MIXED_TENSORS)},
     .n_in = 2,
     .tolerance = 1e-6,
     .prepare = prepare_norm_mixed},
    {.name = "small gradients",
     .in = {BANK(TP_INPUT, TP_GEN_NORMAL, 1e-5, N_MIXED), TENSORS(N_MIXED_TENSORS)},
     .n_in = 2,
     .tolerance = 1e-8,
     .prepare = prepare_norm_mixed},
};

const struct tp_op tp_op_grad_norm = {
    .name = "grad_norm",
    .in_names = {"grads", "tensors"},
    .infer = infer_grad_norm,
    .no_gradient = no_gradient,
    .variants = variants_grad_norm,
    .n_variants = 2,
    .cost = cost_of_bank,
    .cases = cases_grad_norm,
    .n_cases = sizeof cases_grad_norm / sizeof *cases_grad_norm,
    .reference = reference_grad_norm,
};

enum talpa_status talpa_grad_norm(talpa_value *norm, talpa_value *clip, struct talpa_graph *graph, talpa_value grads, talpa_value tensors)
{
    talpa_value out[2];
    TP_TRY(tp_graph_node(graph, &tp_op_grad_norm, (const talpa_value[]){grads, tensors}, 2, NULL, out));
    *norm = out[0];
    *clip = out[1];
    return TALPA_OK;
}

/* ---- step_counts ---- */

static enum talpa_status infer_step_counts(struct tp_infer *infer)
{
    TP_TRY(expect_tensors(infer, 2));
    TP_TRY(expect_counts(infer, 0, 2));
    TP_TRY(expect_selected(infer, 1));
    infer->out[0] = *infer->in[0];
    infer->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status lower_step_counts(struct tp_lower *lower)
{
    const size_t n_tensors = (size_t)tp_lower_in(lower, 2)->shape.dim[0], local = tp_elementwise_local(lower, 64);
    struct tp_launch *launch = tp_lower_launch(lower, "generic/optimizer.cl", "step_counts");
    const uint32_t n_selected = read_selected(lower, launch, 1, 2);
    tp_launch_read(lower, launch, tp_in(2));
    tp_launch_write(lower, launch, tp_out(0));
    tp_launch_u32(launch, n_selected);
    tp_launch_u32(launch, (uint32_t)n_tensors);
    tp_launch_groups(launch, (n_tensors + local - 1) / local, 1, 1, local, 1, 1);
    tp_launch_cost(launch, (double)n_tensors, 24.0 * (double)n_tensors);
    return TALPA_OK;
}

static const struct tp_variant variants_step_counts[] = {{"generic", NULL, NULL, lower_step_counts}};

static void cost_of_counts(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    *flops = (double)tp_type_elements(tp_graph_type(graph, node->in[0]));
    *bytes = 24 * *flops;
}

static void reference_step_counts(const struct tp_reference *reference)
{
    for (int64_t i = 0; i < reference->out_type[0].shape.dim[0]; i++)
        reference->out[0][i] = reference->in[0][i] + (is_selected(reference->in[1], reference->in[2][i * TP_TENSOR_COLUMNS + 2]) ? 1 : 0);
}

static void prepare_counts_small(double *const *in) { fill_tensors(in[2], small_elements, small_flags, 1); }

static void prepare_counts_mixed(double *const *in)
{
    fill_tensors(in[2], mixed_elements, mixed_flags, N_MIXED_TENSORS);
    for (int i = 0; i < 4; i++) in[1][i] = i % 2 ? 0 : i + 3;
}

static const struct tp_case cases_step_counts[] = {
    {.name = "always",
     .in = {INTS(TP_STATE, 1), {TALPA_I32, TP_INPUT, TP_GEN_ZERO, 0, TP_STEP_NONE, {0}, false}, TENSORS(1)},
     .n_in = 3,
     .prepare = prepare_counts_small},
    {.name = "flags",
     .in = {INTS(TP_STATE, N_MIXED_TENSORS), INTS(TP_INPUT, 4), TENSORS(N_MIXED_TENSORS)},
     .n_in = 3,
     .prepare = prepare_counts_mixed},
};

const struct tp_op tp_op_step_counts = {
    .name = "step_counts",
    .in_names = {"counts", "selected?", "tensors"},
    .infer = infer_step_counts,
    .no_gradient = no_gradient,
    .variants = variants_step_counts,
    .n_variants = 1,
    .cost = cost_of_counts,
    .updates = {1},
    .cases = cases_step_counts,
    .n_cases = sizeof cases_step_counts / sizeof *cases_step_counts,
    .reference = reference_step_counts,
};

enum talpa_status talpa_step_counts(talpa_value *counts_next, struct talpa_graph *graph, talpa_value counts, talpa_value selected,
                                    talpa_value tensors)
{
    return tp_graph_node(graph, &tp_op_step_counts, (const talpa_value[]){counts, selected, tensors}, 3, NULL, counts_next);
}

/* ---- adamw: f[0] beta1, f[1] beta2, f[2] eps ---- */

enum { PARAMS, GRADS, MOMENT, VARIANCE, COUNTS, SELECTED, TABLE, CLIP, N_ADAMW_IN };

static enum talpa_status infer_adamw(struct tp_infer *infer)
{
    TP_TRY(expect_bank(infer, PARAMS, PARAMS));
    for (int i = GRADS; i <= VARIANCE; i++) TP_TRY(expect_bank(infer, i, PARAMS));
    TP_TRY(expect_tensors(infer, TABLE));
    TP_TRY(expect_counts(infer, COUNTS, TABLE));
    TP_TRY(expect_selected(infer, SELECTED));
    TP_TRY(tp_infer_expect(infer, CLIP, 1, TALPA_F32));
    if (infer->in[CLIP]->shape.dim[0] != 1) return tp_infer_fail(infer, CLIP, "[1]");
    const double *f = infer->attrs->f;
    if (!(f[0] >= 0 && f[0] < 1) || !(f[1] >= 0 && f[1] < 1) || !(f[2] >= 0))
        return tp_fail(TALPA_E_ARGUMENT, "adamw: beta1 is %g, beta2 %g, eps %g; expected 0 <= beta < 1 and eps >= 0", f[0], f[1], f[2]);
    for (int o = 0; o < 3; o++) infer->out[o] = *infer->in[PARAMS];
    infer->n_out = 3;
    return TALPA_OK;
}

static enum talpa_status lower_adamw(struct tp_lower *lower, bool on_cpu)
{
    const uint32_t n_chunks = max_chunks(lower, PARAMS, TABLE);
    const double *f = lower->node->attrs.f;
    struct tp_launch *launch = tp_lower_launch(lower, on_cpu ? "cpu/optimizer.cl" : "generic/optimizer.cl", "adamw");
    tp_launch_read(lower, launch, tp_in(GRADS));
    tp_launch_read(lower, launch, tp_in(COUNTS));
    const uint32_t n_selected = read_selected(lower, launch, SELECTED, COUNTS);
    tp_launch_read(lower, launch, tp_in(TABLE));
    tp_launch_read(lower, launch, tp_in(CLIP));
    for (int o = 0; o < 3; o++) tp_launch_write(lower, launch, tp_out(o));
    tp_launch_step(launch);
    tp_launch_u32(launch, n_selected);
    tp_launch_u32(launch, (uint32_t)tp_lower_in(lower, TABLE)->shape.dim[0]);
    tp_launch_f32(launch, (float)f[1]);
    tp_launch_f32(launch, (float)(1 - f[0]));
    tp_launch_f32(launch, (float)(1 - f[1]));
    tp_launch_f32(launch, (float)log(f[0]));
    tp_launch_f32(launch, (float)log(f[1]));
    tp_launch_f32(launch, (float)f[2]);
    if (on_cpu) {
        tp_launch_u32(launch, n_chunks);
        tp_launch_u32(launch, chunk_shares(n_chunks));
        tp_launch_groups(launch, chunk_shares(n_chunks), 1, 1, 1, 1, 1);
    } else {
        tp_launch_groups(launch, n_chunks, 1, 1, tp_elementwise_local(lower, 128), 1, 1);
    }
    const struct tp_type *bank = tp_lower_in(lower, PARAMS);
    tp_launch_cost(launch, 14.0 * (double)tp_type_elements(bank), 7.0 * (double)tp_type_bytes(bank));
    return TALPA_OK;
}

static enum talpa_status lower_adamw_cpu(struct tp_lower *lower) { return lower_adamw(lower, true); }
static enum talpa_status lower_adamw_generic(struct tp_lower *lower) { return lower_adamw(lower, false); }

static const struct tp_variant variants_adamw[] = {{"cpu", NULL, NULL, lower_adamw_cpu},
                                                   {"generic", NULL, NULL, lower_adamw_generic}};

static void reference_adamw(const struct tp_reference *reference)
{
    const int64_t n = reference->out_type[0].shape.dim[0];
    const double *f = reference->attrs->f, *g_bank = reference->in[GRADS];
    double *p = reference->out[0], *m = reference->out[1], *v = reference->out[2];
    memcpy(p, reference->in[PARAMS], (size_t)n * sizeof *p);
    memcpy(m, reference->in[MOMENT], (size_t)n * sizeof *m);
    memcpy(v, reference->in[VARIANCE], (size_t)n * sizeof *v);
    if (!isfinite(reference->in[CLIP][0])) return;
    const double lr = step_float(reference->step, TP_STEP_LEARNING_RATE), decay = step_float(reference->step, TP_STEP_WEIGHT_DECAY);
    for (int64_t i = 0; i < reference->in_type[TABLE].shape.dim[0]; i++) {
        const double *row = reference->in[TABLE] + i * TP_TENSOR_COLUMNS, t = reference->in[COUNTS][i];
        if (!is_selected(reference->in[SELECTED], row[2])) continue;
        for (int64_t k = (int64_t)row[0]; k < (int64_t)(row[0] + row[1]); k++) {
            const double g = g_bank[k] * reference->in[CLIP][0];
            p[k] -= lr * decay * p[k];
            m[k] = f[0] * m[k] + (1 - f[0]) * g;
            v[k] = f[1] * v[k] + (1 - f[1]) * g * g;
            const double m_hat = m[k] / (1 - pow(f[0], t)), v_hat = v[k] / (1 - pow(f[1], t));
            p[k] -= lr * m_hat / (sqrt(v_hat) + f[2]);
        }
    }
}

static void prepare_adamw_small(double *const *in)
{
    fill_tensors(in[TABLE], small_elements, small_flags, 1);
    in[COUNTS][0] = 1;
}

static void prepare_adamw_mixed(double *const *in)
{
    static const int counts[N_MIXED_TENSORS] = {1, 2, 3, 17, 100, 1000, 100000};
    fill_tensors(in[TABLE], mixed_elements, mixed_flags, N_MIXED_TENSORS);
    for (int i = 0; i < 4; i++) in[SELECTED][i] = i % 2 ? 0 : i + 1;
    for (int i = 0; i < N_MIXED_TENSORS; i++) in[COUNTS][i] = counts[i];
}

static void prepare_adamw_no_norm(double *const *in)
{
    prepare_adamw_mixed(in);
    in[CLIP][0] = NAN;
}

#define ADAMW_IN(n, n_tensors, selected)                                                                                                   \
    {                                                                                                                                      \
        BANK(TP_STATE, TP_GEN_NORMAL, 1, n), BANK(TP_INPUT, TP_GEN_NORMAL, 1, n), BANK(TP_STATE, TP_GEN_NORMAL, 1, n),                     \
            BANK(TP_STATE, TP_GEN_UNIFORM, 1, n), INTS(TP_INPUT, n_tensors), selected, TENSORS(n_tensors),                                 \
            BANK(TP_INPUT, TP_GEN_UNIFORM, 1, 1)                                                                                           \
    }
#define NO_SELECTED                                                                                                                        \
    {                                                                                                                                      \
        TALPA_I32, TP_INPUT, TP_GEN_ZERO, 0, TP_STEP_NONE, {0}, false                                                                      \
    }

static const struct tp_case cases_adamw[] = {
    {.name = "one element",
     .in = ADAMW_IN(N_SMALL, 1, NO_SELECTED),
     .n_in = N_ADAMW_IN,
     .attrs = {.f = {0.9, 0.999, 1e-8}},
     .prepare = prepare_adamw_small},
    {.name = "mixed",
     .in = ADAMW_IN(N_MIXED, N_MIXED_TENSORS, INTS(TP_INPUT, 4)),
     .n_in = N_ADAMW_IN,
     .attrs = {.f = {0.9, 0.999, 1e-8}},
     .prepare = prepare_adamw_mixed},
    {.name = "no finite norm",
     .in = ADAMW_IN(N_MIXED, N_MIXED_TENSORS, INTS(TP_INPUT, 4)),
     .n_in = N_ADAMW_IN,
     .attrs = {.f = {0.9, 0.999, 1e-8}},
     .prepare = prepare_adamw_no_norm},
    {.name = "no momentum",
     .in = ADAMW_IN(N_MIXED, N_MIXED_TENSORS, INTS(TP_INPUT, 4)),
     .n_in = N_ADAMW_IN,
     .attrs = {.f = {0, 0.95, 1e-6}},
     .prepare = prepare_adamw_mixed},
};

const struct tp_op tp_op_adamw = {
    .name = "adamw",
    .in_names = {"params", "grads", "m", "v", "counts", "selected?", "tensors", "clip"},
    .attr_f = {"beta1", "beta2", "eps"},
    .infer = infer_adamw,
    .no_gradient = no_gradient,
    .variants = variants_adamw,
    .n_variants = 2,
    .cost = cost_of_bank,
    .updates = {1 + PARAMS, 1 + MOMENT, 1 + VARIANCE},
    .cases = cases_adamw,
    .n_cases = sizeof cases_adamw / sizeof *cases_adamw,
    .reference = reference_adamw,
};

/* 0.999f is meant as 0.999: its distance to 1 is off by 5e-5 of itself. Seven decimals name every beta in use. */
static double decimal(float beta) { return round((double)beta * 1e7) / 1e7; }

enum talpa_status talpa_adamw(talpa_value next[3], struct talpa_graph *graph, talpa_value params, talpa_value grads, talpa_value m,
                              talpa_value v, talpa_value counts, talpa_value selected, talpa_value tensors, talpa_value clip, float beta1,
                              float beta2, float eps)
{
    const talpa_value in[N_ADAMW_IN] = {params, grads, m, v, counts, selected, tensors, clip};
    const struct tp_attrs attrs = {.f = {decimal(beta1), decimal(beta2), (double)eps}};
    talpa_value out[3];
    TP_TRY(tp_graph_node(graph, &tp_op_adamw, in, N_ADAMW_IN, &attrs, out));
    memcpy(next, out, sizeof out);
    return TALPA_OK;
}
