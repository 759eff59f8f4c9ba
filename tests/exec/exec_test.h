/* Shared by the tests of host/exec. */
#ifndef EXEC_TEST_H
#define EXEC_TEST_H

#include "base/rng.h"
#include "exec/plan.h"
#include "graph/graph_test.h"

/* A random graph of additions and products h = silu(a) b over [rows, columns] values; every value that nobody reads is an output. */
static inline struct talpa_graph *test_random_graph(uint64_t seed, int n_nodes, int64_t rows, const int64_t *columns, int n_columns)
{
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    talpa_value *pool[4];
    int n[4] = {0};
    uint64_t draw = 0;
    for (int c = 0; c < n_columns; c++) {
        pool[c] = calloc((size_t)n_nodes + 2, sizeof *pool[c]);
        for (int i = 0; i < 2; i++) {
            char name[16];
            snprintf(name, sizeof name, "x%d.%d", c, i);
            pool[c][n[c]++] = test_input(graph, name, rows, columns[c]);
        }
    }
    for (int i = 0; i < n_nodes; i++) {
        const int c = (int)(tp_rng_splitmix64(seed, ++draw) % (uint64_t)n_columns);
        talpa_value in[2], out = TP_NONE;
        for (int k = 0; k < 2; k++) {
            const uint64_t u = tp_rng_splitmix64(seed, ++draw);
            const int back = (int)(u >> 8) % (u % 4 ? (n[c] < 3 ? n[c] : 3) : n[c]); /* mostly recent values, sometimes old ones */
            in[k] = pool[c][n[c] - 1 - (back < 0 ? -back : back)];
        }
        if (tp_rng_splitmix64(seed, ++draw) % 2)
            assert_ok(talpa_add(&out, graph, in[0], in[1]));
        else
            assert_ok(talpa_swiglu(&out, graph, in[0], in[1]));
        pool[c][n[c]++] = out;
    }
    bool *read = calloc((size_t)tp_graph_n_values(graph), sizeof *read);
    for (int32_t i = 0; i < tp_graph_n_nodes(graph); i++)
        for (int k = 0; k < 2; k++) read[tp_graph_node_at(graph, i)->in[k]] = true;
    for (int32_t v = 0; v < tp_graph_n_values(graph); v++)
        if (!read[v]) tp_graph_mark_output(graph, v);
    free(read);
    for (int c = 0; c < n_columns; c++) free(pool[c]);
    return graph;
}

#endif
