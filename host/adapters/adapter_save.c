/* Writing of adapter folders. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapters/adapter_config.h"
#include "adapters/adapter_file.h"
#include "base/hash.h"
#include "io/atomic_file.h"

/* The files of a folder replace the old ones together, once all of them are on disk: a full disk leaves the old adapter whole. */
enum { SAVE_CONFIG, SAVE_ABOUT, SAVE_MOELORA, SAVE_TENSORS, N_SAVED };

static enum talpa_status create_file(struct tp_atomic_file **out, const char *folder, const char *name)
{
    char *path;
    TP_TRY(tp_adapter_file_join(&path, folder, name));
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
                                      const char *base_name)
{
    tp_adapter_config_write(writer, &adapter->config, base_name);
    return write_text(file, writer);
}

static enum talpa_status write_about(struct tp_atomic_file *file, const struct tp_adapter *adapter, struct tp_json_writer *writer,
                                     struct talpa_model *model)
{
    uint64_t digest;
    TP_TRY(tp_model_digest(&digest, model));
    tp_json_writer_reset(writer);
    tp_json_write_object_begin(writer);
    tp_json_write_digest_member(writer, "base_digest", digest);
    tp_json_write_string_member(writer, "base_name", model->name);
    tp_json_write_int_member(writer, "format_version", TP_ADAPTER_FORMAT_VERSION);
    tp_json_write_string_member(writer, "routing", talpa_routing_name(adapter->config.routing));
    tp_json_write_string_member(writer, "talpa_version", TALPA_VERSION_STRING);
    tp_json_write_object_end(writer);
    return write_text(file, writer);
}

static enum talpa_status write_moelora(struct tp_atomic_file *file, const struct tp_adapter *adapter, struct tp_json_writer *writer)
{
    tp_json_writer_reset(writer);
    tp_adapter_contrastive_write(writer, &adapter->config.contrastive);
    return write_text(file, writer);
}

static enum talpa_status write_tensors(struct tp_atomic_file *file, const struct tp_adapter *adapter, const float *values,
                                       const char *folder)
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
                                     const char *folder, struct talpa_model *model, const char *base_name)
{
    static const char *const names[N_SAVED] = {TP_ADAPTER_CONFIG_NAME, TP_ADAPTER_ABOUT_NAME, TP_ADAPTER_MOELORA_NAME,
                                                TP_ADAPTER_TENSORS_NAME};
    struct tp_json_writer *writer;
    for (int i = 0; i < N_SAVED; i++)
        if (i != SAVE_MOELORA || adapter->config.routing == TALPA_ROUTING_MOELORA) TP_TRY(create_file(&files[i], folder, names[i]));
    TP_TRY(tp_json_writer_create(&writer, 2));
    enum talpa_status status = write_config(files[SAVE_CONFIG], adapter, writer, base_name);
    if (status == TALPA_OK) status = write_about(files[SAVE_ABOUT], adapter, writer, model);
    if (status == TALPA_OK && files[SAVE_MOELORA]) status = write_moelora(files[SAVE_MOELORA], adapter, writer);
    tp_json_writer_free(writer);
    if (status == TALPA_OK) status = write_tensors(files[SAVE_TENSORS], adapter, values, folder);
    for (int i = 0; i < N_SAVED && status == TALPA_OK; i++)
        if (files[i]) status = tp_atomic_file_sync(files[i]);
    return status;
}

/* Of an adapter that lay here before. */
static void remove_moelora(const char *folder)
{
    char *path;
    if (tp_adapter_file_join(&path, folder, TP_ADAPTER_MOELORA_NAME) != TALPA_OK) return;
    unlink(path);
    free(path);
}

enum talpa_status tp_adapter_save_as(const struct tp_adapter *adapter, const float *bank, const char *folder, struct talpa_model *model,
                                     const char *base_name)
{
    struct tp_atomic_file *files[N_SAVED] = {NULL};
    float *values = malloc((size_t)adapter->n_trainable * sizeof *values);
    enum talpa_status status =
        values ? gather(values, adapter, bank) : tp_fail_memory(folder, (size_t)adapter->n_trainable * sizeof *values);
    if (status == TALPA_OK) status = write_files(files, adapter, values, folder, model, base_name);
    free(values);
    /* The tensors come last, so that a new folder which has tensors has everything. */
    for (int i = 0; i < N_SAVED; i++) {
        if (!files[i]) continue;
        if (status == TALPA_OK)
            status = tp_atomic_file_commit(files[i]);
        else
            tp_atomic_file_discard(files[i]);
    }
    if (status == TALPA_OK && adapter->config.routing != TALPA_ROUTING_MOELORA) remove_moelora(folder);
    return status;
}

enum talpa_status tp_adapter_save(const struct tp_adapter *adapter, const float *bank, const char *folder, struct talpa_model *model)
{
    return tp_adapter_save_as(adapter, bank, folder, model, model->name);
}
