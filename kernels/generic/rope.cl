/* Rotary embedding, rotate-half form: with angle a = positions[t] * theta^(-2i/head_dim) (negated if inverse), for every head
 *   y[t][i] = x[t][i] cos a - x[t][i + half] sin a,   y[t][i + half] = x[t][i + half] cos a + x[t][i] sin a,   half = head_dim / 2.
 * Work-item: (row t, pair i), all heads. y may be x. No accumulation. ratio: theta^(-2/head_dim) * 2^64 in two words;
 * with TP_ROPE_TABLE the frequencies themselves, in turns per position times 2^64, are given: [head_dim/2][upper, lower].
 * rope_pair rotates two values by the same angles. rope_cache stores the second one, and v as it is, in row slots[t] of a cache each;
 * slots outside are left out. Both give the bits of rope and cache_write one by one. */
#include "common/base.clh"
#include "common/step.clh"

typedef float tp_rope_float;
typedef int tp_rope_int;
typedef uint tp_rope_uint;
#define TP_ROPE_TO_FLOAT(x) convert_float(x)
#define TP_ROPE_TO_INT(x) as_int(x)
#include "common/rope.clh"

/* Pair i of all heads of one row; to may be x. */
static inline void rotate(__global const float *x, __global float *to, uint n_heads, uint head_dim, uint i, float c, float s)
{
    for (uint head = 0; head < n_heads; head++) {
        const size_t at = (size_t)head * head_dim + i;
        const float a = x[at], b = x[at + head_dim / 2];
        to[at] = a * c - b * s;
        to[at + head_dim / 2] = b * c + a * s;
    }
}

#define ANGLE(c, s)                                                                                                                        \
    const ulong frequency = TP_ROPE_FREQUENCY(i);                                                                                          \
    float c, s;                                                                                                                            \
    tp_rope_angle(&c, &s, (uint)positions[t], (uint)(frequency >> 32), (uint)frequency);                                                   \
    if (inverse) s = -s;

__kernel void rope(__global const float *x, __global const int *positions, TP_ROPE_TABLE_ARGUMENT __global float *y,
                   __global const uint *step, uint sym, uint bound, uint n_heads, uint head_dim, TP_ROPE_RATIO_ARGUMENTS uint inverse)
{
    const uint n = tp_rows(step, sym, bound), pairs = head_dim / 2;
    const size_t id = get_global_id(0), t = id / pairs, d = (size_t)n_heads * head_dim;
    const uint i = id % pairs;
    if (t >= n) return;
    ANGLE(c, s)
    rotate(x + t * d, y + t * d, n_heads, head_dim, i, c, s);
}

__kernel void rope_pair(__global const float *q, __global const float *k, __global const int *positions, TP_ROPE_TABLE_ARGUMENT
                        __global float *rotated_q, __global float *rotated_k, __global const uint *step, uint sym, uint bound, uint n_heads,
                        uint n_kv_heads, uint head_dim, TP_ROPE_RATIO_ARGUMENTS uint inverse)
{
    const uint n = tp_rows(step, sym, bound), pairs = head_dim / 2;
    const size_t id = get_global_id(0), t = id / pairs, d = (size_t)n_heads * head_dim, d_kv = (size_t)n_kv_heads * head_dim;
    const uint i = id % pairs;
    if (t >= n) return;
    ANGLE(c, s)
    rotate(q + t * d, rotated_q + t * d, n_heads, head_dim, i, c, s);
    rotate(k + t * d_kv, rotated_k + t * d_kv, n_kv_heads, head_dim, i, c, s);
}

__kernel void rope_cache(__global const float *q, __global const float *k, __global const float *v, __global const int *positions,
                         __global const int *slots, TP_ROPE_TABLE_ARGUMENT __global float *rotated_q, __global float *k_cache,
                         __global float *v_cache, __global const uint *step, uint sym, uint bound, uint n_slots, uint n_heads,
                         uint n_kv_heads, uint head_dim, TP_ROPE_RATIO_ARGUMENTS uint inverse)
{
    const uint n = tp_rows(step, sym, bound), pairs = head_dim / 2;
    const size_t id = get_global_id(0), t = id / pairs, d = (size_t)n_heads * head_dim, d_kv = (size_t)n_kv_heads * head_dim;
    const uint i = id % pairs;
    if (t >= n) return;
    ANGLE(c, s)
    rotate(q + t * d, rotated_q + t * d, n_heads, head_dim, i, c, s);
    const uint slot = (uint)slots[t];
    if (slot >= n_slots) return;
    rotate(k + t * d_kv, k_cache + slot * d_kv, n_kv_heads, head_dim, i, c, s);
    for (size_t j = i; j < d_kv; j += pairs) v_cache[slot * d_kv + j] = v[t * d_kv + j];
}
