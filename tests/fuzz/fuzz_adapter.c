/* libFuzzer: an adapter's files against the built-in model. The input is adapter_config.json, a NUL, then the safetensors header's JSON
 * (as much zero data follow as it describes). An odd first byte adds a talpa_adapter.json of another base.
 * With FUZZ_SEED set to a folder that exists, valid inputs are written there first. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/adapter_config.h"
#include "adapters/adapter_file.h"
#include "talpa/log.h"

enum { LENGTH_BYTES = 8, MAX_DATA = 1 << 16 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct talpa_model *model;

static void ignore(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    (void)level;
    (void)line;
}

static void seed(const char *folder, enum talpa_routing routing)
{
    struct talpa_adapter_config config = {
        .routing = routing, .rank = 1, .n_experts = 2, .top_k = 1, .alpha = 2.0, .modules = TALPA_MODULE_K};
    struct tp_adapter *adapter;
    struct tp_json_writer *writer;
    const char *text;
    size_t n_bytes, at = 0;
    char path[512];
    if (tp_adapter_create(&adapter, model, &config) != TALPA_OK || tp_json_writer_create(&writer, 0) != TALPA_OK) abort();
    tp_adapter_config_write(writer, &config, "b");
    if (tp_json_writer_text(&text, &n_bytes, writer) != TALPA_OK) abort();
    snprintf(path, sizeof path, "%s/seed-%d", folder, (int)routing);
    FILE *out = fopen(path, "wb");
    if (!out) abort();
    fputc('0', out);
    fwrite(text, 1, n_bytes + 1, out);
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        const size_t end = at + (size_t)t->rows * (size_t)t->columns * 4;
        fprintf(out, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%d", i ? "," : "{", t->name, t->rows);
        if (t->kind != TP_TENSOR_THRESHOLD_BIAS) fprintf(out, ",%d", t->columns);
        fprintf(out, "],\"data_offsets\":[%zu,%zu]}", at, end);
        at = end;
    }
    fputc('}', out);
    fclose(out);
    tp_json_writer_free(writer);
    tp_adapter_free(adapter);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    const char *folder = getenv("FUZZ_SEED");
    talpa_log_set(ignore, NULL);
    if (talpa_model_open(&model, "random:tiny") != TALPA_OK) abort();
    for (int i = 0; folder && i < TALPA_N_ROUTINGS; i++) seed(folder, (enum talpa_routing)i);
    return 0;
}

/* Bytes of data the header describes: the largest number before a "]" decides, so that inputs need not carry zeros. */
static size_t data_bytes(const char *header, size_t n_bytes)
{
    size_t largest = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        size_t value = 0;
        while (i < n_bytes && header[i] >= '0' && header[i] <= '9' && value <= MAX_DATA) value = value * 10 + (size_t)(header[i++] - '0');
        if (i < n_bytes && header[i] == ']' && value > largest && value <= MAX_DATA) largest = value;
    }
    return largest;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char about[] = "{\"format_version\":1,\"base_digest\":\"0123456789abcdef\",\"routing\":\"adamole\"}";
    if (size < 2) return 0;
    const char *text = (const char *)data + 1;
    const char *end = memchr(text, 0, size - 1);
    const size_t n_config = end ? (size_t)(end - text) : size - 1, n_header = end ? size - 2 - n_config : 0;
    const size_t n_data = data_bytes(end ? end + 1 : text, n_header), n_bytes = LENGTH_BYTES + n_header + n_data;
    uint8_t *framed = calloc(1, n_bytes);
    if (!framed) return 0;
    for (int i = 0; i < LENGTH_BYTES; i++) framed[i] = (uint8_t)((uint64_t)n_header >> 8 * i);
    if (n_header) memcpy(framed + LENGTH_BYTES, end + 1, n_header);

    struct tp_adapter_file file = {.label = "fuzz"};
    struct tp_adapter *adapter = NULL;
    float *bank = NULL;
    enum talpa_status status = tp_json_parse(&file.config, text, n_config, "fuzz");
    if (status == TALPA_OK && data[0] & 1) status = tp_json_parse(&file.about, about, sizeof about - 1, "fuzz");
    if (status == TALPA_OK) status = tp_safetensors_parse(&file.tensors, framed, n_bytes, "fuzz");
    if (status == TALPA_OK) status = tp_adapter_file_index(&file);
    if (status == TALPA_OK) {
        status = tp_adapter_file_read(&adapter, &bank, &file, model, data[0] & 2);
        if (status == TALPA_OK) {
            for (int64_t i = 0; i < adapter->bank_elements; i++)
                if (!(bank[i] == 0.0f)) abort();
            if (data[0] & 1 && !(data[0] & 2)) abort(); /* another base */
        } else if (adapter || bank || strncmp(talpa_error_message(), "fuzz: ", 6)) {
            abort();
        }
        struct talpa_adapter_config config;
        char *lines = NULL;
        const enum talpa_status listed = tp_adapter_file_inspect(&config, &lines, &file);
        if (status == TALPA_OK && listed != TALPA_OK) abort();
        if (listed == TALPA_OK && !strstr(lines, " parameters\n")) abort();
        free(lines);
    }
    tp_adapter_free(adapter);
    free(bank);
    tp_adapter_file_close(&file);
    free(framed);
    return 0;
}
