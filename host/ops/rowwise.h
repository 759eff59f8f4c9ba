/* Work-group sizes shared by ops whose kernels run one work-item per row or element. */
#ifndef TP_ROWWISE_H
#define TP_ROWWISE_H

#include "graph/op.h"

/** The largest power of two that is at most `wanted` and that the device accepts as a work-group size. */
static inline size_t tp_rowwise_local(const struct tp_lower *lower, size_t wanted)
{
    size_t local = 1;
    while (local * 2 <= wanted && (lower->caps->max_work_group_size == 0 || local * 2 <= lower->caps->max_work_group_size)) local *= 2;
    return local;
}

/** Sets the launch to at least `n` work-items in one dimension, in groups of at most 64. */
static inline void tp_rowwise_groups(const struct tp_lower *lower, struct tp_launch *launch, int64_t n)
{
    const size_t local = tp_rowwise_local(lower, 64);
    const size_t groups = n > 0 ? ((size_t)n + local - 1) / local : 1;
    tp_launch_groups(launch, groups, 1, 1, local, 1, 1);
}

#endif
