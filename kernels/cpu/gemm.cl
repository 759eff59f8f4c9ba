/* out[m, n] (+)= c[m, n] + sum_k a(m, k) * b(k, n) for CPUs with wide vectors, f32 accumulation in ascending k.
 *   a(m, k) = a[m*a_stride_m + k*a_stride_k]
 *   b in panels: b(k, n) = b[((b_first_n + n)/32 * b_stride + b_first_k + k)*32 + n%32], b_first_n a multiple of 32; f32, or bf16
 *   (-DB_BF16)
 *   b in rows (-DB_ROW): b(k, n) = b[(b_first_k + k)*b_stride + b_first_n + n], n a multiple of 32
 *   b in rows of any dtype (-DB_NATIVE, and -DB_IS_NK if b(k, n) = b[(b_first_n + n)*b_stride + b_first_k + k]): every group decodes one
 *   panel after the other to its own k_length*32 floats of `panels` and multiplies from there
 *   c, out: element m*out_stride + out_first_n + n; c may be out itself, and is read only if add is 1
 * k runs over [k_first, min(run-time size of k, k_first + k_length)), b_first_k is the position of k_first in b; m over its run-time size.
 * Index map: one work-item per group. Group (x, y) makes panels_per_group panels of 32 columns x the y-th share of the rows, the panel in
 * the outer loop so that it stays in the cache; micro-tiles of 12 (at the end 4) rows x 32 columns live in registers. Rows past the end
 * repeat the last row and are not stored. */
#include "common/base.clh"
#include "common/step.clh"

typedef float tp_float16 __attribute__((ext_vector_type(16), aligned(4)));
#define STORE16(p, v) (*(__global tp_float16 *)(p) = (v))

#ifdef B_NATIVE
#include "common/quant.clh"
typedef tp_weight stored;
#endif
#ifdef B_BF16
typedef ushort element;
#define LOAD16(p) as_float16(convert_uint16(vload16(0, p)) << 16)
#else
typedef float element;
#define LOAD16(p) vload16(0, p)
#endif

#ifndef B_NATIVE
typedef element stored;
#endif

#define EACH4(X) X(0) X(1) X(2) X(3)
#define EACH12(X) EACH4(X) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

#define DECLARE(i)                                                                                 \
    __global const float *a##i = a + (size_t)min((uint)i, rows - 1) * a_stride_m;                  \
    float16 c##i##_0 = (float16)(0.0f), c##i##_1 = (float16)(0.0f);
#define MULTIPLY(i)                                                                                \
    {                                                                                              \
        const float16 x = (float16)(a##i[at]);                                                     \
        c##i##_0 = fma(x, b0, c##i##_0);                                                           \
        c##i##_1 = fma(x, b1, c##i##_1);                                                           \
    }
#define FINISH(i)                                                                                  \
    if (i < rows) {                                                                                \
        const size_t row = (size_t)i * out_stride;                                                 \
        if (columns == 32) {                                                                       \
            if (add) {                                                                             \
                c##i##_0 += vload16(0, c + row);                                                   \
                c##i##_1 += vload16(1, c + row);                                                   \
            }                                                                                      \
            STORE16(out + row, c##i##_0);                                                          \
            STORE16(out + row + 16, c##i##_1);                                                     \
        } else {                                                                                   \
            float edge[32];                                                                        \
            vstore16(c##i##_0, 0, edge);                                                           \
            vstore16(c##i##_1, 1, edge);                                                           \
            for (uint j = 0; j < columns; j++) out[row + j] = add ? c[row + j] + edge[j] : edge[j]; \
        }                                                                                          \
    }
#define TILE(name, EACH)                                                                                                                  \
    static inline void name(__global const float *a, __global const element *b, __global const float *c, __global float *out, uint rows, \
                            uint columns, uint k, size_t a_stride_m, size_t a_stride_k, size_t b_stride_k, size_t out_stride, uint add)  \
    {                                                                                                                                     \
        EACH(DECLARE)                                                                                                                     \
        size_t at = 0;                                                                                                                    \
        for (uint i = 0; i < k; i++) {                                                                                                    \
            const float16 b0 = LOAD16(b), b1 = LOAD16(b + 16);                                                                            \
            EACH(MULTIPLY)                                                                                                                \
            at += a_stride_k;                                                                                                             \
            b += b_stride_k;                                                                                                              \
        }                                                                                                                                 \
        EACH(FINISH)                                                                                                                      \
    }
TILE(tile_12, EACH12)
TILE(tile_4, EACH4)

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
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void gemm(
    __global const float *a, __global const stored *b, __global const float *c, __global float *out, __global const uint *step,
    uint m_symbol, uint m_bound, uint k_symbol, uint k_bound, uint k_first, uint k_length, uint n, uint a_stride_m, uint a_stride_k,
    uint b_stride, uint b_first_n, uint b_first_k, uint out_stride, uint out_first_n, uint add, uint panels_per_group
#ifdef B_NATIVE
    ,
    __global float *panels
#endif
)
{
    const uint m = tp_rows(step, m_symbol, m_bound);
    const uint k_end = min(tp_rows(step, k_symbol, k_bound), k_first + k_length);
    const uint k = (uint)max((int)(k_end - k_first), 0); /* signed: as an unsigned choice it becomes an intrinsic unknown to Oclgrind */
    const uint share = (uint)get_global_size(1);
    const uint rows_per_group = ((m + share - 1) / share + 11) / 12 * 12;
    const uint m_begin = (uint)tp_group_id(1) * rows_per_group, m_end = min(m, m_begin + rows_per_group);
    const uint p_begin = (uint)tp_group_id(0) * panels_per_group, p_end = min((n + 31) / 32, p_begin + panels_per_group);
    a += (size_t)k_first * a_stride_k;
    for (uint p = p_begin; p < p_end; p++) {
#if defined(B_NATIVE)
        const size_t group = tp_group_id(0) * get_global_size(1) + tp_group_id(1), b_stride_k = 32;
        __global float *panel = panels + group * k_length * 32;
        if (m_begin < m_end) decode_panel(panel, b, b_stride, b_first_n + p * 32, b_first_k, k, min(32u, n - p * 32));
#elif defined(B_ROW)
        __global const element *panel = b + (size_t)b_first_k * b_stride + b_first_n + p * 32;
        const size_t b_stride_k = b_stride;
#else
        __global const element *panel = b + ((size_t)(b_first_n / 32 + p) * b_stride + b_first_k) * 32;
        const size_t b_stride_k = 32;
#endif
        const uint columns = min(32u, n - p * 32);
        for (uint row = m_begin; row < m_end;) {
            const uint rows = m_end - row;
            const size_t to = (size_t)row * out_stride + out_first_n + p * 32;
            __global const float *from = a + (size_t)row * a_stride_m;
            if (rows > 8) {
                tile_12(from, panel, c + to, out + to, rows, columns, k, a_stride_m, a_stride_k, b_stride_k, out_stride, add);
                row += 12;
            } else {
                tile_4(from, panel, c + to, out + to, rows, columns, k, a_stride_m, a_stride_k, b_stride_k, out_stride, add);
                row += 4;
            }
        }
    }
}
