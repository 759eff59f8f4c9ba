#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"

static void test_fail_and_context(void **state)
{
    (void)state;
    assert_int_equal(tp_fail(TALPA_E_DATA, "rank: found %d, expected %d", 3, 4), TALPA_E_DATA);
    assert_int_equal(tp_context(TALPA_E_DATA, "adapter %s", "x"), TALPA_E_DATA);
    assert_string_equal(talpa_error_message(), "adapter x: rank: found 3, expected 4");
    assert_int_equal(tp_context(TALPA_OK, "not %s", "added"), TALPA_OK);
    assert_string_equal(talpa_error_message(), "adapter x: rank: found 3, expected 4");
    tp_status_clear();
    assert_string_equal(talpa_error_message(), "");
}

static void test_message_may_quote_itself(void **state)
{
    (void)state;
    tp_fail(TALPA_E_IO, "inner");
    tp_fail(TALPA_E_FAILED, "outer (%s)", talpa_error_message());
    assert_string_equal(talpa_error_message(), "outer (inner)");
}

static void test_long_messages_are_cut(void **state)
{
    (void)state;
    char text[9000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    tp_fail(TALPA_E_DATA, "%s", text);
    const size_t n = strlen(talpa_error_message());
    assert_true(n > 1000 && n < sizeof text - 1);
    tp_context(TALPA_E_DATA, "%s", text);
    tp_context(TALPA_E_DATA, "front");
    assert_memory_equal(talpa_error_message(), "front: aaaa", 11);
    assert_int_equal(strlen(talpa_error_message()), n);
}

static void test_opencl_record(void **state)
{
    (void)state;
    tp_fail_opencl(TALPA_E_DEVICE, -11, "line 3: error", "build of %s failed", "matmul");
    assert_string_equal(talpa_error_message(), "build of matmul failed");
    assert_int_equal(talpa_error_opencl(), -11);
    assert_string_equal(talpa_error_build_log(), "line 3: error");
    tp_fail(TALPA_E_IO, "next");
    assert_int_equal(talpa_error_opencl(), 0);
    assert_string_equal(talpa_error_build_log(), "");
}

static void test_exit_codes(void **state)
{
    (void)state;
    assert_int_equal(talpa_exit_code(TALPA_OK), 0);
    assert_int_equal(talpa_exit_code(TALPA_E_FAILED), 1);
    assert_int_equal(talpa_exit_code(TALPA_E_ARGUMENT), 2);
    assert_int_equal(talpa_exit_code(TALPA_E_CHECK), 3);
    assert_int_equal(talpa_exit_code(TALPA_E_DATA), 65);
    assert_int_equal(talpa_exit_code(TALPA_E_NO_INPUT), 66);
    assert_int_equal(talpa_exit_code(TALPA_E_CREATE), 73);
    assert_int_equal(talpa_exit_code(TALPA_E_INTERRUPTED), 75);
}

static enum talpa_status try_twice(int *n_calls, enum talpa_status first)
{
    ++*n_calls;
    TP_TRY(first);
    ++*n_calls;
    return TALPA_OK;
}

static void test_try(void **state)
{
    (void)state;
    int n_calls = 0;
    assert_int_equal(try_twice(&n_calls, TALPA_E_IO), TALPA_E_IO);
    assert_int_equal(n_calls, 1);
    assert_int_equal(try_twice(&n_calls, TALPA_OK), TALPA_OK);
    assert_int_equal(n_calls, 3);
}

struct seen {
    int n;
    enum talpa_log_level level;
    char line[64];
};

static void remember(void *user, enum talpa_log_level level, const char *line)
{
    struct seen *seen = user;
    seen->n++;
    seen->level = level;
    strncpy(seen->line, line, sizeof seen->line - 1);
}

static void test_log_levels_and_callback(void **state)
{
    (void)state;
    struct seen seen = {0};
    talpa_log_set(remember, &seen);
    talpa_log_level_set(TALPA_LOG_INFO);
    tp_log(TALPA_LOG_DEBUG, "no");
    assert_int_equal(seen.n, 0);
    assert_false(tp_log_enabled(TALPA_LOG_DEBUG));
    tp_log(TALPA_LOG_INFO, "step %d", 7);
    assert_int_equal(seen.n, 1);
    assert_int_equal(seen.level, TALPA_LOG_INFO);
    assert_string_equal(seen.line, "step 7");
    talpa_log_level_set(TALPA_LOG_ERROR);
    tp_log(TALPA_LOG_WARN, "no");
    assert_int_equal(seen.n, 1);
    talpa_log_set(NULL, NULL);
}

static void test_clock(void **state)
{
    (void)state;
    char text[TP_CLOCK_RFC3339_BYTES];
    assert_string_equal(tp_clock_rfc3339(text, 0), "1970-01-01T00:00:00Z");
    assert_string_equal(tp_clock_rfc3339(text, 1709251199), "2024-02-29T23:59:59Z");
    assert_string_equal(tp_clock_rfc3339(text, -1), "1969-12-31T23:59:59Z");
    assert_string_equal(tp_clock_rfc3339(text, INT64_MAX), "9999-12-31T23:59:59Z");
    assert_string_equal(tp_clock_rfc3339(text, INT64_MIN), "0000-01-01T00:00:00Z");
    const int64_t before = tp_clock_now_ns();
    assert_true(tp_clock_now_ns() >= before);
    assert_true(tp_clock_unix_s() > 1700000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fail_and_context),
        cmocka_unit_test(test_message_may_quote_itself),
        cmocka_unit_test(test_long_messages_are_cut),
        cmocka_unit_test(test_opencl_record),
        cmocka_unit_test(test_exit_codes),
        cmocka_unit_test(test_try),
        cmocka_unit_test(test_log_levels_and_callback),
        cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
