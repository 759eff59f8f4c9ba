/* A router in front of a mixture of LoRA experts, forward and backward, run densely and sparsely with changing numbers of tokens: both
 * plans must agree with plain double arithmetic, and on the cpu tier with each other to the last bit. */
#include "ops_test.h"

#include <math.h>

#include "base/rng.h"

enum { BOUND = 70, D_IN = 100, D_OUT = 136, E = 6, RANK = 3, K = 2, R = E * RANK };

static const float scale = 2;

struct data {
    float left[BOUND * D_OUT], right[BOUND * D_OUT], x[BOUND * D_IN], logits[BOUND * E], a[R * D_IN], bt[R * D_OUT], dy[BOUND * D_OUT];
};

/* y, dx, da, dbt, dlogits */
enum { N_RESULTS = 5 };
static const int result_size[N_RESULTS] = {BOUND * D_OUT, BOUND * D_IN, R * D_IN, R * D_OUT, BOUND * E};
static const int result_row[N_RESULTS] = {D_OUT, D_IN, 0, 0, E}; /* elements per token, 0: no rows of tokens */

struct results {
    float *value[N_RESULTS];
};

struct model {
    struct test_run run;
    talpa_value left, right, x, logits, a, bt, dy, result[N_RESULTS];
};

static void fill(float *out, int n, float size, uint32_t stream)
{
    for (int i = 0; i < n; i += 2) {
        const uint32_t counter[4] = {(uint32_t)i, stream, 0, 0}, key[2] = {3, 4};
        uint32_t words[4];
        float pair[2];
        tp_rng_philox(words, counter, key);
        tp_rng_normal(pair, words[0], words[1]);
        out[i] = size * pair[0];
        if (i + 1 < n) out[i + 1] = size * pair[1];
    }
}

static void model_open(struct model *m, const char *tier, enum tp_dispatch dispatch)
{
    test_run_open(&m->run);
    struct talpa_graph *graph = m->run.graph;
    assert_ok(tp_graph_input(graph, &m->left, "left", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, D_OUT)));
    assert_ok(tp_graph_input(graph, &m->right, "right", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, D_OUT)));
    assert_ok(tp_graph_input(graph, &m->x, "x", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, D_IN)));
    assert_ok(tp_graph_input(graph, &m->logits, "logits", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, E)));
    assert_ok(tp_graph_input(graph, &m->dy, "dy", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, D_OUT)));
    assert_ok(tp_graph_input(graph, &m->a, "a", tp_type_2d(TALPA_F32, TP_STEP_NONE, R, D_IN)));
    assert_ok(tp_graph_input(graph, &m->bt, "bt", tp_type_2d(TALPA_F32, TP_STEP_NONE, R, D_OUT)));
    talpa_value y0, p, weight, sel, counts, list;
    assert_ok(talpa_add(&y0, graph, m->left, m->right)); /* a temp, so that y may take over its storage */
    assert_ok(talpa_softmax(&p, graph, m->logits));
    assert_ok(talpa_topk_gate(&weight, &sel, graph, p, K));
    assert_ok(talpa_dispatch(&counts, &list, graph, sel));
    assert_ok(talpa_lora_expert(&m->result[0], graph, y0, m->x, m->a, m->bt, weight, sel, counts, list, E, RANK, scale));
    const talpa_value wrt[] = {m->x, m->a, m->bt, m->logits};
    assert_ok(tp_autodiff(graph, &m->result[0], &m->dy, 1, wrt, 4, m->result + 1));
    for (int i = 0; i < N_RESULTS; i++) tp_graph_mark_output(graph, m->result[i]);

    struct tp_plan_options options;
    tp_plan_options_default(&options);
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    options.dispatch = dispatch;
    assert_ok(tp_graph_verify(graph));
    assert_ok(tp_plan_create(&m->run.plan, graph, tp_device_caps(m->run.device), &options));
    assert_ok(tp_executor_create(&m->run.executor, m->run.store, &m->run.plan, 1));
}

static void model_run(struct model *m, struct results *results, const struct data *data, uint32_t n_tokens)
{
    struct tp_executor *executor = m->run.executor;
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = n_tokens;
    assert_ok(tp_executor_step(executor, &step));
    assert_ok(tp_executor_write(executor, m->left, data->left, sizeof data->left));
    assert_ok(tp_executor_write(executor, m->right, data->right, sizeof data->right));
    assert_ok(tp_executor_write(executor, m->x, data->x, sizeof data->x));
    assert_ok(tp_executor_write(executor, m->logits, data->logits, sizeof data->logits));
    assert_ok(tp_executor_write(executor, m->dy, data->dy, sizeof data->dy));
    assert_ok(tp_executor_write(executor, m->a, data->a, sizeof data->a));
    assert_ok(tp_executor_write(executor, m->bt, data->bt, sizeof data->bt));
    assert_ok(tp_executor_poison(executor));
    assert_ok(tp_executor_run(executor, 0, TP_PHASE_BATCH));
    for (int i = 0; i < N_RESULTS; i++)
        assert_ok(tp_executor_read(executor, m->result[i], results->value[i], sizeof(float) * (size_t)result_size[i]));
}

/* Expert outputs and gradients one by one, from the formulas y = y0 + sum_e w_e s B_e A_e x, w = softmax over the two largest logits. */
static void expect(double *const *want, const struct data *d, int n_tokens)
{
    for (int i = 0; i < N_RESULTS; i++)
        for (int j = 0; j < result_size[i]; j++) want[i][j] = 0;
    for (int t = 0; t < n_tokens; t++) {
        int best[K] = {-1, -1};
        for (int i = 0; i < K; i++)
            for (int e = 0; e < E; e++)
                if (e != best[0] && (best[i] < 0 || d->logits[t * E + e] > d->logits[t * E + best[i]])) best[i] = e;
        const double w0 = 1 / (1 + exp((double)d->logits[t * E + best[1]] - (double)d->logits[t * E + best[0]])), w[K] = {w0, 1 - w0};
        double dw[K] = {0, 0};
        for (int c = 0; c < D_OUT; c++) want[0][t * D_OUT + c] = (double)d->left[t * D_OUT + c] + (double)d->right[t * D_OUT + c];
        for (int i = 0; i < K; i++) {
            for (int j = best[i] * RANK; j < (best[i] + 1) * RANK; j++) {
                double z = 0, v = 0;
                for (int k = 0; k < D_IN; k++) z += (double)d->x[t * D_IN + k] * (double)d->a[j * D_IN + k];
                for (int c = 0; c < D_OUT; c++) v += (double)d->dy[t * D_OUT + c] * (double)d->bt[j * D_OUT + c];
                for (int c = 0; c < D_OUT; c++) {
                    want[0][t * D_OUT + c] += w[i] * (double)scale * z * (double)d->bt[j * D_OUT + c];
                    want[3][j * D_OUT + c] += w[i] * (double)scale * z * (double)d->dy[t * D_OUT + c];
                }
                for (int k = 0; k < D_IN; k++) {
                    want[1][t * D_IN + k] += w[i] * (double)scale * v * (double)d->a[j * D_IN + k];
                    want[2][j * D_IN + k] += w[i] * (double)scale * v * (double)d->x[t * D_IN + k];
                }
                dw[i] += (double)scale * z * v;
            }
        }
        want[4][t * E + best[0]] = w[0] * w[1] * (dw[0] - dw[1]);
        want[4][t * E + best[1]] = w[0] * w[1] * (dw[1] - dw[0]);
    }
}

struct fixture {
    struct data data;
    struct results results[2];
    double *want[N_RESULTS];
};

static void compare(const struct fixture *f, int n_tokens, const char *tier, bool same_bits)
{
    for (int i = 0; i < N_RESULTS; i++) {
        const int n = result_row[i] ? n_tokens * result_row[i] : result_size[i];
        double top = 0;
        for (int j = 0; j < n; j++) top = fmax(top, fabs(f->want[i][j]));
        for (int p = 0; p < 2; p++) {
            for (int j = 0; j < n; j++) {
                const double got = (double)f->results[p].value[i][j];
                if (fabs(got - f->want[i][j]) <= 1e-5 * (1 + top)) continue;
                fail_msg("%s, %s, %d tokens: result %d element %d is %.9g, expected %.9g", tier, p ? "sparse" : "dense", n_tokens, i, j,
                         got, f->want[i][j]);
            }
        }
        if (!same_bits) continue;
        for (int j = 0; j < n; j++) {
            if (f->results[0].value[i][j] == f->results[1].value[i][j]) continue;
            fail_msg("%s, %d tokens: result %d element %d is %.9g dense and %.9g sparse", tier, n_tokens, i, j,
                     (double)f->results[0].value[i][j], (double)f->results[1].value[i][j]);
        }
    }
}

static void run_tier(const char *tier)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    for (int i = 0; i < N_RESULTS; i++) {
        assert_non_null(f->want[i] = malloc(sizeof(double) * (size_t)result_size[i]));
        for (int p = 0; p < 2; p++) assert_non_null(f->results[p].value[i] = malloc(sizeof(float) * (size_t)result_size[i]));
    }
    fill(f->data.left, BOUND * D_OUT, 1, 1);
    fill(f->data.right, BOUND * D_OUT, 1, 2);
    fill(f->data.x, BOUND * D_IN, 1, 3);
    fill(f->data.logits, BOUND * E, 1, 4);
    fill(f->data.a, R * D_IN, 0.1f, 5);
    fill(f->data.bt, R * D_OUT, 0.1f, 6);
    fill(f->data.dy, BOUND * D_OUT, 0.1f, 7);
    for (int t = 0; t < BOUND; t++) f->data.logits[t * E + 4] = -20; /* an expert that nobody chooses */

    struct model models[2];
    model_open(&models[0], tier, TP_DISPATCH_DENSE);
    model_open(&models[1], tier, TP_DISPATCH_SPARSE);
    static const int n_tokens[] = {BOUND, 1, 43, BOUND};
    const struct talpa_device_caps *caps = tp_device_caps(models[0].run.device);
    const bool is_cpu = !strcmp(tier, "cpu") && caps->type == TALPA_DEVICE_CPU && caps->in_process;
    for (size_t i = 0; i < sizeof n_tokens / sizeof *n_tokens; i++) {
        for (int p = 0; p < 2; p++) model_run(&models[p], &f->results[p], &f->data, (uint32_t)n_tokens[i]);
        expect(f->want, &f->data, n_tokens[i]);
        compare(f, n_tokens[i], tier, is_cpu);
    }
    for (int p = 0; p < 2; p++) test_run_close(&models[p].run);
    for (int i = 0; i < N_RESULTS; i++) {
        free(f->want[i]);
        for (int p = 0; p < 2; p++) free(f->results[p].value[i]);
    }
    free(f);
}

static void test_generic(void **state)
{
    (void)state;
    run_tier("generic");
}

/* In this tier dense and sparse add the same terms in the same order. */
static void test_cpu(void **state)
{
    (void)state;
    run_tier("cpu");
}

int main(void)
{
    test_need_device();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_generic), cmocka_unit_test(test_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
