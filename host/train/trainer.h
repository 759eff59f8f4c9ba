/* The trainer: what the parts of the training loop share. */
#ifndef TP_TRAINER_H
#define TP_TRAINER_H

#include "adapters/adapter.h"
#include "models/engine.h"
#include "train/evaluate.h"
#include "train/feed.h"
#include "train/checkpoint.h"
#include "train/run_folder.h"
#include "train/steer.h"
#include "train/train_graph.h"

struct tp_trainer {
    const struct talpa_train_options *options;
    const struct talpa_train_callbacks *callbacks;
    struct talpa_model *model;
    struct tp_engine engine;
    struct tp_adapter *adapter;
    float *bank;              /* host copy of the parameters */
    int32_t *selected;        /* selection counts of the last step */
    struct tp_train_graph train;
    struct tp_program_set set;
    struct tp_dataset *data, *eval_data;
    struct tp_evaluator evaluator;
    struct tp_route_stats routes; /* of the held-out rows at the end */
    struct tp_losses before, after;
    struct tp_run_folder folder;
    struct tp_feed feed;
    int step;                 /* the present one, from 1 */
    bool sparse;              /* plan of the next step */
    struct tp_steer steer;
    double *rates;            /* throughput per step, for the median; 0: not known */
    struct talpa_train_options resolved; /* what `options` points to: the caller's, with warmup_steps filled in */
    struct tp_train_config config;
    struct tp_history history;
    struct tp_best best;
    int first_step;           /* steps done before this run */
    int saved_step;           /* of the newest checkpoint */
    double training_s;        /* time in steps so far */
    int64_t total_tokens;
    uint64_t digest_state;    /* of the newest checkpoint */
    const char *checkpoint_path; /* what is resumed, NULL: nothing; owned by folder.arena */
    struct tp_checkpoint checkpoint; /* its contents until tp_trainer_resume */
    const char *source;       /* resumed from the folder of another run, else NULL; owned by folder.arena */
};

/** A line for the user (talpa_train_callbacks.note). */
void tp_trainer_note(const struct tp_trainer *trainer, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- train_step.c ---- */

/** Sparse plans pay where most experts are idle; with no step measured yet, only top-k tells beforehand. */
bool tp_trainer_few_active(const struct tp_adapter *adapter, double active);

/** Which plans a run needs, and which one its first step takes. */
struct tp_train_dispatch {
    bool dense, sparse, starts_sparse;
};
struct tp_train_dispatch tp_train_dispatch(const struct talpa_train_options *options, const struct tp_adapter *adapter);

/** Runs optimizer step `step` (from 0) and fills `row` but for times over the run, peak and digest. */
enum talpa_status tp_trainer_step(struct tp_trainer *trainer, int step, struct talpa_train_row *row);

/** Writes a micro-batch of the present step and its step words to the device. */
enum talpa_status tp_trainer_put_micro(struct tp_trainer *trainer, double rate, const struct tp_feed_step *fed, int micro);

/* ---- guard.c ---- */

enum { TP_ALL_MICRO = -1 };

/** After `what` ("loss") came out not finite: runs micro-batch `micro` again (TP_ALL_MICRO: all of the step, then the update) node by node
 *  and returns TALPA_E_CHECK with a message that names step, micro-batch, layer, op and element. The parameters must be those of the run
 *  that showed it; an update with a norm that is not finite leaves them alone. The states are of no use afterwards. */
enum talpa_status tp_trainer_explain(struct tp_trainer *trainer, double rate, const struct tp_feed_step *fed, int micro, const char *what);

/** TALPA_E_CHECK naming the first trainable element of the bank (host copy) that is not finite. */
enum talpa_status tp_trainer_check_bank(const struct tp_trainer *trainer, const float *bank);

/* ---- trainer_routes.c ---- */

/** Appends the step's selection counts to the route log, if there is one. */
enum talpa_status tp_trainer_log_routes(struct tp_trainer *trainer, const struct talpa_train_row *row);
/** With a route log and held-out rows: the evaluator's passes from now on are kept in trainer->routes. */
enum talpa_status tp_trainer_watch_routes(struct tp_trainer *trainer);
/** Ends that: appends the records to the log, saves routing.svg, tells the summary. Nothing if nothing was watched. */
enum talpa_status tp_trainer_save_routes(struct tp_trainer *trainer);

/* ---- trainer_state.c ---- */

/** Reads the parameters into the host bank and digests them. */
enum talpa_status tp_trainer_parameters(struct tp_trainer *trainer, uint64_t *digest);

/** Makes the run's configuration and, if --resume-from finds a checkpoint, reads it. TALPA_E_DATA as tp_checkpoint_open. */
enum talpa_status tp_trainer_find(struct tp_trainer *trainer);

/** Puts everything in the state that tp_trainer_find read, once the plans are made. TALPA_E_DATA as tp_checkpoint_check_plan. */
enum talpa_status tp_trainer_resume(struct tp_trainer *trainer);

/** When the first step is done: from now on this run owns the folder. Begins the logs, saves train_config.json. */
enum talpa_status tp_trainer_begin(struct tp_trainer *trainer);

/** Saves checkpoint-<step>, the adapter, the picture of the losses; removes checkpoints beyond --save-total-limit. */
enum talpa_status tp_trainer_save(struct tp_trainer *trainer, int step);

/** After a step that --eval-steps asks to measure: fills the row's eval members, counts, keeps a new best in best/. */
enum talpa_status tp_trainer_evaluate(struct tp_trainer *trainer, struct talpa_train_row *row);

/** Makes the best parameters the present ones and saves them in the output folder. *loaded is false if nothing was measured. */
enum talpa_status tp_trainer_load_best(struct tp_trainer *trainer, bool *loaded);

#endif
