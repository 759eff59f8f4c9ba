/* --route-log and --route-map of train, score and eval. */
#include "cli/cli_test.h"

#define TRAIN "train -m random:tiny --data @train.jsonl -b 2 -c 32 --learning-rate 0.01 --max-steps 2 "

/* Number of records of a kind; every line is JSON. */
static int records(const char *name, const char *kind)
{
    static char text[TEXT_MAX];
    char *state = NULL;
    int n = 0;
    assert_true(read_text(text, sizeof text, name) > 0);
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        const char *found;
        struct tp_json *json = parse(line);
        assert_int_equal(tp_json_get_string(&found, tp_json_root(json), "kind"), TALPA_OK);
        n += !strcmp(found, kind);
        tp_json_free(json);
    }
    return n;
}

static void test_routes(void **state)
{
    (void)state;
    need_device();
    write_text(
        "held.jsonl",
        "{\"task\": \"a\", \"id\": \"x\", \"prompt\": \"one\", \"completion\": \" two\", \"answer\": \"two\", \"difficulty\": 1}\n"
        "{\"task\": \"a\", \"id\": \"y\", \"prompt\": \"three\", \"completion\": \" four\", \"answer\": \"four\", \"difficulty\": 2}\n"
        "{\"prompt\": \"five and six\", \"completion\": \" seven\", \"answer\": \"seven\"}\n");
    expect(TRAIN "--output-dir @run --eval-data @held.jsonl --route-log @train.routes", 0, "task held.jsonl");
    const int n_modules = records("train.routes", "step") / 2;
    assert_true(n_modules > 0);
    assert_int_equal(records("train.routes", "module"), 2 * n_modules); /* two tasks */
    assert_int_equal(records("train.routes", "row"), 3);
    assert_true(records("train.routes", "summary") > 0);
    assert_true(access(path("run/routing.svg"), R_OK) == 0);

    expect("score -m random:tiny --lora @run --data @held.jsonl --route-log @score.routes --route-map @score.svg", 0, "difficulty 2");
    assert_null(strstr(out, "difficulty"));
    assert_int_equal(records("score.routes", "step"), 0);
    assert_int_equal(records("score.routes", "module"), 2 * n_modules);
    assert_int_equal(records("score.routes", "row"), 3);
    static char text[TEXT_MAX], trained[TEXT_MAX];
    read_text(text, sizeof text, "score.svg");
    assert_non_null(strstr(text, "</svg>"));
    /* What training says of the held-out rows at its end is what scoring the saved adapter says. */
    read_text(text, sizeof text, "score.routes");
    read_text(trained, sizeof trained, "train.routes");
    const char *end = strstr(trained, "{\"kind\":\"module\"");
    assert_non_null(end);
    assert_string_equal(end, text);

    /* Generated answers are judged, and prompt and completion are run for their routing. */
    expect("eval -m random:tiny --lora @run --data @held.jsonl --metric exact -n 2 --route-log @eval.routes --route-map @eval.svg", 0,
           "difficulty 2");
    assert_int_equal(records("eval.routes", "row"), 3);
    assert_int_equal(records("eval.routes", "module"), 2 * n_modules);
    assert_true(access(path("eval.svg"), R_OK) == 0);
}

/* What talpa routes says of these logs: in full in tests/train/test_route_compare.c. */
static void test_compared(void **state)
{
    (void)state;
    need_device();
    write_text("rows.jsonl", "{\"id\": \"x\", \"prompt\": \"one\", \"completion\": \" two\", \"answer\": \"two\"}\n"
                             "{\"id\": \"y\", \"prompt\": \"three\", \"completion\": \" four\", \"answer\": \"four\"}\n");
    expect(TRAIN "--output-dir @one --seed 1", 0, NULL);
    expect(TRAIN "--output-dir @two --seed 2", 0, NULL);
    expect("score -m random:tiny --lora @one --data @rows.jsonl -q --route-log @one.routes", 0, NULL);
    expect("score -m random:tiny --lora @two --data @rows.jsonl -q -b 1 --route-log @two.routes", 0, NULL);
    expect("eval -m random:tiny --data @rows.jsonl --metric exact -n 2 -q --output-dir @base", 0, NULL);
    expect("routes --log @one.routes --compare @one.routes -o json", 0, NULL);
    assert_non_null(strstr(out, "\"module\": \"all\""));
    assert_non_null(strstr(out, "\"kappa\": 1,"));
    expect("routes --log @one.routes --compare @two.routes", 0, NULL);
    assert_non_null(strstr(out, "mean over modules"));
    expect("routes --log @one.routes --samples @base/samples.jsonl", 0, NULL);
    assert_non_null(strstr(out, "0 unknown"));
    expect("routes --log @one.routes --samples @base/samples.jsonl -o csv", 0, NULL);
    expect("routes --log @one.routes", 2, "--compare");
    expect("routes --compare @one.routes", 2, "--log is missing");
    expect("routes --log @one.routes --compare @two.routes --samples @base/samples.jsonl", 2, "exclude");
    expect("routes --log @no.routes --compare @two.routes", 66, "no.routes");
    expect("score -m random:tiny --lora @two --data @train.jsonl -q --route-log @other.routes", 0, NULL);
    expect("routes --log @one.routes --compare @other.routes", 65, "its rows are not those");
}

static void test_refused(void **state)
{
    (void)state;
    need_device();
    write_text("bare.jsonl", "{\"prompt\": \"one\", \"answer\": \"two\"}\n");
    expect(TRAIN "--output-dir @lora --routing-strategy lora --lora-rank 2 --route-log @lora.routes", 2, "plain LoRA");
    expect(TRAIN "--output-dir @lora --routing-strategy lora --lora-rank 2", 0, NULL);
    expect(TRAIN "--output-dir @mix", 0, NULL);
    expect("score -m random:tiny --lora @lora --data @train.jsonl --route-log @r", 2, "plain LoRA");
    expect("score -m random:tiny --data @train.jsonl --route-map @r", 2, "no adapter");
    expect("eval -m random:tiny --lora @lora --data @train.jsonl --metric token_nll --route-log @r", 2, "plain LoRA");
    expect("score -m random:tiny --lora @mix --data @train.jsonl --route-log @no/r", 73, "--route-log");
    expect("score -m random:tiny --lora @mix --data @train.jsonl --route-map @no/r", 73, "--route-map");
    expect("score -m random:tiny --lora @mix --data @train.jsonl --route-log @r --route-map @r", 2, "same file");
    expect("eval -m random:tiny --lora @mix --data @bare.jsonl --metric exact -n 2 --route-log @r", 65, "completion");
    write_text("text.txt", "one two three four five six");
    expect("eval -m random:tiny --lora @mix -f @text.txt -c 16 --route-log @r", 2, "--data");
    assert_true(access(path("r"), F_OK) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_routes), cmocka_unit_test(test_compared), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
