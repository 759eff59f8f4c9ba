/* Rotary embedding, rotate-half form: with angle a = positions[t] * theta^(-2i/head_dim) (negated if inverse), for every head
 *   y[t][i] = x[t][i] cos a - x[t][i + half] sin a,   y[t][i + half] = x[t][i + half] cos a + x[t][i] sin a,   half = head_dim / 2.
 * Work-item: (row t, pair i), all heads. y may be x. No accumulation. ratio: theta^(-2/head_dim) * 2^64 in two words;
 * with TP_ROPE_TABLE the frequencies themselves, in turns per position times 2^64, are given: [head_dim/2][upper, lower]. */
#include "common/base.clh"
#include "common/step.clh"

typedef float tp_rope_float;
typedef int tp_rope_int;
typedef uint tp_rope_uint;
#define TP_ROPE_TO_FLOAT(x) convert_float(x)
#define TP_ROPE_TO_INT(x) as_int(x)
#include "common/rope.clh"

__kernel void rope(__global const float *x, __global const int *positions, TP_ROPE_TABLE_ARGUMENT __global float *y,
                   __global const uint *step, uint sym, uint bound, uint n_heads, uint head_dim, TP_ROPE_RATIO_ARGUMENTS uint inverse)
{
    const uint n = tp_rows(step, sym, bound), pairs = head_dim / 2;
    const size_t id = get_global_id(0), t = id / pairs;
    const uint i = id % pairs;
    if (t >= n) return;
    const ulong frequency = TP_ROPE_FREQUENCY(i);
    float c, s;
    tp_rope_angle(&c, &s, (uint)positions[t], (uint)(frequency >> 32), (uint)frequency);
    if (inverse) s = -s;
    for (uint head = 0; head < n_heads; head++) {
        const size_t at = (t * n_heads + head) * head_dim + i;
        const float a = x[at], b = x[at + pairs];
        y[at] = a * c - b * s;
        y[at + pairs] = b * c + a * s;
    }
}
