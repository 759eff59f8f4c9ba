#include "assignment.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

struct search {
    const double *gain;
    size_t n;
    double *row, *column, *slack; /* potentials [n + 1]; least reduced cost of a column so far [n + 1] */
    size_t *owner, *before;       /* row + 1 that has a column, 0: none [n + 1]; column before it on the path [n + 1] */
    bool *done;                   /* [n + 1] */
};

/* Column 0 stands for "not yet assigned"; rows and columns count from 1. */
static void add_row(struct search *s, size_t row)
{
    size_t at = 0;
    s->owner[0] = row;
    for (size_t j = 0; j <= s->n; j++) {
        s->slack[j] = INFINITY;
        s->done[j] = false;
    }
    do {
        const size_t i = s->owner[at];
        size_t next = 0;
        double least = INFINITY;
        s->done[at] = true;
        for (size_t j = 1; j <= s->n; j++) {
            if (s->done[j]) continue;
            const double cost = -s->gain[(i - 1) * s->n + j - 1] - s->row[i] - s->column[j];
            if (cost < s->slack[j]) {
                s->slack[j] = cost;
                s->before[j] = at;
            }
            if (s->slack[j] < least) {
                least = s->slack[j];
                next = j;
            }
        }
        for (size_t j = 0; j <= s->n; j++) {
            if (s->done[j]) {
                s->row[s->owner[j]] += least;
                s->column[j] -= least;
            } else {
                s->slack[j] -= least;
            }
        }
        at = next;
    } while (s->owner[at]);
    while (at) {
        const size_t from = s->before[at];
        s->owner[at] = s->owner[from];
        at = from;
    }
}

enum talpa_status tp_assignment(size_t *column, const double *gain, size_t n)
{
    const size_t m = n + 1;
    double *numbers = calloc(3 * m, sizeof *numbers);
    size_t *indices = calloc(2 * m, sizeof *indices);
    bool *done = calloc(m, sizeof *done);
    enum talpa_status status = TALPA_OK;
    if (numbers && indices && done) {
        struct search s = {.gain = gain, .n = n, .row = numbers, .column = numbers + m, .slack = numbers + 2 * m, .owner = indices,
                           .before = indices + m, .done = done};
        for (size_t i = 1; i <= n; i++) add_row(&s, i);
        for (size_t j = 1; j <= n; j++) column[s.owner[j] - 1] = j - 1;
    } else {
        status = tp_fail_memory("assignment", 3 * m * sizeof *numbers);
    }
    free(numbers);
    free(indices);
    free(done);
    return status;
}
