/* The output folder of a run: created, locked, its log. */
#ifndef TP_RUN_FOLDER_H
#define TP_RUN_FOLDER_H

#include "base/arena.h"
#include "talpa/train.h"

struct tp_json_writer;

struct tp_run_folder {
    struct tp_arena arena;
    const char *path;
    int lock;           /* descriptor of the lock file, -1: none */
    FILE *log, *routes; /* trainer_log.jsonl, the route log (NULL: none) */
    struct tp_json_writer *json;
};

/** Creates the folder (and parents are not created), takes its lock, opens the logs anew. TALPA_E_CREATE if it cannot be written or another
 *  run holds it. `route_log` may be NULL. */
enum talpa_status tp_run_folder_open(struct tp_run_folder *out, const char *path, const char *route_log);
void tp_run_folder_close(struct tp_run_folder *folder);

/** Path of a file in the folder, owned by the folder; NULL if out of memory. */
const char *tp_run_folder_file(struct tp_run_folder *folder, const char *name);

/** Appends a row to trainer_log.jsonl and flushes. TALPA_E_IO if the disk is full. */
enum talpa_status tp_run_folder_row(struct tp_run_folder *folder, const struct talpa_train_row *row);

/** Writes train_results.json. */
enum talpa_status tp_run_folder_results(struct tp_run_folder *folder, const struct talpa_train_result *result);

#endif
