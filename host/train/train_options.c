#include "train_options.h"

#include "base/status.h"

static const double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;

void talpa_train_default(struct talpa_train_options *options)
{
    *options = (struct talpa_train_options){.adapter = talpa_adapter_default(),
                                            .batch_size = 4,
                                            .max_seq_length = 256,
                                            .accumulation = 1,
                                            .num_epochs = 1.0,
                                            .learning_rate = 1e-4,
                                            .max_grad_norm = 1.0,
                                            .logging_steps = 1,
                                            .aux_coef = 1e-3};
}

void talpa_train_default_for(struct talpa_train_options *options, enum talpa_routing routing)
{
    talpa_train_default(options);
    options->adapter.routing = routing;
    if (routing == TALPA_ROUTING_LORA) {
        options->adapter.n_experts = 1;
        options->adapter.rank = 32;
    }
    if (routing == TALPA_ROUTING_MOELORA) {
        options->adapter.modules = TALPA_MODULE_Q | TALPA_MODULE_V;
        options->aux_coef = 1e-2;
    }
}

uint32_t tp_train_options_max_tokens(const struct talpa_train_options *o) { return (uint32_t)o->batch_size * (uint32_t)o->max_seq_length; }

enum talpa_status tp_train_options_check(const struct talpa_train_options *o, const struct talpa_model *model)
{
    if (o->batch_size < 1 || o->batch_size > 4096)
        return tp_fail(TALPA_E_ARGUMENT, "--batch-size is %d, expected 1 to 4096", o->batch_size);
    if (o->max_seq_length < 2 || o->max_seq_length > model->config.context_length)
        return tp_fail(TALPA_E_ARGUMENT, "--max-seq-length is %d, expected 2 to the model's context length %d", o->max_seq_length,
                       model->config.context_length);
    if ((int64_t)o->batch_size * o->max_seq_length > INT32_MAX)
        return tp_fail(TALPA_E_ARGUMENT, "--batch-size %d x --max-seq-length %d is more than %d tokens: use --gradient-accumulation-steps",
                       o->batch_size, o->max_seq_length, INT32_MAX);
    if ((unsigned)o->schedule > TALPA_SCHEDULE_COSINE || (unsigned)o->dispatch > TALPA_DISPATCH_SPARSE ||
        (unsigned)o->base_dtype > TALPA_BASE_F32 || (unsigned)o->compute_dtype > TALPA_COMPUTE_BF16)
        return tp_fail(TALPA_E_ARGUMENT, "schedule %d, dispatch %d, base_dtype %d, compute_dtype %d: expected values of their enums", (int)o->schedule,
                       (int)o->dispatch, (int)o->base_dtype, (int)o->compute_dtype);
    if (o->accumulation < 1 || o->accumulation > 65536)
        return tp_fail(TALPA_E_ARGUMENT, "--gradient-accumulation-steps is %d, expected 1 to 65536", o->accumulation);
    if (o->max_steps < 0 || (!o->max_steps && !(o->num_epochs > 0.0)))
        return tp_fail(TALPA_E_ARGUMENT, "--max-steps is %d and --num-train-epochs %g, expected one of them above 0", o->max_steps,
                       o->num_epochs);
    if (!(o->learning_rate >= 0.0 && o->learning_rate < 1e3))
        return tp_fail(TALPA_E_ARGUMENT, "--learning-rate is %g, expected at least 0", o->learning_rate);
    if (!(o->max_grad_norm >= 0.0)) return tp_fail(TALPA_E_ARGUMENT, "--max-grad-norm is %g, expected at least 0", o->max_grad_norm);
    if (!(o->weight_decay >= 0.0)) return tp_fail(TALPA_E_ARGUMENT, "--weight-decay is %g, expected at least 0", o->weight_decay);
    if (o->warmup_steps < 0) return tp_fail(TALPA_E_ARGUMENT, "--warmup-steps is %d, expected at least 0", o->warmup_steps);
    if (o->logging_steps < 1) return tp_fail(TALPA_E_ARGUMENT, "--logging-steps is %d, expected at least 1", o->logging_steps);
    if (!(o->warmup_ratio >= 0.0 && o->warmup_ratio <= 1.0))
        return tp_fail(TALPA_E_ARGUMENT, "--warmup-ratio is %g, expected 0 to 1", o->warmup_ratio);
    if (o->save_total_limit < 0) return tp_fail(TALPA_E_ARGUMENT, "--save-total-limit is %d, expected at least 0", o->save_total_limit);
    if (o->eval_steps < 0) return tp_fail(TALPA_E_ARGUMENT, "--eval-steps is %d, expected at least 0", o->eval_steps);
    if (o->early_stopping_patience < 0)
        return tp_fail(TALPA_E_ARGUMENT, "--early-stopping-patience is %d, expected at least 0", o->early_stopping_patience);
    if (!(o->early_stopping_threshold >= 0.0))
        return tp_fail(TALPA_E_ARGUMENT, "--early-stopping-threshold is %g, expected at least 0", o->early_stopping_threshold);
    if (o->eval_steps && !o->eval_data)
        return tp_fail(TALPA_E_ARGUMENT, "--eval-steps is %d without --eval-data: give a file of held-out rows", o->eval_steps);
    if ((o->early_stopping_patience || o->load_best_at_end) && !o->eval_steps)
        return tp_fail(TALPA_E_ARGUMENT, "%s needs --eval-steps: without measurements there is no best",
                       o->early_stopping_patience ? "--early-stopping-patience" : "--load-best-model-at-end");
    if (o->packing && o->aux_include_pads)
        return tp_fail(TALPA_E_ARGUMENT, "--aux-include-pads does not go with --packing: packed rows have no pads; leave one of them out");
    if (o->adapter.routing == TALPA_ROUTING_MOELORA) TP_TRY(tp_adapter_contrastive_check(&o->adapter.contrastive));
    if (o->adapter.routing == TALPA_ROUTING_MOELORA && o->aux_include_pads)
        return tp_fail(TALPA_E_ARGUMENT, "--aux-include-pads does not go with --routing-strategy moelora: pads are no items of its losses");
    if (o->save_steps < 0) return tp_fail(TALPA_E_ARGUMENT, "--save-steps is %d, expected at least 0", o->save_steps);
    return TALPA_OK;
}

enum talpa_status tp_train_options_apply(struct tp_adapter *adapter, const struct talpa_train_options *o)
{
    struct talpa_adapter_config *config = &adapter->config;
    config->dropout = o->adapter.dropout;
    config->independent_dropout = o->adapter.independent_dropout;
    if (o->adapter.routing != TALPA_ROUTING_MOELORA && o->adapter.routing != TALPA_ROUTING_TOPK) return TALPA_OK;
    if (!tp_router_is_topk(config->routing)) {
        if (o->adapter.routing == TALPA_ROUTING_TOPK) return TALPA_OK;
        return tp_fail(TALPA_E_ARGUMENT, "--init-lora: found an adapter of routing %s, expected topk or moelora for --routing-strategy moelora",
                       talpa_routing_name(config->routing));
    }
    config->routing = o->adapter.routing;
    config->contrastive = o->adapter.contrastive;
    adapter->router = tp_router_get(config->routing);
    return TALPA_OK;
}

struct tp_train_graph_options tp_train_options_graph(const struct talpa_train_options *o)
{
    return (struct tp_train_graph_options){.max_tokens = tp_train_options_max_tokens(o),
                                           .max_labelled = tp_train_options_max_tokens(o),
                                           .aux_coef = o->aux_coef,
                                           .aux_on_probability = o->aux_on_probability,
                                           .beta1 = beta1,
                                           .beta2 = beta2,
                                           .epsilon = epsilon,
                                           .gradient_checkpointing = o->gradient_checkpointing};
}

struct tp_feed_options tp_train_options_feed(const struct talpa_train_options *o, const struct talpa_model *model)
{
    const int32_t pad = tp_tokenizer_pad(model->tokenizer);
    return (struct tp_feed_options){.seed = o->seed,
                                    .batch_size = o->batch_size,
                                    .accumulation = o->accumulation,
                                    .max_steps = o->max_steps,
                                    .num_epochs = o->num_epochs,
                                    .max_seq_length = (uint32_t)o->max_seq_length,
                                    .no_shuffle = o->no_shuffle,
                                    .packing = o->packing,
                                    .include_pads = o->aux_include_pads,
                                    .pad_id = pad < 0 ? 0 : pad};
}
