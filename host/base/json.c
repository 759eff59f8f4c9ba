#include "json.h"

#include <cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "map.h"
#include "status.h"
#include "utf8.h"

enum { FEW_MEMBERS = 8 };

static const double exact_limit = 9007199254740992.0; /* 2^53 */

struct tp_json {
    cJSON *root;
};

/* A value handle is a cJSON node under another name. */
static const cJSON *node(const struct tp_json_value *value) { return (const cJSON *)value; }
static const struct tp_json_value *handle(const cJSON *item) { return (const struct tp_json_value *)item; }

static int line_of(const char *text, size_t offset)
{
    int line = 1;
    for (size_t i = 0; i < offset; i++) line += text[i] == '\n';
    return line;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/* Steps over one character or escape of a string at *i. NULL, or what is wrong with it. */
static const char *scan_string_character(size_t *i, const char *text, size_t n_bytes)
{
    uint32_t code_point;
    if (text[*i] == '\\') {
        if (n_bytes - *i >= 6 && memcmp(text + *i, "\\u0000", 6) == 0) return "the escape \\u0000, which no string here may hold";
        *i += *i + 1 < n_bytes ? 2 : 1;
        return NULL;
    }
    const size_t n = tp_utf8_decode(&code_point, text + *i, n_bytes - *i);
    if (n == 0) return "bytes that are not UTF-8";
    if (code_point < 0x20) return "a control character inside a string (is a closing quote missing?)";
    *i += n;
    return NULL;
}

/* Checks before cJSON sees the text: what it would let through, and the nesting on which its recursion depends. */
static enum talpa_status scan(const char *text, size_t n_bytes, const char *label)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n_bytes;) {
        const char *problem = NULL;
        const size_t start = i;
        if (in_string && text[i] != '"') {
            problem = scan_string_character(&i, text, n_bytes);
        } else {
            const char c = text[i++];
            if (c == '"') in_string = !in_string;
            if (c == '{' || c == '[') depth++;
            if (c == '}' || c == ']') depth--;
            if (depth > TP_JSON_MAX_DEPTH) problem = "nesting deeper than 64 levels";
            if ((unsigned char)c < 0x20 && !is_space(c)) problem = "a control character";
            if ((unsigned char)c >= 0x7f) problem = "a character that is not ASCII outside a string";
        }
        if (problem) return tp_fail(TALPA_E_DATA, "%s: line %d: found %s", label, line_of(text, start), problem);
    }
    if (in_string) return tp_fail(TALPA_E_DATA, "%s: line %d: the text ends inside a string", label, line_of(text, n_bytes));
    return TALPA_OK;
}

static enum talpa_status refuse_duplicates(const cJSON *item, const char *label);

static enum talpa_status refuse_duplicate_keys(const cJSON *object, const char *label)
{
    struct tp_map seen = {0};
    enum talpa_status status = TALPA_OK;
    const cJSON *member, *earlier, *duplicate = NULL;
    if (cJSON_GetArraySize(object) <= FEW_MEMBERS) {
        cJSON_ArrayForEach(member, object) for (earlier = object->child; earlier != member;
                                                earlier = earlier->next) if (strcmp(earlier->string, member->string) == 0) duplicate =
            member;
    } else {
        int64_t unused;
        cJSON_ArrayForEach(member, object)
        {
            if (tp_map_get_string(&unused, &seen, member->string)) duplicate = member;
            TP_TRY_GOTO(status, tp_map_put_string(&seen, member->string, 0), out);
        }
    }
    if (duplicate) status = tp_fail(TALPA_E_DATA, "%s: key \"%.200s\" given twice in one object", label, duplicate->string);
out:
    tp_map_free(&seen);
    return status;
}

/* Recursion is bounded by TP_JSON_MAX_DEPTH. */
static enum talpa_status refuse_duplicates(const cJSON *item, const char *label)
{
    if (cJSON_IsObject(item)) TP_TRY(refuse_duplicate_keys(item, label));
    const cJSON *child;
    cJSON_ArrayForEach(child, item) TP_TRY(refuse_duplicates(child, label));
    return TALPA_OK;
}

/* `text` ends with a NUL at n_bytes: cJSON 1.7.15 may look one byte too far otherwise. */
static enum talpa_status parse_terminated(struct tp_json **out, const char *text, size_t n_bytes, const char *label)
{
    TP_TRY(scan(text, n_bytes, label));
    const char *end = text;
    cJSON *root = cJSON_ParseWithLengthOpts(text, n_bytes + 1, &end, 0);
    if (!root) {
        const size_t offset = end && end >= text && (size_t)(end - text) < n_bytes ? (size_t)(end - text) : n_bytes;
        if (offset >= n_bytes) return tp_fail(TALPA_E_DATA, "%s: line %d: the JSON text ends too early", label, line_of(text, n_bytes));
        int n_shown = 0;
        while (n_shown < 20 && offset + (size_t)n_shown < n_bytes && text[offset + (size_t)n_shown] != '\n') n_shown++;
        return tp_fail(TALPA_E_DATA, "%s: line %d: not valid JSON at \"%.*s\"", label, line_of(text, offset), n_shown, text + offset);
    }
    enum talpa_status status = TALPA_OK;
    while (end < text + n_bytes && is_space(*end)) end++;
    if (end < text + n_bytes)
        status = tp_fail(TALPA_E_DATA, "%s: line %d: found more text after the JSON value", label, line_of(text, (size_t)(end - text)));
    else
        status = refuse_duplicates(root, label);
    struct tp_json *json = NULL;
    if (status == TALPA_OK && !(json = malloc(sizeof *json))) status = tp_fail_memory(label, sizeof *json);
    if (status != TALPA_OK) {
        cJSON_Delete(root);
        return status;
    }
    json->root = root;
    *out = json;
    return TALPA_OK;
}

enum talpa_status tp_json_parse(struct tp_json **out, const char *text, size_t n_bytes, const char *label)
{
    if (n_bytes > TP_JSON_MAX_BYTES)
        return tp_fail(TALPA_E_DATA, "%s: JSON text of %zu bytes, expected at most %d", label, n_bytes, (int)TP_JSON_MAX_BYTES);
    char *copy = malloc(n_bytes + 1);
    if (!copy) return tp_fail_memory(label, n_bytes + 1);
    if (n_bytes) memcpy(copy, text, n_bytes);
    copy[n_bytes] = '\0';
    const enum talpa_status status = parse_terminated(out, copy, n_bytes, label);
    free(copy);
    return status;
}

enum talpa_status tp_json_parse_file(struct tp_json **out, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return tp_fail(TALPA_E_NO_INPUT, "%s: cannot open: %s", path, strerror(errno));
    size_t n_bytes = 0, n_room = 0;
    char *text = NULL;
    enum talpa_status status = TALPA_OK;
    for (size_t n_read = 1; n_read > 0 && n_bytes <= TP_JSON_MAX_BYTES; n_bytes += n_read) {
        if (n_room - n_bytes < 4096) {
            n_room = n_room ? n_room * 2 : 16384;
            char *larger = realloc(text, n_room);
            if (!larger) {
                status = tp_fail_memory(path, n_room);
                break;
            }
            text = larger;
        }
        n_read = fread(text + n_bytes, 1, n_room - n_bytes, file);
    }
    if (status == TALPA_OK && ferror(file)) status = tp_fail(TALPA_E_NO_INPUT, "%s: cannot read: %s", path, strerror(errno));
    if (status == TALPA_OK) status = tp_json_parse(out, text, n_bytes, path);
    free(text);
    fclose(file);
    return status;
}

void tp_json_free(struct tp_json *json)
{
    if (!json) return;
    cJSON_Delete(json->root);
    free(json);
}

const struct tp_json_value *tp_json_root(const struct tp_json *json) { return handle(json->root); }

enum tp_json_type tp_json_type(const struct tp_json_value *value)
{
    const cJSON *item = node(value);
    if (cJSON_IsBool(item)) return TP_JSON_BOOL;
    if (cJSON_IsNumber(item)) return TP_JSON_NUMBER;
    if (cJSON_IsString(item)) return TP_JSON_STRING;
    if (cJSON_IsArray(item)) return TP_JSON_ARRAY;
    return cJSON_IsObject(item) ? TP_JSON_OBJECT : TP_JSON_NULL;
}

const char *tp_json_type_name(enum tp_json_type type)
{
    static const char *const names[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
    return names[type];
}

const struct tp_json_value *tp_json_get(const struct tp_json_value *object, const char *key)
{
    return cJSON_IsObject(node(object)) ? handle(cJSON_GetObjectItemCaseSensitive(node(object), key)) : NULL;
}

int64_t tp_json_length(const struct tp_json_value *value) { return value ? cJSON_GetArraySize(node(value)) : 0; }

const struct tp_json_value *tp_json_at(const struct tp_json_value *array, int64_t i)
{
    return cJSON_IsArray(node(array)) && i >= 0 && i < INT32_MAX ? handle(cJSON_GetArrayItem(node(array), (int)i)) : NULL;
}

const struct tp_json_value *tp_json_first(const struct tp_json_value *container)
{
    return container ? handle(node(container)->child) : NULL;
}

const struct tp_json_value *tp_json_next(const struct tp_json_value *value) { return value ? handle(node(value)->next) : NULL; }

const char *tp_json_key(const struct tp_json_value *member) { return member && node(member)->string ? node(member)->string : ""; }

static enum talpa_status fail_type(const struct tp_json_value *value, const char *what, const char *expected)
{
    if (!value) return tp_fail(TALPA_E_DATA, "%s: missing, expected %s", what, expected);
    const char *text = cJSON_GetStringValue(node(value));
    if (text) return tp_fail(TALPA_E_DATA, "%s: found the string \"%.100s\", expected %s", what, text, expected);
    if (cJSON_IsNumber(node(value))) return tp_fail(TALPA_E_DATA, "%s: found %.17g, expected %s", what, node(value)->valuedouble, expected);
    return tp_fail(TALPA_E_DATA, "%s: found %s, expected %s", what, tp_json_type_name(tp_json_type(value)), expected);
}

enum talpa_status tp_json_as_int(int64_t *out, const struct tp_json_value *value, const char *what)
{
    const char *expected = "a whole number of at most 2^53";
    if (!cJSON_IsNumber(node(value))) return fail_type(value, what, expected);
    const double number = node(value)->valuedouble;
    if (!(fabs(number) <= exact_limit) || number != floor(number)) return fail_type(value, what, expected);
    *out = (int64_t)number;
    return TALPA_OK;
}

enum talpa_status tp_json_as_double(double *out, const struct tp_json_value *value, const char *what)
{
    if (!cJSON_IsNumber(node(value)) || !isfinite(node(value)->valuedouble)) return fail_type(value, what, "a finite number");
    *out = node(value)->valuedouble;
    return TALPA_OK;
}

enum talpa_status tp_json_as_bool(bool *out, const struct tp_json_value *value, const char *what)
{
    if (!cJSON_IsBool(node(value))) return fail_type(value, what, "true or false");
    *out = cJSON_IsTrue(node(value));
    return TALPA_OK;
}

enum talpa_status tp_json_as_string(const char **out, const struct tp_json_value *value, const char *what)
{
    if (!cJSON_IsString(node(value))) return fail_type(value, what, "a string");
    *out = node(value)->valuestring;
    return TALPA_OK;
}

/* The four typed getters of a member, required and with a fallback. */
#define DEFINE_GETTERS(kind, type)                                                                                                         \
    enum talpa_status tp_json_get_##kind(type *out, const struct tp_json_value *object, const char *key)                                   \
    {                                                                                                                                      \
        return tp_json_as_##kind(out, tp_json_get(object, key), key);                                                                      \
    }                                                                                                                                      \
    enum talpa_status tp_json_get_##kind##_or(type *out, const struct tp_json_value *object, const char *key, type fallback)               \
    {                                                                                                                                      \
        const struct tp_json_value *value = tp_json_get(object, key);                                                                      \
        if (value && tp_json_type(value) != TP_JSON_NULL) return tp_json_as_##kind(out, value, key);                                       \
        *out = fallback;                                                                                                                   \
        return TALPA_OK;                                                                                                                   \
    }

typedef const char *borrowed_string;

DEFINE_GETTERS(int, int64_t)
DEFINE_GETTERS(double, double)
DEFINE_GETTERS(bool, bool)
DEFINE_GETTERS(string, borrowed_string)
