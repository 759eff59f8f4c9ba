/* Log-probabilities of labelled tokens. */
#include <stdlib.h>
#include <string.h>

#include "train/evaluate.h"

void talpa_score_default(struct talpa_score_options *options) { *options = (struct talpa_score_options){.batch_size = 4}; }

enum { MOST_TOKENS = 1 << 14 };

struct scorer {
    const struct talpa_score_options *options;
    struct tp_engine engine;
    struct tp_adapter *adapter;
    float *bank;
    struct tp_dataset *data;
    struct tp_evaluator evaluator;
    struct tp_route_stats routes;
    bool (*row)(void *user, const struct talpa_score_row *row);
    void *user;
    int32_t eos, *ids;
    float *logprobs;
};

static enum talpa_status visit(void *user, size_t index, const struct tp_dataset_example *example, const float *nll, uint32_t n)
{
    struct scorer *s = user;
    uint32_t kept = 0, seen = 0;
    double sum = 0.0;
    for (uint32_t p = 1; p < example->n_tokens; p++) {
        if (example->labels[p] == TP_DATASET_IGNORED) continue;
        const float logprob = -nll[seen++];
        if (seen == n && example->labels[p] == s->eos && !s->options->score_eos) break; /* the closing EOS is not part of the text */
        s->ids[kept] = example->labels[p];
        s->logprobs[kept++] = logprob;
        sum += (double)logprob;
    }
    const struct talpa_score_row row = {.index = (int64_t)index,
                                        .id = example->id,
                                        .prompt_ids = example->ids,
                                        .n_prompt_ids = example->n_prompt,
                                        .ids = s->ids,
                                        .logprobs = s->logprobs,
                                        .n = kept,
                                        .sum = sum};
    return s->row(s->user, &row) ? TALPA_OK : tp_fail(TALPA_E_INTERRUPTED, "scoring stopped at row %zu", index);
}

static enum talpa_status run(struct scorer *s, struct talpa_model *model, size_t device)
{
    const struct talpa_score_options *o = s->options;
    if (o->batch_size < 1 || o->batch_size > 4096)
        return tp_fail(TALPA_E_ARGUMENT, "--batch-size is %d, expected 1 to 4096", o->batch_size);
    if (o->max_seq_length < 0 || o->max_seq_length > model->config.context_length)
        return tp_fail(TALPA_E_ARGUMENT, "--max-seq-length is %d, expected up to the model's context length %d", o->max_seq_length,
                       model->config.context_length);
    const struct tp_dataset_options data_options = {.max_tokens =
                                                        (uint32_t)(o->max_seq_length ? o->max_seq_length : model->config.context_length),
                                                    .refuse_long = true,
                                                    .chat_template = o->chat_template};
    TP_TRY(tp_dataset_open(&s->data, o->data, model->tokenizer, &data_options));
    uint32_t longest = 2;
    for (size_t i = 0; i < tp_dataset_n_examples(s->data); i++) {
        const struct tp_dataset_example example = tp_dataset_example(s->data, i);
        if (example.n_tokens > longest) longest = example.n_tokens;
    }
    s->ids = malloc(longest * sizeof *s->ids);
    s->logprobs = malloc(longest * sizeof *s->logprobs);
    if (!s->ids || !s->logprobs) return tp_fail_memory("score", longest * sizeof *s->ids);
    s->eos = tp_tokenizer_eos(model->tokenizer);
    if (o->lora) TP_TRY(tp_adapter_load(&s->adapter, &s->bank, o->lora, model, o->allow_other_base));
    TP_TRY(tp_adapter_override_threshold(s->adapter, o->max_threshold));
    const bool routed = tp_route_output_is_wanted(&o->routes);
    if (routed) TP_TRY(tp_route_stats_create(&s->routes, s->adapter));
    if (routed) TP_TRY(tp_route_output_check(&o->routes));
    TP_TRY(tp_engine_open(&s->engine, device, model));
    struct tp_plan_options plan_options;
    TP_TRY(tp_engine_plan_options(&plan_options, o->base_dtype, o->compute_dtype));
    const bool sparse = tp_adapter_is_sparse(s->adapter, o->dispatch);
    /* Beyond MOST_TOKENS a pass gains nothing; it then takes fewer rows than --batch-size. */
    const uint64_t wanted = (uint64_t)tp_batch_aligned(longest, TP_BATCH_ALIGNMENT) * (uint64_t)o->batch_size;
    const uint32_t most = longest > MOST_TOKENS ? longest : MOST_TOKENS, max_tokens = wanted < most ? (uint32_t)wanted : most;
    TP_TRY((routed ? tp_evaluator_create_routed : tp_evaluator_create)(&s->evaluator, &s->engine, model, s->adapter, max_tokens,
                                                                       &plan_options, sparse));
    s->evaluator.alignment = TP_BATCH_ALIGNMENT; /* a row's result is the same with every --batch-size */
    if (routed) s->evaluator.routes = &s->routes;
    s->evaluator.task = strrchr(o->data, '/') ? strrchr(o->data, '/') + 1 : o->data;
    if (s->adapter)
        TP_TRY(tp_executor_write(s->evaluator.set.executor, s->evaluator.eval.params, s->bank,
                                 (size_t)s->adapter->bank_elements * sizeof *s->bank));
    TP_TRY(tp_evaluator_run(&s->evaluator, s->data, o->batch_size, visit, s));
    return routed ? tp_route_output_finish(&o->routes, &s->routes) : TALPA_OK;
}

enum talpa_status talpa_score(struct talpa_model *model, size_t device, const struct talpa_score_options *options,
                              bool (*row)(void *user, const struct talpa_score_row *row), void *user)
{
    if (!options->data) return tp_fail(TALPA_E_ARGUMENT, "--data is missing: a JSONL file of rows to score");
    struct scorer s = {.options = options, .row = row, .user = user};
    const enum talpa_status status = run(&s, model, device);
    tp_route_stats_free(&s.routes);
    tp_evaluator_free(&s.evaluator);
    tp_engine_close(&s.engine);
    tp_dataset_close(s.data);
    tp_adapter_free(s.adapter);
    free(s.bank);
    free(s.ids);
    free(s.logprobs);
    return status;
}
