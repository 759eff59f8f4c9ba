/* What the two halves of talpa/graph.h share. */
#ifndef TP_GRAPH_API_H
#define TP_GRAPH_API_H

#include "graph/graph.h"
#include "ops/tensor_table.h"
#include "talpa/graph.h"

struct talpa_parameters {
    struct tp_tensor_table table; /* one row per tensor */
    talpa_value *values;          /* [n] slices of the bank */
    int n;
    talpa_value bank;             /* state "parameters" */
    talpa_value tensors;          /* input with the table, TALPA_NONE before talpa_graph_minimise */
};

/** The step word that holds a run-time number of rows. */
enum tp_step_word tp_api_row_word(enum talpa_rows rows);

#endif
