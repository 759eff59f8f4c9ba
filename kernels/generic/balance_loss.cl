/* Load-balancing loss with T the run-time number of rows, E experts:
 *   aux = E * sum_e (counts[e] / T) * (sum_t score[t, e] / T)     total = previous + aux
 *   dscore[t, e] = (daux + dtotal) * E * counts[e] / T^2           (counts carries no gradient)
 * Forward: one work-group (its size a power of two); work-item i sums the rows i, i + size, ... and a tree in local memory adds the partial
 * sums, all in f32. Backward: one work-item per element t * E + e = get_global_id(0). T = 0 gives 0. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void balance_loss(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *score,
                           __global const int *counts, __global const float *previous, __global float *aux, __global float *total,
                           uint n_experts, uint has_previous, __local float *sum)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound);
    const uint me = get_local_id(0), n = get_local_size(0);
    const float share = n_tokens ? 1.0f / (float)n_tokens : 0.0f;
    float part = 0.0f;
    for (uint t = me; t < n_tokens; t += n) {
        float row = 0.0f;
        for (uint e = 0; e < n_experts; ++e) row = fma((float)counts[e] * share, score[(size_t)t * n_experts + e], row);
        part += row;
    }
    sum[me] = part;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = n / 2; half_size > 0; half_size /= 2) {
        if (me < half_size) sum[me] += sum[me + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (me == 0) {
        const float value = (float)n_experts * (sum[0] * share);
        aux[0] = value;
        total[0] = has_previous ? previous[0] + value : value;
    }
}

__kernel void balance_loss_backward(__global const uint *step, uint rows_symbol, uint rows_bound, __global const int *counts,
                                    __global const float *daux, __global const float *dtotal, __global float *dscore, uint n_experts,
                                    uint has_daux, uint has_dtotal)
{
    const size_t i = get_global_id(0);
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound);
    if (i >= (size_t)n_tokens * n_experts) return;
    const float seed = (has_daux ? daux[0] : 0.0f) + (has_dtotal ? dtotal[0] : 0.0f);
    const float share = 1.0f / (float)n_tokens;
    dscore[i] = seed * (float)n_experts * ((float)counts[i % n_experts] * share) * share;
}
