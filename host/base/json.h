/* JSON (RFC 8259): a strict reader, and a writer that builds text in memory.
 *
 * The reader refuses what is not UTF-8, control characters inside strings, the escape \u0000, keys given twice in one object, nesting
 * beyond TP_JSON_MAX_DEPTH, texts beyond TP_JSON_MAX_BYTES and anything after the value. Numbers are doubles, so integers are exact up to
 * 2^53; the integer getters refuse larger ones. */
#ifndef TP_JSON_H
#define TP_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"

enum { TP_JSON_MAX_DEPTH = 64, TP_JSON_MAX_BYTES = 1 << 27 };

enum tp_json_type { TP_JSON_NULL, TP_JSON_BOOL, TP_JSON_NUMBER, TP_JSON_STRING, TP_JSON_ARRAY, TP_JSON_OBJECT };

/** A parsed text; owns all its values. */
struct tp_json;

/** One value inside a tp_json, borrowed, valid until tp_json_free. A NULL value is allowed in every reader call and means "absent". */
struct tp_json_value;

/** Parses `n_bytes` of `text` (need not end with NUL; not kept). `label` (file name or "FILE:line") begins the messages. TALPA_E_DATA with
 *  the line if the text is refused. The caller owns *out and ends it with tp_json_free. Allocates. */
enum talpa_status tp_json_parse(struct tp_json **out, const char *text, size_t n_bytes, const char *label);

/** Reads and parses a whole file. As tp_json_parse; TALPA_E_NO_INPUT if it cannot be opened or read. */
enum talpa_status tp_json_parse_file(struct tp_json **out, const char *path);

/** NULL is allowed. */
void tp_json_free(struct tp_json *json);

/** The outermost value; never NULL. */
const struct tp_json_value *tp_json_root(const struct tp_json *json);

/** Type of a value; an absent one counts as TP_JSON_NULL. */
enum tp_json_type tp_json_type(const struct tp_json_value *value);

/** "null", "a boolean", "a number", ...: for messages. */
const char *tp_json_type_name(enum tp_json_type type);

/** Member `key` of an object (case matters), or NULL if there is none or `object` is no object. Takes time linear in the members. */
const struct tp_json_value *tp_json_get(const struct tp_json_value *object, const char *key);

/** Number of members or elements; 0 for other types. Linear. */
int64_t tp_json_length(const struct tp_json_value *value);

/** Element `i` of an array, or NULL. Linear: loop with tp_json_first and tp_json_next instead. */
const struct tp_json_value *tp_json_at(const struct tp_json_value *array, int64_t i);

/** First member or element, and the one after `value`; NULL at the end. */
const struct tp_json_value *tp_json_first(const struct tp_json_value *container);
const struct tp_json_value *tp_json_next(const struct tp_json_value *value);

/** Key of an object's member, borrowed; "" for other values. */
const char *tp_json_key(const struct tp_json_value *member);

/** Value as a C type. `what` names it in the message. TALPA_E_DATA if absent or of another type, or (int) not whole or beyond 2^53.
 *  Strings are borrowed. */
enum talpa_status tp_json_as_int(int64_t *out, const struct tp_json_value *value, const char *what);
enum talpa_status tp_json_as_double(double *out, const struct tp_json_value *value, const char *what);
enum talpa_status tp_json_as_bool(bool *out, const struct tp_json_value *value, const char *what);
enum talpa_status tp_json_as_string(const char **out, const struct tp_json_value *value, const char *what);

/** Member `key` of `object`, which must be there: TALPA_E_DATA if it is not, or has another type. The message names the key; the caller
 *  adds the file with tp_context. */
enum talpa_status tp_json_get_int(int64_t *out, const struct tp_json_value *object, const char *key);
enum talpa_status tp_json_get_double(double *out, const struct tp_json_value *object, const char *key);
enum talpa_status tp_json_get_bool(bool *out, const struct tp_json_value *object, const char *key);
enum talpa_status tp_json_get_string(const char **out, const struct tp_json_value *object, const char *key);

/** As above, but an absent or null member gives `fallback`; another type is still TALPA_E_DATA. */
enum talpa_status tp_json_get_int_or(int64_t *out, const struct tp_json_value *object, const char *key, int64_t fallback);
enum talpa_status tp_json_get_double_or(double *out, const struct tp_json_value *object, const char *key, double fallback);
enum talpa_status tp_json_get_bool_or(bool *out, const struct tp_json_value *object, const char *key, bool fallback);
enum talpa_status tp_json_get_string_or(const char **out, const struct tp_json_value *object, const char *key, const char *fallback);

/** Builds a JSON text in memory. The first failure (memory, or calls out of order) is kept and reported by tp_json_writer_text; calls
 *  after it do nothing. */
struct tp_json_writer;

/** `indent` spaces per level with one member a line, or 0 for a text without any white space (one line, for JSONL). The caller owns *out.
 */
enum talpa_status tp_json_writer_create(struct tp_json_writer **out, int indent);

/** NULL is allowed. */
void tp_json_writer_free(struct tp_json_writer *writer);

/** Empties the writer for the next text, keeping its memory; forgets a failure. */
void tp_json_writer_reset(struct tp_json_writer *writer);

/** Containers. Inside an object, each value or container is preceded by tp_json_write_key. */
void tp_json_write_object_begin(struct tp_json_writer *writer);
void tp_json_write_object_end(struct tp_json_writer *writer);
void tp_json_write_array_begin(struct tp_json_writer *writer);
void tp_json_write_array_end(struct tp_json_writer *writer);
void tp_json_write_key(struct tp_json_writer *writer, const char *key);

/** Values. Integers are exact; reals have 9 digits (%.9g: an f32 survives), and null in place of NaN and infinities; strings (NULL: null)
 *  are escaped, and bytes that are not UTF-8 become U+FFFD. */
void tp_json_write_string(struct tp_json_writer *writer, const char *text);
void tp_json_write_string_n(struct tp_json_writer *writer, const char *text, size_t n_bytes);
void tp_json_write_int(struct tp_json_writer *writer, int64_t value);
void tp_json_write_real(struct tp_json_writer *writer, double value);
void tp_json_write_bool(struct tp_json_writer *writer, bool value);
void tp_json_write_null(struct tp_json_writer *writer);

/** Copies a value of a parsed text, so that unknown members of a file can be kept. Absent: null. */
void tp_json_write_value(struct tp_json_writer *writer, const struct tp_json_value *value);

/** Key and value in one call. */
void tp_json_write_string_member(struct tp_json_writer *writer, const char *key, const char *text);
void tp_json_write_int_member(struct tp_json_writer *writer, const char *key, int64_t value);
void tp_json_write_real_member(struct tp_json_writer *writer, const char *key, double value);
void tp_json_write_bool_member(struct tp_json_writer *writer, const char *key, bool value);
void tp_json_write_null_member(struct tp_json_writer *writer, const char *key);
/** 16 hexadecimal digits, as base/hash.h prints a digest. */
void tp_json_write_digest_member(struct tp_json_writer *writer, const char *key, uint64_t digest);

/** The finished text, NUL-terminated, without a final newline; borrowed, valid until the next call with this writer. `n_bytes` may be NULL.
 *  TALPA_E_DEVICE if memory was short, TALPA_E_INTERNAL if calls were out of order or a container is still open. */
enum talpa_status tp_json_writer_text(const char **out, size_t *n_bytes, struct tp_json_writer *writer);

#endif
