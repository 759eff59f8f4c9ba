/* Checkpoints: everything that decides how a run goes on, in a folder that is complete or not there.
 *
 * checkpoint-<step>/ has the adapter's three files (adapter.h: usable as an adapter), optimizer.safetensors (per adapter tensor
 * "exp_avg.<name>" and "exp_avg_sq.<name>" F32 in saved shape, "step" I32 [n_tensors] of update counts, and with held-out data
 * "eval_before.sum" I64 (the bits of doubles) and "eval_before.n" I32 per example), trainer_state.json (history.h) and checkpoint.json:
 * step, data_cursor, dispatch, sums of the log's columns, the configuration with its digest, the plans' digests, device and driver, size
 * and XXH3-64 of every other file. Its last member "seal" is the XXH3-64 of the file with the seal's digits replaced by zeros. Random
 * numbers are counter-based: seed and step are their state. */
#ifndef TP_CHECKPOINT_H
#define TP_CHECKPOINT_H

#include "adapters/adapter.h"
#include "exec/plan.h"
#include "train/evaluate.h"
#include "train/history.h"
#include "train/steer.h"
#include "train/train_config.h"

/** What a run is made of and does not change; borrowed. */
struct tp_checkpoint_run {
    const struct talpa_train_options *options;
    const struct tp_train_config *config;
    const struct tp_adapter *adapter;
    struct talpa_model *model;
    const struct tp_plan *plans[2]; /* dense, sparse; NULL: not there */
    const struct talpa_device_caps *caps;
    int total_steps;
};

/** A state of a run. Arrays are owned by whoever filled it in; those of tp_checkpoint_open are ended with tp_checkpoint_free. */
struct tp_checkpoint {
    int step;                   /* optimizer steps done */
    uint64_t cursor, total_examples; /* of the feed */
    int64_t total_tokens;
    double elapsed_s;
    bool sparse;                /* plan of the next step */
    struct tp_best best;
    bool is_steered;
    struct tp_steer_state steer; /* if is_steered */
    float *params, *m, *v;      /* [bank_elements] */
    int32_t *counts;            /* [n_tensors] updates per tensor */
    struct tp_losses before;    /* n_examples 0: no held-out data */
    uint64_t digest, digest_state;
    char plan_digest[2][24];    /* as saved: dense, sparse; "none" */
    char device[128], driver[128];
};

/** Digest of the parameters (tp_adapter_digest), and XXH3-64 over: the same bytes; the moments m, then v, of the tensors sorted by name, in
 *  saved form; their update counts (i32); the cursor (u64); in steered runs the four numbers of tp_steer_state (f64) and its steps (i64);
 *  all little-endian. */
enum talpa_status tp_checkpoint_digest(uint64_t *digest, uint64_t *digest_state, const struct tp_checkpoint *state,
                                       const struct tp_adapter *adapter);

/** Writes `folder`/checkpoint-<step>, digests included, replacing one of that name. TALPA_E_IO if the disk is full, TALPA_E_FAILED for
 *  values that are not finite: nothing is left then, and what was there before still is. */
enum talpa_status tp_checkpoint_save(const char *folder, const struct tp_checkpoint *state, const struct tp_checkpoint_run *run,
                                     const struct tp_history *history);

/** What `from` means: a checkpoint's folder, a run's folder (its newest checkpoint), "auto" (the newest of `output_dir`; *path is NULL if
 *  there is none). TALPA_E_NO_INPUT if there is no checkpoint. *path is freed with free(). */
enum talpa_status tp_checkpoint_find(char **path, const char *from, const char *output_dir);

/** Reads a checkpoint for a run, whose plans and device need not be known yet. TALPA_E_DATA (file, field, found, expected): damaged, or
 *  made with another configuration. */
enum talpa_status tp_checkpoint_open(struct tp_checkpoint *out, struct tp_history *history, const char *path,
                                     const struct tp_checkpoint_run *run);
/** Compares the saved plan digests with those of run->plans. TALPA_E_DATA if they differ, a warning with allow_plan_change. */
enum talpa_status tp_checkpoint_check_plan(const struct tp_checkpoint *checkpoint, const struct tp_checkpoint_run *run);
void tp_checkpoint_free(struct tp_checkpoint *checkpoint);

/* ---- shared by checkpoint.c and checkpoint_read.c ---- */

enum { TP_CHECKPOINT_FORMAT_VERSION = 1, TP_CHECKPOINT_N_FILES = 5 };
extern const char *const tp_checkpoint_files[TP_CHECKPOINT_N_FILES];
enum { TP_CHECKPOINT_N_STEERING = 4 };
/** Keys of tp_steer_state in checkpoint.json's "steering", in the order of the structure; with "_bits" the bits in hexadecimal. */
extern const char *const tp_checkpoint_steering[TP_CHECKPOINT_N_STEERING];

/** XXH3-64 of checkpoint.json with its seal's digits as zeros; *at is the place of the digits, NULL if there is no seal. `text` is
 *  restored. */
uint64_t tp_checkpoint_seal(char **at, char *text, size_t n_bytes);
/** Digests of the dense and the sparse plan, "none" for one that is not there. */
void tp_checkpoint_plan_digest(char hex[17], const struct tp_plan *plan);

#endif
