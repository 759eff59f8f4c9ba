/* The training loop. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "graph/op.h"
#include "runtime/device.h"
#include "train/evaluate.h"
#include "train/run_folder.h"
#include "train/schedule.h"

static const double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;

struct trainer {
    const struct talpa_train_options *options;
    const struct talpa_train_callbacks *callbacks;
    struct talpa_model *model;
    struct tp_engine engine;
    struct tp_adapter *adapter;
    float *bank;              /* host copy of the parameters */
    int32_t *selected;        /* selection counts of the last step */
    struct tp_train_graph train;
    struct tp_program_set set;
    struct tp_dataset *data, *eval_data;
    struct tp_evaluator evaluator;
    struct tp_losses before, after;
    struct tp_run_folder folder;
    struct tp_batch *batches; /* the micro-batches of one step */
    uint32_t *order;          /* permutation of the present epoch */
    uint64_t order_epoch, cursor, total_examples;
    int total_steps;
    bool sparse;              /* plan of the next step */
    double *rates;            /* throughput per step, for the median */
};

static void note(const struct trainer *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(const struct trainer *t, const char *format, ...)
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

static uint32_t max_tokens(const struct talpa_train_options *o) { return (uint32_t)o->batch_size * (uint32_t)o->max_seq_length; }

static enum talpa_status check_options(const struct talpa_train_options *o, const struct talpa_model *model)
{
    if (o->batch_size < 1 || o->batch_size > 4096) return tp_fail(TALPA_E_ARGUMENT, "--batch-size is %d, expected 1 to 4096", o->batch_size);
    if (o->max_seq_length < 2 || o->max_seq_length > model->config.context_length)
        return tp_fail(TALPA_E_ARGUMENT, "--max-seq-length is %d, expected 2 to the model's context length %d", o->max_seq_length,
                       model->config.context_length);
    if (o->accumulation < 1 || o->accumulation > 65536) return tp_fail(TALPA_E_ARGUMENT, "--gradient-accumulation-steps is %d, expected 1 to 65536", o->accumulation);
    if (o->max_steps < 0 || (!o->max_steps && !(o->num_epochs > 0.0)))
        return tp_fail(TALPA_E_ARGUMENT, "--max-steps is %d and --num-train-epochs %g, expected one of them above 0", o->max_steps, o->num_epochs);
    if (!(o->learning_rate >= 0.0 && o->learning_rate < 1e3)) return tp_fail(TALPA_E_ARGUMENT, "--learning-rate is %g, expected at least 0", o->learning_rate);
    if (!(o->max_grad_norm >= 0.0)) return tp_fail(TALPA_E_ARGUMENT, "--max-grad-norm is %g, expected at least 0", o->max_grad_norm);
    if (!(o->weight_decay >= 0.0)) return tp_fail(TALPA_E_ARGUMENT, "--weight-decay is %g, expected at least 0", o->weight_decay);
    if (o->warmup_steps < 0) return tp_fail(TALPA_E_ARGUMENT, "--warmup-steps is %d, expected at least 0", o->warmup_steps);
    if (o->logging_steps < 1) return tp_fail(TALPA_E_ARGUMENT, "--logging-steps is %d, expected at least 1", o->logging_steps);
    if (o->save_steps < 0) return tp_fail(TALPA_E_ARGUMENT, "--save-steps is %d, expected at least 0", o->save_steps);
    return TALPA_OK;
}

static enum talpa_status open_data(struct trainer *t)
{
    const struct talpa_train_options *o = t->options;
    const struct tp_dataset_options options = {.max_tokens = (uint32_t)o->max_seq_length, .chat_template = o->chat_template};
    TP_TRY(tp_dataset_open(&t->data, o->data, t->model->tokenizer, &options));
    const struct tp_dataset_counts counts = tp_dataset_counts(t->data);
    note(t, "data %s: %zu examples, %llu tokens, %llu labelled; %llu cut, %llu skipped", o->data, tp_dataset_n_examples(t->data),
         (unsigned long long)counts.n_tokens, (unsigned long long)counts.n_labelled_tokens, (unsigned long long)counts.n_truncated,
         (unsigned long long)(counts.n_skipped + counts.n_empty));
    if (o->eval_data) TP_TRY(tp_dataset_open(&t->eval_data, o->eval_data, t->model->tokenizer, &options));
    const size_t n = tp_dataset_n_examples(t->data);
    const uint64_t per_step = (uint64_t)o->batch_size * (uint64_t)o->accumulation;
    t->total_examples = o->max_steps ? per_step * (uint64_t)o->max_steps : (uint64_t)ceil((double)n * o->num_epochs);
    t->total_steps = (int)((t->total_examples + per_step - 1) / per_step);
    t->order = malloc(n * sizeof *t->order);
    t->rates = calloc((size_t)t->total_steps, sizeof *t->rates);
    if (!t->order || !t->rates) return tp_fail_memory("data", n * sizeof *t->order);
    t->order_epoch = UINT64_MAX;
    return TALPA_OK;
}

static enum talpa_status open_adapter(struct trainer *t)
{
    const struct talpa_train_options *o = t->options;
    if (o->init_lora) {
        TP_TRY(tp_adapter_load(&t->adapter, &t->bank, o->init_lora, t->model, o->allow_other_base));
        t->adapter->config.dropout = o->adapter.dropout;
        t->adapter->config.independent_dropout = o->adapter.independent_dropout;
    } else {
        TP_TRY(tp_adapter_create(&t->adapter, t->model, &o->adapter));
        t->bank = malloc((size_t)t->adapter->bank_elements * sizeof *t->bank);
        if (!t->bank) return tp_fail_memory("adapter", (unsigned long long)t->adapter->bank_elements * sizeof *t->bank);
        tp_adapter_init(t->bank, t->adapter, o->seed);
    }
    t->selected = calloc((size_t)t->adapter->selection_elements + 1, sizeof *t->selected);
    return t->selected ? TALPA_OK : tp_fail_memory("adapter", (unsigned long long)t->adapter->selection_elements * sizeof *t->selected);
}

static struct tp_train_graph_options graph_options(const struct talpa_train_options *o)
{
    return (struct tp_train_graph_options){.max_tokens = max_tokens(o), .max_labelled = max_tokens(o), .aux_coef = o->aux_coef,
                                           .aux_on_probability = o->aux_on_probability, .beta1 = beta1, .beta2 = beta2, .epsilon = epsilon};
}

/* Sparse plans pay where most experts are idle; with no step measured yet, only top-k tells beforehand. */
static bool few_active(const struct tp_adapter *adapter, double active) { return active > 0.0 && active <= 0.5 * adapter->config.n_experts; }

static enum talpa_status prepare(struct trainer *t, size_t device)
{
    const struct talpa_train_options *o = t->options;
    struct tp_plan_options plan_options;
    TP_TRY(check_options(o, t->model));
    TP_TRY(open_data(t));
    TP_TRY(open_adapter(t));
    TP_TRY(tp_run_folder_open(&t->folder, o->output_dir, o->route_log));
    TP_TRY(tp_engine_open(&t->engine, device, t->model));
    TP_TRY(tp_engine_plan_options(&plan_options, o->base_dtype));
    const struct tp_train_graph_options options = graph_options(o);
    TP_TRY(tp_train_graph_create(&t->train, t->model, t->adapter, &options));
    const bool mixture = t->adapter->router->has_gating;
    const bool dense = !mixture || o->dispatch != TALPA_DISPATCH_SPARSE, sparse = mixture && o->dispatch != TALPA_DISPATCH_DENSE;
    t->sparse = !dense || (sparse && t->adapter->config.routing == TALPA_ROUTING_TOPK && few_active(t->adapter, t->adapter->config.top_k));
    TP_TRY(tp_program_set_create(&t->set, &t->engine, t->train.graph, &plan_options, dense, sparse));
    TP_TRY(tp_executor_write(t->set.executor, t->train.params, t->bank, (size_t)t->adapter->bank_elements * sizeof *t->bank));
    TP_TRY(tp_executor_write(t->set.executor, t->train.tensors, t->train.tensor_rows, t->train.tensor_bytes));
    if (t->eval_data) TP_TRY(tp_evaluator_create(&t->evaluator, &t->engine, t->model, t->adapter, max_tokens(o), &plan_options, t->sparse));
    t->batches = calloc((size_t)o->accumulation, sizeof *t->batches);
    if (!t->batches) return tp_fail_memory("batches", (unsigned long long)o->accumulation * sizeof *t->batches);
    for (int i = 0; i < o->accumulation; i++) TP_TRY(tp_batch_create(&t->batches[i], max_tokens(o), max_tokens(o)));
    const struct talpa_device_caps *caps = tp_device_caps(t->engine.device);
    note(t, "device %zu: %s (%s), %lld trainable parameters in %d modules, %d launches per micro-batch", device, caps->name, caps->platform,
         (long long)t->adapter->n_trainable, t->adapter->n_modules, t->set.plans[t->sparse]->phase[TP_PHASE_BATCH].n);
    return TALPA_OK;
}

static void release(struct trainer *t)
{
    for (int i = 0; t->batches && i < t->options->accumulation; i++) tp_batch_free(&t->batches[i]);
    free(t->batches);
    tp_losses_free(&t->before);
    tp_losses_free(&t->after);
    tp_evaluator_free(&t->evaluator);
    tp_program_set_free(&t->set);
    tp_train_graph_free(&t->train);
    tp_engine_close(&t->engine);
    tp_run_folder_close(&t->folder);
    tp_dataset_close(t->data);
    tp_dataset_close(t->eval_data);
    tp_adapter_free(t->adapter);
    free(t->bank);
    free(t->selected);
    free(t->order);
    free(t->rates);
}

/* ---- one step ---- */

static struct tp_dataset_example next_example(struct trainer *t)
{
    const uint32_t n = (uint32_t)tp_dataset_n_examples(t->data);
    const uint64_t epoch = t->cursor / n;
    if (epoch != t->order_epoch) {
        if (t->options->no_shuffle)
            for (uint32_t i = 0; i < n; i++) t->order[i] = i;
        else tp_dataset_permutation(t->order, n, t->options->seed, epoch);
        t->order_epoch = epoch;
    }
    return tp_dataset_example(t->data, t->order[t->cursor++ % n]);
}

/* Fills the micro-batches of a step; returns how many are in use. */
static enum talpa_status gather(struct trainer *t, int *n_micro, uint32_t *n_labelled, uint32_t *n_rows)
{
    const struct talpa_train_options *o = t->options;
    struct tp_dataset_example taken[4096];
    uint32_t ordinal = 0;
    *n_labelled = *n_rows = 0;
    for (*n_micro = 0; *n_micro < o->accumulation && t->cursor < t->total_examples; ++*n_micro) {
        struct tp_batch *batch = &t->batches[*n_micro];
        uint32_t longest = 0;
        int n = 0;
        tp_batch_clear(batch);
        for (; n < o->batch_size && t->cursor < t->total_examples; n++) {
            taken[n] = next_example(t);
            if (taken[n].n_tokens > longest) longest = taken[n].n_tokens;
        }
        const int32_t pad = tp_tokenizer_pad(t->model->tokenizer);
        for (int i = 0; i < n; i++) TP_TRY(tp_batch_add(batch, &taken[i], ordinal++, o->aux_include_pads ? longest : 0, pad < 0 ? 0 : pad));
        *n_labelled += batch->n_labelled;
        *n_rows += batch->n_tokens;
    }
    return TALPA_OK;
}

static struct tp_step step_words(const struct trainer *t, int step, int micro, double rate, uint32_t n_labelled, double aux_share)
{
    const struct talpa_train_options *o = t->options;
    struct tp_step words = {{0}};
    words.word[TP_STEP_MICRO] = (uint32_t)micro;
    words.word[TP_STEP_INDEX] = (uint32_t)step;
    words.word[TP_STEP_SEED_LO] = (uint32_t)o->seed;
    words.word[TP_STEP_SEED_HI] = (uint32_t)(o->seed >> 32);
    tp_step_set_f32(&words, TP_STEP_LEARNING_RATE, (float)rate);
    tp_step_set_f32(&words, TP_STEP_LOSS_SCALE, n_labelled ? 1.0f / (float)n_labelled : 0.0f);
    tp_step_set_f32(&words, TP_STEP_AUX_WEIGHT, (float)aux_share);
    tp_step_set_f32(&words, TP_STEP_MAX_NORM, (float)o->max_grad_norm);
    tp_step_set_f32(&words, TP_STEP_WEIGHT_DECAY, (float)o->weight_decay);
    return words;
}

static enum talpa_status run_micro(struct trainer *t, int micro, struct tp_step words, double share, struct talpa_train_row *row)
{
    struct tp_executor *executor = t->set.executor;
    float loss = 0.0f, aux = 0.0f;
    TP_TRY(tp_batch_write(&t->batches[micro], executor, &t->train.inputs, &words));
    TP_TRY(tp_executor_step(executor, &words));
    TP_TRY(tp_executor_run(executor, t->set.plan_of[t->sparse], TP_PHASE_BATCH));
    row->n_launches += tp_executor_n_launches(executor);
    TP_TRY(tp_executor_read(executor, t->train.loss, &loss, sizeof loss));
    if (t->train.aux != TALPA_NONE) TP_TRY(tp_executor_read(executor, t->train.aux, &aux, sizeof aux));
    row->loss += (double)loss;
    row->aux_loss += share * (double)aux;
    return TALPA_OK;
}

static enum talpa_status read_selection(struct trainer *t, uint32_t n_rows, struct talpa_train_row *row)
{
    const struct tp_adapter *adapter = t->adapter;
    if (!adapter->selection_elements) return TALPA_OK;
    TP_TRY(tp_executor_read(t->set.executor, t->train.selected, t->selected, (size_t)adapter->selection_elements * sizeof *t->selected));
    double active = 0.0;
    for (int m = 0; m < adapter->n_modules; m++)
        for (int e = 0; e < adapter->config.n_experts; e++) active += t->selected[m * TP_CONCAT_ALIGN + e];
    row->active_experts = active / ((double)n_rows * adapter->n_modules);
    if (t->options->dispatch == TALPA_DISPATCH_AUTO) t->sparse = few_active(adapter, row->active_experts);
    return TALPA_OK;
}

static enum talpa_status log_routes(struct trainer *t, const struct talpa_train_row *row)
{
    const struct tp_adapter *adapter = t->adapter;
    for (int m = 0; t->folder.routes && m < (adapter->selection_elements ? adapter->n_modules : 0); m++) {
        struct tp_json_writer *json = t->folder.json;
        const char *text;
        size_t n;
        tp_json_writer_reset(json);
        tp_json_write_object_begin(json);
        tp_json_write_int_member(json, "step", row->current_steps);
        tp_json_write_int_member(json, "layer", adapter->modules[m].layer);
        tp_json_write_string_member(json, "module", tp_linear_name(adapter->modules[m].linear));
        tp_json_write_key(json, "tokens");
        tp_json_write_array_begin(json);
        for (int e = 0; e < adapter->config.n_experts; e++) tp_json_write_int(json, t->selected[m * TP_CONCAT_ALIGN + e]);
        tp_json_write_array_end(json);
        tp_json_write_object_end(json);
        TP_TRY(tp_json_writer_text(&text, &n, json));
        if (fwrite(text, 1, n, t->folder.routes) != n || fputc('\n', t->folder.routes) == EOF)
            return tp_fail(TALPA_E_IO, "%s: the route log could not be written", t->options->route_log);
    }
    return TALPA_OK;
}

static enum talpa_status train_step(struct trainer *t, int step, struct talpa_train_row *row)
{
    const struct talpa_train_options *o = t->options;
    const int64_t started = tp_clock_now_ns();
    int n_micro = 0;
    uint32_t n_labelled = 0, n_rows = 0, n_pads = 0;
    float norm = 0.0f;
    row->loss = row->aux_loss = row->active_experts = 0.0;
    row->n_launches = 0;
    row->learning_rate = tp_schedule_rate(o->schedule, o->learning_rate, step, o->warmup_steps, t->total_steps);
    TP_TRY(gather(t, &n_micro, &n_labelled, &n_rows));
    for (int micro = 0; micro < n_micro; micro++) {
        const double share = (double)t->batches[micro].n_tokens / n_rows;
        n_pads += t->batches[micro].n_pads;
        TP_TRY(run_micro(t, micro, step_words(t, step, micro, row->learning_rate, n_labelled, share), share, row));
    }
    if (!isfinite(row->loss))
        return tp_fail(TALPA_E_CHECK, "step %d: the loss is %g; the parameters of the last save are kept: try a lower --learning-rate", step + 1, row->loss);
    TP_TRY(tp_executor_run(t->set.executor, t->set.plan_of[t->sparse], TP_PHASE_UPDATE));
    row->n_launches += tp_executor_n_launches(t->set.executor);
    TP_TRY(tp_executor_read(t->set.executor, t->train.norm, &norm, sizeof norm));
    const double seconds = (double)(tp_clock_now_ns() - started) * 1e-9;
    row->grad_norm = (double)norm;
    row->current_steps = step + 1;
    row->step_ms = seconds * 1e3;
    row->total_tokens += n_rows - n_pads;
    row->throughput = t->rates[step] = (n_rows - n_pads) / seconds;
    row->epoch = (double)t->cursor / (double)tp_dataset_n_examples(t->data);
    row->percentage = 100.0 * (step + 1) / t->total_steps;
    if (!isfinite(norm)) return tp_fail(TALPA_E_CHECK, "step %d: the gradient norm is %g: try a lower --learning-rate", step + 1, row->grad_norm);
    return read_selection(t, n_rows, row);
}

/* ---- saving ---- */

static enum talpa_status fetch_parameters(struct trainer *t, uint64_t *digest)
{
    TP_TRY(tp_executor_read(t->set.executor, t->train.params, t->bank, (size_t)t->adapter->bank_elements * sizeof *t->bank));
    return tp_adapter_digest(digest, t->adapter, t->bank);
}

static enum talpa_status save(struct trainer *t)
{
    uint64_t digest;
    char hex[TP_HASH_HEX_BYTES];
    TP_TRY(fetch_parameters(t, &digest));
    TP_TRY(tp_adapter_save(t->adapter, t->bank, t->options->output_dir, t->model));
    note(t, "saved %s, digest %s", t->options->output_dir, tp_hash_hex(hex, digest));
    return TALPA_OK;
}

/* ---- the run ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static enum talpa_status measure(struct trainer *t, const char *when, struct tp_losses *losses, struct talpa_eval_result *result)
{
    if (!t->eval_data) return TALPA_OK;
    TP_TRY(tp_evaluator_losses(losses, &t->evaluator, t->eval_data, t->options->batch_size));
    *result = tp_losses_summary(losses);
    note(t, "held-out loss %s: %.4f +- %.4f nat per token (%lld tokens, %lld examples)", when, result->loss, result->standard_error,
         (long long)result->n_tokens, (long long)result->n_examples);
    return TALPA_OK;
}

static enum talpa_status run(struct trainer *t, size_t device, struct talpa_train_result *result)
{
    const struct talpa_train_options *o = t->options;
    TP_TRY(prepare(t, device));
    TP_TRY(measure(t, "before", &t->before, &result->before));
    struct talpa_train_row row = {.total_steps = t->total_steps};
    double training_s = 0.0;
    bool stopped = false;
    for (int step = 0; step < t->total_steps && !stopped; step++) {
        TP_TRY(train_step(t, step, &row));
        training_s += row.step_ms * 1e-3;
        row.elapsed_s = training_s;
        row.remaining_s = training_s / (step + 1) * (t->total_steps - step - 1);
        row.peak_bytes = (size_t)tp_device_peak_bytes(t->engine.device);
        if ((step + 1) % o->logging_steps == 0 || step + 1 == t->total_steps) {
            TP_TRY(fetch_parameters(t, &row.digest));
            TP_TRY(tp_run_folder_row(&t->folder, &row));
            TP_TRY(log_routes(t, &row));
        }
        result->n_steps = step + 1;
        if (t->callbacks && t->callbacks->step) stopped = !t->callbacks->step(t->callbacks->user, &row);
        if (stopped || step + 1 == t->total_steps || (o->save_steps && (step + 1) % o->save_steps == 0)) TP_TRY(save(t));
    }
    TP_TRY(fetch_parameters(t, &result->digest));
    if (stopped && result->n_steps < t->total_steps)
        return tp_fail(TALPA_E_INTERRUPTED, "stopped after step %d of %d; the adapter is saved in %s", result->n_steps, t->total_steps, o->output_dir);
    TP_TRY(measure(t, "after", &t->after, &result->after));
    result->has_eval = t->eval_data != NULL;
    if (result->has_eval) tp_losses_compare(&result->difference, &result->difference_error, &t->before, &t->after);
    result->n_trainable = t->adapter->n_trainable;
    qsort(t->rates, (size_t)t->total_steps, sizeof *t->rates, by_value);
    result->throughput = t->rates[t->total_steps / 2];
    return tp_run_folder_results(&t->folder, result);
}

void talpa_train_default(struct talpa_train_options *options)
{
    *options = (struct talpa_train_options){.adapter = talpa_adapter_default(), .batch_size = 4, .max_seq_length = 256, .accumulation = 1,
                                            .num_epochs = 1.0, .learning_rate = 1e-4, .max_grad_norm = 1.0, .logging_steps = 1, .aux_coef = 1e-3};
}

enum talpa_status talpa_train(struct talpa_train_result *result, struct talpa_model *model, size_t device, const struct talpa_train_options *options,
                              const struct talpa_train_callbacks *callbacks)
{
    if (!options->data) return tp_fail(TALPA_E_ARGUMENT, "--data is missing: a JSONL file of training rows");
    if (!options->output_dir) return tp_fail(TALPA_E_ARGUMENT, "--output-dir is missing: the folder for adapter and log");
    struct trainer t = {.options = options, .callbacks = callbacks, .model = model, .folder = {.lock = -1}};
    struct talpa_train_result filled = {0};
    const enum talpa_status status = run(&t, device, &filled);
    release(&t);
    if (status == TALPA_OK || status == TALPA_E_INTERRUPTED) *result = filled;
    return status;
}

/* ---- knowing beforehand ---- */

struct forecast {
    struct tp_adapter *adapter;
    struct tp_train_graph train;
    struct tp_plan *plan;
};

static enum talpa_status forecast(struct forecast *f, struct talpa_model *model, const struct talpa_device_caps *caps,
                                  const struct talpa_train_options *options)
{
    TP_TRY(check_options(options, model));
    TP_TRY(tp_adapter_create(&f->adapter, model, &options->adapter));
    const struct tp_train_graph_options graph = graph_options(options);
    TP_TRY(tp_train_graph_create(&f->train, model, f->adapter, &graph));
    if (!caps) return TALPA_OK;
    struct tp_plan_options plan_options;
    TP_TRY(tp_engine_plan_options(&plan_options, options->base_dtype));
    if (options->dispatch == TALPA_DISPATCH_SPARSE && f->adapter->router->has_gating) plan_options.dispatch = TP_DISPATCH_SPARSE;
    return tp_plan_create(&f->plan, f->train.graph, caps, &plan_options);
}

static void forecast_free(struct forecast *f)
{
    tp_plan_free(f->plan);
    tp_train_graph_free(&f->train);
    tp_adapter_free(f->adapter);
}

enum talpa_status talpa_train_plan_memory(struct talpa_memory_plan *out, struct talpa_model *model, const struct talpa_device_caps *caps,
                                          const struct talpa_train_options *options)
{
    struct forecast f = {0};
    const enum talpa_status status = forecast(&f, model, caps, options);
    if (status == TALPA_OK) {
        const struct tp_plan_memory *m = &f.plan->memory;
        const size_t bank = (size_t)f.adapter->bank_elements * sizeof(float);
        int per_layer = 0;
        for (unsigned set = options->adapter.modules; set; set &= set - 1) per_layer++;
        struct talpa_memory_plan plan = {.weight_bytes = m->weight_bytes, .packed_bytes = m->packed_bytes, .adapter_bytes = bank, .gradient_bytes = bank,
                                         .optimizer_bytes = m->state_bytes - 2 * bank, .input_bytes = m->input_bytes, .activation_bytes = m->arena_bytes,
                                         .total_bytes = m->total_bytes, .largest_bytes = m->largest_bytes, .max_alloc_bytes = caps->max_alloc_bytes,
                                         .n_trainable = f.adapter->n_trainable, .n_modules = f.adapter->n_modules,
                                         .n_modules_possible = model->config.n_layers * per_layer,
                                         .n_launches_batch = f.plan->phase[TP_PHASE_BATCH].n, .n_launches_update = f.plan->phase[TP_PHASE_UPDATE].n};
        for (size_t i = 0; i < model->n_weights; i++) plan.n_parameters += tp_type_elements(&model->weights[i].type);
        *out = plan;
    }
    forecast_free(&f);
    return status;
}

enum talpa_status talpa_train_print(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps, const struct talpa_train_options *options,
                                    bool graph, bool plan)
{
    struct forecast f = {0};
    const enum talpa_status status = forecast(&f, model, plan ? caps : NULL, options);
    if (status == TALPA_OK && graph) tp_graph_print(f.train.graph, file);
    if (status == TALPA_OK && plan) tp_plan_print(f.plan, file);
    forecast_free(&f);
    return status;
}
