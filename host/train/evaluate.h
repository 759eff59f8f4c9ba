/* Held-out losses and log-probabilities: the forward graph over a data set. */
#ifndef TP_EVALUATE_H
#define TP_EVALUATE_H

#include "io/dataset.h"
#include "train/batch.h"
#include "models/engine.h"
#include "train/route_stats.h"
#include "train/train_graph.h"

struct tp_evaluator {
    struct tp_engine *engine;
    const struct tp_adapter *adapter; /* NULL: the base; borrowed */
    struct tp_eval_graph eval;
    struct tp_program_set set;
    struct tp_batch batch;
    float *nll; /* [max_labelled] of the last pass */
    uint32_t alignment; /* sequences start at multiples of it: 1, until the caller wants bits that do not depend on the pass (batch.h) */
    struct tp_route_stats *routes; /* not NULL: passes are added here (tp_evaluator_create_routed); borrowed */
    const char *task;              /* with routes: of rows that do not name theirs; borrowed */
};

/** Prepares the forward graph for passes of up to `max_tokens` rows. Adapter NULL: the base; its parameters are the store's
 *  "adapter.params". */
enum talpa_status tp_evaluator_create(struct tp_evaluator *out, struct tp_engine *engine, const struct talpa_model *model,
                                      struct tp_adapter *adapter, uint32_t max_tokens, const struct tp_plan_options *options, bool sparse);
/** The same for a mixture whose routing is to be seen: set evaluator->routes (and task) for the runs that are to be added there.
 *  TALPA_E_ARGUMENT if nothing is routed. */
enum talpa_status tp_evaluator_create_routed(struct tp_evaluator *out, struct tp_engine *engine, const struct talpa_model *model,
                                             struct tp_adapter *adapter, uint32_t max_tokens, const struct tp_plan_options *options,
                                             bool sparse);
/** The same with the number of labelled rows a pass may have; `routed` as above. */
enum talpa_status tp_evaluator_create_sized(struct tp_evaluator *out, struct tp_engine *engine, const struct talpa_model *model,
                                            struct tp_adapter *adapter, uint32_t max_tokens, uint32_t max_labelled,
                                            const struct tp_plan_options *options, bool sparse, bool routed);
void tp_evaluator_free(struct tp_evaluator *evaluator);

/** Runs the batch as it is: evaluator->nll[0 .. batch.n_labelled). */
enum talpa_status tp_evaluator_pass(struct tp_evaluator *evaluator);

/** Called per example in order: nll[n] of its labelled tokens. Returning a failure stops. */
typedef enum talpa_status tp_evaluate_visit(void *user, size_t index, const struct tp_dataset_example *example, const float *nll,
                                            uint32_t n);

/** Runs examples [0, n) of a data set, up to `batch_size` per pass. A row's result does not depend on what else is in its pass, but for
 *  rounding; with `alignment` TP_BATCH_ALIGNMENT not even so. TALPA_E_DATA for an example beyond the bounds. */
enum talpa_status tp_evaluator_run(struct tp_evaluator *evaluator, const struct tp_dataset *dataset, int batch_size,
                                   tp_evaluate_visit *visit, void *user);

/** Sums per example, kept so that two measurements can be paired. */
struct tp_losses {
    double *sum;  /* [n_examples] */
    uint32_t *n;  /* [n_examples] labelled tokens */
    size_t n_examples;
};
enum talpa_status tp_evaluator_losses(struct tp_losses *out, struct tp_evaluator *evaluator, const struct tp_dataset *dataset,
                                      int batch_size);
void tp_losses_free(struct tp_losses *losses);

/** Loss per token and its standard error over examples: a ratio of sums, error by the linearised (delta) method. */
struct talpa_eval_result tp_losses_summary(const struct tp_losses *losses);
/** Difference of two measurements of the same examples and its paired standard error. */
void tp_losses_compare(double *difference, double *error, const struct tp_losses *before, const struct tp_losses *after);

#endif
