/* --compute-dtype: bf16 follows f32 closely where the device has a matrix tier and is f32, said once, where it has none; a run keeps the one
 * that it began with. */
#include "cli/cli_test.h"

#define TRAIN "train -m random:tiny --data @train.jsonl -b 4 -c 32 --learning-rate 0.002 --lora-dropout 0 -o json "

enum { STEPS = 20 };

static void test_close_to_f32(void **state)
{
    (void)state;
    need_device();
    double f32[STEPS], bf16[STEPS], most = 0;
    expect(TRAIN "--max-steps 20 --output-dir @f32", 0, NULL);
    expect(TRAIN "--max-steps 20 --compute-dtype bf16 --output-dir @bf16", 0, NULL);
    const bool has_none = strstr(err, "no matrix tier") != NULL;
    assert_null(strstr(err, "is not used"));
    assert_int_equal(read_log(f32, STEPS, "f32/trainer_log.jsonl"), STEPS);
    assert_int_equal(read_log(bf16, STEPS, "bf16/trainer_log.jsonl"), STEPS);
    for (int s = 0; s < STEPS; s++) {
        const double distance = fabs(f32[s] - bf16[s]);
        if (!(distance < 0.02)) fail_msg("step %d: loss %.9g in f32, %.9g in bf16", s + 1, f32[s], bf16[s]);
        if (distance > most) most = distance;
    }
    assert_true(f32[STEPS - 1] < f32[0]);
    if (has_none) assert_true(most == 0);
    else assert_true(most > 1e-7);
}

static void test_resume(void **state)
{
    (void)state;
    need_device();
    expect(TRAIN "--max-steps 2 --compute-dtype bf16 --output-dir @run", 0, NULL);
    expect(TRAIN "--max-steps 4 --output-dir @run --resume-from auto", 65, "--compute-dtype");
    expect(TRAIN "--max-steps 4 --compute-dtype bf16 --output-dir @run --resume-from auto", 0, NULL);
}

/* The other verbs take it, and give nearly the same numbers. */
static void test_score(void **state)
{
    (void)state;
    need_device();
    double sum[2];
    for (int i = 0; i < 2; i++) {
        expect(i ? "score -m random:tiny --data @train.jsonl -o jsonl --compute-dtype bf16" : "score -m random:tiny --data @train.jsonl -o jsonl",
               0, NULL);
        *strchr(out, '\n') = '\0';
        struct tp_json *json = parse(out);
        assert_int_equal(tp_json_get_double(&sum[i], tp_json_root(json), "sum"), TALPA_OK);
        tp_json_free(json);
    }
    if (!(fabs(sum[0] - sum[1]) < 0.02 * fabs(sum[0]))) fail_msg("sum of log-probabilities %.9g in f32, %.9g in bf16", sum[0], sum[1]);
    expect("generate -m random:tiny -p one -n 4 --temp 0 --compute-dtype bf16", 0, NULL);
    expect("generate -m random:tiny -p one -n 4 --compute-dtype f8", 2, "--compute-dtype");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_close_to_f32), cmocka_unit_test(test_resume), cmocka_unit_test(test_score)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
