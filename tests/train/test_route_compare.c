/* Route logs beside each other and beside samples: logs written by hand, matchings against all permutations, means and regressions from
 * NumPy. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "talpa/route.h"

enum { N_EXPERTS = 4, N_TOKENS = 31, N_PERMUTATIONS = 24 };

static char folder[64];

static const char *path_of(const char *name)
{
    static char text[8][128];
    static int next;
    char *path = text[next++ % 8];
    snprintf(path, sizeof text[0], "%s/%s", folder, name);
    return path;
}

static const char *save(const char *name, const char *text)
{
    const char *path = path_of(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    return path;
}

static void ok(enum talpa_status status)
{
    if (status != TALPA_OK) fail_msg("%s", talpa_error_message());
}

static void refused(enum talpa_status status, const char *message)
{
    assert_int_equal(status, TALPA_E_DATA);
    if (!strstr(talpa_error_message(), message)) fail_msg("'%s' is missing in: %s", message, talpa_error_message());
}

/* ---- agreement ---- */

/* A log of one row and one module; weights in ten thousandths. */
static const char *save_log(const char *name, int weight[N_TOKENS][N_EXPERTS], const char *id)
{
    static char text[16384];
    size_t n = (size_t)snprintf(text, sizeof text, "{\"kind\":\"sample\",\"n_experts\":%d,\"tokens\":[", N_EXPERTS);
    for (int t = 0; t < N_TOKENS; t++) n += (size_t)snprintf(text + n, sizeof text - n, "%s[0,%d]", t ? "," : "", (7 * t) % N_TOKENS);
    n += (size_t)snprintf(text + n, sizeof text - n, "]}\n{\"kind\":\"experts\",\"layer\":3,\"module\":\"self_attn.q_proj\",\"sample_weight\":[");
    for (int i = 0; i < N_TOKENS * N_EXPERTS; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%d", i ? "," : "", weight[i / N_EXPERTS][i % N_EXPERTS]);
    snprintf(text + n, sizeof text - n,
             "]}\n{\"kind\":\"row\",\"index\":0,\"id\":\"%s\",\"task\":\"x\",\"n_tokens\":31,\"n_prompt_tokens\":31,\"active_experts\":2,"
             "\"active_prompt\":2,\"active_completion\":null}\n",
             id);
    return save(name, text);
}

/* Two experts of each token, the heavier one given by `which`. */
static void fill(int weight[N_TOKENS][N_EXPERTS], uint64_t seed, double noise)
{
    memset(weight, 0, sizeof(int[N_TOKENS][N_EXPERTS]));
    for (uint64_t t = 0; t < N_TOKENS; t++) {
        const bool is_noise = (double)(tp_rng_splitmix64(seed, 3 * t) % 1000) < 1000 * noise;
        const uint64_t from = is_noise ? seed : 77;
        const int top = (int)(tp_rng_splitmix64(from, 3 * t + 1) % N_EXPERTS);
        const int other = (top + 1 + (int)(tp_rng_splitmix64(from, 3 * t + 2) % (N_EXPERTS - 1))) % N_EXPERTS;
        weight[t][top] = 7000;
        weight[t][other] = 3000;
    }
}

static void permutation(int out[N_EXPERTS], int index)
{
    int left[N_EXPERTS] = {0, 1, 2, 3};
    for (int i = 0; i < N_EXPERTS; i++) {
        const int k = index % (N_EXPERTS - i);
        index /= N_EXPERTS - i;
        out[i] = left[k];
        for (int j = k; j + 1 < N_EXPERTS - i; j++) left[j] = left[j + 1];
    }
}

struct expected {
    double top, chance, overlap, shifted;
};

/* Everything as the header says, in the plainest way: half `half` is measured with the best permutation of the other. */
static void expect_half(struct expected *sum, int a[N_TOKENS][N_EXPERTS], int b[N_TOKENS][N_EXPERTS], int half)
{
    int best[N_EXPERTS] = {0}, tokens[N_TOKENS], n = 0;
    double most = -INFINITY;
    for (int index = 0; index < N_PERMUTATIONS; index++) {
        int to[N_EXPERTS];
        double gain = 0.0, n_other = 0.0;
        permutation(to, index);
        for (int t = 1 - half; t < N_TOKENS; t += 2) n_other++;
        for (int e = 0; e < N_EXPERTS; e++) {
            double x = 0.0, y = 0.0, xy = 0.0;
            for (int t = 1 - half; t < N_TOKENS; t += 2) {
                x += a[t][e] / n_other;
                y += b[t][to[e]] / n_other;
                xy += (double)a[t][e] * b[t][to[e]] / n_other;
            }
            gain += xy - x * y;
        }
        if (gain > most + 1e-6) {
            most = gain;
            memcpy(best, to, sizeof to);
        }
    }
    for (int t = half; t < N_TOKENS; t += 2) tokens[n++] = t;
    double count[2][N_EXPERTS] = {{0}}, chance = 0.0;
    for (int i = 0; i < n; i++)
        for (int shift = 0; shift <= 8; shift++) {
            const int *x = a[tokens[i]], *y = b[tokens[(i + shift) % n]];
            double both = 0.0, either = 0.0;
            int top[2] = {0, 0};
            for (int e = 0; e < N_EXPERTS; e++) {
                both += x[e] && y[best[e]];
                either += x[e] || y[best[e]];
                if (x[e] > x[top[0]]) top[0] = e;
                if (y[e] > y[top[1]]) top[1] = e;
            }
            if (shift) {
                sum->shifted += both / either / 8.0;
                continue;
            }
            sum->overlap += both / either;
            sum->top += best[top[0]] == top[1];
            count[0][top[0]] += 1.0 / n;
            count[1][top[1]] += 1.0 / n;
        }
    for (int e = 0; e < N_EXPERTS; e++) chance += count[0][e] * count[1][best[e]];
    sum->chance += chance * n;
}

static void close_to(double found, double wanted, const char *what)
{
    if (!(fabs(found - wanted) <= 1e-9)) fail_msg("%s: %.12g, expected %.12g", what, found, wanted);
}

static void test_agreement(void **state)
{
    (void)state;
    for (int trial = 0; trial < 6; trial++) {
        int a[N_TOKENS][N_EXPERTS], b[N_TOKENS][N_EXPERTS];
        struct expected e = {0};
        struct talpa_route_comparison *c;
        fill(a, 1, 0.2);
        fill(b, 10 + (uint64_t)trial, 0.15 * trial);
        for (int half = 0; half < 2; half++) expect_half(&e, a, b, half);
        const char *x = save_log("a", a, "r"), *y = save_log("b", b, "r");
        ok(talpa_route_compare(&c, x, y));
        assert_int_equal(c->n_modules, 1);
        assert_int_equal(c->n_tokens, N_TOKENS);
        assert_int_equal(c->modules[0].layer, 3);
        assert_string_equal(c->modules[0].module, "self_attn.q_proj");
        close_to(c->modules[0].top, e.top / N_TOKENS, "top");
        close_to(c->modules[0].top_by_chance, e.chance / N_TOKENS, "top by chance");
        close_to(c->modules[0].kappa, (e.top - e.chance) / (N_TOKENS - e.chance), "kappa");
        close_to(c->modules[0].overlap, e.overlap / N_TOKENS, "overlap");
        close_to(c->modules[0].overlap_by_chance, e.shifted / N_TOKENS, "overlap by chance");
        close_to(c->mean.top, c->modules[0].top, "mean");
        talpa_route_comparison_free(c);
    }
}

/* The same routing under other numbers of the experts is the same routing. */
static void test_renamed(void **state)
{
    (void)state;
    static const int to[N_EXPERTS] = {2, 0, 3, 1};
    int a[N_TOKENS][N_EXPERTS], b[N_TOKENS][N_EXPERTS];
    struct talpa_route_comparison *c;
    fill(a, 5, 1.0);
    for (int t = 0; t < N_TOKENS; t++)
        for (int e = 0; e < N_EXPERTS; e++) b[t][to[e]] = a[t][e];
    const char *x = save_log("a", a, "r"), *y = save_log("b", b, "r");
    ok(talpa_route_compare(&c, x, y));
    close_to(c->mean.top, 1.0, "top");
    close_to(c->mean.kappa, 1.0, "kappa");
    close_to(c->mean.overlap, 1.0, "overlap");
    assert_true(c->mean.overlap_by_chance < 0.6);
    for (int e = 0; e < N_EXPERTS; e++) assert_true(c->modules[0].match[e] == to[e]);
    talpa_route_comparison_free(c);

    y = save_log("b", b, "another row");
    refused(talpa_route_compare(&c, x, y), "its rows are not those");
    y = save("b", "{\"kind\":\"row\",\"index\":0,\"n_tokens\":3,\"n_prompt_tokens\":1,\"active_experts\":2}\n");
    refused(talpa_route_compare(&c, x, y), "no sampled tokens");
    y = save("b", "{\"kind\":\"sample\",\"n_experts\":2,\"tokens\":[[0,1]]}\n"
                  "{\"kind\":\"experts\",\"layer\":0,\"module\":\"q\",\"sample_weight\":[1,2,3]}\n");
    refused(talpa_route_compare(&c, x, y), "b:2: sample_weight: found 3 numbers, expected 2");
    refused(talpa_route_compare(&c, x, save("b", "{\"loss\": 1}\n")), "kind");
}

/* ---- right and wrong ---- */

static const char log_text[] =
    "{\"kind\":\"module\",\"task\":\"a\",\"layer\":0}\n"
    "{\"kind\":\"row\",\"index\":0,\"id\":\"a0\",\"task\":\"a\",\"n_tokens\":10,\"n_prompt_tokens\":6,\"active_experts\":2.5,\"active_prompt\":2.25,\"active_completion\":2.875}\n"
    "{\"kind\":\"row\",\"index\":1,\"id\":\"a1\",\"task\":\"a\",\"n_tokens\":8,\"n_prompt_tokens\":4,\"active_experts\":3,\"active_prompt\":2.5,\"active_completion\":3.5}\n"
    "{\"kind\":\"row\",\"index\":2,\"id\":\"a2\",\"task\":\"a\",\"n_tokens\":12,\"n_prompt_tokens\":8,\"active_experts\":2,\"active_prompt\":1.75,\"active_completion\":2.5}\n"
    "{\"kind\":\"row\",\"index\":3,\"id\":\"a3\",\"task\":\"a\",\"n_tokens\":6,\"n_prompt_tokens\":3,\"active_experts\":4,\"active_prompt\":3.5,\"active_completion\":4.5}\n"
    "{\"kind\":\"row\",\"index\":4,\"id\":\"b0\",\"task\":\"b\",\"n_tokens\":9,\"n_prompt_tokens\":5,\"active_experts\":1.5,\"active_prompt\":1.25,\"active_completion\":1.8125}\n"
    "{\"kind\":\"row\",\"index\":5,\"id\":\"b1\",\"task\":\"b\",\"n_tokens\":7,\"n_prompt_tokens\":4,\"active_experts\":2.25,\"active_prompt\":2,\"active_completion\":2.5833333333333335}\n"
    "{\"kind\":\"row\",\"index\":6,\"task\":\"b\",\"n_tokens\":11,\"n_prompt_tokens\":6,\"active_experts\":1.25,\"active_prompt\":1,\"active_completion\":1.55}\n"
    "{\"kind\":\"row\",\"index\":7,\"id\":\"b3\",\"task\":\"b\",\"n_tokens\":5,\"n_prompt_tokens\":2,\"active_experts\":3,\"active_prompt\":2.5,\"active_completion\":3.3333333333333335}\n"
    "{\"kind\":\"row\",\"index\":8,\"id\":\"b4\",\"task\":\"b\",\"n_tokens\":8,\"n_prompt_tokens\":4,\"active_experts\":5,\"active_prompt\":5.5,\"active_completion\":4.5}\n";

static void test_split(void **state)
{
    (void)state;
    static const double expected[TALPA_ROUTE_N_PARTS][6] = {
        {2.05921052632, 0.20842823758, 2.55833333333, 0.665892606178, 0.75, 0.541987084717},
        {1.8152173913, 0.198358646188, 2.1, 0.617761790361, 0.5625, 0.491331100176},
        {2.43333333333, 0.238037241614, 3.01666666667, 0.68082980113, 0.778125, 0.550332325421}};
    char log[128];
    snprintf(log, sizeof log, "%s", save("log", log_text));
    const char *samples = save("samples", "{\"id\":\"a0\",\"correct\":true}\n{\"id\":\"a1\",\"correct\":false}\n{\"id\":\"a2\",\"correct\":true}\n"
                                          "{\"id\":\"a3\",\"correct\":false}\n{\"id\":\"b0\",\"correct\":true}\n{\"id\":\"b1\",\"correct\":true}\n"
                                          "{\"id\":\"6\",\"correct\":false}\n{\"id\":\"b3\",\"correct\":false}\n{\"id\":\"zz\",\"correct\":false}\n");
    struct talpa_route_split s;
    ok(talpa_route_split(&s, log, samples));
    assert_int_equal(s.n_right, 4);
    assert_int_equal(s.n_wrong, 4);
    assert_int_equal(s.n_unknown, 1);
    for (int part = 0; part < TALPA_ROUTE_N_PARTS; part++) {
        const double found[6] = {s.right[part].mean,  s.right[part].error,        s.wrong[part].mean,
                                 s.wrong[part].error, s.within_tasks[part].mean, s.within_tasks[part].error};
        for (int i = 0; i < 6; i++)
            if (!(fabs(found[i] - expected[part][i]) < 1e-9)) fail_msg("part %d, number %d: %.12g, expected %.12g", part, i, found[i], expected[part][i]);
        close_to(s.difference[part].mean, found[2] - found[0], "difference");
        close_to(s.difference[part].error, sqrt(found[1] * found[1] + found[3] * found[3]), "its error");
    }
    ok(talpa_route_split(&s, log, save("samples", "{\"id\":\"a0\",\"correct\":true}\n")));
    assert_true(isnan(s.wrong[0].mean) && isnan(s.within_tasks[0].mean) && s.right[0].mean == 2.5);
    refused(talpa_route_split(&s, log, save("samples", "{\"id\":\"zz\",\"correct\":true}\n")), "no sample has the id");
    refused(talpa_route_split(&s, log, save("samples", "{\"id\":\"a0\",\"correct\":true}\n{\"id\":\"a0\",\"correct\":false}\n")), "twice");
    refused(talpa_route_split(&s, log, save("samples", "{\"id\":\"a0\",\"value\":1}\n")), "correct: found null");
    refused(talpa_route_split(&s, save("log", "{\"kind\":\"summary\"}\n"), samples), "found no row");
    assert_int_equal(talpa_route_split(&s, path_of("nothing"), samples), TALPA_E_NO_INPUT);
}

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.32s/talpa_routes_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "b", "log", "samples"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(path_of(names[i]));
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_agreement), cmocka_unit_test(test_renamed), cmocka_unit_test(test_split)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
