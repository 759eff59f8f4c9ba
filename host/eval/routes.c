/* Routing of a task's rows: prompt and completion through the forward graph, like token_nll, whatever the task's metric is. */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "eval/eval_impl.h"

static enum talpa_status run(struct tp_eval_context *c, const struct talpa_eval_options *options, struct tp_eval_units *units,
                             const char *path)
{
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    struct tp_route_about *about = calloc(units->n_items + 1, sizeof *about);
    if (!about) return tp_fail_memory("routing", (unsigned long long)units->n_items * sizeof *about);
    for (size_t i = 0; i < units->n_units; i++) {
        const struct tp_eval_unit *unit = &units->units[i];
        for (size_t k = unit->first_item; k < unit->first_item + unit->n_items; k++) {
            about[k] = (struct tp_route_about){.id = unit->id, .difficulty = unit->row->difficulty,
                                               .task = options->task ? options->task : unit->row->task ? unit->row->task : file};
            units->items[k].about = &about[k];
        }
    }
    enum talpa_status status = units->longest ? tp_eval_context_scorer(c, options, units->longest, units->most_labels) : TALPA_OK;
    if (status == TALPA_OK && units->n_items) status = tp_likelihood_run(&c->likelihood, units->items, units->n_items, options->batch_size);
    free(about);
    return status;
}

enum talpa_status tp_eval_routes(struct tp_eval_context *context, const struct talpa_eval_options *options, const struct tp_eval_rows *rows,
                                 const char *examples, uint32_t ctx)
{
    struct tp_eval_units units;
    if (options->text)
        return tp_fail(TALPA_E_ARGUMENT,
                       "--route-log: a text file (-f) has no rows; put them in a JSONL file, {\"text\": ..}, and give --data");
    enum talpa_status status =
        tp_eval_units_create(&units, context->model, rows, examples, TALPA_METRIC_TOKEN_NLL, options->by, ctx, 0, false);
    if (status != TALPA_OK) return tp_context(status, "--route-log looks at prompt and completion");
    status = run(context, options, &units, rows->path);
    tp_eval_units_free(&units);
    return status;
}
