/* gather_rows        out[r, :] = x[rows[r], :], zero where rows[r] lies outside x
 * scatter_add_rows   out[t, :] = sum of x[r, :] over all r with rows[r] == t, in ascending r
 *
 * Index map: one work-item per element of out, dimension 1 counts its rows. The scatter looks for the rows that land on its own, so that no
 * two work-items write the same element and the order of the sum is fixed. Accumulation f32. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void gather_rows(__global const float *x, __global const int *rows, __global float *out, __global const uint *step, uint x_symbol,
                          uint x_bound, uint out_symbol, uint out_bound, uint d)
{
    const uint j = get_global_id(0), r = get_global_id(1);
    if (j >= d || r >= tp_rows(step, out_symbol, out_bound)) return;
    const uint row = (uint)rows[r];
    out[(ulong)r * d + j] = row < tp_rows(step, x_symbol, x_bound) ? x[(ulong)row * d + j] : 0.0f;
}

__kernel void scatter_add_rows(__global const float *x, __global const int *rows, __global float *out, __global const uint *step, uint x_symbol,
                               uint x_bound, uint out_symbol, uint out_bound, uint d)
{
    const uint j = get_global_id(0), t = get_global_id(1), n = tp_rows(step, x_symbol, x_bound);
    if (j >= d || t >= tp_rows(step, out_symbol, out_bound)) return;
    float sum = 0.0f;
    for (uint r = 0; r < n; r++)
        if ((uint)rows[r] == t) sum += x[(ulong)r * d + j];
    out[(ulong)t * d + j] = sum;
}
