/* What experts answer and how decided routers are: entropies, information about the task, cosines of expert outputs (in the space of A x:
 * <B_i A_i x, B_j A_j y> = z_i^T G_ij z_j with the blocks G = B^T B, so that no output of the model's width is made). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "train/route_stats.h"

enum { N_SHUFFLES = 20 };
static const uint64_t sample_seed = 0x74616c7061726f75u, shuffle_seed = 0x74616c7061736875u;

/* ---- which tokens ---- */

static int by_key(const void *a, const void *b)
{
    const struct tp_route_sample *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    if (x->row != y->row) return x->row < y->row ? -1 : 1;
    return x->position < y->position ? -1 : x->position > y->position;
}

static size_t n_stacked(const struct tp_route_stats *s) { return (size_t)s->adapter->config.n_experts * (size_t)s->adapter->config.rank; }

static enum talpa_status make_room(struct tp_route_stats *s, size_t n_tokens)
{
    const size_t n_modules = (size_t)s->adapter->n_modules, n_experts = (size_t)s->adapter->config.n_experts, n = n_stacked(s);
    if (n_tokens > s->pick_capacity) {
        free(s->picks);
        s->pick_capacity = 0;
        s->picks = malloc(n_tokens * sizeof *s->picks);
        if (!s->picks) return tp_fail_memory("samples", n_tokens * sizeof *s->picks);
        s->pick_capacity = n_tokens;
    }
    if (s->samples) return TALPA_OK;
    s->sample_z = calloc(n_modules * TP_ROUTE_SAMPLES * n, sizeof *s->sample_z);
    s->sample_weight = calloc(n_modules * TP_ROUTE_SAMPLES * n_experts, sizeof *s->sample_weight);
    s->gram = calloc(n_modules * n * n, sizeof *s->gram);
    s->pass_z = malloc(TP_ROUTE_SAMPLES * n * sizeof *s->pass_z);
    s->samples = calloc(TP_ROUTE_SAMPLES, sizeof *s->samples);
    if (s->sample_z && s->sample_weight && s->gram && s->pass_z && s->samples) return TALPA_OK;
    return tp_fail_memory("samples", (unsigned long long)n_modules * (TP_ROUTE_SAMPLES + n) * n * sizeof *s->gram);
}

enum talpa_status tp_route_samples_pick(struct tp_route_stats *s, struct tp_executor *executor, const struct tp_eval_graph *eval,
                                        const struct tp_route_span *spans, size_t n_spans)
{
    int32_t rows[TP_ROUTE_SAMPLES];
    size_t n = 0;
    for (size_t i = 0; i < n_spans; i++) n += spans[i].n_tokens;
    TP_TRY(make_room(s, n));
    s->n_picks = 0;
    for (size_t i = 0; i < n_spans; i++)
        for (uint32_t p = 0; p < spans[i].n_tokens; p++)
            s->picks[s->n_picks++] = (struct tp_route_sample){
                .key = tp_rng_splitmix64(sample_seed, (uint64_t)spans[i].row << 24 | p), .row = spans[i].row, .position = p, .token = spans[i].first + p};
    qsort(s->picks, s->n_picks, sizeof *s->picks, by_key);
    if (s->n_picks > (size_t)eval->n_samples) s->n_picks = (size_t)eval->n_samples;
    for (int i = 0; i < eval->n_samples; i++) rows[i] = (size_t)i < s->n_picks ? (int32_t)s->picks[i].token : -1;
    return tp_executor_write(executor, eval->sample, rows, (size_t)eval->n_samples * sizeof *rows);
}

enum talpa_status tp_route_samples_merge(struct tp_route_stats *s)
{
    struct tp_route_sample all[2 * TP_ROUTE_SAMPLES];
    bool taken[TP_ROUTE_SAMPLES] = {false};
    const size_t n = s->n_samples + s->n_picks, n_kept = n < TP_ROUTE_SAMPLES ? n : TP_ROUTE_SAMPLES;
    memcpy(all, s->samples, s->n_samples * sizeof *all);
    for (size_t i = 0; i < s->n_picks; i++) {
        all[s->n_samples + i] = s->picks[i];
        all[s->n_samples + i].slot = UINT32_MAX;
    }
    qsort(all, n, sizeof *all, by_key);
    for (size_t i = 0; i < n_kept; i++)
        if (all[i].slot != UINT32_MAX) taken[all[i].slot] = true;
    uint32_t slot = 0;
    size_t n_new = 0;
    for (size_t i = 0; i < n_kept; i++) {
        if (all[i].slot != UINT32_MAX) continue;
        while (taken[slot]) slot++;
        all[i].slot = slot++;
        s->picks[n_new++].slot = all[i].slot; /* the smallest picks stay, and both lists are in order */
    }
    s->n_picks = n_new;
    memcpy(s->samples, all, n_kept * sizeof *all);
    s->n_samples = n_kept;
    return TALPA_OK;
}

enum talpa_status tp_route_samples_read(struct tp_route_stats *s, struct tp_executor *executor, const struct tp_eval_graph *eval, int m)
{
    const size_t n = n_stacked(s), n_experts = (size_t)s->adapter->config.n_experts, base = (size_t)m * TP_ROUTE_SAMPLES;
    if (!s->n_picks) return TALPA_OK;
    TP_TRY(tp_executor_read(executor, eval->routes[m].sample_z, s->pass_z, s->n_picks * n * sizeof *s->pass_z));
    TP_TRY(tp_executor_read(executor, eval->routes[m].gram, s->gram + (size_t)m * n * n, n * n * sizeof *s->gram));
    for (size_t i = 0; i < s->n_picks; i++) {
        const struct tp_route_sample *pick = &s->picks[i];
        float *weight = s->sample_weight + (base + pick->slot) * n_experts;
        memcpy(s->sample_z + (base + pick->slot) * n, s->pass_z + i * n, n * sizeof *s->pass_z);
        for (size_t e = 0; e < n_experts; e++)
            weight[e] = s->sel[pick->token * n_experts + e] ? s->weight[pick->token * n_experts + e] : 0.0f;
    }
    return TALPA_OK;
}

/* ---- cosines ---- */

/* x^T G y of two experts' blocks. */
static double product(const float *gram, size_t n, size_t rank, size_t i, size_t j, const double *x, const double *y)
{
    double sum = 0.0;
    for (size_t a = 0; a < rank; a++)
        for (size_t b = 0; b < rank; b++) sum += x[a] * (double)gram[(i * rank + a) * n + j * rank + b] * y[b];
    return sum;
}

struct mean {
    double sum, n;
};

static void add(struct mean *mean, double value)
{
    mean->sum += value;
    mean->n++;
}

static double mean_of(const struct mean *mean) { return mean->n > 0.0 ? mean->sum / mean->n : NAN; }

/* Sums of unit outputs instead of pairs: |sum_a o_a|^2 = n + sum over pairs of 2 cos. `unit`, `sum`: scratch [n_experts * rank] each,
 * `count` [n_experts]. */
static void cosines(struct talpa_route_experts *out, const struct tp_route_stats *s, int m, double *unit, double *sum, double *count)
{
    const size_t n = n_stacked(s), n_experts = (size_t)s->adapter->config.n_experts, rank = (size_t)s->adapter->config.rank;
    const float *gram = s->gram + (size_t)m * n * n;
    struct mean intra = {0}, inter = {0}, same = {0};
    memset(sum, 0, n * sizeof *sum);
    memset(count, 0, n_experts * sizeof *count);
    for (size_t i = 0; i < s->n_samples; i++) {
        const size_t at = (size_t)m * TP_ROUTE_SAMPLES + s->samples[i].slot;
        const float *z = s->sample_z + at * n, *weight = s->sample_weight + at * n_experts;
        for (size_t e = 0; e < n_experts; e++) {
            double *u = unit + e * rank;
            for (size_t k = 0; k < rank; k++) u[k] = (double)z[e * rank + k];
            const double square = weight[e] > 0.0f ? product(gram, n, rank, e, e, u, u) : 0.0;
            const double scale = square > 1e-30 ? 1.0 / sqrt(square) : 0.0;
            for (size_t k = 0; k < rank; k++) {
                u[k] *= scale;
                sum[e * rank + k] += u[k];
            }
            if (!(scale > 0.0)) {
                u[0] = NAN; /* no output */
                continue;
            }
            count[e]++;
            for (size_t f = 0; f < e; f++)
                if (!isnan(unit[f * rank])) add(&same, product(gram, n, rank, e, f, u, unit + f * rank));
        }
    }
    for (size_t e = 0; e < n_experts; e++) {
        const double *x = sum + e * rank;
        if (count[e] > 1.0) add(&intra, (product(gram, n, rank, e, e, x, x) - count[e]) / (count[e] * (count[e] - 1.0)));
        for (size_t f = 0; f < e; f++)
            if (count[e] > 0.0 && count[f] > 0.0)
                add(&inter, product(gram, n, rank, e, f, x, sum + f * rank) / (count[e] * count[f]));
    }
    out->intra_cosine = mean_of(&intra);
    out->inter_cosine = mean_of(&inter);
    out->same_token_cosine = mean_of(&same);
}

/* ---- entropies ---- */

/* Of weights that need not sum to 1; NaN if there are none. */
static double entropy_of(const double *weight, size_t n)
{
    double sum = 0.0, entropy = 0.0;
    for (size_t e = 0; e < n; e++) sum += weight[e];
    for (size_t e = 0; e < n; e++)
        if (weight[e] > 0.0) entropy -= weight[e] / sum * log(weight[e] / sum);
    return sum > 0.0 ? entropy : NAN;
}

/* H(expert) - H(expert | task), of sums of weights [n_tasks, n_experts]. `all`: scratch [n_experts]. */
static double information_of(const double *weight, size_t n_tasks, size_t n_experts, double *all)
{
    double total = 0.0, given = 0.0;
    memset(all, 0, n_experts * sizeof *all);
    for (size_t t = 0; t < n_tasks; t++) {
        double sum = 0.0;
        for (size_t e = 0; e < n_experts; e++) {
            all[e] += weight[t * n_experts + e];
            sum += weight[t * n_experts + e];
        }
        total += sum;
        if (sum > 0.0) given += sum * entropy_of(weight + t * n_experts, n_experts);
    }
    return total > 0.0 ? fmax(0.0, entropy_of(all, n_experts) - given / total) : NAN;
}

static void entropies(struct talpa_route_experts *out, const struct tp_route_stats *s, int m, double *weight, double *all)
{
    const size_t n_experts = (size_t)s->adapter->config.n_experts;
    double entropy = 0.0, n = 0.0;
    for (size_t t = 0; t < s->n_tasks; t++) {
        entropy += s->tasks[t].cells[m].entropy;
        n += (double)s->tasks[t].cells[m].n_routed;
        memcpy(weight + t * n_experts, s->tasks[t].weight + (size_t)m * n_experts, n_experts * sizeof *weight);
    }
    out->information = information_of(weight, s->n_tasks, n_experts, all); /* leaves the sum over tasks in `all` */
    out->entropy = n > 0.0 ? entropy / n : NAN;
    out->entropy_of_mean = entropy_of(all, n_experts);
    if (s->n_tasks < 2) out->information = NAN;
}

/* Adds the information of all modules with tasks dealt out anew to the rows. */
static void shuffle(struct talpa_route_experts *modules, const struct tp_route_stats *s, size_t *task, uint64_t stream, double *weight,
                    double *all)
{
    const size_t n_experts = (size_t)s->adapter->config.n_experts;
    for (size_t i = 0; i < s->n_rows; i++) task[i] = s->rows[i].task;
    for (size_t i = s->n_rows; i > 1; i--) {
        const size_t k = (size_t)(tp_rng_splitmix64(shuffle_seed + stream, i) % i), kept = task[i - 1];
        task[i - 1] = task[k];
        task[k] = kept;
    }
    for (int m = 0; m < s->adapter->n_modules; m++) {
        memset(weight, 0, s->n_tasks * n_experts * sizeof *weight);
        for (size_t i = 0; i < s->n_rows; i++)
            for (size_t e = 0; e < n_experts; e++)
                weight[task[i] * n_experts + e] += (double)s->rows[i].weight[(size_t)m * n_experts + e];
        modules[m].information_by_chance += information_of(weight, s->n_tasks, n_experts, all) / N_SHUFFLES;
    }
}

/* ---- all ---- */

enum { N_NUMBERS = 7 };

static void numbers_of(const double *out[N_NUMBERS], const struct talpa_route_experts *e)
{
    const double *all[N_NUMBERS] = {&e->entropy,      &e->entropy_of_mean, &e->information,      &e->information_by_chance,
                                    &e->intra_cosine, &e->inter_cosine,    &e->same_token_cosine};
    memcpy(out, all, sizeof all);
}

static struct talpa_route_experts mean_over(const struct talpa_route_experts *modules, int n_modules)
{
    struct mean means[N_NUMBERS] = {{0}};
    for (int m = 0; m < n_modules; m++) {
        const double *number[N_NUMBERS];
        numbers_of(number, &modules[m]);
        for (int i = 0; i < N_NUMBERS; i++)
            if (isfinite(*number[i])) add(&means[i], *number[i]);
    }
    return (struct talpa_route_experts){mean_of(&means[0]), mean_of(&means[1]), mean_of(&means[2]), mean_of(&means[3]),
                                        mean_of(&means[4]), mean_of(&means[5]), mean_of(&means[6])};
}

enum talpa_status tp_route_experts(struct talpa_route_experts *mean, const struct talpa_route_experts **modules, struct tp_arena *arena,
                                   const struct tp_route_stats *s)
{
    const size_t n = n_stacked(s), n_experts = (size_t)s->adapter->config.n_experts, n_weights = (s->n_tasks + 1) * n_experts;
    struct talpa_route_experts *out = tp_arena_array(arena, (size_t)s->adapter->n_modules, sizeof *out);
    double *scratch = malloc((2 * n + 2 * n_experts + n_weights) * sizeof *scratch);
    size_t *task = malloc((s->n_rows + 1) * sizeof *task);
    if (!out || !scratch || !task) {
        free(scratch);
        free(task);
        return tp_fail_memory("routing", (n + n_weights) * sizeof *scratch);
    }
    double *unit = scratch, *sum = unit + n, *count = sum + n, *all = count + n_experts, *weight = all + n_experts;
    bool has_rows = s->n_tasks > 1 && s->n_rows > 1;
    for (size_t i = 0; i < s->n_rows; i++) has_rows &= s->rows[i].weight != NULL;
    for (int m = 0; m < s->adapter->n_modules; m++) {
        out[m] = (struct talpa_route_experts){.information_by_chance = has_rows ? 0.0 : NAN, .intra_cosine = NAN, .inter_cosine = NAN,
                                              .same_token_cosine = NAN};
        entropies(&out[m], s, m, weight, all);
        if (s->n_samples) cosines(&out[m], s, m, unit, sum, count);
    }
    for (uint64_t i = 0; has_rows && i < N_SHUFFLES; i++) shuffle(out, s, task, i, weight, all);
    free(scratch);
    free(task);
    *mean = mean_over(out, s->adapter->n_modules);
    *modules = out;
    return TALPA_OK;
}
