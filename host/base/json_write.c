/* The writer half of json.h. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "json.h"
#include "status.h"
#include "utf8.h"

enum problem { NONE, MEMORY, ORDER };

struct tp_json_writer {
    char *text;
    size_t n_bytes, n_room;
    int indent, depth;
    bool is_object[TP_JSON_MAX_DEPTH + 1]; /* by depth; level 0 is outside everything */
    bool has_members[TP_JSON_MAX_DEPTH + 1];
    bool key_pending;
    enum problem problem;
    const char *order_problem;
};

enum talpa_status tp_json_writer_create(struct tp_json_writer **out, int indent)
{
    struct tp_json_writer *writer = calloc(1, sizeof *writer);
    if (!writer) return tp_fail_memory("JSON writer", sizeof *writer);
    writer->indent = indent;
    *out = writer;
    return TALPA_OK;
}

void tp_json_writer_free(struct tp_json_writer *writer)
{
    if (writer) free(writer->text);
    free(writer);
}

void tp_json_writer_reset(struct tp_json_writer *writer)
{
    writer->n_bytes = 0;
    writer->depth = 0;
    writer->has_members[0] = false;
    writer->key_pending = false;
    writer->problem = NONE;
}

static void append(struct tp_json_writer *writer, const char *bytes, size_t n_bytes)
{
    if (writer->problem != NONE) return;
    if (writer->n_room - writer->n_bytes <= n_bytes) {
        size_t n_room = writer->n_room ? writer->n_room : 256;
        while (n_room - writer->n_bytes <= n_bytes && n_room <= SIZE_MAX / 4) n_room *= 2;
        char *larger = n_room - writer->n_bytes > n_bytes ? realloc(writer->text, n_room) : NULL;
        if (!larger) {
            writer->problem = MEMORY;
            return;
        }
        writer->text = larger;
        writer->n_room = n_room;
    }
    memcpy(writer->text + writer->n_bytes, bytes, n_bytes);
    writer->n_bytes += n_bytes;
    writer->text[writer->n_bytes] = '\0';
}

static void append_string(struct tp_json_writer *writer, const char *text) { append(writer, text, strlen(text)); }

static void refuse(struct tp_json_writer *writer, const char *problem)
{
    if (writer->problem != NONE) return;
    writer->problem = ORDER;
    writer->order_problem = problem;
}

static void new_line(struct tp_json_writer *writer)
{
    if (writer->indent == 0) return;
    append(writer, "\n", 1);
    for (int i = 0; i < writer->depth * writer->indent; i++) append(writer, " ", 1);
}

/* Comma and white space before a member, element or key. */
static void separate(struct tp_json_writer *writer)
{
    if (writer->has_members[writer->depth]) append(writer, ",", 1);
    if (writer->depth > 0) new_line(writer);
    writer->has_members[writer->depth] = true;
}

static void before_value(struct tp_json_writer *writer)
{
    if (writer->depth > 0 && writer->is_object[writer->depth]) {
        if (!writer->key_pending) refuse(writer, "a value inside an object without its key");
        writer->key_pending = false;
        return;
    }
    if (writer->depth == 0 && writer->has_members[0]) refuse(writer, "a second outermost value");
    separate(writer);
}

static void begin(struct tp_json_writer *writer, bool is_object)
{
    before_value(writer);
    if (writer->depth == TP_JSON_MAX_DEPTH) refuse(writer, "nesting too deep");
    if (writer->problem != NONE) return;
    append(writer, is_object ? "{" : "[", 1);
    writer->depth++;
    writer->is_object[writer->depth] = is_object;
    writer->has_members[writer->depth] = false;
}

static void end(struct tp_json_writer *writer, bool is_object)
{
    if (writer->depth == 0 || writer->is_object[writer->depth] != is_object || writer->key_pending)
        refuse(writer, "an end without its beginning, or a key without its value");
    if (writer->problem != NONE) return;
    const bool had_members = writer->has_members[writer->depth];
    writer->depth--;
    if (had_members) new_line(writer);
    append(writer, is_object ? "}" : "]", 1);
}

void tp_json_write_object_begin(struct tp_json_writer *writer) { begin(writer, true); }
void tp_json_write_object_end(struct tp_json_writer *writer) { end(writer, true); }
void tp_json_write_array_begin(struct tp_json_writer *writer) { begin(writer, false); }
void tp_json_write_array_end(struct tp_json_writer *writer) { end(writer, false); }

static void append_escaped(struct tp_json_writer *writer, const char *text, size_t n_bytes)
{
    static const char short_escapes[] = "\"\"\\\\\bb\ff\nn\rr\tt"; /* pairs: character, letter */
    append(writer, "\"", 1);
    for (size_t i = 0, n; i < n_bytes; i += n) {
        uint32_t code_point = 0;
        n = tp_utf8_decode(&code_point, text + i, n_bytes - i);
        if (n == 0) {
            append_string(writer, "\xef\xbf\xbd");
            n = 1;
            continue;
        }
        char escape[8] = "";
        for (const char *pair = short_escapes; *pair; pair += 2)
            if (code_point == (unsigned char)pair[0]) snprintf(escape, sizeof escape, "\\%c", pair[1]);
        if (code_point < 0x20 && !escape[0]) snprintf(escape, sizeof escape, "\\u%04x", (unsigned)code_point);
        if (escape[0])
            append_string(writer, escape);
        else
            append(writer, text + i, n);
    }
    append(writer, "\"", 1);
}

void tp_json_write_key(struct tp_json_writer *writer, const char *key)
{
    if (writer->depth == 0 || !writer->is_object[writer->depth] || writer->key_pending) {
        refuse(writer, "a key outside an object, or two keys in a row");
        return;
    }
    separate(writer);
    append_escaped(writer, key, strlen(key));
    append_string(writer, writer->indent ? ": " : ":");
    writer->key_pending = true;
}

void tp_json_write_string_n(struct tp_json_writer *writer, const char *text, size_t n_bytes)
{
    before_value(writer);
    append_escaped(writer, text, n_bytes);
}

void tp_json_write_string(struct tp_json_writer *writer, const char *text)
{
    if (text)
        tp_json_write_string_n(writer, text, strlen(text));
    else
        tp_json_write_null(writer);
}

void tp_json_write_int(struct tp_json_writer *writer, int64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRId64, value);
    before_value(writer);
    append_string(writer, digits);
}

static void write_number(struct tp_json_writer *writer, double value, int n_digits)
{
    if (!isfinite(value)) {
        tp_json_write_null(writer);
        return;
    }
    char digits[40];
    snprintf(digits, sizeof digits, "%.*g", n_digits, value);
    /* The process may run in a locale whose decimal point is another character. */
    for (char *p = digits; *p; p++)
        if (!strchr("0123456789+-e", *p)) *p = '.';
    before_value(writer);
    append_string(writer, digits);
}

void tp_json_write_real(struct tp_json_writer *writer, double value) { write_number(writer, value, 9); }

void tp_json_write_bool(struct tp_json_writer *writer, bool value)
{
    before_value(writer);
    append_string(writer, value ? "true" : "false");
}

void tp_json_write_null(struct tp_json_writer *writer)
{
    before_value(writer);
    append_string(writer, "null");
}

/* Recursion is bounded by TP_JSON_MAX_DEPTH, the reader's limit. */
void tp_json_write_value(struct tp_json_writer *writer, const struct tp_json_value *value)
{
    const enum tp_json_type type = tp_json_type(value);
    double number = 0.0;
    bool truth = false;
    const char *text = NULL;
    if (type == TP_JSON_NUMBER) {
        if (tp_json_as_double(&number, value, "") != TALPA_OK) tp_status_clear();
        write_number(writer, number, 17);
    } else if (type == TP_JSON_BOOL) {
        if (tp_json_as_bool(&truth, value, "") == TALPA_OK) tp_json_write_bool(writer, truth);
    } else if (type == TP_JSON_STRING) {
        if (tp_json_as_string(&text, value, "") == TALPA_OK) tp_json_write_string(writer, text);
    } else if (type == TP_JSON_NULL) {
        tp_json_write_null(writer);
    } else {
        begin(writer, type == TP_JSON_OBJECT);
        for (const struct tp_json_value *child = tp_json_first(value); child; child = tp_json_next(child)) {
            if (type == TP_JSON_OBJECT) tp_json_write_key(writer, tp_json_key(child));
            tp_json_write_value(writer, child);
        }
        end(writer, type == TP_JSON_OBJECT);
    }
}

void tp_json_write_string_member(struct tp_json_writer *writer, const char *key, const char *text)
{
    tp_json_write_key(writer, key);
    tp_json_write_string(writer, text);
}

void tp_json_write_int_member(struct tp_json_writer *writer, const char *key, int64_t value)
{
    tp_json_write_key(writer, key);
    tp_json_write_int(writer, value);
}

void tp_json_write_real_member(struct tp_json_writer *writer, const char *key, double value)
{
    tp_json_write_key(writer, key);
    tp_json_write_real(writer, value);
}

void tp_json_write_bool_member(struct tp_json_writer *writer, const char *key, bool value)
{
    tp_json_write_key(writer, key);
    tp_json_write_bool(writer, value);
}

void tp_json_write_null_member(struct tp_json_writer *writer, const char *key)
{
    tp_json_write_key(writer, key);
    tp_json_write_null(writer);
}

void tp_json_write_digest_member(struct tp_json_writer *writer, const char *key, uint64_t digest)
{
    char hex[TP_HASH_HEX_BYTES];
    tp_json_write_string_member(writer, key, tp_hash_hex(hex, digest));
}

enum talpa_status tp_json_writer_text(const char **out, size_t *n_bytes, struct tp_json_writer *writer)
{
    if (writer->depth != 0 || !writer->has_members[0]) refuse(writer, "the text is not complete");
    if (writer->problem == MEMORY) return tp_fail_memory("JSON text", writer->n_room);
    if (writer->problem == ORDER) return tp_fail(TALPA_E_INTERNAL, "JSON writer: %s", writer->order_problem);
    *out = writer->text;
    if (n_bytes) *n_bytes = writer->n_bytes;
    return TALPA_OK;
}
