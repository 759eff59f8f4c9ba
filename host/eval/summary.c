#include "summary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/status.h"

enum talpa_status tp_judged_push(struct tp_judged *j, double value, double weight, const char *id)
{
    if (j->n == j->capacity) {
        const size_t capacity = j->capacity ? 2 * j->capacity : 64;
        double *values = realloc(j->values, capacity * sizeof *values);
        if (values) j->values = values;
        double *weights = realloc(j->weights, capacity * sizeof *weights);
        if (weights) j->weights = weights;
        uint64_t *ids = realloc(j->ids, capacity * sizeof *ids);
        if (ids) j->ids = ids;
        if (!values || !weights || !ids) return tp_fail_memory("results", capacity * sizeof *values);
        j->capacity = capacity;
    }
    j->values[j->n] = value;
    j->weights[j->n] = weight;
    j->ids[j->n++] = tp_hash_bytes(id, strlen(id));
    return TALPA_OK;
}

void tp_judged_free(struct tp_judged *judged)
{
    free(judged->values);
    free(judged->weights);
    free(judged->ids);
    *judged = (struct tp_judged){0};
}

struct ratio {
    double total, tokens, mean;
};

static struct ratio ratio_of(const struct tp_judged *j)
{
    struct ratio r = {0};
    for (size_t i = 0; i < j->n; i++) {
        r.total += j->values[i];
        r.tokens += j->weights[i];
    }
    r.mean = r.tokens > 0.0 ? r.total / r.tokens : 0.0;
    return r;
}

static bool is_exp(enum talpa_metric metric) { return metric == TALPA_METRIC_PERPLEXITY; }
static bool is_share(enum talpa_metric metric)
{
    return metric != TALPA_METRIC_PERPLEXITY && metric != TALPA_METRIC_TOKEN_NLL && metric != TALPA_METRIC_F1_EM;
}

/* How much row i moves the value from what it would be if the row were average; these sum to zero. */
static double influence(const struct tp_judged *j, const struct ratio *r, enum talpa_metric metric, size_t i)
{
    const double linear = r->tokens > 0.0 ? (j->values[i] - r->mean * j->weights[i]) / r->tokens : 0.0;
    return is_exp(metric) ? exp(r->mean) * linear : linear;
}

static double spread(double squares, size_t n) { return n > 1 ? sqrt(squares * (double)n / (double)(n - 1)) : 0.0; }

void tp_summary(struct talpa_eval_score *score, const struct tp_judged *judged)
{
    const struct ratio r = ratio_of(judged);
    double squares = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < judged->n; i++) {
        const double moved = influence(judged, &r, score->metric, i);
        squares += moved * moved;
        n += judged->weights[i] > 0.0;
    }
    score->n = (int64_t)n;
    score->value = n ? (is_exp(score->metric) ? exp(r.mean) : r.mean) : NAN;
    score->standard_error = is_share(score->metric) && n ? sqrt(r.mean * (1.0 - r.mean) / (double)n) : spread(squares, n);
    if (score->has_em && n) {
        score->em = judged->em_sum / (double)n;
        score->em_error = sqrt(score->em * (1.0 - score->em) / (double)n);
    }
}

bool tp_summary_compare(double *difference, double *error, enum talpa_metric metric, const struct tp_judged *before,
                        const struct tp_judged *after)
{
    if (!before->n || before->n != after->n) return false;
    for (size_t i = 0; i < after->n; i++)
        if (before->ids[i] != after->ids[i] || before->weights[i] != after->weights[i]) return false;
    const struct ratio b = ratio_of(before), a = ratio_of(after);
    double squares = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < after->n; i++) {
        const double moved = influence(after, &a, metric, i) - influence(before, &b, metric, i);
        squares += moved * moved;
        n += after->weights[i] > 0.0;
    }
    *difference = is_exp(metric) ? exp(a.mean) - exp(b.mean) : a.mean - b.mean;
    *error = spread(squares, n);
    return true;
}
