/* The measured course of a run: what trainer_state.json keeps and training_loss.svg shows. */
#ifndef TP_HISTORY_H
#define TP_HISTORY_H

#include "base/json.h"
#include "talpa/train.h"

struct tp_history_row {
    int step;
    double epoch, loss, grad_norm, learning_rate, throughput;
    bool has_eval;
    double eval_loss, eval_error;
};

/** Zero-initialised before use; ended with tp_history_free. */
struct tp_history {
    struct tp_history_row *row;
    int n, room;
};

enum talpa_status tp_history_add(struct tp_history *history, const struct talpa_train_row *row);
void tp_history_free(struct tp_history *history);

/** The best measurement so far. */
struct tp_best {
    int step;         /* 0: none yet */
    double loss;
    uint64_t digest;  /* of its parameters, which best/ holds */
    int n_worse;      /* measurements since */
};

/** Writes trainer_state.json's object: the names of transformers' TrainerState, log_history with one entry per logged step. */
void tp_history_write(struct tp_json_writer *json, const struct tp_history *history, const struct tp_best *best,
                      const struct talpa_train_options *options, int step, int total_steps);

/** Reads log_history. TALPA_E_DATA naming the field; the caller adds the file. */
enum talpa_status tp_history_read(struct tp_history *out, const struct tp_json_value *root);

/** Draws losses over steps into `path`. Nothing to draw is TALPA_OK. */
enum talpa_status tp_history_chart(const struct tp_history *history, const char *path);

#endif
