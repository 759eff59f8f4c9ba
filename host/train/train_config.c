#include "train_config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "adapters/router.h"
#include "base/hash.h"
#include "base/status.h"

static void add(struct tp_train_config *config, const char *name, const char *flag, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void add(struct tp_train_config *config, const char *name, const char *flag, const char *format, ...)
{
    struct tp_train_config_field *field = &config->field[config->n++];
    field->name = name;
    field->flag = flag;
    va_list list;
    va_start(list, format);
    vsnprintf(field->text, sizeof field->text, format, list);
    va_end(list);
}

static enum talpa_status data_digest(char hex[TP_HASH_HEX_BYTES], const struct tp_dataset *data)
{
    struct tp_hash *hash;
    snprintf(hex, TP_HASH_HEX_BYTES, "none");
    if (!data) return TALPA_OK;
    TP_TRY(tp_hash_create(&hash));
    for (size_t i = 0; i < tp_dataset_n_examples(data); i++) {
        const struct tp_dataset_example example = tp_dataset_example(data, i);
        tp_hash_update(hash, &example.n_tokens, sizeof example.n_tokens);
        tp_hash_update(hash, example.ids, example.n_tokens * sizeof *example.ids);
        tp_hash_update(hash, example.labels, example.n_tokens * sizeof *example.labels);
    }
    tp_hash_hex(hex, tp_hash_digest(hash));
    tp_hash_free(hash);
    return TALPA_OK;
}

static void add_adapter(struct tp_train_config *c, const struct talpa_adapter_config *a)
{
    add(c, "routing_strategy", "--routing-strategy", "%s", talpa_routing_name(a->routing));
    add(c, "rank", a->routing == TALPA_ROUTING_LORA ? "--lora-rank" : "--expert-rank", "%d", a->rank);
    add(c, "num_experts", "--num-experts", "%d", a->n_experts);
    if (tp_router_is_topk(a->routing)) add(c, "router_top_k", "--router-top-k", "%d", a->top_k);
    if (a->routing == TALPA_ROUTING_THRESHOLD) add(c, "router_threshold", "--router-threshold", "%.17g", a->threshold);
    if (a->routing == TALPA_ROUTING_ADAMOLE) add(c, "max_threshold", "--max-threshold", "%.17g", a->max_threshold);
    if (a->routing == TALPA_ROUTING_MOELORA) {
        const struct talpa_contrastive_config *k = &a->contrastive;
        add(c, "contrastive_coef", "--contrastive-coef", "%.17g", k->coef);
        add(c, "contrastive_temperature", "--contrastive-temperature", "%.17g", k->temperature);
        add(c, "contrastive_samples", "--contrastive-samples", "%d", k->n_samples);
        add(c, "contrastive_normalise", "--contrastive-normalise", "%s", k->normalise ? "on" : "off");
        add(c, "contrastive_gated", "--contrastive-gated", "%d", k->gated);
        add(c, "contrastive_warmup_steps", "--contrastive-warmup-steps", "%d", k->warmup_steps);
    }
    add(c, "lora_alpha", "--lora-alpha", "%.17g", a->alpha);
    add(c, "lora_dropout", "--lora-dropout", "%.17g", a->dropout);
    add(c, "expert_dropout_mask", "--expert-dropout-mask", "%s", a->independent_dropout ? "independent" : "shared");
    add(c, "lora_modules", "--lora-modules", "%#x", a->modules);
}

enum talpa_status tp_train_config_make(struct tp_train_config *out, const struct talpa_train_options *o, struct talpa_model *model,
                                       const struct talpa_adapter_config *adapter, const struct tp_dataset *data,
                                       const struct tp_dataset *eval_data, int total_steps)
{
    static const char *const schedules[] = {"constant", "linear", "cosine"}, *const dispatches[] = {"auto", "dense", "sparse"},
                             *const dtypes[] = {"auto", "native", "bf16", "f32"};
    char hex[TP_HASH_HEX_BYTES];
    uint64_t base;
    struct tp_train_config c = {.n = 0};
    TP_TRY(tp_model_digest(&base, model));
    add(&c, "base_digest", "--model", "%s", tp_hash_hex(hex, base));
    TP_TRY(data_digest(hex, data));
    add(&c, "data_digest", "--data", "%s", hex);
    TP_TRY(data_digest(hex, eval_data));
    add(&c, "eval_data_digest", "--eval-data", "%s", hex);
    add(&c, "seed", "--seed", "%" PRIu64, o->seed);
    add_adapter(&c, adapter);
    add(&c, "batch_size", "--batch-size", "%d", o->batch_size);
    add(&c, "max_seq_length", "--max-seq-length", "%d", o->max_seq_length);
    add(&c, "gradient_accumulation_steps", "--gradient-accumulation-steps", "%d", o->accumulation);
    add(&c, "packing", "--packing", "%d", o->packing);
    add(&c, "no_shuffle", "--no-shuffle", "%d", o->no_shuffle);
    add(&c, "learning_rate", "--learning-rate", "%.17g", o->learning_rate);
    add(&c, "lr_scheduler", "--lr-scheduler", "%s", schedules[o->schedule]);
    add(&c, "warmup_steps", o->warmup_ratio > 0.0 ? "--warmup-ratio" : "--warmup-steps", "%d", o->warmup_steps);
    if (o->schedule != TALPA_SCHEDULE_CONSTANT) add(&c, "total_steps", "--max-steps or --num-train-epochs", "%d", total_steps);
    add(&c, "weight_decay", "--weight-decay", "%.17g", o->weight_decay);
    add(&c, "max_grad_norm", "--max-grad-norm", "%.17g", o->max_grad_norm);
    add(&c, "router_aux_loss_coef", "--router-aux-loss-coef", "%.17g", o->aux_coef);
    if (o->target_active_experts != 0.0) add(&c, "target_active_experts", "--target-active-experts", "%.17g", o->target_active_experts);
    if (o->max_overhead != 0.0) add(&c, "max_overhead", "--max-overhead", "%.17g", o->max_overhead);
    add(&c, "aux_include_pads", "--aux-include-pads", "%d", o->aux_include_pads);
    add(&c, "aux_on", "--aux-on", "%s", o->aux_on_probability ? "probability" : "shifted");
    add(&c, "expert_dispatch", "--expert-dispatch", "%s", dispatches[o->dispatch]);
    add(&c, "base_dtype", "--base-dtype", "%s", dtypes[o->base_dtype]);
    add(&c, "compute_dtype", "--compute-dtype", "%s", o->compute_dtype == TALPA_COMPUTE_BF16 ? "bf16" : "f32");
    *out = c;
    return TALPA_OK;
}

uint64_t tp_train_config_digest(const struct tp_train_config *config)
{
    /* Chained digests instead of a stream, so that it cannot fail for want of memory. */
    uint64_t digest = 0;
    for (int i = 0; i < config->n; i++) {
        char line[TP_TRAIN_CONFIG_TEXT + 80];
        const int n = snprintf(line, sizeof line, "%016" PRIx64 "%s=%s\n", digest, config->field[i].name, config->field[i].text);
        digest = tp_hash_bytes(line, (size_t)n);
    }
    return digest;
}

void tp_train_config_write(struct tp_json_writer *json, const struct tp_train_config *config)
{
    tp_json_write_object_begin(json);
    for (int i = 0; i < config->n; i++) tp_json_write_string_member(json, config->field[i].name, config->field[i].text);
    tp_json_write_object_end(json);
}

enum talpa_status tp_train_config_compare(const struct tp_train_config *config, const struct tp_json_value *saved,
                                          bool allow_schedule_change)
{
    for (int i = 0; i < config->n; i++) {
        const struct tp_train_config_field *field = &config->field[i];
        const char *text;
        if (!strcmp(field->name, "total_steps") && allow_schedule_change) continue;
        TP_TRY(tp_json_get_string_or(&text, saved, field->name, "nothing"));
        if (strcmp(text, field->text))
            return tp_fail(TALPA_E_DATA, "%s: found %.80s, expected %s as %s says: continue with the options that the run began with%s",
                           field->name, text, field->text, field->flag,
                           strcmp(field->name, "total_steps")
                               ? ""
                               : " (the learning rate follows the number of steps; --allow-schedule-change accepts it)");
    }
    for (const struct tp_json_value *member = tp_json_first(saved); member; member = tp_json_next(member)) {
        bool known = !strcmp(tp_json_key(member), "total_steps");
        for (int i = 0; i < config->n; i++) known |= !strcmp(config->field[i].name, tp_json_key(member));
        if (!known)
            return tp_fail(TALPA_E_DATA, "%s: found in the checkpoint, expected none: it was made by another version", tp_json_key(member));
    }
    return TALPA_OK;
}
