/* Reader of GGUF files, versions 2 and 3, little-endian (specification: ggml, docs/gguf.md).
 *
 * Every field is checked against the file before it is used. What is refused with TALPA_E_DATA: fields that reach beyond the file, keys or
 * tensor names given twice, tensors not aligned or outside the file, rows that are no whole number of blocks, and counts beyond the limits
 * below. Messages name file, key or tensor, found and expected. A tensor of a type that talpa cannot compute with is refused when it is
 * asked for, not before. */
#ifndef TP_GGUF_H
#define TP_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"
#include "talpa/types.h"

enum { TP_GGUF_MAX_KEYS = 1 << 16, TP_GGUF_MAX_TENSORS = 1 << 16, TP_GGUF_MAX_NAME_BYTES = 1 << 10, TP_GGUF_DEFAULT_ALIGNMENT = 32 };

/** Value types, numbered as in the file. */
enum tp_gguf_type {
    TP_GGUF_UINT8,
    TP_GGUF_INT8,
    TP_GGUF_UINT16,
    TP_GGUF_INT16,
    TP_GGUF_UINT32,
    TP_GGUF_INT32,
    TP_GGUF_FLOAT32,
    TP_GGUF_BOOL,
    TP_GGUF_STRING,
    TP_GGUF_ARRAY,
    TP_GGUF_UINT64,
    TP_GGUF_INT64,
    TP_GGUF_FLOAT64,
    TP_GGUF_N_TYPES
};

/** An open file; owns names and tables, and the mapping if it was opened by path. Read-only after opening, so threads may share it. */
struct tp_gguf;

/** Bytes of a string, borrowed from the file; not NUL-terminated. */
struct tp_gguf_string {
    const char *bytes;
    size_t n_bytes;
};

/** An array of n elements of `type`, borrowed from the file. */
struct tp_gguf_array {
    enum tp_gguf_type type;
    int64_t n;
    const uint8_t *bytes;          /* first element, perhaps unaligned: use the tp_gguf_array_* functions */
    const uint64_t *string_starts; /* strings only: offset of each length field from `bytes` */
};

/** A tensor, borrowed from the file. `shape` is outermost first (the file's `ne` reversed), so a linear weight is [out, in].
 *  `data` is aligned to the file's alignment relative to the first byte of the file. */
struct tp_gguf_tensor {
    const char *name;
    enum talpa_dtype dtype;
    struct talpa_shape shape;
    const void *data;
    size_t n_bytes;
};

/** Maps and checks a file. The caller owns *out. TALPA_E_NO_INPUT if it cannot be read, TALPA_E_DATA if it is refused. */
enum talpa_status tp_gguf_open(struct tp_gguf **out, const char *path);

/** As tp_gguf_open for bytes in memory, which must outlive *out. `label` takes the file name's place in messages; it is copied. */
enum talpa_status tp_gguf_parse(struct tp_gguf **out, const void *bytes, size_t n_bytes, const char *label);

/** NULL is allowed. */
void tp_gguf_close(struct tp_gguf *gguf);

/** Name of the file as given. */
const char *tp_gguf_label(const struct tp_gguf *gguf);

/** All bytes of the file, borrowed (for digests). */
const void *tp_gguf_bytes(size_t *n_bytes, const struct tp_gguf *gguf);

/** Key-value pairs in file order; `i` must be in range. */
int64_t tp_gguf_n_keys(const struct tp_gguf *gguf);
const char *tp_gguf_key(const struct tp_gguf *gguf, int64_t i);
enum tp_gguf_type tp_gguf_key_type(const struct tp_gguf *gguf, int64_t i);

/** "u32", "string", ... */
const char *tp_gguf_type_name(enum tp_gguf_type type);

/** True if the key is there, with whatever type. */
bool tp_gguf_has(const struct tp_gguf *gguf, const char *key);

/** Value of a key that must be there: TALPA_E_DATA if it is not, or has another type. Integers may have any width and sign in the file (a
 *  u64 beyond int64 is refused); floats may be f32 or f64. Strings are NUL-terminated and borrowed; with `n_bytes` NULL a string that holds
 *  a NUL is refused. */
enum talpa_status tp_gguf_get_int(int64_t *out, const struct tp_gguf *gguf, const char *key);
enum talpa_status tp_gguf_get_float(double *out, const struct tp_gguf *gguf, const char *key);
enum talpa_status tp_gguf_get_bool(bool *out, const struct tp_gguf *gguf, const char *key);
enum talpa_status tp_gguf_get_string(const char **out, size_t *n_bytes, const struct tp_gguf *gguf, const char *key);

/** As above for an array whose elements have exactly `type`. */
enum talpa_status tp_gguf_get_array(struct tp_gguf_array *out, const struct tp_gguf *gguf, const char *key, enum tp_gguf_type type);

/** As above, with `fallback` if the key is absent; another type is still TALPA_E_DATA. */
enum talpa_status tp_gguf_get_int_or(int64_t *out, const struct tp_gguf *gguf, const char *key, int64_t fallback);
enum talpa_status tp_gguf_get_float_or(double *out, const struct tp_gguf *gguf, const char *key, double fallback);
enum talpa_status tp_gguf_get_bool_or(bool *out, const struct tp_gguf *gguf, const char *key, bool fallback);
enum talpa_status tp_gguf_get_string_or(const char **out, const struct tp_gguf *gguf, const char *key, const char *fallback);

/** Element `i` (in range) of an array of integers or bools, of floats, of strings. u64 beyond int64 wraps. */
int64_t tp_gguf_array_int(const struct tp_gguf_array *array, int64_t i);
double tp_gguf_array_float(const struct tp_gguf_array *array, int64_t i);
struct tp_gguf_string tp_gguf_array_string(const struct tp_gguf_array *array, int64_t i);

/** Tensors in file order; `i` must be in range. The type name is the file's ("Q4_1", "Q6_K", "type 77"), for any tensor. */
int64_t tp_gguf_n_tensors(const struct tp_gguf *gguf);
const char *tp_gguf_tensor_name(const struct tp_gguf *gguf, int64_t i);
const char *tp_gguf_tensor_type_name(const struct tp_gguf *gguf, int64_t i);

/** True if a tensor of that name is there, of whatever type. */
bool tp_gguf_has_tensor(const struct tp_gguf *gguf, const char *name);

/** A tensor by name or number. TALPA_E_DATA if it is absent or its type is none of enum talpa_dtype. */
enum talpa_status tp_gguf_tensor_get(struct tp_gguf_tensor *out, const struct tp_gguf *gguf, const char *name);
enum talpa_status tp_gguf_tensor_at(struct tp_gguf_tensor *out, const struct tp_gguf *gguf, int64_t i);

#endif
