/* Flags from --config files: precedence, what is refused, and that a dump is such a file. */
#include "cli/cli_test.h"

static double dumped(const char *line, const char *key)
{
    double value = NAN;
    expect(line, 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_get_double(&value, tp_json_root(json), key), TALPA_OK);
    tp_json_free(json);
    return value;
}

static void test_precedence(void **state)
{
    (void)state;
    write_text("c.json",
               "// a comment\n{\n  \"learning_rate\": 0.25, /* and\n another */ \"batch_size\": 7,\n \"lora_modules\": \"q,\\u0076\", "
               "\"packing\": true, \"seed\": 18446744073709551615, \"model\": null, \"lr_scheduler\": \"cosine\",\n}\n");
    assert_true(dumped("train --dump-config", "learning_rate") == 1e-4);
    assert_true(dumped("train --config @c.json --dump-config", "learning_rate") == 0.25);
    assert_true(dumped("train --config @c.json --dump-config", "batch_size") == 7);
    assert_non_null(strstr(out, "\"seed\": 18446744073709551615"));
    assert_non_null(strstr(out, "\"lora_modules\": \"q,v\""));
    assert_non_null(strstr(out, "\"packing\": true"));
    assert_non_null(strstr(out, "\"lr_scheduler\": \"cosine\""));
    setenv("TALPA_ARG_LEARNING_RATE", "0.5", 1);
    assert_true(dumped("train --config @c.json --dump-config", "learning_rate") == 0.5);
    assert_true(dumped("train --dump-config --lr 0.75 --config @c.json", "learning_rate") == 0.75);
    unsetenv("TALPA_ARG_LEARNING_RATE");
    /* A dump read back is the same dump, for every verb. */
    static const char *const verbs[] = {"train", "score", "inspect", "tokenize", "devices"};
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        static char first[TEXT_MAX];
        char line[128];
        snprintf(line, sizeof line, "%s --dump-config%s", verbs[i], i ? "" : " --config @c.json");
        expect(line, 0, NULL);
        memcpy(first, out, sizeof first);
        write_text("dump.json", first);
        snprintf(line, sizeof line, "%s --dump-config --config @dump.json", verbs[i]);
        expect(line, 0, NULL);
        assert_string_equal(first, out);
    }
    expect("train --config @dump.json", 2, "verb");
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\n\"lerning_rate\": 1}", "c.json:2: unknown key 'lerning_rate'; did you mean 'learning_rate'?"},
        {"{\"batch_size\": \"7\"}", "found a string, expected a number"},
        {"{\"batch_size\": 0}", "batch_size: found '0', expected an integer"},
        {"{\"batch_size\": 1.5}", "batch_size: found '1.5'"},
        {"{\"batch_size\": true}", "batch_size"},
        {"{\"packing\": 1}", "expected true or false"},
        {"{\"data\": 3}", "expected a string"},
        {"{\"data\": [\"a\"]}", "found a list"},
        {"{\"lr_scheduler\": \"cubic\"}", "constant|linear|cosine"},
        {"{\"data\": \"a\" \"b\"}", "expected ',' or '}'"},
        {"{\"data\": \"a", "without an end"},
        {"{\"data\" 1}", "expected ':'"},
        {"/* {}", "a comment without an end"},
        {"{} {}", "something follows"},
        {"[]", "expected '{'"},
        {"", "expected '{'"},
        {"{\"data\": \"\\x\"}", "unknown escape"},
        {"{\"help\": true}", "unknown key 'help'"},
        {"{\"batch_size\": 2", "expected ',' or '}'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text("c.json", cases[i].text);
        expect("train --config @c.json --dump-config", 2, cases[i].message);
    }
    expect("train --config @missing.json", 66, "missing.json");
    write_text("c.json", "{}");
    expect("train --config @c.json --dump-config", 0, NULL);
}

/* The file that a run leaves is its configuration. */
static void test_saved(void **state)
{
    (void)state;
    need_device();
    char first[20] = "", second[20] = "";
    expect("train -m random:tiny --data @train.jsonl -b 2 -c 32 --max-steps 2 --seed 5 --learning-rate 0.003 --output-dir @run -o json -q",
           0, NULL);
    struct tp_json *json = parse(out);
    const char *digest = NULL;
    assert_int_equal(tp_json_get_string(&digest, tp_json_root(json), "digest"), TALPA_OK);
    snprintf(first, sizeof first, "%s", digest);
    tp_json_free(json);
    expect("train --config @run/train_config.json --output-dir @run2", 0, NULL);
    json = parse(out);
    assert_int_equal(tp_json_get_string(&digest, tp_json_root(json), "digest"), TALPA_OK);
    snprintf(second, sizeof second, "%s", digest);
    tp_json_free(json);
    assert_string_equal(first, second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_precedence), cmocka_unit_test(test_refused), cmocka_unit_test(test_saved)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
