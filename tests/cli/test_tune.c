/* talpa tune: a short search on a tiny model, the file that it writes, and that other verbs read it. */
#include "cli/cli_test.h"

#define TUNE "tune -m random:tiny --rows 16 -r 3 "

static int64_t n_devices(const char *name)
{
    static char text[TEXT_MAX];
    assert_true(read_text(text, sizeof text, name) > 0);
    struct tp_json *json = parse(text);
    const int64_t n = tp_json_length(tp_json_get(tp_json_root(json), "devices"));
    tp_json_free(json);
    return n;
}

static void test_search(void **state)
{
    (void)state;
    need_device();
    expect(TUNE "--tuning-file @t.json -o json", 0, NULL);
    struct tp_json *json = parse(out);
    for (const struct tp_json_value *row = tp_json_first(tp_json_root(json)); row; row = tp_json_next(row)) {
        double speed;
        int64_t refused, tried;
        assert_int_equal(tp_json_get_double(&speed, row, "speed"), TALPA_OK);
        assert_int_equal(tp_json_get_int(&tried, row, "tried"), TALPA_OK);
        assert_int_equal(tp_json_get_int(&refused, row, "refused"), TALPA_OK);
        assert_true(speed >= 1.0 && tried > 0);
        assert_int_equal(refused, 0);
    }
    tp_json_free(json);
    assert_int_equal(n_devices("t.json"), 1);
    /* Again: this device's entry is replaced, another one stays. */
    write_text("t.json", "{\"talpa_tuning\": 1, \"devices\": [{\"platform\": \"Other\", \"values\": {}}]}");
    expect(TUNE "--tuning-file @t.json", 0, NULL);
    assert_non_null(strstr(out, "| kernel | parameter |"));
    assert_int_equal(n_devices("t.json"), 2);
    setenv("TALPA_TUNING", path("t.json"), 1);
    expect("generate -m random:tiny -p ab -n 2", 0, NULL);
    unsetenv("TALPA_TUNING");
}

static void test_dry_run(void **state)
{
    (void)state;
    need_device();
    expect(TUNE "--tuning-file @dry.json --dry-run", 0, "no file was written");
    assert_int_not_equal(access(path("dry.json"), F_OK), 0);
}

static void test_refusals(void **state)
{
    (void)state;
    expect("tune -r 2", 2, "--repetitions");
    need_device();
    write_text("bad.json", "{\"talpa_tuning\": 1");
    expect(TUNE "--tuning-file @bad.json", 65, "bad.json");
    setenv("TALPA_TUNING", path("bad.json"), 1);
    expect("generate -m random:tiny -p ab -n 2", 65, "TALPA_TUNING");
    setenv("TALPA_TUNING", "none", 1);
    expect(TUNE, 2, "no place for the tuning file");
    unsetenv("TALPA_TUNING");
}

/* Nothing half-written: the file that was there is there still, with its own bytes. */
static void test_interrupted(void **state)
{
    (void)state;
    static const char text[] = "{\"talpa_tuning\": 1, \"devices\": []}";
    static char now[TEXT_MAX];
    need_device();
    write_text("kept.json", text);
    const pid_t pid = start("tune -r 101 --tuning-file @kept.json", "out", "err");
    pause_ms(1500);
    kill(pid, SIGINT);
    assert_int_equal(finish(pid), 130);
    read_text(now, sizeof now, "kept.json");
    assert_string_equal(now, text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_search), cmocka_unit_test(test_dry_run), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_interrupted)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
