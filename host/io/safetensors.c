#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/json.h"
#include "base/map.h"
#include "base/status.h"
#include "file_map.h"

enum { LENGTH_BYTES = 8, MAX_NAME_BYTES = 1024 };

/* The supported types come first, in the order of the enum; the others are known by name and size. */
static const struct {
    const char *name;
    size_t n_bytes;
} types[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I32", 4}, {"I64", 8},  {"U8", 1},  {"F64", 8},     {"I8", 1},
             {"I16", 2}, {"U16", 2}, {"U32", 4},  {"U64", 8}, {"BOOL", 1}, {"C64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

struct tensor {
    struct tp_safetensors_tensor view;
    size_t type; /* index in types */
    uint64_t begin, end;
};

struct tp_safetensors {
    struct tp_file_map map;
    const char *label;
    struct tp_arena arena;
    struct tp_map numbers;
    struct tensor *tensors;
    struct tp_safetensors_meta *meta;
    int64_t n_tensors, n_meta;
    const uint8_t *data;
    uint64_t data_bytes;
};

const char *tp_safetensors_type_name(enum tp_safetensors_type type) { return types[type].name; }
size_t tp_safetensors_type_bytes(enum tp_safetensors_type type) { return types[type].n_bytes; }

static enum talpa_status read_type(struct tensor *tensor, const struct tp_json_value *object)
{
    const char *name;
    TP_TRY(tp_json_get_string(&name, object, "dtype"));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].name, name) != 0) continue;
        tensor->type = i;
        return TALPA_OK;
    }
    return tp_fail(TALPA_E_DATA, "dtype: found \"%.40s\", expected a type such as F32, F16, BF16, I32, I64 or U8", name);
}

/* Shape and, from it, the number of elements. */
static enum talpa_status read_shape(struct tensor *tensor, uint64_t *n_elements, const struct tp_json_value *object)
{
    const struct tp_json_value *list = tp_json_get(object, "shape");
    struct talpa_shape shape = {.dim = {1}};
    if (tp_json_type(list) != TP_JSON_ARRAY) return tp_fail(TALPA_E_DATA, "shape: missing or no array");
    *n_elements = 1;
    for (const struct tp_json_value *item = tp_json_first(list); item; item = tp_json_next(item)) {
        int64_t n;
        if (shape.rank == TALPA_MAX_RANK) return tp_fail(TALPA_E_DATA, "shape: more than %d dimensions", (int)TALPA_MAX_RANK);
        TP_TRY(tp_json_as_int(&n, item, "shape"));
        if (n < 0 || (n > 0 && *n_elements > (uint64_t)INT64_MAX / (uint64_t)n))
            return tp_fail(TALPA_E_DATA, "shape: dimension %lld is negative or the element count overflows", (long long)n);
        *n_elements *= (uint64_t)n;
        shape.dim[shape.rank++] = n;
    }
    if (shape.rank == 0) shape.rank = 1;
    tensor->view.shape = shape;
    return TALPA_OK;
}

static enum talpa_status read_offsets(struct tensor *tensor, const struct tp_json_value *object, uint64_t n_elements, uint64_t data_bytes)
{
    const struct tp_json_value *list = tp_json_get(object, "data_offsets");
    int64_t begin, end;
    if (tp_json_type(list) != TP_JSON_ARRAY || tp_json_length(list) != 2)
        return tp_fail(TALPA_E_DATA, "data_offsets: missing or no array of two numbers");
    TP_TRY(tp_json_as_int(&begin, tp_json_first(list), "data_offsets"));
    TP_TRY(tp_json_as_int(&end, tp_json_next(tp_json_first(list)), "data_offsets"));
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
        return tp_fail(TALPA_E_DATA,
                       "data_offsets: found [%lld, %lld], expected a range within the %llu bytes of data; is the file complete?",
                       (long long)begin, (long long)end, (unsigned long long)data_bytes);
    const uint64_t size = types[tensor->type].n_bytes, n_bytes = (uint64_t)end - (uint64_t)begin;
    if (n_elements > UINT64_MAX / size || n_elements * size != n_bytes)
        return tp_fail(TALPA_E_DATA, "data_offsets: %llu bytes, but the shape has %llu elements of %s", (unsigned long long)n_bytes,
                       (unsigned long long)n_elements, types[tensor->type].name);
    tensor->begin = (uint64_t)begin;
    tensor->end = (uint64_t)end;
    return TALPA_OK;
}

static enum talpa_status read_tensor(struct tensor *tensor, const struct tp_json_value *object, uint64_t data_bytes)
{
    uint64_t n_elements = 0;
    if (tp_json_type(object) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(object)));
    TP_TRY(read_type(tensor, object));
    TP_TRY(read_shape(tensor, &n_elements, object));
    TP_TRY(read_offsets(tensor, object, n_elements, data_bytes));
    return TALPA_OK;
}

static enum talpa_status read_meta(struct tp_safetensors *file, const struct tp_json_value *object)
{
    if (tp_json_type(object) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "%s: __metadata__: found %s, expected an object", file->label,
                       tp_json_type_name(tp_json_type(object)));
    file->meta = tp_arena_array(&file->arena, (size_t)tp_json_length(object), sizeof *file->meta);
    if (!file->meta) return TALPA_E_DEVICE;
    for (const struct tp_json_value *item = tp_json_first(object); item; item = tp_json_next(item)) {
        const char *value;
        const enum talpa_status status = tp_json_as_string(&value, item, tp_json_key(item));
        if (status != TALPA_OK) return tp_context(status, "%s: __metadata__", file->label);
        struct tp_safetensors_meta *meta = &file->meta[file->n_meta];
        meta->key = tp_arena_strdup(&file->arena, tp_json_key(item));
        meta->value = tp_arena_strdup(&file->arena, value);
        if (!meta->key || !meta->value) return TALPA_E_DEVICE;
        file->n_meta++;
    }
    return TALPA_OK;
}

static int compare_places(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end == y->end ? strcmp(x->view.name, y->view.name) : x->end < y->end ? -1 : 1;
}

/* Sorts the tensors by place and finds holes and overlaps; fills what depends on the order. */
static enum talpa_status place_tensors(struct tp_safetensors *file)
{
    uint64_t end = 0;
    if (file->n_tensors) qsort(file->tensors, (size_t)file->n_tensors, sizeof *file->tensors, compare_places);
    for (int64_t i = 0; i < file->n_tensors; i++) {
        struct tensor *tensor = &file->tensors[i];
        if (tensor->begin != end)
            return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": data_offsets: starts at %llu, expected %llu: %s the tensor before it",
                           file->label, tensor->view.name, (unsigned long long)tensor->begin, (unsigned long long)end,
                           tensor->begin < end ? "overlaps" : "leaves a hole after");
        end = tensor->end;
        tensor->view.data = file->data + tensor->begin;
        tensor->view.n_bytes = (size_t)(tensor->end - tensor->begin);
        if (tensor->type < TP_SAFETENSORS_N_TYPES) tensor->view.type = (enum tp_safetensors_type)tensor->type;
        TP_TRY(tp_map_put_string(&file->numbers, tensor->view.name, i));
    }
    if (end != file->data_bytes)
        return tp_fail(TALPA_E_DATA, "%s: the tensors end at byte %llu of the data, which has %llu bytes", file->label,
                       (unsigned long long)end, (unsigned long long)file->data_bytes);
    return TALPA_OK;
}

static enum talpa_status read_members(struct tp_safetensors *file, const struct tp_json_value *root)
{
    if (tp_json_type(root) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "%s: header: found %s, expected an object", file->label, tp_json_type_name(tp_json_type(root)));
    file->tensors = tp_arena_array(&file->arena, (size_t)tp_json_length(root), sizeof *file->tensors);
    if (!file->tensors) return TALPA_E_DEVICE;
    for (const struct tp_json_value *item = tp_json_first(root); item; item = tp_json_next(item)) {
        const char *name = tp_json_key(item);
        if (strcmp(name, "__metadata__") == 0) {
            TP_TRY(read_meta(file, item));
            continue;
        }
        if (strlen(name) > MAX_NAME_BYTES)
            return tp_fail(TALPA_E_DATA, "%s: tensor \"%.60s...\": name of more than %d bytes", file->label, name, (int)MAX_NAME_BYTES);
        struct tensor *tensor = &file->tensors[file->n_tensors];
        tensor->view.name = tp_arena_strdup(&file->arena, name);
        if (!tensor->view.name) return TALPA_E_DEVICE;
        const enum talpa_status status = read_tensor(tensor, item, file->data_bytes);
        if (status != TALPA_OK) return tp_context(status, "%s: tensor \"%s\"", file->label, name);
        file->n_tensors++;
    }
    return place_tensors(file);
}

static enum talpa_status read_all(struct tp_safetensors *file, const uint8_t *bytes, size_t n_bytes)
{
    uint64_t header_bytes = 0;
    struct tp_json *json;
    if (n_bytes < LENGTH_BYTES)
        return tp_fail(TALPA_E_DATA, "%s: %zu bytes, expected at least 8 for the header length; is the file complete?", file->label,
                       n_bytes);
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) header_bytes = header_bytes << 8 | bytes[i];
    if (header_bytes > TP_SAFETENSORS_MAX_HEADER_BYTES || header_bytes > n_bytes - LENGTH_BYTES)
        return tp_fail(TALPA_E_DATA,
                       "%s: header length %llu, expected at most %d and the file's %zu bytes; is it a complete safetensors file?",
                       file->label, (unsigned long long)header_bytes, (int)TP_SAFETENSORS_MAX_HEADER_BYTES, n_bytes);
    if (header_bytes == 0 || bytes[LENGTH_BYTES] != '{')
        return tp_fail(TALPA_E_DATA, "%s: the header does not begin with '{'; is it a safetensors file?", file->label);
    file->data = bytes + LENGTH_BYTES + header_bytes;
    file->data_bytes = n_bytes - LENGTH_BYTES - header_bytes;
    TP_TRY(tp_json_parse(&json, (const char *)bytes + LENGTH_BYTES, (size_t)header_bytes, file->label));
    const enum talpa_status status = read_members(file, tp_json_root(json));
    tp_json_free(json);
    return status;
}

/* Takes over `map`. */
static enum talpa_status create(struct tp_safetensors **out, struct tp_file_map map, const void *bytes, size_t n_bytes, const char *label)
{
    struct tp_safetensors *file = calloc(1, sizeof *file);
    if (!file) {
        tp_file_map_close(&map);
        return tp_fail_memory(label, sizeof *file);
    }
    file->map = map;
    file->label = tp_arena_strdup(&file->arena, label);
    const enum talpa_status status = file->label ? read_all(file, bytes, n_bytes) : TALPA_E_DEVICE;
    if (status == TALPA_OK)
        *out = file;
    else
        tp_safetensors_close(file);
    return status;
}

enum talpa_status tp_safetensors_open(struct tp_safetensors **out, const char *path)
{
    struct tp_file_map map;
    TP_TRY(tp_file_map_open(&map, path));
    return create(out, map, map.bytes, map.n_bytes, path);
}

enum talpa_status tp_safetensors_parse(struct tp_safetensors **out, const void *bytes, size_t n_bytes, const char *label)
{
    return create(out, (struct tp_file_map){0}, bytes, n_bytes, label);
}

void tp_safetensors_close(struct tp_safetensors *file)
{
    if (!file) return;
    tp_map_free(&file->numbers);
    tp_arena_free(&file->arena);
    tp_file_map_close(&file->map);
    free(file);
}

const char *tp_safetensors_label(const struct tp_safetensors *file) { return file->label; }
int64_t tp_safetensors_n_tensors(const struct tp_safetensors *file) { return file->n_tensors; }
const char *tp_safetensors_name(const struct tp_safetensors *file, int64_t i) { return file->tensors[i].view.name; }

bool tp_safetensors_has(const struct tp_safetensors *file, const char *name)
{
    int64_t i;
    return tp_map_get_string(&i, &file->numbers, name);
}

enum talpa_status tp_safetensors_at(struct tp_safetensors_tensor *out, const struct tp_safetensors *file, int64_t i)
{
    const struct tensor *tensor = &file->tensors[i];
    if (tensor->type >= TP_SAFETENSORS_N_TYPES)
        return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": found dtype %s, expected F32, F16, BF16, I32, I64 or U8", file->label,
                       tensor->view.name, types[tensor->type].name);
    *out = tensor->view;
    return TALPA_OK;
}

enum talpa_status tp_safetensors_get(struct tp_safetensors_tensor *out, const struct tp_safetensors *file, const char *name)
{
    int64_t i;
    if (!tp_map_get_string(&i, &file->numbers, name))
        return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": missing (the file has %lld tensors)", file->label, name,
                       (long long)file->n_tensors);
    return tp_safetensors_at(out, file, i);
}

enum talpa_status tp_safetensors_dtype(enum talpa_dtype *out, const struct tp_safetensors_tensor *tensor)
{
    static const enum talpa_dtype dtypes[] = {TALPA_F32, TALPA_F16, TALPA_BF16, TALPA_I32};
    if ((size_t)tensor->type >= sizeof dtypes / sizeof *dtypes)
        return tp_fail(TALPA_E_DATA, "tensor \"%s\": found dtype %s, expected F32, F16, BF16 or I32", tensor->name,
                       types[tensor->type].name);
    *out = dtypes[tensor->type];
    return TALPA_OK;
}

int64_t tp_safetensors_n_meta(const struct tp_safetensors *file) { return file->n_meta; }
struct tp_safetensors_meta tp_safetensors_meta_at(const struct tp_safetensors *file, int64_t i) { return file->meta[i]; }

const char *tp_safetensors_meta_get(const struct tp_safetensors *file, const char *key)
{
    for (int64_t i = 0; i < file->n_meta; i++)
        if (strcmp(file->meta[i].key, key) == 0) return file->meta[i].value;
    return NULL;
}
