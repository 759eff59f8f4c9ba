/* Finding the fastest kernel parameters on a device. */
#ifndef TALPA_TUNE_H
#define TALPA_TUNE_H

#include "talpa/device.h"
#include "talpa/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct talpa_tune_options {
    const struct talpa_model *model; /**< its linears are the shapes that are timed; NULL: those of SmolLM2-135M in Q4_1 and f32 */
    int n_rows;                      /**< rows (tokens) of the products, from 1 */
    int repetitions;                 /**< timed turns of a variant and of the best one so far, from 3, taken alternately */
    const char *file;                /**< written at the end; NULL: the user's tuning file (TALPA_TUNING, else the cache folder) */
    bool dry_run;                    /**< measure and report, write nothing */
};

/** Fills *options: no model, 512 rows, 7 repetitions. */
void talpa_tune_default(struct talpa_tune_options *options);

/** One variant of one parameter. Strings are valid during the callback. */
struct talpa_tune_trial {
    const char *kernel, *name, *value; /**< file below kernels/, parameter, value that was tried */
    double speed;                      /**< of the best value so far = 1: geometric mean over the shapes; 0 if refused */
    double max_error;                  /**< largest relative error against double precision */
    bool accepted;                     /**< it is the best from now on */
    const char *refusal;               /**< why it was refused (wrong result, cannot be compiled); "" if it was not */
};

/** One parameter at the end. */
struct talpa_tune_row {
    const char *kernel, *name, *before, *after;
    double speed; /**< of `after` against `before`, both measured together; 1 if nothing changed */
    int n_tried, n_refused;
};

struct talpa_tune_callbacks {
    bool (*trial)(void *user, const struct talpa_tune_trial *trial); /**< NULL: not told; false stops */
    bool (*row)(void *user, const struct talpa_tune_row *row);       /**< NULL: not told; false stops */
    void *user;
};

/** Searches the parameters that kernels declare, one after the other, on the device (index of talpa_device_list): every choice is first
 *  checked against products in double precision (a variant that computes something else is never kept), then timed in turns with the best
 *  one so far; it has to be 2 % faster to be kept. At the end the file is replaced as a whole; its entries for other devices stay. Takes
 *  minutes. TALPA_E_ARGUMENT (options), TALPA_E_DATA (the present file is damaged), TALPA_E_CREATE, TALPA_E_IO (it cannot be written),
 *  TALPA_E_DEVICE, TALPA_E_INTERRUPTED (a callback said stop; nothing is written). */
enum talpa_status talpa_tune(size_t device, const struct talpa_tune_options *options, const struct talpa_tune_callbacks *callbacks);

#ifdef __cplusplus
}
#endif
#endif
