/* Fusion: a few nodes that a plan lowers as one. Values between them that nobody else reads are then never stored.
 *
 * A rule stands in the descriptor of one op of the pattern (tp_op.fusions) and has two parts: `match` finds the other nodes around one of
 * that op and says what the group looks like from outside, as if it were a single node; the variants lower that node with the means of any
 * op (operands tp_in(i) and tp_out(o) count the group's inputs and outputs). host/exec/fuse.c asks the rules in the order of the graph
 * and takes a group only if it is safe (see there): a rule need not check who else reads a value or what runs in between.
 * Results of a group are those of its nodes one by one, bit for bit, unless the rule states a bound; tests compare the two
 * (tp_plan_options.no_fusion, TALPA_FUSION=off). */
#ifndef TP_FUSION_H
#define TP_FUSION_H

#include "graph/op.h"

enum { TP_FUSED_MAX = 12 };

/** A group. Owned by the plan; `node.in` points to `in`. */
struct tp_fused {
    const struct tp_fusion *rule;
    int32_t member[TP_FUSED_MAX]; /* nodes of the graph, ascending once the plan took it */
    int n_members;
    int32_t at;                   /* the member at whose place in the order all run */
    talpa_value in[TP_MAX_IN];
    struct tp_node node;          /* the group from outside: in, out, attrs; op, scope and phase of the first member */
};

/** What a rule may look at while matching. */
struct tp_match {
    const struct talpa_graph *graph;
    const struct talpa_device_caps *caps;
    const struct tp_plan_options *options;
    const int32_t *first_reader, *reader; /* nodes that read value v: reader[first_reader[v]] to reader[first_reader[v + 1]], ascending */
    const int32_t *group;                 /* per node: group that has it, -1: free */
};

struct tp_fusion {
    const char *name; /* "rope+rope": for prints */
    /** Fills members and `node` (in, n_in, out, n_out, attrs) of an empty group around node `at`; false if the pattern is not there. Outputs
     *  left out of node.out are not stored. */
    bool (*match)(struct tp_fused *fused, const struct tp_match *match, int32_t at);
    const struct tp_variant *variants; /* the first whose tier is allowed and that applies; none: the group is not taken */
    int n_variants;
    /** Outputs may take over the storage that their own ops allow (tp_op.inplace): only if no work-group reads, of that input, what another
     *  one writes. */
    bool inplace;
};

/** Adds a node to the group; false if it belongs to a group already or there is no room. */
bool tp_fused_add(struct tp_fused *fused, const struct tp_match *match, int32_t node);
bool tp_fused_has(const struct tp_fused *fused, int32_t node);
/** Appends an input (which may be TP_NONE) or an output of the group; returns its number. */
int tp_fused_in(struct tp_fused *fused, talpa_value value);
int tp_fused_out(struct tp_fused *fused, talpa_value value);
/** Whether the value has to be stored: the host reads it, it is a state, or a node outside the group reads it. */
bool tp_fused_needs(const struct tp_fused *fused, const struct tp_match *match, talpa_value value);

/** Number of nodes that read the value, and one of them. */
int tp_match_n_readers(const struct tp_match *match, talpa_value value);
int32_t tp_match_reader(const struct tp_match *match, talpa_value value, int i);
/** The only node that reads the value, -1 if there are more or none, or if the host reads it as well. */
int32_t tp_match_sole_reader(const struct tp_match *match, talpa_value value);
/** The first free node after `after` that has op `op` and reads `value` as operand `operand`, -1 if there is none. */
int32_t tp_match_next(const struct tp_match *match, const struct tp_op *op, talpa_value value, int operand, int32_t after);

#endif
