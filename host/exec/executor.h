/* The executor: prepares plans on a device (builds kernels, packs frozen weights, allocates) and runs them. No host read happens inside a
 * run; values are read by name or number afterwards. */
#ifndef TP_EXECUTOR_H
#define TP_EXECUTOR_H

#include "exec/plan.h"
#include "exec/store.h"

struct tp_executor;

enum { TP_MAX_PLANS = 2 };

/** Prepares `n_plans` (1 or 2, e.g. dense and sparse) of the same graph on the store's device: they share inputs, states, weights and arena.
 *  Plans and store are borrowed and outlive the executor. Compiles, allocates, uploads and waits: afterwards only the device can fail.
 *  TALPA_E_INTERNAL if a weight is not bound or bound with another type; TALPA_E_DEVICE with the build log or the allocation that failed. */
enum talpa_status tp_executor_create(struct tp_executor **out, struct tp_store *store, struct tp_plan *const *plans, int n_plans);
void tp_executor_free(struct tp_executor *executor);

/** Copies host data into an input or a state; n_bytes may be less than the bound (run-time sizes). Blocks until copied. */
enum talpa_status tp_executor_write(struct tp_executor *executor, talpa_value value, const void *data, size_t n_bytes);
/** Copies a state, an input or a value marked as output to the host. Waits for everything enqueued. */
enum talpa_status tp_executor_read(struct tp_executor *executor, talpa_value value, void *data, size_t n_bytes);

/** Sets the step parameters for the runs that follow. */
enum talpa_status tp_executor_step(struct tp_executor *executor, const struct tp_step *step);

/** Enqueues all launches of a phase of a plan; does not wait. */
enum talpa_status tp_executor_run(struct tp_executor *executor, int plan, enum tp_phase phase);
enum talpa_status tp_executor_finish(struct tp_executor *executor);

/** Launches enqueued by the last run, pieces of split launches counted. */
int tp_executor_n_launches(const struct tp_executor *executor);

/** The first value of a run that is not finite. Strings are the graph's. */
struct tp_nonfinite {
    bool found;
    int32_t node;             /* that made it */
    talpa_value value_number; /* its output, also as number of the node's outputs */
    int output;
    const char *op, *scope;
    bool is_backward;
    int64_t row, column;      /* of the first such element; the value seen as a matrix [dim 0, all else] */
    float value;
};

/** Runs a phase like tp_executor_run, but node by node, and reads every f32 output (of run-time size) as soon as it is there; stops after the
 *  first node with an infinity or a NaN. Slow: for naming a fault. Needs inputs and step words as for the run that showed it; states change
 *  as in a run up to where it stops, and values marked as outputs are lost. Outputs that an op calls opaque are not looked at. */
enum talpa_status tp_executor_find_nonfinite(struct tp_nonfinite *out, struct tp_executor *executor, int plan, enum tp_phase phase);

/** Tests: fills the arena with 0xFF (NaN), and after a run checks that no byte outside a value was written (plans made with guard_bytes).
 *  TALPA_E_CHECK names segment and offset. */
enum talpa_status tp_executor_poison(struct tp_executor *executor);
enum talpa_status tp_executor_check_guards(struct tp_executor *executor);

#endif
