#include "route_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum talpa_status tp_route_check(const struct tp_adapter *adapter)
{
    if (adapter && adapter->router->has_gating) return TALPA_OK;
    return tp_fail(TALPA_E_ARGUMENT,
                   "--route-log, --route-map: nothing is routed: found %s, expected a mixture (topk, threshold, adamole or moelora)",
                   adapter ? "a plain LoRA adapter" : "no adapter");
}

enum talpa_status tp_route_stats_create(struct tp_route_stats *out, const struct tp_adapter *adapter)
{
    TP_TRY(tp_route_check(adapter));
    *out = (struct tp_route_stats){.adapter = adapter};
    return TALPA_OK;
}

void tp_route_stats_free(struct tp_route_stats *stats)
{
    tp_arena_free(&stats->arena);
    tp_map_free(&stats->task_of);
    free(stats->tasks);
    free(stats->rows);
    free(stats->weight);
    free(stats->raw);
    free(stats->sel);
    free(stats->samples);
    free(stats->picks);
    free(stats->sample_z);
    free(stats->sample_weight);
    free(stats->gram);
    free(stats->pass_z);
    *stats = (struct tp_route_stats){0};
}

/* Doubles a list that is full. */
static enum talpa_status grow(void **list, size_t *capacity, size_t n, size_t size)
{
    if (n < *capacity) return TALPA_OK;
    const size_t wanted = *capacity ? 2 * *capacity : 32;
    void *larger = realloc(*list, wanted * size);
    if (!larger) return tp_fail_memory("routing", (unsigned long long)wanted * size);
    *list = larger;
    *capacity = wanted;
    return TALPA_OK;
}

static enum talpa_status find_task(size_t *out, struct tp_route_stats *s, const char *name)
{
    int64_t found;
    if (tp_map_get_string(&found, &s->task_of, name)) {
        *out = (size_t)found;
        return TALPA_OK;
    }
    if (s->n_tasks == TP_ROUTE_MAX_TASKS)
        return tp_fail(TALPA_E_DATA, "--route-log: task '%.60s' is one more than %d: give rows of one kind the same \"task\"", name,
                       TP_ROUTE_MAX_TASKS);
    TP_TRY(grow((void **)&s->tasks, &s->task_capacity, s->n_tasks, sizeof *s->tasks));
    const size_t n_modules = (size_t)s->adapter->n_modules, n_cells = n_modules * (size_t)s->adapter->config.n_experts;
    struct tp_route_task task = {.name = tp_arena_strdup(&s->arena, name),
                                 .cells = tp_arena_array(&s->arena, n_modules, sizeof *task.cells),
                                 .selected = tp_arena_array(&s->arena, n_cells, sizeof *task.selected),
                                 .weight = tp_arena_array(&s->arena, n_cells, sizeof *task.weight)};
    if (!task.name || !task.cells || !task.selected || !task.weight) return TALPA_E_DEVICE;
    memset(task.cells, 0, n_modules * sizeof *task.cells);
    memset(task.selected, 0, n_cells * sizeof *task.selected);
    memset(task.weight, 0, n_cells * sizeof *task.weight);
    TP_TRY(tp_map_put_string(&s->task_of, name, (int64_t)s->n_tasks));
    *out = s->n_tasks;
    s->tasks[s->n_tasks++] = task;
    return TALPA_OK;
}

enum talpa_status tp_route_stats_row(size_t *row, struct tp_route_stats *s, const struct tp_route_about *about)
{
    struct tp_route_row new = {.difficulty = about->difficulty};
    TP_TRY(find_task(&new.task, s, about->task ? about->task : ""));
    TP_TRY(grow((void **)&s->rows, &s->row_capacity, s->n_rows, sizeof *s->rows));
    new.id = tp_arena_strdup(&s->arena, about->id ? about->id : "");
    if (!new.id) return TALPA_E_DEVICE;
    const size_t n_weights = (size_t)s->adapter->n_modules * (size_t)s->adapter->config.n_experts;
    if (s->row_bytes + n_weights * sizeof *new.weight <= TP_ROUTE_ROW_BYTES) {
        new.weight = tp_arena_array(&s->arena, n_weights, sizeof *new.weight);
        if (!new.weight) return TALPA_E_DEVICE;
        memset(new.weight, 0, n_weights * sizeof *new.weight);
        s->row_bytes += n_weights * sizeof *new.weight;
    }
    new.n_tokens[TP_ROUTE_BEFORE] = about->n_prompt < about->n_tokens ? about->n_prompt : about->n_tokens;
    new.n_tokens[TP_ROUTE_REST] = about->n_tokens - new.n_tokens[TP_ROUTE_BEFORE];
    *row = s->n_rows;
    s->rows[s->n_rows++] = new;
    return TALPA_OK;
}

void tp_route_stats_nll(struct tp_route_stats *stats, size_t row, const float *nll, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) stats->rows[row].nll += (double)nll[i];
    stats->rows[row].n_labelled += n;
}

/* ---- passes ---- */

static enum talpa_status make_room(struct tp_route_stats *s, size_t n_tokens)
{
    if (n_tokens <= s->room) return TALPA_OK;
    const size_t n_experts = (size_t)s->adapter->config.n_experts;
    free(s->weight);
    free(s->raw);
    free(s->sel);
    s->room = 0;
    s->weight = malloc(n_tokens * n_experts * sizeof *s->weight);
    s->sel = malloc(n_tokens * n_experts * sizeof *s->sel);
    s->raw = malloc(n_tokens * sizeof *s->raw);
    if (!s->weight || !s->sel || !s->raw) return tp_fail_memory("routing", (unsigned long long)(n_tokens * n_experts) * 8);
    s->room = n_tokens;
    return TALPA_OK;
}

static void add_span(struct tp_route_stats *s, int module, const struct tp_route_span *span, bool has_raw, double max_threshold)
{
    const size_t n_experts = (size_t)s->adapter->config.n_experts;
    struct tp_route_row *row = &s->rows[span->row];
    struct tp_route_task *task = &s->tasks[row->task];
    struct tp_route_cell *cell = &task->cells[module];
    int64_t *selected = task->selected + (size_t)module * n_experts;
    double *weight = task->weight + (size_t)module * n_experts;
    for (uint32_t p = 0; p < span->n_tokens; p++) {
        const size_t token = span->first + p;
        const int part = p < span->n_prompt ? TP_ROUTE_BEFORE : TP_ROUTE_REST;
        int64_t active = 0;
        double entropy = 0.0, sum = 0.0;
        for (size_t e = 0; e < n_experts; e++) {
            if (!s->sel[token * n_experts + e]) continue;
            const double w = (double)s->weight[token * n_experts + e];
            active++;
            selected[e]++;
            weight[e] += w;
            sum += w;
            if (w > 0.0) entropy -= w * log(w);
            if (row->weight) row->weight[(size_t)module * n_experts + e] += (float)w;
        }
        if (sum > 0.0) {
            cell->entropy += entropy;
            cell->n_routed++;
        }
        const double threshold = has_raw ? max_threshold / (1.0 + exp(-(double)s->raw[token])) : max_threshold;
        cell->n_tokens[part]++;
        cell->active[part] += active;
        cell->threshold += threshold;
        row->active[part] += active;
        row->threshold += threshold;
    }
}

enum talpa_status tp_route_stats_begin(struct tp_route_stats *s, struct tp_executor *executor, const struct tp_eval_graph *eval,
                                       const struct tp_route_span *spans, size_t n_spans)
{
    if (!eval->routes) return tp_fail(TALPA_E_INTERNAL, "routing: a graph without routes");
    return tp_route_samples_pick(s, executor, eval, spans, n_spans);
}

enum talpa_status tp_route_stats_pass(struct tp_route_stats *s, struct tp_executor *executor, const struct tp_eval_graph *eval,
                                      const struct tp_route_span *spans, size_t n_spans, uint32_t max_tokens)
{
    const size_t n_experts = (size_t)s->adapter->config.n_experts;
    const double max_threshold = tp_adapter_max_threshold(s->adapter);
    size_t n = 0;
    for (size_t i = 0; i < n_spans; i++)
        if (spans[i].first + (size_t)spans[i].n_tokens > n) n = spans[i].first + (size_t)spans[i].n_tokens;
    if (!eval->routes || n > max_tokens) return tp_fail(TALPA_E_INTERNAL, "routing: a pass of %zu tokens, prepared for %u", n, max_tokens);
    TP_TRY(make_room(s, max_tokens));
    TP_TRY(tp_route_samples_merge(s));
    for (int m = 0; m < eval->n_routes; m++) {
        const struct tp_eval_route *route = &eval->routes[m];
        TP_TRY(tp_executor_read(executor, route->weight, s->weight, n * n_experts * sizeof *s->weight));
        TP_TRY(tp_executor_read(executor, route->sel, s->sel, n * n_experts * sizeof *s->sel));
        if (route->raw != TALPA_NONE) TP_TRY(tp_executor_read(executor, route->raw, s->raw, n * sizeof *s->raw));
        for (size_t i = 0; i < n_spans; i++) add_span(s, m, &spans[i], route->raw != TALPA_NONE, max_threshold);
        TP_TRY(tp_route_samples_read(s, executor, eval, m));
    }
    return TALPA_OK;
}
