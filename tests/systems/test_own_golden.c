/* The project's own goldens (tests/data, made by tools/golden): tokens, logits, gradients and whole training runs of the built-in tiny
 * model. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "golden.h"
#include "io/dataset.h"
#include "talpa/device.h"
#include "train_fixture.h"

static const char data_path[] = TALPA_SOURCE_DIR "/tests/data/moles.jsonl";
static const char *const cases[] = {"lora", "topk", "threshold", "adamole", "moelora", "moelora-raw-gated", "topk-1", "threshold-high", "adamole-high"};
enum { N_CASES = sizeof cases / sizeof *cases, STEPS = 10 };

static struct tp_json *golden;
static struct talpa_model *model;
static struct tp_dataset *data;

/* ---- reading the fixture ---- */

static double number(const char *case_name, const char *key)
{
    char keys[768];
    snprintf(keys, sizeof keys, "cases/%s/%s", case_name, key);
    return golden_number(golden, keys);
}

static double *trace(const char *case_name, int accumulation, const char *key)
{
    char keys[256];
    size_t n;
    snprintf(keys, sizeof keys, "cases/%s/%s/%s", case_name, accumulation == 1 ? "trace" : "trace_accumulated", key);
    double *values = golden_numbers(golden, keys, &n);
    assert_int_equal(n, STEPS);
    return values;
}

/* Looks up a number by tensor; `keys` is where the object stands in the case. */
static double of_tensor(const char *case_name, const char *keys, const struct tp_adapter_tensor *tensor)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", keys, tensor->name + strlen("base_model.model."));
    return number(case_name, path);
}

static struct talpa_adapter_config read_config(const char *case_name)
{
    struct talpa_adapter_config c = talpa_adapter_default();
    char keys[128];
    const char *routing;
    snprintf(keys, sizeof keys, "cases/%s", case_name);
    golden_ok(tp_json_get_string(&routing, golden_at(golden, keys), "routing"));
    golden_ok(talpa_routing_parse(&c.routing, routing));
    c.rank = (int)number(case_name, "rank");
    c.alpha = number(case_name, "alpha");
    c.n_experts = (int)number(case_name, "n_experts");
    c.dropout = 0.0;
    const struct tp_json_value *settings = golden_at(golden, keys);
    if (tp_json_get(settings, "top_k")) c.top_k = (int)number(case_name, "top_k");
    const double threshold = tp_json_get(settings, "threshold") ? number(case_name, "threshold") : 0.0;
    if (c.routing == TALPA_ROUTING_THRESHOLD) c.threshold = threshold;
    if (c.routing == TALPA_ROUTING_ADAMOLE) c.max_threshold = threshold;
    if (c.routing == TALPA_ROUTING_MOELORA) {
        c.contrastive = (struct talpa_contrastive_config){.coef = number(case_name, "contrastive_coef"),
                                                          .temperature = number(case_name, "temperature")};
        golden_ok(tp_json_get_bool_or(&c.contrastive.normalise, settings, "normalise", false));
        golden_ok(tp_json_get_bool_or(&c.contrastive.gated, settings, "gated", false));
    }
    return c;
}

/* Starting values by the rule in tests/data/README.md. */
static void fill(float *bank, const struct tp_adapter *adapter, const char *case_name)
{
    const uint64_t seed = (uint64_t)number(case_name, "seed");
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        const int64_t n = (int64_t)t->rows * t->columns;
        const double fan = 1.0 / sqrt((double)adapter->modules[t->module].d_in);
        float *values = malloc((size_t)n * sizeof *values);
        tp_rng_fill_splitmix(values, n, seed, (uint64_t)i, t->kind == TP_TENSOR_B ? number(case_name, "b_scale") : fan);
        tp_adapter_put(bank, adapter, i, values);
        free(values);
    }
}

/* Norm of one tensor of `bank`, or of its difference from `origin`. */
static double tensor_norm(const struct tp_adapter *adapter, int index, const float *bank, const float *origin)
{
    const struct tp_adapter_tensor *t = &adapter->tensors[index];
    const size_t n = (size_t)t->rows * (size_t)t->columns;
    float *values = malloc(2 * n * sizeof *values), *start = values + n;
    double sum = 0.0;
    tp_adapter_get(values, adapter, bank, index);
    memset(start, 0, n * sizeof *start);
    if (origin) tp_adapter_get(start, adapter, origin, index);
    for (size_t i = 0; i < n; i++) sum += ((double)values[i] - (double)start[i]) * ((double)values[i] - (double)start[i]);
    free(values);
    return sqrt(sum);
}

static int open_all(void **state)
{
    (void)state;
    golden_ok(tp_json_parse_file(&golden, TALPA_SOURCE_DIR "/tests/data/moles.json"));
    golden_ok(talpa_model_open(&model, "random:tiny"));
    golden_ok(tp_dataset_open(&data, data_path, model->tokenizer, NULL));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    tp_dataset_close(data);
    talpa_model_close(model);
    tp_json_free(golden);
    return 0;
}

/* ---- tokens, base ---- */

static void test_rows(void **state)
{
    (void)state;
    const struct tp_json_value *rows = golden_at(golden, "rows");
    assert_int_equal(tp_json_length(rows), tp_dataset_n_examples(data));
    for (size_t i = 0; i < tp_dataset_n_examples(data); i++) {
        const struct tp_dataset_example example = tp_dataset_example(data, i);
        const struct tp_json_value *row = tp_json_at(rows, (int64_t)i), *ids = tp_json_get(row, "ids"),
                                   *labels = tp_json_get(row, "labels");
        assert_int_equal(tp_json_length(ids), example.n_tokens);
        for (uint32_t p = 0; p < example.n_tokens; p++) {
            int64_t id, label;
            golden_ok(tp_json_as_int(&id, tp_json_at(ids, p), "id"));
            golden_ok(tp_json_as_int(&label, tp_json_at(labels, p), "label"));
            assert_int_equal(example.ids[p], id);
            assert_int_equal(example.labels[p], label);
        }
    }
}

/* Compares one row of logits with its record. */
static double logits_error(const float *logits, int n, const struct tp_json_value *record)
{
    double norm = 0.0, mean = 0.0, peak = -INFINITY, sum = 0.0, want, worst = 0.0;
    for (int i = 0; i < n; i++) {
        norm += (double)logits[i] * (double)logits[i];
        mean += (double)logits[i] / n;
        peak = fmax(peak, (double)logits[i]);
    }
    for (int i = 0; i < n; i++) sum += exp((double)logits[i] - peak);
    golden_ok(tp_json_get_double(&want, record, "norm"));
    worst = fmax(worst, fabs(sqrt(norm) - want));
    golden_ok(tp_json_get_double(&want, record, "mean"));
    worst = fmax(worst, fabs(mean - want));
    golden_ok(tp_json_get_double(&want, record, "logsumexp"));
    worst = fmax(worst, fabs(peak + log(sum) - want));
    const struct tp_json_value *ids = tp_json_get(record, "top_ids"), *top = tp_json_get(record, "top");
    for (int64_t i = 0; i < tp_json_length(ids); i++) {
        int64_t id;
        golden_ok(tp_json_as_int(&id, tp_json_at(ids, i), "top_ids"));
        golden_ok(tp_json_as_double(&want, tp_json_at(top, i), "top"));
        worst = fmax(worst, fabs((double)logits[id] - want));
    }
    return isfinite(norm) ? worst : INFINITY;
}

static void check_base(const char *tier)
{
    const size_t n_rows = tp_dataset_n_examples(data);
    const uint32_t n_tokens = (uint32_t)tp_dataset_counts(data).n_tokens;
    struct tp_engine engine;
    struct tp_eval_graph eval;
    struct tp_program_set set;
    struct tp_batch batch;
    struct tp_plan_options options;
    golden_ok(tp_engine_open(&engine, golden_device(), model));
    golden_ok(tp_eval_graph_create(&eval, model, NULL, n_tokens + 5, n_tokens + 5, true));
    tp_plan_options_default(&options);
    if (!options.tier[0]) snprintf(options.tier, sizeof options.tier, "%s", tier);
    golden_ok(tp_program_set_create(&set, &engine, eval.graph, &options, true, false));
    golden_ok(tp_batch_create(&batch, n_tokens + 5, n_tokens + 5));
    for (size_t i = 0; i < n_rows; i++) {
        const struct tp_dataset_example example = tp_dataset_example(data, i);
        golden_ok(tp_batch_add(&batch, &example, (uint32_t)i, 0, 0));
    }
    assert_int_equal(batch.n_labelled, golden_number(golden, "base/n_labelled"));
    struct tp_step step = {{0}};
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f / (float)batch.n_labelled);
    golden_ok(tp_batch_write(&batch, set.executor, &eval.inputs, &step));
    golden_ok(tp_executor_step(set.executor, &step));
    golden_ok(tp_executor_run(set.executor, 0, TP_PHASE_BATCH));
    const int n_vocab = model->config.vocab_size;
    float *logits = malloc((size_t)n_tokens * (size_t)n_vocab * sizeof *logits), loss;
    golden_ok(tp_executor_read(set.executor, eval.logits, logits, (size_t)n_tokens * (size_t)n_vocab * sizeof *logits));
    golden_ok(tp_executor_read(set.executor, eval.loss, &loss, sizeof loss));
    const struct tp_json_value *positions = golden_at(golden, "base/positions");
    double worst = 0.0;
    for (int64_t p = 0; p < tp_json_length(positions); p++)
        worst = fmax(worst, logits_error(logits + p * n_vocab, n_vocab, tp_json_at(positions, p)));
    const double error = fabs((double)loss - golden_number(golden, "base/loss"));
    printf("base, tier %s: logits %.1e, cross entropy %.1e\n", options.tier[0] ? options.tier : "best", worst, error);
    assert_true(tp_json_length(positions) > 40);
    assert_true(worst < 1e-4);
    assert_true(error < 1e-5);
    free(logits);
    tp_batch_free(&batch);
    tp_program_set_free(&set);
    tp_eval_graph_free(&eval);
    tp_engine_close(&engine);
}

static void test_base(void **state)
{
    (void)state;
    check_base("");
    check_base("generic");
}

/* ---- gradients ---- */

/* Forward and backward of the first micro-batch; fails the test where a number is off. */
static void check_gradient(const char *case_name, const char *tier, enum tp_dispatch dispatch)
{
    const struct talpa_adapter_config config = read_config(case_name);
    const struct tp_dataset_example examples[2] = {tp_dataset_example(data, 0), tp_dataset_example(data, 1)};
    const struct fixture_options options = {.tier = tier,
                                            .dispatch = dispatch,
                                            .batch = 1,
                                            .length = (int)(examples[0].n_tokens + examples[1].n_tokens),
                                            .aux_coef = golden_number(golden, "aux_coef")};
    struct fixture f;
    fixture_open(&f, model, &config, &options);
    fill(f.bank, f.adapter, case_name);
    fixture_upload(&f);
    for (uint32_t i = 0; i < 2; i++) golden_ok(tp_batch_add(&f.batch, &examples[i], i, 0, 0));
    struct tp_step words = {{0}};
    tp_step_set_f32(&words, TP_STEP_LOSS_SCALE, 1.0f / (float)f.batch.n_labelled);
    tp_step_set_f32(&words, TP_STEP_AUX_WEIGHT, 1.0f);
    tp_step_set_f32(&words, TP_STEP_CONTRASTIVE_WEIGHT, 1.0f);
    float loss, aux = 0.0f, contrastive = 0.0f, *grads = malloc((size_t)f.adapter->bank_elements * sizeof *grads);
    golden_ok(tp_batch_write(&f.batch, f.set.executor, &f.train.inputs, &words));
    golden_ok(tp_executor_step(f.set.executor, &words));
    golden_ok(tp_executor_run(f.set.executor, 0, TP_PHASE_BATCH));
    golden_ok(tp_executor_read(f.set.executor, f.train.loss, &loss, sizeof loss));
    if (f.train.aux != TALPA_NONE) golden_ok(tp_executor_read(f.set.executor, f.train.aux, &aux, sizeof aux));
    if (f.train.contrastive != TALPA_NONE) {
        golden_ok(tp_executor_read(f.set.executor, f.train.contrastive, &contrastive, sizeof contrastive));
        const double error = fabs((double)contrastive / f.adapter->n_modules - number(case_name, "first/contrastive"));
        printf("%-14s contrastive loss %.1e\n", case_name, error);
        assert_true(error < 1e-5);
    }
    fixture_read(&f, f.train.grads, grads);
    double worst = 0.0, sum = 0.0;
    for (int i = 0; i < f.adapter->n_tensors; i++) {
        const double norm = tensor_norm(f.adapter, i, grads, NULL), want = of_tensor(case_name, "gradients", &f.adapter->tensors[i]);
        sum += norm * norm;
        if (want == 0.0) assert_true(norm == 0.0); /* an expert without a token */
        else if (want >= 1e-6 && !(fabs(norm - want) / want <= worst)) worst = fabs(norm - want) / want;
    }
    const double loss_error = fabs((double)loss - number(case_name, "first/loss")),
                 aux_error = fabs((double)aux - number(case_name, "first/aux"));
    const double norm_error = fabs(sqrt(sum) / number(case_name, "grad_norm") - 1.0);
    printf("%-14s tier %-8s %-6s loss %.1e aux %.1e gradient norm %.1e, of the worst tensor %.1e\n", case_name, tier[0] ? tier : "best",
           dispatch == TP_DISPATCH_SPARSE ? "sparse" : "dense", loss_error, aux_error, norm_error, worst);
    assert_true(loss_error < 1e-5);
    assert_true(aux_error < 2e-5);
    assert_true(norm_error < 1e-5);
    assert_true(worst < 1e-4);
    free(grads);
    fixture_close(&f);
}

static bool is_mixture(const char *case_name) { return strcmp(case_name, "lora") != 0; }

static void test_gradients(void **state)
{
    (void)state;
    static const char *const tiers[] = {"", "generic"};
    const size_t n_tiers = !golden_is_quick() ? 1 : sizeof tiers / sizeof *tiers;
    for (size_t t = 0; t < n_tiers; t++)
        for (size_t i = 0; i < N_CASES; i++) {
            check_gradient(cases[i], tiers[t], TP_DISPATCH_DENSE);
            if (is_mixture(cases[i])) check_gradient(cases[i], tiers[t], TP_DISPATCH_SPARSE);
        }
}

/* ---- whole runs through the training loop ---- */

struct watch {
    const char *case_name;
    double *loss, *aux, *norm, *active, *contrastive; /* the last for moelora only */
    double worst[4], worst_contrastive;
    int n;
};

static bool on_step(void *user, const struct talpa_train_row *row)
{
    struct watch *w = user;
    const int s = w->n++;
    if (s >= STEPS) return false;
    const double errors[4] = {fabs(row->loss - w->loss[s]), fabs(row->aux_loss - w->aux[s]), fabs(row->grad_norm / w->norm[s] - 1.0),
                              fabs(row->active_experts - w->active[s])};
    for (int i = 0; i < 4; i++)
        if (!(errors[i] <= w->worst[i])) w->worst[i] = errors[i];
    assert_int_equal(row->has_contrastive, w->contrastive != NULL);
    if (w->contrastive && !(fabs(row->contrastive_loss - w->contrastive[s]) <= w->worst_contrastive))
        w->worst_contrastive = fabs(row->contrastive_loss - w->contrastive[s]);
    return true;
}

static void remove_folder(const char *folder)
{
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors", "talpa_adapter.json", "moelora_train.json", "trainer_log.jsonl",
                                        "train_results.json",  ".talpa.lock"};
    char path[512];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}

/* How far every tensor went from its start, read from the adapter that the run saved. */
static double moved_error(const char *case_name, int accumulation, const char *folder, const float *origin)
{
    struct tp_adapter *adapter;
    float *bank;
    double worst = 0.0;
    golden_ok(tp_adapter_load(&adapter, &bank, folder, model, false));
    for (int i = 0; i < adapter->n_tensors; i++) {
        const double moved = tensor_norm(adapter, i, bank, origin);
        const double want = of_tensor(case_name, accumulation == 1 ? "trace/moved" : "trace_accumulated/moved", &adapter->tensors[i]);
        if (want == 0.0) assert_true(moved == 0.0); /* never selected: not even decayed */
        else if (!(fabs(moved / want - 1.0) <= worst)) worst = fabs(moved / want - 1.0);
    }
    tp_adapter_free(adapter);
    free(bank);
    return worst;
}

static void check_run(const char *case_name, enum talpa_expert_dispatch dispatch, int accumulation)
{
    char root[] = "/tmp/talpa-golden-XXXXXX", folder[64], start[64];
    struct tp_adapter *adapter;
    const struct talpa_adapter_config config = read_config(case_name);
    assert_non_null(mkdtemp(root));
    snprintf(folder, sizeof folder, "%s/run", root);
    snprintf(start, sizeof start, "%s/start", root);
    assert_int_equal(mkdir(start, 0700), 0);
    golden_ok(tp_adapter_create(&adapter, model, &config));
    float *bank = calloc((size_t)adapter->bank_elements, sizeof *bank);
    fill(bank, adapter, case_name);
    golden_ok(tp_adapter_save(adapter, bank, start, model));

    struct talpa_train_options options;
    talpa_train_default(&options);
    options.adapter = config;
    options.data = data_path;
    options.init_lora = start;
    options.output_dir = folder;
    options.batch_size = (int)golden_number(golden, "batch_size");
    options.max_seq_length = 64;
    options.accumulation = accumulation;
    options.max_steps = STEPS;
    options.learning_rate = golden_number(golden, "learning_rate");
    options.max_grad_norm = golden_number(golden, "max_grad_norm");
    options.aux_coef = golden_number(golden, "aux_coef");
    options.weight_decay = number(case_name, "weight_decay");
    options.no_shuffle = true;
    options.dispatch = dispatch;
    struct watch watch = {.case_name = case_name,
                          .loss = trace(case_name, accumulation, "loss"),
                          .aux = trace(case_name, accumulation, "aux"),
                          .norm = trace(case_name, accumulation, "grad_norm"),
                          .active = trace(case_name, accumulation, "active")};
    if (config.routing == TALPA_ROUTING_MOELORA) watch.contrastive = trace(case_name, accumulation, "contrastive");
    const struct talpa_train_callbacks callbacks = {.step = on_step, .user = &watch};
    struct talpa_train_result result;
    golden_ok(talpa_train(&result, model, golden_device(), &options, &callbacks));
    const double moved = moved_error(case_name, accumulation, folder, bank);
    printf("%-14s %-6s x%d loss %.1e aux %.1e gradient norm %.1e active %.1e, way of the worst tensor %.1e\n", case_name,
           dispatch == TALPA_DISPATCH_SPARSE ? "sparse" : "dense", accumulation, watch.worst[0], watch.worst[1], watch.worst[2],
           watch.worst[3], moved);
    if (watch.contrastive) printf("%-14s contrastive loss %.1e\n", case_name, watch.worst_contrastive);
    assert_true(watch.worst_contrastive < 1e-3);
    assert_int_equal(watch.n, STEPS);
    assert_true(watch.worst[0] < 1e-4);
    assert_true(watch.worst[1] < 1e-3);
    assert_true(watch.worst[2] < 1e-3);
    assert_true(watch.worst[3] < 1e-6); /* every routing decision is the same */
    assert_true(moved < 5e-3);          /* the wrong rule for idle experts is off by more than 1e-2 */
    remove_folder(folder);
    remove_folder(start);
    remove_folder(root);
    free(watch.loss);
    free(watch.aux);
    free(watch.norm);
    free(watch.active);
    free(watch.contrastive);
    free(bank);
    tp_adapter_free(adapter);
}

static void check_runs(enum talpa_expert_dispatch dispatch)
{
    if (!golden_is_quick()) {
        check_run("adamole", dispatch, 1);
        check_run("adamole-high", dispatch, 2);
        return;
    }
    for (size_t i = 0; i < N_CASES; i++)
        for (int accumulation = 1; accumulation <= 2; accumulation++)
            if (dispatch == TALPA_DISPATCH_DENSE || is_mixture(cases[i])) check_run(cases[i], dispatch, accumulation);
}

static void test_runs_dense(void **state)
{
    (void)state;
    check_runs(TALPA_DISPATCH_DENSE);
}

static void test_runs_sparse(void **state)
{
    (void)state;
    check_runs(TALPA_DISPATCH_SPARSE);
}

/* The fixture itself: it must hold what makes it able to tell rules apart. */
static void test_fixture_tells(void **state)
{
    (void)state;
    static const char *const idle[] = {"threshold-high", "adamole-high"};
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++) {
        assert_true(number(idle[i], "n_tensors_off_by_wrong_rule") >= 1.0);
        double *skipped = trace(idle[i], 2, "skipped"), n = 0.0;
        for (int s = 0; s < STEPS; s++) n += skipped[s];
        assert_true(n > 0.0);
        free(skipped);
    }
    for (size_t i = 0; i < N_CASES; i++)
        if (is_mixture(cases[i])) assert_true(number(cases[i], "routing_margin") >= 1e-5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows),       cmocka_unit_test(test_fixture_tells),
                                       cmocka_unit_test(test_base),       cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_runs_dense), cmocka_unit_test(test_runs_sparse)};
    return cmocka_run_group_tests_name("own goldens", tests, open_all, close_all);
}
