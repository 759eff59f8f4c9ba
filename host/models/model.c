#include "arch.h"

#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/hash.h"
#include "io/folder.h"

const char *talpa_dtype_name(enum talpa_dtype dtype) { return tp_dtype_name(dtype); }

const struct tp_model_weight *tp_model_weight(const struct talpa_model *model, const char *name)
{
    int64_t index;
    return tp_map_get_string(&index, &model->weight_of, name) ? &model->weights[index] : NULL;
}

enum talpa_status tp_model_add(struct talpa_model *model, const struct tp_model_weight *weight)
{
    if (tp_model_weight(model, weight->name))
        return tp_fail(TALPA_E_DATA, "%s: tensor '%s' is there twice", model->path, weight->file_name);
    struct tp_model_weight *grown = realloc(model->weights, (model->n_weights + 1) * sizeof *grown);
    if (!grown) return tp_fail_memory(model->path, (model->n_weights + 1) * sizeof *grown);
    model->weights = grown;
    struct tp_model_weight copy = *weight;
    copy.name = tp_arena_strdup(&model->arena, weight->name);
    copy.file_name = tp_arena_strdup(&model->arena, weight->file_name);
    if (!copy.name || !copy.file_name) return TALPA_E_DEVICE;
    grown[model->n_weights++] = copy;
    if (copy.is_derived) model->n_derived++;
    return tp_map_put_string(&model->weight_of, copy.name, (int64_t)model->n_weights - 1);
}

enum talpa_status tp_model_digest(uint64_t *out, struct talpa_model *model)
{
    if (!model->digest) {
        struct tp_hash *hash;
        TP_TRY(tp_hash_create(&hash));
        for (size_t i = 0; i < model->n_weights; i++) {
            const struct tp_model_weight *weight = &model->weights[i];
            const char *dtype = tp_dtype_name(weight->type.dtype);
            tp_hash_update(hash, weight->name, strlen(weight->name) + 1);
            tp_hash_update(hash, dtype, strlen(dtype) + 1);
            for (int d = 0; d < weight->type.shape.rank; d++)
                tp_hash_update(hash, &weight->type.shape.dim[d], sizeof weight->type.shape.dim[d]);
            tp_hash_update(hash, weight->data, tp_type_bytes(&weight->type));
        }
        model->digest = tp_hash_digest(hash);
        tp_hash_free(hash);
    }
    *out = model->digest;
    return TALPA_OK;
}

/* ---- opening ---- */

/* What is wrong between tokenizer and weights would show as nonsense, or as a fault on the device. */
static enum talpa_status check_tokenizer(const struct talpa_model *model)
{
    if (tp_tokenizer_n_tokens(model->tokenizer) <= (size_t)model->config.vocab_size) return TALPA_OK;
    return tp_fail(TALPA_E_DATA, "%s: the tokenizer has %zu tokens, the embedding table %d rows", model->path,
                   tp_tokenizer_n_tokens(model->tokenizer), model->config.vocab_size);
}

static enum talpa_status read_model(struct talpa_model *model)
{
    if (!strncmp(model->path, "random:", 7)) TP_TRY(tp_model_make_built_in(model));
    else if (tp_folder_is(model->path)) TP_TRY(tp_model_read_folder(model));
    else TP_TRY(tp_model_read_gguf(model));
    return check_tokenizer(model);
}

enum talpa_status talpa_model_open(struct talpa_model **out, const char *path)
{
    struct talpa_model *model = calloc(1, sizeof *model);
    if (!model) return tp_fail_memory(path, sizeof *model);
    model->path = tp_arena_strdup(&model->arena, path);
    enum talpa_status status = model->path ? TALPA_OK : TALPA_E_DEVICE;
    if (status == TALPA_OK) status = read_model(model);
    if (status == TALPA_OK) *out = model;
    else talpa_model_close(model);
    return status;
}

void talpa_model_close(struct talpa_model *model)
{
    if (!model) return;
    tp_tokenizer_free(model->tokenizer);
    tp_gguf_close(model->gguf);
    for (int i = 0; i < model->n_shards; i++) tp_safetensors_close(model->shards[i]);
    tp_map_free(&model->weight_of);
    tp_arena_free(&model->arena);
    free(model->weights);
    free(model);
}

/* ---- public queries ---- */

enum talpa_status talpa_model_info(struct talpa_model_info *info, struct talpa_model *model)
{
    const struct tp_model_config *c = &model->config;
    struct talpa_model_info filled = {.architecture = model->architecture,
                                      .name = model->name,
                                      .path = model->path,
                                      .n_layers = c->n_layers,
                                      .d_model = c->d_model,
                                      .n_heads = c->n_heads,
                                      .n_kv_heads = c->n_kv_heads,
                                      .head_dim = c->head_dim,
                                      .d_ff = c->d_ff,
                                      .vocab_size = c->vocab_size,
                                      .context_length = c->context_length,
                                      .rope_theta = c->rope_theta,
                                      .rms_norm_eps = c->rms_norm_eps,
                                      .tied_embeddings = c->tied_embeddings};
    for (size_t i = 0; i < model->n_weights; i++) {
        if (model->weights[i].is_derived) continue;
        filled.n_parameters += tp_type_elements(&model->weights[i].type);
        filled.weight_bytes += tp_type_bytes(&model->weights[i].type);
    }
    *info = filled;
    return TALPA_OK;
}

enum talpa_status talpa_model_digest(uint64_t *digest, struct talpa_model *model) { return tp_model_digest(digest, model); }

enum talpa_status talpa_model_tokenize(int32_t **ids, size_t *n_ids, const struct talpa_model *model, const char *text, size_t n_bytes,
                                       bool parse_special)
{
    return tp_tokenizer_encode(ids, n_ids, model->tokenizer, text, n_bytes, parse_special);
}

const char *talpa_model_piece(size_t *n_bytes, const struct talpa_model *model, int32_t id)
{
    const struct tp_text piece = tp_tokenizer_piece(model->tokenizer, id);
    *n_bytes = piece.n_bytes;
    return piece.bytes;
}

size_t talpa_model_n_tensors(const struct talpa_model *model) { return model->n_weights - model->n_derived; }

struct talpa_tensor_info talpa_model_tensor(const struct talpa_model *model, size_t i)
{
    const struct tp_model_weight *weight = &model->weights[i];
    return (struct talpa_tensor_info){weight->file_name, weight->type.dtype, weight->type.shape, tp_type_bytes(&weight->type)};
}
