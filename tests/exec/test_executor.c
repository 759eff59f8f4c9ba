#include <math.h>

#include "exec_test.h"
#include "exec/executor.h"

enum { ROWS = 48, COLUMNS = 200, N_OUT = 96, EXIT_SKIP = 77 };

static struct tp_device *open_device(void)
{
    struct talpa_device_caps *caps;
    size_t n, index;
    struct tp_device *device;
    assert_ok(talpa_device_list(&caps, &n));
    assert_ok(talpa_device_select(&index, caps, n, NULL));
    free(caps);
    assert_ok(tp_device_open(&device, index, false));
    return device;
}

/* ---- a graph with everything: products with a frozen weight, a chain in place, a bank with a copied part, an accumulating state ---- */

struct model {
    struct talpa_graph *graph;
    talpa_value x, y, bank, total;
};

static struct model build(void)
{
    struct model m;
    talpa_value weight, flat, h;
    assert_ok(tp_graph_create(&m.graph));
    m.x = test_input(m.graph, "x", ROWS, COLUMNS);
    assert_ok(tp_graph_weight(m.graph, &weight, "weight", tp_type_2d(TALPA_F32, TP_STEP_NONE, N_OUT, COLUMNS)));
    assert_ok(tp_graph_input(m.graph, &flat, "flat", tp_type_1d(TALPA_F32, TP_STEP_NONE, 300)));
    assert_ok(tp_graph_state(m.graph, &m.total, "total", tp_type_1d(TALPA_F32, TP_STEP_NONE, N_OUT)));
    tp_graph_set_scope(m.graph, "layers.0");
    assert_ok(talpa_swiglu(&h, m.graph, m.x, test_add(m.graph, m.x, m.x)));
    h = test_add(m.graph, h, m.x);
    assert_ok(talpa_matmul(&m.y, m.graph, h, weight, TALPA_NONE, false, true));
    tp_graph_mark_output(m.graph, m.y);
    talpa_value sum;
    assert_ok(talpa_reduce_rows(&sum, m.graph, m.y));
    assert_ok(talpa_concat(&m.bank, m.graph, (const talpa_value[]){test_add(m.graph, sum, sum), flat}, 2));
    tp_graph_mark_output(m.graph, m.bank);
    assert_ok(talpa_accumulate(&m.total, m.graph, m.total, sum));
    assert_ok(tp_graph_verify(m.graph));
    return m;
}

struct data {
    float x[ROWS * COLUMNS], weight[N_OUT * COLUMNS], flat[300];
};

static struct data *make_data(void)
{
    struct data *data = malloc(sizeof *data);
    assert_non_null(data);
    tp_rng_fill_splitmix(data->x, ROWS * COLUMNS, 7, 1, 1.0);
    tp_rng_fill_splitmix(data->weight, N_OUT * COLUMNS, 7, 2, 0.1);
    tp_rng_fill_splitmix(data->flat, 300, 7, 3, 1.0);
    return data;
}

struct result {
    float y[ROWS * N_OUT], bank[512 + 300], total[N_OUT];
    int n_launches;
};

struct session {
    struct tp_device *device;
    struct model model;
    struct data *data;
    struct tp_plan *plan;
    struct tp_store *store;
    struct tp_executor *executor;
};

/* All but opening the device; every failure is returned as it is. */
static enum talpa_status session_prepare(struct session *s, size_t guard_bytes, const char *tier)
{
    struct tp_plan_options options = {.guard_bytes = guard_bytes};
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    TP_TRY(tp_plan_create(&s->plan, s->model.graph, tp_device_caps(s->device), &options));
    TP_TRY(tp_store_create(&s->store, s->device));
    const struct tp_store_source source = {.type = tp_type_2d(TALPA_F32, TP_STEP_NONE, N_OUT, COLUMNS), .data = s->data->weight};
    TP_TRY(tp_store_bind(s->store, "weight", &source));
    return tp_executor_create(&s->executor, s->store, &s->plan, 1);
}

static enum talpa_status session_run(struct session *s, uint32_t n_tokens, uint32_t micro, struct result *out)
{
    struct tp_step step = {.word = {[TP_STEP_N_TOKENS] = n_tokens, [TP_STEP_MICRO] = micro}};
    TP_TRY(tp_executor_write(s->executor, s->model.x, s->data->x, (size_t)n_tokens * COLUMNS * sizeof(float)));
    TP_TRY(tp_executor_write(s->executor, tp_graph_find(s->model.graph, "flat"), s->data->flat, sizeof s->data->flat));
    TP_TRY(tp_executor_step(s->executor, &step));
    TP_TRY(tp_executor_run(s->executor, 0, TP_PHASE_BATCH));
    TP_TRY(tp_executor_finish(s->executor));
    memset(out, 0, sizeof *out);
    out->n_launches = tp_executor_n_launches(s->executor);
    TP_TRY(tp_executor_read(s->executor, s->model.y, out->y, (size_t)n_tokens * N_OUT * sizeof(float)));
    float bank[512 + 300];
    TP_TRY(tp_executor_read(s->executor, s->model.bank, bank, tp_type_bytes(tp_graph_type(s->model.graph, s->model.bank))));
    memcpy(out->bank, bank, N_OUT * sizeof(float));
    memcpy(out->bank + 256, bank + 256, 300 * sizeof(float));
    return tp_executor_read(s->executor, s->model.total, out->total, sizeof out->total);
}

static void session_end(struct session *s)
{
    tp_executor_free(s->executor);
    tp_store_free(s->store);
    tp_plan_free(s->plan);
    assert_int_equal(tp_device_allocated_bytes(s->device), 0); /* nothing is left on the device */
    tp_device_close(s->device);
    tp_graph_free(s->model.graph);
    free(s->data);
    *s = (struct session){0};
}

static struct session session_open(void) { return (struct session){.device = open_device(), .model = build(), .data = make_data()}; }

static struct result *run_once(const char *tier, size_t guard_bytes, uint32_t n_tokens)
{
    struct session s = session_open();
    struct result *out = malloc(sizeof *out);
    assert_ok(session_prepare(&s, guard_bytes, tier));
    assert_ok(session_run(&s, n_tokens, 0, out));
    session_end(&s);
    return out;
}

/* ---- running ---- */

static double expected_y(const struct data *data, int t, int n)
{
    double sum = 0;
    for (int k = 0; k < COLUMNS; k++) {
        const double x = (double)data->x[t * COLUMNS + k];
        sum += (x / (1 + exp(-x)) * 2 * x + x) * (double)data->weight[n * COLUMNS + k];
    }
    return sum;
}

static void test_run(void **unused)
{
    (void)unused;
    static const char *const tiers[] = {"", "generic"};
    for (int i = 0; i < 2; i++) {
        struct session s = session_open();
        struct result out;
        const uint32_t n_tokens = 37;
        assert_ok(session_prepare(&s, 0, tiers[i]));
        for (uint32_t micro = 0; micro < 2; micro++) {
            assert_ok(session_run(&s, n_tokens, micro, &out));
            for (int n = 0; n < N_OUT; n++) {
                double sum = 0;
                for (int t = 0; t < (int)n_tokens; t++) {
                    const double want = expected_y(s.data, t, n);
                    assert_true(fabs((double)out.y[t * N_OUT + n] - want) < 1e-4);
                    sum += want;
                }
                assert_true(fabs((double)out.bank[n] - 2 * sum) < 1e-3);
                assert_true(fabs((double)out.total[n] - (micro + 1) * sum) < 1e-3); /* the state goes on from run to run */
            }
            assert_memory_equal(out.bank + 256, s.data->flat, sizeof s.data->flat);
        }
        session_end(&s);
    }
}

static void test_misuse(void **unused)
{
    (void)unused;
    struct session s = session_open();
    assert_ok(session_prepare(&s, 0, ""));
    float much[ROWS * COLUMNS + 1];
    assert_refused(tp_executor_write(s.executor, s.model.x, much, sizeof much), TALPA_E_INTERNAL, "38400");
    tp_executor_free(s.executor);
    tp_store_free(s.store);
    s.executor = NULL;
    assert_ok(tp_store_create(&s.store, s.device));
    assert_refused(tp_executor_create(&s.executor, s.store, &s.plan, 1), TALPA_E_INTERNAL, "'weight'", "not bound");
    const struct tp_store_source source = {.type = tp_type_2d(TALPA_F32, TP_STEP_NONE, N_OUT, COLUMNS + 1), .data = s.data->weight};
    assert_ok(tp_store_bind(s.store, "weight", &source));
    assert_refused(tp_executor_create(&s.executor, s.store, &s.plan, 1), TALPA_E_INTERNAL, "'weight'", "another type");
    assert_refused(tp_store_bind(s.store, "weight", &source), TALPA_E_INTERNAL, "'weight'");
    assert_null(s.executor);
    session_end(&s);
}

static void assert_same_bits(const struct result *a, const struct result *b)
{
    assert_memory_equal(a->y, b->y, sizeof a->y);
    assert_memory_equal(a->bank, b->bank, sizeof a->bank);
    assert_memory_equal(a->total, b->total, sizeof a->total);
}

static void test_split_launches(void **unused)
{
    (void)unused;
    static const char *const tiers[] = {"", "generic"};
    for (int i = 0; i < 2; i++) {
        struct result *whole = run_once(tiers[i], 0, 41);
        assert_int_equal(setenv("TALPA_MAX_KERNEL_MS", "0.001", 1), 0);
        struct result *pieces = run_once(tiers[i], 0, 41);
        unsetenv("TALPA_MAX_KERNEL_MS");
        assert_true(pieces->n_launches > whole->n_launches);
        assert_same_bits(whole, pieces);
        free(whole);
        free(pieces);
    }
}

static void test_split_weight(void **unused)
{
    (void)unused;
    struct result *whole = run_once("generic", 0, 41);
    assert_int_equal(setenv("TALPA_MAX_ALLOC_BYTES", "50000", 1), 0); /* the weight has 76800 bytes */
    struct result *parts = run_once("generic", 0, 41);
    unsetenv("TALPA_MAX_ALLOC_BYTES");
    assert_same_bits(whole, parts);
    assert_true(parts->n_launches > whole->n_launches);
    free(whole);
    free(parts);
}

/* Reuse of storage changes nothing: the same bits as with every value in a place of its own. */
static void test_reuse(void **unused)
{
    (void)unused;
    const int64_t columns[] = {24, 100};
    struct tp_device *device = open_device();
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct talpa_graph *graph = test_random_graph(seed, 60, 16, columns, 2);
        float *seen[2] = {NULL, NULL};
        size_t n_seen = 0;
        for (int guarded = 0; guarded < 2; guarded++) {
            struct tp_plan *plan;
            struct tp_store *store;
            struct tp_executor *executor;
            assert_ok(tp_plan_create(&plan, graph, tp_device_caps(device), &(struct tp_plan_options){.guard_bytes = guarded ? 1024 : 0}));
            assert_ok(tp_store_create(&store, device));
            assert_ok(tp_executor_create(&executor, store, &plan, 1));
            float *values = malloc(16 * 100 * sizeof *values);
            seen[guarded] = calloc((size_t)tp_graph_n_values(graph) * 16 * 100, sizeof(float));
            for (int32_t v = 0; v < tp_graph_n_values(graph); v++) {
                if (tp_graph_value(graph, v)->kind != TP_INPUT) continue;
                tp_rng_fill_splitmix(values, 16 * 100, seed, (uint64_t)v, 0.5);
                assert_ok(tp_executor_write(executor, v, values, tp_type_bytes(tp_graph_type(graph, v))));
            }
            const struct tp_step step = {.word = {[TP_STEP_N_TOKENS] = 16}};
            assert_ok(tp_executor_step(executor, &step));
            assert_ok(tp_executor_poison(executor));
            assert_ok(tp_executor_run(executor, 0, TP_PHASE_BATCH));
            n_seen = 0;
            for (int32_t v = 0; v < tp_graph_n_values(graph); v++) {
                const struct tp_type *type = tp_graph_type(graph, v);
                if (!tp_graph_value(graph, v)->is_output) continue;
                assert_ok(tp_executor_read(executor, v, seen[guarded] + n_seen, tp_type_bytes(type)));
                n_seen += (size_t)tp_type_elements(type);
            }
            if (guarded) assert_ok(tp_executor_check_guards(executor));
            free(values);
            tp_executor_free(executor);
            tp_store_free(store);
            tp_plan_free(plan);
        }
        assert_true(n_seen > 0);
        for (size_t i = 0; i < n_seen; i++) assert_false(isnan(seen[1][i]));
        assert_memory_equal(seen[0], seen[1], n_seen * sizeof(float));
        free(seen[0]);
        free(seen[1]);
        tp_graph_free(graph);
    }
    tp_device_close(device);
}

/* ---- faults ---- */

/* Makes the n-th call of a kind fail, for n = 1, 2, ... until a whole session passes: every failure is a clean error and leaves nothing. */
static void inject(const char *kind, int at_least)
{
    int n_failures = 0;
    struct result *out = malloc(sizeof *out);
    for (int n = 1;; n++) {
        char fault[32];
        snprintf(fault, sizeof fault, "%s:%d", kind, n);
        assert_int_equal(setenv("TALPA_FAULT", fault, 1), 0);
        struct session s = session_open();
        unsetenv("TALPA_FAULT");
        enum talpa_status status = session_prepare(&s, 0, "");
        if (status == TALPA_OK) status = session_run(&s, ROWS, 0, out);
        if (status != TALPA_OK) {
            n_failures++;
            assert_int_equal(status, TALPA_E_DEVICE);
            assert_true(strlen(talpa_error_message()) > 0);
            assert_int_not_equal(talpa_error_opencl(), 0);
            if (!strcmp(kind, "build")) assert_true(strlen(talpa_error_build_log()) > 0);
        }
        session_end(&s);
        if (status == TALPA_OK) break;
        assert_true(n < 200);
    }
    assert_true(n_failures >= at_least);
    free(out);
}

static void test_fault_alloc(void **unused)
{
    (void)unused;
    inject("alloc", 5); /* weight, two inputs, state, arena, step words */
}

static void test_fault_launch(void **unused)
{
    (void)unused;
    inject("launch", 6);
}

static void test_fault_build(void **unused)
{
    (void)unused;
    inject("build", 2);
}

int main(void)
{
    struct talpa_device_caps *caps;
    size_t n;
    if (talpa_device_list(&caps, &n) != TALPA_OK) {
        fprintf(stderr, "skipped: %s\n", talpa_error_message());
        return EXIT_SKIP;
    }
    free(caps);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run),          cmocka_unit_test(test_misuse),      cmocka_unit_test(test_split_launches),
        cmocka_unit_test(test_split_weight), cmocka_unit_test(test_reuse),       cmocka_unit_test(test_fault_alloc),
        cmocka_unit_test(test_fault_launch), cmocka_unit_test(test_fault_build),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
