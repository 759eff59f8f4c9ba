/* Comparing with earlier results. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/status.h"
#include "talpa/bench.h"

struct talpa_bench_baseline {
    struct tp_json *json;
};

static enum talpa_status check_row(const struct tp_json_value *row)
{
    const char *text;
    double number;
    TP_TRY(tp_json_get_string(&text, row, "test"));
    TP_TRY(tp_json_get_double(&number, row, "avg_ns"));
    return tp_json_get_double(&number, row, "stddev_ns");
}

enum talpa_status talpa_bench_baseline_open(struct talpa_bench_baseline **out, const char *path)
{
    struct talpa_bench_baseline *baseline = calloc(1, sizeof *baseline);
    if (!baseline) return tp_fail_memory("baseline", sizeof *baseline);
    enum talpa_status status = tp_json_parse_file(&baseline->json, path);
    const struct tp_json_value *root = status == TALPA_OK ? tp_json_root(baseline->json) : NULL;
    if (status == TALPA_OK && tp_json_type(root) != TP_JSON_ARRAY)
        status = tp_fail(TALPA_E_DATA, "%s: found %s, expected the array that 'talpa bench -o json' writes", path, tp_json_type_name(tp_json_type(root)));
    int i = 0;
    for (const struct tp_json_value *row = tp_json_first(root); row && status == TALPA_OK; row = tp_json_next(row), i++)
        status = tp_context(check_row(row), "%s: row %d", path, i);
    if (status == TALPA_OK) *out = baseline;
    else talpa_bench_baseline_close(baseline);
    return status;
}

void talpa_bench_baseline_close(struct talpa_bench_baseline *baseline)
{
    if (!baseline) return;
    tp_json_free(baseline->json);
    free(baseline);
}

static bool same_text(const struct tp_json_value *row, const char *key, const char *wanted)
{
    const char *text = NULL;
    const struct tp_json_value *value = tp_json_get(row, key);
    if (tp_json_type(value) != TP_JSON_STRING) return !wanted;
    return tp_json_as_string(&text, value, key) == TALPA_OK && wanted && !strcmp(text, wanted);
}

static bool same_number(const struct tp_json_value *row, const char *key, int wanted)
{
    double number;
    const struct tp_json_value *value = tp_json_get(row, key);
    if (tp_json_type(value) != TP_JSON_NUMBER) return wanted == 0;
    return tp_json_as_double(&number, value, key) == TALPA_OK && number == (double)wanted;
}

bool talpa_bench_baseline_find(double *avg_ns, double *stddev_ns, const struct talpa_bench_baseline *baseline, const struct talpa_bench_key *key)
{
    const struct tp_json_value *row = tp_json_first(tp_json_root(baseline->json));
    for (; row; row = tp_json_next(row)) {
        if (!same_text(row, "test", key->test) || !same_text(row, "model_type", key->model_type) ||
            !same_text(row, "dtype", key->dtype) || !same_text(row, "base_dtype", key->base_dtype) ||
            !same_text(row, "routing", key->routing) ||
            !same_number(row, "n_experts", key->n_experts) || !same_number(row, "rank", key->rank) || !same_number(row, "n_batch", key->n_batch))
            continue;
        return tp_json_get_double(avg_ns, row, "avg_ns") == TALPA_OK && tp_json_get_double(stddev_ns, row, "stddev_ns") == TALPA_OK;
    }
    return false;
}

double talpa_bench_sigmas(double old_ns, double old_stddev_ns, double new_ns, double new_stddev_ns)
{
    const double sigma = fmax(sqrt(old_stddev_ns * old_stddev_ns + new_stddev_ns * new_stddev_ns), 0.01 * old_ns);
    return sigma > 0.0 ? (new_ns - old_ns) / sigma : 0.0;
}
