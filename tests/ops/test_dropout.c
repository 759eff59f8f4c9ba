/* What the cases of the op cannot say: the device draws the host's bits, at the right rate, and independently of the micro-batching. */
#include "ops_test.h"

#include <math.h>

#include "base/rng.h"

enum { N_ROWS = 96, WIDTH = 331 };

static const uint64_t stream = UINT64_C(0x0123456789abcdef), seed = UINT64_C(0xc0ffee00deadbeef);

struct rows {
    int n;
    float x[N_ROWS * WIDTH], y[N_ROWS * WIDTH];
    int32_t examples[N_ROWS], positions[N_ROWS];
};

/* All x are 1, so y shows the mask. */
static struct rows *rows_create(int n)
{
    struct rows *rows = calloc(1, sizeof *rows);
    assert_non_null(rows);
    rows->n = n;
    for (int i = 0; i < n * WIDTH; i++) rows->x[i] = 1.0f;
    for (int t = 0; t < n; t++) {
        rows->examples[t] = t / 40 * 1000003 + 7;
        rows->positions[t] = t % 40;
    }
    return rows;
}

static void drop(struct rows *rows, float p, uint32_t optimizer_step, uint64_t of_stream)
{
    struct test_run run;
    talpa_value x, examples, positions, y;
    test_run_open(&run);
    assert_ok(tp_graph_input(run.graph, &x, "x", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, N_ROWS, WIDTH)));
    assert_ok(tp_graph_input(run.graph, &examples, "examples", tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, N_ROWS)));
    assert_ok(tp_graph_input(run.graph, &positions, "positions", tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, N_ROWS)));
    assert_ok(talpa_dropout(&y, run.graph, x, examples, positions, p, of_stream));
    tp_graph_mark_output(run.graph, y);
    test_run_start(&run);

    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = (uint32_t)rows->n;
    step.word[TP_STEP_INDEX] = optimizer_step;
    step.word[TP_STEP_SEED_LO] = (uint32_t)seed;
    step.word[TP_STEP_SEED_HI] = (uint32_t)(seed >> 32);
    assert_ok(tp_executor_step(run.executor, &step));
    assert_ok(tp_executor_write(run.executor, x, rows->x, sizeof(float) * (size_t)(rows->n * WIDTH)));
    assert_ok(tp_executor_write(run.executor, examples, rows->examples, sizeof(int32_t) * (size_t)rows->n));
    assert_ok(tp_executor_write(run.executor, positions, rows->positions, sizeof(int32_t) * (size_t)rows->n));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_read(run.executor, y, rows->y, sizeof(float) * (size_t)(rows->n * WIDTH)));
    test_run_close(&run);
}

static void test_bits_are_the_hosts(void **state)
{
    (void)state;
    const float p = 0.3f;
    struct rows *rows = rows_create(N_ROWS);
    drop(rows, p, 5, stream);
    for (int t = 0; t < N_ROWS; t++) {
        for (int j = 0; j < WIDTH; j++) {
            const uint32_t counter[4] = {(uint32_t)j / 4, (uint32_t)rows->positions[t], (uint32_t)rows->examples[t], 5};
            const uint32_t key[2] = {(uint32_t)seed ^ (uint32_t)stream, (uint32_t)(seed >> 32) ^ (uint32_t)(stream >> 32)};
            uint32_t words[4];
            tp_rng_philox(words, counter, key);
            const float want = tp_rng_uniform(words[j % 4]) >= p ? (float)(1 / (1 - (double)p)) : 0.0f;
            assert_memory_equal(&rows->y[t * WIDTH + j], &want, sizeof want);
        }
    }
    free(rows);
}

/* Five standard errors of the binomial distribution. */
static void test_rate(void **state)
{
    (void)state;
    static const double rates[] = {0.05, 0.5, 0.9};
    for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
        struct rows *rows = rows_create(N_ROWS);
        const int n = N_ROWS * WIDTH;
        int n_dropped = 0;
        drop(rows, (float)rates[r], 0, stream);
        for (int i = 0; i < n; i++) n_dropped += rows->y[i] == 0.0f;
        assert_true(fabs(n_dropped - rates[r] * n) < 5 * sqrt(n * rates[r] * (1 - rates[r])));
        free(rows);
    }
}

/* The rows of one micro-batch in the order b, a give the rows that the order a, b gave, and so do they one by one. */
static void test_independent_of_the_micro_batch(void **state)
{
    (void)state;
    struct rows *all = rows_create(N_ROWS), *part = rows_create(N_ROWS);
    drop(all, 0.5f, 3, stream);
    part->n = 33;
    for (int t = 0; t < part->n; t++) {
        part->examples[t] = all->examples[N_ROWS - 1 - t];
        part->positions[t] = all->positions[N_ROWS - 1 - t];
    }
    drop(part, 0.5f, 3, stream);
    for (int t = 0; t < part->n; t++) assert_memory_equal(part->y + t * WIDTH, all->y + (N_ROWS - 1 - t) * WIDTH, WIDTH * sizeof(float));
    part->n = 1;
    drop(part, 0.5f, 3, stream);
    assert_memory_equal(part->y, all->y + (N_ROWS - 1) * WIDTH, WIDTH * sizeof(float));
    free(all);
    free(part);
}

/* Another step, example, position or stream gives a mask that agrees by chance only. */
static void test_masks_differ(void **state)
{
    (void)state;
    struct rows *a = rows_create(N_ROWS), *b = rows_create(N_ROWS);
    const int n = N_ROWS * WIDTH;
    drop(a, 0.5f, 3, stream);
    for (int i = 0; i < 2; i++) {
        int n_equal = 0;
        drop(b, 0.5f, i == 0 ? 4 : 3, i == 0 ? stream : stream + 1);
        for (int k = 0; k < n; k++) n_equal += a->y[k] == b->y[k];
        assert_true(fabs(n_equal - 0.5 * n) < 5 * sqrt(0.25 * n));
    }
    int n_rows_equal = 0;
    for (int t = 1; t < N_ROWS; t++) n_rows_equal += !memcmp(a->y + t * WIDTH, a->y + (t - 1) * WIDTH, WIDTH * sizeof(float));
    n_rows_equal += !memcmp(a->y, a->y + 40 * WIDTH, WIDTH * sizeof(float)); /* same position, other example */
    assert_int_equal(n_rows_equal, 0);
    free(a);
    free(b);
}

static void test_refusals(void **state)
{
    (void)state;
    struct talpa_graph *graph;
    talpa_value x, ids, y = 77;
    assert_ok(tp_graph_create(&graph));
    assert_ok(tp_graph_input(graph, &x, "x", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, 4, 8)));
    assert_ok(tp_graph_input(graph, &ids, "ids", tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, 4)));
    assert_int_equal(talpa_dropout(&y, graph, x, ids, ids, 1.0f, 1), TALPA_E_ARGUMENT);
    assert_int_equal(talpa_dropout(&y, graph, x, ids, ids, -0.5f, 1), TALPA_E_ARGUMENT);
    assert_int_equal(talpa_dropout(&y, graph, x, x, ids, 0.5f, 1), TALPA_E_ARGUMENT);
    assert_int_equal(y, 77);
    tp_graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_are_the_hosts), cmocka_unit_test(test_rate),     cmocka_unit_test(test_independent_of_the_micro_batch),
        cmocka_unit_test(test_masks_differ),       cmocka_unit_test(test_refusals),
    };
    test_need_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
