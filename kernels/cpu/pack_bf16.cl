/* Conversions to the layouts of the matrix tiers (host/graph/layout.h), rounded to nearest even.
 * pack_rows: out[r*out_stride + c] = bf16(x[r*x_stride + c]), zeros for c >= n; for the run-time rows, the others are not written.
 * pack_tiles: a frozen matrix w[N, K], of the dtype of its file, to tiles of W^T (contracted: K) or -DTRANSPOSED of W (contracted: N);
 * panels first_panel .. first_panel + n_panels - 1 are made, out starts at the first. Zeros past N and K.
 * Index map: one work-item per group. pack_rows: group x takes a share of the rows. pack_tiles: group (x, y) makes panels_per_group panels,
 * the y-th share of their blocks. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/tile_bf16.clh"
#include "common/vector.clh"
#ifdef TILES
#include "common/quant.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pack_tiles(
    __global const tp_weight *w, __global ushort *out, __global const uint *step, uint rows_symbol, uint rows_bound, uint row_length,
    uint first_panel, uint n_panels, uint panels_per_group)
{
    const uint rows = tp_rows(step, rows_symbol, rows_bound);
    const uint begin = (uint)tp_group_id(0) * panels_per_group, end = min(n_panels, begin + panels_per_group);
#ifdef TRANSPOSED
    const uint blocks = (rows_bound + 31) / 32;
#else
    const uint blocks = (row_length + 31) / 32;
#endif
    const uint from = tp_share_rows(blocks, (uint)get_global_size(1), (uint)tp_group_id(1));
    const uint to = tp_share_rows(blocks, (uint)get_global_size(1), (uint)tp_group_id(1) + 1);
    float square[1024], across[1024];
    for (uint p = begin; p < end; p++)
        for (uint block = from; block < to; block++) {
#ifdef TRANSPOSED
            const uint row = block * 32, column = (first_panel + p) * 32;
#else
            const uint row = (first_panel + p) * 32, column = block * 32;
#endif
            for (uint j = 0; j < 32; j++) {
                if (row + j < rows) tp_weight_piece(square + j * 32, w, (ulong)(row + j) * row_length + column, min(32u, row_length - column));
                else
                    for (uint i = 0; i < 32; i++) square[j * 32 + i] = 0.0f;
            }
            __global ushort *tile = out + ((size_t)p * blocks + block) * 1024;
#ifdef TRANSPOSED
            tp_tile_from_square(tile, square);
#else
            for (uint j = 0; j < 32; j++)
                for (uint i = 0; i < 32; i++) across[i * 32 + j] = square[j * 32 + i];
            tp_tile_from_square(tile, across);
#endif
        }
}
#else

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pack_rows(__global const float *x, __global ushort *out,
                                                                       __global const uint *step, uint rows_symbol, uint rows_bound, uint n,
                                                                       uint x_stride, uint out_stride, uint n_groups)
{
    const uint rows = tp_rows(step, rows_symbol, rows_bound), group = (uint)tp_group_id(0);
    const uint end = tp_share_rows(rows, n_groups, group + 1), whole = n & ~15u;
    for (uint r = tp_share_rows(rows, n_groups, group); r < end; r++) {
        __global const float *from = x + (size_t)r * x_stride;
        __global ushort *to = out + (size_t)r * out_stride;
        for (uint c = 0; c < whole; c += 16) *(__global tp_ushort16u *)(to + c) = convert_ushort16(tp_bf16_upper(tp_load16(from + c)) >> 16);
        for (uint c = whole; c < out_stride; c += 16) {
            float edge[16];
            for (uint i = 0; i < 16; i++) edge[i] = c + i < n ? from[c + i] : 0.0f;
            *(__global tp_ushort16u *)(to + c) = convert_ushort16(tp_bf16_upper(vload16(0, edge)) >> 16);
        }
    }
}
#endif
