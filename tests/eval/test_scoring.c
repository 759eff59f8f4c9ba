/* Scoring rules: fixed cases from their descriptions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/scoring.h"
#include "talpa/eval.h"

static void check_number(const char *output, const char *digits)
{
    char text[64] = "";
    double value = NAN;
    const bool found = tp_scoring_number(&value, text, sizeof text, output);
    if (found != (digits != NULL)) fail_msg("'%s': %s", output, found ? text : "no number found");
    if (!found) return;
    assert_string_equal(text, digits);
    assert_true(value == strtod(digits, NULL));
}

static void test_number(void **state)
{
    (void)state;
    check_number("She has 3 + 4 = 7.\n#### 7", "7");
    check_number("#### $1,234.50 or so, not 9", "1234.50");
    check_number("####\n-12", "-12");
    check_number("so 5 apples, then 12 of them", "12");
    check_number("costs $1,000,000.", "1000000");
    check_number("#### none, but 8 before", "8");
    check_number("4 #### nothing here", "4"); /* no number after the marks: the last of all */
    check_number("1 #### 2 #### 3", "2");     /* the first marks */
    check_number("3.", "3");
    check_number("half is .5", ".5");
    check_number("a gap...5", "5");
    check_number("1.2.3", "3");
    check_number("16-3", "-3");
    check_number("16 - 3", "3");
    check_number("no digits", NULL);
    check_number("", NULL);
    check_number("$,-", NULL);
    assert_true(tp_scoring_number_equal(1.0, 1.001) && tp_scoring_number_equal(1.001, 1.0) && tp_scoring_number_equal(18.0, 18.0005));
    assert_false(tp_scoring_number_equal(1.0, 1.00101));
    assert_false(tp_scoring_number_equal(NAN, 1.0));
    double value = 0.0;
    assert_true(tp_scoring_is_number(&value, " $1,250 ") && value == 1250.0);
    assert_true(tp_scoring_is_number(&value, "-0.75") && value == -0.75);
    assert_false(tp_scoring_is_number(&value, "12 vells"));
    assert_false(tp_scoring_is_number(&value, ""));
}

static void test_letters(void **state)
{
    (void)state;
    assert_int_equal(tp_scoring_generated_letter("because of this\n#### B"), 'B');
    assert_int_equal(tp_scoring_generated_letter("####(D), not A"), 'D');
    assert_int_equal(tp_scoring_generated_letter("First A, then C. DAB"), 'C');
    assert_int_equal(tp_scoring_generated_letter("it is (E)"), 'E');
    assert_int_equal(tp_scoring_generated_letter("B #### none"), 'B');
    assert_int_equal(tp_scoring_generated_letter("A1 B_ \xC3\xA9" "C D\xC3\xA9"), 0); /* beside digit, underscore, letters */
    assert_int_equal(tp_scoring_generated_letter("F a b"), 0);
    assert_int_equal(tp_scoring_first_letter(" the answer: B or A", 2), 'B');
    assert_int_equal(tp_scoring_first_letter("Because", 2), 'B');
    assert_int_equal(tp_scoring_first_letter("GF", 4), 0);
    assert_int_equal(tp_scoring_first_letter("GF", 7), 'G');
    assert_int_equal(tp_scoring_first_letter("", 4), 0);
    assert_int_equal(tp_scoring_best((const double[]){-2.0, -1.0, -1.0}, 3), 1); /* the earlier of equals */
    assert_int_equal(tp_scoring_best((const double[]){NAN, -9.0}, 2), 1);
    assert_int_equal(tp_scoring_best((const double[]){-1.0, NAN}, 2), 0);
}

static void check_normalised(const char *text, const char *expected)
{
    char *found;
    assert_int_equal(tp_scoring_normalise(&found, text), TALPA_OK);
    assert_string_equal(found, expected);
    free(found);
}

static void check_f1(const char *prediction, const char *reference, double expected)
{
    double f1 = NAN;
    assert_int_equal(tp_scoring_f1(&f1, prediction, reference), TALPA_OK);
    assert_true(fabs(f1 - expected) < 1e-15);
}

static void test_squad(void **state)
{
    (void)state;
    check_normalised("The  Quick, Brown fox!", "quick brown fox");
    check_normalised("An apple a day", "apple day");
    check_normalised("Theatre and anthem", "theatre and anthem");
    check_normalised("a.b. the-end", "ab theend"); /* punctuation goes before articles */
    check_normalised("\xC3\x89T\xC3\x89\xC2\xA0" "2020", "\xC3\xA9t\xC3\xA9 2020");
    check_normalised("a\xE2\x80\x99s", "\xE2\x80\x99s"); /* that apostrophe is no ASCII punctuation, so "a" is a word */
    check_normalised("the", "");
    check_normalised("", "");
    check_f1("cat sat", "cat sat", 1.0);
    check_f1("cat", "cat sat", 2.0 / 3.0);
    check_f1("cat cat cat", "cat dog", 0.4); /* one "cat" answers for one */
    check_f1("x", "y", 0.0);
    check_f1("", "", 0.0);
}

static void test_texts(void **state)
{
    (void)state;
    size_t n;
    assert_memory_equal(tp_scoring_trim(&n, " \n a b\t\n"), "a b", 3);
    assert_int_equal(n, 3);
    tp_scoring_trim(&n, " \n ");
    assert_int_equal(n, 0);
    assert_int_equal(tp_scoring_before_newline_after_marks("a\nb #### 3\nc"), strlen("a\nb #### 3"));
    assert_int_equal(tp_scoring_before_newline_after_marks("a\nb"), 3);

    static const char *const whole[] = {"def f(x):\n    return x\n",
                                        "import re\n\ndef f(x):\n    return x\n\n\ndef g():\n    pass\nN = 3\n",
                                        "class A:\n  def f(self):\n    return 1\n\n@x\ndef g():\n  return {\n    1: 2\n}\n# end\n"};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) assert_int_equal(tp_scoring_code(whole[i]), strlen(whole[i]));
    static const char *const head = "def f(x):\n    return x\n\n";
    static const char *const tails[] = {"Question: what?\n", "print(f(1))\n", "assert f(1) == 1\n",
                                        "f(1) == 2\n",       "```\n",         "defend this\n"};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        char text[128];
        strcpy(text, head);
        strcat(text, tails[i]);
        if (tp_scoring_code(text) != strlen(head)) fail_msg("'%s' was taken for code", tails[i]);
    }
}

static void test_metric_names(void **state)
{
    (void)state;
    for (int i = 0; i < TALPA_N_METRICS; i++) {
        enum talpa_metric metric = TALPA_N_METRICS;
        assert_int_equal(talpa_metric_parse(&metric, talpa_metric_name((enum talpa_metric)i)), TALPA_OK);
        assert_int_equal(metric, i);
    }
    enum talpa_metric metric = TALPA_METRIC_EXACT;
    assert_int_equal(talpa_metric_parse(&metric, "option_leter"), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "did you mean 'option_letter'"));
    assert_int_equal(metric, TALPA_METRIC_EXACT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_number), cmocka_unit_test(test_letters), cmocka_unit_test(test_squad),
                                       cmocka_unit_test(test_texts), cmocka_unit_test(test_metric_names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
