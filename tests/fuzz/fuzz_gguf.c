/* libFuzzer target: any bytes as a GGUF file; everything that opens is read to the last byte. To begin with a valid file, run with a
 * corpus folder and FUZZ_SEED naming a file in it. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/gguf.h"
#include "io/gguf_write.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static volatile uint64_t sink;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    static const char *const tokens[] = {"<s>", "", "ab"};
    static const int32_t types[] = {3, 1, 1};
    static const float data[64] = {1.0f};
    static const uint8_t blocks[2 * 40] = {1};
    const char *path = getenv("FUZZ_SEED");
    struct tp_gguf_writer *writer;
    if (!path || tp_gguf_write_create(&writer) != TALPA_OK) return 0;
    tp_gguf_write_string(writer, "general.architecture", "llama");
    tp_gguf_write_u32(writer, "general.alignment", 32);
    tp_gguf_write_f32(writer, "eps", 1e-5f);
    tp_gguf_write_bool(writer, "bos", true);
    tp_gguf_write_string_array(writer, "tokens", tokens, 3);
    tp_gguf_write_i32_array(writer, "types", types, 3);
    tp_gguf_write_f32_array(writer, "scores", data, 3);
    tp_gguf_write_tensor(writer, "norm.weight", TALPA_F32, &(struct talpa_shape){1, {3}}, data);
    tp_gguf_write_tensor(writer, "q.weight", TALPA_Q4_1, &(struct talpa_shape){2, {2, 32}}, blocks);
    tp_gguf_write_save(writer, path);
    tp_gguf_write_free(writer);
    return 0;
}

static void read_array(const struct tp_gguf_array *array)
{
    if (array->type == TP_GGUF_ARRAY) return;
    for (int64_t i = 0; i < array->n; i++) {
        if (array->type != TP_GGUF_STRING) {
            sink = sink + (uint64_t)tp_gguf_array_int(array, i) + (tp_gguf_array_float(array, i) > 0.0);
            continue;
        }
        const struct tp_gguf_string string = tp_gguf_array_string(array, i);
        for (size_t k = 0; k < string.n_bytes; k++) sink = sink + (uint8_t)string.bytes[k];
    }
}

static void read_key(const struct tp_gguf *gguf, const char *key)
{
    int64_t integer;
    double real;
    bool flag;
    const char *string;
    size_t n_bytes;
    struct tp_gguf_array array;
    if (tp_gguf_get_int(&integer, gguf, key) == TALPA_OK) sink = sink + (uint64_t)integer;
    if (tp_gguf_get_float(&real, gguf, key) == TALPA_OK) sink = sink + (real > 0.0);
    if (tp_gguf_get_bool(&flag, gguf, key) == TALPA_OK) sink = sink + flag;
    if (tp_gguf_get_string(&string, &n_bytes, gguf, key) == TALPA_OK) sink = sink + strlen(string) + n_bytes;
    for (int type = 0; type < TP_GGUF_N_TYPES; type++)
        if (tp_gguf_get_array(&array, gguf, key, (enum tp_gguf_type)type) == TALPA_OK) read_array(&array);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    struct tp_gguf *gguf;
    if (tp_gguf_parse(&gguf, bytes, n_bytes, "fuzz") != TALPA_OK) {
        if (strncmp(talpa_error_message(), "fuzz: ", 6) != 0) abort();
        return 0;
    }
    for (int64_t i = 0; i < tp_gguf_n_keys(gguf); i++) read_key(gguf, tp_gguf_key(gguf, i));
    for (int64_t i = 0; i < tp_gguf_n_tensors(gguf); i++) {
        struct tp_gguf_tensor tensor;
        if (tp_gguf_tensor_get(&tensor, gguf, tp_gguf_tensor_name(gguf, i)) != TALPA_OK) continue;
        const uint8_t *data = tensor.data;
        for (size_t k = 0; k < tensor.n_bytes; k++) sink = sink + data[k];
    }
    tp_gguf_close(gguf);
    return 0;
}
