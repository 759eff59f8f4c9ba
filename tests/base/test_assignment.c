/* The best assignment, against all permutations. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/assignment.h"
#include "base/rng.h"

enum { MOST = 7 };

static double best_of(const double *gain, size_t n, size_t row, unsigned used)
{
    double best = -INFINITY;
    if (row == n) return 0.0;
    for (size_t j = 0; j < n; j++)
        if (!(used & 1u << j)) best = fmax(best, gain[row * n + j] + best_of(gain, n, row + 1, used | 1u << j));
    return best;
}

static void test_all_permutations(void **state)
{
    (void)state;
    for (uint64_t trial = 0; trial < 200; trial++) {
        const size_t n = 1 + (size_t)(trial % MOST);
        double gain[MOST * MOST], sum = 0.0;
        size_t column[MOST];
        unsigned used = 0;
        /* Small whole numbers in every other trial, for ties. */
        for (size_t i = 0; i < n * n; i++) {
            const double value = (double)(tp_rng_splitmix64(trial, i) >> 11) / 9007199254740992.0 - 0.5;
            gain[i] = trial % 2 ? value : floor(6.0 * value);
        }
        assert_int_equal(tp_assignment(column, gain, n), TALPA_OK);
        for (size_t i = 0; i < n; i++) {
            assert_true(column[i] < n && !(used & 1u << column[i]));
            used |= 1u << column[i];
            sum += gain[i * n + column[i]];
        }
        const double best = best_of(gain, n, 0, 0);
        if (fabs(sum - best) > 1e-12) fail_msg("trial %u: %.17g, expected %.17g", (unsigned)trial, sum, best);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_permutations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
