#include <math.h>

#include "base/rng.h"
#include "elementwise.h"

/* Attributes: f[0] p, key the random stream. The mask is linear, so the gradient is the same op applied to dy. */
extern const struct tp_op tp_op_dropout;

static enum talpa_status infer(struct tp_infer *work)
{
    TP_TRY(tp_infer_expect(work, 0, 2, TALPA_F32));
    for (int i = 1; i < 3; i++) {
        TP_TRY(tp_infer_expect(work, i, 1, TALPA_I32));
        if (work->in[i]->rows != work->in[0]->rows || work->in[i]->shape.dim[0] != work->in[0]->shape.dim[0])
            return tp_infer_fail(work, i, "[%lld], one number per row of x", (long long)work->in[0]->shape.dim[0]);
    }
    if (!(work->attrs->f[0] >= 0 && work->attrs->f[0] < 1))
        return tp_fail(TALPA_E_ARGUMENT, "dropout: p is %g, expected 0 <= p < 1", work->attrs->f[0]);
    work->out[0] = *work->in[0];
    work->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status gradient(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads)
{
    if (!wanted[0]) return TALPA_OK;
    const talpa_value in[] = {out_grads[0], node->in[1], node->in[2]};
    return tp_graph_node(graph, &tp_op_dropout, in, 3, &node->attrs, &in_grads[0]);
}

static enum talpa_status lower(struct tp_lower *work, bool on_cpu)
{
    const struct tp_type *type = tp_lower_out(work, 0);
    const size_t n_rows = (size_t)type->shape.dim[0], n = (size_t)type->shape.dim[1];
    const double p = work->node->attrs.f[0];
    const uint64_t stream = work->node->attrs.key;
    struct tp_launch *launch = tp_lower_launch(work, on_cpu ? "cpu/dropout.cl" : "generic/dropout.cl", "dropout");
    for (int i = 0; i < 3; i++) tp_launch_read(work, launch, tp_in(i));
    tp_launch_write(work, launch, tp_out(0));
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)n);
    tp_launch_u32(launch, (uint32_t)ceil(p * 0x1p24)); /* k 2^-24 >= p exactly for integers k >= this */
    tp_launch_f32(launch, (float)(1 / (1 - p)));
    tp_launch_u32(launch, (uint32_t)stream);
    tp_launch_u32(launch, (uint32_t)(stream >> 32));
    if (on_cpu) {
        const uint32_t n_groups = tp_elementwise_row_shares((int64_t)n_rows, (int64_t)n);
        tp_launch_u32(launch, n_groups);
        tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(work, 64), n_quads = (n + 3) / 4;
        tp_launch_groups(launch, (n_quads + local - 1) / local, n_rows, 1, local, 1, 1);
    }
    tp_launch_cost(launch, 30.0 * (double)(n_rows * n), 8.0 * (double)(n_rows * n));
    return TALPA_OK;
}

static enum talpa_status lower_cpu(struct tp_lower *work) { return lower(work, true); }
static enum talpa_status lower_generic(struct tp_lower *work) { return lower(work, false); }

static const struct tp_variant variants[] = {{"cpu", NULL, NULL, lower_cpu}, {"generic", NULL, NULL, lower_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const double n = (double)tp_type_elements(tp_graph_type(graph, node->out[0]));
    *flops = 30 * n; /* integer operations of the generator, per element */
    *bytes = 8 * n;
}

static void reference(const struct tp_reference *work)
{
    const int64_t n_rows = work->out_type[0].shape.dim[0], n = work->out_type[0].shape.dim[1];
    const double p = work->attrs->f[0];
    const uint32_t *word = work->step->word;
    const uint32_t key[2] = {word[TP_STEP_SEED_LO] ^ (uint32_t)work->attrs->key,
                             word[TP_STEP_SEED_HI] ^ (uint32_t)(work->attrs->key >> 32)};
    for (int64_t t = 0; t < n_rows; t++)
        for (int64_t j = 0; j < n; j++) {
            const uint32_t counter[4] = {(uint32_t)(j / 4), (uint32_t)(int32_t)work->in[2][t], (uint32_t)(int32_t)work->in[1][t],
                                         word[TP_STEP_INDEX]};
            uint32_t random[4];
            tp_rng_philox(random, counter, key);
            const bool keep = (double)tp_rng_uniform(random[j % 4]) >= p;
            work->out[0][t * n + j] = keep ? work->in[0][t * n + j] / (1 - p) : 0;
        }
}

#define ROWS(t, n)                                                                                                                         \
    {                                                                                                                                      \
        TALPA_F32, TP_INPUT, TP_GEN_NORMAL, 1, TP_STEP_N_TOKENS, {t, n}, true                                                              \
    }
#define NUMBERS(t, scale)                                                                                                                  \
    {                                                                                                                                      \
        TALPA_I32, TP_INPUT, TP_GEN_INDEX, scale, TP_STEP_N_TOKENS, {t}, false                                                             \
    }
#define IN(t, n)                                                                                                                           \
    {                                                                                                                                      \
        ROWS(t, n), NUMBERS(t, 1e6), NUMBERS(t, 2048)                                                                                      \
    }

static const struct tp_case cases[] = {
    {.name = "odd", .in = IN(33, 7), .n_in = 3, .attrs = {.f = {0.1}, .key = UINT64_C(0x9e3779b97f4a7c15)}, .n_tokens = 17},
    {.name = "one element", .in = IN(1, 1), .n_in = 3, .attrs = {.f = {0.5}, .key = 1}},
    {.name = "keeps all", .in = IN(3, 65), .n_in = 3, .attrs = {.f = {0}, .key = 2}},
    {.name = "keeps almost none", .in = IN(7, 131), .n_in = 3, .attrs = {.f = {0.99}, .key = 3}},
    {.name = "model", .in = IN(64, 576), .n_in = 3, .attrs = {.f = {0.05}, .key = UINT64_C(0xfedcba9876543210)}, .n_tokens = 63},
};

const struct tp_op tp_op_dropout = {
    .name = "dropout",
    .in_names = {"x", "examples", "positions"},
    .attr_f = {"p"},
    .flags = TP_OP_CHEAP,
    .infer = infer,
    .gradient = gradient,
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .inplace = {1},
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

enum talpa_status talpa_dropout(talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value examples, talpa_value positions,
                                float p, uint64_t stream)
{
    const struct tp_attrs attrs = {.f = {(double)p}, .key = stream};
    return tp_graph_node(graph, &tp_op_dropout, (const talpa_value[]){x, examples, positions}, 3, &attrs, y);
}
