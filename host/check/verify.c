/* The ops' cases behind the public API. */
#include <stdint.h>
#include <string.h>

#include "base/clock.h"
#include "base/status.h"
#include "conformance.h"
#include "exec/tier.h"
#include "talpa/verify.h"

struct verifier {
    const struct talpa_verify_callbacks *callbacks;
    double worst;
};

static void report(const struct tp_conformance_result *result, void *user)
{
    struct verifier *v = user;
    if (result->tolerance > 0.0 && result->max_error / result->tolerance > v->worst) v->worst = result->max_error / result->tolerance;
    if (!v->callbacks->check) return;
    const struct talpa_verify_check check = {.op = result->op, .case_name = result->case_name, .tier = result->tier, .what = result->what,
                                             .max_error = result->max_error, .tolerance = result->tolerance, .passed = result->status == TALPA_OK,
                                             .message = result->status == TALPA_OK ? "" : result->message};
    v->callbacks->check(v->callbacks->user, &check);
}

static enum talpa_status run_op(int *n_failed, struct verifier *v, struct tp_device *device, const struct tp_op *op, const char *tier,
                                int64_t max_elements)
{
    struct tp_conformance_totals totals;
    const int64_t started = tp_clock_now_ns();
    v->worst = 0.0;
    TP_TRY(tp_conformance_run_small(&totals, device, op->name, tier, max_elements, report, v));
    *n_failed += totals.n_failed;
    if (!totals.n_ops || !v->callbacks->row) return TALPA_OK;
    const struct talpa_verify_row row = {.op = op->name, .tier = tier, .n_cases = totals.n_cases, .n_checks = totals.n_checks,
                                         .n_failed = totals.n_failed, .worst = v->worst, .seconds = (double)(tp_clock_now_ns() - started) * 1e-9};
    return v->callbacks->row(v->callbacks->user, &row) ? TALPA_OK : tp_fail(TALPA_E_INTERRUPTED, "verification stopped at op %s", op->name);
}

static enum talpa_status run(int *n_failed, struct tp_device *device, const struct talpa_verify_options *options, struct verifier *v)
{
    const int64_t max_elements = options->max_elements > 0 ? options->max_elements : INT64_MAX;
    for (size_t i = 0; i < tp_n_ops; i++) {
        if (options->op && strcmp(options->op, tp_ops[i]->name)) continue;
        for (int t = 0; t < TP_N_TIERS; t++) {
            if (options->tier && strcmp(options->tier, tp_tiers[t])) continue;
            if (!tp_conformance_has_tier(device, tp_tiers[t])) continue;
            TP_TRY(run_op(n_failed, v, device, tp_ops[i], tp_tiers[t], max_elements));
        }
    }
    return TALPA_OK;
}

enum talpa_status talpa_verify(int *n_failed, size_t device, const struct talpa_verify_options *options, const struct talpa_verify_callbacks *callbacks)
{
    if (options->op && !tp_op_find(options->op)) return tp_fail(TALPA_E_ARGUMENT, "no op is called '%s'", options->op);
    if (options->tier && !tp_tier_is_known(options->tier))
        return tp_fail(TALPA_E_ARGUMENT, "no tier is called '%s', expected %s", options->tier, tp_tier_names());
    struct tp_device *opened;
    struct verifier v = {.callbacks = callbacks};
    int failed = 0;
    TP_TRY(tp_device_open(&opened, device, false));
    const enum talpa_status status = run(&failed, opened, options, &v);
    tp_device_close(opened);
    if (status == TALPA_OK) *n_failed = failed;
    return status;
}
