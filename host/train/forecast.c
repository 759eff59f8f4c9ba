/* What can be known of a run beforehand: its graph, its plan, its memory. */
#include <stdlib.h>

#include "graph/op.h"
#include "train/train_options.h"
#include "train/trainer.h"

struct forecast {
    struct tp_adapter *adapter;
    struct tp_train_graph train;
    struct tp_program_set set;
    struct tp_eval_graph eval;
    struct tp_program_set eval_set;
    struct tp_ledger ledger;
};

static enum talpa_status find_adapter(struct forecast *f, struct talpa_model *model, const struct talpa_train_options *options)
{
    if (!options->init_lora) return tp_adapter_create(&f->adapter, model, &options->adapter);
    float *bank = NULL;
    const enum talpa_status status = tp_adapter_load(&f->adapter, &bank, options->init_lora, model, options->allow_other_base);
    free(bank);
    return status == TALPA_OK ? tp_train_options_apply(f->adapter, options) : status;
}

/* The same graphs and plans, in the same order, as trainer.c prepares. */
static enum talpa_status forecast(struct forecast *f, struct talpa_model *model, const struct talpa_device_caps *caps,
                                  const struct talpa_train_options *options)
{
    struct tp_plan_options plan_options;
    bool keeps_native = false;
    TP_TRY(tp_train_options_check(options, model));
    struct tp_steer steer;
    TP_TRY(find_adapter(f, model, options));
    TP_TRY(tp_steer_create(&steer, f->adapter, model, options));
    const struct tp_train_graph_options graph = tp_train_options_graph(options);
    TP_TRY(tp_train_graph_create(&f->train, model, f->adapter, &graph));
    if (!caps) return TALPA_OK;
    TP_TRY(tp_engine_plan_options(&plan_options, options->base_dtype, options->compute_dtype));
    const struct tp_train_dispatch dispatch = tp_train_dispatch(options, f->adapter);
    TP_TRY(tp_program_set_plan(&f->set, &keeps_native, f->train.graph, caps, &plan_options, dispatch.dense, dispatch.sparse));
    TP_TRY(tp_program_set_count(&f->ledger, &f->set));
    if (!options->eval_data) return TALPA_OK;
    const uint32_t max_tokens = tp_train_options_max_tokens(options);
    if (options->route_log) TP_TRY(tp_eval_graph_create_routed(&f->eval, model, f->adapter, max_tokens, max_tokens));
    else TP_TRY(tp_eval_graph_create(&f->eval, model, f->adapter, max_tokens, max_tokens, false));
    TP_TRY(tp_program_set_plan(&f->eval_set, &keeps_native, f->eval.graph, caps, &plan_options, !dispatch.starts_sparse,
                               dispatch.starts_sparse));
    return tp_program_set_count(&f->ledger, &f->eval_set);
}

/* The plan that is shown: the dense one, if there are two. */
static const struct tp_plan *first_plan(const struct forecast *f)
{
    return f->set.plans[TP_DISPATCH_DENSE] ? f->set.plans[TP_DISPATCH_DENSE] : f->set.plans[TP_DISPATCH_SPARSE];
}

static size_t largest_of(const struct forecast *f)
{
    size_t largest = 0;
    for (int d = 0; d < TP_MAX_PLANS; d++) {
        const struct tp_plan *plans[] = {f->set.plans[d], f->eval_set.plans[d]};
        for (int i = 0; i < 2; i++)
            if (plans[i] && plans[i]->memory.largest_bytes > largest) largest = plans[i]->memory.largest_bytes;
    }
    return largest;
}

static void forecast_free(struct forecast *f)
{
    tp_ledger_free(&f->ledger);
    tp_program_set_free(&f->eval_set);
    tp_program_set_free(&f->set);
    tp_eval_graph_free(&f->eval);
    tp_train_graph_free(&f->train);
    tp_adapter_free(f->adapter);
}

static enum talpa_status count_steps(int *n_steps, const struct talpa_model *model, const struct talpa_train_options *options)
{
    const struct tp_dataset_options how = {.max_tokens = (uint32_t)options->max_seq_length, .chat_template = options->chat_template};
    const struct tp_feed_options feed = tp_train_options_feed(options, model);
    struct tp_dataset *data;
    *n_steps = 0;
    if (!options->data) return TALPA_OK;
    TP_TRY(tp_dataset_open(&data, options->data, model->tokenizer, &how));
    const enum talpa_status status = tp_feed_count_steps(n_steps, data, &feed);
    tp_dataset_close(data);
    return status;
}

enum talpa_status talpa_train_plan_memory(struct talpa_memory_plan *out, struct talpa_model *model, const struct talpa_device_caps *caps,
                                          const struct talpa_train_options *options)
{
    struct forecast f = {0};
    int n_steps = 0;
    enum talpa_status status = forecast(&f, model, caps, options);
    if (status == TALPA_OK) status = count_steps(&n_steps, model, options);
    if (status == TALPA_OK) {
        const struct tp_plan *first = first_plan(&f);
        const struct tp_ledger *m = &f.ledger;
        const size_t bank = (size_t)f.adapter->bank_elements * sizeof(float);
        int per_layer = 0;
        for (unsigned set = options->adapter.modules; set; set &= set - 1) per_layer++;
        struct talpa_memory_plan plan = {.weight_bytes = m->weight_bytes,
                                         .packed_bytes = m->packed_bytes,
                                         .adapter_bytes = bank,
                                         .gradient_bytes = bank,
                                         .optimizer_bytes = m->state_bytes - 2 * bank,
                                         .input_bytes = m->input_bytes,
                                         .activation_bytes = m->arena_bytes,
                                         .total_bytes = m->total_bytes,
                                         .peak_bytes = m->peak_bytes,
                                         .largest_bytes = largest_of(&f),
                                         .max_alloc_bytes = caps->max_alloc_bytes,
                                         .n_trainable = f.adapter->n_trainable,
                                         .n_modules = f.adapter->n_modules,
                                         .n_modules_possible = model->config.n_layers * per_layer,
                                         .n_launches_batch = first->phase[TP_PHASE_BATCH].n,
                                         .n_launches_update = first->phase[TP_PHASE_UPDATE].n,
                                         .n_steps = n_steps};
        for (size_t i = 0; i < model->n_weights; i++) plan.n_parameters += tp_type_elements(&model->weights[i].type);
        *out = plan;
    }
    forecast_free(&f);
    return status;
}

enum talpa_status talpa_train_print(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps,
                                    const struct talpa_train_options *options, bool graph, bool plan)
{
    struct forecast f = {0};
    const enum talpa_status status = forecast(&f, model, plan ? caps : NULL, options);
    if (status == TALPA_OK && graph) tp_graph_print(f.train.graph, file);
    if (status == TALPA_OK && plan) tp_plan_print(first_plan(&f), file);
    forecast_free(&f);
    return status;
}

enum talpa_status talpa_train_print_json(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps,
                                         const struct talpa_train_options *options)
{
    struct forecast f = {0};
    const enum talpa_status status = forecast(&f, model, caps, options);
    if (status == TALPA_OK) tp_plan_print_json(first_plan(&f), file);
    forecast_free(&f);
    return status;
}
