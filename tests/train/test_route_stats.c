/* Routing statistics: against the routers' formulas in double on the same inputs, against the training graph's counts, and (the statistics
 * over rows) against numbers from NumPy. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "golden.h"
#include "io/svg_heatmap.h"
#include "train/evaluate.h"
#include "train_fixture.h"

enum { N = 7, MAX = 24, N_EXPERTS = 5, TOP_K = 2, MAX_MODULES = 64 };

static struct talpa_model *model;

static struct talpa_adapter_config config_of(enum talpa_routing routing)
{
    struct talpa_adapter_config config = talpa_adapter_default();
    config.routing = routing;
    config.n_experts = N_EXPERTS;
    config.top_k = TOP_K;
    config.dropout = 0.0;
    return config;
}

/* Rows of two tasks, one without a name, with prompts of 3 tokens; the first has another length than the rest of its batch. */
static struct tp_dataset *make_data(void)
{
    static char text[N * 1024];
    static const char *const about[3] = {"\"task\": \"dig\", \"difficulty\": 1", "\"task\": \"dig\", \"difficulty\": 2",
                                         "\"difficulty\": \"hard\""};
    size_t used = 0;
    struct tp_dataset *data;
    for (unsigned i = 0; i < N; i++) {
        const unsigned n = 5 + (unsigned)(tp_rng_splitmix64(3, i) % (MAX - 5));
        used += (size_t)snprintf(text + used, sizeof text - used, "{\"id\": %u, %s", i, about[i % 3]);
        for (int labels = 0; labels < 2; labels++) {
            used += (size_t)snprintf(text + used, sizeof text - used, labels ? "], \"labels\": [" : ", \"input_ids\": [");
            for (unsigned k = 0; k < n; k++) {
                if (labels && k < 3) used += (size_t)snprintf(text + used, sizeof text - used, "%s-100", k ? ", " : "");
                else
                    used += (size_t)snprintf(text + used, sizeof text - used, "%s%u", k ? ", " : "",
                                             (unsigned)(tp_rng_splitmix64(4, i * 64 + k) % 250));
            }
        }
        used += (size_t)snprintf(text + used, sizeof text - used, "]}\n");
    }
    golden_ok(tp_dataset_parse(&data, text, used, "rows", model->tokenizer, NULL));
    assert_int_equal(tp_dataset_n_examples(data), N);
    return data;
}

/* A mixture on a device with parameters that make its routers decide differently for each token. */
struct mixture {
    struct tp_engine engine;
    struct tp_adapter *adapter;
    float *bank;
};

static void open_mixture(struct mixture *m, enum talpa_routing routing)
{
    const struct talpa_adapter_config config = config_of(routing);
    golden_ok(tp_engine_open(&m->engine, golden_device(), model));
    golden_ok(tp_adapter_create(&m->adapter, model, &config));
    assert_true(m->adapter->n_modules <= MAX_MODULES);
    m->bank = malloc((size_t)m->adapter->bank_elements * sizeof *m->bank);
    assert_non_null(m->bank);
    tp_rng_fill_splitmix(m->bank, (size_t)m->adapter->bank_elements, 5, 1, 0.3);
}

static void close_mixture(struct mixture *m)
{
    tp_adapter_free(m->adapter);
    tp_engine_close(&m->engine);
    free(m->bank);
}

static struct tp_route_stats measure(struct mixture *m, const struct tp_dataset *data, int batch_size, bool sparse)
{
    struct tp_evaluator e;
    struct tp_route_stats stats;
    struct tp_plan_options options;
    struct tp_losses losses;
    tp_plan_options_default(&options);
    golden_ok(tp_evaluator_create_routed(&e, &m->engine, model, m->adapter, (uint32_t)(batch_size * MAX), &options, sparse));
    golden_ok(tp_executor_write(e.set.executor, e.eval.params, m->bank, (size_t)m->adapter->bank_elements * sizeof *m->bank));
    golden_ok(tp_route_stats_create(&stats, m->adapter));
    e.routes = &stats;
    e.task = "rows.jsonl";
    golden_ok(tp_evaluator_losses(&losses, &e, data, batch_size));
    assert_int_equal(stats.n_rows, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(stats.rows[i].n_labelled, losses.n[i]);
        assert_true(fabs(stats.rows[i].nll - losses.sum[i]) < 1e-9);
    }
    tp_losses_free(&losses);
    tp_evaluator_free(&e);
    return stats;
}

/* ---- the formulas, on what enters each linear ---- */

struct capture {
    struct tp_adapter_graph attach;
    talpa_value x[MAX_MODULES];
};

static enum talpa_status capture_hook(void *user, talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value weight,
                                      talpa_value residual, int layer, enum tp_linear linear)
{
    struct capture *c = user;
    const struct tp_adapter *adapter = c->attach.adapter;
    for (int m = 0; m < adapter->n_modules; m++)
        if (adapter->modules[m].layer == layer && adapter->modules[m].linear == linear) {
            c->x[m] = x;
            tp_graph_mark_output(graph, x);
        }
    return tp_adapter_hook(&c->attach, y, graph, x, weight, residual, layer, linear);
}

/* Expected weight and selection of one token; the distance from the nearest decision. */
static double decide(double weight[N_EXPERTS], bool sel[N_EXPERTS], double *threshold, const struct mixture *m, int module, const float *x)
{
    const struct tp_adapter_module *mod = &m->adapter->modules[module];
    const enum talpa_routing routing = m->adapter->config.routing;
    const float *gating = m->bank + mod->offset[TP_TENSOR_GATING];
    double p[N_EXPERTS], most = -INFINITY, sum = 0.0, left = 0.0, distance = INFINITY;
    for (int e = 0; e < N_EXPERTS; e++) {
        p[e] = 0.0;
        for (int j = 0; j < mod->d_in; j++) p[e] += (double)x[j] * (double)gating[e * mod->d_in + j];
        most = fmax(most, p[e]);
    }
    for (int e = 0; e < N_EXPERTS; e++) sum += p[e] = exp(p[e] - most);
    for (int e = 0; e < N_EXPERTS; e++) p[e] /= sum;
    *threshold = routing == TALPA_ROUTING_TOPK ? NAN : 1.0 / N_EXPERTS;
    if (routing == TALPA_ROUTING_ADAMOLE) {
        double raw = (double)m->bank[mod->offset[TP_TENSOR_THRESHOLD_BIAS]];
        for (int j = 0; j < mod->d_in; j++) raw += (double)x[j] * (double)m->bank[mod->offset[TP_TENSOR_THRESHOLD] + j];
        *threshold = 1.0 / N_EXPERTS / (1.0 + exp(-raw));
    }
    for (int e = 0; e < N_EXPERTS; e++) {
        int above = 0;
        for (int k = 0; k < N_EXPERTS; k++) above += p[k] > p[e];
        sel[e] = routing == TALPA_ROUTING_TOPK ? above < TOP_K : p[e] >= *threshold;
        weight[e] = sel[e] ? p[e] - (routing == TALPA_ROUTING_ADAMOLE ? *threshold : 0.0) : 0.0;
        left += weight[e];
        for (int k = 0; k < e; k++)
            if (routing == TALPA_ROUTING_TOPK && sel[k] != sel[e]) distance = fmin(distance, fabs(p[k] - p[e]));
        if (routing != TALPA_ROUTING_TOPK) distance = fmin(distance, fabs(p[e] - *threshold));
    }
    for (int e = 0; e < N_EXPERTS; e++) weight[e] /= left != 0.0 ? left : 1.0;
    return distance;
}

static void close_to(double got, double want, double tolerance, const char *what, int module)
{
    if (isnan(want) && isnan(got)) return;
    if (!(fabs(got - want) <= tolerance * (1.0 + fabs(want)))) fail_msg("%s of module %d: %.9g, expected %.9g", what, module, got, want);
}

/* Recomputes everything row by row with a graph of this file's own. */
static void compare(struct mixture *m, const struct tp_dataset *data, const struct tp_route_stats *stats)
{
    struct capture c;
    struct talpa_graph *graph;
    struct tp_batch_inputs inputs;
    struct tp_program_set set;
    struct tp_plan_options options;
    struct tp_batch batch;
    talpa_value hidden;
    const struct tp_linear_hook hook = {.apply = capture_hook, .user = &c};
    golden_ok(tp_graph_create(&graph));
    golden_ok(tp_batch_inputs_create(&inputs, graph, MAX, MAX));
    golden_ok(tp_adapter_begin(&c.attach, m->adapter, graph, &inputs, false));
    golden_ok(tp_model_hidden(&hidden, graph, model, &inputs, &hook));
    tp_graph_mark_output(graph, hidden);
    tp_plan_options_default(&options);
    golden_ok(tp_program_set_create(&set, &m->engine, graph, &options, true, false));
    golden_ok(tp_executor_write(set.executor, c.attach.params, m->bank, (size_t)m->adapter->bank_elements * sizeof *m->bank));
    golden_ok(tp_batch_create(&batch, MAX, MAX));
    static double weight[2][MAX_MODULES][N_EXPERTS], threshold[2][MAX_MODULES];
    static int64_t selected[2][MAX_MODULES][N_EXPERTS], active[2][MAX_MODULES][2], n_tokens[2][2];
    memset(weight, 0, sizeof weight);
    memset(threshold, 0, sizeof threshold);
    memset(selected, 0, sizeof selected);
    memset(active, 0, sizeof active);
    memset(n_tokens, 0, sizeof n_tokens);
    double nearest = INFINITY;
    float *x = malloc((size_t)MAX * 8192 * sizeof *x);
    assert_non_null(x);
    for (int i = 0; i < N; i++) {
        const struct tp_dataset_example example = tp_dataset_example(data, (size_t)i);
        const int task = i % 3 == 2;
        int64_t row_active[2] = {0, 0};
        double row_threshold = 0.0;
        struct tp_step step = {{0}};
        tp_batch_clear(&batch);
        golden_ok(tp_batch_add(&batch, &example, 0, 0, 0));
        golden_ok(tp_batch_write(&batch, set.executor, &inputs, &step));
        golden_ok(tp_executor_step(set.executor, &step));
        golden_ok(tp_executor_run(set.executor, 0, TP_PHASE_BATCH));
        for (int k = 0; k < m->adapter->n_modules; k++) {
            const int d_in = m->adapter->modules[k].d_in;
            assert_true(d_in <= 8192);
            golden_ok(tp_executor_read(set.executor, c.x[k], x, (size_t)example.n_tokens * (size_t)d_in * sizeof *x));
            for (uint32_t t = 0; t < example.n_tokens; t++) {
                double w[N_EXPERTS], tau;
                bool sel[N_EXPERTS];
                nearest = fmin(nearest, decide(w, sel, &tau, m, k, x + (size_t)t * (size_t)d_in));
                for (int e = 0; e < N_EXPERTS; e++) {
                    weight[task][k][e] += w[e];
                    selected[task][k][e] += sel[e];
                    active[task][k][t >= 3] += sel[e];
                    row_active[t >= 3] += sel[e];
                }
                threshold[task][k] += tau;
                row_threshold += tau;
            }
        }
        n_tokens[task][0] += 3;
        n_tokens[task][1] += example.n_tokens - 3;
        const struct tp_route_row *row = &stats->rows[i];
        char id[8];
        snprintf(id, sizeof id, "%d", i);
        assert_string_equal(row->id, id);
        assert_string_equal(stats->tasks[row->task].name, task ? "rows.jsonl" : "dig");
        if (task) assert_true(isnan(row->difficulty));
        else assert_true(row->difficulty == 1 + i % 3);
        assert_int_equal(row->n_tokens[0], 3);
        assert_int_equal(row->n_tokens[1], example.n_tokens - 3);
        for (int part = 0; part < 2; part++) assert_int_equal(row->active[part], row_active[part]);
        close_to(row->threshold, row_threshold, 1e-5, "a row's threshold", -1);
    }
    assert_true(nearest > 2e-7); /* no decision within rounding: counts must be equal */
    assert_int_equal(stats->n_tasks, 2);
    int64_t all = 0;
    for (int task = 0; task < 2; task++)
        for (int k = 0; k < m->adapter->n_modules; k++) {
            const struct tp_route_task *found = &stats->tasks[task];
            for (int part = 0; part < 2; part++) {
                assert_int_equal(found->cells[k].n_tokens[part], n_tokens[task][part]);
                assert_int_equal(found->cells[k].active[part], active[task][k][part]);
                all += active[task][k][part];
                if (m->adapter->config.routing == TALPA_ROUTING_TOPK)
                    assert_int_equal(found->cells[k].active[part], TOP_K * n_tokens[task][part]);
            }
            for (int e = 0; e < N_EXPERTS; e++) {
                assert_int_equal(found->selected[k * N_EXPERTS + e], selected[task][k][e]);
                close_to(found->weight[k * N_EXPERTS + e], weight[task][k][e], 1e-4, "weight", k);
            }
            close_to(found->cells[k].threshold, threshold[task][k], 1e-5, "threshold", k);
        }
    const int64_t total = n_tokens[0][0] + n_tokens[0][1] + n_tokens[1][0] + n_tokens[1][1];
    assert_true(all > 0 && all < total * m->adapter->n_modules * N_EXPERTS); /* some are left out */
    free(x);
    tp_batch_free(&batch);
    tp_program_set_free(&set);
    tp_graph_free(graph);
}

static void test_formulas(void **state)
{
    (void)state;
    static const enum talpa_routing routings[] = {TALPA_ROUTING_ADAMOLE, TALPA_ROUTING_TOPK, TALPA_ROUTING_THRESHOLD};
    struct tp_dataset *data = make_data();
    for (size_t i = 0; i < sizeof routings / sizeof *routings; i++) {
        struct mixture m;
        open_mixture(&m, routings[i]);
        struct tp_route_stats stats = measure(&m, data, 3, routings[i] == TALPA_ROUTING_TOPK);
        compare(&m, data, &stats);
        tp_route_stats_free(&stats);
        close_mixture(&m);
    }
    tp_dataset_close(data);
}

static void test_batch_size(void **state)
{
    (void)state;
    struct tp_dataset *data = make_data();
    struct mixture m;
    open_mixture(&m, TALPA_ROUTING_ADAMOLE);
    struct tp_route_stats a = measure(&m, data, 1, false);
    for (int batch_size = 2; batch_size <= N; batch_size += 5) {
        struct tp_route_stats b = measure(&m, data, batch_size, batch_size == 2);
        for (size_t task = 0; task < a.n_tasks; task++) {
            const size_t n = (size_t)(m.adapter->n_modules * N_EXPERTS);
            assert_memory_equal(a.tasks[task].selected, b.tasks[task].selected, n * sizeof *a.tasks[task].selected);
            for (size_t i = 0; i < n; i++) close_to(b.tasks[task].weight[i], a.tasks[task].weight[i], 1e-5, "weight", (int)i / N_EXPERTS);
        }
        for (int i = 0; i < N; i++) {
            assert_memory_equal(a.rows[i].active, b.rows[i].active, sizeof a.rows[i].active);
            close_to(b.rows[i].threshold, a.rows[i].threshold, 1e-6, "a row's threshold", -1);
            close_to(b.rows[i].nll, a.rows[i].nll, 1e-5, "a row's nll", -1);
        }
        tp_route_stats_free(&b);
    }
    tp_route_stats_free(&a);
    close_mixture(&m);
    tp_dataset_close(data);
}

/* The training graph counts the same selections on the same tokens. */
static void test_training_counts(void **state)
{
    (void)state;
    enum { BATCH = 2, LENGTH = 17 };
    const struct fixture_options options = {.tier = "", .dispatch = TP_DISPATCH_DENSE, .batch = BATCH, .length = LENGTH, .max_norm = 1.0};
    const struct talpa_adapter_config config = config_of(TALPA_ROUTING_ADAMOLE);
    int32_t ids[BATCH * LENGTH], counts[MAX_MODULES * TP_CONCAT_ALIGN];
    struct fixture f;
    struct tp_evaluator e;
    struct tp_route_stats stats;
    struct tp_plan_options plan;
    fixture_open(&f, model, &config, &options);
    tp_rng_fill_splitmix(f.bank, (size_t)f.adapter->bank_elements, 6, 1, 0.3);
    fixture_upload(&f);
    char text[2048];
    size_t used = 0;
    for (int i = 0; i < BATCH * LENGTH; i++) {
        ids[i] = (int32_t)(tp_rng_splitmix64(8, (uint64_t)i) % 250);
        used += (size_t)snprintf(text + used, sizeof text - used, i % LENGTH ? ", %d" : "{\"input_ids\": [%d", ids[i]);
        if (i % LENGTH == LENGTH - 1) used += (size_t)snprintf(text + used, sizeof text - used, "]}\n");
    }
    fixture_run(&f, 0, ids, ids, false);
    golden_ok(tp_executor_read(f.set.executor, f.train.selected, counts, (size_t)f.adapter->selection_elements * sizeof *counts));
    struct tp_dataset *data;
    struct tp_losses losses;
    golden_ok(tp_dataset_parse(&data, text, used, "rows", model->tokenizer, NULL));
    tp_plan_options_default(&plan);
    golden_ok(tp_evaluator_create_routed(&e, &f.engine, model, f.adapter, BATCH * LENGTH, &plan, false));
    golden_ok(tp_route_stats_create(&stats, f.adapter));
    e.routes = &stats;
    golden_ok(tp_executor_write(e.set.executor, e.eval.params, f.bank, (size_t)f.adapter->bank_elements * sizeof *f.bank));
    golden_ok(tp_evaluator_losses(&losses, &e, data, BATCH));
    int64_t sum = 0;
    for (int m = 0; m < f.adapter->n_modules; m++)
        for (int k = 0; k < N_EXPERTS; k++) {
            assert_int_equal(stats.tasks[0].selected[m * N_EXPERTS + k], counts[m * TP_CONCAT_ALIGN + k]);
            sum += counts[m * TP_CONCAT_ALIGN + k];
        }
    assert_true(sum > 0);
    tp_losses_free(&losses);
    tp_route_stats_free(&stats);
    tp_evaluator_free(&e);
    tp_dataset_close(data);
    fixture_close(&f);
}

static void test_refused(void **state)
{
    (void)state;
    struct mixture m;
    struct tp_evaluator e;
    struct tp_route_stats stats;
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    open_mixture(&m, TALPA_ROUTING_LORA);
    assert_int_equal(tp_evaluator_create_routed(&e, &m.engine, model, m.adapter, MAX, &options, false), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "nothing is routed"));
    assert_non_null(strstr(talpa_error_message(), "plain LoRA"));
    assert_int_equal(tp_route_stats_create(&stats, NULL), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "no adapter"));
    tp_status_clear();
    close_mixture(&m);
}

/* ---- statistics over rows ---- */

static void check_mean(const struct talpa_route_mean *found, double mean, double error)
{
    close_to(found->mean, mean, 1e-12, "mean", -1);
    close_to(found->error, error, 1e-12, "error", -1);
}

/* Rows by hand; expectations from NumPy (ratio of sums with its linearised error; corrcoef; least squares with dummies and HC1). */
static void test_summary(void **state)
{
    (void)state;
    static const struct {
        int task;
        double difficulty;
        uint32_t n_prompt, n_rest;
        int64_t active[2];
        double nll;
        int64_t n_labelled;
    } rows[] = {{0, 1, 4, 2, {10, 4}, 2.0, 4},  {0, 2, 6, 2, {17, 5}, 3.5, 5}, {0, 2, 5, 3, {14, 9}, 1.5, 3},
                {0, 3, 7, 4, {22, 13}, 6.0, 4}, {1, 1, 3, 1, {4, 1}, 0.5, 2},  {1, 2, 4, 2, {5, 3}, 1.25, 2},
                {1, 3, 6, 3, {9, 6}, 2.0, 3},   {1, NAN, 5, 2, {6, 3}, 0.9, 2}};
    static const double relations[6][5] = {{0.635943128, 0.718575757, 0.761647144, 0.594841287, 0.19403113},
                                           {0.584855477, 0.682646969, 0.775726631, 0.444694017, 0.123337403},
                                           {0.714860127, 0.721225367, 0.692630203, 0.930171104, 0.388020174},
                                           {0.329846524, 0.472455591, 0.924661582, 0.316287879, 0.0751229261},
                                           {0.205394958, 0.377964473, 0.826874592, 0.202380952, 0.0829264206},
                                           {0.574152561, 0.572077554, 0.943456353, 0.5625, 0.0506307867}};
    struct tp_adapter adapter = {
        .n_modules = 1, .config = {.routing = TALPA_ROUTING_ADAMOLE, .n_experts = 8}, .router = tp_router_get(TALPA_ROUTING_ADAMOLE)};
    struct tp_route_stats s;
    struct tp_arena arena = {0};
    struct talpa_route_summary summary;
    golden_ok(tp_route_stats_create(&s, &adapter));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct tp_route_about about = {.task = rows[i].task ? "b" : "a",
                                             .difficulty = rows[i].difficulty,
                                             .n_tokens = rows[i].n_prompt + rows[i].n_rest,
                                             .n_prompt = rows[i].n_prompt};
        size_t row;
        golden_ok(tp_route_stats_row(&row, &s, &about));
        memcpy(s.rows[row].active, rows[i].active, sizeof rows[i].active);
        s.rows[row].nll = rows[i].nll;
        s.rows[row].n_labelled = rows[i].n_labelled;
        s.rows[row].threshold = 0.125 * about.n_tokens;
    }
    golden_ok(tp_route_summarise(&summary, &arena, &s));
    assert_int_equal(summary.n_groups, 6);
    const struct talpa_route_group *g = summary.groups;
    assert_int_equal(g[0].n_rows, 8);
    assert_int_equal(g[0].n_tokens, 59);
    check_mean(&g[0].active[TALPA_ROUTE_WHOLE], 2.2203389830508473, 0.29702750597490024);
    check_mean(&g[0].active[TALPA_ROUTE_PROMPT], 2.175, 0.30844367395036654);
    check_mean(&g[0].active[TALPA_ROUTE_COMPLETION], 2.3157894736842106, 0.29054385881761646);
    check_mean(&g[0].nll, 0.706, 0.14986672631756143);
    check_mean(&g[0].threshold, 0.125, 0.0);
    assert_string_equal(g[1].task, "a");
    check_mean(&g[1].active[TALPA_ROUTE_WHOLE], 2.8484848484848486, 0.17021534046991382);
    assert_string_equal(g[2].task, "b");
    check_mean(&g[2].active[TALPA_ROUTE_WHOLE], 1.4230769230769231, 0.11322770341445955);
    static const double levels[3][3] = {{2, 1.9, 0.52}, {3, 2.409090909090909, 0.44183970043412946}, {2, 2.5, 0.75}};
    for (int i = 0; i < 3; i++) {
        assert_true(g[3 + i].difficulty == i + 1);
        assert_int_equal(g[3 + i].n_rows, levels[i][0]);
        check_mean(&g[3 + i].active[TALPA_ROUTE_WHOLE], levels[i][1], levels[i][2]);
    }
    for (int i = 0; i < TALPA_ROUTE_N_RELATIONS; i++) {
        const struct talpa_route_relation *r = &summary.relations[i];
        const double found[5] = {r->pearson, r->spearman, r->pearson_within, r->slope, r->slope_error};
        assert_string_equal(r->x, i < 3 ? "nll" : "difficulty");
        assert_int_equal(r->n_rows, i < 3 ? 8 : 7);
        for (int k = 0; k < 5; k++) close_to(found[k], relations[i][k], 1e-8, r->x, 10 * i + k);
    }
    char *text;
    golden_ok(tp_route_summary_text(&text, &summary));
    assert_non_null(strstr(text, "2.220 +- 0.297"));
    assert_non_null(strstr(text, "difficulty 3"));
    assert_null(strstr(text, "nan"));
    free(text);
    tp_route_stats_free(&s);
    tp_arena_free(&arena);
}

/* Rows that all say the same have no correlation, and no number stands for it. */
static void test_no_spread(void **state)
{
    (void)state;
    struct tp_adapter adapter = {
        .n_modules = 3, .config = {.routing = TALPA_ROUTING_TOPK, .n_experts = 8}, .router = tp_router_get(TALPA_ROUTING_TOPK)};
    struct tp_route_stats s;
    struct tp_arena arena = {0};
    struct talpa_route_summary summary;
    golden_ok(tp_route_stats_create(&s, &adapter));
    for (unsigned i = 0; i < 9; i++) {
        const struct tp_route_about about = {.task = "a", .difficulty = i % 3, .n_tokens = 7 + i, .n_prompt = 2 + i};
        size_t row;
        golden_ok(tp_route_stats_row(&row, &s, &about));
        s.rows[row].active[0] = 2 * 3 * s.rows[row].n_tokens[0];
        s.rows[row].active[1] = 2 * 3 * s.rows[row].n_tokens[1];
        s.rows[row].nll = 0.1 * i;
        s.rows[row].n_labelled = 5;
        s.rows[row].threshold = NAN;
    }
    golden_ok(tp_route_summarise(&summary, &arena, &s));
    check_mean(&summary.groups[0].active[TALPA_ROUTE_WHOLE], 2.0, 0.0);
    assert_true(isnan(summary.groups[0].threshold.mean));
    for (int i = 0; i < TALPA_ROUTE_N_RELATIONS; i++) {
        assert_true(isnan(summary.relations[i].pearson) && isnan(summary.relations[i].spearman));
        assert_true(isnan(summary.relations[i].slope) || fabs(summary.relations[i].slope) < 1e-12);
    }
    tp_route_stats_free(&s);
    tp_arena_free(&arena);
}

/* ---- picture ---- */

static void check_nesting(const char *text)
{
    char open[16][16];
    int depth = 0;
    for (const char *at = strchr(text, '<'); at; at = strchr(at + 1, '<')) {
        char name[16] = "";
        const char *end = strchr(at, '>');
        assert_non_null(end);
        assert_true(sscanf(at + (at[1] == '/' ? 2 : 1), "%15[a-z]", name) == 1);
        if (at[1] == '/') {
            assert_true(depth > 0);
            assert_string_equal(open[--depth], name);
        } else if (end[-1] != '/') {
            assert_true(depth < 16);
            memcpy(open[depth++], name, sizeof name);
        }
    }
    assert_int_equal(depth, 0);
}

static int count(const char *text, const char *word)
{
    int n = 0;
    for (const char *at = strstr(text, word); at; at = strstr(at + 1, word)) n++;
    return n;
}

static void test_map(void **state)
{
    (void)state;
    struct tp_dataset *data = make_data();
    for (int topk = 0; topk < 2; topk++) {
        struct mixture m;
        open_mixture(&m, topk ? TALPA_ROUTING_TOPK : TALPA_ROUTING_ADAMOLE);
        struct tp_route_stats stats = measure(&m, data, 3, false);
        char path[] = "route_map_XXXXXX";
        const int descriptor = mkstemp(path);
        assert_true(descriptor >= 0);
        close(descriptor);
        struct tp_arena arena = {0};
        struct talpa_route_summary summary;
        golden_ok(tp_route_summarise(&summary, &arena, &stats));
        golden_ok(tp_route_map_save(&stats, &summary, path));
        tp_arena_free(&arena);
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        const size_t room = 1 << 20;
        char *text = calloc(room, 1);
        assert_non_null(text);
        assert_true(fread(text, 1, room - 1, file) > 0);
        fclose(file);
        unlink(path);
        check_nesting(text);
        assert_null(strstr(text, "nan"));
        assert_null(strstr(text, "inf"));
        assert_int_equal(count(text, "fill=\"#"), 2 * m.adapter->n_modules * N_EXPERTS + 60); /* cells of two tasks, the colour bar */
        assert_int_equal(count(text, "class=\"f0\""), 2 * m.adapter->n_modules + 1);          /* bars, their sample */
        assert_int_equal(count(text, "class=\"f1\""), topk ? 0 : 2 * m.adapter->n_modules + 1);
        assert_int_equal(count(text, "class=\"f2\""), 2 * m.adapter->n_modules + 1);
        char colour[24];
        const double share = (double)stats.tasks[1].selected[N_EXPERTS - 1] /
                             (double)(stats.tasks[1].cells[0].n_tokens[0] + stats.tasks[1].cells[0].n_tokens[1]);
        snprintf(colour, sizeof colour, "fill=\"#%06x\"", tp_svg_heatmap_colour(share));
        assert_non_null(strstr(text, colour));
        assert_non_null(strstr(text, ">rows.jsonl</text>"));
        free(text);
        tp_route_stats_free(&stats);
        close_mixture(&m);
    }
    tp_dataset_close(data);
}

/* Larger is lighter, also in grey. */
static void test_colours(void **state)
{
    (void)state;
    double before = -1.0;
    for (int i = 0; i <= 100; i++) {
        const unsigned rgb = tp_svg_heatmap_colour(i / 100.0);
        const double light = 0.2126 * (rgb >> 16) + 0.7152 * (rgb >> 8 & 255) + 0.0722 * (rgb & 255);
        assert_true(light > before);
        before = light;
    }
    assert_int_equal(tp_svg_heatmap_colour(0), 0x440154);
    assert_int_equal(tp_svg_heatmap_colour(1), 0xfde725);
    assert_int_equal(tp_svg_heatmap_colour(-3), 0x440154);
    assert_int_equal(tp_svg_heatmap_colour(NAN), 0x440154);
}

static int set_up(void **state)
{
    (void)state;
    golden_ok(talpa_model_open(&model, "random:tiny"));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    talpa_model_close(model);
    return 0;
}

int main(void)
{
    golden_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formulas), cmocka_unit_test(test_batch_size), cmocka_unit_test(test_training_counts),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_summary),    cmocka_unit_test(test_no_spread),
        cmocka_unit_test(test_map),      cmocka_unit_test(test_colours)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
