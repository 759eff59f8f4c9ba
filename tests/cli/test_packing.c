/* --packing: how many steps there are, and what a step is. The four rows of the data have 10 tokens each. */
#include "cli/cli_test.h"

static int64_t number(const char *text, const char *key)
{
    int64_t value = 0;
    struct tp_json *json = parse(text);
    assert_int_equal(tp_json_get_int(&value, tp_json_root(json), key), TALPA_OK);
    tp_json_free(json);
    return value;
}

static void test_steps(void **state)
{
    (void)state;
    need_device();
    static const struct {
        const char *flags;
        int n_steps;
    } cases[] = {{"-b 1 -c 32", 12},                                         /* a row per example */
                 {"-b 1 -c 32 --packing", 6},                                /* 3 + 1 per epoch */
                 {"-b 1 -c 20 --packing", 6},                                /* 2 + 2 */
                 {"-b 1 -c 40 --packing", 3},                                /* 4 */
                 {"-b 2 -c 32 --packing --gradient-accumulation-steps 2", 2}, /* 6 rows, 4 per step */
                 {"-b 4 -c 12 --packing", 3}};                               /* 1 */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[512], name[64];
        static char log[TEXT_MAX];
        snprintf(line, sizeof line, "train -m random:tiny --data @train.jsonl --num-train-epochs 3 -o json %s --dry-run", cases[i].flags);
        expect(line, 0, NULL);
        assert_int_equal(number(out, "n_steps"), cases[i].n_steps);
        snprintf(line, sizeof line, "train -m random:tiny --data @train.jsonl --num-train-epochs 3 -o json %s --output-dir @run%zu",
                 cases[i].flags, i);
        expect(line, 0, NULL);
        snprintf(name, sizeof name, "run%zu/trainer_log.jsonl", i);
        assert_true(read_text(log, sizeof log, name) > 0);
        int n_rows = 0;
        int64_t tokens = 0;
        char *rest = NULL;
        for (char *row = strtok_r(log, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest)) {
            n_rows++;
            assert_int_equal(number(row, "current_steps"), n_rows);
            assert_int_equal(number(row, "total_steps"), cases[i].n_steps);
            tokens = number(row, "total_tokens");
        }
        assert_int_equal(n_rows, cases[i].n_steps);
        assert_int_equal(tokens, 3 * 4 * 10); /* no pads, nothing left out */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
