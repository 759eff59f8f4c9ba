/* The real base model against the references: logits, perplexity, full-size adapters. Skips without the model or the goldens. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden.h"
#include "smol_fixture.h"
#include "train_fixture.h"

static struct talpa_model *model;

static int32_t *int_array(const struct tp_json_value *array, size_t *n)
{
    *n = (size_t)tp_json_length(array);
    int32_t *values = malloc((*n + 1) * sizeof *values);
    size_t i = 0;
    for (const struct tp_json_value *v = tp_json_first(array); v; v = tp_json_next(v)) {
        int64_t x;
        golden_ok(tp_json_as_int(&x, v, "ids"));
        values[i++] = (int32_t)x;
    }
    return values;
}

static double number(const struct tp_json_value *object, const char *key)
{
    double x;
    golden_ok(tp_json_get_double(&x, object, key));
    return x;
}

/* ---- logits ---- */

struct logits_run {
    struct tp_engine engine;
    struct tp_eval_graph eval;
    struct tp_program_set set;
    struct tp_batch batch;
    float *logits;
};

static void run_logits(struct logits_run *run, const int32_t *ids, size_t n)
{
    const struct tp_dataset_example example = {.ids = ids, .labels = ids, .n_tokens = (uint32_t)n};
    struct tp_step step = {{0}};
    tp_batch_clear(&run->batch);
    golden_ok(tp_batch_add(&run->batch, &example, 0, 0, 0));
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f);
    golden_ok(tp_batch_write(&run->batch, run->set.executor, &run->eval.inputs, &step));
    golden_ok(tp_executor_step(run->set.executor, &step));
    golden_ok(tp_executor_run(run->set.executor, 0, TP_PHASE_BATCH));
    golden_ok(
        tp_executor_read(run->set.executor, run->eval.logits, run->logits, n * (size_t)model->config.vocab_size * sizeof *run->logits));
}

static void check_prompt(struct logits_run *run, const struct tp_json_value *prompt)
{
    size_t n, n_top, n_argmax;
    int32_t *ids = int_array(tp_json_get(prompt, "ids"), &n), *top = int_array(tp_json_get(prompt, "top20_ids"), &n_top);
    int32_t *argmax = int_array(tp_json_get(prompt, "argmax_every_position"), &n_argmax);
    run_logits(run, ids, n);
    const int vocabulary = model->config.vocab_size;
    const float *last = run->logits + (n - 1) * (size_t)vocabulary;
    double worst = 0.0, largest = -INFINITY, sum = 0.0;
    size_t i = 0, n_argmax_off = 0;
    for (const struct tp_json_value *v = tp_json_first(tp_json_get(prompt, "top20_logits")); v; v = tp_json_next(v), i++) {
        double want;
        golden_ok(tp_json_as_double(&want, v, "logit"));
        worst = fmax(worst, fabs((double)last[top[i]] - want));
    }
    for (int v = 0; v < vocabulary; v++) largest = fmax(largest, (double)last[v]);
    for (int v = 0; v < vocabulary; v++) sum += exp((double)last[v] - largest);
    const double lse = fabs(largest + log(sum) - number(prompt, "logsumexp"));
    for (size_t p = 0; p < n; p++) {
        const float *row = run->logits + p * (size_t)vocabulary;
        int best = 0;
        for (int v = 1; v < vocabulary; v++)
            if (row[v] > row[best]) best = v;
        /* A near tie may fall either way; what we chose must then be as good as the reference's choice. */
        n_argmax_off += best != argmax[p] && row[best] - row[argmax[p]] > 1e-3f;
    }
    printf("  %zu tokens: top-20 logits max error %.1e, logsumexp error %.1e, %zu argmax differences\n", n, worst, lse, n_argmax_off);
    assert_true(worst < 1e-3);
    assert_true(lse < 1e-3);
    assert_int_equal(n_argmax_off, 0);
    free(ids);
    free(top);
    free(argmax);
}

static void test_logits(void **state)
{
    (void)state;
    enum { LONGEST = 128 };
    struct logits_run run = {0};
    struct tp_json *json = golden_json("smol/logits.json");
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    golden_ok(tp_engine_open(&run.engine, golden_device(), model));
    golden_ok(tp_eval_graph_create(&run.eval, model, NULL, LONGEST, LONGEST, true));
    golden_ok(tp_program_set_create(&run.set, &run.engine, run.eval.graph, &options, true, false));
    golden_ok(tp_batch_create(&run.batch, LONGEST, LONGEST));
    run.logits = malloc((size_t)LONGEST * (size_t)model->config.vocab_size * sizeof *run.logits);
    for (const struct tp_json_value *p = tp_json_first(tp_json_root(json)); p; p = tp_json_next(p)) check_prompt(&run, p);
    free(run.logits);
    tp_batch_free(&run.batch);
    tp_program_set_free(&run.set);
    tp_eval_graph_free(&run.eval);
    tp_engine_close(&run.engine);
    tp_json_free(json);
}

/* ---- perplexity ---- */

static void test_perplexity(void **state)
{
    (void)state;
    enum { LONGEST = 512 };
    struct tp_json *json = golden_json("smol/ppl.json");
    struct tp_engine engine;
    struct tp_evaluator evaluator;
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    golden_ok(tp_engine_open(&engine, golden_device(), model));
    golden_ok(tp_evaluator_create(&evaluator, &engine, model, NULL, LONGEST, &options, false));
    double sum = 0.0, worst = 0.0;
    size_t n_tokens = 0;
    for (const struct tp_json_value *e = tp_json_first(golden_at(json, "examples")); e; e = tp_json_next(e)) {
        size_t n;
        int32_t *ids = int_array(tp_json_get(e, "ids"), &n);
        const struct tp_dataset_example example = {.ids = ids, .labels = ids, .n_tokens = (uint32_t)n};
        struct tp_step step = {{0}};
        double nll = 0.0;
        tp_batch_clear(&evaluator.batch);
        golden_ok(tp_batch_add(&evaluator.batch, &example, 0, 0, 0));
        tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f);
        golden_ok(tp_batch_write(&evaluator.batch, evaluator.set.executor, &evaluator.eval.inputs, &step));
        golden_ok(tp_executor_step(evaluator.set.executor, &step));
        golden_ok(tp_executor_run(evaluator.set.executor, 0, TP_PHASE_BATCH));
        golden_ok(tp_executor_read(evaluator.set.executor, evaluator.eval.nll, evaluator.nll, (n - 1) * sizeof *evaluator.nll));
        for (size_t i = 0; i + 1 < n; i++) nll += (double)evaluator.nll[i];
        worst = fmax(worst, fabs(nll - number(e, "nll_sum")) / (double)(n - 1));
        sum += nll;
        n_tokens += n - 1;
        free(ids);
    }
    const double perplexity = exp(sum / (double)n_tokens), want = golden_number(json, "perplexity");
    printf("  perplexity %.6f, reference %.6f, worst row %.1e nat per token\n", perplexity, want, worst);
    assert_true(fabs(perplexity / want - 1.0) < 1e-3);
    assert_true(worst < 1e-3);
    tp_evaluator_free(&evaluator);
    tp_engine_close(&engine);
    tp_json_free(json);
}

/* ---- adapters ---- */

static void check_adapter(const struct tp_json *json, const char *name)
{
    enum { B = 2, T = 64 };
    char key[256];
    struct fixture f;
    struct tp_safetensors *tensors;
    snprintf(key, sizeof key, "%s/spec", name);
    const struct talpa_adapter_config config = smol_config(golden_at(json, key));
    const struct fixture_options options = {.tier = "", .dispatch = TP_DISPATCH_DENSE, .batch = B, .length = T, .aux_coef = 1e-3};
    golden_ok(tp_safetensors_open(&tensors, golden_path("smol/adapter.safetensors")));
    fixture_open(&f, model, &config, &options);
    smol_init(&f, 7, 0.01);
    int32_t *ids = golden_i32(tensors, "input_ids", NULL);
    const struct fixture_step step = fixture_run(&f, 0, ids, ids, false);
    float *grads = malloc((size_t)f.adapter->bank_elements * sizeof *grads);
    fixture_read(&f, f.train.grads, grads);
    snprintf(key, sizeof key, "%s/ce", name);
    const double ce = fabs(step.ce - golden_number(json, key));
    snprintf(key, sizeof key, "%s/aux", name);
    const double aux_want = golden_number(json, key), aux = isnan(aux_want) ? 0.0 : fabs(step.aux - aux_want) / aux_want;
    snprintf(key, sizeof key, "%s/grad_norm_by_tensor", name);
    const struct tp_json_value *norms = golden_at(json, key);
    double worst = 0.0, worst_relative = 0.0, total = 0.0;
    int n_whole = 0;
    for (int i = 0; i < f.adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &f.adapter->tensors[i];
        const char *short_name = t->name + strlen("base_model.model.");
        const size_t n = (size_t)t->rows * (size_t)t->columns;
        float *values = malloc(n * sizeof *values);
        double norm = 0.0;
        tp_adapter_get(values, f.adapter, grads, i);
        for (size_t j = 0; j < n; j++) norm += (double)values[j] * (double)values[j];
        total += norm;
        const double want = number(norms, short_name);
        if (want > 1e-6) worst = fmax(worst, fabs(sqrt(norm) - want) / want);
        snprintf(key, sizeof key, "%s.grad.%s", name, short_name);
        if (tp_safetensors_has(tensors, key)) {
            size_t n_want;
            float *whole = golden_f32(tensors, key, &n_want);
            double distance = 0.0;
            assert_int_equal(n_want, n);
            for (size_t j = 0; j < n; j++) distance += ((double)values[j] - (double)whole[j]) * ((double)values[j] - (double)whole[j]);
            worst_relative = fmax(worst_relative, sqrt(distance) / want);
            free(whole);
            n_whole++;
        }
        free(values);
    }
    printf("  %-10s ce error %.1e, aux %.1e relative, gradient norms %.1e relative, %d whole gradients %.1e relative L2\n", name, ce, aux,
           worst, n_whole, worst_relative);
    const bool routed = config.routing != TALPA_ROUTING_LORA;
    assert_true(ce < 1e-4);
    assert_true(aux < 1e-4);
    assert_true(worst < (routed ? 1e-2 : 1e-3)); /* a routing decision may lie within rounding of its boundary */
    assert_true(n_whole > 0 && worst_relative < 1e-2);
    snprintf(key, sizeof key, "%s/grad_norm_total", name);
    assert_true(fabs(sqrt(total) / golden_number(json, key) - 1.0) < 1e-3);
    free(grads);
    free(ids);
    fixture_close(&f);
    tp_safetensors_close(tensors);
}

static void test_adapters(void **state)
{
    (void)state;
    struct tp_json *json = golden_json("smol/adapter.json");
    check_adapter(json, "lora-r32");
    check_adapter(json, "mole-top2");
    check_adapter(json, "adamole");
    tp_json_free(json);
}

int main(void)
{
    golden_path("smol/logits.json");
    golden_ok(talpa_model_open(&model, golden_model_path()));
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits), cmocka_unit_test(test_perplexity), cmocka_unit_test(test_adapters)};
    const int failed = cmocka_run_group_tests_name("golden smol", tests, NULL, NULL);
    talpa_model_close(model);
    return failed;
}
