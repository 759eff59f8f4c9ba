/* The insides of an executor, for the files of host/exec/ only. */
#ifndef TP_EXECUTOR_IMPL_H
#define TP_EXECUTOR_IMPL_H

#include "exec/executor.h"
#include "runtime/program.h"
#include "runtime/queue.h"

struct tp_prepared {
    const struct tp_launch *launch;
    const char *what;         /* op or group, for messages */
    struct tp_kernel *kernel; /* NULL for copies and library calls */
    struct tp_kernel_arg args[TP_MAX_ARGS];
    size_t piece_groups; /* groups of dimension 0 per enqueued piece */
};

/* Rows of a weight that launches in the queue pack from. */
struct tp_staged {
    const struct tp_store_source *source;
    struct tp_buffer *buffer;
    void *reordered; /* the memory under it, if the rows could not stay where the source has them */
};

struct tp_executor {
    struct tp_device *device;
    struct tp_store *store;
    struct tp_plan *plans[TP_MAX_PLANS];
    int n_plans;
    struct tp_buffer **segments;
    size_t *segment_bytes;
    int n_segments;
    struct tp_buffer **inputs; /* per value of the graph; NULL unless it is an input */
    struct tp_buffer *step;
    struct tp_step step_words; /* host copy, for library calls */
    struct tp_buffer **views;  /* sub-buffers made for arguments, freed with the executor */
    size_t n_views, view_room;
    struct tp_prepared *prepared[TP_MAX_PLANS][TP_N_PHASES];
    struct tp_staged *staged;
    size_t n_staged, staged_room, reordered_bytes;
    int n_launches;
    double launch_limit_ms; /* 0: no bound */
};

/** Enqueues one launch, in pieces where it is long. A failure names op and scope. */
enum talpa_status tp_executor_enqueue(struct tp_executor *executor, const struct tp_prepared *prepared);

/** Groups of dimension 0 per piece of a launch on this device. */
size_t tp_executor_piece_groups(const struct tp_executor *executor, const struct tp_plan *plan, const struct tp_launch *launch);

/** Uploads and packs what the plan reads and the store does not have yet. Does not wait: rows stay staged. */
enum talpa_status tp_executor_load_weights(struct tp_executor *executor, const struct tp_plan *plan);
/** Waits for the launches that read staged rows, and frees those. */
enum talpa_status tp_executor_release_staged(struct tp_executor *executor);

/** Tells the queue what the next launch is: `part` of `launch` (1: all of it). Only to be called while the queue records. */
void tp_executor_describe(struct tp_executor *executor, const struct tp_launch *launch, double part);

#endif
