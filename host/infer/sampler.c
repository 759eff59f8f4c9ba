#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { DRAW_STREAM = 0x67656e }; /* keeps these draws apart from other uses of the same seed */

void talpa_sampling_default(struct talpa_sampling *sampling)
{
    *sampling = (struct talpa_sampling){.top_k = 40, .top_p = 0.95, .min_p = 0.05, .repeat_penalty = 1.0, .repeat_last_n = 64};
}

static enum talpa_status check(const struct talpa_sampling *s)
{
    if (!(s->temperature >= 0.0 && s->temperature <= 1e6))
        return tp_fail(TALPA_E_ARGUMENT, "--temp is %g, expected 0 (greedy) or more", s->temperature);
    if (s->top_k < 0) return tp_fail(TALPA_E_ARGUMENT, "--top-k is %d, expected 0 (all) or more", s->top_k);
    if (!(s->top_p >= 0.0 && s->top_p <= 1.0)) return tp_fail(TALPA_E_ARGUMENT, "--top-p is %g, expected 0 to 1 (off)", s->top_p);
    if (!(s->min_p >= 0.0 && s->min_p <= 1.0)) return tp_fail(TALPA_E_ARGUMENT, "--min-p is %g, expected 0 (off) to 1", s->min_p);
    if (!(s->repeat_penalty > 0.0 && s->repeat_penalty <= 1e6))
        return tp_fail(TALPA_E_ARGUMENT, "--repeat-penalty is %g, expected more than 0 (1: off)", s->repeat_penalty);
    if (s->repeat_last_n < -1)
        return tp_fail(TALPA_E_ARGUMENT, "--repeat-last-n is %d, expected -1 (all), 0 (none) or more", s->repeat_last_n);
    return TALPA_OK;
}

enum talpa_status tp_sampler_create(struct tp_sampler *out, const struct talpa_sampling *sampling, int n_vocab)
{
    TP_TRY(check(sampling));
    const size_t n = (size_t)n_vocab;
    struct tp_sampler sampler = {.sampling = *sampling, .n_vocab = n_vocab, .logits = malloc(n * sizeof *sampler.logits),
                                 .candidates = malloc(n * sizeof *sampler.candidates), .seen = calloc(n, sizeof *sampler.seen)};
    if (!sampler.logits || !sampler.candidates || !sampler.seen) {
        tp_sampler_free(&sampler);
        return tp_fail_memory("sampler", n * sizeof *sampler.candidates);
    }
    *out = sampler;
    return TALPA_OK;
}

void tp_sampler_free(struct tp_sampler *sampler)
{
    free(sampler->logits);
    free(sampler->candidates);
    free(sampler->seen);
    *sampler = (struct tp_sampler){0};
}

/* ---- filters ---- */

static void penalise(struct tp_sampler *s, const struct tp_sampler_context *c)
{
    const float penalty = (float)s->sampling.repeat_penalty;
    const size_t wanted = s->sampling.repeat_last_n < 0 ? c->n_history : (size_t)s->sampling.repeat_last_n;
    const size_t n = wanted < c->n_history ? wanted : c->n_history;
    if (penalty == 1.0f || n == 0) return;
    s->mark++; /* a token is penalised once however often it occurs */
    for (size_t i = c->n_history - n; i < c->n_history; i++) {
        const int32_t id = c->history[i];
        if (id < 0 || id >= s->n_vocab || s->seen[id] == s->mark) continue;
        s->seen[id] = s->mark;
        s->logits[id] = s->logits[id] > 0.0f ? s->logits[id] / penalty : s->logits[id] * penalty;
    }
}

/* Whether a comes before b: higher logit, then lower id. */
static bool is_better(const struct tp_candidate *a, const struct tp_candidate *b)
{
    return a->logit != b->logit ? a->logit > b->logit : a->id < b->id;
}

static int compare(const void *a, const void *b)
{
    return is_better(a, b) ? -1 : 1;
}

/* Restores the heap whose root is the worst of n candidates, after the root was replaced. */
static void sift(struct tp_candidate *heap, size_t n, size_t i)
{
    for (;;) {
        size_t worst = i;
        for (size_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
            if (is_better(&heap[worst], &heap[child])) worst = child;
        if (worst == i) return;
        const struct tp_candidate swap = heap[i];
        heap[i] = heap[worst];
        heap[worst] = swap;
        i = worst;
    }
}

/* The k best of all tokens, best first. */
static size_t take_top_k(struct tp_sampler *s, size_t k)
{
    struct tp_candidate *heap = s->candidates;
    for (size_t i = 0; i < k; i++) heap[i] = (struct tp_candidate){.id = (int32_t)i, .logit = s->logits[i]};
    for (size_t i = k / 2; i-- > 0;) sift(heap, k, i);
    for (int i = (int)k; i < s->n_vocab; i++) {
        const struct tp_candidate next = {.id = i, .logit = s->logits[i]};
        if (!is_better(&next, &heap[0])) continue;
        heap[0] = next;
        sift(heap, k, 0);
    }
    qsort(heap, k, sizeof *heap, compare);
    return k;
}

static float highest(const struct tp_candidate *candidates, size_t n)
{
    float most = -INFINITY;
    for (size_t i = 0; i < n; i++)
        if (candidates[i].logit > most) most = candidates[i].logit;
    return most;
}

/* Probabilities of the candidates at a temperature. */
static void soften(struct tp_candidate *candidates, size_t n, double temperature)
{
    const double most = (double)highest(candidates, n);
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += candidates[i].probability = exp(((double)candidates[i].logit - most) / temperature);
    for (size_t i = 0; i < n; i++) candidates[i].probability /= sum;
}

static size_t take_top_p(struct tp_candidate *candidates, size_t n, double top_p)
{
    double sum = 0.0;
    soften(candidates, n, 1.0);
    for (size_t i = 0; i < n; i++) {
        sum += candidates[i].probability;
        if (sum >= top_p) return i + 1;
    }
    return n;
}

static size_t take_min_p(struct tp_candidate *candidates, size_t n, double min_p)
{
    const double least = (double)highest(candidates, n) + log(min_p);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if ((double)candidates[i].logit >= least) candidates[kept++] = candidates[i];
    return kept;
}

static void put_best(struct tp_sampler *s)
{
    int best = 0;
    for (int i = 1; i < s->n_vocab; i++)
        if (s->logits[i] > s->logits[best]) best = i;
    s->candidates[0] = (struct tp_candidate){.id = best, .logit = s->logits[best], .probability = 1.0};
}

size_t tp_sampler_filter(struct tp_sampler *s, const float *logits, const struct tp_sampler_context *context)
{
    const struct talpa_sampling *o = &s->sampling;
    size_t n = (size_t)s->n_vocab;
    memcpy(s->logits, logits, n * sizeof *logits);
    for (size_t i = 0; i < context->n_banned; i++) s->logits[context->banned[i]] = -INFINITY;
    penalise(s, context);
    if (o->temperature == 0.0) {
        put_best(s);
        return 1;
    }
    const bool is_sorted = (o->top_k && (size_t)o->top_k < n) || o->top_p < 1.0;
    if (is_sorted) {
        n = take_top_k(s, o->top_k && (size_t)o->top_k < n ? (size_t)o->top_k : n);
    } else {
        for (size_t i = 0; i < n; i++) s->candidates[i] = (struct tp_candidate){.id = (int32_t)i, .logit = s->logits[i]};
    }
    if (o->top_p < 1.0) n = take_top_p(s->candidates, n, o->top_p);
    if (o->min_p > 0.0) n = take_min_p(s->candidates, n, o->min_p);
    soften(s->candidates, n, o->temperature);
    return n;
}

/* ---- drawing ---- */

static double uniform(const struct tp_sampler *s, const struct tp_sampler_context *c)
{
    const uint32_t counter[4] = {c->position, (uint32_t)c->request, (uint32_t)(c->request >> 32), DRAW_STREAM};
    const uint32_t key[2] = {(uint32_t)s->sampling.seed, (uint32_t)(s->sampling.seed >> 32)};
    uint32_t words[4];
    tp_rng_philox(words, counter, key);
    return ((double)(words[0] >> 5) * 67108864.0 + (double)(words[1] >> 6)) * 0x1p-53;
}

enum { LANES = 16 };

/* sum[j] += exp(x[j] - most), most >= x[j], to 2^-22 of it: a polynomial around multiples of log 2 (Cephes, expf), in loops that compilers turn
 * into vectors, as one call of expf per token of the vocabulary takes a good part of the time of a decoding pass. */
static void add_exponentials(float *sum, const float *x, float most)
{
    float value[LANES], scale[LANES];
    int32_t exponent[LANES], bits[LANES];
    for (int j = 0; j < LANES; j++) {
        const float difference = x[j] - most;
        value[j] = difference > -87.0f ? difference : -87.0f;
    }
    for (int j = 0; j < LANES; j++) exponent[j] = (int32_t)(value[j] * 1.44269504f - 0.5f);
    for (int j = 0; j < LANES; j++) bits[j] = (exponent[j] + 127) * (1 << 23);
    memcpy(scale, bits, sizeof scale);
    for (int j = 0; j < LANES; j++) {
        const float n = (float)exponent[j], r = value[j] - n * 0.693359375f + n * 2.12194440e-4f;
        const float p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r +
                        5.0000001201e-1f;
        sum[j] += (p * r * r + r + 1.0f) * scale[j];
    }
}

/* Log of the sum of exponentials; not finite if a logit is not. */
static double log_sum(const float *logits, int n)
{
    enum { BLOCK = 64 * LANES }; /* that sums in f32 go on for */
    float most[LANES], wrong[LANES] = {0};
    double sum = 0.0;
    int i = 0;
    for (int j = 0; j < LANES; j++) most[j] = logits[0];
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            most[j] = logits[i + j] > most[j] ? logits[i + j] : most[j];
            wrong[j] += logits[i + j] * 0.0f;
        }
    for (; i < n; i++) {
        most[0] = logits[i] > most[0] ? logits[i] : most[0];
        wrong[0] += logits[i] * 0.0f;
    }
    for (int j = 1; j < LANES; j++) {
        most[0] = most[j] > most[0] ? most[j] : most[0];
        wrong[0] += wrong[j];
    }
    for (int from = 0; from < n; from += BLOCK) {
        const int end = n - from < BLOCK ? n : from + BLOCK;
        float sums[LANES] = {0};
        for (i = from; i + LANES <= end; i += LANES) add_exponentials(sums, logits + i, most[0]);
        for (int j = 0; j < LANES; j++) sum += (double)sums[j];
        for (; i < end; i++) sum += (double)expf(logits[i] - most[0]);
    }
    return (double)most[0] + log(sum) + (double)wrong[0];
}

enum talpa_status tp_sampler_next(int32_t *id, float *logprob, struct tp_sampler *s, const float *logits,
                                  const struct tp_sampler_context *context)
{
    const double norm = log_sum(logits, s->n_vocab);
    if (!isfinite(norm)) return tp_fail(TALPA_E_CHECK, "the logits of the token at position %u are not finite", context->position);
    const size_t n = tp_sampler_filter(s, logits, context);
    size_t chosen = 0;
    if (n > 1) {
        double left = uniform(s, context);
        /* Rounding may leave a rest after the last candidate: it then is the last one that can be drawn at all. */
        for (size_t i = 0; i < n; i++) {
            if (s->candidates[i].probability <= 0.0) continue;
            chosen = i;
            left -= s->candidates[i].probability;
            if (left < 0.0) break;
        }
    }
    *id = s->candidates[chosen].id;
    *logprob = (float)((double)logits[*id] - norm);
    return TALPA_OK;
}
