/* cache_write        cache[slots[t], :] = x[t, :]; slots outside the cache are left out. Group: a share of the rows.
 * cached_attention   s(j) = scale * <q[t], k[j]> for the slots j of [spans[t][0], spans[t][1]);  out[t] = sum_j softmax(s)(j) v[j]; a row with
 *                    no slot gives zeros. HEAD_DIM is a multiple of 16.
 * One work-item per group. A unit of work is a row and `block` (at most HEADS) query heads of one kv head; group g takes the units g,
 * g + n_groups, ... It walks over the slots CHUNK at a time, all its heads per chunk, with a running maximum (Milakov and Gimelshein 2018).
 * Accumulation f32 in ascending order of slots (scores: in 16 lanes, then over the lanes); every head of every row is summed by itself, in
 * an order that its number of slots decides. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

#define HEADS 4
#define CHUNK 64
#define HEAD_VECTORS (HEAD_DIM / 16)
#define CHUNK_VECTORS (CHUNK / 16)
#define NOTHING -1e30f /* score of a slot outside: finite, and exp(NOTHING - anything) is 0 */

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void cache_write(__global const float *x, __global const int *slots,
                                                                         __global float *cache, __global const uint *step, uint symbol,
                                                                         uint bound, uint d, uint n_slots, uint n_groups)
{
    const uint n = tp_rows(step, symbol, bound), group = tp_group_id(0), end = tp_share_rows(n, n_groups, group + 1);
    for (uint t = tp_share_rows(n, n_groups, group); t < end; t++) {
        const uint slot = (uint)slots[t];
        if (slot >= n_slots) continue;
        __global const float *from = x + (size_t)t * d;
        __global float *to = cache + (size_t)slot * d;
        uint j = 0;
        for (; j + 16 <= d; j += 16) tp_store16(tp_load16(from + j), to + j);
        for (; j < d; j++) to[j] = from[j];
    }
}

/* Sums of the lanes of four vectors. */
static inline float4 sum_lanes(float16 a, float16 b, float16 c, float16 d)
{
    const float16 ab = (float16)(a.lo, b.lo) + (float16)(a.hi, b.hi);
    const float16 cd = (float16)(c.lo, d.lo) + (float16)(c.hi, d.hi);
    const float16 all = (float16)(ab.s0123, ab.s89ab, cd.s0123, cd.s89ab) + (float16)(ab.s4567, ab.scdef, cd.s4567, cd.scdef);
    const float8 pairs = all.even + all.odd;
    return pairs.even + pairs.odd;
}

/* score[j] = <query, k[j]> for j < n, NOTHING up to CHUNK. */
static inline void scores(float16 *score, const float16 *query, __global const float *k, size_t stride, int n)
{
    for (int i = n / 16; i < CHUNK_VECTORS; i++) score[i] = NOTHING;
    float *to = (float *)score;
    for (int j = 0; j < n; j += 4) {
        __global const float *k0 = k + (size_t)j * stride, *k1 = k + (size_t)min(j + 1, n - 1) * stride,
                             *k2 = k + (size_t)min(j + 2, n - 1) * stride, *k3 = k + (size_t)min(j + 3, n - 1) * stride;
        float16 a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
#pragma unroll
        for (int i = 0; i < HEAD_VECTORS; i++) {
            a = fma(query[i], vload16(i, k0), a);
            b = fma(query[i], vload16(i, k1), b);
            c = fma(query[i], vload16(i, k2), c);
            d = fma(query[i], vload16(i, k3), d);
        }
        const float4 s = sum_lanes(a, b, c, d);
        to[j] = s.x;
        if (j + 1 < n) to[j + 1] = s.y;
        if (j + 2 < n) to[j + 2] = s.z;
        if (j + 3 < n) to[j + 3] = s.w;
    }
}

static inline float max16(float16 v)
{
    const float8 a = max(v.lo, v.hi);
    const float4 b = max(a.lo, a.hi);
    const float2 c = max(b.lo, b.hi);
    return max(c.x, c.y);
}

/* acc = shrink * acc + sum_j weight[j] v[j]. */
static inline void add_values(float16 *acc, const float *weight, __global const float *v, size_t stride, int n, float shrink)
{
    int i = 0;
#if HEAD_VECTORS >= 4
    for (; i + 4 <= HEAD_VECTORS; i += 4) {
        float16 a = acc[i] * shrink, b = acc[i + 1] * shrink, c = acc[i + 2] * shrink, d = acc[i + 3] * shrink;
        __global const float *from = v + 16 * i;
        for (int j = 0; j < n; j++, from += stride) {
            const float16 w = weight[j];
            a = fma(w, vload16(0, from), a);
            b = fma(w, vload16(1, from), b);
            c = fma(w, vload16(2, from), c);
            d = fma(w, vload16(3, from), d);
        }
        acc[i] = a, acc[i + 1] = b, acc[i + 2] = c, acc[i + 3] = d;
    }
#endif
    for (; i < HEAD_VECTORS; i++) {
        float16 a = acc[i] * shrink;
        __global const float *from = v + 16 * i;
        for (int j = 0; j < n; j++, from += stride) a = fma((float16)(weight[j]), vload16(0, from), a);
        acc[i] = a;
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
cached_attention(__global const float *q, __global const float *k, __global const float *v, __global const int *spans, __global float *out,
                 __global const uint *step, uint symbol, uint bound, uint n_slots, uint n_heads, uint n_kv_heads, float scale, uint block,
                 uint n_groups)
{
    const uint n = tp_rows(step, symbol, bound), group = n_heads / n_kv_heads, n_blocks = (group + block - 1) / block;
    const size_t stride = (size_t)n_kv_heads * HEAD_DIM;
    for (uint unit = tp_group_id(0); unit < n * n_kv_heads * n_blocks; unit += n_groups) {
        const uint t = unit / (n_kv_heads * n_blocks), kv = unit / n_blocks % n_kv_heads, at = unit % n_blocks * block;
        const uint head = kv * group + at, heads = min(block, group - at);
        const int first = max(spans[2 * t], 0), end = min(spans[2 * t + 1], (int)n_slots);
        const size_t row = ((size_t)t * n_heads + head) * HEAD_DIM;
        __global const float *keys = k + (size_t)kv * HEAD_DIM, *values = v + (size_t)kv * HEAD_DIM;
        float16 query[HEADS * HEAD_VECTORS], acc[HEADS * HEAD_VECTORS], score[CHUNK_VECTORS];
        float maximum[HEADS], sum[HEADS];
        for (uint i = 0; i < heads * HEAD_VECTORS; i++) {
            query[i] = tp_load16(q + row + 16 * i) * scale;
            acc[i] = 0.0f;
        }
        for (uint h = 0; h < heads; h++) maximum[h] = NOTHING, sum[h] = 0.0f;
        for (int c = first; c < end; c += CHUNK) {
            const int m = min(CHUNK, end - c);
            for (uint h = 0; h < heads; h++) {
                scores(score, query + h * HEAD_VECTORS, keys + (size_t)c * stride, stride, m);
                float16 high = maximum[h], total = 0.0f;
                for (int i = 0; i < CHUNK_VECTORS; i++) high = max(high, score[i]);
                const float top = max16(high), shrink = exp(maximum[h] - top);
                for (int i = 0; i < CHUNK_VECTORS; i++) {
                    score[i] = exp(score[i] - top);
                    total += score[i];
                }
                sum[h] = sum[h] * shrink + tp_sum16(total);
                maximum[h] = top;
                add_values(acc + h * HEAD_VECTORS, (const float *)score, values + (size_t)c * stride, stride, m, shrink);
            }
        }
        for (uint h = 0; h < heads; h++) {
            const float inverse = sum[h] > 0.0f ? 1.0f / sum[h] : 0.0f;
            for (int i = 0; i < HEAD_VECTORS; i++) tp_store16(acc[h * HEAD_VECTORS + i] * inverse, out + row + 16 * (h * HEAD_VECTORS + i));
        }
    }
}
