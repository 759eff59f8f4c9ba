/* talpa/graph.h used as an outside program would: public headers only. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "talpa.h"

enum { T = 5, D = 6, V = 4, RANK = 2 };

static size_t device;

static void ok(enum talpa_status status)
{
    if (status != TALPA_OK) fail_msg("%s", talpa_error_message());
}

static struct talpa_shape shape(int64_t rows, int64_t columns) { return (struct talpa_shape){columns ? 2 : 1, {rows, columns}}; }

/* A LoRA layer under a cross entropy, as in tools/example/. */
struct net {
    struct talpa_graph *graph;
    struct talpa_parameters *parameters;
    struct talpa_program *program;
    talpa_value x, rows, labels, loss, norm;
};

static const float scale = 0.5f;

static void fill(float *data, int n, int seed)
{
    for (int i = 0; i < n; i++) data[i] = 0.7f * sinf(1.3f * (float)i + (float)seed);
}

static void open_net(struct net *net, const float *weight, const float *head)
{
    const struct talpa_shape shapes[2] = {shape(RANK, D), shape(RANK, D)};
    talpa_value p[2], w, h, y, nll;
    ok(talpa_graph_create(&net->graph));
    ok(talpa_graph_input(&net->x, net->graph, "x", TALPA_F32, shape(T, D), TALPA_ROWS_TOKENS));
    ok(talpa_graph_input(&net->rows, net->graph, "rows", TALPA_I32, shape(T, 0), TALPA_ROWS_LABELLED));
    ok(talpa_graph_input(&net->labels, net->graph, "labels", TALPA_I32, shape(T, 0), TALPA_ROWS_LABELLED));
    ok(talpa_graph_weight(&w, net->graph, "w", TALPA_F32, shape(D, D)));
    ok(talpa_graph_weight(&h, net->graph, "head", TALPA_F32, shape(V, D)));
    ok(talpa_parameters_create(&net->parameters, p, net->graph, shapes, 2));
    ok(talpa_matmul(&y, net->graph, net->x, w, TALPA_NONE, false, true));
    ok(talpa_lora_expert(&y, net->graph, y, net->x, p[0], p[1], TALPA_NONE, TALPA_NONE, TALPA_NONE, TALPA_NONE, 1, RANK, scale));
    ok(talpa_linear_cross_entropy(&net->loss, &nll, net->graph, y, h, net->rows, net->labels));
    ok(talpa_graph_minimise(&net->norm, net->graph, net->loss, net->parameters, NULL));
    const struct talpa_weight weights[] = {{"head", head}, {"w", weight}};
    ok(talpa_program_create(&net->program, net->graph, device, weights, 2, net->parameters, TALPA_BASE_AUTO, TALPA_COMPUTE_AUTO, TALPA_DISPATCH_AUTO));
}

static void close_net(struct net *net)
{
    talpa_program_free(net->program);
    talpa_parameters_free(net->parameters);
    talpa_graph_free(net->graph);
}

/* The same loss in double, from the formula. */
static double reference_loss(const float *x, const int32_t *labels, int n, const float *w, const float *head, const double *a,
                             const double *bt)
{
    double loss = 0.0;
    for (int t = 0; t < n; t++) {
        double y[D], logits[V], sum = 0.0;
        for (int i = 0; i < D; i++) {
            y[i] = 0.0;
            for (int j = 0; j < D; j++) y[i] += (double)w[i * D + j] * x[t * D + j];
        }
        for (int r = 0; r < RANK; r++) {
            double along = 0.0;
            for (int j = 0; j < D; j++) along += a[r * D + j] * x[t * D + j];
            for (int i = 0; i < D; i++) y[i] += (double)scale * along * bt[r * D + i];
        }
        for (int c = 0; c < V; c++) {
            logits[c] = 0.0;
            for (int i = 0; i < D; i++) logits[c] += (double)head[c * D + i] * y[i];
            sum += exp(logits[c]);
        }
        loss += log(sum) - logits[labels[t]];
    }
    return loss;
}

static void expect(enum talpa_status status, enum talpa_status wanted, const char *words)
{
    assert_int_equal(status, wanted);
    if (!strstr(talpa_error_message(), words)) fail_msg("'%s' does not hold '%s'", talpa_error_message(), words);
}

/* One step of AdamW moves every parameter by the learning rate against its gradient's sign (m/sqrt(v) is +-1 at first), the norm is that of
 * the finite differences, and fewer run-time rows give the loss of those rows. */
static void test_loss_gradient_and_step(void **state)
{
    (void)state;
    float x[T * D], w[D * D], head[V * D];
    const int32_t rows[T] = {0, 1, 2, 3, 4}, labels[T] = {3, 1, 0, 2, 1};
    struct net net = {0};
    fill(x, T * D, 1);
    fill(w, D * D, 2);
    fill(head, V * D, 3);
    open_net(&net, w, head);
    const int64_t n = talpa_parameters_elements(net.parameters),
                  at[2] = {talpa_parameters_offset(net.parameters, 0), talpa_parameters_offset(net.parameters, 1)};
    float *bank = calloc((size_t)n, sizeof *bank), *after = calloc((size_t)n, sizeof *after);
    double p[2][RANK * D], expected_norm = 0.0, gradient[2][RANK * D];
    for (int k = 0; k < 2; k++) {
        fill(bank + at[k], RANK * D, 4 + k);
        for (int i = 0; i < RANK * D; i++) p[k][i] = (double)bank[at[k] + i];
    }
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < RANK * D; i++) {
            const double here = p[k][i], h = 1e-5;
            p[k][i] = here + h;
            const double up = reference_loss(x, labels, T, w, head, p[0], p[1]);
            p[k][i] = here - h;
            gradient[k][i] = (up - reference_loss(x, labels, T, w, head, p[0], p[1])) / (2.0 * h);
            p[k][i] = here;
            expected_norm += gradient[k][i] * gradient[k][i];
        }
    ok(talpa_program_write_parameters(net.program, bank));
    ok(talpa_program_write(net.program, net.x, x, sizeof x));
    ok(talpa_program_write(net.program, net.rows, rows, sizeof rows));
    ok(talpa_program_write(net.program, net.labels, labels, sizeof labels));
    talpa_program_scalar(net.program, TALPA_SCALAR_LEARNING_RATE, 1e-3f);
    float loss, norm;
    talpa_program_rows(net.program, TALPA_ROWS_TOKENS, 3);
    talpa_program_rows(net.program, TALPA_ROWS_LABELLED, 3);
    ok(talpa_program_run(net.program, 0));
    ok(talpa_program_read(net.program, net.loss, &loss, sizeof loss));
    assert_true(fabs((double)loss - reference_loss(x, labels, 3, w, head, p[0], p[1])) < 1e-5);
    talpa_program_rows(net.program, TALPA_ROWS_TOKENS, T + 1);
    expect(talpa_program_run(net.program, 0), TALPA_E_ARGUMENT, "rows, expected up to");
    talpa_program_rows(net.program, TALPA_ROWS_TOKENS, T);
    talpa_program_rows(net.program, TALPA_ROWS_LABELLED, T);
    ok(talpa_program_run(net.program, 0));
    ok(talpa_program_update(net.program));
    ok(talpa_program_read(net.program, net.loss, &loss, sizeof loss));
    ok(talpa_program_read(net.program, net.norm, &norm, sizeof norm));
    assert_true(fabs((double)loss - reference_loss(x, labels, T, w, head, p[0], p[1])) < 1e-5);
    assert_true(fabs((double)norm - sqrt(expected_norm)) < 1e-4 * sqrt(expected_norm));
    ok(talpa_program_read_parameters(net.program, after));
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < RANK * D; i++) {
            if (fabs(gradient[k][i]) < 1e-3) continue;
            const double moved = (double)after[at[k] + i] - p[k][i];
            assert_true(fabs(moved + copysign(1e-3, gradient[k][i])) < 2e-6);
        }
    free(bank);
    free(after);
    close_net(&net);
}

static void test_refusals(void **state)
{
    (void)state;
    struct talpa_graph *graph;
    struct talpa_program *program;
    talpa_value x, w, y, p[1], norm;
    struct talpa_parameters *parameters;
    ok(talpa_graph_create(&graph));
    expect(talpa_graph_input(&x, graph, "x", TALPA_F32, shape(0, 3), TALPA_ROWS_EXACT), TALPA_E_ARGUMENT, "dimension 0 is 0");
    ok(talpa_graph_input(&x, graph, "x", TALPA_F32, shape(2, 3), TALPA_ROWS_EXACT));
    ok(talpa_graph_weight(&w, graph, "w", TALPA_F32, shape(4, 3)));
    expect(talpa_matmul(&y, graph, x, w, TALPA_NONE, false, false), TALPA_E_ARGUMENT, "matmul");
    ok(talpa_matmul(&y, graph, x, w, TALPA_NONE, false, true));
    talpa_graph_output(graph, y);
    ok(talpa_parameters_create(&parameters, p, graph, (const struct talpa_shape[]){shape(2, 2)}, 1));
    expect(talpa_parameters_create(&parameters, p, graph, (const struct talpa_shape[]){shape(2, 2)}, 1), TALPA_E_ARGUMENT, "already");
    expect(talpa_program_create(&program, graph, device, NULL, 0, NULL, TALPA_BASE_AUTO, TALPA_COMPUTE_AUTO, TALPA_DISPATCH_AUTO), TALPA_E_ARGUMENT,
           "weight 'w'");
    const float weight[12] = {0};
    const struct talpa_weight weights[] = {{"w", weight}};
    ok(talpa_program_create(&program, graph, device, weights, 1, NULL, TALPA_BASE_AUTO, TALPA_COMPUTE_AUTO, TALPA_DISPATCH_AUTO));
    float big[8] = {0};
    expect(talpa_program_write(program, x, big, sizeof big), TALPA_E_ARGUMENT, "32 bytes");
    expect(talpa_program_write(program, y, big, 4), TALPA_E_ARGUMENT, "no input");
    expect(talpa_program_read(program, w, big, 4), TALPA_E_ARGUMENT, "not marked");
    expect(talpa_program_read(program, 99, big, 4), TALPA_E_ARGUMENT, "no value 99");
    expect(talpa_program_update(program), TALPA_E_ARGUMENT, "without parameters");
    talpa_program_free(program);
    expect(talpa_graph_minimise(&norm, graph, y, parameters, NULL), TALPA_E_ARGUMENT, "");
    talpa_parameters_free(parameters);
    talpa_graph_free(graph);
}

int main(void)
{
    struct talpa_device_caps *caps;
    size_t n;
    if (talpa_device_list(&caps, &n) != TALPA_OK) return 77;
    const enum talpa_status status = talpa_device_select(&device, caps, n, NULL);
    free(caps);
    if (status != TALPA_OK) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_loss_gradient_and_step), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
