/* talpa tune: coordinate search over the parameters that kernels declare (runtime/tuning.h). */
#include "talpa/tune.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/dtype.h"
#include "base/rng.h"
#include "base/status.h"
#include "exec/executor.h"
#include "models/model.h"
#include "runtime/device.h"
#include "runtime/tuning.h"
#include "talpa/ops.h"
#include "tune_file.h"

enum { MAX_SHAPES = 8, MAX_WIDTH = 8192, MAX_REPETITIONS = 101, CHECKED = 96 };
static const double wanted_ns = 8e6, tolerance = 1e-4, least_gain = 1.02;

/* A product y = x W^T, or y = x W where `transposed` is false. */
struct shape {
    enum talpa_dtype dtype;
    int k, n; /* of W [n, k] */
    bool is_back;
};

/* One product, prepared with one tuning. */
struct product {
    struct talpa_graph *graph;
    struct tp_store *store;
    struct tp_plan *plan;
    struct tp_executor *executor;
    talpa_value x, y;
    int times;
};

struct tuner {
    const struct talpa_tune_options *options;
    const struct talpa_tune_callbacks *callbacks;
    struct tp_device *device;
    struct tp_tuning *best;
    struct shape shape[MAX_SHAPES];
    void *weight[MAX_SHAPES];
    float *x;
    int n_shapes;
};

/* Outcome of one variant over all shapes. */
struct outcome {
    double speed, max_error; /* speed: the smaller of the ratios of medians and of minima, which noise rarely moves together */
    bool refused;
    char refusal[160];
};

/* ---- shapes ---- */

static void add_shape(struct tuner *t, enum talpa_dtype dtype, int64_t n, int64_t k)
{
    const int width = (int)(n < MAX_WIDTH ? n : MAX_WIDTH);
    if (k > MAX_WIDTH * 4 || k < 32 || n < 32 || k % tp_dtype_block(dtype)) return;
    for (int back = 0; back < 2; back++) {
        bool known = t->n_shapes == MAX_SHAPES;
        for (int i = 0; i < t->n_shapes; i++)
            known = known || (t->shape[i].dtype == dtype && t->shape[i].n == width && t->shape[i].k == (int)k && t->shape[i].is_back == back);
        if (!known) t->shape[t->n_shapes++] = (struct shape){dtype, (int)k, width, back != 0};
    }
}

static void choose_shapes(struct tuner *t)
{
    const struct talpa_model *model = t->options->model;
    if (!model) {
        add_shape(t, TALPA_Q4_1, 576, 576);
        add_shape(t, TALPA_Q4_1, 1536, 576);
        add_shape(t, TALPA_F32, 576, 1536);
        add_shape(t, TALPA_F32, 1536, 576);
        return;
    }
    for (size_t i = 0; i < model->n_weights; i++) {
        const struct tp_type *type = &model->weights[i].type;
        if (type->shape.rank == 2 && !model->weights[i].is_derived) add_shape(t, type->dtype, type->shape.dim[0], type->shape.dim[1]);
    }
}

static enum talpa_status make_data(struct tuner *t)
{
    int64_t widest = 0;
    for (int s = 0; s < t->n_shapes; s++) {
        const struct shape *shape = &t->shape[s];
        const int64_t n = (int64_t)shape->n * shape->k;
        float *values = malloc((size_t)n * sizeof *values);
        t->weight[s] = malloc(tp_dtype_bytes(shape->dtype, n));
        if (!values || !t->weight[s]) {
            free(values);
            return tp_fail_memory("weight", (unsigned long long)n * sizeof *values);
        }
        tp_rng_fill_splitmix(values, n, 13, (uint64_t)s, sqrt(3.0 / shape->k));
        tp_dtype_from_f32(t->weight[s], values, shape->dtype, n);
        free(values);
        if (widest < shape->n || widest < shape->k) widest = shape->n > shape->k ? shape->n : shape->k;
    }
    const int64_t n_x = widest * t->options->n_rows;
    t->x = malloc((size_t)n_x * sizeof *t->x);
    if (!t->x) return tp_fail_memory("rows", (unsigned long long)n_x * sizeof *t->x);
    tp_rng_fill_splitmix(t->x, n_x, 11, 0, 1.0);
    return TALPA_OK;
}

/* ---- one product ---- */

static void product_free(struct product *p)
{
    tp_executor_free(p->executor);
    tp_plan_free(p->plan);
    tp_store_free(p->store);
    tp_graph_free(p->graph);
    *p = (struct product){0};
}

static enum talpa_status product_create(struct product *p, const struct tuner *t, int s, const struct tp_tuning *tuning)
{
    const struct shape *shape = &t->shape[s];
    const int64_t m = t->options->n_rows, k = shape->is_back ? shape->n : shape->k;
    const struct tp_store_source source = {.type = tp_type_2d(shape->dtype, TP_STEP_NONE, shape->n, shape->k), .data = t->weight[s]};
    const struct tp_step step = {{0}};
    struct tp_plan_options options;
    talpa_value w;
    *p = (struct product){.times = 1};
    TP_TRY(tp_graph_create(&p->graph));
    TP_TRY(tp_graph_input(p->graph, &p->x, "x", tp_type_2d(TALPA_F32, TP_STEP_NONE, m, k)));
    TP_TRY(tp_graph_weight(p->graph, &w, "w", source.type));
    TP_TRY(talpa_matmul(&p->y, p->graph, p->x, w, TALPA_NONE, false, !shape->is_back));
    tp_graph_mark_output(p->graph, p->y);
    TP_TRY(tp_store_create(&p->store, t->device));
    TP_TRY(tp_store_bind(p->store, "w", &source));
    tp_plan_options_default(&options);
    options.tuning = tuning;
    TP_TRY(tp_plan_create(&p->plan, p->graph, tp_device_caps(t->device), &options));
    TP_TRY(tp_executor_create(&p->executor, p->store, &p->plan, 1));
    TP_TRY(tp_executor_step(p->executor, &step));
    return tp_executor_write(p->executor, p->x, t->x, (size_t)(m * k) * sizeof *t->x);
}

static enum talpa_status run(struct product *p, double *ns)
{
    const int64_t begin = tp_clock_now_ns();
    for (int i = 0; i < p->times; i++) TP_TRY(tp_executor_run(p->executor, 0, TP_PHASE_BATCH));
    TP_TRY(tp_executor_finish(p->executor));
    *ns = (double)(tp_clock_now_ns() - begin) / p->times;
    return TALPA_OK;
}

/* Elements of the last run against double precision; the last row and column, where tiles end, are among them. */
static enum talpa_status check(double *error, const struct product *p, const struct tuner *t, int s)
{
    const struct shape *shape = &t->shape[s];
    const int64_t m = t->options->n_rows, k = shape->is_back ? shape->n : shape->k, n = shape->is_back ? shape->k : shape->n;
    const size_t row_bytes = tp_dtype_bytes(shape->dtype, shape->k);
    float *y = malloc((size_t)(m * n) * sizeof *y), *row = malloc((size_t)shape->k * sizeof *row);
    enum talpa_status status = TALPA_OK;
    if (!y || !row) status = tp_fail_memory("product", (unsigned long long)(m * n) * sizeof *y);
    else status = tp_executor_read(p->executor, p->y, y, (size_t)(m * n) * sizeof *y);
    int64_t at_row[CHECKED], at_column[CHECKED];
    double want[CHECKED] = {0.0};
    for (int i = 0; i < CHECKED; i++) {
        const uint64_t bits = tp_rng_splitmix64(7, (uint64_t)i + 1);
        at_row[i] = i % 4 == 0 ? m - 1 : (int64_t)(bits % (uint64_t)m);
        at_column[i] = i % 8 == 0 ? n - 1 : (int64_t)((bits >> 32) % (uint64_t)n);
    }
    for (int64_t w = 0; w < shape->n && status == TALPA_OK; w++) {
        tp_dtype_to_f32(row, (const uint8_t *)t->weight[s] + (size_t)w * row_bytes, shape->dtype, shape->k);
        for (int i = 0; i < CHECKED; i++) {
            const float *x = t->x + at_row[i] * k;
            if (shape->is_back) want[i] += (double)x[w] * (double)row[at_column[i]];
            else if (at_column[i] == w)
                for (int64_t l = 0; l < k; l++) want[i] += (double)x[l] * (double)row[l];
        }
    }
    *error = 0.0;
    for (int i = 0; i < CHECKED && status == TALPA_OK; i++) {
        const double e = fabs((double)y[at_row[i] * n + at_column[i]] - want[i]) / (1.0 + fabs(want[i]));
        if (!(e <= *error)) *error = isfinite(e) ? e : INFINITY;
    }
    free(y);
    free(row);
    return status;
}

/* ---- variants ---- */

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, by_size);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

static enum talpa_status compare_shape(struct outcome *out, double log_speed[2], const struct tuner *t, int s, const struct tp_tuning *old,
                                       const struct tp_tuning *new, struct product *both)
{
    double ns[2][MAX_REPETITIONS], error = 0.0, first;
    const enum talpa_status built = product_create(&both[1], t, s, new);
    if (built == TALPA_E_DEVICE) {
        out->refused = true;
        snprintf(out->refusal, sizeof out->refusal, "%.150s", talpa_error_message());
        tp_status_clear();
        return TALPA_OK;
    }
    TP_TRY(built);
    TP_TRY(run(&both[1], &first));
    TP_TRY(check(&error, &both[1], t, s));
    if (error > out->max_error) out->max_error = error;
    if (!(error <= tolerance)) {
        out->refused = true;
        snprintf(out->refusal, sizeof out->refusal, "wrong result: error %.3g against double precision, at most %.3g expected", error, tolerance);
        return TALPA_OK;
    }
    TP_TRY(product_create(&both[0], t, s, old));
    for (int i = 0; i < 2; i++) {
        TP_TRY(run(&both[i], &first));
        TP_TRY(run(&both[i], &first));
        both[i].times = first < wanted_ns ? (int)(wanted_ns / fmax(first, 1e3)) + 1 : 1;
    }
    both[0].times = both[1].times = both[0].times > both[1].times ? both[0].times : both[1].times;
    for (int r = 0; r < t->options->repetitions; r++)
        for (int i = 0; i < 2; i++) TP_TRY(run(&both[(i + r) % 2], &ns[(i + r) % 2][r]));
    log_speed[0] += log(median(ns[0], t->options->repetitions) / median(ns[1], t->options->repetitions));
    log_speed[1] += log(ns[0][0] / ns[1][0]); /* sorted by now */
    return TALPA_OK;
}

static enum talpa_status compare(struct outcome *out, const struct tuner *t, const struct tp_tuning *old, const struct tp_tuning *new)
{
    double log_speed[2] = {0.0, 0.0};
    enum talpa_status status = TALPA_OK;
    *out = (struct outcome){0};
    for (int s = 0; s < t->n_shapes && status == TALPA_OK && !out->refused; s++) {
        struct product both[2] = {{0}};
        status = compare_shape(out, log_speed, t, s, old, new, both);
        product_free(&both[0]);
        product_free(&both[1]);
    }
    out->speed = out->refused ? 0.0 : exp(fmin(log_speed[0], log_speed[1]) / t->n_shapes);
    return status;
}

/* Whether any launch of the products comes from this kernel file. */
static enum talpa_status is_exercised(bool *out, const struct tuner *t, const char *path)
{
    *out = false;
    enum talpa_status status = TALPA_OK;
    for (int s = 0; s < t->n_shapes && !*out && status == TALPA_OK; s++) {
        struct product p = {0};
        status = product_create(&p, t, s, t->best);
        for (int i = 0; status == TALPA_OK && i < p.plan->phase[TP_PHASE_BATCH].n; i++) {
            const char *source = p.plan->phase[TP_PHASE_BATCH].item[i].source;
            *out = *out || (source && !strcmp(source, path));
        }
        product_free(&p);
    }
    return status;
}

static enum talpa_status interrupted(void) { return tp_fail(TALPA_E_INTERRUPTED, "tuning stopped; no file was written"); }

static enum talpa_status try_value(struct talpa_tune_row *row, struct tuner *t, const struct tp_tunable *tunable, const char *value)
{
    struct tp_tuning *variant;
    struct outcome outcome;
    TP_TRY(tp_tuning_copy(&variant, t->best));
    enum talpa_status status = tp_tuning_set(variant, tunable->path, tunable->name, value);
    if (status == TALPA_OK) status = compare(&outcome, t, t->best, variant);
    if (status != TALPA_OK) {
        tp_tuning_free(variant);
        return tp_context(status, "%s, %s = %s", tunable->path, tunable->name, value);
    }
    const bool accepted = !outcome.refused && outcome.speed >= least_gain;
    row->n_tried++;
    row->n_refused += outcome.refused;
    if (accepted) {
        row->speed *= outcome.speed;
        tp_tuning_free(t->best);
        t->best = variant;
    } else {
        tp_tuning_free(variant);
    }
    const struct talpa_tune_trial trial = {.kernel = tunable->path, .name = tunable->name, .value = value, .speed = outcome.speed,
                                           .max_error = outcome.max_error, .accepted = accepted, .refusal = outcome.refusal};
    return !t->callbacks->trial || t->callbacks->trial(t->callbacks->user, &trial) ? TALPA_OK : interrupted();
}

static enum talpa_status search(struct tuner *t, bool *exercised)
{
    int n;
    struct tp_tuning *start;
    TP_TRY(tp_tuning_copy(&start, t->best));
    const struct tp_tunable *list = tp_tuning_list(start, &n);
    enum talpa_status status = TALPA_OK;
    for (int i = 0; i < n && status == TALPA_OK; i++) {
        const struct tp_tunable *tunable = &list[i];
        struct talpa_tune_row row = {.kernel = tunable->path, .name = tunable->name, .before = tunable->value, .speed = 1.0};
        status = is_exercised(&exercised[i], t, tunable->path);
        if (status != TALPA_OK || !exercised[i]) continue;
        if (strcmp(tunable->value, tunable->initial)) status = try_value(&row, t, tunable, tunable->initial);
        for (int c = 0; c < tunable->n_choices && status == TALPA_OK; c++)
            if (strcmp(tunable->choices[c], tp_tuning_word(t->best, tunable->path, tunable->name)) && strcmp(tunable->choices[c], tunable->value) &&
                strcmp(tunable->choices[c], tunable->initial))
                status = try_value(&row, t, tunable, tunable->choices[c]);
        row.after = tp_tuning_word(t->best, tunable->path, tunable->name);
        if (status == TALPA_OK && t->callbacks->row && !t->callbacks->row(t->callbacks->user, &row)) status = interrupted();
    }
    tp_tuning_free(start);
    return status;
}

static enum talpa_status tune(struct tuner *t)
{
    int n;
    const struct talpa_device_caps *caps = tp_device_caps(t->device);
    TP_TRY(tp_tuning_create(&t->best, caps));
    choose_shapes(t);
    if (!t->n_shapes) return tp_fail(TALPA_E_ARGUMENT, "the model has no linear whose product could be timed");
    TP_TRY(make_data(t));
    tp_tuning_list(t->best, &n);
    bool *exercised = calloc((size_t)n + 1, sizeof *exercised);
    if (!exercised) return tp_fail_memory("tuning", (size_t)n + 1);
    enum talpa_status status = search(t, exercised);
    if (status == TALPA_OK && !t->options->dry_run) status = tp_tune_file_write(t->options->file, caps, t->best, exercised);
    free(exercised);
    return status;
}

void talpa_tune_default(struct talpa_tune_options *options) { *options = (struct talpa_tune_options){.n_rows = 512, .repetitions = 7}; }

enum talpa_status talpa_tune(size_t device, const struct talpa_tune_options *options, const struct talpa_tune_callbacks *callbacks)
{
    if (options->n_rows < 1 || options->n_rows > 65536)
        return tp_fail(TALPA_E_ARGUMENT, "rows: %d, expected 1 to 65536", options->n_rows);
    if (options->repetitions < 3 || options->repetitions > MAX_REPETITIONS)
        return tp_fail(TALPA_E_ARGUMENT, "repetitions: %d, expected 3 to %d", options->repetitions, MAX_REPETITIONS);
    /* Found out now rather than after minutes. */
    if (!options->dry_run) TP_TRY(tp_tune_file_check(options->file));
    struct tuner t = {.options = options, .callbacks = callbacks};
    TP_TRY(tp_device_open(&t.device, device, false));
    const enum talpa_status status = tune(&t);
    tp_tuning_free(t.best);
    for (int s = 0; s < t.n_shapes; s++) free(t.weight[s]);
    free(t.x);
    tp_device_close(t.device);
    return status;
}
