/* As generic/reduce_rows.cl, with the same order of summation. Index map of both kernels: one work-item per group; stage one: group = block
 * of 64 rows; stage two: each group takes a share of the columns. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

#define BLOCK 64

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void reduce_rows_blocks(__global const float *x, __global float *partial,
                                                                                __global const uint *step, uint symbol, uint bound, uint n)
{
    const uint block = tp_group_id(0), rows = tp_rows(step, symbol, bound);
    if (block > 0 && block * BLOCK >= rows) return;
    const uint begin = block * BLOCK, end = min(rows, begin + BLOCK);
    __global float *out = partial + (size_t)block * n;
    uint j = 0;
    for (; j + 32 <= n; j += 32) {
        float16 sum0 = 0.0f, sum1 = 0.0f;
        for (uint t = begin; t < end; t++) {
            sum0 += tp_load16(x + (size_t)t * n + j);
            sum1 += tp_load16(x + (size_t)t * n + j + 16);
        }
        tp_store16(sum0, out + j);
        tp_store16(sum1, out + j + 16);
    }
    for (; j < n; j++) {
        float sum = 0.0f;
        for (uint t = begin; t < end; t++) sum += x[(size_t)t * n + j];
        out[j] = sum;
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void reduce_rows_final(__global const float *partial, __global float *out,
                                                                               __global const uint *step, uint symbol, uint bound, uint n,
                                                                               uint n_groups)
{
    const uint n_blocks = (tp_rows(step, symbol, bound) + BLOCK - 1) / BLOCK;
    const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);
    size_t j = tp_share(n, n_groups, tp_group_id(0));
    for (; j + 16 <= end; j += 16) {
        float16 sum = tp_load16(partial + j);
        for (uint b = 1; b < n_blocks; b++) sum += tp_load16(partial + (size_t)b * n + j);
        tp_store16(sum, out + j);
    }
    for (; j < end; j++) {
        float sum = partial[j];
        for (uint b = 1; b < n_blocks; b++) sum += partial[(size_t)b * n + j];
        out[j] = sum;
    }
}
