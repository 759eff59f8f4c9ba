#include "gguf_write.h"

#include <stdlib.h>
#include <string.h>

#include "atomic_file.h"
#include "base/arena.h"
#include "base/dtype.h"
#include "base/status.h"
#include "gguf.h"

enum { VERSION = 3, ALIGNMENT = TP_GGUF_DEFAULT_ALIGNMENT };

struct buffer {
    uint8_t *bytes;
    size_t n_bytes, n_room;
    bool is_short_of_memory;
};

struct part {
    struct part *next;
    const void *data;
    size_t n_bytes, row_bytes;
};

struct tp_gguf_writer {
    struct buffer keys, tensors; /* the two tables, as in the file */
    uint64_t n_keys, n_tensors, data_bytes;
    struct part *first, *last;
    struct tp_arena arena;
};

static void append(struct buffer *buffer, const void *bytes, size_t n_bytes)
{
    if (n_bytes == 0 || buffer->is_short_of_memory) return;
    if (buffer->n_room - buffer->n_bytes < n_bytes) {
        const size_t n_room = (buffer->n_bytes + n_bytes) * 2;
        uint8_t *larger = realloc(buffer->bytes, n_room);
        if (!larger) {
            buffer->is_short_of_memory = true;
            return;
        }
        buffer->bytes = larger;
        buffer->n_room = n_room;
    }
    memcpy(buffer->bytes + buffer->n_bytes, bytes, n_bytes);
    buffer->n_bytes += n_bytes;
}

static void append_integer(struct buffer *buffer, uint64_t value, size_t n_bytes)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < n_bytes; i++) bytes[i] = (uint8_t)(value >> 8 * i);
    append(buffer, bytes, n_bytes);
}

static void append_string(struct buffer *buffer, const char *text)
{
    append_integer(buffer, strlen(text), 8);
    append(buffer, text, strlen(text));
}

static uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

enum talpa_status tp_gguf_write_create(struct tp_gguf_writer **out)
{
    struct tp_gguf_writer *writer = calloc(1, sizeof *writer);
    if (!writer) return tp_fail_memory("GGUF writer", sizeof *writer);
    *out = writer;
    return TALPA_OK;
}

void tp_gguf_write_free(struct tp_gguf_writer *writer)
{
    if (!writer) return;
    free(writer->keys.bytes);
    free(writer->tensors.bytes);
    tp_arena_free(&writer->arena);
    free(writer);
}

static struct buffer *begin(struct tp_gguf_writer *writer, const char *key, enum tp_gguf_type type)
{
    writer->n_keys++;
    append_string(&writer->keys, key);
    append_integer(&writer->keys, type, 4);
    return &writer->keys;
}

static struct buffer *begin_array(struct tp_gguf_writer *writer, const char *key, enum tp_gguf_type type, size_t n)
{
    struct buffer *buffer = begin(writer, key, TP_GGUF_ARRAY);
    append_integer(buffer, type, 4);
    append_integer(buffer, n, 8);
    return buffer;
}

void tp_gguf_write_u32(struct tp_gguf_writer *writer, const char *key, uint32_t value)
{
    append_integer(begin(writer, key, TP_GGUF_UINT32), value, 4);
}

void tp_gguf_write_i32(struct tp_gguf_writer *writer, const char *key, int32_t value)
{
    append_integer(begin(writer, key, TP_GGUF_INT32), (uint32_t)value, 4);
}

void tp_gguf_write_u64(struct tp_gguf_writer *writer, const char *key, uint64_t value)
{
    append_integer(begin(writer, key, TP_GGUF_UINT64), value, 8);
}

void tp_gguf_write_f32(struct tp_gguf_writer *writer, const char *key, float value)
{
    append_integer(begin(writer, key, TP_GGUF_FLOAT32), float_bits(value), 4);
}

void tp_gguf_write_bool(struct tp_gguf_writer *writer, const char *key, bool value)
{
    append_integer(begin(writer, key, TP_GGUF_BOOL), value, 1);
}

void tp_gguf_write_string(struct tp_gguf_writer *writer, const char *key, const char *value)
{
    append_string(begin(writer, key, TP_GGUF_STRING), value);
}

void tp_gguf_write_i32_array(struct tp_gguf_writer *writer, const char *key, const int32_t *values, size_t n)
{
    struct buffer *buffer = begin_array(writer, key, TP_GGUF_INT32, n);
    for (size_t i = 0; i < n; i++) append_integer(buffer, (uint32_t)values[i], 4);
}

void tp_gguf_write_f32_array(struct tp_gguf_writer *writer, const char *key, const float *values, size_t n)
{
    struct buffer *buffer = begin_array(writer, key, TP_GGUF_FLOAT32, n);
    for (size_t i = 0; i < n; i++) append_integer(buffer, float_bits(values[i]), 4);
}

void tp_gguf_write_string_array(struct tp_gguf_writer *writer, const char *key, const char *const *values, size_t n)
{
    struct buffer *buffer = begin_array(writer, key, TP_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) append_string(buffer, values[i]);
}

/* ---- keys of another file ---- */

/* The reader has checked every length against the file, so that walking needs no checks. */
static uint64_t load(const uint8_t *bytes, size_t n_bytes)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n_bytes; i++) value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

static const uint8_t *skip_value(const uint8_t *at, enum tp_gguf_type type)
{
    static const size_t sizes[TP_GGUF_N_TYPES] = {
        [TP_GGUF_UINT8] = 1,   [TP_GGUF_INT8] = 1, [TP_GGUF_UINT16] = 2, [TP_GGUF_INT16] = 2, [TP_GGUF_UINT32] = 4, [TP_GGUF_INT32] = 4,
        [TP_GGUF_FLOAT32] = 4, [TP_GGUF_BOOL] = 1, [TP_GGUF_UINT64] = 8, [TP_GGUF_INT64] = 8, [TP_GGUF_FLOAT64] = 8};
    if (type == TP_GGUF_STRING) return at + 8 + load(at, 8);
    if (type != TP_GGUF_ARRAY) return at + sizes[type];
    const enum tp_gguf_type element = (enum tp_gguf_type)load(at, 4);
    const uint64_t n = load(at + 4, 8);
    at += 12;
    if (sizes[element]) return at + n * sizes[element];
    for (uint64_t i = 0; i < n; i++) at = skip_value(at, element);
    return at;
}

void tp_gguf_write_copy_keys(struct tp_gguf_writer *writer, const struct tp_gguf *gguf, const char *const *except, size_t n_except)
{
    enum { HEADER_BYTES = 24 };
    size_t unused;
    const uint8_t *at = (const uint8_t *)tp_gguf_bytes(&unused, gguf) + HEADER_BYTES;
    for (int64_t i = 0; i < tp_gguf_n_keys(gguf); i++) {
        const char *key = tp_gguf_key(gguf, i);
        const uint8_t *start = at, *value = skip_value(at, TP_GGUF_STRING) + 4;
        bool is_wanted = strcmp(key, "general.alignment") != 0;
        for (size_t k = 0; k < n_except; k++) is_wanted = is_wanted && strcmp(key, except[k]) != 0;
        at = skip_value(value, tp_gguf_key_type(gguf, i));
        if (!is_wanted) continue;
        append(&writer->keys, start, (size_t)(at - start));
        writer->n_keys++;
    }
}

static uint64_t padding(uint64_t n_bytes) { return (ALIGNMENT - n_bytes % ALIGNMENT) % ALIGNMENT; }

void tp_gguf_write_tensor(struct tp_gguf_writer *writer, const char *name, enum talpa_dtype dtype, const struct talpa_shape *shape,
                          const void *data)
{
    static const uint32_t ggml_types[TALPA_N_DTYPES] = {
        [TALPA_F32] = 0, [TALPA_F16] = 1, [TALPA_BF16] = 30, [TALPA_I32] = 26, [TALPA_Q8_0] = 8, [TALPA_Q4_0] = 2, [TALPA_Q4_1] = 3,
        [TALPA_Q5_0] = 6, [TALPA_Q5_1] = 7, [TALPA_Q4_K] = 12, [TALPA_Q5_K] = 13, [TALPA_Q6_K] = 14};
    struct part *part = tp_arena_alloc(&writer->arena, sizeof *part);
    if (!part) {
        writer->tensors.is_short_of_memory = true;
        return;
    }
    int64_t n = 1;
    append_string(&writer->tensors, name);
    append_integer(&writer->tensors, (uint32_t)shape->rank, 4);
    for (int i = shape->rank - 1; i >= 0; i--) {
        append_integer(&writer->tensors, (uint64_t)shape->dim[i], 8);
        n *= shape->dim[i];
    }
    append_integer(&writer->tensors, ggml_types[dtype], 4);
    append_integer(&writer->tensors, writer->data_bytes, 8);
    *part = (struct part){
        .data = data, .n_bytes = tp_dtype_bytes(dtype, n), .row_bytes = tp_dtype_bytes(dtype, shape->dim[shape->rank - 1])};
    writer->data_bytes += part->n_bytes + padding(part->n_bytes);
    writer->n_tensors++;
    if (writer->last)
        writer->last->next = part;
    else
        writer->first = part;
    writer->last = part;
}

/* Everything before the data, padded to the alignment. The caller frees out->bytes, also on failure. */
static enum talpa_status make_header(struct buffer *out, const struct tp_gguf_writer *writer)
{
    append(out, "GGUF", 4);
    append_integer(out, VERSION, 4);
    append_integer(out, writer->n_tensors, 8);
    append_integer(out, writer->n_keys, 8);
    append(out, writer->keys.bytes, writer->keys.n_bytes);
    append(out, writer->tensors.bytes, writer->tensors.n_bytes);
    for (uint64_t n = padding(out->n_bytes); n > 0; n--) append(out, "", 1);
    if (out->is_short_of_memory || writer->keys.is_short_of_memory || writer->tensors.is_short_of_memory)
        return tp_fail_memory("GGUF header", out->n_bytes);
    return TALPA_OK;
}

enum talpa_status tp_gguf_write_bytes(uint8_t **out, size_t *n_bytes, const struct tp_gguf_writer *writer)
{
    static const uint8_t zeros[ALIGNMENT];
    struct buffer buffer = {0};
    enum talpa_status status = make_header(&buffer, writer);
    for (const struct part *part = writer->first; part && status == TALPA_OK; part = part->next) {
        append(&buffer, part->data, part->n_bytes);
        append(&buffer, zeros, (size_t)padding(part->n_bytes));
        if (buffer.is_short_of_memory) status = tp_fail_memory("GGUF data", writer->data_bytes);
    }
    if (status != TALPA_OK) {
        free(buffer.bytes);
        return status;
    }
    *out = buffer.bytes;
    *n_bytes = buffer.n_bytes;
    return TALPA_OK;
}

static enum talpa_status write_parts(struct tp_atomic_file *file, const struct buffer *header, const struct part *part,
                                     const struct tp_row_source *source)
{
    static const uint8_t zeros[ALIGNMENT];
    TP_TRY(tp_atomic_file_write(file, header->bytes, header->n_bytes));
    for (size_t i = 0; part; part = part->next, i++) {
        if (source) {
            const int64_t n_rows = part->row_bytes ? (int64_t)(part->n_bytes / part->row_bytes) : 0;
            TP_TRY(tp_row_source_write(file, source, i, n_rows, part->row_bytes));
        } else {
            TP_TRY(tp_atomic_file_write(file, part->data, part->n_bytes));
        }
        TP_TRY(tp_atomic_file_write(file, zeros, (size_t)padding(part->n_bytes)));
    }
    return TALPA_OK;
}

static enum talpa_status save(const struct tp_gguf_writer *writer, const char *path, const struct tp_row_source *source)
{
    struct tp_atomic_file *file = NULL;
    struct buffer header = {0};
    enum talpa_status status = make_header(&header, writer);
    if (status == TALPA_OK) status = tp_atomic_file_create(&file, path);
    if (status == TALPA_OK) status = write_parts(file, &header, writer->first, source);
    if (status == TALPA_OK)
        status = tp_atomic_file_commit(file);
    else
        tp_atomic_file_discard(file);
    free(header.bytes);
    return status;
}

enum talpa_status tp_gguf_write_save(const struct tp_gguf_writer *writer, const char *path) { return save(writer, path, NULL); }

enum talpa_status tp_gguf_write_save_rows(const struct tp_gguf_writer *writer, const char *path, const struct tp_row_source *source)
{
    return save(writer, path, source);
}
