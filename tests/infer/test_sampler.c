/* Sampling against naive rules and against the distribution that it should draw from; stop texts and streaming. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "infer/sampler.h"
#include "infer/stop.h"

enum { N = 300 };

static float logits[N];

static void make_logits(uint32_t salt, float scale)
{
    for (uint32_t i = 0; i < N; i += 2) {
        uint32_t words[4];
        tp_rng_philox(words, (uint32_t[4]){i, salt, 0, 0}, (uint32_t[2]){1, 2});
        tp_rng_normal(logits + i, words[0], words[1]);
        logits[i] *= scale;
        logits[i + 1] *= scale;
    }
    logits[17] = logits[16]; /* a tie */
}

static struct tp_sampler create(const struct talpa_sampling *sampling)
{
    struct tp_sampler sampler;
    assert_int_equal(tp_sampler_create(&sampler, sampling, N), TALPA_OK);
    return sampler;
}

/* ---- filters ---- */

/* The same rules, written with flags and plain loops: probabilities by token, 0 for what is filtered out. */
static void naive(double *p, const struct talpa_sampling *s, const int32_t *history, size_t n_history)
{
    double l[N];
    bool in[N];
    for (int i = 0; i < N; i++) {
        bool seen = false;
        const size_t last = s->repeat_last_n < 0 ? n_history : (size_t)s->repeat_last_n;
        for (size_t h = 0; h < n_history; h++) seen |= history[h] == i && h + last >= n_history;
        l[i] = logits[i];
        if (seen) l[i] = (double)(logits[i] > 0 ? logits[i] / (float)s->repeat_penalty : logits[i] * (float)s->repeat_penalty);
        in[i] = true;
    }
    for (int i = 0; i < N && s->top_k; i++) {
        int better = 0;
        for (int j = 0; j < N; j++) better += l[j] > l[i] || (l[j] == l[i] && j < i);
        in[i] = better < s->top_k;
    }
    double sum = 0, most = -HUGE_VAL;
    for (int i = 0; i < N; i++)
        if (in[i]) most = fmax(most, l[i]);
    for (int i = 0; i < N; i++) sum += in[i] ? exp(l[i] - most) : 0;
    bool kept[N];
    for (int i = 0; i < N; i++) {
        double before = 0; /* mass of what is better: a token stays if that is not yet enough */
        for (int j = 0; j < N; j++)
            if (in[j] && (l[j] > l[i] || (l[j] == l[i] && j < i))) before += exp(l[j] - most) / sum;
        kept[i] = in[i] && (before < s->top_p || s->top_p >= 1.0 || (before == 0 && l[i] == most));
    }
    double total = 0;
    for (int i = 0; i < N; i++) {
        p[i] = kept[i] && exp(l[i] - most) >= s->min_p * (1 - 1e-12) ? exp((l[i] - most) / s->temperature) : 0;
        total += p[i];
    }
    for (int i = 0; i < N; i++) p[i] /= total;
}

static void check_filter(const struct talpa_sampling *sampling)
{
    static const int32_t history[] = {5, 16, 200, 16, 7, 299, 0, 41, 41};
    const struct tp_sampler_context context = {.history = history, .n_history = sizeof history / sizeof *history};
    struct tp_sampler sampler = create(sampling);
    double want[N], got[N] = {0};
    naive(want, sampling, history, context.n_history);
    const size_t n = tp_sampler_filter(&sampler, logits, &context);
    for (size_t i = 0; i < n; i++) {
        assert_true(got[sampler.candidates[i].id] == 0.0);
        got[sampler.candidates[i].id] = sampler.candidates[i].probability;
    }
    for (int i = 0; i < N; i++) {
        if ((got[i] > 0) != (want[i] > 0)) fail_msg("token %d: found %g, expected %g", i, got[i], want[i]);
        assert_true(fabs(got[i] - want[i]) < 1e-9);
    }
    tp_sampler_free(&sampler);
}

static void test_filters(void **state)
{
    (void)state;
    static const int top_k[] = {0, 1, 7, 40, 299, 300, 5000}, last_n[] = {0, 3, -1, 64};
    static const double top_p[] = {1.0, 0.95, 0.5, 0.0}, min_p[] = {0.0, 0.05, 0.7, 1.0}, temperature[] = {0.3, 1.0, 2.5};
    for (uint32_t salt = 0; salt < 3; salt++) {
        make_logits(salt, salt == 2 ? 0.2f : 3.0f);
        for (size_t k = 0; k < 7; k++)
            for (size_t p = 0; p < 4; p++)
                for (size_t m = 0; m < 4; m++)
                    check_filter(&(struct talpa_sampling){.temperature = temperature[(k + p + m) % 3],
                                                          .top_k = top_k[k],
                                                          .top_p = top_p[p],
                                                          .min_p = min_p[m],
                                                          .repeat_penalty = m % 2 ? 1.3 : 1.0,
                                                          .repeat_last_n = last_n[(k + m) % 4]});
    }
}

static void test_greedy(void **state)
{
    (void)state;
    struct talpa_sampling sampling;
    talpa_sampling_default(&sampling);
    struct tp_sampler sampler = create(&sampling);
    int32_t id;
    float logprob;
    double sum = 0;
    make_logits(1, 1.0f);
    logits[30] = logits[31] = 9.0f;
    for (int i = 0; i < N; i++) sum += exp((double)logits[i]);
    struct tp_sampler_context context = {.history = (const int32_t[]){30}, .n_history = 1};
    assert_int_equal(tp_sampler_next(&id, &logprob, &sampler, logits, &context), TALPA_OK);
    assert_int_equal(id, 30); /* the lower of two equal ones */
    assert_true(fabs((double)logprob - (9.0 - log(sum))) < 1e-5);
    context.banned = (const int32_t[]){30};
    context.n_banned = 1;
    assert_int_equal(tp_sampler_next(&id, &logprob, &sampler, logits, &context), TALPA_OK);
    assert_int_equal(id, 31);
    context.n_banned = 0;
    sampler.sampling.repeat_penalty = 1.5;
    assert_int_equal(tp_sampler_next(&id, &logprob, &sampler, logits, &context), TALPA_OK);
    assert_int_equal(id, 31);
    assert_true(fabs((double)logprob - (9.0 - log(sum))) < 1e-5); /* under the model, without the penalty */
    logits[3] = NAN;
    assert_int_equal(tp_sampler_next(&id, &logprob, &sampler, logits, &context), TALPA_E_CHECK);
    logits[3] = INFINITY;
    assert_int_equal(tp_sampler_next(&id, &logprob, &sampler, logits, &context), TALPA_E_CHECK);
    tp_sampler_free(&sampler);
}

/* ---- draws ---- */

/* Draws of many requests and positions: frequencies against the probabilities by Pearson's chi-square. */
static double chi_square(const struct talpa_sampling *sampling, int n_draws, int *freedom)
{
    double want[N], statistic = 0, rest = 0;
    int found[N] = {0}, n_rest = 0;
    struct tp_sampler sampler = create(sampling);
    naive(want, sampling, NULL, 0);
    for (int i = 0; i < n_draws; i++) {
        const struct tp_sampler_context context = {.request = (uint64_t)(i / 50), .position = (uint32_t)(i % 50)};
        int32_t id;
        float logprob;
        assert_int_equal(tp_sampler_next(&id, &logprob, &sampler, logits, &context), TALPA_OK);
        found[id]++;
    }
    *freedom = -1;
    for (int i = 0; i < N; i++) {
        if (want[i] == 0) assert_int_equal(found[i], 0);
        if (want[i] * n_draws < 8) {
            rest += want[i] * n_draws;
            n_rest += found[i];
            continue;
        }
        statistic += (found[i] - want[i] * n_draws) * (found[i] - want[i] * n_draws) / (want[i] * n_draws);
        ++*freedom;
    }
    if (rest > 8) {
        statistic += (n_rest - rest) * (n_rest - rest) / rest;
        ++*freedom;
    }
    tp_sampler_free(&sampler);
    return statistic;
}

static void test_distribution(void **state)
{
    (void)state;
    static const struct talpa_sampling options[] = {
        {.temperature = 1, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 0.7, .top_k = 40, .top_p = 0.95, .min_p = 0.05, .repeat_penalty = 1, .seed = 12345678901234},
        {.temperature = 2, .top_p = 1, .min_p = 0.02, .repeat_penalty = 1, .seed = 3},
        {.temperature = 1, .top_k = 2, .top_p = 1, .repeat_penalty = 1, .seed = 4},
    };
    make_logits(7, 1.5f);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        int freedom;
        const double statistic = chi_square(&options[i], 20000, &freedom);
        /* Wilson and Hilferty 1931: the cube root is nearly normal; 4 standard deviations. */
        const double f = freedom, z = (cbrt(statistic / f) - (1 - 2 / (9 * f))) / sqrt(2 / (9 * f));
        printf("chi-square %.1f with %d degrees of freedom: z = %.2f\n", statistic, freedom, z);
        assert_true(fabs(z) < 4);
    }
}

/* The same key gives the same draw; another seed, request or position gives others. */
static void test_keys(void **state)
{
    (void)state;
    struct talpa_sampling sampling = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 1};
    int same[4] = {0};
    make_logits(8, 0.1f);
    struct tp_sampler a = create(&sampling);
    sampling.seed = 1 + ((uint64_t)1 << 40);
    struct tp_sampler b = create(&sampling);
    for (uint32_t i = 0; i < 500; i++) {
        const struct tp_sampler_context key = {.request = i, .position = 10}, next = {.request = i, .position = 11};
        const struct tp_sampler_context far = {.request = i + ((uint64_t)1 << 33), .position = 10};
        int32_t first, id;
        float logprob;
        assert_int_equal(tp_sampler_next(&first, &logprob, &a, logits, &key), TALPA_OK);
        assert_int_equal(tp_sampler_next(&id, &logprob, &a, logits, &key), TALPA_OK);
        same[0] += id == first;
        assert_int_equal(tp_sampler_next(&id, &logprob, &a, logits, &next), TALPA_OK);
        same[1] += id == first;
        assert_int_equal(tp_sampler_next(&id, &logprob, &a, logits, &far), TALPA_OK);
        same[2] += id == first;
        assert_int_equal(tp_sampler_next(&id, &logprob, &b, logits, &key), TALPA_OK);
        same[3] += id == first;
    }
    assert_int_equal(same[0], 500);
    for (int i = 1; i < 4; i++) assert_in_range(same[i], 0, 15);
    tp_sampler_free(&a);
    tp_sampler_free(&b);
}

static void test_options(void **state)
{
    (void)state;
    static const struct talpa_sampling wrong[] = {
        {.temperature = -1, .top_p = 1, .repeat_penalty = 1}, {.temperature = NAN, .top_p = 1, .repeat_penalty = 1},
        {.top_k = -1, .top_p = 1, .repeat_penalty = 1},       {.top_p = 1.01, .repeat_penalty = 1},
        {.top_p = 1, .min_p = -0.1, .repeat_penalty = 1},     {.top_p = 1, .repeat_penalty = 0},
        {.top_p = 1, .repeat_penalty = 1, .repeat_last_n = -2},
    };
    struct tp_sampler sampler;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) assert_int_equal(tp_sampler_create(&sampler, &wrong[i], N), TALPA_E_ARGUMENT);
}

/* ---- text ---- */

/* Feeds pieces (a NULL ends them); checks what is certain after each, then text and whether it stopped. */
static void check_stream(const char *const *stop, size_t n_stop, const char *const *pieces, const size_t *certain, const char *want,
                         bool stops)
{
    struct tp_answer_text text;
    bool stopped = false;
    assert_int_equal(tp_answer_text_create(&text, stop, n_stop), TALPA_OK);
    for (size_t i = 0; pieces[i] && !stopped; i++) {
        assert_int_equal(tp_answer_text_append(&text, pieces[i], strlen(pieces[i]), &stopped), TALPA_OK);
        if (stopped) break;
        assert_int_equal(tp_answer_text_certain(&text), certain[i]);
        text.n_sent = certain[i];
    }
    assert_int_equal(stopped, stops);
    assert_string_equal(text.bytes, want);
    assert_true(text.n_sent <= text.n_bytes);
    tp_answer_text_free(&text);
}

static void test_stop(void **state)
{
    (void)state;
    static const char *const end[] = {"END"}, *const two[] = {"\n\n", "Question:"}, *const nested[] = {"abcd", "bc"},
                             *const same[] = {"aab"};
    check_stream(end, 1, (const char *[]){"one ", "E", "N", "D", NULL}, (const size_t[]){4, 4, 4}, "one ", true);
    check_stream(end, 1, (const char *[]){"one E", "NE", "ND more", NULL}, (const size_t[]){4, 6}, "one EN", true);
    check_stream(end, 1, (const char *[]){"one E", "N", "d", NULL}, (const size_t[]){4, 4, 7}, "one ENd", false);
    check_stream(end, 1, (const char *[]){"END", NULL}, NULL, "", true);
    check_stream(two, 2, (const char *[]){"a\n", "b\n", "Q", "uestion", ": \n\n", NULL}, (const size_t[]){1, 3, 4, 4}, "a\nb\n", true);
    check_stream(nested, 2, (const char *[]){"xab", "c", NULL}, (const size_t[]){1}, "xa", true);
    check_stream(nested, 2, (const char *[]){"xabcd", NULL}, NULL, "x", true);
    check_stream(same, 1, (const char *[]){"a", "a", "a", "b", NULL}, (const size_t[]){0, 0, 1}, "a", true);
    check_stream(NULL, 0, (const char *[]){"plain", " text", NULL}, (const size_t[]){5, 10}, "plain text", false);
    struct tp_answer_text text;
    assert_int_equal(tp_answer_text_create(&text, (const char *[]){"a", ""}, 2), TALPA_E_ARGUMENT);
}

static void test_characters(void **state)
{
    (void)state;
    static const char *const stop[] = {"\xE2\x82\xAC!"};
    /* One byte per token: a character is told when it is whole. */
    check_stream(NULL, 0, (const char *[]){"a", "\xC3", "\xA9", "\xE2", "\x82", "\xAC", "\xF0", "\x9F", "\x90", "\xBE", NULL},
                 (const size_t[]){1, 1, 3, 3, 3, 6, 6, 6, 6, 10}, "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x90\xBE", false);
    /* Bytes that can begin nothing do not wait. */
    check_stream(NULL, 0, (const char *[]){"\xFF", "\x80", "\x80\x80\x80\x80", "\xC3", "b", NULL}, (const size_t[]){1, 2, 6, 6, 8},
                 "\xFF\x80\x80\x80\x80\x80\xC3" "b", false);
    check_stream(stop, 1, (const char *[]){"x\xE2\x82", "\xAC", "?", NULL}, (const size_t[]){1, 1, 5}, "x\xE2\x82\xAC?", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filters), cmocka_unit_test(test_greedy),  cmocka_unit_test(test_distribution), cmocka_unit_test(test_keys),
        cmocka_unit_test(test_options), cmocka_unit_test(test_stop),    cmocka_unit_test(test_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
