/* A whole mixture of LoRA experts for at most MAX_ROWS rows (decoding) in one launch: the bits of router_scores, threshold_gate and, dense,
 * lora_expert one by one.
 *   p = softmax(x gating^T), raw = x direction^T + bias, weight = threshold_gate(p, raw)       (no direction: the fixed threshold)
 *   out[t] = y0[t] + sum_j scale * weight[t, j / rank] * <x[t], a[j]> * bt[j]
 * One group of one work-item: the matrices are read once, which is too little for a second thread to be worth waking.
 * score: rows x (n + 1) floats, coef: rows x n_all floats, scratch. Sums in f32, in the order of the kernels named. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/skinny.clh"

#define MAX_ROWS 8

SINGLE void router_experts(__global const float *x, __global const float *gating, __global const float *direction,
                           __global const float *bias, __global const float *a, __global const float *bt, __global const float *y0,
                           __global float *out, __global float *score, __global float *coef, __global const uint *step, uint symbol,
                           uint bound, uint d, uint d_out, uint n, uint rank, uint has_direction, float max_threshold, float scale)
{
    const uint rows = min(tp_rows(step, symbol, bound), (uint)MAX_ROWS), n_all = n * rank, n_scores = n + has_direction;
    for (uint first = 0; first < rows; first += 6) {
        const uint n_rows = min(6u, rows - first);
        size_t row[6], keep_row[6] = {0, 0, 0, 0, 0, 0};
        float4 r[6];
        for (uint i = 0; i < 6; ++i) row[i] = (size_t)min(first + i, rows - 1) * d;
        for (uint j0 = 0; j0 < n_scores; j0 += 4) {
            __global const float *column[4];
            for (uint j = 0; j < 4; ++j) column[j] = j0 + j < n ? gating + (size_t)(j0 + j) * d : has_direction ? direction : gating;
            dot_6x4(r, x, row, (__global const uint *)0, keep_row, column, d);
            for (uint i = 0; i < n_rows; ++i) {
                const float value[4] = {r[i].x, r[i].y, r[i].z, r[i].w};
                for (uint j = 0; j < 4 && j0 + j < n_scores; ++j)
                    score[(first + i) * (n + 1) + j0 + j] = j0 + j < n ? value[j] : value[j] + bias[0];
            }
        }
        for (uint i = 0; i < n_rows; ++i) {
            __global float *p = score + (first + i) * (n + 1);
            float top = p[0], sum = 0.0f, tau = 0.0f, least = max_threshold, chosen = 0.0f;
            for (uint e = 1; e < n; ++e) top = fmax(top, p[e]);
            for (uint e = 0; e < n; ++e) {
                const float v = exp(p[e] - top);
                sum += v;
                p[e] = v;
            }
            for (uint e = 0; e < n; ++e) p[e] /= sum;
            if (has_direction) {
                tau = max_threshold / (1.0f + exp(-p[n]));
                least = 0.0f;
            }
            for (uint e = 0; e < n; ++e)
                if (p[e] - tau >= least) chosen += p[e] - tau;
            const float divisor = chosen == 0.0f ? 1.0f : chosen;
            for (uint e = 0; e < n; ++e) p[e] = p[e] - tau >= least ? (p[e] - tau) / divisor : 0.0f;
        }
        for (uint j0 = 0; j0 < n_all; j0 += 4) {
            __global const float *column[4];
            for (uint j = 0; j < 4; ++j) column[j] = a + (size_t)min(j0 + j, n_all - 1) * d;
            dot_6x4(r, x, row, (__global const uint *)0, keep_row, column, d);
            for (uint i = 0; i < n_rows; ++i) {
                const float value[4] = {r[i].x, r[i].y, r[i].z, r[i].w};
                for (uint j = j0; j < min(j0 + 4, n_all); ++j) {
                    const float s = scale * score[(first + i) * (n + 1) + j / rank];
                    coef[(first + i) * n_all + j] = s * value[j - j0];
                }
            }
        }
    }
    for (uint c = 0; c < d_out; c += WIDTH) {
        for (uint t0 = 0; t0 < rows; t0 += 4) {
            size_t row[4], coef_row[4];
            for (uint i = 0; i < 4; ++i) {
                const size_t t = min(t0 + i, rows - 1);
                row[i] = t * d_out + c;
                coef_row[i] = t * n_all;
            }
            combine_4(out, y0, row, min(4u, rows - t0), coef, coef_row, 1, bt + c, d_out, (__global const int *)0, n_all,
                      min((uint)WIDTH, d_out - c), (__global const uint *)0, 0, 0, 0, (__global const float *)0);
        }
    }
}
