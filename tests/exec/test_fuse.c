/* Which groups a plan takes, where they run, and what is stored; planned for invented devices, none is touched. */
#include "exec_test.h"

enum { ROWS = 8, N_SLOTS = 40, D = 64 };

struct leaves {
    talpa_value q, k, v, positions, slots, spans, k_cache, v_cache;
};

static struct talpa_graph *start(struct leaves *l)
{
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const struct tp_type rows = tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, ROWS), cache = tp_type_2d(TALPA_F32, TP_STEP_NONE, N_SLOTS, D);
    l->q = test_input(graph, "q", ROWS, D);
    l->k = test_input(graph, "k", ROWS, D);
    l->v = test_input(graph, "v", ROWS, D);
    assert_ok(tp_graph_input(graph, &l->positions, "positions", rows));
    assert_ok(tp_graph_input(graph, &l->slots, "slots", rows));
    assert_ok(tp_graph_input(graph, &l->spans, "spans", tp_type_2d(TALPA_I32, TP_STEP_N_TOKENS, ROWS, 2)));
    assert_ok(tp_graph_state(graph, &l->k_cache, "k_cache", cache));
    assert_ok(tp_graph_state(graph, &l->v_cache, "v_cache", cache));
    return graph;
}

static talpa_value rotate(struct talpa_graph *graph, const struct leaves *l, talpa_value x)
{
    talpa_value y;
    assert_ok(talpa_rope(&y, graph, x, l->positions, 1, D, 1e4f));
    return y;
}

static talpa_value store(struct talpa_graph *graph, const struct leaves *l, talpa_value cache, talpa_value x)
{
    talpa_value next;
    assert_ok(talpa_cache_write(&next, graph, cache, x, l->slots));
    return next;
}

static talpa_value attend(struct talpa_graph *graph, const struct leaves *l, talpa_value q, talpa_value k, talpa_value v)
{
    talpa_value out;
    assert_ok(talpa_cached_attention(&out, graph, q, k, v, l->spans, 1, 1, D, 0.125f));
    tp_graph_mark_output(graph, out);
    return out;
}

static struct tp_plan *make(const struct talpa_graph *graph, bool no_fusion)
{
    struct talpa_device_caps caps;
    struct tp_plan *plan = NULL;
    assert_ok(talpa_device_fake(&caps, "cpu"));
    assert_ok(tp_graph_verify(graph));
    assert_ok(tp_plan_create(&plan, graph, &caps, &(struct tp_plan_options){.no_fusion = no_fusion}));
    return plan;
}

static void expect_kernels(const struct tp_plan *plan, const char *const *names, int n)
{
    assert_int_equal(plan->phase[0].n, n);
    for (int i = 0; i < n; i++) assert_string_equal(plan->phase[0].item[i].kernel, names[i]);
}
#define EXPECT_KERNELS(plan, ...)                                                                                                          \
    expect_kernels(plan, (const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

/* Any two stored values that are in use at the same position lie apart, unless one was computed in place of the other. */
static void check_storage(const struct tp_plan *plan)
{
    const struct talpa_graph *graph = plan->graph;
    for (talpa_value a = 0; a < tp_graph_n_values(graph); a++)
        for (talpa_value b = 0; b < tp_graph_n_values(graph); b++) {
            const struct tp_location *la = &plan->row[a], *lb = &plan->row[b];
            if (a == b || la->place != TP_PLACE_ARENA || lb->place != TP_PLACE_ARENA || la->segment != lb->segment) continue;
            if (la->offset_bytes + la->n_bytes <= lb->offset_bytes || lb->offset_bytes + lb->n_bytes <= la->offset_bytes) continue;
            const int32_t made = tp_plan_position(plan, tp_graph_value(graph, b)->producer);
            if (tp_plan_position(plan, tp_graph_value(graph, a)->producer) > made) continue;
            assert_false(tp_graph_value(graph, a)->is_output);
            for (int32_t n = 0; n < tp_graph_n_nodes(graph); n++) {
                const struct tp_node *node = tp_graph_node_at(graph, n);
                for (int i = 0; i < node->n_in; i++) {
                    if (node->in[i] != a) continue;
                    assert_true(tp_plan_position(plan, n) <= made);
                    if (tp_plan_position(plan, n) < made) continue;
                    const struct tp_value_info *out = tp_graph_value(graph, b); /* read where b is made: b is computed over a, by that node */
                    assert_int_equal(out->producer, n);
                    assert_int_equal(node->op->inplace[out->output], i + 1);
                }
            }
        }
}

static void test_one_position(void **unused)
{
    (void)unused;
    struct leaves l;
    struct talpa_graph *graph = start(&l);
    const talpa_value q = rotate(graph, &l, test_add(graph, l.q, l.q)), k = rotate(graph, &l, test_add(graph, l.k, l.k));
    const talpa_value next_k = store(graph, &l, l.k_cache, k), next_v = store(graph, &l, l.v_cache, test_add(graph, l.v, l.v));
    attend(graph, &l, q, next_k, next_v);
    struct tp_plan *plan = make(graph, false), *apart = make(graph, true);
    EXPECT_KERNELS(plan, "add", "add", "add", "rope_cache", "cached_attention");
    EXPECT_KERNELS(apart, "add", "rope", "add", "rope", "cache_write", "add", "cache_write", "cached_attention");
    assert_int_equal(plan->n_fused, 1);
    assert_true(plan->inner[k]);
    assert_int_equal(plan->row[k].place, TP_PLACE_NONE); /* never stored */
    assert_int_equal(plan->row[next_k].place, TP_PLACE_STORE);
    assert_int_equal(plan->row[next_k].owner, l.k_cache);
    const int32_t at = tp_plan_position(plan, tp_graph_value(graph, q)->producer);
    assert_int_equal(tp_plan_position(plan, tp_graph_value(graph, k)->producer), at);
    assert_int_equal(tp_plan_position(plan, tp_graph_value(graph, next_v)->producer), at);
    assert_true(at > tp_graph_value(graph, next_k)->producer); /* after the addition that it reads */
    check_storage(plan);
    check_storage(apart);
    assert_true(tp_plan_digest(plan) != tp_plan_digest(apart));
    tp_plan_free(plan);
    tp_plan_free(apart);
    tp_graph_free(graph);
}

static void test_needed_values(void **unused)
{
    (void)unused;
    for (int how = 0; how < 2; how++) {
        struct leaves l;
        struct talpa_graph *graph = start(&l);
        const talpa_value q = rotate(graph, &l, l.q), k = rotate(graph, &l, l.k);
        const talpa_value next_k = store(graph, &l, l.k_cache, k), next_v = store(graph, &l, l.v_cache, l.v);
        attend(graph, &l, q, next_k, next_v);
        if (how == 0) tp_graph_mark_output(graph, k);
        else tp_graph_mark_output(graph, test_add(graph, k, k));
        struct tp_plan *plan = make(graph, false);
        assert_string_equal(plan->phase[0].item[0].kernel, "rope_pair");
        assert_string_equal(plan->phase[0].item[1].kernel, "cache_write");
        assert_int_equal(plan->row[k].place, TP_PLACE_ARENA);
        check_storage(plan);
        tp_plan_free(plan);
        tp_graph_free(graph);
    }
}

/* One rotation needs what is made from the other: they cannot run together. */
static void test_dependent(void **unused)
{
    (void)unused;
    struct leaves l;
    struct talpa_graph *graph = start(&l);
    const talpa_value q = rotate(graph, &l, l.q), k = rotate(graph, &l, test_add(graph, q, l.k));
    tp_graph_mark_output(graph, k);
    tp_graph_mark_output(graph, q);
    struct tp_plan *plan = make(graph, false);
    EXPECT_KERNELS(plan, "rope", "add", "rope");
    tp_plan_free(plan);
    tp_graph_free(graph);
}

/* A reader of the cache as it was before stays before the write, and one that needs the rotated queries at once keeps the writes apart. */
static void test_states(void **unused)
{
    (void)unused;
    for (int how = 0; how < 2; how++) {
        struct leaves l;
        struct talpa_graph *graph = start(&l);
        const talpa_value q = rotate(graph, &l, l.q), k = rotate(graph, &l, l.k);
        attend(graph, &l, how ? q : l.q, l.k_cache, l.v_cache);
        const talpa_value next_k = store(graph, &l, l.k_cache, k), next_v = store(graph, &l, l.v_cache, l.v);
        attend(graph, &l, q, next_k, next_v);
        struct tp_plan *plan = make(graph, false);
        if (how) EXPECT_KERNELS(plan, "rope_pair", "cached_attention", "cache_write", "cache_write", "cached_attention");
        else EXPECT_KERNELS(plan, "cached_attention", "rope_cache", "cached_attention");
        check_storage(plan);
        tp_plan_free(plan);
        tp_graph_free(graph);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_position), cmocka_unit_test(test_needed_values),
                                       cmocka_unit_test(test_dependent), cmocka_unit_test(test_states)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
