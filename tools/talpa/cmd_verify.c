/* talpa verify */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "profile.h"
#include "program.h"
#include "talpa/verify.h"

enum { QUICK_ELEMENTS = 20000 };

/* What a report holds, kept until the end: a report with a failure in it names the failure before the table. */
struct failure {
    char *text;
};

struct report {
    struct talpa_verify_row *rows;
    size_t n_rows;
    struct failure *failures;
    size_t n_failures;
    bool out_of_memory;
};

static char *failure_text(const struct talpa_verify_check *check)
{
    char text[1024];
    snprintf(text, sizeof text, "%s, case '%s', tier %s, %s: error %.3g, tolerance %.3g: %s", check->op, check->case_name, check->tier,
             check->what, check->max_error, check->tolerance, check->message);
    return strdup(text);
}

static void on_check(void *user, const struct talpa_verify_check *check)
{
    struct report *report = user;
    if (check->passed) return;
    struct failure *grown = realloc(report->failures, (report->n_failures + 1) * sizeof *grown);
    if (grown) report->failures = grown;
    if (!grown || !(grown[report->n_failures].text = failure_text(check))) {
        report->out_of_memory = true;
        return;
    }
    program_note("FAILED %s", grown[report->n_failures++].text);
}

static bool on_row(void *user, const struct talpa_verify_row *row)
{
    struct report *report = user;
    struct talpa_verify_row *grown = realloc(report->rows, (report->n_rows + 1) * sizeof *grown);
    if (!grown) {
        report->out_of_memory = true;
        return false;
    }
    report->rows = grown;
    grown[report->n_rows++] = *row;
    program_note("%-30s %-8s %4d checks %3d failed  %.1f s", row->op, row->tier, row->n_checks, row->n_failed, row->seconds);
    return true;
}

static void print_md(FILE *file, const struct report *report, const struct program_device *device, int n_checks, int n_failed)
{
    fprintf(file, "# Verification of %s\n\n", device->caps.name);
    fprintf(file, "- platform: %s\n- driver: %s\n- device version: %s\n- talpa: %s\n- checks: %d, failed: %d\n\n", device->caps.platform,
            device->caps.driver_version, device->caps.device_version, TALPA_VERSION_STRING, n_checks, n_failed);
    for (size_t i = 0; i < report->n_failures; i++) fprintf(file, "- FAILED: %s\n", report->failures[i].text);
    fprintf(file, "%s| op | tier | cases | checks | failed | worst error / tolerance | s |\n|---|---|--:|--:|--:|--:|--:|\n",
            report->n_failures ? "\n" : "");
    for (size_t i = 0; i < report->n_rows; i++) {
        const struct talpa_verify_row *row = &report->rows[i];
        fprintf(file, "| %s | %s | %d | %d | %d | %.3g | %.1f |\n", row->op, row->tier, row->n_cases, row->n_checks, row->n_failed,
                row->worst, row->seconds);
    }
}

static size_t row_fields(struct field *fields, const struct talpa_verify_row *row)
{
    const struct field list[] = {field_text("op", row->op),         field_text("tier", row->tier),     field_int("cases", row->n_cases),
                                 field_int("checks", row->n_checks), field_int("failed", row->n_failed), field_real("worst", row->worst),
                                 field_real("seconds", row->seconds)};
    memcpy(fields, list, sizeof list);
    return sizeof list / sizeof *list;
}

/* One object: who was checked, the sums, the failures in words, the rows. Bug reports to driver teams want all of it in one file. */
static void print_json(FILE *file, const struct report *report, const struct program_device *device, int n_checks, int n_failed)
{
    const struct field head[] = {field_text("device", device->caps.name),
                                 field_text("platform", device->caps.platform),
                                 field_text("driver_version", device->caps.driver_version),
                                 field_text("device_version", device->caps.device_version),
                                 field_text("cpu_features", device->caps.cpu_features),
                                 field_text("talpa", TALPA_VERSION_STRING),
                                 field_int("checks", n_checks),
                                 field_int("failed", n_failed)};
    struct field fields[8];
    fputs("{\"summary\": ", file);
    output_object(file, head, sizeof head / sizeof *head);
    fputs(",\n \"failures\": [", file);
    for (size_t i = 0; i < report->n_failures; i++) {
        fputs(i ? ",\n  " : "", file);
        output_string(file, report->failures[i].text, strlen(report->failures[i].text), false);
    }
    fputs("],\n \"rows\": [", file);
    for (size_t i = 0; i < report->n_rows; i++) {
        fputs(i ? ",\n  " : "\n  ", file);
        output_object(file, fields, row_fields(fields, &report->rows[i]));
    }
    fputs("]}\n", file);
}

static void print_report(struct output *output, enum output_format format, const struct report *report, const struct program_device *device,
                         int n_failed)
{
    int n_checks = 0;
    for (size_t i = 0; i < report->n_rows; i++) n_checks += report->rows[i].n_checks;
    if (format == OUTPUT_MD) print_md(output->file, report, device, n_checks, n_failed);
    if (format == OUTPUT_JSON) print_json(output->file, report, device, n_checks, n_failed);
    if (format == OUTPUT_MD || format == OUTPUT_JSON) return;
    output_begin(output, format, false);
    for (size_t i = 0; i < report->n_rows; i++) {
        struct field fields[8];
        output_record(output, format, fields, row_fields(fields, &report->rows[i]));
    }
    output_end(output, format, false);
}

static int verify(const struct program_device *device, const struct talpa_verify_options *options, const char *output_file,
                  enum output_format format)
{
    struct report report = {0};
    const struct talpa_verify_callbacks callbacks = {.check = on_check, .row = on_row, .user = &report};
    struct output output;
    int n_failed = 0;
    int code = output_open(&output, output_file);
    if (code < 0) {
        program_note("verifying %s (%s)", device->caps.name, device->caps.platform);
        const enum talpa_status status = talpa_verify(&n_failed, device->index, options, &callbacks);
        if (report.out_of_memory) code = program_fail_memory();
        else if (status != TALPA_OK) code = program_fail(status);
        if (code < 0) {
            print_report(&output, format, &report, device, n_failed);
            code = output_close(&output);
            if (!code && n_failed) {
                program_error("%d checks failed: do not trust results of this device; report them to the driver's authors with -o json",
                              n_failed);
                code = 3;
            }
        } else {
            output_discard(&output);
        }
    }
    for (size_t i = 0; i < report.n_failures; i++) free(report.failures[i].text);
    free(report.failures);
    free(report.rows);
    return code;
}

int cmd_verify(int argc, char **argv)
{
    static struct options options;
    static const char *output_file, *device_selector, *profile;
    static struct talpa_verify_options verify_options;
    static int format;
    static bool quick;
    options = (struct options){
        .verb = "verify",
        .usage = "[options]",
        .summary = "Runs every op's test cases on a device: values against references in double precision, gradients against "
                   "finite differences, writes outside a buffer, repeatability. Exit code 3 if a check fails."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "What"},
        flag_device(&device_selector),
        flag_profile(&profile),
        {.kind = OPTION_TEXT, .name = "op", .target = &verify_options.op, .argument = "NAME", .help = "one op only"},
        {.kind = OPTION_TEXT,
         .name = "tier",
         .target = &verify_options.tier,
         .argument = "TIER",
         .help = "kernels of one tier only: generic, cpu, clblast"},
        {.kind = OPTION_FLAG, .name = "quick", .target = &quick, .help = "small cases only"},
        {.kind = OPTION_GROUP, .help = "Result"},
        flag_output(&format, OUTPUT_FORMATS),
        flag_output_file(&output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0) {
        struct program_device device;
        program_log_level();
        verify_options.max_elements = quick ? QUICK_ELEMENTS : 0;
        code = program_device_choose(&device, device_selector, NULL);
        if (code < 0) code = profile_begin(profile);
        if (code < 0) code = profile_end(verify(&device, &verify_options, output_file, (enum output_format)format));
    }
    options_free(&options);
    return code;
}
