/* Adapters for other programs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapters/adapter_file.h"
#include "adapters/adapter_gguf.h"
#include "io/folder.h"

enum { NAME_BYTES = 32 };

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static enum talpa_status export_peft(struct talpa_export_result *result, const struct tp_adapter *adapter, const float *bank,
                                     struct talpa_model *model, const struct talpa_export_options *o)
{
    bool made;
    if (adapter->config.routing != TALPA_ROUTING_LORA)
        return tp_fail(TALPA_E_ARGUMENT,
                       "%s: a mixture (%s) has no form that PEFT loads; its folder already has the published layout, and --format gguf "
                       "writes its experts one by one with a router file",
                       o->lora, talpa_routing_name(adapter->config.routing));
    TP_TRY(tp_folder_make(&made, o->output));
    const enum talpa_status status = tp_adapter_save_as(adapter, bank, o->output, model, o->base_name ? o->base_name : model->name);
    if (status != TALPA_OK && made) rmdir(o->output);
    result->n_files = 3;
    return status;
}

static enum talpa_status export_experts(struct talpa_export_result *result, const struct tp_adapter *adapter, const float *bank,
                                        struct talpa_model *model, const struct talpa_export_options *o)
{
    const int n = adapter->config.n_experts;
    char(*names)[NAME_BYTES] = calloc((size_t)n, sizeof *names), *path = NULL;
    const char **list = calloc((size_t)n, sizeof *list);
    enum talpa_status status = names && list ? TALPA_OK : tp_fail_memory(o->output, (size_t)n * NAME_BYTES);
    for (int e = 0; e < n && status == TALPA_OK; e++) {
        snprintf(names[e], NAME_BYTES, "expert-%d.gguf", e);
        list[e] = names[e];
        status = tp_adapter_file_join(&path, o->output, names[e]);
        if (status == TALPA_OK) status = tp_adapter_gguf_save(adapter, bank, e, path, model, o->dtype);
        free(path);
        path = NULL;
    }
    /* The router comes last: a folder that has it has everything. */
    if (status == TALPA_OK) status = tp_adapter_file_join(&path, o->output, "router.gguf");
    if (status == TALPA_OK) status = tp_adapter_gguf_save_router(adapter, bank, list, path, model);
    free(path);
    for (int e = 0; e < n && status != TALPA_OK && names; e++) { /* no set with experts missing stays behind */
        path = NULL;
        if (names[e][0] && tp_adapter_file_join(&path, o->output, names[e]) == TALPA_OK) unlink(path);
        free(path);
    }
    free(names);
    free(list);
    result->n_files = n + 1;
    return status;
}

static enum talpa_status export_gguf(struct talpa_export_result *result, const struct tp_adapter *adapter, const float *bank,
                                     struct talpa_model *model, const struct talpa_export_options *o)
{
    bool made;
    const bool is_mixture = adapter->config.routing != TALPA_ROUTING_LORA;
    if (is_mixture == ends_with(o->output, ".gguf"))
        return tp_fail(TALPA_E_ARGUMENT,
                       is_mixture ? "%s: a mixture becomes one file per expert and a router: give --output-dir a folder's name"
                                  : "%s: a LoRA becomes one file: give --output-file a name that ends in .gguf",
                       o->output);
    if (!is_mixture) {
        result->n_files = 1;
        return tp_adapter_gguf_save(adapter, bank, 0, o->output, model, o->dtype);
    }
    TP_TRY(tp_folder_make(&made, o->output));
    const enum talpa_status status = export_experts(result, adapter, bank, model, o);
    if (status != TALPA_OK && made) rmdir(o->output);
    return status;
}

enum talpa_status talpa_adapter_export(struct talpa_export_result *result, struct talpa_model *model,
                                       const struct talpa_export_options *options)
{
    struct tp_adapter *adapter;
    float *bank;
    if (!options->lora || !options->output) return tp_fail(TALPA_E_ARGUMENT, "--lora and --output-file or --output-dir are needed");
    if (options->format == TALPA_EXPORT_GGUF && options->dtype != TALPA_F32 && options->dtype != TALPA_F16)
        return tp_fail(TALPA_E_ARGUMENT, "--type is %s, expected f32 or f16", talpa_dtype_name(options->dtype));
    TP_TRY(tp_adapter_load(&adapter, &bank, options->lora, model, options->allow_other_base));
    struct talpa_export_result filled = {.n_parameters = adapter->n_trainable};
    const enum talpa_status status = options->format == TALPA_EXPORT_GGUF ? export_gguf(&filled, adapter, bank, model, options)
                                                                         : export_peft(&filled, adapter, bank, model, options);
    tp_adapter_free(adapter);
    free(bank);
    if (status == TALPA_OK) *result = filled;
    return status;
}
