/* out[m, n] (+)= c[m, n] + sum_k a[m*a_stride + k] * b[(b_first_n + n)*b_stride + b_first_k + k] for few columns n (a router's experts, a
 * threshold): dot products of rows, so that b needs no panels. f32 accumulation in 16 lanes of k, then over the lanes in a fixed order.
 * c, out: element m*out_stride + out_first_n + n; c may be out itself, and is read only if add is 1.
 * Index map: one work-item per group, which takes a share of the rows in tiles of 4 rows x 4 columns (rows and columns past the end repeat
 * the last one and are not stored). */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

#define DECLARE(i) float16 s##i##0 = (float16)(0.0f), s##i##1 = (float16)(0.0f), s##i##2 = (float16)(0.0f), s##i##3 = (float16)(0.0f);
#define MULTIPLY(i)                              \
    {                                            \
        const float16 x = tp_load16(a##i + at);  \
        s##i##0 = fma(x, y0, s##i##0);           \
        s##i##1 = fma(x, y1, s##i##1);           \
        s##i##2 = fma(x, y2, s##i##2);           \
        s##i##3 = fma(x, y3, s##i##3);           \
    }
#define COLLECT(i)                                                                                        \
    sum[i][0] = tp_sum16(s##i##0);                                                                        \
    sum[i][1] = tp_sum16(s##i##1);                                                                        \
    sum[i][2] = tp_sum16(s##i##2);                                                                        \
    sum[i][3] = tp_sum16(s##i##3);                                                                        \
    for (uint t = whole; t < k; t++) {                                                                    \
        sum[i][0] = fma(a##i[t], b0[t], sum[i][0]);                                                       \
        sum[i][1] = fma(a##i[t], b1[t], sum[i][1]);                                                       \
        sum[i][2] = fma(a##i[t], b2[t], sum[i][2]);                                                       \
        sum[i][3] = fma(a##i[t], b3[t], sum[i][3]);                                                       \
    }

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void gemm_skinny(
    __global const float *a, __global const float *b, __global const float *c, __global float *out, __global const uint *step,
    uint m_symbol, uint m_bound, uint k, uint n, uint a_stride, uint b_stride, uint b_first_n, uint b_first_k, uint out_stride,
    uint out_first_n, uint add, uint n_groups)
{
    const uint m = tp_rows(step, m_symbol, m_bound), whole = k & ~15u;
    const uint group = (uint)tp_group_id(0);
    const uint end = tp_share_rows(m, n_groups, group + 1);
    b += (size_t)b_first_n * b_stride + b_first_k;
    for (uint row = tp_share_rows(m, n_groups, group); row < end; row += 4) {
        const uint rows = min(4u, end - row);
        __global const float *a0 = a + (size_t)row * a_stride, *a1 = a0 + (size_t)min(1u, rows - 1) * a_stride,
                             *a2 = a0 + (size_t)min(2u, rows - 1) * a_stride, *a3 = a0 + (size_t)min(3u, rows - 1) * a_stride;
        for (uint column = 0; column < n; column += 4) {
            const uint columns = min(4u, n - column);
            __global const float *b0 = b + (size_t)column * b_stride, *b1 = b0 + (size_t)min(1u, columns - 1) * b_stride,
                                 *b2 = b0 + (size_t)min(2u, columns - 1) * b_stride, *b3 = b0 + (size_t)min(3u, columns - 1) * b_stride;
            DECLARE(0) DECLARE(1) DECLARE(2) DECLARE(3)
            for (uint at = 0; at < whole; at += 16) {
                const float16 y0 = tp_load16(b0 + at), y1 = tp_load16(b1 + at), y2 = tp_load16(b2 + at), y3 = tp_load16(b3 + at);
                MULTIPLY(0) MULTIPLY(1) MULTIPLY(2) MULTIPLY(3)
            }
            float sum[4][4];
            COLLECT(0) COLLECT(1) COLLECT(2) COLLECT(3)
            for (uint i = 0; i < rows; i++)
                for (uint j = 0; j < columns; j++) {
                    const size_t to = (size_t)(row + i) * out_stride + out_first_n + column + j;
                    out[to] = add ? c[to] + sum[i][j] : sum[i][j];
                }
        }
    }
}
