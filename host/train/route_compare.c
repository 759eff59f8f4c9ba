/* Two route logs beside each other; one beside the samples of an evaluation. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/assignment.h"
#include "base/map.h"
#include "base/status.h"
#include "train/route_read.h"

/* ---- agreement ---- */

enum { N_SHIFTS = 8 };

struct talpa_route_comparison_owned {
    struct talpa_route_comparison public;
    struct tp_arena arena;
};

struct pair {
    const float *a, *b; /* [n, n_experts] */
    size_t n, n_experts;
};

/* Tokens of one half; half 2: all. */
static bool belongs(size_t token, int half) { return half == 2 || token % 2 == (size_t)half; }

/* gain[i, j]: covariance of the weights of expert i of a and j of b. `mean`: scratch [2 * n_experts]. */
static void covariances(double *gain, const struct pair *p, int half, double *mean)
{
    const size_t e = p->n_experts;
    double n = 0.0;
    memset(mean, 0, 2 * e * sizeof *mean);
    memset(gain, 0, e * e * sizeof *gain);
    for (size_t t = 0; t < p->n; t++) {
        if (!belongs(t, half)) continue;
        n++;
        for (size_t i = 0; i < e; i++) {
            const double a = (double)p->a[t * e + i];
            mean[i] += a;
            mean[e + i] += (double)p->b[t * e + i];
            for (size_t j = 0; a > 0.0 && j < e; j++) gain[i * e + j] += a * (double)p->b[t * e + j];
        }
    }
    for (size_t i = 0; n > 0.0 && i < e; i++)
        for (size_t j = 0; j < e; j++) gain[i * e + j] = gain[i * e + j] / n - mean[i] / n * (mean[e + j] / n);
}

/* The heaviest expert; n_experts if none has weight. */
static size_t top_of(const float *weight, size_t n_experts)
{
    size_t top = 0;
    for (size_t i = 1; i < n_experts; i++)
        if (weight[i] > weight[top]) top = i;
    return weight[top] > 0.0f ? top : n_experts;
}

/* Matched experts in common, of those active in either; NaN if there are none. */
static double overlap_of(const float *a, const float *b, const size_t *match, size_t n_experts)
{
    double common = 0.0, either = 0.0;
    for (size_t i = 0; i < n_experts; i++) {
        common += a[i] > 0.0f && b[match[i]] > 0.0f;
        either += a[i] > 0.0f || b[match[i]] > 0.0f;
    }
    return either > 0.0 ? common / either : NAN;
}

struct sums {
    double top, top_n, chance, overlap, overlap_n, shifted, shifted_n;
};

/* Adds the tokens of one half, matched by `match`. `count`: scratch [2 * n_experts]. */
static void measure(struct sums *s, const struct pair *p, int half, const size_t *match, double *count)
{
    const size_t e = p->n_experts, n_half = (p->n + 1 - (size_t)half) / 2;
    double n = 0.0, chance = 0.0;
    memset(count, 0, 2 * e * sizeof *count);
    for (size_t t = (size_t)half; t < p->n; t += 2) {
        const size_t a = top_of(p->a + t * e, e), b = top_of(p->b + t * e, e);
        const double overlap = overlap_of(p->a + t * e, p->b + t * e, match, e);
        if (a < e && b < e) {
            n++;
            count[a]++;
            count[e + b]++;
            s->top += match[a] == b;
        }
        if (isfinite(overlap)) {
            s->overlap += overlap;
            s->overlap_n++;
        }
        for (size_t shift = 1; shift <= N_SHIFTS && shift < n_half; shift++) {
            const size_t other = 2 * ((t / 2 + shift) % n_half) + (size_t)half;
            const double shifted = overlap_of(p->a + t * e, p->b + other * e, match, e);
            if (!isfinite(shifted)) continue;
            s->shifted += shifted;
            s->shifted_n++;
        }
    }
    for (size_t i = 0; n > 0.0 && i < e; i++) chance += count[i] / n * (count[e + match[i]] / n);
    s->top_n += n;
    s->chance += chance * n;
}

static enum talpa_status compare_module(struct talpa_route_agreement *out, struct tp_arena *arena, const struct pair *p)
{
    const size_t e = p->n_experts;
    struct sums s = {0};
    double *gain = tp_arena_array(arena, e * e + 2 * e, sizeof *gain), *scratch = gain + e * e;
    double *all = tp_arena_array(arena, e, sizeof *all);
    size_t *match = tp_arena_array(arena, e, sizeof *match);
    if (!gain || !all || !match) return TALPA_E_DEVICE;
    for (int half = 0; half < 3; half++) {
        covariances(gain, p, half, scratch);
        TP_TRY(tp_assignment(match, gain, e));
        if (half < 2) measure(&s, p, 1 - half, match, scratch);
    }
    for (size_t i = 0; i < e; i++) all[i] = (double)match[i];
    out->match = all;
    out->top = s.top / s.top_n; /* 0 / 0: not known */
    out->top_by_chance = s.chance / s.top_n;
    out->kappa = out->top_by_chance < 1.0 ? (out->top - out->top_by_chance) / (1.0 - out->top_by_chance) : NAN;
    out->overlap = s.overlap / s.overlap_n;
    out->overlap_by_chance = s.shifted / s.shifted_n;
    return TALPA_OK;
}

static enum talpa_status check_alike(const struct tp_route_log *a, const struct tp_route_log *b, const char *path_a, const char *path_b)
{
    if (!a->n_samples || !b->n_samples)
        return tp_fail(TALPA_E_DATA, "%s: no sampled tokens (\"kind\": \"sample\"): it was written by an older version; run score again",
                       a->n_samples ? path_b : path_a);
    if (a->n_experts != b->n_experts || a->n_modules != b->n_modules)
        return tp_fail(TALPA_E_DATA, "%s: found %d experts in %zu modules, expected %d in %zu as in %s", path_b, b->n_experts, b->n_modules,
                       a->n_experts, a->n_modules, path_a);
    bool same = a->n_rows == b->n_rows && a->n_samples == b->n_samples;
    for (size_t i = 0; same && i < a->n_rows; i++)
        same = !strcmp(a->rows[i].id, b->rows[i].id) && a->rows[i].n_tokens[0] == b->rows[i].n_tokens[0];
    if (!same || memcmp(a->samples, b->samples, a->n_samples * sizeof *a->samples))
        return tp_fail(TALPA_E_DATA, "%s: its rows are not those of %s: score both adapters on the same file", path_b, path_a);
    for (size_t m = 0; m < a->n_modules; m++)
        if (a->modules[m].layer != b->modules[m].layer || strcmp(a->modules[m].name, b->modules[m].name))
            return tp_fail(TALPA_E_DATA, "%s: found module layers.%d.%s, expected layers.%d.%s as in %s", path_b, b->modules[m].layer,
                           b->modules[m].name, a->modules[m].layer, a->modules[m].name, path_a);
    return TALPA_OK;
}

/* Mean over the modules where it is known. */
static double mean_of(const struct talpa_route_agreement *modules, int n_modules, size_t offset)
{
    double sum = 0.0, n = 0.0;
    for (int m = 0; m < n_modules; m++) {
        double value;
        memcpy(&value, (const char *)&modules[m] + offset, sizeof value);
        if (!isfinite(value)) continue;
        sum += value;
        n++;
    }
    return n > 0.0 ? sum / n : NAN;
}

static enum talpa_status compare(struct talpa_route_comparison_owned *out, const struct tp_route_log *a, const struct tp_route_log *b)
{
    struct talpa_route_agreement *modules = tp_arena_array(&out->arena, a->n_modules, sizeof *modules);
    struct tp_arena scratch = {0};
    enum talpa_status status = modules ? TALPA_OK : TALPA_E_DEVICE;
    for (size_t m = 0; m < a->n_modules && status == TALPA_OK; m++) {
        const struct pair p = {a->modules[m].weight, b->modules[m].weight, a->n_samples, (size_t)a->n_experts};
        modules[m] = (struct talpa_route_agreement){.layer = a->modules[m].layer, .module = tp_arena_strdup(&out->arena, a->modules[m].name)};
        status = modules[m].module ? compare_module(&modules[m], &scratch, &p) : TALPA_E_DEVICE;
        double *match = tp_arena_array(&out->arena, p.n_experts, sizeof *match);
        if (status == TALPA_OK && !match) status = TALPA_E_DEVICE;
        if (status == TALPA_OK) memcpy(match, modules[m].match, p.n_experts * sizeof *match);
        modules[m].match = match;
        tp_arena_free(&scratch);
    }
    TP_TRY(status);
    const int n = (int)a->n_modules;
    out->public = (struct talpa_route_comparison){.n_experts = a->n_experts, .n_modules = n, .n_tokens = (int64_t)a->n_samples, .modules = modules};
    out->public.mean = (struct talpa_route_agreement){
        .layer = -1,
        .top = mean_of(modules, n, offsetof(struct talpa_route_agreement, top)),
        .top_by_chance = mean_of(modules, n, offsetof(struct talpa_route_agreement, top_by_chance)),
        .kappa = mean_of(modules, n, offsetof(struct talpa_route_agreement, kappa)),
        .overlap = mean_of(modules, n, offsetof(struct talpa_route_agreement, overlap)),
        .overlap_by_chance = mean_of(modules, n, offsetof(struct talpa_route_agreement, overlap_by_chance))};
    return TALPA_OK;
}

enum talpa_status talpa_route_compare(struct talpa_route_comparison **out, const char *log_a, const char *log_b)
{
    struct tp_route_log a = {0}, b = {0};
    struct talpa_route_comparison_owned *made = calloc(1, sizeof *made);
    if (!made) return tp_fail_memory("comparison", sizeof *made);
    enum talpa_status status = tp_route_log_read(&a, log_a);
    if (status == TALPA_OK) status = tp_route_log_read(&b, log_b);
    if (status == TALPA_OK) status = check_alike(&a, &b, log_a, log_b);
    if (status == TALPA_OK) status = compare(made, &a, &b);
    tp_route_log_free(&a);
    tp_route_log_free(&b);
    if (status == TALPA_OK) *out = &made->public;
    else talpa_route_comparison_free(&made->public);
    return status;
}

void talpa_route_comparison_free(struct talpa_route_comparison *comparison)
{
    if (!comparison) return;
    struct talpa_route_comparison_owned *owned = (struct talpa_route_comparison_owned *)comparison; /* its first member */
    tp_arena_free(&owned->arena);
    free(owned);
}
