/* The graph: typed values in single assignment, nodes in execution order. No device, no layout, no OpenCL.
 *
 * Kinds of value
 *   input   written by the host before a run (token ids, positions, rows)
 *   weight  frozen; found by name in the store when a plan is prepared
 *   state   persistent between runs (parameters, moments, accumulators), shared by name between graphs; a node that updates a state
 *           yields its next version, and nothing may read an older version afterwards
 *   temp    output of a node
 * A type's `rows` names the step word that holds the run-time size of dimension 0; the shape then holds its upper bound.
 * Nodes belong to a phase: phase 0 runs for every micro-batch, phase 1 once per optimizer step. Only states cross phases. */
#ifndef TP_GRAPH_H
#define TP_GRAPH_H

#include <stdio.h>

#include "base/status.h"
#include "graph/step.h"
#include "talpa/ops.h"



enum { TP_NONE = -1, TP_MAX_OUT = 4, TP_MAX_ATTR_I = 8, TP_MAX_ATTR_F = 4, TP_N_PHASES = 2 };
enum tp_phase { TP_PHASE_BATCH = 0, TP_PHASE_UPDATE = 1 };
enum tp_value_kind { TP_INPUT, TP_WEIGHT, TP_STATE, TP_TEMP };

struct tp_type {
    enum talpa_dtype dtype;
    struct talpa_shape shape;
    enum tp_step_word rows; /* TP_STEP_NONE: dimension 0 is exact */
};

/** Attributes of a node; the op's descriptor names the slots. */
struct tp_attrs {
    int64_t i[TP_MAX_ATTR_I];
    double f[TP_MAX_ATTR_F];
    uint64_t key; /* random stream (hash of a stable module name), 0 = none */
};

struct tp_value_info {
    enum tp_value_kind kind;
    struct tp_type type;
    const char *name;   /* inputs, weights, states: unique; temps: may be NULL */
    int32_t producer;   /* node, or -1 */
    int32_t output;     /* output number of the producer */
    int32_t version;    /* states: 0, 1, ... */
    talpa_value base;      /* states: version 0 of the same state; else the value itself */
    bool is_output;     /* the host reads it after a run */
};

struct tp_op;

struct tp_node {
    const struct tp_op *op;
    talpa_value *in;
    int n_in;
    talpa_value out[TP_MAX_OUT];
    int n_out;
    struct tp_attrs attrs;
    const char *scope; /* where in the model ("layers.3.q_proj"), for messages and profiles; never NULL */
    enum tp_phase phase;
    bool is_backward;
};

struct talpa_graph;

/** Creates an empty graph. The caller owns it; everything in it is freed with it. */
enum talpa_status tp_graph_create(struct talpa_graph **out);
void tp_graph_free(struct talpa_graph *graph);

struct tp_type tp_type_make(enum talpa_dtype dtype, enum tp_step_word rows, int rank, const int64_t *dim);
/** 1-D and 2-D shorthands. */
struct tp_type tp_type_1d(enum talpa_dtype dtype, enum tp_step_word rows, int64_t n);
struct tp_type tp_type_2d(enum talpa_dtype dtype, enum tp_step_word rows, int64_t n, int64_t m);
int64_t tp_type_elements(const struct tp_type *type); /* at the bound */
size_t tp_type_bytes(const struct tp_type *type);     /* at the bound, row-major */
bool tp_type_equal(const struct tp_type *a, const struct tp_type *b);

/** Leaves. Names are copied; a second leaf of the same name is a TALPA_E_INTERNAL failure, except that asking again for the same
 *  kind, name and type returns the present value (its latest version, for a state). */
enum talpa_status tp_graph_input(struct talpa_graph *graph, talpa_value *out, const char *name, struct tp_type type);
enum talpa_status tp_graph_weight(struct talpa_graph *graph, talpa_value *out, const char *name, struct tp_type type);
enum talpa_status tp_graph_state(struct talpa_graph *graph, talpa_value *out, const char *name, struct tp_type type);

/** Appends a node: runs the op's `infer`, creates its outputs (`out` gets n_out values). Failure leaves the graph unchanged and
 *  names the scope, the op and the offending operand. `attrs` may be NULL (all zero). */
enum talpa_status tp_graph_node(struct talpa_graph *graph, const struct tp_op *op, const talpa_value *in, int n_in, const struct tp_attrs *attrs,
                                talpa_value *out);

/** Scope, phase and backward mark given to the nodes appended from now on. The scope string is copied; NULL means "". */
void tp_graph_set_scope(struct talpa_graph *graph, const char *scope);
const char *tp_graph_scope(const struct talpa_graph *graph);
void tp_graph_set_phase(struct talpa_graph *graph, enum tp_phase phase);
void tp_graph_set_backward(struct talpa_graph *graph, bool is_backward);

/** Marks a value as read by the host: its storage keeps the value until the next run. */
void tp_graph_mark_output(struct talpa_graph *graph, talpa_value value);
/** Whether the host or a node reads the value. Walks over all nodes. */
bool tp_graph_is_read(const struct talpa_graph *graph, talpa_value value);
/** Names a temp (so that hosts and dumps can find it). Copied. */
enum talpa_status tp_graph_name(struct talpa_graph *graph, talpa_value value, const char *name);
/** Finds a value by name (latest version of a state), TP_NONE if absent. */
talpa_value tp_graph_find(const struct talpa_graph *graph, const char *name);

int32_t tp_graph_n_values(const struct talpa_graph *graph);
int32_t tp_graph_n_nodes(const struct talpa_graph *graph);
const struct tp_value_info *tp_graph_value(const struct talpa_graph *graph, talpa_value value);
const struct tp_type *tp_graph_type(const struct talpa_graph *graph, talpa_value value);
/** Borrowed, valid until the next node is appended. */
const struct tp_node *tp_graph_node_at(const struct talpa_graph *graph, int32_t node);

/** Appends the gradient of sum_i <seeds[i], losses[i]> with respect to `wrt[j]` and returns it in grads[j] (TP_NONE if nothing flows).
 *  seeds[i] has the type of losses[i]. Nodes that do not lie between wrt and losses are not differentiated.
 *  TALPA_E_ARGUMENT, with the op's written reason, if an op on the way has no gradient. */
enum talpa_status tp_autodiff(struct talpa_graph *graph, const talpa_value *losses, const talpa_value *seeds, int n_losses, const talpa_value *wrt,
                              int n_wrt, talpa_value *grads);

/** Checks what `infer` cannot see: reading an old version of a state, temps crossing phases, dangling outputs. */
enum talpa_status tp_graph_verify(const struct talpa_graph *graph);

/** Recomputes cheap forward values (ops flagged TP_OP_CHEAP) in the backward part instead of keeping them: rewrites the node list. */
enum talpa_status tp_graph_pass_rematerialise(struct talpa_graph *graph);

/** Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of the forward values up to the last of `boundaries` only the boundaries,
 *  outputs and states are kept for the backward part; it computes the others again, each stretch between two boundaries just before its own
 *  backward part. A node that updates a state is never repeated, so counts stay right. The gradients have the same bits as without.
 *  Boundaries are temps of the forward part in any order, typically the residual stream after each layer. Run it before rematerialise. */
enum talpa_status tp_graph_pass_checkpoint(struct talpa_graph *graph, const talpa_value *boundaries, int n_boundaries);

/** Prints the graph as text, one line per value or node, the same bytes on every device. `print` receives pieces of text. */
void tp_graph_print(const struct talpa_graph *graph, FILE *file);

#endif
