/* Drives the training graph step by step with batches of equal-length rows, for tests that compare with references. */
#ifndef TP_TEST_TRAIN_FIXTURE_H
#define TP_TEST_TRAIN_FIXTURE_H

#include "train/evaluate.h"

struct fixture_options {
    const char *tier;          /* forced tier, "" = best; TALPA_TIER in the environment wins */
    enum tp_dispatch dispatch;
    int batch, length;         /* rows per micro-batch, tokens per row */
    double aux_coef, learning_rate, weight_decay, max_norm;
    const int *lengths;        /* tokens of each row that are in use, the rest is left out; NULL: all */
    bool without_ce;           /* only the auxiliary losses make a gradient */
};

struct fixture {
    struct fixture_options options;
    struct talpa_model *model; /* borrowed */
    struct tp_engine engine;
    struct tp_adapter *adapter;
    float *bank;               /* host parameters */
    struct tp_train_graph train;
    struct tp_program_set set;
    struct tp_batch batch;
    struct tp_evaluator evaluator; /* made when asked for first */
};

/** Results of one step, before its update. */
struct fixture_step {
    double ce, aux, contrastive, grad_norm; /* contrastive: mean over modules */
};

/** Opens device and adapter and prepares the training graph; parameters start at zero. Failures fail the test. */
void fixture_open(struct fixture *f, struct talpa_model *model, const struct talpa_adapter_config *config,
                  const struct fixture_options *options);
void fixture_close(struct fixture *f);

/** Puts one tensor (name without "base_model.model.") into the host bank; fixture_upload then sends the bank. */
void fixture_put(struct fixture *f, const char *name, const float *values);
void fixture_upload(struct fixture *f);
/** Reads parameters or gradients into `bank` [bank_elements]. */
void fixture_read(struct fixture *f, talpa_value bank_state, float *bank);

/** Forward, backward, accumulation for ids [batch, length] with labels (unshifted, -100 ignored) as one micro-batch; then, if `update`,
 *  AdamW. */
struct fixture_step fixture_run(struct fixture *f, int step, const int32_t *ids, const int32_t *labels, bool update);

/** Mean cross entropy of ids with labels = ids under the present parameters, no dropout. */
double fixture_eval(struct fixture *f, const int32_t *ids, int n_rows);

#endif
