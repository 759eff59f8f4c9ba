/* Groups of nodes that a plan lowers as one, against the same nodes one by one: every value that the host can read has the same bits. */
#include "ops_test.h"

#include "base/rng.h"

enum { BOUND = 7, N = 5, N_SLOTS = 23, N_HEADS = 4, N_KV_HEADS = 2, MAX_WIDTH = N_HEADS * 64 };

struct layer {
    talpa_value q, k, v, positions, slots, spans, k_cache, v_cache;   /* leaves */
    talpa_value rotated_q, rotated_k, next_k, next_v, mixed;
};

enum also { NOTHING, KEYS_READ, KEYS_OUTPUT, NO_CACHE };

static void build(struct layer *l, struct talpa_graph *graph, int head_dim, bool table, enum also also)
{
    const struct tp_type rows = tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, BOUND);
    const struct tp_type wide = tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, N_HEADS * head_dim);
    const struct tp_type narrow = tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, N_KV_HEADS * head_dim);
    const struct tp_type cache = tp_type_2d(TALPA_F32, TP_STEP_NONE, N_SLOTS, N_KV_HEADS * head_dim);
    talpa_value frequencies, q, k, v;
    assert_ok(tp_graph_input(graph, &l->q, "q", wide));
    assert_ok(tp_graph_input(graph, &l->k, "k", narrow));
    assert_ok(tp_graph_input(graph, &l->v, "v", narrow));
    assert_ok(tp_graph_input(graph, &l->positions, "positions", rows));
    assert_ok(tp_graph_input(graph, &l->slots, "slots", rows));
    assert_ok(tp_graph_input(graph, &l->spans, "spans", tp_type_2d(TALPA_I32, TP_STEP_N_TOKENS, BOUND, 2)));
    assert_ok(tp_graph_state(graph, &l->k_cache, "k_cache", cache));
    assert_ok(tp_graph_state(graph, &l->v_cache, "v_cache", cache));
    assert_ok(tp_graph_input(graph, &frequencies, "frequencies", tp_type_2d(TALPA_I32, TP_STEP_NONE, head_dim / 2, 2)));
    /* Copies in the arena, so that the rotation can be in place. */
    assert_ok(talpa_scale(&q, graph, l->q, 0.5f));
    assert_ok(talpa_scale(&k, graph, l->k, 0.5f));
    assert_ok(talpa_scale(&v, graph, l->v, 0.5f));
    if (table) {
        assert_ok(talpa_rope_table(&l->rotated_q, graph, q, l->positions, frequencies, N_HEADS, head_dim));
        assert_ok(talpa_rope_table(&l->rotated_k, graph, k, l->positions, frequencies, N_KV_HEADS, head_dim));
    } else {
        assert_ok(talpa_rope(&l->rotated_q, graph, q, l->positions, N_HEADS, head_dim, 1e4f));
        assert_ok(talpa_rope(&l->rotated_k, graph, k, l->positions, N_KV_HEADS, head_dim, 1e4f));
    }
    tp_graph_mark_output(graph, l->rotated_q);
    if (also == NO_CACHE || also == KEYS_OUTPUT) tp_graph_mark_output(graph, l->rotated_k);
    if (also == NO_CACHE) return;
    assert_ok(talpa_cache_write(&l->next_k, graph, l->k_cache, l->rotated_k, l->slots));
    assert_ok(talpa_cache_write(&l->next_v, graph, l->v_cache, v, l->slots));
    assert_ok(talpa_cached_attention(&l->mixed, graph, l->rotated_q, l->next_k, l->next_v, l->spans, N_HEADS, N_KV_HEADS, head_dim, 0.125f));
    tp_graph_mark_output(graph, l->mixed);
    if (also != KEYS_READ) return;
    talpa_value sum;
    assert_ok(talpa_reduce_rows(&sum, graph, l->rotated_k));
    tp_graph_mark_output(graph, sum);
}

struct result {
    float q[BOUND * MAX_WIDTH], k[BOUND * MAX_WIDTH], mixed[BOUND * MAX_WIDTH], k_cache[N_SLOTS * MAX_WIDTH], v_cache[N_SLOTS * MAX_WIDTH];
    int n_launches, n_groups;
    char name[64];
};

static void run_layer(struct result *result, int head_dim, bool table, enum also also, bool no_fusion, const char *tier)
{
    static float values[N_SLOTS * MAX_WIDTH];
    const size_t row = (size_t)N_HEADS * (size_t)head_dim * sizeof(float), kv_row = row / N_HEADS * N_KV_HEADS;
    static const int32_t positions[N] = {0, 8000, 3, 17, 1}, slots[N] = {4, 22, 99, 0, 7}; /* one slot outside the cache */
    static const int32_t spans[2 * N] = {0, 5, 3, 23, 0, 1, 0, 23, 6, 9};
    int32_t frequencies[64];
    struct test_run run;
    struct layer l;
    struct tp_plan_options options;
    memset(result, 0, sizeof *result);
    test_run_open(&run);
    build(&l, run.graph, head_dim, table, also);
    tp_plan_options_default(&options);
    options.no_fusion = no_fusion;
    if (tier) snprintf(options.tier, sizeof options.tier, "%s", tier);
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, tp_device_caps(run.device), &options));
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    tp_rng_fill_splitmix(values, N_SLOTS * MAX_WIDTH, 3, 1, 1.0);
    assert_ok(tp_executor_write(run.executor, l.q, values, BOUND * row));
    assert_ok(tp_executor_write(run.executor, l.k, values + 100, BOUND * kv_row));
    assert_ok(tp_executor_write(run.executor, l.v, values + 50, BOUND * kv_row));
    assert_ok(tp_executor_write(run.executor, l.positions, positions, sizeof positions));
    for (int i = 0; i < head_dim / 2; i++) {
        frequencies[2 * i] = (int32_t)(0x28be60dbu >> i);
        frequencies[2 * i + 1] = i * 77777;
    }
    if (table) assert_ok(tp_executor_write(run.executor, tp_graph_find(run.graph, "frequencies"), frequencies, (size_t)head_dim * sizeof(int32_t)));
    if (also != NO_CACHE) {
        assert_ok(tp_executor_write(run.executor, l.slots, slots, sizeof slots));
        assert_ok(tp_executor_write(run.executor, l.spans, spans, sizeof spans));
        assert_ok(tp_executor_write(run.executor, l.k_cache, values, N_SLOTS * kv_row));
        assert_ok(tp_executor_write(run.executor, l.v_cache, values + 9, N_SLOTS * kv_row));
    }
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = N;
    assert_ok(tp_executor_step(run.executor, &step));
    assert_ok(tp_executor_poison(run.executor));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_finish(run.executor));
    assert_ok(tp_executor_read(run.executor, l.rotated_q, result->q, N * row));
    if (also == NO_CACHE || also == KEYS_OUTPUT) assert_ok(tp_executor_read(run.executor, l.rotated_k, result->k, N * kv_row));
    if (also != NO_CACHE) {
        assert_ok(tp_executor_read(run.executor, l.mixed, result->mixed, N * row));
        assert_ok(tp_executor_read(run.executor, l.k_cache, result->k_cache, N_SLOTS * kv_row));
        assert_ok(tp_executor_read(run.executor, l.v_cache, result->v_cache, N_SLOTS * kv_row));
    }
    result->n_launches = run.plan->phase[0].n;
    result->n_groups = run.plan->n_fused;
    if (run.plan->n_fused) snprintf(result->name, sizeof result->name, "%s", run.plan->fused[0]->rule->name);
    test_run_close(&run);
}

static void check_layer(int head_dim, bool table, enum also also, const char *name, int n_saved)
{
    static struct result fused, apart;
    static const char *const tiers[] = {NULL, "generic"};
    for (size_t t = 0; t < sizeof tiers / sizeof *tiers; t++) {
        run_layer(&fused, head_dim, table, also, false, tiers[t]);
        run_layer(&apart, head_dim, table, also, true, tiers[t]);
        assert_int_equal(apart.n_groups, 0);
        assert_int_equal(fused.n_groups, 1);
        assert_string_equal(fused.name, name);
        assert_int_equal(fused.n_launches, apart.n_launches - n_saved);
        assert_memory_equal(fused.q, apart.q, sizeof fused.q);
        assert_memory_equal(fused.k, apart.k, sizeof fused.k);
        assert_memory_equal(fused.mixed, apart.mixed, sizeof fused.mixed);
        assert_memory_equal(fused.k_cache, apart.k_cache, sizeof fused.k_cache);
        assert_memory_equal(fused.v_cache, apart.v_cache, sizeof fused.v_cache);
        assert_true(fused.q[0] != 0.0f); /* something was computed */
    }
}

static const char pair[] = "rope+rope", cached[] = "rope+rope+cache_write+cache_write";

static void test_rope_cache(void **unused)
{
    (void)unused;
    check_layer(64, false, NOTHING, cached, 3);
    check_layer(16, true, NOTHING, cached, 3);
    check_layer(20, false, NOTHING, cached, 3); /* the cpu tier has no kernel for this width */
}

static void test_rope_pair(void **unused)
{
    (void)unused;
    check_layer(64, false, NO_CACHE, pair, 1);
    check_layer(6, true, NO_CACHE, pair, 1);
}

/* Keys that somebody else needs as well have to be stored: only the rotations go together. */
static void test_keys_needed(void **unused)
{
    (void)unused;
    check_layer(32, false, KEYS_OUTPUT, pair, 1);
    check_layer(32, false, KEYS_READ, pair, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope_cache), cmocka_unit_test(test_rope_pair), cmocka_unit_test(test_keys_needed)};
    test_need_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
