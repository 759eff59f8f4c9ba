#include "route_read.h"

#include <math.h>
#include <string.h>

#include "base/status.h"
#include "io/file_map.h"
#include "io/text_lines.h"

enum talpa_status tp_route_visit_lines(const char *path, enum talpa_status (*visit)(void *user, const struct tp_json_value *row), void *user)
{
    struct tp_file_map map;
    TP_TRY(tp_file_map_open(&map, path));
    struct tp_text_lines lines = tp_text_lines_of((const char *)map.bytes, map.n_bytes);
    enum talpa_status status = TALPA_OK;
    while (status == TALPA_OK && tp_text_lines_next(&lines)) {
        struct tp_json *json;
        status = tp_json_parse(&json, lines.text, lines.n_bytes, "row");
        if (status == TALPA_OK) {
            status = visit(user, tp_json_root(json));
            tp_json_free(json);
        }
        status = tp_context(status, "%s:%llu", path, (unsigned long long)lines.number);
    }
    tp_file_map_close(&map);
    return status;
}

/* ---- records ---- */

/* A larger copy of a full list. What it replaces stays in the arena: half of the memory at most. */
static enum talpa_status grow(struct tp_arena *arena, void *list, size_t n, size_t size)
{
    void **at = list, *larger;
    if (n && (n < 8 || n & (n - 1))) return TALPA_OK;
    larger = tp_arena_array(arena, n < 8 ? 8 : 2 * n, size);
    if (!larger) return TALPA_E_DEVICE;
    if (n) memcpy(larger, *at, n * size);
    *at = larger;
    return TALPA_OK;
}

static enum talpa_status get_number(double *out, const struct tp_json_value *row, const char *key)
{
    *out = NAN;
    return tp_json_type(tp_json_get(row, key)) == TP_JSON_NULL ? TALPA_OK : tp_json_get_double(out, row, key);
}

static enum talpa_status read_row(struct tp_route_log *log, const struct tp_json_value *json)
{
    struct tp_route_log_row row;
    const char *id, *task;
    int64_t index, n, n_prompt, known;
    TP_TRY(tp_json_get_int(&index, json, "index"));
    TP_TRY(tp_json_get_string_or(&id, json, "id", ""));
    TP_TRY(tp_json_get_string_or(&task, json, "task", ""));
    TP_TRY(tp_json_get_int(&n, json, "n_tokens"));
    TP_TRY(tp_json_get_int(&n_prompt, json, "n_prompt_tokens"));
    TP_TRY(get_number(&row.active[TALPA_ROUTE_WHOLE], json, "active_experts"));
    TP_TRY(get_number(&row.active[TALPA_ROUTE_PROMPT], json, "active_prompt"));
    TP_TRY(get_number(&row.active[TALPA_ROUTE_COMPLETION], json, "active_completion"));
    row.n_tokens[TALPA_ROUTE_WHOLE] = n;
    row.n_tokens[TALPA_ROUTE_PROMPT] = n_prompt;
    row.n_tokens[TALPA_ROUTE_COMPLETION] = n - n_prompt;
    row.id = *id ? tp_arena_strdup(&log->arena, id) : tp_arena_printf(&log->arena, "%lld", (long long)index);
    if (!tp_map_get_string(&known, &log->task_of, task)) {
        known = (int64_t)log->n_tasks++;
        TP_TRY(tp_map_put_string(&log->task_of, task, known));
    }
    row.task = (size_t)known;
    TP_TRY(grow(&log->arena, &log->rows, log->n_rows, sizeof *log->rows));
    log->rows[log->n_rows++] = row;
    return row.id ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status read_sample(struct tp_route_log *log, const struct tp_json_value *json)
{
    const struct tp_json_value *tokens = tp_json_get(json, "tokens");
    int64_t n_experts;
    TP_TRY(tp_json_get_int(&n_experts, json, "n_experts"));
    if (n_experts < 1 || n_experts > 256) return tp_fail(TALPA_E_DATA, "n_experts: found %lld, expected 1 to 256", (long long)n_experts);
    log->n_experts = (int)n_experts;
    log->samples = tp_arena_array(&log->arena, (size_t)tp_json_length(tokens) + 1, sizeof *log->samples);
    if (!log->samples) return TALPA_E_DEVICE;
    log->n_samples = 0;
    for (const struct tp_json_value *token = tp_json_first(tokens); token; token = tp_json_next(token)) {
        for (int i = 0; i < 2; i++) TP_TRY(tp_json_as_int(&log->samples[log->n_samples][i], tp_json_at(token, i), "tokens"));
        log->n_samples++;
    }
    return TALPA_OK;
}

static enum talpa_status read_module(struct tp_route_log *log, const struct tp_json_value *json)
{
    struct tp_route_log_module module;
    const struct tp_json_value *list = tp_json_get(json, "sample_weight");
    const size_t n = log->n_samples * (size_t)log->n_experts;
    const char *name;
    int64_t layer, value;
    TP_TRY(tp_json_get_int(&layer, json, "layer"));
    TP_TRY(tp_json_get_string(&name, json, "module"));
    if ((size_t)tp_json_length(list) != n)
        return tp_fail(TALPA_E_DATA, "sample_weight: found %lld numbers, expected %zu", (long long)tp_json_length(list), n);
    module.layer = (int)layer;
    module.name = tp_arena_strdup(&log->arena, name);
    module.weight = tp_arena_array(&log->arena, n + 1, sizeof *module.weight);
    if (!module.name || !module.weight) return TALPA_E_DEVICE;
    size_t i = 0;
    for (const struct tp_json_value *item = tp_json_first(list); item; item = tp_json_next(item)) {
        TP_TRY(tp_json_as_int(&value, item, "sample_weight"));
        module.weight[i++] = (float)value * 1e-4f;
    }
    TP_TRY(grow(&log->arena, &log->modules, log->n_modules, sizeof *log->modules));
    log->modules[log->n_modules++] = module;
    return TALPA_OK;
}

static enum talpa_status read_record(void *user, const struct tp_json_value *json)
{
    struct tp_route_log *log = user;
    const char *kind;
    TP_TRY(tp_json_get_string(&kind, json, "kind"));
    if (!strcmp(kind, "row")) return read_row(log, json);
    if (!strcmp(kind, "sample")) return read_sample(log, json);
    return strcmp(kind, "experts") ? TALPA_OK : read_module(log, json);
}

enum talpa_status tp_route_log_read(struct tp_route_log *out, const char *path)
{
    struct tp_route_log log = {0};
    enum talpa_status status = tp_route_visit_lines(path, read_record, &log);
    if (status == TALPA_OK && !log.n_rows)
        status = tp_fail(TALPA_E_DATA,
                         "%s: found no row, expected a log of 'talpa score --route-log' (or of train with --eval-data, or eval)", path);
    if (status == TALPA_OK) *out = log;
    else tp_route_log_free(&log);
    return status;
}

void tp_route_log_free(struct tp_route_log *log)
{
    tp_arena_free(&log->arena);
    tp_map_free(&log->task_of);
    *log = (struct tp_route_log){0};
}
