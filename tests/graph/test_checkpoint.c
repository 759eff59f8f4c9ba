#include "graph_test.h"

#include "exec/plan.h"

enum { N_LAYERS = 12, T = 64, D = 256 };

/* Layers y = y + norm(swiglu(y w, y w)) w, a state that counts something in every layer, and the gradient of the input. */
struct model {
    struct talpa_graph *graph;
    talpa_value x, out, grad, boundary[N_LAYERS];
};

static struct model build(void)
{
    struct model m;
    talpa_value total;
    assert_ok(tp_graph_create(&m.graph));
    m.x = test_input(m.graph, "x", T, D);
    assert_ok(tp_graph_state(m.graph, &total, "total", tp_type_1d(TALPA_F32, TP_STEP_NONE, D)));
    talpa_value y = m.x;
    for (int i = 0; i < N_LAYERS; i++) {
        char name[32];
        talpa_value norm_weight, weight, h, sum;
        snprintf(name, sizeof name, "layers.%d", i);
        tp_graph_set_scope(m.graph, name);
        snprintf(name, sizeof name, "norm.%d", i);
        assert_ok(tp_graph_weight(m.graph, &norm_weight, name, tp_type_1d(TALPA_F32, TP_STEP_NONE, D)));
        snprintf(name, sizeof name, "weight.%d", i);
        assert_ok(tp_graph_weight(m.graph, &weight, name, tp_type_2d(TALPA_F32, TP_STEP_NONE, D, D)));
        assert_ok(talpa_matmul(&h, m.graph, y, weight, TALPA_NONE, false, true));
        assert_ok(talpa_swiglu(&h, m.graph, h, h));
        assert_ok(talpa_reduce_rows(&sum, m.graph, h));
        assert_ok(talpa_accumulate(&total, m.graph, total, sum));
        assert_ok(talpa_rms_norm(&h, m.graph, h, norm_weight, 1e-5f));
        assert_ok(talpa_matmul(&y, m.graph, h, weight, y, false, true));
        m.boundary[i] = y;
    }
    m.out = y;
    tp_graph_set_scope(m.graph, "");
    tp_graph_mark_output(m.graph, m.out);
    const talpa_value seed = test_input(m.graph, "seed", T, D);
    assert_ok(tp_autodiff(m.graph, &m.out, &seed, 1, &m.x, 1, &m.grad));
    tp_graph_mark_output(m.graph, m.grad);
    return m;
}

static size_t arena_bytes(const struct talpa_graph *graph)
{
    struct talpa_device_caps caps;
    struct tp_plan *plan;
    assert_ok(talpa_device_fake(&caps, "amd"));
    assert_ok(tp_graph_verify(graph));
    assert_ok(tp_plan_create(&plan, graph, &caps, &(struct tp_plan_options){.tier = "generic"}));
    const size_t n_bytes = plan->memory.arena_bytes;
    tp_plan_free(plan);
    return n_bytes;
}

static bool is_boundary(const struct model *m, talpa_value value)
{
    for (int i = 0; i < N_LAYERS; i++)
        if (m->boundary[i] == value) return true;
    return false;
}

static int count(const struct talpa_graph *graph, const char *op)
{
    int n = 0;
    for (int32_t i = 0; i < tp_graph_n_nodes(graph); i++) n += !strcmp(tp_graph_node_at(graph, i)->op->name, op);
    return n;
}

static void test_keeps_boundaries_only(void **state)
{
    (void)state;
    struct model plain = build(), m = build();
    assert_ok(tp_graph_pass_rematerialise(plain.graph));
    const size_t before = arena_bytes(plain.graph);
    assert_ok(tp_graph_pass_checkpoint(m.graph, m.boundary, N_LAYERS));
    const int32_t n_nodes = tp_graph_n_nodes(m.graph);
    bool backward_seen = false;
    for (int32_t i = 0; i < n_nodes; i++) {
        const struct tp_node *node = tp_graph_node_at(m.graph, i);
        backward_seen = backward_seen || node->is_backward;
        assert_int_equal(node->is_backward, backward_seen); /* the forward part stays as it was, in front */
        for (int o = 0; o < node->n_out; o++) assert_int_equal(tp_graph_value(m.graph, node->out[o])->producer, i);
        for (int k = 0; k < node->n_in; k++) {
            if (node->in[k] == TP_NONE) continue;
            const struct tp_value_info *info = tp_graph_value(m.graph, node->in[k]);
            assert_true(info->producer < i);
            if (!node->is_backward || info->kind != TP_TEMP || tp_graph_node_at(m.graph, info->producer)->is_backward) continue;
            assert_true(is_boundary(&m, node->in[k]));
        }
    }
    /* Counting runs once, and the sums that only it reads are not made again. */
    assert_int_equal(count(m.graph, "accumulate"), N_LAYERS);
    assert_int_equal(count(m.graph, "reduce_rows"), N_LAYERS);
    assert_ok(tp_graph_pass_rematerialise(m.graph));
    const size_t after = arena_bytes(m.graph), value = (size_t)T * D * sizeof(float);
    /* Kept: one value per layer. Alive beside them: what one layer takes, at most a dozen values. */
    assert_true(after < before && after <= (N_LAYERS + 12) * value);
    tp_graph_free(m.graph);
    tp_graph_free(plain.graph);
}

static void test_same_print(void **state)
{
    (void)state;
    struct model a = build(), b = build();
    talpa_value reversed[N_LAYERS];
    for (int i = 0; i < N_LAYERS; i++) reversed[i] = b.boundary[N_LAYERS - 1 - i];
    assert_ok(tp_graph_pass_checkpoint(a.graph, a.boundary, N_LAYERS));
    assert_ok(tp_graph_pass_checkpoint(b.graph, reversed, N_LAYERS));
    char *x = test_graph_text(a.graph), *y = test_graph_text(b.graph);
    assert_string_equal(x, y);
    free(x);
    free(y);
    tp_graph_free(a.graph);
    tp_graph_free(b.graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_keeps_boundaries_only), cmocka_unit_test(test_same_print)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
