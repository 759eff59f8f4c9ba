/* talpa tune */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flags_common.h"
#include "output.h"
#include "program.h"
#include "talpa/tune.h"

/* Texts of a row, kept until the end. */
struct kept {
    char kernel[64], name[32], before[32], after[32];
    double speed;
    int n_tried, n_refused;
};

struct report {
    struct kept *rows;
    size_t n_rows;
    bool out_of_memory;
};

static bool on_trial(void *user, const struct talpa_tune_trial *trial)
{
    (void)user;
    if (trial->refusal[0]) program_note("%s %s = %s: refused, %s", trial->kernel, trial->name, trial->value, trial->refusal);
    else
        program_note("%s %s = %s: %.3f of the best so far, error %.1e%s", trial->kernel, trial->name, trial->value, trial->speed,
                     trial->max_error, trial->accepted ? ", kept" : "");
    return !program_stop_requested;
}

static bool on_row(void *user, const struct talpa_tune_row *row)
{
    struct report *report = user;
    struct kept *grown = realloc(report->rows, (report->n_rows + 1) * sizeof *grown);
    if (!grown) {
        report->out_of_memory = true;
        return false;
    }
    report->rows = grown;
    struct kept *kept = &grown[report->n_rows++];
    *kept = (struct kept){.speed = row->speed, .n_tried = row->n_tried, .n_refused = row->n_refused};
    snprintf(kept->kernel, sizeof kept->kernel, "%s", row->kernel);
    snprintf(kept->name, sizeof kept->name, "%s", row->name);
    snprintf(kept->before, sizeof kept->before, "%s", row->before);
    snprintf(kept->after, sizeof kept->after, "%s", row->after);
    return !program_stop_requested;
}

static void print_md(FILE *file, const struct report *report, const struct program_device *device)
{
    fprintf(file, "Parameters on %s (%s, %s)\n\n", device->caps.name, device->caps.platform, device->caps.driver_version);
    fprintf(file, "| kernel | parameter | before | after | speed | tried | refused |\n|---|---|---|---|--:|--:|--:|\n");
    for (size_t i = 0; i < report->n_rows; i++) {
        const struct kept *row = &report->rows[i];
        fprintf(file, "| %s | %s | %s | %s | %.3f | %d | %d |\n", row->kernel, row->name, row->before, row->after, row->speed, row->n_tried,
                row->n_refused);
    }
}

static void print_records(struct output *output, enum output_format format, const struct report *report)
{
    output_begin(output, format, false);
    for (size_t i = 0; i < report->n_rows; i++) {
        const struct kept *row = &report->rows[i];
        const struct field fields[] = {field_text("kernel", row->kernel), field_text("parameter", row->name),
                                       field_text("before", row->before), field_text("after", row->after),
                                       field_real("speed", row->speed),   field_int("tried", row->n_tried),
                                       field_int("refused", row->n_refused)};
        output_record(output, format, fields, sizeof fields / sizeof *fields);
    }
    output_end(output, format, false);
}

static int tune(const struct program_device *device, const struct talpa_tune_options *options, const char *output_file, enum output_format format)
{
    struct report report = {0};
    struct output output;
    const struct talpa_tune_callbacks callbacks = {.trial = on_trial, .row = on_row, .user = &report};
    int code = output_open(&output, output_file);
    if (code >= 0) return code;
    program_signals_stop();
    const enum talpa_status status = talpa_tune(device->index, options, &callbacks);
    program_signals_default();
    if (report.out_of_memory) code = program_fail_memory();
    else if (status != TALPA_OK) code = program_fail(status);
    if (program_stop_requested) code = 130;
    if (code < 0) {
        if (format == OUTPUT_MD) print_md(output.file, &report, device);
        else print_records(&output, format, &report);
        code = output_close(&output);
        if (!code && options->dry_run) program_note("--dry-run: no file was written");
    } else {
        output_discard(&output);
    }
    free(report.rows);
    return code;
}

int cmd_tune(int argc, char **argv)
{
    static struct options options;
    static struct talpa_tune_options tune_options;
    static const char *device_selector, *model_path, *output_file;
    static int format;
    options = (struct options){.verb = "tune",
                               .usage = "[-m MODEL] [options]",
                               .summary = "Times the parameters that kernels declare on this device, checks every variant against double precision, "
                                          "and writes the fastest to the tuning file, which all verbs read. Takes minutes."};
    talpa_tune_default(&tune_options);
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "What"},
        flag_model(&model_path),
        flag_device(&device_selector),
        {.kind = OPTION_INT, .name = "rows", .target = &tune_options.n_rows, .argument = "N", .help = "rows (tokens) of the products", .min = 1,
         .max = 65536},
        {.kind = OPTION_INT, .name = "repetitions", .letter = 'r', .target = &tune_options.repetitions, .argument = "N",
         .help = "timed turns of a variant and of the best so far, alternately", .min = 3, .max = 101},
        {.kind = OPTION_GROUP, .help = "Result"},
        {.kind = OPTION_TEXT, .name = "tuning-file", .target = &tune_options.file, .argument = "FILE",
         .help = "written at the end; default: TALPA_TUNING, else tuning.json in the cache folder"},
        {.kind = OPTION_FLAG, .name = "dry-run", .target = &tune_options.dry_run, .help = "measure and report only"},
        flag_output(&format, OUTPUT_FORMATS),
        flag_output_file(&output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0) {
        struct program_device device;
        struct talpa_model *model = NULL;
        program_log_level();
        if (model_path) {
            const enum talpa_status status = talpa_model_open(&model, model_path);
            if (status != TALPA_OK) code = program_fail(status);
        }
        tune_options.model = model;
        if (code < 0) code = program_device_choose(&device, device_selector, NULL);
        if (code < 0) program_device_note(&device);
        if (code < 0) code = tune(&device, &tune_options, output_file, (enum output_format)format);
        talpa_model_close(model);
    }
    options_free(&options);
    return code;
}
