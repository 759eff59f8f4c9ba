#include "rows.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/json.h"
#include "base/nearest.h"
#include "base/rng.h"
#include "base/status.h"
#include "eval/scoring.h"
#include "io/text_lines.h"

/* ---- metrics ---- */

static const char *const names[TALPA_N_METRICS] = {
    [TALPA_METRIC_AUTO] = "auto",
    [TALPA_METRIC_EXACT_NUMBER] = "exact_number",
    [TALPA_METRIC_GENERATED_LETTER] = "generated_letter",
    [TALPA_METRIC_OPTION_LETTER] = "option_letter",
    [TALPA_METRIC_F1_EM] = "f1_em",
    [TALPA_METRIC_UNIT_TESTS] = "unit_tests",
    [TALPA_METRIC_EXACT] = "exact",
    [TALPA_METRIC_TOKEN_NLL] = "token_nll",
    [TALPA_METRIC_PERPLEXITY] = "perplexity",
};

const char *talpa_metric_name(enum talpa_metric metric)
{
    return metric >= TALPA_METRIC_AUTO && metric < TALPA_N_METRICS ? names[metric] : "unknown";
}

enum talpa_status talpa_metric_parse(enum talpa_metric *out, const char *name)
{
    for (int i = 0; i < TALPA_N_METRICS; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum talpa_metric)i;
            return TALPA_OK;
        }
    char near[64] = "";
    const char *nearest = tp_nearest_word(name, names, TALPA_N_METRICS, 4);
    if (nearest) snprintf(near, sizeof near, "; did you mean '%s'?", nearest);
    return tp_fail(
        TALPA_E_ARGUMENT,
        "unknown metric '%s'%s Known: auto, exact_number, generated_letter, option_letter, f1_em, unit_tests, exact, token_nll, perplexity",
        name, *near ? near : ".");
}

/* ---- one row ---- */

static enum talpa_status get_text(const char **out, struct tp_arena *arena, const struct tp_json_value *row, const char *key)
{
    const char *text = NULL;
    TP_TRY(tp_json_get_string_or(&text, row, key, NULL));
    *out = NULL;
    if (text && !(*out = tp_arena_strdup(arena, text))) return TALPA_E_DEVICE;
    return TALPA_OK;
}

/* "answer" and "id" may be numbers as well. */
static enum talpa_status get_scalar(const char **out, struct tp_arena *arena, const struct tp_json_value *row, const char *key)
{
    const struct tp_json_value *value = tp_json_get(row, key);
    if (tp_json_type(value) != TP_JSON_NUMBER) return get_text(out, arena, row, key);
    double number;
    TP_TRY(tp_json_as_double(&number, value, key));
    *out = tp_arena_printf(arena, "%.15g", number);
    return *out ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status get_list(const char ***out, int *n, struct tp_arena *arena, const struct tp_json_value *row, const char *key)
{
    const struct tp_json_value *list = tp_json_get(row, key);
    *out = NULL;
    *n = 0;
    if (tp_json_type(list) == TP_JSON_NULL) return TALPA_OK;
    if (tp_json_type(list) != TP_JSON_ARRAY || !tp_json_length(list))
        return tp_fail(TALPA_E_DATA, "%s: found %s, expected an array of one string or more", key,
                       tp_json_type(list) == TP_JSON_ARRAY ? "an empty array" : tp_json_type_name(tp_json_type(list)));
    const char **items = tp_arena_array(arena, (size_t)tp_json_length(list), sizeof *items);
    if (!items) return TALPA_E_DEVICE;
    int i = 0;
    for (const struct tp_json_value *item = tp_json_first(list); item; item = tp_json_next(item), i++) {
        const char *text;
        TP_TRY(tp_json_as_string(&text, item, key));
        if (!(items[i] = tp_arena_strdup(arena, text))) return TALPA_E_DEVICE;
    }
    *out = items;
    *n = i;
    return TALPA_OK;
}

static enum talpa_status deduce(enum talpa_metric *out, const struct tp_json_value *json, const struct tp_eval_row *row)
{
    const char *named, *task;
    double number;
    TP_TRY(tp_json_get_string_or(&named, json, "metric", NULL));
    TP_TRY(tp_json_get_string_or(&task, json, "task", ""));
    if (named) {
        TP_TRY(talpa_metric_parse(out, named) == TALPA_OK ? TALPA_OK : tp_fail(TALPA_E_DATA, "metric: unknown name '%s'", named));
        if (*out != TALPA_METRIC_AUTO) return TALPA_OK;
    }
    if (!strcmp(task, "aqua")) *out = TALPA_METRIC_GENERATED_LETTER;
    else if (row->choices) *out = TALPA_METRIC_OPTION_LETTER;
    else if (row->answers) *out = TALPA_METRIC_F1_EM;
    else if (row->tests) *out = TALPA_METRIC_UNIT_TESTS;
    else if (row->answer)
        *out = row->completion && strstr(row->completion, "####") && tp_scoring_is_number(&number, row->answer) ? TALPA_METRIC_EXACT_NUMBER
                                                                                                              : TALPA_METRIC_EXACT;
    else if (row->text) *out = TALPA_METRIC_PERPLEXITY;
    else *out = TALPA_METRIC_TOKEN_NLL;
    return TALPA_OK;
}

static enum talpa_status missing(const char *field, enum talpa_metric metric, const char *expected)
{
    return tp_fail(TALPA_E_DATA, "field '%s' is missing: %s needs %s; name another with --metric", field, names[metric], expected);
}

static enum talpa_status check_fields(const struct tp_eval_row *row, enum talpa_metric metric)
{
    double number;
    if (metric == TALPA_METRIC_PERPLEXITY) return row->text ? TALPA_OK : missing("text", metric, "raw text");
    if (metric == TALPA_METRIC_TOKEN_NLL) return TALPA_OK; /* which kind of row it is shows when it is tokenised */
    if (!row->prompt) return missing("prompt", metric, "the text before the answer");
    switch (metric) {
    case TALPA_METRIC_F1_EM:
        return row->answers || row->answer ? TALPA_OK : missing("answers", metric, "an array of references (or 'answer')");
    case TALPA_METRIC_UNIT_TESTS:
        if (!row->tests) return missing("tests", metric, "an array of Python asserts");
        return row->completion ? TALPA_OK : missing("completion", metric, "it for token_nll");
    case TALPA_METRIC_OPTION_LETTER:
        if (!row->choices) return missing("choices", metric, "the options' texts");
        if (row->n_choices > 26) return tp_fail(TALPA_E_DATA, "choices: found %d, expected at most 26", row->n_choices);
        break;
    default:
        break;
    }
    if (!row->answer) return missing("answer", metric, "the right one");
    if (metric == TALPA_METRIC_EXACT_NUMBER && !tp_scoring_is_number(&number, row->answer))
        return tp_fail(TALPA_E_DATA, "answer: found \"%.40s\", expected a number", row->answer);
    const int n = metric == TALPA_METRIC_OPTION_LETTER ? row->n_choices : 5;
    if ((metric == TALPA_METRIC_OPTION_LETTER || metric == TALPA_METRIC_GENERATED_LETTER) &&
        (strlen(row->answer) != 1 || row->answer[0] < 'A' || row->answer[0] >= 'A' + n))
        return tp_fail(TALPA_E_DATA, "answer: found \"%.40s\", expected a letter A to %c", row->answer, 'A' + n - 1);
    return TALPA_OK;
}

static enum talpa_status join_tests(struct tp_eval_row *row, struct tp_arena *arena, const struct tp_json_value *json)
{
    const char **list;
    int n;
    TP_TRY(get_list(&list, &n, arena, json, "tests"));
    size_t n_bytes = 1;
    for (int i = 0; i < n; i++) n_bytes += strlen(list[i]) + 1;
    char *text = n ? tp_arena_alloc(arena, n_bytes) : NULL;
    if (n && !text) return TALPA_E_DEVICE;
    for (int i = 0, at = 0; i < n; i++) at += snprintf(text + at, n_bytes - (size_t)at, "%s\n", list[i]);
    row->tests = text;
    return TALPA_OK;
}

static enum talpa_status read_row(struct tp_eval_rows *rows, const struct tp_json_value *json, enum talpa_metric metric)
{
    struct tp_eval_row *row = &rows->rows[rows->n_rows];
    struct tp_arena *arena = &rows->arena;
    if (tp_json_type(json) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(json)));
    TP_TRY(get_scalar(&row->id, arena, json, "id"));
    if (!row->id && !(row->id = tp_arena_printf(arena, "%zu", rows->n_rows))) return TALPA_E_DEVICE;
    TP_TRY(get_text(&row->prompt, arena, json, "prompt"));
    TP_TRY(get_text(&row->completion, arena, json, "completion"));
    TP_TRY(get_scalar(&row->answer, arena, json, "answer"));
    TP_TRY(get_text(&row->text, arena, json, "text"));
    TP_TRY(get_text(&row->test_setup, arena, json, "test_setup"));
    TP_TRY(get_list(&row->choices, &row->n_choices, arena, json, "choices"));
    TP_TRY(get_list(&row->answers, &row->n_answers, arena, json, "answers"));
    TP_TRY(join_tests(row, arena, json));
    if (!rows->n_rows) TP_TRY(get_text(&rows->task, arena, json, "task"));
    row->difficulty = NAN;
    if (tp_json_type(tp_json_get(json, "task")) == TP_JSON_STRING) TP_TRY(get_text(&row->task, arena, json, "task"));
    if (tp_json_type(tp_json_get(json, "difficulty")) == TP_JSON_NUMBER) TP_TRY(tp_json_get_double(&row->difficulty, json, "difficulty"));
    enum talpa_metric own = metric;
    if (metric == TALPA_METRIC_AUTO) TP_TRY(deduce(&own, json, row));
    if (rows->n_rows && own != rows->metric)
        return tp_fail(TALPA_E_DATA, "the row's fields say %s, those of the first row %s: give one for all with --metric", names[own],
                       names[rows->metric]);
    rows->metric = own;
    return check_fields(row, own);
}

/* ---- files ---- */

static enum talpa_status read_rows(struct tp_eval_rows *rows, const char *path, enum talpa_metric metric, int64_t limit)
{
    TP_TRY(tp_file_map_open(&rows->file, path));
    if (!(rows->path = tp_arena_strdup(&rows->arena, path))) return TALPA_E_DEVICE;
    const char *text = (const char *)rows->file.bytes;
    const size_t n = rows->file.n_bytes;
    rows->digest = tp_hash_bytes(text, n);
    size_t n_lines = 1;
    for (size_t i = 0; i < n; i++) n_lines += text[i] == '\n';
    rows->rows = tp_arena_array(&rows->arena, n_lines, sizeof *rows->rows);
    if (!rows->rows) return TALPA_E_DEVICE;
    for (struct tp_text_lines line = tp_text_lines_of(text, n); (!limit || (int64_t)rows->n_rows < limit) && tp_text_lines_next(&line);) {
        char label[512];
        snprintf(label, sizeof label, "%.480s:%" PRIu64, path, line.number);
        rows->rows[rows->n_rows] = (struct tp_eval_row){.line = line.text, .n_line = line.n_bytes, .number = line.number};
        struct tp_json *json;
        TP_TRY(tp_json_parse(&json, line.text, line.n_bytes, label));
        const enum talpa_status status = read_row(rows, tp_json_root(json), metric);
        tp_json_free(json);
        TP_TRY(tp_context(status, "%s", label));
        rows->n_rows++;
    }
    return rows->n_rows ? TALPA_OK : tp_fail(TALPA_E_DATA, "%s: found no row, expected JSON objects, one per line", path);
}

enum talpa_status tp_eval_rows_open(struct tp_eval_rows *out, const char *path, enum talpa_metric metric, int64_t limit)
{
    struct tp_eval_rows rows = {.metric = metric};
    const enum talpa_status status = read_rows(&rows, path, metric, limit);
    if (status == TALPA_OK) *out = rows;
    else tp_eval_rows_close(&rows);
    return status;
}

static enum talpa_status read_text_file(struct tp_eval_rows *rows, const char *path)
{
    TP_TRY(tp_file_map_open(&rows->file, path));
    const size_t n = rows->file.n_bytes;
    if (!n) return tp_fail(TALPA_E_DATA, "%s: the file is empty, expected text", path);
    if (memchr(rows->file.bytes, 0, n)) return tp_fail(TALPA_E_DATA, "%s: found a zero byte, expected text", path);
    rows->path = tp_arena_strdup(&rows->arena, path);
    rows->rows = tp_arena_array(&rows->arena, 1, sizeof *rows->rows);
    if (!rows->path || !rows->rows) return TALPA_E_DEVICE;
    rows->digest = tp_hash_bytes(rows->file.bytes, n);
    rows->rows[0] =
        (struct tp_eval_row){.id = "text", .text = tp_arena_strndup(&rows->arena, (const char *)rows->file.bytes, n), .number = 1};
    rows->n_rows = 1;
    return rows->rows[0].text ? TALPA_OK : TALPA_E_DEVICE;
}

enum talpa_status tp_eval_rows_text(struct tp_eval_rows *out, const char *path)
{
    struct tp_eval_rows rows = {.metric = TALPA_METRIC_PERPLEXITY};
    const enum talpa_status status = read_text_file(&rows, path);
    if (status == TALPA_OK) *out = rows;
    else tp_eval_rows_close(&rows);
    return status;
}

void tp_eval_rows_close(struct tp_eval_rows *rows)
{
    tp_file_map_close(&rows->file);
    tp_arena_free(&rows->arena);
    *rows = (struct tp_eval_rows){.metric = TALPA_METRIC_AUTO};
}

/* ---- prompts ---- */

enum talpa_status tp_eval_rows_without_options(const char **out, struct tp_arena *arena, const char *path, const struct tp_eval_row *row)
{
    char *text = tp_arena_strdup(arena, row->prompt);
    if (!text) return TALPA_E_DEVICE;
    for (int i = row->n_choices - 1; i >= 0; i--) {
        char *line = tp_arena_printf(arena, "\n%c. %s\n", 'A' + i, row->choices[i]), *found = NULL;
        if (!line) return TALPA_E_DEVICE;
        /* The last one: the passage above may hold the same words. */
        for (char *at = strstr(text, line); at; at = strstr(at + 1, line)) found = at;
        if (!found)
            return tp_fail(TALPA_E_DATA,
                           "%s:%" PRIu64 ": prompt: found no line '%c. %.60s', expected every option on a line: leave out --by text", path,
                           row->number, 'A' + i, row->choices[i]);
        const size_t n = strlen(line) - 1;
        memmove(found, found + n, strlen(found + n) + 1);
    }
    *out = text;
    return TALPA_OK;
}

/* Numbers of the examples chosen: a partial Fisher-Yates shuffle whose draws are keyed by (seed, position). */
static void choose(size_t *chosen, int n, size_t *all, size_t n_rows, const struct talpa_eval_options *options)
{
    for (size_t i = 0; i < n_rows; i++) all[i] = i;
    for (int i = 0; i < n; i++) {
        uint32_t words[4];
        const uint32_t counter[4] = {(uint32_t)i, 0, 0, 0x66657773}, key[2] = {(uint32_t)options->seed, (uint32_t)(options->seed >> 32)};
        tp_rng_philox(words, counter, key);
        const size_t k = options->few_shot_random ? (size_t)i + (size_t)(((uint64_t)words[0] * (n_rows - (size_t)i)) >> 32) : (size_t)i;
        const size_t swapped = all[i];
        chosen[i] = all[k];
        all[k] = swapped;
    }
}

static enum talpa_status join(const char **out, struct tp_arena *arena, const struct tp_eval_rows *rows,
                              const struct talpa_eval_options *options, bool by_text)
{
    const int n = options->few_shot;
    size_t *all = tp_arena_array(arena, rows->n_rows, sizeof *all), *chosen = tp_arena_array(arena, (size_t)n, sizeof *chosen);
    const char *text = "";
    if (!all || !chosen) return TALPA_E_DEVICE;
    choose(chosen, n, all, rows->n_rows, options);
    for (int i = 0; i < n; i++) {
        const struct tp_eval_row *row = &rows->rows[chosen[i]];
        const char *prompt = row->prompt, *completion = row->completion, *blank = "";
        if (by_text) {
            TP_TRY(tp_eval_rows_without_options(&prompt, arena, rows->path, row));
            completion = row->choices[row->answer[0] - 'A'];
            blank = " ";
        }
        if (!prompt || !completion)
            return tp_fail(TALPA_E_DATA, "%s:%" PRIu64 ": field '%s' is missing: worked examples need prompt and completion", rows->path,
                           row->number, prompt ? "completion" : "prompt");
        if (!(text = tp_arena_printf(arena, "%s%s%s%s\n\n", text, prompt, blank, completion))) return TALPA_E_DEVICE;
    }
    *out = text;
    return TALPA_OK;
}

enum talpa_status tp_eval_rows_examples(const char **out, uint64_t *digest, struct tp_arena *arena,
                                        const struct talpa_eval_options *options, enum talpa_metric metric)
{
    struct tp_eval_rows rows;
    const bool by_text = metric == TALPA_METRIC_OPTION_LETTER && options->by == TALPA_OPTION_BY_TEXT;
    *out = "";
    *digest = 0;
    if (!options->few_shot) return TALPA_OK;
    if (!options->few_shot_data)
        return tp_fail(TALPA_E_ARGUMENT, "--few-shot %d needs --few-shot-data: a JSONL file of worked examples", options->few_shot);
    if (metric == TALPA_METRIC_PERPLEXITY) return tp_fail(TALPA_E_ARGUMENT, "--few-shot: perplexity has no prompts to put examples before");
    /* Examples need no more than prompt and completion, but options where those are rewritten. */
    TP_TRY(tp_context(tp_eval_rows_open(&rows, options->few_shot_data, by_text ? metric : TALPA_METRIC_TOKEN_NLL, 0), "--few-shot-data"));
    enum talpa_status status = TALPA_OK;
    if ((size_t)options->few_shot > rows.n_rows)
        status = tp_fail(TALPA_E_DATA, "--few-shot-data %s: found %zu rows, expected at least --few-shot %d", options->few_shot_data,
                         rows.n_rows, options->few_shot);
    if (status == TALPA_OK) status = join(out, arena, &rows, options, by_text);
    *digest = rows.digest;
    tp_eval_rows_close(&rows);
    return status;
}
