/* Statistics over rows: means with errors, correlations, a regression within tasks. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "train/route_stats.h"

/* Levels of difficulty beyond this are a continuous measure: the regression tells, groups would not. */
enum { MAX_LEVELS = 32 };

/* ---- means ---- */

static int64_t tokens_of(const struct tp_route_row *row, enum talpa_route_part part)
{
    const int64_t before = row->n_tokens[TP_ROUTE_BEFORE], rest = row->n_tokens[TP_ROUTE_REST];
    return part == TALPA_ROUTE_WHOLE ? before + rest : part == TALPA_ROUTE_PROMPT ? before : rest;
}

static double active_of(const struct tp_route_row *row, enum talpa_route_part part)
{
    const int64_t before = row->active[TP_ROUTE_BEFORE], rest = row->active[TP_ROUTE_REST];
    return (double)(part == TALPA_ROUTE_WHOLE ? before + rest : part == TALPA_ROUTE_PROMPT ? before : rest);
}

/* A row's share in a ratio of sums. */
struct share {
    double value, n;
};
enum quantity {
    ACTIVE_WHOLE = TALPA_ROUTE_WHOLE,
    ACTIVE_PROMPT = TALPA_ROUTE_PROMPT,
    ACTIVE_COMPLETION = TALPA_ROUTE_COMPLETION,
    THRESHOLD,
    NLL
};

static struct share share_of(const struct tp_route_row *row, enum quantity quantity, double n_modules)
{
    if (quantity == NLL) return (struct share){row->nll, (double)row->n_labelled};
    if (quantity == THRESHOLD) return (struct share){row->threshold / n_modules, (double)tokens_of(row, TALPA_ROUTE_WHOLE)};
    const enum talpa_route_part part = (enum talpa_route_part)quantity;
    return (struct share){active_of(row, part) / n_modules, (double)tokens_of(row, part)};
}

static bool belongs(const struct tp_route_row *row, const struct talpa_route_group *group, const struct tp_route_stats *s)
{
    if (group->by == TALPA_ROUTE_BY_TASK) return s->tasks[row->task].name == group->task;
    return group->by == TALPA_ROUTE_BY_ALL || row->difficulty == group->difficulty;
}

/* Ratio of sums over the rows of a group; the error is the linearised one, of residuals over rows. */
static struct talpa_route_mean mean_of(const struct tp_route_stats *s, const struct talpa_route_group *group, enum quantity quantity)
{
    const double n_modules = s->adapter->n_modules;
    double value = 0.0, n = 0.0, n_rows = 0.0, spread = 0.0;
    for (size_t i = 0; i < s->n_rows; i++) {
        if (!belongs(&s->rows[i], group, s)) continue;
        const struct share share = share_of(&s->rows[i], quantity, n_modules);
        value += share.value;
        n += share.n;
        n_rows += share.n > 0.0;
    }
    if (!(n > 0.0)) return (struct talpa_route_mean){NAN, NAN};
    const double mean = value / n;
    for (size_t i = 0; i < s->n_rows; i++) {
        if (!belongs(&s->rows[i], group, s)) continue;
        const struct share share = share_of(&s->rows[i], quantity, n_modules);
        const double residual = share.value - mean * share.n;
        spread += residual * residual;
    }
    return (struct talpa_route_mean){mean, n_rows > 1.0 ? sqrt(spread * n_rows / (n_rows - 1.0)) / n : NAN};
}

static void fill_group(struct talpa_route_group *group, const struct tp_route_stats *s)
{
    for (size_t i = 0; i < s->n_rows; i++) {
        if (!belongs(&s->rows[i], group, s)) continue;
        group->n_rows++;
        group->n_tokens += tokens_of(&s->rows[i], TALPA_ROUTE_WHOLE);
    }
    for (int part = 0; part < TALPA_ROUTE_N_PARTS; part++) group->active[part] = mean_of(s, group, (enum quantity)part);
    group->threshold = mean_of(s, group, THRESHOLD);
    group->nll = mean_of(s, group, NLL);
}

/* ---- relations ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double pearson(const double *x, const double *y, size_t n)
{
    double mx = 0.0, my = 0.0, xx = 0.0, yy = 0.0, xy = 0.0;
    for (size_t i = 0; i < n; i++) {
        mx += x[i] / (double)n;
        my += y[i] / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        xx += (x[i] - mx) * (x[i] - mx);
        yy += (y[i] - my) * (y[i] - my);
        xy += (x[i] - mx) * (y[i] - my);
    }
    /* What is left of equal values after rounding is no spread. */
    const double least = 1e-20 * (double)n;
    return xx > least * mx * mx && yy > least * my * my && xx > 0.0 && yy > 0.0 ? xy / sqrt(xx * yy) : NAN;
}

/* Ranks from 1, equal values get their mean rank. `order` is scratch. */
static void rank(double *out, double *order, const double *x, size_t n)
{
    memcpy(order, x, n * sizeof *order);
    qsort(order, n, sizeof *order, by_value);
    for (size_t i = 0; i < n; i++) {
        size_t low = 0, high = n;
        for (size_t end = n; low < end;) {
            const size_t middle = (low + end) / 2;
            if (order[middle] < x[i]) low = middle + 1;
            else end = middle;
        }
        for (size_t start = low; start < high;) {
            const size_t middle = (start + high) / 2;
            if (order[middle] > x[i]) high = middle;
            else start = middle + 1;
        }
        out[i] = 0.5 * (double)(low + 1 + high);
    }
}

/* Takes the mean of each task away. `sum`, `count`: scratch of n_tasks. Returns the number of tasks that have rows. */
static size_t centre(double *x, const size_t *task, size_t n, double *sum, double *count, size_t n_tasks)
{
    size_t n_present = 0;
    for (size_t t = 0; t < n_tasks; t++) sum[t] = count[t] = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum[task[i]] += x[i];
        count[task[i]]++;
    }
    for (size_t i = 0; i < n; i++) {
        const double mean = sum[task[i]] / count[task[i]], left = x[i] - mean;
        x[i] = fabs(left) > 1e-12 * fabs(mean) ? left : 0.0;
    }
    for (size_t t = 0; t < n_tasks; t++) n_present += count[t] > 0.0;
    return n_present;
}

static void regress(struct talpa_route_relation *r, const double *x, const double *y, size_t n, size_t n_present)
{
    double xx = 0.0, xy = 0.0, spread = 0.0;
    for (size_t i = 0; i < n; i++) {
        xx += x[i] * x[i];
        xy += x[i] * y[i];
    }
    if (!(xx > 0.0)) return;
    r->slope = xy / xx;
    for (size_t i = 0; i < n; i++) {
        const double residual = y[i] - r->slope * x[i];
        spread += x[i] * x[i] * residual * residual;
    }
    if (n > n_present + 1) r->slope_error = sqrt(spread * (double)n / (double)(n - n_present - 1)) / xx;
}

/* scratch: 5 * n_rows + 2 * n_tasks doubles; task: n_rows. */
static void relate(struct talpa_route_relation *r, const struct tp_route_stats *s, double *scratch, size_t *task)
{
    double *x = scratch, *y = x + s->n_rows, *rank_x = y + s->n_rows, *rank_y = rank_x + s->n_rows, *order = rank_y + s->n_rows;
    double *sum = order + s->n_rows, *count = sum + s->n_tasks;
    const bool is_nll = r->x[0] == 'n';
    size_t n = 0;
    for (size_t i = 0; i < s->n_rows; i++) {
        const struct tp_route_row *row = &s->rows[i];
        const double n_tokens = (double)tokens_of(row, r->part);
        const double value = is_nll ? row->nll / (double)row->n_labelled : row->difficulty;
        if (!(n_tokens > 0.0) || !isfinite(value)) continue;
        x[n] = value;
        y[n] = active_of(row, r->part) / (n_tokens * s->adapter->n_modules);
        task[n++] = row->task;
    }
    r->n_rows = (int64_t)n;
    r->pearson = r->spearman = r->pearson_within = r->slope = r->slope_error = NAN;
    if (n < 3) return;
    r->pearson = pearson(x, y, n);
    rank(rank_x, order, x, n);
    rank(rank_y, order, y, n);
    r->spearman = pearson(rank_x, rank_y, n);
    centre(x, task, n, sum, count, s->n_tasks);
    const size_t n_present = centre(y, task, n, sum, count, s->n_tasks);
    r->pearson_within = pearson(x, y, n);
    regress(r, x, y, n, n_present);
}

enum talpa_status tp_route_summarise(struct talpa_route_summary *out, struct tp_arena *arena, const struct tp_route_stats *s)
{
    struct talpa_route_summary summary = {.n_modules = s->adapter->n_modules, .n_experts = s->adapter->config.n_experts};
    const size_t n_doubles = 5 * s->n_rows + 2 * s->n_tasks + 1;
    double *scratch = malloc(n_doubles * sizeof *scratch);
    size_t *task = malloc((s->n_rows + 1) * sizeof *task), n_levels = 0;
    struct talpa_route_group *groups = NULL;
    if (scratch && task) {
        size_t n = 0;
        for (size_t i = 0; i < s->n_rows; i++)
            if (isfinite(s->rows[i].difficulty)) scratch[n++] = s->rows[i].difficulty;
        qsort(scratch, n, sizeof *scratch, by_value);
        for (size_t i = 0; i < n; i++)
            if (!i || scratch[i] > scratch[n_levels - 1]) scratch[n_levels++] = scratch[i];
        groups = tp_arena_array(arena, 1 + s->n_tasks + n_levels, sizeof *groups);
    }
    if (!groups) {
        free(scratch);
        free(task);
        return tp_fail_memory("routing", (unsigned long long)n_doubles * sizeof *scratch);
    }
    groups[summary.n_groups++] = (struct talpa_route_group){.by = TALPA_ROUTE_BY_ALL, .difficulty = NAN};
    for (size_t i = 0; i < s->n_tasks; i++)
        groups[summary.n_groups++] = (struct talpa_route_group){.by = TALPA_ROUTE_BY_TASK, .task = s->tasks[i].name, .difficulty = NAN};
    for (size_t i = 0; i < n_levels && n_levels <= MAX_LEVELS; i++)
        groups[summary.n_groups++] = (struct talpa_route_group){.by = TALPA_ROUTE_BY_DIFFICULTY, .difficulty = scratch[i]};
    for (size_t i = 0; i < summary.n_groups; i++) fill_group(&groups[i], s);
    summary.groups = groups;
    summary.n_samples = (int64_t)s->n_samples;
    for (int i = 0; i < TALPA_ROUTE_N_RELATIONS; i++) {
        summary.relations[i] = (struct talpa_route_relation){.x = i < TALPA_ROUTE_N_PARTS ? "nll" : "difficulty",
                                                             .part = (enum talpa_route_part)(i % TALPA_ROUTE_N_PARTS)};
        relate(&summary.relations[i], s, scratch, task);
    }
    free(scratch);
    free(task);
    TP_TRY(tp_route_experts(&summary.experts, &summary.modules, arena, s));
    *out = summary;
    return TALPA_OK;
}

/* ---- text ---- */

struct text {
    char *bytes;
    size_t n, room;
    bool failed;
};

static void put(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *format, ...)
{
    char line[256];
    va_list list;
    va_start(list, format);
    const int made = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    const size_t n = made < 0 ? 0 : (size_t)made < sizeof line ? (size_t)made : sizeof line - 1;
    if (t->failed) return;
    if (t->room - t->n <= n) {
        const size_t room = 2 * t->room + n + 1024;
        char *larger = realloc(t->bytes, room);
        if (!larger) {
            t->failed = true;
            return;
        }
        t->bytes = larger;
        t->room = room;
    }
    memcpy(t->bytes + t->n, line, n + 1);
    t->n += n;
}

static void put_mean(struct text *t, const struct talpa_route_mean *mean, int digits, int width)
{
    char cell[48];
    if (!isfinite(mean->mean)) snprintf(cell, sizeof cell, "-");
    else if (!isfinite(mean->error)) snprintf(cell, sizeof cell, "%.*f", digits, mean->mean);
    else snprintf(cell, sizeof cell, "%.*f +- %.*f", digits, mean->mean, digits, mean->error);
    put(t, "  %*s", width, cell);
}

static void put_signed(struct text *t, const char *name, double value)
{
    if (isfinite(value)) put(t, "%s %+.3f", name, value);
    else put(t, "%s -", name);
}

static void put_group(struct text *t, const struct talpa_route_group *g)
{
    char name[40];
    if (g->by == TALPA_ROUTE_BY_TASK) snprintf(name, sizeof name, "task %.24s", g->task[0] ? g->task : "-");
    else if (g->by == TALPA_ROUTE_BY_DIFFICULTY) snprintf(name, sizeof name, "difficulty %g", g->difficulty);
    else snprintf(name, sizeof name, "all rows");
    put(t, "%-20s %6lld %8lld", name, (long long)g->n_rows, (long long)g->n_tokens);
    for (int part = 0; part < TALPA_ROUTE_N_PARTS; part++) put_mean(t, &g->active[part], 3, 15);
    put_mean(t, &g->threshold, 4, 16);
    put_mean(t, &g->nll, 3, 15);
    put(t, "\n");
}

static void put_number(struct text *t, const char *name, double value)
{
    if (isfinite(value)) put(t, "%s %.3f", name, value);
    else put(t, "%s -", name);
}

static void put_experts(struct text *t, const struct talpa_route_summary *s)
{
    const struct talpa_route_experts *e = &s->experts;
    put(t, "experts, mean over modules\n");
    put_number(t, "  entropy of a token's weights", e->entropy);
    put_number(t, "  of the mean weights", e->entropy_of_mean);
    put(t, "  of at most %.3f nat\n", log((double)s->n_experts));
    put_number(t, "  information about the task", e->information);
    if (isfinite(e->information)) put(t, " nat, by chance %.3f", e->information_by_chance);
    put_signed(t, "\n  cosine of outputs  same expert", e->intra_cosine);
    put_signed(t, "  different experts", e->inter_cosine);
    put_signed(t, "  of one token", e->same_token_cosine);
    put(t, "  (%lld tokens)\n", (long long)s->n_samples);
}

enum talpa_status tp_route_summary_text(char **out, const struct talpa_route_summary *s)
{
    static const char *const parts[TALPA_ROUTE_N_PARTS] = {"all tokens", "prompt", "completion"};
    struct text t = {0};
    put(&t, "active experts per token and module (%d experts in each of %d modules), +- standard error over rows\n", s->n_experts,
        s->n_modules);
    put(&t, "%-20s %6s %8s  %15s  %15s  %15s  %16s  %15s\n", "", "rows", "tokens", parts[0], parts[1], parts[2], "threshold",
        "nll per token");
    for (size_t i = 0; i < s->n_groups; i++) put_group(&t, &s->groups[i]);
    for (int i = 0; i < TALPA_ROUTE_N_RELATIONS; i++) {
        const struct talpa_route_relation *r = &s->relations[i];
        if (r->n_rows < 3) continue;
        if (r->part == TALPA_ROUTE_WHOLE)
            put(&t, "a row's active experts against its %s (%lld rows)\n", r->x[0] == 'n' ? "nll per token" : r->x, (long long)r->n_rows);
        put(&t, "  %-11s", parts[r->part]);
        put_signed(&t, " correlation", r->pearson);
        put_signed(&t, "  of ranks", r->spearman);
        put_signed(&t, "  within tasks", r->pearson_within);
        put_signed(&t, "  slope within tasks", r->slope);
        if (isfinite(r->slope_error)) put(&t, " +- %.3f", r->slope_error);
        put(&t, " experts per %s\n", r->x[0] == 'n' ? "nat" : "level");
    }
    put_experts(&t, s);
    if (t.failed) {
        free(t.bytes);
        return tp_fail_memory("routing summary", t.room);
    }
    *out = t.bytes;
    return TALPA_OK;
}

enum talpa_status talpa_route_summary_print(FILE *file, const struct talpa_route_summary *summary)
{
    char *text;
    TP_TRY(tp_route_summary_text(&text, summary));
    const bool failed = fputs(text, file) < 0;
    free(text);
    return failed ? tp_fail(TALPA_E_IO, "the routing summary cannot be written") : TALPA_OK;
}
