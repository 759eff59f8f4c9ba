/* New results beside earlier ones. */
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"
#include "base/status.h"
#include "eval/eval_impl.h"
#include "eval/journal.h"

static bool exists(const char *path)
{
    struct stat info;
    return path && stat(path, &info) == 0;
}

/* The samples of a result: what it names, relative to its file; NULL if they are not there. */
static const char *old_samples(struct tp_arena *arena, const struct tp_json_value *result, const char *baseline)
{
    const char *text = NULL, *slash = strrchr(baseline, '/');
    if (tp_json_get_string_or(&text, result, "samples", NULL) != TALPA_OK || !text) return NULL;
    const char *path = slash ? tp_arena_printf(arena, "%.*s/%s", (int)(slash - baseline), baseline, text) : tp_arena_strdup(arena, text);
    return exists(path) ? path : NULL;
}

static const char *new_samples(struct tp_arena *arena, const char *task, const char *output_dir)
{
    if (!output_dir) return NULL;
    const char *path = tp_arena_printf(arena, "%s/%s/samples.jsonl", output_dir, task);
    if (exists(path)) return path;
    path = tp_arena_printf(arena, "%s/samples.jsonl", output_dir);
    return exists(path) ? path : NULL;
}

static enum talpa_status compare_samples(struct talpa_eval_row *row, const char *before, const char *after)
{
    struct tp_judged old = {0}, new = {0};
    enum talpa_status status = tp_journal_read(&old, before);
    if (status == TALPA_OK) status = tp_journal_read(&new, after);
    if (status == TALPA_OK) row->is_paired = tp_summary_compare(&row->difference, &row->difference_error, row->score.metric, &old, &new);
    tp_judged_free(&old);
    tp_judged_free(&new);
    return status;
}

static enum talpa_status compare_row(struct talpa_eval_row *row, struct tp_arena *arena, const struct tp_json_value *result,
                                     const char *baseline, const char *output_dir)
{
    const char *metric, *by;
    double value, error;
    TP_TRY(tp_json_get_string(&metric, result, "metric"));
    TP_TRY(tp_json_get_string_or(&by, result, "by", tp_eval_by_name(row->score.by)));
    TP_TRY(tp_json_get_double(&value, result, "value"));
    TP_TRY(tp_json_get_double_or(&error, result, "stderr", 0.0));
    if (strcmp(metric, talpa_metric_name(row->score.metric)))
        return tp_fail(TALPA_E_DATA, "metric: found %s, expected %s as in the new results", metric, talpa_metric_name(row->score.metric));
    if (row->score.metric == TALPA_METRIC_OPTION_LETTER && strcmp(by, tp_eval_by_name(row->score.by)))
        return tp_fail(TALPA_E_DATA, "by: found %s, expected %s as in the new results", by, tp_eval_by_name(row->score.by));
    row->has_baseline = true;
    row->baseline = value;
    row->difference = row->score.value - value;
    row->difference_error = hypot(row->score.standard_error, error);
    const char *before = old_samples(arena, result, baseline), *after = new_samples(arena, row->score.task, output_dir);
    return before && after ? compare_samples(row, before, after) : TALPA_OK;
}

static enum talpa_status compare_all(struct talpa_eval_table *table, struct tp_arena *arena, const struct tp_json_value *root,
                                     const char *baseline, const char *output_dir)
{
    const struct tp_json_value *list = tp_json_type(root) == TP_JSON_OBJECT ? tp_json_get(root, "tasks") : root;
    const bool is_list = tp_json_type(list) == TP_JSON_ARRAY;
    size_t n = 0;
    for (const struct tp_json_value *result = is_list ? tp_json_first(list) : root; result;
         result = is_list ? tp_json_next(result) : NULL) {
        const char *task;
        TP_TRY(tp_json_get_string(&task, result, "task"));
        for (size_t i = 0; i < table->n_rows; i++)
            if (!strcmp(table->rows[i].score.task, task)) {
                TP_TRY(tp_context(compare_row(&table->rows[i], arena, result, baseline, output_dir), "task %s", task));
                n++;
            }
    }
    return n ? TALPA_OK
             : tp_fail(TALPA_E_DATA, "no task of the new results is in it, expected '%s'", table->n_rows ? table->rows[0].score.task : "");
}

enum talpa_status talpa_eval_compare(struct talpa_eval_table *table, const char *baseline, const char *output_dir)
{
    struct tp_json *json;
    struct tp_arena arena = {0};
    TP_TRY(tp_json_parse_file(&json, baseline));
    const enum talpa_status status = compare_all(table, &arena, tp_json_root(json), baseline, output_dir);
    tp_json_free(json);
    tp_arena_free(&arena);
    return tp_context(status, "--baseline %s", baseline);
}
