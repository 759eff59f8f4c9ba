#include "steer.h"

#include <math.h>

#include "graph/op.h"

static const double start_gain = 0.3, least_gain = 0.02, most_gain = 1.0, gain_growth = 1.1;
/* Changes of sign by less than this are the noise of batches. */
static const double swing = 0.1;
/* A ceiling is aimed at from a little below. */
static const double below_ceiling = 0.98;

static double frozen_cost(const struct talpa_model *model)
{
    double cost = 0.0;
    for (int linear = 0; linear < TP_N_LINEARS; linear++) {
        int d_out, d_in;
        tp_linear_shape(&model->config, (enum tp_linear)linear, &d_out, &d_in);
        cost += (double)model->config.n_layers * d_out * d_in;
    }
    return cost;
}

static double router_overhead(const struct tp_adapter *adapter, const struct talpa_model *model)
{
    const int n_scores = adapter->router->has_gating ? adapter->config.n_experts + adapter->router->has_threshold : 0;
    double cost = 0.0;
    for (int m = 0; m < adapter->n_modules; m++) cost += (double)n_scores * adapter->modules[m].d_in;
    return 100.0 * cost / frozen_cost(model);
}

double tp_steer_overhead(const struct tp_adapter *adapter, const struct talpa_model *model, const int32_t *counts, double n_rows)
{
    double cost = 0.0;
    for (int m = 0; m < adapter->n_modules; m++) {
        double selected = 0.0;
        for (int e = 0; e < adapter->config.n_experts; e++) selected += counts[m * TP_CONCAT_ALIGN + e];
        cost += selected * adapter->config.rank * (adapter->modules[m].d_in + adapter->modules[m].d_out);
    }
    return router_overhead(adapter, model) + 100.0 * cost / (n_rows * frozen_cost(model));
}

static enum talpa_status check(const struct talpa_train_options *o, const struct tp_adapter *adapter, const struct talpa_model *model)
{
    const char *flag = o->target_active_experts != 0.0 ? "--target-active-experts" : "--max-overhead";
    const double given = o->target_active_experts != 0.0 ? o->target_active_experts : o->max_overhead;
    const int n_experts = adapter->config.n_experts;
    if (o->target_active_experts != 0.0 && o->max_overhead != 0.0)
        return tp_fail(TALPA_E_ARGUMENT, "--target-active-experts %g and --max-overhead %g both steer the threshold: give one of them",
                       o->target_active_experts, o->max_overhead);
    if (!adapter->router->gate_steered)
        return tp_fail(TALPA_E_ARGUMENT, "%s %g: routing %s has no threshold to steer, expected adamole or threshold", flag, given,
                       adapter->router->name);
    if (!(given > 0.0 && isfinite(given))) return tp_fail(TALPA_E_ARGUMENT, "%s is %g, expected above 0", flag, given);
    if (o->target_active_experts > n_experts)
        return tp_fail(TALPA_E_ARGUMENT, "--target-active-experts is %g, expected at most the number of experts %d", given, n_experts);
    const double routers = router_overhead(adapter, model);
    if (o->max_overhead != 0.0 && o->max_overhead * below_ceiling <= routers)
        return tp_fail(TALPA_E_ARGUMENT,
                       "--max-overhead is %g percent, expected above %.3g: so much the routers cost by themselves; use fewer experts or "
                       "modules",
                       given, routers / below_ceiling);
    return TALPA_OK;
}

enum talpa_status tp_steer_create(struct tp_steer *out, struct tp_adapter *adapter, const struct talpa_model *model,
                                  const struct talpa_train_options *options)
{
    struct tp_steer steer = {0};
    if (options->target_active_experts == 0.0 && options->max_overhead == 0.0) {
        *out = steer;
        return TALPA_OK;
    }
    TP_TRY(check(options, adapter, model));
    steer.state = (struct tp_steer_state){.log_bound = log(tp_adapter_max_threshold(adapter)), .gain = start_gain};
    if (options->target_active_experts != 0.0) {
        steer.mode = TP_STEER_ACTIVE;
        steer.target = steer.aim = options->target_active_experts;
        steer.least_bound = log(1e-6);
    } else {
        /* A ceiling only takes experts away: the bound never falls below where it began. */
        steer.mode = TP_STEER_OVERHEAD;
        steer.target = options->max_overhead;
        steer.fixed = router_overhead(adapter, model);
        steer.aim = options->max_overhead * below_ceiling - steer.fixed;
        steer.least_bound = steer.state.log_bound;
    }
    adapter->is_steered = true;
    *out = steer;
    return TALPA_OK;
}

static enum talpa_status set_bound(struct tp_steer *s, struct tp_adapter *adapter)
{
    s->state.log_bound = fmin(fmax(s->state.log_bound, s->least_bound), 0.0);
    return tp_adapter_set_max_threshold(adapter, exp(s->state.log_bound), "the steered threshold");
}

enum talpa_status tp_steer_update(struct tp_steer *s, struct tp_adapter *adapter, double active, double overhead)
{
    if (s->mode == TP_STEER_OFF) return TALPA_OK;
    struct tp_steer_state *state = &s->state;
    const double measured = s->mode == TP_STEER_ACTIVE ? active : overhead, least = s->aim * exp(-1.0);
    const double error = fmin(log(fmax(measured - s->fixed, least) / s->aim), 1.0);
    const bool swings = error * state->last_error < 0.0 && fabs(error - state->last_error) > swing;
    state->gain = swings ? fmax(0.5 * state->gain, least_gain) : fmin(gain_growth * state->gain, most_gain);
    state->log_bound += state->gain * error;
    state->last_error = error;
    state->n_steps++;
    state->measured += (measured - state->measured) / (double)(state->n_steps < TP_STEER_WINDOW ? state->n_steps : TP_STEER_WINDOW);
    return set_bound(s, adapter);
}

enum talpa_status tp_steer_restore(struct tp_steer *s, struct tp_adapter *adapter, const struct tp_steer_state *state)
{
    s->state = *state;
    return s->mode == TP_STEER_OFF || !state->n_steps ? TALPA_OK : set_bound(s, adapter);
}
