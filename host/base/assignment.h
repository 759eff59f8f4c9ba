/* The best one-to-one assignment of rows to columns (H. W. Kuhn, 1955; shortest augmenting paths with potentials, O(n^3)). */
#ifndef TP_ASSIGNMENT_H
#define TP_ASSIGNMENT_H

#include <stddef.h>

#include "talpa/status.h"

/** column[n]: which column each row of gain[n, n] gets so that the sum of gains is largest; among equal sums, any, but always the same.
 *  Allocates scratch; TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_assignment(size_t *column, const double *gain, size_t n);

#endif
