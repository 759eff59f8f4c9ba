/* Steering: the bound of the thresholds follows what was measured, so that tokens use as many experts as is asked for.
 *
 * An integral controller on u = log(bound): after every optimizer step u += gain * log(measured / target), the logarithm cut at +-1. What
 * is measured falls as the bound rises, whatever the router; in logarithms the slope is of the order of 1, so one gain serves all targets.
 * Where it is steep (routers that are still undecided), the error changes its sign from step to step: the gain is then halved, and grows
 * again while it does not. Nothing but counts enters (no times), so that runs repeat.
 *
 * One bound for all modules, not one each: the published configuration has one number, and which modules use more experts than others is
 * what the thresholds learn; bounds that make all modules alike would undo that. */
#ifndef TP_STEER_H
#define TP_STEER_H

#include "adapters/adapter.h"

enum tp_steer_mode { TP_STEER_OFF, TP_STEER_ACTIVE, TP_STEER_OVERHEAD };

/** All that a checkpoint has to keep. */
struct tp_steer_state {
    double log_bound, gain, last_error;
    double measured; /* smoothed over the last TP_STEER_WINDOW steps or so, for reports; the controller does not read it */
    int64_t n_steps;
};

struct tp_steer {
    enum tp_steer_mode mode;
    double target;      /* experts per token and module, or percent */
    double aim, fixed;  /* the controller holds (measured - fixed) at aim */
    double least_bound; /* log_bound is never below */
    struct tp_steer_state state;
};

enum { TP_STEER_WINDOW = 16 };

/** Multiplications of an adapter in percent of those of the frozen products in the decoder's layers (not the vocabulary's, which run for
 *  labelled rows only): routers, and experts as selected: counts[m * TP_CONCAT_ALIGN + e] of `n_rows` tokens. What a sparse plan computes;
 *  a dense one computes all experts. */
double tp_steer_overhead(const struct tp_adapter *adapter, const struct talpa_model *model, const int32_t *counts, double n_rows);

/** Prepares what the options ask for (mode TP_STEER_OFF: nothing) and sets adapter->is_steered. TALPA_E_ARGUMENT, naming the flag, for what
 *  cannot be: both, a router without threshold, more experts than there are, less than the routers cost. */
enum talpa_status tp_steer_create(struct tp_steer *out, struct tp_adapter *adapter, const struct talpa_model *model,
                                  const struct talpa_train_options *options);

/** After a step: `active` experts per token and module, tp_steer_overhead in percent. Sets the adapter's bound for the next step. */
enum talpa_status tp_steer_update(struct tp_steer *steer, struct tp_adapter *adapter, double active, double overhead);

/** Makes a saved state the present one. */
enum talpa_status tp_steer_restore(struct tp_steer *steer, struct tp_adapter *adapter, const struct tp_steer_state *state);

#endif
