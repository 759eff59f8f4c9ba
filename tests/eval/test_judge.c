/* From output to judgement: each metric on outputs written here; the gold answers of the task data are judged right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/code_run.h"
#include "eval/eval_impl.h"
#include "eval/journal.h"
#include "golden.h"

static struct tp_code_runner runner;
static bool has_python;

static struct tp_journal_row judge(const struct tp_eval_row *row, enum talpa_metric metric, const char *output)
{
    static struct tp_arena arena;
    struct tp_journal_row judged;
    bool no_network = false;
    tp_arena_free(&arena);
    golden_ok(tp_eval_judge(&judged, &arena, row, metric, output, &runner, &no_network));
    return judged;
}

static void test_judgements(void **state)
{
    (void)state;
    const struct tp_eval_row number = {.id = "n", .answer = "1,250"};
    assert_true(judge(&number, TALPA_METRIC_EXACT_NUMBER, " so\n#### $1250\nQuestion: 7").correct);
    assert_string_equal(judge(&number, TALPA_METRIC_EXACT_NUMBER, "#### 3\n#### 1250").prediction, "3");
    assert_null(judge(&number, TALPA_METRIC_EXACT_NUMBER, "no idea").prediction);
    assert_false(judge(&number, TALPA_METRIC_EXACT_NUMBER, "no idea").correct);
    const struct tp_eval_row letter = {.id = "l", .answer = "C", .n_choices = 4};
    assert_true(judge(&letter, TALPA_METRIC_GENERATED_LETTER, "A or\n#### C\nB").correct);
    assert_true(judge(&letter, TALPA_METRIC_OPTION_LETTER, " C. because A").correct);
    assert_string_equal(judge(&letter, TALPA_METRIC_OPTION_LETTER, "A, not C").prediction, "A");
    const char *answers[] = {"the red lamp", "a lamp"};
    const struct tp_eval_row span = {.id = "s", .answers = answers, .n_answers = 2};
    struct tp_journal_row row = judge(&span, TALPA_METRIC_F1_EM, " Lamp!\nMore text");
    assert_true(row.em && row.correct && row.value == 1.0);
    assert_string_equal(row.prediction, "Lamp!");
    row = judge(&span, TALPA_METRIC_F1_EM, "red lamp post");
    assert_true(!row.em && fabs(row.value - 0.8) < 1e-12); /* 2 of 3 and 2 of 2 */
    const struct tp_eval_row exact = {.id = "e", .answer = "ma lo ki\n"};
    assert_true(judge(&exact, TALPA_METRIC_EXACT, " ma lo ki").correct);
    assert_false(judge(&exact, TALPA_METRIC_EXACT, "ma lo  ki").correct);
    assert_true(judge(&exact, TALPA_METRIC_EXACT, " ma lo ki \n\nQuestion: what is next?").correct);
    assert_false(judge(&exact, TALPA_METRIC_EXACT, "\nma lo ki").correct); /* the first line is empty */
    const struct tp_eval_row lines = {.id = "e", .answer = "ma\nlo"};
    assert_true(judge(&lines, TALPA_METRIC_EXACT, "ma\nlo\n").correct);
    assert_false(judge(&lines, TALPA_METRIC_EXACT, "ma").correct);
    assert_false(judge(&exact, TALPA_METRIC_EXACT, "ma lo ki so").correct);
}

static void test_code(void **state)
{
    (void)state;
    if (!has_python) skip();
    const struct tp_eval_row row = {.id = "c", .test_setup = "x = twice(1)", .tests = "assert x == 2\nassert twice(4) == 8\n"};
    assert_true(judge(&row, TALPA_METRIC_UNIT_TESTS, "\ndef twice(n):\n    return 2 * n\n\nInstruction: next").correct);
    assert_true(judge(&row, TALPA_METRIC_UNIT_TESTS, " def twice(n):\n    return 2 * n").correct);
    assert_false(judge(&row, TALPA_METRIC_UNIT_TESTS, "\ndef twice(n):\n    return n + 1").correct);
}

/* Data files whose completions are right by definition: every one must be judged so. */
static void check_gold(const char *path, enum talpa_metric metric, size_t limit)
{
    struct tp_eval_rows rows;
    golden_ok(tp_eval_rows_open(&rows, path, TALPA_METRIC_AUTO, (int64_t)limit));
    assert_int_equal(rows.metric, metric);
    for (size_t i = 0; i < rows.n_rows; i++) {
        char *output = malloc(strlen(rows.rows[i].completion) + 64);
        /* What follows an answer in a model's output must not matter. */
        sprintf(output, "%s\n", rows.rows[i].completion);
        if (metric == TALPA_METRIC_UNIT_TESTS) strcat(output, "\nInstruction: Write more.\n");
        if (!judge(&rows.rows[i], metric, output).correct) fail_msg("%s: %s is judged wrong:%s", path, rows.rows[i].id, output);
        free(output);
    }
    tp_eval_rows_close(&rows);
}

static void test_gold(void **state)
{
    (void)state;
    static const char *const numbers[] = {"addsub", "gsm8k", "mawps", "multiarith", "singleeq", "svamp"};
    char path[4096];
    const char *root = getenv("TALPA_SHARED");
    snprintf(path, sizeof path, "%s/data/", root ? root : TALPA_SOURCE_DIR "/../shared");
    if (access(path, R_OK)) skip();
    char *name = path + strlen(path);
    const size_t room = sizeof path - strlen(path);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(name, room, "%s/test.jsonl", numbers[i]);
        check_gold(path, TALPA_METRIC_EXACT_NUMBER, 0);
    }
    snprintf(name, room, "aqua/test.jsonl");
    check_gold(path, TALPA_METRIC_GENERATED_LETTER, 0);
    snprintf(name, room, "squad/test.jsonl");
    check_gold(path, TALPA_METRIC_F1_EM, 0);
    snprintf(name, room, "mbpp/test.jsonl");
    if (has_python) check_gold(path, TALPA_METRIC_UNIT_TESTS, 60);
}

int main(void)
{
    has_python = tp_code_runner_open(&runner) == TALPA_OK;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_judgements), cmocka_unit_test(test_code), cmocka_unit_test(test_gold)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
