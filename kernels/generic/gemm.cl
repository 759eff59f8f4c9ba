/* out[m, n] (+)= c[m, n] + sum_k a(m, k) * b(k, n), f32 accumulation in ascending k.
 *   a(m, k) = a[m*a_stride_m + k*a_stride_k]
 *   b(k, n) = element (b_first_n + n)*b_stride + b_first_k + k of b   (-DB_IS_NK)
 *           = element (b_first_k + k)*b_stride + b_first_n + n of b   (else)
 *   c, out: element m*out_stride + out_first_n + n; c may be out itself, and is read only if add is 1
 * k runs over [k_first, min(run-time size of k, k_first + k_length)), b_first_k is the position of k_first in b; m over its run-time size.
 * Index map: one work-group of LX x LY items makes a tile of 4 LY rows x 4 LX columns, an item the elements (ly + i LY, lx + j LX);
 * operands pass through local memory in slices of TILE_K. Dimension 0: columns, dimension 1: rows. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/quant.clh"

#define TILE_M (4 * LY)
#define TILE_N (4 * LX)
#define TILE_K 16

__kernel __attribute__((reqd_work_group_size(LX, LY, 1))) void gemm(
    __global const float *a, __global const tp_weight *b, __global const float *c, __global float *out, __global const uint *step,
    uint m_symbol, uint m_bound, uint k_symbol, uint k_bound, uint k_first, uint k_length, uint n, uint a_stride_m, uint a_stride_k,
    uint b_stride, uint b_first_n, uint b_first_k, uint out_stride, uint out_first_n, uint add)
{
    __local float a_tile[TILE_K][TILE_M + 1];
    __local float b_tile[TILE_K][TILE_N + 1];
    const uint m = tp_rows(step, m_symbol, m_bound);
    const uint m0 = (uint)tp_group_id(1) * TILE_M, n0 = (uint)tp_group_id(0) * TILE_N;
    /* Groups past the run-time rows have nothing to sum; they may not return before the barriers (kernels/README.md). */
    const uint k_end = m0 < m ? min(tp_rows(step, k_symbol, k_bound), k_first + k_length) : 0;
    const uint lx = get_local_id(0), ly = get_local_id(1), item = ly * LX + lx;

    float sum[4][4];
    for (uint i = 0; i < 4; i++)
        for (uint j = 0; j < 4; j++) sum[i][j] = 0.0f;

    for (uint k0 = k_first; k0 < k_end; k0 += TILE_K) {
        for (uint e = item; e < TILE_M * TILE_K; e += LX * LY) {
            /* Neighbouring items read neighbouring elements in either orientation. */
            const uint kk = a_stride_k == 1 ? e % TILE_K : e / TILE_M, mm = a_stride_k == 1 ? e / TILE_K : e % TILE_M;
            const bool inside = k0 + kk < k_end && m0 + mm < m;
            a_tile[kk][mm] = inside ? a[(ulong)(m0 + mm) * a_stride_m + (ulong)(k0 + kk) * a_stride_k] : 0.0f;
        }
        for (uint e = item; e < TILE_N * TILE_K; e += LX * LY) {
#ifdef B_IS_NK
            const uint kk = e % TILE_K, nn = e / TILE_K;
            const ulong at = (ulong)(b_first_n + n0 + nn) * b_stride + b_first_k + (k0 + kk - k_first);
#else
            const uint kk = e / TILE_N, nn = e % TILE_N;
            const ulong at = (ulong)(b_first_k + (k0 + kk - k_first)) * b_stride + b_first_n + n0 + nn;
#endif
            const bool inside = k0 + kk < k_end && n0 + nn < n;
            b_tile[kk][nn] = inside ? tp_weight_at(b, at) : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint kk = 0; kk < TILE_K; kk++) {
            float x[4], y[4];
            for (uint i = 0; i < 4; i++) x[i] = a_tile[kk][ly + i * LY];
            for (uint j = 0; j < 4; j++) y[j] = b_tile[kk][lx + j * LX];
            for (uint i = 0; i < 4; i++)
                for (uint j = 0; j < 4; j++) sum[i][j] = fma(x[i], y[j], sum[i][j]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (uint i = 0; i < 4; i++) {
        const uint row = m0 + ly + i * LY;
        if (row >= m) continue;
        for (uint j = 0; j < 4; j++) {
            const uint column = n0 + lx + j * LX;
            if (column >= n) continue;
            const ulong at = (ulong)row * out_stride + out_first_n + column;
            out[at] = add ? c[at] + sum[i][j] : sum[i][j];
        }
    }
}

/* out[m, n] = c[m, n] at element m*out_stride + out_first_n + n of both, before a library call that adds to out. One item per column. */
__kernel void gemm_copy(__global const float *c, __global float *out, __global const uint *step, uint m_symbol, uint m_bound, uint n,
                        uint out_stride, uint out_first_n)
{
    const uint column = (uint)get_global_id(0);
    const uint m = tp_rows(step, m_symbol, m_bound);
    if (column >= n) return;
    for (uint row = 0; row < m; row++) {
        const ulong at = (ulong)row * out_stride + out_first_n + column;
        out[at] = c[at];
    }
}
