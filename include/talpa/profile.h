/* Where the time goes: launches of kernels with their times on the device, summed by kind, and a trace of the first of them.
 *
 * One profile per process. Devices that are opened while it is started record into it, whichever function opens them (training,
 * sessions, scoring, evaluation, verification); devices opened before do not. Recording makes runs somewhat slower: every launch has an
 * event, and every 1,024 launches the host waits for them. Without a started profile nothing is measured and nothing costs time. */
#ifndef TALPA_PROFILE_H
#define TALPA_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "talpa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** All launches of one kind: the same op, kernel, pass, and place in the model. */
struct talpa_profile_row {
    const char *op;       /**< "matmul"; "pack" (weights into panels), "write", "read", "fill", "copy" (transfers) */
    const char *pass;     /**< "forward", "backward", "update"; "" outside of a graph */
    const char *kernel;   /**< "cpu/gemm.cl:gemm_panels", "clblast:gemm", "-" for transfers */
    const char *scope;    /**< place in the model with '*' for layer numbers: "layers.*.self_attn.q_proj" */
    uint64_t n;           /**< launches (pieces of split ones counted) or transfers */
    double total_ns;      /**< sum of their times on the device */
    double flops, bytes;  /**< sums of the estimates made when planning, scaled to the rows that a pass really had */
};

struct talpa_profile_totals {
    uint64_t n_launches, n_transfers;
    double launch_ns, transfer_ns; /**< times on the device, added up */
    double flops, bytes;           /**< of the launches */
    double span_ns;                /**< from the start of the first to the end of the last, over all devices */
    uint64_t n_traced;             /**< launches and transfers that the trace holds: the first ones */
};

enum { TALPA_PROFILE_TRACE_DEFAULT = 100000 };

/** Starts recording, into an empty profile. The trace keeps the first `n_trace` launches (about 40 bytes of memory and 200 bytes of file
 *  each; 0: no trace); sums are kept of all. TALPA_E_ARGUMENT if a profile is started already. */
enum talpa_status talpa_profile_start(size_t n_trace);

/** Devices opened from now on do not record. What was recorded can be read until talpa_profile_free or the next start. Every device that
 *  records must have been closed before: its last launches are added then. */
void talpa_profile_stop(void);

/** Forgets everything. */
void talpa_profile_free(void);

/** Leaves out what devices do from now on (true), or records it again (false). To be called while the device is idle. */
void talpa_profile_pause(bool paused);

/** What the device reaches at most, in GFLOP/s and GB/s: gives the column peak_pct. 0: not known. */
void talpa_profile_peaks(double gflops, double gbs);

/** The sums by kind, the longest total first. The caller frees *rows with free(); strings are valid as long as the profile. */
enum talpa_status talpa_profile_rows(struct talpa_profile_row **rows, size_t *n_rows);
struct talpa_profile_totals talpa_profile_totals(void);

/** Writes the rows as CSV with a header line: op, pass, kernel, scope, count, total_ms, mean_us, share_pct (of all times here), flops,
 *  bytes, gflops, gbs, peak_pct (of the time that min(peak, intensity x bandwidth) would take; empty without talpa_profile_peaks).
 *  TALPA_E_IO if writing fails. */
enum talpa_status talpa_profile_csv(FILE *file);

/** Writes the trace as JSON in the Trace Event Format (Google; opened by Perfetto and chrome://tracing): one track per device with its
 *  launches, one for phases of the host, in microseconds since the start. "otherData" says how many launches there were and how many are
 *  in the file. TALPA_E_IO if writing fails. */
enum talpa_status talpa_profile_trace(FILE *file);

#ifdef __cplusplus
}
#endif
#endif
