/* Quantised blocks against gguf-py (tests/data/quants.safetensors, made by tools/golden/make_quants.py): bit for bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "base/status.h"
#include "io/safetensors.h"

static const struct {
    const char *name;
    enum talpa_dtype dtype;
    bool is_encoded;
} types[] = {{"Q8_0", TALPA_Q8_0, true}, {"Q4_0", TALPA_Q4_0, true},  {"Q4_1", TALPA_Q4_1, true},  {"Q5_0", TALPA_Q5_0, true},
             {"Q5_1", TALPA_Q5_1, true}, {"Q4_K", TALPA_Q4_K, false}, {"Q5_K", TALPA_Q5_K, false}, {"Q6_K", TALPA_Q6_K, false}};
enum { N_TYPES = sizeof types / sizeof *types };

static struct tp_safetensors_tensor tensor_of(const struct tp_safetensors *file, const char *type, const char *what)
{
    struct tp_safetensors_tensor tensor = {0};
    char name[32];
    snprintf(name, sizeof name, "%s%s", type, what);
    if (tp_safetensors_get(&tensor, file, name) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return tensor;
}

static void test_decode(void **state)
{
    for (int t = 0; t < N_TYPES; t++) {
        const struct tp_safetensors_tensor bytes = tensor_of(*state, types[t].name, ".bytes"),
                                           expected = tensor_of(*state, types[t].name, ".f32");
        const size_t n = expected.n_bytes / sizeof(float);
        assert_int_equal(bytes.n_bytes, tp_dtype_bytes(types[t].dtype, (int64_t)n));
        float *values = malloc(expected.n_bytes);
        tp_dtype_to_f32(values, bytes.data, types[t].dtype, (int64_t)n);
        for (size_t i = 0; i < n; i++) {
            float want;
            memcpy(&want, (const uint8_t *)expected.data + i * sizeof want, sizeof want);
            if (values[i] != want) fail_msg("%s: element %zu is %.9g, gguf-py has %.9g", types[t].name, i, (double)values[i], (double)want);
        }
        free(values);
    }
}

static void test_encode(void **state)
{
    const struct tp_safetensors_tensor source = tensor_of(*state, "source", "");
    float values[256];
    assert_int_equal(source.n_bytes, sizeof values);
    memcpy(values, source.data, sizeof values);
    for (int t = 0; t < N_TYPES; t++) {
        if (!types[t].is_encoded) continue;
        const struct tp_safetensors_tensor expected = tensor_of(*state, types[t].name, ".encoded");
        uint8_t bytes[512];
        assert_int_equal(expected.n_bytes, tp_dtype_bytes(types[t].dtype, 256));
        tp_dtype_from_f32(bytes, values, types[t].dtype, 256);
        for (size_t i = 0; i < expected.n_bytes; i++) {
            const uint8_t want = ((const uint8_t *)expected.data)[i];
            if (bytes[i] != want) fail_msg("%s: byte %zu is %02x, gguf-py has %02x", types[t].name, i, bytes[i], want);
        }
    }
}

static int open_file(void **state)
{
    struct tp_safetensors *file;
    if (tp_safetensors_open(&file, TALPA_SOURCE_DIR "/tests/data/quants.safetensors") != TALPA_OK) {
        fprintf(stderr, "%s\n", talpa_error_message());
        return 1;
    }
    *state = file;
    return 0;
}

static int close_file(void **state)
{
    tp_safetensors_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decode), cmocka_unit_test(test_encode)};
    return cmocka_run_group_tests(tests, open_file, close_file);
}
