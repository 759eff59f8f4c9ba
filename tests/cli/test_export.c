/* talpa export and talpa merge: adapters in and out of the program. */
#include "cli_test.h"
#include "tiny_gguf.h"

static const struct tp_json_value *root_of(struct tp_json **json)
{
    *json = parse(out);
    return tp_json_root(*json);
}

static void expect_number(const struct tp_json_value *root, const char *key, double low, double high)
{
    double value = NAN;
    if (tp_json_get_double(&value, root, key) != TALPA_OK || !(value >= low && value <= high))
        fail_msg("%s: found %g, expected %g to %g in %s", key, value, low, high, out);
}

static void test_usage(void **state)
{
    (void)state;
    expect("export", 2, "--model");
    expect("export -m random:tiny --format gguf --output-file @x.gguf", 2, "--lora is missing");
    expect("export -m random:tiny --lora @x", 2, "--output-dir is missing");
    expect("export -m random:tiny --lora @x --format peft --output-file @y", 2, "--output-dir");
    expect("export -m random:tiny --lora @x --format gguf --output-file @y.gguf --output-dir @y", 2, "exclude each other");
    expect("export -m random:tiny --lora @x --output-dir @y --type f16", 2, "--type is for --format gguf");
    expect("export -m random:tiny --lora @absent --output-dir @y", 66, "adapter_config.json");
    expect("export -m random:tiny --lora @absent.gguf --output-dir @y", 66, "absent.gguf");
    expect("merge -m random:tiny --lora @x", 2, "--output-file is missing");
    expect("merge -m random:tiny --lora @x --output-file @y.gguf --type q5_0", 2, "--type");
    expect("merge -m random:tiny --lora @x --output-file @y.gguf --probe @z --no-probe", 2, "exclude each other");
}

static void train(const char *lora, const char *routing)
{
    char line[512];
    snprintf(line, sizeof line,
             "train -m @tiny.gguf --data @train.jsonl --output-dir @%s --routing-strategy %s --lora-dropout 0 --max-steps 3 "
             "--learning-rate 0.02 -q",
             lora, routing);
    expect(line, 0, NULL);
}

/* The same rows by folder, by GGUF LoRA and by the merged model. */
static void test_round_trip(void **state)
{
    (void)state;
    struct tp_json *json;
    char folder_scores[16384];
    need_device();
    tiny_gguf_write(path("tiny.gguf"), TALPA_F32);
    train("lora", "lora --lora-rank 4");
    expect("score -m @tiny.gguf --data @train.jsonl --lora @lora -q", 0, NULL);
    assert_true(strlen(out) < sizeof folder_scores);
    memcpy(folder_scores, out, strlen(out) + 1);
    expect("score -m @tiny.gguf --data @train.jsonl -q", 0, NULL);
    assert_string_not_equal(out, folder_scores);

    expect("export -m @tiny.gguf --lora @lora --format gguf --output-file @lora.gguf -o json", 0, NULL);
    expect_number(root_of(&json), "files", 1, 1);
    tp_json_free(json);
    expect("score -m @tiny.gguf --data @train.jsonl --lora @lora.gguf -q", 0, NULL);
    assert_string_equal(out, folder_scores);
    expect("inspect --lora @lora.gguf", 0, NULL);
    assert_non_null(strstr(out, "rank 4"));
    expect("export -m @tiny.gguf --lora @lora.gguf --format peft --output-dir @back --base-name owner/tiny", 0, NULL);
    expect("score -m @tiny.gguf --data @train.jsonl --lora @back -q", 0, NULL);
    assert_string_equal(out, folder_scores);
    expect("train -m @tiny.gguf --data @train.jsonl --output-dir @more --init-lora @lora.gguf --routing-strategy lora --lora-rank 4 "
           "--max-steps 1 -q",
           0, NULL);

    /* another base is refused unless allowed */
    expect("score -m random:tiny --data @train.jsonl --lora @lora.gguf", 65, "--allow-other-base");

    expect("merge -m @tiny.gguf --lora @lora --output-file @merged.gguf -o json", 0, "same first choice");
    const struct tp_json_value *root = root_of(&json);
    expect_number(root, "merged", 8, 8);
    expect_number(root, "tensors", 20, 20);
    expect_number(root, "probe_tokens", 200, 512);
    expect_number(root, "logit_difference_max", 0, 1e-4);
    expect_number(root, "logit_difference_mean", 0, 1e-5);
    expect_number(root, "top1_agreement", 0.99, 1);
    tp_json_free(json);
    /* rounding to four bits shows: the report is of the file, not of the arithmetic */
    expect("merge -m @tiny.gguf --lora @lora --output-file @small.gguf --type q4_0 --probe @train.jsonl -o json", 0, NULL);
    expect_number(root_of(&json), "logit_difference_max", 1e-3, 10);
    tp_json_free(json);
    expect("merge -m @tiny.gguf --lora @lora.gguf --output-file @merged.gguf --no-probe -o json", 0, NULL);
    assert_non_null(strstr(out, "\"top1_agreement\": null"));
    expect("merge -m @tiny.gguf --lora @lora --output-file @tiny.gguf", 2, "base model itself");
}

static void test_mixture(void **state)
{
    (void)state;
    struct tp_json *json;
    need_device();
    train("mix", "adamole --num-experts 3 --expert-rank 2");
    expect("merge -m @tiny.gguf --lora @mix --output-file @x.gguf", 2, "depends on the token");
    assert_true(access(path("x.gguf"), F_OK) != 0);
    expect("export -m @tiny.gguf --lora @mix --output-dir @x", 2, "mixture");
    expect("export -m @tiny.gguf --lora @mix --format gguf --output-dir @set --type f16 -o json", 0, NULL);
    expect_number(root_of(&json), "files", 4, 4);
    tp_json_free(json);
    expect("score -m @tiny.gguf --data @train.jsonl --lora @set/expert-2.gguf -q", 0, NULL);
    expect("score -m @tiny.gguf --data @train.jsonl --lora @set/router.gguf", 65, "lora_router");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_usage), cmocka_unit_test(test_round_trip), cmocka_unit_test(test_mixture)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
