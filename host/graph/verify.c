#include <stdlib.h>

#include "graph_impl.h"

/* Refuses a read of an old version: after a state's update its storage holds the new one. */
static enum talpa_status check_reads(const struct talpa_graph *graph, const struct tp_node *node, const int32_t *latest)
{
    for (int i = 0; i < node->n_in; i++) {
        const talpa_value value = node->in[i];
        if (value == TP_NONE) continue;
        const struct tp_value_info *info = &graph->values[value];
        const talpa_value state = tp_graph_root_state(graph, value);
        if (state != TP_NONE && graph->values[state].version != latest[graph->values[state].base])
            return tp_fail(TALPA_E_INTERNAL, "%s at %s reads version %d of state '%s' after its update to version %d", node->op->name, node->scope,
                           graph->values[state].version, graph->values[state].name, latest[graph->values[state].base]);
        if (state == TP_NONE && info->producer >= 0 && graph->nodes[info->producer].phase != node->phase)
            return tp_fail(TALPA_E_INTERNAL, "%s at %s reads a value of another phase; only states cross phases", node->op->name, node->scope);
    }
    return TALPA_OK;
}

enum talpa_status tp_graph_verify(const struct talpa_graph *graph)
{
    int32_t *latest = calloc((size_t)graph->n_values + 1, sizeof *latest);
    if (!latest) return tp_fail_memory("graph", (unsigned long long)graph->n_values * sizeof *latest);
    enum talpa_status status = TALPA_OK;
    for (int32_t n = 0; n < graph->n_nodes && status == TALPA_OK; n++) {
        const struct tp_node *node = &graph->nodes[n];
        status = check_reads(graph, node, latest);
        for (int o = 0; o < node->n_out; o++)
            if (node->op->updates[o]) latest[graph->values[node->out[o]].base] = graph->values[node->out[o]].version;
    }
    free(latest);
    return status;
}
