/* From judged rows to a value with its standard error, and from two lists of them to a difference. */
#ifndef TP_SUMMARY_H
#define TP_SUMMARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "talpa/eval.h"

/** Rows of one task as judged; arrays are owned. Values are scores with weight 1, or sums of negative log-likelihood over `weight` tokens.
 */
struct tp_judged {
    double *values, *weights;
    uint64_t *ids;      /* digest of the row's id, to know the same row again */
    size_t n, capacity;
    double em_sum;
};
/** Appends a row. TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_judged_push(struct tp_judged *judged, double value, double weight, const char *id);
void tp_judged_free(struct tp_judged *judged);

/** Writes n, value and standard_error (and em, em_error where has_em) of a score whose metric is set. Rows of weight 0 are not counted in
 *  n. The error of a share p is sqrt(p(1-p)/n), of another mean that of the mean; of a ratio of sums the linearised one over rows, n/(n-1)
 *  of it; 0 for one row. */
void tp_summary(struct talpa_eval_score *score, const struct tp_judged *judged);

/** after - before over the same rows in the same order, and the standard error of that difference from the rows' own differences. False if
 *  they are not the same rows. */
bool tp_summary_compare(double *difference, double *error, enum talpa_metric metric, const struct tp_judged *before,
                        const struct tp_judged *after);

#endif
