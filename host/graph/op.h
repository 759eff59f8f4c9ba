/* The op descriptor: all that the graph, the plan, the tests and the benchmark know about an op. One `const struct tp_op tp_op_<name>` per
 * op in host/ops/; the table of all ops is generated from those files. No other list exists. */
#ifndef TP_OP_H
#define TP_OP_H

#include "graph/graph.h"
#include "graph/launch.h"

/** Input of `infer`, filled by the graph; outputs are written by the op. */
struct tp_infer {
    const struct tp_op *op;
    const struct tp_type *const *in; /* NULL for an omitted optional input */
    int n_in;
    const struct tp_attrs *attrs;
    struct tp_type out[TP_MAX_OUT];
    int n_out;
};

/** Refusal of an operand: "operand 1 (b) is [8, 512] f32, expected ...". Returns TALPA_E_ARGUMENT. */
enum talpa_status tp_infer_fail(const struct tp_infer *infer, int operand, const char *expected_format, ...)
    __attribute__((format(printf, 3, 4)));
/** Checks rank and dtype of an operand (rank 0: any; dtype TALPA_N_DTYPES: any), and that it is present. */
enum talpa_status tp_infer_expect(const struct tp_infer *infer, int operand, int rank, enum talpa_dtype dtype);

/** One way to run an op. Variants of an op are listed best tier first; the first one whose tier is allowed and that applies is taken.
 *  The last one must be "generic" with applies == NULL: complete and right for everything that `infer` accepts. */
struct tp_variant {
    const char *tier; /* the folder of its kernels; host/exec/tier.c lists them and says which devices they are for */
    bool (*applies)(const struct tp_lower *lower); /* shapes and options that it takes, NULL: all; layouts are not yet chosen when it is called */
    /** Layouts that it wants of its inputs and makes of its outputs; both arrays come preset to row. NULL: all row. */
    void (*layouts)(const struct tp_lower *lower, enum tp_layout *in, enum tp_layout *out);
    enum talpa_status (*lower)(struct tp_lower *lower);
};

enum tp_op_flags {
    TP_OP_CHEAP = 1,   /* cheaper to recompute in the backward part than to keep */
    TP_OP_VIEW = 2,    /* output 0 is part of input 0's storage, at element offset attrs.i[0]; no launch */
    TP_OP_CONCAT = 4,  /* output 0 is laid out as its inputs one after the other, each at a multiple of TP_CONCAT_ALIGN elements; no launch */
};
enum { TP_CONCAT_ALIGN = 256 };

/* ---- cases: what the conformance check, the tests and the benchmark run ---- */

enum tp_gen {
    TP_GEN_NORMAL,      /* scale * N(0,1) */
    TP_GEN_UNIFORM,     /* scale * U(0,1) */
    TP_GEN_PROBABILITY, /* every row a softmax of scale * N(0,1) */
    TP_GEN_INDEX,       /* i32, uniform in [0, scale) */
    TP_GEN_ASCENDING,   /* i32, distinct ascending, below scale */
    TP_GEN_SELECT,      /* i32, 0 or 1 with probability scale of 1 */
    TP_GEN_POSITIONS,   /* i32 [T]: positions inside the case's segments */
    TP_GEN_SEGMENTS,    /* i32 [T, 2]: first row and end row (exclusive) of the segment that each row belongs to */
    TP_GEN_ZERO,
    TP_GEN_ONE
};

enum { TP_CASE_MAX_IN = 12, TP_MAX_IN = 20 /* of a group of nodes (fusion.h) */ };

struct tp_fusion;

struct tp_case_input {
    enum talpa_dtype dtype;
    enum tp_value_kind kind; /* TP_INPUT (also for activations), TP_WEIGHT or TP_STATE */
    enum tp_gen gen;
    double scale;
    enum tp_step_word rows;
    int64_t dim[TALPA_MAX_RANK]; /* trailing zeros end the shape; dim[0] == 0: the optional input is omitted */
    bool grad;                   /* check the gradient by finite differences */
};

struct tp_case {
    const char *name;
    struct tp_case_input in[TP_CASE_MAX_IN];
    int n_in;
    struct tp_attrs attrs;
    uint32_t n_tokens, n_labelled, micro; /* run-time sizes and micro-batch index; 0 means the bound */
    uint32_t segment_length;              /* for TP_GEN_SEGMENTS and POSITIONS: rows per segment (the last may be shorter), 0 = one segment */
    double tolerance;                     /* bound on |got - want| / (1 + |want|) per element; 0 = 1e-5 */
    double grad_tolerance;                /* bound on |got - want| / (max |want| of the tensor + 1e-3); 0 = 1e-3 */
    bool sparse;                          /* run with TP_DISPATCH_SPARSE */
    void (*prepare)(double *const *in);   /* optional: adjusts generated inputs so that they are consistent with each other */
};

/** The naive double-precision answer. Types hold run-time sizes in dimension 0 (not bounds); omitted inputs are NULL. Integers come as
 *  doubles, quantised and half values dequantised. Every output is filled. `step` are the raw step words. */
struct tp_reference {
    const struct tp_attrs *attrs;
    const struct tp_type *in_type;
    const double *const *in;
    int n_in;
    const struct tp_type *out_type;
    double *const *out;
    int n_out;
    const struct tp_step *step;
};

struct tp_op {
    const char *name;
    const char *in_names[TP_CASE_MAX_IN]; /* for messages and printing; a trailing "?" marks an optional input */
    const char *attr_i[TP_MAX_ATTR_I];    /* names of the integer attributes in use */
    const char *attr_f[TP_MAX_ATTR_F];
    unsigned flags;
    enum talpa_status (*infer)(struct tp_infer *infer);
    /** Appends nodes that compute in_grads[i] for the inputs with wanted[i]; in_grads comes preset to TP_NONE, out_grads[o] may be TP_NONE
     *  (nothing flows into that output). NULL: `no_gradient` says why. */
    enum talpa_status (*gradient)(struct talpa_graph *graph, const struct tp_node *node, const talpa_value *out_grads, const bool *wanted,
                                  talpa_value *in_grads);
    const char *no_gradient;
    const struct tp_variant *variants;
    int n_variants;
    void (*cost)(const struct talpa_graph *graph, const struct tp_node *node, double *flops, double *bytes);
    /** 1 + the input whose storage output o may take over if nobody reads that input later; 0 = none. */
    int8_t inplace[TP_MAX_OUT];
    /** 1 + the optional input that is added to output 0 and has its type; 0 = none. Autodiff gives a node that makes a gradient what has
     *  arrived at that value already, so that their sum takes no node of its own. */
    int8_t addend;
    /** 1 + the state input that output o is the next version of; 0 = none. */
    int8_t updates[TP_MAX_OUT];
    /** Output o has no defined contents of its own (saved for the gradient in a form that variants choose): references skip it. */
    bool opaque[TP_MAX_OUT];
    /** Output o is made for the gradient alone: nothing is differentiated through it, and where nobody reads it (tp_graph_is_read) it has
     *  no storage, and `lower` must not touch it. */
    bool for_gradient[TP_MAX_OUT];
    /** Groups that start from a node of this op, best first (graph/fusion.h). */
    const struct tp_fusion *fusions;
    int n_fusions;
    /** On a matrix tier, values that the op makes itself, or weights in some layouts only, are rounded to bf16: the check of those tiers
     *  allows it 2^-8. */
    bool rounds_inside;
    const struct tp_case *cases;
    int n_cases;
    void (*reference)(const struct tp_reference *reference);
};

/** Generated at build from host/ops/ (every `const struct tp_op tp_op_<name>`), in alphabetical order. */
extern const struct tp_op *const tp_ops[];
extern const size_t tp_n_ops;

/** NULL if there is none of that name. */
const struct tp_op *tp_op_find(const char *name);

#endif
