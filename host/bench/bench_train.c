/* Optimizer steps on random tokens, as train/trainer.c runs them but without files. */
#include "bench_train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/rng.h"
#include "train/train_options.h"

enum { TOKEN_STATE = 17 };

static enum talpa_status fill_batch(struct tp_bench_training *t, struct talpa_model *model)
{
    const struct talpa_train_options *o = t->options;
    const uint32_t n = (uint32_t)o->max_seq_length;
    int32_t *ids = malloc(n * sizeof *ids);
    enum talpa_status status = ids ? TALPA_OK : tp_fail_memory("tokens", n * sizeof *ids);
    for (int b = 0; b < o->batch_size && status == TALPA_OK; b++) {
        for (uint32_t i = 0; i < n; i++)
            ids[i] = (int32_t)(tp_rng_splitmix64(TOKEN_STATE, (uint64_t)b * n + i + 1) % (uint64_t)model->config.vocab_size);
        const struct tp_dataset_example example = {.ids = ids, .labels = ids, .n_tokens = n, .id = "", .difficulty = NAN};
        status = tp_batch_add(&t->batch, &example, (uint32_t)b, 0, 0);
    }
    free(ids);
    return status;
}

static enum talpa_status prepare(struct tp_bench_training *t, struct talpa_model *model, const struct talpa_bench_options *options)
{
    const struct talpa_train_options *o = t->options;
    const struct tp_train_graph_options graph = tp_train_options_graph(o);
    const uint32_t max_tokens = tp_train_options_max_tokens(o);
    struct tp_plan_options plan_options;
    TP_TRY(tp_train_options_check(o, model));
    TP_TRY(tp_adapter_create(&t->adapter, model, &o->adapter));
    TP_TRY(tp_batch_create(&t->batch, max_tokens, max_tokens));
    TP_TRY(fill_batch(t, model));
    const size_t bank_bytes = (size_t)t->adapter->bank_elements * sizeof(float);
    float *bank = malloc(bank_bytes);
    if (!bank) return tp_fail_memory("adapter", bank_bytes);
    tp_adapter_init(bank, t->adapter, o->seed);
    const struct tp_train_dispatch dispatch = tp_train_dispatch(o, t->adapter);
    enum talpa_status status = tp_engine_open(&t->engine, options->device, model);
    if (status == TALPA_OK) status = tp_engine_plan_options(&plan_options, o->base_dtype, o->compute_dtype);
    if (status == TALPA_OK) status = tp_train_graph_create(&t->train, model, t->adapter, &graph);
    if (status == TALPA_OK)
        status = tp_program_set_create(&t->set, &t->engine, t->train.graph, &plan_options, !dispatch.starts_sparse, dispatch.starts_sparse);
    if (status == TALPA_OK) status = tp_executor_write(t->set.executor, t->train.params, bank, bank_bytes);
    if (status == TALPA_OK) status = tp_executor_write(t->set.executor, t->train.tensors, t->train.tensor_rows, t->train.tensor_bytes);
    t->is_sparse = dispatch.starts_sparse;
    free(bank);
    return status;
}

enum talpa_status tp_bench_training_create(struct tp_bench_training *t, struct talpa_model *model, const struct talpa_bench_options *options)
{
    *t = (struct tp_bench_training){.options = options->train};
    TP_TRY(tp_bench_check(options));
    if (!options->train) return tp_fail(TALPA_E_ARGUMENT, "training options are missing");
    TP_TRY(tp_bench_recorder_begin(&t->recorder));
    t->has_recorder = true;
    return prepare(t, model, options);
}

void tp_bench_training_free(struct tp_bench_training *t)
{
    tp_program_set_free(&t->set);
    tp_train_graph_free(&t->train);
    tp_engine_close(&t->engine);
    tp_batch_free(&t->batch);
    tp_adapter_free(t->adapter);
    if (t->has_recorder) tp_bench_recorder_end(&t->recorder);
}

static struct tp_step step_words(const struct tp_bench_training *t, int micro)
{
    const struct talpa_train_options *o = t->options;
    struct tp_step words = {{0}};
    words.word[TP_STEP_MICRO] = (uint32_t)micro;
    words.word[TP_STEP_INDEX] = (uint32_t)t->step;
    words.word[TP_STEP_SEED_LO] = (uint32_t)o->seed;
    words.word[TP_STEP_SEED_HI] = (uint32_t)(o->seed >> 32);
    tp_step_set_f32(&words, TP_STEP_LEARNING_RATE, (float)o->learning_rate);
    tp_step_set_f32(&words, TP_STEP_LOSS_SCALE, 1.0f / (float)(t->batch.n_labelled * (uint32_t)o->accumulation));
    tp_step_set_f32(&words, TP_STEP_AUX_WEIGHT, 1.0f / (float)o->accumulation);
    tp_step_set_f32(&words, TP_STEP_CONTRASTIVE_WEIGHT, 1.0f / (float)o->accumulation);
    tp_step_set_f32(&words, TP_STEP_MAX_NORM, (float)o->max_grad_norm);
    tp_step_set_f32(&words, TP_STEP_WEIGHT_DECAY, (float)o->weight_decay);
    return words;
}

enum talpa_status tp_bench_training_step(void *user, double *ns)
{
    struct tp_bench_training *t = user;
    struct tp_executor *executor = t->set.executor;
    const int plan = t->set.plan_of[t->is_sparse ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE];
    float loss = 0.0f, norm = 0.0f;
    double sum = 0.0;
    const int64_t begin = tp_clock_now_ns();
    for (int micro = 0; micro < t->options->accumulation; micro++) {
        struct tp_step words = step_words(t, micro);
        TP_TRY(tp_batch_write(&t->batch, executor, &t->train.inputs, &words));
        TP_TRY(tp_executor_step(executor, &words));
        TP_TRY(tp_executor_run(executor, plan, TP_PHASE_BATCH));
        TP_TRY(tp_executor_read(executor, t->train.loss, &loss, sizeof loss));
        sum += (double)loss;
    }
    TP_TRY(tp_executor_run(executor, plan, TP_PHASE_UPDATE));
    TP_TRY(tp_executor_read(executor, t->train.norm, &norm, sizeof norm));
    TP_TRY(tp_executor_finish(executor));
    *ns = (double)(tp_clock_now_ns() - begin);
    t->step++;
    if (!isfinite(sum) || !isfinite(norm))
        return tp_fail(TALPA_E_CHECK, "step %d: loss %g, gradient norm %g: 'talpa verify' finds the op that is wrong", t->step, sum, (double)norm);
    return TALPA_OK;
}

enum talpa_status talpa_bench_train(struct talpa_model *model, const struct talpa_bench_options *options)
{
    struct tp_bench_training t;
    struct talpa_bench_row row = tp_bench_row();
    enum talpa_status status = tp_bench_training_create(&t, model, options);
    if (status == TALPA_OK) {
        const struct talpa_train_options *o = t.options;
        snprintf(row.test, sizeof row.test, "tr%dx%d%s", o->batch_size, o->max_seq_length, o->gradient_checkpointing ? " ckpt" : "");
        if (o->accumulation > 1) snprintf(row.test, sizeof row.test, "tr%dx%dx%d%s", o->accumulation, o->batch_size, o->max_seq_length, o->gradient_checkpointing ? " ckpt" : "");
        row.n_prompt = o->max_seq_length;
        row.n_batch = o->batch_size;
        row.n_tokens = (double)t.batch.n_tokens * o->accumulation;
        status = tp_bench_measure(&row, &t.recorder, options, tp_bench_training_step, &t);
    }
    tp_bench_training_free(&t);
    return status;
}
