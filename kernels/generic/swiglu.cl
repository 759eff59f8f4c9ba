/* swiglu           h = s(g) g u with s(g) = 1 / (1 + exp(-g))
 * swiglu_backward  dg = dh u s (1 + g (1 - s)), du = dh g s
 *
 * Index map: one work-item per element. Outputs may share storage with inputs. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void swiglu(__global const float *gate, __global const float *up, __global float *h, __global const uint *step, uint symbol,
                     uint bound, uint inner)
{
    const size_t i = get_global_id(0);
    if (i >= (size_t)tp_rows(step, symbol, bound) * inner) return;
    const float g = gate[i];
    h[i] = g / (1.0f + exp(-g)) * up[i];
}

__kernel void swiglu_backward(__global const float *gate, __global const float *up, __global const float *dh, __global float *dgate,
                              __global float *dup, __global const uint *step, uint symbol, uint bound, uint inner)
{
    const size_t i = get_global_id(0);
    if (i >= (size_t)tp_rows(step, symbol, bound) * inner) return;
    const float g = gate[i], u = up[i], d = dh[i], s = 1.0f / (1.0f + exp(-g));
    dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
    dup[i] = d * g * s;
}
