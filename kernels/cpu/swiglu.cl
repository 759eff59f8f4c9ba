/* As generic/swiglu.cl. Index map: one work-item per group, each takes a contiguous share of the run-time elements in vectors of 16.
 * -DIN0_BF16, -DIN1_BF16, -DIN2_BF16: that input is row_bf16, with rows of a multiple of 32 elements; -DOUT0_BF16, -DOUT1_BF16: that output
 * (then nothing is left of a share after its vectors). */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"
#include "common/tile_bf16.clh"
#include "common/gated.clh"

#ifdef IN0_BF16
typedef ushort in0;
#define LOAD0(p) tp_load16_bf16(p)
#define ONE0(p) as_float((uint)(p) << 16)
#else
typedef float in0;
#define LOAD0(p) tp_load16(p)
#define ONE0(p) (p)
#endif
#ifdef IN1_BF16
typedef ushort in1;
#define LOAD1(p) tp_load16_bf16(p)
#define ONE1(p) as_float((uint)(p) << 16)
#else
typedef float in1;
#define LOAD1(p) tp_load16(p)
#define ONE1(p) (p)
#endif
#ifdef IN2_BF16
typedef ushort in2;
#define LOAD2(p) tp_load16_bf16(p)
#define ONE2(p) as_float((uint)(p) << 16)
#else
typedef float in2;
#define LOAD2(p) tp_load16(p)
#define ONE2(p) (p)
#endif
#ifdef OUT0_BF16
typedef ushort out0;
#define STORE0(v, p) tp_store16_bf16(v, p)
#else
typedef float out0;
#define STORE0(v, p) tp_store16(v, p)
#endif
#ifdef OUT1_BF16
typedef ushort out1;
#define STORE1(v, p) tp_store16_bf16(v, p)
#else
typedef float out1;
#define STORE1(v, p) tp_store16(v, p)
#endif

#define GATED(name, q, slope)                                                                                                              \
    __kernel __attribute__((reqd_work_group_size(1, 1, 1))) void name(__global const in0 *gate, __global const in1 *up,                    \
                                                                      __global out0 *h, __global const uint *step, uint symbol,            \
                                                                      uint bound, uint inner, uint n_groups)                               \
    {                                                                                                                                      \
        const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;                                                                     \
        const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);                                                                      \
        size_t i = tp_share(n, n_groups, tp_group_id(0));                                                                                  \
        for (; i + 16 <= end; i += 16) {                                                                                                   \
            const float16 g = LOAD0(gate + i);                                                                                             \
            STORE0(g / (1.0f + exp(-q(g))) * LOAD1(up + i), h + i);                                                                        \
        }                                                                                                                                  \
        for (; i < end; i++) {                                                                                                             \
            const float g = ONE0(gate[i]);                                                                                                 \
            h[i] = g / (1.0f + exp(-q(g))) * ONE1(up[i]);                                                                                  \
        }                                                                                                                                  \
    }                                                                                                                                      \
    __kernel __attribute__((reqd_work_group_size(1, 1, 1))) void name##_backward(                                                          \
        __global const in0 *gate, __global const in1 *up, __global const in2 *dh, __global out0 *dgate, __global out1 *dup,                \
        __global const uint *step, uint symbol, uint bound, uint inner, uint n_groups)                                                     \
    {                                                                                                                                      \
        const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;                                                                     \
        const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);                                                                      \
        size_t i = tp_share(n, n_groups, tp_group_id(0));                                                                                  \
        for (; i + 16 <= end; i += 16) {                                                                                                   \
            const float16 g = LOAD0(gate + i), u = LOAD1(up + i), d = LOAD2(dh + i), s = 1.0f / (1.0f + exp(-q(g)));                       \
            STORE0(d * u * s * (1.0f + g * (1.0f - s) * slope(g)), dgate + i);                                                             \
            STORE1(d * g * s, dup + i);                                                                                                    \
        }                                                                                                                                  \
        for (; i < end; i++) {                                                                                                             \
            const float g = ONE0(gate[i]), u = ONE1(up[i]), d = ONE2(dh[i]), s = 1.0f / (1.0f + exp(-q(g)));                               \
            dgate[i] = d * u * s * (1.0f + g * (1.0f - s) * slope(g));                                                                     \
            dup[i] = d * g * s;                                                                                                            \
        }                                                                                                                                  \
    }

GATED(swiglu, TP_SILU, TP_SILU_SLOPE)
GATED(geglu, TP_GELU_TANH, TP_GELU_TANH_SLOPE)
