#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_impl.h"
#include "runtime/profile.h"

void talpa_bench_default(struct talpa_bench_options *options)
{
    *options = (struct talpa_bench_options){.repetitions = 5, .warmup = 1, .weight_dtype = TALPA_F32};
}

enum talpa_status tp_bench_check(const struct talpa_bench_options *o)
{
    if (o->repetitions < 1 || o->repetitions > 1000000)
        return tp_fail(TALPA_E_ARGUMENT, "--repetitions is %d, expected 1 to 1000000", o->repetitions);
    if (o->warmup < 0 || o->warmup > 1000000) return tp_fail(TALPA_E_ARGUMENT, "--warmup is %d, expected 0 to 1000000", o->warmup);
    return TALPA_OK;
}

/* ---- statistics ---- */

struct talpa_bench_row tp_bench_row(void)
{
    return (struct talpa_bench_row){.avg_ts = NAN, .stddev_ts = NAN, .flops = NAN, .bytes = NAN, .gflops = NAN, .gbs = NAN,
                                    .roofline_pct = NAN, .kernel_ns = NAN, .forward_ns = NAN, .backward_ns = NAN, .update_ns = NAN,
                                    .max_rel_err = NAN};
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void mean_of(double *mean, double *stddev, const double *x, int n)
{
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < n; i++) sum += x[i];
    *mean = sum / n;
    for (int i = 0; i < n; i++) squares += (x[i] - *mean) * (x[i] - *mean);
    *stddev = n > 1 ? sqrt(squares / (n - 1)) : 0.0;
}

void tp_bench_statistics(struct talpa_bench_row *row, const double *samples_ns, int n)
{
    double *copy = malloc((size_t)n * sizeof *copy);
    row->samples_ns = samples_ns;
    row->n_samples = n;
    mean_of(&row->avg_ns, &row->stddev_ns, samples_ns, n);
    row->median_ns = row->min_ns = row->avg_ns;
    if (!copy) return;
    memcpy(copy, samples_ns, (size_t)n * sizeof *copy);
    qsort(copy, (size_t)n, sizeof *copy, by_value);
    row->min_ns = copy[0];
    row->median_ns = n % 2 ? copy[n / 2] : 0.5 * (copy[n / 2 - 1] + copy[n / 2]);
    if (row->n_tokens > 0.0) {
        for (int i = 0; i < n; i++) copy[i] = row->n_tokens / (samples_ns[i] * 1e-9);
        mean_of(&row->avg_ts, &row->stddev_ts, copy, n);
    }
    free(copy);
}

enum talpa_status tp_bench_tell(const struct talpa_bench_options *o, struct talpa_bench_row *row)
{
    row->memory = talpa_device_memory();
    if (!o->row || o->row(o->user, row)) return TALPA_OK;
    return tp_fail(TALPA_E_INTERRUPTED, "stopped after '%s'", row->test);
}

void tp_bench_note(const struct talpa_bench_options *o, const char *format, ...)
{
    char line[512];
    if (!o->note) return;
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    o->note(o->user, line);
}

/* ---- recording ---- */

enum talpa_status tp_bench_recorder_begin(struct tp_bench_recorder *r)
{
    *r = (struct tp_bench_recorder){.is_own = !tp_profile_is_started(), .times = 1};
    if (!r->is_own) return TALPA_OK;
    TP_TRY(talpa_profile_start(0));
    talpa_profile_pause(true);
    return TALPA_OK;
}

void tp_bench_recorder_end(struct tp_bench_recorder *r)
{
    free(r->rows);
    r->rows = NULL;
    if (r->is_own) talpa_profile_free();
}

static void forget_rows(struct tp_bench_recorder *r)
{
    free(r->rows);
    r->rows = NULL;
    r->n_rows = 0;
}

enum talpa_status tp_bench_record(struct tp_bench_recorder *r)
{
    forget_rows(r);
    TP_TRY(talpa_profile_rows(&r->rows, &r->n_rows));
    r->before = talpa_profile_totals();
    if (r->is_own) talpa_profile_pause(false);
    return TALPA_OK;
}

/* The row as it was before: strings of a kind stay where they are as long as the profile. */
static struct talpa_profile_row earlier(const struct tp_bench_recorder *r, const struct talpa_profile_row *row)
{
    for (size_t i = 0; i < r->n_rows; i++)
        if (r->rows[i].scope == row->scope) return r->rows[i];
    return (struct talpa_profile_row){0};
}

enum talpa_status tp_bench_recorded(struct talpa_bench_row *row, struct tp_bench_recorder *r, const struct talpa_bench_options *o)
{
    const struct talpa_profile_totals now = talpa_profile_totals();
    struct talpa_profile_row *rows;
    size_t n_rows;
    double best_ns = 0.0;
    if (r->is_own) talpa_profile_pause(true);
    TP_TRY(talpa_profile_rows(&rows, &n_rows));
    row->kernel_ns = now.launch_ns - r->before.launch_ns;
    row->n_launches = (int64_t)(now.n_launches - r->before.n_launches);
    row->flops = now.flops - r->before.flops;
    row->bytes = now.bytes - r->before.bytes;
    row->forward_ns = row->backward_ns = row->update_ns = 0.0;
    for (size_t i = 0; i < n_rows; i++) {
        const struct talpa_profile_row old = earlier(r, &rows[i]);
        const double ns = rows[i].total_ns - old.total_ns;
        if (!strcmp(rows[i].kernel, "-")) continue;
        if (!strcmp(rows[i].pass, "forward")) row->forward_ns += ns;
        if (!strcmp(rows[i].pass, "backward")) row->backward_ns += ns;
        if (!strcmp(rows[i].pass, "update")) row->update_ns += ns;
        if (o->peaks)
            best_ns += fmax((rows[i].flops - old.flops) / o->peaks->f32_gflops,
                            (rows[i].bytes - old.bytes) / fmax(o->peaks->read_gbs, o->peaks->copy_gbs));
    }
    free(rows);
    double *const sums[] = {&row->kernel_ns, &row->forward_ns, &row->backward_ns, &row->update_ns, &row->flops, &row->bytes, &best_ns};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) *sums[i] /= r->times;
    row->n_launches /= r->times;
    if (row->kernel_ns > 0.0) {
        row->gflops = row->flops / row->kernel_ns;
        row->gbs = row->bytes / row->kernel_ns;
        if (o->peaks) row->roofline_pct = 100.0 * best_ns / row->kernel_ns;
    }
    return TALPA_OK;
}

enum talpa_status tp_bench_measure(struct talpa_bench_row *row, struct tp_bench_recorder *recorder, const struct talpa_bench_options *o,
                                   tp_bench_run_once *run, void *user)
{
    double ignored, *samples = calloc((size_t)o->repetitions, sizeof *samples);
    enum talpa_status status = samples ? TALPA_OK : tp_fail_memory("samples", (unsigned long long)o->repetitions * sizeof *samples);
    for (int i = 0; i < o->warmup && status == TALPA_OK; i++) status = run(user, &ignored);
    for (int i = 0; i < o->repetitions && status == TALPA_OK; i++) status = run(user, &samples[i]);
    if (status == TALPA_OK) tp_bench_statistics(row, samples, o->repetitions);
    if (status == TALPA_OK) status = tp_bench_record(recorder);
    if (status == TALPA_OK) status = run(user, &ignored);
    if (status == TALPA_OK) status = tp_bench_recorded(row, recorder, o);
    if (status == TALPA_OK) status = tp_bench_tell(o, row);
    free(samples);
    return tp_context(status, "%s", row->test);
}
