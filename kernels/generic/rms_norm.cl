/* rms_norm           rstd[t] = 1 / sqrt(mean_j x[t, j]^2 + eps), y = x rstd w
 * rms_norm_backward  dx = rstd (w dy - x rstd mean_j(w dy x rstd)), plus addend if there is one
 *
 * A row of the value has `parts` rows of d columns, each normalised by itself (1: the whole row; else heads); t numbers those.
 * Index map: one work-group per row t (dimension 0); its items stride over the columns and sum through local memory in a fixed tree, f32.
 * The local size is a power of two. y and dx may share storage with x and dy. */
#include "common/base.clh"
#include "common/step.clh"

static inline float sum_group(float value, __local float *shared)
{
    const uint i = get_local_id(0);
    shared[i] = value;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = get_local_size(0) / 2; half_size > 0; half_size /= 2) {
        if (i < half_size) shared[i] += shared[i + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    return shared[0];
}

__kernel void rms_norm(__global const float *x, __global const float *weight, __global float *y, __global float *rstd,
                       __global const uint *step, uint symbol, uint bound, uint parts, uint d, float eps, __local float *shared)
{
    const uint t = tp_group_id(0);
    const bool active = t < tp_rows(step, symbol, bound) * parts;
    const uint n = active ? d : 0; /* no return before the barriers of sum_group (kernels/README.md) */
    const size_t row = (size_t)t * d;
    float sum = 0.0f;
    for (uint j = get_local_id(0); j < n; j += get_local_size(0)) sum = fma(x[row + j], x[row + j], sum);
    const float r = 1.0f / sqrt(sum_group(sum, shared) / (float)d + eps);
    for (uint j = get_local_id(0); j < n; j += get_local_size(0)) y[row + j] = x[row + j] * r * weight[j];
    if (active && get_local_id(0) == 0) rstd[t] = r;
}

__kernel void rms_norm_backward(__global const float *x, __global const float *weight, __global const float *rstd, __global const float *dy,
                                __global const float *addend, __global float *dx, __global const uint *step, uint symbol, uint bound,
                                uint parts, uint d, uint has_addend, __local float *shared)
{
    const uint t = tp_group_id(0);
    const bool active = t < tp_rows(step, symbol, bound) * parts;
    const uint n = active ? d : 0; /* no return before the barriers of sum_group (kernels/README.md) */
    const size_t row = (size_t)t * d;
    float sum = 0.0f;
    for (uint j = get_local_id(0); j < n; j += get_local_size(0)) sum = fma(weight[j] * dy[row + j], x[row + j], sum);
    const float r = active ? rstd[t] : 0.0f;
    const float mean = sum_group(sum, shared) * r / (float)d;
    for (uint j = get_local_id(0); j < n; j += get_local_size(0)) {
        const float v = r * (weight[j] * dy[row + j] - x[row + j] * r * mean);
        dx[row + j] = has_addend ? addend[row + j] + v : v;
    }
}
