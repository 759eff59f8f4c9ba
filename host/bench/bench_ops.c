/* The ops of a training step, from recorded launches: real sizes, real data, every layer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_train.h"
#include "check/conformance.h"
#include "graph/op.h"
#include "runtime/queue.h"

enum { CASE_ELEMENTS = 20000 };

/* An op in one pass (with options->op: at one place). Strings are the profile's. */
struct group {
    const char *op, *pass, *scope;
    double ns, flops, bytes, best_ns; /* sums so far */
    uint64_t n;
    double *samples;
    double step_flops, step_bytes, step_best_ns, all_ns; /* of the last step; times of all */
    uint64_t step_n;
    double error;
};

struct groups {
    struct group *item;
    size_t n;
};

static struct group *group_of(struct groups *groups, const struct talpa_profile_row *row, bool by_scope, int repetitions)
{
    for (size_t i = 0; i < groups->n; i++) {
        struct group *g = &groups->item[i];
        if (!strcmp(g->op, row->op) && !strcmp(g->pass, row->pass) && (!by_scope || !strcmp(g->scope, row->scope))) return g;
    }
    struct group *grown = realloc(groups->item, (groups->n + 1) * sizeof *grown);
    if (!grown) return NULL;
    groups->item = grown;
    grown[groups->n] = (struct group){.op = row->op, .pass = row->pass, .scope = row->scope, .samples = calloc((size_t)repetitions, sizeof(double)),
                                      .error = NAN};
    return grown[groups->n].samples ? &grown[groups->n++] : NULL;
}

/* Adds the profile's sums up by group; what came since the last call is sample `repetition` (-1: none). */
static enum talpa_status take_sample(struct groups *groups, const struct talpa_bench_options *o, int repetition)
{
    struct talpa_profile_row *rows;
    size_t n_rows;
    TP_TRY(talpa_profile_rows(&rows, &n_rows));
    for (size_t i = 0; i < groups->n; i++) {
        struct group *g = &groups->item[i];
        g->step_flops = g->flops, g->step_bytes = g->bytes, g->step_best_ns = g->best_ns, g->step_n = g->n, g->all_ns = g->ns;
        g->ns = g->flops = g->bytes = g->best_ns = 0.0;
        g->n = 0;
    }
    enum talpa_status status = TALPA_OK;
    for (size_t i = 0; i < n_rows && status == TALPA_OK; i++) {
        const struct talpa_profile_row *row = &rows[i];
        if (!*row->pass || !strcmp(row->kernel, "-") || (o->op && strcmp(o->op, row->op))) continue;
        struct group *g = group_of(groups, row, o->op != NULL, o->repetitions);
        if (!g) {
            status = tp_fail_memory("ops", sizeof *g);
            break;
        }
        g->ns += row->total_ns;
        g->flops += row->flops;
        g->bytes += row->bytes;
        g->n += row->n;
        if (o->peaks) g->best_ns += fmax(row->flops / o->peaks->f32_gflops, row->bytes / fmax(o->peaks->read_gbs, o->peaks->copy_gbs));
    }
    free(rows);
    for (size_t i = 0; i < groups->n; i++) {
        struct group *g = &groups->item[i];
        g->step_flops = g->flops - g->step_flops;
        g->step_bytes = g->bytes - g->step_bytes;
        g->step_best_ns = g->best_ns - g->step_best_ns;
        g->step_n = g->n - g->step_n;
        if (repetition >= 0) g->samples[repetition] = g->ns - g->all_ns;
    }
    return status;
}

/* ---- the gate ---- */

struct gate {
    double worst;
    char message[512];
};

static void on_check(const struct tp_conformance_result *result, void *user)
{
    struct gate *gate = user;
    if (result->max_error > gate->worst && isfinite(result->max_error)) gate->worst = result->max_error;
    if (result->status != TALPA_OK && !gate->message[0])
        snprintf(gate->message, sizeof gate->message, "case '%s', %s: %s", result->case_name, result->what, result->message);
}

static enum talpa_status check_op(double *error, struct tp_device *device, const char *op)
{
    struct tp_conformance_totals totals;
    struct gate gate = {0};
    TP_TRY(tp_conformance_run_small(&totals, device, op, "", CASE_ELEMENTS, on_check, &gate));
    if (totals.n_failed)
        return tp_fail(TALPA_E_CHECK, "op %s is wrong on this device, so its time means nothing: %s ('talpa verify --op %s')", op, gate.message, op);
    *error = gate.worst;
    return TALPA_OK;
}

/* ---- rows ---- */

static int longest_first(const void *a, const void *b)
{
    const struct group *x = a, *y = b;
    return x->samples[0] > y->samples[0] ? -1 : x->samples[0] < y->samples[0];
}

static enum talpa_status tell(const struct group *g, const struct talpa_bench_options *o)
{
    struct talpa_bench_row row = tp_bench_row();
    snprintf(row.test, sizeof row.test, "%s %s%s%s", g->op, g->pass, o->op ? " " : "", o->op ? g->scope : "");
    tp_bench_statistics(&row, g->samples, o->repetitions);
    row.n_batch = o->train->batch_size;
    row.n_launches = (int64_t)g->step_n;
    row.kernel_ns = row.avg_ns;
    row.flops = g->step_flops;
    row.bytes = g->step_bytes;
    row.max_rel_err = g->error;
    if (row.avg_ns > 0.0) {
        row.gflops = row.flops / row.avg_ns;
        row.gbs = row.bytes / row.avg_ns;
        if (o->peaks) row.roofline_pct = 100.0 * g->step_best_ns / row.avg_ns;
    }
    return tp_bench_tell(o, &row);
}

/* An op occurs in several groups; each is checked once. */
static enum talpa_status check_ops(struct groups *groups, struct tp_device *device, const struct talpa_bench_options *o)
{
    for (size_t i = 0; i < groups->n; i++) {
        struct group *g = &groups->item[i];
        for (size_t j = 0; j < i && isnan(g->error); j++)
            if (!strcmp(groups->item[j].op, g->op)) g->error = groups->item[j].error;
        if (!isnan(g->error)) continue;
        tp_bench_note(o, "checking %s", g->op);
        TP_TRY(check_op(&g->error, device, g->op));
    }
    return TALPA_OK;
}

static enum talpa_status measure(struct groups *groups, struct tp_bench_training *t, const struct talpa_bench_options *o)
{
    double ns;
    if (t->recorder.is_own) talpa_profile_pause(false);
    for (int i = 0; i < (o->warmup ? o->warmup : 1); i++) TP_TRY(tp_bench_training_step(t, &ns));
    TP_TRY(take_sample(groups, o, -1));
    if (!groups->n) return tp_fail(TALPA_E_ARGUMENT, "--op %s: a training step of this model and adapter has no such op", o->op);
    for (int i = 0; i < o->repetitions; i++) {
        TP_TRY(tp_bench_training_step(t, &ns));
        TP_TRY(take_sample(groups, o, i));
    }
    if (t->recorder.is_own) talpa_profile_pause(true);
    TP_TRY(check_ops(groups, t->engine.device, o));
    qsort(groups->item, groups->n, sizeof *groups->item, longest_first);
    for (size_t i = 0; i < groups->n; i++) TP_TRY(tell(&groups->item[i], o));
    return TALPA_OK;
}

enum talpa_status talpa_bench_ops(struct talpa_model *model, const struct talpa_bench_options *o)
{
    struct tp_bench_training t;
    struct groups groups = {0};
    if (o->op && !tp_op_find(o->op)) return tp_fail(TALPA_E_ARGUMENT, "--op %s: no op is called so; 'talpa verify' lists them", o->op);
    enum talpa_status status = tp_bench_training_create(&t, model, o);
    if (status == TALPA_OK) status = measure(&groups, &t, o);
    for (size_t i = 0; i < groups.n; i++) free(groups.item[i].samples);
    free(groups.item);
    tp_bench_training_free(&t);
    return status;
}
