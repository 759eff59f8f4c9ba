/* Updates of all trainable tensors of a bank (common/tensor_table.clh); nothing but the tensors' elements is read or written.
 *
 *   grad_norm_chunks  partial[c] = sum of squares of chunk c; one work-group per chunk, a fixed tree over local memory, f32
 *   grad_norm_final   norm = sqrt(sum partial), clip = max_norm > 0 ? min(1, max_norm / (norm + 1e-6)) : 1, NaN if
 *                     the norm is not finite; one group, Kahan sums
 *   step_counts       counts[i] += tensor i is selected; one work-item per tensor
 *   adamw             per element, g = clip * gradient, t = count of its tensor (Loshchilov and Hutter 2019, decoupled decay):
 *                     p -= lr wd p,  m += (1 - b1) (g - m),  v = b2 v + (1 - b2) g^2,
 *                     p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps), where 1 - b^t is -expm1(t log b), exact to f32 also
 *                     for small t; nothing changes if clip is not finite; one work-group per chunk
 *
 * The local size is a power of two. Groups past the last chunk have no elements: grad_norm_chunks stores 0, adamw stores nothing. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/tensor_table.clh"

__kernel void grad_norm_chunks(__global const float *grads, __global const int *tensors, __global float *partial, uint n_tensors,
                               __local float *shared)
{
    const struct tp_chunk chunk = tp_find_chunk(tensors, n_tensors, tp_group_id(0));
    const uint item = get_local_id(0);
    float sum = 0.0f;
    for (uint i = item; i < chunk.n; i += get_local_size(0)) sum = fma(grads[chunk.offset + i], grads[chunk.offset + i], sum);
    shared[item] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = get_local_size(0) / 2; half_size > 0; half_size /= 2) {
        if (item < half_size) shared[item] += shared[item + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (item == 0) partial[tp_group_id(0)] = shared[0];
}

__kernel void grad_norm_final(__global const float *partial, __global float *norm, __global float *clip, __global const uint *step,
                              uint n_partial, __local float *shared)
{
    const uint item = get_local_id(0);
    float sum = 0.0f, lost = 0.0f;
    for (uint i = item; i < n_partial; i += get_local_size(0)) {
        const float term = partial[i] - lost, next = sum + term;
        lost = (next - sum) - term;
        sum = next;
    }
    shared[item] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = get_local_size(0) / 2; half_size > 0; half_size /= 2) {
        if (item < half_size) shared[item] += shared[item + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (item == 0) {
        const float total = sqrt(shared[0]), max_norm = as_float(step[TP_STEP_MAX_NORM]), factor = max_norm / (total + 1e-6f);
        norm[0] = total;
        clip[0] = !isfinite(total) ? NAN : max_norm == 0.0f || factor > 1.0f ? 1.0f : factor;
    }
}

__kernel void step_counts(__global const int *selected, __global const int *tensors, __global int *counts, uint n_selected, uint n_tensors)
{
    const uint i = get_global_id(0);
    if (i < n_tensors && tp_is_selected(selected, n_selected, tensors[4 * i + 2])) counts[i]++;
}

__kernel void adamw(__global const float *grads, __global const int *counts, __global const int *selected, __global const int *tensors,
                    __global const float *clip, __global float *params, __global float *m, __global float *v, __global const uint *step,
                    uint n_selected, uint n_tensors, float beta2, float one_minus_beta1, float one_minus_beta2, float log_beta1,
                    float log_beta2, float eps)
{
    const struct tp_chunk chunk = tp_find_chunk(tensors, n_tensors, tp_group_id(0));
    if (chunk.n == 0 || !isfinite(clip[0]) || !tp_is_selected(selected, n_selected, tensors[4 * chunk.tensor + 2])) return;
    const float t = (float)counts[chunk.tensor], lr = as_float(step[TP_STEP_LEARNING_RATE]);
    const float step_size = lr / -expm1(t * log_beta1), root = sqrt(-expm1(t * log_beta2)), scale = clip[0];
    const float decay = -lr * as_float(step[TP_STEP_WEIGHT_DECAY]);
    for (uint k = get_local_id(0); k < chunk.n; k += get_local_size(0)) {
        const size_t i = (size_t)chunk.offset + k;
        const float g = grads[i] * scale;
        const float m1 = fma(one_minus_beta1, g - m[i], m[i]), v1 = fma(beta2, v[i], one_minus_beta2 * g * g);
        m[i] = m1;
        v[i] = v1;
        params[i] = fma(decay, params[i], params[i]) - step_size * m1 / (sqrt(v1) / root + eps);
    }
}
