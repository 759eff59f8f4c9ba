/* What can be known of a run beforehand: its graph, its plan, its memory. */
#include "graph/op.h"
#include "models/engine.h"
#include "train/train_options.h"

struct forecast {
    struct tp_adapter *adapter;
    struct tp_train_graph train;
    struct tp_plan *plan;
};

static enum talpa_status forecast(struct forecast *f, struct talpa_model *model, const struct talpa_device_caps *caps,
                                  const struct talpa_train_options *options)
{
    TP_TRY(tp_train_options_check(options, model));
    TP_TRY(tp_adapter_create(&f->adapter, model, &options->adapter));
    const struct tp_train_graph_options graph = tp_train_options_graph(options);
    TP_TRY(tp_train_graph_create(&f->train, model, f->adapter, &graph));
    if (!caps) return TALPA_OK;
    struct tp_plan_options plan_options;
    TP_TRY(tp_engine_plan_options(&plan_options, options->base_dtype));
    if (options->dispatch == TALPA_DISPATCH_SPARSE && f->adapter->router->has_gating) plan_options.dispatch = TP_DISPATCH_SPARSE;
    return tp_engine_plan(&f->plan, f->train.graph, caps, &plan_options);
}

static void forecast_free(struct forecast *f)
{
    tp_plan_free(f->plan);
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
        const struct tp_plan_memory *m = &f.plan->memory;
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
                                         .largest_bytes = m->largest_bytes,
                                         .max_alloc_bytes = caps->max_alloc_bytes,
                                         .n_trainable = f.adapter->n_trainable,
                                         .n_modules = f.adapter->n_modules,
                                         .n_modules_possible = model->config.n_layers * per_layer,
                                         .n_launches_batch = f.plan->phase[TP_PHASE_BATCH].n,
                                         .n_launches_update = f.plan->phase[TP_PHASE_UPDATE].n,
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
    if (status == TALPA_OK && plan) tp_plan_print(f.plan, file);
    forecast_free(&f);
    return status;
}
