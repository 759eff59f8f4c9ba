/* Gradients and training traces of the seven golden adapters on the tiny model, dense and sparse, on every tier (golden README: rules 1-6
 * and tolerances). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden.h"
#include "train_fixture.h"

enum { B = 2, T = 32, STEPS = 20 };

static const char *const names[] = {"lora-r8",     "lora-r4-all", "mole-top2-e4",  "mole-top1-e4",
                                    "mole-thr-e4", "adamole-e4",  "adamole-e8-all"};

static struct talpa_adapter_config read_config(const struct tp_json *json)
{
    struct talpa_adapter_config c = talpa_adapter_default();
    const char *kind;
    golden_ok(tp_json_get_string(&kind, tp_json_root(json), "kind"));
    golden_ok(talpa_routing_parse(&c.routing, kind));
    c.rank = (int)golden_number(json, "rank");
    c.alpha = golden_number(json, "alpha");
    c.n_experts = (int)golden_number(json, "experts");
    c.dropout = 0.0;
    if (c.routing == TALPA_ROUTING_TOPK) c.top_k = (int)golden_number(json, "top_k");
    if (c.routing == TALPA_ROUTING_THRESHOLD) c.threshold = golden_number(json, "threshold");
    if (c.routing == TALPA_ROUTING_ADAMOLE) c.max_threshold = golden_number(json, "threshold");
    c.modules = tp_json_length(golden_at(json, "targets")) == 7 ? 127u : 15u;
    return c;
}

/* Relative L2 distance of every tensor of `bank` from "<prefix>.<tensor>"; the worst. max_abs gets the worst element, n_off those beyond
 * 1e-4. */
static double compare(const struct fixture *f, const struct tp_safetensors *golden, const char *prefix, const float *bank, double *max_abs,
                      size_t *n_off, size_t *n_all)
{
    double worst = 0.0;
    *max_abs = 0.0;
    *n_off = *n_all = 0;
    for (int i = 0; i < f->adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &f->adapter->tensors[i];
        char name[256];
        size_t n;
        snprintf(name, sizeof name, "%s.%s", prefix, t->name + strlen("base_model.model."));
        float *want = golden_f32(golden, name, &n), *got = malloc(n * sizeof *got);
        tp_adapter_get(got, f->adapter, bank, i);
        double distance = 0.0, norm = 0.0;
        for (size_t j = 0; j < n; j++) {
            const double d = (double)got[j] - (double)want[j];
            distance += d * d;
            norm += (double)want[j] * (double)want[j];
            if (!(fabs(d) <= *max_abs)) *max_abs = fabs(d);
            *n_off += !(fabs(d) <= 1e-4);
        }
        *n_all += n;
        if (sqrt(norm) >= 1e-6 && !(sqrt(distance / norm) <= worst)) worst = sqrt(distance / norm);
        free(want);
        free(got);
    }
    return worst;
}

struct golden_adapter {
    struct tp_json *json;
    struct tp_safetensors *tensors;
};

static void load_init(struct fixture *f, const struct golden_adapter *g)
{
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

static void check_gradient(struct fixture *f, const struct golden_adapter *g)
{
    int32_t *ids = golden_i32(g->tensors, "input_ids", NULL), *labels = golden_i32(g->tensors, "labels", NULL);
    float *grads = malloc((size_t)f->adapter->bank_elements * sizeof *grads);
    const struct fixture_step step = fixture_run(f, 0, ids, labels, false);
    fixture_read(f, f->train.grads, grads);
    double max_abs;
    size_t n_off, n_all;
    const double relative = compare(f, g->tensors, "grad", grads, &max_abs, &n_off, &n_all);
    const double ce = fabs(step.ce - golden_number(g->json, "ce"));
    const double aux = f->train.aux == TALPA_NONE ? 0.0 : fabs(step.aux - golden_number(g->json, "aux"));
    printf("  gradient: ce %.1e aux %.1e worst relative L2 %.1e\n", ce, aux, relative);
    assert_true(ce < 1e-5);
    assert_true(aux < 2e-5);
    assert_true(relative < 1e-3);
    free(ids);
    free(labels);
    free(grads);
}

static void check_trace(struct fixture *f, const struct golden_adapter *g, const char *trace, bool with_parameters)
{
    int32_t *ids = golden_i32(g->tensors, "train_ids", NULL);
    float *bank = malloc((size_t)f->adapter->bank_elements * sizeof *bank);
    char key[64];
    size_t n, n_norm = 0;
    snprintf(key, sizeof key, "%s/total", trace);
    double *total = golden_numbers(g->json, key, &n), *norm = NULL, worst = 0.0, worst_norm = 0.0, max_abs = 0.0, relative = 0.0;
    snprintf(key, sizeof key, "%s/grad_norm", trace);
    if (golden_at(g->json, key)) norm = golden_numbers(g->json, key, &n_norm);
    assert_int_equal(n, STEPS);
    for (int s = 0; s < STEPS; s++) {
        const struct fixture_step step = fixture_run(f, s, ids + s * B * T, ids + s * B * T, true);
        worst = fmax(worst, fabs(step.ce + f->options.aux_coef * step.aux - total[s]));
        if (norm) worst_norm = fmax(worst_norm, fabs(step.grad_norm - norm[s]) / norm[s]);
        if (!with_parameters || (s != 0 && s != STEPS - 1)) continue;
        fixture_read(f, f->train.params, bank);
        size_t n_off, n_all;
        relative = compare(f, g->tensors, s ? "step20" : "step1", bank, &max_abs, &n_off, &n_all);
        if (s == 0) {
            assert_true(max_abs < 2e-3);
            assert_true(n_off * 1000 <= n_all);
        } else {
            assert_true(relative < 1e-2);
        }
    }
    printf("  %s: loss %.1e, gradient norm %.1e relative, step20 %.1e relative L2\n", trace, worst, worst_norm, relative);
    assert_true(worst < 1e-3);
    assert_true(worst_norm < 1e-2);
    free(total);
    free(norm);
    free(ids);
    free(bank);
}

static void check_adapter(const char *name, const char *tier, enum tp_dispatch dispatch)
{
    char path[256];
    struct golden_adapter g;
    struct talpa_model *base, *quantised;
    snprintf(path, sizeof path, "tiny/adapter-%s.json", name);
    g.json = golden_json(path);
    snprintf(path, sizeof path, "tiny/adapter-%s.safetensors", name);
    golden_ok(tp_safetensors_open(&g.tensors, golden_path(path)));
    golden_ok(talpa_model_open(&base, golden_path("tiny/tied-f32.gguf")));
    golden_ok(talpa_model_open(&quantised, golden_path("tiny/tied-q4_1.gguf")));
    const struct talpa_adapter_config config = read_config(g.json);
    struct fixture_options options = {.tier = tier, .dispatch = dispatch, .batch = B, .length = T, .aux_coef = 1e-2, .learning_rate = 1e-3,
                                      .weight_decay = 0.01};
    printf("%s, tier %s, %s\n", name, tier[0] ? tier : "best", dispatch == TP_DISPATCH_SPARSE ? "sparse" : "dense");
    struct fixture f;
    fixture_open(&f, base, &config, &options);
    load_init(&f, &g);
    check_gradient(&f, &g);
    check_trace(&f, &g, "trace", true);
    fixture_close(&f);
    fixture_open(&f, quantised, &config, &options);
    load_init(&f, &g);
    check_trace(&f, &g, "trace_q4_1_base", false);
    fixture_close(&f);
    if (golden_at(g.json, "trace_clip_0.25")) {
        options.max_norm = 0.25;
        fixture_open(&f, base, &config, &options);
        load_init(&f, &g);
        check_trace(&f, &g, "trace_clip_0.25", false);
        fixture_close(&f);
    }
    talpa_model_close(base);
    talpa_model_close(quantised);
    tp_safetensors_close(g.tensors);
    tp_json_free(g.json);
}

static void all(const char *tier, bool sparse)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!sparse || strncmp(names[i], "lora", 4)) check_adapter(names[i], tier, sparse ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE);
}

static void test_best_dense(void **state) { (void)state; all("", false); }
static void test_best_sparse(void **state) { (void)state; all("", true); }
static void test_generic_dense(void **state) { (void)state; all("generic", false); }
static void test_generic_sparse(void **state) { (void)state; all("generic", true); }
static void test_clblast(void **state) { (void)state; check_adapter("adamole-e4", "clblast", TP_DISPATCH_DENSE); }

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_best_dense), cmocka_unit_test(test_best_sparse),
                                       cmocka_unit_test(test_generic_dense), cmocka_unit_test(test_generic_sparse),
                                       cmocka_unit_test(test_clblast)};
    const struct CMUnitTest once[] = {cmocka_unit_test(test_best_dense), cmocka_unit_test(test_best_sparse)};
    if (!golden_is_quick()) return cmocka_run_group_tests_name("golden adapters, one tier", once, NULL, NULL);
    return cmocka_run_group_tests_name("golden adapters", tests, NULL, NULL);
}
