/* Gradients of the contrastive loss from what its forward part found (generic/contrastive_loss.cl), times dloss:
 *   dx[t] = addend[t] + sum over experts e, ascending, with an item of t: dz A_e          contrast_dx, work-item = (c, t)
 *   dweight[t, e] = the item's last column of dz, 0 where there is none                    contrast_dweight, work-item = (e, t)
 *   dlora_a[rows of e] = sum over the items of e of dz x^T                                 contrast_da, work-item = (c, row)
 *   dlora_bt = w lora_bt                                                                   contrast_dbt, work-item = (c, row)
 * All sums in f32. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/philox.clh"
#include "common/contrast.clh"

__kernel void contrast_dx(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *addend,
                          __global const float *lora_a, __global const int *items, __global const float *dz, __global const float *dloss,
                          __global float *dx, uint n_experts, uint rank, uint d_in, uint has_addend)
{
    const uint c = get_global_id(0), t = get_global_id(1);
    if (c >= d_in || t >= tp_rows(step, rows_symbol, rows_bound)) return;
    float sum = 0.0f;
    for (uint e = 0; e < n_experts; ++e) {
        const int place = contrast_find(items, n_experts, e, (int)t);
        for (uint q = 0; place >= 0 && q < rank; ++q)
            sum = fma(dz[(size_t)place * (rank + 1) + q], lora_a[(size_t)(e * rank + q) * d_in + c], sum);
    }
    const size_t at = (size_t)t * d_in + c;
    dx[at] = has_addend ? addend[at] + dloss[0] * sum : dloss[0] * sum;
}

__kernel void contrast_dweight(__global const uint *step, uint rows_symbol, uint rows_bound, __global const int *items,
                               __global const float *dz, __global const float *dloss, __global float *dweight, uint n_experts, uint rank)
{
    const uint e = get_global_id(0), t = get_global_id(1);
    if (e >= n_experts || t >= tp_rows(step, rows_symbol, rows_bound)) return;
    const int place = contrast_find(items, n_experts, e, (int)t);
    dweight[(size_t)t * n_experts + e] = place >= 0 ? dloss[0] * dz[(size_t)place * (rank + 1) + rank] : 0.0f;
}

__kernel void contrast_da(__global const float *x, __global const int *items, __global const float *dz, __global const float *dloss,
                          __global float *da, uint n_experts, uint rank, uint d_in)
{
    const uint c = get_global_id(0), row = get_global_id(1);
    if (c >= d_in || row >= n_experts * rank) return;
    const uint e = row / rank, end = (uint)items[2 * e] + (uint)items[2 * e + 1];
    float sum = 0.0f;
    for (uint place = items[2 * e]; place < end; ++place)
        sum = fma(dz[(size_t)place * (rank + 1) + row % rank], x[(size_t)items[2 * n_experts + place] * d_in + c], sum);
    da[(size_t)row * d_in + c] = dloss[0] * sum;
}

__kernel void contrast_dbt(__global const float *lora_bt, __global const float *w, __global const float *dloss, __global float *dbt,
                           uint n_all, uint d_out)
{
    const uint c = get_global_id(0), row = get_global_id(1);
    if (c >= d_out || row >= n_all) return;
    float sum = 0.0f;
    for (uint k = 0; k < n_all; ++k) sum = fma(w[(size_t)row * n_all + k], lora_bt[(size_t)k * d_out + c], sum);
    dbt[(size_t)row * d_out + c] = dloss[0] * sum;
}
