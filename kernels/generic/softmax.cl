/* Softmax of every row, and its gradient.
 *   p[t, e] = exp(x[t, e] - max_e x[t, e]) / sum_e exp(...)
 *   dx[t, e] = p[t, e] * (dp[t, e] - sum_j p[t, j] dp[t, j])
 * One work-item per row t = get_global_id(0). Sums in f32, ascending e. Outputs may share the storage of x or dp. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void softmax(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *x, __global float *p, uint n)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, rows_symbol, rows_bound)) return;
    __global const float *in = x + t * n;
    __global float *out = p + t * n;
    float top = in[0];
    for (uint e = 1; e < n; ++e) top = fmax(top, in[e]);
    float sum = 0.0f;
    for (uint e = 0; e < n; ++e) {
        const float v = exp(in[e] - top);
        sum += v;
        out[e] = v;
    }
    for (uint e = 0; e < n; ++e) out[e] /= sum;
}

__kernel void softmax_backward(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *p,
                               __global const float *dp, __global float *dx, uint n)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, rows_symbol, rows_bound)) return;
    __global const float *prob = p + t * n, *grad = dp + t * n;
    __global float *out = dx + t * n;
    float dot = 0.0f;
    for (uint e = 0; e < n; ++e) dot = fma(prob[e], grad[e], dot);
    for (uint e = 0; e < n; ++e) out[e] = prob[e] * (grad[e] - dot);
}
