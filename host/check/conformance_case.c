/* Inputs of a case. Numbers come from Philox4x32-10, counter (element / 2, stream), key of op and case: independent of everything else. */
#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "base/hash.h"
#include "base/rng.h"
#include "conformance_impl.h"

static void words(const struct tp_trial *trial, uint32_t stream, uint64_t block, uint32_t out[4])
{
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), stream, 0};
    const uint32_t key[2] = {(uint32_t)trial->seed, (uint32_t)(trial->seed >> 32)};
    tp_rng_philox(out, counter, key);
}

double tp_trial_normal(const struct tp_trial *trial, uint32_t stream, uint64_t i)
{
    uint32_t u[4];
    float pair[2];
    words(trial, stream, i / 2, u);
    tp_rng_normal(pair, u[0], u[1]);
    return (double)pair[i % 2];
}

double tp_trial_uniform(const struct tp_trial *trial, uint32_t stream, uint64_t i)
{
    uint32_t u[4];
    words(trial, stream, i / 4, u);
    return (double)tp_rng_uniform(u[i % 4]);
}

struct tp_type tp_trial_run_type(const struct tp_trial *trial, const struct tp_type *type)
{
    struct tp_type run = *type;
    if (type->rows == TP_STEP_NONE) return run;
    const int64_t n = (int64_t)trial->step.word[type->rows];
    if (n < run.shape.dim[0]) run.shape.dim[0] = n;
    return run;
}

static void fill_probability(const struct tp_trial *trial, uint32_t stream, const struct tp_type *type, double scale, double *out)
{
    const int64_t n_rows = type->shape.dim[0], n = tp_type_elements(type) / (n_rows ? n_rows : 1);
    for (int64_t t = 0; t < n_rows; t++) {
        double sum = 0;
        for (int64_t e = 0; e < n; e++) {
            out[t * n + e] = exp(scale * tp_trial_normal(trial, stream, (uint64_t)(t * n + e)));
            sum += out[t * n + e];
        }
        for (int64_t e = 0; e < n; e++) out[t * n + e] /= sum;
    }
}

/* Selection sampling (Knuth, volume 2, algorithm 3.4.2 S): n of `below` numbers in order. */
static void fill_ascending(const struct tp_trial *trial, uint32_t stream, int64_t n, int64_t below, double *out)
{
    int64_t chosen = 0;
    for (int64_t i = 0; i < below && chosen < n; i++)
        if (tp_trial_uniform(trial, stream, (uint64_t)i) * (double)(below - i) < (double)(n - chosen)) out[chosen++] = (double)i;
    for (; chosen < n; chosen++) out[chosen] = (double)(below - 1);
}

static void fill_segments(const struct tp_trial *trial, const struct tp_type *type, bool positions, double *out)
{
    const int64_t n = type->shape.dim[0], length = trial->test->segment_length ? (int64_t)trial->test->segment_length : n;
    for (int64_t t = 0; t < n; t++) {
        const int64_t first = t / length * length, end = first + length < n ? first + length : n;
        if (positions) {
            out[t] = (double)(t - first);
        } else {
            out[2 * t] = (double)first;
            out[2 * t + 1] = (double)end;
        }
    }
}

static void fill(const struct tp_trial *trial, int i, double *out)
{
    const struct tp_case_input *input = &trial->test->in[i];
    const struct tp_type *type = &trial->run_type[i];
    const int64_t n = tp_type_elements(type);
    const uint32_t stream = (uint32_t)i;
    switch (input->gen) {
    case TP_GEN_PROBABILITY:
        fill_probability(trial, stream, type, input->scale, out);
        return;
    case TP_GEN_ASCENDING:
        fill_ascending(trial, stream, n, (int64_t)input->scale, out);
        return;
    case TP_GEN_SEGMENTS:
        fill_segments(trial, type, false, out);
        return;
    case TP_GEN_POSITIONS:
        fill_segments(trial, type, true, out);
        return;
    default:
        break;
    }
    for (int64_t k = 0; k < n; k++) {
        const uint64_t at = (uint64_t)k;
        switch (input->gen) {
        case TP_GEN_NORMAL:
            out[k] = input->scale * tp_trial_normal(trial, stream, at);
            break;
        case TP_GEN_UNIFORM:
            out[k] = input->scale * tp_trial_uniform(trial, stream, at);
            break;
        case TP_GEN_INDEX:
            out[k] = floor(input->scale * tp_trial_uniform(trial, stream, at));
            break;
        case TP_GEN_SELECT:
            out[k] = tp_trial_uniform(trial, stream, at) < input->scale;
            break;
        case TP_GEN_ONE:
            out[k] = 1;
            break;
        default:
            out[k] = 0;
            break;
        }
    }
}

static void round_to_bf16(float *x, int64_t n)
{
    for (int64_t k = 0; k < n; k++) x[k] = tp_bf16_to_f32(tp_f32_to_bf16(x[k]));
}

/* Device bytes of input i, and its doubles replaced by what those bytes stand for. */
static enum talpa_status encode(struct tp_trial *trial, int i)
{
    const struct tp_type *type = &trial->type[i];
    const int64_t n = tp_type_elements(&trial->run_type[i]);
    const size_t n_bytes = tp_type_bytes(type);
    float *rounded = tp_arena_array(&trial->arena, (size_t)n + 1, sizeof *rounded);
    trial->bytes[i] = tp_arena_alloc(&trial->arena, n_bytes);
    if (!rounded || !trial->bytes[i]) return TALPA_E_DEVICE;
    memset(trial->bytes[i], 0xff, n_bytes);
    if (type->dtype == TALPA_I32) {
        int32_t *out = trial->bytes[i];
        for (int64_t k = 0; k < n; k++) out[k] = (int32_t)trial->in[i][k];
        return TALPA_OK;
    }
    for (int64_t k = 0; k < n; k++) rounded[k] = (float)trial->in[i][k];
    if (trial->is_bf16 && type->dtype == TALPA_F32) round_to_bf16(rounded, n);
    tp_dtype_from_f32(trial->bytes[i], rounded, type->dtype, n);
    tp_dtype_to_f32(rounded, trial->bytes[i], type->dtype, n);
    /* The device reads a quantised or f16 weight as it is stored and rounds it, once, when it makes tiles. */
    if (trial->is_bf16) round_to_bf16(rounded, n);
    for (int64_t k = 0; k < n; k++) trial->in[i][k] = (double)rounded[k];
    return TALPA_OK;
}

static struct tp_type input_type(const struct tp_case_input *input)
{
    int rank = 0;
    while (rank < TALPA_MAX_RANK && input->dim[rank]) rank++;
    return tp_type_make(input->dtype, input->rows, rank, input->dim);
}

static int64_t bound_of(const struct tp_case *test, enum tp_step_word word)
{
    for (int i = 0; i < test->n_in; i++)
        if (test->in[i].rows == word && test->in[i].dim[0]) return test->in[i].dim[0];
    return 0;
}

static void set_step(struct tp_trial *trial)
{
    const struct tp_case *test = trial->test;
    uint32_t *word = trial->step.word;
    word[TP_STEP_N_TOKENS] = test->n_tokens ? test->n_tokens : (uint32_t)bound_of(test, TP_STEP_N_TOKENS);
    word[TP_STEP_N_LABELLED] = test->n_labelled ? test->n_labelled : (uint32_t)bound_of(test, TP_STEP_N_LABELLED);
    word[TP_STEP_N_SEGMENTS] = test->segment_length ? (word[TP_STEP_N_TOKENS] + test->segment_length - 1) / test->segment_length : 1;
    word[TP_STEP_MICRO] = test->micro;
    word[TP_STEP_INDEX] = 3;
    word[TP_STEP_SEED_LO] = (uint32_t)trial->seed;
    word[TP_STEP_SEED_HI] = (uint32_t)(trial->seed >> 32);
    tp_step_set_f32(&trial->step, TP_STEP_LEARNING_RATE, 1e-3f);
    tp_step_set_f32(&trial->step, TP_STEP_LOSS_SCALE, 0.25f);
    tp_step_set_f32(&trial->step, TP_STEP_AUX_WEIGHT, 1.0f);
    tp_step_set_f32(&trial->step, TP_STEP_MAX_NORM, 1.0f);
    tp_step_set_f32(&trial->step, TP_STEP_WEIGHT_DECAY, 0.01f);
    tp_step_set_f32(&trial->step, TP_STEP_ONE, 1.0f);
}

enum talpa_status tp_trial_create(struct tp_trial *trial, const struct tp_op *op, const struct tp_case *test, bool is_bf16)
{
    *trial = (struct tp_trial){.op = op, .test = test, .is_bf16 = is_bf16};
    trial->seed = tp_hash_bytes(op->name, strlen(op->name)) ^ (tp_hash_bytes(test->name, strlen(test->name)) << 1);
    set_step(trial);
    for (int i = 0; i < test->n_in; i++) {
        if (!test->in[i].dim[0]) continue;
        trial->type[i] = input_type(&test->in[i]);
        trial->run_type[i] = tp_trial_run_type(trial, &trial->type[i]);
        trial->in[i] = tp_arena_array(&trial->arena, (size_t)tp_type_elements(&trial->type[i]), sizeof **trial->in);
        if (!trial->in[i]) return TALPA_E_DEVICE;
        fill(trial, i, trial->in[i]);
        /* Rounded before `prepare`, so that decisions made there hold for the values that the device sees. */
        for (int64_t k = 0; k < tp_type_elements(&trial->run_type[i]); k++) trial->in[i][k] = (double)(float)trial->in[i][k];
    }
    if (test->prepare) test->prepare(trial->in);
    for (int i = 0; i < test->n_in; i++)
        if (trial->in[i]) TP_TRY(encode(trial, i));
    return TALPA_OK;
}

void tp_trial_free(struct tp_trial *trial) { tp_arena_free(&trial->arena); }

enum talpa_status tp_trial_graph(struct tp_trial *trial, struct talpa_graph *graph, talpa_value *in, talpa_value *out)
{
    const struct tp_case *test = trial->test;
    for (int i = 0; i < test->n_in; i++) {
        char name[24];
        snprintf(name, sizeof name, "in.%d", i);
        in[i] = TP_NONE;
        if (!trial->in[i]) continue;
        if (test->in[i].kind == TP_WEIGHT)
            TP_TRY(tp_graph_weight(graph, &in[i], name, trial->type[i]));
        else if (test->in[i].kind == TP_STATE)
            TP_TRY(tp_graph_state(graph, &in[i], name, trial->type[i]));
        else
            TP_TRY(tp_graph_input(graph, &in[i], name, trial->type[i]));
    }
    for (int o = 0; o < TP_MAX_OUT; o++) out[o] = TP_NONE;
    TP_TRY(tp_graph_node(graph, trial->op, in, test->n_in, &test->attrs, out));
    trial->n_out = 0;
    while (trial->n_out < TP_MAX_OUT && out[trial->n_out] != TP_NONE) {
        trial->out_type[trial->n_out] = *tp_graph_type(graph, out[trial->n_out]);
        trial->out_run_type[trial->n_out] = tp_trial_run_type(trial, &trial->out_type[trial->n_out]);
        trial->n_out++;
    }
    return TALPA_OK;
}

enum talpa_status tp_trial_outputs(struct tp_trial *trial, double *out[TP_MAX_OUT])
{
    for (int o = 0; o < trial->n_out; o++) {
        out[o] = tp_arena_array(&trial->arena, (size_t)tp_type_elements(&trial->out_type[o]) + 1, sizeof **out);
        if (!out[o]) return TALPA_E_DEVICE;
    }
    return TALPA_OK;
}

void tp_trial_reference(const struct tp_trial *trial, double *const out[TP_MAX_OUT])
{
    trial->op->reference(&(struct tp_reference){.attrs = &trial->test->attrs,
                                                .in_type = trial->run_type,
                                                .in = (const double *const *)trial->in,
                                                .n_in = trial->test->n_in,
                                                .out_type = trial->out_run_type,
                                                .out = out,
                                                .n_out = trial->n_out,
                                                .step = &trial->step});
}
