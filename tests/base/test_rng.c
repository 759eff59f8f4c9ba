#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "base/rng.h"

/* Known answers of the Random123 distribution (kat_vectors, philox4x32, 10 rounds). */
static void test_philox_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        uint32_t out[4];
        tp_rng_philox(out, vectors[i].counter, vectors[i].key);
        assert_memory_equal(out, vectors[i].expected, sizeof out);
    }
}

static void test_philox_in_place(void **state)
{
    (void)state;
    uint32_t words[4] = {0, 0, 0, 0};
    const uint32_t key[2] = {0, 0};
    tp_rng_philox(words, words, key);
    assert_int_equal(words[0], 0x6627e8d5);
    assert_int_equal(words[3], 0x9b00dbd8);
}

static void test_uniform_range(void **state)
{
    (void)state;
    assert_true(tp_rng_uniform(0) == 0.0f);
    assert_true(tp_rng_uniform(255) == 0.0f);
    assert_true(tp_rng_uniform(256) == 0x1p-24f);
    assert_true(tp_rng_uniform(0x80000000u) == 0.5f);
    assert_true(tp_rng_uniform(0xffffffffu) == 1.0f - 0x1p-24f);
}

/* Moments of 200000 values: the bounds are five standard errors. */
static void test_normal_moments(void **state)
{
    (void)state;
    const int n = 200000;
    double sum = 0.0, squares = 0.0, cross = 0.0, fourth = 0.0;
    for (int i = 0; i < n / 4; i++) {
        const uint32_t counter[4] = {(uint32_t)i, 0, 0, 0}, key[2] = {42, 0};
        uint32_t words[4];
        float values[4];
        tp_rng_philox(words, counter, key);
        tp_rng_normal(values, words[0], words[1]);
        tp_rng_normal(values + 2, words[2], words[3]);
        for (int k = 0; k < 4; k++) {
            sum += (double)values[k];
            squares += (double)values[k] * (double)values[k];
            fourth += pow((double)values[k], 4.0);
        }
        cross += (double)values[0] * (double)values[1];
    }
    assert_true(fabs(sum / n) < 5.0 / sqrt(n));
    assert_true(fabs(squares / n - 1.0) < 5.0 * sqrt(2.0 / n));
    assert_true(fabs(fourth / n - 3.0) < 5.0 * sqrt(96.0 / n));
    assert_true(fabs(cross / (n / 4.0)) < 5.0 / sqrt(n / 4.0));
}

static void test_normal_extremes(void **state)
{
    (void)state;
    float values[2];
    tp_rng_normal(values, 0, 0);
    assert_true(isfinite(values[0]) && values[0] > 5.7f && values[0] < 5.8f); /* sqrt(2 * 24 * ln 2) = 5.768 */
    tp_rng_normal(values, 0xffffffffu, 0xffffffffu);
    assert_true(values[0] == 0.0f && values[1] == 0.0f);
}

/* First outputs of the reference generator for state 1234567 (Vigna's splitmix64.c). */
static void test_splitmix_known_answers(void **state)
{
    (void)state;
    assert_true(tp_rng_splitmix64(1234567, 1) == UINT64_C(6457827717110365317));
    assert_true(tp_rng_splitmix64(1234567, 2) == UINT64_C(3203168211198807973));
    assert_true(tp_rng_splitmix64(1234567, 3) == UINT64_C(9817491932198370423));
    assert_true(tp_rng_splitmix64(1234567, 4) == UINT64_C(4593380528125082431));
}

/* Values computed by an independent Python script for seed 7, parameter 0, scale 1/sqrt(576). */
static void test_fill_splitmix(void **state)
{
    (void)state;
    float values[4];
    tp_rng_fill_splitmix(values, 4, 7, 0, 1.0 / sqrt(576.0));
    assert_true(values[0] == 0.013630270957946777f);
    assert_true(values[1] == -0.018465794622898102f);
    assert_true(values[2] == 0.01643841154873371f);
    assert_true(values[3] == -0.0071120611391961575f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers), cmocka_unit_test(test_philox_in_place), cmocka_unit_test(test_uniform_range),
        cmocka_unit_test(test_normal_moments),       cmocka_unit_test(test_normal_extremes), cmocka_unit_test(test_splitmix_known_answers),
        cmocka_unit_test(test_fill_splitmix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
