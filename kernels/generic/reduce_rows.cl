/* out[j] = sum_t x[t, j] in two stages with a fixed order: blocks of 64 rows, then the blocks one after the other; f32.
 *
 * reduce_rows_blocks  partial[b, j] = sum of rows 64 b .. 64 b + 63; dimension 0 = column, dimension 1 = block
 * reduce_rows_final   out[j] = sum_b partial[b, j]; one work-item per column
 * Blocks beyond the run-time rows are neither written nor read. With at most 64 rows at the bound, stage one writes out itself. */
#include "common/base.clh"
#include "common/step.clh"

#define BLOCK 64

__kernel void reduce_rows_blocks(__global const float *x, __global float *partial, __global const uint *step, uint symbol, uint bound,
                                 uint n)
{
    const uint j = get_global_id(0), block = get_global_id(1), rows = tp_rows(step, symbol, bound);
    /* Block 0 always writes: without rows the sum is 0. */
    if (j >= n || (block > 0 && block * BLOCK >= rows)) return;
    const uint end = min(rows, (block + 1) * BLOCK);
    float sum = 0.0f;
    for (uint t = block * BLOCK; t < end; t++) sum += x[(size_t)t * n + j];
    partial[(size_t)block * n + j] = sum;
}

__kernel void reduce_rows_final(__global const float *partial, __global float *out, __global const uint *step, uint symbol, uint bound,
                                uint n)
{
    const uint j = get_global_id(0);
    if (j >= n) return;
    const uint n_blocks = (tp_rows(step, symbol, bound) + BLOCK - 1) / BLOCK;
    float sum = partial[j];
    for (uint b = 1; b < n_blocks; b++) sum += partial[(size_t)b * n + j];
    out[j] = sum;
}
