/* As generic/embedding.cl. Index map: one work-item per group, each takes a contiguous share of the rows of x. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/quant.clh"
#include "common/vector.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void embedding(__global const int *ids, __global const tp_weight *table,
                                                                       __global float *x, __global const uint *step, uint symbol,
                                                                       uint bound, uint d, uint first, uint n_rows, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound);
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    for (uint t = tp_share_rows(rows, n_groups, tp_group_id(0)); t < end; t++) {
        const uint id = (uint)ids[t] - first;
        if (id >= n_rows) continue;
        __global float *out = x + (size_t)t * d;
        const ulong row = (ulong)id * d;
#ifdef TP_WEIGHT_BLOCK_BYTES
        for (uint j = 0; j < d; j += 32) {
            float values[32];
            tp_weight_block(values, table, (row + j) / 32);
            for (uint i = 0; i < 32; i++) out[j + i] = values[i];
        }
#else
        for (uint j = 0; j < d; j++) out[j] = tp_weight_at(table, row + j);
#endif
    }
}
