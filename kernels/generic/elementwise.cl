/* add         out[i] = a[i] + b[i]
 * scale       out[i] = factor * x[i]
 * accumulate  state[i] = (micro-batch 0 ? 0 : state[i]) + x[i], f32 and i32
 * bias_add    out[t, j] = x[t, j] + bias[j]
 * step_scalar out[0] = factor * step word
 *
 * Index map: one work-item per element (dimension 0; bias_add: dimension 0 = column, dimension 1 = row). Run-time elements = rows * inner.
 * out may share storage with a or x. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void add(__global const float *a, __global const float *b, __global float *out, __global const uint *step, uint symbol, uint bound,
                  uint inner)
{
    const size_t i = get_global_id(0);
    if (i < (size_t)tp_rows(step, symbol, bound) * inner) out[i] = a[i] + b[i];
}

__kernel void scale(__global const float *x, __global float *out, float factor, __global const uint *step, uint symbol, uint bound,
                    uint inner)
{
    const size_t i = get_global_id(0);
    if (i < (size_t)tp_rows(step, symbol, bound) * inner) out[i] = factor * x[i];
}

#define ACCUMULATE(name, type)                                                                                                             \
    __kernel void name(__global const type *x, __global type *state, __global const uint *step, uint symbol, uint bound, uint inner)       \
    {                                                                                                                                      \
        const size_t i = get_global_id(0);                                                                                                 \
        if (i >= (size_t)tp_rows(step, symbol, bound) * inner) return;                                                                     \
        state[i] = step[TP_STEP_MICRO] ? state[i] + x[i] : x[i];                                                                           \
    }
ACCUMULATE(accumulate_f32, float)
ACCUMULATE(accumulate_i32, int)

__kernel void bias_add(__global const float *x, __global const float *bias, __global float *out, __global const uint *step, uint symbol,
                       uint bound, uint n)
{
    const uint j = get_global_id(0), t = get_global_id(1);
    if (j >= n || t >= tp_rows(step, symbol, bound)) return;
    const size_t i = (size_t)t * n + j;
    out[i] = x[i] + bias[j];
}

__kernel void step_scalar(__global float *out, __global const uint *step, uint word, float factor)
{
    if (get_global_id(0) == 0) out[0] = factor * as_float(step[word]);
}
