#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "eval/eval_impl.h"

enum { PASS_TOKENS = 2048 }; /* enough that a pass is bound by arithmetic; longer sequences make it larger */

enum talpa_status tp_eval_context_open(struct tp_eval_context *out, struct talpa_model *model, size_t device,
                                       const struct talpa_eval_options *options)
{
    struct tp_eval_context context = {.model = model, .device = device};
    enum talpa_status status = tp_model_digest(&context.model_digest, model);
    if (status == TALPA_OK && options->lora) {
        status = tp_adapter_load(&context.adapter, &context.bank, options->lora, model, options->allow_other_base);
        if (status == TALPA_OK) status = tp_adapter_digest(&context.adapter_digest, context.adapter, context.bank);
    }
    if (status == TALPA_OK) status = tp_adapter_override_threshold(context.adapter, options->max_threshold);
    if (status == TALPA_OK && tp_route_output_is_wanted(&options->routes)) {
        status = tp_route_stats_create(&context.routes, context.adapter);
        context.has_routes = status == TALPA_OK;
        if (status == TALPA_OK) status = tp_route_output_check(&options->routes);
    }
    if (status == TALPA_OK) *out = context;
    else tp_eval_context_close(&context);
    return status;
}

static void drop_scorer(struct tp_eval_context *c)
{
    tp_likelihood_free(&c->likelihood);
    if (c->has_engine) tp_engine_close(&c->engine);
    c->has_engine = false;
}

static void drop_generator(struct tp_eval_context *c)
{
    talpa_session_close(c->session);
    c->session = NULL;
}

void tp_eval_context_close(struct tp_eval_context *context)
{
    drop_scorer(context);
    drop_generator(context);
    tp_route_stats_free(&context->routes);
    tp_adapter_free(context->adapter);
    free(context->bank);
    *context = (struct tp_eval_context){0};
}

enum talpa_status tp_eval_context_scorer(struct tp_eval_context *c, const struct talpa_eval_options *options, uint32_t longest,
                                         uint32_t most_labels)
{
    uint64_t labels = (uint64_t)most_labels * (uint64_t)options->batch_size;
    uint32_t tokens = longest > PASS_TOKENS ? longest : PASS_TOKENS;
    const uint64_t most = (uint64_t)tp_batch_aligned(longest, TP_BATCH_ALIGNMENT) * (uint64_t)options->batch_size;
    if (most < tokens) tokens = (uint32_t)most;
    if (labels > tokens) labels = tokens;
    if (labels < most_labels) labels = most_labels;
    drop_generator(c);
    if (c->has_engine && tp_likelihood_fits(&c->likelihood, tokens, (uint32_t)labels)) return TALPA_OK;
    drop_scorer(c);
    struct tp_plan_options plan;
    TP_TRY(tp_engine_plan_options(&plan, options->base_dtype, options->compute_dtype));
    const bool sparse = tp_adapter_is_sparse(c->adapter, options->dispatch);
    TP_TRY(tp_engine_open(&c->engine, c->device, c->model));
    c->has_engine = true;
    return tp_likelihood_create(&c->likelihood, &c->engine, c->model, c->adapter, c->bank, &plan, sparse, tokens, (uint32_t)labels,
                                c->has_routes ? &c->routes : NULL);
}

enum talpa_status tp_eval_context_generator(struct tp_eval_context *c, const struct talpa_eval_options *options, int n_ctx)
{
    drop_scorer(c);
    if (c->session && c->session_ctx >= n_ctx && c->session_sequences == options->batch_size) return TALPA_OK;
    drop_generator(c);
    struct talpa_session_options session;
    talpa_session_default(&session);
    session.lora = options->lora;
    session.allow_other_base = options->allow_other_base;
    session.max_threshold = options->max_threshold;
    session.n_ctx = n_ctx;
    session.n_sequences = options->batch_size;
    session.base_dtype = options->base_dtype;
    session.compute_dtype = options->compute_dtype;
    session.dispatch = options->dispatch;
    TP_TRY(talpa_session_open(&c->session, c->model, c->device, &session));
    c->session_ctx = n_ctx;
    c->session_sequences = options->batch_size;
    return TALPA_OK;
}
