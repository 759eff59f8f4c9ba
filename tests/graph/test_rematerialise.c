#include "graph_test.h"

#include "exec/plan.h"

enum { N_LAYERS = 6, T = 64, D = 256 };

/* Layers y = y + swiglu(norm(y), norm(y)) w, and the gradient with respect to the input; the norm and the product are cheap. */
struct model {
    struct talpa_graph *graph;
    talpa_value x, seed, out, grad;
};

static struct model build(void)
{
    struct model m;
    assert_ok(tp_graph_create(&m.graph));
    m.x = test_input(m.graph, "x", T, D);
    talpa_value y = m.x;
    for (int i = 0; i < N_LAYERS; i++) {
        char name[32];
        talpa_value norm_weight, weight, norm, h;
        snprintf(name, sizeof name, "layers.%d", i);
        tp_graph_set_scope(m.graph, name);
        snprintf(name, sizeof name, "norm.%d", i);
        assert_ok(tp_graph_weight(m.graph, &norm_weight, name, tp_type_1d(TALPA_F32, TP_STEP_NONE, D)));
        snprintf(name, sizeof name, "weight.%d", i);
        assert_ok(tp_graph_weight(m.graph, &weight, name, tp_type_2d(TALPA_F32, TP_STEP_NONE, D, D)));
        assert_ok(talpa_rms_norm(&norm, m.graph, y, norm_weight, 1e-5f));
        assert_ok(talpa_swiglu(&h, m.graph, norm, norm));
        assert_ok(talpa_matmul(&y, m.graph, h, weight, y, false, true));
    }
    m.out = y;
    tp_graph_set_scope(m.graph, "");
    tp_graph_mark_output(m.graph, m.out);
    m.seed = test_input(m.graph, "seed", T, D);
    assert_ok(tp_autodiff(m.graph, &m.out, &m.seed, 1, &m.x, 1, &m.grad));
    tp_graph_mark_output(m.graph, m.grad);
    return m;
}

/* The number per row that a norm makes besides its result is kept. */
static bool is_cheap_forward(const struct talpa_graph *graph, talpa_value value)
{
    const struct tp_value_info *info = tp_graph_value(graph, value);
    if (info->producer < 0 || info->is_output || info->type.shape.dim[1] == 1) return false;
    const struct tp_node *node = tp_graph_node_at(graph, info->producer);
    return !node->is_backward && (node->op->flags & TP_OP_CHEAP);
}

static int cheap_reads(const struct talpa_graph *graph)
{
    int n = 0;
    for (int32_t i = 0; i < tp_graph_n_nodes(graph); i++) {
        const struct tp_node *node = tp_graph_node_at(graph, i);
        for (int k = 0; k < node->n_in && node->is_backward; k++)
            if (node->in[k] != TP_NONE && is_cheap_forward(graph, node->in[k])) n++;
    }
    return n;
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

static void test_recomputes(void **unused)
{
    (void)unused;
    struct model m = build();
    assert_true(cheap_reads(m.graph) > 0);
    const size_t before = arena_bytes(m.graph);
    const int32_t n_nodes = tp_graph_n_nodes(m.graph);
    const talpa_value out = m.out, grad = m.grad;
    tp_graph_set_phase(m.graph, TP_PHASE_UPDATE); /* the state of the builder does not leak into the pass, nor is it changed by it */
    assert_ok(tp_graph_pass_rematerialise(m.graph));

    assert_int_equal(cheap_reads(m.graph), 0);
    assert_true(tp_graph_n_nodes(m.graph) > n_nodes);
    assert_true(tp_graph_value(m.graph, out)->is_output && tp_graph_value(m.graph, grad)->is_output);
    bool backward_seen = false;
    for (int32_t i = 0; i < tp_graph_n_nodes(m.graph); i++) {
        const struct tp_node *node = tp_graph_node_at(m.graph, i);
        assert_int_equal(node->phase, TP_PHASE_BATCH);
        backward_seen = backward_seen || node->is_backward;
        assert_int_equal(node->is_backward, backward_seen); /* the forward part stays as it was, in front */
        for (int o = 0; o < node->n_out; o++) assert_int_equal(tp_graph_value(m.graph, node->out[o])->producer, i);
        for (int k = 0; k < node->n_in; k++)
            if (node->in[k] != TP_NONE) assert_true(tp_graph_value(m.graph, node->in[k])->producer < i);
    }
    const size_t after = arena_bytes(m.graph);
    assert_true(after < before);
    talpa_value late = TP_NONE;
    assert_ok(talpa_add(&late, m.graph, m.x, m.x));
    assert_int_equal(tp_graph_node_at(m.graph, tp_graph_value(m.graph, late)->producer)->phase, TP_PHASE_UPDATE);
    tp_graph_free(m.graph);
}

/* The clones compute the same thing: op, attributes and scope are those of the original. */
static void test_clones(void **unused)
{
    (void)unused;
    struct model m = build();
    assert_ok(tp_graph_pass_rematerialise(m.graph));
    int n_clones = 0;
    for (int32_t i = 0; i < tp_graph_n_nodes(m.graph); i++) {
        const struct tp_node *clone = tp_graph_node_at(m.graph, i);
        if (!clone->is_backward || !(clone->op->flags & TP_OP_CHEAP)) continue;
        bool found = false;
        for (int32_t k = 0; k < i && !found; k++) {
            const struct tp_node *node = tp_graph_node_at(m.graph, k);
            found = !node->is_backward && node->op == clone->op && !strcmp(node->scope, clone->scope) &&
                    !memcmp(&node->attrs, &clone->attrs, sizeof node->attrs);
        }
        assert_true(found);
        n_clones++;
    }
    assert_true(n_clones >= N_LAYERS);
    assert_ok(tp_graph_pass_rematerialise(m.graph)); /* a second pass finds nothing to do */
    int n_again = 0;
    for (int32_t i = 0; i < tp_graph_n_nodes(m.graph); i++) {
        const struct tp_node *node = tp_graph_node_at(m.graph, i);
        if (node->is_backward && (node->op->flags & TP_OP_CHEAP)) n_again++;
    }
    assert_int_equal(n_again, n_clones);
    tp_graph_free(m.graph);
}

/* The gradient of a product with a frozen weight does not read the norm's result: nothing runs again for the number per row. */
static void test_by_product_is_kept(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    talpa_value norm_weight, weight, norm, y, grad;
    assert_ok(tp_graph_create(&graph));
    const talpa_value x = test_input(graph, "x", T, D), seed = test_input(graph, "seed", T, D);
    assert_ok(tp_graph_weight(graph, &norm_weight, "norm", tp_type_1d(TALPA_F32, TP_STEP_NONE, D)));
    assert_ok(tp_graph_weight(graph, &weight, "weight", tp_type_2d(TALPA_F32, TP_STEP_NONE, D, D)));
    assert_ok(talpa_rms_norm(&norm, graph, x, norm_weight, 1e-5f));
    assert_ok(talpa_matmul(&y, graph, norm, weight, TALPA_NONE, false, true));
    assert_ok(tp_autodiff(graph, &y, &seed, 1, &x, 1, &grad));
    tp_graph_mark_output(graph, grad);
    const int32_t n_nodes = tp_graph_n_nodes(graph);
    assert_ok(tp_graph_pass_rematerialise(graph));
    assert_int_equal(tp_graph_n_nodes(graph), n_nodes);
    tp_graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recomputes), cmocka_unit_test(test_clones), cmocka_unit_test(test_by_product_is_kept)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
