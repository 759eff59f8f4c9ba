#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/status.h"
#include "eval/code_run.h"
#include "eval/eval_impl.h"
#include "eval/journal.h"
#include "io/folder.h"

void talpa_eval_default(struct talpa_eval_options *options) { *options = (struct talpa_eval_options){.batch_size = 8}; }

const char *tp_eval_by_name(enum talpa_option_by by)
{
    static const char *const names[] = {"letter", "generation", "text"};
    return names[by];
}

/* One task on its way. */
struct run {
    struct tp_eval_context *context;
    const struct talpa_eval_options *options;
    const struct talpa_eval_callbacks *callbacks;
    struct tp_arena arena;     /* of the run */
    struct tp_arena row_arena; /* of rows being judged */
    struct tp_eval_rows rows;
    struct tp_eval_units units;
    struct tp_judged judged;
    struct tp_journal journal;
    struct talpa_eval_score score;
    struct tp_journal_inputs inputs;
    struct tp_code_runner runner;
    const char *examples;
    uint64_t examples_digest;
    int ctx, stride, max_new;
    bool network_noted;
};

static void note(const struct run *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(const struct run *r, const char *format, ...)
{
    char line[512];
    va_list arguments;
    if (!r->callbacks || !r->callbacks->note) return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    r->callbacks->note(r->callbacks->user, line);
}

/* ---- options ---- */

static int default_new_tokens(enum talpa_metric metric)
{
    switch (metric) {
    case TALPA_METRIC_F1_EM: return 32;
    case TALPA_METRIC_UNIT_TESTS: return 512;
    case TALPA_METRIC_OPTION_LETTER: return 16;
    case TALPA_METRIC_EXACT: return 64;
    default: return 256;
    }
}

static enum talpa_status check_options(struct run *r)
{
    const struct talpa_eval_options *o = r->options;
    const int context_length = r->context->model->config.context_length, usual = context_length < 4096 ? context_length : 4096;
    if (!o->data == !o->text)
        return tp_fail(TALPA_E_ARGUMENT, "give either --data, a JSONL file of rows, or -f, a text file for perplexity");
    if (o->text && o->metric != TALPA_METRIC_AUTO && o->metric != TALPA_METRIC_PERPLEXITY)
        return tp_fail(TALPA_E_ARGUMENT, "-f: a text file has no rows to judge by %s: only perplexity", talpa_metric_name(o->metric));
    if (o->output_dir && o->samples)
        return tp_fail(TALPA_E_ARGUMENT, "--samples: the output folder has samples of its own: give one of both");
    if (o->batch_size < 1 || o->batch_size > 4096)
        return tp_fail(TALPA_E_ARGUMENT, "--batch-size is %d, expected 1 to 4096", o->batch_size);
    if ((unsigned)o->by > TALPA_OPTION_BY_TEXT || (unsigned)o->metric >= TALPA_N_METRICS)
        return tp_fail(TALPA_E_ARGUMENT, "by is %d, metric %d: expected values of their enums", (int)o->by, (int)o->metric);
    if (o->few_shot < 0) return tp_fail(TALPA_E_ARGUMENT, "--few-shot is %d, expected 0 or more", o->few_shot);
    if (o->limit < 0 || o->max_new_tokens < 0) return tp_fail(TALPA_E_ARGUMENT, "--limit and -n must not be negative");
    if (o->ctx_size < 0 || o->ctx_size == 1 || o->ctx_size > context_length)
        return tp_fail(TALPA_E_ARGUMENT, "--ctx-size is %d, expected 2 to the model's context length %d", o->ctx_size, context_length);
    r->ctx = o->ctx_size ? o->ctx_size : usual;
    return TALPA_OK;
}

/* What depends on the metric, known once the rows are read. */
static enum talpa_status settle(struct run *r)
{
    const struct talpa_eval_options *o = r->options;
    enum talpa_metric metric = r->rows.metric;
    if (metric == TALPA_METRIC_UNIT_TESTS && !o->allow_code_execution) {
        note(r, "unit_tests would run Python that the model writes: reporting token_nll instead; --allow-code-execution runs it");
        metric = TALPA_METRIC_TOKEN_NLL;
    }
    if (metric == TALPA_METRIC_UNIT_TESTS) TP_TRY(tp_code_runner_open(&r->runner));
    if (metric == TALPA_METRIC_PERPLEXITY) {
        if (!o->ctx_size && r->ctx > 1024) r->ctx = 1024;
        r->stride = o->stride ? o->stride : r->ctx / 2;
        if (r->stride < 1 || r->stride >= r->ctx)
            return tp_fail(TALPA_E_ARGUMENT, "--stride is %d, expected 1 to %d, less than --ctx-size", r->stride, r->ctx - 1);
    } else if (o->stride) {
        return tp_fail(TALPA_E_ARGUMENT, "--stride is for perplexity, the metric is %s", talpa_metric_name(metric));
    }
    r->max_new = o->max_new_tokens ? o->max_new_tokens : default_new_tokens(metric);
    const char *name = o->task                      ? o->task
                       : r->rows.task               ? r->rows.task
                       : strrchr(r->rows.path, '/') ? strrchr(r->rows.path, '/') + 1
                                                    : r->rows.path;
    r->score = (struct talpa_eval_score){.metric = metric,
                                         .by = o->by,
                                         .has_em = metric == TALPA_METRIC_F1_EM,
                                         .few_shot = o->few_shot,
                                         .seed = o->seed,
                                         .model_digest = r->context->model_digest,
                                         .adapter_digest = r->context->adapter_digest};
    snprintf(r->score.task, sizeof r->score.task, "%s", name);
    return tp_eval_rows_examples(&r->examples, &r->examples_digest, &r->arena, o, metric);
}

static enum talpa_status add_input(struct run *r, const char *name, uint64_t digest, bool is_there)
{
    char hex[TP_HASH_HEX_BYTES];
    const char *value = tp_arena_strdup(&r->arena, is_there ? tp_hash_hex(hex, digest) : "none");
    r->inputs.list[r->inputs.n++] = (struct tp_journal_input){name, value};
    return value ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status describe_inputs(struct run *r)
{
    const struct talpa_eval_options *o = r->options;
    TP_TRY(add_input(r, "model", r->context->model_digest, true));
    TP_TRY(add_input(r, "adapter", r->context->adapter_digest, r->context->adapter != NULL));
    TP_TRY(add_input(r, "data", r->rows.digest, true));
    TP_TRY(add_input(r, "few_shot_data", r->examples_digest, o->few_shot > 0));
    char threshold[40] = ""; /* left out of results without it, as they were before it was known */
    if (o->max_threshold != 0.0) snprintf(threshold, sizeof threshold, " max_threshold=%.9g", o->max_threshold);
    const char *text =
        tp_arena_printf(&r->arena,
                        "metric=%s by=%s few_shot=%d%s seed=%" PRIu64 " limit=%" PRId64 " max_new_tokens=%d ctx_size=%d stride=%d "
                        "base_dtype=%d compute_dtype=%d dispatch=%d%s",
                        talpa_metric_name(r->score.metric), tp_eval_by_name(o->by), o->few_shot, o->few_shot_random ? " random" : "",
                        o->seed, o->limit, r->max_new, r->ctx, r->stride, (int)o->base_dtype, (int)(o->compute_dtype == TALPA_COMPUTE_BF16), (int)o->dispatch,
                        threshold);
    r->inputs.list[r->inputs.n++] = (struct tp_journal_input){"options", text};
    return text ? TALPA_OK : TALPA_E_DEVICE;
}

/* ---- rows that are done ---- */

static enum talpa_status take(struct run *r, const struct tp_journal_row *row)
{
    TP_TRY(tp_judged_push(&r->judged, row->value, row->weight, row->id));
    r->judged.em_sum += row->em;
    if (!r->callbacks || !r->callbacks->sample) return TALPA_OK;
    const struct talpa_eval_sample sample = {.index = (int64_t)r->judged.n - 1,
                                             .id = row->id,
                                             .prediction = row->prediction,
                                             .answer = row->answer,
                                             .has_correct = row->has_correct,
                                             .correct = row->correct,
                                             .value = row->value,
                                             .weight = row->weight,
                                             .too_long = row->too_long};
    if (!r->callbacks->sample(r->callbacks->user, &sample, (int64_t)r->units.n_units))
        return tp_fail(TALPA_E_INTERRUPTED, "stopped after %zu rows", r->judged.n);
    return TALPA_OK;
}

static enum talpa_status resumed(void *user, const struct tp_journal_row *row)
{
    struct run *r = user;
    const size_t i = r->judged.n;
    if (i >= r->units.n_units || strcmp(r->units.units[i].id, row->id))
        return tp_fail(TALPA_E_DATA, "row %zu: found id '%.60s', expected '%.60s': the file was changed: remove it to start anew", i,
                       row->id, i < r->units.n_units ? r->units.units[i].id : "no more rows");
    r->score.n_resumed++;
    return take(r, row);
}

static enum talpa_status emit(struct run *r, struct tp_journal_row *row)
{
    /* As the file holds it, so that a run that was interrupted gives the same bits. */
    char text[32];
    snprintf(text, sizeof text, "%.9g", row->value);
    row->value = strtod(text, NULL);
    TP_TRY(tp_journal_row(&r->journal, row));
    return take(r, row);
}

static enum talpa_status emit_too_long(struct run *r, const struct tp_eval_unit *unit)
{
    const bool is_judged = r->score.metric != TALPA_METRIC_TOKEN_NLL;
    struct tp_journal_row row = {.id = unit->id,
                                 .answer = is_judged ? unit->row->answer : NULL,
                                 .has_correct = is_judged,
                                 .has_em = r->score.has_em,
                                 .too_long = true,
                                 .weight = is_judged ? 1.0 : 0.0};
    return emit(r, &row);
}

/* ---- likelihoods ---- */

static enum talpa_status judge_scored(struct run *r, const struct tp_eval_unit *unit)
{
    if (unit->too_long) return emit_too_long(r, unit);
    struct tp_journal_row row = {.id = unit->id, .weight = 1.0};
    if (r->score.metric == TALPA_METRIC_OPTION_LETTER) {
        row.has_correct = true;
        row.answer = unit->row->answer;
        tp_eval_judge_options(&row, &r->row_arena, unit, r->units.items, r->options->by);
        if (!row.prediction) return TALPA_E_DEVICE;
    } else {
        row.weight = 0.0;
        for (size_t i = unit->first_item; i < unit->first_item + unit->n_items; i++) {
            const struct tp_likelihood_item *item = &r->units.items[i];
            for (uint32_t k = 0; k < item->n_labels; k++) row.value += (double)item->nll[k];
            row.weight += item->n_labels;
        }
        r->score.n_tokens += (int64_t)row.weight;
    }
    return emit(r, &row);
}

static enum talpa_status run_scored(struct run *r)
{
    const struct tp_eval_units *u = &r->units;
    if (u->longest) TP_TRY(tp_eval_context_scorer(r->context, r->options, u->longest, u->most_labels));
    for (size_t first = r->judged.n, last; first < u->n_units; first = last) {
        size_t n_items = 0;
        for (last = first; last < u->n_units && (last == first || n_items < 4 * (size_t)r->options->batch_size); last++)
            n_items += u->units[last].n_items;
        TP_TRY(tp_likelihood_run(&r->context->likelihood, u->items + u->units[first].first_item, n_items, r->options->batch_size));
        for (size_t i = first; i < last; i++) TP_TRY(judge_scored(r, &u->units[i]));
        tp_arena_free(&r->row_arena);
    }
    return TALPA_OK;
}

/* ---- generation ---- */

static enum talpa_status judge_chunk(struct run *r, size_t first, size_t n, const struct talpa_answer *answers)
{
    for (size_t i = first, k = 0; i < first + n; i++) {
        const struct tp_eval_unit *unit = &r->units.units[i];
        if (unit->too_long) {
            TP_TRY(emit_too_long(r, unit));
            continue;
        }
        struct tp_journal_row row;
        bool no_network = true;
        TP_TRY(tp_eval_judge(&row, &r->row_arena, unit->row, r->score.metric, answers[k].text ? answers[k].text : "", &r->runner,
                             &no_network));
        if (!no_network && !r->network_noted) {
            note(r, "unit_tests: this system does not let an ordinary user cut the network: the model's code can reach it");
            r->network_noted = true;
        }
        r->score.n_tokens += (int64_t)answers[k].n_ids;
        TP_TRY(emit(r, &row));
        k++;
    }
    return TALPA_OK;
}

/* Metrics that judge the first line need no more of the output. */
static bool wants_first_line(enum talpa_metric metric, const struct tp_eval_row *row)
{
    return metric == TALPA_METRIC_F1_EM || (metric == TALPA_METRIC_EXACT && !strchr(row->answer, '\n'));
}

static enum talpa_status run_chunk(struct run *r, size_t first, size_t n, struct talpa_request *requests, struct talpa_answer *answers)
{
    static const char *const newline[] = {"\n"};
    struct talpa_sampling sampling;
    talpa_sampling_default(&sampling);
    size_t n_requests = 0;
    for (size_t i = first; i < first + n; i++) {
        const struct tp_eval_unit *unit = &r->units.units[i];
        if (unit->too_long) continue;
        requests[n_requests] = (struct talpa_request){.ids = unit->prompt,
                                                      .n_ids = unit->n_prompt,
                                                      .max_tokens = r->max_new,
                                                      .stop = newline,
                                                      .n_stop = wants_first_line(r->score.metric, unit->row) ? 1 : 0};
        answers[n_requests++] = (struct talpa_answer){0};
    }
    if (n_requests) TP_TRY(talpa_generate(answers, r->context->session, requests, n_requests, &sampling, NULL, NULL));
    const enum talpa_status status = judge_chunk(r, first, n, answers);
    for (size_t i = 0; i < n_requests; i++) talpa_answer_free(&answers[i]);
    tp_arena_free(&r->row_arena);
    return status;
}

static enum talpa_status run_generated(struct run *r)
{
    const struct tp_eval_units *u = &r->units;
    if (u->longest) {
        const int64_t wanted = ((int64_t)u->longest + r->max_new + 63) / 64 * 64;
        TP_TRY(tp_eval_context_generator(r->context, r->options, wanted < r->ctx ? (int)wanted : r->ctx));
    }
    /* Long enough that sequences of different lengths fill each other's gaps, short enough that little is lost when a run is stopped. */
    const size_t chunk = 4 * (size_t)r->options->batch_size;
    struct talpa_request *requests = calloc(chunk, sizeof *requests);
    struct talpa_answer *answers = calloc(chunk, sizeof *answers);
    enum talpa_status status = requests && answers ? TALPA_OK : tp_fail_memory("requests", chunk * sizeof *requests);
    for (size_t first = r->judged.n; status == TALPA_OK && first < u->n_units; first += chunk)
        status = run_chunk(r, first, u->n_units - first < chunk ? u->n_units - first : chunk, requests, answers);
    free(requests);
    free(answers);
    return status;
}

/* ---- results ---- */

/* null: there is none. */
static void write_digest(struct tp_json_writer *json, const char *key, uint64_t digest)
{
    if (digest) tp_json_write_digest_member(json, key, digest);
    else tp_json_write_null_member(json, key);
}

void tp_eval_write_score(struct tp_json_writer *json, const struct talpa_eval_score *score)
{
    tp_json_write_string_member(json, "task", score->task);
    tp_json_write_string_member(json, "metric", talpa_metric_name(score->metric));
    if (score->metric == TALPA_METRIC_OPTION_LETTER) tp_json_write_string_member(json, "by", tp_eval_by_name(score->by));
    tp_json_write_int_member(json, "n", score->n);
    tp_json_write_real_member(json, "value", score->value);
    tp_json_write_real_member(json, "stderr", score->standard_error);
    if (score->has_em) {
        tp_json_write_real_member(json, "em", score->em);
        tp_json_write_real_member(json, "em_stderr", score->em_error);
    }
    tp_json_write_real_member(json, "elapsed_s", score->elapsed_s);
    tp_json_write_int_member(json, "n_too_long", score->n_too_long);
    tp_json_write_int_member(json, "n_resumed", score->n_resumed);
    tp_json_write_int_member(json, "few_shot", score->few_shot);
    tp_json_write_int_member(json, "seed", (int64_t)score->seed);
    write_digest(json, "model", score->model_digest);
    write_digest(json, "adapter", score->adapter_digest);
}

static enum talpa_status commit(struct run *r)
{
    struct tp_json_writer *json;
    const char *text;
    char *line = NULL;
    size_t n = 0;
    if (!r->journal.path || r->journal.is_complete) return TALPA_OK; /* complete: its results stay those of the run that made them */
    TP_TRY(tp_json_writer_create(&json, 2));
    tp_json_write_object_begin(json);
    tp_eval_write_score(json, &r->score);
    tp_json_write_string_member(json, "samples", "samples.jsonl");
    tp_journal_write_inputs(json, &r->inputs);
    tp_json_write_object_end(json);
    enum talpa_status status = tp_json_writer_text(&text, &n, json);
    if (status == TALPA_OK && !(line = tp_arena_printf(&r->arena, "%s\n", text))) status = TALPA_E_DEVICE;
    if (status == TALPA_OK) status = tp_journal_commit(&r->journal, line, n + 1);
    tp_json_writer_free(json);
    return status;
}

static enum talpa_status open_journal(struct run *r)
{
    const struct talpa_eval_options *o = r->options;
    const char *path = o->samples, *results = NULL;
    if (o->output_dir) {
        TP_TRY(tp_context(tp_folder_create(o->output_dir), "--output-dir"));
        path = tp_arena_printf(&r->arena, "%s/samples.jsonl", o->output_dir);
        results = tp_arena_printf(&r->arena, "%s/eval_results.json", o->output_dir);
        if (!path || !results) return TALPA_E_DEVICE;
    }
    TP_TRY(tp_journal_open(&r->journal, path, results, &r->inputs, o->overwrite, resumed, r));
    if (r->score.n_resumed) note(r, "%s: going on after %" PRId64 " of %zu rows", path, r->score.n_resumed, r->units.n_units);
    return TALPA_OK;
}

static enum talpa_status run_task(struct run *r)
{
    const struct talpa_eval_options *o = r->options;
    const int64_t start = tp_clock_now_ns();
    TP_TRY(check_options(r));
    TP_TRY(o->text ? tp_eval_rows_text(&r->rows, o->text) : tp_eval_rows_open(&r->rows, o->data, o->metric, o->limit));
    TP_TRY(settle(r));
    TP_TRY(describe_inputs(r));
    TP_TRY(tp_eval_units_create(&r->units, r->context->model, &r->rows, r->examples, r->score.metric, o->by, (uint32_t)r->ctx,
                                (uint32_t)r->stride, o->text != NULL));
    if (r->units.n_too_long) {
        r->score.n_too_long = (int64_t)r->units.n_too_long;
        tp_log(TALPA_LOG_WARN, "%s: %zu rows are longer than %d tokens: %s; see --ctx-size", r->rows.path, r->units.n_too_long, r->ctx,
               r->score.metric == TALPA_METRIC_TOKEN_NLL ? "left out" : "counted as wrong");
    }
    if (r->context->has_routes) TP_TRY(tp_eval_routes(r->context, o, &r->rows, r->examples, (uint32_t)r->ctx));
    TP_TRY(open_journal(r));
    if (r->judged.n < r->units.n_units) TP_TRY(tp_eval_is_generated(r->score.metric, o->by) ? run_generated(r) : run_scored(r));
    tp_summary(&r->score, &r->judged);
    r->score.elapsed_s = (double)(tp_clock_now_ns() - start) * 1e-9;
    return commit(r);
}

enum talpa_status tp_eval_task(struct talpa_eval_score *score, struct tp_eval_context *context, const struct talpa_eval_options *options,
                               const struct talpa_eval_callbacks *callbacks)
{
    struct run run = {.context = context, .options = options, .callbacks = callbacks, .examples = ""};
    const enum talpa_status status = run_task(&run);
    if (status == TALPA_OK) *score = run.score;
    tp_journal_close(&run.journal);
    tp_judged_free(&run.judged);
    tp_eval_units_free(&run.units);
    tp_eval_rows_close(&run.rows);
    tp_arena_free(&run.row_arena);
    tp_arena_free(&run.arena);
    return status;
}

enum talpa_status talpa_eval(struct talpa_eval_score *score, struct talpa_model *model, size_t device,
                             const struct talpa_eval_options *options, const struct talpa_eval_callbacks *callbacks)
{
    struct tp_eval_context context;
    TP_TRY(tp_eval_context_open(&context, model, device, options));
    enum talpa_status status = tp_eval_task(score, &context, options, callbacks);
    if (status == TALPA_OK && context.has_routes) status = tp_route_output_finish(&options->routes, &context.routes);
    tp_eval_context_close(&context);
    return status;
}
