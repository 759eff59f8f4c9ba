/* Files made by other programs: block formats bit for bit, and whole models. Skipped where the shared folder is absent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/dtype.h"
#include "io/gguf.h"
#include "io/safetensors.h"

enum { SKIPPED = 77, N_VALUES = 3 * 64 };

static char folder[2048];

static const char *golden(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static struct tp_safetensors_tensor tensor_of(const struct tp_safetensors *file, const char *name)
{
    struct tp_safetensors_tensor tensor = {0};
    if (tp_safetensors_get(&tensor, file, name) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return tensor;
}

static void test_block_formats(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum talpa_dtype dtype;
    } types[] = {{"Q8_0", TALPA_Q8_0}, {"Q4_0", TALPA_Q4_0}, {"Q4_1", TALPA_Q4_1}, {"F16", TALPA_F16}, {"BF16", TALPA_BF16}};
    struct tp_safetensors *file;
    if (tp_safetensors_open(&file, golden("dequant.safetensors")) != TALPA_OK) fail_msg("%s", talpa_error_message());
    float source[N_VALUES], expected[N_VALUES], decoded[N_VALUES];
    memcpy(source, tensor_of(file, "source").data, sizeof source);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char name[32];
        uint8_t encoded[N_VALUES * 4];
        snprintf(name, sizeof name, "%s.bytes", types[i].name);
        const struct tp_safetensors_tensor bytes = tensor_of(file, name);
        snprintf(name, sizeof name, "%s.f32", types[i].name);
        memcpy(expected, tensor_of(file, name).data, sizeof expected);
        assert_int_equal(bytes.n_bytes, tp_dtype_bytes(types[i].dtype, N_VALUES));
        tp_dtype_to_f32(decoded, bytes.data, types[i].dtype, N_VALUES);
        for (int k = 0; k < N_VALUES; k++)
            if (decoded[k] != expected[k])
                fail_msg("%s: element %d decoded to %.9g, expected %.9g", types[i].name, k, (double)decoded[k], (double)expected[k]);
        tp_dtype_from_f32(encoded, source, types[i].dtype, N_VALUES);
        for (size_t k = 0; k < bytes.n_bytes; k++)
            if (encoded[k] != ((const uint8_t *)bytes.data)[k])
                fail_msg("%s: byte %zu encoded as %02x, expected %02x", types[i].name, k, encoded[k], ((const uint8_t *)bytes.data)[k]);
    }
    tp_safetensors_close(file);
}

static void check_model(const char *name, const char *safetensors_name, enum talpa_dtype linear_dtype, int n_tensors)
{
    struct tp_gguf *gguf;
    struct tp_safetensors *hf;
    struct tp_gguf_array tokens;
    struct tp_gguf_tensor tensor;
    const char *architecture;
    int64_t value;
    if (tp_gguf_open(&gguf, golden(name)) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_int_equal(tp_gguf_get_string(&architecture, NULL, gguf, "general.architecture"), TALPA_OK);
    assert_string_equal(architecture, "llama");
    assert_int_equal(tp_gguf_get_int(&value, gguf, "llama.embedding_length"), TALPA_OK);
    assert_int_equal(value, 64);
    assert_int_equal(tp_gguf_get_array(&tokens, gguf, "tokenizer.ggml.tokens", TP_GGUF_STRING), TALPA_OK);
    assert_int_equal(tokens.n, 256);
    assert_int_equal(tp_gguf_n_tensors(gguf), n_tensors);
    for (int64_t i = 0; i < tp_gguf_n_tensors(gguf); i++) assert_int_equal(tp_gguf_tensor_at(&tensor, gguf, i), TALPA_OK);
    assert_int_equal(tp_gguf_tensor_get(&tensor, gguf, "blk.1.ffn_down.weight"), TALPA_OK);
    assert_int_equal(tensor.dtype, linear_dtype);
    assert_int_equal(tensor.shape.dim[0], 64);
    assert_int_equal(tensor.shape.dim[1], 128);
    /* The converter copies this matrix as it is, so the Hugging Face file tells what must come out. */
    if (tp_safetensors_open(&hf, golden(safetensors_name)) != TALPA_OK) fail_msg("%s", talpa_error_message());
    const struct tp_safetensors_tensor original = tensor_of(hf, "model.layers.1.mlp.down_proj.weight");
    assert_int_equal(original.n_bytes, 64 * 128 * sizeof(float));
    uint8_t *encoded = malloc(tensor.n_bytes);
    float *values = malloc(original.n_bytes);
    memcpy(values, original.data, original.n_bytes);
    tp_dtype_from_f32(encoded, values, linear_dtype, 64 * 128);
    assert_memory_equal(tensor.data, encoded, tensor.n_bytes);
    free(values);
    free(encoded);
    tp_safetensors_close(hf);
    tp_gguf_close(gguf);
}

static void test_models(void **state)
{
    (void)state;
    check_model("tied-f32.gguf", "tied/model.safetensors", TALPA_F32, 20);
    check_model("tied-f16.gguf", "tied/model.safetensors", TALPA_F16, 20);
    check_model("tied-q8_0.gguf", "tied/model.safetensors", TALPA_Q8_0, 20);
    check_model("tied-q4_0.gguf", "tied/model.safetensors", TALPA_Q4_0, 20);
    check_model("tied-q4_1.gguf", "tied/model.safetensors", TALPA_Q4_1, 20);
    check_model("untied-f32.gguf", "untied/model.safetensors", TALPA_F32, 21);
    check_model("untied-q4_1.gguf", "untied/model.safetensors", TALPA_Q4_1, 21);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_block_formats), cmocka_unit_test(test_models)};
    const char *shared = getenv("TALPA_SHARED");
    snprintf(folder, sizeof folder, "%s/golden/tiny", shared ? shared : TALPA_SOURCE_DIR "/../shared");
    if (access(golden("dequant.safetensors"), R_OK) != 0) return SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
