#include "gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/dtype.h"
#include "base/map.h"
#include "base/status.h"
#include "base/utf8.h"
#include "file_map.h"

enum { MAX_ARRAY_DEPTH = 4, MAX_ALIGNMENT = 1 << 20, MIN_KEY_BYTES = 8 + 4 + 1, MIN_TENSOR_BYTES = 8 + 4 + 4 + 8 };

static const struct {
    const char *name;
    size_t n_bytes; /* 0: not of one size */
} value_types[TP_GGUF_N_TYPES] = {
    [TP_GGUF_UINT8] = {"u8", 1},    [TP_GGUF_INT8] = {"i8", 1},   [TP_GGUF_UINT16] = {"u16", 2},  [TP_GGUF_INT16] = {"i16", 2},
    [TP_GGUF_UINT32] = {"u32", 4},  [TP_GGUF_INT32] = {"i32", 4}, [TP_GGUF_FLOAT32] = {"f32", 4}, [TP_GGUF_BOOL] = {"bool", 1},
    [TP_GGUF_UINT64] = {"u64", 8},  [TP_GGUF_INT64] = {"i64", 8}, [TP_GGUF_FLOAT64] = {"f64", 8}, [TP_GGUF_STRING] = {"string", 0},
    [TP_GGUF_ARRAY] = {"array", 0},
};

/* enum ggml_type of ggml.h; the types without a dtype here are known by name only. */
static const char *const ggml_names[] = {
    [0] = "F32",      [1] = "F16",    [2] = "Q4_0",    [3] = "Q4_1",   [6] = "Q5_0",   [7] = "Q5_1",    [8] = "Q8_0",     [9] = "Q8_1",
    [10] = "Q2_K",    [11] = "Q3_K",  [12] = "Q4_K",   [13] = "Q5_K",  [14] = "Q6_K",  [15] = "Q8_K",   [16] = "IQ2_XXS", [17] = "IQ2_XS",
    [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S", [22] = "IQ2_S", [23] = "IQ4_XS", [24] = "I8",      [25] = "I16",
    [26] = "I32",     [27] = "I64",   [28] = "F64",    [29] = "IQ1_M", [30] = "BF16",  [34] = "TQ1_0",  [35] = "TQ2_0",   [39] = "MXFP4",
};

struct entry {
    const char *key;
    enum tp_gguf_type type;
    const uint8_t *bytes; /* numbers and bools */
    const char *string;   /* strings: NUL-terminated copy */
    size_t n_string_bytes;
    struct tp_gguf_array array; /* arrays */
};

struct tensor {
    struct tp_gguf_tensor view;
    uint64_t offset;
    const char *type_name;
    bool is_supported;
};

struct tp_gguf {
    struct tp_file_map map;
    const uint8_t *bytes;
    size_t n_bytes;
    const char *label;
    struct tp_arena arena;
    struct tp_map key_numbers, tensor_numbers;
    struct entry *entries;
    struct tensor *tensors;
    int64_t n_keys, n_tensors;
    size_t at; /* reading position */
};

/* Little-endian integer of 1 to 8 bytes. */
static uint64_t load(const uint8_t *p, size_t n_bytes)
{
    uint64_t value = 0;
    for (size_t i = n_bytes; i-- > 0;) value = value << 8 | p[i];
    return value;
}

static enum talpa_status take(const uint8_t **out, struct tp_gguf *gguf, uint64_t n_bytes, const char *what)
{
    const size_t rest = gguf->n_bytes - gguf->at;
    if (n_bytes > rest)
        return tp_fail(TALPA_E_DATA, "%s: %s at offset %zu: expected %llu bytes, found only %zu to the end of the file; is it complete?",
                       gguf->label, what, gguf->at, (unsigned long long)n_bytes, rest);
    *out = gguf->bytes + gguf->at;
    gguf->at += (size_t)n_bytes;
    return TALPA_OK;
}

static enum talpa_status take_integer(uint64_t *out, struct tp_gguf *gguf, size_t n_bytes, const char *what)
{
    const uint8_t *p = NULL;
    TP_TRY(take(&p, gguf, n_bytes, what));
    *out = load(p, n_bytes);
    return TALPA_OK;
}

static enum talpa_status take_string(struct tp_gguf_string *out, struct tp_gguf *gguf, const char *what)
{
    uint64_t n = 0;
    const uint8_t *p = NULL;
    TP_TRY(take_integer(&n, gguf, 8, what));
    TP_TRY(take(&p, gguf, n, what));
    *out = (struct tp_gguf_string){.bytes = (const char *)p, .n_bytes = (size_t)n};
    return TALPA_OK;
}

/* A key or tensor name: printable, so that messages may show it. */
static enum talpa_status take_name(const char **out, struct tp_gguf *gguf, const char *what)
{
    struct tp_gguf_string name;
    const size_t start = gguf->at;
    TP_TRY(take_string(&name, gguf, what));
    if (name.n_bytes == 0 || name.n_bytes > TP_GGUF_MAX_NAME_BYTES)
        return tp_fail(TALPA_E_DATA, "%s: %s at offset %zu: length %zu, expected 1 to %d", gguf->label, what, start, name.n_bytes,
                       (int)TP_GGUF_MAX_NAME_BYTES);
    for (size_t i = 0, n; i < name.n_bytes; i += n) {
        uint32_t code_point = 0;
        n = tp_utf8_decode(&code_point, name.bytes + i, name.n_bytes - i);
        if (n == 0 || code_point < 0x20 || code_point == 0x7f)
            return tp_fail(TALPA_E_DATA, "%s: %s at offset %zu: found a byte that is not printable UTF-8", gguf->label, what, start);
    }
    *out = tp_arena_strndup(&gguf->arena, name.bytes, name.n_bytes);
    return *out ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status take_type(enum tp_gguf_type *out, struct tp_gguf *gguf, const char *key)
{
    uint64_t type = 0;
    TP_TRY(take_integer(&type, gguf, 4, key));
    if (type >= TP_GGUF_N_TYPES)
        return tp_fail(TALPA_E_DATA, "%s: key \"%s\": found value type %llu, expected 0 to %d", gguf->label, key, (unsigned long long)type,
                       TP_GGUF_N_TYPES - 1);
    *out = (enum tp_gguf_type)type;
    return TALPA_OK;
}

static enum talpa_status check_bools(const struct tp_gguf *gguf, const uint8_t *bytes, uint64_t n, const char *key)
{
    for (uint64_t i = 0; i < n; i++)
        if (bytes[i] > 1) return tp_fail(TALPA_E_DATA, "%s: key \"%s\": found bool %d, expected 0 or 1", gguf->label, key, bytes[i]);
    return TALPA_OK;
}

static enum talpa_status take_array(struct tp_gguf_array *out, struct tp_gguf *gguf, const char *key, int depth)
{
    enum tp_gguf_type type;
    uint64_t n = 0;
    const uint8_t *unused;
    TP_TRY(take_type(&type, gguf, key));
    TP_TRY(take_integer(&n, gguf, 8, key));
    const size_t least = type == TP_GGUF_STRING ? 8 : type == TP_GGUF_ARRAY ? 12 : value_types[type].n_bytes;
    if (n > (gguf->n_bytes - gguf->at) / least)
        return tp_fail(TALPA_E_DATA, "%s: key \"%s\": array of %llu elements of type %s reaches beyond the end of the file", gguf->label,
                       key, (unsigned long long)n, value_types[type].name);
    *out = (struct tp_gguf_array){.type = type, .n = (int64_t)n, .bytes = gguf->bytes + gguf->at};
    if (type == TP_GGUF_ARRAY) {
        if (depth == MAX_ARRAY_DEPTH)
            return tp_fail(TALPA_E_DATA, "%s: key \"%s\": arrays nested deeper than %d", gguf->label, key, (int)MAX_ARRAY_DEPTH);
        for (uint64_t i = 0; i < n; i++) {
            struct tp_gguf_array inner;
            TP_TRY(take_array(&inner, gguf, key, depth + 1));
        }
        return TALPA_OK;
    }
    if (type != TP_GGUF_STRING) {
        TP_TRY(take(&unused, gguf, n * value_types[type].n_bytes, key));
        return type == TP_GGUF_BOOL ? check_bools(gguf, out->bytes, n, key) : TALPA_OK;
    }
    uint64_t *starts = tp_arena_array(&gguf->arena, (size_t)n, sizeof *starts);
    if (!starts) return TALPA_E_DEVICE;
    const size_t first = gguf->at;
    for (uint64_t i = 0; i < n; i++) {
        struct tp_gguf_string string;
        starts[i] = gguf->at - first;
        TP_TRY(take_string(&string, gguf, key));
    }
    out->string_starts = starts;
    return TALPA_OK;
}

static enum talpa_status take_entry(struct entry *out, struct tp_gguf *gguf)
{
    struct entry entry = {0};
    TP_TRY(take_name(&entry.key, gguf, "key"));
    TP_TRY(take_type(&entry.type, gguf, entry.key));
    if (entry.type == TP_GGUF_STRING) {
        struct tp_gguf_string string;
        TP_TRY(take_string(&string, gguf, entry.key));
        entry.string = tp_arena_strndup(&gguf->arena, string.bytes, string.n_bytes);
        entry.n_string_bytes = string.n_bytes;
        if (!entry.string) return TALPA_E_DEVICE;
    } else if (entry.type == TP_GGUF_ARRAY) {
        TP_TRY(take_array(&entry.array, gguf, entry.key, 0));
    } else {
        TP_TRY(take(&entry.bytes, gguf, value_types[entry.type].n_bytes, entry.key));
        if (entry.type == TP_GGUF_BOOL) TP_TRY(check_bools(gguf, entry.bytes, 1, entry.key));
    }
    *out = entry;
    return TALPA_OK;
}

static enum talpa_status put_once(struct tp_map *map, const struct tp_gguf *gguf, const char *name, int64_t number, const char *what)
{
    int64_t earlier;
    if (tp_map_get_string(&earlier, map, name)) return tp_fail(TALPA_E_DATA, "%s: %s \"%s\" given twice", gguf->label, what, name);
    return tp_map_put_string(map, name, number);
}

static bool dtype_of_ggml(enum talpa_dtype *out, uint64_t ggml_type)
{
    static const struct {
        uint64_t ggml_type;
        enum talpa_dtype dtype;
    } table[] = {{0, TALPA_F32},   {1, TALPA_F16},   {2, TALPA_Q4_0},  {3, TALPA_Q4_1},  {6, TALPA_Q5_0},  {7, TALPA_Q5_1},
               {8, TALPA_Q8_0},  {12, TALPA_Q4_K}, {13, TALPA_Q5_K}, {14, TALPA_Q6_K}, {26, TALPA_I32}, {30, TALPA_BF16}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].ggml_type != ggml_type) continue;
        *out = table[i].dtype;
        return true;
    }
    return false;
}

static enum talpa_status take_shape(struct talpa_shape *out, struct tp_gguf *gguf, const char *name)
{
    uint64_t rank = 0, elements = 1;
    TP_TRY(take_integer(&rank, gguf, 4, name));
    if (rank > TALPA_MAX_RANK)
        return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": %llu dimensions, expected at most %d", gguf->label, name, (unsigned long long)rank,
                       (int)TALPA_MAX_RANK);
    struct talpa_shape shape = {.rank = rank ? (int)rank : 1, .dim = {1}};
    for (uint64_t i = 0; i < rank; i++) {
        uint64_t n = 0;
        TP_TRY(take_integer(&n, gguf, 8, name));
        if (n == 0 || n > (uint64_t)INT64_MAX / elements)
            return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": dimension %llu is %llu: zero, or the element count overflows", gguf->label,
                           name, (unsigned long long)i, (unsigned long long)n);
        elements *= n;
        shape.dim[rank - 1 - i] = (int64_t)n;
    }
    *out = shape;
    return TALPA_OK;
}

static enum talpa_status take_tensor(struct tensor *out, struct tp_gguf *gguf)
{
    struct tensor tensor = {0};
    struct tp_gguf_tensor *view = &tensor.view;
    uint64_t ggml_type = 0;
    TP_TRY(take_name(&view->name, gguf, "tensor name"));
    TP_TRY(take_shape(&view->shape, gguf, view->name));
    TP_TRY(take_integer(&ggml_type, gguf, 4, view->name));
    TP_TRY(take_integer(&tensor.offset, gguf, 8, view->name));
    const bool has_name = ggml_type < sizeof ggml_names / sizeof *ggml_names && ggml_names[ggml_type];
    tensor.type_name = has_name ? ggml_names[ggml_type] : tp_arena_printf(&gguf->arena, "type %llu", (unsigned long long)ggml_type);
    if (!tensor.type_name) return TALPA_E_DEVICE;
    tensor.is_supported = dtype_of_ggml(&view->dtype, ggml_type);
    *out = tensor;
    return TALPA_OK;
}

/* Size, alignment and place of a tensor, once the start of the data is known. */
static enum talpa_status place_tensor(struct tensor *tensor, const struct tp_gguf *gguf, uint64_t data_start, uint64_t alignment)
{
    struct tp_gguf_tensor *view = &tensor->view;
    const uint64_t room = data_start <= gguf->n_bytes ? gguf->n_bytes - data_start : 0;
    if (tensor->offset % alignment != 0)
        return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": offset %llu, expected a multiple of the alignment %llu", gguf->label, view->name,
                       (unsigned long long)tensor->offset, (unsigned long long)alignment);
    uint64_t n_bytes = 1;
    if (tensor->is_supported) {
        const uint64_t block = (uint64_t)tp_dtype_block(view->dtype), block_bytes = tp_dtype_block_bytes(view->dtype);
        const int64_t row = view->shape.dim[view->shape.rank - 1];
        if ((uint64_t)row % block != 0)
            return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": rows of %lld elements, expected a multiple of %s's block of %llu", gguf->label,
                           view->name, (long long)row, tensor->type_name, (unsigned long long)block);
        uint64_t blocks = 1;
        for (int i = 0; i < view->shape.rank; i++) blocks *= (uint64_t)view->shape.dim[i];
        blocks /= block;
        n_bytes = blocks <= UINT64_MAX / block_bytes ? blocks * block_bytes : UINT64_MAX;
    }
    if (tensor->offset > room || n_bytes > room - tensor->offset)
        return tp_fail(TALPA_E_DATA,
                       "%s: tensor \"%s\": %llu bytes at data offset %llu, but the file has %llu bytes of data; is it complete?",
                       gguf->label, view->name, (unsigned long long)n_bytes, (unsigned long long)tensor->offset, (unsigned long long)room);
    view->data = gguf->bytes + data_start + tensor->offset;
    view->n_bytes = (size_t)n_bytes;
    return TALPA_OK;
}

static enum talpa_status take_counts(struct tp_gguf *gguf)
{
    const uint8_t *magic = NULL;
    uint64_t version = 0, n_tensors = 0, n_keys = 0;
    TP_TRY(take(&magic, gguf, 4, "magic"));
    if (memcmp(magic, "GGUF", 4) != 0)
        return tp_fail(TALPA_E_DATA, "%s: the first bytes are %02x %02x %02x %02x, expected \"GGUF\"; is it a GGUF file?", gguf->label,
                       magic[0], magic[1], magic[2], magic[3]);
    TP_TRY(take_integer(&version, gguf, 4, "version"));
    if (version != 2 && version != 3)
        return tp_fail(TALPA_E_DATA, "%s: GGUF version %llu, expected 2 or 3%s", gguf->label, (unsigned long long)version,
                       (version & 0xffff) == 0 ? " (is it a big-endian file?)" : "");
    TP_TRY(take_integer(&n_tensors, gguf, 8, "tensor count"));
    TP_TRY(take_integer(&n_keys, gguf, 8, "key count"));
    const size_t rest = gguf->n_bytes - gguf->at;
    if (n_tensors > TP_GGUF_MAX_TENSORS || n_tensors > rest / MIN_TENSOR_BYTES)
        return tp_fail(TALPA_E_DATA, "%s: tensor count %llu, expected at most %d and no more than fit into the file", gguf->label,
                       (unsigned long long)n_tensors, (int)TP_GGUF_MAX_TENSORS);
    if (n_keys > TP_GGUF_MAX_KEYS || n_keys > rest / MIN_KEY_BYTES)
        return tp_fail(TALPA_E_DATA, "%s: key count %llu, expected at most %d and no more than fit into the file", gguf->label,
                       (unsigned long long)n_keys, (int)TP_GGUF_MAX_KEYS);
    gguf->entries = tp_arena_array(&gguf->arena, (size_t)n_keys, sizeof *gguf->entries);
    gguf->tensors = tp_arena_array(&gguf->arena, (size_t)n_tensors, sizeof *gguf->tensors);
    if (!gguf->entries || !gguf->tensors) return TALPA_E_DEVICE;
    gguf->n_keys = (int64_t)n_keys;
    gguf->n_tensors = (int64_t)n_tensors;
    return TALPA_OK;
}

static enum talpa_status read_all(struct tp_gguf *gguf)
{
    int64_t alignment;
    TP_TRY(take_counts(gguf));
    for (int64_t i = 0; i < gguf->n_keys; i++) {
        TP_TRY(take_entry(&gguf->entries[i], gguf));
        TP_TRY(put_once(&gguf->key_numbers, gguf, gguf->entries[i].key, i, "key"));
    }
    for (int64_t i = 0; i < gguf->n_tensors; i++) {
        TP_TRY(take_tensor(&gguf->tensors[i], gguf));
        TP_TRY(put_once(&gguf->tensor_numbers, gguf, gguf->tensors[i].view.name, i, "tensor"));
    }
    TP_TRY(tp_gguf_get_int_or(&alignment, gguf, "general.alignment", TP_GGUF_DEFAULT_ALIGNMENT));
    if (alignment < 1 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0)
        return tp_fail(TALPA_E_DATA, "%s: key \"general.alignment\": found %lld, expected a power of two of at most %d", gguf->label,
                       (long long)alignment, (int)MAX_ALIGNMENT);
    const uint64_t step = (uint64_t)alignment, data_start = (gguf->at + step - 1) / step * step;
    for (int64_t i = 0; i < gguf->n_tensors; i++) TP_TRY(place_tensor(&gguf->tensors[i], gguf, data_start, step));
    return TALPA_OK;
}

/* Takes over `map`. */
static enum talpa_status create(struct tp_gguf **out, struct tp_file_map map, const void *bytes, size_t n_bytes, const char *label)
{
    struct tp_gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf) {
        tp_file_map_close(&map);
        return tp_fail_memory(label, sizeof *gguf);
    }
    gguf->map = map;
    gguf->bytes = bytes;
    gguf->n_bytes = n_bytes;
    gguf->label = tp_arena_strdup(&gguf->arena, label);
    const enum talpa_status status = gguf->label ? read_all(gguf) : TALPA_E_DEVICE;
    if (status == TALPA_OK)
        *out = gguf;
    else
        tp_gguf_close(gguf);
    return status;
}

enum talpa_status tp_gguf_open(struct tp_gguf **out, const char *path)
{
    struct tp_file_map map;
    TP_TRY(tp_file_map_open(&map, path));
    return create(out, map, map.bytes, map.n_bytes, path);
}

enum talpa_status tp_gguf_parse(struct tp_gguf **out, const void *bytes, size_t n_bytes, const char *label)
{
    return create(out, (struct tp_file_map){0}, bytes, n_bytes, label);
}

void tp_gguf_close(struct tp_gguf *gguf)
{
    if (!gguf) return;
    tp_map_free(&gguf->key_numbers);
    tp_map_free(&gguf->tensor_numbers);
    tp_arena_free(&gguf->arena);
    tp_file_map_close(&gguf->map);
    free(gguf);
}

const char *tp_gguf_label(const struct tp_gguf *gguf) { return gguf->label; }

const void *tp_gguf_bytes(size_t *n_bytes, const struct tp_gguf *gguf)
{
    *n_bytes = gguf->n_bytes;
    return gguf->bytes;
}

int64_t tp_gguf_n_keys(const struct tp_gguf *gguf) { return gguf->n_keys; }
const char *tp_gguf_key(const struct tp_gguf *gguf, int64_t i) { return gguf->entries[i].key; }
enum tp_gguf_type tp_gguf_key_type(const struct tp_gguf *gguf, int64_t i) { return gguf->entries[i].type; }
const char *tp_gguf_type_name(enum tp_gguf_type type) { return value_types[type].name; }

static const struct entry *find(const struct tp_gguf *gguf, const char *key)
{
    int64_t i;
    return tp_map_get_string(&i, &gguf->key_numbers, key) ? &gguf->entries[i] : NULL;
}

bool tp_gguf_has(const struct tp_gguf *gguf, const char *key) { return find(gguf, key) != NULL; }

static enum talpa_status fail_key(const struct tp_gguf *gguf, const char *key, const struct entry *entry, const char *expected)
{
    if (!entry) return tp_fail(TALPA_E_DATA, "%s: key \"%s\": missing, expected %s", gguf->label, key, expected);
    return tp_fail(TALPA_E_DATA, "%s: key \"%s\": found a value of type %s%s%s, expected %s", gguf->label, key,
                   value_types[entry->type].name, entry->type == TP_GGUF_ARRAY ? " of " : "",
                   entry->type == TP_GGUF_ARRAY ? value_types[entry->array.type].name : "", expected);
}

static bool load_integer(int64_t *out, enum tp_gguf_type type, const uint8_t *p)
{
    switch (type) {
    case TP_GGUF_UINT8:
    case TP_GGUF_BOOL:
        *out = p[0];
        return true;
    case TP_GGUF_INT8:
        *out = (int8_t)p[0];
        return true;
    case TP_GGUF_UINT16:
        *out = (int64_t)load(p, 2);
        return true;
    case TP_GGUF_INT16:
        *out = (int16_t)load(p, 2);
        return true;
    case TP_GGUF_UINT32:
        *out = (int64_t)load(p, 4);
        return true;
    case TP_GGUF_INT32:
        *out = (int32_t)load(p, 4);
        return true;
    case TP_GGUF_UINT64:
    case TP_GGUF_INT64:
        *out = (int64_t)load(p, 8);
        return true;
    default:
        return false;
    }
}

static bool load_float(double *out, enum tp_gguf_type type, const uint8_t *p)
{
    if (type == TP_GGUF_FLOAT32) {
        const uint32_t bits = (uint32_t)load(p, 4);
        float value;
        memcpy(&value, &bits, sizeof value);
        *out = (double)value;
    } else if (type == TP_GGUF_FLOAT64) {
        const uint64_t bits = load(p, 8);
        memcpy(out, &bits, sizeof *out);
    }
    return type == TP_GGUF_FLOAT32 || type == TP_GGUF_FLOAT64;
}

enum talpa_status tp_gguf_get_int(int64_t *out, const struct tp_gguf *gguf, const char *key)
{
    const struct entry *entry = find(gguf, key);
    int64_t value;
    if (!entry || entry->type == TP_GGUF_BOOL || !load_integer(&value, entry->type, entry->bytes))
        return fail_key(gguf, key, entry, "an integer");
    if (entry->type == TP_GGUF_UINT64 && value < 0)
        return tp_fail(TALPA_E_DATA, "%s: key \"%s\": found %llu, expected at most 2^63-1", gguf->label, key,
                       (unsigned long long)load(entry->bytes, 8));
    *out = value;
    return TALPA_OK;
}

enum talpa_status tp_gguf_get_float(double *out, const struct tp_gguf *gguf, const char *key)
{
    const struct entry *entry = find(gguf, key);
    return entry && load_float(out, entry->type, entry->bytes) ? TALPA_OK : fail_key(gguf, key, entry, "a float");
}

enum talpa_status tp_gguf_get_bool(bool *out, const struct tp_gguf *gguf, const char *key)
{
    const struct entry *entry = find(gguf, key);
    if (!entry || entry->type != TP_GGUF_BOOL) return fail_key(gguf, key, entry, "a bool");
    *out = entry->bytes[0] != 0;
    return TALPA_OK;
}

enum talpa_status tp_gguf_get_string(const char **out, size_t *n_bytes, const struct tp_gguf *gguf, const char *key)
{
    const struct entry *entry = find(gguf, key);
    if (!entry || entry->type != TP_GGUF_STRING) return fail_key(gguf, key, entry, "a string");
    if (!n_bytes && memchr(entry->string, '\0', entry->n_string_bytes))
        return tp_fail(TALPA_E_DATA, "%s: key \"%s\": found a NUL byte inside the string", gguf->label, key);
    if (n_bytes) *n_bytes = entry->n_string_bytes;
    *out = entry->string;
    return TALPA_OK;
}

enum talpa_status tp_gguf_get_array(struct tp_gguf_array *out, const struct tp_gguf *gguf, const char *key, enum tp_gguf_type type)
{
    const struct entry *entry = find(gguf, key);
    if (!entry || entry->type != TP_GGUF_ARRAY || entry->array.type != type) {
        char expected[32] = "an array of ";
        strcat(expected, value_types[type].name);
        return fail_key(gguf, key, entry, expected);
    }
    *out = entry->array;
    return TALPA_OK;
}

enum talpa_status tp_gguf_get_int_or(int64_t *out, const struct tp_gguf *gguf, const char *key, int64_t fallback)
{
    if (tp_gguf_has(gguf, key)) return tp_gguf_get_int(out, gguf, key);
    *out = fallback;
    return TALPA_OK;
}

enum talpa_status tp_gguf_get_float_or(double *out, const struct tp_gguf *gguf, const char *key, double fallback)
{
    if (tp_gguf_has(gguf, key)) return tp_gguf_get_float(out, gguf, key);
    *out = fallback;
    return TALPA_OK;
}

enum talpa_status tp_gguf_get_bool_or(bool *out, const struct tp_gguf *gguf, const char *key, bool fallback)
{
    if (tp_gguf_has(gguf, key)) return tp_gguf_get_bool(out, gguf, key);
    *out = fallback;
    return TALPA_OK;
}

enum talpa_status tp_gguf_get_string_or(const char **out, const struct tp_gguf *gguf, const char *key, const char *fallback)
{
    if (tp_gguf_has(gguf, key)) return tp_gguf_get_string(out, NULL, gguf, key);
    *out = fallback;
    return TALPA_OK;
}

int64_t tp_gguf_array_int(const struct tp_gguf_array *array, int64_t i)
{
    int64_t value = 0;
    load_integer(&value, array->type, array->bytes + (size_t)i * value_types[array->type].n_bytes);
    return value;
}

double tp_gguf_array_float(const struct tp_gguf_array *array, int64_t i)
{
    double value = 0.0;
    load_float(&value, array->type, array->bytes + (size_t)i * value_types[array->type].n_bytes);
    return value;
}

struct tp_gguf_string tp_gguf_array_string(const struct tp_gguf_array *array, int64_t i)
{
    const uint8_t *p = array->bytes + array->string_starts[i];
    return (struct tp_gguf_string){.bytes = (const char *)p + 8, .n_bytes = (size_t)load(p, 8)};
}

int64_t tp_gguf_n_tensors(const struct tp_gguf *gguf) { return gguf->n_tensors; }
const char *tp_gguf_tensor_name(const struct tp_gguf *gguf, int64_t i) { return gguf->tensors[i].view.name; }
const char *tp_gguf_tensor_type_name(const struct tp_gguf *gguf, int64_t i) { return gguf->tensors[i].type_name; }

bool tp_gguf_has_tensor(const struct tp_gguf *gguf, const char *name)
{
    int64_t i;
    return tp_map_get_string(&i, &gguf->tensor_numbers, name);
}

enum talpa_status tp_gguf_tensor_at(struct tp_gguf_tensor *out, const struct tp_gguf *gguf, int64_t i)
{
    const struct tensor *tensor = &gguf->tensors[i];
    if (!tensor->is_supported)
        return tp_fail(
            TALPA_E_DATA,
            "%s: tensor \"%s\": found element type %s, expected F32, F16, BF16, I32, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K; "
            "quantise the model to one of these",
            gguf->label, tensor->view.name, tensor->type_name);
    *out = tensor->view;
    return TALPA_OK;
}

enum talpa_status tp_gguf_tensor_get(struct tp_gguf_tensor *out, const struct tp_gguf *gguf, const char *name)
{
    int64_t i;
    if (!tp_map_get_string(&i, &gguf->tensor_numbers, name))
        return tp_fail(TALPA_E_DATA, "%s: tensor \"%s\": missing (the file has %lld tensors)", gguf->label, name,
                       (long long)gguf->n_tensors);
    return tp_gguf_tensor_at(out, gguf, i);
}
