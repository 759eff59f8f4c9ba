/* As generic/router_scores.cl. Index map: one work-item per group; router_scores: a contiguous share of the rows; router_scores_backward:
 * units of 32 rows; router_scores_outer: units of 96 columns by four rows of gating, or by the direction. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"
#include "common/skinny.clh"

#define ROWS 32

SINGLE void router_scores(__global const float *x, __global const float *gating, __global const float *direction,
                          __global const float *bias, __global float *p, __global float *raw, __global const uint *step, uint symbol,
                          uint bound, uint d, uint n, uint has_direction, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound), n_all = n + has_direction;
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    for (uint first = tp_share_rows(rows, n_groups, tp_group_id(0)); first < end; first += 6) {
        const uint n_rows = min(6u, end - first);
        size_t row[6], keep_row[6] = {0, 0, 0, 0, 0, 0};
        for (uint i = 0; i < 6; ++i) row[i] = (size_t)min(first + i, end - 1) * d;
        for (uint j0 = 0; j0 < n_all; j0 += 4) {
            __global const float *column[4];
            for (uint j = 0; j < 4; ++j) column[j] = j0 + j < n ? gating + (size_t)(j0 + j) * d : has_direction ? direction : gating;
            float4 r[6];
            dot_6x4(r, x, row, (__global const uint *)0, keep_row, column, d);
            for (uint i = 0; i < n_rows; ++i) {
                const float value[4] = {r[i].x, r[i].y, r[i].z, r[i].w};
                for (uint j = 0; j < 4 && j0 + j < n_all; ++j) {
                    if (j0 + j < n) p[(size_t)(first + i) * n + j0 + j] = value[j];
                    else raw[first + i] = value[j] + bias[0];
                }
            }
        }
        for (uint i = 0; i < n_rows; ++i) {
            __global float *out = p + (size_t)(first + i) * n;
            float top = out[0], sum = 0.0f;
            for (uint e = 1; e < n; ++e) top = fmax(top, out[e]);
            for (uint e = 0; e < n; ++e) {
                const float v = exp(out[e] - top);
                sum += v;
                out[e] = v;
            }
            for (uint e = 0; e < n; ++e) out[e] /= sum;
        }
    }
}

SINGLE void router_scores_backward(__global const float *gating, __global const float *direction, __global const float *p,
                                   __global const float *dp, __global const float *draw, __global const float *addend,
                                   __global float *grad, __global float *dx, __global const uint *step, uint symbol, uint bound, uint d,
                                   uint n, uint has_direction, uint has_dp, uint has_draw, uint has_addend, uint n_groups)
{
    const uint n_tokens = tp_rows(step, symbol, bound), n_all = n + has_direction;
    const uint n_units = (n_tokens + ROWS - 1) / ROWS;
    for (uint unit = tp_group_id(0); unit < n_units; unit += n_groups) {
        const uint first = unit * ROWS, end = min(first + ROWS, n_tokens);
        for (size_t t = first; t < end; ++t) {
            __global const float *prob = p + t * n, *in = dp + t * n;
            __global float *out = grad + t * n_all;
            float dot = 0.0f;
            for (uint e = 0; has_dp && e < n; ++e) dot = fma(prob[e], in[e], dot);
            for (uint e = 0; e < n; ++e) out[e] = has_dp ? prob[e] * (in[e] - dot) : 0.0f;
            if (has_direction) out[n] = has_draw ? draw[t] : 0.0f;
        }
        for (uint c = 0; c < d; c += WIDTH) {
            const uint width = min((uint)WIDTH, d - c);
            for (uint t0 = first; t0 < end; t0 += 4) {
                size_t row[4], coef_row[4];
                for (uint i = 0; i < 4; ++i) {
                    const size_t t = min(t0 + i, end - 1);
                    row[i] = t * d + c;
                    coef_row[i] = t * n_all;
                }
                combine_4(dx, has_addend ? addend : (__global const float *)0, row, min(4u, end - t0), grad, coef_row, 1, gating + c, d,
                          (__global const int *)0, n, width, (__global const uint *)0, 0, 0, 0,
                          has_direction ? direction + c : (__global const float *)0);
            }
        }
    }
}

SINGLE void router_scores_outer(__global const float *x, __global const float *grad, __global float *dgating, __global float *ddirection,
                                __global float *dbias, __global const uint *step, uint symbol, uint bound, uint d, uint n,
                                uint has_direction, uint n_groups)
{
    const uint n_tokens = tp_rows(step, symbol, bound), n_all = n + has_direction;
    const uint n_across = (d + WIDTH - 1) / WIDTH, n_down = (n + 3) / 4 + has_direction;
    for (uint unit = tp_group_id(0); unit < n_down * n_across; unit += n_groups) {
        const uint c = unit / n_down * WIDTH, j0 = unit % n_down * 4; /* neighbours read the same columns of x */
        const bool is_direction = has_direction && unit % n_down == n_down - 1;
        size_t row[4], coef_row[4];
        for (uint i = 0; i < 4; ++i) {
            const uint j = min(j0 + i, n - 1);
            coef_row[i] = is_direction ? n : j;
            row[i] = is_direction ? c : (size_t)j * d + c;
        }
        combine_4(is_direction ? ddirection : dgating, (__global const float *)0, row, is_direction ? 1 : min(4u, n - j0), grad, coef_row,
                  n_all, x + c, d, (__global const int *)0, n_tokens, min((uint)WIDTH, d - c), (__global const uint *)0, 0, 0, 0,
                  (__global const float *)0);
        if (is_direction && c == 0) {
            float sum = 0.0f;
            for (size_t t = 0; t < n_tokens; ++t) sum += grad[t * n_all + n];
            dbias[0] = sum;
        }
    }
}
