#include "launch.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "graph/op.h"

const struct tp_type *tp_lower_in(const struct tp_lower *lower, int i) { return tp_graph_type(lower->graph, lower->node->in[i]); }
const struct tp_type *tp_lower_out(const struct tp_lower *lower, int i) { return tp_graph_type(lower->graph, lower->node->out[i]); }
bool tp_lower_has_in(const struct tp_lower *lower, int i) { return i < lower->node->n_in && lower->node->in[i] != TP_NONE; }

int tp_lower_scratch(struct tp_lower *lower, size_t n_bytes)
{
    if (lower->n_scratch == TP_MAX_SCRATCH) return TP_MAX_SCRATCH; /* found by the plan: such an argument is refused */
    lower->scratch_bytes[lower->n_scratch] = n_bytes;
    return lower->n_scratch++;
}

enum tp_layout tp_lower_in_layout(const struct tp_lower *lower, int i) { return lower->in_layout ? lower->in_layout[i] : TP_LAYOUT_ROW; }
enum tp_layout tp_lower_out_layout(const struct tp_lower *lower, int i) { return lower->out_layout ? lower->out_layout[i] : TP_LAYOUT_ROW; }
enum tp_layout tp_lower_also_layout(const struct tp_lower *lower, int i) { return lower->also_layout ? lower->also_layout[i] : TP_LAYOUT_ROW; }

/* Only frozen weights are split: everything else lives in the arena and in banks, where a value is never larger than one allocation. */
static int64_t units_per_part(const struct tp_type *type, enum tp_layout layout, const struct talpa_device_caps *caps)
{
    const size_t unit_bytes = tp_layout_unit_bytes(type, layout);
    const int64_t n = caps->max_alloc_bytes ? (int64_t)(caps->max_alloc_bytes / (unit_bytes ? unit_bytes : 1)) : tp_layout_units(type, layout);
    return n > 0 ? n : 1;
}

int tp_lower_n_parts(const struct tp_lower *lower, int i)
{
    const struct tp_value_info *info = tp_graph_value(lower->graph, lower->node->in[i]);
    if (info->kind != TP_WEIGHT) return 1;
    const int64_t units = tp_layout_units(&info->type, tp_lower_in_layout(lower, i));
    const int64_t per_part = units_per_part(&info->type, tp_lower_in_layout(lower, i), lower->caps);
    return (int)((units + per_part - 1) / per_part);
}

void tp_lower_part(const struct tp_lower *lower, int i, int part, int64_t *first_unit, int64_t *n_units)
{
    const struct tp_type *type = tp_lower_in(lower, i);
    const int64_t units = tp_layout_units(type, tp_lower_in_layout(lower, i));
    const int64_t per_part = tp_lower_n_parts(lower, i) == 1 ? units : units_per_part(type, tp_lower_in_layout(lower, i), lower->caps);
    *first_unit = part * per_part;
    *n_units = units - *first_unit < per_part ? units - *first_unit : per_part;
}

struct tp_launch *tp_lower_launch(struct tp_lower *lower, const char *source, const char *kernel)
{
    struct tp_launch_list *list = lower->list;
    if (list->n == list->capacity) {
        const int capacity = list->capacity ? list->capacity * 2 : 64;
        struct tp_launch *grown = realloc(list->item, (size_t)capacity * sizeof *grown);
        if (!grown) return NULL;
        list->item = grown;
        list->capacity = capacity;
    }
    struct tp_launch *launch = &list->item[list->n++];
    memset(launch, 0, sizeof *launch);
    launch->source = source;
    launch->kernel = kernel;
    launch->node = lower->node_index;
    launch->scope = lower->node ? lower->node->scope : "";
    for (int d = 0; d < 3; d++) launch->global[d] = launch->local[d] = 1;
    return launch;
}

void tp_launch_option(struct tp_launch *launch, const char *format, ...)
{
    if (!launch) return;
    const size_t used = strlen(launch->options);
    if (used + 2 >= sizeof launch->options) return;
    launch->options[used] = ' ';
    va_list list;
    va_start(list, format);
    vsnprintf(launch->options + used + 1, sizeof launch->options - used - 1, format, list);
    va_end(list);
}

void tp_launch_bf16_options(const struct tp_lower *lower, struct tp_launch *launch, int n_in, int n_out)
{
    for (int i = 0; i < n_in; i++)
        if (tp_lower_in_layout(lower, i) == TP_LAYOUT_ROW_BF16) tp_launch_option(launch, "-DIN%d_BF16=1", i);
    for (int o = 0; o < n_out; o++) {
        if (tp_lower_out_layout(lower, o) == TP_LAYOUT_ROW_BF16) tp_launch_option(launch, "-DOUT%d_BF16=1", o);
        if (tp_lower_also_layout(lower, o) == TP_LAYOUT_ROW_BF16) tp_launch_option(launch, "-DALSO%d=1", o);
    }
}

bool tp_lower_offers_bf16(const struct tp_lower *lower, const struct tp_type *type)
{
    return lower->options->compute_dtype == TP_COMPUTE_BF16 && type->shape.rank == 2 && type->shape.dim[1] % TP_PANEL == 0;
}

static struct tp_arg *next_arg(struct tp_launch *launch, enum tp_arg_kind kind)
{
    static struct tp_arg surplus; /* an argument too many is counted, and refused by the plan */
    if (!launch) return &surplus;
    struct tp_arg *arg = launch->n_args < TP_MAX_ARGS ? &launch->args[launch->n_args] : &surplus;
    launch->n_args++;
    *arg = (struct tp_arg){.kind = kind, .value = TP_NONE};
    return arg;
}

static void operand_arg(struct tp_lower *lower, struct tp_launch *launch, struct tp_operand operand, int part, bool writes)
{
    struct tp_arg *arg = next_arg(launch, operand.kind == TP_OPERAND_SCRATCH ? TP_ARG_SCRATCH : TP_ARG_VALUE);
    arg->writes = writes;
    arg->part = part;
    if (operand.kind == TP_OPERAND_SCRATCH) {
        arg->scratch = operand.index;
    } else if (operand.kind == TP_OPERAND_IN) {
        arg->value = lower->node->in[operand.index];
        arg->layout = tp_lower_in_layout(lower, operand.index);
    } else {
        arg->value = lower->node->out[operand.index];
        arg->layout = operand.kind == TP_OPERAND_ALSO ? tp_lower_also_layout(lower, operand.index) : tp_lower_out_layout(lower, operand.index);
    }
}

void tp_launch_read(struct tp_lower *lower, struct tp_launch *launch, struct tp_operand operand) { operand_arg(lower, launch, operand, 0, false); }

void tp_launch_read_part(struct tp_lower *lower, struct tp_launch *launch, struct tp_operand operand, int part)
{
    operand_arg(lower, launch, operand, part, false);
}

void tp_launch_write(struct tp_lower *lower, struct tp_launch *launch, struct tp_operand operand) { operand_arg(lower, launch, operand, 0, true); }

void tp_launch_write_forms(struct tp_lower *lower, struct tp_launch *launch, int o)
{
    tp_launch_write(lower, launch, tp_out(o));
    if (tp_lower_also_layout(lower, o) != TP_LAYOUT_ROW) tp_launch_write(lower, launch, tp_also(o));
}

void tp_launch_step(struct tp_launch *launch) { next_arg(launch, TP_ARG_STEP); }

void tp_launch_u32(struct tp_launch *launch, uint32_t value)
{
    struct tp_arg *arg = next_arg(launch, TP_ARG_BYTES);
    arg->n_bytes = sizeof value;
    memcpy(arg->bytes, &value, sizeof value);
}

void tp_launch_f32(struct tp_launch *launch, float value)
{
    struct tp_arg *arg = next_arg(launch, TP_ARG_BYTES);
    arg->n_bytes = sizeof value;
    memcpy(arg->bytes, &value, sizeof value);
}

void tp_launch_local(struct tp_launch *launch, size_t n_bytes) { next_arg(launch, TP_ARG_LOCAL)->n_bytes = (uint32_t)n_bytes; }

void tp_launch_rows(struct tp_launch *launch, const struct tp_type *type)
{
    tp_launch_u32(launch, (uint32_t)type->rows);
    tp_launch_u32(launch, (uint32_t)type->shape.dim[0]);
}

void tp_launch_groups(struct tp_launch *launch, size_t gx, size_t gy, size_t gz, size_t lx, size_t ly, size_t lz)
{
    if (!launch) return;
    const size_t groups[3] = {gx, gy, gz}, local[3] = {lx, ly, lz};
    for (int d = 0; d < 3; d++) {
        launch->local[d] = local[d] ? local[d] : 1;
        launch->global[d] = (groups[d] ? groups[d] : 1) * launch->local[d];
    }
}

void tp_launch_cost(struct tp_launch *launch, double flops, double bytes)
{
    if (!launch) return;
    launch->flops = flops;
    launch->bytes = bytes;
}
