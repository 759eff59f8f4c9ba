/* libFuzzer: a GGUF LoRA file against the built-in model: loading and listing agree, and what loads is finite and has no unused tensor.
 * With FUZZ_SEED set to a folder that exists, valid inputs are written there first. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/adapter_file.h"
#include "adapters/adapter_gguf.h"
#include "talpa/log.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct talpa_model *model;

static void ignore(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    (void)level;
    (void)line;
}

static void seed(const char *folder, int number, unsigned modules, enum talpa_dtype dtype)
{
    const struct talpa_adapter_config config = {.routing = TALPA_ROUTING_LORA, .rank = 1 + number, .n_experts = 1, .alpha = 2.0, .modules = modules};
    struct tp_adapter *adapter;
    char path[512];
    if (tp_adapter_create(&adapter, model, &config) != TALPA_OK) abort();
    float *bank = calloc((size_t)adapter->bank_elements, sizeof *bank);
    if (!bank) abort();
    snprintf(path, sizeof path, "%s/seed-%d", folder, number);
    if (tp_adapter_gguf_save(adapter, bank, 0, path, model, dtype) != TALPA_OK) abort();
    free(bank);
    tp_adapter_free(adapter);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    const char *folder = getenv("FUZZ_SEED");
    talpa_log_set(ignore, NULL);
    if (talpa_model_open(&model, "random:tiny") != TALPA_OK) abort();
    if (!folder) return 0;
    seed(folder, 0, TALPA_MODULE_K, TALPA_F32);
    seed(folder, 1, TALPA_MODULE_Q, TALPA_F16);
    seed(folder, 2, TALPA_MODULE_V | TALPA_MODULE_DOWN, TALPA_F16);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tp_adapter_file file = {.label = "fuzz"};
    struct tp_adapter *adapter = NULL;
    struct talpa_adapter_config config;
    float *bank = NULL;
    char *lines = NULL;
    enum talpa_status status = tp_gguf_parse(&file.gguf, data, size, "fuzz");
    if (status == TALPA_OK) status = tp_adapter_file_index(&file);
    if (status == TALPA_OK) {
        status = tp_adapter_file_read(&adapter, &bank, &file, model, true);
        if (status == TALPA_OK) {
            if ((size_t)adapter->n_tensors != file.n_entries) abort();
            for (int64_t i = 0; i < adapter->bank_elements; i++)
                if (!isfinite(bank[i])) abort();
        } else if (adapter || bank || strncmp(talpa_error_message(), "fuzz: ", 6)) {
            abort();
        }
        const enum talpa_status listed = tp_adapter_file_inspect(&config, &lines, &file);
        if (status == TALPA_OK && listed != TALPA_OK) abort();
        free(lines);
    }
    tp_adapter_free(adapter);
    free(bank);
    tp_adapter_file_close(&file);
    return 0;
}
