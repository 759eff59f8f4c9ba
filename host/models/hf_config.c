/* config.json of Hugging Face folders (the fields of transformers' configuration classes). What changes the function of the model and is
 * not understood is refused by name. */
#include <math.h>
#include <string.h>

#include "arch.h"
#include "base/json.h"
#include "base/log.h"

/* Fields that are read below. */
static const char *const read_fields[] = {
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "hidden_activation",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "partial_rotary_factor",
    "attention_dropout",
};

/* Fields that say nothing about the function: about files, training from scratch, generation, other classes' heads. */
static const char *const harmless_fields[] = {
    "model_type",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "initializer_range",
    "pretraining_tp",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "tokenizer_class",
    "max_window_layers",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "torchscript",
    "use_bfloat16",
    "tf_legacy_loss",
    "pruned_heads",
    "chunk_size_feed_forward",
    "is_llama_config",
    "transformers.js_config",
    "prefix",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "max_sequence_length",
};

static bool is_in(const char *name, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(list[i], name)) return true;
    return false;
}

static bool is_false(const struct tp_json_value *value)
{
    bool flag = false;
    return tp_json_type(value) == TP_JSON_NULL ||
           (tp_json_type(value) == TP_JSON_BOOL && tp_json_as_bool(&flag, value, "") == TALPA_OK && !flag);
}

/* Absent, null and false switch a feature off, whatever it is. */
static enum talpa_status refuse_unknown(const struct tp_json_value *object, const char *const *known, size_t n_known,
                                        const char *const *harmless, size_t n_harmless, const char *where)
{
    for (const struct tp_json_value *member = tp_json_first(object); member; member = tp_json_next(member)) {
        const char *name = tp_json_key(member);
        /* "_..." is transformers' own record of how it was loaded, "unsloth..." that of a training tool. */
        if (*name == '_' || !strncmp(name, "unsloth", 7) || is_in(name, known, n_known) || is_in(name, harmless, n_harmless) ||
            is_false(member))
            continue;
        if (!strcmp(name, "quantization_config"))
            return tp_fail(TALPA_E_DATA,
                           "quantization_config: quantised checkpoints are not supported here; use the original weights, or a GGUF file");
        return tp_fail(TALPA_E_DATA,
                       "%s%.80s: found %s that is not understood and might change what the model computes; remove the field if it does not",
                       where, name, tp_json_type_name(tp_json_type(member)));
    }
    return TALPA_OK;
}

static enum talpa_status get_size(int *out, const struct tp_json_value *config, const char *key, int64_t limit)
{
    int64_t value;
    TP_TRY(tp_json_get_int(&value, config, key));
    if (value < 1 || value > limit) return tp_fail(TALPA_E_DATA, "%s is %lld, expected 1 to %lld", key, (long long)value, (long long)limit);
    *out = (int)value;
    return TALPA_OK;
}

static enum talpa_status get_size_or(int *out, const struct tp_json_value *config, const char *key, int64_t limit, int fallback)
{
    *out = fallback;
    return tp_json_type(tp_json_get(config, key)) == TP_JSON_NULL ? TALPA_OK : get_size(out, config, key, limit);
}

/* ---- parts ---- */

static enum talpa_status read_class(const struct tp_arch **arch, const struct tp_json_value *config)
{
    const char *name;
    TP_TRY(tp_json_as_string(&name, tp_json_at(tp_json_get(config, "architectures"), 0), "architectures[0]"));
    *arch = tp_arch_find_class(name);
    if (!*arch) return tp_fail(TALPA_E_DATA, "architectures[0] is '%.80s', supported are %s", name, tp_arch_classes());
    return TALPA_OK;
}

static enum talpa_status read_sizes(struct tp_model_config *c, const struct tp_arch *arch, const struct tp_json_value *config)
{
    TP_TRY(get_size(&c->n_layers, config, "num_hidden_layers", 1 << 12));
    TP_TRY(get_size(&c->d_model, config, "hidden_size", 1 << 18));
    TP_TRY(get_size(&c->d_ff, config, "intermediate_size", 1 << 20));
    TP_TRY(get_size(&c->vocab_size, config, "vocab_size", 1 << 24));
    TP_TRY(get_size(&c->context_length, config, "max_position_embeddings", 1 << 28));
    TP_TRY(get_size(&c->n_heads, config, "num_attention_heads", 1 << 12));
    TP_TRY(get_size_or(&c->n_kv_heads, config, "num_key_value_heads", 1 << 12, c->n_heads));
    TP_TRY(get_size_or(&c->head_dim, config, "head_dim", 1 << 14, arch->head_dim ? arch->head_dim : c->d_model / c->n_heads));
    TP_TRY(tp_json_get_double_or(&c->rms_norm_eps, config, "rms_norm_eps", 1e-6));
    return tp_json_get_bool_or(&c->tied_embeddings, config, "tie_word_embeddings", arch->is_tied);
}

static enum talpa_status read_biases(struct tp_model_config *c, const struct tp_json_value *config)
{
    bool attention, mlp;
    TP_TRY(tp_json_get_bool_or(&attention, config, "attention_bias", false));
    TP_TRY(tp_json_get_bool_or(&mlp, config, "mlp_bias", false));
    if (attention) c->biased_linears |= 1u << TP_LINEAR_Q | 1u << TP_LINEAR_K | 1u << TP_LINEAR_V | 1u << TP_LINEAR_O;
    if (mlp) c->biased_linears |= 1u << TP_LINEAR_GATE | 1u << TP_LINEAR_UP | 1u << TP_LINEAR_DOWN;
    return TALPA_OK;
}

/* Gemma's first files name the activation "gelu" in hidden_act and mean the tanh form; hidden_activation, where given, is exact. */
static enum talpa_status check_activation(const struct tp_arch *arch, const struct tp_json_value *config)
{
    const bool is_gelu = arch->activation == TP_ACTIVATION_GELU_TANH;
    const char *expected = is_gelu ? "gelu_pytorch_tanh" : "silu", *old, *name;
    TP_TRY(tp_json_get_string_or(&old, config, "hidden_act", expected));
    TP_TRY(tp_json_get_string_or(&name, config, "hidden_activation", is_gelu && !strcmp(old, "gelu") ? expected : old));
    if (strcmp(name, expected))
        return tp_fail(TALPA_E_DATA, "%s is '%.80s', supported for %s is %s",
                       tp_json_type(tp_json_get(config, "hidden_activation")) == TP_JSON_NULL ? "hidden_act" : "hidden_activation", name,
                       arch->name, expected);
    return TALPA_OK;
}

static enum talpa_status read_window(struct talpa_model *model, const struct tp_arch *arch, const struct tp_json_value *config)
{
    bool in_use;
    int64_t window;
    for (const struct tp_json_value *type = tp_json_first(tp_json_get(config, "layer_types")); type; type = tp_json_next(type)) {
        const char *name;
        TP_TRY(tp_json_as_string(&name, type, "layer_types"));
        if (strcmp(name, "full_attention") && strcmp(name, "sliding_attention"))
            return tp_fail(TALPA_E_DATA, "layer_types has '%.80s', supported are full_attention and sliding_attention", name);
    }
    TP_TRY(tp_json_get_bool_or(&in_use, config, "use_sliding_window", !arch->has_optional_window));
    TP_TRY(tp_json_get_int_or(&window, config, "sliding_window", 0));
    if (in_use) tp_arch_limit_context(model, window);
    return TALPA_OK;
}

/* ---- rotary embedding ---- */

/* Llama 3.1's rule: pairs that turn slower than the old context are slowed by `factor`, fast ones stay, those between are blended
 * (transformers, modeling_rope_utils, "llama3"; Llama's reference code, apply_scaling). */
static enum talpa_status llama3_factors(double *factors, const struct tp_model_config *c, const struct tp_json_value *rope)
{
    double factor, low, high, old_context;
    TP_TRY(tp_json_get_double(&factor, rope, "factor"));
    TP_TRY(tp_json_get_double(&low, rope, "low_freq_factor"));
    TP_TRY(tp_json_get_double(&high, rope, "high_freq_factor"));
    TP_TRY(tp_json_get_double(&old_context, rope, "original_max_position_embeddings"));
    if (!(factor >= 1.0) || !(low > 0.0) || !(high > low) || !(old_context >= 1.0))
        return tp_fail(TALPA_E_DATA,
                       "llama3 scaling has factor %g, low_freq_factor %g, high_freq_factor %g, original_max_position_embeddings %g, "
                       "expected at least 1, above 0, above low_freq_factor, at least 1",
                       factor, low, high, old_context);
    for (int i = 0; i < c->head_dim / 2; i++) {
        const double turns = old_context * pow(c->rope_theta, -2.0 * i / c->head_dim) / (2.0 * acos(-1.0)); /* over the old context */
        const double blend = fmin(fmax((turns - low) / (high - low), 0.0), 1.0);
        factors[i] = 1.0 / ((1.0 - blend) / factor + blend);
    }
    return TALPA_OK;
}

static enum talpa_status linear_factors(double *factors, const struct tp_model_config *c, const struct tp_json_value *rope)
{
    double factor;
    TP_TRY(tp_json_get_double(&factor, rope, "factor"));
    if (!(factor >= 1.0)) return tp_fail(TALPA_E_DATA, "factor is %g, expected at least 1", factor);
    for (int i = 0; i < c->head_dim / 2; i++) factors[i] = factor;
    return TALPA_OK;
}

static enum talpa_status read_scaling(struct talpa_model *model, const double **factors, const struct tp_json_value *rope)
{
    static const char *const common[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor"};
    static const char *const linear[] = {"factor"};
    static const char *const llama3[] = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
    const char *old, *type;
    TP_TRY(tp_json_get_string_or(&old, rope, "type", "default"));
    TP_TRY(tp_json_get_string_or(&type, rope, "rope_type", old));
    const bool is_linear = !strcmp(type, "linear"), is_llama3 = !strcmp(type, "llama3");
    if (!is_linear && !is_llama3 && strcmp(type, "default"))
        return tp_fail(TALPA_E_DATA, "rope_type is '%.80s', supported are default, linear and llama3", type);
    TP_TRY(refuse_unknown(rope, common, 4, is_linear ? linear : llama3, is_linear ? 1 : is_llama3 ? 4 : 0, ""));
    TP_TRY(tp_json_get_double_or(&model->config.rope_theta, rope, "rope_theta", model->config.rope_theta));
    double *own = tp_arena_array(&model->arena, (size_t)model->config.head_dim / 2, sizeof *own);
    if (!own) return TALPA_E_DEVICE;
    if (is_linear) TP_TRY(linear_factors(own, &model->config, rope));
    if (is_llama3) TP_TRY(llama3_factors(own, &model->config, rope));
    *factors = is_linear || is_llama3 ? own : NULL;
    return TALPA_OK;
}

static enum talpa_status read_rotary(struct talpa_model *model, const double **factors, const struct tp_json_value *config)
{
    static const char *const places[] = {"rope_parameters", "rope_scaling"}; /* transformers 5, transformers 4 */
    TP_TRY(tp_json_get_double_or(&model->config.rope_theta, config, "rope_theta", 10000.0));
    *factors = NULL;
    for (int i = 0; i < 2; i++) {
        const struct tp_json_value *rope = tp_json_get(config, places[i]);
        double width;
        TP_TRY(tp_json_get_double_or(&width, i ? config : rope, "partial_rotary_factor", 1.0));
        if (width != 1.0) return tp_fail(TALPA_E_DATA, "partial_rotary_factor is %g, supported is 1", width);
        if (tp_json_type(rope) == TP_JSON_NULL || *factors) continue;
        if (tp_json_type(rope) != TP_JSON_OBJECT)
            return tp_fail(TALPA_E_DATA, "%s is %s, expected an object", places[i], tp_json_type_name(tp_json_type(rope)));
        TP_TRY(tp_context(read_scaling(model, factors, rope), "%s", places[i]));
    }
    return TALPA_OK;
}

/* Dropout inside attention exists in training only; adapters have their own. */
static enum talpa_status note_dropout(const struct talpa_model *model, const struct tp_json_value *config)
{
    double p;
    TP_TRY(tp_json_get_double_or(&p, config, "attention_dropout", 0.0));
    if (p > 0.0) tp_log(TALPA_LOG_WARN, "%s: attention_dropout %g is not applied in training", model->path, p);
    return TALPA_OK;
}

enum talpa_status tp_hf_config_read(struct talpa_model *model, const struct tp_arch **arch, const double **factors,
                                    const struct tp_json_value *config)
{
    struct tp_model_config *c = &model->config;
    if (tp_json_type(config) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(config)));
    TP_TRY(read_class(arch, config));
    TP_TRY(refuse_unknown(config, read_fields, sizeof read_fields / sizeof *read_fields, harmless_fields,
                          sizeof harmless_fields / sizeof *harmless_fields, ""));
    TP_TRY(read_sizes(c, *arch, config));
    TP_TRY(read_biases(c, config));
    TP_TRY(check_activation(*arch, config));
    TP_TRY(read_window(model, *arch, config));
    TP_TRY(note_dropout(model, config));
    const double *own;
    TP_TRY(read_rotary(model, &own, config));
    TP_TRY(tp_arch_configure(model, *arch));
    *factors = own;
    return TALPA_OK;
}
