#include "graph_test.h"

static void test_single_assignment(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const talpa_value a = test_input(graph, "a", 4, 3), b = test_input(graph, "b", 4, 3);
    talpa_value last = test_add(graph, a, b);
    for (int i = 0; i < 1000; i++) last = test_add(graph, last, i % 2 ? a : b); /* the arrays grow on the way */
    assert_int_equal(tp_graph_n_nodes(graph), 1001);
    assert_int_equal(tp_graph_n_values(graph), 1003);
    int n_produced[1003] = {0};
    for (int32_t n = 0; n < tp_graph_n_nodes(graph); n++) {
        const struct tp_node *node = tp_graph_node_at(graph, n);
        assert_int_equal(node->n_out, 1);
        n_produced[node->out[0]]++;
        assert_int_equal(tp_graph_value(graph, node->out[0])->producer, n);
        for (int i = 0; i < node->n_in; i++) assert_true(node->in[i] < node->out[0]); /* only earlier values are read */
    }
    for (int v = 0; v < 1003; v++) assert_int_equal(n_produced[v], v >= 2);
    assert_ok(tp_graph_verify(graph));
    tp_graph_free(graph);
}

static void test_names(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const talpa_value a = test_input(graph, "a", 4, 3);
    assert_int_equal(test_input(graph, "a", 4, 3), a); /* asking again gives the same value */
    talpa_value other = 77;
    assert_refused(tp_graph_input(graph, &other, "a", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, 4, 4)), TALPA_E_INTERNAL, "'a'");
    assert_refused(tp_graph_weight(graph, &other, "a", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, 4, 3)), TALPA_E_INTERNAL, "'a'");
    assert_refused(tp_graph_input(graph, &other, "empty", tp_type_2d(TALPA_F32, TP_STEP_NONE, 0, 3)), TALPA_E_ARGUMENT, "'empty'");
    assert_int_equal(other, 77);
    assert_int_equal(tp_graph_find(graph, "empty"), TP_NONE);

    const talpa_value sum = test_add(graph, a, a);
    char name[] = "sum";
    assert_ok(tp_graph_name(graph, sum, name));
    name[0] = 'x'; /* names are copied */
    assert_int_equal(tp_graph_find(graph, "sum"), sum);
    assert_string_equal(tp_graph_value(graph, sum)->name, "sum");
    assert_refused(tp_graph_name(graph, a, "sum"), TALPA_E_INTERNAL, "'sum'");
    assert_int_equal(tp_graph_find(graph, "nobody"), TP_NONE);
    tp_graph_free(graph);
}

static void test_type_errors(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const talpa_value a = test_input(graph, "a", 4, 3), b = test_input(graph, "b", 4, 5);
    const int32_t n_values = tp_graph_n_values(graph), n_nodes = tp_graph_n_nodes(graph);
    talpa_value out = 77;
    tp_graph_set_scope(graph, "layers.3.q_proj");
    assert_refused(talpa_add(&out, graph, a, b), TALPA_E_ARGUMENT, "layers.3.q_proj", "add", "operand 1 (b)", "f32 [4, 5]");
    assert_refused(talpa_matmul(&out, graph, a, b, TALPA_NONE, false, false), TALPA_E_ARGUMENT, "matmul", "operand 1");
    assert_refused(talpa_add(&out, graph, a, TALPA_NONE), TALPA_E_ARGUMENT, "add", "missing");
    assert_refused(talpa_add(&out, graph, a, 1000), TALPA_E_ARGUMENT, "operand 1", "no value of this graph");
    talpa_value counts;
    assert_ok(tp_graph_input(graph, &counts, "counts", tp_type_2d(TALPA_I32, TP_STEP_N_TOKENS, 4, 3)));
    assert_refused(talpa_add(&out, graph, a, counts), TALPA_E_ARGUMENT, "i32", "expected f32");
    assert_refused(talpa_accumulate(&out, graph, a, a), TALPA_E_ARGUMENT, "accumulate", "state");
    assert_int_equal(out, 77);
    assert_int_equal(tp_graph_n_values(graph), n_values + 1);
    assert_int_equal(tp_graph_n_nodes(graph), n_nodes);
    tp_graph_free(graph);
}

static void test_states(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    talpa_value state, x, next, sum;
    const struct tp_type type = tp_type_1d(TALPA_F32, TP_STEP_NONE, 512);
    assert_ok(tp_graph_state(graph, &state, "total", type));
    assert_ok(tp_graph_input(graph, &x, "x", type));
    sum = test_add(graph, state, x); /* a read before the update */
    assert_ok(talpa_accumulate(&next, graph, state, sum));
    assert_int_equal(tp_graph_value(graph, next)->kind, TP_STATE);
    assert_int_equal(tp_graph_value(graph, next)->version, 1);
    assert_int_equal(tp_graph_value(graph, next)->base, state);
    assert_int_equal(tp_graph_find(graph, "total"), next);
    talpa_value again;
    assert_ok(tp_graph_state(graph, &again, "total", type));
    assert_int_equal(again, next);
    test_add(graph, next, x);
    assert_ok(tp_graph_verify(graph));

    test_add(graph, state, x); /* version 0 is gone by now */
    assert_refused(tp_graph_verify(graph), TALPA_E_INTERNAL, "add", "version 0", "'total'", "version 1");
    tp_graph_free(graph);
}

static void test_stale_view(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    talpa_value bank, x, view, next, y;
    assert_ok(tp_graph_state(graph, &bank, "bank", tp_type_1d(TALPA_F32, TP_STEP_NONE, 512)));
    assert_ok(tp_graph_input(graph, &x, "x", tp_type_1d(TALPA_F32, TP_STEP_NONE, 256)));
    assert_ok(tp_graph_input(graph, &y, "y", tp_type_1d(TALPA_F32, TP_STEP_NONE, 512)));
    assert_ok(talpa_slice(&view, graph, bank, 256, (struct talpa_shape){.rank = 1, .dim = {256}}));
    test_add(graph, view, x);
    assert_ok(talpa_accumulate(&next, graph, bank, y));
    assert_ok(tp_graph_verify(graph));
    test_add(graph, view, x); /* the view was made before the update and is read after it */
    assert_refused(tp_graph_verify(graph), TALPA_E_INTERNAL, "'bank'");
    tp_graph_free(graph);
}

static void test_phases(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    talpa_value state, next;
    const talpa_value x = test_input(graph, "x", 4, 3), sum = test_add(graph, x, x);
    assert_ok(tp_graph_state(graph, &state, "total", *tp_graph_type(graph, x)));
    assert_ok(talpa_accumulate(&next, graph, state, sum));
    tp_graph_set_phase(graph, TP_PHASE_UPDATE);
    test_add(graph, next, x); /* states and inputs cross phases */
    assert_ok(tp_graph_verify(graph));
    test_add(graph, next, sum);
    assert_refused(tp_graph_verify(graph), TALPA_E_INTERNAL, "phase");
    tp_graph_free(graph);
}

/* d(a*a*...)/da through values used several times: contributions are added, constants get nothing. */
static void test_autodiff_shape(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const talpa_value a = test_input(graph, "a", 4, 3), b = test_input(graph, "b", 4, 3), seed = test_input(graph, "seed", 4, 3);
    const talpa_value sum = test_add(graph, test_add(graph, a, a), a), unrelated = test_add(graph, b, b);
    talpa_value grads[2];
    const int32_t n_forward = tp_graph_n_nodes(graph);
    assert_ok(tp_autodiff(graph, &sum, &seed, 1, (const talpa_value[]){a, b}, 2, grads));
    assert_int_not_equal(grads[0], TP_NONE);
    assert_int_equal(grads[1], TP_NONE);
    assert_int_equal(tp_graph_n_nodes(graph), n_forward + 2); /* 3 seeds need two additions */
    for (int32_t n = 0; n < tp_graph_n_nodes(graph); n++) assert_int_equal(tp_graph_node_at(graph, n)->is_backward, n >= n_forward);
    talpa_value state, next;
    assert_ok(tp_graph_state(graph, &state, "total", *tp_graph_type(graph, a)));
    assert_ok(talpa_accumulate(&next, graph, state, unrelated));
    assert_refused(tp_autodiff(graph, &next, &seed, 1, &b, 1, grads), TALPA_E_ARGUMENT, "accumulate", "no gradient");
    tp_graph_free(graph);
}

/* Three terms of one gradient: a product takes the sum so far as its c. The seed, which no node of the rule made, needs an addition. */
static void test_autodiff_addend(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const talpa_value x = test_input(graph, "x", 4, 3);
    talpa_value weight[2], y, z, sum, grads[1];
    assert_ok(tp_graph_weight(graph, &weight[0], "w0", tp_type_2d(TALPA_F32, TP_STEP_NONE, 3, 3)));
    assert_ok(tp_graph_weight(graph, &weight[1], "w1", tp_type_2d(TALPA_F32, TP_STEP_NONE, 3, 3)));
    assert_ok(talpa_matmul(&y, graph, x, weight[0], x, false, true));
    assert_ok(talpa_matmul(&z, graph, x, weight[1], TP_NONE, false, true));
    sum = test_add(graph, y, z);
    const talpa_value seed = test_input(graph, "seed", 4, 3);
    const int32_t n_forward = tp_graph_n_nodes(graph);
    assert_ok(tp_autodiff(graph, &sum, &seed, 1, &x, 1, grads));
    int n_added = 0, n_products = 0, n_given = 0;
    for (int32_t n = n_forward; n < tp_graph_n_nodes(graph); n++) {
        const struct tp_node *node = tp_graph_node_at(graph, n);
        const bool is_product = !strcmp(node->op->name, "matmul");
        n_added += !strcmp(node->op->name, "add");
        n_products += is_product;
        n_given += is_product && node->in[2] != TP_NONE;
    }
    assert_int_equal(n_products, 2);
    assert_int_equal(n_given, 1);
    assert_int_equal(n_added, 1);
    assert_ok(tp_graph_verify(graph));
    tp_graph_free(graph);
}

static void test_print(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const talpa_value a = test_input(graph, "a", 4, 3);
    tp_graph_set_scope(graph, "layers.0");
    tp_graph_mark_output(graph, test_add(graph, a, a));
    char *text = test_graph_text(graph);
    assert_string_equal(text, "graph: 2 values, 1 nodes\n"
                              "input %0 'a': f32[4, 3] rows=n_tokens\n"
                              "phase batch:\n"
                              "  %1: f32[4, 3] rows=n_tokens output = add(%0, %0) @layers.0\n");
    free(text);
    tp_graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single_assignment), cmocka_unit_test(test_names),
        cmocka_unit_test(test_type_errors),       cmocka_unit_test(test_states),
        cmocka_unit_test(test_stale_view),        cmocka_unit_test(test_phases),
        cmocka_unit_test(test_autodiff_shape), cmocka_unit_test(test_autodiff_addend),    cmocka_unit_test(test_print),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
