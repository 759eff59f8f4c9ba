/* Every supported architecture, from a Hugging Face folder and from a GGUF file, against transformers and PyTorch: logits, loss and the
 * gradients of LoRA on all linears (tools/golden/make_models.py makes the files). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden.h"
#include "train_fixture.h"

enum { ROWS = 2, LENGTH = 16, VOCABULARY = 96 };

static const struct {
    const char *name, *architecture;
    int context_length;
    unsigned biased;
} models[] = {
    {"llama", "llama", 64, 0}, {"llama3", "llama", 64, 0x7f}, {"mistral", "llama", 16, 0},
    {"qwen2", "qwen2", 64, 7}, {"qwen3", "qwen3", 64, 0},     {"gemma", "gemma", 64, 0},
};
enum { N_MODELS = sizeof models / sizeof *models };

static const char *data_path(const char *model, const char *file)
{
    static char text[2][512];
    static int next;
    char *path = text[next++ % 2];
    snprintf(path, sizeof text[0], "%s/tests/data/models/%s%s%s", TALPA_SOURCE_DIR, model, *file ? "/" : "", file);
    return path;
}

/* Largest |got - want| / (1 + |want|). */
static double distance(const float *got, const float *want, size_t n)
{
    double worst = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - (double)want[i]) / (1.0 + fabs((double)want[i]));
        if (!(d <= worst)) worst = d; /* NaN stays */
    }
    return worst;
}

static void check_logits(struct talpa_model *model, const struct tp_safetensors *golden, const char *tier, const char *label)
{
    struct tp_engine engine;
    struct tp_eval_graph eval;
    struct tp_program_set set;
    struct tp_batch batch;
    struct tp_plan_options options;
    size_t n;
    float *want = golden_f32(golden, "logits", &n), *got = malloc(n * sizeof *got);
    int32_t *ids = golden_i32(golden, "input_ids", NULL);
    golden_ok(tp_engine_open(&engine, golden_device(), model));
    golden_ok(tp_eval_graph_create(&eval, model, NULL, ROWS * LENGTH + 5, ROWS * LENGTH + 5, true));
    tp_plan_options_default(&options);
    if (!options.tier[0]) snprintf(options.tier, sizeof options.tier, "%s", tier);
    golden_ok(tp_program_set_create(&set, &engine, eval.graph, &options, true, false));
    golden_ok(tp_batch_create(&batch, ROWS * LENGTH + 5, ROWS * LENGTH + 5));
    for (int b = 0; b < ROWS; b++) {
        const struct tp_dataset_example example = {.ids = ids + b * LENGTH, .labels = ids + b * LENGTH, .n_tokens = LENGTH};
        golden_ok(tp_batch_add(&batch, &example, (uint32_t)b, 0, 0));
    }
    struct tp_step step = {{0}};
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f);
    golden_ok(tp_batch_write(&batch, set.executor, &eval.inputs, &step));
    golden_ok(tp_executor_step(set.executor, &step));
    golden_ok(tp_executor_run(set.executor, 0, TP_PHASE_BATCH));
    golden_ok(tp_executor_read(set.executor, eval.logits, got, n * sizeof *got));
    const double worst = distance(got, want, n);
    printf("%-16s tier %-8s logits %.1e", label, options.tier[0] ? options.tier : "best", worst);
    assert_int_equal(n, ROWS * LENGTH * VOCABULARY);
    assert_true(worst < 1e-4);
    free(want);
    free(got);
    free(ids);
    tp_batch_free(&batch);
    tp_program_set_free(&set);
    tp_eval_graph_free(&eval);
    tp_engine_close(&engine);
}

static void check_gradients(struct talpa_model *model, const struct tp_safetensors *golden, const char *tier)
{
    struct talpa_adapter_config config = talpa_adapter_default();
    config.routing = TALPA_ROUTING_LORA;
    config.rank = 2;
    config.alpha = 4.0;
    config.dropout = 0.0;
    config.modules = (1u << TALPA_N_MODULES) - 1;
    const struct fixture_options options = {.tier = tier, .dispatch = TP_DISPATCH_DENSE, .batch = ROWS, .length = LENGTH};
    static const char prefix[] = "base_model.model.model.";
    struct fixture f;
    size_t n;
    fixture_open(&f, model, &config, &options);
    for (int i = 0; i < f.adapter->n_tensors; i++) {
        char name[128];
        const char *saved = f.adapter->tensors[i].name + strlen(prefix);
        snprintf(name, sizeof name, "%.*s", (int)(strlen(saved) - strlen(".weight")), saved);
        float *values = golden_f32(golden, name, &n);
        assert_int_equal(n, f.adapter->tensors[i].rows * f.adapter->tensors[i].columns);
        fixture_put(&f, saved - strlen("model."), values);
        free(values);
    }
    fixture_upload(&f);
    int32_t *ids = golden_i32(golden, "input_ids", NULL);
    float *loss = golden_f32(golden, "loss", &n), *bank = malloc((size_t)f.adapter->bank_elements * sizeof *bank);
    const struct fixture_step step = fixture_run(&f, 0, ids, ids, false);
    fixture_read(&f, f.train.grads, bank);
    double worst = 0.0;
    for (int i = 0; i < f.adapter->n_tensors; i++) {
        char name[128];
        const char *saved = f.adapter->tensors[i].name + strlen(prefix);
        snprintf(name, sizeof name, "grad.%.*s", (int)(strlen(saved) - strlen(".weight")), saved);
        float *want = golden_f32(golden, name, &n), *got = malloc(n * sizeof *got);
        double largest = 0.0;
        tp_adapter_get(got, f.adapter, bank, i);
        for (size_t k = 0; k < n; k++) largest = fmax(largest, fabs((double)want[k]));
        for (size_t k = 0; k < n; k++) {
            const double d = fabs((double)got[k] - (double)want[k]) / (largest + 1e-4);
            if (!(d <= worst)) worst = d;
        }
        free(want);
        free(got);
    }
    printf(", loss %.1e, gradients %.1e\n", fabs(step.ce - (double)loss[0]), worst);
    assert_true(fabs(step.ce - (double)loss[0]) < 1e-5);
    assert_true(worst < 1e-4);
    free(loss);
    free(ids);
    free(bank);
    fixture_close(&f);
}

static void check_model(int m, const char *file, const char *tier)
{
    struct tp_safetensors *golden;
    struct talpa_model *model;
    char label[64];
    snprintf(label, sizeof label, "%s %s", models[m].name, *file ? "gguf" : "folder");
    golden_ok(tp_safetensors_open(&golden, data_path(models[m].name, "golden.safetensors")));
    golden_ok(talpa_model_open(&model, data_path(models[m].name, file)));
    assert_string_equal(model->architecture, models[m].architecture);
    assert_int_equal(model->config.context_length, models[m].context_length);
    assert_int_equal(model->config.biased_linears, models[m].biased);
    check_logits(model, golden, tier, label);
    check_gradients(model, golden, tier);
    talpa_model_close(model);
    tp_safetensors_close(golden);
}

static void test_folders(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m++) check_model(m, "", "");
}

static void test_gguf(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m++) check_model(m, "model.gguf", "");
}

static void test_generic(void **state)
{
    (void)state;
    if (!golden_is_quick()) skip();
    for (int m = 0; m < N_MODELS; m++) check_model(m, "", "generic");
}

/* The same weights in both forms are the same model, where GGUF keeps the order of rows: adapters are exchangeable. */
static void test_digests(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m++) {
        struct talpa_model *folder, *gguf;
        struct talpa_model_info a, b;
        golden_ok(talpa_model_open(&folder, data_path(models[m].name, "")));
        golden_ok(talpa_model_open(&gguf, data_path(models[m].name, "model.gguf")));
        golden_ok(talpa_model_info(&a, folder));
        golden_ok(talpa_model_info(&b, gguf));
        assert_int_equal(a.n_parameters, b.n_parameters);
        assert_string_equal(a.name, models[m].name);
        uint64_t digests[2];
        golden_ok(talpa_model_digest(&digests[0], folder));
        golden_ok(talpa_model_digest(&digests[1], gguf));
        if (strcmp(models[m].architecture, "llama")) assert_int_equal(digests[0], digests[1]);
        /* A rotary table is no tensor of the model. */
        for (size_t i = 0; i < talpa_model_n_tensors(folder); i++) assert_int_not_equal(talpa_model_tensor(folder, i).dtype, TALPA_I32);
        talpa_model_close(folder);
        talpa_model_close(gguf);
    }
}

static void test_built_in(void **state)
{
    (void)state;
    struct talpa_model *model;
    struct talpa_model_info info;
    golden_ok(talpa_model_open(&model, "random:135m"));
    golden_ok(talpa_model_info(&info, model));
    assert_int_equal(info.n_parameters, 134515008); /* SmolLM2-135M's count */
    assert_int_equal(talpa_model_tensor(model, 2).dtype, TALPA_Q4_1);
    assert_int_equal(talpa_model_n_tensors(model), 272);
    talpa_model_close(model);
    assert_int_equal(talpa_model_open(&model, "random:7b"), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "random:tiny"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_digests), cmocka_unit_test(test_built_in), cmocka_unit_test(test_folders),
                                       cmocka_unit_test(test_gguf), cmocka_unit_test(test_generic)};
    return cmocka_run_group_tests_name("architectures", tests, NULL, NULL);
}
