/* Which elements dropout keeps, as bits: the mask that dropout applies, for ops that read a dropped value without storing one. Attributes:
 * i[0] width of the rows, f[0] p, key the random stream. 32 columns to a word; see kernels/generic/dropout_mask.cl for their order. */
#include <math.h>

#include "base/rng.h"
#include "ops/dropout_mask.h"
#include "ops/elementwise.h"

extern const struct tp_op tp_op_dropout_mask;

int64_t tp_dropout_mask_words(int64_t width) { return (width + 511) / 512 * 16; }

bool tp_dropout_mask_keeps(const double *row, int64_t column)
{
    return ((uint32_t)(int32_t)row[column / 512 * 16 + column % 16] >> (column / 16 % 32) & 1) != 0;
}

static enum talpa_status infer(struct tp_infer *work)
{
    for (int i = 0; i < 2; i++) TP_TRY(tp_infer_expect(work, i, 1, TALPA_I32));
    if (!tp_type_equal(work->in[0], work->in[1])) return tp_infer_fail(work, 1, "[%lld], as examples", (long long)work->in[0]->shape.dim[0]);
    if (!(work->attrs->f[0] >= 0 && work->attrs->f[0] < 1))
        return tp_fail(TALPA_E_ARGUMENT, "dropout_mask: p is %g, expected 0 <= p < 1", work->attrs->f[0]);
    if (work->attrs->i[0] < 1 || work->attrs->i[0] > INT32_MAX)
        return tp_fail(TALPA_E_ARGUMENT, "dropout_mask: the width is %lld, expected at least 1", (long long)work->attrs->i[0]);
    work->out[0] = tp_type_2d(TALPA_I32, work->in[0]->rows, work->in[0]->shape.dim[0], tp_dropout_mask_words(work->attrs->i[0]));
    work->n_out = 1;
    return TALPA_OK;
}

static enum talpa_status lower(struct tp_lower *work, bool on_cpu)
{
    const struct tp_type *type = tp_lower_out(work, 0);
    const size_t n_rows = (size_t)type->shape.dim[0], n_words = (size_t)type->shape.dim[1], n = (size_t)work->node->attrs.i[0];
    const uint64_t stream = work->node->attrs.key;
    struct tp_launch *launch = tp_lower_launch(work, on_cpu ? "cpu/dropout_mask.cl" : "generic/dropout_mask.cl", "dropout_mask");
    for (int i = 0; i < 2; i++) tp_launch_read(work, launch, tp_in(i));
    tp_launch_write(work, launch, tp_out(0));
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)n);
    tp_launch_u32(launch, (uint32_t)n_words);
    tp_launch_u32(launch, (uint32_t)ceil(work->node->attrs.f[0] * 0x1p24)); /* k 2^-24 >= p exactly for integers k >= this */
    tp_launch_u32(launch, (uint32_t)stream);
    tp_launch_u32(launch, (uint32_t)(stream >> 32));
    if (on_cpu) {
        const uint32_t n_groups = tp_elementwise_row_shares((int64_t)n_rows, (int64_t)n);
        tp_launch_u32(launch, n_groups);
        tp_launch_groups(launch, n_groups, 1, 1, 1, 1, 1);
    } else {
        const size_t local = tp_elementwise_local(work, 16);
        tp_launch_groups(launch, (n_words + local - 1) / local, n_rows, 1, local, 1, 1);
    }
    tp_launch_cost(launch, 20.0 * (double)(n_rows * n), 4.0 * (double)(n_rows * n_words));
    return TALPA_OK;
}

static enum talpa_status lower_cpu(struct tp_lower *work) { return lower(work, true); }
static enum talpa_status lower_generic(struct tp_lower *work) { return lower(work, false); }

static const struct tp_variant variants[] = {{"cpu", NULL, NULL, lower_cpu}, {"generic", NULL, NULL, lower_generic}};

static void cost(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes)
{
    const struct tp_type *type = tp_graph_type(graph, node->out[0]);
    *flops = 20.0 * (double)(type->shape.dim[0] * node->attrs.i[0]); /* integer operations of the generator, per element */
    *bytes = (double)tp_type_bytes(type);
}

static void reference(const struct tp_reference *work)
{
    const int64_t n_rows = work->out_type[0].shape.dim[0], n_words = work->out_type[0].shape.dim[1], n = work->attrs->i[0];
    const uint32_t *word = work->step->word;
    const uint32_t key[2] = {word[TP_STEP_SEED_LO] ^ (uint32_t)work->attrs->key,
                             word[TP_STEP_SEED_HI] ^ (uint32_t)(work->attrs->key >> 32)};
    for (int64_t t = 0; t < n_rows; t++)
        for (int64_t at = 0; at < n_words; at++) {
            uint32_t bits = 0;
            for (int64_t i = 0; i < 32; i++) {
                const int64_t j = at / 16 * 512 + at % 16 + 16 * i;
                const uint32_t counter[4] = {(uint32_t)(j / 4), (uint32_t)(int32_t)work->in[1][t], (uint32_t)(int32_t)work->in[0][t],
                                             word[TP_STEP_INDEX]};
                uint32_t random[4];
                tp_rng_philox(random, counter, key);
                if (j < n && (double)tp_rng_uniform(random[j % 4]) >= work->attrs->f[0]) bits |= 1u << i;
            }
            work->out[0][t * n_words + at] = (int32_t)bits;
        }
}

#define NUMBERS(t, range) {.dtype = TALPA_I32, .gen = TP_GEN_INDEX, .scale = range, .rows = TP_STEP_N_TOKENS, .dim = {t}}
#define IN(t) {NUMBERS(t, 1e6), NUMBERS(t, 2048)}

static const struct tp_case cases[] = {
    {.name = "odd", .in = IN(33), .n_in = 2, .attrs = {.i = {7}, .f = {0.1}, .key = UINT64_C(0x9e3779b97f4a7c15)}, .n_tokens = 17},
    {.name = "one element", .in = IN(1), .n_in = 2, .attrs = {.i = {1}, .f = {0.5}, .key = 1}},
    {.name = "keeps all", .in = IN(3), .n_in = 2, .attrs = {.i = {65}, .f = {0}, .key = 2}},
    {.name = "keeps almost none", .in = IN(7), .n_in = 2, .attrs = {.i = {131}, .f = {0.99}, .key = 3}},
    {.name = "model", .in = IN(64), .n_in = 2, .attrs = {.i = {576}, .f = {0.05}, .key = UINT64_C(0xfedcba9876543210)}, .n_tokens = 63},
    {.name = "wide", .in = IN(5), .n_in = 2, .attrs = {.i = {1537}, .f = {0.3}, .key = 4}},
};

const struct tp_op tp_op_dropout_mask = {
    .name = "dropout_mask",
    .in_names = {"examples", "positions"},
    .attr_i = {"width"},
    .attr_f = {"p"},
    .infer = infer,
    .no_gradient = "it is a random choice",
    .variants = variants,
    .n_variants = 2,
    .cost = cost,
    .cases = cases,
    .n_cases = sizeof cases / sizeof *cases,
    .reference = reference,
};

enum talpa_status talpa_dropout_mask(talpa_value *keep, struct talpa_graph *graph, talpa_value examples, talpa_value positions, int64_t width,
                                     float p, uint64_t stream)
{
    const struct tp_attrs attrs = {.i = {width}, .f = {(double)p}, .key = stream};
    return tp_graph_node(graph, &tp_op_dropout_mask, (const talpa_value[]){examples, positions}, 2, &attrs, keep);
}
