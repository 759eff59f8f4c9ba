/* Which elements of a row dropout keeps, as bits. keep[t, 16 b + l], bit i, is for column j = 512 b + 16 i + l: u >= p, where u = word j % 4
 * of Philox4x32-10 with counter (j / 4, positions[t], examples[t], optimizer step) and key (seed ^ stream), as in dropout.cl; 0 for
 * columns past the width. `threshold` is the smallest 24-bit word that is kept. Index map: dimension 0 = word, dimension 1 = t. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/philox.clh"

__kernel void dropout_mask(__global const int *examples, __global const int *positions, __global uint *keep, __global const uint *step,
                           uint symbol, uint bound, uint n, uint n_words, uint threshold, uint stream_lo, uint stream_hi)
{
    const uint at = get_global_id(0), t = get_global_id(1);
    if (at >= n_words || t >= tp_rows(step, symbol, bound)) return;
    const uint first = at / 16 * 512 + at % 16;
    const uint2 key = (uint2)(step[TP_STEP_SEED_LO] ^ stream_lo, step[TP_STEP_SEED_HI] ^ stream_hi);
    uint bits = 0;
    for (uint i = 0; i < 32; i++) {
        const uint j = first + 16 * i;
        if (j >= n) break;
        const uint4 word = tp_philox((uint4)(j / 4, (uint)positions[t], (uint)examples[t], step[TP_STEP_INDEX]), key);
        const uint words[4] = {word.x, word.y, word.z, word.w};
        bits |= (words[j % 4] >> 8 >= threshold ? 1u : 0u) << i;
    }
    keep[(size_t)t * n_words + at] = bits;
}
