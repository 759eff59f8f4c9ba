/* Which nodes are lowered together. The rules of the ops (graph/fusion.h) propose groups; one is taken if
 *   - no member belongs to a group already, and all are in one phase;
 *   - every output that the host, a state or a node outside needs is an output of the group as a whole;
 *   - there is a member at whose place all can run: everything that the group reads is made before it, and everyone else reads after it;
 *   - no node outside that touches a state of the group changes places with it, if one of the two updates that state;
 *   - a variant of the rule applies.
 * Places in the order count groups taken before, so all edges of the graph hold between what is lowered. */
#include <stdlib.h>
#include <string.h>

#include "graph/fusion.h"
#include "plan_impl.h"

struct fuser {
    struct tp_plan *plan;
    struct tp_match match;
    int32_t *first_reader, *reader;
};

static enum talpa_status index_readers(struct fuser *f)
{
    const struct talpa_graph *graph = f->plan->graph;
    const int32_t n_values = tp_graph_n_values(graph), n_nodes = tp_graph_n_nodes(graph);
    size_t n_reads = 0;
    for (int32_t n = 0; n < n_nodes; n++) n_reads += (size_t)tp_graph_node_at(graph, n)->n_in;
    f->first_reader = calloc((size_t)n_values + 2, sizeof *f->first_reader);
    f->reader = calloc(n_reads + 1, sizeof *f->reader);
    if (!f->first_reader || !f->reader) return tp_fail_memory("plan", n_reads * sizeof *f->reader);
    /* Counted at [v + 2], summed to starts at [v + 1], which filling moves to the ends: the starts of v + 1. A node that reads a value
     * twice counts once. */
    for (int fill = 0; fill < 2; fill++) {
        for (int32_t n = 0; n < n_nodes; n++) {
            const struct tp_node *node = tp_graph_node_at(graph, n);
            for (int i = 0; i < node->n_in; i++) {
                bool again = node->in[i] == TP_NONE;
                for (int k = 0; k < i && !again; k++) again = node->in[k] == node->in[i];
                if (again) continue;
                if (fill) f->reader[f->first_reader[node->in[i] + 1]++] = n;
                else f->first_reader[node->in[i] + 2]++;
            }
        }
        for (int32_t v = 0; v < n_values && !fill; v++) f->first_reader[v + 2] += f->first_reader[v + 1];
    }
    return TALPA_OK;
}

static const struct tp_node *member(const struct fuser *f, const struct tp_fused *fused, int i)
{
    return tp_graph_node_at(f->plan->graph, fused->member[i]);
}

static bool is_out(const struct tp_fused *fused, talpa_value value)
{
    for (int o = 0; o < fused->node.n_out; o++)
        if (fused->node.out[o] == value) return true;
    return false;
}

static bool touches(const struct talpa_graph *graph, const struct tp_node *node, talpa_value base, bool updating)
{
    for (int o = 0; o < node->n_out; o++)
        if (node->op->updates[o] && tp_graph_value(graph, node->out[o])->base == base) return true;
    for (int i = 0; i < node->n_in && !updating; i++)
        if (node->in[i] != TP_NONE && tp_graph_value(graph, node->in[i])->base == base) return true;
    return false;
}

/* Whether running the group at node `at` lets a member and a node outside, of which one updates a state that the other uses, change places. */
static bool states_hold(const struct fuser *f, const struct tp_fused *fused, int32_t at)
{
    const struct talpa_graph *graph = f->plan->graph;
    for (int m = 0; m < fused->n_members; m++) {
        const struct tp_node *node = member(f, fused, m);
        for (int i = 0; i < node->n_in; i++) {
            if (node->in[i] == TP_NONE || tp_graph_value(graph, node->in[i])->kind != TP_STATE) continue;
            const talpa_value base = tp_graph_value(graph, node->in[i])->base;
            const bool updates = touches(graph, node, base, true);
            for (int32_t e = 0; e < tp_graph_n_nodes(graph); e++) {
                const struct tp_node *other = tp_graph_node_at(graph, e);
                if (tp_fused_has(fused, e) || other->phase != node->phase || !touches(graph, other, base, !updates)) continue;
                if ((fused->member[m] < e) != (at < tp_plan_position(f->plan, e) % tp_graph_n_nodes(graph))) return false;
            }
        }
    }
    return true;
}

/* The member at whose place the group can run, -1 if there is none. */
static int32_t find_place(const struct fuser *f, const struct tp_fused *fused)
{
    const struct talpa_graph *graph = f->plan->graph;
    const int32_t phase_start = tp_plan_position(f->plan, fused->member[0]) - fused->member[0];
    int32_t ready = -1, limit = INT32_MAX;
    for (int m = 0; m < fused->n_members; m++) {
        const struct tp_node *node = member(f, fused, m);
        for (int i = 0; i < node->n_in; i++) {
            const int32_t producer = node->in[i] == TP_NONE ? -1 : tp_graph_value(graph, node->in[i])->producer;
            if (producer < 0 || tp_fused_has(fused, producer)) continue;
            const int32_t position = tp_plan_position(f->plan, producer) - phase_start;
            if (position > ready) ready = position;
        }
        for (int o = 0; o < node->n_out; o++)
            for (int r = 0; r < tp_match_n_readers(&f->match, node->out[o]); r++) {
                const int32_t reader = tp_match_reader(&f->match, node->out[o], r);
                if (tp_fused_has(fused, reader)) continue;
                const int32_t position = tp_plan_position(f->plan, reader) - phase_start;
                if (position < limit) limit = position;
            }
    }
    for (int m = 0; m < fused->n_members; m++) {
        const int32_t at = fused->member[m];
        if (at > ready && at < limit && states_hold(f, fused, at)) return at;
    }
    return -1;
}

static int by_number(const void *a, const void *b) { return *(const int32_t *)a < *(const int32_t *)b ? -1 : 1; }

static bool is_safe(const struct fuser *f, struct tp_fused *fused)
{
    if (fused->n_members < 2 || fused->node.n_in > TP_MAX_IN || fused->node.n_out > TP_MAX_OUT) return false;
    for (int m = 0; m < fused->n_members; m++) {
        const struct tp_node *node = member(f, fused, m);
        if (node->phase != member(f, fused, 0)->phase || f->match.group[fused->member[m]] >= 0) return false;
        for (int o = 0; o < node->n_out; o++)
            if (!is_out(fused, node->out[o]) && tp_fused_needs(fused, &f->match, node->out[o])) return false;
    }
    fused->at = find_place(f, fused);
    return fused->at >= 0;
}

static enum talpa_status take(struct fuser *f, const struct tp_fused *fused)
{
    struct tp_plan *plan = f->plan;
    struct tp_fused **grown = realloc(plan->fused, ((size_t)plan->n_fused + 1) * sizeof *grown), *own = malloc(sizeof *own);
    if (grown) plan->fused = grown;
    if (!grown || !own) {
        free(own);
        return tp_fail_memory("plan", sizeof *own);
    }
    *own = *fused;
    own->node.in = own->in;
    for (int m = 0; m < own->n_members; m++) {
        const struct tp_node *node = member(f, own, m);
        plan->fused_of[own->member[m]] = plan->n_fused;
        for (int o = 0; o < node->n_out; o++) plan->inner[node->out[o]] = !is_out(own, node->out[o]);
    }
    plan->fused[plan->n_fused++] = own;
    return TALPA_OK;
}

static enum talpa_status try_rules(struct fuser *f, int32_t n)
{
    const struct tp_node *node = tp_graph_node_at(f->plan->graph, n);
    for (int r = 0; r < node->op->n_fusions && f->match.group[n] < 0; r++) {
        const struct tp_fusion *rule = &node->op->fusions[r];
        struct tp_fused fused = {.rule = rule};
        fused.node.in = fused.in;
        if (!rule->match(&fused, &f->match, n)) continue;
        qsort(fused.member, (size_t)fused.n_members, sizeof *fused.member, by_number);
        const struct tp_node *first = member(f, &fused, 0);
        fused.node.op = node->op;
        fused.node.scope = first->scope;
        fused.node.phase = first->phase;
        fused.node.is_backward = first->is_backward;
        struct tp_choice choice;
        if (!is_safe(f, &fused) || !tp_plan_choose(f->plan, &fused.node, fused.at, rule->variants, rule->n_variants, &choice)) continue;
        TP_TRY(take(f, &fused));
    }
    return TALPA_OK;
}

enum talpa_status tp_plan_fuse(struct tp_plan *plan)
{
    const int32_t n_nodes = tp_graph_n_nodes(plan->graph);
    for (int32_t n = 0; n < n_nodes; n++) plan->fused_of[n] = -1;
    if (plan->options.no_fusion) return TALPA_OK;
    struct fuser f = {.plan = plan, .match = {.graph = plan->graph, .caps = &plan->caps, .options = &plan->options, .group = plan->fused_of}};
    enum talpa_status status = index_readers(&f);
    f.match.first_reader = f.first_reader;
    f.match.reader = f.reader;
    for (int32_t n = 0; n < n_nodes && status == TALPA_OK; n++) status = try_rules(&f, n);
    free(f.first_reader);
    free(f.reader);
    return status;
}

const struct tp_node *tp_plan_node(const struct tp_plan *plan, int32_t node)
{
    if (plan->fused_of[node] < 0) return tp_graph_node_at(plan->graph, node);
    const struct tp_fused *fused = plan->fused[plan->fused_of[node]];
    return fused->at == node ? &fused->node : NULL;
}

const char *tp_plan_node_name(const struct tp_plan *plan, int32_t node)
{
    return plan->fused_of[node] < 0 ? tp_graph_node_at(plan->graph, node)->op->name : plan->fused[plan->fused_of[node]]->rule->name;
}
