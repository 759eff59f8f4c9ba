/* What a device reaches. Wall clock around launch and wait, so that devices whose event times mean nothing are measured too. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "bench_impl.h"
#include "runtime/queue.h"

enum { CHAINS = 12, N_WIDTHS = 4, N_QUEUED = 256 };

static const int widths[N_WIDTHS] = {1, 4, 8, 16};
static const double wanted_ns = 4e6; /* of a sample: long against a launch, short for a person */

struct meter {
    const struct talpa_bench_options *options;
    struct tp_device *device;
    const struct talpa_device_caps *caps;
    struct tp_buffer *x, *y;
    size_t n_bytes; /* of each */
    double *samples;
};

static enum talpa_status find_kernel(struct tp_kernel **out, struct meter *m, const char *name, int width)
{
    char options[32];
    snprintf(options, sizeof options, "-DTP_WIDTH=%d", width);
    return tp_program_kernel(out, m->device, "bench/peaks.cl", name, options);
}

static enum talpa_status time_launch(double *ns, struct meter *m, const struct tp_kernel *kernel, const struct tp_kernel_arg *args, size_t n_args,
                                     size_t global, size_t local, int n)
{
    const size_t globals[3] = {global, 1, 1}, locals[3] = {local, 1, 1};
    const int64_t begin = tp_clock_now_ns();
    for (int i = 0; i < n; i++) TP_TRY(tp_queue_launch(m->device, kernel, args, n_args, globals, locals, "peak"));
    TP_TRY(tp_queue_finish(m->device));
    *ns = (double)(tp_clock_now_ns() - begin) / n;
    return TALPA_OK;
}

/* ---- arithmetic ---- */

/* One shape of the kernel: vectors of `width` floats, `local` items per group. */
struct arithmetic {
    int width;
    size_t global, local;
    uint32_t n;
    double gflops; /* of the trial */
};

static enum talpa_status run_arithmetic(double *ns, struct meter *m, const struct arithmetic *a)
{
    struct tp_kernel *kernel;
    TP_TRY(find_kernel(&kernel, m, "multiply_add", a->width));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(m->y), tp_kernel_arg_u32(a->n), tp_kernel_arg_f32(0.999f),
                                         tp_kernel_arg_f32(0.001f)};
    return time_launch(ns, m, kernel, args, 4, a->global, a->local, 1);
}

static double arithmetic_flops(const struct arithmetic *a) { return 2.0 * CHAINS * a->width * (double)a->n * (double)a->global; }

/* Turns for about the wanted time, then the best of three. */
static enum talpa_status try_arithmetic(struct meter *m, struct arithmetic *a)
{
    double ns, best = INFINITY;
    a->n = 64;
    TP_TRY(run_arithmetic(&ns, m, a)); /* compiles */
    for (;;) {
        TP_TRY(run_arithmetic(&ns, m, a));
        if (ns >= wanted_ns || a->n >= 1u << 26) break;
        a->n *= ns < wanted_ns / 8 ? 8 : 2;
    }
    for (int i = 0; i < 3; i++) {
        TP_TRY(run_arithmetic(&ns, m, a));
        if (ns < best) best = ns;
    }
    a->gflops = arithmetic_flops(a) / best;
    return TALPA_OK;
}

static enum talpa_status tell(struct meter *m, const char *what, double flops, double bytes)
{
    struct talpa_bench_row row = tp_bench_row();
    snprintf(row.test, sizeof row.test, "peak %s", what);
    tp_bench_statistics(&row, m->samples, m->options->repetitions);
    if (flops > 0.0) row.flops = flops, row.gflops = flops / row.median_ns;
    if (bytes > 0.0) row.bytes = bytes, row.gbs = bytes / row.median_ns;
    row.n_launches = 1;
    return tp_bench_tell(m->options, &row);
}

static double best_sample(const struct meter *m)
{
    double best = m->samples[0];
    for (int i = 1; i < m->options->repetitions; i++) best = fmin(best, m->samples[i]);
    return best;
}

static enum talpa_status measure_arithmetic(double *gflops, struct meter *m)
{
    const size_t units = m->caps->compute_units ? m->caps->compute_units : 1;
    const size_t group = m->caps->max_work_group_size < 256 ? m->caps->max_work_group_size : 256;
    struct arithmetic best = {0};
    for (int w = 0; w < N_WIDTHS; w++) {
        /* One item per group suits runtimes that put groups on threads; full groups suit all others. */
        const size_t locals[] = {1, group};
        for (int l = m->caps->type == TALPA_DEVICE_CPU ? 0 : 1; l < 2; l++) {
            struct arithmetic a = {.width = widths[w], .local = locals[l], .global = l ? units * 8 * group : units * 4};
            if (a.global * sizeof(float) > m->n_bytes) a.global = m->n_bytes / sizeof(float) / group * group;
            TP_TRY(try_arithmetic(m, &a));
            tp_bench_note(m->options, "f32 fma: vectors of %d, %zu groups of %zu: %.1f GFLOP/s", a.width, a.global / a.local, a.local, a.gflops);
            if (a.gflops > best.gflops) best = a;
        }
    }
    for (int i = 0; i < m->options->repetitions; i++) TP_TRY(run_arithmetic(&m->samples[i], m, &best));
    *gflops = arithmetic_flops(&best) / best_sample(m);
    char what[64];
    snprintf(what, sizeof what, "f32 fma");
    return tell(m, what, arithmetic_flops(&best), 0.0);
}

/* ---- memory ---- */

static enum talpa_status measure_memory(double *gbs, struct meter *m, const char *name, size_t n_bytes)
{
    const bool in_process = m->caps->in_process, copies = name[0] == 'c';
    const int width = in_process ? 16 : 4;
    const size_t units = m->caps->compute_units ? m->caps->compute_units : 1, local = in_process ? 1 : m->caps->max_work_group_size < 256 ? m->caps->max_work_group_size : 256;
    size_t global = in_process ? units * 4 : units * 8 * local;
    const size_t vectors = n_bytes / ((size_t)width * sizeof(float));
    while (global > local && global * 4 > vectors) global /= 2;
    global = global / local * local;
    const uint32_t n = (uint32_t)(vectors / global / 4 * 4);
    const double bytes = (double)n * (double)global * width * sizeof(float) * (copies ? 2 : 1);
    struct tp_kernel *kernel;
    TP_TRY(find_kernel(&kernel, m, copies ? "copy_all" : "read_all", width));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(m->x), tp_kernel_arg_buffer(m->y), tp_kernel_arg_u32(n),
                                         tp_kernel_arg_u32(in_process ? n : 1), tp_kernel_arg_u32(in_process ? 1 : (uint32_t)global)};
    double ns;
    TP_TRY(time_launch(&ns, m, kernel, args, 5, global, local, 1));
    TP_TRY(time_launch(&ns, m, kernel, args, 5, global, local, 1));
    const int times = ns < wanted_ns ? (int)(wanted_ns / fmax(ns, 1e3)) + 1 : 1;
    for (int i = 0; i < m->options->repetitions; i++) TP_TRY(time_launch(&m->samples[i], m, kernel, args, 5, global, local, times));
    char what[64];
    snprintf(what, sizeof what, "%s %.0f MiB", copies ? "copy" : "read", (double)n_bytes / 1048576.0);
    *gbs = bytes / best_sample(m);
    return tell(m, what, 0.0, bytes);
}

/* ---- launches ---- */

static enum talpa_status measure_launches(double *ns, struct meter *m, int n, const char *what)
{
    struct tp_kernel *kernel;
    double warm;
    TP_TRY(find_kernel(&kernel, m, "nothing", 1));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(m->y)};
    TP_TRY(time_launch(&warm, m, kernel, args, 1, 1, 1, n));
    for (int i = 0; i < m->options->repetitions; i++) {
        /* Single launches are short against the clock's and the scheduler's grain: the mean of some. */
        double sum = 0.0, one;
        const int times = n == 1 ? 32 : 1;
        for (int t = 0; t < times; t++) {
            TP_TRY(time_launch(&one, m, kernel, args, 1, 1, 1, n));
            sum += one;
        }
        m->samples[i] = sum / times;
    }
    *ns = best_sample(m);
    return tell(m, what, 0.0, 0.0);
}

static enum talpa_status measure(struct talpa_bench_peaks *out, struct meter *m)
{
    const uint64_t largest = 256u << 20, eighth = m->caps->global_mem_bytes / 8;
    uint64_t n = largest < m->caps->max_alloc_bytes ? largest : m->caps->max_alloc_bytes;
    if (n > eighth) n = eighth;
    m->n_bytes = (size_t)n / 65536 * 65536;
    if (!m->n_bytes) return tp_fail(TALPA_E_DEVICE, "device %s: %llu bytes are too few to measure its memory", m->caps->name, (unsigned long long)n);
    TP_TRY(tp_buffer_create(&m->x, m->device, m->n_bytes));
    TP_TRY(tp_buffer_create(&m->y, m->device, m->n_bytes));
    TP_TRY(tp_buffer_fill(m->x, 0, m->n_bytes, 0));
    TP_TRY(tp_buffer_fill(m->y, 0, m->n_bytes, 0));
    TP_TRY(measure_arithmetic(&out->f32_gflops, m));
    for (int copies = 0; copies < 2; copies++) {
        double *gbs = copies ? &out->copy_gbs : &out->read_gbs;
        for (size_t size = 1u << 20; size < m->n_bytes; size *= 16) TP_TRY(measure_memory(gbs, m, copies ? "copy" : "read", size));
        TP_TRY(measure_memory(gbs, m, copies ? "copy" : "read", m->n_bytes));
    }
    TP_TRY(measure_launches(&out->launch_ns, m, 1, "launch and wait"));
    return measure_launches(&out->enqueue_ns, m, N_QUEUED, "launch among others");
}

enum talpa_status talpa_bench_peaks(struct talpa_bench_peaks *out, const struct talpa_bench_options *options)
{
    struct meter m = {.options = options};
    struct talpa_bench_peaks peaks = {0};
    TP_TRY(tp_bench_check(options));
    TP_TRY(tp_device_open(&m.device, options->device, false));
    m.caps = tp_device_caps(m.device);
    m.samples = calloc((size_t)options->repetitions, sizeof *m.samples);
    const enum talpa_status status =
        m.samples ? measure(&peaks, &m) : tp_fail_memory("samples", (unsigned long long)options->repetitions * sizeof *m.samples);
    tp_buffer_free(m.x);
    tp_buffer_free(m.y);
    tp_device_close(m.device);
    free(m.samples);
    if (status == TALPA_OK) *out = peaks;
    return tp_context(status, "measuring peaks");
}
