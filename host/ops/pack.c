#include "gemm_emit.h"

#include "base/dtype.h"

enum talpa_status tp_pack_emit(struct tp_lower *lower, talpa_value value, enum tp_layout layout, int part)
{
    const struct tp_type *type = tp_graph_type(lower->graph, value);
    const bool quant = layout == TP_LAYOUT_QUANT;
    if (layout == TP_LAYOUT_ROW || type->shape.rank != 2 || type->dtype == TALPA_I32 || (quant && !tp_layout_takes_quant(type)))
        return tp_fail(TALPA_E_INTERNAL, "a %s value of rank %d has no layout %s", tp_dtype_name(type->dtype), type->shape.rank,
                       tp_layout_name(layout));
    /* A node of one input stands in for the reader, so that parts are counted and arguments made as for every other launch. */
    talpa_value in[1] = {value};
    const struct tp_node node = {.in = in, .n_in = 1, .scope = lower->node ? lower->node->scope : ""};
    const enum tp_layout row = TP_LAYOUT_ROW;
    struct tp_lower source = {.graph = lower->graph, .node = &node, .node_index = lower->node_index, .caps = lower->caps,
                              .options = lower->options, .in_layout = &row, .list = lower->list};
    struct tp_lower target = source;
    target.in_layout = &layout;
    if (layout == TP_LAYOUT_ROW_BF16) {
        if (type->dtype != TALPA_F32) return tp_fail(TALPA_E_INTERNAL, "only f32 values have the layout %s", tp_layout_name(layout));
        tp_pack_rows_emit(&source, tp_in(0), &target, tp_in(0), type->rows, type->shape.dim[0], type->shape.dim[1], type->shape.dim[1]);
        return TALPA_OK;
    }
    int64_t first_panel, n_panels;
    tp_lower_part(&target, 0, part, &first_panel, &n_panels);

    const bool transposed = layout == TP_LAYOUT_PANEL_T_F32 || layout == TP_LAYOUT_PANEL_T_BF16 || layout == TP_LAYOUT_TILE_T_BF16;
    const bool tiles = tp_layout_is_tile(layout);
    struct tp_launch *launch = quant   ? tp_lower_launch(&source, "cpu/pack_quant.cl", "pack_quant")
                               : tiles ? tp_lower_launch(&source, "cpu/pack_bf16.cl", "pack_tiles")
                                       : tp_lower_launch(&source, "cpu/pack.cl", "pack");
    if (tiles) tp_launch_option(launch, "-DTILES=1");
    tp_launch_option(launch, "%s", tp_gemm_weight_option(type->dtype));
    if (transposed) tp_launch_option(launch, "-DTRANSPOSED=1");
    if (tp_layout_is_bf16(layout)) tp_launch_option(launch, "-DTO_BF16=1");
    tp_launch_read(&source, launch, tp_in(0));
    tp_launch_write(&target, launch, tp_in(0));
    if (launch) launch->args[launch->n_args - 1].part = part;
    tp_launch_step(launch);
    tp_launch_rows(launch, type);
    tp_launch_u32(launch, (uint32_t)type->shape.dim[1]);
    tp_launch_u32(launch, (uint32_t)first_panel);
    tp_launch_u32(launch, (uint32_t)n_panels);
    const int64_t groups = tp_gemm_cpu_groups(lower), panels_per_group = tp_gemm_ceil_div(n_panels, groups);
    const int64_t group_panels = tp_gemm_ceil_div(n_panels, panels_per_group);
    const int64_t pieces = tp_gemm_ceil_div(type->shape.dim[transposed ? 0 : 1], TP_PANEL);
    tp_launch_u32(launch, (uint32_t)panels_per_group);
    tp_launch_groups(launch, (size_t)group_panels, (size_t)tp_gemm_min(pieces, tp_gemm_max(1, groups / group_panels)), 1, 1, 1, 1);
    tp_launch_cost(launch, 0.0, (double)tp_type_bytes(type) + (double)n_panels * (double)tp_layout_unit_bytes(type, layout));
    return TALPA_OK;
}
