/* As generic/embedding.cl; with -DTABLE_QUANT the table is in the layout `quant` (common/quant_panel.clh), first is a multiple of 32.
 * Index map: one work-item per group, each takes a contiguous share of the rows of x. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/quant.clh"
#include "common/vector.clh"
#include "common/quant_panel.clh"

#ifdef TABLE_QUANT
/* Row j of a block to out: f16 scales one by one, as there are few. */
static inline void block_row(__global float *out, __global const uchar *block, uint j)
{
#ifdef TP_QUANT_F32_SCALES
    __global const float *scales = (__global const float *)block;
    const float scale = scales[j];
#else
    __global const half *scales = (__global const half *)block;
    const float scale = vload_half(j, scales);
#endif
#ifdef TP_QUANT_TWO_SCALES
    const float scale_b = scales[32 + j];
#else
    const float scale_b = scale;
#endif
#if !defined(TP_QUANT_HAS_SHIFT)
    const float shift = 0.0f;
#elif defined(TP_QUANT_F32_SCALES)
    const float shift = scales[32 + j];
#else
    const float shift = vload_half(32 + j, scales);
#endif
    for (uint c = 0; c < 32; c++) {
        const int level = tp_quant_one(block, j, c);
        out[c] = (c < 16 ? scale : scale_b) * (float)level - shift;
    }
}
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void embedding(__global const int *ids, __global const tp_weight *table,
                                                                       __global float *x, __global const uint *step, uint symbol,
                                                                       uint bound, uint d, uint first, uint n_rows, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound);
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    for (uint t = tp_share_rows(rows, n_groups, tp_group_id(0)); t < end; t++) {
        const uint id = (uint)ids[t] - first;
        if (id >= n_rows) continue;
        __global float *out = x + (size_t)t * d;
#ifdef TABLE_QUANT
        __global const uchar *panel = table + (size_t)(id / 32) * (d / 32) * TP_QUANT_BLOCK_BYTES;
        for (uint b = 0; b < d / 32; b++) block_row(out + b * 32, panel + (size_t)b * TP_QUANT_BLOCK_BYTES, id % 32);
#else
        const ulong row = (ulong)id * d;
#ifdef TP_WEIGHT_BLOCK_BYTES
        for (uint j = 0; j < d; j += 32) {
            float values[32];
            tp_weight_block(values, table, (row + j) / 32);
            for (uint i = 0; i < 32; i++) out[j + i] = values[i];
        }
#else
        for (uint j = 0; j < d; j++) out[j] = tp_weight_at(table, row + j);
#endif
#endif
    }
}
