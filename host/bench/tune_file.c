#include "tune_file.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/status.h"
#include "io/atomic_file.h"
#include "io/folder.h"

enum { PATH_BYTES = 4096, PATTERN_BYTES = 300 };

static enum talpa_status resolve(char out[PATH_BYTES], const char *path)
{
    if (path && snprintf(out, PATH_BYTES, "%s", path) >= PATH_BYTES) return tp_fail(TALPA_E_ARGUMENT, "the tuning file's path is too long");
    if (!path && !tp_tuning_user_file(out, PATH_BYTES)) return tp_fail(TALPA_E_ARGUMENT, "the tuning file's path is too long");
    if (!out[0])
        return tp_fail(TALPA_E_ARGUMENT, "no place for the tuning file: TALPA_TUNING is 'none', or neither it nor XDG_CACHE_HOME nor HOME is set; "
                                         "name a file");
    return TALPA_OK;
}

/* Only the folders of the user's own cache are made; a named file's folder has to be there. */
static enum talpa_status make_folders(const char *path)
{
    char folder[PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *p = strchr(folder + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = '\0';
        if (!tp_folder_is(folder)) TP_TRY(tp_folder_create(folder));
        *p = '/';
    }
    return TALPA_OK;
}

/* NULL if there is no file yet. */
static enum talpa_status read_old(struct tp_json **out, const char *path)
{
    struct tp_json *json = NULL;
    struct tp_tuning *scratch;
    *out = NULL;
    if (access(path, F_OK) != 0) return TALPA_OK;
    TP_TRY(tp_context(tp_json_parse_file(&json, path), "the present tuning file; remove it to start anew"));
    const struct talpa_device_caps nobody = {0};
    enum talpa_status status = tp_tuning_create_default(&scratch);
    if (status == TALPA_OK) {
        status = tp_tuning_apply(scratch, json, &nobody, "user", path);
        tp_tuning_free(scratch);
    }
    if (status == TALPA_OK) *out = json;
    else tp_json_free(json);
    return tp_context(status, "the present tuning file; remove it to start anew");
}

enum talpa_status tp_tune_file_check(const char *path)
{
    char name[PATH_BYTES];
    struct tp_json *old;
    TP_TRY(resolve(name, path));
    if (!path) TP_TRY(make_folders(name));
    TP_TRY(read_old(&old, name));
    tp_json_free(old);
    return TALPA_OK;
}

/* The text as a pattern of fnmatch that matches it alone. */
static void escape(char out[PATTERN_BYTES], const char *text)
{
    size_t n = 0;
    for (; *text && n + 2 < PATTERN_BYTES; text++) {
        if (strchr("*?[\\", *text)) out[n++] = '\\';
        out[n++] = *text;
    }
    out[n] = '\0';
}

struct entry {
    char platform[PATTERN_BYTES], name[PATTERN_BYTES], driver[PATTERN_BYTES];
    const char *features, *without;
};

static bool is_same(const struct tp_json_value *value, const struct entry *entry)
{
    const char *const keys[] = {"platform", "name", "driver", "features", "without"};
    const char *const texts[] = {entry->platform, entry->name, entry->driver, entry->features, entry->without};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *found;
        if (tp_json_get_string_or(&found, value, keys[i], "") != TALPA_OK) {
            tp_status_clear();
            return false;
        }
        if (strcmp(found, texts[i])) return false;
    }
    return true;
}

static void write_entry(struct tp_json_writer *writer, const struct entry *entry, const struct tp_tuning *tuning, const bool *wanted)
{
    char date[16] = "";
    const time_t now = time(NULL);
    struct tm day;
    if (gmtime_r(&now, &day)) strftime(date, sizeof date, "%Y-%m-%d", &day);
    tp_json_write_object_begin(writer);
    tp_json_write_string_member(writer, "platform", entry->platform);
    tp_json_write_string_member(writer, "name", entry->name);
    tp_json_write_string_member(writer, "driver", entry->driver);
    tp_json_write_string_member(writer, "features", entry->features);
    tp_json_write_string_member(writer, "without", entry->without);
    tp_json_write_string_member(writer, "date", date);
    tp_json_write_key(writer, "values");
    tp_json_write_object_begin(writer);
    int n;
    const struct tp_tunable *list = tp_tuning_list(tuning, &n);
    const char *open = NULL; /* parameters of one kernel stand side by side in the list */
    for (int i = 0; i < n; i++) {
        if (!wanted[i]) continue;
        if (!open || strcmp(open, list[i].path)) {
            if (open) tp_json_write_object_end(writer);
            tp_json_write_key(writer, list[i].path);
            tp_json_write_object_begin(writer);
            open = list[i].path;
        }
        tp_json_write_string_member(writer, list[i].name, list[i].value);
    }
    if (open) tp_json_write_object_end(writer);
    tp_json_write_object_end(writer);
    tp_json_write_object_end(writer);
}

enum talpa_status tp_tune_file_write(const char *path, const struct talpa_device_caps *caps, const struct tp_tuning *tuning, const bool *wanted)
{
    char name[PATH_BYTES];
    struct tp_json *old;
    struct tp_json_writer *writer;
    struct entry entry = {.features = caps->cpu_features, .without = caps->cpu_features[0] && !strstr(caps->cpu_features, "avx512f") ? "avx512f" : ""};
    escape(entry.platform, caps->platform);
    escape(entry.name, caps->name);
    escape(entry.driver, caps->driver_version);
    TP_TRY(resolve(name, path));
    TP_TRY(read_old(&old, name));
    enum talpa_status status = tp_json_writer_create(&writer, 1);
    if (status == TALPA_OK) {
        tp_json_write_object_begin(writer);
        tp_json_write_int_member(writer, "talpa_tuning", 1);
        tp_json_write_key(writer, "devices");
        tp_json_write_array_begin(writer);
        write_entry(writer, &entry, tuning, wanted);
        const struct tp_json_value *devices = old ? tp_json_get(tp_json_root(old), "devices") : NULL;
        for (const struct tp_json_value *value = tp_json_first(devices); value; value = tp_json_next(value))
            if (!is_same(value, &entry)) tp_json_write_value(writer, value);
        tp_json_write_array_end(writer);
        tp_json_write_object_end(writer);
        status = tp_atomic_file_save_json(name, writer);
        tp_json_writer_free(writer);
    }
    tp_json_free(old);
    return status;
}
