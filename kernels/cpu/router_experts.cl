/* Whole mixtures of LoRA experts for a few rows (decoding), of up to three products with the same x, in one launch: the bits of router_scores,
 * threshold_gate and, dense, lora_expert one by one (with TP_BF16: a and bt are rounded to bf16 first).
 *   p = softmax(x gating^T), raw = x direction^T + bias, weight = threshold_gate(p, raw)       (no direction: the fixed threshold)
 *   out[t] = y0[t] + sum_j scale * weight[t, j / rank] * <x[t], a[j]> * bt[j]
 * Index map: one work-item per group; group g makes product g for all rows, one row after the other: a row's experts are what it chose, and
 * matrices come from memory for the first row only. Matrices of experts that no row chose are not read. score: per product rows x (n + 1) floats
 * of scratch. Sums in f32, in the order of the kernels named; out holds the sum over j until y0 is added. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/skinny.clh"
#include "common/vector.clh"

/* Elements of a and bt: f32, or bf16 whose rows are filled up to a multiple of 32 (layout row_bf16). */
#ifdef TP_BF16
typedef ushort element;
#define LOAD16(p) as_float16(convert_uint16(vload16(0, p)) << 16)
#define LOAD(p) as_float((uint)*(p) << 16)
#define STRIDE(n) (((n) + 31u) / 32u * 32u)
#else
typedef float element;
#define LOAD16(p) vload16(0, p)
#define LOAD(p) (*(p))
#define STRIDE(n) (n)
#endif
#define SAME16(p) vload16(0, p)
#define SAME(p) (*(p))

/* What is read next, asked for while something else is: four lines per step. */
struct next {
    __global const uchar *bytes;
    uint n_bytes;
};

static inline void ask(struct next next, uint step)
{
    for (uint line = 0; line < 256 && step * 256 + line < next.n_bytes; line += 64) TP_PREFETCH(next.bytes + step * 256 + line);
}

#define NEXT(pointer, n) ((struct next){(__global const uchar *)(pointer), (uint)((n) * sizeof *(pointer))})

/* Dot products of x with four rows of n elements (summed as in dot_6x4). */
#define DEFINE_DOT_4(NAME, TYPE, GET16, GET) \
    static inline float4 NAME(__global const float *x, __global const TYPE *const *row, uint n, struct next next) \
    { \
        __global const TYPE *a = row[0], *b = row[1], *c = row[2], *d = row[3]; \
        float16 sa = (float16)(0.0f), sb = sa, sc = sa, sd = sa; \
        uint k = 0; \
        for (; k + 16 <= n; k += 16) { \
            const float16 v = vload16(0, x + k); \
            ask(next, k / 16); \
            sa = fma(v, GET16(a + k), sa); \
            sb = fma(v, GET16(b + k), sb); \
            sc = fma(v, GET16(c + k), sc); \
            sd = fma(v, GET16(d + k), sd); \
        } \
        float4 sum = sum_lanes(sa, sb, sc, sd); \
        for (; k < n; ++k) sum = fma((float4)(x[k]), (float4)(GET(a + k), GET(b + k), GET(c + k), GET(d + k)), sum); \
        return sum; \
    }
DEFINE_DOT_4(scores_4, float, SAME16, SAME)
DEFINE_DOT_4(experts_4, element, LOAD16, LOAD)

/* out += f.x row[0] + .. + f.w row[3], one after the other. */
static inline void add_4(__global float *out, float4 f, __global const element *const *row, uint n, struct next next)
{
    __global const element *a = row[0], *b = row[1], *c = row[2], *d = row[3];
    uint k = 0;
    for (; k + 16 <= n; k += 16) {
        ask(next, k / 16);
        float16 sum = fma((float16)(f.x), LOAD16(a + k), vload16(0, out + k));
        sum = fma((float16)(f.y), LOAD16(b + k), sum);
        sum = fma((float16)(f.z), LOAD16(c + k), sum);
        STORE16(fma((float16)(f.w), LOAD16(d + k), sum), out + k);
    }
    for (; k < n; ++k) out[k] = fma(f.w, LOAD(d + k), fma(f.z, LOAD(c + k), fma(f.y, LOAD(b + k), fma(f.x, LOAD(a + k), out[k]))));
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
                       __global const element *a, __global const element *bt, __global const float *y0, __global float *out,
                       __global float *score, uint d, uint d_out, uint n, uint rank, bool is_learned, float max_threshold, float scale)
{
    __global const float *score_row[4];
    __global const element *row[4];
    const uint n_scores = n + is_learned, a_stride = STRIDE(d), bt_stride = STRIDE(d_out);
    for (uint j = 0; j < n_scores; j += 4) {
        for (uint i = 0; i < 4; ++i) score_row[i] = j + i < n ? gating + (size_t)(j + i) * d : is_learned ? direction : gating;
        const float4 r = scores_4(x, score_row, d, j + 4 < n ? NEXT(gating + (size_t)(j + 4) * d, 4 * d) : NEXT(a, 4 * a_stride));
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
            for (uint i = 0; i < 4; ++i) row[i] = a + (size_t)(first + min(i, n_rows - 1)) * a_stride;
            float4 f = s * experts_4(x, row, d, NEXT(bt + (size_t)first * bt_stride, n_rows * bt_stride));
            if (n_rows < 4) f.w = 0.0f;
            if (n_rows < 3) f.z = 0.0f;
            if (n_rows < 2) f.y = 0.0f;
            for (uint i = 0; i < 4; ++i) row[i] = bt + (size_t)(first + min(i, n_rows - 1)) * bt_stride;
            add_4(out, f, row, d_out, NEXT(a + (size_t)then * a_stride, then < n * rank ? 4 * a_stride : 0));
        }
    }
    uint c = 0;
    for (; c + 16 <= d_out; c += 16) STORE16(vload16(0, y0 + c) + vload16(0, out + c), out + c);
    for (; c < d_out; ++c) out[c] = y0[c] + out[c];
}

#define PRODUCT(i) \
    __global const float *gating##i, __global const float *direction##i, __global const float *bias##i, __global const element *a##i, \
        __global const element *bt##i, __global const float *y0##i, __global float *out##i, uint d_out##i
#define PICK(name) (g == 0 ? name##0 : g == 1 ? name##1 : name##2)

SINGLE void router_experts(__global const float *x, PRODUCT(0), PRODUCT(1), PRODUCT(2), __global float *score, __global const uint *step,
                           uint symbol, uint bound, uint d, uint n, uint rank, uint is_learned, float max_threshold, float scale)
{
    const uint rows = tp_rows(step, symbol, bound), g = (uint)tp_group_id(0), d_out = PICK(d_out);
    for (uint t = 0; t < rows; ++t)
        mix(x + (size_t)t * d, PICK(gating), PICK(direction), PICK(bias), PICK(a), PICK(bt), PICK(y0) + (size_t)t * d_out,
            PICK(out) + (size_t)t * d_out, score + ((size_t)g * bound + t) * (n + 1), d, d_out, n, rank, is_learned != 0, max_threshold, scale);
}
