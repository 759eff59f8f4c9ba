/* Active experts of rows that are answered right, and of those that are not. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "base/status.h"
#include "train/route_read.h"

enum { WRONG, RIGHT, UNKNOWN };

struct answers {
    struct tp_map of; /* id -> WRONG or RIGHT */
};

static enum talpa_status read_sample(void *user, const struct tp_json_value *json)
{
    struct answers *answers = user;
    const char *id;
    bool correct;
    int64_t found;
    TP_TRY(tp_json_get_string(&id, json, "id"));
    if (tp_json_type(tp_json_get(json, "correct")) != TP_JSON_BOOL)
        return tp_fail(TALPA_E_DATA, "correct: found %s, expected true or false: samples of a metric that judges rows",
                       tp_json_type_name(tp_json_type(tp_json_get(json, "correct"))));
    TP_TRY(tp_json_get_bool(&correct, json, "correct"));
    if (tp_map_get_string(&found, &answers->of, id) && found != (correct ? RIGHT : WRONG))
        return tp_fail(TALPA_E_DATA, "id: found '%.60s' twice, right and wrong; expected ids that name one row", id);
    return tp_map_put_string(&answers->of, id, correct ? RIGHT : WRONG);
}

/* Ratio of sums over the rows of a group; the error is the linearised one, of residuals over rows. */
static struct talpa_route_mean mean_of(const struct tp_route_log *log, const int *group, int which, int part)
{
    double value = 0.0, n = 0.0, n_rows = 0.0, spread = 0.0;
    for (size_t i = 0; i < log->n_rows; i++) {
        if (group[i] != which || !(log->rows[i].n_tokens[part] > 0)) continue;
        value += log->rows[i].active[part] * (double)log->rows[i].n_tokens[part];
        n += (double)log->rows[i].n_tokens[part];
        n_rows++;
    }
    if (!(n > 0.0)) return (struct talpa_route_mean){NAN, NAN};
    for (size_t i = 0; i < log->n_rows; i++) {
        if (group[i] != which || !(log->rows[i].n_tokens[part] > 0)) continue;
        const double residual = (log->rows[i].active[part] - value / n) * (double)log->rows[i].n_tokens[part];
        spread += residual * residual;
    }
    return (struct talpa_route_mean){value / n, n_rows > 1.0 ? sqrt(spread * n_rows / (n_rows - 1.0)) / n : NAN};
}

/* Takes the mean of every task away from `x` of the rows that count; returns the number of tasks among them. sum: scratch [2 * n_tasks]. */
static size_t centre(double *x, const struct tp_route_log *log, const size_t *row, size_t n, double *sum)
{
    double *count = sum + log->n_tasks;
    size_t n_present = 0;
    memset(sum, 0, 2 * log->n_tasks * sizeof *sum);
    for (size_t i = 0; i < n; i++) {
        sum[log->rows[row[i]].task] += x[i];
        count[log->rows[row[i]].task]++;
    }
    for (size_t i = 0; i < n; i++) x[i] -= sum[log->rows[row[i]].task] / count[log->rows[row[i]].task];
    for (size_t t = 0; t < log->n_tasks; t++) n_present += count[t] > 0.0;
    return n_present;
}

/* Slope of a row's active experts on "wrong" with a level for each task. scratch: 2 * n_rows + 2 * n_tasks, row: n_rows. */
static struct talpa_route_mean within(const struct tp_route_log *log, const int *group, int part, double *scratch, size_t *row)
{
    double *x = scratch, *y = x + log->n_rows, *sum = y + log->n_rows;
    double xx = 0.0, xy = 0.0, spread = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < log->n_rows; i++) {
        if (group[i] == UNKNOWN || !(log->rows[i].n_tokens[part] > 0)) continue;
        x[n] = group[i] == WRONG;
        y[n] = log->rows[i].active[part];
        row[n++] = i;
    }
    centre(x, log, row, n, sum);
    const size_t n_tasks = centre(y, log, row, n, sum);
    for (size_t i = 0; i < n; i++) {
        xx += x[i] * x[i];
        xy += x[i] * y[i];
    }
    if (!(xx > 1e-9)) return (struct talpa_route_mean){NAN, NAN};
    const double slope = xy / xx;
    for (size_t i = 0; i < n; i++) {
        const double residual = y[i] - slope * x[i];
        spread += x[i] * x[i] * residual * residual;
    }
    return (struct talpa_route_mean){slope, n > n_tasks + 1 ? sqrt(spread * (double)n / (double)(n - n_tasks - 1)) / xx : NAN};
}

static enum talpa_status split(struct talpa_route_split *out, const struct tp_route_log *log, const struct answers *answers, const char *path,
                               const char *samples)
{
    int *group = malloc(log->n_rows * sizeof *group);
    double *scratch = malloc(2 * (log->n_rows + log->n_tasks) * sizeof *scratch);
    size_t *row = malloc(log->n_rows * sizeof *row);
    struct talpa_route_split s = {0};
    enum talpa_status status = group && scratch && row ? TALPA_OK : tp_fail_memory("split", log->n_rows * sizeof *scratch);
    for (size_t i = 0; i < log->n_rows && status == TALPA_OK; i++) {
        int64_t found;
        group[i] = tp_map_get_string(&found, &answers->of, log->rows[i].id) ? (int)found : UNKNOWN;
        s.n_right += group[i] == RIGHT;
        s.n_wrong += group[i] == WRONG;
        s.n_unknown += group[i] == UNKNOWN;
    }
    if (status == TALPA_OK && !s.n_right && !s.n_wrong)
        status = tp_fail(TALPA_E_DATA, "%s: no sample has the id of a row of %s (such as '%.60s'): give the samples of the same rows", samples,
                         path, log->rows[0].id);
    for (int part = 0; part < TALPA_ROUTE_N_PARTS && status == TALPA_OK; part++) {
        s.right[part] = mean_of(log, group, RIGHT, part);
        s.wrong[part] = mean_of(log, group, WRONG, part);
        s.difference[part] =
            (struct talpa_route_mean){s.wrong[part].mean - s.right[part].mean, hypot(s.wrong[part].error, s.right[part].error)};
        s.within_tasks[part] = within(log, group, part, scratch, row);
    }
    free(group);
    free(scratch);
    free(row);
    if (status == TALPA_OK) *out = s;
    return status;
}

enum talpa_status talpa_route_split(struct talpa_route_split *out, const char *path, const char *samples)
{
    struct tp_route_log log = {0};
    struct answers answers = {{0}};
    enum talpa_status status = tp_route_log_read(&log, path);
    if (status == TALPA_OK) status = tp_route_visit_lines(samples, read_sample, &answers);
    if (status == TALPA_OK) status = split(out, &log, &answers, path, samples);
    tp_map_free(&answers.of);
    tp_route_log_free(&log);
    return status;
}
