/* AdaMoLE's gate (arXiv 2405.00361, equations 5-7), the fixed threshold of the same paper's equation 4, and their gradient.
 *   tau[t] = max_threshold * sigmoid(raw[t])   score = p - tau   sel = score >= 0          (has_raw)
 *   score = p                                  sel = p >= max_threshold                    (no raw)
 *   S = sum_e sel * score, ascending e         weight = sel * score / (S or 1 if S == 0)
 * Gradient, c = dweight: da_e = sel_e (c_e - sum_j weight_j c_j) / max(S, 1e-8) + dscore_e;  S == 0: da_e = sel_e c_e + dscore_e.
 *   dp = da   draw = -(sum_e da_e) * max_threshold * s (1 - s), s = sigmoid(raw)
 * It reads sel and score as the forward kernel stored them, so both always agree about the choice.
 * max_threshold is the argument, times the step word `word` (a float) if that is not 0.
 * One work-item per row t = get_global_id(0). Sums in f32. */
#include "common/base.clh"
#include "common/step.clh"

static inline float scaled(__global const uint *step, uint word, float max_threshold)
{
    return word ? max_threshold * as_float(step[word]) : max_threshold;
}

__kernel void threshold_gate(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *p,
                             __global const float *raw, __global float *weight, __global int *sel, __global float *score, uint n,
                             float factor, uint word, uint has_raw)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, rows_symbol, rows_bound)) return;
    const size_t row = t * n;
    const float max_threshold = scaled(step, word, factor);
    float tau = 0.0f, bound = max_threshold;
    if (has_raw) {
        tau = max_threshold / (1.0f + exp(-raw[t]));
        bound = 0.0f;
    }
    float sum = 0.0f;
    for (uint e = 0; e < n; ++e) {
        const float value = p[row + e] - tau;
        const int chosen = value >= bound;
        score[row + e] = value;
        sel[row + e] = chosen;
        if (chosen) sum += value;
    }
    const float divisor = sum == 0.0f ? 1.0f : sum;
    for (uint e = 0; e < n; ++e) weight[row + e] = sel[row + e] ? score[row + e] / divisor : 0.0f;
}

__kernel void threshold_gate_backward(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *weight,
                                      __global const int *sel, __global const float *score, __global const float *raw,
                                      __global const float *dweight, __global const float *dscore, __global float *dp,
                                      __global float *draw, uint n, float factor, uint word, uint has_raw, uint has_dweight,
                                      uint has_dscore)
{
    const size_t t = get_global_id(0);
    if (t >= tp_rows(step, rows_symbol, rows_bound)) return;
    const size_t row = t * n;
    float sum = 0.0f, dot = 0.0f;
    if (has_dweight) {
        for (uint e = 0; e < n; ++e) {
            if (!sel[row + e]) continue;
            sum += score[row + e];
            dot = fma(weight[row + e], dweight[row + e], dot);
        }
    }
    const float divisor = sum == 0.0f ? 1.0f : fmax(sum, 1e-8f);
    if (sum == 0.0f) dot = 0.0f;
    float total = 0.0f;
    for (uint e = 0; e < n; ++e) {
        float grad = has_dweight && sel[row + e] ? (dweight[row + e] - dot) / divisor : 0.0f;
        if (has_dscore) grad += dscore[row + e];
        total += grad;
        dp[row + e] = grad;
    }
    if (has_raw) {
        const float s = 1.0f / (1.0f + exp(-raw[t]));
        draw[t] = -total * scaled(step, word, factor) * s * (1.0f - s);
    }
}
