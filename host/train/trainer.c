/* The training loop. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "runtime/device.h"
#include "train/train_options.h"
#include "train/trainer.h"

void tp_trainer_note(const struct tp_trainer *t, const char *format, ...)
{
    char line[512];
    if (!t->callbacks || !t->callbacks->note) return;
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    t->callbacks->note(t->callbacks->user, line);
}

/* ---- preparing ---- */

static enum talpa_status open_data(struct tp_trainer *t)
{
    const struct talpa_train_options *o = t->options;
    const struct tp_dataset_options options = {.max_tokens = (uint32_t)o->max_seq_length, .chat_template = o->chat_template};
    TP_TRY(tp_dataset_open(&t->data, o->data, t->model->tokenizer, &options));
    const struct tp_dataset_counts counts = tp_dataset_counts(t->data);
    tp_trainer_note(t, "data %s: %zu examples, %llu tokens, %llu labelled; %llu cut, %llu skipped", o->data, tp_dataset_n_examples(t->data),
         (unsigned long long)counts.n_tokens, (unsigned long long)counts.n_labelled_tokens, (unsigned long long)counts.n_truncated,
         (unsigned long long)(counts.n_skipped + counts.n_empty));
    if (o->eval_data) TP_TRY(tp_dataset_open(&t->eval_data, o->eval_data, t->model->tokenizer, &options));
    const struct tp_feed_options feed = tp_train_options_feed(o, t->model);
    TP_TRY(tp_feed_create(&t->feed, t->data, &feed));
    if (o->warmup_ratio > 0.0 && !o->warmup_steps) t->resolved.warmup_steps = (int)ceil(o->warmup_ratio * t->feed.total_steps);
    t->rates = calloc((size_t)t->feed.total_steps + 1, sizeof *t->rates);
    if (!t->rates) return tp_fail_memory("data", (unsigned long long)t->feed.total_steps * sizeof *t->rates);
    return TALPA_OK;
}

static enum talpa_status open_adapter(struct tp_trainer *t)
{
    const struct talpa_train_options *o = t->options;
    if (o->init_lora) {
        TP_TRY(tp_adapter_load(&t->adapter, &t->bank, o->init_lora, t->model, o->allow_other_base));
        TP_TRY(tp_train_options_apply(t->adapter, o));
    } else {
        TP_TRY(tp_adapter_create(&t->adapter, t->model, &o->adapter));
        t->bank = malloc((size_t)t->adapter->bank_elements * sizeof *t->bank);
        if (!t->bank) return tp_fail_memory("adapter", (unsigned long long)t->adapter->bank_elements * sizeof *t->bank);
        tp_adapter_init(t->bank, t->adapter, o->seed);
    }
    struct talpa_contrastive_config *contrastive = &t->adapter->config.contrastive;
    if (contrastive->warmup_steps < 0) contrastive->warmup_steps = o->warmup_steps;
    contrastive->balance_coef = o->aux_coef;
    t->selected = calloc((size_t)t->adapter->selection_elements + 1, sizeof *t->selected);
    return t->selected ? TALPA_OK : tp_fail_memory("adapter", (unsigned long long)t->adapter->selection_elements * sizeof *t->selected);
}

static enum talpa_status prepare(struct tp_trainer *t, size_t device)
{
    const struct talpa_train_options *o = t->options;
    struct tp_plan_options plan_options;
    TP_TRY(tp_train_options_check(o, t->model));
    TP_TRY(open_data(t));
    TP_TRY(open_adapter(t));
    if (o->route_log) TP_TRY(tp_route_check(t->adapter));
    TP_TRY(tp_steer_create(&t->steer, t->adapter, t->model, o));
    TP_TRY(tp_run_folder_open(&t->folder, o->output_dir, o->route_log));
    TP_TRY(tp_trainer_find(t));
    TP_TRY(tp_engine_open(&t->engine, device, t->model));
    TP_TRY(tp_engine_plan_options(&plan_options, o->base_dtype, o->compute_dtype));
    const struct tp_train_graph_options options = tp_train_options_graph(o);
    TP_TRY(tp_train_graph_create(&t->train, t->model, t->adapter, &options));
    const bool routed = o->route_log && o->eval_data;
    const struct tp_train_dispatch dispatch = tp_train_dispatch(o, t->adapter);
    t->sparse = dispatch.starts_sparse;
    TP_TRY(tp_program_set_create(&t->set, &t->engine, t->train.graph, &plan_options, dispatch.dense, dispatch.sparse));
    TP_TRY(tp_executor_write(t->set.executor, t->train.params, t->bank, (size_t)t->adapter->bank_elements * sizeof *t->bank));
    TP_TRY(tp_executor_write(t->set.executor, t->train.tensors, t->train.tensor_rows, t->train.tensor_bytes));
    if (t->eval_data)
        TP_TRY((routed ? tp_evaluator_create_routed : tp_evaluator_create)(&t->evaluator, &t->engine, t->model, t->adapter,
                                                                           tp_train_options_max_tokens(o), &plan_options, t->sparse));
    TP_TRY(tp_trainer_resume(t));
    const struct talpa_device_caps *caps = tp_device_caps(t->engine.device);
    tp_trainer_note(t, "device %zu: %s (%s), %lld trainable parameters in %d modules, %d launches per micro-batch", device, caps->name,
                    caps->platform, (long long)t->adapter->n_trainable, t->adapter->n_modules,
                    t->set.plans[t->sparse]->phase[TP_PHASE_BATCH].n);
    return TALPA_OK;
}

static void release(struct tp_trainer *t)
{
    tp_feed_free(&t->feed);
    tp_losses_free(&t->before);
    tp_losses_free(&t->after);
    tp_evaluator_free(&t->evaluator);
    tp_route_stats_free(&t->routes);
    tp_program_set_free(&t->set);
    tp_train_graph_free(&t->train);
    tp_engine_close(&t->engine);
    tp_run_folder_close(&t->folder);
    tp_dataset_close(t->data);
    tp_dataset_close(t->eval_data);
    tp_adapter_free(t->adapter);
    free(t->bank);
    free(t->selected);
    free(t->rates);
    tp_history_free(&t->history);
    tp_checkpoint_free(&t->checkpoint);
}

/* ---- the run ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static enum talpa_status measure(struct tp_trainer *t, const char *when, struct tp_losses *losses, struct talpa_eval_result *result)
{
    if (!t->eval_data) return TALPA_OK;
    TP_TRY(tp_evaluator_losses(losses, &t->evaluator, t->eval_data, t->options->batch_size));
    *result = tp_losses_summary(losses);
    tp_trainer_note(t, "held-out loss %s: %.4f +- %.4f nat per token (%lld tokens, %lld examples)", when, result->loss,
                    result->standard_error, (long long)result->n_tokens, (long long)result->n_examples);
    return TALPA_OK;
}

/* Whether the run is over before its last step. */
static bool stops_early(const struct tp_trainer *t)
{
    return t->options->early_stopping_patience && t->best.n_worse >= t->options->early_stopping_patience;
}

static enum talpa_status record(struct tp_trainer *t, struct talpa_train_row *row)
{
    const struct talpa_train_options *o = t->options;
    t->training_s += row->step_ms * 1e-3;
    t->total_tokens = row->total_tokens;
    row->elapsed_s = t->training_s;
    row->remaining_s = t->training_s / row->current_steps * (row->total_steps - row->current_steps);
    row->peak_bytes = (size_t)tp_device_peak_bytes(t->engine.device);
    if (row->current_steps == t->first_step + 1) TP_TRY(tp_trainer_begin(t));
    TP_TRY(tp_trainer_evaluate(t, row));
    if (row->current_steps % o->logging_steps && row->current_steps != row->total_steps && !row->has_eval) return TALPA_OK;
    TP_TRY(tp_trainer_parameters(t, &row->digest));
    TP_TRY(tp_run_folder_row(&t->folder, row));
    TP_TRY(tp_history_add(&t->history, row));
    return tp_trainer_log_routes(t, row);
}

static enum talpa_status loop(struct tp_trainer *t, bool *stopped, struct talpa_train_result *result)
{
    const struct talpa_train_options *o = t->options;
    struct talpa_train_row row = {.total_steps = t->feed.total_steps, .total_tokens = t->total_tokens};
    result->n_steps = result->first_step = t->first_step;
    while (result->n_steps < t->feed.total_steps && !*stopped && !stops_early(t)) {
        TP_TRY(tp_trainer_step(t, result->n_steps, &row));
        TP_TRY(record(t, &row));
        result->n_steps = row.current_steps;
        if (t->callbacks && t->callbacks->step) *stopped = !t->callbacks->step(t->callbacks->user, &row);
        if (o->save_steps && result->n_steps % o->save_steps == 0) TP_TRY(tp_trainer_save(t, result->n_steps));
    }
    return result->n_steps > t->saved_step ? tp_trainer_save(t, result->n_steps) : TALPA_OK;
}

/* How far steering came. */
static void tell_steering(const struct tp_trainer *t, struct talpa_train_result *result)
{
    const struct tp_steer *s = &t->steer;
    const char *what = s->mode == TP_STEER_ACTIVE ? "active experts" : "percent overhead";
    if (s->mode == TP_STEER_OFF) return;
    result->steered_target = s->target;
    result->steered_measured = s->state.measured;
    result->max_threshold = tp_adapter_max_threshold(t->adapter);
    tp_trainer_note(t, "steered to %s%g %s: measured %.3f over the last steps, threshold bound %.6g", s->mode == TP_STEER_ACTIVE ? "" : "at most ",
                    s->target, what, s->state.measured, result->max_threshold);
    const double off = s->state.measured / s->target;
    if (s->state.n_steps && (off > 1.1 || (off < 0.9 && s->mode == TP_STEER_ACTIVE)))
        tp_log(TALPA_LOG_WARN, "%g %s were asked for, %.3f were measured: %s", s->target, what, s->state.measured,
               s->state.log_bound >= 0.0              ? "the threshold's bound cannot be above 1"
               : s->state.log_bound <= s->least_bound ? "the threshold's bound cannot be lower"
                                                      : "more steps are needed, or batches of more tokens");
}

static double median_rate(struct tp_trainer *t, int n_steps)
{
    int n = 0;
    for (int i = 0; i < n_steps; i++)
        if (t->rates[i] > 0.0) t->rates[n++] = t->rates[i];
    qsort(t->rates, (size_t)n, sizeof *t->rates, by_value);
    return n ? t->rates[n / 2] : 0.0;
}

static enum talpa_status run(struct tp_trainer *t, size_t device, struct talpa_train_result *result)
{
    const struct talpa_train_options *o = t->options;
    bool stopped = false;
    TP_TRY(prepare(t, device));
    if (t->first_step && t->eval_data) result->before = tp_losses_summary(&t->before);
    else TP_TRY(measure(t, "before", &t->before, &result->before));
    TP_TRY(loop(t, &stopped, result));
    tell_steering(t, result);
    TP_TRY(tp_trainer_parameters(t, &result->digest));
    result->digest_state = t->digest_state;
    result->best_step = t->best.step;
    result->best_loss = t->best.loss;
    result->stopped_early = result->n_steps < t->feed.total_steps && stops_early(t);
    if (stopped && result->n_steps < t->feed.total_steps && !result->stopped_early)
        return tp_fail(TALPA_E_INTERRUPTED, "stopped after step %d of %d; the adapter is saved in %s", result->n_steps, t->feed.total_steps,
                       o->output_dir);
    if (result->stopped_early) tp_trainer_note(t, "stopped early: no new best in %d measurements", t->best.n_worse);
    if (o->load_best_at_end) TP_TRY(tp_trainer_load_best(t, &result->best_loaded));
    if (result->best_loaded && t->steer.mode != TP_STEER_OFF) result->max_threshold = tp_adapter_max_threshold(t->adapter);
    if (result->best_loaded) TP_TRY(tp_trainer_parameters(t, &result->digest));
    else if (result->n_steps == t->first_step) TP_TRY(tp_adapter_save(t->adapter, t->bank, o->output_dir, t->model));
    TP_TRY(tp_trainer_watch_routes(t));
    TP_TRY(measure(t, "after", &t->after, &result->after));
    TP_TRY(tp_trainer_save_routes(t));
    result->has_eval = t->eval_data != NULL;
    if (result->has_eval) tp_losses_compare(&result->difference, &result->difference_error, &t->before, &t->after);
    result->n_trainable = t->adapter->n_trainable;
    result->throughput = median_rate(t, result->n_steps);
    const struct talpa_memory_use use = talpa_device_memory();
    result->device_bytes = (size_t)tp_device_allocated_bytes(t->engine.device);
    result->device_peak_bytes = (size_t)tp_device_peak_bytes(t->engine.device);
    result->mapped_file_bytes = use.mapped_file_bytes;
    result->host_peak_bytes = use.host_peak_bytes;
    return tp_run_folder_results(&t->folder, result);
}

enum talpa_status talpa_train(struct talpa_train_result *result, struct talpa_model *model, size_t device,
                              const struct talpa_train_options *options, const struct talpa_train_callbacks *callbacks)
{
    if (!options->data) return tp_fail(TALPA_E_ARGUMENT, "--data is missing: a JSONL file of training rows");
    if (!options->output_dir) return tp_fail(TALPA_E_ARGUMENT, "--output-dir is missing: the folder for adapter and log");
    struct tp_trainer t = {.resolved = *options, .callbacks = callbacks, .model = model,
                           .folder = {.lock = -1, .log.descriptor = -1, .routes.descriptor = -1}};
    struct talpa_train_result filled = {0};
    t.options = &t.resolved;
    const enum talpa_status status = run(&t, device, &filled);
    release(&t);
    if (status == TALPA_OK || status == TALPA_E_INTERRUPTED) *result = filled;
    return status;
}
