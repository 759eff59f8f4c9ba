/* The passes over a block of logits of generic/linear_cross_entropy.cl, for CPUs. f32; sums in 16 lanes, then over the lanes.
 * Index map: one work-item per group, which takes a share of the rows; a row of a block is read twice, the second time from the cache. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

static inline float max16(float16 x)
{
    const float8 a = fmax(x.lo, x.hi);
    const float4 b = fmax(a.lo, a.hi);
    return fmax(fmax(b.x, b.y), fmax(b.z, b.w));
}

static inline void scale_row(__global float *row, uint d, float factor)
{
    const uint whole = d & ~15u;
    for (uint j = 0; j < whole; j += 16) tp_store16(tp_load16(row + j) * factor, row + j);
    for (uint j = whole; j < d; j++) row[j] *= factor;
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void exponentials(__global float *logits, __global const int *labels,
                                                                          __global float *state, __global float *expected,
                                                                          __global const uint *step, uint r_symbol, uint r_bound, uint d,
                                                                          uint keep, uint stride, uint first, uint n, uint n_groups)
{
    const uint n_rows = tp_rows(step, r_symbol, r_bound), whole = n & ~15u;
    const uint end = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0) + 1);
    for (uint r = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0)); r < end; r++) {
        __global float *row = logits + (size_t)r * stride, *maximum = state + r_bound + r, *sum = state + 2 * (size_t)r_bound + r;
        const uint label = (uint)labels[r];
        if (label >= first && label - first < n) state[r] = row[label - first];
        float16 largest16 = (float16)(first ? *maximum : -INFINITY);
        for (uint j = 0; j < whole; j += 16) largest16 = fmax(largest16, tp_load16(row + j));
        float largest = max16(largest16);
        for (uint j = whole; j < n; j++) largest = fmax(largest, row[j]);
        float16 sum16 = (float16)(0.0f);
        float rest = 0.0f;
        if (keep) {
            for (uint j = 0; j < whole; j += 16) {
                const float16 e = exp(tp_load16(row + j) - largest);
                tp_store16(e, row + j);
                sum16 += e;
            }
            for (uint j = whole; j < n; j++) rest += row[j] = exp(row[j] - largest);
        } else {
            for (uint j = 0; j < whole; j += 16) sum16 += exp(tp_load16(row + j) - largest);
            for (uint j = whole; j < n; j++) rest += exp(row[j] - largest);
        }
        float total = tp_sum16(sum16) + rest;
        if (first) {
            const float shrink = exp(*maximum - largest);
            total = fma(*sum, shrink, total);
            if (keep && shrink != 1.0f) scale_row(expected + (size_t)r * d, d, shrink);
        }
        *maximum = largest;
        *sum = total;
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void normalise(__global float *expected, __global const float *state,
                                                                       __global const uint *step, uint r_symbol, uint r_bound, uint d,
                                                                       uint n_groups)
{
    const uint n_rows = tp_rows(step, r_symbol, r_bound), end = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0) + 1);
    for (uint r = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0)); r < end; r++)
        scale_row(expected + (size_t)r * d, d, 1.0f / state[2 * (size_t)r_bound + r]);
}
