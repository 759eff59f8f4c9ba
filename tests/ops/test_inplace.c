/* Ops that take over the storage of an input: the conformance cases keep every value in a place of its own, so a chain is run here whose
 * values share one place, and is compared with plain double arithmetic. */
#include "ops_test.h"

#include <math.h>

#include "base/rng.h"

enum { BOUND = 33, N = 29, D = 70 };

static const double eps = 1e-5;

struct data {
    float a[BOUND * D], b[BOUND * D], weight[D], bias[D], rstd[BOUND];
    int32_t ids[BOUND];
};

static void fill(float *out, int n, uint32_t stream)
{
    for (int i = 0; i < n; i += 2) {
        const uint32_t counter[4] = {(uint32_t)i, stream, 0, 0}, key[2] = {5, 6};
        uint32_t words[4];
        float pair[2];
        tp_rng_philox(words, counter, key);
        tp_rng_normal(pair, words[0], words[1]);
        out[i] = pair[0];
        if (i + 1 < n) out[i + 1] = pair[1];
    }
}

struct leaves {
    talpa_value a, b, weight, bias, rstd, ids;
};

static void make_leaves(struct leaves *leaves, struct talpa_graph *graph)
{
    const struct tp_type rows = tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, D), row = tp_type_1d(TALPA_F32, TP_STEP_NONE, D);
    assert_ok(tp_graph_input(graph, &leaves->a, "a", rows));
    assert_ok(tp_graph_input(graph, &leaves->b, "b", rows));
    assert_ok(tp_graph_input(graph, &leaves->weight, "weight", row));
    assert_ok(tp_graph_input(graph, &leaves->bias, "bias", row));
    assert_ok(tp_graph_input(graph, &leaves->rstd, "rstd", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, 1)));
    assert_ok(tp_graph_input(graph, &leaves->ids, "ids", tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, BOUND)));
}

static void run_with(struct test_run *run, const struct leaves *leaves, struct data *data)
{
    fill(data->a, BOUND * D, 1);
    fill(data->b, BOUND * D, 2);
    fill(data->weight, D, 3);
    fill(data->bias, D, 4);
    for (int t = 0; t < BOUND; t++) {
        data->rstd[t] = 0.5f + (float)t / 64;
        data->ids[t] = t;
    }
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = N;
    assert_ok(tp_executor_step(run->executor, &step));
    assert_ok(tp_executor_write(run->executor, leaves->a, data->a, sizeof data->a));
    assert_ok(tp_executor_write(run->executor, leaves->b, data->b, sizeof data->b));
    assert_ok(tp_executor_write(run->executor, leaves->weight, data->weight, sizeof data->weight));
    assert_ok(tp_executor_write(run->executor, leaves->bias, data->bias, sizeof data->bias));
    assert_ok(tp_executor_write(run->executor, leaves->rstd, data->rstd, sizeof data->rstd));
    assert_ok(tp_executor_write(run->executor, leaves->ids, data->ids, sizeof data->ids));
    assert_ok(tp_executor_poison(run->executor));
    assert_ok(tp_executor_run(run->executor, 0, TP_PHASE_BATCH));
}

static void assert_shared(const struct test_run *run, talpa_value x, talpa_value y)
{
    const struct tp_location *p = &run->plan->row[x], *q = &run->plan->row[y];
    assert_int_equal(p->place, TP_PLACE_ARENA);
    assert_int_equal(q->place, TP_PLACE_ARENA);
    assert_int_equal(p->segment, q->segment);
    assert_int_equal(p->offset_bytes, q->offset_bytes);
}

static void compare(struct test_run *run, talpa_value value, const double *want)
{
    static float got[BOUND * D];
    assert_ok(tp_executor_read(run->executor, value, got, sizeof got));
    for (int i = 0; i < N * D; i++)
        if (!(fabs((double)got[i] - want[i]) <= 1e-5 * (1 + fabs(want[i])))) {
            print_error("[%d, %d]: %.9g, expected %.9g\n", i / D, i % D, (double)got[i], want[i]);
            fail();
        }
}

static double logistic(double x) { return 1 / (1 + exp(-x)); }

/* add, rms_norm, swiglu, dropout that keeps all, bias_add: five values in one place. */
static void chain(const char *tier)
{
    static struct data data;
    static double want[N * D];
    struct test_run run;
    struct leaves leaves;
    talpa_value v[5];
    test_run_open(&run);
    run.tier = tier;
    make_leaves(&leaves, run.graph);
    assert_ok(talpa_add(&v[0], run.graph, leaves.a, leaves.b));
    assert_ok(talpa_rms_norm(&v[1], run.graph, v[0], leaves.weight, (float)eps));
    assert_ok(talpa_swiglu(&v[2], run.graph, v[1], leaves.b));
    assert_ok(talpa_dropout(&v[3], run.graph, v[2], leaves.ids, leaves.ids, 0.0f, 1));
    assert_ok(talpa_bias_add(&v[4], run.graph, v[3], leaves.bias));
    tp_graph_mark_output(run.graph, v[4]);
    test_run_start(&run);
    for (int i = 1; i < 5; i++) assert_shared(&run, v[i - 1], v[i]);
    run_with(&run, &leaves, &data);
    for (int t = 0; t < N; t++) {
        double square = 0;
        for (int j = 0; j < D; j++) square += pow((double)data.a[t * D + j] + (double)data.b[t * D + j], 2) / D;
        for (int j = 0; j < D; j++) {
            const int i = t * D + j;
            const double y = ((double)data.a[i] + (double)data.b[i]) / sqrt(square + eps) * (double)data.weight[j];
            want[i] = y * logistic(y) * (double)data.b[i] + (double)data.bias[j];
        }
    }
    compare(&run, v[4], want);
    test_run_close(&run);
}

/* swiglu_backward over gate and up, rms_norm_backward over dy. */
static void backward(const char *tier)
{
    static struct data data;
    static double want[3][N * D];
    struct test_run run;
    struct leaves leaves;
    talpa_value gate, up, dy, d[2], dx;
    test_run_open(&run);
    run.tier = tier;
    make_leaves(&leaves, run.graph);
    assert_ok(talpa_add(&gate, run.graph, leaves.a, leaves.b));
    assert_ok(talpa_add(&up, run.graph, leaves.a, leaves.a));
    assert_ok(tp_graph_node(run.graph, tp_op_find("swiglu_backward"), (talpa_value[]){gate, up, leaves.b}, 3, NULL, d));
    assert_ok(talpa_add(&dy, run.graph, leaves.b, leaves.b));
    assert_ok(
        tp_graph_node(run.graph, tp_op_find("rms_norm_backward"), (talpa_value[]){leaves.a, leaves.weight, leaves.rstd, dy}, 4, NULL, &dx));
    tp_graph_mark_output(run.graph, d[0]);
    tp_graph_mark_output(run.graph, d[1]);
    tp_graph_mark_output(run.graph, dx);
    test_run_start(&run);
    assert_shared(&run, gate, d[0]);
    assert_shared(&run, up, d[1]);
    assert_shared(&run, dy, dx);
    run_with(&run, &leaves, &data);
    for (int t = 0; t < N; t++) {
        const double r = (double)data.rstd[t];
        double mean = 0;
        for (int j = 0; j < D; j++) mean += (double)data.weight[j] * 2 * (double)data.b[t * D + j] * (double)data.a[t * D + j] * r / D;
        for (int j = 0; j < D; j++) {
            const int i = t * D + j;
            const double a = (double)data.a[i], b = (double)data.b[i], g = a + b, s = logistic(g);
            want[0][i] = b * 2 * a * (s + g * s * (1 - s));
            want[1][i] = b * g * s;
            want[2][i] = r * ((double)data.weight[j] * 2 * b - a * r * mean);
        }
    }
    compare(&run, d[0], want[0]);
    compare(&run, d[1], want[1]);
    compare(&run, dx, want[2]);
    test_run_close(&run);
}

static void test_best_tier(void **state)
{
    (void)state;
    chain("");
    backward("");
}

static void test_generic_tier(void **state)
{
    (void)state;
    chain("generic");
    backward("generic");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_best_tier),
        cmocka_unit_test(test_generic_tier),
    };
    test_need_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
