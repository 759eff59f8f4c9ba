/* The writer half of safetensors.h. */
#include <string.h>

#include "atomic_file.h"
#include "base/json.h"
#include "base/map.h"
#include "base/status.h"
#include "row_source.h"
#include "safetensors.h"

enum { LENGTH_BYTES = 8, ALIGNMENT = 64 };

static enum talpa_status check_tensor(const struct tp_safetensors_tensor *tensor, struct tp_map *names, const char *path)
{
    int64_t unused;
    uint64_t n_bytes = tp_safetensors_type_bytes(tensor->type);
    for (int i = 0; i < tensor->shape.rank; i++) n_bytes *= (uint64_t)tensor->shape.dim[i];
    if (n_bytes != tensor->n_bytes)
        return tp_fail(TALPA_E_ARGUMENT, "%s: tensor \"%s\": %zu bytes given, but type and shape have %llu", path, tensor->name,
                       tensor->n_bytes, (unsigned long long)n_bytes);
    if (strcmp(tensor->name, "__metadata__") == 0 || tp_map_get_string(&unused, names, tensor->name))
        return tp_fail(TALPA_E_ARGUMENT, "%s: tensor \"%s\": name given twice or reserved", path, tensor->name);
    return tp_map_put_string(names, tensor->name, 0);
}

static void write_header(struct tp_json_writer *json, const struct tp_safetensors_tensor *tensors, size_t n_tensors,
                         const struct tp_safetensors_meta *meta, size_t n_meta)
{
    uint64_t offset = 0;
    tp_json_write_object_begin(json);
    if (n_meta) {
        tp_json_write_key(json, "__metadata__");
        tp_json_write_object_begin(json);
        for (size_t i = 0; i < n_meta; i++) tp_json_write_string_member(json, meta[i].key, meta[i].value);
        tp_json_write_object_end(json);
    }
    for (size_t i = 0; i < n_tensors; i++) {
        const struct tp_safetensors_tensor *tensor = &tensors[i];
        tp_json_write_key(json, tensor->name);
        tp_json_write_object_begin(json);
        tp_json_write_string_member(json, "dtype", tp_safetensors_type_name(tensor->type));
        tp_json_write_key(json, "shape");
        tp_json_write_array_begin(json);
        for (int k = 0; k < tensor->shape.rank; k++) tp_json_write_int(json, tensor->shape.dim[k]);
        tp_json_write_array_end(json);
        tp_json_write_key(json, "data_offsets");
        tp_json_write_array_begin(json);
        tp_json_write_int(json, (int64_t)offset);
        offset += tensor->n_bytes;
        tp_json_write_int(json, (int64_t)offset);
        tp_json_write_array_end(json);
        tp_json_write_object_end(json);
    }
    tp_json_write_object_end(json);
}

static enum talpa_status write_all(struct tp_atomic_file *file, const char *header, size_t header_bytes,
                                   const struct tp_safetensors_tensor *tensors, size_t n_tensors, const struct tp_row_source *source)
{
    char spaces[ALIGNMENT];
    uint8_t length[LENGTH_BYTES];
    memset(spaces, ' ', sizeof spaces);
    const size_t n_spaces = (ALIGNMENT - (LENGTH_BYTES + header_bytes) % ALIGNMENT) % ALIGNMENT;
    for (int i = 0; i < LENGTH_BYTES; i++) length[i] = (uint8_t)((uint64_t)(header_bytes + n_spaces) >> 8 * i);
    TP_TRY(tp_atomic_file_write(file, length, sizeof length));
    TP_TRY(tp_atomic_file_write(file, header, header_bytes));
    TP_TRY(tp_atomic_file_write(file, spaces, n_spaces));
    for (size_t i = 0; i < n_tensors; i++) {
        const struct talpa_shape *shape = &tensors[i].shape;
        const size_t row_bytes = tp_safetensors_type_bytes(tensors[i].type) * (size_t)shape->dim[shape->rank - 1];
        if (!source)
            TP_TRY(tp_atomic_file_write(file, tensors[i].data, tensors[i].n_bytes));
        else
            TP_TRY(tp_row_source_write(file, source, i, row_bytes ? (int64_t)(tensors[i].n_bytes / row_bytes) : 0, row_bytes));
    }
    return TALPA_OK;
}

enum talpa_status tp_safetensors_write_rows(struct tp_atomic_file *file, const char *path, const struct tp_safetensors_tensor *tensors,
                                            size_t n_tensors, const struct tp_safetensors_meta *meta, size_t n_meta,
                                            const struct tp_row_source *source)
{
    struct tp_map names = {0};
    struct tp_json_writer *json = NULL;
    const char *header;
    size_t header_bytes;
    enum talpa_status status = TALPA_OK;
    for (size_t i = 0; i < n_tensors; i++) TP_TRY_GOTO(status, check_tensor(&tensors[i], &names, path), out);
    TP_TRY_GOTO(status, tp_json_writer_create(&json, 0), out);
    write_header(json, tensors, n_tensors, meta, n_meta);
    TP_TRY_GOTO(status, tp_json_writer_text(&header, &header_bytes, json), out);
    if (header_bytes > TP_SAFETENSORS_MAX_HEADER_BYTES - ALIGNMENT)
        TP_TRY_GOTO(status, tp_fail(TALPA_E_ARGUMENT, "%s: header of %zu bytes, the format allows 100 MB", path, header_bytes), out);
    status = write_all(file, header, header_bytes, tensors, n_tensors, source);
out:
    tp_json_writer_free(json);
    tp_map_free(&names);
    return status;
}

enum talpa_status tp_safetensors_write(struct tp_atomic_file *file, const char *path, const struct tp_safetensors_tensor *tensors,
                                       size_t n_tensors, const struct tp_safetensors_meta *meta, size_t n_meta)
{
    return tp_safetensors_write_rows(file, path, tensors, n_tensors, meta, n_meta, NULL);
}

enum talpa_status tp_safetensors_save(const char *path, const struct tp_safetensors_tensor *tensors, size_t n_tensors,
                                      const struct tp_safetensors_meta *meta, size_t n_meta)
{
    struct tp_atomic_file *file;
    TP_TRY(tp_atomic_file_create(&file, path));
    const enum talpa_status status = tp_safetensors_write(file, path, tensors, n_tensors, meta, n_meta);
    if (status == TALPA_OK) return tp_atomic_file_commit(file);
    tp_atomic_file_discard(file);
    return status;
}
