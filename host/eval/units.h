/* What is asked of the model: rows of a task as token sequences, each with what its judgement needs. */
#ifndef TP_UNITS_H
#define TP_UNITS_H

#include "eval/likelihood.h"
#include "eval/rows.h"

/** One thing to judge: a row, or a window of a text file. */
struct tp_eval_unit {
    const char *id;
    const struct tp_eval_row *row;
    const int32_t *prompt; /* generation: [n_prompt] */
    uint32_t n_prompt;
    size_t first_item, n_items; /* likelihood: its sequences */
    uint32_t n_options;         /* option_letter: 1 item with a label per option, or an item per option */
    bool too_long;
};

struct tp_eval_units {
    struct tp_arena arena;
    struct tp_eval_unit *units;
    size_t n_units, unit_capacity;
    struct tp_likelihood_item *items;
    size_t n_items, item_capacity;
    uint32_t longest, most_labels; /* tokens of the longest sequence or prompt; labels of one item */
    size_t n_too_long;
    enum talpa_metric metric;
    enum talpa_option_by by;
};

/** True where the output is generated rather than scored. */
bool tp_eval_is_generated(enum talpa_metric metric, enum talpa_option_by by);

/** Tokenises all rows: worked examples, prompt (BOS only if the model file says so), then what is scored, tokenised by itself. `ctx` tokens
 *  at most per sequence: longer ones are marked too_long and have no items; texts for perplexity are cut into windows of `ctx` that add
 *  `stride` tokens each. is_text: a unit per window instead of per row. TALPA_E_DATA for a row without a token. The caller frees *out;
 *  `rows` outlives it. */
enum talpa_status tp_eval_units_create(struct tp_eval_units *out, const struct talpa_model *model, const struct tp_eval_rows *rows,
                                       const char *examples, enum talpa_metric metric, enum talpa_option_by by, uint32_t ctx,
                                       uint32_t stride, bool is_text);
void tp_eval_units_free(struct tp_eval_units *units);

#endif
