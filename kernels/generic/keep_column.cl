/* out[t, j] = x[t, j] where j is the column, else 0. Elements are copied as bits, so one kernel serves f32 and i32 (0 is 0.0f).
 * Index map: one work-item per element. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void keep_column(__global const uint *x, __global uint *out, uint column, __global const uint *step, uint symbol, uint bound, uint inner)
{
    const size_t i = get_global_id(0);
    if (i >= (size_t)tp_rows(step, symbol, bound) * inner) return;
    out[i] = i % inner == column ? x[i] : 0u;
}
