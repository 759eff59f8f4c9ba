/* Products alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/dtype.h"
#include "base/rng.h"
#include "bench_impl.h"
#include "models/engine.h"
#include "runtime/queue.h"
#include "talpa/ops.h"

enum { CHECKED = 64 }; /* elements of the product that are compared */

static const double wanted_ns = 1e7, tolerance = 1e-4, tolerance_bf16 = 2e-2;

struct product {
    struct talpa_bench_shape shape;
    struct talpa_graph *graph;
    struct tp_program_set set;
    talpa_value x, y;
    float *x_data, *y_data;
    void *w_data;
    int times; /* runs per sample */
};

static enum talpa_status run_once(void *user, double *ns)
{
    struct product *p = user;
    const int64_t begin = tp_clock_now_ns();
    for (int i = 0; i < p->times; i++) TP_TRY(tp_executor_run(p->set.executor, 0, TP_PHASE_BATCH));
    TP_TRY(tp_executor_finish(p->set.executor));
    *ns = (double)(tp_clock_now_ns() - begin) / p->times;
    return TALPA_OK;
}

static enum talpa_status check(double *error, const struct product *p, enum talpa_dtype dtype)
{
    const struct talpa_bench_shape s = p->shape;
    const size_t row_bytes = tp_dtype_bytes(dtype, s.k);
    float *row = malloc((size_t)s.k * sizeof *row);
    if (!row) return tp_fail_memory("product", (unsigned long long)s.k * sizeof *row);
    const enum talpa_status status = tp_executor_read(p->set.executor, p->y, p->y_data, (size_t)s.m * (size_t)s.n * sizeof(float));
    *error = 0.0;
    for (int i = 0; i < CHECKED && status == TALPA_OK; i++) {
        const uint64_t bits = tp_rng_splitmix64(7, (uint64_t)i + 1);
        const int m = i ? (int)(bits % (uint64_t)s.m) : s.m - 1, n = i ? (int)((bits >> 32) % (uint64_t)s.n) : s.n - 1;
        double want = 0.0;
        tp_dtype_to_f32(row, (const uint8_t *)p->w_data + (size_t)n * row_bytes, dtype, s.k);
        for (int k = 0; k < s.k; k++) want += (double)p->x_data[(size_t)m * (size_t)s.k + (size_t)k] * (double)row[k];
        const double got = (double)p->y_data[(size_t)m * (size_t)s.n + (size_t)n], e = fabs(got - want) / (1.0 + fabs(want));
        if (!(e <= *error)) *error = isfinite(e) ? e : INFINITY;
    }
    free(row);
    return status;
}

/* Uniform numbers with the variance of a linear's usual start, rounded to the type. */
static enum talpa_status make_weight(struct product *p, enum talpa_dtype dtype)
{
    const int64_t n = (int64_t)p->shape.n * p->shape.k;
    float *values = malloc((size_t)n * sizeof *values);
    p->w_data = malloc(tp_dtype_bytes(dtype, n));
    if (values && p->w_data) {
        tp_rng_fill_splitmix(values, n, 13, 0, sqrt(3.0 / p->shape.k));
        tp_dtype_from_f32(p->w_data, values, dtype, n);
    }
    const bool made = values && p->w_data;
    free(values);
    return made ? TALPA_OK : tp_fail_memory("weight", (unsigned long long)n * sizeof *values);
}

static enum talpa_status build(struct product *p, struct tp_engine *engine, const struct talpa_bench_options *o)
{
    const struct talpa_bench_shape s = p->shape;
    struct tp_plan_options plan_options;
    struct tp_store_source source = {.type = tp_type_2d(o->weight_dtype, TP_STEP_NONE, s.n, s.k)};
    talpa_value w;
    TP_TRY(make_weight(p, o->weight_dtype));
    source.data = p->w_data;
    const size_t n_x = (size_t)s.m * (size_t)s.k, n_y = (size_t)s.m * (size_t)s.n;
    p->x_data = malloc(n_x * sizeof *p->x_data);
    p->y_data = malloc(n_y * sizeof *p->y_data);
    if (!p->x_data || !p->y_data) return tp_fail_memory("product", (unsigned long long)(n_x + n_y) * sizeof(float));
    tp_rng_fill_splitmix(p->x_data, (int64_t)n_x, 11, 0, 1.0);
    TP_TRY(tp_graph_create(&p->graph));
    TP_TRY(tp_graph_input(p->graph, &p->x, "x", tp_type_2d(TALPA_F32, TP_STEP_NONE, s.m, s.k)));
    TP_TRY(tp_graph_weight(p->graph, &w, "w", source.type));
    TP_TRY(talpa_matmul(&p->y, p->graph, p->x, w, TALPA_NONE, false, true));
    tp_graph_mark_output(p->graph, p->y);
    TP_TRY(tp_store_create(&engine->store, engine->device));
    TP_TRY(tp_store_bind(engine->store, "w", &source));
    TP_TRY(tp_engine_plan_options(&plan_options, o->base_dtype, o->compute_dtype));
    TP_TRY(tp_program_set_create(&p->set, engine, p->graph, &plan_options, true, false));
    return tp_executor_write(p->set.executor, p->x, p->x_data, n_x * sizeof(float));
}

static enum talpa_status measure(struct product *p, struct tp_engine *engine, struct tp_bench_recorder *recorder,
                                 const struct talpa_bench_options *o)
{
    struct talpa_bench_row row = tp_bench_row();
    const bool bf16 = o->base_dtype == TALPA_BASE_BF16 || o->compute_dtype == TALPA_COMPUTE_BF16;
    const double bound = bf16 ? tolerance_bf16 : tolerance;
    double ns = 0.0;
    snprintf(row.test, sizeof row.test, "gemm %dx%dx%d %s", p->shape.m, p->shape.k, p->shape.n, tp_dtype_name(o->weight_dtype));
    TP_TRY(build(p, engine, o));
    p->times = 1;
    TP_TRY(run_once(p, &ns));
    TP_TRY(check(&row.max_rel_err, p, o->weight_dtype));
    if (!(row.max_rel_err <= bound))
        return tp_fail(TALPA_E_CHECK, "%s: error %.3g against double precision, at most %.3g expected: 'talpa verify --op matmul' says more",
                       row.test, row.max_rel_err, bound);
    TP_TRY(run_once(p, &ns));
    p->times = ns < wanted_ns ? (int)(wanted_ns / fmax(ns, 1e3)) + 1 : 1;
    row.n_batch = p->shape.m;
    recorder->times = p->times;
    return tp_bench_measure(&row, recorder, o, run_once, p);
}

static enum talpa_status one(const struct talpa_bench_shape *shape, const struct talpa_bench_options *o)
{
    struct tp_bench_recorder recorder;
    struct tp_engine engine = {0};
    struct product p = {.shape = *shape};
    if (shape->m < 1 || shape->k < 1 || shape->n < 1 || shape->k % tp_dtype_block(o->weight_dtype))
        return tp_fail(TALPA_E_ARGUMENT, "--gemm %dx%dx%d: expected M x K x N of at least 1 each, K a multiple of %d for %s", shape->m, shape->k,
                       shape->n, tp_dtype_block(o->weight_dtype), tp_dtype_name(o->weight_dtype));
    TP_TRY(tp_bench_recorder_begin(&recorder));
    enum talpa_status status = tp_device_open(&engine.device, o->device, false);
    if (status == TALPA_OK) status = measure(&p, &engine, &recorder, o);
    tp_program_set_free(&p.set);
    tp_graph_free(p.graph);
    tp_engine_close(&engine);
    tp_bench_recorder_end(&recorder);
    free(p.x_data);
    free(p.y_data);
    free(p.w_data);
    return status;
}

enum talpa_status talpa_bench_gemm(const struct talpa_bench_options *o)
{
    TP_TRY(tp_bench_check(o));
    for (size_t i = 0; i < o->n_shapes; i++) TP_TRY(one(&o->shapes[i], o));
    return TALPA_OK;
}
