/* talpa/graph.h: running graphs. */
#include <stdlib.h>
#include <string.h>

#include "api/graph_api.h"
#include "exec/executor.h"
#include "models/engine.h"
#include "runtime/device.h"

struct talpa_program {
    struct talpa_graph *graph;
    struct talpa_parameters *parameters;
    struct tp_device *device;
    struct tp_store *store;
    struct tp_plan *plan;
    struct tp_executor *executor;
    struct tp_step step, bound; /* bound: of the rows words, the smallest of the values that use them; 0: no value does */
};

void talpa_program_free(struct talpa_program *program)
{
    if (!program) return;
    tp_executor_free(program->executor);
    tp_plan_free(program->plan);
    tp_store_free(program->store);
    tp_device_close(program->device);
    free(program);
}

static const void *data_of(const struct talpa_weight *weights, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(weights[i].name, name)) return weights[i].data;
    return NULL;
}

static enum talpa_status bind_weights(struct talpa_program *p, const struct talpa_weight *weights, int n_weights)
{
    for (talpa_value v = 0; v < tp_graph_n_values(p->graph); v++) {
        const struct tp_value_info *info = tp_graph_value(p->graph, v);
        if (info->kind != TP_WEIGHT) continue;
        const struct tp_store_source source = {.type = info->type, .data = data_of(weights, n_weights, info->name)};
        if (!source.data) return tp_fail(TALPA_E_ARGUMENT, "program: no data is given for weight '%s'", info->name);
        TP_TRY(tp_store_bind(p->store, info->name, &source));
    }
    return TALPA_OK;
}

/* Rows default to their bound, so that a graph without run-time sizes needs no further call. */
static void default_step(struct talpa_program *p)
{
    for (talpa_value v = 0; v < tp_graph_n_values(p->graph); v++) {
        const struct tp_type *type = tp_graph_type(p->graph, v);
        const uint32_t rows = (uint32_t)type->shape.dim[0];
        if (type->rows && (!p->bound.word[type->rows] || rows < p->bound.word[type->rows])) p->bound.word[type->rows] = rows;
    }
    p->step = p->bound;
    tp_step_set_f32(&p->step, TP_STEP_ONE, 1.0f);
    tp_step_set_f32(&p->step, TP_STEP_LOSS_SCALE, 1.0f);
}

static enum talpa_status prepare(struct talpa_program *p, size_t device, const struct talpa_weight *weights, int n_weights,
                                 enum talpa_base_dtype base_dtype, enum talpa_compute_dtype compute_dtype, enum talpa_expert_dispatch dispatch)
{
    struct tp_plan_options options;
    TP_TRY(tp_graph_verify(p->graph));
    TP_TRY(tp_device_open(&p->device, device, false));
    TP_TRY(tp_store_create(&p->store, p->device));
    TP_TRY(bind_weights(p, weights, n_weights));
    TP_TRY(tp_engine_plan_options(&options, base_dtype, compute_dtype));
    options.dispatch = dispatch == TALPA_DISPATCH_SPARSE ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE;
    TP_TRY(tp_plan_create(&p->plan, p->graph, tp_device_caps(p->device), &options));
    TP_TRY(tp_executor_create(&p->executor, p->store, &p->plan, 1));
    default_step(p);
    const struct talpa_parameters *parameters = p->parameters;
    if (!parameters || parameters->tensors == TALPA_NONE) return TALPA_OK;
    return tp_executor_write(p->executor, parameters->tensors, parameters->table.rows,
                             (size_t)parameters->n * TP_TENSOR_COLUMNS * sizeof(int32_t));
}

enum talpa_status talpa_program_create(struct talpa_program **out, struct talpa_graph *graph, size_t device,
                                       const struct talpa_weight *weights, int n_weights, struct talpa_parameters *parameters,
                                       enum talpa_base_dtype base_dtype, enum talpa_compute_dtype compute_dtype, enum talpa_expert_dispatch dispatch)
{
    struct talpa_program *program = calloc(1, sizeof *program);
    if (!program) return tp_fail_memory("program", sizeof *program);
    program->graph = graph;
    program->parameters = parameters;
    const enum talpa_status status = prepare(program, device, weights, n_weights, base_dtype, compute_dtype, dispatch);
    if (status == TALPA_OK) *out = program;
    else talpa_program_free(program);
    return status;
}

static enum talpa_status check_bytes(const struct talpa_program *program, talpa_value value, size_t n_bytes)
{
    if (value < 0 || value >= tp_graph_n_values(program->graph)) return tp_fail(TALPA_E_ARGUMENT, "program: there is no value %d", value);
    const size_t most = tp_type_bytes(tp_graph_type(program->graph, value));
    return n_bytes <= most ? TALPA_OK : tp_fail(TALPA_E_ARGUMENT, "program: %zu bytes for value %d, which holds %zu", n_bytes, value, most);
}

enum talpa_status talpa_program_write(struct talpa_program *program, talpa_value value, const void *data, size_t n_bytes)
{
    TP_TRY(check_bytes(program, value, n_bytes));
    const enum tp_value_kind kind = tp_graph_value(program->graph, value)->kind;
    if (kind != TP_INPUT && kind != TP_STATE) return tp_fail(TALPA_E_ARGUMENT, "program: value %d is no input", value);
    return tp_executor_write(program->executor, value, data, n_bytes);
}

enum talpa_status talpa_program_read(struct talpa_program *program, talpa_value value, void *data, size_t n_bytes)
{
    TP_TRY(check_bytes(program, value, n_bytes));
    const struct tp_value_info *info = tp_graph_value(program->graph, value);
    if (info->kind == TP_WEIGHT || (info->kind == TP_TEMP && !info->is_output))
        return tp_fail(TALPA_E_ARGUMENT, "program: value %d is not marked as an output (talpa_graph_output)", value);
    return tp_executor_read(program->executor, value, data, n_bytes);
}

static enum talpa_status need_parameters(const struct talpa_program *program)
{
    return program->parameters ? TALPA_OK : tp_fail(TALPA_E_ARGUMENT, "program: it was created without parameters");
}

enum talpa_status talpa_program_write_parameters(struct talpa_program *program, const float *bank)
{
    TP_TRY(need_parameters(program));
    return tp_executor_write(program->executor, program->parameters->bank, bank,
                             (size_t)program->parameters->table.bank_elements * sizeof *bank);
}

enum talpa_status talpa_program_read_parameters(struct talpa_program *program, float *bank)
{
    TP_TRY(need_parameters(program));
    return tp_executor_read(program->executor, program->parameters->bank, bank,
                            (size_t)program->parameters->table.bank_elements * sizeof *bank);
}

void talpa_program_rows(struct talpa_program *program, enum talpa_rows rows, uint32_t n)
{
    const enum tp_step_word word = tp_api_row_word(rows);
    if (word != TP_STEP_NONE) program->step.word[word] = n;
}

void talpa_program_scalar(struct talpa_program *program, enum talpa_scalar scalar, float value)
{
    static const enum tp_step_word words[] = {[TALPA_SCALAR_LEARNING_RATE] = TP_STEP_LEARNING_RATE,
                                              [TALPA_SCALAR_WEIGHT_DECAY] = TP_STEP_WEIGHT_DECAY,
                                              [TALPA_SCALAR_MAX_NORM] = TP_STEP_MAX_NORM,
                                              [TALPA_SCALAR_LOSS_SCALE] = TP_STEP_LOSS_SCALE};
    if ((size_t)scalar < sizeof words / sizeof *words) tp_step_set_f32(&program->step, words[scalar], value);
}

enum talpa_status talpa_program_run(struct talpa_program *program, uint32_t micro)
{
    static const enum tp_step_word rows[] = {TP_STEP_N_TOKENS, TP_STEP_N_LABELLED};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const uint32_t found = program->step.word[rows[i]], bound = program->bound.word[rows[i]];
        if (bound && found > bound)
            return tp_fail(TALPA_E_ARGUMENT, "program: %u rows, expected up to %u as the graph declares", found, bound);
    }
    program->step.word[TP_STEP_MICRO] = micro;
    TP_TRY(tp_executor_step(program->executor, &program->step));
    return tp_executor_run(program->executor, 0, TP_PHASE_BATCH);
}

enum talpa_status talpa_program_update(struct talpa_program *program)
{
    TP_TRY(need_parameters(program));
    TP_TRY(tp_executor_run(program->executor, 0, TP_PHASE_UPDATE));
    program->step.word[TP_STEP_INDEX]++;
    return tp_executor_finish(program->executor);
}
