/* Entropies, information about the task and cosines of expert outputs: against naive sums over outputs of the model's full width, made on
 * the host from what enters each linear. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "golden.h"
#include "train/evaluate.h"

enum { N_EXPERTS = 5, RANK = 3, MAX_MODULES = 16, MAX_ROWS = 32, LONGEST = 24, MAX_TOKENS = MAX_ROWS * LONGEST, MAX_D = 256 };

static struct talpa_model *model;

struct run {
    struct tp_engine engine;
    struct tp_adapter *adapter;
    float *bank;
    struct tp_dataset *data;
    int n_rows;
};

/* Rows of tasks "even" and "odd" with 4 to `LONGEST` tokens. */
static void open_run(struct run *r, enum talpa_routing routing, int n_rows)
{
    static char text[MAX_ROWS * 512];
    size_t used = 0;
    struct talpa_adapter_config config = talpa_adapter_default();
    config.routing = routing;
    config.n_experts = N_EXPERTS;
    config.rank = RANK;
    config.dropout = 0.0;
    r->n_rows = n_rows;
    for (int i = 0; i < n_rows; i++) {
        const unsigned n = 4 + (unsigned)(tp_rng_splitmix64(1, (uint64_t)i) % (LONGEST - 3));
        used += (size_t)snprintf(text + used, sizeof text - used, "{\"id\": %d, \"task\": \"%s\", \"input_ids\": [", i, i % 2 ? "odd" : "even");
        for (unsigned k = 0; k < n; k++)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%u", k ? ", " : "",
                                     (unsigned)(tp_rng_splitmix64(2, (uint64_t)i * 64 + k) % 120) + (i % 2 ? 120 : 0));
        used += (size_t)snprintf(text + used, sizeof text - used, "]}\n");
    }
    golden_ok(tp_dataset_parse(&r->data, text, used, "rows", model->tokenizer, NULL));
    golden_ok(tp_engine_open(&r->engine, golden_device(), model));
    golden_ok(tp_adapter_create(&r->adapter, model, &config));
    assert_true(r->adapter->n_modules <= MAX_MODULES);
    r->bank = malloc((size_t)r->adapter->bank_elements * sizeof *r->bank);
    assert_non_null(r->bank);
    tp_rng_fill_splitmix(r->bank, r->adapter->bank_elements, 3, 1, 0.3);
}

static void close_run(struct run *r)
{
    tp_adapter_free(r->adapter);
    tp_engine_close(&r->engine);
    tp_dataset_close(r->data);
    free(r->bank);
}

static struct tp_route_stats measure(struct run *r, int batch_size)
{
    struct tp_evaluator e;
    struct tp_route_stats stats;
    struct tp_plan_options options;
    struct tp_losses losses;
    tp_plan_options_default(&options);
    golden_ok(tp_evaluator_create_routed(&e, &r->engine, model, r->adapter, (uint32_t)(batch_size * LONGEST), &options, false));
    golden_ok(tp_executor_write(e.set.executor, e.eval.params, r->bank, (size_t)r->adapter->bank_elements * sizeof *r->bank));
    golden_ok(tp_route_stats_create(&stats, r->adapter));
    e.routes = &stats;
    golden_ok(tp_evaluator_losses(&losses, &e, r->data, batch_size));
    tp_losses_free(&losses);
    tp_evaluator_free(&e);
    return stats;
}

/* ---- all tokens on the host ---- */

struct capture {
    struct tp_adapter_graph attach;
    talpa_value x[MAX_MODULES];
};

static enum talpa_status capture_hook(void *user, talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value weight,
                                      talpa_value residual, int layer, enum tp_linear linear)
{
    struct capture *c = user;
    struct tp_adapter *adapter = c->attach.adapter;
    TP_TRY(tp_adapter_hook(&c->attach, y, graph, x, weight, residual, layer, linear));
    for (int m = 0; m < adapter->n_modules; m++)
        if (adapter->modules[m].layer == layer && adapter->modules[m].linear == linear) {
            c->x[m] = x;
            tp_graph_mark_output(graph, x);
            tp_graph_mark_output(graph, adapter->modules[m].weight);
            tp_graph_mark_output(graph, adapter->modules[m].sel);
        }
    return TALPA_OK;
}

static struct {
    float x[MAX_MODULES][MAX_TOKENS * MAX_D], weight[MAX_MODULES][MAX_TOKENS * N_EXPERTS];
    int32_t sel[MAX_MODULES][MAX_TOKENS * N_EXPERTS];
    int task[MAX_TOKENS];
    size_t n;
} seen;

static void look(struct run *r)
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
    golden_ok(tp_batch_inputs_create(&inputs, graph, LONGEST, LONGEST));
    golden_ok(tp_adapter_begin(&c.attach, r->adapter, graph, &inputs, false));
    golden_ok(tp_model_hidden(&hidden, graph, model, &inputs, &hook));
    tp_graph_mark_output(graph, hidden);
    tp_plan_options_default(&options);
    golden_ok(tp_program_set_create(&set, &r->engine, graph, &options, true, false));
    golden_ok(tp_executor_write(set.executor, c.attach.params, r->bank, (size_t)r->adapter->bank_elements * sizeof *r->bank));
    golden_ok(tp_batch_create(&batch, LONGEST, LONGEST));
    seen.n = 0;
    for (int i = 0; i < r->n_rows; i++) {
        const struct tp_dataset_example example = tp_dataset_example(r->data, (size_t)i);
        struct tp_step step = {{0}};
        tp_batch_clear(&batch);
        golden_ok(tp_batch_add(&batch, &example, 0, 0, 0));
        golden_ok(tp_batch_write(&batch, set.executor, &inputs, &step));
        golden_ok(tp_executor_step(set.executor, &step));
        golden_ok(tp_executor_run(set.executor, 0, TP_PHASE_BATCH));
        for (int m = 0; m < r->adapter->n_modules; m++) {
            const struct tp_adapter_module *module = &r->adapter->modules[m];
            const size_t d = (size_t)module->d_in, n = example.n_tokens;
            assert_true(d <= MAX_D);
            golden_ok(tp_executor_read(set.executor, c.x[m], seen.x[m] + seen.n * d, n * d * sizeof(float)));
            golden_ok(tp_executor_read(set.executor, module->weight, seen.weight[m] + seen.n * N_EXPERTS, n * N_EXPERTS * sizeof(float)));
            golden_ok(tp_executor_read(set.executor, module->sel, seen.sel[m] + seen.n * N_EXPERTS, n * N_EXPERTS * sizeof(int32_t)));
        }
        for (uint32_t p = 0; p < example.n_tokens; p++) seen.task[seen.n++] = i % 2;
    }
    tp_batch_free(&batch);
    tp_program_set_free(&set);
    tp_graph_free(graph);
}

static void close_to(double found, double wanted, const char *what, int module)
{
    if (!(fabs(found - wanted) <= 2e-5)) fail_msg("%s of module %d: %.9g, expected %.9g", what, module, found, wanted);
}

static double log0(double x) { return x > 0.0 ? log(x) : 0.0; }

static void check_entropies(const struct talpa_route_experts *e, int m)
{
    double joint[2][N_EXPERTS] = {{0}}, of_task[2] = {0}, of_expert[N_EXPERTS] = {0}, entropy = 0.0, of_mean = 0.0, information = 0.0;
    for (size_t t = 0; t < seen.n; t++)
        for (int k = 0; k < N_EXPERTS; k++) {
            const double w = (double)seen.weight[m][t * N_EXPERTS + (size_t)k];
            joint[seen.task[t]][k] += w / (double)seen.n;
            entropy -= w * log0(w) / (double)seen.n;
        }
    for (int task = 0; task < 2; task++)
        for (int k = 0; k < N_EXPERTS; k++) {
            of_task[task] += joint[task][k];
            of_expert[k] += joint[task][k];
        }
    for (int k = 0; k < N_EXPERTS; k++) {
        of_mean -= of_expert[k] * log0(of_expert[k]);
        for (int task = 0; task < 2; task++) information += joint[task][k] * log0(joint[task][k] / (of_task[task] * of_expert[k]));
    }
    close_to(e->entropy, entropy, "entropy", m);
    close_to(e->entropy_of_mean, of_mean, "entropy of the mean", m);
    close_to(e->information, information, "information", m);
    assert_true(information > 1e-4);
}

static double output[MAX_TOKENS][N_EXPERTS][MAX_D]; /* unit length, NaN first where there is none */

static void make_outputs(const struct run *r, int m)
{
    const struct tp_adapter_module *module = &r->adapter->modules[m];
    const float *a = r->bank + module->offset[TP_TENSOR_A], *bt = r->bank + module->offset[TP_TENSOR_B];
    for (size_t t = 0; t < seen.n; t++)
        for (int e = 0; e < N_EXPERTS; e++) {
            double *o = output[t][e], length = 0.0;
            for (int j = 0; j < module->d_out; j++) o[j] = 0.0;
            for (int k = e * RANK; k < (e + 1) * RANK; k++) {
                double z = 0.0;
                for (int j = 0; j < module->d_in; j++)
                    z += (double)a[k * module->d_in + j] * (double)seen.x[m][t * (size_t)module->d_in + (size_t)j];
                for (int j = 0; j < module->d_out; j++) o[j] += z * (double)bt[k * module->d_out + j];
            }
            for (int j = 0; j < module->d_out; j++) length += o[j] * o[j];
            for (int j = 0; j < module->d_out; j++) o[j] /= sqrt(length);
            if (!seen.sel[m][t * N_EXPERTS + (size_t)e]) o[0] = NAN;
        }
}

static void check_cosines(const struct run *r, const struct talpa_route_experts *found, int m)
{
    static double sum[N_EXPERTS][N_EXPERTS], n[N_EXPERTS][N_EXPERTS];
    double same = 0.0, n_same = 0.0, intra = 0.0, n_intra = 0.0, inter = 0.0, n_inter = 0.0;
    memset(sum, 0, sizeof sum);
    memset(n, 0, sizeof n);
    make_outputs(r, m);
    for (size_t t = 0; t < seen.n; t++)
        for (size_t u = 0; u < seen.n; u++)
            for (int e = 0; e < N_EXPERTS; e++)
                for (int f = 0; f < N_EXPERTS; f++) {
                    if (isnan(output[t][e][0]) || isnan(output[u][f][0]) || (e == f && t == u)) continue;
                    double cosine = 0.0;
                    for (int j = 0; j < r->adapter->modules[m].d_out; j++) cosine += output[t][e][j] * output[u][f][j];
                    sum[e][f] += cosine;
                    n[e][f]++;
                    if (t == u) {
                        same += cosine;
                        n_same++;
                    }
                }
    for (int e = 0; e < N_EXPERTS; e++)
        for (int f = 0; f < N_EXPERTS; f++) {
            if (n[e][f] == 0.0) continue;
            if (e == f) intra += sum[e][f] / n[e][f];
            else inter += sum[e][f] / n[e][f];
            n_intra += e == f;
            n_inter += e != f;
        }
    close_to(found->intra_cosine, intra / n_intra, "cosine within experts", m);
    close_to(found->inter_cosine, inter / n_inter, "cosine between experts", m);
    close_to(found->same_token_cosine, same / n_same, "cosine on one token", m);
}

static void test_measures(void **state)
{
    (void)state;
    static const enum talpa_routing routings[] = {TALPA_ROUTING_TOPK, TALPA_ROUTING_ADAMOLE};
    for (size_t i = 0; i < 2; i++) {
        struct run r;
        struct tp_arena arena = {0};
        struct talpa_route_summary summary;
        open_run(&r, routings[i], 9);
        look(&r);
        assert_true(seen.n < TP_ROUTE_SAMPLES); /* so that all tokens are sampled */
        struct tp_route_stats stats = measure(&r, 2);
        assert_int_equal(stats.n_samples, seen.n);
        golden_ok(tp_route_summarise(&summary, &arena, &stats));
        assert_int_equal(summary.n_samples, seen.n);
        double mean = 0.0;
        for (int m = 0; m < r.adapter->n_modules; m++) {
            check_entropies(&summary.modules[m], m);
            check_cosines(&r, &summary.modules[m], m);
            mean += summary.modules[m].inter_cosine / r.adapter->n_modules;
        }
        close_to(summary.experts.inter_cosine, mean, "mean over modules", -1);
        tp_route_stats_free(&stats);
        tp_arena_free(&arena);
        close_run(&r);
    }
}

/* More tokens than are kept: those with the smallest keys, whatever the passes. */
static void test_sample(void **state)
{
    (void)state;
    struct run r;
    open_run(&r, TALPA_ROUTING_ADAMOLE, MAX_ROWS);
    struct tp_route_stats one = measure(&r, 1);
    assert_int_equal(one.n_samples, TP_ROUTE_SAMPLES);
    static const int sizes[] = {3, MAX_ROWS};
    for (int i = 0; i < 2; i++) {
        struct tp_route_stats other = measure(&r, sizes[i]);
        bool used[TP_ROUTE_SAMPLES] = {false};
        assert_int_equal(other.n_samples, TP_ROUTE_SAMPLES);
        for (size_t k = 0; k < TP_ROUTE_SAMPLES; k++) {
            const struct tp_route_sample *a = &one.samples[k], *b = &other.samples[k];
            assert_true(a->row == b->row && a->position == b->position);
            assert_true(!k || a->key > one.samples[k - 1].key);
            assert_true(b->slot < TP_ROUTE_SAMPLES && !used[b->slot]);
            used[b->slot] = true;
            for (int m = 0; m < r.adapter->n_modules; m++) {
                const size_t x = (size_t)m * TP_ROUTE_SAMPLES + a->slot, y = (size_t)m * TP_ROUTE_SAMPLES + b->slot;
                for (int e = 0; e < N_EXPERTS; e++)
                    close_to((double)other.sample_weight[y * N_EXPERTS + (size_t)e], (double)one.sample_weight[x * N_EXPERTS + (size_t)e],
                             "a sampled weight", m);
                for (size_t j = 0; j < N_EXPERTS * RANK; j++)
                    close_to((double)other.sample_z[y * N_EXPERTS * RANK + j], (double)one.sample_z[x * N_EXPERTS * RANK + j], "A x", m);
            }
        }
        tp_route_stats_free(&other);
    }
    tp_route_stats_free(&one);
    close_run(&r);
}

/* By hand: rows of two tasks, each with its own expert: log 2; by chance nearly nothing. With B = 0 outputs have no direction. */
static void test_by_hand(void **state)
{
    (void)state;
    enum { N = 40 };
    struct tp_adapter adapter = {.n_modules = 1, .config = {.routing = TALPA_ROUTING_TOPK, .n_experts = 4, .rank = 2},
                                 .router = tp_router_get(TALPA_ROUTING_TOPK)};
    struct tp_route_stats s;
    struct tp_arena arena = {0};
    struct talpa_route_summary summary;
    golden_ok(tp_route_stats_create(&s, &adapter));
    for (int i = 0; i < N; i++) {
        const struct tp_route_about about = {.task = i % 2 ? "b" : "a", .difficulty = NAN, .n_tokens = 10, .n_prompt = 5};
        size_t row;
        golden_ok(tp_route_stats_row(&row, &s, &about));
        s.rows[row].weight[i % 2] = 10.0f;
        s.tasks[i % 2].weight[i % 2] += 10.0;
        s.tasks[i % 2].cells[0].n_routed += 10;
    }
    golden_ok(tp_route_summarise(&summary, &arena, &s));
    close_to(summary.experts.entropy, 0.0, "entropy", 0);
    close_to(summary.experts.entropy_of_mean, 0.6931472, "entropy of the mean", 0);
    close_to(summary.experts.information, 0.6931472, "information", 0);
    assert_true(summary.experts.information_by_chance > 0.0 && summary.experts.information_by_chance < 0.05);
    assert_true(isnan(summary.experts.intra_cosine) && summary.n_samples == 0);
    tp_route_stats_free(&s);
    tp_arena_free(&arena);

    struct run r;
    open_run(&r, TALPA_ROUTING_TOPK, 3);
    for (int i = 0; i < r.adapter->n_tensors; i++)
        if (r.adapter->tensors[i].kind == TP_TENSOR_B)
            memset(r.bank + r.adapter->tensors[i].offset, 0, (size_t)r.adapter->tensors[i].rows * RANK * sizeof *r.bank);
    s = measure(&r, 3);
    golden_ok(tp_route_summarise(&summary, &arena, &s));
    assert_true(isnan(summary.experts.intra_cosine) && isnan(summary.experts.inter_cosine) && isnan(summary.experts.same_token_cosine));
    assert_true(isfinite(summary.experts.entropy));
    tp_route_stats_free(&s);
    tp_arena_free(&arena);
    close_run(&r);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_measures), cmocka_unit_test(test_sample), cmocka_unit_test(test_by_hand)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
