/* The Llama family in GGUF files (llama.cpp's names and keys) and as built-in random models. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/rng.h"
#include "model.h"

static const struct {
    const char *hf, *gguf;
} linears[TP_N_LINEARS] = {
    [TP_LINEAR_Q] = {"self_attn.q_proj", "attn_q"},     [TP_LINEAR_K] = {"self_attn.k_proj", "attn_k"},
    [TP_LINEAR_V] = {"self_attn.v_proj", "attn_v"},     [TP_LINEAR_O] = {"self_attn.o_proj", "attn_output"},
    [TP_LINEAR_GATE] = {"mlp.gate_proj", "ffn_gate"},   [TP_LINEAR_UP] = {"mlp.up_proj", "ffn_up"},
    [TP_LINEAR_DOWN] = {"mlp.down_proj", "ffn_down"},
};

const char *tp_linear_name(enum tp_linear linear) { return linears[linear].hf; }

void tp_linear_shape(const struct tp_model_config *c, enum tp_linear linear, int *d_out, int *d_in)
{
    const int d_q = c->n_heads * c->head_dim, d_kv = c->n_kv_heads * c->head_dim;
    const int shapes[TP_N_LINEARS][2] = {
        [TP_LINEAR_Q] = {d_q, c->d_model},      [TP_LINEAR_K] = {d_kv, c->d_model},      [TP_LINEAR_V] = {d_kv, c->d_model},
        [TP_LINEAR_O] = {c->d_model, d_q},      [TP_LINEAR_GATE] = {c->d_ff, c->d_model}, [TP_LINEAR_UP] = {c->d_ff, c->d_model},
        [TP_LINEAR_DOWN] = {c->d_model, c->d_ff},
    };
    *d_out = shapes[linear][0];
    *d_in = shapes[linear][1];
}

/* ---- the list of tensors, shared by file and random models ---- */

/* One tensor of the architecture: how it is called and what shape it must have. */
struct tensor_spec {
    char name[96], file_name[96];
    int rank, rows, columns;
    int interleaved_heads;
    bool is_norm;
};

typedef enum talpa_status tensor_visitor(struct talpa_model *model, const struct tensor_spec *spec, void *user);

static enum talpa_status visit_norm(struct talpa_model *model, tensor_visitor *visit, void *user, const char *name, const char *file_name)
{
    struct tensor_spec spec = {.rank = 1, .rows = model->config.d_model, .columns = 1, .is_norm = true};
    snprintf(spec.name, sizeof spec.name, "%s", name);
    snprintf(spec.file_name, sizeof spec.file_name, "%s", file_name);
    return visit(model, &spec, user);
}

static enum talpa_status visit_layer(struct talpa_model *model, tensor_visitor *visit, void *user, int layer)
{
    const struct tp_model_config *c = &model->config;
    char name[96], file_name[96];
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", layer);
    snprintf(file_name, sizeof file_name, "blk.%d.attn_norm.weight", layer);
    TP_TRY(visit_norm(model, visit, user, name, file_name));
    for (int l = 0; l < TP_N_LINEARS; l++) {
        struct tensor_spec spec = {.rank = 2};
        tp_linear_shape(c, (enum tp_linear)l, &spec.rows, &spec.columns);
        snprintf(spec.name, sizeof spec.name, "model.layers.%d.%s.weight", layer, linears[l].hf);
        snprintf(spec.file_name, sizeof spec.file_name, "blk.%d.%s.weight", layer, linears[l].gguf);
        spec.interleaved_heads = l == TP_LINEAR_Q ? c->n_heads : l == TP_LINEAR_K ? c->n_kv_heads : 0;
        TP_TRY(visit(model, &spec, user));
    }
    snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", layer);
    snprintf(file_name, sizeof file_name, "blk.%d.ffn_norm.weight", layer);
    return visit_norm(model, visit, user, name, file_name);
}

static enum talpa_status visit_tensors(struct talpa_model *model, tensor_visitor *visit, void *user)
{
    const struct tp_model_config *c = &model->config;
    struct tensor_spec table = {.name = "model.embed_tokens.weight", .file_name = "token_embd.weight", .rank = 2, .rows = c->vocab_size, .columns = c->d_model};
    TP_TRY(visit(model, &table, user));
    for (int layer = 0; layer < c->n_layers; layer++) TP_TRY(visit_layer(model, visit, user, layer));
    TP_TRY(visit_norm(model, visit, user, "model.norm.weight", "output_norm.weight"));
    if (c->tied_embeddings) return TALPA_OK;
    strcpy(table.name, "lm_head.weight");
    strcpy(table.file_name, "output.weight");
    return visit(model, &table, user);
}

/* ---- GGUF ---- */

static enum talpa_status get_size(int *out, const struct tp_gguf *gguf, const char *key, int64_t limit)
{
    int64_t value;
    TP_TRY(tp_gguf_get_int(&value, gguf, key));
    if (value < 1 || value > limit)
        return tp_fail(TALPA_E_DATA, "%s: %s is %lld, expected 1 to %lld", tp_gguf_label(gguf), key, (long long)value, (long long)limit);
    *out = (int)value;
    return TALPA_OK;
}

static enum talpa_status read_config(struct talpa_model *model)
{
    const struct tp_gguf *gguf = model->gguf;
    struct tp_model_config *c = &model->config;
    TP_TRY(get_size(&c->n_layers, gguf, "llama.block_count", 1 << 12));
    TP_TRY(get_size(&c->d_model, gguf, "llama.embedding_length", 1 << 18));
    TP_TRY(get_size(&c->d_ff, gguf, "llama.feed_forward_length", 1 << 20));
    TP_TRY(get_size(&c->context_length, gguf, "llama.context_length", 1 << 28));
    TP_TRY(get_size(&c->n_heads, gguf, "llama.attention.head_count", 1 << 12));
    c->n_kv_heads = c->n_heads;
    if (tp_gguf_has(gguf, "llama.attention.head_count_kv")) TP_TRY(get_size(&c->n_kv_heads, gguf, "llama.attention.head_count_kv", 1 << 12));
    c->head_dim = c->d_model / c->n_heads;
    if (tp_gguf_has(gguf, "llama.attention.key_length")) TP_TRY(get_size(&c->head_dim, gguf, "llama.attention.key_length", 1 << 14));
    if (c->n_heads % c->n_kv_heads)
        return tp_fail(TALPA_E_DATA, "%s: llama.attention.head_count_kv is %d, expected a divisor of head_count %d", model->path, c->n_kv_heads, c->n_heads);
    if (c->head_dim < 2 || c->head_dim % 2)
        return tp_fail(TALPA_E_DATA, "%s: the head width is %d (embedding_length %d, head_count %d), expected an even number", model->path, c->head_dim,
                       c->d_model, c->n_heads);
    int64_t rope_width;
    TP_TRY(tp_gguf_get_int_or(&rope_width, gguf, "llama.rope.dimension_count", c->head_dim));
    if (rope_width != c->head_dim)
        return tp_fail(TALPA_E_DATA, "%s: llama.rope.dimension_count is %lld, expected the head width %d: partial rotary embedding is not supported",
                       model->path, (long long)rope_width, c->head_dim);
    const char *scaling;
    TP_TRY(tp_gguf_get_string_or(&scaling, gguf, "llama.rope.scaling.type", "none"));
    if (strcmp(scaling, "none"))
        return tp_fail(TALPA_E_DATA, "%s: llama.rope.scaling.type is '%s', supported is none", model->path, scaling);
    TP_TRY(tp_gguf_get_float_or(&c->rope_theta, gguf, "llama.rope.freq_base", 10000.0));
    TP_TRY(tp_gguf_get_float(&c->rms_norm_eps, gguf, "llama.attention.layer_norm_rms_epsilon"));
    if (!(c->rms_norm_eps > 0.0 && c->rms_norm_eps < 1.0) || !(c->rope_theta > 1.0 && c->rope_theta < 1e12))
        return tp_fail(TALPA_E_DATA, "%s: layer_norm_rms_epsilon is %g and rope.freq_base %g, expected (0, 1) and (1, 1e12)", model->path,
                       c->rms_norm_eps, c->rope_theta);
    struct tp_gguf_tensor table;
    TP_TRY(tp_gguf_tensor_get(&table, gguf, "token_embd.weight"));
    if (table.shape.rank != 2 || table.shape.dim[0] > 1 << 24)
        return tp_fail(TALPA_E_DATA, "%s: token_embd.weight has %d dimensions, expected [vocabulary, %d]", model->path, table.shape.rank, c->d_model);
    c->vocab_size = (int)table.shape.dim[0];
    c->tied_embeddings = !tp_gguf_has_tensor(gguf, "output.weight");
    return TALPA_OK;
}

static enum talpa_status bind_tensor(struct talpa_model *model, const struct tensor_spec *spec, void *user)
{
    (void)user;
    struct tp_gguf_tensor tensor;
    TP_TRY(tp_gguf_tensor_get(&tensor, model->gguf, spec->file_name));
    const bool fits = tensor.shape.rank == spec->rank && tensor.shape.dim[0] == spec->rows && (spec->rank == 1 || tensor.shape.dim[1] == spec->columns);
    if (!fits)
        return tp_fail(TALPA_E_DATA, "%s: %s is [%lld, %lld], expected [%d, %d]", model->path, spec->file_name, (long long)tensor.shape.dim[0],
                       (long long)(tensor.shape.rank > 1 ? tensor.shape.dim[1] : 1), spec->rows, spec->columns);
    if (spec->is_norm && tensor.dtype != TALPA_F32)
        return tp_fail(TALPA_E_DATA, "%s: %s is %s, expected f32", model->path, spec->file_name, tp_dtype_name(tensor.dtype));
    if (tensor.dtype == TALPA_I32) return tp_fail(TALPA_E_DATA, "%s: %s is i32, expected a weight type", model->path, spec->file_name);
    const struct tp_model_weight weight = {.name = spec->name,
                                           .file_name = spec->file_name,
                                           .type = {.dtype = tensor.dtype, .shape = tensor.shape},
                                           .data = tensor.data,
                                           .interleaved_heads = spec->interleaved_heads};
    return tp_model_add(model, &weight);
}

enum talpa_status tp_llama_read_gguf(struct talpa_model *model)
{
    TP_TRY(read_config(model));
    TP_TRY(visit_tensors(model, bind_tensor, NULL));
    /* A tensor that nobody asked for changes the model's function (biases, rotary factors): better refused than ignored. */
    for (int64_t i = 0; i < tp_gguf_n_tensors(model->gguf); i++) {
        const char *name = tp_gguf_tensor_name(model->gguf, i);
        bool used = false;
        for (size_t w = 0; w < model->n_weights && !used; w++) used = !strcmp(model->weights[w].file_name, name);
        if (!used) return tp_fail(TALPA_E_DATA, "%s: tensor '%s' is not part of a plain Llama model and would be ignored", model->path, name);
    }
    return TALPA_OK;
}

/* ---- random ---- */

static enum talpa_status make_tensor(struct talpa_model *model, const struct tensor_spec *spec, void *user)
{
    const uint64_t seed = *(const uint64_t *)user;
    const int64_t n = (int64_t)spec->rows * spec->columns;
    float *data = tp_arena_array(&model->arena, (size_t)n, sizeof *data);
    if (!data) return TALPA_E_DEVICE;
    /* Norms 1; everything else uniform with the variance of a linear's usual start. */
    if (spec->is_norm) {
        for (int64_t i = 0; i < n; i++) data[i] = 1.0f;
    } else {
        tp_rng_fill_splitmix(data, n, seed, model->n_weights, spec->columns > 0 ? sqrt(3.0 / spec->columns) : 1.0);
    }
    const int64_t dim[2] = {spec->rows, spec->columns};
    const struct tp_model_weight weight = {
        .name = spec->name, .file_name = spec->file_name, .type = tp_type_make(TALPA_F32, TP_STEP_NONE, spec->rank, dim), .data = data};
    return tp_model_add(model, &weight);
}

enum talpa_status tp_llama_random(struct talpa_model *model, uint64_t seed) { return visit_tensors(model, make_tensor, &seed); }
