/* One optimizer step. */
#include <math.h>

#include "base/clock.h"
#include "runtime/profile.h"
#include "train/schedule.h"
#include "train/trainer.h"

bool tp_trainer_few_active(const struct tp_adapter *adapter, double active)
{
    return active > 0.0 && active <= 0.5 * adapter->config.n_experts;
}

struct tp_train_dispatch tp_train_dispatch(const struct talpa_train_options *o, const struct tp_adapter *adapter)
{
    const bool mixture = adapter->router->has_gating;
    struct tp_train_dispatch d = {.dense = !mixture || o->dispatch != TALPA_DISPATCH_SPARSE,
                                  .sparse = mixture && o->dispatch != TALPA_DISPATCH_DENSE};
    d.starts_sparse =
        !d.dense || (d.sparse && tp_router_is_topk(adapter->config.routing) && tp_trainer_few_active(adapter, adapter->config.top_k));
    return d;
}

static double aux_share(const struct tp_trainer *t, const struct tp_feed_step *fed, int micro)
{
    return (double)t->feed.batches[micro].n_tokens / fed->n_tokens;
}

/* Rises from 0 as the learning rate does. */
static double contrastive_ramp(const struct tp_trainer *t)
{
    const int warmup = t->adapter->config.contrastive.warmup_steps, step = t->step - 1;
    return step < warmup ? (double)step / warmup : 1.0;
}

static struct tp_step step_words(const struct tp_trainer *t, double rate, const struct tp_feed_step *fed, int micro)
{
    const struct talpa_train_options *o = t->options;
    struct tp_step words = {{0}};
    words.word[TP_STEP_MICRO] = (uint32_t)micro;
    words.word[TP_STEP_INDEX] = (uint32_t)t->step - 1;
    words.word[TP_STEP_SEED_LO] = (uint32_t)o->seed;
    words.word[TP_STEP_SEED_HI] = (uint32_t)(o->seed >> 32);
    tp_step_set_f32(&words, TP_STEP_LEARNING_RATE, (float)rate);
    tp_step_set_f32(&words, TP_STEP_LOSS_SCALE, fed->n_labelled ? 1.0f / (float)fed->n_labelled : 0.0f);
    tp_step_set_f32(&words, TP_STEP_AUX_WEIGHT, (float)aux_share(t, fed, micro));
    tp_step_set_f32(&words, TP_STEP_CONTRASTIVE_WEIGHT, (float)(aux_share(t, fed, micro) * contrastive_ramp(t)));
    tp_step_set_f32(&words, TP_STEP_MAX_NORM, (float)o->max_grad_norm);
    tp_step_set_f32(&words, TP_STEP_WEIGHT_DECAY, (float)o->weight_decay);
    if (t->adapter->is_steered) tp_step_set_f32(&words, TP_STEP_MAX_THRESHOLD, (float)tp_adapter_max_threshold(t->adapter));
    return words;
}

enum talpa_status tp_trainer_put_micro(struct tp_trainer *t, double rate, const struct tp_feed_step *fed, int micro)
{
    struct tp_step words = step_words(t, rate, fed, micro);
    TP_TRY(tp_batch_write(&t->feed.batches[micro], t->set.executor, &t->train.inputs, &words));
    return tp_executor_step(t->set.executor, &words);
}

static enum talpa_status run_micro(struct tp_trainer *t, const struct tp_feed_step *fed, int micro, struct talpa_train_row *row)
{
    struct tp_executor *executor = t->set.executor;
    float loss = 0.0f, aux = 0.0f, contrastive = 0.0f;
    TP_PROFILE_SPAN("micro-batch");
    TP_TRY(tp_trainer_put_micro(t, row->learning_rate, fed, micro));
    TP_TRY(tp_executor_run(executor, t->set.plan_of[t->sparse], TP_PHASE_BATCH));
    row->n_launches += tp_executor_n_launches(executor);
    TP_TRY(tp_executor_read(executor, t->train.loss, &loss, sizeof loss));
    if (t->train.aux != TALPA_NONE) TP_TRY(tp_executor_read(executor, t->train.aux, &aux, sizeof aux));
    if (t->train.contrastive != TALPA_NONE) TP_TRY(tp_executor_read(executor, t->train.contrastive, &contrastive, sizeof contrastive));
    if (!isfinite(loss) || !isfinite(aux) || !isfinite(contrastive))
        return tp_trainer_explain(t, row->learning_rate, fed, micro,
                                  !isfinite(loss) ? "loss" : !isfinite(aux) ? "auxiliary loss" : "contrastive loss");
    row->loss += (double)loss;
    row->aux_loss += aux_share(t, fed, micro) * (double)aux;
    row->contrastive_loss += aux_share(t, fed, micro) * (double)contrastive / t->adapter->n_modules;
    return TALPA_OK;
}

static enum talpa_status read_selection(struct tp_trainer *t, uint32_t n_rows, struct talpa_train_row *row)
{
    const struct tp_adapter *adapter = t->adapter;
    if (!adapter->selection_elements) return TALPA_OK;
    TP_TRY(tp_executor_read(t->set.executor, t->train.selected, t->selected, (size_t)adapter->selection_elements * sizeof *t->selected));
    double active = 0.0;
    for (int m = 0; m < adapter->n_modules; m++)
        for (int e = 0; e < adapter->config.n_experts; e++) active += t->selected[m * TP_CONCAT_ALIGN + e];
    row->active_experts = active / ((double)n_rows * adapter->n_modules);
    row->overhead = tp_steer_overhead(adapter, t->model, t->selected, n_rows);
    if (adapter->is_steered) row->max_threshold = tp_adapter_max_threshold(adapter);
    if (t->options->dispatch == TALPA_DISPATCH_AUTO) t->sparse = tp_trainer_few_active(adapter, row->active_experts);
    return tp_steer_update(&t->steer, t->adapter, row->active_experts, row->overhead);
}

enum talpa_status tp_trainer_step(struct tp_trainer *t, int step, struct talpa_train_row *row)
{
    const struct talpa_train_options *o = t->options;
    const int64_t started = tp_clock_now_ns();
    struct tp_feed_step fed;
    float norm = 0.0f;
    TP_PROFILE_SPAN("optimizer step");
    t->step = step + 1;
    row->loss = row->aux_loss = row->active_experts = row->contrastive_loss = 0.0;
    row->has_contrastive = t->train.contrastive != TALPA_NONE;
    row->n_launches = 0;
    row->learning_rate = tp_schedule_rate(o->schedule, o->learning_rate, step, o->warmup_steps, t->feed.total_steps);
    TP_TRY(tp_feed_next(&fed, &t->feed));
    for (int micro = 0; micro < fed.n_micro; micro++) TP_TRY(run_micro(t, &fed, micro, row));
    TP_TRY(tp_executor_run(t->set.executor, t->set.plan_of[t->sparse], TP_PHASE_UPDATE));
    row->n_launches += tp_executor_n_launches(t->set.executor);
    TP_TRY(tp_executor_read(t->set.executor, t->train.norm, &norm, sizeof norm));
    if (!isfinite(norm)) return tp_trainer_explain(t, row->learning_rate, &fed, TP_ALL_MICRO, "gradient norm");
    const double seconds = (double)(tp_clock_now_ns() - started) * 1e-9;
    row->grad_norm = (double)norm;
    row->current_steps = step + 1;
    row->step_ms = seconds * 1e3;
    row->total_tokens += fed.n_tokens - fed.n_pads;
    row->throughput = t->rates[step] = (fed.n_tokens - fed.n_pads) / seconds;
    row->epoch = tp_feed_epoch(&t->feed);
    row->percentage = 100.0 * (step + 1) / t->feed.total_steps;
    return read_selection(t, fed.n_tokens, row);
}
