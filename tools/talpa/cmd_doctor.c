/* talpa doctor */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doctor.h"
#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "program.h"

static const char *const state_names[] = {[DOCTOR_OK] = "ok", [DOCTOR_NOTE] = "note", [DOCTOR_PROBLEM] = "problem"};

static void print_report(struct output *output, enum output_format format, const struct doctor_report *report)
{
    if (format == OUTPUT_MD) {
        for (size_t i = 0; i < report->n; i++) {
            const struct doctor_finding *f = &report->findings[i];
            fprintf(output->file, "%-8s %-12s %s\n", state_names[f->state], f->topic, f->found);
            if (*f->advice) fprintf(output->file, "%21s -> %s\n", "", f->advice);
        }
        return;
    }
    output_begin(output, format, false);
    for (size_t i = 0; i < report->n; i++) {
        const struct doctor_finding *f = &report->findings[i];
        const struct field fields[] = {field_text("state", state_names[f->state]), field_text("topic", f->topic),
                                       field_text("found", f->found), *f->advice ? field_text("advice", f->advice) : field_null("advice")};
        output_record(output, format, fields, sizeof fields / sizeof *fields);
    }
    output_end(output, format, false);
}

static int doctor(struct output *output, enum output_format format)
{
    struct doctor_report report = {0};
    struct talpa_device_caps *caps = NULL;
    size_t n = 0, n_problems = 0;
    const enum talpa_status status = talpa_device_list(&caps, &n);
    doctor_check_icd(&report);
    doctor_check_devices(&report, caps, n, status == TALPA_OK ? "no OpenCL device" : talpa_error_message());
    doctor_check_access(&report);
    doctor_check_environment(&report);
    for (size_t i = 0; i < report.n; i++) n_problems += report.findings[i].state == DOCTOR_PROBLEM;
    print_report(output, format, &report);
    const bool out_of_memory = report.out_of_memory;
    doctor_free(&report);
    free(caps);
    if (out_of_memory) return program_fail_memory();
    program_note("%zu device%s, %zu problem%s%s", n, n == 1 ? "" : "s", n_problems, n_problems == 1 ? "" : "s",
                 n ? "; next: talpa verify --quick" : "");
    return n ? 0 : 69;
}

int cmd_doctor(int argc, char **argv)
{
    static struct options options;
    static const char *output_file;
    static int format;
    options = (struct options){.verb = "doctor",
                               .usage = "[options]",
                               .summary = "Looks at drivers, devices, access rights, environment and caches, and says what to install or "
                                          "change. Exit code 69 if there is no "
                                          "usable device."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Result"},
        flag_output(&format, OUTPUT_FORMATS),
        flag_output_file(&output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0) {
        struct output output;
        program_log_level();
        code = output_open(&output, output_file);
        if (code < 0) {
            const int found = doctor(&output, (enum output_format)format);
            code = output_close(&output);
            if (!code) code = found;
        }
    }
    options_free(&options);
    return code;
}
