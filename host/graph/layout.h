/* Physical layouts of a value. A layout is chosen in the plan, per use; the graph knows none.
 *
 *   row          row-major, the value's own dtype (quantised: GGUF blocks along the innermost dimension)
 *   panel_f32    matrix [N, K] as [ceil(N/32)][K][32] f32: 32 rows side by side for every k, rows past N are zero
 *   panel_bf16   the same in bf16 (round to nearest even)
 *   panel_t_f32  matrix [N, K] as [ceil(K/32)][N][32] f32: 32 columns side by side for every n (the transposed matrix in panels)
 *   panel_t_bf16 the same in bf16
 *   quant        a quantised matrix [N, K] in blocks of 32 rows x 32 columns: block (p, b) holds rows 32p.., columns 32b.. and lies at byte
 *                (p * K/32 + b) * tp_layout_quant_block_bytes. In a block: scales [32], one per row (Q6_K: [2][32], for columns 0..15
 *                and 16..31); shifts [32] (Q4_1, Q5_1, Q4_K, Q5_K); levels. value = scale * level - shift. Scales and shifts are f16
 *                where the file's are (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0; the shift of *_1 is the negative minimum), f32 for the K types.
 *                Levels of 4 bits (Q4_0, Q4_1, Q4_K): bytes [2 halves of 16 rows][4][16 rows][4], column c = 0..15 in the low half, c + 16
 *                in the high half; unsigned, from Q4_0 the reader takes away 8. Others: bytes [2 halves of 16 rows][8][16 rows][4 columns],
 *                signed and centred (Q5_0, Q8_0, Q6_K) or unsigned (Q5_1, Q5_K): 64 bytes are 4 columns of 16 rows, as the dot products
 *                of 4 bytes want them. Rows past N are zero. Read through kernels/common/quant_panel.clh.
 *   row_bf16     matrix [M, K] in bf16 (round to nearest even), row-major, columns up to the next multiple of 32 are zero; room for rows up
 *                to the next multiple of 32, which are not written
 *   tile_bf16    matrix [N, K] as [ceil(N/32)][ceil(K/32)][2 halves of 16 n][16 pairs of k][16 n][2] bf16, zeros past N and K
 *   tile_t_bf16  the same of the transposed matrix: [ceil(K/32)][ceil(N/32)][2 halves of 16 k][16 pairs of n][16 k][2]
 * A GEMM out[m, j] = sum_i a[m, i] * W reads `panel` for W^T (i = k, j = n) and `panel_t` for W (i = n, j = k); `quant` serves both. The
 * matrix tiers multiply row_bf16 by tile_bf16 (W^T) or tile_t_bf16 (W). */
#ifndef TP_LAYOUT_H
#define TP_LAYOUT_H

#include "graph/graph.h"

enum tp_layout {
    TP_LAYOUT_ROW,
    TP_LAYOUT_PANEL_F32,
    TP_LAYOUT_PANEL_BF16,
    TP_LAYOUT_PANEL_T_F32,
    TP_LAYOUT_PANEL_T_BF16,
    TP_LAYOUT_QUANT,
    TP_LAYOUT_ROW_BF16,
    TP_LAYOUT_TILE_BF16,
    TP_LAYOUT_TILE_T_BF16,
    TP_N_LAYOUTS
};

enum { TP_PANEL = 32 };

/** For a variant's `layouts`. Of an input: the kernel reads it in row, and in this layout if the producer makes that. Of an output: the kernel
 *  can make it in row, in this layout, or in both at once (tp_also). An output's layout without this flag is made instead of row, where all
 *  readers take it. */
enum { TP_LAYOUT_OR_ROW = 0x100 };
static inline enum tp_layout tp_layout_or_row(enum tp_layout layout) { return (enum tp_layout)((int)layout | TP_LAYOUT_OR_ROW); }

/** Whether a value of this type can be kept in the layout `quant`: a quantised matrix of rank 2. */
bool tp_layout_takes_quant(const struct tp_type *type);
/** Bytes of a block of 32 x 32 in the layout `quant`, a multiple of 64; 0 if the dtype is not quantised. */
size_t tp_layout_quant_block_bytes(enum talpa_dtype dtype);
const char *tp_layout_name(enum tp_layout layout);
static inline bool tp_layout_is_bf16(enum tp_layout layout)
{
    return layout == TP_LAYOUT_PANEL_BF16 || layout == TP_LAYOUT_PANEL_T_BF16;
}
static inline bool tp_layout_is_tile(enum tp_layout layout) { return layout == TP_LAYOUT_TILE_BF16 || layout == TP_LAYOUT_TILE_T_BF16; }
/** Bytes of a value of this type in this layout (at the bound). Panel layouts and quant take 2-D values only. */
size_t tp_layout_bytes(const struct tp_type *type, enum tp_layout layout);
/** Units that storage may be split at (rows, or whole panels) and the bytes of one: a value of u units is kept in parts of whole units. */
int64_t tp_layout_units(const struct tp_type *type, enum tp_layout layout);
size_t tp_layout_unit_bytes(const struct tp_type *type, enum tp_layout layout);

#endif
