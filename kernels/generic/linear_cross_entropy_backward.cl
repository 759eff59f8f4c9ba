/* d_hidden[t, :] = (g + dlse[r]) * expected[r, :] - g * W[labels[r], :] where rows[r] == t (rows ascend), else 0;
 * g = dloss * loss_scale + dnll[r]. A label outside the vocabulary has no row to subtract.
 * W is one part of a weight in rows: its rows first_label .. first_label + n_labels - 1. The first part writes, the others subtract.
 * Index map: one work-group per row of d_hidden. f32, two operations per element. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/quant.clh"

__kernel void scatter(__global const float *expected, __global const tp_weight *weight, __global const int *rows,
                      __global const int *labels, __global const float *dloss, __global const float *dnll, __global const float *dlse,
                      __global float *d_hidden, __global const uint *step, uint r_symbol, uint r_bound, uint t_symbol, uint t_bound,
                      uint d, uint has_dloss, uint has_dnll, uint has_dlse, uint first_label, uint n_labels, uint add)
{
    const uint t = (uint)tp_group_id(0), n = tp_rows(step, r_symbol, r_bound);
    if (t >= tp_rows(step, t_symbol, t_bound)) return;
    uint low = 0, high = n;
    while (low < high) {
        const uint middle = (low + high) / 2;
        if ((uint)rows[middle] < t) low = middle + 1;
        else high = middle;
    }
    const bool found = low < n && (uint)rows[low] == t;
    float g = 0.0f, softmax = 0.0f;
    uint label = n_labels;
    if (found) {
        g = (has_dloss ? dloss[0] * as_float(step[TP_STEP_LOSS_SCALE]) : 0.0f) + (has_dnll ? dnll[low] : 0.0f);
        softmax = g + (has_dlse ? dlse[low] : 0.0f);
        label = (uint)labels[low] - first_label;
    }
    for (uint j = get_local_id(0); j < d; j += get_local_size(0)) {
        float x = 0.0f;
        if (add) x = d_hidden[(ulong)t * d + j];
        else if (found) x = softmax * expected[(ulong)low * d + j];
        if (label < n_labels) x = fma(-g, tp_weight_at(weight, (ulong)label * d + j), x);
        d_hidden[(ulong)t * d + j] = x;
    }
}
