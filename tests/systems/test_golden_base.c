/* Logits and cross entropy of the golden tiny models, from every file format, on every tier. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden.h"
#include "train/evaluate.h"

enum { B = 2, T = 32, V = 256 };

static const char *const files[] = {"tied-f32", "tied-f16", "tied-q8_0", "tied-q4_0", "tied-q4_1", "untied-f32", "untied-q4_1"};

static void check_file(const char *file, const char *tier, enum tp_base_dtype base)
{
    char path[256];
    struct talpa_model *model;
    struct tp_engine engine;
    struct tp_eval_graph eval;
    struct tp_program_set set;
    struct tp_batch batch;
    struct tp_safetensors *golden;
    snprintf(path, sizeof path, "tiny/%s.gguf", file);
    golden_ok(talpa_model_open(&model, golden_path(path)));
    golden_ok(tp_safetensors_open(&golden, golden_path("tiny/base.safetensors")));
    golden_ok(tp_engine_open(&engine, golden_device(), model));
    golden_ok(tp_eval_graph_create(&eval, model, NULL, B * T + 9, B * T + 9, true));
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    if (!options.tier[0]) snprintf(options.tier, sizeof options.tier, "%s", tier);
    options.base_dtype = base;
    golden_ok(tp_program_set_create(&set, &engine, eval.graph, &options, true, false));
    int32_t *ids = golden_i32(golden, "input_ids", NULL);
    golden_ok(tp_batch_create(&batch, B * T + 9, B * T + 9));
    for (int b = 0; b < B; b++) {
        const struct tp_dataset_example example = {.ids = ids + b * T, .labels = ids + b * T, .n_tokens = T};
        golden_ok(tp_batch_add(&batch, &example, (uint32_t)b, 0, 0));
    }
    struct tp_step step = {{0}};
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f / (float)batch.n_labelled);
    golden_ok(tp_batch_write(&batch, set.executor, &eval.inputs, &step));
    golden_ok(tp_executor_step(set.executor, &step));
    golden_ok(tp_executor_run(set.executor, 0, TP_PHASE_BATCH));
    size_t n;
    snprintf(path, sizeof path, "logits.%s", file);
    float *want = golden_f32(golden, path, &n), *got = malloc(n * sizeof *got), loss;
    golden_ok(tp_executor_read(set.executor, eval.logits, got, n * sizeof *got));
    golden_ok(tp_executor_read(set.executor, eval.loss, &loss, sizeof loss));
    double worst = 0.0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
    struct tp_json *json = golden_json("tiny/base.json");
    snprintf(path, sizeof path, "%s/ce", file);
    const double ce = golden_number(json, path), error = fabs(ce - (double)loss);
    const bool exact = base != TP_BASE_BF16;
    printf("%-12s tier %-8s logits max error %.2e, cross entropy error %.2e\n", file, options.tier[0] ? options.tier : "best", worst,
           error);
    assert_int_equal(n, B * T * V);
    assert_true(worst < (exact ? 1e-4 : 0.3)); /* golden README; NaN fails */
    assert_true(error < (exact ? 1e-5 : 1e-2));
    tp_json_free(json);
    free(want);
    free(got);
    free(ids);
    tp_batch_free(&batch);
    tp_program_set_free(&set);
    tp_eval_graph_free(&eval);
    tp_engine_close(&engine);
    tp_safetensors_close(golden);
    talpa_model_close(model);
}

static void test_best(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) check_file(files[i], "", TP_BASE_AUTO);
}

static void test_generic(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) check_file(files[i], "generic", TP_BASE_NATIVE);
}

static void test_clblast(void **state)
{
    (void)state;
    check_file("tied-f32", "clblast", TP_BASE_AUTO);
}

static void test_bf16(void **state)
{
    (void)state;
    check_file("tied-f32", "", TP_BASE_BF16);
    check_file("untied-q4_1", "", TP_BASE_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_best), cmocka_unit_test(test_generic), cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_clblast)};
    return cmocka_run_group_tests_name("golden base", tests, NULL, NULL);
}
