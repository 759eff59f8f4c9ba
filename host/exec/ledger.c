#include "exec/ledger.h"

#include <string.h>

#include "base/status.h"

void tp_ledger_free(struct tp_ledger *ledger) { tp_map_free(&ledger->seen); }

static void take(struct tp_ledger *ledger, size_t *kind, size_t n_bytes)
{
    *kind += n_bytes;
    ledger->total_bytes += n_bytes;
    if (ledger->total_bytes > ledger->peak_bytes) ledger->peak_bytes = ledger->total_bytes;
}

/* True once per name and mark (a layout, or 'S' for a state). */
static enum talpa_status is_new(bool *out, struct tp_ledger *ledger, const char *name, int mark)
{
    char key[512];
    int64_t old;
    const size_t n = strlen(name) + 1;
    if (n > sizeof key) return tp_fail(TALPA_E_DATA, "'%.64s...': the name is too long", name);
    memcpy(key, name, n - 1);
    key[n - 1] = (char)mark;
    *out = !tp_map_get(&old, &ledger->seen, key, n);
    return *out ? tp_map_put(&ledger->seen, key, n, 1) : TALPA_OK;
}

static int n_parts_of(const struct tp_plan *plan, talpa_value value, const enum tp_layout *layout)
{
    const struct tp_node node = {.in = &value, .n_in = 1, .scope = ""};
    const struct tp_lower lower = {.graph = plan->graph, .node = &node, .caps = &plan->caps, .options = &plan->options, .in_layout = layout};
    return tp_lower_n_parts(&lower, 0);
}

static size_t layout_bytes(const struct tp_type *type, enum tp_layout layout)
{
    return (size_t)tp_layout_units(type, layout) * tp_layout_unit_bytes(type, layout);
}

static enum talpa_status add_weights(struct tp_ledger *ledger, const struct tp_plan *plan)
{
    bool fresh;
    for (int32_t v = 0; v < tp_graph_n_values(plan->graph); v++) {
        const struct tp_value_info *info = tp_graph_value(plan->graph, v);
        if (info->kind != TP_WEIGHT || !plan->row_needed[v]) continue;
        TP_TRY(is_new(&fresh, ledger, info->name, TP_LAYOUT_ROW));
        if (fresh) take(ledger, &ledger->weight_bytes, layout_bytes(&info->type, TP_LAYOUT_ROW));
    }
    for (int i = 0; i < plan->n_packed; i++) {
        const struct tp_packed *packed = &plan->packed[i];
        const struct tp_value_info *info = tp_graph_value(plan->graph, packed->value);
        if (packed->phase >= 0) continue;
        TP_TRY(is_new(&fresh, ledger, info->name, (int)packed->layout));
        if (!fresh) continue;
        /* Rows are uploaded to pack them from, unless they are there in one piece or kernels read them in the host's memory. */
        char key[512];
        int64_t there;
        const size_t n = strlen(info->name) + 1, staged = tp_type_bytes(&info->type);
        memcpy(key, info->name, n - 1);
        key[n - 1] = (char)TP_LAYOUT_ROW;
        const bool has_rows = plan->caps.in_process || (tp_map_get(&there, &ledger->seen, key, n) && n_parts_of(plan, packed->value, NULL) == 1);
        take(ledger, &ledger->packed_bytes, layout_bytes(&info->type, packed->layout));
        if (!has_rows && ledger->total_bytes + staged > ledger->peak_bytes) ledger->peak_bytes = ledger->total_bytes + staged;
    }
    return TALPA_OK;
}

/* A state is made when a launch takes it first. */
static enum talpa_status add_states(struct tp_ledger *ledger, const struct tp_plan *plan)
{
    for (int phase = 0; phase < TP_N_PHASES; phase++) {
        for (int i = 0; i < plan->phase[phase].n; i++) {
            const struct tp_launch *launch = &plan->phase[phase].item[i];
            for (int a = 0; a < launch->n_args; a++) {
                if (launch->args[a].kind != TP_ARG_VALUE) continue;
                const struct tp_location *location = tp_plan_location(plan, &launch->args[a], phase, launch->node);
                if (!location || location->place != TP_PLACE_STORE) continue;
                const struct tp_value_info *info = tp_graph_value(plan->graph, location->owner);
                bool fresh;
                if (info->kind != TP_STATE) continue;
                TP_TRY(is_new(&fresh, ledger, info->name, 'S'));
                if (fresh) take(ledger, &ledger->state_bytes, tp_type_bytes(&info->type) + plan->options.guard_bytes);
            }
        }
    }
    return TALPA_OK;
}

enum talpa_status tp_ledger_add(struct tp_ledger *ledger, const struct tp_plan *const *plans, int n_plans)
{
    const struct talpa_graph *graph = plans[0]->graph;
    for (int s = 0;; s++) {
        size_t largest = 0;
        for (int i = 0; i < n_plans; i++)
            if (s < plans[i]->n_segments && plans[i]->segment_bytes[s] > largest) largest = plans[i]->segment_bytes[s];
        if (!largest) break;
        take(ledger, &ledger->arena_bytes, largest);
    }
    for (int32_t v = 0; v < tp_graph_n_values(graph); v++) {
        const struct tp_value_info *info = tp_graph_value(graph, v);
        if (info->kind == TP_INPUT) take(ledger, &ledger->input_bytes, tp_type_bytes(&info->type) + plans[0]->options.guard_bytes);
    }
    take(ledger, &ledger->input_bytes, sizeof(struct tp_step));
    for (int i = 0; i < n_plans; i++) TP_TRY(add_weights(ledger, plans[i]));
    for (int i = 0; i < n_plans; i++) TP_TRY(add_states(ledger, plans[i]));
    return TALPA_OK;
}
