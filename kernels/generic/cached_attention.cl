/* cache_write        cache[slots[t], :] = x[t, :]; slots outside the cache are left out
 *                    Index map: one work-item per element of x, dimension 1 counts the rows.
 * cached_attention   s(j) = scale * <q[t], k[j]> for the slots j of [spans[t][0], spans[t][1]);  out[t] = sum_j softmax(s)(j) v[j]; a row with
 *                    no slot gives zeros
 *                    Index map: group (t, query head) of LOCAL items. It takes LOCAL slots at a time: an item makes one slot's score, then
 *                    sums dimensions item, item + LOCAL, ... over these slots, with a running maximum (Milakov and Gimelshein 2018).
 * Options: HEAD_DIM, LOCAL. Accumulation f32 in ascending order of slots; nothing of a row depends on the other rows. */
#include "common/base.clh"
#include "common/step.clh"

#define NOTHING -1e30f /* score of a slot outside: finite, and exp(NOTHING - anything) is 0 */
#define N_DIMS ((HEAD_DIM + LOCAL - 1) / LOCAL)

__kernel void cache_write(__global const float *x, __global const int *slots, __global float *cache, __global const uint *step, uint symbol,
                          uint bound, uint d, uint n_slots)
{
    const uint j = get_global_id(0), t = get_global_id(1);
    if (j >= d || t >= tp_rows(step, symbol, bound)) return;
    const uint slot = (uint)slots[t];
    if (slot < n_slots) cache[(ulong)slot * d + j] = x[(ulong)t * d + j];
}

__kernel __attribute__((reqd_work_group_size(LOCAL, 1, 1))) void
cached_attention(__global const float *q, __global const float *k, __global const float *v, __global const int *spans, __global float *out,
                 __global const uint *step, uint symbol, uint bound, uint n_slots, uint n_heads, uint n_kv_heads, float scale)
{
    __local float query[HEAD_DIM], score[LOCAL];
    const uint t = tp_group_id(0), head = tp_group_id(1), item = get_local_id(0);
    const bool inside = t < tp_rows(step, symbol, bound);
    const ulong row = ((ulong)t * n_heads + head) * HEAD_DIM, stride = (ulong)n_kv_heads * HEAD_DIM;
    const uint kv = head / (n_heads / n_kv_heads);
    /* Groups past the run-time rows go through the motions with an empty range: barriers are met by all. */
    const int first = inside ? max(spans[2 * t], 0) : 0, end = inside ? min(spans[2 * t + 1], (int)n_slots) : 0;
    k += (ulong)kv * HEAD_DIM;
    v += (ulong)kv * HEAD_DIM;
    for (uint d = item; d < HEAD_DIM; d += LOCAL) query[d] = inside ? q[row + d] * scale : 0.0f;
    float acc[N_DIMS], maximum = NOTHING, sum = 0.0f;
    for (int i = 0; i < N_DIMS; i++) acc[i] = 0.0f;
    for (int c = first; c < end; c += LOCAL) {
        barrier(CLK_LOCAL_MEM_FENCE);
        float s = NOTHING;
        if (c + (int)item < end) {
            __global const float *key = k + (ulong)(c + item) * stride;
            s = 0.0f;
            for (int d = 0; d < HEAD_DIM; d++) s = fma(query[d], key[d], s);
        }
        score[item] = s;
        barrier(CLK_LOCAL_MEM_FENCE);
        float m = maximum;
        for (int j = 0; j < LOCAL; j++) m = max(m, score[j]);
        barrier(CLK_LOCAL_MEM_FENCE);
        score[item] = exp(s - m);
        barrier(CLK_LOCAL_MEM_FENCE);
        const float shrink = exp(maximum - m);
        float total = 0.0f;
        for (int j = 0; j < LOCAL; j++) total += score[j];
        sum = sum * shrink + total;
        maximum = m;
        const int n = min(end - c, LOCAL);
        for (int i = 0; i < N_DIMS; i++) {
            const uint d = item + i * LOCAL;
            if (d >= HEAD_DIM) continue;
            float a = acc[i] * shrink;
            for (int j = 0; j < n; j++) a = fma(score[j], v[(ulong)(c + j) * stride + d], a);
            acc[i] = a;
        }
    }
    for (int i = 0; i < N_DIMS; i++) {
        const uint d = item + i * LOCAL;
        if (inside && d < HEAD_DIM) out[row + d] = sum > 0.0f ? acc[i] / sum : 0.0f;
    }
}
