#include "likelihood.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

enum talpa_status tp_likelihood_create(struct tp_likelihood *out, struct tp_engine *engine, const struct talpa_model *model,
                                       struct tp_adapter *adapter, const float *bank, const struct tp_plan_options *options, bool sparse,
                                       uint32_t max_tokens, uint32_t max_labels, struct tp_route_stats *routes)
{
    struct tp_likelihood likelihood = {.routes = routes};
    struct tp_evaluator *e = &likelihood.evaluator;
    TP_TRY(tp_evaluator_create_sized(e, engine, model, adapter, max_tokens, max_labels, options, sparse, routes != NULL));
    e->alignment = TP_BATCH_ALIGNMENT;
    const enum talpa_status status =
        adapter ? tp_executor_write(e->set.executor, e->eval.params, bank, (size_t)adapter->bank_elements * sizeof *bank) : TALPA_OK;
    if (status == TALPA_OK) *out = likelihood;
    else tp_likelihood_free(&likelihood);
    return status;
}

void tp_likelihood_free(struct tp_likelihood *likelihood)
{
    tp_evaluator_free(&likelihood->evaluator);
    *likelihood = (struct tp_likelihood){0};
}

bool tp_likelihood_fits(const struct tp_likelihood *likelihood, uint32_t n_tokens, uint32_t n_labels)
{
    const struct tp_batch *batch = &likelihood->evaluator.batch;
    return n_tokens <= batch->max_tokens && n_labels <= batch->max_labelled;
}

static uint32_t aligned(uint32_t n) { return tp_batch_aligned(n, TP_BATCH_ALIGNMENT); }

static bool has_room(const struct tp_batch *batch, const struct tp_likelihood_item *item)
{
    const uint32_t first = aligned(batch->n_tokens);
    return first <= batch->max_tokens && item->n_ids <= batch->max_tokens - first &&
           item->n_labels <= batch->max_labelled - batch->n_labelled;
}

static enum talpa_status add(struct tp_batch *batch, const struct tp_likelihood_item *item, uint32_t ordinal)
{
    TP_TRY(tp_batch_align(batch, TP_BATCH_ALIGNMENT));
    const uint32_t first = batch->n_tokens;
    for (uint32_t p = 0; p < item->n_ids; p++) {
        const uint32_t row = batch->n_tokens++;
        batch->ids[row] = item->ids[p];
        batch->positions[row] = (int32_t)p;
        batch->examples[row] = (int32_t)ordinal;
        batch->segments[2 * row] = (int32_t)first;
        batch->segments[2 * row + 1] = (int32_t)(first + item->n_ids);
    }
    for (uint32_t k = 0; k < item->n_labels; k++) {
        batch->rows[batch->n_labelled] = (int32_t)(first + item->rows[k]);
        batch->labels[batch->n_labelled++] = item->labels[k];
    }
    batch->n_segments++;
    return TALPA_OK;
}

/* The items of a pass that is going to run, in the statistics; spans[n_spans] of those that are to be there. */
static enum talpa_status begin_routes(struct tp_likelihood *l, struct tp_route_span *spans, size_t *n_spans,
                                      const struct tp_likelihood_item *items, size_t n)
{
    uint32_t end = 0;
    *n_spans = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t first = aligned(end), n_prompt = items[i].n_labels ? items[i].rows[0] + 1 : items[i].n_ids;
        end = first + items[i].n_ids;
        if (!items[i].about) continue;
        struct tp_route_about about = *items[i].about;
        about.n_tokens = items[i].n_ids;
        about.n_prompt = n_prompt;
        struct tp_route_span *span = &spans[(*n_spans)++];
        *span = (struct tp_route_span){.first = first, .n_tokens = items[i].n_ids, .n_prompt = n_prompt};
        TP_TRY(tp_route_stats_row(&span->row, l->routes, &about));
    }
    return tp_route_stats_begin(l->routes, l->evaluator.set.executor, &l->evaluator.eval, spans, *n_spans);
}

static enum talpa_status run(struct tp_likelihood *l, struct tp_route_span *spans, const struct tp_likelihood_item *items, size_t n)
{
    struct tp_evaluator *e = &l->evaluator;
    size_t n_spans = 0;
    if (l->routes) TP_TRY(begin_routes(l, spans, &n_spans, items, n));
    TP_TRY(tp_evaluator_pass(e));
    if (n_spans) TP_TRY(tp_route_stats_pass(l->routes, e->set.executor, &e->eval, spans, n_spans, e->batch.max_tokens));
    const float *nll = e->nll;
    for (size_t i = 0, span = 0; i < n; i++) {
        memcpy(items[i].nll, nll, items[i].n_labels * sizeof *nll);
        if (l->routes && items[i].about) tp_route_stats_nll(l->routes, spans[span++].row, nll, items[i].n_labels);
        nll += items[i].n_labels;
    }
    return TALPA_OK;
}

static enum talpa_status pass(struct tp_likelihood *l, const struct tp_likelihood_item *items, size_t n)
{
    struct tp_route_span *spans = calloc(n, sizeof *spans);
    if (!spans) return tp_fail_memory("routing", n * sizeof *spans);
    const enum talpa_status status = run(l, spans, items, n);
    free(spans);
    return status;
}

enum talpa_status tp_likelihood_run(struct tp_likelihood *l, const struct tp_likelihood_item *items, size_t n_items, int batch_size)
{
    struct tp_batch *batch = &l->evaluator.batch;
    for (size_t first = 0; first < n_items;) {
        size_t n = 0;
        tp_batch_clear(batch);
        while (first + n < n_items && n < (size_t)batch_size) {
            const struct tp_likelihood_item *item = &items[first + n];
            if (!has_room(batch, item)) break;
            TP_TRY(add(batch, item, (uint32_t)n));
            n++;
        }
        if (!n)
            return tp_fail(TALPA_E_INTERNAL, "a sequence of %u tokens and %u labels, prepared for %u and %u", items[first].n_ids,
                           items[first].n_labels, batch->max_tokens, batch->max_labelled);
        TP_TRY(pass(l, items + first, n));
        first += n;
    }
    return TALPA_OK;
}
