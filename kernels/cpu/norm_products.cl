/* Products of the same few normalised rows with several weights, in one launch:
 *   y[t] = x[t] * r(t) * norm,   r(t) = 1 / sqrt(mean(x[t]^2) + eps)        as cpu/rms_norm.cl
 *   out_i[t, n] = sum_k y[t, k] W_i[n, k]                                   N_WEIGHTS weights, n < n_i
 *   GATED (2 weights): out[t, n] = g / (1 + exp(-GATED(g))) * u of the two products g and u instead, as cpu/swiglu.cl
 *   STORE_NORM: y is stored as well
 *   DOT: the products by dot products of integers (common/quant_dot.clh); encoded: room for every group's records of rows of y
 * Weights lie in panels of 32 rows: blocks of the layout `quant` (QUANT and TP_WEIGHT_<T>), else f32 or bf16 (B_BF16). k is a multiple of
 * 32; without DOT at most 8 rows. There every sum is one f32 chain of fma in ascending k; the bits are those of rms_norm, gemm (gemv with
 * DOT) and swiglu one by one.
 * Index map: one work-item per group; the panels of all weights are numbered through and each group takes a contiguous share. It makes r
 * for all rows; without DOT it normalises 32 columns at a time, which costs little beside decoding 32 rows of a weight. A chain waits for its last step,
 * so a single row takes two panels at a time (those of gate and up, else neighbours): four chains side by side. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"
#include "common/gated.clh"
#include "common/quant_panel.clh"

#ifdef DOT
#include "common/quant_dot.clh"
#define MAX_ROWS TP_DOT_CHUNK /* rows whose r is made at once */
#define TILE_ROWS TP_DOT_ROWS /* and that are multiplied at once */
#define N_SUMS TP_DOT_SUMS
#else
#define MAX_ROWS 8
#define TILE_ROWS 8
#define N_SUMS (TILE_ROWS * 32)
#endif

#ifdef QUANT
typedef uchar stored;
#define PANEL_STEP TP_QUANT_BLOCK_BYTES /* elements of `stored` in 32 columns of a panel */
#elif defined(B_BF16)
typedef ushort stored;
#define PANEL_STEP 1024
#define LOAD16(p) as_float16(convert_uint16(vload16(0, p)) << 16)
#else
typedef float stored;
#define PANEL_STEP 1024
#define LOAD16(p) vload16(0, p)
#endif

typedef float private_float16 __attribute__((ext_vector_type(16), aligned(4)));

#ifndef DOT
#define EACH1(X) X(0)
#define EACH4(X) X(0) X(1) X(2) X(3)
#define EACH8(X) EACH4(X) X(4) X(5) X(6) X(7)

#define DECLARE(i) float16 c##i##_0 = (float16)(0.0f), c##i##_1 = (float16)(0.0f);
#define NORMALISE(i)                                                                                                       \
    {                                                                                                                      \
        const uint t = min((uint)i, rows - 1);                                                                             \
        __global const float *from = x + (size_t)t * k + at;                                                               \
        *(private_float16 *)(y + i * 32) = tp_load16(from) * r[t] * w0;                                                    \
        *(private_float16 *)(y + i * 32 + 16) = tp_load16(from + 16) * r[t] * w1;                                          \
    }
#define MULTIPLY(i)                                                                                                        \
    {                                                                                                                      \
        const float16 v = (float16)(y[i * 32 + column]);                                                                   \
        c##i##_0 = fma(v, b0, c##i##_0);                                                                                   \
        c##i##_1 = fma(v, b1, c##i##_1);                                                                                   \
    }
#define FINISH(i)                                                                                                          \
    *(private_float16 *)(sums + i * 32) = c##i##_0;                                                                        \
    *(private_float16 *)(sums + i * 32 + 16) = c##i##_1;

#ifdef QUANT
/* 16 columns, from `first` on, of the block's two halves of 16 rows. */
#define COLUMNS(EACH, first)                                                                                               \
    {                                                                                                                      \
        const float16 scale0 = tp_quant_scale(b, 0, first / 16), scale1 = tp_quant_scale(b, 1, first / 16);                \
        for (uint c = first; c < first + 16; c += 4) {                                                                     \
            const uint16 words0 = tp_quant_words(b, c, 0), words1 = tp_quant_words(b, c, 1);                               \
            _Pragma("unroll") for (uint i = 0; i < 4; i++)                                                                 \
            {                                                                                                              \
                const uint column = c + i;                                                                                 \
                const float16 b0 = QUANT_VALUE(tp_quant_level(words0, first + i), scale0, shift0);                         \
                const float16 b1 = QUANT_VALUE(tp_quant_level(words1, first + i), scale1, shift1);                         \
                EACH(MULTIPLY)                                                                                             \
            }                                                                                                              \
        }                                                                                                                  \
    }
#define BLOCK(EACH)                                                                                                        \
    const float16 shift0 = tp_quant_shift(b, 0), shift1 = tp_quant_shift(b, 1);                                            \
    (void)shift0, (void)shift1;                                                                                            \
    COLUMNS(EACH, 0)                                                                                                       \
    COLUMNS(EACH, 16)
#else
#define BLOCK(EACH)                                                                                                        \
    for (uint column = 0; column < 32; column++) {                                                                         \
        const float16 b0 = LOAD16(b + column * 32), b1 = LOAD16(b + column * 32 + 16);                                     \
        EACH(MULTIPLY)                                                                                                     \
    }
#endif

/* sums[i*32 + j]: row i of the product with row j of a panel; rows past the last repeat it. */
#define TILE(name, EACH, n)                                                                                                \
    static inline void name(__private float *sums, __global const float *x, __global const float *norm, __private const float *r, \
                            __global const stored *b, uint rows, uint k)                                                   \
    {                                                                                                                      \
        float y[n * 32];                                                                                                   \
        EACH(DECLARE)                                                                                                      \
        for (uint at = 0; at < k; at += 32) {                                                                              \
            const float16 w0 = tp_load16(norm + at), w1 = tp_load16(norm + at + 16);                                       \
            EACH(NORMALISE)                                                                                                \
            BLOCK(EACH)                                                                                                    \
            b += PANEL_STEP;                                                                                               \
        }                                                                                                                  \
        EACH(FINISH)                                                                                                       \
    }
TILE(tile_1, EACH1, 1)
TILE(tile_4, EACH4, 4)
TILE(tile_8, EACH8, 8)

/* One row, two panels. */
#define PAIR(column, b0_0, b0_1, b1_0, b1_1)                                                                               \
    {                                                                                                                      \
        const float16 v = (float16)(y[column]);                                                                            \
        c0_0 = fma(v, b0_0, c0_0);                                                                                         \
        c0_1 = fma(v, b0_1, c0_1);                                                                                         \
        c1_0 = fma(v, b1_0, c1_0);                                                                                         \
        c1_1 = fma(v, b1_1, c1_1);                                                                                         \
    }
#ifdef QUANT
#define PAIR_COLUMNS(first)                                                                                                \
    {                                                                                                                      \
        const float16 scale0_0 = tp_quant_scale(b0, 0, first / 16), scale0_1 = tp_quant_scale(b0, 1, first / 16);          \
        const float16 scale1_0 = tp_quant_scale(b1, 0, first / 16), scale1_1 = tp_quant_scale(b1, 1, first / 16);          \
        for (uint c = first; c < first + 16; c += 4) {                                                                     \
            const uint16 words0_0 = tp_quant_words(b0, c, 0), words0_1 = tp_quant_words(b0, c, 1);                         \
            const uint16 words1_0 = tp_quant_words(b1, c, 0), words1_1 = tp_quant_words(b1, c, 1);                         \
            _Pragma("unroll") for (uint i = 0; i < 4; i++)                                                                 \
            {                                                                                                              \
                const float16 p = QUANT_VALUE(tp_quant_level(words0_0, first + i), scale0_0, shift0_0);                    \
                const float16 q = QUANT_VALUE(tp_quant_level(words0_1, first + i), scale0_1, shift0_1);                    \
                const float16 s = QUANT_VALUE(tp_quant_level(words1_0, first + i), scale1_0, shift1_0);                    \
                const float16 t = QUANT_VALUE(tp_quant_level(words1_1, first + i), scale1_1, shift1_1);                    \
                PAIR(c + i, p, q, s, t)                                                                                    \
            }                                                                                                              \
        }                                                                                                                  \
    }
#endif
static inline void tile_pair(__private float *sums0, __private float *sums1, __global const float *x, __global const float *norm, float r,
                             __global const stored *b0, __global const stored *b1, uint k)
{
    float y[32];
    float16 c0_0 = (float16)(0.0f), c0_1 = c0_0, c1_0 = c0_0, c1_1 = c0_0;
    for (uint at = 0; at < k; at += 32) {
        *(private_float16 *)y = tp_load16(x + at) * r * tp_load16(norm + at);
        *(private_float16 *)(y + 16) = tp_load16(x + at + 16) * r * tp_load16(norm + at + 16);
#ifdef QUANT
        for (uint i = 0; i < TP_QUANT_BLOCK_BYTES; i += 64) {
            TP_PREFETCH(b0 + TP_AHEAD + i);
            TP_PREFETCH(b1 + TP_AHEAD + i);
        }
        const float16 shift0_0 = tp_quant_shift(b0, 0), shift0_1 = tp_quant_shift(b0, 1);
        const float16 shift1_0 = tp_quant_shift(b1, 0), shift1_1 = tp_quant_shift(b1, 1);
        (void)shift0_0, (void)shift0_1, (void)shift1_0, (void)shift1_1;
        PAIR_COLUMNS(0)
        PAIR_COLUMNS(16)
#else
        for (uint column = 0; column < 32; column++)
            PAIR(column, LOAD16(b0 + column * 32), LOAD16(b0 + column * 32 + 16), LOAD16(b1 + column * 32), LOAD16(b1 + column * 32 + 16))
#endif
        b0 += PANEL_STEP;
        b1 += PANEL_STEP;
    }
    *(private_float16 *)sums0 = c0_0;
    *(private_float16 *)(sums0 + 16) = c0_1;
    *(private_float16 *)sums1 = c1_0;
    *(private_float16 *)(sums1 + 16) = c1_1;
}

static inline void panel_product(__private float *sums, __global const float *x, __global const float *norm, __private const float *r,
                                 __global const stored *b, uint rows, uint k)
{
    if (rows == 1) tile_1(sums, x, norm, r, b, rows, k);
    else if (rows <= 4) tile_4(sums, x, norm, r, b, rows, k);
    else tile_8(sums, x, norm, r, b, rows, k);
}
#define PRODUCT(sums, b) panel_product(sums, x + (size_t)first * k, norm, r, b, rows, k)
#else
#define PRODUCT(sums, b) tp_dot_rows(sums, records + row * TP_DOT_RECORD, count * TP_DOT_RECORD, b, k / 32, rows)
#endif

static inline float row_scale(__global const float *row, uint k, float eps)
{
    float16 sum0 = 0.0f, sum1 = 0.0f;
    for (uint j = 0; j < k; j += 32) {
        const float16 a = tp_load16(row + j), b = tp_load16(row + j + 16);
        sum0 = fma(a, a, sum0);
        sum1 = fma(b, b, sum1);
    }
    return 1.0f / sqrt(tp_sum16(sum0 + sum1) / (float)k + eps);
}

static inline void put(__global float *out, __private const float *sums, uint panel, uint first, uint rows, uint n)
{
    const uint columns = min(32u, n - panel * 32);
    for (uint t = 0; t < rows; t++) {
        __global float *to = out + (size_t)(first + t) * n + panel * 32;
        if (columns == 32) {
            tp_store16(vload16(0, sums + t * 32), to);
            tp_store16(vload16(1, sums + t * 32), to + 16);
        } else {
            for (uint j = 0; j < columns; j++) to[j] = sums[t * 32 + j];
        }
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void norm_products(
    __global const float *x, __global const float *norm, __global const stored *w0,
#if N_WEIGHTS > 1
    __global const stored *w1,
#endif
#if N_WEIGHTS > 2
    __global const stored *w2,
#endif
    __global float *out0,
#if N_WEIGHTS > 1 && !defined(GATED)
    __global float *out1,
#endif
#if N_WEIGHTS > 2
    __global float *out2,
#endif
#ifdef STORE_NORM
    __global float *stored_norm,
#endif
    __global const uint *step, uint symbol, uint bound, uint k, float eps, uint n0, uint n1, uint n2, uint n_groups
#ifdef DOT
    ,
    __global uchar *encoded
#endif
)
{
    const uint n_rows = tp_rows(step, symbol, bound), group = tp_group_id(0);
    const size_t panel = (size_t)(k / 32) * PANEL_STEP;
    const uint panels0 = (n0 + 31) / 32;
    float r[MAX_ROWS], sums[N_SUMS], sums1[N_SUMS];
#ifdef DOT
    __global uchar *records = encoded + group * tp_dot_bytes(bound, k);
#endif
    for (uint first = 0; first < n_rows; first += MAX_ROWS) {
        const uint count = min(n_rows - first, (uint)MAX_ROWS);
        for (uint t = 0; t < count; t++) r[t] = row_scale(x + (size_t)(first + t) * k, k, eps);
#ifdef STORE_NORM
        for (uint t = 0; t < (group == 0 ? count : 0); t++) {
            const size_t at = (size_t)(first + t) * k;
            for (uint j = 0; j < k; j += 16) tp_store16(tp_load16(x + at + j) * r[t] * tp_load16(norm + j), stored_norm + at + j);
        }
#endif
#ifdef DOT
        for (uint t = 0; t < count; t++)
            for (uint j = 0; j < k; j += 32) {
                __global const float *from = x + (size_t)(first + t) * k + j;
                tp_dot_encode(records + (size_t)(j / 32 * count + t) * TP_DOT_RECORD, tp_load16(from) * r[t] * tp_load16(norm + j),
                              tp_load16(from + 16) * r[t] * tp_load16(norm + j + 16));
            }
#endif
#ifdef GATED
        const uint end = tp_part(panels0, n_groups, group + 1);
        for (uint p = tp_part(panels0, n_groups, group); p < end; p++)
            for (uint row = 0; row < count; row += TILE_ROWS) {
                const uint rows = min(count - row, (uint)TILE_ROWS);
#ifndef DOT
                if (rows == 1) {
                    tile_pair(sums, sums1, x + (size_t)first * k, norm, r[0], w0 + p * panel, w1 + p * panel, k);
                } else
#endif
                {
                    PRODUCT(sums, w0 + p * panel);
                    PRODUCT(sums1, w1 + p * panel);
                }
                for (uint i = 0; i < rows * 32; i += 16) {
                    const float16 g = vload16(0, sums + i);
                    *(private_float16 *)(sums + i) = g / (1.0f + exp(-GATED(g))) * vload16(0, sums1 + i);
                }
                put(out0, sums, p, first + row, rows, n0);
            }
#else
        const uint panels1 = panels0 + (n1 + 31) / 32, panels = panels1 + (n2 + 31) / 32;
#if N_WEIGHTS == 1
#define PANEL(p) (w0 + (p) * panel)
#define PUT(p, sums) put(out0, sums, p, first + row, rows, n0)
#elif N_WEIGHTS == 2
#define PANEL(p) ((p) < panels0 ? w0 + (p) * panel : w1 + ((p) - panels0) * panel)
#define PUT(p, sums) \
    (p) < panels0 ? put(out0, sums, p, first + row, rows, n0) : put(out1, sums, (p) - panels0, first + row, rows, n1)
#else
#define PANEL(p) ((p) < panels0 ? w0 + (p) * panel : (p) < panels1 ? w1 + ((p) - panels0) * panel : w2 + ((p) - panels1) * panel)
#define PUT(p, sums)                                                             \
    (p) < panels0   ? put(out0, sums, p, first + row, rows, n0)                  \
    : (p) < panels1 ? put(out1, sums, (p) - panels0, first + row, rows, n1)      \
                    : put(out2, sums, (p) - panels1, first + row, rows, n2)
#endif
        const uint end = tp_part(panels, n_groups, group + 1);
        for (uint p = tp_part(panels, n_groups, group); p < end; p++)
            for (uint row = 0; row < count; row += TILE_ROWS) {
                const uint rows = min(count - row, (uint)TILE_ROWS);
#ifndef DOT
                if (rows == 1 && p + 1 < end) {
                    tile_pair(sums, sums1, x + (size_t)first * k, norm, r[0], PANEL(p), PANEL(p + 1), k);
                    PUT(p, sums);
                    p++;
                    PUT(p, sums1);
                    continue;
                }
#endif
                PRODUCT(sums, PANEL(p));
                PUT(p, sums);
            }
#endif
    }
}
