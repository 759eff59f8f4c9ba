/* Gated activations: h = g s(q(g)) u with s(q) = 1 / (1 + exp(-q)).
 * swiglu  q = g: SiLU.
 * geglu   q = sqrt(8/pi) (g + 0.044715 g^3): GELU in its tanh form, since (1 + tanh z) / 2 = s(2z).
 * ..._backward  dg = dh u s (1 + g (1 - s) q'), du = dh g s
 *
 * Index map: one work-item per element. Outputs may share storage with inputs. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/gated.clh"

#define GATED(name, q, slope)                                                                                                              \
    __kernel void name(__global const float *gate, __global const float *up, __global float *h, __global const uint *step, uint symbol,    \
                       uint bound, uint inner)                                                                                             \
    {                                                                                                                                      \
        const size_t i = get_global_id(0);                                                                                                 \
        if (i >= (size_t)tp_rows(step, symbol, bound) * inner) return;                                                                     \
        const float g = gate[i];                                                                                                           \
        h[i] = g / (1.0f + exp(-q(g))) * up[i];                                                                                            \
    }                                                                                                                                      \
    __kernel void name##_backward(__global const float *gate, __global const float *up, __global const float *dh, __global float *dgate,   \
                                  __global float *dup, __global const uint *step, uint symbol, uint bound, uint inner)                     \
    {                                                                                                                                      \
        const size_t i = get_global_id(0);                                                                                                 \
        if (i >= (size_t)tp_rows(step, symbol, bound) * inner) return;                                                                     \
        const float g = gate[i], u = up[i], d = dh[i], s = 1.0f / (1.0f + exp(-q(g)));                                                     \
        dgate[i] = d * u * s * (1.0f + g * (1.0f - s) * slope(g));                                                                         \
        dup[i] = d * g * s;                                                                                                                \
    }

GATED(swiglu, TP_SILU, TP_SILU_SLOPE)
GATED(geglu, TP_GELU_TANH, TP_GELU_TANH_SLOPE)
