/* Work lists: counts[e] = number of rows t with sel[t, e] != 0; list[e, 0 .. counts[e]) = these rows, ascending; the rest is -1.
 * Work-group e = tp_group_id(0) serves one expert: it walks the rows in chunks of its size, and an inclusive prefix sum over the chunk in
 * local memory gives every chosen row its place. Integers only, so the result does not depend on the work-group's size. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void dispatch(__global const uint *step, uint rows_symbol, uint rows_bound, __global const int *sel, __global int *counts,
                       __global int *list, uint n_experts, __local uint *sum)
{
    const size_t e = tp_group_id(0);
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound);
    const uint me = get_local_id(0), n = get_local_size(0);
    __global int *out = list + e * rows_bound;
    uint count = 0;
    for (uint first = 0; first < n_tokens; first += n) {
        const uint t = first + me;
        const uint chosen = t < n_tokens && sel[(size_t)t * n_experts + e] != 0;
        sum[me] = chosen;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint shift = 1; shift < n; shift <<= 1) {
            const uint left = me >= shift ? sum[me - shift] : 0;
            barrier(CLK_LOCAL_MEM_FENCE);
            sum[me] += left;
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        if (chosen) out[count + sum[me] - 1] = (int)t;
        count += sum[n - 1];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (uint i = count + me; i < rows_bound; i += n) out[i] = -1;
    if (me == 0) counts[e] = (int)count;
}
