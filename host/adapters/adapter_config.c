#include "adapter_config.h"

#include <math.h>
#include <string.h>

#include "adapters/router.h"
#include "models/model.h"

enum { MAX_RANK = 4096, MAX_EXPERTS = 256 };

const char *tp_adapter_config_module(int module) { return strchr(tp_linear_name((enum tp_linear)module), '.') + 1; }

/* ---- reading ---- */

static enum talpa_status read_int(int *out, const struct tp_json_value *root, const char *key, int low, int high)
{
    int64_t value;
    TP_TRY(tp_json_get_int(&value, root, key));
    if (value < low || value > high) return tp_fail(TALPA_E_DATA, "%s: found %lld, expected %d to %d", key, (long long)value, low, high);
    *out = (int)value;
    return TALPA_OK;
}

/* A bound on a probability, above 0; absent or null gives 0, which stands for 1 / n_experts. */
static enum talpa_status read_bound(double *out, const struct tp_json_value *root, const char *key)
{
    double value;
    *out = 0.0;
    if (tp_json_type(tp_json_get(root, key)) == TP_JSON_NULL) return TALPA_OK;
    TP_TRY(tp_json_get_double(&value, root, key));
    if (!(value > 0.0 && value <= 1.0))
        return tp_fail(TALPA_E_DATA, "%s: found %g, expected null or a number above 0, at most 1", key, value);
    *out = value;
    return TALPA_OK;
}

static bool is_neutral(const struct tp_json_value *value)
{
    bool flag;
    const char *text;
    switch (tp_json_type(value)) {
    case TP_JSON_NULL:
        return true;
    case TP_JSON_BOOL:
        return tp_json_as_bool(&flag, value, "") == TALPA_OK && !flag;
    case TP_JSON_STRING:
        return tp_json_as_string(&text, value, "") == TALPA_OK && !*text;
    case TP_JSON_ARRAY:
    case TP_JSON_OBJECT:
        return tp_json_length(value) == 0;
    case TP_JSON_NUMBER:
        break;
    }
    return false;
}

/* Keys that change what an adapter computes in ways that are not implemented: they must be absent, null, false or empty. */
static enum talpa_status refuse_unsupported(const struct tp_json_value *root)
{
    static const char *const keys[] = {"use_dora",
                                       "lora_bias",
                                       "rank_pattern",
                                       "alpha_pattern",
                                       "modules_to_save",
                                       "target_parameters",
                                       "layers_to_transform",
                                       "layers_pattern",
                                       "exclude_modules",
                                       "fan_in_fan_out",
                                       "layer_replication",
                                       "trainable_token_indices",
                                       "alora_invocation_tokens",
                                       "arrow_config",
                                       "use_qalora",
                                       "use_bdlora",
                                       "kasa_config",
                                       "monteclora_config",
                                       "velora_config"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const struct tp_json_value *value = tp_json_get(root, keys[i]);
        if (!is_neutral(value))
            return tp_fail(TALPA_E_DATA, "%s: found %s, expected none: adapters that use it are not supported", keys[i],
                           tp_json_type(value) == TP_JSON_BOOL ? "true" : tp_json_type_name(tp_json_type(value)));
    }
    return TALPA_OK;
}

/* The starting values decide nothing afterwards, unless their choice changed the base as well. */
static enum talpa_status check_init(const struct tp_json_value *root)
{
    static const char *const harmless[] = {"gaussian", "eva", "orthogonal"};
    const struct tp_json_value *value = tp_json_get(root, "init_lora_weights");
    const char *name;
    if (tp_json_type(value) == TP_JSON_NULL || tp_json_type(value) == TP_JSON_BOOL) return TALPA_OK;
    TP_TRY(tp_json_as_string(&name, value, "init_lora_weights"));
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (!strcmp(name, harmless[i])) return TALPA_OK;
    return tp_fail(TALPA_E_DATA,
                   "init_lora_weights: found '%.40s', expected true, gaussian, eva or orthogonal: others alter the base model too", name);
}

/* What both layouts share, and this engine does not need: only type and value are checked. */
static enum talpa_status check_common(const struct tp_json_value *root)
{
    const char *text;
    bool flag;
    TP_TRY(tp_json_get_string_or(&text, root, "bias", "none"));
    if (strcmp(text, "none"))
        return tp_fail(TALPA_E_DATA, "bias: found '%.40s', expected none: adapters with biases are not supported", text);
    TP_TRY(tp_json_get_string_or(&text, root, "task_type", "CAUSAL_LM"));
    if (strcmp(text, "CAUSAL_LM")) return tp_fail(TALPA_E_DATA, "task_type: found '%.40s', expected CAUSAL_LM", text);
    TP_TRY(tp_json_get_string_or(&text, root, "base_model_name_or_path", ""));
    TP_TRY(tp_json_get_string_or(&text, root, "revision", ""));
    TP_TRY(tp_json_get_bool_or(&flag, root, "inference_mode", true));
    TP_TRY(refuse_unsupported(root));
    return check_init(root);
}

/* "q_proj", "self_attn.q_proj" or, as PEFT writes small models' "all-linear", "model.layers.0.self_attn.q_proj"; -1 for another name. That
 * no layer is left out is seen by the check of the tensors. */
static int module_of(const char *text)
{
    static const char prefix[] = "model.layers.";
    if (!strncmp(text, prefix, sizeof prefix - 1)) {
        const char *digits = text + sizeof prefix - 1;
        const size_t n = strspn(digits, "0123456789");
        if (n < 1 || digits[n] != '.') return -1;
        text = digits + n + 1;
    }
    for (int i = 0; i < TALPA_N_MODULES; i++)
        if (!strcmp(text, tp_adapter_config_module(i)) || !strcmp(text, tp_linear_name((enum tp_linear)i))) return i;
    return -1;
}

static enum talpa_status read_modules(unsigned *out, const struct tp_json_value *root)
{
    const struct tp_json_value *list = tp_json_get(root, "target_modules");
    const char *text;
    unsigned found = 0;
    if (tp_json_type(list) == TP_JSON_STRING) {
        TP_TRY(tp_json_as_string(&text, list, "target_modules"));
        if (!*text) return tp_fail(TALPA_E_DATA, "target_modules: found an empty text, expected a list of names or a pattern");
        *out = 0;
        return TALPA_OK;
    }
    if (tp_json_type(list) != TP_JSON_ARRAY)
        return tp_fail(TALPA_E_DATA, "target_modules: found %s, expected a list of names or a pattern",
                       tp_json_type_name(tp_json_type(list)));
    for (const struct tp_json_value *item = tp_json_first(list); item; item = tp_json_next(item)) {
        TP_TRY(tp_json_as_string(&text, item, "target_modules"));
        const int module = module_of(text);
        if (module < 0)
            return tp_fail(TALPA_E_DATA,
                           "target_modules: found '%.60s', expected q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj", text);
        found |= 1u << module;
    }
    if (!found) return tp_fail(TALPA_E_DATA, "target_modules: found an empty list, expected names such as q_proj");
    *out = found;
    return TALPA_OK;
}

/* The published loader raises on any key that its dataclass lacks. */
static enum talpa_status refuse_unknown(const struct tp_json_value *root, bool is_adamole)
{
    static const char *const keys[] = {"auto_mapping",
                                       "base_model_name_or_path",
                                       "bias",
                                       "inference_mode",
                                       "init_lora_weights",
                                       "lora_alpha",
                                       "lora_dropout",
                                       "lora_rank",
                                       "num_experts",
                                       "peft_type",
                                       "revision",
                                       "target_modules",
                                       "task_type"};
    for (const struct tp_json_value *item = tp_json_first(root); item; item = tp_json_next(item)) {
        const char *key = tp_json_key(item);
        bool is_known = is_adamole ? !strcmp(key, "max_threshold") : !strcmp(key, "top_k") || !strcmp(key, "threshold");
        for (size_t i = 0; i < sizeof keys / sizeof *keys && !is_known; i++) is_known = !strcmp(key, keys[i]);
        if (!is_known)
            return tp_fail(TALPA_E_DATA, "%.60s: unknown key for peft_type %s; its format allows no others than its own", key,
                           is_adamole ? "ADAMOLE" : "MOLE");
    }
    return TALPA_OK;
}

static enum talpa_status read_mixture(struct talpa_adapter_config *c, const struct tp_json_value *root, bool is_adamole)
{
    TP_TRY(refuse_unknown(root, is_adamole));
    TP_TRY(read_int(&c->rank, root, "lora_rank", 1, MAX_RANK));
    TP_TRY(read_int(&c->n_experts, root, "num_experts", 1, MAX_EXPERTS));
    if (is_adamole) {
        c->routing = TALPA_ROUTING_ADAMOLE;
        return read_bound(&c->max_threshold, root, "max_threshold");
    }
    TP_TRY(read_bound(&c->threshold, root, "threshold"));
    const bool has_top_k = tp_json_type(tp_json_get(root, "top_k")) != TP_JSON_NULL;
    if (has_top_k == (c->threshold > 0.0))
        return tp_fail(TALPA_E_DATA, "top_k, threshold: found %s, expected a number for one and null for the other",
                       has_top_k ? "both" : "none of them");
    c->routing = has_top_k ? TALPA_ROUTING_TOPK : TALPA_ROUTING_THRESHOLD;
    return has_top_k ? read_int(&c->top_k, root, "top_k", 1, c->n_experts) : TALPA_OK;
}

static enum talpa_status read_lora(struct talpa_adapter_config *c, const struct tp_json_value *root)
{
    bool use_rslora;
    c->routing = TALPA_ROUTING_LORA;
    c->n_experts = 1;
    /* The published mixture code has a LoRA of its own, whose rank is called as in its mixtures. */
    const bool is_peft = tp_json_get(root, "r") || !tp_json_get(root, "lora_rank");
    TP_TRY(read_int(&c->rank, root, is_peft ? "r" : "lora_rank", 1, MAX_RANK));
    TP_TRY(tp_json_get_bool_or(&use_rslora, root, "use_rslora", false));
    if (!use_rslora) return TALPA_OK;
    c->alpha *= sqrt((double)c->rank); /* the engine scales by alpha / rank */
    return c->alpha < 1e6 ? TALPA_OK
                          : tp_fail(TALPA_E_DATA, "lora_alpha: times sqrt(r) for use_rslora it is %g, expected below 1e6", c->alpha);
}

enum talpa_status tp_adapter_config_read(struct talpa_adapter_config *out, const struct tp_json_value *root)
{
    struct talpa_adapter_config c = {0};
    const char *type;
    if (tp_json_type(root) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(root)));
    TP_TRY(tp_json_get_string(&type, root, "peft_type"));
    TP_TRY(check_common(root));
    TP_TRY(read_modules(&c.modules, root));
    TP_TRY(tp_json_get_double(&c.alpha, root, "lora_alpha"));
    if (!(c.alpha > 0.0 && c.alpha < 1e6)) return tp_fail(TALPA_E_DATA, "lora_alpha: found %g, expected above 0 and below 1e6", c.alpha);
    TP_TRY(tp_json_get_double_or(&c.dropout, root, "lora_dropout", 0.0));
    if (!(c.dropout >= 0.0 && c.dropout < 1.0))
        return tp_fail(TALPA_E_DATA, "lora_dropout: found %g, expected at least 0 and below 1", c.dropout);
    if (!strcmp(type, "LORA"))
        TP_TRY(read_lora(&c, root));
    else if (!strcmp(type, "MOLE") || !strcmp(type, "ADAMOLE"))
        TP_TRY(read_mixture(&c, root, !strcmp(type, "ADAMOLE")));
    else
        return tp_fail(TALPA_E_DATA, "peft_type: found '%.40s', expected LORA, MOLE or ADAMOLE", type);
    *out = c;
    return TALPA_OK;
}

/* ---- writing ---- */

static void empty_member(struct tp_json_writer *writer, const char *key)
{
    tp_json_write_key(writer, key);
    tp_json_write_object_begin(writer);
    tp_json_write_object_end(writer);
}

static void write_modules(struct tp_json_writer *writer, unsigned modules)
{
    tp_json_write_key(writer, "target_modules");
    tp_json_write_array_begin(writer);
    for (int i = 0; i < TALPA_N_MODULES; i++)
        if (modules & 1u << i) tp_json_write_string(writer, tp_adapter_config_module(i));
    tp_json_write_array_end(writer);
}

/* Keys in alphabetical order, as both formats write them. For LoRA those that every PEFT since 0.9 knows. */
void tp_adapter_config_write(struct tp_json_writer *writer, const struct talpa_adapter_config *config, const char *base_name)
{
    const bool is_lora = config->routing == TALPA_ROUTING_LORA, is_adamole = config->routing == TALPA_ROUTING_ADAMOLE;
    tp_json_write_object_begin(writer);
    if (is_lora) empty_member(writer, "alpha_pattern");
    tp_json_write_null_member(writer, "auto_mapping");
    tp_json_write_string_member(writer, "base_model_name_or_path", base_name);
    tp_json_write_string_member(writer, "bias", "none");
    if (is_lora) tp_json_write_bool_member(writer, "fan_in_fan_out", false);
    tp_json_write_bool_member(writer, "inference_mode", true);
    tp_json_write_bool_member(writer, "init_lora_weights", true);
    if (is_lora) {
        tp_json_write_null_member(writer, "layers_pattern");
        tp_json_write_null_member(writer, "layers_to_transform");
        empty_member(writer, "loftq_config");
    }
    tp_json_write_real_member(writer, "lora_alpha", config->alpha);
    tp_json_write_real_member(writer, "lora_dropout", config->dropout);
    if (!is_lora) tp_json_write_int_member(writer, "lora_rank", config->rank);
    if (is_adamole) {
        if (config->max_threshold > 0.0)
            tp_json_write_real_member(writer, "max_threshold", config->max_threshold);
        else
            tp_json_write_null_member(writer, "max_threshold");
    }
    if (is_lora) {
        tp_json_write_null_member(writer, "megatron_config");
        tp_json_write_string_member(writer, "megatron_core", "megatron.core");
        tp_json_write_null_member(writer, "modules_to_save");
    } else {
        tp_json_write_int_member(writer, "num_experts", config->n_experts);
    }
    tp_json_write_string_member(writer, "peft_type", tp_router_get(config->routing)->peft_type);
    if (is_lora) {
        tp_json_write_int_member(writer, "r", config->rank);
        empty_member(writer, "rank_pattern");
    }
    tp_json_write_null_member(writer, "revision");
    write_modules(writer, config->modules);
    tp_json_write_string_member(writer, "task_type", "CAUSAL_LM");
    if (is_lora) {
        tp_json_write_bool_member(writer, "use_dora", false);
        tp_json_write_bool_member(writer, "use_rslora", false);
    } else if (tp_router_is_topk(config->routing)) {
        tp_json_write_null_member(writer, "threshold");
        tp_json_write_int_member(writer, "top_k", config->top_k);
    } else if (config->routing == TALPA_ROUTING_THRESHOLD) {
        tp_json_write_real_member(writer, "threshold", config->threshold > 0.0 ? config->threshold : 1.0 / config->n_experts);
        tp_json_write_null_member(writer, "top_k");
    }
    tp_json_write_object_end(writer);
}
