#include "executor_impl.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/blas.h"
#include "runtime/profile.h"

static const struct talpa_graph *graph_of(const struct tp_executor *executor) { return executor->plans[0]->graph; }

/* ---- resolving arguments to buffers ---- */

static enum talpa_status root_buffer(struct tp_executor *executor, const struct tp_location *location, enum tp_layout layout, int part,
                                     struct tp_buffer **out)
{
    const struct talpa_graph *graph = graph_of(executor);
    switch (location->place) {
    case TP_PLACE_ARENA:
        *out = executor->segments[location->segment];
        return TALPA_OK;
    case TP_PLACE_INPUT:
        *out = executor->inputs[location->owner];
        return TALPA_OK;
    case TP_PLACE_STORE: {
        const struct tp_value_info *info = tp_graph_value(graph, location->owner);
        if (info->kind == TP_STATE) return tp_store_state(out, executor->store, info->name, tp_type_bytes(&info->type), executor->plans[0]->options.guard_bytes);
        int n_parts = 0;
        struct tp_buffer **parts = tp_store_weight(executor->store, info->name, layout, &n_parts);
        if (!parts || part >= n_parts) return tp_fail(TALPA_E_INTERNAL, "weight '%s' is not there in layout %s", info->name, tp_layout_name(layout));
        *out = parts[part];
        return TALPA_OK;
    }
    default:
        return tp_fail(TALPA_E_INTERNAL, "a launch uses a value that has no place");
    }
}

static enum talpa_status window(struct tp_executor *executor, struct tp_buffer *root, size_t offset, size_t n_bytes, struct tp_buffer **out)
{
    if (offset == 0 && n_bytes == tp_buffer_bytes(root)) {
        *out = root;
        return TALPA_OK;
    }
    if (executor->n_views == executor->view_room) {
        const size_t room = executor->view_room ? executor->view_room * 2 : 256;
        struct tp_buffer **grown = realloc(executor->views, room * sizeof *grown);
        if (!grown) return tp_fail_memory("executor", room * sizeof *grown);
        executor->views = grown;
        executor->view_room = room;
    }
    TP_TRY(tp_buffer_view(out, root, offset, n_bytes));
    executor->views[executor->n_views++] = *out;
    return TALPA_OK;
}

static enum talpa_status argument_buffer(struct tp_executor *executor, const struct tp_plan *plan, const struct tp_launch *launch,
                                         const struct tp_arg *arg, int phase, struct tp_buffer **out)
{
    const struct tp_location *location = tp_plan_location(plan, arg, phase, launch->node);
    if (!location) return tp_fail(TALPA_E_INTERNAL, "kernel %s: an argument has no location", launch->kernel);
    struct tp_buffer *root;
    TP_TRY(root_buffer(executor, location, arg->kind == TP_ARG_VALUE ? arg->layout : TP_LAYOUT_ROW, arg->part, &root));
    const bool is_weight = location->place == TP_PLACE_STORE && tp_graph_value(plan->graph, location->owner)->kind == TP_WEIGHT;
    if (is_weight && location->offset_bytes == 0) {
        *out = root;
        return TALPA_OK;
    }
    return window(executor, root, location->offset_bytes, location->n_bytes, out);
}

/* ---- preparing ---- */

/* Longest launch in milliseconds, 0 for no bound: TALPA_MAX_KERNEL_MS, else 100 on GPUs (a desktop stays usable; drivers reset at seconds). */
static enum talpa_status launch_limit_ms(double *out, const struct talpa_device_caps *caps)
{
    const char *text = getenv("TALPA_MAX_KERNEL_MS");
    double limit = caps->type == TALPA_DEVICE_GPU ? 100.0 : 0.0;
    if (text && text[0]) {
        char *end;
        limit = strtod(text, &end);
        if (end == text || *end || !(limit >= 0.0))
            return tp_fail(TALPA_E_ARGUMENT, "TALPA_MAX_KERNEL_MS=%s: expected milliseconds, 0 for no bound", text);
    }
    *out = limit;
    return TALPA_OK;
}

/* Groups per piece so that a piece stays below the limit on a device that reaches a cautious 4 FLOP per clock and compute unit. */
size_t tp_executor_piece_groups(const struct tp_executor *executor, const struct tp_plan *plan, const struct tp_launch *launch)
{
    const double limit = executor->launch_limit_ms;
    const size_t groups = launch->global[0] / launch->local[0];
    const double flops_per_ms = 4e3 * (plan->caps.clock_mhz ? plan->caps.clock_mhz : 1000.0) * (plan->caps.compute_units ? plan->caps.compute_units : 1);
    const double expected_ms = launch->flops / flops_per_ms;
    if (limit <= 0.0 || expected_ms <= limit) return groups;
    const size_t share = (size_t)((double)groups * limit / expected_ms);
    return share ? share : 1;
}

static enum talpa_status prepare_launch(struct tp_executor *executor, const struct tp_plan *plan, int phase, const struct tp_launch *launch,
                                        struct tp_prepared *out)
{
    out->launch = launch;
    out->what = tp_plan_node_name(plan, launch->node);
    for (int a = 0; a < launch->n_args; a++) {
        const struct tp_arg *arg = &launch->args[a];
        struct tp_buffer *buffer = NULL;
        switch (arg->kind) {
        case TP_ARG_VALUE:
        case TP_ARG_SCRATCH:
            TP_TRY(argument_buffer(executor, plan, launch, arg, phase, &buffer));
            out->args[a] = tp_kernel_arg_buffer(buffer);
            break;
        case TP_ARG_STEP:
            out->args[a] = tp_kernel_arg_buffer(executor->step);
            break;
        case TP_ARG_LOCAL:
            out->args[a] = tp_kernel_arg_local(arg->n_bytes);
            break;
        case TP_ARG_BYTES:
            out->args[a] = (struct tp_kernel_arg){.type = TP_KERNEL_ARG_BYTES, .n_bytes = arg->n_bytes};
            memcpy(out->args[a].value.bytes, arg->bytes, arg->n_bytes);
            break;
        }
    }
    if (launch->is_copy || launch->is_blas) return TALPA_OK;
    out->piece_groups = tp_executor_piece_groups(executor, plan, launch);
    return tp_program_kernel(&out->kernel, executor->device, launch->source, launch->kernel, launch->options);
}

static enum talpa_status prepare_plan(struct tp_executor *executor, int index)
{
    const struct tp_plan *plan = executor->plans[index];
    for (int phase = 0; phase < TP_N_PHASES; phase++) {
        const struct tp_launch_list *list = &plan->phase[phase];
        executor->prepared[index][phase] = calloc((size_t)list->n + 1, sizeof(struct tp_prepared));
        if (!executor->prepared[index][phase]) return tp_fail_memory("executor", (unsigned long long)list->n * sizeof(struct tp_prepared));
        for (int i = 0; i < list->n; i++)
            TP_TRY(tp_context(prepare_launch(executor, plan, phase, &list->item[i], &executor->prepared[index][phase][i]), "%s at %s",
                              tp_plan_node_name(plan, list->item[i].node), list->item[i].scope));
    }
    return TALPA_OK;
}

static enum talpa_status enqueue_kernel(struct tp_executor *executor, const struct tp_prepared *p)
{
    const struct tp_launch *launch = p->launch;
    const size_t groups = launch->global[0] / launch->local[0];
    for (size_t first = 0; first < groups; first += p->piece_groups) {
        const size_t n = groups - first < p->piece_groups ? groups - first : p->piece_groups;
        const size_t offset[3] = {first * launch->local[0], 0, 0};
        const size_t global[3] = {n * launch->local[0], launch->global[1], launch->global[2]};
        if (tp_queue_is_recording(executor->device)) tp_executor_describe(executor, launch, (double)n / (double)groups);
        TP_TRY(tp_queue_launch_piece(executor->device, p->kernel, p->args, (size_t)launch->n_args, p->piece_groups < groups ? offset : NULL, global,
                                     launch->local, launch->scope));
        if (p->piece_groups < groups) TP_TRY(tp_queue_flush(executor->device));
        executor->n_launches++;
    }
    return TALPA_OK;
}

/* An empty sum is zero; the library takes no k of 0. */
static enum talpa_status clear_rows(const struct tp_launch *launch, struct tp_buffer *out, int64_t m)
{
    for (int64_t i = 0; i < m; i++)
        TP_TRY(tp_buffer_fill(out, (size_t)(launch->blas.offset_c + i * launch->blas.ldc) * sizeof(float), (size_t)launch->blas.n * sizeof(float), 0));
    return TALPA_OK;
}

static enum talpa_status enqueue_blas(struct tp_executor *executor, const struct tp_prepared *p)
{
    const struct tp_launch *launch = p->launch;
    int64_t m = launch->blas.m, k = launch->blas.k;
    const uint32_t *word = executor->step_words.word;
    if (launch->blas.m_rows != TP_STEP_NONE && word[launch->blas.m_rows] < m) m = word[launch->blas.m_rows];
    if (launch->blas.k_rows != TP_STEP_NONE && word[launch->blas.k_rows] < k) k = word[launch->blas.k_rows];
    if (!m || !launch->blas.n || (!k && launch->blas.accumulate)) return TALPA_OK;
    if (!k) return clear_rows(launch, p->args[2].value.buffer, m);
    struct tp_blas_matrix a = {.buffer = p->args[0].value.buffer, .ld = (size_t)launch->blas.lda, .offset = (size_t)launch->blas.offset_a};
    struct tp_blas_matrix b = {.buffer = p->args[1].value.buffer, .ld = (size_t)launch->blas.ldb, .offset = (size_t)launch->blas.offset_b};
    struct tp_blas_matrix c = {.buffer = p->args[2].value.buffer, .ld = (size_t)launch->blas.ldc, .offset = (size_t)launch->blas.offset_c};
    executor->n_launches++;
    if (tp_queue_is_recording(executor->device)) tp_executor_describe(executor, launch, 1.0);
    return tp_blas_gemm(executor->device, (size_t)m, (size_t)launch->blas.n, (size_t)k, launch->blas.transpose_a, launch->blas.transpose_b, 1.0f, a, b,
                        launch->blas.accumulate ? 1.0f : 0.0f, c, launch->scope);
}

static enum talpa_status enqueue_launch(struct tp_executor *executor, const struct tp_prepared *p)
{
    if (p->launch->is_blas) return enqueue_blas(executor, p);
    if (!p->launch->is_copy) return enqueue_kernel(executor, p);
    executor->n_launches++;
    return tp_buffer_copy(p->args[1].value.buffer, p->launch->copy_offset, p->args[0].value.buffer, 0, p->launch->copy_bytes);
}

enum talpa_status tp_executor_enqueue(struct tp_executor *executor, const struct tp_prepared *p)
{
    return tp_context(enqueue_launch(executor, p), "%s at %s", p->what, p->launch->scope);
}

/* ---- life ---- */

static enum talpa_status allocate(struct tp_executor *executor)
{
    const struct talpa_graph *graph = graph_of(executor);
    const size_t guard = executor->plans[0]->options.guard_bytes;
    for (int i = 0; i < executor->n_plans; i++)
        if (executor->plans[i]->n_segments > executor->n_segments) executor->n_segments = executor->plans[i]->n_segments;
    executor->segments = calloc((size_t)executor->n_segments + 1, sizeof *executor->segments);
    executor->segment_bytes = calloc((size_t)executor->n_segments + 1, sizeof *executor->segment_bytes);
    executor->inputs = calloc((size_t)tp_graph_n_values(graph) + 1, sizeof *executor->inputs);
    if (!executor->segments || !executor->segment_bytes || !executor->inputs) return tp_fail_memory("executor", sizeof(void *));
    for (int i = 0; i < executor->n_plans; i++)
        for (int s = 0; s < executor->plans[i]->n_segments; s++)
            if (executor->plans[i]->segment_bytes[s] > executor->segment_bytes[s]) executor->segment_bytes[s] = executor->plans[i]->segment_bytes[s];
    for (int s = 0; s < executor->n_segments; s++)
        TP_TRY(tp_context(tp_buffer_create(&executor->segments[s], executor->device, executor->segment_bytes[s]), "activations"));
    for (int32_t v = 0; v < tp_graph_n_values(graph); v++) {
        const struct tp_value_info *info = tp_graph_value(graph, v);
        if (info->kind != TP_INPUT) continue;
        const size_t n_bytes = tp_type_bytes(&info->type);
        TP_TRY(tp_context(tp_buffer_create(&executor->inputs[v], executor->device, n_bytes + guard), "input '%s'", info->name));
        TP_TRY(tp_buffer_fill(executor->inputs[v], 0, n_bytes, 0));
        if (guard) TP_TRY(tp_buffer_fill(executor->inputs[v], n_bytes, guard, 0xff));
    }
    TP_TRY(tp_buffer_create(&executor->step, executor->device, sizeof(struct tp_step)));
    const struct tp_step zero = {{0}};
    return tp_executor_step(executor, &zero);
}

static enum talpa_status prepare(struct tp_executor *executor)
{
    TP_PROFILE_SPAN("prepare a plan");
    TP_TRY(allocate(executor));
    for (int i = 0; i < executor->n_plans; i++) TP_TRY(tp_executor_load_weights(executor, executor->plans[i]));
    TP_TRY(tp_queue_flush(executor->device));
    /* Programs are built while the device packs. */
    for (int i = 0; i < executor->n_plans; i++) TP_TRY(prepare_plan(executor, i));
    return tp_executor_release_staged(executor);
}

enum talpa_status tp_executor_create(struct tp_executor **out, struct tp_store *store, struct tp_plan *const *plans, int n_plans)
{
    if (n_plans < 1 || n_plans > TP_MAX_PLANS) return tp_fail(TALPA_E_INTERNAL, "executor: %d plans, expected 1 to %d", n_plans, TP_MAX_PLANS);
    struct tp_executor *executor = calloc(1, sizeof *executor);
    if (!executor) return tp_fail_memory("executor", sizeof *executor);
    executor->store = store;
    executor->device = tp_store_device(store);
    executor->n_plans = n_plans;
    for (int i = 0; i < n_plans; i++) executor->plans[i] = plans[i];
    enum talpa_status status = launch_limit_ms(&executor->launch_limit_ms, tp_device_caps(executor->device));
    if (status == TALPA_OK) status = prepare(executor);
    if (status == TALPA_OK) *out = executor;
    else tp_executor_free(executor);
    return status;
}

void tp_executor_free(struct tp_executor *executor)
{
    if (!executor) return;
    tp_executor_release_staged(executor);
    for (size_t i = 0; i < executor->n_views; i++) tp_buffer_free(executor->views[i]);
    for (int s = 0; s < executor->n_segments && executor->segments; s++) tp_buffer_free(executor->segments[s]);
    for (int32_t v = 0; v < tp_graph_n_values(graph_of(executor)) && executor->inputs; v++) tp_buffer_free(executor->inputs[v]);
    tp_buffer_free(executor->step);
    for (int i = 0; i < TP_MAX_PLANS; i++)
        for (int p = 0; p < TP_N_PHASES; p++) free(executor->prepared[i][p]);
    free(executor->views);
    free(executor->staged);
    free(executor->segments);
    free(executor->segment_bytes);
    free(executor->inputs);
    free(executor);
}

/* ---- running ---- */

static enum talpa_status host_window(struct tp_executor *executor, talpa_value value, size_t n_bytes, struct tp_buffer **root, size_t *offset)
{
    const struct tp_location *location = &executor->plans[0]->row[value];
    if (n_bytes > location->n_bytes) return tp_fail(TALPA_E_INTERNAL, "a value of %zu bytes is accessed with %zu", location->n_bytes, n_bytes);
    *offset = location->offset_bytes;
    return root_buffer(executor, location, TP_LAYOUT_ROW, 0, root);
}

enum talpa_status tp_executor_write(struct tp_executor *executor, talpa_value value, const void *data, size_t n_bytes)
{
    struct tp_buffer *root = NULL;
    size_t offset = 0;
    TP_TRY(host_window(executor, value, n_bytes, &root, &offset));
    return tp_buffer_write(root, offset, data, n_bytes, true);
}

enum talpa_status tp_executor_read(struct tp_executor *executor, talpa_value value, void *data, size_t n_bytes)
{
    struct tp_buffer *root = NULL;
    size_t offset = 0;
    TP_TRY(host_window(executor, value, n_bytes, &root, &offset));
    return tp_buffer_read(data, root, offset, n_bytes, true);
}

enum talpa_status tp_executor_step(struct tp_executor *executor, const struct tp_step *step)
{
    executor->step_words = *step;
    tp_step_set_f32(&executor->step_words, TP_STEP_ONE, 1.0f);
    return tp_buffer_write(executor->step, 0, &executor->step_words, sizeof executor->step_words, true);
}

enum talpa_status tp_executor_run(struct tp_executor *executor, int plan, enum tp_phase phase)
{
    executor->n_launches = 0;
    const struct tp_launch_list *list = &executor->plans[plan]->phase[phase];
    for (int i = 0; i < list->n; i++)
        TP_TRY(tp_executor_enqueue(executor, &executor->prepared[plan][phase][i]));
    return tp_queue_flush(executor->device);
}

enum talpa_status tp_executor_finish(struct tp_executor *executor) { return tp_queue_finish(executor->device); }
int tp_executor_n_launches(const struct tp_executor *executor) { return executor->n_launches; }

/* ---- guards ---- */

enum talpa_status tp_executor_poison(struct tp_executor *executor)
{
    for (int s = 0; s < executor->n_segments; s++) TP_TRY(tp_buffer_fill(executor->segments[s], 0, executor->segment_bytes[s], 0xff));
    return TALPA_OK;
}

static void clear_location(const struct tp_location *location, int segment, uint8_t *bytes)
{
    if (location->place == TP_PLACE_ARENA && location->segment == segment && location->n_bytes)
        memset(bytes + location->offset_bytes, 0xff, location->n_bytes);
}

static enum talpa_status check_tail(struct tp_buffer *buffer, size_t used, const char *name)
{
    uint8_t tail[4096];
    size_t n = tp_buffer_bytes(buffer) - used;
    if (n > sizeof tail) n = sizeof tail;
    TP_TRY(tp_buffer_read(tail, buffer, used, n, true));
    for (size_t i = 0; i < n; i++)
        if (tail[i] != 0xff) return tp_fail(TALPA_E_CHECK, "guard of '%s' overwritten %zu bytes past its end", name, i);
    return TALPA_OK;
}

enum talpa_status tp_executor_check_guards(struct tp_executor *executor)
{
    const struct tp_plan *plan = executor->plans[0];
    const int32_t n_values = tp_graph_n_values(plan->graph), n_nodes = tp_graph_n_nodes(plan->graph);
    enum talpa_status status = TALPA_OK;
    for (int s = 0; s < executor->n_segments && status == TALPA_OK; s++) {
        uint8_t *bytes = malloc(executor->segment_bytes[s]);
        if (!bytes) return tp_fail_memory("guards", executor->segment_bytes[s]);
        status = tp_buffer_read(bytes, executor->segments[s], 0, executor->segment_bytes[s], true);
        for (int32_t v = 0; v < n_values; v++) clear_location(&plan->row[v], s, bytes);
        for (int i = 0; i < plan->n_packed; i++) clear_location(&plan->packed[i].location, s, bytes);
        for (int32_t i = 0; i < n_nodes * TP_MAX_SCRATCH; i++) clear_location(&plan->scratch[i], s, bytes);
        for (size_t i = 0; i < executor->segment_bytes[s] && status == TALPA_OK; i++)
            if (bytes[i] != 0xff) status = tp_fail(TALPA_E_CHECK, "guard overwritten: segment %d, byte %zu", s, i);
        free(bytes);
    }
    for (int32_t v = 0; v < n_values && status == TALPA_OK && plan->options.guard_bytes; v++) {
        const struct tp_value_info *info = tp_graph_value(plan->graph, v);
        struct tp_buffer *buffer = executor->inputs[v];
        if (info->kind == TP_STATE && info->version == 0) status = root_buffer(executor, &plan->row[v], TP_LAYOUT_ROW, 0, &buffer);
        if (status == TALPA_OK && buffer) status = check_tail(buffer, tp_type_bytes(&info->type), info->name);
    }
    return status;
}
