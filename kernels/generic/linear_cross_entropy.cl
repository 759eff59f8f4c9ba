/* Cross entropy over a large vocabulary, made from blocks of logits (columns first .. first + n - 1, rows of `stride` elements in scratch):
 *   gather    x[r, :] = hidden[rows[r], :]
 *   reduce    per row the block's maximum and sum of exp(logit - maximum) to state[1 + 2 block] and state[2 + 2 block] (rows of R), the
 *             label's logit, if it is in the block, to state[0]
 *   finish    lse = maximum + log(sum) over all blocks, nll = lse - label's logit, loss = loss_scale * sum of nll
 *   gradient  logits -> exp(logit - lse) * (g + dlse) - [column is the label] * g, g = dloss * loss_scale + dnll
 *   scatter   d_hidden[t, :] = dx[r, :] where rows[r] == t (rows ascend), else 0
 * A label outside the vocabulary makes nll NaN; a row index past the tokens gathers NaN.
 * Index map: one work-group per row (finish: one work-group). f32; sums in a fixed order for a given group size. */
#include "common/base.clh"
#include "common/step.clh"

__kernel void gather(__global const float *hidden, __global const int *rows, __global float *x, __global const uint *step, uint r_symbol,
                     uint r_bound, uint t_symbol, uint t_bound, uint d)
{
    const uint r = (uint)tp_group_id(0);
    if (r >= tp_rows(step, r_symbol, r_bound)) return;
    const uint t = (uint)rows[r];
    const bool inside = t < tp_rows(step, t_symbol, t_bound);
    for (uint j = get_local_id(0); j < d; j += get_local_size(0)) x[(ulong)r * d + j] = inside ? hidden[(ulong)t * d + j] : NAN;
}

/* exp(x - largest), 1 where both are the same infinity. */
static inline float share(float x, float largest) { return x == largest ? 1.0f : exp(x - largest); }

/* `shared` holds two floats per item: maximum and sum of each, merged in a fixed tree; the group size is a power of two. */
__kernel void reduce(__global const float *logits, __global const int *labels, __global float *state, __global const uint *step,
                     uint r_symbol, uint r_bound, uint block, uint stride, uint first, uint n, __local float *shared)
{
    const uint r = (uint)tp_group_id(0), i = get_local_id(0), size = get_local_size(0);
    /* Groups past the run-time rows have no columns; they may not return before the barriers (kernels/README.md). */
    const bool active = r < tp_rows(step, r_symbol, r_bound);
    const uint end = active ? n : 0, label = active ? (uint)labels[r] : 0;
    __global const float *row = logits + (ulong)r * stride;
    float largest = -INFINITY, sum = 0.0f;
    for (uint j = i; j < end; j += size) {
        const float x = row[j], e = share(-fabs(x - largest), 0.0f);
        sum = x > largest ? sum * e + 1.0f : sum + e;
        largest = fmax(largest, x);
        if (first + j == label) state[r] = x;
    }
    shared[i] = largest;
    shared[size + i] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        if (i < half_size) {
            const float mine = shared[i], other = shared[i + half_size], both = fmax(mine, other);
            shared[i] = both;
            shared[size + i] = shared[size + i] * share(mine, both) + shared[size + i + half_size] * share(other, both);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (active && get_local_id(0) == 0) {
        state[(ulong)(1 + 2 * block) * r_bound + r] = shared[0];
        state[(ulong)(2 + 2 * block) * r_bound + r] = shared[size];
    }
}

__kernel void finish(__global const float *state, __global const int *labels, __global float *loss, __global float *nll,
                     __global float *lse, __global const uint *step, uint r_symbol, uint r_bound, uint n_blocks, uint n_labels,
                     __local float *shared)
{
    const uint n = tp_rows(step, r_symbol, r_bound), i = get_local_id(0);
    float total = 0.0f;
    for (uint r = i; r < n; r += get_local_size(0)) {
        float largest = -INFINITY, sum = 0.0f;
        for (uint b = 0; b < n_blocks; b++) largest = fmax(largest, state[(ulong)(1 + 2 * b) * r_bound + r]);
        for (uint b = 0; b < n_blocks; b++) {
            const float block_largest = state[(ulong)(1 + 2 * b) * r_bound + r];
            sum = fma(state[(ulong)(2 + 2 * b) * r_bound + r], share(block_largest, largest), sum);
        }
        const float x = largest + log(sum), y = (uint)labels[r] < n_labels ? x - state[r] : NAN;
        lse[r] = x;
        nll[r] = y;
        total += y;
    }
    shared[i] = total;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = get_local_size(0) / 2; half_size > 0; half_size /= 2) {
        if (i < half_size) shared[i] += shared[i + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (get_local_id(0) == 0) loss[0] = shared[0] * as_float(step[TP_STEP_LOSS_SCALE]);
}

__kernel void gradient(__global float *logits, __global const int *labels, __global const float *lse, __global const float *dloss,
                       __global const float *dnll, __global const float *dlse, __global const uint *step, uint r_symbol, uint r_bound,
                       uint has_dloss, uint has_dnll, uint has_dlse, uint stride, uint first, uint n)
{
    const uint r = (uint)tp_group_id(0);
    if (r >= tp_rows(step, r_symbol, r_bound)) return;
    __global float *row = logits + (ulong)r * stride;
    const float g = (has_dloss ? dloss[0] * as_float(step[TP_STEP_LOSS_SCALE]) : 0.0f) + (has_dnll ? dnll[r] : 0.0f);
    const float softmax = g + (has_dlse ? dlse[r] : 0.0f), offset = lse[r];
    const uint label = (uint)labels[r];
    for (uint j = get_local_id(0); j < n; j += get_local_size(0))
        row[j] = exp(row[j] - offset) * softmax - (first + j == label ? g : 0.0f);
}

__kernel void scatter(__global const float *dx, __global const int *rows, __global float *d_hidden, __global const uint *step,
                      uint r_symbol, uint r_bound, uint t_symbol, uint t_bound, uint d)
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
    for (uint j = get_local_id(0); j < d; j += get_local_size(0))
        d_hidden[(ulong)t * d + j] = found ? dx[(ulong)low * d + j] : 0.0f;
}
