#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "base/rng.h"

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Value of a half from its definition, by ldexp, independent of the code under test. */
static double half_value(uint16_t h)
{
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void test_every_half(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const float value = tp_f16_to_f32((uint16_t)h);
        if ((h >> 10 & 31) == 31) {
            assert_true(h & 1023 ? isnan(value) : isinf(value));
            if (!(h & 1023))
                assert_int_equal(tp_f32_to_f16(value), h);
            else
                assert_true(isnan(tp_f16_to_f32(tp_f32_to_f16(value))));
            continue;
        }
        assert_true((double)value == half_value((uint16_t)h));
        assert_int_equal(tp_f32_to_f16(value), h);
    }
}

/* Between two neighbouring halves: below, at and above the middle; the tie goes to the even one. */
static void test_half_rounding(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h += 1 + h % 5) {
        const double lo = half_value((uint16_t)h), hi = half_value((uint16_t)(h + 1)), middle = (lo + hi) / 2;
        assert_int_equal(tp_f32_to_f16((float)middle), h + (h & 1));
        assert_int_equal(tp_f32_to_f16(nextafterf((float)middle, 0.0f)), h);
        assert_int_equal(tp_f32_to_f16(nextafterf((float)middle, INFINITY)), h + 1);
        assert_int_equal(tp_f32_to_f16((float)-middle), (h + (h & 1)) | 0x8000);
    }
    assert_int_equal(tp_f32_to_f16(65504.0f), 0x7bff);
    assert_int_equal(tp_f32_to_f16(nextafterf(65520.0f, 0.0f)), 0x7bff);
    assert_int_equal(tp_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(tp_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(tp_f32_to_f16(1e-30f), 0);
}

static void test_bf16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const float value = tp_bf16_to_f32((uint16_t)h);
        if (isnan(value))
            assert_true(isnan(tp_bf16_to_f32(tp_f32_to_bf16(value))));
        else
            assert_int_equal(tp_f32_to_bf16(value), h);
    }
    assert_int_equal(tp_f32_to_bf16(from_bits(0x3f808000)), 0x3f80); /* tie to even */
    assert_int_equal(tp_f32_to_bf16(from_bits(0x3f818000)), 0x3f82);
    assert_int_equal(tp_f32_to_bf16(from_bits(0x3f808001)), 0x3f81);
    assert_int_equal(tp_f32_to_bf16(from_bits(0x7f7fffff)), 0x7f80); /* overflow to infinity */
    assert_true(isnan(tp_bf16_to_f32(tp_f32_to_bf16(from_bits(0x7f800001)))));
}

static void test_sizes(void **state)
{
    (void)state;
    assert_int_equal(tp_dtype_bytes(TALPA_F32, 64), 256);
    assert_int_equal(tp_dtype_bytes(TALPA_BF16, 64), 128);
    assert_int_equal(tp_dtype_bytes(TALPA_Q8_0, 64), 68);
    assert_int_equal(tp_dtype_bytes(TALPA_Q4_0, 64), 36);
    assert_int_equal(tp_dtype_bytes(TALPA_Q4_1, 64), 40);
    assert_true(tp_dtype_bytes(TALPA_F32, INT64_C(1) << 40) == (size_t)1 << 42);
    assert_string_equal(tp_dtype_name(TALPA_Q4_1), "q4_1");
    assert_true(tp_dtype_is_quantised(TALPA_Q8_0));
    assert_false(tp_dtype_is_quantised(TALPA_I32));
    assert_int_equal(tp_dtype_block(TALPA_Q4_0), 32);
    assert_int_equal(tp_dtype_block(TALPA_I32), 1);
}

/* Blocks written by hand after the layouts in talpa/types.h. */
static void test_blocks_by_hand(void **state)
{
    (void)state;
    uint8_t q8[34] = {0x00, 0x38}, q4_0[18] = {0x00, 0x38}, q4_1[20] = {0x00, 0x38, 0x00, 0xc0}; /* d = 0.5, m = -2 */
    for (int i = 0; i < 32; i++) q8[2 + i] = (uint8_t)(i * 8 - 128);
    for (int i = 0; i < 16; i++) {
        q4_0[2 + i] = (uint8_t)(i | (15 - i) << 4);
        q4_1[4 + i] = (uint8_t)(i | (15 - i) << 4);
    }
    float out[32];
    tp_dtype_to_f32(out, q8, TALPA_Q8_0, 32);
    for (int i = 0; i < 32; i++) assert_true(out[i] == 0.5f * (float)(i * 8 - 128));
    tp_dtype_to_f32(out, q4_0, TALPA_Q4_0, 32);
    for (int i = 0; i < 32; i++) assert_true(out[i] == 0.5f * (float)((i < 16 ? i : 31 - i) - 8));
    tp_dtype_to_f32(out, q4_1, TALPA_Q4_1, 32);
    for (int i = 0; i < 32; i++) assert_true(out[i] == 0.5f * (float)(i < 16 ? i : 31 - i) - 2.0f);
}

/* The error of a round trip is at most half a step (the 4-bit symmetric type clips its positive end: one step). */
static void test_round_trip_errors(void **state)
{
    (void)state;
    enum { N = 1280 };
    float source[N], back[N];
    uint8_t bytes[2 * N];
    tp_rng_fill_splitmix(source, N, 11, 3, 2.0);
    const float scale_error = 0x1p-11f; /* the scale is a half */
    const struct {
        enum talpa_dtype dtype;
        float bound; /* relative to the largest magnitude of the block (K types: of its 256 elements; their scales have 6 bits) */
    } cases[] = {{TALPA_Q8_0, 0.5f / 127.0f + scale_error},
                 {TALPA_Q4_0, 1.0f / 8.0f + scale_error},
                 {TALPA_Q4_1, 1.0f / 15.0f + 3.0f * scale_error},
                 {TALPA_Q5_0, 1.0f / 16.0f + scale_error},
                 {TALPA_Q5_1, 1.0f / 31.0f + 3.0f * scale_error},
                 {TALPA_Q4_K, 2.0f / 15.0f * (0.5f + 15.0f / 126.0f) + 1.0f / 63.0f},
                 {TALPA_Q5_K, 2.0f / 31.0f * (0.5f + 31.0f / 126.0f) + 1.0f / 63.0f},
                 {TALPA_Q6_K, 1.0f / 32.0f + 1.0f / 127.0f},
                 {TALPA_F16, 0x1p-11f},
                 {TALPA_BF16, 0x1p-8f}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        tp_dtype_from_f32(bytes, source, cases[k].dtype, N);
        tp_dtype_to_f32(back, bytes, cases[k].dtype, N);
        const int size = tp_dtype_block(cases[k].dtype) > 32 ? 256 : 32;
        for (int block = 0; block < N / size; block++) {
            float largest = 0.0f;
            for (int i = 0; i < size; i++) largest = fmaxf(largest, fabsf(source[block * size + i]));
            for (int i = block * size; i < block * size + size; i++) assert_true(fabsf(back[i] - source[i]) <= cases[k].bound * largest);
        }
    }
    memset(source, 0, 256 * sizeof *source);
    for (int dtype = TALPA_Q8_0; dtype < TALPA_N_DTYPES; dtype++) {
        tp_dtype_from_f32(bytes, source, (enum talpa_dtype)dtype, 256);
        tp_dtype_to_f32(back, bytes, (enum talpa_dtype)dtype, 256);
        for (int i = 0; i < 256; i++) assert_true(back[i] == 0.0f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half), cmocka_unit_test(test_half_rounding),  cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_sizes),      cmocka_unit_test(test_blocks_by_hand), cmocka_unit_test(test_round_trip_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
