#include "train_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "golden.h"

void fixture_open(struct fixture *f, struct talpa_model *model, const struct talpa_adapter_config *config,
                  const struct fixture_options *options)
{
    const uint32_t n = (uint32_t)(options->batch * options->length);
    *f = (struct fixture){.options = *options, .model = model};
    golden_ok(tp_engine_open(&f->engine, golden_device(), model));
    golden_ok(tp_adapter_create(&f->adapter, model, config));
    f->bank = calloc((size_t)f->adapter->bank_elements, sizeof *f->bank);
    /* The bounds exceed what runs by an odd number, so that run-time sizes matter. */
    const struct tp_train_graph_options graph = {
        .max_tokens = n + 7, .max_labelled = n + 7, .aux_coef = options->aux_coef, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
    golden_ok(tp_train_graph_create(&f->train, model, f->adapter, &graph));
    struct tp_plan_options plan;
    tp_plan_options_default(&plan);
    if (!plan.tier[0]) snprintf(plan.tier, sizeof plan.tier, "%s", options->tier);
    const bool sparse = options->dispatch == TP_DISPATCH_SPARSE;
    golden_ok(tp_program_set_create(&f->set, &f->engine, f->train.graph, &plan, !sparse, sparse));
    golden_ok(tp_executor_write(f->set.executor, f->train.tensors, f->train.tensor_rows, f->train.tensor_bytes));
    golden_ok(tp_batch_create(&f->batch, n + 7, n + 7));
}

void fixture_close(struct fixture *f)
{
    tp_evaluator_free(&f->evaluator);
    tp_batch_free(&f->batch);
    tp_program_set_free(&f->set);
    tp_train_graph_free(&f->train);
    tp_engine_close(&f->engine);
    tp_adapter_free(f->adapter);
    free(f->bank);
}

void fixture_put(struct fixture *f, const char *name, const float *values)
{
    char full[256];
    snprintf(full, sizeof full, "base_model.model.%s", name);
    const int index = tp_adapter_find(f->adapter, full);
    if (index < 0) fail_msg("no tensor %s", full);
    tp_adapter_put(f->bank, f->adapter, index, values);
}

void fixture_upload(struct fixture *f)
{
    golden_ok(tp_executor_write(f->set.executor, f->train.params, f->bank, (size_t)f->adapter->bank_elements * sizeof *f->bank));
}

void fixture_read(struct fixture *f, talpa_value bank_state, float *bank)
{
    golden_ok(tp_executor_read(f->set.executor, bank_state, bank, (size_t)f->adapter->bank_elements * sizeof *bank));
}

struct fixture_step fixture_run(struct fixture *f, int step, const int32_t *ids, const int32_t *labels, bool update)
{
    const struct fixture_options *o = &f->options;
    struct tp_executor *executor = f->set.executor;
    float loss = 0.0f, aux = 0.0f, contrastive = 0.0f, norm = 0.0f;
    tp_batch_clear(&f->batch);
    for (int b = 0; b < o->batch; b++) {
        const struct tp_dataset_example example = {
            .ids = ids + b * o->length, .labels = labels + b * o->length, .n_tokens = (uint32_t)(o->lengths ? o->lengths[b] : o->length)};
        golden_ok(tp_batch_add(&f->batch, &example, (uint32_t)b, 0, 0));
    }
    struct tp_step words = {{0}};
    words.word[TP_STEP_INDEX] = (uint32_t)step;
    tp_step_set_f32(&words, TP_STEP_LEARNING_RATE, (float)o->learning_rate);
    tp_step_set_f32(&words, TP_STEP_WEIGHT_DECAY, (float)o->weight_decay);
    tp_step_set_f32(&words, TP_STEP_MAX_NORM, (float)o->max_norm);
    tp_step_set_f32(&words, TP_STEP_LOSS_SCALE, o->without_ce ? 0.0f : 1.0f / (float)f->batch.n_labelled);
    tp_step_set_f32(&words, TP_STEP_AUX_WEIGHT, 1.0f);
    tp_step_set_f32(&words, TP_STEP_CONTRASTIVE_WEIGHT, 1.0f);
    golden_ok(tp_batch_write(&f->batch, executor, &f->train.inputs, &words));
    golden_ok(tp_executor_step(executor, &words));
    golden_ok(tp_executor_run(executor, 0, TP_PHASE_BATCH));
    golden_ok(tp_executor_read(executor, f->train.loss, &loss, sizeof loss));
    if (f->train.aux != TALPA_NONE) golden_ok(tp_executor_read(executor, f->train.aux, &aux, sizeof aux));
    if (f->train.contrastive != TALPA_NONE)
        golden_ok(tp_executor_read(executor, f->train.contrastive, &contrastive, sizeof contrastive));
    if (update) {
        golden_ok(tp_executor_run(executor, 0, TP_PHASE_UPDATE));
        golden_ok(tp_executor_read(executor, f->train.norm, &norm, sizeof norm));
    }
    return (struct fixture_step){(double)loss, (double)aux, (double)contrastive / f->adapter->n_modules, (double)norm};
}

double fixture_eval(struct fixture *f, const int32_t *ids, int n_rows)
{
    const struct fixture_options *o = &f->options;
    if (!f->evaluator.nll) {
        struct tp_plan_options plan;
        tp_plan_options_default(&plan);
        if (!plan.tier[0]) snprintf(plan.tier, sizeof plan.tier, "%s", o->tier);
        golden_ok(tp_evaluator_create(&f->evaluator, &f->engine, f->model, f->adapter, (uint32_t)(o->batch * o->length), &plan,
                                      o->dispatch == TP_DISPATCH_SPARSE));
    }
    struct tp_evaluator *e = &f->evaluator;
    double sum = 0.0;
    uint32_t n = 0;
    for (int row = 0; row < n_rows; row += o->batch) {
        tp_batch_clear(&e->batch);
        for (int b = row; b < n_rows && b < row + o->batch; b++) {
            const struct tp_dataset_example example = {
                .ids = ids + b * o->length, .labels = ids + b * o->length, .n_tokens = (uint32_t)o->length};
            golden_ok(tp_batch_add(&e->batch, &example, (uint32_t)b, 0, 0));
        }
        struct tp_step words = {{0}};
        tp_step_set_f32(&words, TP_STEP_LOSS_SCALE, 1.0f);
        golden_ok(tp_batch_write(&e->batch, e->set.executor, &e->eval.inputs, &words));
        golden_ok(tp_executor_step(e->set.executor, &words));
        golden_ok(tp_executor_run(e->set.executor, 0, TP_PHASE_BATCH));
        golden_ok(tp_executor_read(e->set.executor, e->eval.nll, e->nll, e->batch.n_labelled * sizeof *e->nll));
        for (uint32_t i = 0; i < e->batch.n_labelled; i++) sum += (double)e->nll[i];
        n += e->batch.n_labelled;
    }
    return sum / n;
}
