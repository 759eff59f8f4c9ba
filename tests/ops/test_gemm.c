/* What the conformance cases of matmul and linear_cross_entropy cannot say: weights whose storage is split into several allocations, labels
 * outside the vocabulary, and a micro-batch without labels. */
#include "ops_test.h"

#include <math.h>

#include "base/dtype.h"
#include "graph/op.h"

enum { N_TOKENS = 20, D = 64, VOCABULARY = 300, SMALL_ALLOC = 44000 };

static float value_at(uint32_t i) { return (float)((int)(i * 2654435761u >> 20) - 2048) / 2048.0f; }

static void fill(float *x, int n, uint32_t seed)
{
    for (int i = 0; i < n; i++) x[i] = value_at((uint32_t)i + seed * 7919u);
}

/* As test_run_start, for a record that allows small allocations only. Returns the launches of a run. */
static int start_small(struct test_run *run, const char *tier)
{
    struct talpa_device_caps caps = *tp_device_caps(run->device);
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    caps.max_alloc_bytes = SMALL_ALLOC;
    assert_ok(tp_graph_verify(run->graph));
    assert_ok(tp_plan_create(&run->plan, run->graph, &caps, &options));
    assert_ok(tp_executor_create(&run->executor, run->store, &run->plan, 1));
    return run->plan->phase[TP_PHASE_BATCH].n;
}

static void finish_run(struct test_run *run, const struct tp_step *step)
{
    assert_ok(tp_executor_step(run->executor, step));
    assert_ok(tp_executor_poison(run->executor));
    assert_ok(tp_executor_run(run->executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_finish(run->executor));
}

/* x W^T or dy W with W [300, 64] in parts; c is added, so that every part has to start from the right value. */
static void check_split(const char *tier, enum talpa_dtype dtype, bool transpose_b, int min_launches)
{
    const int k = transpose_b ? D : VOCABULARY, n = transpose_b ? VOCABULARY : D;
    static float w[VOCABULARY * D], x[N_TOKENS * VOCABULARY], c[N_TOKENS * VOCABULARY], y[N_TOKENS * VOCABULARY];
    static uint8_t bytes[sizeof w];
    fill(w, VOCABULARY * D, 1);
    fill(x, N_TOKENS * k, 2);
    fill(c, N_TOKENS * n, 3);
    tp_dtype_from_f32(bytes, w, dtype, VOCABULARY * D);
    tp_dtype_to_f32(w, bytes, dtype, VOCABULARY * D);

    struct test_run run;
    test_run_open(&run);
    talpa_value vx, vw, vc, vy;
    const struct tp_store_source source = {.type = tp_type_2d(dtype, TP_STEP_NONE, VOCABULARY, D), .data = bytes};
    assert_ok(tp_graph_input(run.graph, &vx, "x", tp_type_2d(TALPA_F32, TP_STEP_NONE, N_TOKENS, k)));
    assert_ok(tp_graph_input(run.graph, &vc, "c", tp_type_2d(TALPA_F32, TP_STEP_NONE, N_TOKENS, n)));
    assert_ok(tp_graph_weight(run.graph, &vw, "w", source.type));
    assert_ok(talpa_matmul(&vy, run.graph, vx, vw, vc, false, transpose_b));
    tp_graph_mark_output(run.graph, vy);
    assert_ok(tp_store_bind(run.store, "w", &source));
    assert_true(start_small(&run, tier) >= min_launches);
    assert_string_equal(run.plan->variant[0]->tier, tier);
    assert_ok(tp_executor_write(run.executor, vx, x, sizeof *x * (size_t)(N_TOKENS * k)));
    assert_ok(tp_executor_write(run.executor, vc, c, sizeof *c * (size_t)(N_TOKENS * n)));
    finish_run(&run, &(struct tp_step){{0}});
    assert_ok(tp_executor_read(run.executor, vy, y, sizeof *y * (size_t)(N_TOKENS * n)));
    for (int i = 0; i < N_TOKENS; i++)
        for (int j = 0; j < n; j++) {
            double want = (double)c[i * n + j];
            for (int l = 0; l < k; l++) want += (double)x[i * k + l] * (double)w[transpose_b ? j * D + l : l * D + j];
            assert_true(fabs((double)y[i * n + j] - want) < 1e-4);
        }
    test_run_close(&run);
}

static void test_split_generic(void **state)
{
    (void)state;
    check_split("generic", TALPA_F32, true, 2);
    check_split("generic", TALPA_F32, false, 2);
    check_split("generic", TALPA_F16, true, 1);
}

static void test_split_clblast(void **state)
{
    (void)state;
    check_split("clblast", TALPA_F32, true, 3);
    check_split("clblast", TALPA_F32, false, 3);
}

static void test_split_cpu(void **state)
{
    (void)state;
    struct test_run run;
    test_run_open(&run);
    const bool is_cpu = tp_device_caps(run.device)->in_process;
    test_run_close(&run);
    if (!is_cpu) skip();
    check_split("cpu", TALPA_Q8_0, true, 1); /* levels: small enough for one allocation */
    check_split("cpu", TALPA_Q8_0, false, 1);
    check_split("cpu", TALPA_F32, true, 2); /* too large to be converted: decoded from rows in every run */
    check_split("cpu", TALPA_F32, false, 2);
}

/* Loss and gradient of `n_labelled` rows; labels may be nonsense. Rows with a valid label are compared with the plain formula. */
static void check_loss(uint32_t n_labelled, const int32_t *labels, bool small_alloc)
{
    enum { R = 6 };
    static float w[VOCABULARY * D], hidden[N_TOKENS * D], d_hidden[N_TOKENS * D];
    const int32_t rows[R] = {0, 3, 4, 9, 13, 19};
    fill(w, VOCABULARY * D, 4);
    fill(hidden, N_TOKENS * D, 5);

    struct test_run run;
    test_run_open(&run);
    talpa_value vh, vw, vr, vl, loss, nll, seed, grad;
    const struct tp_store_source source = {.type = tp_type_2d(TALPA_F32, TP_STEP_NONE, VOCABULARY, D), .data = w};
    assert_ok(tp_graph_input(run.graph, &vh, "hidden", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, N_TOKENS, D)));
    assert_ok(tp_graph_input(run.graph, &vr, "rows", tp_type_1d(TALPA_I32, TP_STEP_N_LABELLED, R)));
    assert_ok(tp_graph_input(run.graph, &vl, "labels", tp_type_1d(TALPA_I32, TP_STEP_N_LABELLED, R)));
    assert_ok(tp_graph_weight(run.graph, &vw, "w", source.type));
    assert_ok(talpa_linear_cross_entropy(&loss, &nll, run.graph, vh, vw, vr, vl));
    assert_ok(talpa_step_scalar(&seed, run.graph, TP_STEP_ONE, 1.0f));
    assert_ok(tp_autodiff(run.graph, &loss, &seed, 1, &vh, 1, &grad));
    tp_graph_mark_output(run.graph, loss);
    tp_graph_mark_output(run.graph, nll);
    tp_graph_mark_output(run.graph, grad);
    assert_ok(tp_store_bind(run.store, "w", &source));
    if (small_alloc) start_small(&run, "");
    else test_run_start(&run);
    assert_ok(tp_executor_write(run.executor, vh, hidden, sizeof hidden));
    assert_ok(tp_executor_write(run.executor, vr, rows, sizeof rows));
    assert_ok(tp_executor_write(run.executor, vl, labels, sizeof rows));
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = N_TOKENS;
    step.word[TP_STEP_N_LABELLED] = n_labelled;
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 0.5f);
    finish_run(&run, &step);

    float got_loss, got_nll[R];
    assert_ok(tp_executor_read(run.executor, loss, &got_loss, sizeof got_loss));
    assert_ok(tp_executor_read(run.executor, nll, got_nll, sizeof got_nll));
    assert_ok(tp_executor_read(run.executor, grad, d_hidden, sizeof d_hidden));
    double total = 0;
    uint32_t r = 0;
    for (int t = 0; t < N_TOKENS; t++) {
        if (r == n_labelled || rows[r] != t) {
            for (int j = 0; j < D; j++) assert_true(d_hidden[t * D + j] == 0.0f);
            continue;
        }
        double logits[VOCABULARY], sum = 0;
        for (int v = 0; v < VOCABULARY; v++) {
            logits[v] = 0;
            for (int j = 0; j < D; j++) logits[v] += (double)hidden[t * D + j] * (double)w[v * D + j];
            sum += exp(logits[v]);
        }
        const bool valid = labels[r] >= 0 && labels[r] < VOCABULARY;
        if (valid) {
            const double want = log(sum) - logits[labels[r]];
            assert_true(fabs((double)got_nll[r] - want) < 1e-4);
            total += want;
            for (int j = 0; j < D; j++) {
                double g = -(double)w[labels[r] * D + j];
                for (int v = 0; v < VOCABULARY; v++) g += exp(logits[v]) / sum * (double)w[v * D + j];
                assert_true(fabs((double)d_hidden[t * D + j] - 0.5 * g) < 1e-4);
            }
        } else {
            assert_true(isnan(got_nll[r]));
            total = NAN;
        }
        r++;
    }
    if (isnan(total)) assert_true(isnan(got_loss));
    else assert_true(fabs((double)got_loss - 0.5 * total) < 1e-4);
    test_run_close(&run);
}

static void test_loss_labels(void **state)
{
    (void)state;
    check_loss(6, (const int32_t[]){0, 299, 17, 288, 31, 32}, false);
    check_loss(6, (const int32_t[]){5, -1, 300, INT32_MIN, INT32_MAX, 7}, false);
}

static void test_loss_without_labels(void **state)
{
    (void)state;
    check_loss(0, (const int32_t[6]){0}, false);
}

static void test_loss_split(void **state)
{
    (void)state;
    check_loss(5, (const int32_t[]){0, 299, 156, 157, 31, 32}, true);
}

/* Without a gradient there is one product per block of the vocabulary, and no storage for what only the gradient reads; the same bits. */
static void test_loss_alone(void **state)
{
    (void)state;
    enum { R = 6 };
    static float w[VOCABULARY * D], hidden[N_TOKENS * D];
    float nll[2][R];
    int n_launches[2];
    fill(w, VOCABULARY * D, 4);
    fill(hidden, N_TOKENS * D, 5);
    for (int with_gradient = 0; with_gradient < 2; with_gradient++) {
        struct test_run run;
        test_run_open(&run);
        talpa_value vh, vw, vr, vl, loss, vn, seed, grad;
        const struct tp_store_source source = {.type = tp_type_2d(TALPA_F32, TP_STEP_NONE, VOCABULARY, D), .data = w};
        assert_ok(tp_graph_input(run.graph, &vh, "hidden", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, N_TOKENS, D)));
        assert_ok(tp_graph_input(run.graph, &vr, "rows", tp_type_1d(TALPA_I32, TP_STEP_N_LABELLED, R)));
        assert_ok(tp_graph_input(run.graph, &vl, "labels", tp_type_1d(TALPA_I32, TP_STEP_N_LABELLED, R)));
        assert_ok(tp_graph_weight(run.graph, &vw, "w", source.type));
        assert_ok(talpa_linear_cross_entropy(&loss, &vn, run.graph, vh, vw, vr, vl));
        if (with_gradient) {
            assert_ok(talpa_step_scalar(&seed, run.graph, TP_STEP_ONE, 1.0f));
            assert_ok(tp_autodiff(run.graph, &loss, &seed, 1, &vh, 1, &grad));
            tp_graph_mark_output(run.graph, grad);
        }
        tp_graph_mark_output(run.graph, vn);
        assert_ok(tp_store_bind(run.store, "w", &source));
        test_run_start(&run);
        const talpa_value expected = tp_graph_node_at(run.graph, 0)->out[3];
        assert_int_equal(run.plan->row[expected].place, with_gradient ? TP_PLACE_ARENA : TP_PLACE_NONE);
        n_launches[with_gradient] = 0;
        for (int i = 0; i < run.plan->phase[TP_PHASE_BATCH].n; i++)
            n_launches[with_gradient] += !strncmp(run.plan->phase[TP_PHASE_BATCH].item[i].kernel, "gem", 3); /* gemm or gemv */
        assert_ok(tp_executor_write(run.executor, vh, hidden, sizeof hidden));
        assert_ok(tp_executor_write(run.executor, vr, (const int32_t[R]){0, 3, 4, 9, 13, 19}, R * sizeof(int32_t)));
        assert_ok(tp_executor_write(run.executor, vl, (const int32_t[R]){0, 299, 17, 288, 31, 32}, R * sizeof(int32_t)));
        struct tp_step step = {{0}};
        step.word[TP_STEP_N_TOKENS] = N_TOKENS;
        step.word[TP_STEP_N_LABELLED] = R;
        finish_run(&run, &step);
        assert_ok(tp_executor_read(run.executor, vn, nll[with_gradient], sizeof nll[0]));
        test_run_close(&run);
    }
    assert_int_equal(n_launches[0], 1);
    assert_int_equal(n_launches[1], 2);
    assert_memory_equal(nll[0], nll[1], sizeof nll[0]);
}

int main(void)
{
    test_need_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_generic), cmocka_unit_test(test_split_cpu),           cmocka_unit_test(test_split_clblast),
        cmocka_unit_test(test_loss_labels),   cmocka_unit_test(test_loss_without_labels), cmocka_unit_test(test_loss_split),
        cmocka_unit_test(test_loss_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
