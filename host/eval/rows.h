/* Rows of an evaluation: JSONL lines read, checked against their metric, prompts with worked examples in front. */
#ifndef TP_ROWS_H
#define TP_ROWS_H

#include "base/arena.h"
#include "io/file_map.h"
#include "talpa/eval.h"

struct tp_eval_row {
    const char *id;                 /* the row's "id", else its number from 0 */
    const char *prompt, *completion, *answer, *text, *tests, *test_setup; /* NULL: not there; tests joined by newlines */
    const char *task;               /* NULL: none, or no string */
    double difficulty;              /* NaN: none, or no number */
    const char **choices, **answers;
    int n_choices, n_answers;
    const char *line;               /* the line itself, for kinds of rows that only token_nll takes; borrowed from the file */
    size_t n_line;
    uint64_t number;                /* of the line, from 1 */
};

struct tp_eval_rows {
    struct tp_arena arena;
    struct tp_file_map file;
    const char *path, *task; /* task: the first row's, NULL if it has none */
    struct tp_eval_row *rows;
    size_t n_rows;
    enum talpa_metric metric; /* of all rows */
    uint64_t digest;          /* of the file's bytes */
};

/** Reads up to `limit` rows (0: all) of a JSONL file. With metric auto each row says its metric and all must agree; every row must have the
 *  metric's fields. TALPA_E_NO_INPUT; TALPA_E_DATA with FILE:LINE and field, or for a file without a row. The caller frees *out. */
enum talpa_status tp_eval_rows_open(struct tp_eval_rows *out, const char *path, enum talpa_metric metric, int64_t limit);
/** One row that is a whole file of text, for perplexity. */
enum talpa_status tp_eval_rows_text(struct tp_eval_rows *out, const char *path);
void tp_eval_rows_close(struct tp_eval_rows *rows);

/** Worked examples for prompts: `n` rows of a file, the first ones or a choice drawn with `seed` in drawn order, prompt and completion
 *  joined, a blank line after each. With by text, option lines are removed and the answer's text stands in place of its letter. *out is in
 *  the arena. TALPA_E_DATA if the file has fewer rows. `digest` gets that of the file. */
enum talpa_status tp_eval_rows_examples(const char **out, uint64_t *digest, struct tp_arena *arena,
                                        const struct talpa_eval_options *options, enum talpa_metric metric);

/** The prompt without its lines "A. <choice>", "B. <choice>", ..: TALPA_E_DATA (file, line, option) if one is not there. In the arena. */
enum talpa_status tp_eval_rows_without_options(const char **out, struct tp_arena *arena, const char *path, const struct tp_eval_row *row);

#endif
