/* A row's log-probabilities are the same, to the bit, whatever shares its pass. */
#include "cli/cli_test.h"

static void test_batch_sizes(void **state)
{
    (void)state;
    need_device();
    static char rows[8192], first[TEXT_MAX];
    size_t n = 0;
    for (int i = 0; i < 9; i++) {
        n += (size_t)snprintf(rows + n, sizeof rows - n, "{\"prompt\": \"");
        for (int k = 0; k < 7 + 37 * i % 150; k++) n += (size_t)snprintf(rows + n, sizeof rows - n, "%c", 'a' + (i + 3 * k) % 26);
        n += (size_t)snprintf(rows + n, sizeof rows - n, "\", \"completion\": \" mole %d\"}\n", i * i);
    }
    write_text("rows.jsonl", rows);
    expect("score -m random:tiny --data @rows.jsonl -b 1", 0, NULL);
    memcpy(first, out, sizeof first);
    assert_non_null(strstr(first, "\"logprobs\": [-"));
    static const int sizes[] = {2, 5, 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char line[128];
        snprintf(line, sizeof line, "score -m random:tiny --data @rows.jsonl -b %d", sizes[i]);
        expect(line, 0, NULL);
        assert_string_equal(out, first);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_batch_sizes)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
