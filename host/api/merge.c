/* talpa_merge: the file, and what merging changed in the logits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "adapters/merge.h"
#include "train/evaluate.h"

enum { MAX_POSITIONS = 512, MAX_TOKENS = 64 };

static const char built_in_probe[] =
    "{\"text\": \"The mole dug a new tunnel under the garden before the rain came.\"}\n"
    "{\"text\": \"Question: A farmer has 12 rows of 8 carrots and sells 30. How many are left? Answer: 12 * 8 = 96, and 96 - 30 = 66.\"}\n"
    "{\"text\": \"def add(a, b):\\n    return a + b\\n\\nprint(add(2, 3))\"}\n"
    "{\"text\": \"In 1969 two people walked on the Moon while a third stayed in orbit around it.\"}\n"
    "{\"text\": \"Write a short letter to a friend. Dear Anna, thank you for the book; I read it in one evening.\"}\n";

/* ---- logits ---- */

/* Logits of the probe's first tokens, one model at a time. */
struct probe {
    struct tp_dataset *data;
    size_t n_examples;     /* of the probe that are used */
    int64_t n_positions;
    int vocab;
    float *logits;         /* [n_positions, vocab] of base with adapter */
    float *row;            /* [MAX_TOKENS, vocab] of the merged model */
};

static uint32_t used_tokens(const struct tp_dataset_example *example)
{
    return example->n_tokens < MAX_TOKENS ? example->n_tokens : MAX_TOKENS;
}

static enum talpa_status open_probe(struct probe *probe, const struct talpa_model *model, const char *path)
{
    if (path)
        TP_TRY(tp_dataset_open(&probe->data, path, model->tokenizer, NULL));
    else
        TP_TRY(tp_dataset_parse(&probe->data, built_in_probe, sizeof built_in_probe - 1, "built-in probe", model->tokenizer, NULL));
    for (size_t i = 0; i < tp_dataset_n_examples(probe->data); i++) {
        const struct tp_dataset_example example = tp_dataset_example(probe->data, i);
        if (probe->n_positions + used_tokens(&example) > MAX_POSITIONS) break;
        probe->n_positions += used_tokens(&example);
        probe->n_examples++;
    }
    probe->vocab = model->config.vocab_size;
    const size_t n = (size_t)probe->n_positions * (size_t)probe->vocab;
    probe->logits = malloc((n + 1) * sizeof *probe->logits);
    probe->row = malloc(MAX_TOKENS * (size_t)probe->vocab * sizeof *probe->row);
    return probe->logits && probe->row ? TALPA_OK : tp_fail_memory("probe", n * sizeof *probe->logits);
}

static void close_probe(struct probe *probe)
{
    tp_dataset_close(probe->data);
    free(probe->logits);
    free(probe->row);
}

/* A model, perhaps with an adapter, ready to give logits. */
struct runner {
    struct tp_engine engine;
    struct tp_eval_graph eval;
    struct tp_program_set set;
    struct tp_batch batch;
};

static void close_runner(struct runner *r)
{
    tp_batch_free(&r->batch);
    tp_program_set_free(&r->set);
    tp_eval_graph_free(&r->eval);
    tp_engine_close(&r->engine);
}

static enum talpa_status open_runner(struct runner *r, const struct talpa_model *model, size_t device, struct tp_adapter *adapter,
                                     const float *bank)
{
    struct tp_plan_options options;
    TP_TRY(tp_engine_open(&r->engine, device, model));
    TP_TRY(tp_eval_graph_create(&r->eval, model, adapter, MAX_TOKENS, MAX_TOKENS, true));
    TP_TRY(tp_engine_plan_options(&options, TALPA_BASE_NATIVE, TALPA_COMPUTE_F32));
    TP_TRY(tp_program_set_create(&r->set, &r->engine, r->eval.graph, &options, true, false));
    TP_TRY(tp_batch_create(&r->batch, MAX_TOKENS, MAX_TOKENS));
    if (!adapter) return TALPA_OK;
    return tp_executor_write(r->set.executor, r->eval.params, bank, (size_t)adapter->bank_elements * sizeof *bank);
}

static enum talpa_status run_example(struct runner *r, float *logits, struct tp_dataset_example example, int vocab)
{
    struct tp_step step = {{0}};
    example.n_tokens = used_tokens(&example);
    example.labels = example.ids; /* every position counts */
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f);
    tp_batch_clear(&r->batch);
    TP_TRY(tp_batch_add(&r->batch, &example, 0, 0, 0));
    TP_TRY(tp_batch_write(&r->batch, r->set.executor, &r->eval.inputs, &step));
    TP_TRY(tp_executor_step(r->set.executor, &step));
    TP_TRY(tp_executor_run(r->set.executor, 0, TP_PHASE_BATCH));
    return tp_executor_read(r->set.executor, r->eval.logits, logits, (size_t)example.n_tokens * (size_t)vocab * sizeof *logits);
}

static enum talpa_status run_unmerged(struct probe *probe, const struct talpa_model *model, size_t device, struct tp_adapter *adapter,
                                      const float *bank)
{
    struct runner r = {0};
    enum talpa_status status = open_runner(&r, model, device, adapter, bank);
    float *logits = probe->logits;
    for (size_t i = 0; i < probe->n_examples && status == TALPA_OK; i++) {
        const struct tp_dataset_example example = tp_dataset_example(probe->data, i);
        status = run_example(&r, logits, example, probe->vocab);
        logits += (size_t)used_tokens(&example) * (size_t)probe->vocab;
    }
    close_runner(&r);
    return status;
}

/* ---- comparing ---- */

struct difference {
    double most, sum;
    int64_t n, n_positions, n_agree;
};

static void compare(struct difference *d, const float *a, const float *b, size_t n_rows, size_t vocab)
{
    for (size_t i = 0; i < n_rows; i++, a += vocab, b += vocab) {
        size_t best_a = 0, best_b = 0;
        for (size_t k = 0; k < vocab; k++) {
            double difference = fabs((double)a[k] - (double)b[k]);
            if (!isfinite(difference)) difference = INFINITY;
            if (difference > d->most) d->most = difference;
            d->sum += difference;
            if (a[k] > a[best_a]) best_a = k;
            if (b[k] > b[best_b]) best_b = k;
        }
        d->n_agree += best_a == best_b;
        d->n_positions++;
        d->n += (int64_t)vocab;
    }
}

static enum talpa_status run_merged(struct talpa_merge_result *result, struct probe *probe, const char *path, size_t device)
{
    struct talpa_model *merged;
    struct runner r = {0};
    struct difference d = {0};
    TP_TRY(talpa_model_open(&merged, path));
    enum talpa_status status = open_runner(&r, merged, device, NULL, NULL);
    const float *logits = probe->logits;
    for (size_t i = 0; i < probe->n_examples && status == TALPA_OK; i++) {
        const struct tp_dataset_example example = tp_dataset_example(probe->data, i);
        status = run_example(&r, probe->row, example, probe->vocab);
        if (status == TALPA_OK) compare(&d, logits, probe->row, used_tokens(&example), (size_t)probe->vocab);
        logits += (size_t)used_tokens(&example) * (size_t)probe->vocab;
    }
    close_runner(&r);
    talpa_model_close(merged);
    TP_TRY(status);
    result->has_probe = d.n > 0;
    result->n_positions = d.n_positions;
    result->max_difference = d.most;
    result->mean_difference = d.n ? d.sum / (double)d.n : 0.0;
    result->top1_agreement = d.n_positions ? (double)d.n_agree / (double)d.n_positions : 0.0;
    return TALPA_OK;
}

/* ---- merging ---- */

static bool is_same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static enum talpa_status write_merged(struct talpa_merge_result *result, const struct talpa_model *model, const struct tp_adapter *adapter,
                                      const float *bank, const struct talpa_merge_options *o)
{
    struct tp_merge merge;
    const size_t n = strlen(o->output);
    TP_TRY(tp_merge_create(&merge, model, adapter, bank));
    merge.keep_going = o->keep_going;
    merge.user = o->user;
    const bool is_gguf = n > 5 && !strcmp(o->output + n - 5, ".gguf");
    const enum talpa_status status = is_gguf ? tp_merge_save_gguf(&merge, result, o->output, o->type)
                                             : tp_merge_save_folder(&merge, result, o->output, o->type);
    tp_merge_free(&merge);
    if (status == TALPA_OK && is_gguf) result->has_tokenizer = true;
    return status;
}

static enum talpa_status merge_loaded(struct talpa_merge_result *result, struct talpa_model *model, size_t device,
                                      struct tp_adapter *adapter, const float *bank, const struct talpa_merge_options *o)
{
    struct probe probe = {0};
    TP_TRY(write_merged(result, model, adapter, bank, o));
    /* A folder without a tokenizer is no model that can be opened. */
    if (o->no_probe || !result->has_tokenizer) return TALPA_OK;
    enum talpa_status status = open_probe(&probe, model, o->probe);
    if (status == TALPA_OK) status = run_unmerged(&probe, model, device, adapter, bank);
    if (status == TALPA_OK) status = run_merged(result, &probe, o->output, device);
    close_probe(&probe);
    return tp_context(status, "%s is written, but comparing logits failed", o->output);
}

enum talpa_status talpa_merge(struct talpa_merge_result *result, struct talpa_model *model, size_t device,
                              const struct talpa_merge_options *options)
{
    struct tp_adapter *adapter;
    float *bank;
    struct talpa_merge_result filled = {0};
    if (!options->lora || !options->output || !*options->output) return tp_fail(TALPA_E_ARGUMENT, "--lora and --output-file are needed");
    if (options->type >= TALPA_N_MERGE_TYPES) return tp_fail(TALPA_E_ARGUMENT, "--type is out of range");
    if (is_same_file(model->path, options->output))
        return tp_fail(TALPA_E_ARGUMENT, "--output-file %s is the base model itself; give another name", options->output);
    TP_TRY(tp_adapter_load(&adapter, &bank, options->lora, model, options->allow_other_base));
    const enum talpa_status status = merge_loaded(&filled, model, device, adapter, bank, options);
    tp_adapter_free(adapter);
    free(bank);
    if (status == TALPA_OK) *result = filled;
    return status;
}
