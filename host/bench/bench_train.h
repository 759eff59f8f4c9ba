/* Training steps that can be repeated: shared by bench_train.c and bench_ops.c. */
#ifndef TP_BENCH_TRAIN_H
#define TP_BENCH_TRAIN_H

#include "bench_impl.h"
#include "train/trainer.h"

struct tp_bench_training {
    const struct talpa_train_options *options;
    struct tp_bench_recorder recorder;
    bool has_recorder, is_sparse;
    struct tp_adapter *adapter;
    struct tp_engine engine;
    struct tp_train_graph train;
    struct tp_program_set set;
    struct tp_batch batch;
    int step;
};

/** Prepares everything; tp_bench_training_free afterwards, also after a failure. */
enum talpa_status tp_bench_training_create(struct tp_bench_training *training, struct talpa_model *model,
                                           const struct talpa_bench_options *options);
void tp_bench_training_free(struct tp_bench_training *training);

/** One optimizer step (a tp_bench_run_once). TALPA_E_CHECK if loss or gradient norm is not finite. */
enum talpa_status tp_bench_training_step(void *training, double *ns);

#endif
