/* --dry-run says how many bytes a run holds on the device, to the byte: compared with what was counted while it ran. */
#include "cli/cli_test.h"

static int64_t number(const char *text, const char *key)
{
    struct tp_json *json = parse(text);
    int64_t value = 0;
    if (tp_json_get_int(&value, tp_json_root(json), key) != TALPA_OK) fail_msg("%s in: %s", talpa_error_message(), text);
    tp_json_free(json);
    return value;
}

static void test_train(void **state)
{
    (void)state;
    need_device();
    static const char *const cases[] = {
        "--routing-strategy lora --lora-rank 8",
        "--routing-strategy lora --lora-rank 8 --eval-data @train.jsonl",
        "--routing-strategy adamole --num-experts 4 --expert-rank 4",
        "--routing-strategy adamole --num-experts 4 --expert-rank 4 --eval-data @train.jsonl --route-log @routes.jsonl",
        "--routing-strategy adamole --num-experts 4 --expert-rank 4 --gradient-checkpointing",
        "--routing-strategy topk --num-experts 8 --expert-rank 4 --expert-dispatch sparse --base-dtype native",
        "--routing-strategy lora --lora-modules all --base-dtype bf16 --gradient-checkpointing",
    };
    int64_t before = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[512];
        int64_t total[2], peak[2];
        for (int run = 0; run < 2; run++) {
            char how[64] = "--dry-run";
            if (run) snprintf(how, sizeof how, "--output-dir @run%zu", i);
            snprintf(line, sizeof line, "train -m random:tiny --data @train.jsonl -b 2 -c 24 --max-steps 1 -o json %s %s", cases[i], how);
            expect(line, 0, NULL);
            total[run] = number(out, run ? "device_bytes" : "total_bytes");
            peak[run] = number(out, run ? "device_peak_bytes" : "peak_bytes");
        }
        assert_true(number(out, "host_peak_bytes") > 1 << 20);
        if (total[0] != total[1] || peak[0] != peak[1])
            fail_msg("%s: planned %lld (peak %lld), found %lld (%lld)", cases[i], (long long)total[0], (long long)peak[0], (long long)total[1],
                     (long long)peak[1]);
        if (i == 1) assert_true(total[0] > before); /* held-out rows have a graph of their own */
        before = total[0];
    }
    static char results[TEXT_MAX];
    assert_true(read_text(results, sizeof results, "run6/train_results.json") > 0);
    assert_int_equal(number(results, "device_bytes"), before);
}

static void test_generate(void **state)
{
    (void)state;
    need_device();
    static const char *const cases[] = {"", "--base-dtype native", "--lora @run2 -ub 16", "-c 100 --base-dtype bf16"};
    expect("train -m random:tiny --data @train.jsonl -b 2 -c 24 --max-steps 1 --routing-strategy topk --num-experts 4 --output-dir @run2", 0, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[512];
        snprintf(line, sizeof line, "generate -m random:tiny -p hello -n 6 -o json %s --dry-run", cases[i]);
        expect(line, 0, NULL);
        const int64_t total = number(out, "total_bytes");
        assert_int_equal(total, number(out, "weight_bytes") + number(out, "adapter_bytes") + number(out, "cache_bytes") + number(out, "activation_bytes"));
        snprintf(line, sizeof line, "generate -m random:tiny -p hello -n 6 -o json -v %s", cases[i]);
        expect(line, 0, "bytes on the device");
        const char *told = strstr(err, "bytes on the device");
        while (told > err && told[-1] != ';') --told;
        assert_int_equal(strtoll(told, NULL, 10), total);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_train), cmocka_unit_test(test_generate)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
