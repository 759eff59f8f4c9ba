/* Finding the first value that is not finite, in the forward and in the backward part. */
#include <math.h>

#include "exec_test.h"
#include "exec/executor.h"

enum { ROWS = 48, COLUMNS = 96, RUN = 40, EXIT_SKIP = 77 };

static struct tp_device *device;

struct model {
    struct talpa_graph *graph;
    talpa_value x, w, seed, grad, y;
    struct tp_store *store;
    struct tp_plan *plan;
    struct tp_executor *executor;
    float weight[COLUMNS * COLUMNS];
};

/* h = x w^T at "layers.0", y = swiglu(h, x) at "layers.1", and the gradient of x. */
static void build(struct model *m, const char *tier)
{
    talpa_value h;
    *m = (struct model){0};
    assert_ok(tp_graph_create(&m->graph));
    m->x = test_input(m->graph, "x", ROWS, COLUMNS);
    m->seed = test_input(m->graph, "seed", ROWS, COLUMNS);
    assert_ok(tp_graph_weight(m->graph, &m->w, "w", tp_type_2d(TALPA_F32, TP_STEP_NONE, COLUMNS, COLUMNS)));
    tp_graph_set_scope(m->graph, "layers.0");
    assert_ok(talpa_matmul(&h, m->graph, m->x, m->w, TALPA_NONE, false, true));
    tp_graph_set_scope(m->graph, "layers.1");
    assert_ok(talpa_swiglu(&m->y, m->graph, h, m->x));
    tp_graph_set_scope(m->graph, "");
    tp_graph_mark_output(m->graph, m->y);
    assert_ok(tp_autodiff(m->graph, &m->y, &m->seed, 1, &m->x, 1, &m->grad));
    tp_graph_mark_output(m->graph, m->grad);
    assert_ok(tp_graph_verify(m->graph));
    tp_rng_fill_splitmix(m->weight, COLUMNS * COLUMNS, 7, 2, 0.1);
    assert_ok(tp_store_create(&m->store, device));
    struct tp_plan_options options = {.dispatch = TP_DISPATCH_DENSE};
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    assert_ok(tp_plan_create(&m->plan, m->graph, tp_device_caps(device), &options));
}

/* Runs with these faults (NULL: none) and looks for them. */
static struct tp_nonfinite look(struct model *m, const float *x, const float *seed, bool bad_weight)
{
    if (bad_weight) m->weight[7 * COLUMNS + 3] = INFINITY;
    const struct tp_store_source source = {.type = *tp_graph_type(m->graph, m->w), .data = m->weight};
    assert_ok(tp_store_bind(m->store, "w", &source));
    assert_ok(tp_executor_create(&m->executor, m->store, &m->plan, 1));
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = RUN;
    assert_ok(tp_executor_write(m->executor, m->x, x, ROWS * COLUMNS * sizeof *x));
    assert_ok(tp_executor_write(m->executor, m->seed, seed, ROWS * COLUMNS * sizeof *seed));
    assert_ok(tp_executor_step(m->executor, &step));
    assert_ok(tp_executor_poison(m->executor)); /* what lies in the arena is no finding */
    struct tp_nonfinite found = {0};
    assert_ok(tp_executor_find_nonfinite(&found, m->executor, 0, TP_PHASE_BATCH));
    return found;
}

static void release(struct model *m)
{
    tp_executor_free(m->executor);
    tp_plan_free(m->plan);
    tp_store_free(m->store);
    tp_graph_free(m->graph);
}

static void test_finds(void **state)
{
    (void)state;
    static const char *const tiers[] = {"generic", ""};
    static float x[ROWS * COLUMNS], seed[ROWS * COLUMNS];
    static struct model m;
    for (size_t t = 0; t < sizeof tiers / sizeof *tiers; t++) {
        tp_rng_fill_splitmix(x, ROWS * COLUMNS, 7, 1, 1.0);
        tp_rng_fill_splitmix(seed, ROWS * COLUMNS, 7, 3, 1.0);
        for (int i = RUN * COLUMNS; i < ROWS * COLUMNS; i++) x[i] = seed[i] = NAN; /* past the run-time size */

        build(&m, tiers[t]);
        assert_false(look(&m, x, seed, false).found);
        release(&m);

        build(&m, tiers[t]);
        struct tp_nonfinite found = look(&m, x, seed, true);
        assert_true(found.found && !found.is_backward);
        assert_string_equal(found.scope, "layers.0");
        assert_string_equal(found.op, "matmul");
        assert_int_equal(found.row, 0);
        assert_int_equal(found.column, 7);
        assert_true(isinf(found.value));
        release(&m);

        seed[5 * COLUMNS + 9] = NAN;
        build(&m, tiers[t]);
        found = look(&m, x, seed, false);
        assert_true(found.found && found.is_backward);
        assert_string_equal(found.scope, "layers.1"); /* the gradient of the swiglu is the first to read it */
        assert_int_equal(found.row, 5);
        assert_int_equal(found.column, 9);
        assert_true(isnan(found.value));
        release(&m);
    }
}

int main(void)
{
    struct talpa_device_caps *caps;
    size_t n, index;
    if (talpa_device_list(&caps, &n) != TALPA_OK || n == 0) return EXIT_SKIP;
    const enum talpa_status status = talpa_device_select(&index, caps, n, NULL);
    free(caps);
    if (status != TALPA_OK || tp_device_open(&device, index, false) != TALPA_OK) return EXIT_SKIP;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_finds)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tp_device_close(device);
    return failed;
}
