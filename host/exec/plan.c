#include "plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "exec/tier.h"
#include "ops/gemm.h"
#include "plan_impl.h"
#include "runtime/tuning.h"

void tp_plan_options_default(struct tp_plan_options *options)
{
    *options = (struct tp_plan_options){.dispatch = TP_DISPATCH_DENSE};
    const char *tier = getenv("TALPA_TIER");
    if (tier) snprintf(options->tier, sizeof options->tier, "%s", tier);
    const char *fusion = getenv("TALPA_FUSION");
    options->no_fusion = fusion && !strcmp(fusion, "off");
}

int32_t tp_plan_position(const struct tp_plan *plan, int32_t node)
{
    if (plan->fused_of[node] >= 0) node = plan->fused[plan->fused_of[node]]->at;
    return node + (tp_graph_node_at(plan->graph, node)->phase == TP_PHASE_UPDATE ? tp_graph_n_nodes(plan->graph) : 0);
}

static bool is_layout_only(const struct tp_node *node) { return (node->op->flags & (TP_OP_VIEW | TP_OP_CONCAT)) != 0; }

/* ---- choice of variants and layouts ---- */

/* A weight is packed from one upload of its row layout, which therefore has to fit one allocation. */
static bool can_pack(const struct tp_plan *plan, const struct tp_node *node, const enum tp_layout *in)
{
    for (int i = 0; i < node->n_in && i < TP_MAX_IN; i++) {
        if (node->in[i] == TP_NONE || in[i] == TP_LAYOUT_ROW) continue;
        if (tp_type_bytes(tp_graph_type(plan->graph, node->in[i])) > plan->caps.max_alloc_bytes) return false;
    }
    return true;
}

static struct tp_lower lower_for(const struct tp_plan *plan, const struct tp_node *node, int32_t node_index, const struct tp_choice *choice)
{
    return (struct tp_lower){.graph = plan->graph,
                             .node = node,
                             .node_index = node_index,
                             .caps = &plan->caps,
                             .options = &plan->options,
                             .in_layout = choice->in,
                             .out_layout = choice->out,
                             .also_layout = choice->also};
}

/* Takes the flag of tp_layout_or_row off the layouts that a variant gave. */
static void read_flags(struct tp_choice *choice)
{
    for (int i = 0; i < TP_MAX_IN; i++) {
        if (!((int)choice->in[i] & TP_LAYOUT_OR_ROW)) continue;
        choice->may_in[i] = (enum tp_layout)((int)choice->in[i] & ~TP_LAYOUT_OR_ROW);
        choice->in[i] = TP_LAYOUT_ROW;
    }
    for (int o = 0; o < TP_MAX_OUT; o++) {
        choice->both[o] = ((int)choice->out[o] & TP_LAYOUT_OR_ROW) != 0;
        choice->out[o] = (enum tp_layout)((int)choice->out[o] & ~TP_LAYOUT_OR_ROW);
    }
}

const struct tp_variant *tp_plan_choose(const struct tp_plan *plan, const struct tp_node *node, int32_t node_index,
                                        const struct tp_variant *variants, int n_variants, struct tp_choice *choice)
{
    for (int v = 0; v < n_variants; v++) {
        const struct tp_variant *variant = &variants[v];
        *choice = (struct tp_choice){.in = {TP_LAYOUT_ROW}, .out = {TP_LAYOUT_ROW}};
        const struct tp_lower lower = lower_for(plan, node, node_index, choice);
        if (!tp_tier_allowed(&plan->caps, &plan->options, variant->tier) || (variant->applies && !variant->applies(&lower))) continue;
        if (variant->layouts) variant->layouts(&lower, choice->in, choice->out);
        read_flags(choice);
        if (can_pack(plan, node, choice->in)) return variant;
    }
    return NULL;
}

static enum talpa_status choose_variant(struct tp_plan *plan, int32_t n, struct tp_choice *choice)
{
    const struct tp_node *node = tp_plan_node(plan, n);
    if (!node || is_layout_only(node)) return TALPA_OK;
    if (node->n_in > TP_MAX_IN) return tp_fail(TALPA_E_INTERNAL, "%s: more than %d operands", node->op->name, TP_MAX_IN);
    const struct tp_fusion *rule = plan->fused_of[n] < 0 ? NULL : plan->fused[plan->fused_of[n]]->rule;
    plan->variant[n] = tp_plan_choose(plan, node, n, rule ? rule->variants : node->op->variants, rule ? rule->n_variants : node->op->n_variants, choice);
    if (!plan->variant[n]) return tp_fail(TALPA_E_INTERNAL, "%s at %s: no kernel variant applies", node->op->name, node->scope);
    return TALPA_OK;
}

/* The choice of the node that produces a value, and which of its outputs that is: NULL if no launch makes it. */
static struct tp_choice *producer_choice(const struct tp_plan *plan, struct tp_choice *choices, talpa_value value, int *output)
{
    const struct tp_value_info *info = tp_graph_value(plan->graph, value);
    if (info->producer < 0 || plan->inner[value]) return NULL;
    const int32_t group = plan->fused_of[info->producer], n = group < 0 ? info->producer : plan->fused[group]->at;
    const struct tp_node *node = tp_plan_node(plan, n);
    if (is_layout_only(node)) return NULL;
    for (int o = 0; o < node->n_out; o++)
        if (node->out[o] == value) {
            *output = o;
            return &choices[n];
        }
    return NULL;
}

/* A value that its producer can make in another layout than row, and how its readers want it. */
struct offer {
    struct tp_choice *maker; /* NULL: there is no offer */
    int output;
    enum tp_layout layout;
    enum tp_phase phase;
    int n_wanted; /* in the offered layout */
    int n_may;    /* in row, or in that one */
    bool row;     /* somebody needs it in row */
    bool alone;   /* settled: it is made in that layout only */
};

static void count_wishes(const struct tp_plan *plan, const struct tp_choice *choices, struct offer *offers)
{
    for (int32_t n = 0; n < tp_graph_n_nodes(plan->graph); n++) {
        const struct tp_node *node = tp_plan_node(plan, n);
        for (int i = 0; node && i < node->n_in; i++) {
            struct offer *offer = node->in[i] == TP_NONE ? NULL : &offers[node->in[i]];
            if (!offer || !offer->maker) continue;
            if (is_layout_only(node) || node->phase != offer->phase) offer->row = true;
            else if (choices[n].in[i] == offer->layout) offer->n_wanted++;
            else if (choices[n].may_in[i] == offer->layout) offer->n_may++;
            else offer->row = true;
        }
    }
}

/* A producer's offer of another layout stands alone if every reader takes it. One that can make both layouts makes the other one if a
 * reader wants it, and row besides if a reader needs that; who may read either reads row then. */
static enum talpa_status settle_outputs(struct tp_plan *plan, struct tp_choice *choices)
{
    const int32_t n_values = tp_graph_n_values(plan->graph);
    struct offer *offers = calloc((size_t)n_values + 1, sizeof *offers);
    if (!offers) return tp_fail_memory("plan", (unsigned long long)n_values * sizeof *offers);
    for (int32_t v = 0; v < n_values; v++) {
        const struct tp_value_info *info = tp_graph_value(plan->graph, v);
        int o = 0;
        struct tp_choice *maker = producer_choice(plan, choices, v, &o);
        if (!maker || maker->out[o] == TP_LAYOUT_ROW) continue;
        offers[v] = (struct offer){.maker = maker, .output = o, .layout = maker->out[o], .row = info->is_output,
                                   .phase = tp_graph_node_at(plan->graph, info->producer)->phase};
    }
    count_wishes(plan, choices, offers);
    for (int32_t v = 0; v < n_values; v++) {
        struct offer *offer = &offers[v];
        if (!offer->maker) continue;
        const bool both = offer->maker->both[offer->output];
        offer->alone = plan->no_row[v] = !offer->row && (offer->n_wanted || (!both && offer->n_may));
        if (offer->alone) continue;
        offer->maker->out[offer->output] = TP_LAYOUT_ROW;
        if (both && offer->n_wanted) offer->maker->also[offer->output] = offer->layout;
    }
    for (int32_t n = 0; n < tp_graph_n_nodes(plan->graph); n++) {
        const struct tp_node *node = tp_plan_node(plan, n);
        for (int i = 0; node && i < node->n_in; i++)
            if (node->in[i] != TP_NONE && offers[node->in[i]].alone) choices[n].in[i] = offers[node->in[i]].layout;
    }
    free(offers);
    return TALPA_OK;
}

/* ---- conversions ---- */

static enum talpa_status want_packed(struct tp_plan *plan, talpa_value value, enum tp_layout layout, int phase, int32_t position, bool *is_new)
{
    *is_new = false;
    for (int i = 0; i < plan->n_packed; i++) {
        struct tp_packed *packed = &plan->packed[i];
        if (packed->value != value || packed->layout != layout || packed->phase != phase) continue;
        packed->last = position;
        return TALPA_OK;
    }
    if (plan->n_packed == plan->packed_room) {
        const int room = plan->packed_room ? plan->packed_room * 2 : 64;
        struct tp_packed *grown = realloc(plan->packed, (size_t)room * sizeof *grown);
        if (!grown) return tp_fail_memory("plan", (unsigned long long)room * sizeof *grown);
        plan->packed = grown;
        plan->packed_room = room;
    }
    plan->packed[plan->n_packed++] = (struct tp_packed){.value = value, .layout = layout, .phase = phase, .first = position, .last = position};
    *is_new = true;
    return TALPA_OK;
}

/* Inputs that the chosen variant reads in a layout that nobody has made yet are converted just before it. */
static enum talpa_status convert_inputs(struct tp_plan *plan, int32_t n, struct tp_choice *choices)
{
    const struct tp_node *node = tp_plan_node(plan, n);
    for (int i = 0; i < node->n_in; i++) {
        const talpa_value value = node->in[i];
        if (value == TP_NONE) continue;
        const struct tp_value_info *info = tp_graph_value(plan->graph, value);
        const enum tp_layout layout = choices[n].in[i];
        const bool is_weight = info->kind == TP_WEIGHT;
        if (layout == TP_LAYOUT_ROW) {
            plan->row_needed[value] = true;
            continue;
        }
        bool is_new;
        TP_TRY(want_packed(plan, value, layout, is_weight ? -1 : (int)node->phase, tp_plan_position(plan, n), &is_new));
        int o = 0;
        const struct tp_choice *maker = producer_choice(plan, choices, value, &o);
        const bool produced = maker && (maker->out[o] == layout || maker->also[o] == layout);
        if (is_new && produced) plan->packed[plan->n_packed - 1].first = tp_plan_position(plan, info->producer);
        if (!is_new || is_weight || produced) continue;
        struct tp_lower lower = {.graph = plan->graph,
                                 .node_index = n,
                                 .caps = &plan->caps,
                                 .options = &plan->options,
                                 .list = &plan->phase[node->phase]};
        TP_TRY(tp_pack_emit(&lower, value, layout, 0));
    }
    return TALPA_OK;
}

/* ---- lowering ---- */

static enum talpa_status check_launches(const struct tp_plan *plan, const struct tp_launch_list *list, int from, const struct tp_node *node,
                                        int n_scratch)
{
    for (int i = from; i < list->n; i++) {
        if (list->item[i].n_args > TP_MAX_ARGS)
            return tp_fail(TALPA_E_INTERNAL, "%s: kernel %s has more than %d arguments", node->op->name, list->item[i].kernel, TP_MAX_ARGS);
        for (int a = 0; a < list->item[i].n_args; a++) {
            const struct tp_arg *arg = &list->item[i].args[a];
            if (arg->kind == TP_ARG_SCRATCH && arg->scratch >= n_scratch)
                return tp_fail(TALPA_E_INTERNAL, "%s: kernel %s uses scratch that was not reserved", node->op->name, list->item[i].kernel);
            if (arg->kind == TP_ARG_VALUE && plan->inner[arg->value])
                return tp_fail(TALPA_E_INTERNAL, "%s: kernel %s uses a value that its group does not store", node->op->name, list->item[i].kernel);
        }
    }
    return TALPA_OK;
}

/* One copy per input; placement removes those whose input already lies where it belongs. */
static enum talpa_status lower_concat(struct tp_plan *plan, struct tp_lower *lower)
{
    size_t offset = 0;
    for (int i = 0; i < lower->node->n_in; i++) {
        const struct tp_type *type = tp_lower_in(lower, i);
        struct tp_launch *launch = tp_lower_launch(lower, "", "copy");
        if (!launch) return tp_fail_memory("plan", sizeof *launch);
        launch->is_copy = true;
        launch->copy_bytes = tp_type_bytes(type);
        launch->copy_offset = offset * tp_dtype_block_bytes(type->dtype);
        launch->args[launch->n_args++] = (struct tp_arg){.kind = TP_ARG_VALUE, .value = lower->node->in[i]};
        launch->args[launch->n_args++] = (struct tp_arg){.kind = TP_ARG_VALUE, .value = lower->node->out[0], .writes = true};
        plan->row_needed[lower->node->in[i]] = true;
        offset += (size_t)((tp_type_elements(type) + TP_CONCAT_ALIGN - 1) / TP_CONCAT_ALIGN * TP_CONCAT_ALIGN);
    }
    return TALPA_OK;
}

static enum talpa_status lower_node(struct tp_plan *plan, int32_t n, struct tp_choice *choices, size_t *scratch_bytes)
{
    const struct tp_node *node = tp_plan_node(plan, n);
    if (!node) return TALPA_OK;
    struct tp_lower lower = lower_for(plan, node, n, &choices[n]);
    lower.list = &plan->phase[node->phase];
    if (node->op->flags & TP_OP_CONCAT) return lower_concat(plan, &lower);
    if (node->op->flags & TP_OP_VIEW) {
        plan->row_needed[node->in[0]] = true;
        return TALPA_OK;
    }
    TP_TRY(convert_inputs(plan, n, choices));
    const int from = lower.list->n;
    TP_TRY(tp_context(plan->variant[n]->lower(&lower), "%s at %s", tp_plan_node_name(plan, n), node->scope));
    TP_TRY(check_launches(plan, lower.list, from, node, lower.n_scratch));
    for (int s = 0; s < lower.n_scratch; s++) scratch_bytes[(size_t)n * TP_MAX_SCRATCH + (size_t)s] = lower.scratch_bytes[s];
    return TALPA_OK;
}

static enum talpa_status build(struct tp_plan *plan, struct tp_choice *choices, size_t *scratch_bytes)
{
    const int32_t n_nodes = tp_graph_n_nodes(plan->graph);
    TP_TRY(tp_plan_fuse(plan));
    for (int32_t n = 0; n < n_nodes; n++) TP_TRY(choose_variant(plan, n, &choices[n]));
    TP_TRY(settle_outputs(plan, choices));
    for (int32_t n = 0; n < n_nodes; n++) TP_TRY(lower_node(plan, n, choices, scratch_bytes));
    return tp_plan_place(plan, scratch_bytes);
}

static enum talpa_status create(struct tp_plan **out, const struct talpa_graph *graph, const struct talpa_device_caps *caps,
                                const struct tp_plan_options *options)
{
    if (options->tier[0] && !tp_tier_is_known(options->tier))
        return tp_fail(TALPA_E_ARGUMENT, "TALPA_TIER is '%s', expected %s", options->tier, tp_tier_names());

    const size_t n_nodes = (size_t)tp_graph_n_nodes(graph) + 1, n_values = (size_t)tp_graph_n_values(graph) + 1;
    struct tp_plan *plan = calloc(1, sizeof *plan);
    struct tp_choice *choices = calloc(n_nodes, sizeof *choices);
    size_t *scratch_bytes = calloc(n_nodes * TP_MAX_SCRATCH, sizeof *scratch_bytes);
    enum talpa_status status = TALPA_E_DEVICE;
    if (!plan || !choices || !scratch_bytes) {
        status = tp_fail_memory("plan", n_nodes * sizeof *choices);
        goto done;
    }
    plan->graph = graph;
    plan->caps = *caps;
    plan->options = *options;
    if (!options->tuning) {
        status = tp_tuning_create(&plan->tuning, caps);
        if (status != TALPA_OK) goto done;
        plan->options.tuning = plan->tuning;
    }
    status = TALPA_E_DEVICE;
    plan->variant = calloc(n_nodes, sizeof *plan->variant);
    plan->row = calloc(n_values, sizeof *plan->row);
    plan->row_needed = calloc(n_values, sizeof *plan->row_needed);
    plan->scratch = calloc(n_nodes * TP_MAX_SCRATCH, sizeof *plan->scratch);
    plan->fused_of = calloc(n_nodes, sizeof *plan->fused_of);
    plan->inner = calloc(n_values, sizeof *plan->inner);
    plan->no_row = calloc(n_values, sizeof *plan->no_row);
    if (!plan->fused_of || !plan->inner || !plan->no_row || !plan->variant || !plan->row || !plan->row_needed || !plan->scratch) {
        status = tp_fail_memory("plan", n_nodes * TP_MAX_SCRATCH * sizeof *plan->scratch);
        goto done;
    }
    status = build(plan, choices, scratch_bytes);
done:
    free(choices);
    free(scratch_bytes);
    if (status == TALPA_OK) *out = plan;
    else tp_plan_free(plan);
    return status;
}

/* Panels in f32 take several times the bytes of a quantised file, once per orientation. Something is left to the rest of the machine. */
static bool panels_do_not_fit(const struct tp_plan *plan)
{
    return plan->memory.packed_bytes > 0 && plan->memory.total_bytes > plan->caps.global_mem_bytes / 5 * 4;
}

enum talpa_status tp_plan_create(struct tp_plan **out, const struct talpa_graph *graph, const struct talpa_device_caps *caps,
                                 const struct tp_plan_options *options)
{
    struct tp_plan *plan;
    TP_TRY(create(&plan, graph, caps, options));
    if (options->base_dtype == TP_BASE_AUTO && panels_do_not_fit(plan)) {
        struct tp_plan_options native = *options;
        native.base_dtype = TP_BASE_NATIVE;
        tp_plan_free(plan);
        TP_TRY(create(&plan, graph, caps, &native));
    }
    *out = plan;
    return TALPA_OK;
}

void tp_plan_free(struct tp_plan *plan)
{
    if (!plan) return;
    for (int p = 0; p < TP_N_PHASES; p++) free(plan->phase[p].item);
    tp_tuning_free(plan->tuning);
    for (int i = 0; i < plan->n_fused; i++) free(plan->fused[i]);
    free(plan->fused);
    free(plan->fused_of);
    free(plan->inner);
    free(plan->no_row);
    free(plan->variant);
    free(plan->row);
    free(plan->row_needed);
    free(plan->packed);
    free(plan->scratch);
    free(plan->segment_bytes);
    free(plan);
}

const struct tp_location *tp_plan_location(const struct tp_plan *plan, const struct tp_arg *arg, int phase, int32_t node)
{
    if (arg->kind == TP_ARG_SCRATCH) return &plan->scratch[(size_t)node * TP_MAX_SCRATCH + (size_t)arg->scratch];
    if (arg->layout == TP_LAYOUT_ROW) return &plan->row[arg->value];
    const int wanted = tp_graph_value(plan->graph, arg->value)->kind == TP_WEIGHT ? -1 : phase;
    for (int i = 0; i < plan->n_packed; i++)
        if (plan->packed[i].value == arg->value && plan->packed[i].layout == arg->layout && plan->packed[i].phase == wanted)
            return &plan->packed[i].location;
    return NULL;
}
