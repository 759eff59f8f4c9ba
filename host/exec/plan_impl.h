/* The insides of making a plan, for the files of host/exec/ only. */
#ifndef TP_PLAN_IMPL_H
#define TP_PLAN_IMPL_H

#include "exec/plan.h"

/** Layouts chosen for the operands of a node. While values are settled, `may_in` is what an input may come in instead of row, `out` what the
 *  variant offers, and `both` says that it can make row too. */
struct tp_choice {
    enum tp_layout in[TP_MAX_IN], out[TP_MAX_OUT], also[TP_MAX_OUT];
    enum tp_layout may_in[TP_MAX_IN];
    bool both[TP_MAX_OUT];
};

/** The first of the variants whose tier is allowed and that takes the node, with the layouts it wants; NULL if there is none. */
const struct tp_variant *tp_plan_choose(const struct tp_plan *plan, const struct tp_node *node, int32_t node_index,
                                        const struct tp_variant *variants, int n_variants, struct tp_choice *choice);

/** fuse.c: finds the groups of a plan: fills fused, fused_of, inner. */
enum talpa_status tp_plan_fuse(struct tp_plan *plan);

#endif
