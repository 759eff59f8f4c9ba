/* Whole mixtures of LoRA experts for a few rows (decoding), of up to three products with the same x, in one launch: the bits of router_scores,
 * threshold_gate and, dense, lora_expert one by one.
 *   p = softmax(x gating^T), raw = x direction^T + bias, weight = threshold_gate(p, raw)       (no direction: the fixed threshold)
 *   out[t] = y0[t] + sum_j scale * weight[t, j / rank] * <x[t], a[j]> * bt[j]
 * Index map: one work-item per group; group g makes product g for all rows, one row after the other: a row's experts are what it chose, and
 * matrices come from memory for the first row only. Matrices of experts that no row chose are not read. score: per product rows x (n + 1) floats
 * of scratch. Sums in f32, in the order of the kernels named; out holds the sum over j until y0 is added. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/skinny.clh"
#include "common/vector.clh"

/* Asks for floats i .. i + 63 of a stretch of n that is read next. */
static inline void ask(__global const float *next, uint i, uint n)
{
    for (uint line = 0; line < 64 && i + line < n; line += 16) TP_PREFETCH(next + i + line);
}

/* Dot products of x with four rows of a matrix, row m of them at row[m] (summed as in dot_6x4); n_next floats at `next` are asked for. */
static inline float4 dot_4(__global const float *x, __global const float *const *row, uint n, __global const float *next, uint n_next)
{
    __global const float *a = row[0], *b = row[1], *c = row[2], *d = row[3];
    float16 sa = (float16)(0.0f), sb = sa, sc = sa, sd = sa;
    uint k = 0;
    for (; k + 16 <= n; k += 16) {
        const float16 v = vload16(0, x + k);
        ask(next, 4 * k, n_next);
        sa = fma(v, vload16(0, a + k), sa);
        sb = fma(v, vload16(0, b + k), sb);
        sc = fma(v, vload16(0, c + k), sc);
        sd = fma(v, vload16(0, d + k), sd);
    }
    float4 sum = sum_lanes(sa, sb, sc, sd);
    for (; k < n; ++k) sum = fma((float4)(x[k]), (float4)(a[k], b[k], c[k], d[k]), sum);
    return sum;
}

/* out += f.x row[0] + .. + f.w row[3], one after the other. */
static inline void add_4(__global float *out, float4 f, __global const float *const *row, uint n, __global const float *next, uint n_next)
{
    __global const float *a = row[0], *b = row[1], *c = row[2], *d = row[3];
    uint k = 0;
    for (; k + 16 <= n; k += 16) {
        ask(next, 4 * k, n_next);
        float16 sum = fma((float16)(f.x), vload16(0, a + k), vload16(0, out + k));
        sum = fma((float16)(f.y), vload16(0, b + k), sum);
        sum = fma((float16)(f.z), vload16(0, c + k), sum);
        STORE16(fma((float16)(f.w), vload16(0, d + k), sum), out + k);
    }
    for (; k < n; ++k) out[k] = fma(f.w, d[k], fma(f.z, c[k], fma(f.y, b[k], fma(f.x, a[k], out[k]))));
}

/* p[0 .. n - 1]: scores to weights; p[n]: the raw threshold, if it is learned. As threshold_gate. */
static inline void gate(__global float *p, uint n, bool is_learned, float max_threshold)
{
    float top = p[0], sum = 0.0f, tau = 0.0f, least = max_threshold, chosen = 0.0f;
    for (uint e = 1; e < n; ++e) top = fmax(top, p[e]);
    for (uint e = 0; e < n; ++e) {
        const float v = exp(p[e] - top);
        sum += v;
        p[e] = v;
    }
    for (uint e = 0; e < n; ++e) p[e] /= sum;
    if (is_learned) {
        tau = max_threshold / (1.0f + exp(-p[n]));
        least = 0.0f;
    }
    for (uint e = 0; e < n; ++e)
        if (p[e] - tau >= least) chosen += p[e] - tau;
    const float divisor = chosen == 0.0f ? 1.0f : chosen;
    for (uint e = 0; e < n; ++e) p[e] = p[e] - tau >= least ? (p[e] - tau) / divisor : 0.0f;
}

/* One row of one product. */
static inline void mix(__global const float *x, __global const float *gating, __global const float *direction, __global const float *bias,
                       __global const float *a, __global const float *bt, __global const float *y0, __global float *out,
                       __global float *score, uint d, uint d_out, uint n, uint rank, bool is_learned, float max_threshold, float scale)
{
    __global const float *row[4];
    const uint n_scores = n + is_learned;
    for (uint j = 0; j < n_scores; j += 4) {
        for (uint i = 0; i < 4; ++i) row[i] = j + i < n ? gating + (size_t)(j + i) * d : is_learned ? direction : gating;
        const float4 r = dot_4(x, row, d, j + 4 < n_scores ? row[3] + d : a, 4 * d);
        const float value[4] = {r.x, r.y, r.z, r.w};
        for (uint i = 0; i < 4 && j + i < n_scores; ++i) score[j + i] = j + i < n ? value[i] : value[i] + bias[0];
    }
    gate(score, n, is_learned, max_threshold);
    for (uint c = 0; c < d_out; ++c) out[c] = 0.0f;
    for (uint e = 0; e < n; ++e) {
        if (score[e] == 0.0f) continue;
        uint other = e + 1;
        while (other < n && score[other] == 0.0f) ++other;
        const float s = scale * score[e];
        for (uint j = 0; j < rank; j += 4) {
            const uint n_rows = min(4u, rank - j), first = e * rank + j, then = j + 4 < rank ? first + 4 : other * rank;
            for (uint i = 0; i < 4; ++i) row[i] = a + (size_t)(first + min(i, n_rows - 1)) * d;
            float4 f = s * dot_4(x, row, d, bt + (size_t)first * d_out, n_rows * d_out);
            if (n_rows < 4) f.w = 0.0f;
            if (n_rows < 3) f.z = 0.0f;
            if (n_rows < 2) f.y = 0.0f;
            for (uint i = 0; i < 4; ++i) row[i] = bt + (size_t)(first + min(i, n_rows - 1)) * d_out;
            add_4(out, f, row, d_out, a + (size_t)then * d, then < n * rank ? 4 * d : 0);
        }
    }
    uint c = 0;
    for (; c + 16 <= d_out; c += 16) STORE16(vload16(0, y0 + c) + vload16(0, out + c), out + c);
    for (; c < d_out; ++c) out[c] = y0[c] + out[c];
}

#define PRODUCT(i) \
    __global const float *gating##i, __global const float *direction##i, __global const float *bias##i, __global const float *a##i, \
        __global const float *bt##i, __global const float *y0##i, __global float *out##i, uint d_out##i
#define PICK(name) (g == 0 ? name##0 : g == 1 ? name##1 : name##2)

SINGLE void router_experts(__global const float *x, PRODUCT(0), PRODUCT(1), PRODUCT(2), __global float *score, __global const uint *step,
                           uint symbol, uint bound, uint d, uint n, uint rank, uint is_learned, float max_threshold, float scale)
{
    const uint rows = tp_rows(step, symbol, bound), g = (uint)tp_group_id(0), d_out = PICK(d_out);
    for (uint t = 0; t < rows; ++t)
        mix(x + (size_t)t * d, PICK(gating), PICK(direction), PICK(bias), PICK(a), PICK(bt), PICK(y0) + (size_t)t * d_out,
            PICK(out) + (size_t)t * d_out, score + ((size_t)g * bound + t) * (n + 1), d, d_out, n, rank, is_learned != 0, max_threshold, scale);
}
