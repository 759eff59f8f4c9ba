/* out[m, n] = (add ? c[m, n] : 0) + sum_k a[m, k] * b(k, n) for few rows m (decoding).
 *   b in the layout `quant` (-DB_QUANT, -DTP_WEIGHT_<T>): dequantised in registers, exactly
 *   b in panels [n/32][K][32] of f32, or bf16 (-DB_BF16)
 *   -DDOT: the same b by dot products of integers (common/quant_dot.clh); encoded: room for every group's records of rows of a
 *   a[m*a_stride + k]; c, out: element m*out_stride + out_first_n + n; c may be out itself; b_first_n is a multiple of 32.
 * Without DOT every sum is one f32 chain of fma in ascending k, c last: the bits of cpu/gemm.cl, and the same for any number of rows. A chain waits for
 * its last step, so a single row takes two panels at a time: four chains side by side.
 * Index map: one work-item per group, group x makes its share of the panels of 32 columns, in tiles of 4 or 2 rows x 1 panel or 1 row x 2. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"
#include "common/quant_panel.clh"
#ifdef DOT
#include "common/quant_dot.clh"
#endif

#ifdef B_QUANT
typedef uchar element;
#elif defined(B_BF16)
typedef ushort element;
#define LOAD16(i, p) as_float16(convert_uint16(vload16(i, p)) << 16)
#else
typedef float element;
#define LOAD16(i, p) vload16(i, p)
#endif

/* The sums of one row and 32 columns, as many as there are, to out. */
static inline void finish(__global float *out, __global const float *c, float16 y_0, float16 y_1, uint columns, uint add)
{
    if (columns >= 32) {
        if (add) {
            y_0 += vload16(0, c);
            y_1 += vload16(1, c);
        }
        tp_store16(y_0, out);
        tp_store16(y_1, out + 16);
    } else {
        float edge[32];
        vstore16(y_0, 0, edge);
        vstore16(y_1, 1, edge);
        for (uint j = 0; j < columns; j++) out[j] = add ? c[j] + edge[j] : edge[j];
    }
}

#ifndef DOT
/* Chain y<i>_<h>: row i of a, half h of the panel; PAIR: one row, y<p>_<h> for panel p. */
#define ROWS1(X) X(0)
#define ROWS2(X) X(0) X(1)
#define ROWS4(X) X(0) X(1) X(2) X(3)
#define PANELS1(X) X(0, b)
#define PANELS2(X) X(0, b) X(1, (b + panel_elements))
#define ROW(i) __global const float *a##i = a + (size_t)min((uint)i, rows - 1) * a_stride;
#define CHAINS(i) float16 y##i##_0 = (float16)(0.0f), y##i##_1 = (float16)(0.0f);
#define MULTIPLY(i)                              \
    {                                            \
        const float16 x = (float16)(a##i[at]);   \
        y##i##_0 = fma(x, w0_0, y##i##_0);       \
        y##i##_1 = fma(x, w0_1, y##i##_1);       \
    }
#define MULTIPLY_PAIR                            \
    {                                            \
        const float16 x = (float16)(a0[at]);     \
        y0_0 = fma(x, w0_0, y0_0);               \
        y0_1 = fma(x, w0_1, y0_1);               \
        y1_0 = fma(x, w1_0, y1_0);               \
        y1_1 = fma(x, w1_1, y1_1);               \
    }

#ifdef B_QUANT
#define AFFINE(p, block)                                                                                     \
    const float16 scale##p##_0 = tp_quant_scale(block, 0, part), scale##p##_1 = tp_quant_scale(block, 1, part); \
    const float16 shift##p##_0 = tp_quant_shift(block, 0), shift##p##_1 = tp_quant_shift(block, 1);
#define WORDS(p, block) \
    const uint16 words##p##_0 = tp_quant_words(block, part * 16 + c, 0), words##p##_1 = tp_quant_words(block, part * 16 + c, 1);
#define WEIGHTS(p, block)                                                                                               \
    const float16 w##p##_0 = QUANT_VALUE(tp_quant_level(words##p##_0, part * 16 + j), scale##p##_0, shift##p##_0);      \
    const float16 w##p##_1 = QUANT_VALUE(tp_quant_level(words##p##_1, part * 16 + j), scale##p##_1, shift##p##_1);
#define FETCH(p, block) \
    for (uint i = 0; i < TP_QUANT_BLOCK_BYTES; i += 64) TP_PREFETCH(block + TP_AHEAD + i);
#define CONTRACT(PANELS, PRODUCTS)                                                       \
    for (uint at = 0; at < k; b += TP_QUANT_BLOCK_BYTES) {                               \
        PANELS(FETCH)                                                                    \
        _Pragma("unroll") for (uint part = 0; part < 2; part++)                          \
        {                                                                                \
            PANELS(AFFINE)                                                               \
            for (uint c = 0; c < 16; c += 4) {                                           \
                PANELS(WORDS)                                                            \
                _Pragma("unroll") for (uint j = 0; j < 4; j++, at++)                     \
                {                                                                        \
                    PANELS(WEIGHTS)                                                      \
                    PRODUCTS                                                             \
                }                                                                        \
            }                                                                            \
        }                                                                                \
    }
#else
#define WEIGHTS(p, from) const float16 w##p##_0 = LOAD16(0, from), w##p##_1 = LOAD16(1, from);
#define CONTRACT(PANELS, PRODUCTS)                    \
    for (uint at = 0; at < k; at++, b += 32) {        \
        PANELS(WEIGHTS)                               \
        PRODUCTS                                      \
    }
#endif

#define FINISH(i) \
    if (i < rows) finish(out + (size_t)i * out_stride, c + (size_t)i * out_stride, y##i##_0, y##i##_1, columns, add);
#define TILE(name, ROWS)                                                                                                                  \
    static inline void name(__global const float *a, __global const element *b, __global const float *c, __global float *out, uint rows, \
                            uint columns, uint k, size_t a_stride, size_t out_stride, uint add)                                           \
    {                                                                                                                                     \
        ROWS(ROW)                                                                                                                         \
        ROWS(CHAINS)                                                                                                                      \
        CONTRACT(PANELS1, ROWS(MULTIPLY))                                                                                                 \
        ROWS(FINISH)                                                                                                                      \
    }
TILE(tile_1, ROWS1)
TILE(tile_2, ROWS2)
TILE(tile_4, ROWS4)

/* One row, two panels; columns > 32. */
static inline void tile_pair(__global const float *a0, __global const element *b, __global const float *c, __global float *out, uint columns,
                             uint k, size_t panel_elements, uint add)
{
    CHAINS(0)
    CHAINS(1)
    CONTRACT(PANELS2, MULTIPLY_PAIR)
    finish(out, c, y0_0, y0_1, 32, add);
    finish(out + 32, c + 32, y1_0, y1_1, columns - 32, add);
}
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void gemv(
    __global const float *a, __global const element *b, __global const float *c, __global float *out, __global const uint *step,
    uint m_symbol, uint m_bound, uint k, uint n, uint a_stride, uint b_first_n, uint out_stride, uint out_first_n, uint add,
    uint n_groups
#ifdef DOT
    ,
    __global uchar *encoded
#endif
)
{
    const uint m = tp_rows(step, m_symbol, m_bound);
    const uint n_panels = (n + 31) / 32, begin = tp_part(n_panels, n_groups, tp_group_id(0)), end = tp_part(n_panels, n_groups, tp_group_id(0) + 1);
#ifdef B_QUANT
    const size_t panel_elements = (size_t)(k / 32) * TP_QUANT_BLOCK_BYTES;
#else
    const size_t panel_elements = (size_t)k * 32;
#endif
    __global const element *panel = b + (b_first_n / 32 + begin) * panel_elements;
#ifdef DOT
    const uint blocks = k / 32;
    float sums[TP_DOT_SUMS];
    __global uchar *records = encoded + tp_group_id(0) * tp_dot_bytes(m_bound, k);
    for (uint first = 0; first < m; first += TP_DOT_CHUNK, panel -= (end - begin) * panel_elements) {
        const uint count = min(m - first, (uint)TP_DOT_CHUNK);
        for (uint t = 0; t < count; t++) {
            __global const float *from = a + (size_t)(first + t) * a_stride;
            for (uint i = 0; i < blocks; i++)
                tp_dot_encode(records + (size_t)(i * count + t) * TP_DOT_RECORD, tp_load16(from + i * 32), tp_load16(from + i * 32 + 16));
        }
        for (uint p = begin; p < end; p++, panel += panel_elements)
            for (uint row = 0; row < count; row += TP_DOT_ROWS) {
                const uint rows = min(count - row, (uint)TP_DOT_ROWS);
                tp_dot_rows(sums, records + row * TP_DOT_RECORD, count * TP_DOT_RECORD, panel, blocks, rows);
                for (uint i = 0; i < rows; i++) {
                    const size_t to = (size_t)(first + row + i) * out_stride + out_first_n + p * 32;
                    finish(out + to, c + to, vload16(0, sums + i * 32), vload16(1, sums + i * 32), n - p * 32, add);
                }
            }
    }
#else
    for (uint p = begin; p < end;) {
        const uint taken = m == 1 && p + 1 < end ? 2 : 1, columns = n - p * 32;
        for (uint row = 0; row < m; row += 4) {
            const size_t to = (size_t)row * out_stride + out_first_n + p * 32;
            __global const float *from = a + (size_t)row * a_stride;
            const uint rows = m - row;
            if (rows > 2) tile_4(from, panel, c + to, out + to, rows, columns, k, a_stride, out_stride, add);
            else if (rows == 2) tile_2(from, panel, c + to, out + to, rows, columns, k, a_stride, out_stride, add);
            else if (taken == 1) tile_1(from, panel, c + to, out + to, rows, columns, k, a_stride, out_stride, add);
            else tile_pair(from, panel, c + to, out + to, columns, k, panel_elements, add);
        }
        p += taken;
        panel += taken * panel_elements;
    }
#endif
}
