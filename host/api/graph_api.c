/* talpa/graph.h: building graphs. */
#include <stdlib.h>
#include <string.h>

#include "api/graph_api.h"
#include "base/status.h"
#include "graph/op.h"

enum talpa_status talpa_graph_create(struct talpa_graph **out) { return tp_graph_create(out); }
void talpa_graph_free(struct talpa_graph *graph) { tp_graph_free(graph); }
void talpa_graph_output(struct talpa_graph *graph, talpa_value value) { tp_graph_mark_output(graph, value); }
void talpa_graph_scope(struct talpa_graph *graph, const char *scope) { tp_graph_set_scope(graph, scope); }
void talpa_graph_print(const struct talpa_graph *graph, FILE *file) { tp_graph_print(graph, file); }

enum tp_step_word tp_api_row_word(enum talpa_rows rows)
{
    return rows == TALPA_ROWS_TOKENS ? TP_STEP_N_TOKENS : rows == TALPA_ROWS_LABELLED ? TP_STEP_N_LABELLED : TP_STEP_NONE;
}

static enum talpa_status check_shape(const char *name, enum talpa_dtype dtype, const struct talpa_shape *shape)
{
    if ((unsigned)dtype >= TALPA_N_DTYPES) return tp_fail(TALPA_E_ARGUMENT, "value '%s': element type %d is unknown", name, (int)dtype);
    if (shape->rank < 1 || shape->rank > TALPA_MAX_RANK)
        return tp_fail(TALPA_E_ARGUMENT, "value '%s': %d dimensions, expected 1 to %d", name, shape->rank, TALPA_MAX_RANK);
    int64_t room = INT64_C(1) << 40;
    for (int d = 0; d < shape->rank; d++) {
        if (shape->dim[d] < 1 || shape->dim[d] > room)
            return tp_fail(TALPA_E_ARGUMENT, "value '%s': dimension %d is %lld, expected at least 1 and 2^40 elements at most", name, d,
                           (long long)shape->dim[d]);
        room /= shape->dim[d];
    }
    return TALPA_OK;
}

enum talpa_status talpa_graph_input(talpa_value *out, struct talpa_graph *graph, const char *name, enum talpa_dtype dtype,
                                    struct talpa_shape shape, enum talpa_rows rows)
{
    TP_TRY(check_shape(name, dtype, &shape));
    return tp_graph_input(graph, out, name, tp_type_make(dtype, tp_api_row_word(rows), shape.rank, shape.dim));
}

enum talpa_status talpa_graph_weight(talpa_value *out, struct talpa_graph *graph, const char *name, enum talpa_dtype dtype,
                                     struct talpa_shape shape)
{
    TP_TRY(check_shape(name, dtype, &shape));
    return tp_graph_weight(graph, out, name, tp_type_make(dtype, TP_STEP_NONE, shape.rank, shape.dim));
}

/* ---- parameters ---- */

void talpa_parameters_free(struct talpa_parameters *parameters)
{
    if (!parameters) return;
    tp_tensor_table_free(&parameters->table);
    free(parameters->values);
    free(parameters);
}

static enum talpa_status declare(struct talpa_parameters *p, struct talpa_graph *graph, const struct talpa_shape *shapes)
{
    int64_t offset = 0;
    for (int i = 0; i < p->n; i++) {
        int64_t elements = 1;
        TP_TRY(check_shape("parameter", TALPA_F32, &shapes[i]));
        for (int d = 0; d < shapes[i].rank; d++) elements *= shapes[i].dim[d];
        TP_TRY(tp_context(tp_tensor_table_add(&p->table, offset, elements, TP_TENSOR_ALWAYS), "parameters"));
        offset = p->table.bank_elements;
    }
    TP_TRY(tp_graph_state(graph, &p->bank, "parameters", tp_type_1d(TALPA_F32, TP_STEP_NONE, offset)));
    for (int i = 0; i < p->n; i++) TP_TRY(talpa_slice(&p->values[i], graph, p->bank, p->table.rows[i * TP_TENSOR_COLUMNS], shapes[i]));
    return TALPA_OK;
}

enum talpa_status talpa_parameters_create(struct talpa_parameters **out, talpa_value *values, struct talpa_graph *graph,
                                          const struct talpa_shape *shapes, int n)
{
    if (n < 1) return tp_fail(TALPA_E_ARGUMENT, "parameters: %d tensors, expected at least 1", n);
    if (tp_graph_find(graph, "parameters") != TALPA_NONE) return tp_fail(TALPA_E_ARGUMENT, "parameters: the graph has a set already");
    struct talpa_parameters *p = calloc(1, sizeof *p);
    if (p) p->values = calloc((size_t)n, sizeof *p->values);
    if (!p || !p->values) {
        free(p);
        return tp_fail_memory("parameters", (unsigned long long)n * sizeof *p->values);
    }
    p->n = n;
    p->tensors = TALPA_NONE;
    const enum talpa_status status = declare(p, graph, shapes);
    if (status != TALPA_OK) {
        talpa_parameters_free(p);
        return status;
    }
    memcpy(values, p->values, (size_t)n * sizeof *values);
    *out = p;
    return TALPA_OK;
}

int64_t talpa_parameters_elements(const struct talpa_parameters *parameters) { return parameters->table.bank_elements; }
int64_t talpa_parameters_offset(const struct talpa_parameters *parameters, int i) { return parameters->table.rows[i * TP_TENSOR_COLUMNS]; }

/* ---- minimising ---- */

static enum talpa_status backward(talpa_value *grads_next, struct talpa_graph *graph, talpa_value loss, const struct talpa_parameters *p,
                                  talpa_value *gradients)
{
    talpa_value seed, bank, grads;
    tp_graph_set_backward(graph, true);
    TP_TRY(talpa_step_scalar(&seed, graph, TP_STEP_ONE, 1.0f));
    TP_TRY(tp_autodiff(graph, &loss, &seed, 1, p->values, p->n, gradients));
    for (int i = 0; i < p->n; i++)
        if (gradients[i] == TALPA_NONE) return tp_fail(TALPA_E_ARGUMENT, "minimise: the loss does not depend on parameter %d", i);
    TP_TRY(talpa_concat(&bank, graph, gradients, p->n));
    TP_TRY(tp_graph_state(graph, &grads, "gradients", tp_type_1d(TALPA_F32, TP_STEP_NONE, p->table.bank_elements)));
    return talpa_accumulate(grads_next, graph, grads, bank);
}

static enum talpa_status update(talpa_value *norm, struct talpa_graph *graph, talpa_value grads, struct talpa_parameters *p,
                                const struct talpa_adamw_options *options)
{
    const struct tp_type bank = tp_type_1d(TALPA_F32, TP_STEP_NONE, p->table.bank_elements);
    talpa_value m, v, selected, counts, clip, next[3];
    TP_TRY(tp_graph_state(graph, &m, "moments.m", bank));
    TP_TRY(tp_graph_state(graph, &v, "moments.v", bank));
    TP_TRY(tp_graph_state(graph, &selected, "selected", tp_type_1d(TALPA_I32, TP_STEP_NONE, TP_CONCAT_ALIGN)));
    TP_TRY(tp_graph_state(graph, &counts, "steps", tp_type_1d(TALPA_I32, TP_STEP_NONE, p->n)));
    TP_TRY(tp_graph_input(graph, &p->tensors, "parameters.table", tp_type_2d(TALPA_I32, TP_STEP_NONE, p->n, TP_TENSOR_COLUMNS)));
    tp_graph_set_phase(graph, TP_PHASE_UPDATE);
    TP_TRY(talpa_grad_norm(norm, &clip, graph, grads, p->tensors));
    TP_TRY(talpa_step_counts(&counts, graph, counts, selected, p->tensors));
    TP_TRY(talpa_adamw(next, graph, p->bank, grads, m, v, counts, selected, p->tensors, clip, options->beta1, options->beta2,
                       options->epsilon));
    tp_graph_mark_output(graph, *norm);
    return TALPA_OK;
}

enum talpa_status talpa_graph_minimise(talpa_value *norm, struct talpa_graph *graph, talpa_value loss, struct talpa_parameters *parameters,
                                       const struct talpa_adamw_options *options)
{
    static const struct talpa_adamw_options usual = {0.9f, 0.999f, 1e-8f};
    talpa_value grads = TALPA_NONE, found = TALPA_NONE;
    talpa_value *gradients = malloc((size_t)parameters->n * sizeof *gradients);
    if (!gradients) return tp_fail_memory("minimise", (unsigned long long)parameters->n * sizeof *gradients);
    tp_graph_set_scope(graph, "minimise");
    tp_graph_mark_output(graph, loss);
    enum talpa_status status = backward(&grads, graph, loss, parameters, gradients);
    tp_graph_set_backward(graph, false);
    free(gradients);
    if (status == TALPA_OK) status = update(&found, graph, grads, parameters, options ? options : &usual);
    tp_graph_set_phase(graph, TP_PHASE_BATCH);
    if (status == TALPA_OK) status = tp_graph_pass_rematerialise(graph);
    if (status == TALPA_OK) *norm = found;
    return status;
}
