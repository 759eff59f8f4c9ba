/* Work lists on a CPU: one work-item per expert e = tp_group_id(0) walks the rows once.
 * counts[e] = number of rows t with sel[t, e] != 0; list[e, 0 .. counts[e]) = these rows, ascending; the rest is -1. */
#include "common/base.clh"
#include "common/step.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void dispatch(__global const uint *step, uint rows_symbol, uint rows_bound,
                                                                      __global const int *sel, __global int *counts, __global int *list,
                                                                      uint n_experts)
{
    const size_t e = tp_group_id(0);
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound);
    __global int *out = list + e * rows_bound;
    uint count = 0;
    for (uint t = 0; t < n_tokens; ++t) {
        if (sel[(size_t)t * n_experts + e]) out[count++] = (int)t;
    }
    counts[e] = (int)count;
    for (uint i = count; i < rows_bound; ++i) out[i] = -1;
}
