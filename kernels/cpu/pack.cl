/* Conversion of a matrix w[N, K] from rows (the dtype of the file, common/quant.clh) to panels of 32 (host/graph/layout.h):
 *   panel:    out[(p*K + k)*32 + j] = w[32 p + j, k], 0 where 32 p + j >= N
 *   panel_t (-DTRANSPOSED): out[(p*N + n)*32 + j] = w[n, 32 p + j], 0 where 32 p + j >= K
 * as f32 or, rounded to nearest even, bf16 (-DTO_BF16). Panels first_panel .. first_panel + n_panels - 1 are made, out starts at the first.
 * Rows past the run-time number of rows count as absent: zeros in panel, not written in panel_t.
 * Index map: one work-item per group. Group (x, y) makes panels_per_group panels, the y-th share of their positions in pieces of 32. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/quant.clh"

#ifdef TO_BF16
typedef ushort element;
static inline ushort encode(float x)
{
    const uint u = as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (ushort)(u >> 16 | 0x40u);
    return (ushort)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
#else
typedef float element;
#define encode(x) (x)
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pack(
    __global const tp_weight *w, __global element *out, __global const uint *step, uint rows_symbol, uint rows_bound, uint row_length,
    uint first_panel, uint n_panels, uint panels_per_group)
{
    const uint rows = tp_rows(step, rows_symbol, rows_bound);
    const uint begin = (uint)tp_group_id(0) * panels_per_group, end = min(n_panels, begin + panels_per_group);
#ifdef TRANSPOSED
    const uint positions = rows, positions_bound = rows_bound;
#else
    const uint positions = row_length, positions_bound = row_length;
#endif
    const uint share = (uint)get_global_size(1);
    const uint per_share = ((positions + share - 1) / share + 31) / 32 * 32;
    const uint from = (uint)tp_group_id(1) * per_share, to = min(positions, from + per_share);
    for (uint p = begin; p < end; p++) {
        __global element *panel = out + (size_t)p * positions_bound * 32;
        const uint first = (first_panel + p) * 32;
#ifdef TRANSPOSED
        float piece[32];
        for (uint n = from; n < to; n++) {
            tp_weight_piece(piece, w, (ulong)n * row_length + first, min(32u, row_length - first));
            for (uint j = 0; j < 32; j++) panel[(size_t)n * 32 + j] = encode(piece[j]);
        }
#else
        float square[32 * 32];
        for (uint k = from; k < to; k += 32) {
            for (uint j = 0; j < 32; j++) {
                if (first + j < rows) {
                    tp_weight_piece(square + j * 32, w, (ulong)(first + j) * row_length + k, min(32u, row_length - k));
                } else {
                    for (uint i = 0; i < 32; i++) square[j * 32 + i] = 0.0f;
                }
            }
            const uint count = min(32u, to - k);
            for (uint i = 0; i < count; i++)
                for (uint j = 0; j < 32; j++) panel[(size_t)(k + i) * 32 + j] = encode(square[j * 32 + i]);
        }
#endif
    }
}
