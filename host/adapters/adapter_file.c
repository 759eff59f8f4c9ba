#include "adapter_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapters/adapter_config.h"
#include "base/dtype.h"
#include "base/hash.h"
#include "base/log.h"
#include "io/atomic_file.h"

enum { FORMAT_VERSION = 1, MAX_LAYER_DIGITS = 6 };

static const char config_name[] = "adapter_config.json", about_name[] = "talpa_adapter.json", tensors_name[] = "adapter_model.safetensors";

/* "folder/name", to be freed. */
static enum talpa_status join(char **out, const char *folder, const char *name)
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
    if (join(&path, folder, name) != TALPA_OK) return false;
    const bool found = access(path, F_OK) == 0;
    free(path);
    return found;
}

/* ---- saving ---- */

/* The files of a folder replace the old ones together, once all of them are on disk: a full disk leaves the old adapter whole. */
enum { SAVE_CONFIG, SAVE_ABOUT, SAVE_TENSORS, N_SAVED };

static enum talpa_status create_file(struct tp_atomic_file **out, const char *folder, const char *name)
{
    char *path;
    TP_TRY(join(&path, folder, name));
    const enum talpa_status status = tp_atomic_file_create(out, path);
    free(path);
    return status;
}

static enum talpa_status write_text(struct tp_atomic_file *file, struct tp_json_writer *writer)
{
    const char *text;
    size_t n_bytes;
    TP_TRY(tp_json_writer_text(&text, &n_bytes, writer));
    return tp_atomic_file_write(file, text, n_bytes);
}

static enum talpa_status write_config(struct tp_atomic_file *file, const struct tp_adapter *adapter, struct tp_json_writer *writer,
                                      const struct talpa_model *model)
{
    tp_adapter_config_write(writer, &adapter->config, model->name);
    return write_text(file, writer);
}

static enum talpa_status write_about(struct tp_atomic_file *file, const struct tp_adapter *adapter, struct tp_json_writer *writer,
                                     struct talpa_model *model)
{
    uint64_t digest;
    char hex[TP_HASH_HEX_BYTES];
    TP_TRY(tp_model_digest(&digest, model));
    tp_json_writer_reset(writer);
    tp_json_write_object_begin(writer);
    tp_json_write_string_member(writer, "base_digest", tp_hash_hex(hex, digest));
    tp_json_write_string_member(writer, "base_name", model->name);
    tp_json_write_int_member(writer, "format_version", FORMAT_VERSION);
    tp_json_write_string_member(writer, "routing", talpa_routing_name(adapter->config.routing));
    tp_json_write_string_member(writer, "talpa_version", TALPA_VERSION_STRING);
    tp_json_write_object_end(writer);
    return write_text(file, writer);
}

static enum talpa_status write_tensors(struct tp_atomic_file *file, const struct tp_adapter *adapter, const float *values, const char *folder)
{
    static const struct tp_safetensors_meta meta = {"format", "pt"};
    struct tp_safetensors_tensor *tensors = calloc((size_t)adapter->n_tensors, sizeof *tensors);
    if (!tensors) return tp_fail_memory(folder, (size_t)adapter->n_tensors * sizeof *tensors);
    const float *next = values;
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->columns;
        const struct talpa_shape shape = {.rank = t->kind == TP_TENSOR_THRESHOLD_BIAS ? 1 : 2, .dim = {t->rows, t->columns}};
        tensors[i] = (struct tp_safetensors_tensor){t->name, TP_SAFETENSORS_F32, shape, next, n * sizeof *next};
        next += n;
    }
    const enum talpa_status status = tp_safetensors_write(file, folder, tensors, (size_t)adapter->n_tensors, &meta, 1);
    free(tensors);
    return status;
}

/* All tensors in saved form, one after the other. Values that no loader would accept are refused before any file is touched. */
static enum talpa_status gather(float *values, const struct tp_adapter *adapter, const float *bank)
{
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->columns;
        tp_adapter_get(values, adapter, bank, i);
        for (size_t k = 0; k < n; k++)
            if (!isfinite(values[k]))
                return tp_fail(TALPA_E_FAILED, "%s: element %zu is %g, so the adapter is not saved; try a smaller learning rate", t->name,
                               k, (double)values[k]);
        values += n;
    }
    return TALPA_OK;
}

static enum talpa_status write_files(struct tp_atomic_file *files[N_SAVED], const struct tp_adapter *adapter, const float *values,
                                     const char *folder, struct talpa_model *model)
{
    static const char *const names[N_SAVED] = {config_name, about_name, tensors_name};
    struct tp_json_writer *writer;
    for (int i = 0; i < N_SAVED; i++) TP_TRY(create_file(&files[i], folder, names[i]));
    TP_TRY(tp_json_writer_create(&writer, 2));
    enum talpa_status status = write_config(files[SAVE_CONFIG], adapter, writer, model);
    if (status == TALPA_OK) status = write_about(files[SAVE_ABOUT], adapter, writer, model);
    tp_json_writer_free(writer);
    if (status == TALPA_OK) status = write_tensors(files[SAVE_TENSORS], adapter, values, folder);
    for (int i = 0; i < N_SAVED && status == TALPA_OK; i++) status = tp_atomic_file_sync(files[i]);
    return status;
}

enum talpa_status tp_adapter_save(const struct tp_adapter *adapter, const float *bank, const char *folder, struct talpa_model *model)
{
    struct tp_atomic_file *files[N_SAVED] = {NULL};
    float *values = malloc((size_t)adapter->n_trainable * sizeof *values);
    enum talpa_status status =
        values ? gather(values, adapter, bank) : tp_fail_memory(folder, (size_t)adapter->n_trainable * sizeof *values);
    if (status == TALPA_OK) status = write_files(files, adapter, values, folder, model);
    free(values);
    /* The tensors come last, so that a new folder which has tensors has everything. */
    for (int i = 0; i < N_SAVED; i++) {
        if (status == TALPA_OK)
            status = tp_atomic_file_commit(files[i]);
        else
            tp_atomic_file_discard(files[i]);
    }
    return status;
}

/* ---- opening ---- */

static enum talpa_status open_json(struct tp_json **out, const char *folder, const char *name)
{
    char *path;
    TP_TRY(join(&path, folder, name));
    const enum talpa_status status = tp_json_parse_file(out, path);
    free(path);
    return status;
}

static enum talpa_status open_tensors(struct tp_safetensors **out, const char *folder)
{
    char *path;
    if (!exists(folder, tensors_name) && exists(folder, "adapter_model.bin"))
        return tp_fail(TALPA_E_NO_INPUT, "%s: found adapter_model.bin, expected %s; save the adapter as safetensors", folder, tensors_name);
    TP_TRY(join(&path, folder, tensors_name));
    const enum talpa_status status = tp_safetensors_open(out, path);
    free(path);
    return status;
}

enum talpa_status tp_adapter_file_open(struct tp_adapter_file *out, const char *folder)
{
    struct tp_adapter_file file = {.label = folder};
    enum talpa_status status = open_json(&file.config, folder, config_name);
    if (status == TALPA_OK && exists(folder, about_name)) status = open_json(&file.about, folder, about_name);
    if (status == TALPA_OK) status = open_tensors(&file.tensors, folder);
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
    tp_safetensors_close(file->tensors);
    *file = (struct tp_adapter_file){0};
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

static enum talpa_status read_about(struct tp_adapter_about *out, const struct tp_json_value *root, enum talpa_routing routing)
{
    struct tp_adapter_about about = {.is_known = true};
    int64_t version;
    const char *digest, *found;
    TP_TRY(tp_json_get_int(&version, root, "format_version"));
    if (version != FORMAT_VERSION)
        return tp_fail(TALPA_E_DATA, "format_version: found %lld, expected %d: the adapter is of another version of talpa",
                       (long long)version, FORMAT_VERSION);
    TP_TRY(tp_json_get_string(&digest, root, "base_digest"));
    if (strlen(digest) != TP_HASH_HEX_BYTES - 1 || strspn(digest, "0123456789abcdef") != TP_HASH_HEX_BYTES - 1)
        return tp_fail(TALPA_E_DATA, "base_digest: found '%.40s', expected 16 hexadecimal digits", digest);
    about.base_digest = strtoull(digest, NULL, 16);
    TP_TRY(tp_json_get_string_or(&about.base_name, root, "base_name", ""));
    TP_TRY(tp_json_get_string_or(&about.version, root, "talpa_version", ""));
    TP_TRY(tp_json_get_string(&found, root, "routing"));
    if (strcmp(found, talpa_routing_name(routing)))
        return tp_fail(TALPA_E_DATA, "routing: found '%.40s', expected %s as in %s", found, talpa_routing_name(routing), config_name);
    *out = about;
    return TALPA_OK;
}

/* The set of modules that any tensor belongs to. */
static unsigned derive_modules(const struct tp_safetensors *tensors)
{
    unsigned found = 0;
    for (int64_t i = 0; i < tp_safetensors_n_tensors(tensors); i++) {
        int layer;
        enum tp_linear linear;
        const char *suffix;
        if (tp_adapter_file_name(&layer, &linear, &suffix, tp_safetensors_name(tensors, i))) found |= 1u << linear;
    }
    return found;
}

enum talpa_status tp_adapter_file_config(struct talpa_adapter_config *config, struct tp_adapter_about *about,
                                         const struct tp_adapter_file *file)
{
    struct talpa_adapter_config c;
    struct tp_adapter_about a = {0};
    enum talpa_status status = tp_adapter_config_read(&c, tp_json_root(file->config));
    if (status != TALPA_OK) return tp_context(status, "%s: %s", file->label, config_name);
    if (file->about) status = read_about(&a, tp_json_root(file->about), c.routing);
    if (status != TALPA_OK) return tp_context(status, "%s: %s", file->label, about_name);
    if (!c.modules) c.modules = derive_modules(file->tensors);
    if (!c.modules) return tp_fail(TALPA_E_DATA, "%s: %s: no tensor belongs to a linear of a Llama model", file->label, tensors_name);
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

static enum talpa_status check_tensor(const struct tp_adapter_file *file, const struct tp_adapter_tensor *expected)
{
    struct tp_safetensors_tensor found;
    const struct talpa_shape shape = {.rank = expected->kind == TP_TENSOR_THRESHOLD_BIAS ? 1 : 2,
                                      .dim = {expected->rows, expected->columns}};
    char a[96], b[96];
    if (!tp_safetensors_has(file->tensors, expected->name))
        return tp_fail(TALPA_E_DATA, "%s: tensor '%s' is missing; every layer of the model must have all adapted modules", tensors_name,
                       expected->name);
    TP_TRY(tp_safetensors_get(&found, file->tensors, expected->name));
    if (found.type != TP_SAFETENSORS_F32 && found.type != TP_SAFETENSORS_F16 && found.type != TP_SAFETENSORS_BF16)
        return tp_fail(TALPA_E_DATA, "%s: tensor '%s' is %s, expected F32, F16 or BF16", tensors_name, expected->name,
                       tp_safetensors_type_name(found.type));
    if (found.shape.rank != shape.rank || memcmp(found.shape.dim, shape.dim, (size_t)shape.rank * sizeof *shape.dim))
        return tp_fail(TALPA_E_DATA, "%s: tensor '%s' has shape %s, expected %s; was the adapter made for this model?", tensors_name,
                       expected->name, shape_text(a, sizeof a, &found.shape), shape_text(b, sizeof b, &shape));
    return TALPA_OK;
}

/* Every tensor of the file must have its place in the layout. */
static enum talpa_status check_names(const struct tp_adapter_file *file, const struct tp_adapter *adapter)
{
    struct tp_map known = {0};
    enum talpa_status status = tp_map_reserve(&known, (size_t)adapter->n_tensors);
    for (int i = 0; i < adapter->n_tensors && status == TALPA_OK; i++) status = tp_map_put_string(&known, adapter->tensors[i].name, i);
    for (int64_t i = 0; i < tp_safetensors_n_tensors(file->tensors) && status == TALPA_OK; i++) {
        const char *name = tp_safetensors_name(file->tensors, i);
        int64_t index;
        if (tp_adapter_file_is_duplicate(&adapter->config, name) || tp_map_get_string(&index, &known, name)) continue;
        status = tp_fail(
            TALPA_E_DATA,
            "%s: tensor '%.200s' is unexpected: %s says peft_type %s with target_modules that do not include it, or the model has no such "
            "layer or expert",
            tensors_name, name, config_name, adapter->router->peft_type);
    }
    tp_map_free(&known);
    return status;
}

enum talpa_status tp_adapter_file_check(const struct tp_adapter_file *file, const struct tp_adapter *adapter)
{
    enum talpa_status status = check_names(file, adapter);
    for (int i = 0; i < adapter->n_tensors && status == TALPA_OK; i++) status = check_tensor(file, &adapter->tensors[i]);
    return tp_context(status, "%s", file->label);
}

/* Copies one checked tensor into the bank; `values` has room for it. */
static enum talpa_status read_tensor(float *bank, float *values, const struct tp_adapter_file *file, const struct tp_adapter *adapter,
                                     int index)
{
    const struct tp_adapter_tensor *t = &adapter->tensors[index];
    const int64_t n = (int64_t)t->rows * t->columns;
    struct tp_safetensors_tensor tensor;
    enum talpa_dtype dtype;
    TP_TRY(tp_safetensors_get(&tensor, file->tensors, t->name));
    TP_TRY(tp_safetensors_dtype(&dtype, &tensor));
    tp_dtype_to_f32(values, tensor.data, dtype, n);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return tp_fail(TALPA_E_DATA, "%s: %s: tensor '%s': element %lld is %g, expected a finite number", file->label, tensors_name,
                           t->name, (long long)i, (double)values[i]);
    tp_adapter_put(bank, adapter, index, values);
    return TALPA_OK;
}

static enum talpa_status read_tensors(float **out, const struct tp_adapter_file *file, const struct tp_adapter *adapter)
{
    size_t largest = 1;
    for (int i = 0; i < adapter->n_tensors; i++) {
        const size_t n = (size_t)adapter->tensors[i].rows * (size_t)adapter->tensors[i].columns;
        if (n > largest) largest = n;
    }
    float *bank = calloc((size_t)adapter->bank_elements, sizeof *bank), *values = malloc(largest * sizeof *values);
    enum talpa_status status = bank && values ? TALPA_OK : tp_fail_memory(file->label, (size_t)adapter->bank_elements * sizeof *bank);
    for (int i = 0; i < adapter->n_tensors && status == TALPA_OK; i++) status = read_tensor(bank, values, file, adapter, i);
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
        tp_log(TALPA_LOG_WARN, "%s: there is no %s, so it is not known whether %s is the adapter's base", file->label, about_name,
               model->path);
        return TALPA_OK;
    }
    TP_TRY(tp_model_digest(&digest, model));
    if (digest == about->base_digest) return TALPA_OK;
    tp_hash_hex(theirs, about->base_digest);
    tp_hash_hex(ours, digest);
    if (!allow_other_base)
        return tp_fail(TALPA_E_DATA, "%s: %s: base_digest: found %s ('%.80s'), expected %s, that of %s; --allow-other-base accepts it",
                       file->label, about_name, theirs, about->base_name, ours, model->path);
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
    TP_TRY(check_base(file, &about, model, allow_other_base));
    enum talpa_status status = tp_adapter_create(&adapter, model, &config);
    /* What would be a wrong flag elsewhere comes from a file here. */
    if (status != TALPA_OK) return tp_context(status == TALPA_E_ARGUMENT ? TALPA_E_DATA : status, "%s: %s", file->label, config_name);
    status = tp_adapter_file_check(file, adapter);
    if (status == TALPA_OK) status = read_tensors(bank, file, adapter);
    if (status == TALPA_OK)
        *out = adapter;
    else
        tp_adapter_free(adapter);
    return status;
}

enum talpa_status tp_adapter_load(struct tp_adapter **out, float **bank, const char *folder, struct talpa_model *model,
                                  bool allow_other_base)
{
    struct tp_adapter_file file;
    TP_TRY(tp_adapter_file_open(&file, folder));
    const enum talpa_status status = tp_adapter_file_read(out, bank, &file, model, allow_other_base);
    tp_adapter_file_close(&file);
    return status;
}
