/* As generic/optimizer.cl (step_counts is there only). Index map: one work-item per group, each takes a contiguous share of the max_chunks
 * possible chunks. grad_norm_final is one work-item in all. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/tensor_table.clh"
#include "common/vector.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void grad_norm_chunks(__global const float *grads, __global const int *tensors,
                                                                              __global float *partial, uint n_tensors, uint max_chunks,
                                                                              uint n_groups)
{
    const uint end = tp_share_rows(max_chunks, n_groups, tp_group_id(0) + 1);
    for (uint c = tp_share_rows(max_chunks, n_groups, tp_group_id(0)); c < end; c++) {
        const struct tp_chunk chunk = tp_find_chunk(tensors, n_tensors, c);
        __global const float *g = grads + chunk.offset;
        float16 sum0 = 0.0f, sum1 = 0.0f, sum2 = 0.0f, sum3 = 0.0f;
        float tail = 0.0f;
        uint i = 0;
        for (; i + 64 <= chunk.n; i += 64) {
            const float16 a = tp_load16(g + i), b = tp_load16(g + i + 16), d = tp_load16(g + i + 32), e = tp_load16(g + i + 48);
            sum0 = fma(a, a, sum0);
            sum1 = fma(b, b, sum1);
            sum2 = fma(d, d, sum2);
            sum3 = fma(e, e, sum3);
        }
        for (; i < chunk.n; i++) tail = fma(g[i], g[i], tail);
        partial[c] = tp_sum16((sum0 + sum1) + (sum2 + sum3)) + tail;
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
grad_norm_final(__global const float *partial, __global float *norm, __global float *clip, __global const uint *step, uint n_partial)
{
    float sum = 0.0f, lost = 0.0f;
    for (uint i = 0; i < n_partial; i++) {
        const float term = partial[i] - lost, next = sum + term;
        lost = (next - sum) - term;
        sum = next;
    }
    const float total = sqrt(sum), max_norm = as_float(step[TP_STEP_MAX_NORM]), factor = max_norm / (total + 1e-6f);
    norm[0] = total;
    clip[0] = !isfinite(total) ? NAN : max_norm == 0.0f || factor > 1.0f ? 1.0f : factor;
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
adamw(__global const float *grads, __global const int *counts, __global const int *selected, __global const int *tensors,
      __global const float *clip, __global float *params, __global float *m, __global float *v, __global const uint *step, uint n_selected,
      uint n_tensors, float beta2, float one_minus_beta1, float one_minus_beta2, float log_beta1, float log_beta2, float eps,
      uint max_chunks, uint n_groups)
{
    const float lr = as_float(step[TP_STEP_LEARNING_RATE]), scale = clip[0];
    const float decay = -lr * as_float(step[TP_STEP_WEIGHT_DECAY]);
    if (!isfinite(scale)) return;
    const uint end = tp_share_rows(max_chunks, n_groups, tp_group_id(0) + 1);
    for (uint c = tp_share_rows(max_chunks, n_groups, tp_group_id(0)); c < end; c++) {
        const struct tp_chunk chunk = tp_find_chunk(tensors, n_tensors, c);
        if (chunk.n == 0 || !tp_is_selected(selected, n_selected, tensors[4 * chunk.tensor + 2])) continue;
        const float t = (float)counts[chunk.tensor], step_size = lr / -expm1(t * log_beta1), root = sqrt(-expm1(t * log_beta2));
        size_t i = chunk.offset;
        const size_t last = i + chunk.n;
        for (; i + 16 <= last; i += 16) {
            const float16 g = tp_load16(grads + i) * scale, m0 = tp_load16(m + i);
            const float16 m1 = fma((float16)(one_minus_beta1), g - m0, m0);
            const float16 v1 = fma((float16)(beta2), tp_load16(v + i), one_minus_beta2 * g * g);
            tp_store16(m1, m + i);
            tp_store16(v1, v + i);
            const float16 p = tp_load16(params + i);
            tp_store16(fma((float16)(decay), p, p) - step_size * m1 / (sqrt(v1) / root + eps), params + i);
        }
        for (; i < last; i++) {
            const float g = grads[i] * scale;
            const float m1 = fma(one_minus_beta1, g - m[i], m[i]), v1 = fma(beta2, v[i], one_minus_beta2 * g * g);
            m[i] = m1;
            v[i] = v1;
            params[i] = fma(decay, params[i], params[i]) - step_size * m1 / (sqrt(v1) / root + eps);
        }
    }
}
