/* Cross entropy over a large vocabulary and what its gradient needs, in one walk over blocks of logits (columns first .. first + n - 1, rows
 * of `stride` elements in scratch); state[0], [1], [2]: rows of R with the label's logit, the maximum and the sum of exp(logit - maximum) of
 * the blocks so far:
 *   gather        x[r, :] = hidden[rows[r], :]
 *   (product)     logits = x W^T of the block
 *   exponentials  updates the state; keep: logits -> exp(logit - maximum), and expected[r, :] shrinks by exp(old maximum - new maximum)
 *   (product)     keep: expected[r, :] += logits W of the block
 *   normalise     keep: expected[r, :] /= sum, so that it is sum_v softmax(logits)[r, v] W[v, :]
 *   finish        lse = maximum + log(sum), nll = lse - label's logit, loss = loss_scale * sum of nll
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

/* `shared` holds a float per item, combined in a fixed tree; the group size is a power of two. */
__kernel void exponentials(__global float *logits, __global const int *labels, __global float *state, __global float *expected,
                           __global const uint *step, uint r_symbol, uint r_bound, uint d, uint keep, uint stride, uint first, uint n,
                           __local float *shared)
{
    const uint r = (uint)tp_group_id(0), i = get_local_id(0), size = get_local_size(0);
    /* Groups past the run-time rows have no columns; they may not return before the barriers (kernels/README.md). */
    const bool active = r < tp_rows(step, r_symbol, r_bound);
    const uint end = active ? n : 0, label = active ? (uint)labels[r] : 0;
    __global float *row = logits + (ulong)r * stride;
    const float before = active && first ? state[(ulong)r_bound + r] : -INFINITY;
    float largest = before, sum = 0.0f;
    for (uint j = i; j < end; j += size) {
        largest = fmax(largest, row[j]);
        if (first + j == label) state[r] = row[j];
    }
    shared[i] = largest;
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        if (i < half_size) shared[i] = fmax(shared[i], shared[i + half_size]);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    largest = shared[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint j = i; j < end; j += size) {
        const float e = share(row[j], largest);
        sum += e;
        if (keep) row[j] = e;
    }
    shared[i] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        if (i < half_size) shared[i] += shared[i + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float shrink = share(before, largest);
    const uint columns = active && keep && first && shrink != 1.0f ? d : 0;
    for (uint j = i; j < columns; j += size) expected[(ulong)r * d + j] *= shrink;
    if (active && get_local_id(0) == 0) {
        state[(ulong)r_bound + r] = largest;
        state[2 * (ulong)r_bound + r] = first ? fma(state[2 * (ulong)r_bound + r], shrink, shared[0]) : shared[0];
    }
}

__kernel void normalise(__global float *expected, __global const float *state, __global const uint *step, uint r_symbol, uint r_bound,
                        uint d)
{
    const uint r = (uint)tp_group_id(0);
    if (r >= tp_rows(step, r_symbol, r_bound)) return;
    const float inverse = 1.0f / state[2 * (ulong)r_bound + r];
    for (uint j = get_local_id(0); j < d; j += get_local_size(0)) expected[(ulong)r * d + j] *= inverse;
}

__kernel void finish(__global const float *state, __global const int *labels, __global float *loss, __global float *nll,
                     __global float *lse, __global const uint *step, uint r_symbol, uint r_bound, uint n_labels, __local float *shared)
{
    const uint n = tp_rows(step, r_symbol, r_bound), i = get_local_id(0);
    float total = 0.0f;
    for (uint r = i; r < n; r += get_local_size(0)) {
        const float x = state[(ulong)r_bound + r] + log(state[2 * (ulong)r_bound + r]);
        const float y = (uint)labels[r] < n_labels ? x - state[r] : NAN;
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
