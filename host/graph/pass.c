#include <stdlib.h>

#include "graph_impl.h"

/* Recomputation. A forward value that is chosen not to be kept and that the backward part reads has its producer cloned just before the
 * first backward reader. The clone's inputs are recomputed likewise where they are not kept, so the recursion ends at kept values. Which
 * values are not kept is all that the two passes below differ in. A clone has its original's attributes, random stream included, and thus
 * gives the same bits. */
struct pass {
    struct talpa_graph *graph;
    const struct tp_node *old_nodes;
    int32_t *producer;  /* per value: its producer in the old list if the value is not kept, else -1 */
    talpa_value *clone; /* per value: the recomputed one, or TP_NONE */
    int32_t n_old_values;
};

/* The forward node that could make the value a second time, or -1: a node that updates a state runs once. */
static int32_t forward_producer(const struct talpa_graph *graph, talpa_value value)
{
    const struct tp_value_info *info = &graph->values[value];
    if (info->kind != TP_TEMP || info->is_output) return -1;
    const struct tp_node *node = &graph->nodes[info->producer];
    for (int o = 0; o < node->n_out; o++)
        if (node->op->updates[o]) return -1;
    return !node->is_backward && node->phase == TP_PHASE_BATCH ? info->producer : -1;
}

static enum talpa_status recomputed(struct pass *pass, talpa_value value, talpa_value *out)
{
    if (value >= pass->n_old_values || pass->producer[value] < 0) {
        *out = value;
        return TALPA_OK;
    }
    if (pass->clone[value] == TP_NONE) {
        const struct tp_node *node = &pass->old_nodes[pass->producer[value]];
        talpa_value *in = tp_arena_array(&pass->graph->arena, (size_t)node->n_in + 1, sizeof *in);
        talpa_value made[TP_MAX_OUT];
        if (!in) return TALPA_E_DEVICE;
        for (int i = 0; i < node->n_in; i++) {
            in[i] = node->in[i];
            if (in[i] != TP_NONE) TP_TRY(recomputed(pass, node->in[i], &in[i]));
        }
        pass->graph->scope = node->scope;
        pass->graph->phase = node->phase;
        TP_TRY(tp_graph_node(pass->graph, node->op, in, node->n_in, &node->attrs, made));
        for (int o = 0; o < node->n_out; o++) pass->clone[node->out[o]] = made[o];
    }
    *out = pass->clone[value];
    return TALPA_OK;
}

/* Appends an old node to the new list under its old outputs. */
static enum talpa_status keep(struct pass *pass, const struct tp_node *node)
{
    struct talpa_graph *graph = pass->graph;
    if (graph->n_nodes == graph->node_room) {
        struct tp_node *grown = realloc(graph->nodes, (size_t)graph->node_room * 2 * sizeof *grown);
        if (!grown) return tp_fail_memory("graph", (unsigned long long)graph->node_room * 2 * sizeof *grown);
        graph->nodes = grown;
        graph->node_room *= 2;
    }
    for (int o = 0; o < node->n_out; o++) graph->values[node->out[o]].producer = graph->n_nodes;
    graph->nodes[graph->n_nodes++] = *node;
    return TALPA_OK;
}

static enum talpa_status rewrite(struct pass *pass, int32_t n_old)
{
    for (int32_t n = 0; n < n_old; n++) {
        struct tp_node node = pass->old_nodes[n];
        if (node.is_backward) {
            tp_graph_set_backward(pass->graph, true);
            for (int i = 0; i < node.n_in; i++)
                if (node.in[i] != TP_NONE) TP_TRY(recomputed(pass, node.in[i], &node.in[i]));
        }
        TP_TRY(keep(pass, &node));
    }
    return TALPA_OK;
}

/* Rewrites the node list for producer[value] (see struct pass), which it frees. */
static enum talpa_status recompute(struct talpa_graph *graph, int32_t *producer)
{
    struct tp_node *old_nodes = graph->nodes;
    const int32_t n_old = graph->n_nodes;
    struct pass pass = {.graph = graph,
                        .old_nodes = old_nodes,
                        .producer = producer,
                        .clone = malloc(((size_t)graph->n_values + 1) * sizeof(talpa_value)),
                        .n_old_values = graph->n_values};
    struct tp_node *nodes = malloc(((size_t)n_old + 256) * sizeof *nodes);
    if (!pass.clone || !pass.producer || !nodes) {
        free(pass.producer);
        free(pass.clone);
        free(nodes);
        return tp_fail_memory("graph", (unsigned long long)n_old * sizeof *old_nodes);
    }
    for (int32_t i = 0; i < graph->n_values; i++) pass.clone[i] = TP_NONE;
    graph->nodes = nodes;
    graph->node_room = n_old + 256;
    graph->n_nodes = 0;
    const char *scope = graph->scope;
    const enum tp_phase phase = graph->phase;
    const enum talpa_status status = rewrite(&pass, n_old);
    graph->scope = scope;
    graph->phase = phase;
    tp_graph_set_backward(graph, false);
    free(pass.producer);
    free(pass.clone);
    free(old_nodes);
    return status;
}

/* What a cheap op makes besides its result for the gradient (a number per row) costs next to nothing to keep, and where the gradient reads
 * nothing else the op need not run again. */
static bool is_by_product(const struct talpa_graph *graph, talpa_value value)
{
    enum { SHARE = 16 };
    const struct tp_value_info *info = &graph->values[value];
    if (info->producer < 0 || !info->output) return false;
    return tp_type_bytes(&info->type) * SHARE <= tp_type_bytes(&graph->values[graph->nodes[info->producer].out[0]].type);
}

enum talpa_status tp_graph_pass_rematerialise(struct talpa_graph *graph)
{
    int32_t *producer = malloc(((size_t)graph->n_values + 1) * sizeof *producer);
    for (int32_t i = 0; i < graph->n_values && producer; i++) {
        producer[i] = forward_producer(graph, i);
        if (producer[i] >= 0 && (!(graph->nodes[producer[i]].op->flags & TP_OP_CHEAP) || is_by_product(graph, i))) producer[i] = -1;
    }
    return recompute(graph, producer);
}

enum talpa_status tp_graph_pass_checkpoint(struct talpa_graph *graph, const talpa_value *boundaries, int n_boundaries)
{
    if (n_boundaries < 1) return TALPA_OK;
    int32_t *producer = malloc(((size_t)graph->n_values + 1) * sizeof *producer), last = -1;
    for (int b = 0; b < n_boundaries; b++) {
        const int32_t at = graph->values[boundaries[b]].producer;
        if (at > last) last = at;
    }
    for (int32_t i = 0; i < graph->n_values && producer; i++) {
        producer[i] = forward_producer(graph, i);
        /* What follows the last boundary is read at once, and a part of a state costs nothing to keep. */
        if (producer[i] > last || (producer[i] >= 0 && tp_graph_root_state(graph, i) != TP_NONE)) producer[i] = -1;
    }
    for (int b = 0; b < n_boundaries && producer; b++) producer[boundaries[b]] = -1;
    return recompute(graph, producer);
}
