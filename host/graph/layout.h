/* Physical layouts of a value. A layout is chosen in the plan, per use; the graph knows none.
 *
 *   row          row-major, the value's own dtype (quantised: GGUF blocks along the innermost dimension)
 *   panel_f32    matrix [N, K] as [ceil(N/32)][K][32] f32: 32 rows side by side for every k, rows past N are zero
 *   panel_bf16   the same in bf16 (round to nearest even)
 *   panel_t_f32  matrix [N, K] as [ceil(K/32)][N][32] f32: 32 columns side by side for every n (the transposed matrix in panels)
 *   panel_t_bf16 the same in bf16
 * A GEMM out[m, j] = sum_i a[m, i] * W reads `panel` for W^T (i = k, j = n) and `panel_t` for W (i = n, j = k). */
#ifndef TP_LAYOUT_H
#define TP_LAYOUT_H

#include "graph/graph.h"

enum tp_layout { TP_LAYOUT_ROW, TP_LAYOUT_PANEL_F32, TP_LAYOUT_PANEL_BF16, TP_LAYOUT_PANEL_T_F32, TP_LAYOUT_PANEL_T_BF16, TP_N_LAYOUTS };

enum { TP_PANEL = 32 };

const char *tp_layout_name(enum tp_layout layout);
static inline bool tp_layout_is_bf16(enum tp_layout layout)
{
    return layout == TP_LAYOUT_PANEL_BF16 || layout == TP_LAYOUT_PANEL_T_BF16;
}
/** Bytes of a value of this type in this layout (at the bound). Panel layouts take 2-D values only. */
size_t tp_layout_bytes(const struct tp_type *type, enum tp_layout layout);
/** Units that storage may be split at (rows, or whole panels) and the bytes of one: a value of u units is kept in parts of whole units. */
int64_t tp_layout_units(const struct tp_type *type, enum tp_layout layout);
size_t tp_layout_unit_bytes(const struct tp_type *type, enum tp_layout layout);

#endif
