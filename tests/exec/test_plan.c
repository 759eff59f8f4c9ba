#include "exec_test.h"

static struct talpa_device_caps fake(const char *name)
{
    struct talpa_device_caps caps;
    assert_ok(talpa_device_fake(&caps, name));
    return caps;
}

static struct tp_plan *make(const struct talpa_graph *graph, const char *device, const char *tier)
{
    const struct talpa_device_caps caps = fake(device);
    struct tp_plan_options options = {.dispatch = TP_DISPATCH_DENSE};
    struct tp_plan *plan = NULL;
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    assert_ok(tp_graph_verify(graph));
    assert_ok(tp_plan_create(&plan, graph, &caps, &options));
    return plan;
}

static char *text_of(const struct tp_plan *plan)
{
    char *text = NULL;
    size_t n = 0;
    FILE *file = open_memstream(&text, &n);
    assert_non_null(file);
    tp_plan_print(plan, file);
    assert_int_equal(fclose(file), 0);
    return text;
}

/* ---- lifetimes, by brute force over all pairs ---- */

static bool in_place_pair(const struct talpa_graph *graph, talpa_value in, talpa_value out)
{
    const struct tp_value_info *info = tp_graph_value(graph, out);
    const struct tp_node *node = tp_graph_node_at(graph, info->producer);
    return node->op->inplace[info->output] && node->in[node->op->inplace[info->output] - 1] == in;
}

static int check_overlaps(const struct tp_plan *plan)
{
    const struct talpa_graph *graph = plan->graph;
    const int32_t n_values = tp_graph_n_values(graph);
    int32_t *last = calloc((size_t)n_values, sizeof *last);
    int n_shared = 0;
    for (int32_t v = 0; v < n_values; v++) last[v] = tp_graph_value(graph, v)->producer;
    for (int32_t n = 0; n < tp_graph_n_nodes(graph); n++) {
        const struct tp_node *node = tp_graph_node_at(graph, n);
        for (int i = 0; i < node->n_in; i++) last[node->in[i]] = n;
    }
    for (int32_t v = 0; v < n_values; v++)
        if (tp_graph_value(graph, v)->is_output) last[v] = INT32_MAX;
    for (int32_t a = 0; a < n_values; a++) {
        const struct tp_location *la = &plan->row[a];
        const int32_t first_a = tp_graph_value(graph, a)->producer;
        if (first_a < 0) continue;
        assert_int_equal(la->place, TP_PLACE_ARENA);
        assert_int_equal(la->offset_bytes % 1024, 0);
        assert_true(la->offset_bytes + la->n_bytes <= plan->segment_bytes[la->segment]);
        for (int32_t b = a + 1; b < n_values; b++) {
            const struct tp_location *lb = &plan->row[b];
            const int32_t first_b = tp_graph_value(graph, b)->producer;
            if (first_b < 0 || la->segment != lb->segment) continue;
            if (la->offset_bytes + la->n_bytes <= lb->offset_bytes || lb->offset_bytes + lb->n_bytes <= la->offset_bytes) continue;
            n_shared++;
            if (last[a] < first_b || last[b] < first_a) continue;
            if (last[a] == first_b && la->offset_bytes == lb->offset_bytes && in_place_pair(graph, a, b)) continue;
            fail_msg("values %d (nodes %d to %d) and %d (nodes %d to %d) share storage", a, first_a, last[a], b, first_b, last[b]);
        }
    }
    free(last);
    return n_shared;
}

static void test_lifetimes(void **unused)
{
    (void)unused;
    const int64_t columns[] = {8, 100, 257};
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct talpa_graph *graph = test_random_graph(seed, 150, 16, columns, 3);
        struct tp_plan *plan = make(graph, seed % 2 ? "amd" : "cpu", "");
        assert_true(check_overlaps(plan) > 0); /* storage is shared at all */
        size_t all = 0;
        for (int32_t v = 0; v < tp_graph_n_values(graph); v++)
            if (tp_graph_value(graph, v)->producer >= 0) all += (plan->row[v].n_bytes + 1023) / 1024 * 1024;
        assert_true(plan->memory.arena_bytes < all);
        tp_plan_free(plan);
        tp_graph_free(graph);
    }
}

static void test_segments(void **unused)
{
    (void)unused;
    const int64_t columns[] = {64, 256};
    struct talpa_graph *graph = test_random_graph(5, 200, 16, columns, 2);
    struct talpa_device_caps caps = fake("amd");
    caps.max_alloc_bytes = 40 * 1024;
    struct tp_plan *plan;
    assert_ok(tp_plan_create(&plan, graph, &caps, &(struct tp_plan_options){.guard_bytes = 0}));
    assert_true(plan->n_segments > 1);
    for (int s = 0; s < plan->n_segments; s++) assert_true(plan->segment_bytes[s] <= caps.max_alloc_bytes);
    check_overlaps(plan);
    tp_plan_free(plan);

    assert_ok(tp_plan_create(&plan, graph, &caps, &(struct tp_plan_options){.guard_bytes = 1024})); /* nothing is shared then */
    for (int32_t a = 0; a < tp_graph_n_values(graph); a++)
        for (int32_t b = a + 1; b < tp_graph_n_values(graph); b++) {
            const struct tp_location *la = &plan->row[a], *lb = &plan->row[b];
            if (la->place != TP_PLACE_ARENA || lb->place != TP_PLACE_ARENA || la->segment != lb->segment) continue;
            if (la->offset_bytes == lb->offset_bytes && in_place_pair(graph, a, b)) continue;
            const size_t gap_a = la->offset_bytes + la->n_bytes + 1024, gap_b = lb->offset_bytes + lb->n_bytes + 1024;
            if (la->offset_bytes == lb->offset_bytes) continue; /* links of one chain computed in place */
            assert_true(gap_a <= lb->offset_bytes || gap_b <= la->offset_bytes);
        }
    tp_plan_free(plan);
    tp_graph_free(graph);
}

static void test_in_place(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    assert_ok(tp_graph_create(&graph));
    const talpa_value x = test_input(graph, "x", 8, 64);
    const talpa_value a = test_add(graph, x, x); /* an input of the graph is never overwritten */
    const talpa_value b = test_add(graph, a, x); /* over a */
    const talpa_value c = test_add(graph, b, b); /* not over b, which is both operands */
    const talpa_value d = test_add(graph, c, x); /* c is read again below */
    const talpa_value e = test_add(graph, d, c); /* over d */
    tp_graph_mark_output(graph, e);
    const talpa_value f = test_add(graph, e, x); /* e is an output and stays */
    tp_graph_mark_output(graph, f);
    struct tp_plan *plan = make(graph, "amd", "");
    const struct tp_location *row = plan->row;
    assert_int_equal(row[x].place, TP_PLACE_INPUT);
    assert_int_equal(row[b].offset_bytes, row[a].offset_bytes);
    assert_int_not_equal(row[c].offset_bytes, row[b].offset_bytes);
    assert_int_not_equal(row[d].offset_bytes, row[c].offset_bytes);
    assert_int_equal(row[e].offset_bytes, row[d].offset_bytes);
    assert_int_not_equal(row[f].offset_bytes, row[e].offset_bytes);
    check_overlaps(plan);
    tp_plan_free(plan);
    tp_graph_free(graph);
}

static int n_copies(const struct tp_plan *plan)
{
    int n = 0;
    for (int i = 0; i < plan->phase[0].n; i++) n += plan->phase[0].item[i].is_copy;
    return n;
}

static void test_concat(void **unused)
{
    (void)unused;
    struct talpa_graph *graph;
    talpa_value x, y, parts[3], bank;
    assert_ok(tp_graph_create(&graph));
    assert_ok(tp_graph_input(graph, &x, "x", tp_type_1d(TALPA_F32, TP_STEP_NONE, 300)));
    assert_ok(tp_graph_input(graph, &y, "y", tp_type_1d(TALPA_F32, TP_STEP_NONE, 100)));
    parts[0] = test_add(graph, x, x);
    parts[1] = test_add(graph, y, y);
    parts[2] = test_add(graph, x, parts[0]);
    assert_ok(talpa_concat(&bank, graph, parts, 3));
    tp_graph_mark_output(graph, bank);
    struct tp_plan *plan = make(graph, "cpu", "");
    assert_int_equal(n_copies(plan), 0);
    const size_t start = plan->row[bank].offset_bytes;
    assert_int_equal(plan->row[parts[0]].offset_bytes, start);
    assert_int_equal(plan->row[parts[1]].offset_bytes, start + 512 * 4);
    assert_int_equal(plan->row[parts[2]].offset_bytes, start + 768 * 4);
    tp_plan_free(plan);
    tp_graph_free(graph);

    /* An input of the graph and a value given twice have to be copied. */
    assert_ok(tp_graph_create(&graph));
    assert_ok(tp_graph_input(graph, &x, "x", tp_type_1d(TALPA_F32, TP_STEP_NONE, 300)));
    parts[0] = test_add(graph, x, x);
    assert_ok(talpa_concat(&bank, graph, (const talpa_value[]){parts[0], x, parts[0]}, 3));
    tp_graph_mark_output(graph, bank);
    plan = make(graph, "cpu", "");
    assert_int_equal(n_copies(plan), 2);
    tp_plan_free(plan);
    tp_graph_free(graph);
}

/* ---- tiers and devices ---- */

static struct talpa_graph *product_graph(int64_t n_rows, int64_t n_out, int64_t n_in)
{
    struct talpa_graph *graph;
    talpa_value weight, y;
    assert_ok(tp_graph_create(&graph));
    const talpa_value x = test_input(graph, "x", n_rows, n_in);
    assert_ok(tp_graph_weight(graph, &weight, "weight", tp_type_2d(TALPA_F32, TP_STEP_NONE, n_out, n_in)));
    tp_graph_set_scope(graph, "head");
    assert_ok(talpa_matmul(&y, graph, x, weight, TALPA_NONE, false, true));
    tp_graph_mark_output(graph, y);
    return graph;
}

static void test_tiers(void **unused)
{
    (void)unused;
    struct talpa_graph *graph = product_graph(64, 128, 96);
    static const struct {
        const char *device, *tier, *chosen;
    } expected[] = {
        {"cpu", "", "cpu"},        {"cpu", "generic", "generic"}, {"cpu", "cpu", "cpu"},         {"amd", "", "generic"},
        {"amd", "cpu", "generic"}, {"amd", "clblast", "clblast"}, {"cpu", "clblast", "clblast"}, {"intel", "generic", "generic"}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        struct tp_plan *plan = make(graph, expected[i].device, expected[i].tier);
        assert_string_equal(plan->variant[0]->tier, expected[i].chosen);
        for (int k = 0; k < plan->phase[0].n; k++)
            if (!plan->phase[0].item[k].is_blas)
                assert_int_equal(strncmp(plan->phase[0].item[k].source, expected[i].chosen, strlen(expected[i].chosen)), 0);
        tp_plan_free(plan);
    }
    const struct talpa_device_caps caps = fake("amd");
    struct tp_plan *plan = NULL;
    assert_refused(tp_plan_create(&plan, graph, &caps, &(struct tp_plan_options){.tier = "cuda"}), TALPA_E_ARGUMENT, "TALPA_TIER", "cuda",
                   "generic");
    assert_null(plan);
    assert_int_equal(setenv("TALPA_TIER", "generic", 1), 0);
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    assert_string_equal(options.tier, "generic");
    unsetenv("TALPA_TIER");
    tp_plan_options_default(&options);
    assert_string_equal(options.tier, "");
    tp_graph_free(graph);
}

static void test_devices(void **unused)
{
    (void)unused;
    struct talpa_graph *graph = product_graph(64, 128, 96);
    char *before = test_graph_text(graph);
    struct tp_plan *plans[2] = {make(graph, "amd", ""), make(graph, "cpu", "")}, *again = make(graph, "amd", "");
    char *after = test_graph_text(graph), *text[2] = {text_of(plans[0]), text_of(plans[1])};
    assert_string_equal(before, after); /* the graph knows no device */
    assert_string_not_equal(text[0], text[1]);
    assert_non_null(strstr(text[0], "generic/"));
    assert_non_null(strstr(text[1], "cpu/"));
    assert_non_null(strstr(text[0], "@head"));
    assert_true(tp_plan_digest(plans[0]) == tp_plan_digest(again));
    assert_true(tp_plan_digest(plans[0]) != tp_plan_digest(plans[1]));
    assert_int_equal(plans[1]->memory.total_bytes, plans[1]->memory.weight_bytes + plans[1]->memory.packed_bytes +
                                                       plans[1]->memory.state_bytes + plans[1]->memory.input_bytes +
                                                       plans[1]->memory.arena_bytes);
    assert_int_equal(plans[0]->memory.weight_bytes, 128 * 96 * 4);
    assert_int_equal(plans[0]->memory.input_bytes, 64 * 96 * 4);
    for (int i = 0; i < 2; i++) {
        free(text[i]);
        tp_plan_free(plans[i]);
    }
    tp_plan_free(again);
    free(before);
    free(after);
    tp_graph_free(graph);
}

/* ---- limits ---- */

static void test_split_weight(void **unused)
{
    (void)unused;
    struct talpa_graph *graph = product_graph(4, 512, 256);
    struct talpa_device_caps caps = fake("amd");
    caps.max_alloc_bytes = 100 * 1024; /* 100 rows of 1 KiB: 6 parts */
    struct tp_plan *plan;
    assert_ok(tp_plan_create(&plan, graph, &caps, &(struct tp_plan_options){.tier = "generic"}));
    bool seen[6] = {false};
    for (int i = 0; i < plan->phase[0].n; i++) {
        const struct tp_launch *launch = &plan->phase[0].item[i];
        for (int a = 0; a < launch->n_args; a++) {
            if (launch->args[a].kind != TP_ARG_VALUE || tp_graph_value(graph, launch->args[a].value)->kind != TP_WEIGHT) continue;
            assert_in_range(launch->args[a].part, 0, 5);
            seen[launch->args[a].part] = true;
        }
    }
    for (int p = 0; p < 6; p++) assert_true(seen[p]);
    assert_true(plan->memory.largest_bytes <= caps.max_alloc_bytes);
    tp_plan_free(plan);
    tp_graph_free(graph);
}

static void test_too_large(void **unused)
{
    (void)unused;
    struct talpa_device_caps caps = fake("amd");
    const struct tp_plan_options options = {.tier = "generic"};
    struct tp_plan *plan = NULL;
    caps.max_alloc_bytes = 64 * 1024;
    struct talpa_graph *graph = product_graph(64, 512, 16); /* the product has 128 KiB */
    assert_refused(tp_plan_create(&plan, graph, &caps, &options), TALPA_E_DEVICE, "matmul", "131072 bytes", "65536", "reduce");
    tp_graph_free(graph);
    graph = product_graph(64, 16, 512); /* the input has */
    assert_refused(tp_plan_create(&plan, graph, &caps, &options), TALPA_E_DEVICE, "'x'", "131072 bytes", "65536");
    assert_null(plan);
    tp_graph_free(graph);
}

/* Panels where there is room for them; else, and only if nothing was asked for, the file's rows. */
static void test_base_dtype_by_memory(void **unused)
{
    (void)unused;
    struct talpa_graph *graph = product_graph(4, 512, 256);
    struct talpa_device_caps caps = fake("cpu");
    const size_t weight_bytes = 512 * 256 * sizeof(float);
    for (int asked = TP_BASE_AUTO; asked <= TP_BASE_F32; asked++)
        for (int is_small = 0; is_small < 2; is_small++) {
            const struct tp_plan_options options = {.base_dtype = (enum tp_base_dtype)asked};
            const bool native = asked == TP_BASE_NATIVE || (asked == TP_BASE_AUTO && is_small);
            struct tp_plan *plan;
            caps.global_mem_bytes = is_small ? weight_bytes : 2 * weight_bytes; /* the plan has the weight and little else */
            assert_ok(tp_plan_create(&plan, graph, &caps, &options));
            assert_int_equal(plan->options.base_dtype, native ? TP_BASE_NATIVE : asked);
            assert_int_equal(plan->memory.weight_bytes, native ? weight_bytes : 0);
            assert_int_equal(plan->memory.packed_bytes, native ? 0 : asked == TP_BASE_BF16 ? weight_bytes / 2 : weight_bytes);
            tp_plan_free(plan);
        }
    tp_graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lifetimes),    cmocka_unit_test(test_segments),  cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_concat),       cmocka_unit_test(test_tiers),     cmocka_unit_test(test_devices),
        cmocka_unit_test(test_split_weight), cmocka_unit_test(test_too_large), cmocka_unit_test(test_base_dtype_by_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
