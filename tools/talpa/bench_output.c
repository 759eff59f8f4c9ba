/* Rows of `talpa bench`: llama-bench's field names where it has one, so that scripts for its output work. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

#ifndef TALPA_BUILD_COMMIT
#define TALPA_BUILD_COMMIT "unknown"
#endif

const char *const bench_kinds[BENCH_N_KINDS] = {"gemm", "ops", "train", "generate", "peaks"};

enum { MAX_FIELDS = 80 };

static const char *const base_dtypes[] = {"auto", "native", "bf16", "f32"};
static const char *const compute_dtypes[] = {"f32", "f32", "bf16"};

static enum output_format record_format(const struct bench *bench)
{
    return bench->format == BENCH_CSV ? OUTPUT_CSV : bench->format == BENCH_JSON ? OUTPUT_JSON : OUTPUT_JSONL;
}

static bool uses_model(const struct bench *bench) { return bench->info.name != NULL; }

static const char *base_dtype(const struct bench *bench) { return base_dtypes[bench->train.base_dtype]; }

static struct field maybe_int(const char *name, int64_t value, bool known) { return known ? field_int(name, value) : field_null(name); }
static struct field maybe_text(const char *name, const char *text) { return text && *text ? field_text(name, text) : field_null(name); }

/* Times in whole nanoseconds, as llama-bench prints them. */
static struct field nanoseconds(const char *name, double ns)
{
    return isfinite(ns) ? field_int(name, (int64_t)llround(ns)) : field_null(name);
}

/* ---- comparing ---- */

struct comparison {
    bool found;
    double avg_ns, sigmas;
};

static struct comparison compare(struct bench *bench, const struct talpa_bench_row *row)
{
    struct comparison c = {0};
    double stddev_ns;
    const struct talpa_bench_key key = {.test = row->test,
                                        .model_type = uses_model(bench) ? bench->info.name : NULL,
                                        .dtype = compute_dtypes[bench->train.compute_dtype],
                                        .base_dtype = base_dtype(bench),
                                        .routing = bench->has_adapter ? talpa_routing_name(bench->adapter.routing) : NULL,
                                        .n_experts = bench->has_adapter ? bench->adapter.n_experts : 0,
                                        .rank = bench->has_adapter ? bench->adapter.rank : 0,
                                        .n_batch = row->n_batch};
    c.found = bench->baseline && talpa_bench_baseline_find(&c.avg_ns, &stddev_ns, bench->baseline, &key);
    if (!c.found) {
        if (bench->baseline) program_note("%s: not in %s", row->test, bench->compare);
        return c;
    }
    c.sigmas = talpa_bench_sigmas(c.avg_ns, stddev_ns, row->avg_ns, row->stddev_ns);
    const bool slower = c.sigmas > bench->threshold;
    bench->n_slower += slower;
    program_note("%s: %+.1f %% time (%.3f -> %.3f ms), %+.1f sigma%s", row->test, 100.0 * (row->avg_ns / c.avg_ns - 1.0), c.avg_ns * 1e-6,
                 row->avg_ns * 1e-6, c.sigmas, slower ? ": SLOWER" : c.sigmas < -bench->threshold ? ": faster" : "");
    return c;
}

/* ---- one record ---- */

static size_t fields_of(struct field *f, const struct bench *bench, const struct talpa_bench_row *row, const struct comparison *c,
                        const char *test_time, const double *samples_ts)
{
    const struct talpa_device_caps *caps = &bench->device.caps;
    const struct talpa_adapter_config *a = &bench->adapter;
    const bool model = uses_model(bench), adapter = bench->has_adapter, training = bench->kind == BENCH_TRAIN || bench->kind == BENCH_OPS;
    const bool cpu = caps->type == TALPA_DEVICE_CPU;
    const struct field list[] = {
        field_text("build_commit", TALPA_BUILD_COMMIT),
        field_text("talpa_version", TALPA_VERSION_STRING),
        cpu ? field_text("cpu_info", caps->name) : field_null("cpu_info"),
        cpu ? field_null("gpu_info") : field_text("gpu_info", caps->name),
        field_text("backends", "OpenCL"),
        model ? field_text("model_filename", bench->info.path) : field_null("model_filename"),
        model ? field_text("model_type", bench->info.name) : field_null("model_type"),
        maybe_int("model_size", (int64_t)bench->info.weight_bytes, model),
        maybe_int("model_n_params", bench->info.n_parameters, model),
        field_int("n_batch", row->n_batch),
        maybe_int("n_ubatch", bench->n_ubatch, bench->kind == BENCH_GENERATE),
        field_text("benchmark", bench_kinds[bench->kind]),
        field_text("test", row->test),
        field_int("n_prompt", row->n_prompt),
        field_int("n_gen", row->n_gen),
        field_int("n_depth", 0),
        field_text("test_time", test_time),
        nanoseconds("avg_ns", row->avg_ns),
        nanoseconds("stddev_ns", row->stddev_ns),
        field_real("avg_ts", row->avg_ts),
        field_real("stddev_ts", row->stddev_ts),
        nanoseconds("median_ns", row->median_ns),
        nanoseconds("min_ns", row->min_ns),
        field_int("repetitions", row->n_samples),
        field_text("platform", caps->platform),
        field_text("device", caps->name),
        field_text("vendor", program_device_vendor(caps->vendor)),
        field_text("driver_version", caps->driver_version),
        field_text("cl_version", caps->device_version),
        maybe_text("cpu_features", caps->cpu_features),
        field_text("dtype", compute_dtypes[bench->train.compute_dtype]),
        field_text("base_dtype", base_dtype(bench)),
        adapter ? field_text("routing", talpa_routing_name(a->routing)) : field_null("routing"),
        maybe_int("n_experts", a->n_experts, adapter),
        maybe_int("top_k", a->top_k, adapter && (a->routing == TALPA_ROUTING_TOPK || a->routing == TALPA_ROUTING_MOELORA)),
        maybe_int("rank", a->rank, adapter),
        maybe_text("lora", bench->lora),
        maybe_int("gradient_checkpointing", bench->train.options.gradient_checkpointing, training),
        maybe_int("accumulation", bench->train.options.accumulation, training),
        field_real("flops", row->flops),
        field_real("bytes", row->bytes),
        field_real("gflops", row->gflops),
        field_real("gbs", row->gbs),
        field_real("roofline_pct", row->roofline_pct),
        bench->has_peaks ? field_real("peak_gflops", bench->peaks.f32_gflops) : field_null("peak_gflops"),
        bench->has_peaks ? field_real("peak_gbs", fmax(bench->peaks.read_gbs, bench->peaks.copy_gbs)) : field_null("peak_gbs"),
        nanoseconds("kernel_ns", row->kernel_ns),
        nanoseconds("forward_ns", row->forward_ns),
        nanoseconds("backward_ns", row->backward_ns),
        nanoseconds("update_ns", row->update_ns),
        field_int("n_launches", row->n_launches),
        field_real("max_rel_err", row->max_rel_err),
        field_int("device_bytes", (int64_t)row->memory.device_bytes),
        field_int("device_peak_bytes", (int64_t)row->memory.device_peak_bytes),
        field_int("mapped_file_bytes", (int64_t)row->memory.mapped_file_bytes),
        field_int("host_peak_bytes", (int64_t)row->memory.host_peak_bytes),
        c->found ? nanoseconds("baseline_ns", c->avg_ns) : field_null("baseline_ns"),
        c->found ? field_real("delta_pct", 100.0 * (row->avg_ns / c->avg_ns - 1.0)) : field_null("delta_pct"),
        c->found ? field_real("delta_sigmas", c->sigmas) : field_null("delta_sigmas"),
        field_reals("samples_ns", row->samples_ns, (size_t)row->n_samples),
        field_reals("samples_ts", samples_ts, row->n_tokens > 0.0 ? (size_t)row->n_samples : 0),
    };
    _Static_assert(sizeof list / sizeof *list <= MAX_FIELDS, "more fields than there is room for");
    memcpy(f, list, sizeof list);
    return sizeof list / sizeof *list;
}

/* ---- SQL ---- */

static void sql_text(FILE *file, const char *text)
{
    fputc('\'', file);
    for (const char *c = text; *c; ++c) {
        if (*c == '\'') fputc('\'', file);
        fputc(*c, file);
    }
    fputc('\'', file);
}

static void sql_value(FILE *file, const struct field *field)
{
    switch (field->kind) {
    case FIELD_TEXT:
        sql_text(file, field->text);
        break;
    case FIELD_INT:
    case FIELD_BOOL:
        fprintf(file, "%" PRId64, field->integer);
        break;
    case FIELD_REAL:
        fprintf(file, "%.9g", field->real);
        break;
    default:
        fputs("NULL", file);
    }
}

/* The table of llama-bench; samples are left out, as it does. */
static void sql_record(struct output *output, const struct field *fields, size_t n)
{
    FILE *file = output->file;
    if (output->n_records++ == 0) {
        fputs("CREATE TABLE IF NOT EXISTS llama_bench (\n", file);
        for (size_t i = 0; i < n; ++i) {
            if (fields[i].kind == FIELD_REALS) continue;
            const char *type = fields[i].kind == FIELD_TEXT ? " TEXT" : fields[i].kind == FIELD_REAL ? " REAL" : fields[i].kind == FIELD_INT ? " INTEGER" : "";
            fprintf(file, "%s  %s%s", i ? ",\n" : "", fields[i].name, type);
        }
        fputs("\n);\n\n", file);
    }
    fputs("INSERT INTO llama_bench (", file);
    for (size_t i = 0; i < n; ++i)
        if (fields[i].kind != FIELD_REALS) fprintf(file, "%s%s", i ? ", " : "", fields[i].name);
    fputs(") VALUES (", file);
    for (size_t i = 0; i < n; ++i) {
        if (fields[i].kind == FIELD_REALS) continue;
        if (i) fputs(", ", file);
        sql_value(file, &fields[i]);
    }
    fputs(");\n", file);
}

/* ---- Markdown: what a person looks at ---- */

static void number_cell(FILE *file, double value, const char *format)
{
    if (isfinite(value)) fprintf(file, format, value);
    else fputs(" - |", file);
}

static void md_record(const struct bench *bench, const struct talpa_bench_row *row, const struct comparison *c)
{
    FILE *file = bench->output.file;
    const bool tokens = row->n_tokens > 0.0;
    if (bench->output.n_records == 0) {
        fprintf(file, "%s| test | %s | median ms | min ms | kernels %% | launches | GFLOP/s | GB/s | %%roof | max err | device MiB |%s\n",
                uses_model(bench) ? "| model " : "", tokens ? "t/s" : "ms", bench->baseline ? " vs baseline |" : "");
        fprintf(file, "%s|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|%s\n", uses_model(bench) ? "|---" : "", bench->baseline ? "--:|" : "");
    }
    if (uses_model(bench)) fprintf(file, "| %s ", bench->info.name);
    if (tokens) fprintf(file, "| %s | %.2f ± %.2f |", row->test, row->avg_ts, row->stddev_ts);
    else fprintf(file, "| %s | %.4f ± %.4f |", row->test, row->avg_ns * 1e-6, row->stddev_ns * 1e-6);
    fprintf(file, " %.4f | %.4f |", row->median_ns * 1e-6, row->min_ns * 1e-6);
    number_cell(file, 100.0 * row->kernel_ns / row->avg_ns, " %.1f |");
    fprintf(file, " %" PRId64 " |", row->n_launches);
    number_cell(file, row->gflops, " %.1f |");
    number_cell(file, row->gbs, " %.2f |");
    number_cell(file, row->roofline_pct, " %.1f |");
    number_cell(file, row->max_rel_err, " %.1e |");
    fprintf(file, " %.1f |", (double)row->memory.device_bytes / 1048576.0);
    if (bench->baseline && c->found) fprintf(file, " %+.1f %% |", 100.0 * (row->avg_ns / c->avg_ns - 1.0));
    else if (bench->baseline) fputs(" - |", file);
    fputc('\n', file);
    fflush(file);
}

static void md_head(const struct bench *bench)
{
    FILE *file = bench->output.file;
    const struct talpa_device_caps *caps = &bench->device.caps;
    fprintf(file, "%s, %s, driver %s", caps->name, caps->platform, caps->driver_version);
    if (uses_model(bench)) fprintf(file, "; %s: %.1f M parameters, %.1f MiB; base dtype %s", bench->info.path, (double)bench->info.n_parameters * 1e-6,
                (double)bench->info.weight_bytes / 1048576.0, base_dtype(bench));
    if (bench->has_adapter) fprintf(file, "; %s, %d experts of rank %d", talpa_routing_name(bench->adapter.routing), bench->adapter.n_experts, bench->adapter.rank);
    if (bench->has_peaks)
        fprintf(file, "; measured peaks: %.1f GFLOP/s f32, %.1f GB/s read, %.1f GB/s copied, %.1f us per launch", bench->peaks.f32_gflops,
                bench->peaks.read_gbs, bench->peaks.copy_gbs, bench->peaks.launch_ns * 1e-3);
    fprintf(file, "; mean ± standard deviation of %d\n\n", bench->repetitions);
}

/* ---- all ---- */

void bench_output_begin(struct bench *bench)
{
    bench->output.n_records = 0;
    if (bench->format == BENCH_MD) md_head(bench);
    else if (bench->format != BENCH_SQL) output_begin(&bench->output, record_format(bench), false);
}

bool bench_output_row(void *user, const struct talpa_bench_row *row)
{
    struct bench *bench = user;
    struct field fields[MAX_FIELDS];
    char test_time[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc)) strftime(test_time, sizeof test_time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    const struct comparison c = compare(bench, row);
    if (bench->format == BENCH_MD) {
        md_record(bench, row, &c);
        bench->output.n_records++;
        return !output_failed(&bench->output);
    }
    double *samples_ts = calloc((size_t)row->n_samples + 1, sizeof *samples_ts);
    if (!samples_ts) return false;
    for (int i = 0; i < row->n_samples; ++i) samples_ts[i] = row->n_tokens / (row->samples_ns[i] * 1e-9);
    const size_t n = fields_of(fields, bench, row, &c, test_time, samples_ts);
    if (bench->format == BENCH_SQL) sql_record(&bench->output, fields, n);
    else output_record(&bench->output, record_format(bench), fields, bench->format == BENCH_CSV ? n - 2 : n);
    free(samples_ts);
    return !output_failed(&bench->output);
}

void bench_output_end(struct bench *bench)
{
    if (bench->format != BENCH_MD && bench->format != BENCH_SQL) output_end(&bench->output, record_format(bench), false);
}
