/* The judged rows of a run on disk: line by line in FILE.partial, under the final name when all are there. The first line of the partial
 * file says what the run is of, so that a run with other inputs is refused instead of mixed in. */
#ifndef TP_JOURNAL_H
#define TP_JOURNAL_H

#include <stdio.h>

#include "base/arena.h"
#include "base/json.h"
#include "eval/summary.h"

/** Digests and options that rows depend on: values as text. */
struct tp_journal_input {
    const char *name, *value;
};
enum { TP_JOURNAL_MAX_INPUTS = 8 };
struct tp_journal_inputs {
    struct tp_journal_input list[TP_JOURNAL_MAX_INPUTS];
    int n;
};

/** A judged row for the file. `prediction`, `answer`, `output` may be NULL. */
struct tp_journal_row {
    const char *id, *prediction, *answer, *output;
    bool has_correct, correct, has_em, em, too_long;
    double value, weight;
};

struct tp_journal {
    struct tp_arena arena;
    const char *path, *partial, *results; /* results: eval_results.json of the folder, NULL for samples alone */
    FILE *file;                           /* NULL: nothing is written (no path), or all rows were there already */
    struct tp_json_writer *json;
    bool is_complete;
};

/** Called per row that is there already, in order. */
typedef enum talpa_status tp_journal_visit(void *user, const struct tp_journal_row *row);

/** Opens the journal for samples at `path` (NULL: nothing is kept), `results` beside it (may be NULL). Rows of an interrupted or complete
 *  run with the same inputs are visited. TALPA_E_DATA (the input that differs, found and expected) unless `overwrite`; TALPA_E_CREATE if it
 *  cannot be written or another run has it. */
enum talpa_status tp_journal_open(struct tp_journal *out, const char *path, const char *results, const struct tp_journal_inputs *inputs,
                                  bool overwrite, tp_journal_visit *visit, void *user);
/** Appends a row and hands it to the system. TALPA_E_IO. */
enum talpa_status tp_journal_row(struct tp_journal *journal, const struct tp_journal_row *row);
/** Copies the rows to their final name, then writes `text` to the results (if there is such a file), then removes the partial file. */
enum talpa_status tp_journal_commit(struct tp_journal *journal, const char *text, size_t n_bytes);
/** Keeps the partial file. Zeroed is allowed. */
void tp_journal_close(struct tp_journal *journal);

/** Reads the samples of a finished run for comparison. */
enum talpa_status tp_journal_read(struct tp_judged *out, const char *path);

/** Writes members "inputs": {..}. */
void tp_journal_write_inputs(struct tp_json_writer *json, const struct tp_journal_inputs *inputs);

#endif
