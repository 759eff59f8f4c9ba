/* Frozen weights on their way to the device: as rows where a kernel reads them so, else packed by kernels. */
#include <stdlib.h>
#include <string.h>

#include "executor_impl.h"
#include "io/file_map.h"
#include "ops/gemm.h"

static enum talpa_status upload_rows(struct tp_executor *executor, const struct tp_plan *plan, talpa_value value, const struct tp_store_source *source)
{
    const struct tp_value_info *info = tp_graph_value(plan->graph, value);
    int n_parts;
    if (tp_store_weight(executor->store, info->name, TP_LAYOUT_ROW, &n_parts)) return TALPA_OK;
    const struct tp_node node = {.in = &value, .n_in = 1, .scope = ""};
    const struct tp_lower lower = {.graph = plan->graph, .node = &node, .caps = &plan->caps, .options = &plan->options};
    n_parts = tp_lower_n_parts(&lower, 0);
    struct tp_buffer **parts;
    TP_TRY(tp_store_reserve(&parts, executor->store, info->name, TP_LAYOUT_ROW, n_parts));
    for (int p = 0; p < n_parts; p++) {
        int64_t first, n;
        tp_lower_part(&lower, 0, p, &first, &n);
        TP_TRY(tp_buffer_create(&parts[p], executor->device, (size_t)n * tp_layout_unit_bytes(&info->type, TP_LAYOUT_ROW)));
        TP_TRY(tp_store_upload(parts[p], source, first, n));
    }
    tp_file_map_forget(source->data, tp_type_bytes(&source->type));
    return TALPA_OK;
}

/* ---- rows to pack from ---- */

/* Rows that the host reorders wait for their launches; that many bytes of them at most, or one weight. */
static const size_t max_reordered_bytes = (size_t)64 << 20;

enum talpa_status tp_executor_release_staged(struct tp_executor *executor)
{
    if (!executor->n_staged) return TALPA_OK;
    const enum talpa_status status = tp_queue_finish(executor->device);
    for (size_t i = 0; i < executor->n_staged; i++) {
        tp_buffer_free(executor->staged[i].buffer);
        free(executor->staged[i].reordered);
        tp_file_map_forget(executor->staged[i].source->data, tp_type_bytes(&executor->staged[i].source->type));
    }
    executor->n_staged = executor->reordered_bytes = 0;
    return status;
}

/* The source as a kernel can read it in the host's memory: as it lies in the file, or a copy where its rows change places or the file did
 * not align it. */
static enum talpa_status host_rows(struct tp_executor *executor, struct tp_staged *staged, const void **data, const struct tp_store_source *source)
{
    const size_t n_bytes = tp_type_bytes(&source->type);
    *data = source->data;
    if (!source->interleaved_heads && (uintptr_t)source->data % TP_HOST_MEMORY_ALIGN == 0) return TALPA_OK;
    if (executor->reordered_bytes + n_bytes > max_reordered_bytes) TP_TRY(tp_executor_release_staged(executor));
    *data = staged->reordered = aligned_alloc(TP_HOST_MEMORY_ALIGN, (n_bytes + TP_HOST_MEMORY_ALIGN - 1) / TP_HOST_MEMORY_ALIGN * TP_HOST_MEMORY_ALIGN);
    if (!staged->reordered) return tp_fail_memory("rows of a weight", n_bytes);
    tp_store_rows(staged->reordered, source, 0, tp_layout_units(&source->type, TP_LAYOUT_ROW));
    executor->reordered_bytes += n_bytes;
    return TALPA_OK;
}

static enum talpa_status stage_rows(struct tp_executor *executor, struct tp_staged *staged, const struct tp_plan *plan,
                                    const struct tp_store_source *source)
{
    const size_t n_bytes = tp_type_bytes(&source->type);
    const void *data;
    if (plan->caps.in_process) {
        TP_TRY(host_rows(executor, staged, &data, source));
        return tp_buffer_over(&staged->buffer, executor->device, data, n_bytes);
    }
    TP_TRY(tp_buffer_create(&staged->buffer, executor->device, n_bytes));
    return tp_store_upload(staged->buffer, source, 0, tp_layout_units(&source->type, TP_LAYOUT_ROW));
}

/* A buffer with all rows of a weight, kept until tp_executor_release_staged. */
static enum talpa_status stage(struct tp_executor *executor, struct tp_buffer **out, const struct tp_plan *plan,
                               const struct tp_store_source *source)
{
    if (executor->n_staged == executor->staged_room) {
        const size_t room = executor->staged_room ? executor->staged_room * 2 : 64;
        struct tp_staged *grown = realloc(executor->staged, room * sizeof *grown);
        if (!grown) return tp_fail_memory("executor", room * sizeof *grown);
        executor->staged = grown;
        executor->staged_room = room;
    }
    struct tp_staged staged = {.source = source};
    const enum talpa_status status = stage_rows(executor, &staged, plan, source);
    executor->staged[executor->n_staged++] = staged;
    *out = staged.buffer;
    return status;
}

/* ---- packing ---- */

static enum talpa_status pack_part(struct tp_executor *executor, const struct tp_plan *plan, const struct tp_packed *packed, int part,
                                   struct tp_buffer *rows, struct tp_buffer *target)
{
    struct tp_launch_list list = {0};
    struct tp_lower lower = {.graph = plan->graph, .node_index = -1, .caps = &plan->caps, .options = &plan->options, .list = &list};
    enum talpa_status status = tp_pack_emit(&lower, packed->value, packed->layout, part);
    for (int i = 0; i < list.n && status == TALPA_OK; i++) {
        struct tp_prepared p = {.launch = &list.item[i], .what = "packing"};
        for (int a = 0; a < list.item[i].n_args; a++) {
            const struct tp_arg *arg = &list.item[i].args[a];
            if (arg->kind == TP_ARG_VALUE) {
                p.args[a] = tp_kernel_arg_buffer(arg->layout == TP_LAYOUT_ROW ? rows : target);
            } else if (arg->kind == TP_ARG_STEP) {
                p.args[a] = tp_kernel_arg_buffer(executor->step);
            } else {
                p.args[a] = (struct tp_kernel_arg){.type = TP_KERNEL_ARG_BYTES, .n_bytes = arg->n_bytes};
                memcpy(p.args[a].value.bytes, arg->bytes, arg->n_bytes);
            }
        }
        p.piece_groups = tp_executor_piece_groups(executor, plan, p.launch);
        status = tp_program_kernel(&p.kernel, executor->device, p.launch->source, p.launch->kernel, p.launch->options);
        if (status == TALPA_OK) status = tp_executor_enqueue(executor, &p);
    }
    free(list.item);
    return status;
}

static enum talpa_status pack_weight(struct tp_executor *executor, const struct tp_plan *plan, const struct tp_packed *packed,
                                     const struct tp_store_source *source)
{
    const struct tp_value_info *info = tp_graph_value(plan->graph, packed->value);
    int n_parts;
    if (tp_store_weight(executor->store, info->name, packed->layout, &n_parts)) return TALPA_OK;
    talpa_value value = packed->value;
    const struct tp_node node = {.in = &value, .n_in = 1, .scope = ""};
    const struct tp_lower lower = {.graph = plan->graph, .node = &node, .caps = &plan->caps, .options = &plan->options, .in_layout = &packed->layout};
    n_parts = tp_lower_n_parts(&lower, 0);
    struct tp_buffer **parts, *rows = NULL;
    TP_TRY(tp_store_reserve(&parts, executor->store, info->name, packed->layout, n_parts));
    int n_row_parts;
    struct tp_buffer **resident = tp_store_weight(executor->store, info->name, TP_LAYOUT_ROW, &n_row_parts);
    enum talpa_status status = TALPA_OK;
    const bool staged = !resident || n_row_parts != 1;
    if (!staged) rows = resident[0];
    else status = stage(executor, &rows, plan, source);
    for (int p = 0; p < n_parts && status == TALPA_OK; p++) {
        int64_t first, n;
        tp_lower_part(&lower, 0, p, &first, &n);
        status = tp_buffer_create(&parts[p], executor->device, (size_t)n * tp_layout_unit_bytes(&info->type, packed->layout));
        if (status == TALPA_OK) status = pack_part(executor, plan, packed, p, rows, parts[p]);
    }
    /* What was copied to the device goes at once, so that preparing needs one weight's rows at a time. */
    if (staged && status == TALPA_OK && !plan->caps.in_process) status = tp_executor_release_staged(executor);
    return status;
}

static enum talpa_status find_source(const struct tp_executor *executor, const struct tp_value_info *info, const struct tp_store_source **out)
{
    *out = tp_store_source(executor->store, info->name);
    if (!*out) return tp_fail(TALPA_E_INTERNAL, "weight '%s' is not bound to any data", info->name);
    if (!tp_type_equal(&(*out)->type, &info->type)) return tp_fail(TALPA_E_INTERNAL, "weight '%s' is bound with another type", info->name);
    return TALPA_OK;
}

enum talpa_status tp_executor_load_weights(struct tp_executor *executor, const struct tp_plan *plan)
{
    const struct tp_store_source *source;
    for (int32_t v = 0; v < tp_graph_n_values(plan->graph); v++) {
        const struct tp_value_info *info = tp_graph_value(plan->graph, v);
        if (info->kind != TP_WEIGHT || !plan->row_needed[v]) continue;
        TP_TRY(find_source(executor, info, &source));
        TP_TRY(tp_context(upload_rows(executor, plan, v, source), "weight '%s'", info->name));
    }
    for (int i = 0; i < plan->n_packed; i++) {
        if (plan->packed[i].phase >= 0) continue;
        const struct tp_value_info *info = tp_graph_value(plan->graph, plan->packed[i].value);
        TP_TRY(find_source(executor, info, &source));
        TP_TRY(tp_context(pack_weight(executor, plan, &plan->packed[i], source), "weight '%s'", info->name));
    }
    return TALPA_OK;
}
