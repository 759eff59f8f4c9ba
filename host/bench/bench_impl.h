/* What the measurements share: samples, statistics, recorded repetitions. */
#ifndef TP_BENCH_IMPL_H
#define TP_BENCH_IMPL_H

#include "base/status.h"
#include "talpa/bench.h"
#include "talpa/profile.h"

/** A row with everything unknown. */
struct talpa_bench_row tp_bench_row(void);

/** Fills avg, stddev, median, min, n_samples and, with row->n_tokens, avg_ts and stddev_ts from row->samples_ns. */
void tp_bench_statistics(struct talpa_bench_row *row, const double *samples_ns, int n);

/** Telling the caller. */
enum talpa_status tp_bench_tell(const struct talpa_bench_options *options, struct talpa_bench_row *row);
void tp_bench_note(const struct talpa_bench_options *options, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Recording: begun before the device is opened and ended after it is closed. If the caller has started a profile, it is used and never
 *  paused; otherwise launches are recorded between tp_bench_record and tp_bench_recorded only. */
struct tp_bench_recorder {
    bool is_own;
    int times; /* runs within a repetition: what is recorded is divided by it */
    struct talpa_profile_totals before;
    struct talpa_profile_row *rows; /* at tp_bench_record */
    size_t n_rows;
};
enum talpa_status tp_bench_recorder_begin(struct tp_bench_recorder *recorder);
void tp_bench_recorder_end(struct tp_bench_recorder *recorder);
/** The device is idle at both calls. The second fills kernel_ns, forward_ns, backward_ns, update_ns, flops, bytes, n_launches, and with
 *  options->peaks roofline_pct; gflops and gbs of kernel_ns. */
enum talpa_status tp_bench_record(struct tp_bench_recorder *recorder);
enum talpa_status tp_bench_recorded(struct talpa_bench_row *row, struct tp_bench_recorder *recorder, const struct talpa_bench_options *options);

/** Warm-up, repetitions and one recorded repetition of `run`, which returns the nanoseconds of one. Tells the row. */
typedef enum talpa_status tp_bench_run_once(void *user, double *ns);
enum talpa_status tp_bench_measure(struct talpa_bench_row *row, struct tp_bench_recorder *recorder, const struct talpa_bench_options *options,
                                   tp_bench_run_once *run, void *user);

/** TALPA_E_ARGUMENT for impossible repetitions or warm-up. */
enum talpa_status tp_bench_check(const struct talpa_bench_options *options);

#endif
