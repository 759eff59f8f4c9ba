/* Fifteen training steps of the real model against the reference, and its held-out loss before and after. Some minutes: label full. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden.h"
#include "smol_fixture.h"

enum { STEPS = 15, B = 4, T = 128, EVAL_ROWS = 8 };

static struct talpa_model *model;

static void check(const char *name)
{
    char key[64];
    size_t n;
    struct tp_json *json = golden_json("smol/train.json");
    struct tp_safetensors *tensors;
    struct fixture f;
    golden_ok(tp_safetensors_open(&tensors, golden_path("smol/train_ids.safetensors")));
    snprintf(key, sizeof key, "%s/spec", name);
    const struct talpa_adapter_config config = smol_config(golden_at(json, key));
    const struct fixture_options options = {.tier = "",
                                            .dispatch = config.routing == TALPA_ROUTING_TOPK ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE,
                                            .batch = B, .length = T, .aux_coef = 1e-3, .learning_rate = 1e-3, .max_norm = 1.0};
    fixture_open(&f, model, &config, &options);
    smol_init(&f, 3, 0.0);
    int32_t *ids = golden_i32(tensors, "train_ids", NULL), *held_out = golden_i32(tensors, "eval_ids", NULL);
    snprintf(key, sizeof key, "%s/ce", name);
    double *ce = golden_numbers(json, key, &n), worst = 0.0, worst_norm = 0.0;
    snprintf(key, sizeof key, "%s/grad_norm", name);
    double *norm = golden_numbers(json, key, &n);
    const double before = fixture_eval(&f, held_out, EVAL_ROWS);
    for (int s = 0; s < STEPS; s++) {
        const struct fixture_step step = fixture_run(&f, s, ids + s * B * T, ids + s * B * T, true);
        worst = fmax(worst, fabs(step.ce - ce[s]));
        worst_norm = fmax(worst_norm, fabs(step.grad_norm / norm[s] - 1.0));
    }
    const double after = fixture_eval(&f, held_out, EVAL_ROWS);
    snprintf(key, sizeof key, "%s/eval_before", name);
    const double want_before = golden_number(json, key);
    snprintf(key, sizeof key, "%s/eval_after", name);
    const double want_after = golden_number(json, key);
    printf("  %-10s 15 losses max error %.1e, gradient norms %.1e relative, held-out %.6f (%.6f) -> %.6f (%.6f)\n", name, worst, worst_norm,
           before, want_before, after, want_after);
    assert_true(worst < 5e-3);
    assert_true(worst_norm < 2e-2);
    assert_true(fabs(before - want_before) < 1e-4);
    assert_true(fabs(after - want_after) < 5e-3);
    free(ids);
    free(held_out);
    free(ce);
    free(norm);
    fixture_close(&f);
    tp_safetensors_close(tensors);
    tp_json_free(json);
}

static void test_train(void **state)
{
    (void)state;
    check("adamole");
    check("mole-top2");
    check("lora-r32");
}

int main(void)
{
    golden_path("smol/train.json");
    golden_ok(talpa_model_open(&model, golden_model_path()));
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_train)};
    const int failed = cmocka_run_group_tests_name("golden smol training", tests, NULL, NULL);
    talpa_model_close(model);
    return failed;
}
