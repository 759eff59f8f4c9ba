/* Mixture of LoRA experts: what the dense form needs besides matrix products, and the sparse form. E experts of rank r, R = E*r.
 * z, v, zs, dz are [T, R]; in the sparse form what no token chose is neither written nor read there.
 *
 *   lora_scale            zs[t, j] = s z[t, j], s = scale * weight[t, e] (scale alone without weight); work-item = (t, e)
 *   lora_scale_backward   dweight[t, e] = sel[t, e] * scale * sum_{j of e} v z, dz = s v (over v), zs = s z; work-item = (t, e)
 *   lora_project          out[t, e*r + q] = <in[t], b[e*r + q]> for t in list[e]; a fixed number of groups, n_groups, loops over the tiles
 *                         of TILE listed tokens x TILE columns; work-item = one product, operands in local memory
 *   lora_combine          out[t, c] = init[t, c] + sum over experts with sel[t, e], ascending, of coef[t, e*r + q] b[e*r + q, c];
 *                         work-item = (c, t)
 *   lora_keep             out = init + in where the mask keeps it (generic/dropout_mask.cl), else init; work-item = (t, c)
 *   lora_outer            out[e*r + q, c] = sum over t in list[e], in its order, of coef[t, e*r + q] b[t, c]; group = TILE x TILE outputs
 *                         of one expert (dimension 2), operands in local memory
 *
 * All sums in f32, in an order that depends on the sizes alone. TILE: side of the work-group (16, or less where 256 work-items do not
 * fit). */
#include "common/base.clh"
#include "common/step.clh"

#ifndef TILE
#define TILE 8
#endif

__kernel void lora_scale(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *z,
                         __global const float *weight, __global const int *sel, __global float *zs, uint n_experts, uint rank,
                         float scale, uint has_weight, uint is_sparse)
{
    const size_t i = get_global_id(0);
    if (i >= (size_t)tp_rows(step, rows_symbol, rows_bound) * n_experts) return;
    if (is_sparse && !sel[i]) return;
    const float s = has_weight ? scale * weight[i] : scale;
    for (size_t q = i * rank; q < (i + 1) * rank; ++q) zs[q] = s * z[q];
}

__kernel void lora_scale_backward(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *z,
                                  __global const float *weight, __global const int *sel, __global float *dz, __global float *zs,
                                  __global float *dweight, uint n_experts, uint rank, float scale, uint has_weight, uint is_sparse)
{
    const size_t i = get_global_id(0);
    if (i >= (size_t)tp_rows(step, rows_symbol, rows_bound) * n_experts) return;
    if (is_sparse && !sel[i]) {
        dweight[i] = 0.0f;
        return;
    }
    const float s = has_weight ? scale * weight[i] : scale;
    float dot = 0.0f;
    for (size_t q = i * rank; q < (i + 1) * rank; ++q) {
        const float v = dz[q], u = z[q];
        dot = fma(v, u, dot);
        dz[q] = s * v;
        zs[q] = s * u;
    }
    if (has_weight) dweight[i] = sel[i] ? scale * dot : 0.0f;
}

__kernel void lora_project(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *in, __global const float *b,
                           __global const int *counts, __global const int *list, __global float *out, uint n, uint n_experts, uint rank,
                           uint n_groups)
{
    __local float left[TILE][TILE + 1], right[TILE][TILE + 1];
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), n_all = n_experts * rank, n_across = (rank + TILE - 1) / TILE;
    const uint group = tp_group_id(0), column = get_local_id(0), row = get_local_id(1);
    uint base = 0;
    for (uint e = 0; e < n_experts; ++e) {
        const uint count = min((uint)counts[e], n_tokens), n_units = (count + TILE - 1) / TILE * n_across;
        __global const int *tokens = list + (size_t)e * rows_bound;
        for (uint unit = (group + n_groups - base % n_groups) % n_groups; unit < n_units; unit += n_groups) {
            const uint i = unit / n_across * TILE + row, q = unit % n_across * TILE + column, loaded_q = unit % n_across * TILE + row;
            const size_t t = tokens[min(i, count - 1)];
            const size_t loaded = (size_t)(e * rank + min(loaded_q, rank - 1)) * n;
            float sum = 0.0f;
            for (uint k0 = 0; k0 < n; k0 += TILE) {
                const uint k = k0 + column;
                left[row][column] = k < n ? in[t * n + k] : 0.0f;
                right[row][column] = k < n ? b[loaded + k] : 0.0f;
                barrier(CLK_LOCAL_MEM_FENCE);
                for (uint j = 0; j < TILE; ++j) sum = fma(left[row][j], right[column][j], sum);
                barrier(CLK_LOCAL_MEM_FENCE);
            }
            if (i < count && q < rank) out[t * n_all + e * rank + q] = sum;
        }
        base += n_units;
    }
}

__kernel void lora_combine(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *init,
                           __global const float *coef, __global const float *b, __global const int *sel, __global float *out,
                           uint n_experts, uint rank, uint n, uint has_init)
{
    const size_t c = get_global_id(0), t = get_global_id(1);
    if (c >= n || t >= tp_rows(step, rows_symbol, rows_bound)) return;
    float sum = 0.0f;
    for (uint e = 0; e < n_experts; ++e) {
        if (!sel[t * n_experts + e]) continue;
        for (size_t j = (size_t)e * rank; j < (size_t)(e + 1) * rank; ++j) sum = fma(coef[t * n_experts * rank + j], b[j * n + c], sum);
    }
    out[t * n + c] = has_init ? init[t * n + c] + sum : sum;
}

__kernel void lora_keep(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *init, __global const float *in,
                        __global const uint *keep, __global float *out, uint n, uint n_words, uint has_init)
{
    const size_t i = get_global_id(0);
    if (i >= (size_t)tp_rows(step, rows_symbol, rows_bound) * n) return;
    const uint c = (uint)(i % n);
    const uint word = keep[i / n * n_words + c / 512 * 16 + c % 16];
    const float value = word >> (c / 16 % 32) & 1 ? in[i] : 0.0f;
    out[i] = has_init ? init[i] + value : value;
}

__kernel void lora_outer(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *coef, __global const float *b,
                         __global const int *counts, __global const int *list, __global float *out, uint n_experts, uint rank, uint n)
{
    __local float left[TILE][TILE + 1], right[TILE][TILE + 1];
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), n_all = n_experts * rank;
    const uint e = get_global_id(2), column = get_local_id(0), row = get_local_id(1);
    const uint c = get_global_id(0), q0 = tp_group_id(1) * TILE, q = q0 + row;
    const uint count = min((uint)counts[e], n_tokens);
    __global const int *tokens = list + (size_t)e * rows_bound;
    float sum = 0.0f;
    for (uint i0 = 0; i0 < count; i0 += TILE) {
        const uint i = i0 + row;
        const size_t t = i < count ? tokens[i] : 0;
        left[row][column] = i < count && q0 + column < rank ? coef[t * n_all + e * rank + q0 + column] : 0.0f;
        right[row][column] = i < count && c < n ? b[t * n + c] : 0.0f;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint j = 0; j < TILE; ++j) sum = fma(left[j][row], right[j][column], sum);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (q < rank && c < n) out[((size_t)e * rank + q) * n + c] = sum;
}
