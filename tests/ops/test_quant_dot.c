/* Products of few rows by dot products of integers (tiers x86_vnni and x86_avx2, kernels/common/quant_dot.clh) with weights of every quantised
 * type in random blocks and in blocks of the largest levels: against sums in double, with activations that are hard to encode; the same bits from
 * the processor's instructions, AVX512-VNNI and AVX2, and from plain OpenCL C, and for any number of rows; NaN for a row with an infinite or undefined value, and for no other row. */
#include "ops_test.h"

#include <float.h>
#include <math.h>

#include "base/dtype.h"
#include "exec/tier.h"

enum { M = 37, N = 70, K = 512 };

static const enum talpa_dtype types[] = {TALPA_Q4_0, TALPA_Q4_1, TALPA_Q5_0, TALPA_Q5_1, TALPA_Q8_0, TALPA_Q4_K, TALPA_Q5_K, TALPA_Q6_K};

static uint8_t bytes[N * K * 4];
static float weight[N * K], x[M * K], c[M * N];

static uint32_t next_random(uint32_t *state) { return *state = *state * 1664525u + 1013904223u; }

/* Random levels, from row 32 on many blocks of one byte (the largest and smallest levels); the f16 scale and, where there is one, shift of a block
 * between 2^-6 and 2, some negative, subnormal or zero. */
static void fill_weight(enum talpa_dtype dtype)
{
    const size_t n_bytes = tp_dtype_bytes(dtype, N * K), block = tp_dtype_block_bytes(dtype), offset = dtype == TALPA_Q6_K ? 208 : 0;
    const size_t n_halves = dtype == TALPA_Q4_1 || dtype == TALPA_Q5_1 || dtype == TALPA_Q4_K || dtype == TALPA_Q5_K ? 2 : 1;
    uint32_t state = 3;
    for (size_t i = 0; i < n_bytes; i++) bytes[i] = (uint8_t)(next_random(&state) >> 24);
    static const uint8_t extreme[] = {0xff, 0x80, 0x7f, 0x00, 0x0f, 0xf0};
    for (size_t b = n_bytes / N * 32 / block; b < n_bytes / block; b++)
        if (b % 3) memset(bytes + b * block, extreme[b % 17 % sizeof extreme], block);
    for (size_t b = 0; b < n_bytes; b += block)
        for (size_t h = 0; h < n_halves; h++) {
            const uint32_t random = next_random(&state) >> 8, exponent = random % 32 == 0 ? 0 : 9 + random % 7;
            const uint32_t bits = random % 64 == 0 ? 0 : exponent << 10 | (random >> 6 & 0x83ff);
            bytes[b + offset + 2 * h] = (uint8_t)bits;
            bytes[b + offset + 2 * h + 1] = (uint8_t)(bits >> 8);
        }
    tp_dtype_to_f32(weight, bytes, dtype, N * K);
}

static void fill_x(void)
{
    uint32_t state = 5;
    for (int i = 0; i < M * K; i++) x[i] = ((float)(next_random(&state) >> 8) / (float)(1 << 23) - 1.0f) * (i / 32 % 3 ? 1.0f : 40.0f);
    for (int i = 0; i < K; i++) {
        x[1 * K + i] = 0.0f;
        x[2 * K + i] *= i / 32 % 2 ? 1e30f : 1e-30f;  /* blocks far apart */
        x[3 * K + i] *= 1e-40f;                       /* subnormal */
        x[4 * K + i] = i % 2 ? 2.0f - 0x1p-23f : -2.0f + 0x1p-23f; /* just below a power of two: the most that digits hold */
        x[5 * K + i] = i % 32 == 9 ? 1.0f : 0x1.8p-24f * x[5 * K + i]; /* one large value among small ones */
        x[6 * K + i] = (float)(i % 7 - 3);            /* exact */
        x[7 * K + i] *= 1e-25f;
        /* The largest digits of either sign in all columns: -126 -128 -128, 127 127 127 (as far as the first may go), and in turn. */
        x[8 * K + i] = -(126.0f * 65536.0f + 128.0f * 256.0f + 128.0f);
        x[9 * K + i] = 126.0f * 65536.0f + 127.0f * 256.0f + 127.0f;
        x[10 * K + i] = i / 32 % 2 ? x[8 * K + i] : x[9 * K + i];
        x[11 * K + i] = i % 4 < 2 ? x[8 * K + i] : x[9 * K + i];
    }
    for (int i = 0; i < M * N; i++) c[i] = (float)(i % 11) - 5.0f;
}

/* How products are made; PLAIN is the definition. */
enum form { PLAIN, VNNI, AVX2 };

static const char *tier_of(enum form form) { return form == AVX2 ? "x86_avx2" : "x86_vnni"; }

/* y[i] = row i of c + x W^T for the first m rows of a bound of M. */
static void multiply(float *y, enum talpa_dtype dtype, int m, enum form form, bool adds)
{
    struct test_run run;
    talpa_value vx, vw, vc, vy;
    struct tp_plan_options options = {.use = TP_USE_DECODE};
    const struct tp_store_source source = {.type = tp_type_2d(dtype, TP_STEP_NONE, N, K), .data = bytes};
    snprintf(options.tier, sizeof options.tier, "%s", tier_of(form));
    test_run_open(&run);
    if (form == PLAIN) setenv("TALPA_VNNI_EMULATE", "1", 1);
    else unsetenv("TALPA_VNNI_EMULATE");
    assert_ok(tp_tier_find(&options, run.device));
    assert_ok(tp_graph_input(run.graph, &vx, "x", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, M, K)));
    assert_ok(tp_graph_input(run.graph, &vc, "c", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, M, N)));
    assert_ok(tp_graph_weight(run.graph, &vw, "w", source.type));
    assert_ok(talpa_matmul(&vy, run.graph, vx, vw, adds ? vc : TALPA_NONE, false, true));
    tp_graph_mark_output(run.graph, vy);
    assert_ok(tp_store_bind(run.store, "w", &source));
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, tp_device_caps(run.device), &options));
    assert_string_equal(run.plan->variant[0]->tier, tier_of(form));
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = (uint32_t)m;
    assert_ok(tp_executor_step(run.executor, &step));
    assert_ok(tp_executor_write(run.executor, vx, x, sizeof *x * (size_t)(m * K)));
    if (adds) assert_ok(tp_executor_write(run.executor, vc, c, sizeof *c * (size_t)(m * N)));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_read(run.executor, vy, y, sizeof *y * (size_t)(m * N)));
    test_run_close(&run);
    unsetenv("TALPA_VNNI_EMULATE");
}

/* In units of 2^-23 of the sum over blocks of 32 x the largest |x| x the largest |w|. Levels begin at any number, so shifts may be larger than
 * what is left of them, but not by much; by more where blocks have one level only and x one
 * sign: rows and columns of extremes may be off by eight times as much. */
static double check_values(const float *y, bool adds)
{
    double worst = 0;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double want = adds ? (double)c[i * N + j] : 0, size = fabs(want);
            for (int b = 0; b < K; b += 32) {
                double most_x = 0x1p-97, most_w = 0;
                for (int k = b; k < b + 32; k++) {
                    want += (double)x[i * K + k] * (double)weight[j * K + k];
                    most_x = fmax(most_x, fabs((double)x[i * K + k]));
                    most_w = fmax(most_w, fabs((double)weight[j * K + k]));
                }
                size += 32 * most_x * most_w;
            }
            const double error = fabs((double)y[i * N + j] - want) / size * 0x1p23 / (j < 32 && (i < 8 || i > 11) ? 1 : 8);
            if (!(error <= worst)) worst = error;
        }
    return worst;
}

/* In this form the bits of `want`, for any number of rows, and NaN where it is due. */
static void check_form(const float *want, enum talpa_dtype dtype, enum form form)
{
    static float got[M * N];
    static const int counts[] = {M, 1, 2, 3, 6, 33};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        multiply(got, dtype, counts[i], form, true);
        assert_memory_equal(got, want, (size_t)(counts[i] * N) * sizeof *want);
    }
    x[2 * K + 77] = NAN;
    x[5 * K + 31] = -INFINITY;
    multiply(got, dtype, M, form, true);
    for (int i = 0; i < M * N; i++) {
        const bool is_bad = i / N == 2 || i / N == 5;
        assert_true(is_bad ? isnan(got[i]) : !memcmp(&got[i], &want[i], sizeof got[i]));
    }
    fill_x();
}

static void check_type(enum talpa_dtype dtype, bool has_vnni, bool has_avx2)
{
    static float want[M * N];
    fill_weight(dtype);
    fill_x();
    multiply(want, dtype, M, PLAIN, true);
    const double error = check_values(want, true);
    printf("%s: error %.2g\n", tp_dtype_name(dtype), error);
    assert_true(error < 1.0);
    if (has_vnni) check_form(want, dtype, VNNI);
    if (has_avx2) check_form(want, dtype, AVX2);
    if (!has_vnni && !has_avx2) check_form(want, dtype, PLAIN);
}

static void every_type(void **state)
{
    (void)state;
    struct test_run run;
    test_run_open(&run);
    const struct talpa_device_caps *caps = tp_device_caps(run.device);
    const bool is_cpu = caps->in_process;
    const unsigned tiers = is_cpu ? tp_tier_expected(caps) : 0;
    test_run_close(&run);
    for (size_t i = 0; i < sizeof types / sizeof *types && is_cpu; i++)
        check_type(types[i], tiers & tp_tier_bit("x86_vnni"), tiers & tp_tier_bit("x86_avx2"));
    if (!is_cpu) skip();
}

int main(void)
{
    test_need_device();
    unsetenv("TALPA_VNNI_EMULATE");
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_type)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
