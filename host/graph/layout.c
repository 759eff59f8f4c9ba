#include "layout.h"

#include "base/dtype.h"

static int64_t panels(int64_t n) { return (n + TP_PANEL - 1) / TP_PANEL; }

static size_t panel_element_bytes(enum tp_layout layout)
{
    return layout == TP_LAYOUT_PANEL_BF16 || layout == TP_LAYOUT_PANEL_T_BF16 ? 2 : 4;
}

static bool is_transposed(enum tp_layout layout)
{
    return layout == TP_LAYOUT_PANEL_T_F32 || layout == TP_LAYOUT_PANEL_T_BF16 || layout == TP_LAYOUT_TILE_T_BF16;
}

size_t tp_layout_quant_block_bytes(enum talpa_dtype dtype)
{
    enum { F16_ROW = 2 * TP_PANEL, F32_ROW = 4 * TP_PANEL, NIBBLES = TP_PANEL * TP_PANEL / 2, BYTES = TP_PANEL * TP_PANEL };
    switch (dtype) {
    case TALPA_Q4_0: return F16_ROW + NIBBLES;
    case TALPA_Q4_1: return 2 * F16_ROW + NIBBLES;
    case TALPA_Q5_0:
    case TALPA_Q8_0: return F16_ROW + BYTES;
    case TALPA_Q5_1: return 2 * F16_ROW + BYTES;
    case TALPA_Q4_K: return 2 * F32_ROW + NIBBLES;
    case TALPA_Q5_K:
    case TALPA_Q6_K: return 2 * F32_ROW + BYTES;
    default: return 0;
    }
}

bool tp_layout_takes_quant(const struct tp_type *type)
{
    return type->shape.rank == 2 && type->shape.dim[1] % TP_PANEL == 0 && tp_layout_quant_block_bytes(type->dtype) > 0;
}

const char *tp_layout_name(enum tp_layout layout)
{
    static const char *const names[TP_N_LAYOUTS] = {
        [TP_LAYOUT_ROW] = "row",
        [TP_LAYOUT_PANEL_F32] = "panel_f32",
        [TP_LAYOUT_PANEL_BF16] = "panel_bf16",
        [TP_LAYOUT_PANEL_T_F32] = "panel_t_f32",
        [TP_LAYOUT_PANEL_T_BF16] = "panel_t_bf16",
        [TP_LAYOUT_QUANT] = "quant",
        [TP_LAYOUT_ROW_BF16] = "row_bf16",
        [TP_LAYOUT_TILE_BF16] = "tile_bf16",
        [TP_LAYOUT_TILE_T_BF16] = "tile_t_bf16",
    };
    return names[layout];
}

int64_t tp_layout_units(const struct tp_type *type, enum tp_layout layout)
{
    if (layout == TP_LAYOUT_ROW) return type->shape.rank == 1 ? type->shape.dim[0] / tp_dtype_block(type->dtype) : type->shape.dim[0];
    if (layout == TP_LAYOUT_ROW_BF16) return panels(type->shape.dim[0]) * TP_PANEL;
    return panels(type->shape.dim[is_transposed(layout) ? 1 : 0]);
}

size_t tp_layout_unit_bytes(const struct tp_type *type, enum tp_layout layout)
{
    if (layout == TP_LAYOUT_ROW) {
        if (type->shape.rank == 1) return tp_dtype_block_bytes(type->dtype);
        int64_t n = 1;
        for (int i = 1; i < type->shape.rank; i++) n *= type->shape.dim[i];
        return tp_dtype_bytes(type->dtype, n);
    }
    if (layout == TP_LAYOUT_QUANT) return (size_t)(type->shape.dim[1] / TP_PANEL) * tp_layout_quant_block_bytes(type->dtype);
    if (layout == TP_LAYOUT_ROW_BF16) return (size_t)panels(type->shape.dim[1]) * TP_PANEL * 2;
    if (tp_layout_is_tile(layout)) return (size_t)panels(type->shape.dim[is_transposed(layout) ? 0 : 1]) * TP_PANEL * TP_PANEL * 2;
    return (size_t)type->shape.dim[is_transposed(layout) ? 0 : 1] * TP_PANEL * panel_element_bytes(layout);
}

size_t tp_layout_bytes(const struct tp_type *type, enum tp_layout layout)
{
    return (size_t)tp_layout_units(type, layout) * tp_layout_unit_bytes(type, layout);
}
