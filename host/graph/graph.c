#include "graph.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "graph_impl.h"

static bool reserve(void **items, int32_t *room, int32_t needed, size_t item_bytes)
{
    if (needed <= *room) return true;
    const int32_t next = *room ? *room * 2 : 256;
    void *grown = realloc(*items, (size_t)next * item_bytes);
    if (!grown) return false;
    *items = grown;
    *room = next;
    return true;
}

enum talpa_status tp_graph_create(struct talpa_graph **out)
{
    struct talpa_graph *graph = calloc(1, sizeof *graph);
    if (!graph) return tp_fail_memory("graph", sizeof *graph);
    graph->scope = "";
    *out = graph;
    return TALPA_OK;
}

void tp_graph_free(struct talpa_graph *graph)
{
    if (!graph) return;
    tp_arena_free(&graph->arena);
    tp_map_free(&graph->names);
    free(graph->values);
    free(graph->nodes);
    free(graph);
}

/* ---- types ---- */

struct tp_type tp_type_make(enum talpa_dtype dtype, enum tp_step_word rows, int rank, const int64_t *dim)
{
    struct tp_type type = {.dtype = dtype, .shape = {.rank = rank}, .rows = rows};
    for (int i = 0; i < rank; i++) type.shape.dim[i] = dim[i];
    return type;
}

struct tp_type tp_type_1d(enum talpa_dtype dtype, enum tp_step_word rows, int64_t n) { return tp_type_make(dtype, rows, 1, &n); }

struct tp_type tp_type_2d(enum talpa_dtype dtype, enum tp_step_word rows, int64_t n, int64_t m)
{
    return tp_type_make(dtype, rows, 2, (const int64_t[]){n, m});
}

int64_t tp_type_elements(const struct tp_type *type)
{
    int64_t n = 1;
    for (int i = 0; i < type->shape.rank; i++) n *= type->shape.dim[i];
    return n;
}

size_t tp_type_bytes(const struct tp_type *type) { return tp_dtype_bytes(type->dtype, tp_type_elements(type)); }

bool tp_type_equal(const struct tp_type *a, const struct tp_type *b)
{
    if (a->dtype != b->dtype || a->rows != b->rows || a->shape.rank != b->shape.rank) return false;
    for (int i = 0; i < a->shape.rank; i++)
        if (a->shape.dim[i] != b->shape.dim[i]) return false;
    return true;
}

/* ---- values ---- */

talpa_value tp_graph_append_value(struct talpa_graph *graph, struct tp_value_info info)
{
    if (!reserve((void **)&graph->values, &graph->value_room, graph->n_values + 1, sizeof *graph->values)) return TP_NONE;
    const talpa_value value = graph->n_values++;
    graph->values[value] = info;
    if (info.base == TP_NONE) graph->values[value].base = value;
    return value;
}

static enum talpa_status leaf(struct talpa_graph *graph, talpa_value *out, const char *name, struct tp_type type, enum tp_value_kind kind)
{
    int64_t present;
    if (tp_map_get_string(&present, &graph->names, name)) {
        const struct tp_value_info *info = &graph->values[present];
        if (info->kind != kind || !tp_type_equal(&info->type, &type))
            return tp_fail(TALPA_E_INTERNAL, "graph: value '%s' exists with another kind or type", name);
        *out = (talpa_value)present;
        return TALPA_OK;
    }
    for (int i = 0; i < type.shape.rank; i++)
        if (type.shape.dim[i] < 1) return tp_fail(TALPA_E_ARGUMENT, "graph: value '%s' has an empty dimension %d", name, i);
    const char *copy = tp_arena_strdup(&graph->arena, name);
    if (!copy) return TALPA_E_DEVICE;
    const talpa_value value =
        tp_graph_append_value(graph, (struct tp_value_info){.kind = kind, .type = type, .name = copy, .producer = -1, .base = TP_NONE});
    if (value == TP_NONE) return tp_fail_memory("graph", sizeof(struct tp_value_info));
    TP_TRY(tp_map_put_string(&graph->names, copy, value));
    *out = value;
    return TALPA_OK;
}

enum talpa_status tp_graph_input(struct talpa_graph *graph, talpa_value *out, const char *name, struct tp_type type)
{
    return leaf(graph, out, name, type, TP_INPUT);
}

enum talpa_status tp_graph_weight(struct talpa_graph *graph, talpa_value *out, const char *name, struct tp_type type)
{
    return leaf(graph, out, name, type, TP_WEIGHT);
}

enum talpa_status tp_graph_state(struct talpa_graph *graph, talpa_value *out, const char *name, struct tp_type type)
{
    return leaf(graph, out, name, type, TP_STATE);
}

talpa_value tp_graph_root_state(const struct talpa_graph *graph, talpa_value value)
{
    while (graph->values[value].kind == TP_TEMP) {
        const struct tp_node *node = &graph->nodes[graph->values[value].producer];
        if (!(node->op->flags & TP_OP_VIEW)) return TP_NONE;
        value = node->in[0];
    }
    return graph->values[value].kind == TP_STATE ? value : TP_NONE;
}

/* ---- nodes ---- */

static enum talpa_status infer(struct talpa_graph *graph, struct tp_infer *request, const struct tp_op *op, const talpa_value *in, int n_in,
                               const struct tp_attrs *attrs)
{
    const struct tp_type **types = tp_arena_array(&graph->arena, (size_t)(n_in > 0 ? n_in : 1), sizeof *types);
    if (!types) return TALPA_E_DEVICE;
    for (int i = 0; i < n_in; i++) {
        if (in[i] != TP_NONE && (in[i] < 0 || in[i] >= graph->n_values))
            return tp_fail(TALPA_E_ARGUMENT, "%s: operand %d is no value of this graph", op->name, i);
        types[i] = in[i] == TP_NONE ? NULL : &graph->values[in[i]].type;
    }
    *request = (struct tp_infer){.op = op, .in = types, .n_in = n_in, .attrs = attrs};
    TP_TRY(op->infer(request));
    for (int o = 0; o < request->n_out; o++) {
        if (!op->updates[o]) continue;
        const int i = op->updates[o] - 1;
        if (tp_graph_root_state(graph, in[i]) != in[i])
            return tp_fail(TALPA_E_ARGUMENT, "%s: operand %d is no state, only a state can be updated", op->name, i);
    }
    return TALPA_OK;
}

enum talpa_status tp_graph_node(struct talpa_graph *graph, const struct tp_op *op, const talpa_value *in, int n_in, const struct tp_attrs *attrs,
                                talpa_value *out)
{
    static const struct tp_attrs no_attrs;
    struct tp_infer request;
    const enum talpa_status status = infer(graph, &request, op, in, n_in, attrs ? attrs : &no_attrs);
    if (status != TALPA_OK) return graph->scope[0] ? tp_context(status, "%s", graph->scope) : status;

    struct tp_node node = {.op = op,
                           .in = tp_arena_array(&graph->arena, (size_t)(n_in > 0 ? n_in : 1), sizeof *in),
                           .n_in = n_in,
                           .n_out = request.n_out,
                           .attrs = attrs ? *attrs : no_attrs,
                           .scope = graph->scope,
                           .phase = graph->phase,
                           .is_backward = graph->is_backward};
    if (!node.in) return TALPA_E_DEVICE;
    if (n_in) memcpy(node.in, in, (size_t)n_in * sizeof *in);
    if (!reserve((void **)&graph->nodes, &graph->node_room, graph->n_nodes + 1, sizeof *graph->nodes) ||
        !reserve((void **)&graph->values, &graph->value_room, graph->n_values + TP_MAX_OUT, sizeof *graph->values))
        return tp_fail_memory("graph", sizeof node);
    for (int o = 0; o < request.n_out; o++) {
        struct tp_value_info info = {.kind = TP_TEMP, .type = request.out[o], .producer = graph->n_nodes, .output = o, .base = TP_NONE};
        if (op->updates[o]) {
            const struct tp_value_info *old = &graph->values[in[op->updates[o] - 1]];
            info.kind = TP_STATE;
            info.name = old->name;
            info.base = old->base;
            info.version = old->version + 1;
        }
        node.out[o] = tp_graph_append_value(graph, info);
        if (info.name) TP_TRY(tp_map_put_string(&graph->names, info.name, node.out[o]));
        out[o] = node.out[o];
    }
    graph->nodes[graph->n_nodes++] = node;
    return TALPA_OK;
}

void tp_graph_set_scope(struct talpa_graph *graph, const char *scope)
{
    const char *copy = scope && scope[0] ? tp_arena_strdup(&graph->arena, scope) : "";
    graph->scope = copy ? copy : "";
}

const char *tp_graph_scope(const struct talpa_graph *graph) { return graph->scope; }
void tp_graph_set_phase(struct talpa_graph *graph, enum tp_phase phase) { graph->phase = phase; }
void tp_graph_set_backward(struct talpa_graph *graph, bool is_backward) { graph->is_backward = is_backward; }
void tp_graph_mark_output(struct talpa_graph *graph, talpa_value value) { graph->values[value].is_output = true; }

bool tp_graph_is_read(const struct talpa_graph *graph, talpa_value value)
{
    if (graph->values[value].is_output) return true;
    for (int32_t n = 0; n < graph->n_nodes; n++)
        for (int i = 0; i < graph->nodes[n].n_in; i++)
            if (graph->nodes[n].in[i] == value) return true;
    return false;
}

enum talpa_status tp_graph_name(struct talpa_graph *graph, talpa_value value, const char *name)
{
    const char *copy = tp_arena_strdup(&graph->arena, name);
    if (!copy) return TALPA_E_DEVICE;
    int64_t present;
    if (tp_map_get_string(&present, &graph->names, name)) return tp_fail(TALPA_E_INTERNAL, "graph: a value '%s' exists already", name);
    TP_TRY(tp_map_put_string(&graph->names, copy, value));
    graph->values[value].name = copy;
    return TALPA_OK;
}

talpa_value tp_graph_find(const struct talpa_graph *graph, const char *name)
{
    int64_t value;
    return tp_map_get_string(&value, &graph->names, name) ? (talpa_value)value : TP_NONE;
}

int32_t tp_graph_n_values(const struct talpa_graph *graph) { return graph->n_values; }
int32_t tp_graph_n_nodes(const struct talpa_graph *graph) { return graph->n_nodes; }
const struct tp_value_info *tp_graph_value(const struct talpa_graph *graph, talpa_value value) { return &graph->values[value]; }
const struct tp_type *tp_graph_type(const struct talpa_graph *graph, talpa_value value) { return &graph->values[value].type; }
const struct tp_node *tp_graph_node_at(const struct talpa_graph *graph, int32_t node) { return &graph->nodes[node]; }

const struct tp_op *tp_op_find(const char *name)
{
    for (size_t i = 0; i < tp_n_ops; i++)
        if (!strcmp(tp_ops[i]->name, name)) return tp_ops[i];
    return NULL;
}

/* ---- help for `infer` ---- */

static const char *operand_name(const struct tp_infer *infer, int operand)
{
    const char *name = operand < TP_CASE_MAX_IN ? infer->op->in_names[operand] : NULL;
    return name ? name : "";
}

enum talpa_status tp_infer_fail(const struct tp_infer *request, int operand, const char *expected_format, ...)
{
    char expected[256], found[128] = "missing";
    va_list list;
    va_start(list, expected_format);
    vsnprintf(expected, sizeof expected, expected_format, list);
    va_end(list);
    const struct tp_type *type = operand < request->n_in ? request->in[operand] : NULL;
    if (type) {
        int n = snprintf(found, sizeof found, "%s [", tp_dtype_name(type->dtype));
        for (int i = 0; i < type->shape.rank; i++)
            n += snprintf(found + n, sizeof found - (size_t)n, "%s%lld", i ? ", " : "", (long long)type->shape.dim[i]);
        snprintf(found + n, sizeof found - (size_t)n, "]");
    }
    return tp_fail(TALPA_E_ARGUMENT, "%s: operand %d (%s) is %s, expected %s", request->op->name, operand, operand_name(request, operand), found,
                   expected);
}

enum talpa_status tp_infer_expect(const struct tp_infer *request, int operand, int rank, enum talpa_dtype dtype)
{
    const struct tp_type *type = operand < request->n_in ? request->in[operand] : NULL;
    if (!type) return tp_infer_fail(request, operand, "a value");
    if (rank && type->shape.rank != rank) return tp_infer_fail(request, operand, "%d dimension(s)", rank);
    if (dtype != TALPA_N_DTYPES && type->dtype != dtype) return tp_infer_fail(request, operand, "%s", tp_dtype_name(dtype));
    return TALPA_OK;
}
