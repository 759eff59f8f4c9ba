/* Gradients: L = sum over outputs of <seed, output>; dL/dx from the device against central differences of the reference. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "conformance_impl.h"

enum { MAX_SAMPLES = 24, MIN_SAMPLES = 4, SEED_STREAM = 100, SAMPLE_STREAM = 200 };

struct gradient {
    struct tp_check_run *run;
    struct tp_trial *trial;
    struct tp_bench bench;
    double *seeds[TP_MAX_OUT]; /* NULL: no loss term */
    int input[TP_CASE_MAX_IN]; /* inputs that are differentiated */
    talpa_value grad[TP_CASE_MAX_IN];
    float *first[TP_CASE_MAX_IN]; /* gradients read after the first run; NULL: nothing flows */
    int n;
};

static bool has_loss(const struct tp_trial *trial, int o)
{
    return trial->out_type[o].dtype == TALPA_F32 && !trial->op->opaque[o] && !trial->op->for_gradient[o] && !trial->op->updates[o];
}

static enum talpa_status make_seeds(struct gradient *g)
{
    struct tp_trial *trial = g->trial;
    for (int o = 0; o < trial->n_out; o++) {
        if (!has_loss(trial, o)) continue;
        const int64_t n_bound = tp_type_elements(&trial->out_type[o]), n = tp_type_elements(&trial->out_run_type[o]);
        float *bytes = tp_arena_array(&trial->arena, (size_t)n_bound, sizeof *bytes);
        g->seeds[o] = tp_arena_array(&trial->arena, (size_t)n + 1, sizeof **g->seeds);
        if (!bytes || !g->seeds[o]) return TALPA_E_DEVICE;
        memset(bytes, 0xff, (size_t)n_bound * sizeof *bytes);
        for (int64_t i = 0; i < n; i++) {
            g->seeds[o][i] = tp_trial_normal(trial, (uint32_t)(SEED_STREAM + o), (uint64_t)i);
            bytes[i] = (float)g->seeds[o][i];
            if (trial->is_bf16) bytes[i] = tp_bf16_to_f32(tp_f32_to_bf16(bytes[i]));
            if (trial->is_bf16) g->seeds[o][i] = (double)bytes[i];
        }
        g->bench.seed_bytes[o] = bytes;
    }
    return TALPA_OK;
}

static enum talpa_status build(struct gradient *g)
{
    struct tp_trial *trial = g->trial;
    talpa_value losses[TP_MAX_OUT], seeds[TP_MAX_OUT], wrt[TP_CASE_MAX_IN];
    int n_losses = 0;
    TP_TRY(tp_graph_create(&g->bench.graph));
    struct talpa_graph *graph = g->bench.graph;
    TP_TRY(tp_trial_graph(trial, graph, g->bench.in, g->bench.out));
    for (int o = 0; o < trial->n_out; o++) {
        if (!g->seeds[o]) continue;
        char name[24];
        snprintf(name, sizeof name, "seed.%d", o);
        TP_TRY(tp_graph_input(graph, &g->bench.seed[o], name, trial->out_type[o]));
        losses[n_losses] = g->bench.out[o];
        seeds[n_losses++] = g->bench.seed[o];
    }
    for (int i = 0; i < trial->test->n_in; i++) {
        if (!trial->test->in[i].grad || !trial->in[i]) continue;
        wrt[g->n] = g->bench.in[i];
        g->input[g->n++] = i;
    }
    TP_TRY(tp_autodiff(graph, losses, seeds, n_losses, wrt, g->n, g->grad));
    for (int j = 0; j < g->n; j++)
        if (g->grad[j] != TP_NONE) tp_graph_mark_output(graph, g->grad[j]);
    TP_TRY(tp_bench_prepare(g->run, &g->bench));
    return tp_bench_run(&g->bench);
}

static enum talpa_status read_gradients(struct gradient *g, float *out[TP_CASE_MAX_IN])
{
    for (int j = 0; j < g->n; j++) {
        void *bytes = NULL;
        if (g->grad[j] != TP_NONE) {
            const struct tp_type *type = tp_graph_type(g->bench.graph, g->grad[j]);
            if (type->dtype != TALPA_F32 || tp_type_elements(type) != tp_type_elements(&g->trial->type[g->input[j]]))
                return tp_fail(TALPA_E_CHECK, "the gradient of operand %d has another type than the operand", g->input[j]);
            TP_TRY(tp_bench_read(&g->bench, &g->trial->arena, g->grad[j], &bytes));
        }
        out[j] = bytes;
    }
    return TALPA_OK;
}

/* ---- central differences ---- */

static double loss(const struct gradient *g, double *const *out)
{
    double sum = 0;
    tp_trial_reference(g->trial, out);
    for (int o = 0; o < g->trial->n_out; o++) {
        if (!g->seeds[o]) continue;
        const int64_t n = tp_type_elements(&g->trial->out_run_type[o]);
        for (int64_t i = 0; i < n; i++) sum += g->seeds[o][i] * out[o][i];
    }
    return sum;
}

static double difference(const struct gradient *g, double *const *out, int input, int64_t at)
{
    double *x = &g->trial->in[input][at];
    const double centre = *x, h = 1e-5 * (1 + fabs(centre));
    *x = centre + h;
    const double above = loss(g, out);
    *x = centre - h;
    const double below = loss(g, out);
    *x = centre;
    return (above - below) / (2 * h);
}

/* Fewer samples where the naive reference is slow. */
static int n_samples(const struct gradient *g)
{
    double flops = 0, bytes = 0;
    if (g->trial->op->cost) g->trial->op->cost(g->bench.graph, tp_graph_node_at(g->bench.graph, 0), &flops, &bytes);
    const double affordable = flops > 0 ? 1.5e8 / flops : MAX_SAMPLES;
    return affordable >= MAX_SAMPLES ? MAX_SAMPLES : affordable <= MIN_SAMPLES ? MIN_SAMPLES : (int)affordable;
}

static void check_gradient(struct gradient *g, int j, double *const *out)
{
    struct tp_trial *trial = g->trial;
    const int input = g->input[j];
    const int64_t n = tp_type_elements(&trial->run_type[input]);
    const double tolerance = tp_trial_tolerance(trial, trial->test->grad_tolerance > 0 ? trial->test->grad_tolerance : 1e-3);
    const int samples = n < n_samples(g) ? (int)n : n_samples(g);
    double want[MAX_SAMPLES], scale = 0, worst = 0;
    int64_t at[MAX_SAMPLES];
    char what[64], name[32];
    const char *in_name = trial->op->in_names[input] ? trial->op->in_names[input] : "?";
    snprintf(name, sizeof name, "%.*s", (int)strcspn(in_name, "?"), in_name);
    snprintf(what, sizeof what, "gradient of %s", name);
    for (int s = 0; s < samples; s++) {
        /* Small tensors are checked in full. */
        at[s] = n <= samples ? s : (int64_t)(tp_trial_uniform(trial, (uint32_t)(SAMPLE_STREAM + input), (uint64_t)s) * (double)n);
        want[s] = difference(g, out, input, at[s]);
        if (fabs(want[s]) > scale) scale = fabs(want[s]);
    }
    enum talpa_status status = TALPA_OK;
    for (int s = 0; s < samples; s++) {
        const double got = g->first[j] ? (double)g->first[j][at[s]] : 0;
        double error = fabs(got - want[s]) / (scale + 1e-3);
        if (!isfinite(error)) error = INFINITY;
        if (error > tolerance && error > worst)
            status = tp_fail(TALPA_E_CHECK, "%s[%lld]: got %.9g, expected %.9g (largest %.3g)%s", name, (long long)at[s], got, want[s],
                             scale, g->first[j] ? "" : ", nothing flows there");
        if (error > worst) worst = error;
    }
    for (int64_t i = 0; i < n && status == TALPA_OK && g->first[j]; i++) {
        if (isfinite(g->first[j][i])) continue;
        status = tp_fail(TALPA_E_CHECK, "%s[%lld]: the gradient is not finite", name, (long long)i);
        worst = INFINITY;
    }
    if (status == TALPA_OK && g->first[j]) status = tp_bench_check_rows(&g->bench, g->grad[j], g->first[j], name);
    tp_check_emit(g->run, trial, what, worst, tolerance, status);
}

static enum talpa_status repeat(struct gradient *g)
{
    float *second[TP_CASE_MAX_IN];
    TP_TRY(tp_bench_run(&g->bench));
    TP_TRY(read_gradients(g, second));
    for (int j = 0; j < g->n; j++)
        if (second[j] && memcmp(g->first[j], second[j], tp_type_bytes(&g->trial->type[g->input[j]])) != 0)
            return tp_fail(TALPA_E_CHECK, "the gradient of operand %d has other bits when run again", g->input[j]);
    return TALPA_OK;
}

enum talpa_status tp_conformance_gradient(struct tp_check_run *run, struct tp_trial *trial)
{
    struct gradient g = {.run = run, .trial = trial, .bench = {.trial = trial}};
    double *out[TP_MAX_OUT];
    enum talpa_status status = tp_trial_outputs(trial, out);
    if (status == TALPA_OK) status = make_seeds(&g);
    if (status != TALPA_OK) return status;
    status = build(&g);
    if (status == TALPA_OK) status = read_gradients(&g, g.first);
    if (status != TALPA_OK) {
        tp_check_emit(run, trial, "gradient", 0, 0, status);
    } else {
        for (int j = 0; j < g.n; j++) check_gradient(&g, j, out);
        tp_check_emit(run, trial, "gradient guard", 0, 0, tp_executor_check_guards(g.bench.executor));
        tp_check_emit(run, trial, "gradient repeat", 0, 0, repeat(&g));
    }
    tp_bench_free(&g.bench);
    return TALPA_OK;
}
