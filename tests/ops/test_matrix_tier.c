/* The matrix tiers beyond the cases of matmul: their stated error for operands that are not bf16, weights in several allocations, one
 * conversion for all readers of a value, and kernels of AMX that compile where there is no AMX. */
#include "ops_test.h"

#include <math.h>

#include "base/dtype.h"
#include "exec/tier.h"
#include "graph/op.h"

/* SMALL_ALLOC: the quantised weights below fit one allocation as in the file, but not in the padded layouts of the tiers. */
enum { M = 37, D = 200, MOST = 256, SMALL_ALLOC = 39000 };

static float value_at(uint32_t i, uint32_t seed) { return (float)((int)((i + seed * 7919u) * 2654435761u >> 8) - (1 << 23)) / (float)(1 << 23); }

static struct tp_plan_options options_for(const char *tier)
{
    struct tp_plan_options options = {.compute_dtype = TP_COMPUTE_BF16};
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    return options;
}

/* y = c + x W^T or x W, with `dtype` and a largest allocation; every element within 2^-8 of the sum of the absolute terms. */
static void check_error(const char *tier, enum talpa_dtype dtype, enum tp_base_dtype base, bool transpose_b, uint64_t max_alloc_bytes)
{
    const int rows = transpose_b ? 130 : 226, columns = transpose_b ? 256 : 160;
    const int k = transpose_b ? columns : rows, n = transpose_b ? rows : columns;
    static float w[MOST * MOST], x[M * MOST], c[M * MOST], y[M * MOST];
    static uint8_t bytes[sizeof w];
    for (int i = 0; i < rows * columns; i++) w[i] = value_at((uint32_t)i, 1);
    for (int i = 0; i < M * k; i++) x[i] = value_at((uint32_t)i, 2);
    for (int i = 0; i < M * n; i++) c[i] = value_at((uint32_t)i, 3);
    tp_dtype_from_f32(bytes, w, dtype, rows * columns);
    tp_dtype_to_f32(w, bytes, dtype, rows * columns);

    struct test_run run;
    test_run_open(&run);
    struct tp_plan_options options = options_for(tier);
    options.base_dtype = base;
    assert_ok(tp_tier_find(&options, run.device));
    struct talpa_device_caps caps = *tp_device_caps(run.device);
    if (max_alloc_bytes) caps.max_alloc_bytes = max_alloc_bytes;
    talpa_value vx, vw, vc, vy;
    const struct tp_store_source source = {.type = tp_type_2d(dtype, TP_STEP_NONE, rows, columns), .data = bytes};
    assert_ok(tp_graph_input(run.graph, &vx, "x", tp_type_2d(TALPA_F32, TP_STEP_NONE, M, k)));
    assert_ok(tp_graph_input(run.graph, &vc, "c", tp_type_2d(TALPA_F32, TP_STEP_NONE, M, n)));
    assert_ok(tp_graph_weight(run.graph, &vw, "w", source.type));
    assert_ok(talpa_matmul(&vy, run.graph, vx, vw, vc, false, transpose_b));
    tp_graph_mark_output(run.graph, vy);
    assert_ok(tp_store_bind(run.store, "w", &source));
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, &caps, &options));
    assert_string_equal(run.plan->variant[0]->tier, tier);
    if (max_alloc_bytes) assert_true(run.plan->phase[TP_PHASE_BATCH].n > 2); /* the conversion of x, and several parts */
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    assert_ok(tp_executor_write(run.executor, vx, x, sizeof *x * (size_t)(M * k)));
    assert_ok(tp_executor_write(run.executor, vc, c, sizeof *c * (size_t)(M * n)));
    assert_ok(tp_executor_poison(run.executor));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_read(run.executor, vy, y, sizeof *y * (size_t)(M * n)));
    double worst = 0;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < n; j++) {
            double want = (double)c[i * n + j], terms = fabs(want);
            for (int l = 0; l < k; l++) {
                const double term = (double)x[i * k + l] * (double)w[transpose_b ? j * columns + l : l * columns + j];
                want += term;
                terms += fabs(term);
            }
            const double error = fabs((double)y[i * n + j] - want) / terms;
            if (!(error <= worst)) worst = error;
        }
    /* Far below the bound there would be no rounding, and so no matrix tier. */
    if (!(worst < 0x1p-8 && worst > 1e-6)) fail_msg("%s: error %.3g of the sum of the absolute terms", tier, worst);
    test_run_close(&run);
}

static bool has_tier(const char *tier)
{
    struct test_run run;
    struct tp_plan_options options = options_for(tier);
    test_run_open(&run);
    assert_ok(tp_tier_find(&options, run.device));
    const bool has = tp_tier_allowed(tp_device_caps(run.device), &options, tier);
    test_run_close(&run);
    return has;
}

static void check_tier(const char *tier)
{
    if (!has_tier(tier)) skip();
    check_error(tier, TALPA_F32, TP_BASE_AUTO, true, 0);
    check_error(tier, TALPA_F32, TP_BASE_AUTO, false, 0);
    check_error(tier, TALPA_Q4_1, TP_BASE_BF16, true, 0);
    check_error(tier, TALPA_Q8_0, TP_BASE_NATIVE, true, SMALL_ALLOC);
    check_error(tier, TALPA_Q8_0, TP_BASE_NATIVE, false, SMALL_ALLOC);
    check_error(tier, TALPA_Q8_0, TP_BASE_BF16, true, SMALL_ALLOC);
}

static void test_x86_bf16(void **state)
{
    (void)state;
    check_tier("x86_bf16");
}

static void test_x86_amx(void **state)
{
    (void)state;
    setenv("TALPA_AMX_EMULATE", "1", 1);
    check_tier("x86_amx");
    unsetenv("TALPA_AMX_EMULATE");
}

/* q, k and v of one x: x is converted once. The last product is of one trained matrix and stays in f32. */
static void test_one_conversion(void **state)
{
    (void)state;
    if (!has_tier("x86_bf16")) skip();
    struct test_run run;
    test_run_open(&run);
    struct tp_plan_options options = {.compute_dtype = TP_COMPUTE_BF16};
    assert_ok(tp_tier_find(&options, run.device));
    talpa_value x, w, y;
    assert_ok(tp_graph_input(run.graph, &x, "x", tp_type_2d(TALPA_F32, TP_STEP_NONE, M, D)));
    for (int i = 0; i < 4; i++) {
        const char *const names[] = {"q", "k", "v", "lora_a"};
        const struct tp_type type = tp_type_2d(TALPA_F32, TP_STEP_NONE, 32, D);
        if (i < 3) assert_ok(tp_graph_weight(run.graph, &w, names[i], type));
        else assert_ok(tp_graph_state(run.graph, &w, names[i], type));
        assert_ok(talpa_matmul(&y, run.graph, x, w, TALPA_NONE, false, true));
        tp_graph_mark_output(run.graph, y);
    }
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, tp_device_caps(run.device), &options));
    int n_conversions = 0;
    for (int i = 0; i < run.plan->phase[TP_PHASE_BATCH].n; i++)
        if (!strcmp(run.plan->phase[TP_PHASE_BATCH].item[i].kernel, "pack_rows")) n_conversions++;
    assert_int_equal(n_conversions, 1);
    assert_string_equal(run.plan->variant[0]->tier, "x86_amx\0x86_bf16" + (tp_tier_bit("x86_amx") & options.matrix_tiers ? 0 : 8));
    assert_string_equal(run.plan->variant[3]->tier, "cpu");
    /* Asked for f32, or a tier forced: no matrix tier. */
    struct tp_plan_options f32 = {.compute_dtype = TP_COMPUTE_F32, .matrix_tiers = ~0u};
    assert_false(tp_tier_allowed(tp_device_caps(run.device), &f32, "x86_bf16"));
    options = options_for("cpu");
    assert_ok(tp_tier_find(&options, run.device));
    assert_int_equal(options.matrix_tiers, 0);
    test_run_close(&run);
}

/* The tile instructions go through the device's compiler; a product of no rows returns before the first of them. */
static void test_amx_compiles(void **state)
{
    (void)state;
    static float w[64 * 64];
    struct test_run run;
    test_run_open(&run);
    const struct talpa_device_caps *caps = tp_device_caps(run.device);
    if (!caps->in_process || !strstr(caps->cpu_features, "avx2") || strstr(caps->platform, "Oclgrind")) {
        test_run_close(&run);
        skip();
    }
    struct tp_plan_options options = options_for("x86_amx");
    options.matrix_tiers = tp_tier_bit("x86_amx");
    talpa_value vx, vw, vy;
    const struct tp_store_source source = {.type = tp_type_2d(TALPA_F32, TP_STEP_NONE, 64, 64), .data = w};
    assert_ok(tp_graph_input(run.graph, &vx, "x", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, M, 64)));
    assert_ok(tp_graph_weight(run.graph, &vw, "w", source.type));
    assert_ok(talpa_matmul(&vy, run.graph, vx, vw, TALPA_NONE, false, true));
    tp_graph_mark_output(run.graph, vy);
    assert_ok(tp_store_bind(run.store, "w", &source));
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, caps, &options));
    assert_string_equal(run.plan->variant[0]->tier, "x86_amx");
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    assert_ok(tp_executor_step(run.executor, &(struct tp_step){{0}}));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_finish(run.executor));
    test_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_x86_bf16), cmocka_unit_test(test_x86_amx), cmocka_unit_test(test_one_conversion),
                                       cmocka_unit_test(test_amx_compiles)};
    test_need_device();
    unsetenv("TALPA_AMX_EMULATE");
    unsetenv("TALPA_TIER");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
