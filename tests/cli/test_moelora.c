/* moelora from the command line: its flags and their owners, its log, resuming, starting from other adapters, where its adapters work. */
#include "cli/cli_test.h"

#define TRAIN "train -m random:tiny --data @train.jsonl -b 2 -c 32 --learning-rate 0.01 -o json -q "
#define MOELORA TRAIN "--routing-strategy moelora --num-experts 4 "

static void digest_of(char digest[20], const char *line)
{
    const char *text = NULL;
    expect(line, 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_get_string(&text, tp_json_root(json), "digest_state"), TALPA_OK);
    snprintf(digest, 20, "%s", text);
    tp_json_free(json);
}

/* Members `key` of a log; NaN where a row has none. */
static int column(double *value, int most, const char *name, const char *key)
{
    static char text[TEXT_MAX];
    char *rest = NULL;
    int n = 0;
    read_text(text, sizeof text, name);
    for (char *line = strtok_r(text, "\n", &rest); line && n < most; line = strtok_r(NULL, "\n", &rest), n++) {
        struct tp_json *json = parse(line);
        value[n] = NAN;
        if (tp_json_get(tp_json_root(json), key)) assert_int_equal(tp_json_get_double(&value[n], tp_json_root(json), key), TALPA_OK);
        tp_json_free(json);
    }
    return n;
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const own[] = {"--contrastive-coef 1",       "--contrastive-temperature 1", "--contrastive-samples 8",
                                      "--contrastive-normalise on", "--contrastive-gated",         "--contrastive-warmup 3"};
    static const char *const others[] = {"lora", "topk", "threshold", "adamole"};
    static const char *const bad[][2] = {{"--contrastive-coef -1", "--contrastive-coef"},
                                         {"--contrastive-coef nan", "--contrastive-coef"},
                                         {"--contrastive-coef x", "--contrastive-coef"},
                                         {"--contrastive-temperature 0", "--contrastive-temperature"},
                                         {"--contrastive-temperature -0.1", "--contrastive-temperature"},
                                         {"--contrastive-temperature inf", "--contrastive-temperature"},
                                         {"--contrastive-samples 0", "--contrastive-samples"},
                                         {"--contrastive-samples -3", "--contrastive-samples"},
                                         {"--contrastive-samples 3x", "--contrastive-samples"},
                                         {"--contrastive-samples All", "--contrastive-samples"},
                                         {"--contrastive-samples 99999999999999999999", "--contrastive-samples"},
                                         {"--contrastive-normalise yes", "--contrastive-normalise"},
                                         {"--contrastive-warmup-steps -2", "--contrastive-warmup-steps"},
                                         {"--router-top-k 9", "--router-top-k"},
                                         {"--max-threshold 0.1", "belongs to --routing-strategy adamole"},
                                         {"--router-threshold 0.1", "belongs to --routing-strategy threshold"},
                                         {"--lora-rank 4", "--expert-rank"},
                                         {"--aux-include-pads", "--aux-include-pads"}};
    char line[512];
    for (size_t s = 0; s < sizeof others / sizeof *others; s++) {
        for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
            snprintf(line, sizeof line, "train -m random:tiny --dry-run --fake-device cpu --routing-strategy %s %s", others[s], own[i]);
            expect(line, 2, "belongs to --routing-strategy moelora");
        }
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(line, sizeof line, "train -m random:tiny --dry-run --fake-device cpu --routing-strategy moelora %s", bad[i][0]);
        expect(line, 2, bad[i][1]);
    }
}

static void test_defaults(void **state)
{
    (void)state;
    int64_t n = 0;
    expect("train -m random:tiny --dry-run --fake-device intel -o json --routing-strategy moelora", 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_get_int(&n, tp_json_root(json), "n_modules"), TALPA_OK);
    assert_int_equal(n, 4); /* q and v of two layers */
    tp_json_free(json);
    expect("train -m random:tiny --dry-run --fake-device amd -o json --routing-strategy moelora --lora-modules q,k,v,o "
           "--contrastive-samples all",
           0, NULL);
    json = parse(out);
    assert_int_equal(tp_json_get_int(&n, tp_json_root(json), "n_modules"), TALPA_OK);
    assert_int_equal(n, 8);
    tp_json_free(json);
}

/* The weight rises over the learning rate's warm-up, or its own; without the loss the log does not have it. */
static void test_log(void **state)
{
    (void)state;
    need_device();
    enum { STEPS = 6 };
    double with[STEPS], without[STEPS], loss[2][STEPS];
    expect(MOELORA "--max-steps 6 --contrastive-warmup-steps 4 --output-dir @with", 0, NULL);
    expect(MOELORA "--max-steps 6 --contrastive-coef 0 --output-dir @without", 0, NULL);
    assert_int_equal(column(with, STEPS, "with/trainer_log.jsonl", "contrastive_loss"), STEPS);
    assert_int_equal(column(without, STEPS, "without/trainer_log.jsonl", "contrastive_loss"), STEPS);
    column(loss[0], STEPS, "with/trainer_log.jsonl", "loss");
    column(loss[1], STEPS, "without/trainer_log.jsonl", "loss");
    assert_true(with[0] == 0.0); /* all outputs are zero */
    for (int s = 1; s < STEPS; s++) assert_true(with[s] > 0.1 && with[s] < 50.0);
    for (int s = 0; s < STEPS; s++) assert_true(isnan(without[s]));
    for (int s = 0; s < 2; s++) assert_true(loss[0][s] == loss[1][s]); /* weight 0 in the first step */
    assert_true(loss[0][STEPS - 1] != loss[1][STEPS - 1]);
    char text[4096];
    read_text(text, sizeof text, "with/moelora_train.json");
    assert_non_null(strstr(text, "\"contrastive_warmup_steps\": 4"));
    assert_non_null(strstr(text, "\"router_aux_loss_coef\": 0.01"));
    read_text(text, sizeof text, "with/adapter_config.json");
    assert_non_null(strstr(text, "\"peft_type\": \"MOLE\""));
    assert_null(strstr(text, "contrastive"));
}

static void test_resume(void **state)
{
    (void)state;
    need_device();
    char whole[20], parts[20], other[20];
    digest_of(whole, MOELORA "--max-steps 6 --contrastive-samples 3 --seed 5 --output-dir @whole");
    expect(MOELORA "--max-steps 3 --contrastive-samples 3 --seed 5 --output-dir @parts", 0, NULL);
    expect(MOELORA "--max-steps 6 --contrastive-samples 4 --seed 5 --output-dir @parts --resume-from auto", 65, "contrastive_samples");
    expect(MOELORA "--max-steps 6 --contrastive-samples 3 --contrastive-gated --seed 5 --output-dir @parts --resume-from auto", 65,
           "contrastive_gated");
    digest_of(parts, MOELORA "--max-steps 6 --contrastive-samples 3 --seed 5 --output-dir @parts --resume-from auto");
    if (strcmp(whole, parts)) fail_msg("state %s in one run, %s in two", whole, parts);
    digest_of(other, MOELORA "--max-steps 6 --contrastive-samples 3 --seed 5 --gradient-checkpointing --output-dir @again");
    if (strcmp(whole, other)) fail_msg("state %s, with --gradient-checkpointing %s", whole, other);
    digest_of(other, MOELORA "--max-steps 6 --contrastive-samples 3 --contrastive-normalise off --seed 5 --output-dir @raw");
    assert_string_not_equal(whole, other);
}

static void test_adapter(void **state)
{
    (void)state;
    need_device();
    expect(MOELORA "--max-steps 3 --output-dir @made", 0, NULL);
    expect("inspect --lora @made -o json", 0, NULL);
    assert_non_null(strstr(out, "\"moelora\""));
    assert_non_null(strstr(out, "contrastive_temperature"));
    expect("inspect --lora @made", 0, NULL);
    assert_non_null(strstr(out, "32 samples per expert"));
    expect("score -m random:tiny --lora @made --data @train.jsonl", 0, NULL);
    expect("generate -m random:tiny --lora @made -p one: -n 3 --temp 0", 0, NULL);
    expect("export -m random:tiny --lora @made --format peft --output-dir @peft", 2, "moelora");
    expect("export -m random:tiny --lora @made --format gguf --output-dir @gguf", 0, NULL);
    expect("merge -m random:tiny --lora @made --output-file @merged.gguf", 2, "moelora");
    /* top-k and moelora are the same adapter, trained differently; others are not */
    expect(TRAIN "--routing-strategy topk --max-steps 2 --init-lora @made --output-dir @topk", 0, NULL);
    assert_int_equal(access(path("topk/moelora_train.json"), F_OK), -1);
    expect(TRAIN "--routing-strategy moelora --max-steps 2 --init-lora @topk --output-dir @back", 0, NULL);
    assert_int_equal(access(path("back/moelora_train.json"), F_OK), 0);
    expect(TRAIN "--max-steps 2 --output-dir @adamole", 0, NULL);
    expect(TRAIN "--routing-strategy moelora --max-steps 2 --init-lora @adamole --output-dir @never", 2, "--init-lora");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refused), cmocka_unit_test(test_defaults), cmocka_unit_test(test_log),
                                       cmocka_unit_test(test_resume), cmocka_unit_test(test_adapter)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
