/* Training and scoring through the program: files, reproducibility, wrong data, locks and signals. */
#include "cli/cli_test.h"

#define TRAIN "train -m random:tiny --data @train.jsonl -b 2 -c 32 --learning-rate 0.01 "

static void check_log(const char *name, int n_rows)
{
    static const char *const keys[] = {"current_steps", "total_steps",    "loss",         "aux_loss",       "grad_norm", "learning_rate",
                                       "epoch",         "percentage",     "elapsed_time", "remaining_time", "step_ms",   "throughput",
                                       "total_tokens",  "active_experts", "peak_bytes",   "digest"};
    static char text[TEXT_MAX];
    char *state = NULL;
    int n = 0;
    read_text(text, sizeof text, name);
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        struct tp_json *json = parse(line);
        for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i)
            if (!tp_json_get(tp_json_root(json), keys[i])) fail_msg("%s: '%s' is missing in: %s", name, keys[i], line);
        int64_t step = 0;
        assert_int_equal(tp_json_get_int(&step, tp_json_root(json), "current_steps"), TALPA_OK);
        assert_int_equal(step, ++n);
        tp_json_free(json);
    }
    assert_int_equal(n, n_rows);
}

static void digest_of_last_run(char digest[20])
{
    struct tp_json *json = parse(out);
    const char *text = NULL;
    assert_int_equal(tp_json_get_string(&text, tp_json_root(json), "digest"), TALPA_OK);
    assert_int_equal(strlen(text), 16);
    snprintf(digest, 20, "%s", text);
    tp_json_free(json);
}

static void test_train(void **state)
{
    (void)state;
    need_device();
    char first[20], second[20], other[20];
    expect(TRAIN "--max-steps 3 --output-dir @run1 -o json --eval-data @train.jsonl", 0, "step 3/3");
    digest_of_last_run(first);
    struct tp_json *json = parse(out);
    double before = NAN, after = NAN;
    assert_int_equal(tp_json_get_double(&before, tp_json_root(json), "eval_before_loss"), TALPA_OK);
    assert_int_equal(tp_json_get_double(&after, tp_json_root(json), "eval_after_loss"), TALPA_OK);
    assert_true(before > 0 && after < before); /* the same rows, at a high rate */
    tp_json_free(json);
    const char *const files[] = {"run1/adapter_config.json", "run1/adapter_model.safetensors", "run1/talpa_adapter.json",
                                 "run1/train_results.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; ++i)
        if (access(path(files[i]), R_OK) != 0) fail_msg("%s was not written", files[i]);
    check_log("run1/trainer_log.jsonl", 3);

    expect(TRAIN "--max-steps 3 --output-dir @run2 -o json -q", 0, NULL);
    digest_of_last_run(second);
    assert_string_equal(first, second);
    assert_int_equal(strlen(err), 0);
    expect(TRAIN "--max-steps 3 --output-dir @run3 -o json --seed 1", 0, NULL);
    digest_of_last_run(other);
    assert_string_not_equal(first, other);

    /* The adapter is read back: as itself, and with an effect on scores. */
    static char base[TEXT_MAX];
    expect("inspect --lora @run1 -o json", 0, NULL);
    expect("score -m random:tiny --data @train.jsonl", 0, NULL);
    memcpy(base, out, sizeof base);
    expect("score -m random:tiny --data @train.jsonl --lora @run1", 0, NULL);
    assert_string_not_equal(base, out);
}

static void test_score(void **state)
{
    (void)state;
    need_device();
    expect("score -m random:tiny --data @train.jsonl -o json", 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_length(tp_json_root(json)), 4);
    for (int64_t i = 0; i < 4; ++i) {
        const struct tp_json_value *row = tp_json_at(tp_json_root(json), i);
        int64_t index = -1, n = -1;
        double sum = 0, total = 0;
        assert_int_equal(tp_json_get_int(&index, row, "index"), TALPA_OK);
        assert_int_equal(tp_json_get_int(&n, row, "n"), TALPA_OK);
        assert_int_equal(tp_json_get_double(&sum, row, "sum"), TALPA_OK);
        assert_int_equal(index, i);
        assert_int_equal(n, 4); /* bytes of every completion, without EOS */
        assert_int_equal(tp_json_length(tp_json_get(row, "ids")), n);
        assert_int_equal(tp_json_length(tp_json_get(row, "prompt_ids")), 5);
        for (int64_t j = 0; j < n; ++j) {
            double value = 1;
            assert_int_equal(tp_json_as_double(&value, tp_json_at(tp_json_get(row, "logprobs"), j), "logprob"), TALPA_OK);
            assert_true(value < 0);
            total += value;
        }
        assert_true(fabs(sum - total) < 1e-4);
    }
    tp_json_free(json);
    expect("score -m random:tiny --data @train.jsonl -c 6", 65, NULL);
}

static void test_bad_data(void **state)
{
    (void)state;
    need_device();
    write_text("wrong.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \n");
    expect("train -m random:tiny --data @wrong.jsonl --output-dir @bad --max-steps 1", 65, "wrong.jsonl:2");
    expect("score -m random:tiny --data @wrong.jsonl", 65, "wrong.jsonl:2");
    expect("train -m random:tiny --data @missing.jsonl --output-dir @bad --max-steps 1", 66, "missing.jsonl");
    write_text("plainfile", "x");
    expect(TRAIN "--max-steps 1 --output-dir @plainfile/run", 73, "plainfile");
    expect(TRAIN "--max-steps 1 --output-dir @bad --route-log @no/routes.jsonl", 73, "--route-log");
    setenv("TALPA_MAX_KERNEL_MS", "fast", 1);
    expect(TRAIN "--max-steps 1 --output-dir @bad", 2, "TALPA_MAX_KERNEL_MS=fast");
    unsetenv("TALPA_MAX_KERNEL_MS");
    setenv("TALPA_MAX_ALLOC_BYTES", "100", 1);
    expect(TRAIN "--max-steps 1 --output-dir @bad", 71, "--batch-size");
    unsetenv("TALPA_MAX_ALLOC_BYTES");
    if (geteuid() != 0) {
        assert_int_equal(mkdir(path("readonly"), 0555), 0);
        expect(TRAIN "--max-steps 1 --output-dir @readonly/run", 73, "readonly");
    }
}

/** A long run holds its folder; the first signal saves, a second one ends at once. */
static void test_lock_and_signals(void **state)
{
    (void)state;
    need_device();
    for (int round = 0; round < 2; ++round) {
        char text[512] = "";
        const pid_t pid = start(TRAIN "--max-steps 1000000 --output-dir @long", "out1", "err1");
        for (int i = 0; i < 600 && !strstr(text, "step 2/"); ++i) {
            static char progress[TEXT_MAX];
            pause_ms(100);
            read_text(progress, sizeof progress, "err1");
            snprintf(text, sizeof text, "%.500s", strstr(progress, "step ") ? strstr(progress, "step ") : "");
        }
        if (round == 0) expect(TRAIN "--max-steps 1 --output-dir @long", 73, "long");
        kill(pid, round == 0 ? SIGINT : SIGTERM);
        if (round == 1) kill(pid, SIGINT);
        assert_int_equal(finish(pid), round == 0 ? 75 : 130);
        if (round == 0) assert_int_equal(access(path("long/adapter_model.safetensors"), R_OK), 0);
    }
    /* The lock is gone with its holder. */
    expect(TRAIN "--max-steps 1 --output-dir @long", 0, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_bad_data),
        cmocka_unit_test(test_lock_and_signals),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
