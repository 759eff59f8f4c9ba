/* Causal attention inside segments, one work-item per work-group, float16 vectors. HEAD_DIM is a multiple of 16.
 *
 *   s(t, j)  = scale * <q[t], k[j]>,  first(t) <= j <= t      lse[t] = log sum_j exp s(t, j)      p = exp(s - lse)
 *   out[t]   = sum_j p(t, j) v[j]
 *   ds(t, j) = p(t, j) * (<dout[t], v[j]> - delta[t]),  delta[t] = <dout[t], out[t]>
 *   dq[t] = scale * sum_j ds(t, j) k[j]     dk[j] = scale * sum_t ds(t, j) q[t]     dv[j] = sum_t p(t, j) dout[t]
 *
 * Every kernel takes ROWS rows (queries, or keys for dk and dv) of one head and walks over the other side in chunks of private memory:
 * the product with packed panels [head][T/32][HEAD_DIM][32] fills a chunk of ROWS x CHUNK numbers, the softmax (online, with a running
 * maximum) or its derivative is applied to it, and the product with plain rows adds the chunk to ROWS x HEAD_DIM accumulators. Row r of a
 * block uses columns lo[r] .. hi[r]-1, so blocks may straddle segments. Groups take block i and block n-1-i, which together cost the same
 * whatever i is. Accumulation in f32, in ascending order of columns (and of query heads for dk and dv).
 * -DOUT0_BF16 (attention_forward: out), -DOUT2_BF16 (attention_dkv: dv): that output is row_bf16; -DALSO0, -DALSO2: it is made so as well. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"
#if defined(OUT0_BF16) || defined(OUT2_BF16) || defined(ALSO0) || defined(ALSO2)
#include "common/tile_bf16.clh"
#endif

#define ROWS 12
#define PANEL 32
#define KEY_BLOCKS 4
#define KEY_BLOCKS_FROM 2048 /* rows above which blocks of keys are taken together, as in host/ops/attention.c */
#define CHUNK 128 /* multiple of PANEL; two chunks and the accumulators fit in a 32 KiB first-level cache */
#define HEAD_VECTORS (HEAD_DIM / 16)
#define CHUNK_VECTORS (CHUNK / 16)
#define STRIDE_VECTORS (CHUNK_VECTORS + 1) /* odd number of lines: rows of a chunk fall into different cache sets */
#define STRIDE (16 * STRIDE_VECTORS)
#define NOTHING -1e30f /* score of a masked position: finite, and exp(NOTHING - anything) is 0 */

#define EACH_ROW(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)

typedef __global const float *source;
#define LOAD16(p) (*(__global const float16 *)(p))

/* An output that may be made in bf16, instead of f32 or besides. */
#if defined(OUT0_BF16) || defined(OUT2_BF16)
typedef ushort made;
#define STORE_MADE(v, p) tp_store16_bf16(v, p)
#else
typedef float made;
#define STORE_MADE(v, p) (*(__global float16 *)(p) = (v))
#endif
#if defined(ALSO0) || defined(ALSO2)
#define ALSO_ARGUMENT __global ushort *also,
#define ALSO also,
#define ALSO_AT(at) also + (at),
#define STORE_ALSO(v, at) tp_store16_bf16(v, also + (at))
#else
#define ALSO_ARGUMENT
#define ALSO
#define ALSO_AT(at)
#define STORE_ALSO(v, at)
#endif

/* s[r][0..31] = sum_d a[r][d] * panel[d][0..31]; the row stride of a is HEAD_DIM, of s STRIDE. */
static inline void panel_product(float16 *s, const float *a, source panel)
{
#define START(i) float16 x##i = 0.0f, y##i = 0.0f;
    EACH_ROW(START)
#undef START
    for (int d = 0; d < HEAD_DIM; d++) {
        const float16 b0 = vload16(0, panel + d * PANEL), b1 = vload16(1, panel + d * PANEL);
#define STEP(i)                                                                                                                            \
    {                                                                                                                                      \
        const float16 w = a[i * HEAD_DIM + d];                                                                                             \
        x##i = fma(w, b0, x##i);                                                                                                           \
        y##i = fma(w, b1, y##i);                                                                                                           \
    }
        EACH_ROW(STEP)
#undef STEP
    }
#define END(i) s[i * STRIDE_VECTORS] = x##i, s[i * STRIDE_VECTORS + 1] = y##i;
    EACH_ROW(END)
#undef END
}

/* acc[r][0..HEAD_DIM-1] = alpha[r] * acc[r] + sum_{c < n} p[r][c] * rows[c]; rows are `stride` elements apart. */
static inline void rows_product(float16 *acc, const float *alpha, const float *p, source rows, size_t stride, int n)
{
    for (int v = 0; v + 1 < HEAD_VECTORS; v += 2) {
#define START(i) float16 x##i = alpha[i] * acc[i * HEAD_VECTORS + v], y##i = alpha[i] * acc[i * HEAD_VECTORS + v + 1];
        EACH_ROW(START)
#undef START
        source row = rows + 16 * v;
        for (int c = 0; c < n; c++) {
            const float16 b0 = vload16(0, row), b1 = vload16(1, row);
#define STEP(i)                                                                                                                            \
    {                                                                                                                                      \
        const float16 w = p[i * STRIDE + c];                                                                                               \
        x##i = fma(w, b0, x##i);                                                                                                           \
        y##i = fma(w, b1, y##i);                                                                                                           \
    }
            EACH_ROW(STEP)
#undef STEP
            row += stride;
        }
#define END(i) acc[i * HEAD_VECTORS + v] = x##i, acc[i * HEAD_VECTORS + v + 1] = y##i;
        EACH_ROW(END)
#undef END
    }
#if HEAD_VECTORS % 2
    {
        const int v = HEAD_VECTORS - 1;
#define START(i) float16 x##i = alpha[i] * acc[i * HEAD_VECTORS + v];
        EACH_ROW(START)
#undef START
        source row = rows + 16 * v;
        for (int c = 0; c < n; c++) {
            const float16 b = vload16(0, row);
#define STEP(i) x##i = fma((float16)(p[i * STRIDE + c]), b, x##i);
            EACH_ROW(STEP)
#undef STEP
            row += stride;
        }
#define END(i) acc[i * HEAD_VECTORS + v] = x##i;
        EACH_ROW(END)
#undef END
    }
#endif
}

static inline float max16(float16 x)
{
    const float8 a = max(x.lo, x.hi);
    const float4 b = max(a.lo, a.hi);
    const float2 c = max(b.lo, b.hi);
    return max(c.x, c.y);
}

static inline int16 lanes(int first) { return first + (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

/* Copies the rows t0 .. of one head, times `factor`; rows past n are 0. */
static inline void copy_rows(float16 *to, source from, size_t stride, int t0, int n, float factor)
{
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < HEAD_VECTORS; v++)
            to[r * HEAD_VECTORS + v] = t0 + r < n ? factor * LOAD16(from + (size_t)(t0 + r) * stride + 16 * v) : (float16)(0.0f);
}

static inline void write_made(__global made *to, ALSO_ARGUMENT size_t stride, const float16 *acc, int t0, int n)
{
    for (int r = 0; r < ROWS && t0 + r < n; r++)
        for (int v = 0; v < HEAD_VECTORS; v++) {
            const size_t at = (size_t)(t0 + r) * stride + 16 * v;
            STORE_MADE(acc[r * HEAD_VECTORS + v], to + at);
            STORE_ALSO(acc[r * HEAD_VECTORS + v], at);
        }
}

static inline void write_rows(__global float *to, size_t stride, const float16 *acc, int t0, int n, float factor)
{
    for (int r = 0; r < ROWS && t0 + r < n; r++)
        for (int v = 0; v < HEAD_VECTORS; v++)
            *(__global float16 *)(to + (size_t)(t0 + r) * stride + 16 * v) = factor * acc[r * HEAD_VECTORS + v];
}

/* Column ranges of the rows of a block: keys that a query sees, or queries that see a key. Rows past n get an empty range. */
static inline void query_ranges(int *lo, int *hi, int *first, int *last, __global const int *segments, int t0, int n)
{
    *first = n;
    *last = 0;
    for (int r = 0; r < ROWS; r++) {
        const int t = t0 + r;
        lo[r] = t < n ? max(segments[2 * (size_t)t], 0) : 0;
        hi[r] = t < n ? t + 1 : 0;
        if (t < n) *first = min(*first, lo[r]), *last = max(*last, hi[r]);
    }
}

static inline void key_ranges(int *lo, int *hi, int *first, int *last, __global const int *segments, int t0, int n)
{
    *first = t0;
    *last = 0;
    for (int r = 0; r < ROWS; r++) {
        const int t = t0 + r;
        lo[r] = t < n ? t : 0;
        hi[r] = t < n ? min(segments[2 * (size_t)t + 1], n) : 0;
        if (t < n) *last = max(*last, hi[r]);
    }
}

/* interleave(a, b): a0 b0 a1 b1 ... of the lower or upper halves; four rounds over 16 rows transpose 16 x 16 numbers. */
#define ZIP_LO(a, b) (float16)(a.s0, b.s0, a.s1, b.s1, a.s2, b.s2, a.s3, b.s3, a.s4, b.s4, a.s5, b.s5, a.s6, b.s6, a.s7, b.s7)
#define ZIP_HI(a, b) (float16)(a.s8, b.s8, a.s9, b.s9, a.sa, b.sa, a.sb, b.sb, a.sc, b.sc, a.sd, b.sd, a.se, b.se, a.sf, b.sf)
#define ZIP_ROUND(to, from)                                                                                                                \
    for (int i = 0; i < 8; i++) {                                                                                                          \
        to[2 * i] = ZIP_LO(from[i], from[i + 8]);                                                                                          \
        to[2 * i + 1] = ZIP_HI(from[i], from[i + 8]);                                                                                      \
    }

/* panels[head][t / 32][d][t % 32] = x[t][head][d]; rows past the run-time size are 0 in the last panel. Group: (panel, head). */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attention_pack(__global const float *x, __global float *panels,
                                                                            __global const uint *step, uint sym, uint bound, uint n_heads)
{
    const int n = tp_rows(step, sym, bound), n_panels = (bound + PANEL - 1) / PANEL, panel = tp_group_id(0), head = tp_group_id(1);
    if (panel * PANEL >= n) return;
    const size_t stride = (size_t)n_heads * HEAD_DIM;
    __global float *to = panels + ((size_t)head * n_panels + panel) * HEAD_DIM * PANEL;
    for (int side = 0; side < 2; side++) {
        for (int v = 0; v < HEAD_VECTORS; v++) {
            float16 a[16], b[16];
            const int t0 = panel * PANEL + 16 * side;
            source from = x + (size_t)t0 * stride + (size_t)head * HEAD_DIM + 16 * v;
#pragma unroll
            for (int i = 0; i < 16; i++) a[i] = t0 + i < n ? LOAD16(from + i * stride) : (float16)(0.0f);
#pragma unroll
            ZIP_ROUND(b, a)
#pragma unroll
            ZIP_ROUND(a, b)
#pragma unroll
            ZIP_ROUND(b, a)
#pragma unroll
            ZIP_ROUND(a, b)
#pragma unroll
            for (int i = 0; i < 16; i++) *(__global float16 *)(to + (16 * v + i) * PANEL + 16 * side) = a[i];
        }
    }
}

/* Softmax of one chunk, online: turns scores into exp(s - maximum), updates maximum and sum, and says by what the accumulators shrink. */
static inline void softmax_chunk(float16 *s, const int *lo, const int *hi, int c, int n, float *maximum, float *sum, float *alpha)
{
    const int n_vectors = (n + 15) / 16;
    for (int r = 0; r < ROWS; r++) {
        float16 *row = s + r * STRIDE_VECTORS;
        const int a = max(lo[r] - c, 0), b = min(hi[r] - c, n), va = a / 16, vb = (b + 15) / 16;
        alpha[r] = 1.0f;
        if (a >= b) {
            for (int v = 0; v < n_vectors; v++) row[v] = 0.0f;
            continue;
        }
        for (int v = 0; v < va; v++) row[v] = 0.0f;
        for (int v = vb; v < n_vectors; v++) row[v] = 0.0f;
        row[va] = select((float16)(NOTHING), row[va], lanes(16 * va) >= a);
        row[vb - 1] = select((float16)(NOTHING), row[vb - 1], lanes(16 * (vb - 1)) < b);
        float16 high = maximum[r];
        for (int v = va; v < vb; v++) high = max(high, row[v]);
        const float m = max16(high);
        float16 total = 0.0f;
        for (int v = va; v < vb; v++) {
            row[v] = exp(row[v] - m);
            total += row[v];
        }
        alpha[r] = exp(maximum[r] - m);
        sum[r] = sum[r] * alpha[r] + tp_sum16(total);
        maximum[r] = m;
    }
}

static void forward_block(source q, source kt, source v, __global const int *segments, __global made *out, ALSO_ARGUMENT __global float *lse,
                          int n, int n_heads, int n_kv_heads, int head, int t0, float scale)
{
    const size_t q_stride = (size_t)n_heads * HEAD_DIM, kv_stride = (size_t)n_kv_heads * HEAD_DIM;
    float16 rows[ROWS * HEAD_VECTORS], acc[ROWS * HEAD_VECTORS], s[ROWS * STRIDE_VECTORS];
    float maximum[ROWS], sum[ROWS], alpha[ROWS];
    int lo[ROWS], hi[ROWS], first, last;
    query_ranges(lo, hi, &first, &last, segments, t0, n);
    copy_rows(rows, q + (size_t)head * HEAD_DIM, q_stride, t0, n, scale);
    for (int i = 0; i < ROWS * HEAD_VECTORS; i++) acc[i] = 0.0f;
    for (int r = 0; r < ROWS; r++) maximum[r] = NOTHING, sum[r] = 0.0f;
    for (int c = first / PANEL * PANEL; c < last; c += CHUNK) {
        const int m = min(CHUNK, last - c);
        for (int j = 0; j < m; j += PANEL) panel_product(s + j / 16, (const float *)rows, kt + (size_t)(c + j) * HEAD_DIM);
        softmax_chunk(s, lo, hi, c, m, maximum, sum, alpha);
        rows_product(acc, alpha, (const float *)s, v + (size_t)c * kv_stride, kv_stride, m);
    }
    for (int r = 0; r < ROWS && t0 + r < n; r++) {
        const float inverse = 1.0f / sum[r];
        for (int i = 0; i < HEAD_VECTORS; i++) {
            const size_t at = (size_t)(t0 + r) * q_stride + (size_t)head * HEAD_DIM + 16 * i;
            const float16 x = acc[r * HEAD_VECTORS + i] * inverse;
            STORE_MADE(x, out + at);
            STORE_ALSO(x, at);
        }
        lse[(size_t)(t0 + r) * n_heads + head] = maximum[r] + log(sum[r]);
    }
}

/* Group: (query head of the kv head, pair of blocks, kv head), so that neighbours read the same keys and the same rows of q. kt: packed k. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attention_forward(__global const float *q, __global const float *kt,
                                                                               __global const float *v, __global const int *segments,
                                                                               __global made *out, ALSO_ARGUMENT __global float *lse,
                                                                               __global const uint *step, uint sym, uint bound,
                                                                               uint n_heads, uint n_kv_heads, float scale)
{
    const int n = tp_rows(step, sym, bound), n_panels = (bound + PANEL - 1) / PANEL, kv = tp_group_id(2);
    const int head = kv * (int)(n_heads / n_kv_heads) + (int)tp_group_id(0);
    const int n_blocks = (n + ROWS - 1) / ROWS, light = tp_group_id(1), heavy = n_blocks - 1 - light;
    kt += (size_t)kv * n_panels * HEAD_DIM * PANEL;
    v += (size_t)kv * HEAD_DIM;
    for (int i = 0; i < 2; i++) {
        const int block = i == 0 ? heavy : light;
        if (light > heavy || (i == 1 && light == heavy)) return;
        forward_block(q, kt, v, segments, out, ALSO lse, n, n_heads, n_kv_heads, head, block * ROWS, scale);
    }
}

/* delta and lse as [head][T rounded up to 32], 0 past the run-time size. Group: (32 rows, query head). */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void attention_delta(__global const float *out, __global const float *dout,
                                                                             __global const float *lse, __global float *delta_t,
                                                                             __global float *lse_t, __global const uint *step, uint sym,
                                                                             uint bound, uint n_heads)
{
    const int n = tp_rows(step, sym, bound), n_panels = (bound + PANEL - 1) / PANEL, panel = tp_group_id(0), head = tp_group_id(1);
    if (panel * PANEL >= n) return;
    for (int i = 0; i < PANEL; i++) {
        const int t = panel * PANEL + i;
        const size_t to = (size_t)head * n_panels * PANEL + t;
        float d = 0.0f, l = 0.0f;
        if (t < n) {
            const size_t row = (size_t)t * n_heads + head;
            float16 sum = 0.0f;
            for (int v = 0; v < HEAD_VECTORS; v++)
                sum = fma(LOAD16(out + row * HEAD_DIM + 16 * v), LOAD16(dout + row * HEAD_DIM + 16 * v), sum);
            d = tp_sum16(sum);
            l = lse[row];
        }
        delta_t[to] = d;
        lse_t[to] = l;
    }
}

static void dq_block(source q, source kt, source vt, source k, source dout, source delta, source lse, __global const int *segments,
                     __global float *dq, int n, int n_heads, int n_kv_heads, int head, int t0, float scale)
{
    const size_t q_stride = (size_t)n_heads * HEAD_DIM, kv_stride = (size_t)n_kv_heads * HEAD_DIM;
    float16 q_rows[ROWS * HEAD_VECTORS], d_rows[ROWS * HEAD_VECTORS], acc[ROWS * HEAD_VECTORS];
    float16 s[ROWS * STRIDE_VECTORS], ds[ROWS * STRIDE_VECTORS];
    float one[ROWS];
    int lo[ROWS], hi[ROWS], first, last;
    query_ranges(lo, hi, &first, &last, segments, t0, n);
    copy_rows(q_rows, q + (size_t)head * HEAD_DIM, q_stride, t0, n, scale);
    copy_rows(d_rows, dout + (size_t)head * HEAD_DIM, q_stride, t0, n, 1.0f);
    for (int i = 0; i < ROWS * HEAD_VECTORS; i++) acc[i] = 0.0f;
    for (int r = 0; r < ROWS; r++) one[r] = 1.0f;
    for (int c = first / PANEL * PANEL; c < last; c += CHUNK) {
        const int m = min(CHUNK, last - c);
        for (int j = 0; j < m; j += PANEL) {
            panel_product(s + j / 16, (const float *)q_rows, kt + (size_t)(c + j) * HEAD_DIM);
            panel_product(ds + j / 16, (const float *)d_rows, vt + (size_t)(c + j) * HEAD_DIM);
        }
        for (int r = 0; r < ROWS; r++) {
            const float l = t0 + r < n ? lse[t0 + r] : 0.0f, d = t0 + r < n ? delta[t0 + r] : 0.0f;
            for (int i = r * STRIDE_VECTORS, at = c; at < c + m; i++, at += 16) {
                const int16 column = lanes(at);
                const float16 p = select((float16)(0.0f), exp(s[i] - l), column >= lo[r] && column < hi[r]);
                ds[i] = p * (ds[i] - d);
            }
        }
        rows_product(acc, one, (const float *)ds, k + (size_t)c * kv_stride, kv_stride, m);
    }
    write_rows(dq + (size_t)head * HEAD_DIM, q_stride, acc, t0, n, scale);
}

/* Group: (query head of the kv head, pair of blocks of queries, kv head). kt, vt: packed k and v. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
attention_dq(__global const float *q, __global const float *kt, __global const float *vt, __global const float *k,
             __global const float *dout, __global const float *delta_t, __global const float *lse_t, __global const int *segments,
             __global float *dq, __global const uint *step, uint sym, uint bound, uint n_heads, uint n_kv_heads, float scale)
{
    const int n = tp_rows(step, sym, bound), n_panels = (bound + PANEL - 1) / PANEL, kv = tp_group_id(2);
    const int head = kv * (int)(n_heads / n_kv_heads) + (int)tp_group_id(0);
    const int n_blocks = (n + ROWS - 1) / ROWS, light = tp_group_id(1), heavy = n_blocks - 1 - light;
    const size_t panels = (size_t)kv * n_panels * HEAD_DIM * PANEL, rows = (size_t)head * n_panels * PANEL;
    for (int i = 0; i < 2; i++) {
        const int block = i == 0 ? heavy : light;
        if (light > heavy || (i == 1 && light == heavy)) return;
        dq_block(q, kt + panels, vt + panels, k + (size_t)kv * HEAD_DIM, dout, delta_t + rows, lse_t + rows, segments, dq, n, n_heads,
                 n_kv_heads, head, block * ROWS, scale);
    }
}

/* n_blocks <= KEY_BLOCKS blocks of keys from t0 on: a chunk of queries is used by all of them before the next one is fetched, which for long sequences
 * comes from beyond the second-level cache. */
static void dkv_blocks(source k, source v, source qt, source dt, source q, source dout, source delta_t, source lse_t,
                       __global const int *segments, __global float *dk, __global made *dv, ALSO_ARGUMENT int n, int n_panels, int n_heads,
                       int n_kv_heads, int kv, int t0, int n_blocks, float scale)
{
    const size_t q_stride = (size_t)n_heads * HEAD_DIM, kv_stride = (size_t)n_kv_heads * HEAD_DIM;
    float16 k_rows[KEY_BLOCKS][ROWS * HEAD_VECTORS], v_rows[KEY_BLOCKS][ROWS * HEAD_VECTORS];
    float16 k_acc[KEY_BLOCKS][ROWS * HEAD_VECTORS], v_acc[KEY_BLOCKS][ROWS * HEAD_VECTORS];
    float16 p[ROWS * STRIDE_VECTORS], ds[ROWS * STRIDE_VECTORS];
    float one[ROWS];
    int lo[KEY_BLOCKS][ROWS], hi[KEY_BLOCKS][ROWS], first[KEY_BLOCKS], last[KEY_BLOCKS], end = 0;
    for (int b = 0; b < n_blocks; b++) {
        const int t = t0 + b * ROWS;
        key_ranges(lo[b], hi[b], &first[b], &last[b], segments, t, n);
        copy_rows(k_rows[b], k + (size_t)kv * HEAD_DIM, kv_stride, t, n, scale);
        copy_rows(v_rows[b], v + (size_t)kv * HEAD_DIM, kv_stride, t, n, 1.0f);
        for (int i = 0; i < ROWS * HEAD_VECTORS; i++) k_acc[b][i] = 0.0f, v_acc[b][i] = 0.0f;
        end = max(end, last[b]);
    }
    for (int r = 0; r < ROWS; r++) one[r] = 1.0f;
    const int group = n_heads / n_kv_heads;
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        const size_t panels = (size_t)head * n_panels * HEAD_DIM * PANEL;
        source lse = lse_t + (size_t)head * n_panels * PANEL, delta = delta_t + (size_t)head * n_panels * PANEL;
        for (int chunk = t0 / PANEL * PANEL; chunk < end; chunk += CHUNK) {
            for (int b = 0; b < n_blocks; b++) {
                const int c = max(chunk, first[b] / PANEL * PANEL), m = min(chunk + CHUNK, last[b]) - c;
                if (m <= 0) continue;
                const size_t at_row = (size_t)c * q_stride + (size_t)head * HEAD_DIM;
                for (int j = 0; j < m; j += PANEL) {
                    panel_product(p + j / 16, (const float *)k_rows[b], qt + panels + (size_t)(c + j) * HEAD_DIM);
                    panel_product(ds + j / 16, (const float *)v_rows[b], dt + panels + (size_t)(c + j) * HEAD_DIM);
                }
                for (int r = 0; r < ROWS; r++) {
                    for (int i = r * STRIDE_VECTORS, at = c; at < c + m; i++, at += 16) {
                        const int16 column = lanes(at);
                        p[i] = select((float16)(0.0f), exp(p[i] - LOAD16(lse + at)), column >= lo[b][r] && column < hi[b][r]);
                        ds[i] = p[i] * (ds[i] - LOAD16(delta + at));
                    }
                }
                rows_product(v_acc[b], one, (const float *)p, dout + at_row, q_stride, m);
                rows_product(k_acc[b], one, (const float *)ds, q + at_row, q_stride, m);
            }
        }
    }
    for (int b = 0; b < n_blocks; b++) {
        write_rows(dk + (size_t)kv * HEAD_DIM, kv_stride, k_acc[b], t0 + b * ROWS, n, scale);
        write_made(dv + (size_t)kv * HEAD_DIM, ALSO_AT((size_t)kv * HEAD_DIM) kv_stride, v_acc[b], t0 + b * ROWS, n);
    }
}

/* Group: (pair of blocks of keys, or for long bounds of KEY_BLOCKS of them, kv head). qt, dt: packed q and dout. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
attention_dkv(__global const float *k, __global const float *v, __global const float *qt, __global const float *dt, __global const float *q,
              __global const float *dout, __global const float *delta_t, __global const float *lse_t, __global const int *segments,
              __global float *dk, __global made *dv, ALSO_ARGUMENT __global const uint *step, uint sym, uint bound, uint n_heads, uint n_kv_heads,
              float scale)
{
    const int n = tp_rows(step, sym, bound), n_panels = (bound + PANEL - 1) / PANEL, kv = tp_group_id(1);
    const int together = bound > KEY_BLOCKS_FROM ? KEY_BLOCKS : 1;
    const int n_blocks = (n + together * ROWS - 1) / (together * ROWS), light = tp_group_id(0), heavy = n_blocks - 1 - light;
    for (int i = 0; i < 2; i++) {
        const int block = i == 0 ? heavy : light;
        if (light > heavy || (i == 1 && light == heavy)) return;
        dkv_blocks(k, v, qt, dt, q, dout, delta_t, lse_t, segments, dk, dv, ALSO n, n_panels, n_heads, n_kv_heads, kv, block * together * ROWS,
                   together, scale);
    }
}
