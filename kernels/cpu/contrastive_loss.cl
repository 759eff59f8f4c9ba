/* Contrastive loss among expert outputs on a CPU: formulas in generic/contrastive_loss.cl, layouts in common/contrast.clh. One work-item
 * per work-group; group g of n_groups takes the units g, g + n_groups, ... Items come in blocks of 16, one vector, all of one expert.
 *
 *   contrast_sample    units: an expert (sampling), then six rows of the Gram matrix
 *   contrast_prepare   unit = block of items: z = A_e x, f, z~, g~
 *   contrast_anchors   unit = block of items: lse, mean sigmoid, loss; `row`: `places` floats of a group for one anchor's similarities
 *   contrast_pairs     unit = block of items: q less its projection, dz; `row`: one anchor's coefficients
 *   contrast_outer     unit = row of w; the last unit is the loss
 * All sums in f32, in an order that depends on the list of items alone. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/philox.clh"
#include "common/contrast.clh"
#include "common/skinny.clh"
#include "common/vector.clh"

#define LANES (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

static inline void sample(uint e, __global const int *counts, __global const int *tokens, __global const int *examples,
                          __global const int *positions, __global ulong *own, __global int *items, uint n_tokens, uint n_experts,
                          uint n_samples, uint places, uint index, uint2 key)
{
    const uint count = min((uint)counts[e], n_tokens);
    uint first = 0;
    for (uint i = 0; i < e; ++i) first += contrast_padded(contrast_taken(min((uint)counts[i], n_tokens), n_samples));
    first = min(first, places);
    const uint taken = min(contrast_taken(count, n_samples), places - first), end = min(first + contrast_padded(taken), places);
    ulong limit = ~(ulong)0;
    uint equal = count;
    if (taken < count) {
        for (uint i = 0; i < count; ++i) own[i] = contrast_key(e, (uint)positions[tokens[i]], (uint)examples[tokens[i]], index, key);
        limit = 0;
        equal = taken;
        for (uint bit = 64; bit-- > 0;) {
            const ulong prefix = limit >> bit;
            long8 found = (long8)(0); /* select, since Oclgrind takes sums of comparisons of 64 bits for something else */
            uint i = 0, below = 0;
            for (; i + 8 <= count; i += 8)
                found += select((long8)(0), (long8)(1), (vload8(0, own + i) >> (ulong8)(bit)) == (ulong8)(prefix));
            for (; i < count; ++i) below += own[i] >> bit == prefix;
            const long4 sum = found.lo + found.hi;
            below += (uint)(sum.x + sum.y + sum.z + sum.w);
            if (below < equal) {
                equal -= below;
                limit |= (ulong)1 << bit;
            }
        }
    }
    __global int *out = items + 2 * n_experts + first;
    uint placed = 0;
    for (uint i = 0; i < count && placed < taken; ++i) {
        if (taken < count) {
            if (own[i] > limit || (own[i] == limit && equal == 0)) continue;
            if (own[i] == limit) --equal;
        }
        out[placed++] = tokens[i];
    }
    for (uint i = first + taken; i < (e + 1 == n_experts ? places : end); ++i) items[2 * n_experts + i] = -1;
    items[2 * e] = (int)first;
    items[2 * e + 1] = (int)taken;
}

static inline void put4(__global float *to, float4 value, uint n)
{
    if (n >= 4) {
        vstore4(value, 0, to);
        return;
    }
    to[0] = value.x;
    if (n > 1) to[1] = value.y;
    if (n > 2) to[2] = value.z;
}

SINGLE void contrast_sample(__global const uint *step, uint rows_symbol, uint rows_bound, __global const int *counts,
                            __global const int *list, __global const int *examples, __global const int *positions,
                            __global const float *lora_bt, __global ulong *keys, __global int *items, __global float *gram, uint n_experts,
                            uint n_samples, uint places, uint stream_lo, uint stream_hi, uint n_all, uint d_out, uint n_groups)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), n_units = n_experts + (n_all + 5) / 6;
    const uint2 key = (uint2)(step[TP_STEP_SEED_LO] ^ stream_lo, step[TP_STEP_SEED_HI] ^ stream_hi);
    for (uint unit = tp_group_id(0); unit < n_units; unit += n_groups) {
        if (unit < n_experts) {
            sample(unit, counts, list + (size_t)unit * rows_bound, examples, positions, keys + (size_t)unit * rows_bound, items, n_tokens,
                   n_experts, n_samples, places, step[TP_STEP_INDEX], key);
            continue;
        }
        const uint i0 = (unit - n_experts) * 6;
        size_t row[6], none[6];
        for (uint i = 0; i < 6; ++i) {
            row[i] = (size_t)min(i0 + i, n_all - 1) * d_out;
            none[i] = 0;
        }
        for (uint j0 = 0; j0 < n_all; j0 += 4) {
            __global const float *column[4];
            for (uint j = 0; j < 4; ++j) column[j] = lora_bt + (size_t)min(j0 + j, n_all - 1) * d_out;
            float4 r[6];
            dot_6x4(r, lora_bt, row, 0, none, column, d_out);
            for (uint i = 0; i < 6 && i0 + i < n_all; ++i) put4(gram + (size_t)(i0 + i) * n_all + j0, r[i], n_all - j0);
        }
    }
}

/* Expert of a block, n_experts if nothing is in it. */
static inline uint expert_of_block(__global const int *items, uint n_experts, uint first)
{
    return contrast_expert(items, n_experts, first);
}

SINGLE void contrast_prepare(__global const float *x, __global const float *lora_a, __global const int *items, __global const float *gram,
                             __global const float *weight, __global float *z, __global float *zt, __global float *gt, __global float *stat,
                             uint n_experts, uint rank, uint places, uint d_in, float scale, float temperature, uint normalise,
                             uint has_weight, uint n_groups)
{
    const uint n_all = n_experts * rank;
    __global const int *tokens = items + 2 * n_experts;
    const float16 zero = (float16)(0.0f);
    for (uint first = tp_group_id(0) * CONTRAST_BLOCK; first < places; first += n_groups * CONTRAST_BLOCK) {
        const uint e = expert_of_block(items, n_experts, first);
        if (e == n_experts) {
            for (uint q = 0; q < rank; ++q) tp_store16(zero, zt + (size_t)q * places + first);
            for (uint j = 0; j < n_all; ++j) tp_store16(zero, gt + (size_t)j * places + first);
            tp_store16(zero, stat + (size_t)STAT_VISIBLE * places + first);
            tp_store16(zero, stat + (size_t)STAT_FACTOR * places + first);
            continue;
        }
        const uint n = min((uint)CONTRAST_BLOCK, (uint)items[2 * e] + (uint)items[2 * e + 1] - first);
        for (uint i0 = 0; i0 < n; i0 += 6) {
            size_t row[6], none[6];
            for (uint i = 0; i < 6; ++i) {
                row[i] = (size_t)tokens[first + min(i0 + i, n - 1)] * d_in;
                none[i] = 0;
            }
            for (uint j0 = 0; j0 < rank; j0 += 4) {
                __global const float *column[4];
                for (uint j = 0; j < 4; ++j) column[j] = lora_a + (size_t)(e * rank + min(j0 + j, rank - 1)) * d_in;
                float4 r[6];
                dot_6x4(r, x, row, 0, none, column, d_in);
                for (uint i = 0; i < 6 && i0 + i < n; ++i) put4(z + (size_t)(first + i0 + i) * rank + j0, r[i], rank - j0);
            }
        }
        float omega[CONTRAST_BLOCK];
        for (uint i = 0; i < CONTRAST_BLOCK; ++i) omega[i] = i < n && has_weight ? weight[(size_t)tokens[first + i] * n_experts + e] : 1.0f;
        for (uint q = 0; q < rank; ++q)
            for (uint i = 0; i < CONTRAST_BLOCK; ++i)
                zt[(size_t)q * places + first + i] = i < n ? omega[i] * z[(size_t)(first + i) * rank + q] : 0.0f;
        float16 square = zero;
        for (uint p = 0; p < rank; ++p) {
            __global const float *row = gram + (size_t)(e * rank + p) * n_all + e * rank;
            float16 sum = zero;
            for (uint q = 0; q < rank; ++q) sum = fma((float16)(row[q]), tp_load16(zt + (size_t)q * places + first), sum);
            square = fma(tp_load16(zt + (size_t)p * places + first), sum, square);
        }
        const float16 length = scale * sqrt(fmax(square, zero));
        const float16 least = (float16)(normalise ? CONTRAST_EPSILON : -1.0f);
        const int16 visible = LANES < (int16)((int)n) && !(length <= least);
        const float16 f = select(zero, (float16)(scale) / (sqrt(temperature) * (normalise ? length : (float16)(1.0f))), visible);
        tp_store16(select(zero, (float16)(1.0f), visible), stat + (size_t)STAT_VISIBLE * places + first);
        tp_store16(f, stat + (size_t)STAT_FACTOR * places + first);
        for (uint q = 0; q < rank; ++q) {
            __global float *at = zt + (size_t)q * places + first;
            tp_store16(select(zero, f * tp_load16(at), visible), at);
        }
        for (uint j = 0; j < n_all; ++j) {
            __global const float *row = gram + (size_t)j * n_all + e * rank;
            float16 sum = zero;
            for (uint q = 0; q < rank; ++q) sum = fma((float16)(row[q]), tp_load16(zt + (size_t)q * places + first), sum);
            tp_store16(sum, gt + (size_t)j * places + first);
        }
    }
}

/* Similarities of item a of expert i with the items b .. b + 15 of expert j. */
static inline float16 similarities(__global const float *zt, __global const float *gt, uint places, uint rank, uint a, uint i, uint b,
                                   uint j)
{
    float16 after = (float16)(0.0f), before = (float16)(0.0f);
    if (b + 15 > a)
        for (uint q = 0; q < rank; ++q)
            after = fma((float16)(gt[(size_t)(j * rank + q) * places + a]), tp_load16(zt + (size_t)q * places + b), after);
    if (b + 15 <= a) {
        for (uint q = 0; q < rank; ++q)
            before = fma((float16)(zt[(size_t)q * places + a]), tp_load16(gt + (size_t)(i * rank + q) * places + b), before);
        return before;
    }
    if (b > a) return after;
    for (uint q = 0; q < rank; ++q)
        before = fma((float16)(zt[(size_t)q * places + a]), tp_load16(gt + (size_t)(i * rank + q) * places + b), before);
    return select(before, after, LANES + (int16)((int)b) > (int16)((int)a));
}

static inline float max_lanes(float16 v)
{
    const float8 a = fmax(v.lo, v.hi);
    const float4 b = fmax(a.lo, a.hi);
    const float2 c = fmax(b.lo, b.hi);
    return fmax(c.x, c.y);
}

/* Which of b .. b + 15 take part beside a. */
static inline int16 others(__global const float *visible, uint a, uint b)
{
    return tp_load16(visible + b) != (float16)(0.0f) && LANES + (int16)((int)b) != (int16)((int)a);
}

SINGLE void contrast_anchors(__global const int *items, __global const float *zt, __global const float *gt, __global float *stat,
                             __global float *rows, uint n_experts, uint rank, uint places, uint n_groups)
{
    __global const float *visible = stat + (size_t)STAT_VISIBLE * places;
    __global float *row = rows + (size_t)tp_group_id(0) * places;
    const float16 none = (float16)(-INFINITY), zero = (float16)(0.0f);
    for (uint first = tp_group_id(0) * CONTRAST_BLOCK; first < places; first += n_groups * CONTRAST_BLOCK) {
        const uint i = expert_of_block(items, n_experts, first);
        for (uint a = first; a < first + CONTRAST_BLOCK; ++a) {
            float lse = INFINITY, share = 0.0f, inverse = 0.0f, loss = 0.0f;
            if (i < n_experts && visible[a] != 0.0f) {
                float16 most = none, n_positive = zero;
                for (uint j = 0; j < n_experts; ++j) {
                    const uint end = (uint)items[2 * j] + (uint)items[2 * j + 1];
                    for (uint b = items[2 * j]; b < end; b += CONTRAST_BLOCK) {
                        const int16 mask = others(visible, a, b);
                        const float16 s = select(none, similarities(zt, gt, places, rank, a, i, b, j), mask);
                        tp_store16(s, row + b);
                        if (j == i) n_positive += select(zero, (float16)(1.0f), mask);
                        else most = fmax(most, s);
                    }
                }
                const float top = max_lanes(most), n = tp_sum16(n_positive);
                if (n > 0.0f && top > -INFINITY) {
                    float16 sum = zero;
                    for (uint j = 0; j < n_experts; ++j) {
                        const uint end = (uint)items[2 * j] + (uint)items[2 * j + 1];
                        for (uint b = items[2 * j]; j != i && b < end; b += CONTRAST_BLOCK)
                            sum += exp(tp_load16(row + b) - (float16)(top));
                    }
                    lse = top + log(tp_sum16(sum));
                    inverse = 1.0f / n;
                    const uint end = (uint)items[2 * i] + (uint)items[2 * i + 1];
                    float16 losses = zero, shares = zero;
                    for (uint b = items[2 * i]; b < end; b += CONTRAST_BLOCK) {
                        const int16 mask = others(visible, a, b);
                        const float16 t = select(zero, (float16)(lse) - tp_load16(row + b), mask);
                        losses += select(zero, fmax(t, zero) + log1p(exp(-fabs(t))), mask);
                        shares += select(zero, (float16)(1.0f) / ((float16)(1.0f) + exp(-t)), mask);
                    }
                    loss = inverse * tp_sum16(losses);
                    share = inverse * tp_sum16(shares);
                }
            }
            stat[(size_t)STAT_LSE * places + a] = lse;
            stat[(size_t)STAT_SHARE * places + a] = share;
            stat[(size_t)STAT_INVERSE * places + a] = inverse;
            stat[(size_t)STAT_LOSS * places + a] = loss;
        }
    }
}

/* 1 / number of anchors, 0 if there are none. */
static inline float inverse_anchors(__global const float *stat, uint places)
{
    float16 n = (float16)(0.0f);
    for (uint a = 0; a < places; a += 16)
        n += select((float16)(0.0f), (float16)(1.0f), tp_load16(stat + (size_t)STAT_INVERSE * places + a) != (float16)(0.0f));
    const float sum = tp_sum16(n);
    return sum > 0.0f ? 1.0f / sum : 0.0f;
}

static inline float dot(__global const float *a, __global const float *b, uint n)
{
    float16 sum = (float16)(0.0f);
    uint k = 0;
    for (; k + 16 <= n; k += 16) sum = fma(tp_load16(a + k), tp_load16(b + k), sum);
    float rest = tp_sum16(sum);
    for (; k < n; ++k) rest = fma(a[k], b[k], rest);
    return rest;
}

/* out[k] = sum over the items b of an expert of coef[b] z~[k][b]. */
static inline void weighted(__global float *out, __global const float *coef, __global const float *zt, uint places, uint rank, uint first,
                            uint end)
{
    for (uint k = 0; k < rank; k += 4) {
        __global const float *z0 = zt + (size_t)k * places, *z1 = zt + (size_t)min(k + 1, rank - 1) * places,
                             *z2 = zt + (size_t)min(k + 2, rank - 1) * places, *z3 = zt + (size_t)min(k + 3, rank - 1) * places;
        float16 s0 = (float16)(0.0f), s1 = s0, s2 = s0, s3 = s0;
        for (uint b = first; b < end; b += 16) {
            const float16 c = tp_load16(coef + b);
            s0 = fma(c, tp_load16(z0 + b), s0);
            s1 = fma(c, tp_load16(z1 + b), s1);
            s2 = fma(c, tp_load16(z2 + b), s2);
            s3 = fma(c, tp_load16(z3 + b), s3);
        }
        put4(out + k, sum_lanes(s0, s1, s2, s3), rank - k);
    }
}

SINGLE void contrast_pairs(__global const int *items, __global const float *z, __global const float *gram, __global const float *weight,
                           __global const float *zt, __global const float *gt, __global const float *stat, __global float *rows,
                           __global float *q, __global float *dz, uint n_experts, uint rank, uint places, float temperature, uint normalise,
                           uint has_weight, uint n_groups)
{
    const uint n_all = n_experts * rank;
    __global const float *visible = stat + (size_t)STAT_VISIBLE * places, *lse = stat + (size_t)STAT_LSE * places;
    __global const float *share = stat + (size_t)STAT_SHARE * places;
    __global float *row = rows + (size_t)tp_group_id(0) * places;
    const float scale = inverse_anchors(stat, places);
    const float16 zero = (float16)(0.0f), one = (float16)(1.0f);
    for (uint first = tp_group_id(0) * CONTRAST_BLOCK; first < places; first += n_groups * CONTRAST_BLOCK) {
        const uint i = expert_of_block(items, n_experts, first);
        for (uint a = first; a < first + CONTRAST_BLOCK; ++a) {
            __global float *out = dz + (size_t)a * (rank + 1);
            if (i == n_experts || visible[a] == 0.0f) {
                for (uint k = 0; k < rank; ++k) out[k] = 0.0f;
                out[rank] = 0.0f;
                continue;
            }
            const float inverse = stat[(size_t)STAT_INVERSE * places + a], omega =
                has_weight ? weight[(size_t)items[2 * n_experts + a] * n_experts + i] : 1.0f;
            const float16 own_lse = (float16)(lse[a]), own_share = (float16)(share[a]);
            __global float *own = q + (size_t)a * n_all;
            float16 along = zero;
            for (uint j = 0; j < n_experts; ++j) {
                const uint begin = items[2 * j], end = begin + (uint)items[2 * j + 1];
                for (uint b = begin; b < end; b += CONTRAST_BLOCK) {
                    const int16 mask = others(visible, a, b);
                    const float16 s = select(zero, similarities(zt, gt, places, rank, a, i, b, j), mask);
                    const float16 to_a = exp(s - own_lse), to_b = exp(s - tp_load16(lse + b));
                    const float16 c = i == j ? (float16)(-inverse) * (one / (one + to_a) + one / (one + to_b))
                                             : own_share * to_a + tp_load16(share + b) * to_b;
                    const float16 kept = select(zero, scale * c, mask);
                    along = fma(kept, s, along);
                    tp_store16(kept, row + b);
                }
                weighted(own + j * rank, row, zt, places, rank, begin, end);
            }
            if (normalise) {
                const float less = tp_sum16(along) * temperature;
                for (uint k = 0; k < rank; ++k) own[i * rank + k] -= less * zt[(size_t)k * places + a];
            }
            const float f = stat[(size_t)STAT_FACTOR * places + a];
            float dweight = 0.0f;
            for (uint k = 0; k < rank; ++k) {
                const float value = f * dot(gram + (size_t)(i * rank + k) * n_all, own, n_all);
                dweight = fma(value, z[(size_t)a * rank + k], dweight);
                out[k] = omega * value;
            }
            out[rank] = has_weight ? dweight : 0.0f;
        }
    }
}

SINGLE void contrast_outer(__global const int *items, __global const float *zt, __global const float *stat, __global const float *q,
                           __global float *w, __global float *loss, uint n_experts, uint rank, uint places, uint has_w, uint n_groups)
{
    const uint n_all = n_experts * rank;
    __global const float *visible = stat + (size_t)STAT_VISIBLE * places;
    for (uint unit = tp_group_id(0); unit < n_all + 1; unit += n_groups) {
        if (unit == n_all) {
            float16 sum = (float16)(0.0f);
            for (uint a = 0; a < places; a += 16) sum += tp_load16(stat + (size_t)STAT_LOSS * places + a);
            loss[0] = tp_sum16(sum) * inverse_anchors(stat, places);
            continue;
        }
        if (!has_w) continue;
        const uint i = unit / rank, begin = items[2 * i], end = begin + (uint)items[2 * i + 1];
        __global const float *left = zt + (size_t)(unit % rank) * places;
        __global float *out = w + (size_t)unit * n_all;
        uint c = 0;
        for (; c + 16 <= n_all; c += 16) {
            float16 sum = (float16)(0.0f);
            for (uint a = begin; a < end; ++a)
                if (visible[a] != 0.0f) sum = fma((float16)(left[a]), tp_load16(q + (size_t)a * n_all + c), sum);
            tp_store16(sum, out + c);
        }
        for (; c < n_all; ++c) {
            float sum = 0.0f;
            for (uint a = begin; a < end; ++a)
                if (visible[a] != 0.0f) sum = fma(left[a], q[(size_t)a * n_all + c], sum);
            out[c] = sum;
        }
    }
}
