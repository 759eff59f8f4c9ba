/* Listing of an adapter without its model: the widths of the base are taken from the tensors, then everything is checked as in
 * loading. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/adapter_file.h"
#include "base/hash.h"

enum { MAX_WIDTH = 1 << 24 };

/* Sets a width that is not known yet; contradictions are left to the check of all shapes. */
static enum talpa_status learn(int *width, int64_t value, const char *name)
{
    if (value < 1 || value > MAX_WIDTH)
        return tp_fail(TALPA_E_DATA, "tensor '%s' has a dimension of %lld, expected 1 to %d", name, (long long)value, MAX_WIDTH);
    if (!*width) *width = (int)value;
    return TALPA_OK;
}

static enum talpa_status learn_tensor(struct tp_model_config *base, enum tp_linear linear, const char *suffix,
                                      const struct tp_adapter_entry *tensor)
{
    const bool is_a = !strncmp(suffix, "lora_A.", 7), is_b = !strncmp(suffix, "lora_B.", 7);
    if ((!is_a && !is_b) || tensor->shape.rank != 2) return TALPA_OK;
    int *const d_out[TP_N_LINEARS] = {&base->n_heads, &base->n_kv_heads, &base->n_kv_heads, &base->d_model,
                                      &base->d_ff,    &base->d_ff,       &base->d_model};
    int *const d_in[TP_N_LINEARS] = {&base->d_model, &base->d_model, &base->d_model, &base->n_heads,
                                     &base->d_model, &base->d_model, &base->d_ff};
    return is_a ? learn(d_in[linear], tensor->shape.dim[1], tensor->name) : learn(d_out[linear], tensor->shape.dim[0], tensor->name);
}

/* The widths of the base as far as the tensors tell; head_dim 1, so that n_heads is the width of all heads. */
static enum talpa_status learn_base(struct tp_model_config *base, const struct tp_adapter_file *file)
{
    for (size_t i = 0; i < file->n_entries; i++) {
        int layer;
        enum tp_linear linear;
        const char *suffix;
        if (!tp_adapter_file_name(&layer, &linear, &suffix, file->entries[i].name) || strncmp(suffix, "lora_", 5)) continue;
        if (layer >= base->n_layers) base->n_layers = layer + 1;
        TP_TRY(learn_tensor(base, linear, suffix, &file->entries[i]));
    }
    int *const widths[] = {&base->d_model, &base->n_heads, &base->n_kv_heads, &base->d_ff};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        if (!*widths[i]) *widths[i] = 1;
    base->head_dim = 1;
    return TALPA_OK;
}

/* A layout for the base that the tensors imply. */
static enum talpa_status imply(struct tp_adapter **out, const struct tp_adapter_file *file, const struct talpa_adapter_config *config)
{
    struct talpa_model model = {.path = file->label, .name = "", .architecture = "llama"};
    TP_TRY(learn_base(&model.config, file));
    int64_t per_layer = 0;
    for (int i = 0; i < TALPA_N_MODULES; i++)
        if (config->modules & 1u << i) per_layer += 2 * (int64_t)config->n_experts;
    if (model.config.n_layers < 1 || per_layer * model.config.n_layers > (int64_t)file->n_entries)
        return tp_fail(TALPA_E_DATA, "tensors are missing: found %lld, expected %lld matrices A and B or more for %d layers",
                       (long long)file->n_entries, (long long)(per_layer * model.config.n_layers),
                       model.config.n_layers);
    const enum talpa_status status = tp_adapter_create(out, &model, config);
    return status == TALPA_E_ARGUMENT ? TALPA_E_DATA : status;
}

static void print_settings(FILE *out, const struct talpa_adapter_config *c, const struct tp_adapter_about *about)
{
    char hex[TP_HASH_HEX_BYTES];
    fprintf(out, "routing %s, rank %d, alpha %g, dropout %g", talpa_routing_name(c->routing), c->rank, c->alpha, c->dropout);
    if (c->routing != TALPA_ROUTING_LORA) fprintf(out, ", %d experts", c->n_experts);
    if (tp_router_is_topk(c->routing)) fprintf(out, ", top %d", c->top_k);
    if (c->routing == TALPA_ROUTING_MOELORA) {
        const struct talpa_contrastive_config *k = &c->contrastive;
        fprintf(out, ", trained with contrastive loss x %g (temperature %g, %s outputs%s, ", k->coef, k->temperature,
                k->normalise ? "normalised" : "raw", k->gated ? " times gate weights" : "");
        if (k->n_samples) fprintf(out, "%d samples per expert)", k->n_samples);
        else fputs("all samples)", out);
        fprintf(out, " and balance loss x %g", k->balance_coef);
    }
    if (c->routing == TALPA_ROUTING_THRESHOLD) fprintf(out, ", threshold %g", c->threshold);
    if (c->routing == TALPA_ROUTING_ADAMOLE)
        fprintf(out, ", max threshold %g", c->max_threshold > 0.0 ? c->max_threshold : 1.0 / c->n_experts);
    if (about->is_known)
        fprintf(out, "\nbase %s (%s), saved by talpa %s\n", tp_hash_hex(hex, about->base_digest), about->base_name, about->version);
    else
        fprintf(out, "\nbase unknown\n");
}

/* One line per module and kind of tensor: how many there are, and their shape. */
static void print_groups(FILE *out, const struct tp_adapter *adapter, int n_layers)
{
    static const char *const kinds[TP_N_TENSOR_KINDS] = {"lora_A", "lora_B", "lora_gating.weight", "lora_threshold.weight",
                                                         "lora_threshold.bias"};
    for (int linear = 0; linear < TP_N_LINEARS; linear++) {
        for (int kind = 0; kind < TP_N_TENSOR_KINDS; kind++) {
            const struct tp_adapter_tensor *first = NULL;
            int count = 0;
            for (int i = 0; i < adapter->n_tensors; i++) {
                const struct tp_adapter_tensor *t = &adapter->tensors[i];
                if ((int)t->kind != kind || (int)adapter->modules[t->module].linear != linear) continue;
                if (!first) first = t;
                count++;
            }
            if (!first) continue;
            fprintf(out, "%d x %s.%s [%d", count, tp_linear_name((enum tp_linear)linear), kinds[kind], first->rows);
            if (kind != TP_TENSOR_THRESHOLD_BIAS) fprintf(out, ", %d", first->columns);
            fputs("]\n", out);
        }
    }
    fprintf(out, "%d layers, %d modules, %d tensors, %lld parameters\n", n_layers, adapter->n_modules, adapter->n_tensors,
            (long long)adapter->n_trainable);
}

static enum talpa_status print(char **lines, const struct tp_adapter *adapter, const struct talpa_adapter_config *config,
                               const struct tp_adapter_about *about)
{
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *out = open_memstream(&text, &n_bytes);
    if (!out) return tp_fail_memory("adapter listing", 0);
    print_settings(out, config, about);
    print_groups(out, adapter, adapter->modules[adapter->n_modules - 1].layer + 1);
    const bool is_complete = !ferror(out);
    if (fclose(out) == 0 && is_complete) {
        *lines = text;
        return TALPA_OK;
    }
    free(text);
    return tp_fail_memory("adapter listing", n_bytes);
}

enum talpa_status tp_adapter_file_inspect(struct talpa_adapter_config *config, char **lines, const struct tp_adapter_file *file)
{
    struct talpa_adapter_config found;
    struct tp_adapter_about about;
    struct tp_adapter *adapter = NULL;
    TP_TRY(tp_adapter_file_config(&found, &about, file));
    enum talpa_status status = tp_context(imply(&adapter, file, &found), "%s", file->label);
    if (status == TALPA_OK) status = tp_adapter_file_check(file, adapter);
    if (status == TALPA_OK) status = print(lines, adapter, &found, &about);
    if (status == TALPA_OK) *config = found;
    tp_adapter_free(adapter);
    return status;
}

enum talpa_status talpa_adapter_inspect(struct talpa_adapter_config *config, char **lines, const char *folder)
{
    struct tp_adapter_file file;
    TP_TRY(tp_adapter_file_open(&file, folder));
    const enum talpa_status status = tp_adapter_file_inspect(config, lines, &file);
    tp_adapter_file_close(&file);
    return status;
}
