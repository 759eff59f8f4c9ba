#include "profile.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "output.h"
#include "program.h"
#include "talpa/profile.h"

enum { TOP = 10, SCOPE_CHARS = 36 };

static const char *profile_path;

int profile_begin(const char *path)
{
    if (!path) return -1;
    /* A wrong path shows now, not after hours. */
    struct output output;
    const int code = output_open_flag(&output, path, "--profile");
    if (code >= 0) return code;
    output_discard(&output);
    const enum talpa_status status = talpa_profile_start(strcmp(path, "-") ? TALPA_PROFILE_TRACE_DEFAULT : 0);
    if (status != TALPA_OK) return program_fail(status);
    profile_path = path;
    return -1;
}

static int write_file(const char *path, enum talpa_status (*write)(FILE *file))
{
    struct output output;
    int code = output_open_flag(&output, path, "--profile");
    if (code >= 0) return code;
    const enum talpa_status status = write(output.file);
    if (status == TALPA_OK) return output_close(&output);
    output_discard(&output);
    return program_fail(status);
}

/* FILE.json or FILE.csv lies beside FILE.trace.json. */
static char *trace_path(const char *path)
{
    const size_t n = strlen(path), room = n + sizeof ".trace.json";
    char *text = malloc(room);
    if (text) snprintf(text, room, "%.*s.trace.json", n > 4 && !strcmp(path + n - 4, ".csv") ? (int)n - 4 : (int)n, path);
    return text;
}

static void print_row(const struct talpa_profile_row *row, double all_ns)
{
    const char *scope = row->scope;
    const size_t n = strlen(scope);
    if (n > SCOPE_CHARS) scope += n - SCOPE_CHARS;
    const double gflops = row->total_ns > 0.0 ? row->flops / row->total_ns : 0.0, gbs = row->total_ns > 0.0 ? row->bytes / row->total_ns : 0.0;
    fprintf(stderr, "%10.1f %5.1f %8" PRIu64 " %10.1f %8.1f %7.1f  %-20s %-8s %-*s %s\n", row->total_ns * 1e-6,
            all_ns > 0.0 ? 100.0 * row->total_ns / all_ns : 0.0, row->n, row->n ? row->total_ns * 1e-3 / (double)row->n : 0.0, gflops, gbs,
            row->op, row->pass, SCOPE_CHARS, scope, row->kernel);
}

static void print_top(void)
{
    struct talpa_profile_row *rows;
    size_t n_rows;
    if (options_verbosity < 0 || talpa_profile_rows(&rows, &n_rows) != TALPA_OK) return;
    const struct talpa_profile_totals totals = talpa_profile_totals();
    const double all_ns = totals.launch_ns + totals.transfer_ns;
    program_note("profile: %" PRIu64 " launches, %.1f ms; %" PRIu64 " transfers, %.1f ms; device busy %.1f %% of %.1f ms", totals.n_launches,
                 totals.launch_ns * 1e-6, totals.n_transfers, totals.transfer_ns * 1e-6,
                 totals.span_ns > 0.0 ? 100.0 * all_ns / totals.span_ns : 0.0, totals.span_ns * 1e-6);
    if (n_rows) fprintf(stderr, "        ms     %%    count    mean us   GFLOP/s    GB/s  %-20s %-8s %-*s kernel\n", "op", "pass", SCOPE_CHARS, "scope");
    for (size_t i = 0; i < n_rows && i < TOP; ++i) print_row(&rows[i], all_ns);
    free(rows);
}

int profile_end(int code)
{
    if (!profile_path) return code;
    const char *path = profile_path;
    profile_path = NULL;
    talpa_profile_stop();
    const struct talpa_profile_totals totals = talpa_profile_totals();
    int written = 0;
    if (totals.n_launches + totals.n_transfers) {
        print_top();
        written = write_file(path, talpa_profile_csv);
        if (!written && strcmp(path, "-")) {
            char *trace = trace_path(path);
            written = trace ? write_file(trace, talpa_profile_trace) : program_fail_memory();
            if (!written) program_note("profile: %s, %s (open it in https://ui.perfetto.dev)", path, trace);
            free(trace);
        }
    }
    talpa_profile_free();
    return code > 0 ? code : written > 0 ? written : code;
}
