/* Writer of GGUF version 3 files. */
#ifndef TP_GGUF_WRITE_H
#define TP_GGUF_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "row_source.h"
#include "talpa/status.h"
#include "talpa/types.h"

struct tp_gguf;

/** A file being composed. The first failure of memory is kept and reported by tp_gguf_write_save or tp_gguf_write_bytes. Keys and tensor
 *  names given twice are not checked for: the reader would refuse the file. */
struct tp_gguf_writer;

/** The caller owns *out. */
enum talpa_status tp_gguf_write_create(struct tp_gguf_writer **out);

/** NULL is allowed. */
void tp_gguf_write_free(struct tp_gguf_writer *writer);

/** Appends a key and its value, which is copied. */
void tp_gguf_write_u32(struct tp_gguf_writer *writer, const char *key, uint32_t value);
void tp_gguf_write_i32(struct tp_gguf_writer *writer, const char *key, int32_t value);
void tp_gguf_write_u64(struct tp_gguf_writer *writer, const char *key, uint64_t value);
void tp_gguf_write_f32(struct tp_gguf_writer *writer, const char *key, float value);
void tp_gguf_write_bool(struct tp_gguf_writer *writer, const char *key, bool value);
void tp_gguf_write_string(struct tp_gguf_writer *writer, const char *key, const char *value);
void tp_gguf_write_i32_array(struct tp_gguf_writer *writer, const char *key, const int32_t *values, size_t n);
void tp_gguf_write_f32_array(struct tp_gguf_writer *writer, const char *key, const float *values, size_t n);
void tp_gguf_write_string_array(struct tp_gguf_writer *writer, const char *key, const char *const *values, size_t n);

/** Appends all keys of an open file with their values, byte for byte, but for those in except[n_except]. The file must be of the machine's
 *  byte order, as the reader demands; general.alignment is left out too, since this writer has its own. */
void tp_gguf_write_copy_keys(struct tp_gguf_writer *writer, const struct tp_gguf *gguf, const char *const *except, size_t n_except);

/** Appends a tensor, `shape` outermost first. `data` (tp_dtype_bytes of the element count) is borrowed until the file is written. */
void tp_gguf_write_tensor(struct tp_gguf_writer *writer, const char *name, enum talpa_dtype dtype, const struct talpa_shape *shape,
                          const void *data);

/** Writes the file with the tensors' rows from `source`, in the order of tp_gguf_write_tensor, whose `data` are then not used: no more than
 *  about a megabyte is held. Rows are what the innermost dimension counts; a tensor of one dimension is one row. */
enum talpa_status tp_gguf_write_save_rows(const struct tp_gguf_writer *writer, const char *path, const struct tp_row_source *source);

/** Writes the file (see atomic_file.h for the errors), or gives its bytes, owned by the caller (free). */
enum talpa_status tp_gguf_write_save(const struct tp_gguf_writer *writer, const char *path);
enum talpa_status tp_gguf_write_bytes(uint8_t **out, size_t *n_bytes, const struct tp_gguf_writer *writer);

#endif
