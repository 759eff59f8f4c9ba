/* Models in GGUF files: keys and tensors as llama.cpp names them. */
#include <string.h>

#include "arch.h"

/* One architecture's keys of a file: "llama.block_count". */
struct keys {
    const struct tp_gguf *gguf;
    const struct tp_arch *arch;
    char text[128];
};

static const char *key_of(struct keys *keys, const char *suffix)
{
    snprintf(keys->text, sizeof keys->text, "%s.%s", keys->arch->name, suffix);
    return keys->text;
}

static enum talpa_status get_size(int *out, struct keys *keys, const char *suffix, int64_t limit)
{
    int64_t value;
    const char *key = key_of(keys, suffix);
    TP_TRY(tp_gguf_get_int(&value, keys->gguf, key));
    if (value < 1 || value > limit)
        return tp_fail(TALPA_E_DATA, "%s: %s is %lld, expected 1 to %lld", tp_gguf_label(keys->gguf), key, (long long)value,
                       (long long)limit);
    *out = (int)value;
    return TALPA_OK;
}

static enum talpa_status get_size_or(int *out, struct keys *keys, const char *suffix, int64_t limit, int fallback)
{
    *out = fallback;
    return tp_gguf_has(keys->gguf, key_of(keys, suffix)) ? get_size(out, keys, suffix, limit) : TALPA_OK;
}

/* A key that is there with another value changes the model's function: better refused than ignored. */
static enum talpa_status expect_int(struct keys *keys, const char *suffix, int64_t expected)
{
    int64_t value;
    const char *key = key_of(keys, suffix);
    TP_TRY(tp_gguf_get_int_or(&value, keys->gguf, key, expected));
    if (value != expected)
        return tp_fail(TALPA_E_DATA, "%s: %s is %lld, supported is %lld", tp_gguf_label(keys->gguf), key, (long long)value,
                       (long long)expected);
    return TALPA_OK;
}

/* ---- configuration ---- */

/* The keys of an architecture that are read, or do not change its function. */
static const char *const known_keys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
};

static enum talpa_status refuse_unknown_keys(const struct keys *keys)
{
    const size_t n_prefix = strlen(keys->arch->name);
    for (int64_t i = 0; i < tp_gguf_n_keys(keys->gguf); i++) {
        const char *key = tp_gguf_key(keys->gguf, i);
        if (strncmp(key, keys->arch->name, n_prefix) || key[n_prefix] != '.') continue;
        bool known = false;
        for (size_t k = 0; k < sizeof known_keys / sizeof *known_keys && !known; k++) known = !strcmp(known_keys[k], key + n_prefix + 1);
        if (!known)
            return tp_fail(TALPA_E_DATA, "%s: %s is not understood and might change what the model computes; expected a plain %s model",
                           tp_gguf_label(keys->gguf), key, keys->arch->name);
    }
    return TALPA_OK;
}

static enum talpa_status read_sizes(struct talpa_model *model, struct keys *keys)
{
    struct tp_model_config *c = &model->config;
    int64_t window;
    TP_TRY(get_size(&c->n_layers, keys, "block_count", 1 << 12));
    TP_TRY(get_size(&c->d_model, keys, "embedding_length", 1 << 18));
    TP_TRY(get_size(&c->d_ff, keys, "feed_forward_length", 1 << 20));
    TP_TRY(get_size(&c->context_length, keys, "context_length", 1 << 28));
    TP_TRY(get_size(&c->n_heads, keys, "attention.head_count", 1 << 12));
    TP_TRY(get_size_or(&c->n_kv_heads, keys, "attention.head_count_kv", 1 << 12, c->n_heads));
    TP_TRY(get_size_or(&c->head_dim, keys, "attention.key_length", 1 << 14, c->d_model / c->n_heads));
    TP_TRY(expect_int(keys, "attention.value_length", c->head_dim));
    TP_TRY(expect_int(keys, "rope.dimension_count", c->head_dim));
    TP_TRY(expect_int(keys, "expert_count", 0));
    TP_TRY(tp_gguf_get_int_or(&window, keys->gguf, key_of(keys, "attention.sliding_window"), 0));
    tp_arch_limit_context(model, window);
    TP_TRY(tp_gguf_get_float_or(&c->rope_theta, keys->gguf, key_of(keys, "rope.freq_base"), 10000.0));
    TP_TRY(tp_gguf_get_float(&c->rms_norm_eps, keys->gguf, key_of(keys, "attention.layer_norm_rms_epsilon")));
    struct tp_gguf_tensor table;
    TP_TRY(tp_gguf_tensor_get(&table, keys->gguf, "token_embd.weight"));
    if (table.shape.rank != 2 || table.shape.dim[0] > 1 << 24)
        return tp_fail(TALPA_E_DATA, "%s: token_embd.weight has %d dimensions, expected [vocabulary, %d]", model->path, table.shape.rank,
                       c->d_model);
    c->vocab_size = (int)table.shape.dim[0];
    c->tied_embeddings = !tp_gguf_has_tensor(keys->gguf, "output.weight");
    for (int l = 0; l < TP_N_LINEARS; l++) {
        char name[64];
        snprintf(name, sizeof name, "blk.0.%s.bias", tp_linear_gguf_name((enum tp_linear)l));
        if (tp_gguf_has_tensor(keys->gguf, name)) c->biased_linears |= 1u << l;
    }
    return TALPA_OK;
}

static const char rotary_factors[] = "rope_freqs.weight";

/* Factors of the rotary frequencies: rope.scaling (linear) times the tensor that Llama 3.1 and later come with. */
static enum talpa_status read_rotary(struct talpa_model *model, struct keys *keys)
{
    const int n = model->config.head_dim / 2;
    const char *scaling;
    double factor = 1.0;
    TP_TRY(tp_gguf_get_string_or(&scaling, keys->gguf, key_of(keys, "rope.scaling.type"), "none"));
    if (!strcmp(scaling, "linear")) TP_TRY(tp_gguf_get_float(&factor, keys->gguf, key_of(keys, "rope.scaling.factor")));
    else if (strcmp(scaling, "none"))
        return tp_fail(TALPA_E_DATA, "%s: %s is '%s', supported are none and linear", model->path, key_of(keys, "rope.scaling.type"),
                       scaling);
    const bool has_tensor = tp_gguf_has_tensor(keys->gguf, rotary_factors);
    if (factor == 1.0 && !has_tensor) return TALPA_OK;
    double *factors = tp_arena_array(&model->arena, (size_t)n, sizeof *factors);
    if (!factors) return TALPA_E_DEVICE;
    for (int i = 0; i < n; i++) factors[i] = factor;
    if (has_tensor) {
        struct tp_gguf_tensor tensor;
        TP_TRY(tp_gguf_tensor_get(&tensor, keys->gguf, rotary_factors));
        if (tensor.dtype != TALPA_F32 || tensor.shape.rank != 1 || tensor.shape.dim[0] != n)
            return tp_fail(TALPA_E_DATA, "%s: %s has %d dimensions, %lld elements in the first, expected [%d] f32", model->path,
                           rotary_factors, tensor.shape.rank, (long long)tensor.shape.dim[0], n);
        for (int i = 0; i < n; i++) {
            float value;
            memcpy(&value, (const char *)tensor.data + (size_t)i * sizeof value, sizeof value);
            factors[i] *= (double)value;
        }
    }
    return tp_arch_rotary_table(model, factors);
}

/* ---- weights ---- */

static enum talpa_status bind_tensor(struct talpa_model *model, const struct tp_tensor_spec *spec, void *user)
{
    const struct keys *keys = user;
    struct tp_gguf_tensor tensor;
    TP_TRY(tp_gguf_tensor_get(&tensor, model->gguf, spec->gguf_name));
    const struct tp_tensor_found found = {.label = model->path,
                                          .file_name = spec->gguf_name,
                                          .type = {.dtype = tensor.dtype, .shape = tensor.shape},
                                          .data = tensor.data,
                                          .is_interleaved = keys->arch->is_interleaved};
    return tp_arch_bind(model, spec, &found);
}

/* A tensor that nobody asked for changes the model's function: better refused than ignored. */
static enum talpa_status refuse_unknown_tensors(const struct talpa_model *model)
{
    struct tp_map used = {0};
    enum talpa_status status = TALPA_OK;
    for (size_t w = 0; w < model->n_weights && status == TALPA_OK; w++) status = tp_map_put_string(&used, model->weights[w].file_name, 1);
    if (status == TALPA_OK && model->config.has_rotary_table) status = tp_map_put_string(&used, rotary_factors, 1);
    for (int64_t i = 0; i < tp_gguf_n_tensors(model->gguf) && status == TALPA_OK; i++) {
        const char *name = tp_gguf_tensor_name(model->gguf, i);
        int64_t value;
        if (!tp_map_get_string(&value, &used, name))
            status = tp_fail(TALPA_E_DATA, "%s: tensor '%s' is not part of a plain %s model and would be ignored", model->path, name,
                             model->architecture);
    }
    tp_map_free(&used);
    return status;
}

enum talpa_status tp_model_read_gguf(struct talpa_model *model)
{
    const char *architecture, *name;
    TP_TRY(tp_gguf_open(&model->gguf, model->path));
    TP_TRY(tp_gguf_get_string(&architecture, NULL, model->gguf, "general.architecture"));
    TP_TRY(tp_gguf_get_string_or(&name, model->gguf, "general.name", model->path));
    const struct tp_arch *arch = tp_arch_find(architecture);
    if (!arch)
        return tp_fail(TALPA_E_DATA, "%s: general.architecture is '%s', supported are %s", model->path, architecture, tp_arch_names());
    model->name = tp_arena_strdup(&model->arena, name);
    if (!model->name) return TALPA_E_DEVICE;
    struct keys keys = {.gguf = model->gguf, .arch = arch};
    TP_TRY(refuse_unknown_keys(&keys));
    TP_TRY(read_sizes(model, &keys));
    TP_TRY(tp_arch_configure(model, arch));
    TP_TRY(tp_arch_visit(model, bind_tensor, &keys));
    TP_TRY(read_rotary(model, &keys));
    TP_TRY(refuse_unknown_tensors(model));
    return tp_tokenizer_from_gguf(&model->tokenizer, model->gguf);
}
