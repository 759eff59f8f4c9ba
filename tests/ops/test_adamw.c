/* AdamW over many steps against plain double arithmetic, with tensors that are skipped in some steps; the whole update phase as the trainer
 * builds it: accumulate, grad_norm, step_counts, adamw. */
#include "ops_test.h"

#include <math.h>

#include "base/rng.h"
#include "ops/tensor_table.h"

enum { N_TENSORS = 5, N_FLAGS = 3, N_STEPS = 20, N_MICRO = 2 };

static const int64_t sizes[N_TENSORS] = {5000, 1, 4099, 257, 65};
static const int32_t flags[N_TENSORS] = {TP_TENSOR_ALWAYS, 0, 1, TP_TENSOR_ALWAYS, 2};
static const double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, learning_rate = 1e-3, weight_decay = 0.01;

/* Flag 0 is chosen in every third step, flag 1 never before step 10, flag 2 always. */
static bool is_chosen(int flag, int step) { return flag == 0 ? step % 3 == 1 : flag == 1 ? step >= 10 : true; }

struct plain {
    double *p, *m, *v;
    int counts[N_TENSORS];
};

static void plain_step(struct plain *plain, const struct tp_tensor_table *table, const double *gradient, double clip, int step)
{
    for (int i = 0; i < N_TENSORS; i++) {
        if (flags[i] >= 0 && !is_chosen(flags[i], step)) continue;
        plain->counts[i]++;
        const double correction1 = 1 - pow(beta1, plain->counts[i]), correction2 = 1 - pow(beta2, plain->counts[i]);
        const int64_t first = table->rows[i * TP_TENSOR_COLUMNS];
        for (int64_t k = first; k < first + sizes[i]; k++) {
            const double g = gradient[k] * clip;
            plain->p[k] *= 1 - learning_rate * weight_decay;
            plain->m[k] = beta1 * plain->m[k] + (1 - beta1) * g;
            plain->v[k] = beta2 * plain->v[k] + (1 - beta2) * g * g;
            plain->p[k] -= learning_rate / correction1 * plain->m[k] / (sqrt(plain->v[k] / correction2) + eps);
        }
    }
}

static double plain_norm(const struct tp_tensor_table *table, const double *gradient)
{
    double sum = 0;
    for (int i = 0; i < N_TENSORS; i++)
        for (int64_t k = 0; k < sizes[i]; k++) {
            const double g = gradient[table->rows[i * TP_TENSOR_COLUMNS] + k];
            sum += g * g;
        }
    return sqrt(sum);
}

struct update {
    talpa_value x, chosen, tensors, params, m, v, counts, norm, clip, next[3], next_counts;
};

static void build(struct update *u, struct talpa_graph *graph, const struct tp_tensor_table *table)
{
    const struct tp_type bank = tp_type_1d(TALPA_F32, TP_STEP_NONE, table->bank_elements);
    const struct tp_type words = tp_type_1d(TALPA_I32, TP_STEP_NONE, N_FLAGS);
    talpa_value gradient, selected;
    assert_ok(tp_graph_input(graph, &u->x, "x", bank));
    assert_ok(tp_graph_input(graph, &u->chosen, "chosen", words));
    assert_ok(tp_graph_input(graph, &u->tensors, "tensors", tp_type_2d(TALPA_I32, TP_STEP_NONE, N_TENSORS, TP_TENSOR_COLUMNS)));
    assert_ok(tp_graph_state(graph, &gradient, "gradient", bank));
    assert_ok(tp_graph_state(graph, &selected, "selected", words));
    assert_ok(tp_graph_state(graph, &u->params, "params", bank));
    assert_ok(tp_graph_state(graph, &u->m, "m", bank));
    assert_ok(tp_graph_state(graph, &u->v, "v", bank));
    assert_ok(tp_graph_state(graph, &u->counts, "counts", tp_type_1d(TALPA_I32, TP_STEP_NONE, N_TENSORS)));
    assert_ok(talpa_accumulate(&gradient, graph, gradient, u->x));
    assert_ok(talpa_accumulate(&selected, graph, selected, u->chosen));

    tp_graph_set_phase(graph, TP_PHASE_UPDATE);
    assert_ok(talpa_grad_norm(&u->norm, &u->clip, graph, gradient, u->tensors));
    assert_ok(talpa_step_counts(&u->next_counts, graph, u->counts, selected, u->tensors));
    assert_ok(talpa_adamw(u->next, graph, u->params, gradient, u->m, u->v, u->next_counts, selected, u->tensors, u->clip, (float)beta1,
                          (float)beta2, (float)eps));
    tp_graph_mark_output(graph, u->norm);
    tp_graph_mark_output(graph, u->clip);
}

static float draw(uint32_t step, uint32_t micro, uint32_t k)
{
    const uint32_t counter[4] = {k, step, micro, 0}, key[2] = {11, 12};
    uint32_t words[4];
    float values[2];
    tp_rng_philox(words, counter, key);
    tp_rng_normal(values, words[0], words[1]);
    return values[0] * 0.01f;
}

static void set_step(struct test_run *run, uint32_t micro, double max_norm)
{
    struct tp_step step = {{0}};
    step.word[TP_STEP_MICRO] = micro;
    tp_step_set_f32(&step, TP_STEP_LEARNING_RATE, (float)learning_rate);
    tp_step_set_f32(&step, TP_STEP_WEIGHT_DECAY, (float)weight_decay);
    tp_step_set_f32(&step, TP_STEP_MAX_NORM, (float)max_norm);
    assert_ok(tp_executor_step(run->executor, &step));
}

/* Two micro-batches and the update; `gradient` receives their sum. */
static void run_step(struct test_run *run, const struct update *u, const struct tp_tensor_table *table, int step, double max_norm,
                     double *gradient)
{
    const size_t n = (size_t)table->bank_elements;
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    memset(gradient, 0, n * sizeof *gradient);
    for (uint32_t micro = 0; micro < N_MICRO; micro++) {
        /* What lies between the tensors is not a number: it must not get anywhere. */
        for (size_t k = 0; k < n; k++) x[k] = NAN;
        for (int i = 0; i < N_TENSORS; i++)
            for (int64_t k = table->rows[i * TP_TENSOR_COLUMNS]; k < table->rows[i * TP_TENSOR_COLUMNS] + sizes[i]; k++) {
                x[k] = draw((uint32_t)step, micro, (uint32_t)k);
                gradient[k] += (double)x[k];
            }
        int32_t chosen[N_FLAGS];
        for (int f = 0; f < N_FLAGS; f++) chosen[f] = micro == 1 && is_chosen(f, step) ? 3 : 0;
        set_step(run, micro, max_norm);
        assert_ok(tp_executor_write(run->executor, u->x, x, n * sizeof *x));
        assert_ok(tp_executor_write(run->executor, u->chosen, chosen, sizeof chosen));
        assert_ok(tp_executor_run(run->executor, 0, TP_PHASE_BATCH));
        assert_ok(tp_executor_finish(run->executor));
    }
    assert_ok(tp_executor_run(run->executor, 0, TP_PHASE_UPDATE));
    free(x);
}

static void compare(struct test_run *run, talpa_value value, const double *want, const struct tp_tensor_table *table, double tolerance)
{
    const size_t n = (size_t)table->bank_elements;
    float *got = malloc(n * sizeof *got);
    assert_non_null(got);
    assert_ok(tp_executor_read(run->executor, value, got, n * sizeof *got));
    int64_t end = 0;
    for (int i = 0; i < N_TENSORS; i++) {
        const int64_t first = table->rows[i * TP_TENSOR_COLUMNS];
        for (; end < first; end++) assert_true(got[end] == 0.5f); /* gaps keep what they had */
        for (end = first; end < first + sizes[i]; end++)
            if (!(fabs((double)got[end] - want[end]) <= tolerance * (1e-3 + fabs(want[end])))) {
                print_error("tensor %d, element %d: %.9g, expected %.9g\n", i, (int)(end - first), (double)got[end], want[end]);
                fail();
            }
    }
    free(got);
}

static void train(double max_norm)
{
    struct tp_tensor_table table = {0};
    /* Tensor 3 starts right after tensor 2, like the experts of a stacked matrix; the others are aligned. */
    for (int i = 0; i < N_TENSORS; i++)
        assert_ok(tp_tensor_table_add(&table, i == 3 ? table.end : table.bank_elements, sizes[i], flags[i]));
    struct test_run run;
    struct update u;
    test_run_open(&run);
    build(&u, run.graph, &table);
    test_run_start(&run);

    const size_t n = (size_t)table.bank_elements;
    struct plain plain = {calloc(n, sizeof(double)), calloc(n, sizeof(double)), calloc(n, sizeof(double)), {0}};
    double *gradient = calloc(n, sizeof *gradient);
    float *start = malloc(n * sizeof *start);
    assert_true(plain.p && plain.m && plain.v && gradient && start);
    for (size_t k = 0; k < n; k++) start[k] = 0.5f;
    assert_ok(tp_executor_write(run.executor, u.params, start, n * sizeof *start));
    for (int i = 0; i < N_TENSORS; i++)
        for (int64_t k = table.rows[i * TP_TENSOR_COLUMNS]; k < table.rows[i * TP_TENSOR_COLUMNS] + sizes[i]; k++) {
            start[k] = 100 * draw(1000, 0, (uint32_t)k);
            plain.p[k] = (double)start[k];
        }
    assert_ok(tp_executor_write(run.executor, u.params, start, n * sizeof *start));
    assert_ok(tp_executor_write(run.executor, u.tensors, table.rows, (size_t)table.n * TP_TENSOR_COLUMNS * sizeof *table.rows));

    for (int step = 0; step < N_STEPS; step++) {
        float norm, clip;
        run_step(&run, &u, &table, step, max_norm, gradient);
        assert_ok(tp_executor_read(run.executor, u.norm, &norm, sizeof norm));
        assert_ok(tp_executor_read(run.executor, u.clip, &clip, sizeof clip));
        const double want = plain_norm(&table, gradient), want_clip = max_norm > 0 ? fmin(1, max_norm / (want + 1e-6)) : 1;
        assert_true(fabs((double)norm - want) <= 1e-6 * want);
        assert_true(fabs((double)clip - want_clip) <= 1e-6);
        plain_step(&plain, &table, gradient, want_clip, step);
    }
    compare(&run, u.next[0], plain.p, &table, 1e-5);
    int32_t counts[N_TENSORS];
    assert_ok(tp_executor_read(run.executor, u.next_counts, counts, sizeof counts));
    for (int i = 0; i < N_TENSORS; i++) assert_int_equal(counts[i], plain.counts[i]);
    assert_int_equal(plain.counts[0], N_STEPS);
    assert_int_equal(plain.counts[1], 7);
    assert_int_equal(plain.counts[2], 10);

    test_run_close(&run);
    tp_tensor_table_free(&table);
    free(plain.p);
    free(plain.m);
    free(plain.v);
    free(gradient);
    free(start);
}

static void test_without_clipping(void **state)
{
    (void)state;
    train(0);
}

static void test_with_clipping(void **state)
{
    (void)state;
    train(0.25);
}

static void test_table(void **state)
{
    (void)state;
    struct tp_tensor_table table = {0};
    assert_ok(tp_tensor_table_add(&table, 0, 4097, TP_TENSOR_ALWAYS));
    assert_ok(tp_tensor_table_add(&table, 4097, 1, 0));
    assert_ok(tp_tensor_table_add(&table, 5120, 4096, 4)); /* gaps are allowed */
    static const int32_t want[] = {0, 4097, -1, 0, 4097, 1, 0, 2, 5120, 4096, 4, 3};
    assert_memory_equal(table.rows, want, sizeof want);
    assert_int_equal(table.n_chunks, 4);
    assert_int_equal(table.end, 9216);
    assert_int_equal(table.bank_elements, 9216);
    assert_true(tp_tensor_table_max_chunks(table.bank_elements, table.n) >= table.n_chunks);
    assert_int_equal(tp_tensor_table_add(&table, 9215, 1, 0), TALPA_E_INTERNAL); /* overlaps */
    assert_int_equal(tp_tensor_table_add(&table, -1, 1, 0), TALPA_E_INTERNAL);
    assert_int_equal(tp_tensor_table_add(&table, 9216, 0, 0), TALPA_E_INTERNAL);
    assert_int_equal(tp_tensor_table_add(&table, 9216, 1, -2), TALPA_E_INTERNAL);
    assert_int_equal(tp_tensor_table_add(&table, 9216, INT64_C(1) << 31, 0), TALPA_E_ARGUMENT);
    assert_int_equal(table.n, 3);
    tp_tensor_table_free(&table);
    assert_null(table.rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_without_clipping),
        cmocka_unit_test(test_with_clipping),
    };
    test_need_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
