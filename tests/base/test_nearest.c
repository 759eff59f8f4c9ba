/* Words in messages that propose one. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/nearest.h"

static void counts_edits(void **state)
{
    (void)state;
    assert_int_equal(tp_nearest_distance("kitten", "sitting"), 3);
    assert_int_equal(tp_nearest_distance("", "abc"), 3);
    assert_int_equal(tp_nearest_distance("same", "same"), 0);
    char is_long[80];
    for (int i = 0; i < 79; i++) is_long[i] = 'x';
    is_long[79] = '\0';
    assert_int_equal(tp_nearest_distance("x", is_long), INT_MAX);
}

static void proposes_within_the_limit(void **state)
{
    (void)state;
    static const char *const words[] = {"data", "date", "metric"};
    assert_ptr_equal(tp_nearest_word("metrik", words, 3, 2), words[2]);
    assert_ptr_equal(tp_nearest_word("dat", words, 3, INT_MAX), words[0]); /* the first of two at the same distance */
    assert_null(tp_nearest_word("few_shot", words, 3, 2));
    assert_null(tp_nearest_word("data", words, 0, INT_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(counts_edits), cmocka_unit_test(proposes_within_the_limit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
