/* The passes over a block of logits of generic/linear_cross_entropy.cl, for CPUs: reduce (maximum, sum of exponentials and label's logit
 * per row) and gradient (logits -> exp(logit - lse) * (g + dlse) - [label] * g). f32; sums in 16 lanes, then over the lanes.
 * Index map: one work-item per group, which takes a share of the rows; the row's block is read twice from the cache. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void reduce(__global const float *logits, __global const int *labels,
                                                                    __global float *state, __global const uint *step, uint r_symbol,
                                                                    uint r_bound, uint block, uint stride, uint first, uint n,
                                                                    uint n_groups)
{
    const uint n_rows = tp_rows(step, r_symbol, r_bound), whole = n & ~15u;
    const uint end = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0) + 1);
    for (uint r = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0)); r < end; r++) {
        __global const float *row = logits + (size_t)r * stride;
        float16 largest16 = (float16)(-INFINITY);
        for (uint j = 0; j < whole; j += 16) largest16 = fmax(largest16, tp_load16(row + j));
        const float8 largest8 = fmax(largest16.lo, largest16.hi);
        const float4 largest4 = fmax(largest8.lo, largest8.hi);
        float largest = fmax(fmax(largest4.x, largest4.y), fmax(largest4.z, largest4.w));
        for (uint j = whole; j < n; j++) largest = fmax(largest, row[j]);
        float16 sum16 = (float16)(0.0f);
        for (uint j = 0; j < whole; j += 16) sum16 += exp(tp_load16(row + j) - largest);
        float sum = tp_sum16(sum16);
        for (uint j = whole; j < n; j++) sum += exp(row[j] - largest);
        const uint label = (uint)labels[r];
        if (label >= first && label - first < n) state[r] = row[label - first];
        state[(size_t)(1 + 2 * block) * r_bound + r] = largest;
        state[(size_t)(2 + 2 * block) * r_bound + r] = sum;
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void gradient(
    __global float *logits, __global const int *labels, __global const float *lse, __global const float *dloss, __global const float *dnll,
    __global const float *dlse, __global const uint *step, uint r_symbol, uint r_bound, uint has_dloss, uint has_dnll, uint has_dlse,
    uint stride, uint first, uint n, uint n_groups)
{
    const uint n_rows = tp_rows(step, r_symbol, r_bound), whole = n & ~15u;
    const uint end = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0) + 1);
    const float scale = has_dloss ? dloss[0] * as_float(step[TP_STEP_LOSS_SCALE]) : 0.0f;
    for (uint r = tp_share_rows(n_rows, n_groups, (uint)tp_group_id(0)); r < end; r++) {
        __global float *row = logits + (size_t)r * stride;
        const float g = scale + (has_dnll ? dnll[r] : 0.0f), softmax = g + (has_dlse ? dlse[r] : 0.0f), offset = lse[r];
        for (uint j = 0; j < whole; j += 16) {
            const float16 p = exp(tp_load16(row + j) - offset) * softmax;
            tp_store16(p, row + j);
        }
        for (uint j = whole; j < n; j++) row[j] = exp(row[j] - offset) * softmax;
        const uint label = (uint)labels[r];
        if (label >= first && label - first < n) row[label - first] -= g;
    }
}
