/* Does this device compute what talpa's ops are defined to compute? */
#ifndef TALPA_VERIFY_H
#define TALPA_VERIFY_H

#include "talpa/device.h"

#ifdef __cplusplus
extern "C" {
#endif

struct talpa_verify_options {
    const char *op;       /**< one op by name, NULL: all */
    const char *tier;     /**< kernels of one tier ("generic", "cpu", "clblast"), NULL: of every tier that this device may use */
    int64_t max_elements; /**< leave out cases with more input elements than this, 0: none */
};

/** One check of one case of one op. Strings are valid during the callback. */
struct talpa_verify_check {
    const char *op, *case_name, *tier;
    const char *what;     /**< "forward", "gradient of x", "guard" (nothing written outside), "repeat" (the same bits again), ... */
    double max_error;     /**< relative to the reference in double precision, as the case defines; infinite if a value is not finite */
    double tolerance;     /**< 0 where bits are compared */
    bool passed;
    const char *message;  /**< "" if passed */
};

/** Sums per op and tier. */
struct talpa_verify_row {
    const char *op, *tier; /**< static strings */
    int n_cases, n_checks, n_failed;
    double worst;          /**< largest max_error / tolerance */
    double seconds;        /**< compiling included */
};

struct talpa_verify_callbacks {
    void (*check)(void *user, const struct talpa_verify_check *check); /**< NULL: not told */
    bool (*row)(void *user, const struct talpa_verify_row *row);       /**< after each op and tier; false stops */
    void *user;
};

/** Runs the ops' own cases on a device (index of talpa_device_list): forward against a double-precision reference, gradients against
 *  central differences of that reference, guard bytes around every value, a second run that must repeat the bits. *n_failed counts failed
 *  checks, which are no failure of this function. TALPA_E_ARGUMENT (unknown op or tier), TALPA_E_DEVICE, TALPA_E_INTERRUPTED (a callback
 *  said stop). */
enum talpa_status talpa_verify(int *n_failed, size_t device, const struct talpa_verify_options *options,
                               const struct talpa_verify_callbacks *callbacks);

#ifdef __cplusplus
}
#endif
#endif
