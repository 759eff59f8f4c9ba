/* The f32 values of a weight in the layout `quant`, for checks of that layout: block (p, b) of 32 x 32 comes to out[(p*n_blocks + b)*1024 ..],
 * column by column (element c*32 + row) or with -DBY_ROWS row by row (row*32 + c); -DTO_GLOBAL uses the decoders that write to __global.
 * Index map: one work-item per group, group x takes panel x. */
#include "common/base.clh"
#include "common/quant_panel.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void unpack_quant(__global const uchar *w, __global float *out, uint n_blocks)
{
    for (uint b = 0; b < n_blocks; b++) {
        const size_t at = tp_group_id(0) * n_blocks + b;
        __global const uchar *block = w + at * TP_QUANT_BLOCK_BYTES;
        __global float *to = out + at * 1024;
#ifdef TO_GLOBAL
#ifdef BY_ROWS
        tp_quant_block_rows_global(to, block);
#else
        tp_quant_block_columns_global(to, block);
#endif
#else
        float square[1024];
#ifdef BY_ROWS
        tp_quant_block_rows(square, block);
#else
        tp_quant_block_columns(square, block);
#endif
        for (uint i = 0; i < 1024; i++) to[i] = square[i];
#endif
    }
}
