/* talpa eval: formats, exit codes, and a run that is killed and started again. */
#include "cli/cli_test.h"

enum { N_ROWS = 1500 };
static const char prose[] = "A mole digs by night and by day, and sleeps in between, in a round nest of dry leaves and grass.\n";

static int set_up_rows(void **state)
{
    if (set_up(state)) return -1;
    FILE *file = fopen(path("long.jsonl"), "w");
    if (!file) return -1;
    for (int i = 0; i < N_ROWS; i++)
        fprintf(file,
                "{\"id\": \"r%d\", \"prompt\": \"Row %d of many, with a prompt of some length:\", \"completion\": \" %d and more\"}\n", i,
                i * 7919 % 1000, i);
    fclose(file);
    write_text("options.jsonl", "{\"task\": \"pick\", \"id\": \"a\", \"prompt\": \"Q: x\\nA. yes\\nB. no\\nAnswer:\", \"answer\": \"A\", "
                                "\"choices\": [\"yes\", \"no\"]}\n"
                                "{\"task\": \"pick\", \"id\": \"b\", \"prompt\": \"Q: y\\nA. yes\\nB. no\\nAnswer:\", \"answer\": \"B\", "
                                "\"choices\": [\"yes\", \"no\"]}\n");
    write_text("suite.json",
               "[{\"name\": \"one\", \"data\": \"options.jsonl\"}, {\"name\": \"two\", \"data\": \"options.jsonl\", \"by\": \"text\"}]");
    write_text("text.txt", prose);
    return 0;
}

#define EVAL "eval -m random:tiny "

static double number_of(const struct tp_json_value *object, const char *key)
{
    double value = NAN;
    if (tp_json_get_double(&value, object, key) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return value;
}

static void test_formats(void **state)
{
    (void)state;
    need_device();
    expect(EVAL "--data @options.jsonl -o json --samples @samples.jsonl", 0, NULL);
    struct tp_json *json = parse(out);
    const struct tp_json_value *root = tp_json_root(json);
    const char *text = NULL;
    assert_int_equal(tp_json_get_string(&text, root, "metric"), TALPA_OK);
    assert_string_equal(text, "option_letter");
    assert_true(number_of(root, "n") == 2 && number_of(root, "elapsed_s") > 0);
    const double value = number_of(root, "value");
    assert_true(fabs(number_of(root, "stderr") - sqrt(value * (1 - value) / 2)) < 1e-8);
    tp_json_free(json);

    static char samples[TEXT_MAX];
    read_text(samples, sizeof samples, "samples.jsonl");
    char *newline = strchr(samples, '\n');
    assert_non_null(newline);
    *newline = '\0';
    json = parse(samples);
    static const char *const keys[] = {"id", "prediction", "answer", "correct"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) assert_non_null(tp_json_get(tp_json_root(json), keys[i]));
    tp_json_free(json);

    expect(EVAL "--data @options.jsonl -o csv", 0, NULL);
    assert_non_null(strstr(out, "task,metric,by,n,value,stderr,"));
    assert_non_null(strstr(out, "\npick,option_letter,letter,2,"));
    expect(EVAL "--data @options.jsonl", 0, NULL);
    assert_non_null(strstr(out, "| pick | option_letter | 2 |"));
    assert_non_null(strstr(out, "compared by letter"));
    expect(EVAL "-f @text.txt -o jsonl -c 32 -q", 0, NULL);
    json = parse(out);
    assert_true(number_of(tp_json_root(json), "value") > 1);
    assert_true(number_of(tp_json_root(json), "n_tokens") == (double)strlen(prose) - 1); /* a token per byte, the first unscored */
    tp_json_free(json);
    assert_int_equal(strlen(err), 0);
}

static void test_suite(void **state)
{
    (void)state;
    need_device();
    expect(EVAL "--suite @suite.json -o json --output-dir @suite", 0, "task 2/2: two");
    struct tp_json *json = parse(out);
    const struct tp_json_value *list = tp_json_root(json);
    assert_int_equal(tp_json_length(list), 3);
    const double mean = (number_of(tp_json_at(list, 0), "value") + number_of(tp_json_at(list, 1), "value")) / 2;
    assert_true(fabs(number_of(tp_json_at(list, 2), "value") - mean) < 1e-8);
    tp_json_free(json);
    expect(EVAL "--suite @suite.json --output-dir @suite2 --baseline @suite/suite_results.json -o csv", 0, NULL);
    assert_non_null(strstr(out, ",baseline,difference,difference_stderr,paired,"));
    assert_non_null(strstr(out, ",0,0,true,"));
    expect(EVAL "--suite @suite.json --data @options.jsonl", 2, "leave out --data");
}

static void test_errors(void **state)
{
    (void)state;
    expect("eval --data @options.jsonl", 2, "--model (-m) is missing");
    expect(EVAL, 2, "nothing to evaluate");
    expect(EVAL "--data @options.jsonl --metric option_leter", 2, "did you mean 'option_letter'");
    expect(EVAL "--data @options.jsonl --few-shot 2", 2, "--few-shot-data");
    expect(EVAL "--data @options.jsonl --by words", 2, "--by");
    expect(EVAL "--data @options.jsonl -f @text.txt", 2, "one of both");
    need_device();
    expect(EVAL "--data @absent.jsonl", 66, "absent.jsonl");
    expect(EVAL "--data @options.jsonl --metric f1_em", 0, NULL); /* "answer" alone will do */
    expect(EVAL "--data @options.jsonl --metric unit_tests", 65, "options.jsonl:1: field 'tests' is missing");
    expect(EVAL "--data @train.jsonl --metric exact", 65, "train.jsonl:1: field 'answer' is missing");
    expect(EVAL "--data @options.jsonl --output-dir @no/such/folder", 73, "--output-dir");
    expect(EVAL "--data @options.jsonl --baseline @absent.json", 66, "absent.json");
}

static size_t n_lines(const char *name)
{
    static char text[TEXT_MAX];
    const size_t n = read_text(text, sizeof text, name);
    size_t lines = 0;
    for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
    return lines;
}

static void test_killed(void **state)
{
    (void)state;
    need_device();
    static char whole[TEXT_MAX], part[TEXT_MAX];
    expect(EVAL "--data @long.jsonl --output-dir @whole -o json -q", 0, NULL);
    struct tp_json *json = parse(out);
    const double value = number_of(tp_json_root(json), "value"), error = number_of(tp_json_root(json), "stderr");
    tp_json_free(json);

    const pid_t pid = start(EVAL "--data @long.jsonl --output-dir @killed -o json -q -b 1", "killed.out", "killed.err");
    for (int i = 0; i < 2000 && n_lines("killed/samples.jsonl.partial") < 20; i++) pause_ms(5);
    /* While it runs, nobody else writes there. */
    if (n_lines("killed/samples.jsonl.partial") < N_ROWS / 2)
        expect(EVAL "--data @long.jsonl --output-dir @killed -q", 73, "another run is writing here");
    kill(pid, SIGKILL);
    finish(pid);
    if (access(path("killed/samples.jsonl"), F_OK) == 0) {
        print_message("the run was over before it could be killed: skipped\n");
        skip();
    }
    assert_int_equal(access(path("killed/eval_results.json"), F_OK), -1);
    expect(EVAL "--data @long.jsonl --output-dir @killed -o json --limit 7", 65, "--overwrite");
    expect(EVAL "--data @long.jsonl --output-dir @killed -o json", 0, "going on after");
    json = parse(out);
    assert_true(number_of(tp_json_root(json), "n_resumed") >= 19);
    assert_true(number_of(tp_json_root(json), "value") == value && number_of(tp_json_root(json), "stderr") == error);
    tp_json_free(json);
    assert_true(read_text(whole, sizeof whole, "whole/samples.jsonl") > 0);
    read_text(part, sizeof part, "killed/samples.jsonl");
    assert_string_equal(part, whole);
    assert_int_equal(access(path("killed/samples.jsonl.partial"), F_OK), -1);
    expect(EVAL "--data @long.jsonl --output-dir @killed --limit 7 --overwrite", 0, NULL);
    assert_int_equal(n_lines("killed/samples.jsonl"), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_formats), cmocka_unit_test(test_suite), cmocka_unit_test(test_errors),
                                       cmocka_unit_test(test_killed)};
    return cmocka_run_group_tests(tests, set_up_rows, tear_down);
}
