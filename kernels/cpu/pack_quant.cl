/* Conversion of a quantised matrix w[N, K] from rows of the file's blocks (common/quant.clh) to the layout `quant` (host/graph/layout.h,
 * common/quant_panel.clh): the same numbers, 32 rows side by side. Panels first_panel .. first_panel + n_panels - 1 are made, out starts at
 * the first; rows past N become zeros. Index map: one work-item per group. Group (x, y) makes panels_per_group panels, the y-th share of
 * their blocks. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/quant.clh"
#include "common/quant_panel.clh"

/* Levels of one row as they are stored: 4 bits without a sign, or a byte. */
static inline void put_levels(__private uchar *levels, __global const uchar *block, uint g, uint j)
{
#ifdef TP_QUANT_IS_NIBBLE
#ifdef TP_QUANT_CENTRE
    const int centre = TP_QUANT_CENTRE;
#else
    const int centre = 0;
#endif
    for (uint c = 0; c < 16; c++)
        levels[tp_quant_byte(j, c)] = (uchar)((quant_level(block, g, c) + centre) | (quant_level(block, g, c + 16) + centre) << 4);
#else
    for (uint c = 0; c < 32; c++) levels[tp_quant_byte(j, c)] = (uchar)quant_level(block, g, c);
#endif
}

static inline void put_scales(__global uchar *to, __global const uchar *block, uint g, uint j)
{
#ifdef TP_QUANT_F32_SCALES
    __global float *scales = (__global float *)to;
    const float2 affine = quant_affine(block, g, 0);
    scales[j] = affine.x;
#ifdef TP_QUANT_TWO_SCALES
    scales[32 + j] = quant_affine(block, g, 16).x;
#else
    scales[32 + j] = affine.y;
#endif
#else
    __global ushort *scales = (__global ushort *)to;
    __global const ushort *from = (__global const ushort *)block;
    scales[j] = from[0];
#ifdef TP_QUANT_HAS_SHIFT
    scales[32 + j] = from[1] ^ (ushort)0x8000;
#endif
#endif
}

static inline void clear_row(__private uchar *levels, __global uchar *to, uint j)
{
    for (uint c = 0; c < (TP_QUANT_BLOCK_BYTES - TP_QUANT_LEVELS) / 32; c++) levels[tp_quant_byte(j, c)] = 0;
#ifdef TP_QUANT_F32_SCALES
    ((__global float *)to)[j] = ((__global float *)to)[32 + j] = 0.0f;
#else
    ((__global ushort *)to)[j] = 0;
#ifdef TP_QUANT_HAS_SHIFT
    ((__global ushort *)to)[32 + j] = 0;
#endif
#endif
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pack_quant(
    __global const tp_weight *w, __global uchar *out, __global const uint *step, uint rows_symbol, uint rows_bound, uint row_length,
    uint first_panel, uint n_panels, uint panels_per_group)
{
    const uint rows = tp_rows(step, rows_symbol, rows_bound), n_blocks = row_length / 32;
    const uint begin = (uint)tp_group_id(0) * panels_per_group, end = min(n_panels, begin + panels_per_group);
    const uint share = (uint)get_global_size(1), per_share = (n_blocks + share - 1) / share;
    const uint from = (uint)tp_group_id(1) * per_share, to = min(n_blocks, from + per_share);
    uchar levels[TP_QUANT_BLOCK_BYTES - TP_QUANT_LEVELS];
    for (uint p = begin; p < end; p++)
        for (uint b = from; b < to; b++) {
            __global uchar *block = out + ((size_t)p * n_blocks + b) * TP_QUANT_BLOCK_BYTES;
            for (uint j = 0; j < 32; j++) {
                const uint row = (first_panel + p) * 32 + j;
                if (row >= rows) {
                    clear_row(levels, block, j);
                    continue;
                }
                const ulong at = (ulong)row * n_blocks + b;
                __global const uchar *source = w + at / TP_WEIGHT_GROUPS * TP_WEIGHT_BLOCK_BYTES;
                put_levels(levels, source, (uint)(at % TP_WEIGHT_GROUPS), j);
                put_scales(block, source, (uint)(at % TP_WEIGHT_GROUPS), j);
            }
            for (uint i = 0; i < TP_QUANT_BLOCK_BYTES - TP_QUANT_LEVELS; i++) block[TP_QUANT_LEVELS + i] = levels[i];
        }
}
