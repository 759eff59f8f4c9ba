/* Conformance of kernels: every case of every op (host/graph/op.h) is run on a device and compared with the op's reference in double
 * precision; gradients are compared with central differences of the references. Values are poisoned and fenced, rows past the run-time size
 * must stay untouched, and a second run must give the same bits. */
#ifndef TP_CONFORMANCE_H
#define TP_CONFORMANCE_H

#include "graph/op.h"
#include "runtime/device.h"

/** One check. Pointers are valid during the callback only. */
struct tp_conformance_result {
    const char *op, *case_name;
    const char *tier;         /* the forced tier, "" = best that applies */
    const char *what;         /* "prepare", "forward", "rows", "guard", "repeat", "gradient" (it could not be run), "gradient of <input>",
                                 "gradient guard", "gradient repeat" */
    double max_error;         /* as defined for tolerance and grad_tolerance in struct tp_case; infinite where a value is not finite */
    double tolerance;         /* 0 where bits are compared */
    enum talpa_status status; /* TALPA_OK, TALPA_E_CHECK, or what building or running failed with */
    const char *message;      /* empty on success */
};

typedef void tp_conformance_report(const struct tp_conformance_result *result, void *user);

struct tp_conformance_totals {
    int n_ops, n_cases, n_checks, n_failed;
    int n_variants; /* different variants whose kernels ran (of all ops in the graphs, the gradients' too) */
};

/** Runs the cases of one op (NULL: all) with a forced tier ("": best that applies). Ops without a variant of a forced tier other than
 *  "generic" are passed over. `report` is called once per check. A failed check is no failure of this function: see totals.n_failed.
 *  TALPA_E_ARGUMENT for an unknown op. Allocates host and device memory, all of it freed on return; programs stay with the device. */
enum talpa_status tp_conformance_run(struct tp_conformance_totals *totals, struct tp_device *device, const char *op, const char *tier,
                                     tp_conformance_report *report, void *user);

/** Whether the tier's kernels can run on the device (a matrix tier: permitted and giving right answers). */
bool tp_conformance_has_tier(struct tp_device *device, const char *tier);

/** The same with the cases only whose inputs have at most `max_elements` elements at their run-time sizes, for slow devices (Oclgrind). */
enum talpa_status tp_conformance_run_small(struct tp_conformance_totals *totals, struct tp_device *device, const char *op, const char *tier,
                                           int64_t max_elements, tp_conformance_report *report, void *user);

#endif
