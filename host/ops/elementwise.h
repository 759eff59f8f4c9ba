/* Launch shapes shared by ops that work element by element or row by row. */
#ifndef TP_ELEMENTWISE_H
#define TP_ELEMENTWISE_H

#include "graph/op.h"

/** Largest power of two that is neither above `wanted` nor above the device's group size. */
size_t tp_elementwise_local(const struct tp_lower *lower, size_t wanted);

/** Sets the launch to at least `n` work-items in one dimension, in groups of at most 64. */
void tp_elementwise_groups(const struct tp_lower *lower, struct tp_launch *launch, int64_t n);

/** Begins the kernel of the node's op, of the op's name, that works with one work-item per row of input 0. Its arguments so far: step buffer,
 *  rows of input 0, the inputs (an absent one: input 0) and outputs, elements per row; the caller adds its own. Cost: `flops` per element
 *  and every input and output moved once. */
struct tp_launch *tp_row_launch(struct tp_lower *lower, const char *source, double flops);

/** cpu tier: number of groups that share `n_elements` of light work, at least 1, at most 32. */
uint32_t tp_elementwise_shares(int64_t n_elements);

/** The same with whole rows as the smallest share: at most `n_rows` groups. */
uint32_t tp_elementwise_row_shares(int64_t n_rows, int64_t row_elements);

/** Elements per row of dimension 0. */
int64_t tp_elementwise_inner(const struct tp_type *type);

/** Ends the arguments of an elementwise kernel: step buffer, rows of `type`, elements per row and, if `on_cpu`, the number of groups; and
 *  sets the groups: one work-item per element, or shares for the cpu tier. Cost: `flops` per element, `n_values` values of this type moved.
 */
void tp_elementwise_finish(struct tp_lower *lower, struct tp_launch *launch, const struct tp_type *type, bool on_cpu, double flops,
                           int n_values);

#endif
