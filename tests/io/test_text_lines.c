/* Lines of JSONL texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "io/text_lines.h"

static void expect_line(struct tp_text_lines *lines, const char *text, uint64_t number)
{
    assert_true(tp_text_lines_next(lines));
    assert_int_equal(lines->n_bytes, strlen(text));
    assert_memory_equal(lines->text, text, strlen(text));
    assert_int_equal(lines->number, number);
}

static void counts_blank_lines_and_passes_them_over(void **state)
{
    (void)state;
    static const char text[] = "\n \t\r\n {a} \r\n\n{b}\n\n";
    struct tp_text_lines lines = tp_text_lines_of(text, sizeof text - 1);
    expect_line(&lines, "{a}", 3);
    expect_line(&lines, "{b}", 5);
    assert_false(tp_text_lines_next(&lines));
    assert_false(tp_text_lines_next(&lines));
}

static void takes_a_mark_off_the_start_only(void **state)
{
    (void)state;
    static const char text[] = "\xEF\xBB\xBF" "a\n\xEF\xBB\xBF" "b";
    struct tp_text_lines lines = tp_text_lines_of(text, sizeof text - 1);
    expect_line(&lines, "a", 1);
    expect_line(&lines, "\xEF\xBB\xBF" "b", 2);
    assert_false(tp_text_lines_next(&lines));
}

static void reads_no_byte_beyond_the_end(void **state)
{
    (void)state;
    static const char text[] = "ab|\n";
    struct tp_text_lines lines = tp_text_lines_of(text, 2);
    expect_line(&lines, "ab", 1);
    assert_false(tp_text_lines_next(&lines));
}

static void an_empty_text_has_none(void **state)
{
    (void)state;
    struct tp_text_lines lines = tp_text_lines_of(NULL, 0);
    assert_false(tp_text_lines_next(&lines));
}

/* A zero byte is no white space: it stays for the parser to refuse. */
static void keeps_zero_bytes(void **state)
{
    (void)state;
    static const char text[] = "\0a\n";
    struct tp_text_lines lines = tp_text_lines_of(text, 3);
    assert_true(tp_text_lines_next(&lines));
    assert_int_equal(lines.n_bytes, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_blank_lines_and_passes_them_over), cmocka_unit_test(takes_a_mark_off_the_start_only),
        cmocka_unit_test(reads_no_byte_beyond_the_end),            cmocka_unit_test(an_empty_text_has_none),
        cmocka_unit_test(keeps_zero_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
