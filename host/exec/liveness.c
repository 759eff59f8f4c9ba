/* Aliases, lifetimes and arena offsets. Values that share storage form a tree: a view, an output computed in place, or a part of a concat
 * hangs below the value whose storage it uses; only the roots get a place of their own. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "plan.h"

enum { ALIGN = 1024 }; /* a multiple of every device's base address alignment */

struct slot {
    talpa_value parent; /* whose storage it uses, TP_NONE for a root */
    size_t offset_bytes; /* within the parent */
    int32_t first, last; /* of the root: positions between which the storage is in use */
    int32_t own_last;    /* last position that reads this very value */
};

struct item {
    struct tp_location *location;
    int32_t first, last;
    size_t n_bytes;
    const char *what;
};

struct placement {
    struct tp_plan *plan;
    const struct talpa_graph *graph;
    struct slot *slot;
    struct item *items;
    size_t n_items;
};

static talpa_value root_of(const struct placement *p, talpa_value value, size_t *offset_bytes)
{
    size_t offset = 0;
    while (p->slot[value].parent != TP_NONE) {
        offset += p->slot[value].offset_bytes;
        value = p->slot[value].parent;
    }
    if (offset_bytes) *offset_bytes = offset;
    return value;
}

static bool in_arena(const struct placement *p, talpa_value root) { return tp_graph_value(p->graph, root)->kind == TP_TEMP; }

static void attach(struct placement *p, talpa_value value, talpa_value parent, size_t offset_bytes)
{
    struct slot *slot = &p->slot[value], *root = &p->slot[root_of(p, parent, NULL)];
    slot->parent = parent;
    slot->offset_bytes = offset_bytes;
    if (slot->first < root->first) root->first = slot->first;
    if (slot->last > root->last) root->last = slot->last;
}

static void find_reads(struct placement *p)
{
    for (int32_t n = 0; n < tp_graph_n_nodes(p->graph); n++) {
        const struct tp_node *node = tp_graph_node_at(p->graph, n);
        const int32_t position = tp_plan_position(p->plan, n);
        for (int i = 0; i < node->n_in; i++)
            if (node->in[i] != TP_NONE && p->slot[node->in[i]].own_last < position) p->slot[node->in[i]].own_last = position;
    }
}

/* Inside a group all nodes run at one position: whether another of them uses the storage that node n would take over, or the rule
 * forbids it. */
static bool group_forbids(const struct placement *p, int32_t n, talpa_value root)
{
    if (p->plan->fused_of[n] < 0) return false;
    const struct tp_fused *fused = p->plan->fused[p->plan->fused_of[n]];
    if (!fused->rule->inplace) return true;
    for (int m = 0; m < fused->n_members; m++) {
        const struct tp_node *node = tp_graph_node_at(p->graph, fused->member[m]);
        for (int i = 0; i < node->n_in && fused->member[m] != n; i++)
            if (node->in[i] != TP_NONE && root_of(p, node->in[i], NULL) == root) return true;
    }
    return false;
}

static bool may_reuse(const struct placement *p, int32_t n, int input, talpa_value out, int32_t position)
{
    const struct tp_node *node = tp_graph_node_at(p->graph, n);
    const talpa_value value = node->in[input];
    if (value == TP_NONE || p->plan->inner[value] || p->plan->inner[out] || p->plan->no_row[value] || p->plan->no_row[out]) return false;
    size_t offset;
    const talpa_value root = root_of(p, value, &offset);
    if (!in_arena(p, root) || offset || p->slot[root].last > position) return false;
    if (tp_type_bytes(tp_graph_type(p->graph, root)) != tp_type_bytes(tp_graph_type(p->graph, out))) return false;
    for (int i = 0; i < node->n_in; i++)
        if (i != input && node->in[i] != TP_NONE && root_of(p, node->in[i], NULL) == root) return false;
    return !group_forbids(p, n, root);
}

static void place_concat(struct placement *p, const struct tp_node *node)
{
    const talpa_value out = node->out[0];
    size_t offset = 0;
    for (int i = 0; i < node->n_in; i++) {
        const struct tp_type *type = tp_graph_type(p->graph, node->in[i]);
        size_t inner;
        const talpa_value root = root_of(p, node->in[i], &inner);
        if (in_arena(p, root) && !inner && root != out && tp_type_bytes(tp_graph_type(p->graph, root)) == tp_type_bytes(type))
            attach(p, root, out, offset);
        const size_t elements = (size_t)tp_type_elements(type);
        offset += (elements + TP_CONCAT_ALIGN - 1) / TP_CONCAT_ALIGN * TP_CONCAT_ALIGN * tp_dtype_block_bytes(type->dtype);
    }
}

static void place_outputs(struct placement *p, int32_t n)
{
    const struct tp_node *node = tp_graph_node_at(p->graph, n);
    const int32_t position = tp_plan_position(p->plan, n);
    for (int o = 0; o < node->n_out; o++) {
        const talpa_value out = node->out[o];
        const struct tp_value_info *info = tp_graph_value(p->graph, out);
        struct slot *slot = &p->slot[out];
        slot->first = position;
        slot->last = info->is_output ? INT32_MAX : slot->own_last > position ? slot->own_last : position;
        if (node->op->updates[o]) attach(p, out, node->in[node->op->updates[o] - 1], 0);
        else if (node->op->flags & TP_OP_VIEW) attach(p, out, node->in[0], (size_t)node->attrs.i[0] * tp_dtype_block_bytes(info->type.dtype));
        else if (node->op->inplace[o] && may_reuse(p, n, node->op->inplace[o] - 1, out, position)) attach(p, out, node->in[node->op->inplace[o] - 1], 0);
    }
    if (node->op->flags & TP_OP_CONCAT) place_concat(p, node);
}

static void add_item(struct placement *p, struct tp_location *location, int32_t first, int32_t last, size_t n_bytes, const char *what)
{
    /* With guards every value keeps its place for itself, so that a stray write can be told from a reuse. */
    const bool alone = p->plan->options.guard_bytes > 0;
    p->items[p->n_items++] = (struct item){location, alone ? 0 : first, alone ? INT32_MAX : last, n_bytes, what};
}

/* An output for the gradient in a graph without one. */
static bool is_left_out(const struct placement *p, talpa_value value)
{
    const struct tp_value_info *info = tp_graph_value(p->graph, value);
    return info->producer >= 0 && tp_graph_node_at(p->graph, info->producer)->op->for_gradient[info->output] && !info->is_output &&
           p->slot[value].own_last < 0;
}

static enum talpa_status collect(struct placement *p, const size_t *scratch_bytes)
{
    struct tp_plan *plan = p->plan;
    const int32_t n_values = tp_graph_n_values(p->graph), n_nodes = tp_graph_n_nodes(p->graph);
    p->items = calloc((size_t)n_values + (size_t)n_nodes * TP_MAX_SCRATCH + (size_t)plan->n_packed + 1, sizeof *p->items);
    if (!p->items) return tp_fail_memory("plan", (unsigned long long)n_values * sizeof *p->items);
    for (int32_t v = 0; v < n_values; v++) {
        const struct tp_value_info *info = tp_graph_value(p->graph, v);
        struct tp_location *location = &plan->row[v];
        location->n_bytes = tp_type_bytes(&info->type);
        location->owner = info->base;
        if (p->slot[v].parent != TP_NONE || is_left_out(p, v) || plan->inner[v] || plan->no_row[v]) continue;
        location->place = info->kind == TP_INPUT ? TP_PLACE_INPUT : info->kind == TP_TEMP ? TP_PLACE_ARENA : TP_PLACE_STORE;
        if (info->kind == TP_TEMP)
            add_item(p, location, p->slot[v].first, p->slot[v].last, location->n_bytes, tp_graph_node_at(p->graph, info->producer)->op->name);
    }
    for (int i = 0; i < plan->n_packed; i++) {
        struct tp_packed *packed = &plan->packed[i];
        const struct tp_type *type = tp_graph_type(p->graph, packed->value);
        packed->location = (struct tp_location){.place = packed->phase < 0 ? TP_PLACE_STORE : TP_PLACE_ARENA,
                                                .owner = packed->value,
                                                .n_bytes = tp_layout_bytes(type, packed->layout)};
        if (packed->phase >= 0) add_item(p, &packed->location, packed->first, packed->last, packed->location.n_bytes, tp_layout_name(packed->layout));
    }
    for (int32_t n = 0; n < n_nodes; n++) {
        for (int s = 0; s < TP_MAX_SCRATCH; s++) {
            const size_t index = (size_t)n * TP_MAX_SCRATCH + (size_t)s;
            if (!scratch_bytes[index]) continue;
            plan->scratch[index] = (struct tp_location){.place = TP_PLACE_ARENA, .n_bytes = scratch_bytes[index]};
            const int32_t position = tp_plan_position(plan, n);
            add_item(p, &plan->scratch[index], position, position, scratch_bytes[index], "scratch");
        }
    }
    return TALPA_OK;
}

/* ---- offsets: largest first, best gap among the items alive at the same time ---- */

static int by_size(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->n_bytes != y->n_bytes) return x->n_bytes < y->n_bytes ? 1 : -1;
    return x->first != y->first ? (x->first < y->first ? -1 : 1) : 0;
}

struct segment {
    size_t *order; /* indices of placed items, by offset */
    size_t n, n_bytes;
};

static bool fit(const struct placement *p, const struct segment *segment, const struct item *item, size_t needed, size_t limit, size_t *offset)
{
    size_t end = 0, best_gap = SIZE_MAX;
    for (size_t i = 0; i <= segment->n; i++) {
        size_t start = limit, next_end = end;
        if (i < segment->n) {
            const struct item *other = &p->items[segment->order[i]];
            if (other->last < item->first || other->first > item->last) continue;
            start = other->location->offset_bytes;
            next_end = start + (other->location->n_bytes + ALIGN - 1) / ALIGN * ALIGN + p->plan->options.guard_bytes;
        }
        if (start >= end + needed && start - end < best_gap) {
            best_gap = start - end;
            *offset = end;
        }
        if (next_end > end) end = next_end;
    }
    return best_gap != SIZE_MAX;
}

static void insert(struct placement *p, struct segment *segment, size_t index, size_t needed)
{
    const size_t offset = p->items[index].location->offset_bytes;
    size_t at = segment->n++;
    while (at > 0 && p->items[segment->order[at - 1]].location->offset_bytes > offset) {
        segment->order[at] = segment->order[at - 1];
        at--;
    }
    segment->order[at] = index;
    if (offset + needed > segment->n_bytes) segment->n_bytes = offset + needed;
}

static enum talpa_status assign(struct placement *p)
{
    struct tp_plan *plan = p->plan;
    const size_t guard = plan->options.guard_bytes, limit = plan->caps.max_alloc_bytes / ALIGN * ALIGN;
    struct segment *segments = NULL;
    enum talpa_status status = TALPA_OK;
    qsort(p->items, p->n_items, sizeof *p->items, by_size);
    for (size_t i = 0; i < p->n_items && status == TALPA_OK; i++) {
        const struct item *item = &p->items[i];
        const size_t needed = (item->n_bytes + ALIGN - 1) / ALIGN * ALIGN + guard;
        if (needed > limit) {
            status = tp_fail(TALPA_E_DEVICE, "a value of %s needs %zu bytes, but the device allows allocations of %zu: reduce --batch-size or --max-seq-length",
                             item->what, needed, limit);
            break;
        }
        int s = 0;
        size_t offset = 0;
        while (s < plan->n_segments && !fit(p, &segments[s], item, needed, limit, &offset)) s++;
        if (s == plan->n_segments) {
            struct segment *grown = realloc(segments, ((size_t)s + 1) * sizeof *segments);
            size_t *order = malloc((p->n_items + 1) * sizeof *order);
            if (grown) segments = grown;
            if (!grown || !order) {
                free(order);
                status = tp_fail_memory("plan", p->n_items * sizeof *order);
                break;
            }
            segments[s] = (struct segment){.order = order};
            plan->n_segments++;
            offset = 0;
        }
        item->location->segment = s;
        item->location->offset_bytes = offset;
        insert(p, &segments[s], i, needed);
    }
    plan->segment_bytes = calloc((size_t)plan->n_segments + 1, sizeof *plan->segment_bytes);
    if (!plan->segment_bytes && status == TALPA_OK) status = tp_fail_memory("plan", sizeof(size_t));
    for (int s = 0; s < plan->n_segments && segments; s++) {
        if (plan->segment_bytes) plan->segment_bytes[s] = segments[s].n_bytes;
        free(segments[s].order);
    }
    free(segments);
    return status;
}

/* Values that hang below a root take their place from it. */
static void resolve(struct placement *p)
{
    for (int32_t v = 0; v < tp_graph_n_values(p->graph); v++) {
        if (p->slot[v].parent == TP_NONE) continue;
        size_t offset;
        const struct tp_location *root = &p->plan->row[root_of(p, v, &offset)];
        struct tp_location *location = &p->plan->row[v];
        location->place = root->place;
        location->owner = root->owner;
        location->segment = root->segment;
        location->offset_bytes = root->offset_bytes + offset;
    }
}

static void drop_copies(struct tp_plan *plan)
{
    for (int phase = 0; phase < TP_N_PHASES; phase++) {
        struct tp_launch_list *list = &plan->phase[phase];
        int kept = 0;
        for (int i = 0; i < list->n; i++) {
            const struct tp_launch *launch = &list->item[i];
            if (launch->is_copy) {
                const struct tp_location *from = &plan->row[launch->args[0].value], *to = &plan->row[launch->args[1].value];
                if (from->place == TP_PLACE_ARENA && to->place == TP_PLACE_ARENA && from->segment == to->segment &&
                    from->offset_bytes == to->offset_bytes + launch->copy_offset)
                    continue;
            }
            if (kept != i) list->item[kept] = *launch;
            kept++;
        }
        list->n = kept;
    }
}

static void count_memory(struct tp_plan *plan)
{
    struct tp_plan_memory *m = &plan->memory;
    for (int32_t v = 0; v < tp_graph_n_values(plan->graph); v++) {
        const struct tp_value_info *info = tp_graph_value(plan->graph, v);
        if (info->producer >= 0) continue;
        const size_t n_bytes = tp_type_bytes(&info->type);
        if (info->kind == TP_WEIGHT && plan->row_needed[v]) m->weight_bytes += n_bytes;
        if (info->kind == TP_STATE) m->state_bytes += n_bytes;
        if (info->kind == TP_INPUT) m->input_bytes += n_bytes;
        if ((info->kind != TP_WEIGHT || plan->row_needed[v]) && n_bytes > m->largest_bytes) m->largest_bytes = n_bytes;
    }
    for (int i = 0; i < plan->n_packed; i++) {
        const struct tp_packed *packed = &plan->packed[i];
        if (packed->phase >= 0) continue;
        m->packed_bytes += packed->location.n_bytes;
        if (packed->location.n_bytes > m->largest_bytes) m->largest_bytes = packed->location.n_bytes;
        const size_t staged = tp_type_bytes(tp_graph_type(plan->graph, packed->value));
        if (!plan->row_needed[packed->value] && staged > m->staging_bytes) m->staging_bytes = staged;
    }
    for (int s = 0; s < plan->n_segments; s++) {
        m->arena_bytes += plan->segment_bytes[s];
        if (plan->segment_bytes[s] > m->largest_bytes) m->largest_bytes = plan->segment_bytes[s];
    }
    if (plan->caps.max_alloc_bytes && m->largest_bytes > plan->caps.max_alloc_bytes) m->largest_bytes = plan->caps.max_alloc_bytes; /* weights are split */
    m->total_bytes = m->weight_bytes + m->packed_bytes + m->state_bytes + m->input_bytes + m->arena_bytes;
}

static enum talpa_status check_leaves(const struct tp_plan *plan)
{
    for (int32_t v = 0; v < tp_graph_n_values(plan->graph); v++) {
        const struct tp_value_info *info = tp_graph_value(plan->graph, v);
        const size_t n_bytes = tp_type_bytes(&info->type);
        if (info->producer < 0 && info->kind != TP_WEIGHT && n_bytes > plan->caps.max_alloc_bytes)
            return tp_fail(TALPA_E_DEVICE, "'%s' needs %zu bytes, but the device allows allocations of %llu: %s", info->name, n_bytes,
                           (unsigned long long)plan->caps.max_alloc_bytes,
                           info->kind == TP_STATE ? "use fewer or smaller adapters" : "reduce --batch-size or --max-seq-length");
    }
    return TALPA_OK;
}

enum talpa_status tp_plan_place(struct tp_plan *plan, const size_t *scratch_bytes)
{
    const int32_t n_values = tp_graph_n_values(plan->graph);
    struct placement p = {.plan = plan, .graph = plan->graph, .slot = calloc((size_t)n_values + 1, sizeof *p.slot)};
    if (!p.slot) return tp_fail_memory("plan", (unsigned long long)n_values * sizeof *p.slot);
    for (int32_t v = 0; v < n_values; v++) p.slot[v] = (struct slot){.parent = TP_NONE, .own_last = -1, .first = 0, .last = 0};
    find_reads(&p);
    for (int phase = 0; phase < TP_N_PHASES; phase++)
        for (int32_t n = 0; n < tp_graph_n_nodes(plan->graph); n++)
            if (tp_graph_node_at(plan->graph, n)->phase == (enum tp_phase)phase) place_outputs(&p, n);
    enum talpa_status status = check_leaves(plan);
    if (status == TALPA_OK) status = collect(&p, scratch_bytes);
    if (status == TALPA_OK) status = assign(&p);
    if (status == TALPA_OK) {
        resolve(&p);
        drop_copies(plan);
        count_memory(plan);
    }
    free(p.slot);
    free(p.items);
    return status;
}
