/* Top-k gate and its gradient. Expert e of a row is chosen if fewer than k experts come before it, in the order of descending p and, among
 * equals, ascending index. S = sum of the chosen p in ascending e; S == 0 counts as 1.
 *   weight[t, e] = chosen ? p[t, e] / S : 0        sel[t, e] = chosen
 *   dp[t, e] = chosen ? (dweight[t, e] - sum_j weight[t, j] dweight[t, j]) / max(S, 1e-8) : 0     (S == 0: dweight[t, e])
 * One work-item per row t = get_global_id(0). Sums in f32. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void topk_gate(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *p, __global float *weight,
                        __global int *sel, uint n, uint k)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, rows_symbol, rows_bound)) return;
    __global const float *prob = p + t * n;
    float sum = 0.0f;
    for (uint e = 0; e < n; ++e) {
        const float v = prob[e];
        uint before = 0;
        for (uint j = 0; j < n; ++j) before += prob[j] > v || (prob[j] == v && j < e);
        sel[t * n + e] = before < k;
        if (before < k) sum += v;
    }
    const float divisor = sum == 0.0f ? 1.0f : sum;
    for (uint e = 0; e < n; ++e) weight[t * n + e] = sel[t * n + e] ? prob[e] / divisor : 0.0f;
}

__kernel void topk_gate_backward(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *p,
                                 __global const float *weight, __global const int *sel, __global const float *dweight, __global float *dp,
                                 uint n)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, rows_symbol, rows_bound)) return;
    const size_t row = t * n;
    float sum = 0.0f, dot = 0.0f;
    for (uint e = 0; e < n; ++e) {
        if (!sel[row + e]) continue;
        sum += p[row + e];
        dot = fma(weight[row + e], dweight[row + e], dot);
    }
    const float divisor = sum == 0.0f ? 1.0f : fmax(sum, 1e-8f);
    if (sum == 0.0f) dot = 0.0f;
    for (uint e = 0; e < n; ++e) dp[row + e] = sel[row + e] ? (dweight[row + e] - dot) / divisor : 0.0f;
}
