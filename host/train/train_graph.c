#include "train_graph.h"

#include <stdlib.h>

#include "graph/op.h"
#include "ops/tensor_table.h"
#include "train/route_stats.h"

/* ---- forward ---- */

static enum talpa_status loss_of(talpa_value *loss, talpa_value *nll, struct talpa_graph *graph, const struct talpa_model *model,
                                 const struct tp_batch_inputs *inputs, talpa_value hidden)
{
    talpa_value weight;
    tp_graph_set_scope(graph, "lm_head");
    TP_TRY(tp_model_output_weight(&weight, graph, model));
    TP_TRY(talpa_linear_cross_entropy(loss, nll, graph, hidden, weight, inputs->rows, inputs->labels));
    tp_graph_mark_output(graph, *loss);
    tp_graph_mark_output(graph, *nll);
    TP_TRY(tp_graph_name(graph, *loss, "loss"));
    return tp_graph_name(graph, *nll, "nll");
}

/* ---- training ---- */

static enum talpa_status states(struct tp_train_graph *t, const struct tp_adapter *adapter)
{
    const struct tp_type bank = tp_type_1d(TALPA_F32, TP_STEP_NONE, adapter->bank_elements);
    const int64_t n_selected = adapter->selection_elements ? adapter->selection_elements : TP_CONCAT_ALIGN;
    TP_TRY(tp_graph_state(t->graph, &t->params, "adapter.params", bank));
    TP_TRY(tp_graph_state(t->graph, &t->grads, "adapter.grads", bank));
    TP_TRY(tp_graph_state(t->graph, &t->m, "adapter.m", bank));
    TP_TRY(tp_graph_state(t->graph, &t->v, "adapter.v", bank));
    TP_TRY(tp_graph_state(t->graph, &t->selected, "adapter.selected", tp_type_1d(TALPA_I32, TP_STEP_NONE, n_selected)));
    TP_TRY(tp_graph_state(t->graph, &t->counts, "adapter.steps", tp_type_1d(TALPA_I32, TP_STEP_NONE, adapter->n_tensors)));
    return tp_graph_input(t->graph, &t->tensors, "tensors", tp_type_2d(TALPA_I32, TP_STEP_NONE, adapter->n_tensors, TP_TENSOR_COLUMNS));
}

/* Gradients of the slices, one bank of them, added to the accumulated ones. */
static enum talpa_status backward(struct tp_train_graph *t, const struct tp_adapter_graph *attach,
                                  const struct tp_train_graph_options *options, talpa_value *grads_next)
{
    talpa_value losses[3] = {t->loss}, seeds[3];
    const struct talpa_adapter_config *config = &attach->adapter->config;
    const bool with_aux = attach->aux_total != TALPA_NONE && options->aux_coef != 0.0;
    /* moelora weighs the mean over modules, where the published code of the others weighs the sum. */
    const double n_modules = attach->adapter->n_modules, aux_coef = options->aux_coef / (config->routing == TALPA_ROUTING_MOELORA ? n_modules : 1.0);
    int n_losses = 1;
    tp_graph_set_scope(t->graph, "seeds");
    tp_graph_set_backward(t->graph, true);
    TP_TRY(talpa_step_scalar(&seeds[0], t->graph, TP_STEP_ONE, 1.0f));
    if (with_aux) {
        TP_TRY(talpa_step_scalar(&seeds[n_losses], t->graph, TP_STEP_AUX_WEIGHT, (float)aux_coef));
        losses[n_losses++] = attach->aux_total;
    }
    if (attach->contrastive_total != TALPA_NONE) {
        TP_TRY(talpa_step_scalar(&seeds[n_losses], t->graph, TP_STEP_CONTRASTIVE_WEIGHT, (float)(config->contrastive.coef / n_modules)));
        losses[n_losses++] = attach->contrastive_total;
    }
    talpa_value *gradients = malloc(((size_t)attach->n_wrt + 1) * sizeof *gradients);
    if (!gradients) return tp_fail_memory("gradients", (unsigned long long)attach->n_wrt * sizeof *gradients);
    enum talpa_status status = tp_autodiff(t->graph, losses, seeds, n_losses, attach->wrt, attach->n_wrt, gradients);
    for (int i = 0; i < attach->n_wrt && status == TALPA_OK; i++)
        if (gradients[i] == TALPA_NONE) status = tp_fail(TALPA_E_INTERNAL, "no gradient reaches trainable tensor group %d", i);
    tp_graph_set_scope(t->graph, "accumulate");
    tp_graph_set_backward(t->graph, true);
    talpa_value bank;
    if (status == TALPA_OK) status = talpa_concat(&bank, t->graph, gradients, attach->n_wrt);
    if (status == TALPA_OK) status = talpa_accumulate(grads_next, t->graph, t->grads, bank);
    tp_graph_set_backward(t->graph, false);
    free(gradients);
    return status;
}

static enum talpa_status selection(struct tp_train_graph *t, const struct tp_adapter *adapter, talpa_value *selected_next)
{
    *selected_next = t->selected;
    if (!adapter->selection_elements) return TALPA_OK;
    talpa_value *counts = malloc((size_t)adapter->n_modules * sizeof *counts), bank;
    if (!counts) return tp_fail_memory("selection", (unsigned long long)adapter->n_modules * sizeof *counts);
    for (int i = 0; i < adapter->n_modules; i++) counts[i] = adapter->modules[i].counts;
    enum talpa_status status = talpa_concat(&bank, t->graph, counts, adapter->n_modules);
    free(counts);
    return status == TALPA_OK ? talpa_accumulate(selected_next, t->graph, t->selected, bank) : status;
}

static enum talpa_status update(struct tp_train_graph *t, const struct tp_train_graph_options *options, talpa_value grads,
                                talpa_value selected)
{
    talpa_value clip, counts, next[3];
    tp_graph_set_phase(t->graph, TP_PHASE_UPDATE);
    tp_graph_set_scope(t->graph, "update");
    TP_TRY(talpa_grad_norm(&t->norm, &clip, t->graph, grads, t->tensors));
    TP_TRY(talpa_step_counts(&counts, t->graph, t->counts, selected, t->tensors));
    TP_TRY(talpa_adamw(next, t->graph, t->params, grads, t->m, t->v, counts, selected, t->tensors, clip, (float)options->beta1,
                       (float)options->beta2, (float)options->epsilon));
    tp_graph_mark_output(t->graph, t->norm);
    return tp_graph_name(t->graph, t->norm, "grad_norm");
}

static enum talpa_status table(struct tp_train_graph *t, const struct tp_adapter *adapter)
{
    struct tp_tensor_table rows = {0};
    enum talpa_status status = TALPA_OK;
    for (int i = 0; i < adapter->n_tensors && status == TALPA_OK; i++) {
        const struct tp_adapter_tensor *tensor = &adapter->tensors[i];
        status = tp_tensor_table_add(&rows, tensor->offset, (int64_t)tensor->rows * tensor->columns, tensor->flag);
    }
    if (status != TALPA_OK) {
        tp_tensor_table_free(&rows);
        return status;
    }
    t->tensor_rows = rows.rows;
    t->tensor_bytes = (size_t)rows.n * TP_TENSOR_COLUMNS * sizeof *rows.rows;
    return TALPA_OK;
}

/* The boundaries are the residual stream as tp_model_hidden names it. */
static enum talpa_status checkpoint(struct talpa_graph *graph, const struct talpa_model *model)
{
    const int n = model->config.n_layers;
    talpa_value *boundaries = malloc(((size_t)n + 1) * sizeof *boundaries);
    if (!boundaries) return tp_fail_memory("layer boundaries", (unsigned long long)n * sizeof *boundaries);
    enum talpa_status status = TALPA_OK;
    for (int layer = 0; layer < n && status == TALPA_OK; layer++) {
        char name[32];
        snprintf(name, sizeof name, "hidden.%d", layer);
        boundaries[layer] = tp_graph_find(graph, name);
        if (boundaries[layer] == TALPA_NONE) status = tp_fail(TALPA_E_INTERNAL, "the decoder has no value '%s'", name);
    }
    if (status == TALPA_OK) status = tp_graph_pass_checkpoint(graph, boundaries, n);
    free(boundaries);
    return status;
}

static enum talpa_status build(struct tp_train_graph *t, const struct talpa_model *model, struct tp_adapter *adapter,
                               const struct tp_train_graph_options *options)
{
    struct tp_adapter_graph attach;
    talpa_value hidden, grads, selected;
    TP_TRY(tp_graph_create(&t->graph));
    TP_TRY(tp_batch_inputs_create(&t->inputs, t->graph, options->max_tokens, options->max_labelled));
    TP_TRY(states(t, adapter));
    TP_TRY(tp_adapter_begin(&attach, adapter, t->graph, &t->inputs, true));
    attach.aux_on_probability = options->aux_on_probability;
    const struct tp_linear_hook hook = {.apply = tp_adapter_hook, .user = &attach};
    TP_TRY(tp_model_hidden(&hidden, t->graph, model, &t->inputs, &hook));
    TP_TRY(loss_of(&t->loss, &t->nll, t->graph, model, &t->inputs, hidden));
    t->aux = attach.aux_total;
    if (t->aux != TALPA_NONE) {
        tp_graph_mark_output(t->graph, t->aux);
        TP_TRY(tp_graph_name(t->graph, t->aux, "aux_loss"));
    }
    t->contrastive = attach.contrastive_total;
    if (t->contrastive != TALPA_NONE) {
        tp_graph_mark_output(t->graph, t->contrastive);
        TP_TRY(tp_graph_name(t->graph, t->contrastive, "contrastive_loss"));
    }
    TP_TRY(selection(t, adapter, &selected));
    TP_TRY(backward(t, &attach, options, &grads));
    TP_TRY(update(t, options, grads, selected));
    TP_TRY(table(t, adapter));
    if (options->gradient_checkpointing) TP_TRY(checkpoint(t->graph, model));
    TP_TRY(tp_graph_pass_rematerialise(t->graph));
    return tp_graph_verify(t->graph);
}

enum talpa_status tp_train_graph_create(struct tp_train_graph *out, const struct talpa_model *model, struct tp_adapter *adapter,
                                        const struct tp_train_graph_options *options)
{
    struct tp_train_graph train = {0};
    const enum talpa_status status = build(&train, model, adapter, options);
    if (status == TALPA_OK) *out = train;
    else tp_train_graph_free(&train);
    return tp_context(status, "training graph");
}

void tp_train_graph_free(struct tp_train_graph *train)
{
    tp_graph_free(train->graph);
    free(train->tensor_rows);
    *train = (struct tp_train_graph){0};
}

/* ---- evaluation ---- */

static enum talpa_status keep_routes(struct tp_eval_graph *eval, const struct tp_adapter *adapter)
{
    eval->routes = malloc((size_t)adapter->n_modules * sizeof *eval->routes);
    if (!eval->routes) return tp_fail_memory("routes", (unsigned long long)adapter->n_modules * sizeof *eval->routes);
    eval->n_routes = adapter->n_modules;
    for (int m = 0; m < adapter->n_modules; m++) {
        const struct tp_adapter_module *module = &adapter->modules[m];
        const talpa_value kept[] = {module->weight, module->sel, module->sample_z, module->gram, module->raw};
        eval->routes[m] = (struct tp_eval_route){module->weight, module->sel, module->raw, module->sample_z, module->gram};
        for (int i = 0; i < 5; i++)
            if (kept[i] != TALPA_NONE) tp_graph_mark_output(eval->graph, kept[i]);
    }
    return TALPA_OK;
}

static enum talpa_status build_eval(struct tp_eval_graph *e, const struct talpa_model *model, struct tp_adapter *adapter,
                                    int64_t max_tokens, int64_t max_labelled, bool with_logits, bool routed)
{
    struct tp_adapter_graph attach = {0};
    talpa_value hidden, weight;
    e->params = e->logits = e->sample = TALPA_NONE;
    TP_TRY(tp_graph_create(&e->graph));
    TP_TRY(tp_batch_inputs_create(&e->inputs, e->graph, max_tokens, max_labelled));
    if (adapter) TP_TRY(tp_adapter_begin(&attach, adapter, e->graph, &e->inputs, false));
    if (adapter) e->params = attach.params;
    if (routed) {
        e->n_samples = max_tokens < TP_ROUTE_SAMPLES ? (int)max_tokens : TP_ROUTE_SAMPLES;
        TP_TRY(tp_graph_input(e->graph, &e->sample, "sample", tp_type_1d(TALPA_I32, TP_STEP_NONE, e->n_samples)));
        attach.sample = e->sample;
    }
    const struct tp_linear_hook hook = {.apply = tp_adapter_hook, .user = &attach};
    TP_TRY(tp_model_hidden(&hidden, e->graph, model, &e->inputs, adapter ? &hook : NULL));
    TP_TRY(loss_of(&e->loss, &e->nll, e->graph, model, &e->inputs, hidden));
    if (with_logits) {
        TP_TRY(tp_model_output_weight(&weight, e->graph, model));
        TP_TRY(talpa_matmul(&e->logits, e->graph, hidden, weight, TALPA_NONE, false, true));
        tp_graph_mark_output(e->graph, e->logits);
        TP_TRY(tp_graph_name(e->graph, e->logits, "logits"));
    }
    if (routed) TP_TRY(keep_routes(e, adapter));
    return tp_graph_verify(e->graph);
}

enum talpa_status tp_eval_graph_create(struct tp_eval_graph *out, const struct talpa_model *model, struct tp_adapter *adapter,
                                       int64_t max_tokens, int64_t max_labelled, bool with_logits)
{
    struct tp_eval_graph eval = {0};
    const enum talpa_status status = build_eval(&eval, model, adapter, max_tokens, max_labelled, with_logits, false);
    if (status == TALPA_OK) *out = eval;
    else tp_eval_graph_free(&eval);
    return tp_context(status, "evaluation graph");
}

enum talpa_status tp_eval_graph_create_routed(struct tp_eval_graph *out, const struct talpa_model *model, struct tp_adapter *adapter,
                                              int64_t max_tokens, int64_t max_labelled)
{
    struct tp_eval_graph eval = {0};
    TP_TRY(tp_route_check(adapter));
    const enum talpa_status status = build_eval(&eval, model, adapter, max_tokens, max_labelled, false, true);
    if (status == TALPA_OK) *out = eval;
    else tp_eval_graph_free(&eval);
    return tp_context(status, "evaluation graph");
}

void tp_eval_graph_free(struct tp_eval_graph *eval)
{
    free(eval->routes);
    tp_graph_free(eval->graph);
    *eval = (struct tp_eval_graph){0};
}
