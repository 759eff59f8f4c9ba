/* Merged models as Hugging Face folders. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapters/adapter_file.h"
#include "adapters/merge.h"
#include "base/dtype.h"
#include "io/atomic_file.h"
#include "io/file_map.h"
#include "io/folder.h"

static const char *torch_type(enum talpa_dtype dtype)
{
    return dtype == TALPA_F32 ? "float32" : dtype == TALPA_BF16 ? "bfloat16" : "float16";
}

/* One type for all tensors, as such folders have it. */
static enum talpa_status folder_type(enum talpa_dtype *out, const struct talpa_model *model, enum talpa_merge_type type)
{
    int64_t elements[TALPA_N_DTYPES] = {0};
    switch (type) {
    case TALPA_MERGE_F32:
        *out = TALPA_F32;
        return TALPA_OK;
    case TALPA_MERGE_F16:
        *out = TALPA_F16;
        return TALPA_OK;
    case TALPA_MERGE_BF16:
        *out = TALPA_BF16;
        return TALPA_OK;
    case TALPA_MERGE_Q8_0:
    case TALPA_MERGE_Q4_0:
    case TALPA_N_MERGE_TYPES:
        return tp_fail(TALPA_E_ARGUMENT,
                       "--type q8_0 and q4_0 are for GGUF files (a name that ends in .gguf); a folder takes f32, f16 or bf16");
    case TALPA_MERGE_AUTO:
        break;
    }
    int most = 0;
    for (size_t i = 0; i < model->n_weights; i++)
        if (!model->weights[i].is_derived) elements[model->weights[i].type.dtype] += tp_type_elements(&model->weights[i].type);
    for (int i = 1; i < TALPA_N_DTYPES; i++)
        if (elements[i] > elements[most]) most = i;
    *out = most == TALPA_F32 || most == TALPA_BF16 ? (enum talpa_dtype)most : TALPA_F16;
    return TALPA_OK;
}

/* ---- config.json ---- */

enum talpa_status tp_merge_save_json(const char *folder, const char *name, struct tp_json_writer *writer)
{
    char *path;
    TP_TRY(tp_adapter_file_join(&path, folder, name));
    const enum talpa_status status = tp_atomic_file_save_json(path, writer);
    free(path);
    return status;
}

/* The keys of a Llama in transformers. */
static void write_llama(struct tp_json_writer *writer, const struct talpa_model *model, enum talpa_dtype dtype)
{
    const struct tp_model_config *c = &model->config;
    const int32_t bos = tp_tokenizer_bos(model->tokenizer), eos = tp_tokenizer_eos(model->tokenizer);
    tp_json_write_object_begin(writer);
    tp_json_write_key(writer, "architectures");
    tp_json_write_array_begin(writer);
    tp_json_write_string(writer, "LlamaForCausalLM");
    tp_json_write_array_end(writer);
    tp_json_write_bool_member(writer, "attention_bias", false);
    if (bos >= 0) tp_json_write_int_member(writer, "bos_token_id", bos);
    if (eos >= 0) tp_json_write_int_member(writer, "eos_token_id", eos);
    tp_json_write_int_member(writer, "head_dim", c->head_dim);
    tp_json_write_string_member(writer, "hidden_act", "silu");
    tp_json_write_int_member(writer, "hidden_size", c->d_model);
    tp_json_write_int_member(writer, "intermediate_size", c->d_ff);
    tp_json_write_int_member(writer, "max_position_embeddings", c->context_length);
    tp_json_write_bool_member(writer, "mlp_bias", false);
    tp_json_write_string_member(writer, "model_type", "llama");
    tp_json_write_int_member(writer, "num_attention_heads", c->n_heads);
    tp_json_write_int_member(writer, "num_hidden_layers", c->n_layers);
    tp_json_write_int_member(writer, "num_key_value_heads", c->n_kv_heads);
    tp_json_write_real_member(writer, "rms_norm_eps", c->rms_norm_eps);
    tp_json_write_key(writer, "rope_scaling");
    tp_json_write_null(writer);
    tp_json_write_real_member(writer, "rope_theta", c->rope_theta);
    tp_json_write_bool_member(writer, "tie_word_embeddings", c->tied_embeddings);
    tp_json_write_string_member(writer, "torch_dtype", torch_type(dtype));
    tp_json_write_int_member(writer, "vocab_size", c->vocab_size);
    tp_json_write_object_end(writer);
}

/* The source's configuration with another type. */
static enum talpa_status rewrite_config(struct tp_json_writer *writer, const char *source, enum talpa_dtype dtype)
{
    char *path;
    struct tp_json *json;
    TP_TRY(tp_adapter_file_join(&path, source, "config.json"));
    const enum talpa_status status = tp_json_parse_file(&json, path);
    free(path);
    TP_TRY(status);
    tp_json_write_object_begin(writer);
    for (const struct tp_json_value *item = tp_json_first(tp_json_root(json)); item; item = tp_json_next(item)) {
        const char *key = tp_json_key(item);
        tp_json_write_key(writer, key);
        if (!strcmp(key, "torch_dtype") || !strcmp(key, "dtype"))
            tp_json_write_string(writer, torch_type(dtype));
        else
            tp_json_write_value(writer, item);
    }
    tp_json_write_object_end(writer);
    tp_json_free(json);
    return TALPA_OK;
}

static enum talpa_status save_config(const struct talpa_model *model, const char *folder, enum talpa_dtype dtype)
{
    struct tp_json_writer *writer;
    TP_TRY(tp_json_writer_create(&writer, 2));
    enum talpa_status status = TALPA_OK;
    if (tp_folder_is(model->path))
        status = rewrite_config(writer, model->path, dtype);
    else
        write_llama(writer, model, dtype);
    if (status == TALPA_OK) status = tp_merge_save_json(folder, "config.json", writer);
    tp_json_writer_free(writer);
    return status;
}

/* ---- the tokenizer's files of a source folder ---- */

static enum talpa_status copy_file(bool *copied, const char *from, const char *to, const char *name)
{
    char *source, *target = NULL;
    struct tp_file_map map;
    *copied = false;
    TP_TRY(tp_adapter_file_join(&source, from, name));
    enum talpa_status status = tp_adapter_file_join(&target, to, name);
    if (status == TALPA_OK && access(source, R_OK) == 0) {
        status = tp_file_map_open(&map, source);
        if (status == TALPA_OK) {
            status = tp_atomic_file_save(target, map.bytes, map.n_bytes);
            tp_file_map_close(&map);
        }
        *copied = status == TALPA_OK;
    }
    free(source);
    free(target);
    return status;
}

static enum talpa_status save_tokenizer(bool *has_tokenizer, const struct talpa_model *model, const char *folder)
{
    static const char *const names[] = {"tokenizer.json",   "tokenizer_config.json",  "special_tokens_map.json", "added_tokens.json",
                                        "tokenizer.model",  "vocab.json",             "merges.txt",              "chat_template.jinja",
                                        "chat_template.json", "generation_config.json"};
    *has_tokenizer = false;
    if (!tp_folder_is(model->path)) return model->gguf ? tp_merge_save_tokenizer(has_tokenizer, model, folder) : TALPA_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bool copied;
        TP_TRY(copy_file(&copied, model->path, folder, names[i]));
        if (!strcmp(names[i], "tokenizer.json") || !strcmp(names[i], "tokenizer.model")) *has_tokenizer = *has_tokenizer || copied;
    }
    return TALPA_OK;
}

/* ---- tensors ---- */

/* Vectors of a folder are taken from its files: the model holds them as the decoder wants them, which need not be what the format stores.
 */
static void take_original(struct tp_merge_tensor *t, const struct talpa_model *model, const struct tp_model_weight *weight)
{
    for (int s = 0; s < model->n_shards; s++) {
        struct tp_safetensors_tensor tensor;
        if (!tp_safetensors_has(model->shards[s], weight->name)) continue;
        if (tp_safetensors_get(&tensor, model->shards[s], weight->name) != TALPA_OK || tp_safetensors_dtype(&t->from, &tensor) != TALPA_OK)
            return;
        t->data = tensor.data;
        return;
    }
}

static enum talpa_status list_tensors(struct tp_merge *merge, struct tp_safetensors_tensor *tensors, struct talpa_merge_result *result,
                                      enum talpa_dtype to)
{
    const struct talpa_model *model = merge->model;
    merge->tensors = calloc(model->n_weights + 1, sizeof *merge->tensors);
    if (!merge->tensors) return tp_fail_memory(model->path, model->n_weights * sizeof *merge->tensors);
    for (size_t i = 0; i < model->n_weights; i++) {
        const struct tp_model_weight *weight = &model->weights[i];
        const struct talpa_shape *shape = &weight->type.shape;
        if (weight->is_derived) continue;
        const int64_t n = tp_type_elements(&weight->type), columns = shape->dim[shape->rank - 1];
        const size_t n_bytes = tp_dtype_bytes(to, n);
        struct tp_merge_tensor *t = &merge->tensors[merge->n_tensors];
        *t = (struct tp_merge_tensor){.weight = (int)i,
                                      .data = weight->data,
                                      .from = weight->type.dtype,
                                      .to = to,
                                      .columns = columns,
                                      .heads = weight->interleaved_heads,
                                      .n_rows = n / columns};
        if (shape->rank == 1) take_original(t, model, weight);
        tensors[merge->n_tensors] = (struct tp_safetensors_tensor){
            weight->name, to == TALPA_F32 ? TP_SAFETENSORS_F32 : to == TALPA_F16 ? TP_SAFETENSORS_F16 : TP_SAFETENSORS_BF16, *shape, NULL,
            n_bytes};
        merge->n_tensors++;
        result->n_tensors++;
        result->n_merged += merge->module_of[i] >= 0;
        result->n_of_type[to]++;
        result->n_bytes += (int64_t)n_bytes;
    }
    return TALPA_OK;
}

static enum talpa_status save_tensors(struct tp_merge *merge, struct talpa_merge_result *result, const char *folder, enum talpa_dtype to)
{
    static const struct tp_safetensors_meta meta = {"format", "pt"};
    const size_t n = merge->model->n_weights;
    struct tp_safetensors_tensor *tensors = calloc(n + 1, sizeof *tensors);
    struct tp_atomic_file *file = NULL;
    char *path = NULL;
    enum talpa_status status = tensors ? list_tensors(merge, tensors, result, to) : tp_fail_memory(folder, n * sizeof *tensors);
    const struct tp_row_source rows = tp_merge_rows(merge);
    if (status == TALPA_OK) status = tp_adapter_file_join(&path, folder, "model.safetensors");
    if (status == TALPA_OK) status = tp_atomic_file_create(&file, path);
    if (status == TALPA_OK) status = tp_safetensors_write_rows(file, path, tensors, merge->n_tensors, &meta, 1, &rows);
    if (status == TALPA_OK)
        status = tp_atomic_file_commit(file);
    else
        tp_atomic_file_discard(file);
    free(tensors);
    free(path);
    return status;
}

/* Takes back a folder that was made here and could not be completed. */
static void remove_made(const char *folder)
{
    static const char *const names[] = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4096];
        const int n = snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (n > 0 && (size_t)n < sizeof path) unlink(path);
    }
    rmdir(folder);
}

enum talpa_status tp_merge_save_folder(struct tp_merge *merge, struct talpa_merge_result *result, const char *folder,
                                       enum talpa_merge_type type)
{
    struct talpa_merge_result counts = {0};
    enum talpa_dtype to = TALPA_F32;
    const struct talpa_model *model = merge->model;
    TP_TRY(folder_type(&to, model, type));
    if (!tp_folder_is(model->path) &&
        (strcmp(model->architecture, "llama") || model->config.biased_linears || model->config.has_rotary_table))
        return tp_fail(
            TALPA_E_ARGUMENT,
            "%s: architecture %s%s: a folder can be written from a folder, or from a plain llama GGUF file; give --output-file a name "
            "that ends in .gguf",
            model->path, model->architecture,
            model->config.biased_linears     ? " with biases"
            : model->config.has_rotary_table ? " with scaled rotary frequencies"
                                             : "");
    bool made;
    TP_TRY(tp_folder_make(&made, folder));
    /* The tensors go first because they are what fills a disk, and are looked for first by what loads the folder. */
    enum talpa_status status = save_tensors(merge, &counts, folder, to);
    if (status == TALPA_OK) status = save_config(model, folder, to);
    if (status == TALPA_OK) status = save_tokenizer(&counts.has_tokenizer, model, folder);
    if (status != TALPA_OK && made) remove_made(folder);
    if (status == TALPA_OK) *result = counts;
    return status;
}
