/* The output folder of a run: created, locked, freed of what killed runs left behind; its logs. */
#ifndef TP_RUN_FOLDER_H
#define TP_RUN_FOLDER_H

#include "base/arena.h"
#include "talpa/train.h"

struct tp_json_writer;

/** A JSONL file that a run appends to, row by row; a row is there as a whole or not at all. */
struct tp_run_log {
    const char *path;     /* NULL: no such log */
    const char *step_key; /* the member that holds a row's step */
    int descriptor;       /* -1 until tp_run_folder_begin */
};

struct tp_run_folder {
    struct tp_arena arena;
    const char *path;
    int lock;             /* descriptor of the lock file, -1: none */
    struct tp_run_log log, routes; /* trainer_log.jsonl, the route log */
    struct tp_json_writer *json;
};

/** Creates the folder (its parents are not created), takes its lock, checks that it can be written, removes temporary files and folders of
 *  killed runs. TALPA_E_CREATE if it cannot be written or another run holds it. `route_log` may be NULL. Logs are not touched yet. */
enum talpa_status tp_run_folder_open(struct tp_run_folder *out, const char *path, const char *route_log);
void tp_run_folder_close(struct tp_run_folder *folder);

/** Called when the first step of a run that starts after `first_step` steps is done. Moves what an earlier run left beyond that point
 *  (checkpoints; for a fresh run also best/ and the log) to previous-<n>/, of which *moved gets the name (NULL: nothing was there). The
 *  logs then have the rows up to `first_step`: their own, or those beside the checkpoint in `source` (another run's folder; NULL: none).
 *  They are replaced by renaming, so that no crash loses a row. */
enum talpa_status tp_run_folder_begin(const char **moved, struct tp_run_folder *folder, int first_step, const char *source);

/** Path of a file in the folder, owned by the folder; NULL if out of memory. */
const char *tp_run_folder_file(struct tp_run_folder *folder, const char *name);

/** Appends the finished text of folder->json as a row. TALPA_E_IO if the disk is full: the log then ends with the row before. */
enum talpa_status tp_run_folder_append(struct tp_run_folder *folder, struct tp_run_log *log);

/** Appends a row to trainer_log.jsonl. */
enum talpa_status tp_run_folder_row(struct tp_run_folder *folder, const struct talpa_train_row *row);

/** Syncs the logs: before a checkpoint that counts on their rows. */
enum talpa_status tp_run_folder_sync(struct tp_run_folder *folder);

/** Writes train_results.json. */
enum talpa_status tp_run_folder_results(struct tp_run_folder *folder, const struct talpa_train_result *result);

/* ---- run_clean.c ---- */

/** Number of a folder "checkpoint-<step>", -1 for another name. */
int tp_run_folder_checkpoint_step(const char *name);

/** Removes temporary files and folders of killed runs. */
enum talpa_status tp_run_folder_clean(struct tp_run_folder *folder);

/** Moves checkpoints beyond `first_step`, and for 0 best/ and the log, to previous-<n>/. */
enum talpa_status tp_run_folder_set_aside(const char **moved, struct tp_run_folder *folder, int first_step);

/** Removes the oldest checkpoints but for `keep`. Each gets a temporary name first, so that none is ever incomplete under its own. */
enum talpa_status tp_run_folder_rotate(struct tp_run_folder *folder, int keep);

#endif
