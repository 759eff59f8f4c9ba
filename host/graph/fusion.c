#include "fusion.h"

bool tp_fused_has(const struct tp_fused *fused, int32_t node)
{
    for (int i = 0; i < fused->n_members; i++)
        if (fused->member[i] == node) return true;
    return false;
}

bool tp_fused_add(struct tp_fused *fused, const struct tp_match *match, int32_t node)
{
    if (node < 0 || match->group[node] >= 0 || fused->n_members == TP_FUSED_MAX || tp_fused_has(fused, node)) return false;
    fused->member[fused->n_members++] = node;
    return true;
}

int tp_fused_in(struct tp_fused *fused, talpa_value value)
{
    if (fused->node.n_in < TP_MAX_IN) fused->in[fused->node.n_in] = value;
    return fused->node.n_in++; /* one too many is seen by the plan, which then leaves the group alone */
}

int tp_fused_out(struct tp_fused *fused, talpa_value value)
{
    if (fused->node.n_out < TP_MAX_OUT) fused->node.out[fused->node.n_out] = value;
    return fused->node.n_out++;
}

bool tp_fused_needs(const struct tp_fused *fused, const struct tp_match *match, talpa_value value)
{
    const struct tp_value_info *info = tp_graph_value(match->graph, value);
    if (info->is_output || info->kind == TP_STATE) return true;
    for (int i = 0; i < tp_match_n_readers(match, value); i++)
        if (!tp_fused_has(fused, tp_match_reader(match, value, i))) return true;
    return false;
}

int tp_match_n_readers(const struct tp_match *match, talpa_value value) { return match->first_reader[value + 1] - match->first_reader[value]; }

int32_t tp_match_reader(const struct tp_match *match, talpa_value value, int i) { return match->reader[match->first_reader[value] + i]; }

int32_t tp_match_sole_reader(const struct tp_match *match, talpa_value value)
{
    return tp_match_n_readers(match, value) == 1 && !tp_graph_value(match->graph, value)->is_output ? tp_match_reader(match, value, 0) : -1;
}

int32_t tp_match_next(const struct tp_match *match, const struct tp_op *op, talpa_value value, int operand, int32_t after)
{
    for (int i = 0; i < tp_match_n_readers(match, value); i++) {
        const int32_t n = tp_match_reader(match, value, i);
        const struct tp_node *node = tp_graph_node_at(match->graph, n);
        if (n > after && match->group[n] < 0 && node->op == op && operand < node->n_in && node->in[operand] == value) return n;
    }
    return -1;
}
