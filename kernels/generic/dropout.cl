/* y[t, j] = u >= p ? x[t, j] / (1 - p) : 0, u = word j % 4 of Philox4x32-10 with counter (j / 4, positions[t], examples[t], optimizer step)
 * and key (seed ^ stream), so the mask does not depend on the micro-batching. `keep_scale` is 1 / (1 - p) and `threshold` the smallest
 * 24-bit word that is kept. Index map: dimension 0 = j / 4, dimension 1 = t. y may share storage with x. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/philox.clh"

__kernel void dropout(__global const float *x, __global const int *examples, __global const int *positions, __global float *y,
                      __global const uint *step, uint symbol, uint bound, uint n, uint threshold, float keep_scale, uint stream_lo,
                      uint stream_hi)
{
    const uint quad = get_global_id(0), t = get_global_id(1);
    if (quad * 4 >= n || t >= tp_rows(step, symbol, bound)) return;
    const uint4 word = tp_philox((uint4)(quad, (uint)positions[t], (uint)examples[t], step[TP_STEP_INDEX]),
                                 (uint2)(step[TP_STEP_SEED_LO] ^ stream_lo, step[TP_STEP_SEED_HI] ^ stream_hi));
    const uint words[4] = {word.x, word.y, word.z, word.w};
    const uint end = min(4u, n - quad * 4);
    for (uint i = 0; i < end; i++) {
        const size_t at = (size_t)t * n + quad * 4 + i;
        y[at] = words[i] >> 8 >= threshold ? x[at] * keep_scale : 0.0f;
    }
}
