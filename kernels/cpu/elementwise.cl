/* As generic/elementwise.cl: add, scale, accumulate, bias_add. Index map: one work-item per group, each takes a contiguous share of the run-time
 * elements (bias_add: of the rows) in vectors of 16. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void add(__global const float *a, __global const float *b, __global float *out,
                                                                 __global const uint *step, uint symbol, uint bound, uint inner,
                                                                 uint n_groups)
{
    const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;
    const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);
    size_t i = tp_share(n, n_groups, tp_group_id(0));
    for (; i + 16 <= end; i += 16) tp_store16(tp_load16(a + i) + tp_load16(b + i), out + i);
    for (; i < end; i++) out[i] = a[i] + b[i];
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void scale(__global const float *x, __global float *out, float factor,
                                                                   __global const uint *step, uint symbol, uint bound, uint inner,
                                                                   uint n_groups)
{
    const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;
    const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);
    size_t i = tp_share(n, n_groups, tp_group_id(0));
    for (; i + 16 <= end; i += 16) tp_store16(factor * tp_load16(x + i), out + i);
    for (; i < end; i++) out[i] = factor * x[i];
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void accumulate_f32(__global const float *x, __global float *state,
                                                                            __global const uint *step, uint symbol, uint bound, uint inner,
                                                                            uint n_groups)
{
    const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;
    const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);
    size_t i = tp_share(n, n_groups, tp_group_id(0));
    if (step[TP_STEP_MICRO] == 0) {
        for (; i + 16 <= end; i += 16) tp_store16(tp_load16(x + i), state + i);
        for (; i < end; i++) state[i] = x[i];
        return;
    }
    for (; i + 16 <= end; i += 16) tp_store16(tp_load16(state + i) + tp_load16(x + i), state + i);
    for (; i < end; i++) state[i] += x[i];
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
accumulate_i32(__global const int *x, __global int *state, __global const uint *step, uint symbol, uint bound, uint inner, uint n_groups)
{
    const size_t n = (size_t)tp_rows(step, symbol, bound) * inner;
    const size_t end = tp_share(n, n_groups, tp_group_id(0) + 1);
    const bool first = step[TP_STEP_MICRO] == 0;
    for (size_t i = tp_share(n, n_groups, tp_group_id(0)); i < end; i++) state[i] = first ? x[i] : state[i] + x[i];
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void bias_add(__global const float *x, __global const float *bias,
                                                                      __global float *out, __global const uint *step, uint symbol,
                                                                      uint bound, uint n, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound);
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    for (uint t = tp_share_rows(rows, n_groups, tp_group_id(0)); t < end; t++) {
        const size_t row = (size_t)t * n;
        uint j = 0;
        for (; j + 16 <= n; j += 16) tp_store16(tp_load16(x + row + j) + tp_load16(bias + j), out + row + j);
        for (; j < n; j++) out[row + j] = x[row + j] + bias[j];
    }
}
