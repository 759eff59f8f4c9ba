/* x[t, j] = table[ids[t], j], the table in the dtype of its file (common/quant.clh). The launch sees the rows first .. first + n_rows - 1
 * of the table (one part of its storage); rows of x whose id lies outside are left alone. Index map: dimension 0 = column, dimension 1 = t.
 */
#include "common/base.clh"
#include "common/step.clh"
#include "common/quant.clh"

__kernel void embedding(__global const int *ids, __global const tp_weight *table, __global float *x, __global const uint *step, uint symbol,
                        uint bound, uint d, uint first, uint n_rows)
{
    const uint j = get_global_id(0), t = get_global_id(1);
    if (j >= d || t >= tp_rows(step, symbol, bound)) return;
    const uint id = (uint)ids[t] - first;
    if (id < n_rows) x[(size_t)t * d + j] = tp_weight_at(table, (ulong)id * d + j);
}
