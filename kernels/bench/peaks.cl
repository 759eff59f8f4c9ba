/* What a device reaches (host/bench/bench_peaks.c); not an op.
 * -DTP_WIDTH=1|4|8|16: floats per vector. f32 throughout. */
#include "common/base.clh"

#if TP_WIDTH == 1
typedef float vec;
#define SUM(v) (v)
#elif TP_WIDTH == 4
typedef float4 vec;
#define SUM(v) ((v).s0 + (v).s1 + (v).s2 + (v).s3)
#elif TP_WIDTH == 8
typedef float8 vec;
#define SUM4(v) ((v).s0 + (v).s1 + (v).s2 + (v).s3)
#define SUM(v) (SUM4((v).lo) + SUM4((v).hi))
#else
typedef float16 vec;
#define SUM4(v) ((v).s0 + (v).s1 + (v).s2 + (v).s3)
#define SUM(v) (SUM4((v).lo.lo) + SUM4((v).lo.hi) + SUM4((v).hi.lo) + SUM4((v).hi.hi))
#endif

/* n turns of 12 independent chains of multiply-adds: more than latency times ports of any unit of today. 24 * TP_WIDTH * n FLOP per item. */
__kernel void multiply_add(__global float *out, const uint n, const float a, const float b)
{
    const float start = (float)get_global_id(0) * 1e-6f;
    vec x0 = start, x1 = start + 1, x2 = start + 2, x3 = start + 3, x4 = start + 4, x5 = start + 5;
    vec x6 = start + 6, x7 = start + 7, x8 = start + 8, x9 = start + 9, x10 = start + 10, x11 = start + 11;
    const vec va = a, vb = b;
    for (uint i = 0; i < n; i++) {
        x0 = fma(x0, va, vb); x1 = fma(x1, va, vb); x2 = fma(x2, va, vb); x3 = fma(x3, va, vb);
        x4 = fma(x4, va, vb); x5 = fma(x5, va, vb); x6 = fma(x6, va, vb); x7 = fma(x7, va, vb);
        x8 = fma(x8, va, vb); x9 = fma(x9, va, vb); x10 = fma(x10, va, vb); x11 = fma(x11, va, vb);
    }
    const vec sum = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9 + x10 + x11;
    out[get_global_id(0)] = SUM(sum);
}

/* Item i reads vectors i * first + j * step for j < n (a multiple of 4): a run of its own (step 1) or beside its neighbours (first 1). */
__kernel void read_all(__global const float *x, __global float *out, const uint n, const uint first, const uint step)
{
    __global const vec *v = (__global const vec *)x;
    size_t at = (size_t)get_global_id(0) * first;
    vec s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (uint j = 0; j < n; j += 4) {
        s0 += v[at];
        s1 += v[at + step];
        s2 += v[at + 2 * (size_t)step];
        s3 += v[at + 3 * (size_t)step];
        at += 4 * (size_t)step;
    }
    s0 += s1 + s2 + s3;
    out[get_global_id(0)] = SUM(s0);
}

__kernel void copy_all(__global const float *x, __global float *y, const uint n, const uint first, const uint step)
{
    __global const vec *v = (__global const vec *)x;
    __global vec *w = (__global vec *)y;
    size_t at = (size_t)get_global_id(0) * first;
    for (uint j = 0; j < n; j++, at += step) w[at] = v[at];
}

__kernel void nothing(__global float *out)
{
    if (get_global_id(0) == 1) out[0] = 0.0f;
}
