/* Values that their producers make in bf16 for the matrix tiers: the same bits as a conversion of the f32 value, less memory, no launches
 * for conversions, and a bounded error where a value is kept in bf16 only. */
#include "ops_test.h"

#include <math.h>

#include "exec/tier.h"
#include "graph/op.h"

enum { BOUND = 37, ROWS = 29, N_HEADS = 3, N_KV_HEADS = 1, HEAD_DIM = 32, D = N_HEADS * HEAD_DIM, KV = N_KV_HEADS * HEAD_DIM, FFN = 160 };
enum { Q, K, V, O, GATE, UP, DOWN, N_WEIGHTS };

static const struct {
    const char *name;
    int n, k;
} shapes[N_WEIGHTS] = {{"q", D, D}, {"k", KV, D}, {"v", KV, D}, {"o", D, D}, {"gate", FFN, D}, {"up", FFN, D}, {"down", D, FFN}};

static float value_at(uint32_t i, uint32_t seed) { return (float)((int)((i + seed * 7919u) * 2654435761u >> 8) - (1 << 23)) / (float)(1 << 23); }

static float weights[N_WEIGHTS][FFN * D], norm[D], x_rows[BOUND * D], dy_rows[BOUND * D];

static void fill(void)
{
    for (int w = 0; w < N_WEIGHTS; w++)
        for (int i = 0; i < shapes[w].n * shapes[w].k; i++) weights[w][i] = 0.2f * value_at((uint32_t)i, 10 + (uint32_t)w);
    for (int i = 0; i < D; i++) norm[i] = 1.0f + 0.5f * value_at((uint32_t)i, 3);
    for (int i = 0; i < BOUND * D; i++) {
        x_rows[i] = value_at((uint32_t)i, 1);
        dy_rows[i] = value_at((uint32_t)i, 2);
    }
}

/* One layer of a decoder without adapter. The values that are made in bf16: */
enum { NORMED, MIXED, PRODUCT, TO_Q, TO_K, TO_V, TO_GATE, TO_UP, N_KINDS };
struct layer {
    talpa_value x, dy, positions, segments, weight[N_WEIGHTS], norm, gate, up, y, dx, kind[N_KINDS];
};

static void build(struct layer *l, struct test_run *run, bool backward)
{
    struct talpa_graph *graph = run->graph;
    const struct tp_type rows = tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, D);
    talpa_value h, q, k, v, rq, rk, mixed, x;
    for (int w = 0; w < N_WEIGHTS; w++) {
        const struct tp_store_source source = {.type = tp_type_2d(TALPA_F32, TP_STEP_NONE, shapes[w].n, shapes[w].k), .data = weights[w]};
        assert_ok(tp_graph_weight(graph, &l->weight[w], shapes[w].name, source.type));
        assert_ok(tp_store_bind(run->store, shapes[w].name, &source));
    }
    const struct tp_store_source source = {.type = tp_type_1d(TALPA_F32, TP_STEP_NONE, D), .data = norm};
    assert_ok(tp_graph_weight(graph, &l->norm, "norm", source.type));
    assert_ok(tp_store_bind(run->store, "norm", &source));
    assert_ok(tp_graph_input(graph, &l->x, "x", rows));
    assert_ok(tp_graph_input(graph, &l->dy, "dy", rows));
    assert_ok(tp_graph_input(graph, &l->positions, "positions", tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, BOUND)));
    assert_ok(tp_graph_input(graph, &l->segments, "segments", tp_type_2d(TALPA_I32, TP_STEP_N_TOKENS, BOUND, 2)));

    assert_ok(talpa_rms_norm(&h, graph, l->x, l->norm, 1e-5f));
    assert_ok(talpa_matmul(&q, graph, h, l->weight[Q], TALPA_NONE, false, true));
    assert_ok(talpa_matmul(&k, graph, h, l->weight[K], TALPA_NONE, false, true));
    assert_ok(talpa_matmul(&v, graph, h, l->weight[V], TALPA_NONE, false, true));
    assert_ok(talpa_rope(&rq, graph, q, l->positions, N_HEADS, HEAD_DIM, 1e4f));
    assert_ok(talpa_rope(&rk, graph, k, l->positions, N_KV_HEADS, HEAD_DIM, 1e4f));
    assert_ok(talpa_attention(&mixed, graph, rq, rk, v, l->segments, N_HEADS, N_KV_HEADS, HEAD_DIM, 0.176f));
    assert_ok(talpa_matmul(&x, graph, mixed, l->weight[O], l->x, false, true));
    l->kind[NORMED] = h;
    l->kind[MIXED] = mixed;
    assert_ok(talpa_rms_norm(&h, graph, x, l->norm, 1e-5f));
    assert_ok(talpa_matmul(&l->gate, graph, h, l->weight[GATE], TALPA_NONE, false, true));
    assert_ok(talpa_matmul(&l->up, graph, h, l->weight[UP], TALPA_NONE, false, true));
    assert_ok(talpa_swiglu(&h, graph, l->gate, l->up));
    assert_ok(talpa_matmul(&l->y, graph, h, l->weight[DOWN], x, false, true));
    l->kind[PRODUCT] = h;
    tp_graph_mark_output(graph, l->y);
    l->dx = TALPA_NONE;
    if (!backward) return;
    const talpa_value wrt[] = {l->x, q, k, v, l->gate, l->up};
    talpa_value grads[6];
    assert_ok(tp_autodiff(graph, &l->y, &l->dy, 1, wrt, 6, grads));
    l->dx = grads[0];
    tp_graph_mark_output(graph, l->dx);
    for (int i = 0; i < 5; i++) l->kind[TO_Q + i] = grads[1 + i];
}

struct result {
    float y[BOUND * D], dx[BOUND * D];
    int n_conversions;
    size_t arena_bytes;
    bool gate_in_row;
};

/* `keep`: bits of the values that the host reads, so that they have to be there in f32 as well. */
static void run_layer(struct result *result, const char *tier, bool backward, unsigned keep)
{
    struct test_run run;
    struct layer l;
    static int32_t positions[BOUND], segments[BOUND][2];
    struct tp_plan_options options = {.compute_dtype = TP_COMPUTE_BF16, .guard_bytes = 1024};
    memset(result, 0, sizeof *result);
    test_run_open(&run);
    assert_ok(tp_tier_find(&options, run.device));
    options.amx_emulate = !strcmp(tier, "x86_amx") && !(options.matrix_tiers & tp_tier_bit("x86_amx"));
    options.matrix_tiers = tp_tier_bit(tier);
    build(&l, &run, backward);
    for (int i = 0; i < (backward ? N_KINDS : PRODUCT + 1); i++)
        if (keep >> i & 1) tp_graph_mark_output(run.graph, l.kind[i]);
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, tp_device_caps(run.device), &options));
    const struct tp_launch_list *list = &run.plan->phase[TP_PHASE_BATCH];
    for (int i = 0; i < list->n; i++) result->n_conversions += !strcmp(list->item[i].kernel, "pack_rows");
    result->arena_bytes = run.plan->memory.arena_bytes;
    result->gate_in_row = run.plan->row[l.gate].place != TP_PLACE_NONE;
    for (int i = 0; i < BOUND; i++) {
        positions[i] = i < 11 ? i : i - 11; /* two segments */
        segments[i][0] = i < 11 ? 0 : 11;
        segments[i][1] = i < 11 ? 11 : ROWS;
    }
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = ROWS;
    assert_ok(tp_executor_step(run.executor, &step));
    assert_ok(tp_executor_write(run.executor, l.x, x_rows, sizeof x_rows));
    assert_ok(tp_executor_write(run.executor, l.positions, positions, sizeof positions));
    assert_ok(tp_executor_write(run.executor, l.segments, segments, sizeof segments));
    if (backward) assert_ok(tp_executor_write(run.executor, l.dy, dy_rows, sizeof dy_rows));
    assert_ok(tp_executor_poison(run.executor));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_read(run.executor, l.y, result->y, sizeof result->y));
    if (backward) assert_ok(tp_executor_read(run.executor, l.dx, result->dx, sizeof result->dx));
    assert_ok(tp_executor_check_guards(run.executor));
    test_run_close(&run);
}

static bool has_tier(const char *tier)
{
    struct test_run run;
    struct tp_plan_options options = {.compute_dtype = TP_COMPUTE_BF16};
    if (!strcmp(tier, "x86_amx")) setenv("TALPA_AMX_EMULATE", "1", 1);
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    test_run_open(&run);
    assert_ok(tp_tier_find(&options, run.device));
    const struct talpa_device_caps *caps = tp_device_caps(run.device);
    const bool has = tp_tier_allowed(caps, &options, tier) && caps->in_process;
    test_run_close(&run);
    unsetenv("TALPA_AMX_EMULATE");
    return has;
}

static void same_bits(const struct result *a, const struct result *b)
{
    assert_memory_equal(a->y, b->y, ROWS * D * sizeof *a->y);
    assert_memory_equal(a->dx, b->dx, ROWS * D * sizeof *a->dx);
}

static void check_bits(const char *tier)
{
    if (!has_tier(tier)) skip();
    static struct result plain, kept, one;
    for (int backward = 0; backward < 2; backward++) {
        run_layer(&plain, tier, backward, 0);
        run_layer(&kept, tier, backward, ~0u);
        same_bits(&plain, &kept);
        /* What the host gives comes in f32: dy is converted, everything else is made as it is read. */
        assert_int_equal(plain.n_conversions, backward);
        assert_false(plain.gate_in_row);
        assert_true(plain.arena_bytes < kept.arena_bytes);
        for (int i = 0; i < (backward ? N_KINDS : PRODUCT + 1); i++) {
            run_layer(&one, tier, backward, 1u << i);
            same_bits(&plain, &one);
        }
    }
}

static void test_x86_bf16(void **state)
{
    (void)state;
    check_bits("x86_bf16");
}

static void test_x86_amx(void **state)
{
    (void)state;
    check_bits("x86_amx");
}

/* ---- in double precision, without any rounding ---- */

static void product(double *out, const double *a, int w, const double *add)
{
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < shapes[w].n; i++) {
            double sum = add ? add[t * shapes[w].n + i] : 0;
            for (int j = 0; j < shapes[w].k; j++) sum += a[t * shapes[w].k + j] * (double)weights[w][i * shapes[w].k + j];
            out[t * shapes[w].n + i] = sum;
        }
}

static void normalise(double *out, const double *x)
{
    for (int t = 0; t < ROWS; t++) {
        double square = 0;
        for (int i = 0; i < D; i++) square += x[t * D + i] * x[t * D + i];
        for (int i = 0; i < D; i++) out[t * D + i] = x[t * D + i] / sqrt(square / D + 1e-5) * (double)norm[i];
    }
}

static void rotate(double *x, int n_heads)
{
    for (int t = 0; t < ROWS; t++)
        for (int h = 0; h < n_heads; h++)
            for (int i = 0; i < HEAD_DIM / 2; i++) {
                const double angle = (t < 11 ? t : t - 11) * pow(1e4, -2.0 * i / HEAD_DIM);
                double *a = x + (t * n_heads + h) * HEAD_DIM + i, *b = a + HEAD_DIM / 2;
                const double u = *a * cos(angle) - *b * sin(angle), v = *b * cos(angle) + *a * sin(angle);
                *a = u;
                *b = v;
            }
}

static void attend(double *out, const double *q, const double *k, const double *v)
{
    for (int t = 0; t < ROWS; t++)
        for (int h = 0; h < N_HEADS; h++) {
            double weight[BOUND], sum = 0;
            for (int j = t < 11 ? 0 : 11; j <= t; j++) {
                double score = 0;
                for (int i = 0; i < HEAD_DIM; i++) score += q[t * D + h * HEAD_DIM + i] * k[j * KV + i];
                sum += weight[j] = exp(score * (double)0.176f);
            }
            for (int i = 0; i < HEAD_DIM; i++) {
                out[t * D + h * HEAD_DIM + i] = 0;
                for (int j = t < 11 ? 0 : 11; j <= t; j++) out[t * D + h * HEAD_DIM + i] += weight[j] / sum * v[j * KV + i];
            }
        }
}

static void layer_reference(double *y, const double *x)
{
    static double h[BOUND * FFN], q[BOUND * D], k[BOUND * KV], v[BOUND * KV], mixed[BOUND * D], mid[BOUND * D], gate[BOUND * FFN], up[BOUND * FFN];
    normalise(h, x);
    product(q, h, Q, NULL);
    product(k, h, K, NULL);
    product(v, h, V, NULL);
    rotate(q, N_HEADS);
    rotate(k, N_KV_HEADS);
    attend(mixed, q, k, v);
    product(mid, mixed, O, x);
    normalise(h, mid);
    product(gate, h, GATE, NULL);
    product(up, h, UP, NULL);
    for (int i = 0; i < ROWS * FFN; i++) h[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    product(y, h, DOWN, mid);
}

/* Each of the roundings on the way is one of 2^-9 of a value, and errors of sums of independent ones grow slower than the sums: the whole
 * layer stays within 2^-6 of the largest output. The gradient is compared with differences along one direction. */
static void test_error(void **state)
{
    (void)state;
    if (!has_tier("x86_bf16")) skip();
    static struct result result;
    static double x[BOUND * D], y[BOUND * D], ahead[BOUND * D], back[BOUND * D];
    run_layer(&result, "x86_bf16", true, 0);
    for (int i = 0; i < ROWS * D; i++) x[i] = (double)x_rows[i];
    layer_reference(y, x);
    double largest = 0, worst = 0;
    for (int i = 0; i < ROWS * D; i++) {
        largest = fmax(largest, fabs(y[i]));
        worst = fmax(worst, fabs((double)result.y[i] - y[i]));
    }
    if (!(worst < 0x1p-6 * largest && worst > 1e-6 * largest)) fail_msg("largest %g, error %g", largest, worst);
    const double step = 1e-5;
    double along = 0, measured = 0, size = 0;
    for (int i = 0; i < ROWS * D; i++) {
        const double direction = (double)result.dx[i];
        ahead[i] = x[i] + step * direction;
        back[i] = x[i] - step * direction;
        size += direction * direction;
    }
    layer_reference(y, ahead);
    for (int i = 0; i < ROWS * D; i++) measured += y[i] * (double)dy_rows[i];
    layer_reference(y, back);
    for (int i = 0; i < ROWS * D; i++) measured -= y[i] * (double)dy_rows[i];
    measured /= 2 * step;
    along = size; /* <dx, dx> */
    if (!(fabs(measured - along) < 0x1p-6 * along)) fail_msg("along the gradient %g, by differences %g", along, measured);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_x86_bf16), cmocka_unit_test(test_x86_amx), cmocka_unit_test(test_error)};
    test_need_device();
    unsetenv("TALPA_TIER");
    fill();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
