/* As generic/linear_cross_entropy_backward.cl. W is one part of a weight in rows of any dtype, or (-DQUANT) in blocks of levels
 * (common/quant_panel.clh): its rows first_label .. + n_labels - 1, all columns; or (-DPANEL_T, and -DPANEL_BF16 if so) of one in transposed panels: all rows, its columns first_column .. + n_columns - 1.
 * Index map: one work-item per group, each takes a contiguous share of the rows of d_hidden. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

#ifdef PANEL_T
#ifdef PANEL_BF16
typedef ushort stored;
#define PANEL_AT(p) as_float((uint)(p) << 16)
#else
typedef float stored;
#define PANEL_AT(p) (p)
#endif
/* 32 columns of row `label`, from column j of the part; panels hold all labels. */
static inline void piece(float *out, __global const stored *weight, uint label, uint j, uint d, uint n_labels, uint count)
{
    __global const stored *from = weight + ((size_t)(j / 32) * n_labels + label) * 32;
    for (uint i = 0; i < 32; i++) out[i] = PANEL_AT(from[i]);
}
#elif defined(QUANT)
#include "common/quant_panel.clh"
typedef uchar stored;
static inline void piece(float *out, __global const stored *weight, uint label, uint j, uint d, uint n_labels, uint count)
{
    float block[32 * 32];
    tp_quant_block_columns(block, weight + ((size_t)(label / 32) * (d / 32) + j / 32) * TP_QUANT_BLOCK_BYTES);
    for (uint i = 0; i < 32; i++) out[i] = block[i * 32 + label % 32];
}
#else
#include "common/quant.clh"
typedef tp_weight stored;
static inline void piece(float *out, __global const stored *weight, uint label, uint j, uint d, uint n_labels, uint count)
{
    tp_weight_piece(out, weight, (ulong)label * d + j, count);
}
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
scatter(__global const float *expected, __global const stored *weight, __global const int *rows, __global const int *labels,
        __global const float *dloss, __global const float *dnll, __global const float *dlse, __global float *d_hidden,
        __global const uint *step, uint r_symbol, uint r_bound, uint t_symbol, uint t_bound, uint d, uint has_dloss, uint has_dnll,
        uint has_dlse, uint first_label, uint n_labels, uint first_column, uint n_columns, uint add, uint n_groups)
{
    const uint n = tp_rows(step, r_symbol, r_bound), n_tokens = tp_rows(step, t_symbol, t_bound);
    const uint begin = tp_share_rows(n_tokens, n_groups, (uint)tp_group_id(0)), end = tp_share_rows(n_tokens, n_groups, (uint)tp_group_id(0) + 1);
    const float scale = has_dloss ? dloss[0] * as_float(step[TP_STEP_LOSS_SCALE]) : 0.0f;
    uint low = 0, high = n; /* first labelled row at or after begin */
    while (low < high) {
        const uint middle = (low + high) / 2;
        if ((uint)rows[middle] < begin) low = middle + 1;
        else high = middle;
    }
    for (uint t = begin; t < end; t++) {
        while (low < n && (uint)rows[low] < t) low++;
        const bool found = low < n && (uint)rows[low] == t;
        __global float *to = d_hidden + (size_t)t * d + first_column;
        if (!found) {
            for (uint j = 0; j < n_columns && !add; j++) to[j] = 0.0f;
            continue;
        }
        const float g = scale + (has_dnll ? dnll[low] : 0.0f), softmax = g + (has_dlse ? dlse[low] : 0.0f);
        __global const float *from = add ? to : expected + (size_t)low * d + first_column;
        const float keep = add ? 1.0f : softmax;
        const uint label = (uint)labels[low] - first_label;
        for (uint j = 0; j < n_columns; j += 32) {
            float w[32];
            const uint count = min(32u, n_columns - j);
            if (label < n_labels) piece(w, weight, label, j, d, n_labels, count);
            else
                for (uint i = 0; i < 32; i++) w[i] = 0.0f;
            for (uint i = 0; i < count; i++) to[j + i] = fma(-g, w[i], keep * from[j + i]);
        }
    }
}
