#include "evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/profile.h"

static enum talpa_status create(struct tp_evaluator *e, const struct talpa_model *model, struct tp_adapter *adapter, uint32_t max_tokens,
                                uint32_t max_labelled, const struct tp_plan_options *options, bool sparse, bool routed)
{
    if (routed) TP_TRY(tp_eval_graph_create_routed(&e->eval, model, adapter, max_tokens, max_labelled));
    else TP_TRY(tp_eval_graph_create(&e->eval, model, adapter, max_tokens, max_labelled, false));
    TP_TRY(tp_program_set_create(&e->set, e->engine, e->eval.graph, options, !sparse, sparse));
    if (routed) {
        int32_t none[TP_ROUTE_SAMPLES];
        memset(none, 0xff, sizeof none); /* -1 */
        TP_TRY(tp_executor_write(e->set.executor, e->eval.sample, none, (size_t)e->eval.n_samples * sizeof *none));
    }
    TP_TRY(tp_batch_create(&e->batch, max_tokens, max_labelled));
    e->nll = calloc(max_labelled, sizeof *e->nll);
    return e->nll ? TALPA_OK : tp_fail_memory("evaluation", (unsigned long long)max_labelled * sizeof *e->nll);
}

enum talpa_status tp_evaluator_create_sized(struct tp_evaluator *out, struct tp_engine *engine, const struct talpa_model *model,
                                            struct tp_adapter *adapter, uint32_t max_tokens, uint32_t max_labelled,
                                            const struct tp_plan_options *options, bool sparse, bool routed)
{
    struct tp_evaluator evaluator = {.engine = engine, .adapter = adapter, .alignment = 1};
    const enum talpa_status status = create(&evaluator, model, adapter, max_tokens, max_labelled, options, sparse, routed);
    if (status == TALPA_OK) *out = evaluator;
    else tp_evaluator_free(&evaluator);
    return status;
}

enum talpa_status tp_evaluator_create(struct tp_evaluator *out, struct tp_engine *engine, const struct talpa_model *model,
                                      struct tp_adapter *adapter, uint32_t max_tokens, const struct tp_plan_options *options, bool sparse)
{
    return tp_evaluator_create_sized(out, engine, model, adapter, max_tokens, max_tokens, options, sparse, false);
}

enum talpa_status tp_evaluator_create_routed(struct tp_evaluator *out, struct tp_engine *engine, const struct talpa_model *model,
                                             struct tp_adapter *adapter, uint32_t max_tokens, const struct tp_plan_options *options,
                                             bool sparse)
{
    return tp_evaluator_create_sized(out, engine, model, adapter, max_tokens, max_tokens, options, sparse, true);
}

void tp_evaluator_free(struct tp_evaluator *evaluator)
{
    tp_program_set_free(&evaluator->set);
    tp_eval_graph_free(&evaluator->eval);
    tp_batch_free(&evaluator->batch);
    free(evaluator->nll);
    evaluator->nll = NULL;
}

enum talpa_status tp_evaluator_pass(struct tp_evaluator *e)
{
    struct tp_step step = {{0}};
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f);
    if (e->adapter && e->adapter->is_steered) tp_step_set_f32(&step, TP_STEP_MAX_THRESHOLD, (float)tp_adapter_max_threshold(e->adapter));
    TP_TRY(tp_batch_write(&e->batch, e->set.executor, &e->eval.inputs, &step));
    TP_TRY(tp_executor_step(e->set.executor, &step));
    TP_TRY(tp_executor_run(e->set.executor, 0, TP_PHASE_BATCH));
    return tp_executor_read(e->set.executor, e->eval.nll, e->nll, e->batch.n_labelled * sizeof *e->nll);
}

/* The rows of a pass that is going to run, in the statistics. */
static enum talpa_status begin_routes(struct tp_evaluator *e, struct tp_route_span *spans, const struct tp_dataset *dataset, size_t first,
                                      size_t n)
{
    uint32_t row = 0;
    for (size_t i = 0; i < n; i++) {
        const struct tp_dataset_example example = tp_dataset_example(dataset, first + i);
        const struct tp_route_about about = {.id = example.id,
                                             .task = example.task ? example.task : e->task,
                                             .difficulty = example.difficulty,
                                             .n_tokens = example.n_tokens,
                                             .n_prompt = example.n_prompt};
        row = tp_batch_aligned(row, e->alignment);
        spans[i] = (struct tp_route_span){.first = row, .n_tokens = example.n_tokens, .n_prompt = example.n_prompt};
        TP_TRY(tp_route_stats_row(&spans[i].row, e->routes, &about));
        row += example.n_tokens;
    }
    return tp_route_stats_begin(e->routes, e->set.executor, &e->eval, spans, n);
}

static uint32_t n_labels(const struct tp_dataset_example *example)
{
    uint32_t count = 0;
    for (uint32_t p = 1; p < example->n_tokens; p++) count += example->labels[p] != TP_DATASET_IGNORED;
    return count;
}

static enum talpa_status pass(struct tp_evaluator *e, struct tp_route_span *spans, const struct tp_dataset *dataset, size_t first, size_t n,
                              tp_evaluate_visit *visit, void *user)
{
    if (e->routes) TP_TRY(begin_routes(e, spans, dataset, first, n));
    TP_TRY(tp_evaluator_pass(e));
    if (e->routes) TP_TRY(tp_route_stats_pass(e->routes, e->set.executor, &e->eval, spans, n, e->batch.max_tokens));
    const float *nll = e->nll;
    for (size_t i = first; i < first + n; i++) {
        const struct tp_dataset_example example = tp_dataset_example(dataset, i);
        const uint32_t count = n_labels(&example);
        if (e->routes) tp_route_stats_nll(e->routes, spans[i - first].row, nll, count);
        TP_TRY(visit(user, i, &example, nll, count));
        nll += count;
    }
    return TALPA_OK;
}

static enum talpa_status run(struct tp_evaluator *e, struct tp_route_span *spans, const struct tp_dataset *dataset, int batch_size,
                             tp_evaluate_visit *visit, void *user)
{
    const size_t n = tp_dataset_n_examples(dataset);
    for (size_t first = 0; first < n;) {
        tp_batch_clear(&e->batch);
        size_t taken = 0;
        while (first + taken < n && taken < (size_t)batch_size) {
            const struct tp_dataset_example example = tp_dataset_example(dataset, first + taken);
            const uint32_t start = tp_batch_aligned(e->batch.n_tokens, e->alignment);
            if (taken && (start > e->batch.max_tokens || example.n_tokens > e->batch.max_tokens - start)) break;
            TP_TRY(tp_batch_align(&e->batch, e->alignment));
            TP_TRY(tp_batch_add(&e->batch, &example, (uint32_t)taken, 0, 0));
            taken++;
        }
        TP_TRY(pass(e, spans, dataset, first, taken, visit, user));
        first += taken;
    }
    return TALPA_OK;
}

enum talpa_status tp_evaluator_run(struct tp_evaluator *e, const struct tp_dataset *dataset, int batch_size, tp_evaluate_visit *visit,
                                   void *user)
{
    struct tp_route_span *spans = calloc((size_t)batch_size, sizeof *spans);
    if (!spans) return tp_fail_memory("evaluation", (size_t)batch_size * sizeof *spans);
    const enum talpa_status status = run(e, spans, dataset, batch_size, visit, user);
    free(spans);
    return status;
}

/* ---- losses ---- */

static enum talpa_status add_loss(void *user, size_t index, const struct tp_dataset_example *example, const float *nll, uint32_t n)
{
    (void)example;
    struct tp_losses *losses = user;
    losses->n[index] = n;
    for (uint32_t i = 0; i < n; i++) losses->sum[index] += (double)nll[i];
    return TALPA_OK;
}

enum talpa_status tp_evaluator_losses(struct tp_losses *out, struct tp_evaluator *evaluator, const struct tp_dataset *dataset,
                                      int batch_size)
{
    TP_PROFILE_SPAN("held-out loss");
    const size_t n = tp_dataset_n_examples(dataset);
    struct tp_losses losses = {.sum = calloc(n + 1, sizeof *losses.sum), .n = calloc(n + 1, sizeof *losses.n), .n_examples = n};
    enum talpa_status status = losses.sum && losses.n ? TALPA_OK : tp_fail_memory("losses", n * sizeof *losses.sum);
    if (status == TALPA_OK) status = tp_evaluator_run(evaluator, dataset, batch_size, add_loss, &losses);
    if (status == TALPA_OK) *out = losses;
    else tp_losses_free(&losses);
    return status;
}

void tp_losses_free(struct tp_losses *losses)
{
    free(losses->sum);
    free(losses->n);
    *losses = (struct tp_losses){0};
}

/* Ratio sum(value) / sum(n) and its error: residuals value_i - ratio * n_i are centred, their spread over examples gives the error. */
static void ratio(double *mean, double *error, const double *value, const double *minus, const uint32_t *n, size_t n_examples)
{
    double total = 0.0, tokens = 0.0, spread = 0.0;
    for (size_t i = 0; i < n_examples; i++) {
        total += value[i] - (minus ? minus[i] : 0.0);
        tokens += n[i];
    }
    *mean = tokens > 0.0 ? total / tokens : 0.0;
    for (size_t i = 0; i < n_examples; i++) {
        const double residual = value[i] - (minus ? minus[i] : 0.0) - *mean * n[i];
        spread += residual * residual;
    }
    *error = n_examples > 1 && tokens > 0.0 ? sqrt(spread * (double)n_examples / (double)(n_examples - 1)) / tokens : 0.0;
}

struct talpa_eval_result tp_losses_summary(const struct tp_losses *losses)
{
    struct talpa_eval_result result = {.n_examples = (int64_t)losses->n_examples};
    for (size_t i = 0; i < losses->n_examples; i++) result.n_tokens += losses->n[i];
    ratio(&result.loss, &result.standard_error, losses->sum, NULL, losses->n, losses->n_examples);
    return result;
}

void tp_losses_compare(double *difference, double *error, const struct tp_losses *before, const struct tp_losses *after)
{
    ratio(difference, error, after->sum, before->sum, after->n, after->n_examples);
}
