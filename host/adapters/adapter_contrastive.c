/* moelora_train.json: moelora's training-only values, beside adapter_config.json, whose published format allows no other keys. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "adapters/adapter_config.h"

static enum talpa_status read_real(double *out, const struct tp_json_value *root, const char *key, double low, double high)
{
    double value;
    if (!tp_json_get(root, key)) return TALPA_OK;
    TP_TRY(tp_json_get_double(&value, root, key));
    if (!(value >= low && value <= high)) return tp_fail(TALPA_E_DATA, "%s: found %g, expected %g to %g", key, value, low, high);
    *out = value;
    return TALPA_OK;
}

static enum talpa_status read_count(int *out, const struct tp_json_value *root, const char *key, int low)
{
    int64_t value;
    if (!tp_json_get(root, key)) return TALPA_OK;
    TP_TRY(tp_json_get_int(&value, root, key));
    if (value < low || value > INT_MAX)
        return tp_fail(TALPA_E_DATA, "%s: found %lld, expected %d to %d", key, (long long)value, low, INT_MAX);
    *out = (int)value;
    return TALPA_OK;
}

static enum talpa_status refuse_unknown(const struct tp_json_value *root)
{
    static const char *const keys[] = {"contrastive_coef",    "contrastive_gated",       "contrastive_normalise",
                                       "contrastive_samples", "contrastive_temperature", "contrastive_warmup_steps",
                                       "router_aux_loss_coef"};
    for (const struct tp_json_value *item = tp_json_first(root); item; item = tp_json_next(item)) {
        bool is_known = false;
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) is_known |= !strcmp(tp_json_key(item), keys[i]);
        if (!is_known) return tp_fail(TALPA_E_DATA, "%.60s: unknown key, expected those of moelora's training", tp_json_key(item));
    }
    return TALPA_OK;
}

enum talpa_status tp_adapter_contrastive_read(struct talpa_contrastive_config *out, const struct tp_json_value *root)
{
    struct talpa_contrastive_config c = *out;
    if (tp_json_type(root) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(root)));
    TP_TRY(refuse_unknown(root));
    TP_TRY(read_real(&c.coef, root, "contrastive_coef", 0.0, 1e9));
    TP_TRY(read_real(&c.temperature, root, "contrastive_temperature", 1e-3, 1e3));
    TP_TRY(read_real(&c.balance_coef, root, "router_aux_loss_coef", 0.0, 1e9));
    TP_TRY(tp_json_get_bool_or(&c.gated, root, "contrastive_gated", c.gated));
    TP_TRY(tp_json_get_bool_or(&c.normalise, root, "contrastive_normalise", c.normalise));
    TP_TRY(read_count(&c.warmup_steps, root, "contrastive_warmup_steps", -1));
    const struct tp_json_value *samples = tp_json_get(root, "contrastive_samples");
    if (samples && tp_json_type(samples) == TP_JSON_NULL)
        c.n_samples = 0;
    else
        TP_TRY(read_count(&c.n_samples, root, "contrastive_samples", 1));
    *out = c;
    return TALPA_OK;
}

void tp_adapter_contrastive_write(struct tp_json_writer *writer, const struct talpa_contrastive_config *config)
{
    tp_json_write_object_begin(writer);
    tp_json_write_real_member(writer, "contrastive_coef", config->coef);
    tp_json_write_bool_member(writer, "contrastive_gated", config->gated);
    tp_json_write_bool_member(writer, "contrastive_normalise", config->normalise);
    if (config->n_samples)
        tp_json_write_int_member(writer, "contrastive_samples", config->n_samples);
    else
        tp_json_write_null_member(writer, "contrastive_samples");
    tp_json_write_real_member(writer, "contrastive_temperature", config->temperature);
    tp_json_write_int_member(writer, "contrastive_warmup_steps", config->warmup_steps);
    tp_json_write_real_member(writer, "router_aux_loss_coef", config->balance_coef);
    tp_json_write_object_end(writer);
}
