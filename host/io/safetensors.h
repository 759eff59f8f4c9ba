/* Reader and writer of safetensors files (specification: huggingface/safetensors README, "Format").
 *
 * The reader refuses with TALPA_E_DATA: a header beyond 100 MB or the file, names given twice, tensors whose offsets do not follow each
 * other without hole or overlap up to the last byte, sizes that do not match type and shape, more than TALPA_MAX_RANK dimensions.
 * A tensor of a type not listed below is refused when it is asked for, not before. */
#ifndef TP_SAFETENSORS_H
#define TP_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"
#include "talpa/types.h"

enum { TP_SAFETENSORS_MAX_HEADER_BYTES = 100000000 };

enum tp_safetensors_type {
    TP_SAFETENSORS_F32,
    TP_SAFETENSORS_F16,
    TP_SAFETENSORS_BF16,
    TP_SAFETENSORS_I32,
    TP_SAFETENSORS_I64,
    TP_SAFETENSORS_U8,
    TP_SAFETENSORS_N_TYPES
};

struct tp_atomic_file;
struct tp_row_source;

/** An open file; owns names and tables, and the mapping if it was opened by path. Read-only after opening, so threads may share it. */
struct tp_safetensors;

/** A tensor: borrowed from the file when read, from the caller when written. A scalar has shape [1]; a dimension may be 0. `data` of
 *  a file that was read may be unaligned: memcpy, tp_dtype_to_f32 and transfers to a device do not mind. */
struct tp_safetensors_tensor {
    const char *name;
    enum tp_safetensors_type type;
    struct talpa_shape shape;
    const void *data;
    size_t n_bytes;
};

/** One entry of __metadata__. */
struct tp_safetensors_meta {
    const char *key, *value;
};

/** "F32", "I64", ...; bytes of one element. */
const char *tp_safetensors_type_name(enum tp_safetensors_type type);
size_t tp_safetensors_type_bytes(enum tp_safetensors_type type);

/** Maps and checks a file. The caller owns *out. TALPA_E_NO_INPUT if it cannot be read, TALPA_E_DATA if it is refused. */
enum talpa_status tp_safetensors_open(struct tp_safetensors **out, const char *path);

/** As tp_safetensors_open for bytes in memory, which must outlive *out. `label` takes the file name's place in messages; it is copied. */
enum talpa_status tp_safetensors_parse(struct tp_safetensors **out, const void *bytes, size_t n_bytes, const char *label);

/** NULL is allowed. */
void tp_safetensors_close(struct tp_safetensors *file);

/** Name of the file as given. */
const char *tp_safetensors_label(const struct tp_safetensors *file);

/** Tensors in the order of their data; `i` must be in range. */
int64_t tp_safetensors_n_tensors(const struct tp_safetensors *file);
const char *tp_safetensors_name(const struct tp_safetensors *file, int64_t i);

/** True if a tensor of that name is there, of whatever type. */
bool tp_safetensors_has(const struct tp_safetensors *file, const char *name);

/** A tensor by name or number. TALPA_E_DATA if it is absent or its type is none of the above. */
enum talpa_status tp_safetensors_get(struct tp_safetensors_tensor *out, const struct tp_safetensors *file, const char *name);
enum talpa_status tp_safetensors_at(struct tp_safetensors_tensor *out, const struct tp_safetensors *file, int64_t i);

/** Element type of the engine for a tensor. TALPA_E_DATA for I64 and U8, which have none. */
enum talpa_status tp_safetensors_dtype(enum talpa_dtype *out, const struct tp_safetensors_tensor *tensor);

/** Metadata in file order; a value by key, NULL if absent. Borrowed. */
int64_t tp_safetensors_n_meta(const struct tp_safetensors *file);
struct tp_safetensors_meta tp_safetensors_meta_at(const struct tp_safetensors *file, int64_t i);
const char *tp_safetensors_meta_get(const struct tp_safetensors *file, const char *key);

/** Writes a file: tensors and metadata in the order given, data from byte 8 + header, which is a multiple of 64. `n_bytes` of each tensor
 *  must match type and shape, and names must differ: TALPA_E_ARGUMENT otherwise. The file appears under `path` only when complete and
 *  synced; else TALPA_E_CREATE or TALPA_E_IO (atomic_file.h), and whatever was at `path` is still there. */
enum talpa_status tp_safetensors_save(const char *path, const struct tp_safetensors_tensor *tensors, size_t n_tensors,
                                      const struct tp_safetensors_meta *meta, size_t n_meta);

/** The same into a file being written (atomic_file.h), which stays the caller's in every case; `path` is for messages. */
enum talpa_status tp_safetensors_write(struct tp_atomic_file *file, const char *path, const struct tp_safetensors_tensor *tensors,
                                       size_t n_tensors, const struct tp_safetensors_meta *meta, size_t n_meta);

/** The same with the tensors' rows from `source` (row_source.h), in the order given; `data` are then not used. */
enum talpa_status tp_safetensors_write_rows(struct tp_atomic_file *file, const char *path, const struct tp_safetensors_tensor *tensors,
                                            size_t n_tensors, const struct tp_safetensors_meta *meta, size_t n_meta,
                                            const struct tp_row_source *source);

#endif
