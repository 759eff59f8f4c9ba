/* Numbers that are not finite: found where they arise, and never saved. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "train/trainer.h"

static const char advice[] = "try a lower --learning-rate; the parameters of the last save are kept";

static enum talpa_status check_bank(const struct tp_trainer *t, const float *bank, const char *when)
{
    for (int i = 0; i < t->adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *tensor = &t->adapter->tensors[i];
        const float *values = bank + tensor->offset;
        for (int64_t k = 0; k < (int64_t)tensor->rows * tensor->columns; k++)
            if (!isfinite(values[k]))
                return tp_fail(TALPA_E_CHECK, "step %d: element %" PRId64 " of %s is %g %s: %s", t->step, k, tensor->name,
                               (double)values[k], when, advice);
    }
    return TALPA_OK;
}

enum talpa_status tp_trainer_check_bank(const struct tp_trainer *t, const float *bank) { return check_bank(t, bank, "after the update"); }

/* A micro-batch counts from 1 in messages; 0 stands for the update. */
static enum talpa_status report(const struct tp_trainer *t, const struct tp_nonfinite *found, int micro, const char *what)
{
    char where[48] = "update";
    if (micro) snprintf(where, sizeof where, "micro-batch %d", micro);
    return tp_fail(TALPA_E_CHECK,
                   "step %d, %s: the %s is not finite; first value that is not: at %s, op %s%s, output %d, element [%" PRId64 ", %" PRId64
                   "] is %s: %s",
                   t->step, where, what, found->scope[0] ? found->scope : "top", found->op, found->is_backward ? " (backward part)" : "",
                   found->output, found->row, found->column,
                   isnan(found->value)   ? "nan"
                   : found->value < 0.0f ? "-inf"
                                         : "inf",
                   advice);
}

/* What went into the run: the parameters as they are on the device. */
static enum talpa_status check_parameters(const struct tp_trainer *t)
{
    const size_t n_bytes = (size_t)t->adapter->bank_elements * sizeof(float);
    float *bank = malloc(n_bytes);
    if (!bank) return tp_fail_memory("diagnosis", n_bytes);
    enum talpa_status status = tp_executor_read(t->set.executor, t->train.params, bank, n_bytes);
    if (status == TALPA_OK) status = check_bank(t, bank, "before the step");
    free(bank);
    return status;
}

enum talpa_status tp_trainer_explain(struct tp_trainer *t, double rate, const struct tp_feed_step *fed, int micro, const char *what)
{
    const int plan = t->set.plan_of[t->sparse], first = micro == TP_ALL_MICRO ? 0 : micro;
    const int end = micro == TP_ALL_MICRO ? fed->n_micro : micro + 1;
    struct tp_nonfinite found = {.found = false};
    TP_TRY(check_parameters(t));
    for (int i = first; i < end; i++) {
        TP_TRY(tp_trainer_put_micro(t, rate, fed, i));
        TP_TRY(tp_executor_find_nonfinite(&found, t->set.executor, plan, TP_PHASE_BATCH));
        if (found.found) return report(t, &found, i + 1, what);
    }
    if (micro == TP_ALL_MICRO) TP_TRY(tp_executor_find_nonfinite(&found, t->set.executor, plan, TP_PHASE_UPDATE));
    if (found.found) return report(t, &found, 0, what);
    return tp_fail(TALPA_E_CHECK, "step %d: the %s is not finite, but was when the step ran again: the device computes unreliably", t->step,
                   what);
}
