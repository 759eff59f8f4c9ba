#include <stdlib.h>

#include "graph_impl.h"

/* Reverse accumulation over the node list. All bookkeeping is per value that existed when differentiation began; the gradient rules only
 * append. */
struct autodiff {
    struct talpa_graph *graph;
    bool *needs;       /* does a wanted value lie at or below this one? */
    talpa_value *grad; /* gradient so far, TP_NONE if nothing arrived yet */
};

/* Lets the node that made `gradient` add `before` to it; false if its op cannot, or if others know the gradient already: it has to come from
 * the rule that is just being applied, whose nodes start at `first_node`, and to be wanted once. */
static bool absorb(struct talpa_graph *graph, talpa_value gradient, talpa_value before, int32_t first_node)
{
    const struct tp_value_info *info = &graph->values[gradient], *earlier = &graph->values[before];
    if (info->producer < first_node || info->output || earlier->producer >= info->producer || !tp_type_equal(&info->type, &earlier->type)) return false;
    struct tp_node *node = &graph->nodes[info->producer];
    const int operand = node->op->addend - 1;
    if (operand < 0 || operand >= node->n_in || node->in[operand] != TP_NONE) return false;
    for (int32_t n = info->producer + 1; n < graph->n_nodes; n++)
        for (int i = 0; i < graph->nodes[n].n_in; i++)
            if (graph->nodes[n].in[i] == gradient) return false;
    node->in[operand] = before;
    return true;
}

static enum talpa_status arrive(struct autodiff *ad, talpa_value value, talpa_value gradient, int32_t first_node, bool is_shared)
{
    const talpa_value before = ad->grad[value];
    if (before == TP_NONE || (!is_shared && absorb(ad->graph, gradient, before, first_node))) {
        ad->grad[value] = gradient;
        return TALPA_OK;
    }
    return talpa_add(&ad->grad[value], ad->graph, ad->grad[value], gradient);
}

static void mark_needs(struct autodiff *ad, const talpa_value *wrt, int n_wrt)
{
    struct talpa_graph *graph = ad->graph;
    for (int i = 0; i < n_wrt; i++) ad->needs[wrt[i]] = true;
    for (int32_t n = 0; n < graph->n_nodes; n++) {
        const struct tp_node *node = &graph->nodes[n];
        bool any = false;
        for (int i = 0; i < node->n_in; i++) any = any || (node->in[i] != TP_NONE && ad->needs[node->in[i]]);
        for (int o = 0; o < node->n_out; o++)
            if (any && graph->values[node->out[o]].type.dtype == TALPA_F32) ad->needs[node->out[o]] = true;
    }
}

static enum talpa_status differentiate(struct autodiff *ad, const struct tp_node *node)
{
    struct talpa_graph *graph = ad->graph;
    talpa_value out_grads[TP_MAX_OUT];
    bool any_out = false, any_in = false;
    for (int o = 0; o < node->n_out; o++) {
        out_grads[o] = ad->grad[node->out[o]];
        any_out = any_out || out_grads[o] != TP_NONE;
    }
    bool *wanted = tp_arena_array(&graph->arena, (size_t)node->n_in + 1, sizeof *wanted);
    talpa_value *in_grads = tp_arena_array(&graph->arena, (size_t)node->n_in + 1, sizeof *in_grads);
    if (!wanted || !in_grads) return TALPA_E_DEVICE;
    for (int i = 0; i < node->n_in; i++) {
        in_grads[i] = TP_NONE;
        wanted[i] = node->in[i] != TP_NONE && ad->needs[node->in[i]];
        any_in = any_in || wanted[i];
    }
    if (!any_out || !any_in) return TALPA_OK;
    if (!node->op->gradient)
        return tp_fail(TALPA_E_ARGUMENT, "%s: no gradient: %s", node->op->name, node->op->no_gradient ? node->op->no_gradient : "not defined");
    tp_graph_set_scope(graph, node->scope);
    const int32_t first_node = graph->n_nodes;
    TP_TRY(node->op->gradient(graph, node, out_grads, wanted, in_grads));
    for (int i = 0; i < node->n_in; i++) {
        if (in_grads[i] == TP_NONE || !wanted[i]) continue;
        bool is_shared = false;
        for (int j = 0; j < node->n_in; j++) is_shared = is_shared || (j != i && in_grads[j] == in_grads[i]);
        TP_TRY(arrive(ad, node->in[i], in_grads[i], first_node, is_shared));
    }
    return TALPA_OK;
}

static enum talpa_status run(struct autodiff *ad, const talpa_value *losses, const talpa_value *seeds, int n_losses, const talpa_value *wrt,
                             int n_wrt, talpa_value *grads)
{
    struct talpa_graph *graph = ad->graph;
    mark_needs(ad, wrt, n_wrt);
    tp_graph_set_backward(graph, true);
    for (int i = 0; i < n_losses; i++) TP_TRY(arrive(ad, losses[i], seeds[i], INT32_MAX, true));
    for (int32_t n = graph->n_nodes - 1; n >= 0; n--) {
        const struct tp_node node = graph->nodes[n]; /* a copy: the array moves as nodes are appended */
        if (node.is_backward || node.phase != TP_PHASE_BATCH) continue;
        TP_TRY(tp_context(differentiate(ad, &node), "gradient of %s at %s", node.op->name, node.scope[0] ? node.scope : "top"));
    }
    for (int i = 0; i < n_wrt; i++) grads[i] = ad->grad[wrt[i]];
    return TALPA_OK;
}

enum talpa_status tp_autodiff(struct talpa_graph *graph, const talpa_value *losses, const talpa_value *seeds, int n_losses,
                              const talpa_value *wrt, int n_wrt, talpa_value *grads)
{
    const int32_t n = graph->n_values;
    const char *scope = graph->scope;
    struct autodiff ad = {.graph = graph, .needs = calloc((size_t)n + 1, sizeof(bool)), .grad = malloc(((size_t)n + 1) * sizeof(talpa_value))};
    enum talpa_status status = tp_fail_memory("gradient", (unsigned long long)n * sizeof(talpa_value));
    if (ad.needs && ad.grad) {
        tp_status_clear();
        for (int32_t i = 0; i < n; i++) ad.grad[i] = TP_NONE;
        status = run(&ad, losses, seeds, n_losses, wrt, n_wrt, grads);
    }
    graph->scope = scope;
    tp_graph_set_backward(graph, false);
    free(ad.needs);
    free(ad.grad);
    return status;
}
