/* How the contrastive loss draws its items: the same ones whatever the order of the batch and the tier, others in other steps and modules,
 * every candidate equally often, none twice. Loss and gradients are checked by the conformance cases and against the golden files. */
#include "ops_test.h"

#include <math.h>

#include "graph/op.h"

enum { T = 60, E = 3, RANK = 2, WIDTH = 5, M = 7 };

struct model {
    struct test_run run;
    talpa_value x, a, bt, counts, list, examples, positions, items;
    int n_places;
};

static void open_model(struct model *m, const char *tier, uint64_t stream)
{
    const struct talpa_contrast contrast = {
        .n_experts = E, .rank = RANK, .scale = 1, .temperature = 1, .n_samples = M, .normalise = true, .stream = stream};
    talpa_value loss;
    test_run_open(&m->run);
    struct talpa_graph *graph = m->run.graph;
    assert_ok(tp_graph_input(graph, &m->x, "x", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, T, WIDTH)));
    assert_ok(tp_graph_input(graph, &m->a, "a", tp_type_2d(TALPA_F32, TP_STEP_NONE, E * RANK, WIDTH)));
    assert_ok(tp_graph_input(graph, &m->bt, "bt", tp_type_2d(TALPA_F32, TP_STEP_NONE, E * RANK, WIDTH)));
    assert_ok(tp_graph_input(graph, &m->counts, "counts", tp_type_1d(TALPA_I32, TP_STEP_NONE, E)));
    assert_ok(tp_graph_input(graph, &m->list, "list", tp_type_2d(TALPA_I32, TP_STEP_NONE, E, T)));
    assert_ok(tp_graph_input(graph, &m->examples, "examples", tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, T)));
    assert_ok(tp_graph_input(graph, &m->positions, "positions", tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, T)));
    assert_ok(
        talpa_contrastive_loss(&loss, graph, m->x, m->a, m->bt, m->counts, m->list, m->examples, m->positions, TALPA_NONE, &contrast));
    m->items = loss + 1;
    m->n_places = (int)tp_graph_type(graph, m->items)->shape.dim[0] - 2 * E;
    tp_graph_mark_output(graph, loss);
    tp_graph_mark_output(graph, m->items);
    m->run.tier = tier;
    test_run_start(&m->run);
}

/* taken[e][i]: whether token i, by its own number and not its place, was drawn for expert e. `order` says which token stands where; token i
 * is position i % 20 of example i / 20 and chose expert e unless (i + e) % 4 == 0. */
static void draw(struct model *m, bool taken[E][T], const int *order, uint32_t step)
{
    static float zeros[T * WIDTH];
    int32_t counts[E] = {0}, list[E][T], examples[T], positions[T], items[2 * E + 4 * T];
    struct tp_step words = {{0}};
    words.word[TP_STEP_N_TOKENS] = T;
    words.word[TP_STEP_INDEX] = step;
    words.word[TP_STEP_SEED_LO] = 42;
    for (int t = 0; t < T; t++) {
        examples[t] = order[t] / 20;
        positions[t] = order[t] % 20;
        for (int e = 0; e < E; e++)
            if ((order[t] + e) % 4) list[e][counts[e]++] = t;
    }
    struct tp_executor *executor = m->run.executor;
    assert_ok(tp_executor_step(executor, &words));
    assert_ok(tp_executor_write(executor, m->x, zeros, sizeof zeros));
    assert_ok(tp_executor_write(executor, m->a, zeros, E * RANK * WIDTH * sizeof(float)));
    assert_ok(tp_executor_write(executor, m->bt, zeros, E * RANK * WIDTH * sizeof(float)));
    assert_ok(tp_executor_write(executor, m->counts, counts, sizeof counts));
    assert_ok(tp_executor_write(executor, m->list, list, sizeof list));
    assert_ok(tp_executor_write(executor, m->examples, examples, sizeof examples));
    assert_ok(tp_executor_write(executor, m->positions, positions, sizeof positions));
    assert_ok(tp_executor_run(executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_read(executor, m->items, items, (size_t)(2 * E + m->n_places) * sizeof *items));
    memset(taken, 0, sizeof(bool) * E * T);
    for (int e = 0; e < E; e++) {
        assert_int_equal(items[2 * e + 1], M);
        for (int i = 0; i < M; i++) {
            const int token = order[items[2 * E + items[2 * e] + i]];
            assert_true((token + e) % 4 != 0); /* a candidate */
            assert_false(taken[e][token]);     /* not twice */
            taken[e][token] = true;
        }
    }
}

static void test_order(void **state)
{
    (void)state;
    struct model m[3];
    bool first[E][T], other[E][T];
    int plain[T], mixed[T];
    for (int i = 0; i < T; i++) {
        plain[i] = i;
        mixed[i] = i * 7 % T;
    }
    open_model(&m[0], NULL, 1);
    open_model(&m[1], "generic", 1);
    open_model(&m[2], NULL, 2);
    for (uint32_t step = 0; step < 5; step++) {
        draw(&m[0], first, plain, step);
        draw(&m[0], other, mixed, step);
        assert_memory_equal(first, other, sizeof first);
        draw(&m[1], other, mixed, step);
        assert_memory_equal(first, other, sizeof first);
        draw(&m[0], other, plain, step + 1);
        assert_memory_not_equal(first, other, sizeof first);
        draw(&m[2], other, plain, step);
        assert_memory_not_equal(first, other, sizeof first);
    }
    for (int i = 0; i < 3; i++) test_run_close(&m[i].run);
}

static void test_uniform(void **state)
{
    (void)state;
    enum { DRAWS = 600 };
    struct model m;
    int plain[T], count[E][T] = {{0}};
    bool taken[E][T];
    for (int i = 0; i < T; i++) plain[i] = i;
    open_model(&m, NULL, 1);
    for (uint32_t step = 0; step < DRAWS; step++) {
        draw(&m, taken, plain, step);
        for (int e = 0; e < E; e++)
            for (int i = 0; i < T; i++) count[e][i] += taken[e][i];
    }
    /* 45 candidates, 7 of them in every draw: chi-square with 44 degrees of freedom, corrected for drawing without replacement; 99.99 %
     * lie below 90 */
    for (int e = 0; e < E; e++) {
        const double want = DRAWS * M / 45.0;
        double chi = 0;
        for (int i = 0; i < T; i++)
            if ((i + e) % 4) chi += (count[e][i] - want) * (count[e][i] - want) / want / (1 - (M - 1) / 44.0);
        printf("expert %d: chi-square %.1f of 44 degrees of freedom\n", e, chi);
        assert_true(chi > 15.0 && chi < 90.0);
    }
    test_run_close(&m.run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order), cmocka_unit_test(test_uniform)};
    test_need_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
