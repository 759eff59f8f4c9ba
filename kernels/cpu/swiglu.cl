/* As generic/swiglu.cl. Index map: one work-item per group, each takes a contiguous share of the run-time elements in vectors of 16. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"
#include "common/gated.clh"

#define GATED(name, q, slope)                                                                                                              \
    __kernel __attribute__((reqd_work_group_size(1, 1, 1))) void name(__global const float *gate, __global const float *up,                \
                                                                      __global float *h, __global const uint *step, uint symbol,           \
                                                                      uint bound, uint inner, uint n_groups)                               \
    {                                                                                                                                      \
        const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;                                                                     \
        const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);                                                                      \
        size_t i = tp_share(n, n_groups, tp_group_id(0));                                                                                  \
        for (; i + 16 <= end; i += 16) {                                                                                                   \
            const float16 g = tp_load16(gate + i);                                                                                         \
            tp_store16(g / (1.0f + exp(-q(g))) * tp_load16(up + i), h + i);                                                                \
        }                                                                                                                                  \
        for (; i < end; i++) {                                                                                                             \
            const float g = gate[i];                                                                                                       \
            h[i] = g / (1.0f + exp(-q(g))) * up[i];                                                                                        \
        }                                                                                                                                  \
    }                                                                                                                                      \
    __kernel __attribute__((reqd_work_group_size(1, 1, 1))) void name##_backward(                                                          \
        __global const float *gate, __global const float *up, __global const float *dh, __global float *dgate, __global float *dup,        \
        __global const uint *step, uint symbol, uint bound, uint inner, uint n_groups)                                                     \
    {                                                                                                                                      \
        const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;                                                                     \
        const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);                                                                      \
        size_t i = tp_share(n, n_groups, tp_group_id(0));                                                                                  \
        for (; i + 16 <= end; i += 16) {                                                                                                   \
            const float16 g = tp_load16(gate + i), u = tp_load16(up + i), d = tp_load16(dh + i), s = 1.0f / (1.0f + exp(-q(g)));           \
            tp_store16(d * u * s * (1.0f + g * (1.0f - s) * slope(g)), dgate + i);                                                         \
            tp_store16(d * g * s, dup + i);                                                                                                \
        }                                                                                                                                  \
        for (; i < end; i++) {                                                                                                             \
            const float g = gate[i], u = up[i], d = dh[i], s = 1.0f / (1.0f + exp(-q(g)));                                                 \
            dgate[i] = d * u * s * (1.0f + g * (1.0f - s) * slope(g));                                                                     \
            dup[i] = d * g * s;                                                                                                            \
        }                                                                                                                                  \
    }

GATED(swiglu, TP_SILU, TP_SILU_SLOPE)
GATED(geglu, TP_GELU_TANH, TP_GELU_TANH_SLOPE)
