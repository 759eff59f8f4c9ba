#include "conformance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "conformance_impl.h"
#include "exec/tier.h"

void tp_check_emit(struct tp_check_run *run, const struct tp_trial *trial, const char *what, double max_error, double tolerance,
                   enum talpa_status status)
{
    run->totals.n_checks++;
    if (status != TALPA_OK) run->totals.n_failed++;
    const struct tp_conformance_result result = {.op = trial->op->name,
                                                 .case_name = trial->test->name,
                                                 .tier = run->tier,
                                                 .what = what,
                                                 .max_error = max_error,
                                                 .tolerance = tolerance,
                                                 .status = status,
                                                 .message = status == TALPA_OK ? "" : talpa_error_message()};
    if (run->report) run->report(&result, run->user);
}

/* ---- a graph on the device ---- */

static enum talpa_status note_variants(struct tp_check_run *run, const struct tp_plan *plan)
{
    for (int32_t n = 0; n < tp_graph_n_nodes(plan->graph); n++) {
        const struct tp_variant *variant = plan->variant[n];
        bool seen = !variant;
        for (int i = 0; i < run->n_variants && !seen; i++) seen = run->variants[i] == variant;
        if (seen) continue;
        if (run->n_variants == run->variant_room) {
            const int room = run->variant_room ? run->variant_room * 2 : 64;
            const struct tp_variant **grown = realloc(run->variants, (size_t)room * sizeof *grown);
            if (!grown) return tp_fail_memory("conformance check", (size_t)room * sizeof *grown);
            run->variants = grown;
            run->variant_room = room;
        }
        run->variants[run->n_variants++] = variant;
    }
    return TALPA_OK;
}

static enum talpa_status make_plan(struct tp_check_run *run, struct tp_bench *bench)
{
    struct tp_plan_options options = {.dispatch = bench->trial->test->sparse ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE,
                                      .base_dtype = run->base_dtype,
                                      .guard_bytes = TP_CONFORMANCE_GUARD_BYTES};
    snprintf(options.tier, sizeof options.tier, "%s", run->tier);
    TP_TRY(tp_graph_verify(bench->graph));
    TP_TRY(tp_tier_find(&options, run->device));
    return tp_plan_create(&bench->plan, bench->graph, tp_device_caps(run->device), &options);
}

enum talpa_status tp_bench_prepare(struct tp_check_run *run, struct tp_bench *bench)
{
    const struct tp_trial *trial = bench->trial;
    TP_TRY(make_plan(run, bench));
    TP_TRY(tp_store_create(&bench->store, run->device));
    for (int i = 0; i < trial->test->n_in; i++) {
        if (bench->in[i] == TP_NONE || trial->test->in[i].kind != TP_WEIGHT) continue;
        const struct tp_store_source source = {.type = trial->type[i], .data = trial->bytes[i]};
        TP_TRY(tp_store_bind(bench->store, tp_graph_value(bench->graph, bench->in[i])->name, &source));
    }
    TP_TRY(tp_executor_create(&bench->executor, bench->store, &bench->plan, 1));
    return note_variants(run, bench->plan);
}

void tp_bench_free(struct tp_bench *bench)
{
    tp_executor_free(bench->executor);
    tp_store_free(bench->store);
    tp_plan_free(bench->plan);
    tp_graph_free(bench->graph);
}

enum talpa_status tp_bench_run(struct tp_bench *bench)
{
    const struct tp_trial *trial = bench->trial;
    for (int i = 0; i < trial->test->n_in; i++)
        if (bench->in[i] != TP_NONE && trial->test->in[i].kind != TP_WEIGHT)
            TP_TRY(tp_executor_write(bench->executor, bench->in[i], trial->bytes[i], tp_type_bytes(&trial->type[i])));
    for (int o = 0; o < TP_MAX_OUT; o++)
        if (bench->seed_bytes[o])
            TP_TRY(tp_executor_write(bench->executor, bench->seed[o], bench->seed_bytes[o], tp_type_bytes(&trial->out_type[o])));
    TP_TRY(tp_executor_step(bench->executor, &trial->step));
    TP_TRY(tp_executor_poison(bench->executor));
    TP_TRY(tp_executor_run(bench->executor, 0, TP_PHASE_BATCH));
    return tp_executor_finish(bench->executor);
}

enum talpa_status tp_bench_read(struct tp_bench *bench, struct tp_arena *arena, talpa_value value, void **out)
{
    const size_t n_bytes = tp_type_bytes(tp_graph_type(bench->graph, value));
    void *bytes = tp_arena_alloc(arena, n_bytes);
    if (!bytes) return TALPA_E_DEVICE;
    TP_TRY(tp_executor_read(bench->executor, value, bytes, n_bytes));
    *out = bytes;
    return TALPA_OK;
}

enum talpa_status tp_bench_check_rows(struct tp_bench *bench, talpa_value value, const void *bytes, const char *name)
{
    const struct tp_type *type = tp_graph_type(bench->graph, value), run_type = tp_trial_run_type(bench->trial, type);
    if (bench->plan->row[value].place != TP_PLACE_ARENA) return TALPA_OK;
    const uint8_t *byte = bytes;
    const size_t row_bytes = tp_layout_unit_bytes(type, TP_LAYOUT_ROW);
    for (size_t i = (size_t)run_type.shape.dim[0] * row_bytes; i < tp_type_bytes(type); i++)
        if (byte[i] != 0xff)
            return tp_fail(TALPA_E_CHECK, "%s: row %zu is written, only %lld of %lld are in use", name, i / row_bytes,
                           (long long)run_type.shape.dim[0], (long long)type->shape.dim[0]);
    return TALPA_OK;
}

/* ---- forward ---- */

static double element(const void *bytes, enum talpa_dtype dtype, int64_t i)
{
    if (dtype == TALPA_I32) return ((const int32_t *)bytes)[i];
    if (dtype == TALPA_F16) return (double)tp_f16_to_f32(((const uint16_t *)bytes)[i]);
    if (dtype == TALPA_BF16) return (double)tp_bf16_to_f32(((const uint16_t *)bytes)[i]);
    return (double)((const float *)bytes)[i];
}

/* Compares the run-time rows of output o; raises *max_error. */
static enum talpa_status compare(const struct tp_trial *trial, int o, const void *bytes, const double *want, double tolerance,
                                 double *max_error)
{
    const struct tp_type *type = &trial->out_run_type[o];
    const int64_t n = tp_type_elements(type), inner = n ? n / type->shape.dim[0] : 1;
    enum talpa_status status = TALPA_OK;
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double got = element(bytes, type->dtype, i);
        double error = fabs(got - want[i]) / (1 + fabs(want[i]));
        if (!isfinite(error)) error = INFINITY;
        const bool failed = type->dtype == TALPA_I32 ? got != want[i] : !(error <= tolerance);
        if (failed && error > worst)
            status = tp_fail(TALPA_E_CHECK, "output %d [%lld, %lld]: got %.9g, expected %.9g", o, (long long)(i / inner),
                             (long long)(i % inner), got, want[i]);
        if (error > worst) worst = error;
    }
    if (worst > *max_error) *max_error = worst;
    return status;
}

double tp_trial_tolerance(const struct tp_trial *trial, double tolerance)
{
    return trial->is_bf16 && trial->op->rounds_inside && tolerance < 0x1p-8 ? 0x1p-8 : tolerance;
}

static void check_values(struct tp_check_run *run, struct tp_trial *trial, struct tp_bench *bench, void *const *first, double *const *want)
{
    const double tolerance = tp_trial_tolerance(trial, trial->test->tolerance > 0 ? trial->test->tolerance : 1e-5);
    enum talpa_status status = TALPA_OK;
    double max_error = 0;
    for (int o = 0; o < trial->n_out && status == TALPA_OK; o++)
        if (!trial->op->opaque[o]) status = compare(trial, o, first[o], want[o], tolerance, &max_error);
    tp_check_emit(run, trial, "forward", max_error, tolerance, status);
    status = TALPA_OK;
    for (int o = 0; o < trial->n_out && status == TALPA_OK; o++) {
        char name[32];
        snprintf(name, sizeof name, "output %d", o);
        if (!trial->op->opaque[o]) status = tp_bench_check_rows(bench, bench->out[o], first[o], name);
    }
    tp_check_emit(run, trial, "rows", 0, 0, status);
}

static enum talpa_status repeat(struct tp_trial *trial, struct tp_bench *bench, void *const *first)
{
    TP_TRY(tp_bench_run(bench));
    for (int o = 0; o < trial->n_out; o++) {
        void *second;
        if (trial->op->opaque[o]) continue;
        TP_TRY(tp_bench_read(bench, &trial->arena, bench->out[o], &second));
        if (memcmp(first[o], second, tp_type_bytes(&trial->out_type[o])) != 0)
            return tp_fail(TALPA_E_CHECK, "output %d has other bits when run again", o);
    }
    return TALPA_OK;
}

static enum talpa_status prepare_forward(struct tp_check_run *run, struct tp_trial *trial, struct tp_bench *bench)
{
    TP_TRY(tp_graph_create(&bench->graph));
    TP_TRY(tp_trial_graph(trial, bench->graph, bench->in, bench->out));
    for (int o = 0; o < trial->n_out; o++) tp_graph_mark_output(bench->graph, bench->out[o]);
    TP_TRY(tp_bench_prepare(run, bench));
    return tp_bench_run(bench);
}

static enum talpa_status forward(struct tp_check_run *run, struct tp_trial *trial)
{
    struct tp_bench bench = {.trial = trial};
    void *first[TP_MAX_OUT];
    double *want[TP_MAX_OUT];
    enum talpa_status status = prepare_forward(run, trial, &bench);
    for (int o = 0; o < trial->n_out && status == TALPA_OK; o++) status = tp_bench_read(&bench, &trial->arena, bench.out[o], &first[o]);
    if (status == TALPA_OK) status = tp_trial_outputs(trial, want);
    if (status != TALPA_OK) {
        tp_check_emit(run, trial, "prepare", 0, 0, status);
    } else {
        tp_trial_reference(trial, want);
        check_values(run, trial, &bench, first, want);
        tp_check_emit(run, trial, "guard", 0, 0, tp_executor_check_guards(bench.executor));
        tp_check_emit(run, trial, "repeat", 0, 0, repeat(trial, &bench, first));
    }
    tp_bench_free(&bench);
    return status;
}

/* ---- all cases ---- */

/* Whether the case's product runs on the matrix tier that is checked, and not, because of its shape, on another. */
static enum talpa_status runs_in_bf16(bool *out, struct tp_check_run *run, struct tp_trial *trial)
{
    struct tp_bench bench = {.trial = trial};
    *out = false;
    enum talpa_status status = tp_graph_create(&bench.graph);
    if (status == TALPA_OK) status = tp_trial_graph(trial, bench.graph, bench.in, bench.out);
    if (status == TALPA_OK) status = make_plan(run, &bench);
    for (int32_t n = 0; status == TALPA_OK && n < tp_graph_n_nodes(bench.graph); n++)
        if (bench.plan->variant[n] && !strcmp(bench.plan->variant[n]->tier, run->tier)) *out = true;
    tp_bench_free(&bench);
    return status;
}

static enum talpa_status run_case(struct tp_check_run *run, const struct tp_op *op, const struct tp_case *test)
{
    struct tp_trial trial;
    enum talpa_status status = tp_trial_create(&trial, op, test, false);
    if (status == TALPA_OK && tp_tier_rounds(run->tier)) {
        bool is_bf16;
        status = runs_in_bf16(&is_bf16, run, &trial);
        if (status == TALPA_OK && is_bf16) {
            tp_trial_free(&trial);
            status = tp_trial_create(&trial, op, test, true);
        } else if (status == TALPA_OK && run->base_dtype == TP_BASE_BF16) {
            tp_trial_free(&trial);
            return TALPA_OK; /* nothing of it is the tier's, and the other tier's weights would be rounded */
        }
    }
    bool wants_gradient = false;
    for (int i = 0; i < test->n_in; i++) wants_gradient = wants_gradient || test->in[i].grad;
    if (status == TALPA_OK && forward(run, &trial) == TALPA_OK && wants_gradient) status = tp_conformance_gradient(run, &trial);
    tp_trial_free(&trial);
    return status;
}

bool tp_conformance_has_tier(struct tp_device *device, const char *tier)
{
    struct tp_plan_options options = {.compute_dtype = TP_COMPUTE_F32};
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    return tp_tier_find(&options, device) == TALPA_OK && tp_tier_allowed(tp_device_caps(device), &options, tier);
}

static bool has_tier(const struct tp_op *op, const char *tier)
{
    if (!tier[0] || !strcmp(tier, "generic")) return true;
    for (int v = 0; v < op->n_variants; v++)
        if (!strcmp(op->variants[v].tier, tier)) return true;
    return false;
}

/* Elements of all inputs at their run-time sizes. */
static int64_t case_elements(const struct tp_case *test)
{
    int64_t sum = 0;
    for (int i = 0; i < test->n_in; i++) {
        const struct tp_case_input *in = &test->in[i];
        const int64_t used = in->rows == TP_STEP_N_TOKENS ? test->n_tokens : in->rows == TP_STEP_N_LABELLED ? test->n_labelled : 0;
        int64_t n = used ? used : in->dim[0];
        for (int d = 1; d < TALPA_MAX_RANK && in->dim[d]; d++) n *= in->dim[d];
        sum += n;
    }
    return sum;
}

static enum talpa_status run_ops(struct tp_check_run *run, const char *op, int64_t max_elements)
{
    enum talpa_status status = TALPA_OK;
    for (size_t i = 0; i < tp_n_ops && status == TALPA_OK; i++) {
        if ((op && strcmp(op, tp_ops[i]->name) != 0) || !has_tier(tp_ops[i], run->tier)) continue;
        run->totals.n_ops++;
        for (int c = 0; c < tp_ops[i]->n_cases && status == TALPA_OK; c++) {
            if (case_elements(&tp_ops[i]->cases[c]) > max_elements) continue;
            run->totals.n_cases++;
            status = run_case(run, tp_ops[i], &tp_ops[i]->cases[c]);
        }
    }
    return status;
}

enum talpa_status tp_conformance_run_small(struct tp_conformance_totals *totals, struct tp_device *device, const char *op, const char *tier,
                                           int64_t max_elements, tp_conformance_report *report, void *user)
{
    if (op && !tp_op_find(op)) return tp_fail(TALPA_E_ARGUMENT, "no op is called '%s'", op);
    struct tp_check_run run = {.device = device, .tier = tier, .report = report, .user = user};
    /* The matrix tiers have two forms of the same products: weights that stay as in the file, decoded in every run, and tiles. */
    if (tp_tier_rounds(tier)) run.base_dtype = TP_BASE_NATIVE;
    enum talpa_status status = run_ops(&run, op, max_elements);
    if (status == TALPA_OK && run.base_dtype == TP_BASE_NATIVE) {
        run.base_dtype = TP_BASE_BF16;
        status = run_ops(&run, op, max_elements);
    }
    run.totals.n_variants = run.n_variants;
    free(run.variants);
    if (status == TALPA_OK) *totals = run.totals;
    return status;
}

enum talpa_status tp_conformance_run(struct tp_conformance_totals *totals, struct tp_device *device, const char *op, const char *tier,
                                     tp_conformance_report *report, void *user)
{
    return tp_conformance_run_small(totals, device, op, tier, INT64_MAX, report, user);
}
