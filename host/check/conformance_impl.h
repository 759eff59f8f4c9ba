/* Shared by the files of the conformance check. */
#ifndef TP_CONFORMANCE_IMPL_H
#define TP_CONFORMANCE_IMPL_H

#include "base/arena.h"
#include "conformance.h"
#include "exec/executor.h"

enum { TP_CONFORMANCE_GUARD_BYTES = 1024 };

/** Inputs of a case, as doubles for the reference and as bytes for the device; everything lies in the arena. */
struct tp_trial {
    const struct tp_op *op;
    const struct tp_case *test;
    struct tp_arena arena;
    uint64_t seed;
    bool is_bf16; /* a matrix tier is checked: all values that the reference sees are those of bf16, so that f32 tolerances hold */
    struct tp_type type[TP_CASE_MAX_IN];     /* at the bound */
    struct tp_type run_type[TP_CASE_MAX_IN]; /* dimension 0 at run time */
    double *in[TP_CASE_MAX_IN];              /* room for the bound; the first run-time rows are filled; NULL: omitted */
    void *bytes[TP_CASE_MAX_IN];             /* the same rounded to the type, rows past the run-time size are 0xFF */
    struct tp_step step;
    struct tp_type out_type[TP_MAX_OUT], out_run_type[TP_MAX_OUT]; /* set by the first graph */
    int n_out;
};

/** Generates inputs and step words from a seed made of the names of op and case. tp_trial_free afterwards, also after a failure. */
enum talpa_status tp_trial_create(struct tp_trial *trial, const struct tp_op *op, const struct tp_case *test, bool is_bf16);
void tp_trial_free(struct tp_trial *trial);

/** Appends inputs and node to an empty graph: in[] and out[] receive their values (TP_NONE where omitted); notes the output types. */
enum talpa_status tp_trial_graph(struct tp_trial *trial, struct talpa_graph *graph, talpa_value *in, talpa_value *out);

/** The type with the run-time size in dimension 0. */
struct tp_type tp_trial_run_type(const struct tp_trial *trial, const struct tp_type *type);

/** Arrays for all outputs (run-time size), from the trial's arena. */
enum talpa_status tp_trial_outputs(struct tp_trial *trial, double *out[TP_MAX_OUT]);

/** Runs the op's reference on the inputs as they are now. */
void tp_trial_reference(const struct tp_trial *trial, double *const out[TP_MAX_OUT]);

/** The tolerance of a check, raised to 2^-8 for an op that rounds inside on the matrix tier that is checked. */
double tp_trial_tolerance(const struct tp_trial *trial, double tolerance);

/** Standard normal number `i` of stream `stream`. */
double tp_trial_normal(const struct tp_trial *trial, uint32_t stream, uint64_t i);
/** Uniform in [0, 1). */
double tp_trial_uniform(const struct tp_trial *trial, uint32_t stream, uint64_t i);

/* ---- conformance.c ---- */

struct tp_check_run {
    struct tp_device *device;
    const char *tier;
    enum tp_base_dtype base_dtype;
    tp_conformance_report *report;
    void *user;
    struct tp_conformance_totals totals;
    const struct tp_variant **variants; /* those seen so far */
    int n_variants, variant_room;
};

/** A graph prepared on the device. */
struct tp_bench {
    const struct tp_trial *trial;
    struct talpa_graph *graph;
    struct tp_plan *plan;
    struct tp_store *store;
    struct tp_executor *executor;
    talpa_value in[TP_CASE_MAX_IN], out[TP_MAX_OUT];
    talpa_value seed[TP_MAX_OUT]; /* gradient only */
    const void *seed_bytes[TP_MAX_OUT];
};

/** Plans and prepares bench->graph; weights are bound. */
enum talpa_status tp_bench_prepare(struct tp_check_run *run, struct tp_bench *bench);
void tp_bench_free(struct tp_bench *bench);
/** Writes all inputs and states, poisons, runs and waits. */
enum talpa_status tp_bench_run(struct tp_bench *bench);
/** Reads a whole value (at the bound) into memory of `arena`. */
enum talpa_status tp_bench_read(struct tp_bench *bench, struct tp_arena *arena, talpa_value value, void **out);
/** Reports that rows of a poisoned value past the run-time size changed; TALPA_OK if not or if the value has no place in the arena. */
enum talpa_status tp_bench_check_rows(struct tp_bench *bench, talpa_value value, const void *bytes, const char *name);

/** Counts and reports one check; takes the message of the thread's error record if `status` is a failure. */
void tp_check_emit(struct tp_check_run *run, const struct tp_trial *trial, const char *what, double max_error, double tolerance,
                   enum talpa_status status);

/* ---- conformance_gradient.c ---- */

/** Checks the gradients of the case's inputs marked `grad`. Fails only for want of memory; all else is reported. */
enum talpa_status tp_conformance_gradient(struct tp_check_run *run, struct tp_trial *trial);

#endif
