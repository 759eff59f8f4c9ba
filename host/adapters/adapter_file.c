#include "adapter_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapters/adapter_config.h"
#include "adapters/adapter_gguf.h"
#include "base/dtype.h"
#include "base/hash.h"
#include "base/log.h"

enum { MAX_LAYER_DIGITS = 6 };

static const char config_name[] = TP_ADAPTER_CONFIG_NAME, about_name[] = TP_ADAPTER_ABOUT_NAME, tensors_name[] = TP_ADAPTER_TENSORS_NAME;

enum talpa_status tp_adapter_file_join(char **out, const char *folder, const char *name)
{
    const size_t n = strlen(folder), n_bytes = n + strlen(name) + 2;
    char *path = malloc(n_bytes);
    if (!path) return tp_fail_memory(folder, n_bytes);
    snprintf(path, n_bytes, "%s%s%s", folder, n > 0 && folder[n - 1] == '/' ? "" : "/", name);
    *out = path;
    return TALPA_OK;
}

static bool exists(const char *folder, const char *name)
{
    char *path;
    if (tp_adapter_file_join(&path, folder, name) != TALPA_OK) return false;
    const bool found = access(path, F_OK) == 0;
    free(path);
    return found;
}

/* In messages, what stands between the label and the tensor: nothing for a file that is one. */
static const char *part_of(const struct tp_adapter_file *file) { return file->gguf ? "" : TP_ADAPTER_TENSORS_NAME ": "; }

/* ---- opening ---- */

static enum talpa_status open_json(struct tp_json **out, const char *folder, const char *name)
{
    char *path;
    TP_TRY(tp_adapter_file_join(&path, folder, name));
    const enum talpa_status status = tp_json_parse_file(out, path);
    free(path);
    return status;
}

static enum talpa_status open_tensors(struct tp_safetensors **out, const char *folder)
{
    char *path;
    if (!exists(folder, tensors_name) && exists(folder, "adapter_model.bin"))
        return tp_fail(TALPA_E_NO_INPUT, "%s: found adapter_model.bin, expected %s; save the adapter as safetensors", folder, tensors_name);
    TP_TRY(tp_adapter_file_join(&path, folder, tensors_name));
    const enum talpa_status status = tp_safetensors_open(out, path);
    free(path);
    return status;
}

static bool is_file(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0 && S_ISREG(about.st_mode);
}

static enum talpa_status open_folder(struct tp_adapter_file *file, const char *folder)
{
    TP_TRY(open_json(&file->config, folder, config_name));
    if (exists(folder, about_name)) TP_TRY(open_json(&file->about, folder, about_name));
    if (exists(folder, TP_ADAPTER_MOELORA_NAME)) TP_TRY(open_json(&file->moelora, folder, TP_ADAPTER_MOELORA_NAME));
    return open_tensors(&file->tensors, folder);
}

enum talpa_status tp_adapter_file_open(struct tp_adapter_file *out, const char *path)
{
    struct tp_adapter_file file = {.label = path};
    const size_t n = strlen(path);
    enum talpa_status status = is_file(path) || (n > 5 && !strcmp(path + n - 5, ".gguf")) ? tp_gguf_open(&file.gguf, path)
                                                                                         : open_folder(&file, path);
    if (status == TALPA_OK) status = tp_adapter_file_index(&file);
    if (status == TALPA_OK)
        *out = file;
    else
        tp_adapter_file_close(&file);
    return status;
}

void tp_adapter_file_close(struct tp_adapter_file *file)
{
    tp_json_free(file->config);
    tp_json_free(file->about);
    tp_json_free(file->moelora);
    tp_safetensors_close(file->tensors);
    tp_gguf_close(file->gguf);
    tp_map_free(&file->entry_of);
    tp_arena_free(&file->arena);
    *file = (struct tp_adapter_file){0};
}

/* ---- index ---- */

static enum talpa_status entry_of_gguf(struct tp_adapter_entry *out, struct tp_adapter_file *file, int64_t i)
{
    struct tp_gguf_tensor tensor;
    TP_TRY(tp_gguf_tensor_at(&tensor, file->gguf, i));
    *out = (struct tp_adapter_entry){.name = tp_adapter_gguf_name(&file->arena, tensor.name),
                                     .file_name = tensor.name,
                                     .type_name = tp_gguf_tensor_type_name(file->gguf, i),
                                     .is_real = tensor.dtype != TALPA_I32,
                                     .dtype = tensor.dtype,
                                     .shape = tensor.shape,
                                     .data = tensor.data};
    return out->name ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status entry_of_safetensors(struct tp_adapter_entry *out, const struct tp_adapter_file *file, int64_t i)
{
    struct tp_safetensors_tensor tensor;
    TP_TRY(tp_safetensors_at(&tensor, file->tensors, i));
    *out = (struct tp_adapter_entry){.name = tensor.name,
                                     .file_name = tensor.name,
                                     .type_name = tp_safetensors_type_name(tensor.type),
                                     .is_real = tensor.type == TP_SAFETENSORS_F32 || tensor.type == TP_SAFETENSORS_F16 ||
                                                tensor.type == TP_SAFETENSORS_BF16,
                                     .shape = tensor.shape,
                                     .data = tensor.data};
    return out->is_real ? tp_safetensors_dtype(&out->dtype, &tensor) : TALPA_OK;
}

enum talpa_status tp_adapter_file_index(struct tp_adapter_file *file)
{
    const int64_t n = file->gguf ? tp_gguf_n_tensors(file->gguf) : tp_safetensors_n_tensors(file->tensors);
    file->entries = tp_arena_array(&file->arena, (size_t)n + 1, sizeof *file->entries);
    if (!file->entries) return TALPA_E_DEVICE;
    TP_TRY(tp_map_reserve(&file->entry_of, (size_t)n));
    for (int64_t i = 0; i < n; i++) {
        struct tp_adapter_entry *entry = &file->entries[i];
        TP_TRY(tp_context(file->gguf ? entry_of_gguf(entry, file, i) : entry_of_safetensors(entry, file, i), "%s", file->label));
        if (tp_adapter_file_entry(file, entry->name))
            return tp_fail(TALPA_E_DATA, "%s: tensor '%s' stands for %s, which is there already", file->label, entry->file_name,
                           entry->name);
        TP_TRY(tp_map_put_string(&file->entry_of, entry->name, i));
        file->n_entries++;
    }
    return TALPA_OK;
}

const struct tp_adapter_entry *tp_adapter_file_entry(const struct tp_adapter_file *file, const char *name)
{
    int64_t index;
    return tp_map_get_string(&index, &file->entry_of, name) ? &file->entries[index] : NULL;
}

/* ---- configuration ---- */

bool tp_adapter_file_name(int *layer, enum tp_linear *linear, const char **suffix, const char *name)
{
    static const char prefix[] = "base_model.model.model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1)) return false;
    const char *digits = name + sizeof prefix - 1;
    const size_t n_digits = strspn(digits, "0123456789");
    if (n_digits < 1 || n_digits > MAX_LAYER_DIGITS || (digits[0] == '0' && n_digits > 1) || digits[n_digits] != '.') return false;
    const char *module = digits + n_digits + 1;
    for (int i = 0; i < TP_N_LINEARS; i++) {
        const char *known = tp_linear_name((enum tp_linear)i);
        const size_t n = strlen(known);
        if (strncmp(module, known, n) || module[n] != '.') continue;
        *layer = atoi(digits);
        *linear = (enum tp_linear)i;
        *suffix = module + n + 1;
        return true;
    }
    return false;
}

bool tp_adapter_file_is_duplicate(const struct talpa_adapter_config *config, const char *name)
{
    int layer;
    enum tp_linear linear;
    const char *suffix;
    return config->routing != TALPA_ROUTING_LORA && tp_adapter_file_name(&layer, &linear, &suffix, name) &&
           !strncmp(suffix, "moe_layer.", 10);
}

enum talpa_status tp_adapter_file_digest(uint64_t *out, const char *text)
{
    if (strlen(text) != TP_HASH_HEX_BYTES - 1 || strspn(text, "0123456789abcdef") != TP_HASH_HEX_BYTES - 1)
        return tp_fail(TALPA_E_DATA, "base_digest: found '%.40s', expected 16 hexadecimal digits", text);
    *out = strtoull(text, NULL, 16);
    return TALPA_OK;
}

static enum talpa_status read_about(struct tp_adapter_about *out, const struct tp_json_value *root, enum talpa_routing routing)
{
    struct tp_adapter_about about = {.is_known = true};
    int64_t version;
    const char *digest, *found;
    TP_TRY(tp_json_get_int(&version, root, "format_version"));
    if (version != TP_ADAPTER_FORMAT_VERSION)
        return tp_fail(TALPA_E_DATA, "format_version: found %lld, expected %d: the adapter is of another version of talpa",
                       (long long)version, TP_ADAPTER_FORMAT_VERSION);
    TP_TRY(tp_json_get_string(&digest, root, "base_digest"));
    TP_TRY(tp_adapter_file_digest(&about.base_digest, digest));
    TP_TRY(tp_json_get_string_or(&about.base_name, root, "base_name", ""));
    TP_TRY(tp_json_get_string_or(&about.version, root, "talpa_version", ""));
    TP_TRY(tp_json_get_string(&found, root, "routing"));
    if (strcmp(found, talpa_routing_name(routing)))
        return tp_fail(TALPA_E_DATA, "routing: found '%.40s', expected %s as in %s", found, talpa_routing_name(routing), config_name);
    *out = about;
    return TALPA_OK;
}

/* The set of modules that any tensor belongs to. */
static unsigned derive_modules(const struct tp_adapter_file *file)
{
    unsigned found = 0;
    for (size_t i = 0; i < file->n_entries; i++) {
        int layer;
        enum tp_linear linear;
        const char *suffix;
        if (tp_adapter_file_name(&layer, &linear, &suffix, file->entries[i].name)) found |= 1u << linear;
    }
    return found;
}

/* moelora is saved in the published layout of top-k mixtures: talpa_adapter.json tells them apart, or, without it, moelora_train.json. */
static enum talpa_status find_moelora(struct talpa_adapter_config *config, const struct tp_adapter_file *file)
{
    const char *routing = talpa_routing_name(TALPA_ROUTING_MOELORA);
    config->contrastive = talpa_adapter_default().contrastive;
    if (config->routing != TALPA_ROUTING_TOPK) return TALPA_OK;
    /* read_about says what is wrong */
    if (file->about && tp_json_get_string(&routing, tp_json_root(file->about), "routing") != TALPA_OK) return TALPA_OK;
    if (strcmp(routing, talpa_routing_name(TALPA_ROUTING_MOELORA)) || (!file->about && !file->moelora)) return TALPA_OK;
    config->routing = TALPA_ROUTING_MOELORA;
    if (!file->moelora) return TALPA_OK;
    return tp_context(tp_adapter_contrastive_read(&config->contrastive, tp_json_root(file->moelora)), "%s: " TP_ADAPTER_MOELORA_NAME,
                      file->label);
}

static enum talpa_status folder_config(struct talpa_adapter_config *config, struct tp_adapter_about *about,
                                       const struct tp_adapter_file *file)
{
    const enum talpa_status status = tp_adapter_config_read(config, tp_json_root(file->config));
    if (status != TALPA_OK) return tp_context(status, "%s: %s", file->label, config_name);
    TP_TRY(find_moelora(config, file));
    if (!file->about) return TALPA_OK;
    return tp_context(read_about(about, tp_json_root(file->about), config->routing), "%s: %s", file->label, about_name);
}

enum talpa_status tp_adapter_file_config(struct talpa_adapter_config *config, struct tp_adapter_about *about,
                                         const struct tp_adapter_file *file)
{
    struct talpa_adapter_config c;
    struct tp_adapter_about a = {0};
    if (file->gguf)
        TP_TRY(tp_context(tp_adapter_gguf_config(&c, &a, file), "%s", file->label));
    else
        TP_TRY(folder_config(&c, &a, file));
    if (!c.modules) c.modules = derive_modules(file);
    if (!c.modules) return tp_fail(TALPA_E_DATA, "%s: %sno tensor belongs to a linear of a Llama model", file->label, part_of(file));
    *config = c;
    *about = a;
    return TALPA_OK;
}

/* ---- tensors ---- */

static const char *shape_text(char *out, size_t n_bytes, const struct talpa_shape *shape)
{
    size_t at = (size_t)snprintf(out, n_bytes, "[");
    for (int i = 0; i < shape->rank && at < n_bytes; i++)
        at += (size_t)snprintf(out + at, n_bytes - at, "%s%lld", i ? ", " : "", (long long)shape->dim[i]);
    if (at < n_bytes) snprintf(out + at, n_bytes - at, "]");
    return out;
}

/* "found 58 of 60 such tensors": of the same linear, kind and expert, in all layers. */
static enum talpa_status fail_missing(const struct tp_adapter_file *file, const struct tp_adapter *adapter,
                                      const struct tp_adapter_tensor *missing)
{
    const enum tp_linear linear = adapter->modules[missing->module].linear;
    int n_found = 0, n_expected = 0;
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        if (t->kind != missing->kind || t->expert != missing->expert || adapter->modules[t->module].linear != linear) continue;
        n_expected++;
        n_found += tp_adapter_file_entry(file, t->name) != NULL;
    }
    return tp_fail(TALPA_E_DATA, "%stensor '%s' is missing: found %d of %d for %s; every layer of the model must have all adapted modules",
                   part_of(file), missing->name, n_found, n_expected, tp_linear_name(linear));
}

static enum talpa_status check_tensor(const struct tp_adapter_file *file, const struct tp_adapter *adapter,
                                      const struct tp_adapter_tensor *expected)
{
    const struct tp_adapter_entry *found = tp_adapter_file_entry(file, expected->name);
    const struct talpa_shape shape = {.rank = expected->kind == TP_TENSOR_THRESHOLD_BIAS ? 1 : 2,
                                      .dim = {expected->rows, expected->columns}};
    char a[96], b[96];
    if (!found) return fail_missing(file, adapter, expected);
    if (!found->is_real)
        return tp_fail(TALPA_E_DATA, "%stensor '%s' is %s, expected F32, F16 or BF16", part_of(file), found->file_name, found->type_name);
    if (found->shape.rank != shape.rank || memcmp(found->shape.dim, shape.dim, (size_t)shape.rank * sizeof *shape.dim))
        return tp_fail(TALPA_E_DATA, "%stensor '%s' has shape %s, expected %s; was the adapter made for this model?", part_of(file),
                       found->file_name, shape_text(a, sizeof a, &found->shape), shape_text(b, sizeof b, &shape));
    return TALPA_OK;
}

/* Every tensor of the file must have its place in the layout. */
static enum talpa_status check_names(const struct tp_adapter_file *file, const struct tp_adapter *adapter)
{
    struct tp_map known = {0};
    enum talpa_status status = tp_map_reserve(&known, (size_t)adapter->n_tensors);
    for (int i = 0; i < adapter->n_tensors && status == TALPA_OK; i++) status = tp_map_put_string(&known, adapter->tensors[i].name, i);
    for (size_t i = 0; i < file->n_entries && status == TALPA_OK; i++) {
        const char *name = file->entries[i].name;
        int64_t index;
        if (tp_adapter_file_is_duplicate(&adapter->config, name) || tp_map_get_string(&index, &known, name)) continue;
        if (file->gguf)
            status =
                tp_fail(TALPA_E_DATA,
                        "tensor '%.200s' is unexpected: it is no lora_a or lora_b of a linear of a decoder layer, or the model has no such "
                        "layer",
                        file->entries[i].file_name);
        else
            status = tp_fail(TALPA_E_DATA,
                             "%s: tensor '%.200s' is unexpected: %s says peft_type %s with target_modules that do not include it, or the "
                             "model has no such "
                             "layer or expert",
                             tensors_name, name, config_name, adapter->router->peft_type);
    }
    tp_map_free(&known);
    return status;
}

enum talpa_status tp_adapter_file_check(const struct tp_adapter_file *file, const struct tp_adapter *adapter)
{
    enum talpa_status status = check_names(file, adapter);
    for (int i = 0; i < adapter->n_tensors && status == TALPA_OK; i++) status = check_tensor(file, adapter, &adapter->tensors[i]);
    return tp_context(status, "%s", file->label);
}

/* Puts rows in the order of a GGUF file's q and k into the order of Hugging Face. */
static enum talpa_status reorder(float *values, int rows, int columns, int heads)
{
    const size_t row_bytes = (size_t)columns * sizeof *values;
    float *copy = malloc((size_t)rows * row_bytes);
    if (!copy) return tp_fail_memory("adapter", (size_t)rows * row_bytes);
    memcpy(copy, values, (size_t)rows * row_bytes);
    for (int i = 0; i < rows; i++)
        memcpy(values + (size_t)i * (size_t)columns, copy + tp_adapter_gguf_row(i, rows, heads) * columns, row_bytes);
    free(copy);
    return TALPA_OK;
}

/* Copies one checked tensor into the bank; `values` has room for it. */
static enum talpa_status read_tensor(float *bank, float *values, const struct tp_adapter_file *file, const struct tp_adapter *adapter,
                                     const struct talpa_model *model, int index)
{
    const struct tp_adapter_tensor *t = &adapter->tensors[index];
    const int64_t n = (int64_t)t->rows * t->columns;
    const struct tp_adapter_entry *entry = tp_adapter_file_entry(file, t->name);
    tp_dtype_to_f32(values, entry->data, entry->dtype, n);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return tp_fail(TALPA_E_DATA, "%s: %stensor '%s': element %lld is %g, expected a finite number", file->label, part_of(file),
                           entry->file_name, (long long)i, (double)values[i]);
    const int heads = file->gguf ? tp_adapter_gguf_heads(model, adapter->modules[t->module].linear) : 0;
    if (heads && t->kind == TP_TENSOR_B) TP_TRY(reorder(values, t->rows, t->columns, heads));
    tp_adapter_put(bank, adapter, index, values);
    return TALPA_OK;
}

static enum talpa_status read_tensors(float **out, const struct tp_adapter_file *file, const struct tp_adapter *adapter,
                                      const struct talpa_model *model)
{
    size_t largest = 1;
    for (int i = 0; i < adapter->n_tensors; i++) {
        const size_t n = (size_t)adapter->tensors[i].rows * (size_t)adapter->tensors[i].columns;
        if (n > largest) largest = n;
    }
    float *bank = calloc((size_t)adapter->bank_elements, sizeof *bank), *values = malloc(largest * sizeof *values);
    enum talpa_status status = bank && values ? TALPA_OK : tp_fail_memory(file->label, (size_t)adapter->bank_elements * sizeof *bank);
    for (int i = 0; i < adapter->n_tensors && status == TALPA_OK; i++) status = read_tensor(bank, values, file, adapter, model, i);
    free(values);
    if (status == TALPA_OK)
        *out = bank;
    else
        free(bank);
    return status;
}

/* ---- loading ---- */

static enum talpa_status check_base(const struct tp_adapter_file *file, const struct tp_adapter_about *about, struct talpa_model *model,
                                    bool allow_other_base)
{
    uint64_t digest;
    char theirs[TP_HASH_HEX_BYTES], ours[TP_HASH_HEX_BYTES];
    if (!about->is_known) {
        tp_log(TALPA_LOG_WARN, "%s: there is no %s, so it is not known whether %s is the adapter's base", file->label,
               file->gguf ? "talpa.base_digest" : about_name, model->path);
        return TALPA_OK;
    }
    TP_TRY(tp_model_digest(&digest, model));
    if (digest == about->base_digest) return TALPA_OK;
    tp_hash_hex(theirs, about->base_digest);
    tp_hash_hex(ours, digest);
    if (!allow_other_base)
        return tp_fail(TALPA_E_DATA, "%s: %s: found %s ('%.80s'), expected %s, that of %s; --allow-other-base accepts it", file->label,
                       file->gguf ? "talpa.base_digest" : TP_ADAPTER_ABOUT_NAME ": base_digest", theirs, about->base_name, ours,
                       model->path);
    tp_log(TALPA_LOG_WARN, "%s: made for base %s, used with %s (%s)", file->label, theirs, model->path, ours);
    return TALPA_OK;
}

enum talpa_status tp_adapter_file_read(struct tp_adapter **out, float **bank, const struct tp_adapter_file *file, struct talpa_model *model,
                                       bool allow_other_base)
{
    struct talpa_adapter_config config;
    struct tp_adapter_about about;
    struct tp_adapter *adapter;
    TP_TRY(tp_adapter_file_config(&config, &about, file));
    if (file->gguf) TP_TRY(tp_context(tp_adapter_gguf_architecture(file, model), "%s", file->label));
    TP_TRY(check_base(file, &about, model, allow_other_base));
    enum talpa_status status = tp_adapter_create(&adapter, model, &config);
    /* What would be a wrong flag elsewhere comes from a file here. */
    if (status != TALPA_OK) return tp_context(status == TALPA_E_ARGUMENT ? TALPA_E_DATA : status, "%s: %s", file->label,
                                                 file->gguf ? "settings" : config_name);
    status = tp_adapter_file_check(file, adapter);
    if (status == TALPA_OK) status = read_tensors(bank, file, adapter, model);
    if (status == TALPA_OK)
        *out = adapter;
    else
        tp_adapter_free(adapter);
    return status;
}

enum talpa_status tp_adapter_load(struct tp_adapter **out, float **bank, const char *path, struct talpa_model *model,
                                  bool allow_other_base)
{
    struct tp_adapter_file file;
    TP_TRY(tp_adapter_file_open(&file, path));
    const enum talpa_status status = tp_adapter_file_read(out, bank, &file, model, allow_other_base);
    tp_adapter_file_close(&file);
    return status;
}
