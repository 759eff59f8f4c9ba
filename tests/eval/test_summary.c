/* Values and standard errors: numbers worked out by hand or by other formulas. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "eval/summary.h"

static struct tp_judged judged(const double *values, const double *weights, size_t n)
{
    struct tp_judged j = {0};
    for (size_t i = 0; i < n; i++) {
        char id[32];
        snprintf(id, sizeof id, "row-%zu", i);
        assert_int_equal(tp_judged_push(&j, values[i], weights ? weights[i] : 1.0, id), TALPA_OK);
    }
    return j;
}

static struct talpa_eval_score summary(enum talpa_metric metric, const struct tp_judged *j)
{
    struct talpa_eval_score score = {.metric = metric};
    tp_summary(&score, j);
    return score;
}

static void near(double found, double expected)
{
    if (!(fabs(found - expected) <= 1e-12 * (1.0 + fabs(expected)))) fail_msg("found %.17g, expected %.17g", found, expected);
}

static void test_shares(void **state)
{
    (void)state;
    struct tp_judged j = judged((const double[]){1, 0, 1, 1}, NULL, 4);
    const struct talpa_eval_score score = summary(TALPA_METRIC_EXACT, &j);
    assert_int_equal(score.n, 4);
    near(score.value, 0.75);
    near(score.standard_error, 0.21650635094610965); /* sqrt(0.75 * 0.25 / 4) */
    tp_judged_free(&j);

    j = judged((const double[]){1, 1}, NULL, 2);
    near(summary(TALPA_METRIC_OPTION_LETTER, &j).standard_error, 0.0);
    tp_judged_free(&j);
}

static void test_mean(void **state)
{
    (void)state;
    struct tp_judged j = judged((const double[]){0.0, 0.5, 1.0}, NULL, 3);
    j.em_sum = 1.0;
    struct talpa_eval_score score = {.metric = TALPA_METRIC_F1_EM, .has_em = true};
    tp_summary(&score, &j);
    near(score.value, 0.5);
    near(score.standard_error, 0.5 / sqrt(3.0)); /* sample deviation 0.5 */
    near(score.em, 1.0 / 3.0);
    near(score.em_error, sqrt(2.0 / 27.0));
    tp_judged_free(&j);
}

/* The linearised error of a ratio of sums is that of the residuals' mean. */
static void test_ratio(void **state)
{
    (void)state;
    const double sums[] = {2.0, 9.0, 4.0}, tokens[] = {1.0, 3.0, 2.0};
    struct tp_judged j = judged(sums, tokens, 3);
    const double mean = 15.0 / 6.0, r[] = {2.0 - mean, 9.0 - 3 * mean, 4.0 - 2 * mean};
    const double deviation = sqrt((r[0] * r[0] + r[1] * r[1] + r[2] * r[2]) / 2.0), error = deviation / sqrt(3.0) / 2.0; /* mean weight 2 */
    struct talpa_eval_score score = summary(TALPA_METRIC_TOKEN_NLL, &j);
    near(score.value, mean);
    near(score.standard_error, error);
    score = summary(TALPA_METRIC_PERPLEXITY, &j);
    near(score.value, exp(mean));
    near(score.standard_error, exp(mean) * error);
    tp_judged_free(&j);

    /* Rows of no weight do not count. */
    j = judged((const double[]){2.0, 0.0, 4.0}, (const double[]){1.0, 0.0, 1.0}, 3);
    score = summary(TALPA_METRIC_TOKEN_NLL, &j);
    assert_int_equal(score.n, 2);
    near(score.value, 3.0);
    near(score.standard_error, 1.0);
    tp_judged_free(&j);

    j = judged((const double[]){5.0}, (const double[]){2.0}, 1);
    near(summary(TALPA_METRIC_PERPLEXITY, &j).standard_error, 0.0);
    tp_judged_free(&j);
    j = (struct tp_judged){0};
    assert_true(isnan(summary(TALPA_METRIC_EXACT, &j).value));
}

static void test_compare(void **state)
{
    (void)state;
    double difference = NAN, error = NAN;
    struct tp_judged before = judged((const double[]){0, 0, 1, 1}, NULL, 4), after = judged((const double[]){1, 0, 1, 1}, NULL, 4);
    assert_true(tp_summary_compare(&difference, &error, TALPA_METRIC_EXACT, &before, &after));
    near(difference, 0.25);
    near(error, 0.25); /* differences 1 0 0 0: deviation 0.5, over sqrt(4) */
    after.ids[2]++;
    assert_false(tp_summary_compare(&difference, &error, TALPA_METRIC_EXACT, &before, &after));
    tp_judged_free(&before);
    tp_judged_free(&after);

    const double weights[] = {2.0, 4.0}, old[] = {2.0, 8.0}, new[] = {1.0, 5.0};
    before = judged(old, weights, 2);
    after = judged(new, weights, 2);
    assert_true(tp_summary_compare(&difference, &error, TALPA_METRIC_TOKEN_NLL, &before, &after));
    const double d = -4.0 / 6.0, r0 = -1.0 - 2 * d, r1 = -3.0 - 4 * d;
    near(difference, d);
    near(error, sqrt(2.0 * (r0 * r0 + r1 * r1)) / 6.0);
    assert_true(tp_summary_compare(&difference, &error, TALPA_METRIC_PERPLEXITY, &before, &after));
    near(difference, exp(1.0) - exp(10.0 / 6.0));
    tp_judged_free(&before);
    tp_judged_free(&after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shares), cmocka_unit_test(test_mean), cmocka_unit_test(test_ratio),
                                       cmocka_unit_test(test_compare)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
