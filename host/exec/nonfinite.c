/* Looking for the first value that is not finite. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "executor_impl.h"

/* Where an output was stored: its buffer and the layout that the launches gave it. */
static struct tp_buffer *find_output(const struct tp_prepared *first, const struct tp_prepared *last, talpa_value value, enum tp_layout *layout)
{
    for (const struct tp_prepared *p = last; p >= first; p--)
        for (int a = 0; a < p->launch->n_args; a++) {
            const struct tp_arg *arg = &p->launch->args[a];
            if (arg->kind != TP_ARG_VALUE || arg->value != value) continue;
            *layout = arg->layout;
            return p->args[a].value.buffer;
        }
    return NULL;
}

/* Place of element (row, column) of a matrix [n, k] in its layout, in elements. */
static size_t place(enum tp_layout layout, size_t row, size_t column, size_t n, size_t k)
{
    switch (layout) {
    case TP_LAYOUT_PANEL_F32:
    case TP_LAYOUT_PANEL_BF16:
        return (row / TP_PANEL * k + column) * TP_PANEL + row % TP_PANEL;
    case TP_LAYOUT_PANEL_T_F32:
    case TP_LAYOUT_PANEL_T_BF16:
        return (column / TP_PANEL * n + row) * TP_PANEL + column % TP_PANEL;
    case TP_LAYOUT_ROW_BF16:
        return row * ((k + TP_PANEL - 1) / TP_PANEL * TP_PANEL) + column;
    default:
        return row * k + column;
    }
}

static float value_at(const void *bytes, enum tp_layout layout, size_t at)
{
    if (!tp_layout_is_bf16(layout) && layout != TP_LAYOUT_ROW_BF16) return ((const float *)bytes)[at];
    const uint32_t bits = (uint32_t)((const uint16_t *)bytes)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static enum talpa_status scan(struct tp_nonfinite *found, const struct tp_executor *executor, const struct tp_type *type, enum tp_layout layout,
                              struct tp_buffer *buffer)
{
    const size_t bound = (size_t)type->shape.dim[0], width = (size_t)(tp_type_elements(type) / type->shape.dim[0]);
    const uint32_t word = executor->step_words.word[type->rows];
    const size_t n_rows = type->rows != TP_STEP_NONE && word < bound ? word : bound;
    const size_t n_bytes = tp_layout_bytes(type, layout);
    void *bytes = malloc(n_bytes);
    if (!bytes) return tp_fail_memory("diagnosis", n_bytes);
    const enum talpa_status status = tp_buffer_read(bytes, buffer, 0, n_bytes, true);
    for (size_t i = 0; i < n_rows * width && status == TALPA_OK && !found->found; i++) {
        const float value = value_at(bytes, layout, place(layout, i / width, i % width, bound, width));
        if (isfinite(value)) continue;
        found->found = true;
        found->row = (int64_t)(i / width);
        found->column = (int64_t)(i % width);
        found->value = value;
    }
    free(bytes);
    return status;
}

static bool is_opaque(const struct tp_plan *plan, const struct tp_value_info *info)
{
    return tp_graph_node_at(plan->graph, info->producer)->op->opaque[info->output];
}

/* All outputs of a node whose launches are [first, last]. Views and concats hold nothing of their own. */
static enum talpa_status check_node(struct tp_nonfinite *found, const struct tp_executor *executor, const struct tp_plan *plan,
                                    const struct tp_prepared *first, const struct tp_prepared *last)
{
    const struct tp_node *node = tp_plan_node(plan, last->launch->node);
    if (node->op->flags & (TP_OP_VIEW | TP_OP_CONCAT)) return TALPA_OK;
    for (int o = 0; o < node->n_out && !found->found; o++) {
        const struct tp_value_info *info = tp_graph_value(plan->graph, node->out[o]);
        enum tp_layout layout = TP_LAYOUT_ROW;
        struct tp_buffer *buffer = info->type.dtype == TALPA_F32 && !is_opaque(plan, info) ? find_output(first, last, node->out[o], &layout) : NULL;
        if (!buffer) continue;
        TP_TRY(scan(found, executor, &info->type, layout, buffer));
        if (!found->found) continue;
        found->node = last->launch->node;
        found->value_number = node->out[o];
        found->output = o;
        found->op = tp_plan_node_name(plan, last->launch->node);
        found->scope = node->scope;
        found->is_backward = node->is_backward;
    }
    return TALPA_OK;
}

enum talpa_status tp_executor_find_nonfinite(struct tp_nonfinite *out, struct tp_executor *executor, int plan_number, enum tp_phase phase)
{
    const struct tp_plan *plan = executor->plans[plan_number];
    const struct tp_launch_list *list = &plan->phase[phase];
    const struct tp_prepared *prepared = executor->prepared[plan_number][phase];
    struct tp_nonfinite found = {.found = false};
    /* What an earlier run left in the arena is no finding. */
    for (int s = 0; s < executor->n_segments; s++) TP_TRY(tp_buffer_fill(executor->segments[s], 0, executor->segment_bytes[s], 0));
    for (int i = 0, first = 0; i < list->n && !found.found; i++) {
        TP_TRY(tp_executor_enqueue(executor, &prepared[i]));
        if (i + 1 < list->n && list->item[i + 1].node == list->item[i].node) continue;
        TP_TRY(check_node(&found, executor, plan, &prepared[first], &prepared[i]));
        first = i + 1;
    }
    *out = found;
    return tp_queue_finish(executor->device);
}
