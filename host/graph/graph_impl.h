/* The insides of a graph, for the files of host/graph/ only. */
#ifndef TP_GRAPH_IMPL_H
#define TP_GRAPH_IMPL_H

#include "base/arena.h"
#include "base/map.h"
#include "graph/op.h"

struct talpa_graph {
    struct tp_arena arena;
    struct tp_value_info *values;
    int32_t n_values, value_room;
    struct tp_node *nodes;
    int32_t n_nodes, node_room;
    struct tp_map names; /* name -> value (latest version of a state) */
    const char *scope;
    enum tp_phase phase;
    bool is_backward;
};

/** Appends a value; TP_NONE if out of memory. */
talpa_value tp_graph_append_value(struct talpa_graph *graph, struct tp_value_info info);

/** The state that `value` is (a view of), as one of its versions, or TP_NONE. */
talpa_value tp_graph_root_state(const struct talpa_graph *graph, talpa_value value);

#endif
