/* out[m, n] (+)= c[m, n] + sum_k a(m, k) * b(k, n) for CPUs with wide vectors, f32 accumulation in ascending k.
 *   a(m, k) = a[m*a_stride_m + k*a_stride_k]
 *   b in panels: b(k, n) = b[((b_first_n + n)/32 * b_stride + b_first_k + k)*32 + n%32], b_first_n a multiple of 32; f32, or bf16
 *   (-DB_BF16)
 *   b in rows (-DB_ROW): b(k, n) = b[(b_first_k + k)*b_stride + b_first_n + n], n a multiple of 32
 *   b in rows of any dtype (-DB_NATIVE, and -DB_IS_NK if b(k, n) = b[(b_first_n + n)*b_stride + b_first_k + k]): every group decodes a
 *   strip of panels to its own strip_panels*k_length*32 floats of `panels` and multiplies from there
 *   b in the layout quant (-DB_QUANT, and -DB_IS_NK if b(k, n) is row n, column k of the weight, else it is row k, column n): the same, a
 *   strip of strip_panels*K*32 floats with K = k_length rounded up to 32; b_stride columns in the weight, b_first_n, b_first_k % 32 == 0
 *   c, out: element m*out_stride + out_first_n + n; c may be out itself, and is read only if add is 1
 * k runs over [k_first, min(run-time size of k, k_first + k_length)), b_first_k is the position of k_first in b; m over its run-time size.
 * Index map: one work-item per group. Group (x, y) makes panels_per_group panels of 32 columns x the y-th share of the rows, in strips of
 * strip_panels that stay in the second cache while all rows pass by; a row tile of a is then in the first cache for the whole strip.
 * Micro-tiles of ROWS rows (or TAIL at the end) x VECTORS vectors of WIDTH columns live in registers; rows past the end repeat the last
 * row and are not stored, columns past the end repeat columns of the last panel and are not stored. Tiles that are no part of a panel
 * (three vectors) need panels_per_group and strip_panels to be multiples of BLOCK_PANELS.
 * tune: TILE auto | 12x2x16 8x3x16 6x4x16 6x2x8 4x3x8
 * tune: STRIP_KB 320 | 96 192 320 512
 * tune: GROUPS auto | 8 16 32 64 128 */
#include "common/base.clh"
#include "common/step.clh"

#ifndef ROWS
#define ROWS 12
#define VECTORS 2
#define WIDTH 16
#endif

#if WIDTH == 16
typedef float16 wide;
typedef float wide_store __attribute__((ext_vector_type(16), aligned(4)));
#define LOAD_F32(p) vload16(0, p)
#define LOAD_BF16(p) as_float16(convert_uint16(vload16(0, p)) << 16)
#define STORE_EDGE(v, p) vstore16(v, 0, p)
#else
typedef float8 wide;
typedef float wide_store __attribute__((ext_vector_type(8), aligned(4)));
#define LOAD_F32(p) vload8(0, p)
#define LOAD_BF16(p) as_float8(convert_uint8(vload8(0, p)) << 16)
#define STORE_EDGE(v, p) vstore8(v, 0, p)
#endif
#define STORE(p, v) (*(__global wide_store *)(p) = (v))

#if defined(B_NATIVE) || defined(B_QUANT)
#define DECODES 1
#endif
#include "common/quant.clh"
#include "common/quant_panel.clh"
#ifdef DECODES
typedef tp_weight stored;
#endif
#ifdef B_BF16
typedef ushort element;
#define LOAD(p) LOAD_BF16(p)
#else
typedef float element;
#define LOAD(p) LOAD_F32(p)
#endif

#ifndef DECODES
typedef element stored;
#endif

#define TILE_COLUMNS (VECTORS * WIDTH)
#if 32 % TILE_COLUMNS == 0
#define IN_ONE_PANEL 1
#endif

#define EACH2(X) X(0) X(1)
#define EACH4(X) EACH2(X) X(2) X(3)
#define EACH6(X) EACH4(X) X(4) X(5)
#define EACH8(X) EACH6(X) X(6) X(7)
#define EACH12(X) EACH8(X) X(8) X(9) X(10) X(11)
#if ROWS == 12
#define EACH_ROW EACH12
#define EACH_TAIL EACH4
#define TAIL 4
#elif ROWS == 8
#define EACH_ROW EACH8
#define EACH_TAIL EACH4
#define TAIL 4
#elif ROWS == 6
#define EACH_ROW EACH6
#define EACH_TAIL EACH2
#define TAIL 2
#else
#define EACH_ROW EACH4
#define EACH_TAIL EACH2
#define TAIL 2
#endif
#if VECTORS == 4
#define EACH_VECTOR(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
#elif VECTORS == 3
#define EACH_VECTOR(X, i) X(i, 0) X(i, 1) X(i, 2)
#else
#define EACH_VECTOR(X, i) X(i, 0) X(i, 1)
#endif

#ifdef IN_ONE_PANEL
#define LOAD_B(i, v) const wide b_##v = LOAD(b0 + v * WIDTH);
#define NEXT_B(i, v)
#else
#define LOAD_B(i, v) const wide b_##v = LOAD(b##v);
#define NEXT_B(i, v) b##v += b_stride_k;
#endif
#define ZERO(i, v) wide c##i##_##v = (wide)(0.0f);
#define FMA(i, v) c##i##_##v = fma(x, b_##v, c##i##_##v);
#define ADD(i, v) c##i##_##v += LOAD_F32(c + row + v * WIDTH);
#define PUT(i, v) STORE(out + row + v * WIDTH, c##i##_##v);
#define PUT_EDGE(i, v) STORE_EDGE(c##i##_##v, edge + v * WIDTH);

#define DECLARE(i)                                                                \
    __global const float *a##i = a + (size_t)min((uint)i, rows - 1) * a_stride_m; \
    EACH_VECTOR(ZERO, i)
#define MULTIPLY(i)                    \
    {                                  \
        const wide x = (wide)(a##i[at]); \
        EACH_VECTOR(FMA, i)            \
    }
#define FINISH(i)                                                                                                      \
    if (i < rows) {                                                                                                    \
        const size_t row = (size_t)i * out_stride;                                                                     \
        if (columns >= TILE_COLUMNS) {                                                                                 \
            if (add) {                                                                                                 \
                EACH_VECTOR(ADD, i)                                                                                    \
            }                                                                                                          \
            EACH_VECTOR(PUT, i)                                                                                        \
        } else {                                                                                                       \
            float edge[TILE_COLUMNS];                                                                                  \
            EACH_VECTOR(PUT_EDGE, i)                                                                                   \
            for (uint j = 0; j < columns; j++) out[row + j] = add ? c[row + j] + edge[j] : edge[j];                    \
        }                                                                                                              \
    }
/* Vector v of the tile is at b0 + v*WIDTH if tiles divide panels, else at b0, b1, b2, b3. */
#define MAKE_TILE(name, EACH)                                                                                                              \
    static inline void name(__global const float *a, __global const element *b0, __global const element *b1, __global const element *b2,  \
                            __global const element *b3, __global const float *c, __global float *out, uint rows, uint columns, uint k,     \
                            size_t a_stride_m, size_t a_stride_k, size_t b_stride_k, size_t out_stride, uint add)                          \
    {                                                                                                                                      \
        EACH(DECLARE)                                                                                                                      \
        size_t at = 0;                                                                                                                     \
        for (uint i = 0; i < k; i++) {                                                                                                     \
            EACH_VECTOR(LOAD_B, 0)                                                                                                         \
            EACH(MULTIPLY)                                                                                                                 \
            at += a_stride_k;                                                                                                              \
            ADVANCE_B                                                                                                                      \
        }                                                                                                                                  \
        EACH(FINISH)                                                                                                                       \
    }
#ifdef IN_ONE_PANEL
#define ADVANCE_B b0 += b_stride_k;
#else
#define ADVANCE_B EACH_VECTOR(NEXT_B, 0)
#endif
MAKE_TILE(tile_full, EACH_ROW)
MAKE_TILE(tile_tail, EACH_TAIL)

#ifdef B_NATIVE
/* panel[k*32 + j] = b(k, first_n + j) for k < k_length; 0 for j >= columns. first_n and first_k are positions in b. */
static inline void decode_panel(__global float *panel, __global const stored *b, uint b_stride, uint first_n, uint first_k, uint k_length,
                                uint columns)
{
#ifdef B_IS_NK
    float square[32 * 32];
    for (uint k = 0; k < k_length; k += 32) {
        const uint count = min(32u, k_length - k);
        for (uint j = 0; j < 32; j++) {
            if (j < columns) tp_weight_piece(square + j * 32, b, (ulong)(first_n + j) * b_stride + first_k + k, count);
            else
                for (uint i = 0; i < 32; i++) square[j * 32 + i] = 0.0f;
        }
        for (uint i = 0; i < count; i++)
            for (uint j = 0; j < 32; j++) panel[(size_t)(k + i) * 32 + j] = square[j * 32 + i];
    }
#else
    float piece[32];
    for (uint k = 0; k < k_length; k++) {
        tp_weight_piece(piece, b, (ulong)(first_k + k) * b_stride + first_n, columns);
        for (uint j = 0; j < 32; j++) panel[(size_t)k * 32 + j] = piece[j];
    }
#endif
}
#elif defined(B_QUANT)
/* panel[k*32 + j] = b(k, first_n + j) for k < k_length and, in the room up to a multiple of 32, k past it; zeros past the weight's rows. */
static inline void decode_panel(__global float *panel, __global const stored *b, uint b_stride, uint first_n, uint first_k, uint k_length,
                                uint columns)
{
    for (uint k = 0; k < k_length; k += 32) {
#ifdef B_IS_NK
        tp_quant_block_columns_global(panel + (size_t)k * 32, b + ((size_t)(first_n / 32) * (b_stride / 32) + (first_k + k) / 32) * TP_QUANT_BLOCK_BYTES);
#else
        tp_quant_block_rows_global(panel + (size_t)k * 32, b + ((size_t)((first_k + k) / 32) * (b_stride / 32) + first_n / 32) * TP_QUANT_BLOCK_BYTES);
#endif
    }
}
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void gemm(
    __global const float *a, __global const stored *b, __global const float *c, __global float *out, __global const uint *step,
    uint m_symbol, uint m_bound, uint k_symbol, uint k_bound, uint k_first, uint k_length, uint n, uint a_stride_m, uint a_stride_k,
    uint b_stride, uint b_first_n, uint b_first_k, uint out_stride, uint out_first_n, uint add, uint panels_per_group, uint strip_panels
#ifdef DECODES
    ,
    __global float *panels
#endif
)
{
    const uint m = tp_rows(step, m_symbol, m_bound);
    const uint k_end = min(tp_rows(step, k_symbol, k_bound), k_first + k_length);
    const uint k = (uint)max((int)(k_end - k_first), 0); /* signed: as an unsigned choice it becomes an intrinsic unknown to Oclgrind */
    const uint share = (uint)get_global_size(1);
    const uint rows_per_group = ((m + share - 1) / share + ROWS - 1) / ROWS * ROWS;
    const uint m_begin = (uint)tp_group_id(1) * rows_per_group, m_end = min(m, m_begin + rows_per_group);
    const uint p_begin = (uint)tp_group_id(0) * panels_per_group, p_end = min((n + 31) / 32, p_begin + panels_per_group);
    if (m_begin >= m_end) return;
    a += (size_t)k_first * a_stride_k;
    for (uint p = p_begin; p < p_end; p += strip_panels) {
        const uint strip = min(strip_panels, p_end - p), columns = min(n - p * 32, strip * 32);
#if defined(DECODES)
        const size_t panel_length = (size_t)((k_length + 31) / 32 * 32) * 32;
        const size_t group = tp_group_id(0) * get_global_size(1) + tp_group_id(1), b_stride_k = 32;
        __global float *from_b = panels + group * strip_panels * panel_length;
        for (uint i = 0; i < strip; i++)
            decode_panel(from_b + i * panel_length, b, b_stride, b_first_n + (p + i) * 32, b_first_k, k, min(32u, columns - i * 32));
#define UNIT(column) (from_b + (column) / 32 * panel_length + (column) % 32)
#elif defined(B_ROW)
        __global const element *from_b = b + (size_t)b_first_k * b_stride + b_first_n + p * 32;
        const size_t b_stride_k = b_stride;
#define UNIT(column) (from_b + (column))
#else
        __global const element *from_b = b + ((size_t)(b_first_n / 32 + p) * b_stride + b_first_k) * 32;
        const size_t b_stride_k = 32;
#define UNIT(column) (from_b + (size_t)((column) / 32) * b_stride * 32 + (column) % 32)
#endif
        for (uint row = m_begin; row < m_end;) {
            const uint rows = m_end - row;
            const bool full = rows > ROWS - TAIL;
            __global const float *from_a = a + (size_t)row * a_stride_m;
            for (uint j = 0; j < columns; j += TILE_COLUMNS) {
                const size_t to = (size_t)row * out_stride + out_first_n + p * 32 + j;
                __global const element *b0 = UNIT(j);
#ifdef IN_ONE_PANEL
                __global const element *b1 = b0, *b2 = b0, *b3 = b0;
#else
                const uint last = (columns - 1) / WIDTH * WIDTH;
                __global const element *b1 = UNIT(min(j + WIDTH, last)), *b2 = UNIT(min(j + 2 * WIDTH, last)),
                                       *b3 = UNIT(min(j + 3 * WIDTH, last));
#endif
                if (full)
                    tile_full(from_a, b0, b1, b2, b3, c + to, out + to, rows, columns - j, k, a_stride_m, a_stride_k, b_stride_k,
                              out_stride, add);
                else
                    tile_tail(from_a, b0, b1, b2, b3, c + to, out + to, rows, columns - j, k, a_stride_m, a_stride_k, b_stride_k,
                              out_stride, add);
            }
            row += full ? ROWS : TAIL;
        }
    }
}
