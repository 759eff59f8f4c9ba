/* Values that are not finite: named by step, micro-batch, layer and op; nothing of them is saved. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "golden.h"
#include "talpa/train.h"
#include "train_fixture.h"

static char folder[256], data_path[320], output[320];

static void remove_tree(const char *name)
{
    DIR *dir = opendir(name);
    for (struct dirent *entry = dir ? readdir(dir) : NULL; entry; entry = readdir(dir)) {
        char child[1024];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(child, sizeof child, "%.500s/%.400s", name, entry->d_name);
        if (unlink(child) != 0) remove_tree(child);
    }
    if (dir) closedir(dir);
    rmdir(name);
}

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/talpa_guard_XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(folder)) return -1;
    snprintf(data_path, sizeof data_path, "%s/train.jsonl", folder);
    snprintf(output, sizeof output, "%s/run", folder);
    FILE *file = fopen(data_path, "w");
    if (!file) return -1;
    for (int i = 0; i < 8; i++) fprintf(file, "{\"prompt\": \"example %d: \", \"completion\": \"%c%c%c\"}\n", i, 'a' + i, 'h' - i, 'a');
    return fclose(file);
}

static int tear_down(void **state)
{
    (void)state;
    remove_tree(folder);
    return 0;
}

static struct talpa_train_options options(void)
{
    struct talpa_train_options o;
    talpa_train_default(&o);
    o.data = data_path;
    o.output_dir = output;
    o.max_seq_length = 64;
    o.batch_size = 2;
    o.accumulation = 2;
    o.max_steps = 20;
    return o;
}

static enum talpa_status train(struct talpa_model *model, const struct talpa_train_options *o)
{
    struct talpa_train_result result;
    remove_tree(output);
    return talpa_train(&result, model, golden_device(), o, NULL);
}

static void expect_words(const char *const *words, int n)
{
    for (int i = 0; i < n; i++)
        if (!strstr(talpa_error_message(), words[i])) fail_msg("'%s' is missing in: %s", words[i], talpa_error_message());
}

/* A weight of row 7 that is NaN shows first in column 7 of that linear. */
static void test_bad_weight(void **state)
{
    (void)state;
    static const struct {
        const char *weight, *scope;
        enum talpa_routing routing;
        bool lean;
    } cases[] = {{"model.layers.1.mlp.up_proj.weight", "at layers.1.mlp.up_proj, op matmul", TALPA_ROUTING_ADAMOLE, false},
                 {"model.layers.0.self_attn.k_proj.weight", "at layers.0.self_attn.k_proj, op ", TALPA_ROUTING_TOPK, false},
                 {"model.layers.1.mlp.up_proj.weight", "at layers.1.mlp.up_proj, op matmul", TALPA_ROUTING_LORA, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct talpa_model *model;
        golden_ok(talpa_model_open(&model, "random:tiny"));
        const struct tp_model_weight *weight = tp_model_weight(model, cases[i].weight);
        assert_non_null(weight);
        assert_int_equal(weight->type.dtype, TALPA_F32);
        float *values = (float *)(uintptr_t)weight->data; /* of the built-in model: in memory */
        values[7 * weight->type.shape.dim[1] + 3] = NAN;
        struct talpa_train_options o = options();
        o.adapter.routing = cases[i].routing;
        if (cases[i].routing == TALPA_ROUTING_LORA) o.adapter.n_experts = 1;
        o.gradient_checkpointing = cases[i].lean;
        assert_int_equal(train(model, &o), TALPA_E_CHECK);
        expect_words((const char *const[]){"step 1, micro-batch 1", cases[i].scope, "[0, 7] is nan", "--learning-rate"}, 4);
        talpa_model_close(model);
    }
}

/* Decay that multiplies every parameter by -1e6 per step leaves the range of f32 within 20 steps. */
static void test_diverging(void **state)
{
    (void)state;
    struct talpa_model *model;
    golden_ok(talpa_model_open(&model, "random:tiny"));
    struct talpa_train_options o = options();
    o.learning_rate = 999.0;
    o.weight_decay = 1000.0;
    o.save_steps = 1;
    assert_int_equal(train(model, &o), TALPA_E_CHECK);
    expect_words((const char *const[]){"step ", "last save", "--learning-rate"}, 3);
    /* What was saved before is whole and finite. */
    struct tp_adapter *adapter;
    float *bank;
    golden_ok(tp_adapter_load(&adapter, &bank, output, model, false));
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        for (int64_t k = 0; k < (int64_t)t->rows * t->columns; k++) assert_true(isfinite(bank[t->offset + k]));
    }
    free(bank);
    tp_adapter_free(adapter);
    talpa_model_close(model);
}

/* A healthy step has nothing to find, and a gradient that overflows leaves the parameters alone. */
static void test_healthy_and_overflow(void **state)
{
    (void)state;
    static const enum talpa_routing routings[] = {TALPA_ROUTING_LORA, TALPA_ROUTING_TOPK, TALPA_ROUTING_THRESHOLD, TALPA_ROUTING_ADAMOLE};
    enum { LENGTH = 24, BATCH = 2 };
    int32_t ids[BATCH * LENGTH];
    for (uint64_t i = 0; i < BATCH * LENGTH; i++) ids[i] = (int32_t)(tp_rng_splitmix64(8, i) % 250);
    struct talpa_model *model;
    golden_ok(talpa_model_open(&model, "random:tiny"));
    for (int i = 0; i < 8; i++) {
        struct talpa_adapter_config config = talpa_adapter_default();
        config.routing = routings[i / 2];
        if (config.routing == TALPA_ROUTING_LORA) config.n_experts = 1;
        if (config.routing == TALPA_ROUTING_LORA && i % 2) continue;
        const struct fixture_options how = {.tier = "",
                                            .dispatch = i % 2 ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE,
                                            .batch = BATCH,
                                            .length = LENGTH,
                                            .aux_coef = 1e-3,
                                            .learning_rate = 1e-3,
                                            .max_norm = 1.0};
        struct fixture f;
        fixture_open(&f, model, &config, &how);
        tp_rng_fill_splitmix(f.bank, (size_t)f.adapter->bank_elements, 5, 1, 0.1);
        fixture_upload(&f);
        fixture_run(&f, 0, ids, ids, false);
        struct tp_nonfinite found = {0};
        for (int phase = 0; phase < TP_N_PHASES; phase++) {
            golden_ok(tp_executor_find_nonfinite(&found, f.set.executor, 0, (enum tp_phase)phase));
            if (found.found)
                fail_msg("found in a healthy step: %s at %s, output %d [%lld, %lld]", found.op, found.scope, found.output,
                         (long long)found.row, (long long)found.column);
        }
        /* Parameters of 1e30: the products overflow. */
        for (int64_t k = 0; k < f.adapter->bank_elements; k++) f.bank[k] *= 1e31f;
        fixture_upload(&f);
        fixture_run(&f, 1, ids, ids, true);
        float *bank = malloc((size_t)f.adapter->bank_elements * sizeof *bank);
        assert_non_null(bank);
        fixture_read(&f, f.train.params, bank);
        assert_memory_equal(bank, f.bank, (size_t)f.adapter->bank_elements * sizeof *bank);
        free(bank);
        fixture_run(&f, 1, ids, ids, false);
        golden_ok(tp_executor_find_nonfinite(&found, f.set.executor, 0, TP_PHASE_BATCH));
        assert_true(found.found && !found.is_backward);
        assert_true(strstr(found.scope, "layers.0.self_attn.") != NULL);
        fixture_close(&f);
    }
    talpa_model_close(model);
}

int main(void)
{
    golden_device();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bad_weight), cmocka_unit_test(test_diverging),
                                       cmocka_unit_test(test_healthy_and_overflow)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
