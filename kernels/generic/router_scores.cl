/* A router's scores: p[t, :] = softmax(x[t] gating^T) and, with a direction, raw[t] = <x[t], direction> + bias. Their gradient:
 *   grad[t, e] = p[t, e] (dp[t, e] - sum_j p[t, j] dp[t, j]), grad[t, E] = draw[t] (with a direction)       router_scores_grad
 *   dx[t] = addend[t] + sum_j grad[t, j] row j of gating, then direction                                   router_scores_backward
 *   dgating[e] = sum_t grad[t, e] x[t], ddirection = sum_t draw[t] x[t], dbias = sum_t draw[t]               router_scores_outer
 * Sums in f32, ascending. Index map: router_scores and router_scores_grad: one work-item per row t; router_scores_backward: (column, t);
 * router_scores_outer: (column, row of gating, then the direction). */
#include "common/base.clh"
#include "common/step.clh"

static inline float dot_row(__global const float *a, __global const float *b, uint n)
{
    float sum = 0.0f;
    for (uint k = 0; k < n; ++k) sum = fma(a[k], b[k], sum);
    return sum;
}

__kernel void router_scores(__global const float *x, __global const float *gating, __global const float *direction,
                            __global const float *bias, __global float *p, __global float *raw, __global const uint *step, uint symbol,
                            uint bound, uint d, uint n, uint has_direction)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, symbol, bound)) return;
    __global float *out = p + t * n;
    float top = -INFINITY, sum = 0.0f;
    for (uint e = 0; e < n; ++e) {
        const float value = dot_row(x + t * d, gating + (size_t)e * d, d);
        top = fmax(top, value);
        out[e] = value;
    }
    for (uint e = 0; e < n; ++e) {
        const float v = exp(out[e] - top);
        sum += v;
        out[e] = v;
    }
    for (uint e = 0; e < n; ++e) out[e] /= sum;
    if (has_direction) raw[t] = dot_row(x + t * d, direction, d) + bias[0];
}

__kernel void router_scores_grad(__global const float *p, __global const float *dp, __global const float *draw, __global float *grad,
                                 __global const uint *step, uint symbol, uint bound, uint n, uint has_direction, uint has_dp,
                                 uint has_draw)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, symbol, bound)) return;
    __global float *out = grad + t * (n + has_direction);
    const float dot = has_dp ? dot_row(p + t * n, dp + t * n, n) : 0.0f;
    for (uint e = 0; e < n; ++e) out[e] = has_dp ? p[t * n + e] * (dp[t * n + e] - dot) : 0.0f;
    if (has_direction) out[n] = has_draw ? draw[t] : 0.0f;
}

__kernel void router_scores_backward(__global const float *grad, __global const float *gating, __global const float *direction,
                                     __global const float *addend, __global float *dx, __global const uint *step, uint symbol, uint bound,
                                     uint d, uint n, uint has_direction, uint has_addend)
{
    const size_t c = get_global_id(0), t = get_global_id(1), n_all = n + has_direction;
    if (c >= d || t >= tp_rows(step, symbol, bound)) return;
    float sum = 0.0f;
    for (uint e = 0; e < n; ++e) sum = fma(grad[t * n_all + e], gating[(size_t)e * d + c], sum);
    if (has_direction) sum = fma(grad[t * n_all + n], direction[c], sum);
    dx[t * d + c] = has_addend ? addend[t * d + c] + sum : sum;
}

__kernel void router_scores_outer(__global const float *x, __global const float *grad, __global float *dgating,
                                  __global float *ddirection, __global float *dbias, __global const uint *step, uint symbol, uint bound,
                                  uint d, uint n, uint has_direction)
{
    const size_t c = get_global_id(0), j = get_global_id(1), n_all = n + has_direction;
    if (c >= d || j >= n_all) return;
    const uint rows = tp_rows(step, symbol, bound);
    float sum = 0.0f, total = 0.0f;
    for (size_t t = 0; t < rows; ++t) {
        sum = fma(grad[t * n_all + j], x[t * d + c], sum);
        total += grad[t * n_all + j];
    }
    if (j < n) {
        dgating[j * d + c] = sum;
    } else {
        ddirection[c] = sum;
        if (c == 0) dbias[0] = total;
    }
}
