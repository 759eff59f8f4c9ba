#include "likelihood.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "train/batch.h"

static enum talpa_status create(struct tp_likelihood *l, const struct talpa_model *model, struct tp_adapter *adapter, const float *bank,
                                const struct tp_plan_options *options, bool sparse)
{
    TP_TRY(tp_eval_graph_create(&l->eval, model, adapter, l->max_tokens, l->max_labels, false));
    if (l->routes) TP_TRY(tp_eval_graph_keep_routes(&l->eval, adapter));
    TP_TRY(tp_program_set_create(&l->set, l->engine, l->eval.graph, options, !sparse, sparse));
    l->batch = calloc(1, sizeof *l->batch);
    l->nll = calloc(l->max_labels, sizeof *l->nll);
    if (!l->batch || !l->nll) return tp_fail_memory("evaluation", (unsigned long long)l->max_labels * sizeof *l->nll);
    TP_TRY(tp_batch_create(l->batch, l->max_tokens, l->max_labels));
    if (!adapter) return TALPA_OK;
    return tp_executor_write(l->set.executor, l->eval.params, bank, (size_t)adapter->bank_elements * sizeof *bank);
}

enum talpa_status tp_likelihood_create(struct tp_likelihood *out, struct tp_engine *engine, const struct talpa_model *model, struct tp_adapter *adapter,
                                       const float *bank, const struct tp_plan_options *options, bool sparse, uint32_t max_tokens, uint32_t max_labels,
                                       struct tp_route_stats *routes)
{
    struct tp_likelihood likelihood = {.engine = engine, .max_tokens = max_tokens, .max_labels = max_labels, .routes = routes};
    const enum talpa_status status = create(&likelihood, model, adapter, bank, options, sparse);
    if (status == TALPA_OK) *out = likelihood;
    else tp_likelihood_free(&likelihood);
    return status;
}

void tp_likelihood_free(struct tp_likelihood *likelihood)
{
    tp_program_set_free(&likelihood->set);
    tp_eval_graph_free(&likelihood->eval);
    if (likelihood->batch) tp_batch_free(likelihood->batch);
    free(likelihood->batch);
    free(likelihood->nll);
    *likelihood = (struct tp_likelihood){0};
}

/* Sequences start at multiples of this many rows: attention works in blocks of 12 rows and panels of 32 columns (CPU) or tiles of 32 (generic), and
 * adds up in their order. A sequence's bits are then the same wherever in a pass it lies. */
enum { ALIGNMENT = 96 };

static uint32_t aligned(uint32_t n) { return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static bool fits(const struct tp_likelihood *l, const struct tp_likelihood_item *item)
{
    const uint32_t first = aligned(l->batch->n_tokens);
    return first <= l->max_tokens && item->n_ids <= l->max_tokens - first && item->n_labels <= l->max_labels - l->batch->n_labelled;
}

static void add_row(struct tp_batch *batch, int32_t id, uint32_t position, uint32_t ordinal, uint32_t first, uint32_t end)
{
    const uint32_t row = batch->n_tokens++;
    batch->ids[row] = id;
    batch->positions[row] = (int32_t)position;
    batch->examples[row] = (int32_t)ordinal;
    batch->segments[2 * row] = (int32_t)first;
    batch->segments[2 * row + 1] = (int32_t)end;
}

static void add(struct tp_batch *batch, const struct tp_likelihood_item *item, uint32_t ordinal)
{
    /* Rows in between see nothing but themselves. */
    for (const uint32_t end = aligned(batch->n_tokens); batch->n_tokens < end; batch->n_pads++)
        add_row(batch, item->ids[0], 0, ordinal, batch->n_tokens, batch->n_tokens + 1);
    const uint32_t first = batch->n_tokens;
    for (uint32_t p = 0; p < item->n_ids; p++) add_row(batch, item->ids[p], p, ordinal, first, first + item->n_ids);
    for (uint32_t k = 0; k < item->n_labels; k++) {
        batch->rows[batch->n_labelled] = (int32_t)(first + item->rows[k]);
        batch->labels[batch->n_labelled++] = item->labels[k];
    }
    batch->n_segments++;
}

/* Adds the items of the pass that has just run to the statistics. */
static enum talpa_status add_routes(struct tp_likelihood *l, const struct tp_likelihood_item *items, size_t n)
{
    struct tp_route_span *spans = calloc(n, sizeof *spans);
    enum talpa_status status = spans ? TALPA_OK : tp_fail_memory("routing", n * sizeof *spans);
    size_t n_spans = 0;
    uint32_t end = 0;
    for (size_t i = 0; i < n && status == TALPA_OK; i++) {
        const uint32_t first = aligned(end), n_prompt = items[i].n_labels ? items[i].rows[0] + 1 : items[i].n_ids;
        end = first + items[i].n_ids;
        if (!items[i].about) continue;
        struct tp_route_about about = *items[i].about;
        about.n_tokens = items[i].n_ids;
        about.n_prompt = n_prompt;
        struct tp_route_span *span = &spans[n_spans++];
        *span = (struct tp_route_span){.first = first, .n_tokens = items[i].n_ids, .n_prompt = n_prompt};
        status = tp_route_stats_row(&span->row, l->routes, &about);
        if (status == TALPA_OK) tp_route_stats_nll(l->routes, span->row, items[i].nll, items[i].n_labels);
    }
    if (status == TALPA_OK && n_spans) status = tp_route_stats_pass(l->routes, l->set.executor, &l->eval, spans, n_spans, l->max_tokens);
    free(spans);
    return status;
}

static enum talpa_status pass(struct tp_likelihood *l, const struct tp_likelihood_item *items, size_t n)
{
    struct tp_step step = {{0}};
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f);
    TP_TRY(tp_batch_write(l->batch, l->set.executor, &l->eval.inputs, &step));
    TP_TRY(tp_executor_step(l->set.executor, &step));
    TP_TRY(tp_executor_run(l->set.executor, 0, TP_PHASE_BATCH));
    TP_TRY(tp_executor_read(l->set.executor, l->eval.nll, l->nll, l->batch->n_labelled * sizeof *l->nll));
    const float *nll = l->nll;
    for (size_t i = 0; i < n; i++) {
        memcpy(items[i].nll, nll, items[i].n_labels * sizeof *nll);
        nll += items[i].n_labels;
    }
    return l->routes ? add_routes(l, items, n) : TALPA_OK;
}

enum talpa_status tp_likelihood_run(struct tp_likelihood *l, const struct tp_likelihood_item *items, size_t n_items, int batch_size)
{
    for (size_t first = 0; first < n_items;) {
        size_t n = 0;
        tp_batch_clear(l->batch);
        while (first + n < n_items && n < (size_t)batch_size) {
            const struct tp_likelihood_item *item = &items[first + n];
            if (!fits(l, item)) break;
            add(l->batch, item, (uint32_t)n);
            n++;
        }
        if (!n)
            return tp_fail(TALPA_E_INTERNAL, "a sequence of %u tokens and %u labels, prepared for %u and %u", items[first].n_ids, items[first].n_labels,
                           l->max_tokens, l->max_labels);
        TP_TRY(pass(l, items + first, n));
        first += n;
    }
    return TALPA_OK;
}
