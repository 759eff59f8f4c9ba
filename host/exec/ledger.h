/* The ledger: bytes that executors on one store will ask of the device, added up in the order in which they ask (exec/executor.c), without
 * a device. The sums are those that runtime/memory.c counts when the same plans are prepared. */
#ifndef TP_LEDGER_H
#define TP_LEDGER_H

#include "base/map.h"
#include "exec/plan.h"

/** Zero-initialise; ended with tp_ledger_free. */
struct tp_ledger {
    struct tp_map seen;  /* weights in a layout, and states: they are there once */
    size_t weight_bytes; /* frozen weights, row layout */
    size_t packed_bytes; /* in other layouts */
    size_t state_bytes;
    size_t input_bytes;  /* with the step words */
    size_t arena_bytes;
    size_t total_bytes;  /* after preparing; stays so while running */
    size_t peak_bytes;   /* while preparing: weights are uploaded in row layout before they are packed */
};

/** Adds an executor of these plans (those of tp_executor_create, in its order). TALPA_E_DEVICE if host memory is short. */
enum talpa_status tp_ledger_add(struct tp_ledger *ledger, const struct tp_plan *const *plans, int n_plans);
void tp_ledger_free(struct tp_ledger *ledger);

#endif
