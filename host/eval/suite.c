#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/nearest.h"
#include "base/status.h"
#include "eval/eval_impl.h"
#include "eval/summary.h"
#include "io/atomic_file.h"
#include "io/folder.h"

enum { MAX_TASKS = 1000 };

/* A task of the file as options. */
struct task {
    const char *name;
    struct talpa_eval_options options;
};

/* ---- reading ---- */

static enum talpa_status check_keys(const struct tp_json_value *object)
{
    static const char *const known[] = {"name", "data", "metric", "by", "few_shot", "few_shot_data", "limit", "max_new_tokens"};
    for (const struct tp_json_value *member = tp_json_first(object); member; member = tp_json_next(member)) {
        const char *key = tp_json_key(member), *nearest = tp_nearest_word(key, known, sizeof known / sizeof *known, INT_MAX);
        if (!nearest || strcmp(key, nearest))
            return tp_fail(
                TALPA_E_DATA,
                "unknown key '%.60s', nearest '%s'; known: name, data, metric, by, few_shot, few_shot_data, limit, max_new_tokens", key,
                nearest ? nearest : known[0]);
    }
    return TALPA_OK;
}

/* A path of the file, relative to the file's folder. */
static enum talpa_status get_path(const char **out, struct tp_arena *arena, const struct tp_json_value *object, const char *key,
                                  const char *suite)
{
    const char *text, *slash = strrchr(suite, '/');
    TP_TRY(tp_json_get_string_or(&text, object, key, NULL));
    *out = !text                      ? NULL
           : text[0] == '/' || !slash ? tp_arena_strdup(arena, text)
                                      : tp_arena_printf(arena, "%.*s/%s", (int)(slash - suite), suite, text);
    return *out || !text ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status get_count(int *out, const struct tp_json_value *object, const char *key, int fallback)
{
    int64_t value;
    TP_TRY(tp_json_get_int_or(&value, object, key, fallback));
    if (value < 0 || value > INT_MAX) return tp_fail(TALPA_E_DATA, "%s: found %lld, expected 0 or more", key, (long long)value);
    *out = (int)value;
    return TALPA_OK;
}

static enum talpa_status read_task(struct task *out, struct tp_arena *arena, const struct tp_json_value *object, const char *suite,
                                   const struct talpa_eval_options *options)
{
    static const char *const by[] = {"letter", "generation", "text"};
    struct task task = {.options = *options};
    const char *text;
    int limit;
    if (tp_json_type(object) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(object)));
    TP_TRY(check_keys(object));
    TP_TRY(tp_json_get_string(&text, object, "name"));
    if (!*text || strlen(text) >= TALPA_EVAL_TEXT_BYTES || strchr(text, '/') || text[0] == '.')
        return tp_fail(TALPA_E_DATA, "name: found \"%.80s\", expected up to %d characters without '/' that can name a folder", text,
                       TALPA_EVAL_TEXT_BYTES - 1);
    if (!(task.name = tp_arena_strdup(arena, text))) return TALPA_E_DEVICE;
    task.options.task = task.name;
    TP_TRY(tp_json_get_string(&text, object, "data"));
    TP_TRY(get_path(&task.options.data, arena, object, "data", suite));
    TP_TRY(get_path(&task.options.few_shot_data, arena, object, "few_shot_data", suite));
    if (!task.options.few_shot_data) task.options.few_shot_data = options->few_shot_data;
    TP_TRY(tp_json_get_string_or(&text, object, "metric", talpa_metric_name(options->metric)));
    const enum talpa_status parsed = talpa_metric_parse(&task.options.metric, text);
    if (parsed != TALPA_OK) return tp_fail(TALPA_E_DATA, "metric: unknown name '%s'", text);
    TP_TRY(tp_json_get_string_or(&text, object, "by", by[options->by]));
    int k = 0;
    while (k < 3 && strcmp(text, by[k])) k++;
    if (k == 3) return tp_fail(TALPA_E_DATA, "by: found \"%.40s\", expected letter, generation or text", text);
    task.options.by = (enum talpa_option_by)k;
    TP_TRY(get_count(&task.options.few_shot, object, "few_shot", options->few_shot));
    TP_TRY(get_count(&limit, object, "limit", options->limit > INT_MAX ? INT_MAX : (int)options->limit));
    task.options.limit = limit;
    TP_TRY(get_count(&task.options.max_new_tokens, object, "max_new_tokens", options->max_new_tokens));
    if (options->output_dir && !(task.options.output_dir = tp_arena_printf(arena, "%s/%s", options->output_dir, task.name)))
        return TALPA_E_DEVICE;
    *out = task;
    return TALPA_OK;
}

static enum talpa_status read_suite(struct task **out, size_t *n_out, struct tp_arena *arena, const char *path,
                                    const struct talpa_eval_options *options)
{
    struct tp_json *json;
    TP_TRY(tp_json_parse_file(&json, path));
    const struct tp_json_value *root = tp_json_root(json), *list = tp_json_type(root) == TP_JSON_OBJECT ? tp_json_get(root, "tasks") : root;
    const int64_t n = tp_json_type(list) == TP_JSON_ARRAY ? tp_json_length(list) : 0;
    enum talpa_status status = TALPA_OK;
    struct task *tasks = NULL;
    if (n < 1 || n > MAX_TASKS)
        status = tp_fail(TALPA_E_DATA, "%s: found no tasks, expected {\"tasks\": [{\"name\", \"data\"}, ..]} with 1 to %d of them", path,
                         MAX_TASKS);
    else if (!(tasks = tp_arena_array(arena, (size_t)n, sizeof *tasks)))
        status = TALPA_E_DEVICE;
    size_t i = 0;
    for (const struct tp_json_value *item = status == TALPA_OK ? tp_json_first(list) : NULL; item && status == TALPA_OK;
         item = tp_json_next(item), i++) {
        status = read_task(&tasks[i], arena, item, path, options);
        for (size_t k = 0; k < i && status == TALPA_OK; k++)
            if (!strcmp(tasks[k].name, tasks[i].name)) status = tp_fail(TALPA_E_DATA, "name: '%s' is there twice", tasks[i].name);
        status = tp_context(status, "%s: tasks[%zu]", path, i);
    }
    tp_json_free(json);
    *out = tasks;
    *n_out = (size_t)n;
    return status;
}

/* ---- running ---- */

static void mean_of(struct talpa_eval_table *table)
{
    double squares = 0.0;
    table->mean = 0.0;
    table->has_mean = table->n_rows > 0;
    for (size_t i = 0; i < table->n_rows; i++) {
        const struct talpa_eval_score *score = &table->rows[i].score;
        if (score->metric == TALPA_METRIC_TOKEN_NLL || score->metric == TALPA_METRIC_PERPLEXITY) table->has_mean = false;
        table->mean += score->value / (double)table->n_rows;
        squares += score->standard_error * score->standard_error;
    }
    table->mean_error = sqrt(squares) / (double)(table->n_rows ? table->n_rows : 1);
}

static enum talpa_status save(const struct talpa_eval_table *table, struct tp_arena *arena, const char *folder)
{
    struct tp_json_writer *json;
    const char *text, *path = tp_arena_printf(arena, "%s/suite_results.json", folder);
    size_t n;
    if (!path) return TALPA_E_DEVICE;
    TP_TRY(tp_json_writer_create(&json, 2));
    tp_json_write_object_begin(json);
    tp_json_write_key(json, "tasks");
    tp_json_write_array_begin(json);
    enum talpa_status status = TALPA_OK;
    for (size_t i = 0; i < table->n_rows && status == TALPA_OK; i++) {
        const char *samples = tp_arena_printf(arena, "%s/samples.jsonl", table->rows[i].score.task);
        if (!samples) status = TALPA_E_DEVICE;
        tp_json_write_object_begin(json);
        tp_eval_write_score(json, &table->rows[i].score);
        tp_json_write_string_member(json, "samples", samples);
        tp_json_write_object_end(json);
    }
    tp_json_write_array_end(json);
    if (table->has_mean) {
        tp_json_write_real_member(json, "mean", table->mean);
        tp_json_write_real_member(json, "mean_stderr", table->mean_error);
    }
    tp_json_write_object_end(json);
    if (status == TALPA_OK) status = tp_json_writer_text(&text, &n, json);
    const char *line = status == TALPA_OK ? tp_arena_printf(arena, "%s\n", text) : NULL;
    if (status == TALPA_OK) status = line ? tp_atomic_file_save(path, line, n + 1) : TALPA_E_DEVICE;
    tp_json_writer_free(json);
    return status;
}

static enum talpa_status run_suite(struct talpa_eval_table *table, struct tp_arena *arena, struct tp_eval_context *context,
                                   const char *suite, const struct talpa_eval_options *options,
                                   const struct talpa_eval_callbacks *callbacks)
{
    struct task *tasks;
    size_t n;
    TP_TRY(read_suite(&tasks, &n, arena, suite, options));
    if (options->output_dir) TP_TRY(tp_context(tp_folder_create(options->output_dir), "--output-dir"));
    table->rows = calloc(n, sizeof *table->rows);
    if (!table->rows) return tp_fail_memory("results", n * sizeof *table->rows);
    for (size_t i = 0; i < n; i++, table->n_rows++) {
        char line[TALPA_EVAL_TEXT_BYTES + 64];
        snprintf(line, sizeof line, "task %zu/%zu: %s", i + 1, n, tasks[i].name);
        if (callbacks && callbacks->note) callbacks->note(callbacks->user, line);
        TP_TRY(tp_context(tp_eval_task(&table->rows[i].score, context, &tasks[i].options, callbacks), "task %s", tasks[i].name));
    }
    mean_of(table);
    return options->output_dir ? save(table, arena, options->output_dir) : TALPA_OK;
}

enum talpa_status talpa_eval_suite(struct talpa_eval_table *table, struct talpa_model *model, size_t device, const char *suite,
                                   const struct talpa_eval_options *options, const struct talpa_eval_callbacks *callbacks)
{
    struct tp_arena arena = {0};
    struct tp_eval_context context;
    struct talpa_eval_table result = {0};
    if (options->data || options->text || options->samples)
        return tp_fail(TALPA_E_ARGUMENT, "--suite: the suite names its data; leave out --data, -f and --samples");
    TP_TRY(tp_eval_context_open(&context, model, device, options));
    enum talpa_status status = run_suite(&result, &arena, &context, suite, options, callbacks);
    if (status == TALPA_OK && context.has_routes) status = tp_route_output_finish(&options->routes, &context.routes);
    if (status == TALPA_OK) *table = result;
    else talpa_eval_table_free(&result);
    tp_eval_context_close(&context);
    tp_arena_free(&arena);
    return status;
}

void talpa_eval_table_free(struct talpa_eval_table *table)
{
    free(table->rows);
    *table = (struct talpa_eval_table){0};
}
