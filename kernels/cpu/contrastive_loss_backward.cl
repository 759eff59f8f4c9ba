/* Gradients of the contrastive loss on a CPU, formulas in generic/contrastive_loss_backward.cl. One work-item per work-group.
 *   contrast_dx      group = share of the tokens: dx and, if has_weight, dweight. Where dx lies at addend's place, only tokens with items
 *                    are touched
 *   contrast_outer   units: 4 rows of dlora_a x 64 columns, then 4 rows of dlora_bt x 64 columns */
#include "common/base.clh"
#include "common/step.clh"
#include "common/philox.clh"
#include "common/contrast.clh"
#include "common/vector.clh"

#define SINGLE __kernel __attribute__((reqd_work_group_size(1, 1, 1)))
#define MAX_EXPERTS 256

SINGLE void contrast_dx(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *addend,
                        __global const float *lora_a, __global const int *items, __global const float *dz, __global const float *dloss,
                        __global float *dx, __global float *dweight, uint n_experts, uint rank, uint d_in, uint has_addend, uint has_weight,
                        uint n_groups)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), group = tp_group_id(0);
    const uint end = tp_share_rows(n_tokens, n_groups, group + 1);
    const float seed = dloss[0];
    int next[MAX_EXPERTS];
    __global const int *tokens = items + 2 * n_experts;
    const uint begin = tp_share_rows(n_tokens, n_groups, group);
    /* Items ascend, so a cursor per expert replaces searching. */
    for (uint e = 0; e < n_experts; ++e) {
        int low = items[2 * e], high = low + items[2 * e + 1];
        while (low < high) {
            const int middle = (low + high) / 2;
            if (tokens[middle] < (int)begin) low = middle + 1;
            else high = middle;
        }
        next[e] = low;
    }
    for (uint t = begin; t < end; ++t) {
        __global float *out = dx + (size_t)t * d_in;
        __global const float *start = addend + (size_t)t * d_in;
        int place[MAX_EXPERTS];
        uint expert[MAX_EXPERTS], n = 0;
        for (uint e = 0; e < n_experts; ++e) {
            const bool found = next[e] < items[2 * e] + items[2 * e + 1] && tokens[next[e]] == (int)t;
            if (has_weight) dweight[(size_t)t * n_experts + e] = found ? seed * dz[(size_t)next[e] * (rank + 1) + rank] : 0.0f;
            if (!found) continue;
            expert[n] = e;
            place[n++] = next[e]++;
        }
        if (n == 0 && has_addend && out == start) continue;
        uint c = 0;
        for (; c + 16 <= d_in; c += 16) {
            float16 sum = (float16)(0.0f);
            for (uint k = 0; k < n; ++k)
                for (uint q = 0; q < rank; ++q)
                    sum = fma((float16)(dz[(size_t)place[k] * (rank + 1) + q]),
                              tp_load16(lora_a + (size_t)(expert[k] * rank + q) * d_in + c), sum);
            sum *= seed;
            if (has_addend) sum += tp_load16(start + c);
            tp_store16(sum, out + c);
        }
        for (; c < d_in; ++c) {
            float sum = 0.0f;
            for (uint k = 0; k < n; ++k)
                for (uint q = 0; q < rank; ++q)
                    sum = fma(dz[(size_t)place[k] * (rank + 1) + q], lora_a[(size_t)(expert[k] * rank + q) * d_in + c], sum);
            out[c] = has_addend ? start[c] + seed * sum : seed * sum;
        }
    }
}

/* out[i, c] = seed sum_k coef[k coef_stride + i coef_row] in[list[k] or k, c] for n_rows <= 4 rows i and the columns first .. end - 1. */
static inline void combine(__global float *out, __global const float *coef, size_t coef_stride, size_t coef_row, __global const float *in,
                           __global const int *list, uint n, uint n_rows, uint width, uint first, uint end, float seed)
{
    __global const float *f0 = coef, *f1 = coef + min(1u, n_rows - 1) * coef_row, *f2 = coef + min(2u, n_rows - 1) * coef_row,
                         *f3 = coef + min(3u, n_rows - 1) * coef_row;
    uint c = first;
    for (; c + 16 <= end; c += 16) {
        float16 s0 = (float16)(0.0f), s1 = s0, s2 = s0, s3 = s0;
        for (uint k = 0; k < n; ++k) {
            const float16 v = tp_load16(in + (size_t)(list ? (uint)list[k] : k) * width + c);
            const size_t at = k * coef_stride;
            s0 = fma((float16)(f0[at]), v, s0);
            s1 = fma((float16)(f1[at]), v, s1);
            s2 = fma((float16)(f2[at]), v, s2);
            s3 = fma((float16)(f3[at]), v, s3);
        }
        tp_store16(seed * s0, out + c);
        if (n_rows > 1) tp_store16(seed * s1, out + (size_t)width + c);
        if (n_rows > 2) tp_store16(seed * s2, out + (size_t)2 * width + c);
        if (n_rows > 3) tp_store16(seed * s3, out + (size_t)3 * width + c);
    }
    for (; c < end; ++c) {
        float4 sum = (float4)(0.0f);
        for (uint k = 0; k < n; ++k) {
            const size_t at = k * coef_stride;
            sum = fma((float4)(f0[at], f1[at], f2[at], f3[at]), (float4)(in[(size_t)(list ? (uint)list[k] : k) * width + c]), sum);
        }
        const float value[4] = {sum.x, sum.y, sum.z, sum.w};
        for (uint i = 0; i < n_rows; ++i) out[(size_t)i * width + c] = seed * value[i];
    }
}

#define ROWS 4
#define WIDTH 64

SINGLE void contrast_outer(__global const float *x, __global const float *lora_bt, __global const int *items, __global const float *dz,
                           __global const float *w, __global const float *dloss, __global float *da, __global float *dbt, uint n_experts,
                           uint rank, uint d_in, uint d_out, uint n_groups)
{
    const uint n_all = n_experts * rank, a_across = (d_in + WIDTH - 1) / WIDTH, b_across = (d_out + WIDTH - 1) / WIDTH;
    const uint a_down = n_experts * ((rank + ROWS - 1) / ROWS), b_down = (n_all + ROWS - 1) / ROWS;
    const float seed = dloss[0];
    for (uint unit = tp_group_id(0); unit < a_across * a_down + b_across * b_down; unit += n_groups) {
        if (unit < a_across * a_down) {
            const uint down = unit / a_across, first = unit % a_across * WIDTH, per_expert = (rank + ROWS - 1) / ROWS;
            const uint e = down / per_expert, q = down % per_expert * ROWS, place = items[2 * e];
            combine(da + (size_t)(e * rank + q) * d_in, dz + (size_t)place * (rank + 1) + q, rank + 1, 1, x, items + 2 * n_experts + place,
                    (uint)items[2 * e + 1], min((uint)ROWS, rank - q), d_in, first, min(first + WIDTH, d_in), seed);
        } else {
            const uint at = unit - a_across * a_down, row = at / b_across * ROWS, first = at % b_across * WIDTH;
            combine(dbt + (size_t)row * d_out, w + (size_t)row * n_all, 1, n_all, lora_bt, 0, n_all, min((uint)ROWS, n_all - row), d_out,
                    first, min(first + WIDTH, d_out), seed);
        }
    }
}
