/* libFuzzer target: any bytes as a safetensors file; everything that opens is read to the last byte. To begin with a valid file, run with a
 * corpus folder and FUZZ_SEED naming a file in it. Since the header length is hard to guess, inputs are also tried as a bare header. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"

enum { LENGTH_BYTES = 8, N_DATA = 16 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static volatile uint64_t sink;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    static const float data[3] = {1.0f};
    const struct tp_safetensors_tensor tensors[] = {{"a.weight", TP_SAFETENSORS_F32, {2, {1, 3}}, data, 12},
                                                    {"b", TP_SAFETENSORS_U8, {1, {4}}, data, 4}};
    const struct tp_safetensors_meta meta[] = {{"format", "pt"}};
    const char *path = getenv("FUZZ_SEED");
    if (path) tp_safetensors_save(path, tensors, 2, meta, 1);
    return 0;
}

static void read_everything(const uint8_t *bytes, size_t n_bytes)
{
    struct tp_safetensors *file;
    if (tp_safetensors_parse(&file, bytes, n_bytes, "fuzz") != TALPA_OK) {
        if (strncmp(talpa_error_message(), "fuzz: ", 6) != 0) abort();
        return;
    }
    for (int64_t i = 0; i < tp_safetensors_n_meta(file); i++) {
        const struct tp_safetensors_meta meta = tp_safetensors_meta_at(file, i);
        if (tp_safetensors_meta_get(file, meta.key) != meta.value) abort();
        sink = sink + strlen(meta.value);
    }
    for (int64_t i = 0; i < tp_safetensors_n_tensors(file); i++) {
        struct tp_safetensors_tensor tensor;
        if (tp_safetensors_get(&tensor, file, tp_safetensors_name(file, i)) != TALPA_OK) continue;
        const uint8_t *data = tensor.data;
        for (size_t k = 0; k < tensor.n_bytes; k++) sink = sink + data[k];
    }
    tp_safetensors_close(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    read_everything(bytes, n_bytes);
    uint8_t *framed = calloc(1, LENGTH_BYTES + n_bytes + N_DATA);
    if (!framed) return 0;
    for (int i = 0; i < LENGTH_BYTES; i++) framed[i] = (uint8_t)((uint64_t)n_bytes >> 8 * i);
    if (n_bytes) memcpy(framed + LENGTH_BYTES, bytes, n_bytes);
    read_everything(framed, LENGTH_BYTES + n_bytes + N_DATA);
    free(framed);
    return 0;
}
