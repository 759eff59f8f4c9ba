#include "tuning.h"

#include <ctype.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/status.h"
#include "embedded.h"
#include "opencl.h"

enum { MAX_PATH_BYTES = 4096, FORMAT_VERSION = 1 };

struct tp_tuning {
    struct tp_tunable *item;
    int n;
};

/* ---- declarations ---- */

static bool is_word_byte(char c) { return isalnum((unsigned char)c) || c == '_' || c == '.'; }

/* Next word of a line; false at the line's end, at a byte that belongs to no word, or if the word is too long. */
static bool next_word(char out[TP_TUNING_WORD_BYTES], const char **at)
{
    const char *p = *at;
    while (*p == ' ') ++p;
    size_t n = 0;
    while (is_word_byte(p[n])) ++n;
    if (n == 0 || n >= TP_TUNING_WORD_BYTES) return false;
    memcpy(out, p, n);
    out[n] = '\0';
    *at = p + n;
    return true;
}

/* `at` points behind "tune:". */
static bool parse_declaration(struct tp_tunable *out, const char *at)
{
    if (!next_word(out->name, &at) || !next_word(out->initial, &at)) return false;
    while (*at == ' ') ++at;
    if (*at++ != '|') return false;
    while (out->n_choices < TP_TUNING_MAX_CHOICES && next_word(out->choices[out->n_choices], &at)) ++out->n_choices;
    while (*at == ' ') ++at;
    return out->n_choices > 0 && (*at == '\n' || *at == '\0' || !strncmp(at, "*/", 2));
}

/* A declaration begins its comment line: only blanks, '*' and '/' may come before it. */
static bool begins_line(const char *text, const char *at)
{
    while (at > text && at[-1] != '\n') {
        --at;
        if (*at != ' ' && *at != '*' && *at != '/') return false;
    }
    return true;
}

static enum talpa_status add_declarations(struct tp_tuning *tuning, const char *path, const char *text)
{
    for (const char *at = strstr(text, "tune:"); at; at = strstr(at + 1, "tune:")) {
        if (!begins_line(text, at)) continue;
        struct tp_tunable tunable = {.origin = "default"};
        if (!parse_declaration(&tunable, at + 5) || strlen(path) >= sizeof tunable.path)
            return tp_fail(TALPA_E_INTERNAL, "%s: expected 'tune: NAME default | choices', found '%.60s'", path, at);
        snprintf(tunable.path, sizeof tunable.path, "%s", path);
        memcpy(tunable.value, tunable.initial, sizeof tunable.value);
        struct tp_tunable *grown = realloc(tuning->item, (size_t)(tuning->n + 1) * sizeof *grown);
        if (!grown) return tp_fail_memory("tuning", (size_t)(tuning->n + 1) * sizeof *grown);
        tuning->item = grown;
        tuning->item[tuning->n++] = tunable;
    }
    return TALPA_OK;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && !strcmp(text + n - n_end, end);
}

enum talpa_status tp_tuning_create_default(struct tp_tuning **out)
{
    struct tp_tuning *tuning = calloc(1, sizeof *tuning);
    if (!tuning) return tp_fail_memory("tuning", sizeof *tuning);
    enum talpa_status status = TALPA_OK;
    for (size_t i = 0; i < tp_n_embedded_kernels && status == TALPA_OK; i++) {
        const char *text;
        char *owned;
        if (!ends_with(tp_embedded_kernels[i].path, ".cl")) continue;
        status = tp_program_text(&text, &owned, tp_embedded_kernels[i].path);
        if (status != TALPA_OK) break;
        status = add_declarations(tuning, tp_embedded_kernels[i].path, text);
        free(owned);
    }
    if (status == TALPA_OK) *out = tuning;
    else tp_tuning_free(tuning);
    return status;
}

void tp_tuning_free(struct tp_tuning *tuning)
{
    if (!tuning) return;
    free(tuning->item);
    free(tuning);
}

enum talpa_status tp_tuning_copy(struct tp_tuning **out, const struct tp_tuning *tuning)
{
    struct tp_tuning *copy = calloc(1, sizeof *copy);
    struct tp_tunable *item = malloc(((size_t)tuning->n + 1) * sizeof *item);
    if (!copy || !item) {
        free(copy);
        free(item);
        return tp_fail_memory("tuning", ((size_t)tuning->n + 1) * sizeof *item);
    }
    if (tuning->n) memcpy(item, tuning->item, (size_t)tuning->n * sizeof *item);
    *copy = (struct tp_tuning){item, tuning->n};
    *out = copy;
    return TALPA_OK;
}

/* ---- values ---- */

static struct tp_tunable *find(const struct tp_tuning *tuning, const char *path, const char *name)
{
    for (int i = 0; tuning && i < tuning->n; i++)
        if (!strcmp(tuning->item[i].name, name) && !strcmp(tuning->item[i].path, path)) return &tuning->item[i];
    return NULL;
}

static bool is_choice(const struct tp_tunable *tunable, const char *value)
{
    if (!strcmp(tunable->initial, value)) return true;
    for (int i = 0; i < tunable->n_choices; i++)
        if (!strcmp(tunable->choices[i], value)) return true;
    return false;
}

const char *tp_tuning_word(const struct tp_tuning *tuning, const char *path, const char *name)
{
    const struct tp_tunable *tunable = find(tuning, path, name);
    return tunable ? tunable->value : "";
}

int64_t tp_tuning_number(const struct tp_tuning *tuning, const char *path, const char *name, int64_t fallback)
{
    const char *word = tp_tuning_word(tuning, path, name);
    char *end;
    const long long value = strtoll(word, &end, 10);
    return end != word && !*end ? value : fallback;
}

enum talpa_status tp_tuning_set(struct tp_tuning *tuning, const char *path, const char *name, const char *value)
{
    struct tp_tunable *tunable = find(tuning, path, name);
    if (!tunable) return tp_fail(TALPA_E_ARGUMENT, "%s declares no parameter %s", path, name);
    if (!is_choice(tunable, value))
        return tp_fail(TALPA_E_ARGUMENT, "%s: %s is '%s', expected %s or one of its choices (see the head of the file)", path, name, value,
                       tunable->initial);
    snprintf(tunable->value, sizeof tunable->value, "%s", value);
    tunable->origin = "set";
    return TALPA_OK;
}

const struct tp_tunable *tp_tuning_list(const struct tp_tuning *tuning, int *n)
{
    *n = tuning->n;
    return tuning->item;
}

/* ---- files ---- */

static bool has_flag(const char *list, const char *flag, size_t n)
{
    for (const char *p = list; *p;) {
        const size_t length = strcspn(p, " ");
        if (length == n && !memcmp(p, flag, n)) return true;
        p += length;
        while (*p == ' ') ++p;
    }
    return false;
}

/* Whether the record has all (or, with `wanted` false, none) of the flags. */
static bool flags_agree(const char *flags, const char *record, bool wanted)
{
    for (const char *p = flags; *p;) {
        const size_t length = strcspn(p, " ");
        if (length && has_flag(record, p, length) != wanted) return false;
        p += length;
        while (*p == ' ') ++p;
    }
    return true;
}

static enum talpa_status matches(bool *out, const struct tp_json_value *entry, const struct talpa_device_caps *caps)
{
    const struct {
        const char *key, *value;
    } patterns[] = {{"platform", caps->platform}, {"name", caps->name}, {"driver", caps->driver_version}};
    bool all = true;
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        const char *pattern;
        TP_TRY(tp_json_get_string_or(&pattern, entry, patterns[i].key, "*"));
        all = all && fnmatch(pattern, patterns[i].value, 0) == 0;
    }
    const char *features, *without;
    TP_TRY(tp_json_get_string_or(&features, entry, "features", ""));
    TP_TRY(tp_json_get_string_or(&without, entry, "without", ""));
    *out = all && flags_agree(features, caps->cpu_features, true) && flags_agree(without, caps->cpu_features, false);
    return TALPA_OK;
}

static enum talpa_status apply_values(struct tp_tuning *tuning, const struct tp_json_value *values, const char *origin, const char *label)
{
    if (tp_json_type(values) != TP_JSON_OBJECT) return tp_fail(TALPA_E_DATA, "'values' is %s, expected an object", tp_json_type_name(tp_json_type(values)));
    for (const struct tp_json_value *file = tp_json_first(values); file; file = tp_json_next(file)) {
        if (tp_json_type(file) != TP_JSON_OBJECT)
            return tp_fail(TALPA_E_DATA, "'%s' is %s, expected an object", tp_json_key(file), tp_json_type_name(tp_json_type(file)));
        for (const struct tp_json_value *value = tp_json_first(file); value; value = tp_json_next(value)) {
            const char *word, *path = tp_json_key(file), *name = tp_json_key(value);
            TP_TRY(tp_json_as_string(&word, value, name));
            struct tp_tunable *tunable = find(tuning, path, name);
            if (!tunable) {
                tp_log(TALPA_LOG_WARN, "%s: %s of %s is passed over: the kernel declares no such parameter (tune again)", label, name, path);
            } else if (!is_choice(tunable, word)) {
                tp_log(TALPA_LOG_WARN, "%s: %s of %s is passed over: '%s' is not among the choices (tune again)", label, name, path, word);
            } else {
                snprintf(tunable->value, sizeof tunable->value, "%s", word);
                tunable->origin = origin;
            }
        }
    }
    return TALPA_OK;
}

static enum talpa_status apply(struct tp_tuning *tuning, const struct tp_json_value *root, const struct talpa_device_caps *caps,
                               const char *origin, const char *label)
{
    int64_t version;
    if (tp_json_type(root) != TP_JSON_OBJECT) return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(root)));
    TP_TRY(tp_json_get_int(&version, root, "talpa_tuning"));
    if (version != FORMAT_VERSION)
        return tp_fail(TALPA_E_DATA, "'talpa_tuning' is %lld, expected %d: the file is of another version, tune again", (long long)version, FORMAT_VERSION);
    const struct tp_json_value *devices = tp_json_get(root, "devices");
    if (tp_json_type(devices) != TP_JSON_ARRAY)
        return tp_fail(TALPA_E_DATA, "'devices' is %s, expected an array", tp_json_type_name(tp_json_type(devices)));
    for (const struct tp_json_value *entry = tp_json_first(devices); entry; entry = tp_json_next(entry)) {
        bool fits;
        if (tp_json_type(entry) != TP_JSON_OBJECT)
            return tp_fail(TALPA_E_DATA, "an element of 'devices' is %s, expected an object", tp_json_type_name(tp_json_type(entry)));
        TP_TRY(matches(&fits, entry, caps));
        if (fits) return apply_values(tuning, tp_json_get(entry, "values"), origin, label);
    }
    return TALPA_OK;
}

enum talpa_status tp_tuning_apply(struct tp_tuning *tuning, const struct tp_json *json, const struct talpa_device_caps *caps,
                                  const char *origin, const char *label)
{
    return tp_context(apply(tuning, tp_json_root(json), caps, origin, label), "%s", label);
}

bool tp_tuning_user_file(char *out, size_t n_room)
{
    const char *own = getenv("TALPA_TUNING"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = 0;
    out[0] = '\0';
    if (own && *own) {
        if (strcmp(own, "none")) n = snprintf(out, n_room, "%s", own);
    } else if (xdg && *xdg == '/') {
        n = snprintf(out, n_room, "%s/talpa/tuning.json", xdg);
    } else if (home && *home == '/') {
        n = snprintf(out, n_room, "%s/.cache/talpa/tuning.json", home);
    }
    return n >= 0 && (size_t)n < n_room;
}

static enum talpa_status apply_shipped(struct tp_tuning *tuning, const struct talpa_device_caps *caps)
{
    for (size_t i = 0; i < tp_n_embedded_kernels; i++) {
        const struct tp_embedded_kernel *file = &tp_embedded_kernels[i];
        struct tp_json *json;
        if (!ends_with(file->path, ".json")) continue;
        TP_TRY(tp_json_parse(&json, file->text, file->n_bytes, file->path));
        const enum talpa_status status = tp_tuning_apply(tuning, json, caps, "shipped", file->path);
        tp_json_free(json);
        TP_TRY(status);
    }
    return TALPA_OK;
}

static enum talpa_status apply_user(struct tp_tuning *tuning, const struct talpa_device_caps *caps)
{
    const char *own = getenv("TALPA_TUNING");
    const bool asked = own && *own;
    char path[MAX_PATH_BYTES];
    if (!tp_tuning_user_file(path, sizeof path)) return tp_fail(TALPA_E_ARGUMENT, "TALPA_TUNING: the path has more than %d bytes", MAX_PATH_BYTES - 1);
    if (!path[0] || (!asked && access(path, F_OK) != 0)) return TALPA_OK;
    struct tp_json *json = NULL;
    enum talpa_status status = tp_json_parse_file(&json, path);
    struct tp_tuning *tuned = NULL; /* a file that turns out damaged half-way changes nothing */
    if (status == TALPA_OK) status = tp_tuning_copy(&tuned, tuning);
    if (status == TALPA_OK) status = tp_tuning_apply(tuned, json, caps, "user", path);
    if (status == TALPA_OK) memcpy(tuning->item, tuned->item, (size_t)tuning->n * sizeof *tuning->item);
    tp_tuning_free(tuned);
    tp_json_free(json);
    if (status == TALPA_OK || asked)
        return tp_context(status, "TALPA_TUNING (none: no tuning file; 'talpa tune' writes one)");
    tp_log(TALPA_LOG_WARN, "the tuning file is passed over: %s ('talpa tune' writes a new one)", talpa_error_message());
    tp_status_clear();
    return TALPA_OK;
}

enum talpa_status tp_tuning_create(struct tp_tuning **out, const struct talpa_device_caps *caps)
{
    const char *own = getenv("TALPA_TUNING");
    struct tp_tuning *tuning;
    TP_TRY(tp_tuning_create_default(&tuning));
    enum talpa_status status = TALPA_OK;
    if (!own || strcmp(own, "none")) {
        status = apply_shipped(tuning, caps);
        if (status == TALPA_OK) status = apply_user(tuning, caps);
    }
    if (status == TALPA_OK) *out = tuning;
    else tp_tuning_free(tuning);
    return status;
}
