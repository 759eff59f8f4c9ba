/* MoELoRA against the golden files of the systems folder (its README: tolerances): loss and gradients of the contrastive loss in every
 * case; the tiny model's losses, every adapter gradient, the gradient of the contrastive loss alone and ten training steps, dense and
 * sparse. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exec/executor.h"
#include "golden.h"
#include "graph/op.h"
#include "runtime/device.h"
#include "train_fixture.h"

static double number_of(const struct tp_json_value *object, const char *key)
{
    double value;
    golden_ok(tp_json_get_double(&value, object, key));
    return value;
}

/* Relative L2 distance; absolute where the expected value is next to nothing. */
static double distance(const float *got, const float *want, size_t n)
{
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)got[i] - (double)want[i];
        difference += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(norm) < 1e-6 ? sqrt(difference) : sqrt(difference / norm);
}

/* ---- the loss alone ---- */

struct loss_case {
    const struct tp_safetensors *tensors;
    const char *name;
    int n_experts, rank, d_in, d_out, n_tokens, k;
    double scale, temperature;
    bool normalise;
};

static float *tensor_of(const struct loss_case *c, const char *key, size_t *n)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", c->name, key);
    return golden_f32(c->tensors, name, n);
}

/* [E, out, r] to [E r, out]. */
static float *transposed(const struct loss_case *c, const char *key)
{
    float *b = tensor_of(c, key, NULL);
    float *bt = malloc((size_t)c->n_experts * (size_t)c->rank * (size_t)c->d_out * sizeof *bt);
    for (int e = 0; e < c->n_experts; e++)
        for (int o = 0; o < c->d_out; o++)
            for (int q = 0; q < c->rank; q++)
                bt[((size_t)e * (size_t)c->rank + (size_t)q) * (size_t)c->d_out + (size_t)o] =
                    b[((size_t)e * (size_t)c->d_out + (size_t)o) * (size_t)c->rank + (size_t)q];
    free(b);
    return bt;
}

static void work_lists(const struct loss_case *c, int32_t *counts, int32_t *list)
{
    char name[128];
    snprintf(name, sizeof name, "%s.select", c->name);
    int32_t *select = golden_i32(c->tensors, name, NULL);
    for (int e = 0; e < c->n_experts; e++) {
        counts[e] = 0;
        for (int t = 0; t < c->n_tokens; t++) list[e * c->n_tokens + t] = -1;
        for (int t = 0; t < c->n_tokens; t++)
            for (int j = 0; j < c->k; j++)
                if (select[t * c->k + j] == e) list[e * c->n_tokens + counts[e]++] = t;
    }
    free(select);
}

enum { X, A, BT, COUNTS, LIST, EXAMPLES, POSITIONS, SEED, N_INPUTS };

static void check_loss(const struct loss_case *c, double want, const char *tier)
{
    struct tp_device *device;
    struct tp_store *store;
    struct talpa_graph *graph;
    struct tp_plan *plan;
    struct tp_executor *executor;
    const int64_t rows = c->n_experts * c->rank, t = c->n_tokens;
    const struct tp_type types[N_INPUTS] = {
        tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, t, c->d_in),  tp_type_2d(TALPA_F32, TP_STEP_NONE, rows, c->d_in),
        tp_type_2d(TALPA_F32, TP_STEP_NONE, rows, c->d_out),  tp_type_1d(TALPA_I32, TP_STEP_NONE, c->n_experts),
        tp_type_2d(TALPA_I32, TP_STEP_NONE, c->n_experts, t), tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, t),
        tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, t),           tp_type_1d(TALPA_F32, TP_STEP_NONE, 1)};
    static const char *const names[N_INPUTS] = {"x", "a", "bt", "counts", "list", "examples", "positions", "seed"};
    const struct talpa_contrast contrast = {.n_experts = c->n_experts,
                                            .rank = c->rank,
                                            .scale = (float)c->scale,
                                            .temperature = (float)c->temperature,
                                            .normalise = c->normalise,
                                            .max_per_token = c->k};
    talpa_value in[N_INPUTS], loss, grads[3];
    golden_ok(tp_device_open(&device, golden_device(), false));
    golden_ok(tp_store_create(&store, device));
    golden_ok(tp_graph_create(&graph));
    for (int i = 0; i < N_INPUTS; i++) golden_ok(tp_graph_input(graph, &in[i], names[i], types[i]));
    golden_ok(talpa_contrastive_loss(&loss, graph, in[X], in[A], in[BT], in[COUNTS], in[LIST], in[EXAMPLES], in[POSITIONS], TALPA_NONE,
                                     &contrast));
    golden_ok(tp_autodiff(graph, &loss, &in[SEED], 1, in, 3, grads));
    tp_graph_mark_output(graph, loss);
    for (int i = 0; i < 3; i++) tp_graph_mark_output(graph, grads[i]);
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    if (tier[0]) snprintf(options.tier, sizeof options.tier, "%s", tier);
    golden_ok(tp_graph_verify(graph));
    golden_ok(tp_plan_create(&plan, graph, tp_device_caps(device), &options));
    golden_ok(tp_executor_create(&executor, store, &plan, 1));

    const struct tp_step step = {.word = {[TP_STEP_N_TOKENS] = (uint32_t)t}};
    const float one = 1.0f;
    size_t n;
    int32_t *counts = calloc((size_t)c->n_experts, sizeof *counts), *list = calloc((size_t)(c->n_experts * t), sizeof *list);
    int32_t *zeros = calloc((size_t)t, sizeof *zeros);
    float *x = tensor_of(c, "x", NULL), *a = tensor_of(c, "A", NULL), *bt = transposed(c, "B");
    work_lists(c, counts, list);
    const void *const data[N_INPUTS] = {x, a, bt, counts, list, zeros, zeros, &one};
    golden_ok(tp_executor_step(executor, &step));
    for (int i = 0; i < N_INPUTS; i++) golden_ok(tp_executor_write(executor, in[i], data[i], tp_type_bytes(&types[i])));
    golden_ok(tp_executor_poison(executor));
    golden_ok(tp_executor_run(executor, 0, TP_PHASE_BATCH));
    float got;
    golden_ok(tp_executor_read(executor, loss, &got, sizeof got));
    const double error = fabs((double)got - want) / fmax(1.0, fabs(want));
    double errors[3];
    float *wants[3] = {tensor_of(c, "grad_x", &n), tensor_of(c, "grad_A", &n), transposed(c, "grad_B")};
    for (int i = 0; i < 3; i++) {
        float *values = malloc(tp_type_bytes(&types[i]));
        golden_ok(tp_executor_read(executor, grads[i], values, tp_type_bytes(&types[i])));
        errors[i] = distance(values, wants[i], (size_t)tp_type_elements(&types[i]));
        free(values);
        free(wants[i]);
    }
    printf("  %-26s %-8s loss %.1e  x %.1e  A %.1e  B %.1e\n", c->name, tier, error, errors[0], errors[1], errors[2]);
    assert_true(error < 1e-5);
    for (int i = 0; i < 3; i++) assert_true(errors[i] < 1e-4);
    free(counts);
    free(list);
    free(zeros);
    free(x);
    free(a);
    free(bt);
    tp_executor_free(executor);
    tp_plan_free(plan);
    tp_graph_free(graph);
    tp_store_free(store);
    tp_device_close(device);
}

static void losses(const char *tier)
{
    struct tp_json *json = golden_json("systems/moelora_loss.json");
    struct tp_safetensors *tensors;
    golden_ok(tp_safetensors_open(&tensors, golden_path("systems/moelora_loss.safetensors")));
    int n = 0;
    for (const struct tp_json_value *item = tp_json_first(golden_at(json, "cases")); item; item = tp_json_next(item), n++) {
        struct loss_case c = {.tensors = tensors,
                              .n_experts = (int)number_of(item, "experts"),
                              .rank = (int)number_of(item, "rank"),
                              .d_in = (int)number_of(item, "d_in"),
                              .d_out = (int)number_of(item, "d_out"),
                              .n_tokens = (int)number_of(item, "tokens"),
                              .k = (int)number_of(item, "k"),
                              .scale = number_of(item, "scale"),
                              .temperature = number_of(item, "temperature")};
        golden_ok(tp_json_get_string(&c.name, item, "name"));
        golden_ok(tp_json_get_bool_or(&c.normalise, item, "normalise", false));
        check_loss(&c, number_of(item, "loss"), tier);
    }
    assert_int_equal(n, 11);
    tp_safetensors_close(tensors);
    tp_json_free(json);
}

static void test_losses(void **state)
{
    (void)state;
    losses("");
}
static void test_losses_generic(void **state)
{
    (void)state;
    losses("generic");
}

/* ---- the model ---- */

struct golden_model {
    struct tp_json *json;
    struct tp_safetensors *tensors;
    struct talpa_model *model;
    struct talpa_adapter_config config;
    int batch, length, lengths[16];
    double aux_coef;
};

static void open_golden(struct golden_model *g)
{
    size_t n;
    g->json = golden_json("systems/moelora_model.json");
    golden_ok(tp_safetensors_open(&g->tensors, golden_path("systems/moelora_model.safetensors")));
    golden_ok(talpa_model_open(&g->model, golden_path("tiny/tied-f32.gguf")));
    struct talpa_adapter_config *c = &g->config;
    *c = talpa_adapter_default();
    c->routing = TALPA_ROUTING_MOELORA;
    c->modules = TALPA_MODULE_Q | TALPA_MODULE_V;
    c->rank = (int)golden_number(g->json, "rank");
    c->n_experts = (int)golden_number(g->json, "experts");
    c->top_k = (int)golden_number(g->json, "top_k");
    c->alpha = golden_number(g->json, "alpha");
    c->dropout = 0.0;
    c->contrastive.coef = golden_number(g->json, "lambda_contrast");
    c->contrastive.temperature = golden_number(g->json, "temperature");
    c->contrastive.n_samples = 0;
    bool normalise;
    golden_ok(tp_json_get_bool_or(&normalise, tp_json_root(g->json), "normalise", false));
    c->contrastive.normalise = normalise;
    g->aux_coef = golden_number(g->json, "lambda_balance");

    struct tp_safetensors_tensor ids;
    golden_ok(tp_safetensors_get(&ids, g->tensors, "input_ids"));
    g->batch = (int)ids.shape.dim[0];
    g->length = (int)ids.shape.dim[1];
    int32_t *mask = golden_i32(g->tensors, "mask", &n);
    assert_int_equal(n, g->batch * g->length);
    for (int b = 0; b < g->batch; b++) {
        g->lengths[b] = 0;
        while (g->lengths[b] < g->length && mask[b * g->length + g->lengths[b]]) g->lengths[b]++;
    }
    free(mask);
}

static void close_golden(struct golden_model *g)
{
    talpa_model_close(g->model);
    tp_safetensors_close(g->tensors);
    tp_json_free(g->json);
}

static void open_fixture(struct fixture *f, const struct golden_model *g, const char *tier, bool sparse, bool contrastive_only)
{
    struct talpa_adapter_config config = g->config;
    if (contrastive_only) config.contrastive.coef = 1.0;
    const struct fixture_options options = {.tier = tier,
                                            .dispatch = sparse ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE,
                                            .batch = g->batch,
                                            .length = g->length,
                                            .aux_coef = contrastive_only ? 0.0 : g->aux_coef,
                                            .learning_rate = 1e-3,
                                            .weight_decay = 0.01,
                                            .lengths = g->lengths,
                                            .without_ce = contrastive_only};
    fixture_open(f, g->model, &config, &options);
    for (int i = 0; i < f->adapter->n_tensors; i++) {
        char name[256];
        const char *short_name = f->adapter->tensors[i].name + strlen("base_model.model.");
        snprintf(name, sizeof name, "init.%s", short_name);
        float *values = golden_f32(g->tensors, name, NULL);
        fixture_put(f, short_name, values);
        free(values);
    }
    fixture_upload(f);
}

/* The worst relative L2 distance of a bank's tensors from "<prefix>.<tensor>". */
static double compare(const struct fixture *f, const struct golden_model *g, const char *prefix, talpa_value state)
{
    float *bank = malloc((size_t)f->adapter->bank_elements * sizeof *bank);
    double worst = 0.0;
    fixture_read((struct fixture *)f, state, bank);
    for (int i = 0; i < f->adapter->n_tensors; i++) {
        char name[256];
        size_t n;
        snprintf(name, sizeof name, "%s.%s", prefix, f->adapter->tensors[i].name + strlen("base_model.model."));
        float *want = golden_f32(g->tensors, name, &n), *got = malloc(n * sizeof *got);
        tp_adapter_get(got, f->adapter, bank, i);
        const double d = distance(got, want, n);
        if (!(d <= worst)) worst = d;
        free(want);
        free(got);
    }
    free(bank);
    return worst;
}

static void check_gradient(struct golden_model *g, const char *tier, bool sparse, bool contrastive_only)
{
    struct fixture f;
    int32_t *ids = golden_i32(g->tensors, "input_ids", NULL), *labels = golden_i32(g->tensors, "labels", NULL);
    open_fixture(&f, g, tier, sparse, contrastive_only);
    const struct fixture_step step = fixture_run(&f, 0, ids, labels, false);
    const double worst = compare(&f, g, contrastive_only ? "grad_contrast" : "grad", f.train.grads);
    const double balance = step.aux / f.adapter->n_modules;
    const double contrastive = fabs(step.contrastive - golden_number(g->json, "contrast"));
    if (!contrastive_only) {
        const double total = step.ce + g->aux_coef * balance + g->config.contrastive.coef * step.contrastive;
        const double errors[] = {fabs(step.ce - golden_number(g->json, "ce")), fabs(balance - golden_number(g->json, "balance")),
                                 fabs(total - golden_number(g->json, "total"))};
        printf("  gradient: ce %.1e balance %.1e contrastive %.1e total %.1e worst relative L2 %.1e\n", errors[0], errors[1], contrastive,
               errors[2], worst);
        for (int i = 0; i < 3; i++) assert_true(errors[i] < 1e-5);
    } else {
        printf("  gradient of the contrastive loss alone: worst relative L2 %.1e\n", worst);
    }
    assert_true(contrastive < 1e-4); /* 1e-5 relative */
    assert_true(worst < 1e-3);
    fixture_close(&f);
    free(ids);
    free(labels);
}

static void check_trace(struct golden_model *g, const char *tier, bool sparse)
{
    struct fixture f;
    size_t n, n_norm;
    int32_t *ids = golden_i32(g->tensors, "train_ids", NULL), *labels = golden_i32(g->tensors, "train_labels", NULL);
    double *total = golden_numbers(g->json, "trace/total", &n), *norm = golden_numbers(g->json, "trace/grad_norm", &n_norm);
    double worst = 0.0, worst_norm = 0.0;
    open_fixture(&f, g, tier, sparse, false);
    assert_int_equal(n, 10);
    for (int s = 0; s < (int)n; s++) {
        const size_t at = (size_t)s * (size_t)g->batch * (size_t)g->length;
        const struct fixture_step step = fixture_run(&f, s, ids + at, labels + at, true);
        const double got = step.ce + g->aux_coef * step.aux / f.adapter->n_modules + g->config.contrastive.coef * step.contrastive;
        worst = fmax(worst, fabs(got - total[s]));
        worst_norm = fmax(worst_norm, fabs(step.grad_norm - norm[s]) / norm[s]);
    }
    const double parameters = compare(&f, g, "step10", f.train.params);
    printf("  ten steps: total %.1e, gradient norm %.1e relative, parameters %.1e relative L2\n", worst, worst_norm, parameters);
    assert_true(worst < 1e-3);
    assert_true(worst_norm < 1e-3);
    assert_true(parameters < 1e-3);
    fixture_close(&f);
    free(total);
    free(norm);
    free(ids);
    free(labels);
}

static void model(const char *tier, bool sparse)
{
    struct golden_model g;
    open_golden(&g);
    printf("tier %s, %s\n", tier[0] ? tier : "best", sparse ? "sparse" : "dense");
    check_gradient(&g, tier, sparse, false);
    check_gradient(&g, tier, sparse, true);
    check_trace(&g, tier, sparse);
    close_golden(&g);
}

static void test_model_dense(void **state)
{
    (void)state;
    model("", false);
}
static void test_model_sparse(void **state)
{
    (void)state;
    model("", true);
}
static void test_model_generic(void **state)
{
    (void)state;
    model("generic", true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_losses), cmocka_unit_test(test_losses_generic),
                                       cmocka_unit_test(test_model_dense), cmocka_unit_test(test_model_sparse),
                                       cmocka_unit_test(test_model_generic)};
    const struct CMUnitTest once[] = {cmocka_unit_test(test_losses), cmocka_unit_test(test_model_sparse)};
    if (!golden_is_quick()) return cmocka_run_group_tests_name("golden MoELoRA, one tier", once, NULL, NULL);
    return cmocka_run_group_tests_name("golden MoELoRA", tests, NULL, NULL);
}
