/* --gradient-checkpointing: the same bits from less memory. */
#include "cli/cli_test.h"

#define TRAIN                                                                                                                              \
    "train -m random:tiny --data @train.jsonl -c 32 -b 2 --gradient-accumulation-steps 2 --max-steps 3 --learning-rate 0.01 "              \
    "--lora-dropout 0.1 -o json "

static void train(char digest[20], const char *flags, const char *name)
{
    char line[512];
    const char *text = NULL;
    if (strstr(flags, "lora ")) snprintf(line, sizeof line, TRAIN "%s --output-dir @%s", flags, name);
    else snprintf(line, sizeof line, TRAIN "%s --output-dir @%s --route-log @%s.routes", flags, name, name);
    expect(line, 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_get_string(&text, tp_json_root(json), "digest"), TALPA_OK);
    snprintf(digest, 20, "%s", text);
    tp_json_free(json);
}

/* Digests after three steps of two micro-batches with dropout; the selection counts are in the route log. */
static void test_same_bits(void **state)
{
    (void)state;
    need_device();
    static char routes[2][TEXT_MAX];
    static const char *const variants[] = {"--routing-strategy lora --lora-rank 4",
                                           "--routing-strategy topk --expert-dispatch dense",
                                           "--routing-strategy topk --expert-dispatch sparse --lora-modules all",
                                           "--routing-strategy adamole --expert-dispatch dense",
                                           "--routing-strategy adamole --expert-dispatch sparse",
                                           "--routing-strategy threshold --expert-dropout-mask independent --expert-dispatch dense"};
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        char flags[256], a[24], b[24], plain[20], lean[20];
        snprintf(a, sizeof a, "plain%zu", i);
        snprintf(b, sizeof b, "lean%zu", i);
        train(plain, variants[i], a);
        snprintf(flags, sizeof flags, "%s --gradient-checkpointing", variants[i]);
        train(lean, flags, b);
        if (strcmp(plain, lean)) fail_msg("%s: digest %s, with --gradient-checkpointing %s", variants[i], plain, lean);
        for (int k = 0; k < 2 && !strstr(variants[i], "lora "); k++) { /* LoRA routes nothing */
            char name[32];
            snprintf(name, sizeof name, "%s.routes", k ? b : a);
            const size_t n = read_text(routes[k], TEXT_MAX, name);
            assert_true(n > 0);
        }
        assert_string_equal(routes[0], routes[1]);
    }
}

static int64_t activation_bytes(const char *line)
{
    int64_t n_bytes = 0;
    expect(line, 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_get_int(&n_bytes, tp_json_root(json), "activation_bytes"), TALPA_OK);
    tp_json_free(json);
    return n_bytes;
}

/* Two layers: one of them is not kept. */
static void test_less_memory(void **state)
{
    (void)state;
    need_device();
#define DRY "train -m random:tiny --data @train.jsonl -c 128 -b 8 --routing-strategy lora --dry-run -o json"
    const int64_t plain = activation_bytes(DRY), lean = activation_bytes(DRY " --gradient-checkpointing");
    if (lean >= plain) fail_msg("%lld bytes, with --gradient-checkpointing %lld", (long long)plain, (long long)lean);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits), cmocka_unit_test(test_less_memory)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
