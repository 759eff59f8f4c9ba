/* A profile as CSV and as a trace. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "profile.h"
#include "profile_impl.h"

static int longest_first(const void *a, const void *b)
{
    const struct talpa_profile_row *x = a, *y = b;
    if (x->total_ns != y->total_ns) return x->total_ns > y->total_ns ? -1 : 1;
    return strcmp(x->kernel, y->kernel);
}

enum talpa_status talpa_profile_rows(struct talpa_profile_row **rows, size_t *n_rows)
{
    struct tp_profile_data *d = &tp_profile_data;
    pthread_mutex_lock(&d->lock);
    const size_t n = d->n_rows;
    struct talpa_profile_row *copy = d->is_incomplete ? NULL : malloc((n + 1) * sizeof *copy);
    if (copy && n) memcpy(copy, d->row, n * sizeof *copy);
    pthread_mutex_unlock(&d->lock);
    if (!copy) return tp_fail_memory("profile", (n + 1) * sizeof *copy);
    qsort(copy, n, sizeof *copy, longest_first);
    *rows = copy;
    *n_rows = n;
    return TALPA_OK;
}

static enum talpa_status finish(FILE *file)
{
    return ferror(file) || fflush(file) != 0 ? tp_fail(TALPA_E_IO, "profile: writing failed; is the disk full?") : TALPA_OK;
}

/* ---- CSV ---- */

static void text_cell(FILE *file, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, file);
        return;
    }
    fputc('"', file);
    for (const char *c = text; *c; ++c) {
        if (*c == '"') fputc('"', file);
        fputc(*c, file);
    }
    fputc('"', file);
}

static void csv_row(FILE *file, const struct talpa_profile_row *row, double all_ns, double peak_gflops, double peak_gbs)
{
    const char *const texts[] = {row->op, row->pass, row->kernel, row->scope};
    for (size_t i = 0; i < 4; ++i) {
        text_cell(file, texts[i]);
        fputc(',', file);
    }
    fprintf(file, "%" PRIu64 ",%.6f,%.3f,%.3f,%.0f,%.0f,", row->n, row->total_ns * 1e-6, row->n ? row->total_ns * 1e-3 / (double)row->n : 0.0,
            all_ns > 0.0 ? 100.0 * row->total_ns / all_ns : 0.0, row->flops, row->bytes);
    if (row->total_ns > 0.0) fprintf(file, "%.3f,%.3f,", row->flops / row->total_ns, row->bytes / row->total_ns);
    else fputs(",,", file);
    if (peak_gflops > 0.0 && peak_gbs > 0.0 && row->total_ns > 0.0)
        fprintf(file, "%.2f", 100.0 * fmax(row->flops / peak_gflops, row->bytes / peak_gbs) / row->total_ns);
    fputc('\n', file);
}

enum talpa_status talpa_profile_csv(FILE *file)
{
    struct talpa_profile_row *rows;
    size_t n_rows;
    double all_ns = 0.0;
    TP_TRY(talpa_profile_rows(&rows, &n_rows));
    for (size_t i = 0; i < n_rows; ++i) all_ns += rows[i].total_ns;
    fputs("op,pass,kernel,scope,count,total_ms,mean_us,share_pct,flops,bytes,gflops,gbs,peak_pct\n", file);
    for (size_t i = 0; i < n_rows; ++i) csv_row(file, &rows[i], all_ns, tp_profile_data.peak_gflops, tp_profile_data.peak_gbs);
    free(rows);
    return finish(file);
}

/* ---- trace ---- */

static void json_text(FILE *file, const char *text)
{
    fputc('"', file);
    for (const unsigned char *c = (const unsigned char *)text; *c; ++c) {
        if (*c == '"' || *c == '\\') fprintf(file, "\\%c", *c);
        else if (*c < 0x20 || *c >= 0x7f) fprintf(file, "\\u%04x", *c);
        else fputc(*c, file);
    }
    fputc('"', file);
}

enum { DEVICE_PROCESS = 1, HOST_PROCESS = 2 };

static void track_name(FILE *file, int process, int thread, const char *process_name, const char *thread_name)
{
    fprintf(file, "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":", process);
    json_text(file, process_name);
    fprintf(file, "}},\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":", process, thread);
    json_text(file, thread_name);
    fputs("}},\n", file);
}

static void launch_event(FILE *file, const struct tp_profile_data *d, const struct tp_profile_event *event)
{
    const struct tp_profile_site *site = &d->site[event->site];
    const struct talpa_profile_row *row = &d->row[site->row];
    const double start = (double)((int64_t)event->start_ns + d->device[event->device].offset_ns - d->started_ns) * 1e-3;
    const double length = event->end_ns > event->start_ns ? (double)(event->end_ns - event->start_ns) * 1e-3 : 0.0;
    fputs("{\"name\":", file);
    json_text(file, row->op);
    fprintf(file, ",\"ph\":\"X\",\"pid\":%d,\"tid\":%u,\"ts\":%.3f,\"dur\":%.3f,\"cat\":", DEVICE_PROCESS, (unsigned)event->device, start, length);
    json_text(file, *row->pass ? row->pass : "other");
    fputs(",\"args\":{\"kernel\":", file);
    json_text(file, row->kernel);
    fputs(",\"scope\":", file);
    json_text(file, site->scope);
    fprintf(file, ",\"flops\":%.0f,\"bytes\":%.0f}},\n", event->flops, event->bytes);
}

enum talpa_status talpa_profile_trace(FILE *file)
{
    struct tp_profile_data *d = &tp_profile_data;
    pthread_mutex_lock(&d->lock);
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", file);
    for (int i = 0; i < d->n_devices; ++i) track_name(file, DEVICE_PROCESS, i, "device", d->device[i].name);
    for (size_t i = 0; i < d->n_trace; ++i) launch_event(file, d, &d->trace[i]);
    for (size_t i = 0; i < d->n_spans; ++i) {
        const struct tp_profile_host_span *span = &d->span[i];
        fputs("{\"name\":", file);
        json_text(file, span->name);
        fprintf(file, ",\"ph\":\"X\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,\"dur\":%.3f,\"cat\":\"host\"},\n", HOST_PROCESS,
                (double)(span->begun_ns - d->started_ns) * 1e-3, (double)(span->ended_ns - span->begun_ns) * 1e-3);
    }
    /* The track's name comes last: the one element without a comma behind it. */
    fprintf(file, "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":\"host\"}}\n]", HOST_PROCESS);
    const uint64_t n = d->totals.n_launches + d->totals.n_transfers;
    fprintf(file, ",\"otherData\":{\"launches\":%" PRIu64 ",\"transfers\":%" PRIu64 ",\"traced\":%zu,\"note\":", d->totals.n_launches,
            d->totals.n_transfers, d->n_trace);
    char note[160];
    if (d->n_trace < n) snprintf(note, sizeof note, "only the first %zu of %" PRIu64 " launches and transfers are in this file", d->n_trace, n);
    else snprintf(note, sizeof note, "all launches and transfers are in this file");
    json_text(file, note);
    fputs("}}\n", file);
    pthread_mutex_unlock(&d->lock);
    return finish(file);
}
