#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "io/atomic_file.h"
#include "io/file_map.h"

/* ---- rows as text ---- */

static enum talpa_status read_row(struct tp_journal_row *out, const struct tp_json_value *json)
{
    struct tp_journal_row row = {0};
    TP_TRY(tp_json_get_string(&row.id, json, "id"));
    TP_TRY(tp_json_get_string_or(&row.prediction, json, "prediction", NULL));
    TP_TRY(tp_json_get_string_or(&row.answer, json, "answer", NULL));
    TP_TRY(tp_json_get_string_or(&row.output, json, "output", NULL));
    row.has_correct = tp_json_type(tp_json_get(json, "correct")) == TP_JSON_BOOL;
    TP_TRY(tp_json_get_bool_or(&row.correct, json, "correct", false));
    TP_TRY(tp_json_get_double(&row.value, json, "value"));
    TP_TRY(tp_json_get_double(&row.weight, json, "weight"));
    row.has_em = tp_json_get(json, "em") != NULL;
    TP_TRY(tp_json_get_bool_or(&row.em, json, "em", false));
    TP_TRY(tp_json_get_bool_or(&row.too_long, json, "too_long", false));
    *out = row;
    return TALPA_OK;
}

static void write_row(struct tp_json_writer *json, const struct tp_journal_row *row)
{
    tp_json_writer_reset(json);
    tp_json_write_object_begin(json);
    tp_json_write_string_member(json, "id", row->id);
    tp_json_write_string_member(json, "prediction", row->prediction);
    tp_json_write_string_member(json, "answer", row->answer);
    tp_json_write_key(json, "correct");
    if (row->has_correct) tp_json_write_bool(json, row->correct);
    else tp_json_write_null(json);
    tp_json_write_real_member(json, "value", row->value);
    tp_json_write_real_member(json, "weight", row->weight);
    if (row->has_em) tp_json_write_bool_member(json, "em", row->em);
    if (row->too_long) tp_json_write_bool_member(json, "too_long", true);
    if (row->output) tp_json_write_string_member(json, "output", row->output);
    tp_json_write_object_end(json);
}

/* ---- inputs ---- */

void tp_journal_write_inputs(struct tp_json_writer *json, const struct tp_journal_inputs *inputs)
{
    tp_json_write_key(json, "inputs");
    tp_json_write_object_begin(json);
    for (int i = 0; i < inputs->n; i++) tp_json_write_string_member(json, inputs->list[i].name, inputs->list[i].value);
    tp_json_write_object_end(json);
}

static enum talpa_status compare(const struct tp_journal_inputs *inputs, const struct tp_json_value *found, const char *path)
{
    for (int i = 0; i < inputs->n; i++) {
        const struct tp_journal_input *input = &inputs->list[i];
        const char *value;
        TP_TRY(tp_context(tp_json_get_string_or(&value, found, input->name, "nothing"), "%s", path));
        if (strcmp(value, input->value))
            return tp_fail(TALPA_E_DATA, "%s: results of another run: %s: found %s, expected %s: choose another output or give --overwrite",
                           path, input->name, value, input->value);
    }
    return TALPA_OK;
}

/* ---- reading what is there ---- */

/* Visits the complete lines of `bytes`; *n_whole gets the bytes that they take. A line that was cut short by the end of a run is left out.
 */
static enum talpa_status visit_lines(size_t *n_whole, const char *bytes, size_t n_bytes, size_t start, const char *path,
                                     tp_journal_visit *visit, void *user)
{
    while (start < n_bytes) {
        const char *newline = memchr(bytes + start, '\n', n_bytes - start);
        if (!newline) break;
        const size_t end = (size_t)(newline - bytes);
        struct tp_json *json;
        TP_TRY(tp_json_parse(&json, bytes + start, end - start, path));
        struct tp_journal_row row;
        enum talpa_status status = tp_context(read_row(&row, tp_json_root(json)), "%s", path);
        if (status == TALPA_OK) status = visit(user, &row);
        tp_json_free(json);
        TP_TRY(status);
        start = end + 1;
    }
    *n_whole = start;
    return TALPA_OK;
}

/* *n_whole is 0 if the file holds nothing of use (no header line). */
static enum talpa_status resume(size_t *n_whole, const struct tp_journal *j, const struct tp_journal_inputs *inputs, bool overwrite,
                                tp_journal_visit *visit, void *user)
{
    struct tp_file_map map;
    *n_whole = 0;
    TP_TRY(tp_file_map_open(&map, j->partial));
    const char *bytes = (const char *)map.bytes, *newline = memchr(bytes, '\n', map.n_bytes);
    struct tp_json *header = NULL;
    enum talpa_status status = TALPA_OK;
    if (newline) {
        status = tp_json_parse(&header, bytes, (size_t)(newline - bytes), j->partial);
        if (status == TALPA_OK) status = compare(inputs, tp_json_get(tp_json_root(header), "inputs"), j->partial);
        if (status == TALPA_OK)
            status = visit_lines(n_whole, bytes, map.n_bytes, (size_t)(newline - bytes) + 1, j->partial, visit, user);
        else if (status == TALPA_E_DATA && overwrite)
            status = TALPA_OK;
    }
    tp_json_free(header);
    tp_file_map_close(&map);
    return status;
}

static bool exists(const char *path)
{
    struct stat info;
    return path && stat(path, &info) == 0;
}

static enum talpa_status complete(struct tp_journal *j, const struct tp_journal_inputs *inputs, bool overwrite, tp_journal_visit *visit,
                                  void *user)
{
    struct tp_json *json;
    TP_TRY(tp_json_parse_file(&json, j->results));
    enum talpa_status status = compare(inputs, tp_json_get(tp_json_root(json), "inputs"), j->results);
    tp_json_free(json);
    if (status == TALPA_E_DATA && overwrite) return TALPA_OK;
    TP_TRY(status);
    struct tp_file_map map;
    size_t n_whole;
    TP_TRY(tp_file_map_open(&map, j->path));
    status = visit_lines(&n_whole, (const char *)map.bytes, map.n_bytes, 0, j->path, visit, user);
    tp_file_map_close(&map);
    j->is_complete = status == TALPA_OK;
    return status;
}

static enum talpa_status write_line(struct tp_journal *j)
{
    const char *text;
    size_t n;
    TP_TRY(tp_json_writer_text(&text, &n, j->json));
    if (fwrite(text, 1, n, j->file) != n || fputc('\n', j->file) == EOF || fflush(j->file))
        return tp_fail(TALPA_E_IO, "%s: %s", j->partial, strerror(errno));
    return TALPA_OK;
}

static enum talpa_status prepare(struct tp_journal *j, const char *path, const char *results, const struct tp_journal_inputs *inputs,
                                 bool overwrite, tp_journal_visit *visit, void *user)
{
    j->path = tp_arena_strdup(&j->arena, path);
    j->partial = tp_arena_printf(&j->arena, "%s.partial", path);
    if (results) j->results = tp_arena_strdup(&j->arena, results);
    if (!j->path || !j->partial || (results && !j->results)) return TALPA_E_DEVICE;
    TP_TRY(tp_json_writer_create(&j->json, 0));
    if (!exists(j->partial) && exists(j->results) && exists(j->path)) {
        TP_TRY(complete(j, inputs, overwrite, visit, user));
        if (j->is_complete) return TALPA_OK;
    }
    const int fd = open(j->partial, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return tp_fail(TALPA_E_CREATE, "%s: cannot be created: %s: choose another output", j->partial, strerror(errno));
    j->file = fdopen(fd, "r+");
    if (!j->file) {
        close(fd);
        return tp_fail(TALPA_E_CREATE, "%s: %s", j->partial, strerror(errno));
    }
    if (flock(fd, LOCK_EX | LOCK_NB))
        return tp_fail(TALPA_E_CREATE, "%s: another run is writing here: wait for it or choose another output", j->partial);
    size_t n_whole;
    TP_TRY(resume(&n_whole, j, inputs, overwrite, visit, user));
    if (ftruncate(fd, (off_t)n_whole) || fseek(j->file, 0, SEEK_END)) return tp_fail(TALPA_E_IO, "%s: %s", j->partial, strerror(errno));
    if (n_whole) return TALPA_OK;
    tp_json_write_object_begin(j->json);
    tp_journal_write_inputs(j->json, inputs);
    tp_json_write_object_end(j->json);
    return write_line(j);
}

enum talpa_status tp_journal_open(struct tp_journal *out, const char *path, const char *results, const struct tp_journal_inputs *inputs,
                                  bool overwrite, tp_journal_visit *visit, void *user)
{
    struct tp_journal journal = {0};
    const enum talpa_status status = path ? prepare(&journal, path, results, inputs, overwrite, visit, user) : TALPA_OK;
    if (status == TALPA_OK) *out = journal;
    else tp_journal_close(&journal);
    return status;
}

enum talpa_status tp_journal_row(struct tp_journal *journal, const struct tp_journal_row *row)
{
    if (!journal->file) return TALPA_OK;
    write_row(journal->json, row);
    return write_line(journal);
}

enum talpa_status tp_journal_commit(struct tp_journal *j, const char *text, size_t n_bytes)
{
    if (j->file) {
        struct tp_file_map map;
        TP_TRY(tp_file_map_open(&map, j->partial));
        const char *newline = memchr(map.bytes, '\n', map.n_bytes);
        const size_t header = newline ? (size_t)(newline - (const char *)map.bytes) + 1 : 0;
        const enum talpa_status status = tp_atomic_file_save(j->path, map.bytes + header, map.n_bytes - header);
        tp_file_map_close(&map);
        TP_TRY(status);
    }
    if (j->results) TP_TRY(tp_atomic_file_save(j->results, text, n_bytes));
    /* Last, so that a run killed before this line finds all its rows again. */
    if (j->file && unlink(j->partial)) return tp_fail(TALPA_E_IO, "%s: cannot be removed: %s", j->partial, strerror(errno));
    return TALPA_OK;
}

void tp_journal_close(struct tp_journal *journal)
{
    if (journal->file) fclose(journal->file);
    tp_json_writer_free(journal->json);
    tp_arena_free(&journal->arena);
    *journal = (struct tp_journal){0};
}

static enum talpa_status push(void *user, const struct tp_journal_row *row)
{
    return tp_judged_push(user, row->value, row->weight, row->id);
}

enum talpa_status tp_journal_read(struct tp_judged *out, const char *path)
{
    struct tp_judged judged = {0};
    struct tp_file_map map;
    size_t n_whole;
    TP_TRY(tp_file_map_open(&map, path));
    const enum talpa_status status = visit_lines(&n_whole, (const char *)map.bytes, map.n_bytes, 0, path, push, &judged);
    tp_file_map_close(&map);
    if (status == TALPA_OK) *out = judged;
    else tp_judged_free(&judged);
    return status;
}
