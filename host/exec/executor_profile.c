/* What a launch is, for the profile of the process. */
#include "executor_impl.h"

#include "graph/op.h"

/* Part of the bound that a launch works on: sizes of a pass are known to the device only, and to the host copy of the step words. */
static double rows_share(const struct tp_executor *executor, const struct tp_launch *launch, double *fixed_bytes)
{
    const struct talpa_graph *graph = executor->plans[0]->graph;
    double share = -1.0;
    *fixed_bytes = 0.0;
    for (int a = 0; a < launch->n_args; a++) {
        if (launch->args[a].kind != TP_ARG_VALUE) continue;
        const struct tp_type *type = &tp_graph_value(graph, launch->args[a].value)->type;
        if (type->rows == TP_STEP_NONE) {
            *fixed_bytes += (double)tp_type_bytes(type);
            continue;
        }
        const double rows = (double)executor->step_words.word[type->rows] / (double)type->shape.dim[0];
        if (rows > share) share = rows;
    }
    return share < 0.0 || share > 1.0 ? 1.0 : share;
}

void tp_executor_describe(struct tp_executor *executor, const struct tp_launch *launch, double part)
{
    static const char *const passes[] = {[TP_PHASE_BATCH] = "forward", [TP_PHASE_UPDATE] = "update"};
    const struct tp_node *node = launch->node >= 0 ? tp_graph_node_at(executor->plans[0]->graph, launch->node) : NULL;
    double fixed;
    const double share = rows_share(executor, launch, &fixed);
    if (fixed > launch->bytes) fixed = launch->bytes;
    tp_queue_describe(executor->device, node ? tp_plan_node_name(executor->plans[0], launch->node) : "pack", !node ? "" : node->is_backward ? "backward" : passes[node->phase],
                      launch->flops * share * part, (fixed + (launch->bytes - fixed) * share) * part);
}
