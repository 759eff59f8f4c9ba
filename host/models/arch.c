#include "arch.h"

#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "base/log.h"

#define QKV (1u << TP_LINEAR_Q | 1u << TP_LINEAR_K | 1u << TP_LINEAR_V)

static const struct tp_arch archs[] = {
    {.name = "llama", .hf_class = {"LlamaForCausalLM", "MistralForCausalLM"}, .is_interleaved = true},
    {.name = "qwen2", .hf_class = {"Qwen2ForCausalLM"}, .biased_linears = QKV, .has_optional_window = true},
    {.name = "qwen3", .hf_class = {"Qwen3ForCausalLM"}, .has_head_norms = true, .has_optional_window = true, .head_dim = 128},
    {.name = "gemma",
     .hf_class = {"GemmaForCausalLM"},
     .activation = TP_ACTIVATION_GELU_TANH,
     .has_offset_norms = true,
     .scales_embedding = true,
     .is_tied = true,
     .head_dim = 256},
};

enum { N_ARCHS = sizeof archs / sizeof *archs };

const struct tp_arch *tp_arch_find(const char *name)
{
    for (int i = 0; i < N_ARCHS; i++)
        if (!strcmp(archs[i].name, name)) return &archs[i];
    return NULL;
}

const struct tp_arch *tp_arch_find_class(const char *hf_class)
{
    for (int i = 0; i < N_ARCHS; i++)
        for (int k = 0; archs[i].hf_class[k]; k++)
            if (!strcmp(archs[i].hf_class[k], hf_class)) return &archs[i];
    return NULL;
}

const char *tp_arch_names(void) { return "llama, qwen2, qwen3, gemma"; }

const char *tp_arch_classes(void)
{
    return "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GemmaForCausalLM";
}

/* ---- linears ---- */

static const struct {
    const char *hf, *gguf;
} linears[TP_N_LINEARS] = {
    [TP_LINEAR_Q] = {"self_attn.q_proj", "attn_q"},     [TP_LINEAR_K] = {"self_attn.k_proj", "attn_k"},
    [TP_LINEAR_V] = {"self_attn.v_proj", "attn_v"},     [TP_LINEAR_O] = {"self_attn.o_proj", "attn_output"},
    [TP_LINEAR_GATE] = {"mlp.gate_proj", "ffn_gate"},   [TP_LINEAR_UP] = {"mlp.up_proj", "ffn_up"},
    [TP_LINEAR_DOWN] = {"mlp.down_proj", "ffn_down"},
};

const char *tp_linear_name(enum tp_linear linear) { return linears[linear].hf; }
const char *tp_linear_gguf_name(enum tp_linear linear) { return linears[linear].gguf; }

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

/* ---- configuration ---- */

enum talpa_status tp_arch_configure(struct talpa_model *model, const struct tp_arch *arch)
{
    struct tp_model_config *c = &model->config;
    if (c->n_heads % c->n_kv_heads)
        return tp_fail(TALPA_E_DATA,
                       "%s: the model has %d key-value heads (head_count_kv, num_key_value_heads), expected a divisor of its %d heads",
                       model->path, c->n_kv_heads, c->n_heads);
    if (c->head_dim < 2 || c->head_dim % 2)
        return tp_fail(TALPA_E_DATA, "%s: the head width is %d (model width %d, %d heads), expected an even number", model->path,
                       c->head_dim, c->d_model, c->n_heads);
    /* Widths of q and of the table must stay clear of int. */
    if ((int64_t)c->n_heads * c->head_dim > 1 << 24)
        return tp_fail(TALPA_E_DATA, "%s: %d heads of width %d, expected at most %d in all", model->path, c->n_heads, c->head_dim, 1 << 24);
    if (!(c->rms_norm_eps > 0.0 && c->rms_norm_eps < 1.0) || !(c->rope_theta > 1.0 && c->rope_theta < 1e12))
        return tp_fail(TALPA_E_DATA, "%s: the norms' epsilon is %g and the rotary base %g, expected (0, 1) and (1, 1e12)", model->path,
                       c->rms_norm_eps, c->rope_theta);
    model->architecture = arch->name;
    c->activation = arch->activation;
    c->has_head_norms = arch->has_head_norms;
    c->embedding_scale = arch->scales_embedding ? sqrt((double)c->d_model) : 0.0;
    c->biased_linears |= arch->biased_linears;
    return TALPA_OK;
}

void tp_arch_limit_context(struct talpa_model *model, int64_t window)
{
    struct tp_model_config *c = &model->config;
    if (window <= 0 || window >= c->context_length) return;
    tp_log(TALPA_LOG_INFO, "%s: the context length %d is cut to the sliding window of %lld tokens, inside which attention is complete",
           model->path, c->context_length, (long long)window);
    c->context_length = (int)window;
}

enum talpa_status tp_arch_rotary_table(struct talpa_model *model, const double *factors)
{
    const int n = model->config.head_dim / 2;
    uint32_t *words = tp_arena_array(&model->arena, 2 * (size_t)n, sizeof *words);
    if (!words) return TALPA_E_DEVICE;
    for (int i = 0; i < n; i++) {
        const double turns = pow(model->config.rope_theta, -2.0 * i / (2.0 * n)) / factors[i] / (2.0 * acos(-1.0));
        if (!(factors[i] > 0.0) || !isfinite(factors[i]) || !(turns < 1.0))
            return tp_fail(TALPA_E_DATA, "%s: the rotary factor of pair %d is %g, expected a positive number of about 1 or more",
                           model->path, i, factors[i]);
        const uint64_t fraction = (uint64_t)ldexp(turns, 64);
        words[2 * i] = (uint32_t)(fraction >> 32);
        words[2 * i + 1] = (uint32_t)fraction;
    }
    const struct tp_model_weight weight = {.name = TP_ROTARY_TABLE,
                                           .file_name = TP_ROTARY_TABLE,
                                           .type = tp_type_2d(TALPA_I32, TP_STEP_NONE, n, 2),
                                           .data = words,
                                           .is_derived = true};
    model->config.has_rotary_table = true;
    return tp_model_add(model, &weight);
}

/* ---- the list of tensors ---- */

static enum talpa_status visit_vector(struct talpa_model *model, tp_tensor_visit *visit, void *user, enum tp_tensor_role role, int rows,
                                      int n_rotary_heads, const char *name, const char *gguf_name)
{
    struct tp_tensor_spec spec = {.role = role, .rows = rows, .columns = 1, .n_rotary_heads = n_rotary_heads};
    snprintf(spec.name, sizeof spec.name, "%s", name);
    snprintf(spec.gguf_name, sizeof spec.gguf_name, "%s", gguf_name);
    return visit(model, &spec, user);
}

static enum talpa_status visit_layer_norm(struct talpa_model *model, tp_tensor_visit *visit, void *user, int layer, int width,
                                          const char *hf, const char *gguf)
{
    char name[96], gguf_name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, hf);
    snprintf(gguf_name, sizeof gguf_name, "blk.%d.%s.weight", layer, gguf);
    return visit_vector(model, visit, user, TP_ROLE_NORM, width, 0, name, gguf_name);
}

static enum talpa_status visit_linear(struct talpa_model *model, tp_tensor_visit *visit, void *user, int layer, enum tp_linear linear)
{
    const struct tp_model_config *c = &model->config;
    struct tp_tensor_spec spec = {.role = TP_ROLE_MATRIX};
    spec.n_rotary_heads = linear == TP_LINEAR_Q ? c->n_heads : linear == TP_LINEAR_K ? c->n_kv_heads : 0;
    tp_linear_shape(c, linear, &spec.rows, &spec.columns);
    snprintf(spec.name, sizeof spec.name, "model.layers.%d.%s.weight", layer, linears[linear].hf);
    snprintf(spec.gguf_name, sizeof spec.gguf_name, "blk.%d.%s.weight", layer, linears[linear].gguf);
    TP_TRY(visit(model, &spec, user));
    if (!(c->biased_linears & 1u << linear)) return TALPA_OK;
    spec.role = TP_ROLE_BIAS;
    spec.columns = 1;
    snprintf(spec.name, sizeof spec.name, "model.layers.%d.%s.bias", layer, linears[linear].hf);
    snprintf(spec.gguf_name, sizeof spec.gguf_name, "blk.%d.%s.bias", layer, linears[linear].gguf);
    return visit(model, &spec, user);
}

static enum talpa_status visit_layer(struct talpa_model *model, tp_tensor_visit *visit, void *user, int layer)
{
    const struct tp_model_config *c = &model->config;
    TP_TRY(visit_layer_norm(model, visit, user, layer, c->d_model, "input_layernorm", "attn_norm"));
    for (int l = 0; l < TP_N_LINEARS; l++) TP_TRY(visit_linear(model, visit, user, layer, (enum tp_linear)l));
    if (c->has_head_norms) {
        TP_TRY(visit_layer_norm(model, visit, user, layer, c->head_dim, "self_attn.q_norm", "attn_q_norm"));
        TP_TRY(visit_layer_norm(model, visit, user, layer, c->head_dim, "self_attn.k_norm", "attn_k_norm"));
    }
    return visit_layer_norm(model, visit, user, layer, c->d_model, "post_attention_layernorm", "ffn_norm");
}

enum talpa_status tp_arch_visit(struct talpa_model *model, tp_tensor_visit *visit, void *user)
{
    const struct tp_model_config *c = &model->config;
    struct tp_tensor_spec table = {
        .name = "model.embed_tokens.weight", .gguf_name = "token_embd.weight", .rows = c->vocab_size, .columns = c->d_model};
    TP_TRY(visit(model, &table, user));
    for (int layer = 0; layer < c->n_layers; layer++) TP_TRY(visit_layer(model, visit, user, layer));
    TP_TRY(visit_vector(model, visit, user, TP_ROLE_NORM, c->d_model, 0, "model.norm.weight", "output_norm.weight"));
    if (c->tied_embeddings) return TALPA_OK;
    strcpy(table.name, "lm_head.weight");
    strcpy(table.gguf_name, "output.weight");
    return visit(model, &table, user);
}

/* ---- from a file into the model ---- */

static enum talpa_status make_vector(struct talpa_model *model, const struct tp_tensor_spec *spec, const struct tp_tensor_found *found,
                                     const float **out)
{
    const size_t n = (size_t)spec->rows;
    float *values = tp_arena_array(&model->arena, n, sizeof *values);
    float *moved = found->is_interleaved && spec->n_rotary_heads ? tp_arena_array(&model->arena, n, sizeof *moved) : NULL;
    if (!values || (found->is_interleaved && spec->n_rotary_heads && !moved)) return TALPA_E_DEVICE;
    tp_dtype_to_f32(values, found->data, found->type.dtype, (int64_t)n);
    if (found->is_offset && spec->role == TP_ROLE_NORM)
        for (size_t i = 0; i < n; i++) values[i] += 1.0f;
    *out = values;
    if (!moved) return TALPA_OK;
    const size_t width = n / (size_t)spec->n_rotary_heads, half = width / 2;
    for (size_t i = 0; i < n; i++) moved[i] = values[i / width * width + 2 * (i % width % half) + i % width / half];
    *out = moved;
    return TALPA_OK;
}

enum talpa_status tp_arch_bind(struct talpa_model *model, const struct tp_tensor_spec *spec, const struct tp_tensor_found *found)
{
    const struct talpa_shape *shape = &found->type.shape;
    const int rank = spec->role == TP_ROLE_MATRIX ? 2 : 1;
    if (shape->rank != rank || shape->dim[0] != spec->rows || (rank == 2 && shape->dim[1] != spec->columns))
        return tp_fail(TALPA_E_DATA, "%s: %s is [%lld, %lld] (%d dimensions), expected [%d, %d]", found->label, found->file_name,
                       (long long)shape->dim[0], (long long)(shape->rank > 1 ? shape->dim[1] : 1), shape->rank, spec->rows, spec->columns);
    if (found->type.dtype == TALPA_I32 || (rank == 1 && tp_dtype_is_quantised(found->type.dtype)))
        return tp_fail(TALPA_E_DATA, "%s: %s is %s, expected %s", found->label, found->file_name, tp_dtype_name(found->type.dtype),
                       rank == 1 ? "f32, f16 or bf16" : "a weight type");
    struct tp_model_weight weight = {.name = spec->name, .file_name = found->file_name, .type = found->type, .data = found->data};
    if (rank == 2) {
        weight.interleaved_heads = found->is_interleaved ? spec->n_rotary_heads : 0;
        return tp_model_add(model, &weight);
    }
    const float *values;
    TP_TRY(make_vector(model, spec, found, &values));
    weight.type.dtype = TALPA_F32;
    weight.data = values;
    return tp_model_add(model, &weight);
}
