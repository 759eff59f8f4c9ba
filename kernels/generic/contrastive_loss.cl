/* Contrastive loss among the outputs o = scale * weight * B_e A_e x of the experts that tokens chose, in r-space (common/contrast.clh).
 * For an anchor a with positives P (other items of its expert) and negatives N (items of other experts), both not empty, and A anchors:
 *   loss = 1/A sum_a 1/|P| sum_p softplus(lse_a - s_ap), lse_a = log sum_n exp(s_an)
 *   c_ab = derivative by s_ab + derivative by s_ba
 *   q_a[rows of j] = sum_{b of j} c_ab z~_b, for normalised outputs less <g~_a, q_a> temperature z~_a in the rows of a's own expert
 *   dz_a = weight f gram[rows of a's expert] q_a, dweight_a = <f gram q_a, z_a>, w[rows of i] = sum_{a of i} z~_a q_a^T
 *
 *   contrast_sample    group = expert: the n_samples candidates with the least random numbers, by the numbers' bits from the top
 *   contrast_project   work-item = (rank, place): z = A_e x
 *   contrast_prepare   work-item = place: f, z~, g~
 *   contrast_anchors   work-item = place: lse, mean sigmoid, loss
 *   contrast_sum       one group: the loss, 1/A
 *   contrast_pairs     work-item = (place, expert): q
 *   contrast_finish    work-item = place: q less its projection, dz
 *   contrast_outer     work-item = element of w
 * All sums in f32, in an order that depends on the list of items alone. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/philox.clh"
#include "common/contrast.clh"

__kernel void contrast_sample(__global const uint *step, uint rows_symbol, uint rows_bound, __global const int *counts,
                              __global const int *list, __global const int *examples, __global const int *positions, __global ulong *keys,
                              __global int *items, uint n_experts, uint n_samples, uint places, uint stream_lo, uint stream_hi,
                              __local uint *sum)
{
    const uint e = tp_group_id(0), me = get_local_id(0), n = get_local_size(0);
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), count = min((uint)counts[e], n_tokens);
    const uint2 key = (uint2)(step[TP_STEP_SEED_LO] ^ stream_lo, step[TP_STEP_SEED_HI] ^ stream_hi);
    __global const int *tokens = list + (size_t)e * rows_bound;
    __global ulong *own = keys + (size_t)e * rows_bound;
    uint first = 0;
    for (uint i = 0; i < e; ++i) first += contrast_padded(contrast_taken(min((uint)counts[i], n_tokens), n_samples));
    first = min(first, places);
    const uint taken = min(contrast_taken(count, n_samples), places - first), end = min(first + contrast_padded(taken), places);
    const uint n_keys = taken < count ? count : 0;
    for (uint i = me; i < n_keys; i += n)
        own[i] = contrast_key(e, (uint)positions[tokens[i]], (uint)examples[tokens[i]], step[TP_STEP_INDEX], key);
    barrier(CLK_GLOBAL_MEM_FENCE);

    /* `limit` becomes the largest number that is taken; `equal` of those that have it. */
    ulong limit = 0;
    uint equal = taken;
    for (uint bit = n_keys ? 64 : 0; bit-- > 0;) {
        uint below = 0;
        for (uint i = me; i < n_keys; i += n) below += own[i] >> bit == limit >> bit;
        sum[me] = below;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint half_size = n / 2; half_size > 0; half_size /= 2) {
            if (me < half_size) sum[me] += sum[me + half_size];
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        const uint total = sum[0];
        barrier(CLK_LOCAL_MEM_FENCE);
        if (total < equal) {
            equal -= total;
            limit |= (ulong)1 << bit;
        }
    }

    uint placed = 0;
    for (uint base = 0; base < count; base += n) {
        const uint i = base + me;
        uint chosen = i < count;
        if (chosen && n_keys) {
            chosen = own[i] <= limit;
            if (own[i] == limit) {
                uint before = 0;
                for (uint j = 0; j < i; ++j) before += own[j] == limit;
                chosen = before < equal;
            }
        }
        sum[me] = chosen;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint shift = 1; shift < n; shift <<= 1) {
            const uint left = me >= shift ? sum[me - shift] : 0;
            barrier(CLK_LOCAL_MEM_FENCE);
            sum[me] += left;
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        const uint at = placed + sum[me] - 1;
        if (chosen && at < taken) items[2 * n_experts + first + at] = tokens[i];
        placed += sum[n - 1];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const uint rest = e + 1 == n_experts ? places : end;
    for (uint i = first + taken + me; i < rest; i += n) items[2 * n_experts + i] = -1;
    if (me == 0) {
        items[2 * e] = (int)first;
        items[2 * e + 1] = (int)taken;
    }
}

__kernel void contrast_project(__global const float *x, __global const float *lora_a, __global const int *items, __global float *z,
                               uint n_experts, uint rank, uint places, uint d_in)
{
    const uint q = get_global_id(0), place = get_global_id(1);
    if (q >= rank || place >= places) return;
    const int token = items[2 * n_experts + place];
    float sum = 0.0f;
    if (token >= 0) {
        __global const float *row = x + (size_t)token * d_in;
        __global const float *a = lora_a + (size_t)(contrast_expert(items, n_experts, place) * rank + q) * d_in;
        for (uint k = 0; k < d_in; ++k) sum = fma(row[k], a[k], sum);
    }
    z[(size_t)place * rank + q] = sum;
}

__kernel void contrast_prepare(__global const int *items, __global const float *z, __global const float *gram, __global const float *weight,
                               __global float *zt, __global float *gt, __global float *stat, uint n_experts, uint rank, uint places,
                               float scale, float temperature, uint normalise, uint has_weight)
{
    const uint place = get_global_id(0), n_all = n_experts * rank;
    if (place >= places) return;
    const int token = items[2 * n_experts + place];
    const uint e = token >= 0 ? contrast_expert(items, n_experts, place) : 0;
    const float omega = token >= 0 && has_weight ? weight[(size_t)token * n_experts + e] : 1.0f;
    __global const float *own = z + (size_t)place * rank;
    float square = 0.0f;
    for (uint p = 0; p < rank; ++p) {
        __global const float *row = gram + (size_t)(e * rank + p) * n_all + e * rank;
        float sum = 0.0f;
        for (uint q = 0; q < rank; ++q) sum = fma(row[q], omega * own[q], sum);
        square = fma(omega * own[p], sum, square);
    }
    const float length = scale * sqrt(max(square, 0.0f));
    const bool visible = token >= 0 && (!normalise || length > CONTRAST_EPSILON);
    const float f = !visible ? 0.0f : scale / (sqrt(temperature) * (normalise ? length : 1.0f));
    for (uint q = 0; q < rank; ++q) zt[(size_t)q * places + place] = visible ? f * (omega * own[q]) : 0.0f;
    for (uint j = 0; j < n_all; ++j) {
        __global const float *row = gram + (size_t)j * n_all + e * rank;
        float sum = 0.0f;
        for (uint q = 0; q < rank; ++q) sum = fma(row[q], visible ? f * (omega * own[q]) : 0.0f, sum);
        gt[(size_t)j * places + place] = sum;
    }
    stat[(size_t)STAT_VISIBLE * places + place] = visible ? 1.0f : 0.0f;
    stat[(size_t)STAT_FACTOR * places + place] = f;
}

/* Similarity of items a and b of experts i and j. */
static inline float similarity(__global const float *zt, __global const float *gt, uint places, uint rank, uint a, uint i, uint b, uint j)
{
    const uint first = min(a, b), second = max(a, b), rows = a < b ? j : i;
    float sum = 0.0f;
    for (uint q = 0; q < rank; ++q) sum = fma(gt[(size_t)(rows * rank + q) * places + first], zt[(size_t)q * places + second], sum);
    return sum;
}

__kernel void contrast_anchors(__global const int *items, __global const float *zt, __global const float *gt, __global float *stat,
                               uint n_experts, uint rank, uint places)
{
    const uint a = get_global_id(0);
    if (a >= places) return;
    __global const float *visible = stat + (size_t)STAT_VISIBLE * places;
    float top = -INFINITY, lse = INFINITY, share = 0.0f, inverse = 0.0f, loss = 0.0f;
    const bool active = visible[a] != 0.0f;
    const uint i = active ? contrast_expert(items, n_experts, a) : 0;
    uint n_positive = 0;
    for (uint j = 0; active && j < n_experts; ++j) {
        const uint end = (uint)items[2 * j] + (uint)items[2 * j + 1];
        for (uint b = items[2 * j]; b < end; ++b) {
            if (visible[b] == 0.0f || b == a) continue;
            if (j == i) ++n_positive;
            else top = max(top, similarity(zt, gt, places, rank, a, i, b, j));
        }
    }
    if (n_positive && top > -INFINITY) {
        float sum = 0.0f;
        for (uint j = 0; j < n_experts; ++j) {
            const uint end = (uint)items[2 * j] + (uint)items[2 * j + 1];
            for (uint b = items[2 * j]; j != i && b < end; ++b)
                if (visible[b] != 0.0f) sum += exp(similarity(zt, gt, places, rank, a, i, b, j) - top);
        }
        lse = top + log(sum);
        inverse = 1.0f / (float)n_positive;
        const uint end = (uint)items[2 * i] + (uint)items[2 * i + 1];
        for (uint b = items[2 * i]; b < end; ++b) {
            if (visible[b] == 0.0f || b == a) continue;
            const float t = lse - similarity(zt, gt, places, rank, a, i, b, i);
            loss += max(t, 0.0f) + log1p(exp(-fabs(t)));
            share += 1.0f / (1.0f + exp(-t));
        }
        loss *= inverse;
        share *= inverse;
    }
    stat[(size_t)STAT_LSE * places + a] = lse;
    stat[(size_t)STAT_SHARE * places + a] = share;
    stat[(size_t)STAT_INVERSE * places + a] = inverse;
    stat[(size_t)STAT_LOSS * places + a] = loss;
}

__kernel void contrast_sum(__global float *stat, __global float *loss, uint places, __local float *sum)
{
    const uint me = get_local_id(0), n = get_local_size(0);
    float value = 0.0f, anchors = 0.0f;
    for (uint a = me; a < places; a += n) {
        value += stat[(size_t)STAT_LOSS * places + a];
        anchors += stat[(size_t)STAT_INVERSE * places + a] != 0.0f ? 1.0f : 0.0f;
    }
    sum[me] = value;
    sum[n + me] = anchors;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = n / 2; half_size > 0; half_size /= 2) {
        if (me < half_size) {
            sum[me] += sum[me + half_size];
            sum[n + me] += sum[n + me + half_size];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (me == 0) {
        const float inverse = sum[n] > 0.0f ? 1.0f / sum[n] : 0.0f;
        loss[0] = sum[0] * inverse;
        stat[(size_t)6 * places] = inverse;
    }
}

#define CHUNK 8 /* rows of q that a work-item sums up at a time */

__kernel void contrast_pairs(__global const int *items, __global const float *zt, __global const float *gt, __global const float *stat,
                             __global float *q, uint n_experts, uint rank, uint places)
{
    const uint a = get_global_id(0), j = get_global_id(1), n_all = n_experts * rank;
    if (a >= places || j >= n_experts) return;
    __global const float *visible = stat + (size_t)STAT_VISIBLE * places, *lse = stat + (size_t)STAT_LSE * places;
    __global const float *share = stat + (size_t)STAT_SHARE * places;
    const float inverse_a = stat[(size_t)6 * places], inverse = stat[(size_t)STAT_INVERSE * places + a];
    const bool active = visible[a] != 0.0f;
    const uint i = active ? contrast_expert(items, n_experts, a) : 0;
    const uint first = items[2 * j], end = active ? first + (uint)items[2 * j + 1] : first;
    for (uint r0 = 0; r0 < rank; r0 += CHUNK) {
        float sum[CHUNK];
        for (uint k = 0; k < CHUNK; ++k) sum[k] = 0.0f;
        for (uint b = first; b < end; ++b) {
            if (visible[b] == 0.0f || b == a) continue;
            const float s = similarity(zt, gt, places, rank, a, i, b, j);
            const float c = i == j ? -inverse * (1.0f / (1.0f + exp(s - lse[a])) + 1.0f / (1.0f + exp(s - lse[b])))
                                   : share[a] * exp(s - lse[a]) + share[b] * exp(s - lse[b]);
            for (uint k = 0; k < CHUNK; ++k) sum[k] = fma(c * inverse_a, zt[(size_t)min(r0 + k, rank - 1) * places + b], sum[k]);
        }
        for (uint k = 0; k < CHUNK && r0 + k < rank; ++k) q[(size_t)a * n_all + j * rank + r0 + k] = sum[k];
    }
}

__kernel void contrast_finish(__global const int *items, __global const float *z, __global const float *gram, __global const float *weight,
                              __global const float *zt, __global const float *gt, __global const float *stat, __global float *q,
                              __global float *dz, uint n_experts, uint rank, uint places, float temperature, uint normalise,
                              uint has_weight)
{
    const uint a = get_global_id(0), n_all = n_experts * rank;
    if (a >= places) return;
    __global float *own = q + (size_t)a * n_all, *out = dz + (size_t)a * (rank + 1);
    if (stat[(size_t)STAT_VISIBLE * places + a] == 0.0f) {
        for (uint k = 0; k < rank; ++k) out[k] = 0.0f;
        out[rank] = 0.0f;
        return;
    }
    const uint i = contrast_expert(items, n_experts, a);
    const float omega = has_weight ? weight[(size_t)items[2 * n_experts + a] * n_experts + i] : 1.0f;
    const float f = stat[(size_t)STAT_FACTOR * places + a];
    if (normalise) {
        float along = 0.0f;
        for (uint k = 0; k < n_all; ++k) along = fma(gt[(size_t)k * places + a], own[k], along);
        for (uint k = 0; k < rank; ++k) own[i * rank + k] -= along * temperature * zt[(size_t)k * places + a];
    }
    float dweight = 0.0f;
    for (uint k = 0; k < rank; ++k) {
        __global const float *row = gram + (size_t)(i * rank + k) * n_all;
        float sum = 0.0f;
        for (uint l = 0; l < n_all; ++l) sum = fma(row[l], own[l], sum);
        dweight = fma(f * sum, z[(size_t)a * rank + k], dweight);
        out[k] = omega * (f * sum);
    }
    out[rank] = has_weight ? dweight : 0.0f;
}

__kernel void contrast_outer(__global const int *items, __global const float *zt, __global const float *stat, __global const float *q,
                             __global float *w, uint n_experts, uint rank, uint places)
{
    const uint column = get_global_id(0), row = get_global_id(1), n_all = n_experts * rank;
    if (column >= n_all || row >= n_all) return;
    const uint i = row / rank, end = (uint)items[2 * i] + (uint)items[2 * i + 1];
    float sum = 0.0f;
    for (uint a = items[2 * i]; a < end; ++a)
        if (stat[(size_t)STAT_VISIBLE * places + a] != 0.0f)
            sum = fma(zt[(size_t)(row % rank) * places + a], q[(size_t)a * n_all + column], sum);
    w[(size_t)row * n_all + column] = sum;
}
