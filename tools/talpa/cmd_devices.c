/* talpa devices */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "program.h"

enum { N_COLUMNS = 10, CELL_BYTES = 48 };

static void print_table(FILE *file, const struct talpa_device_caps *caps, size_t n)
{
    static const char *const titles[N_COLUMNS] = {"#", "platform", "device", "type", "mem GiB", "CU", "fp16", "fp64", "subgroup", "driver"};
    static const bool right[N_COLUMNS] = {true, false, false, false, true, true};
    char(*cells)[N_COLUMNS][CELL_BYTES] = calloc(n + 1, sizeof *cells);
    if (!cells) return;
    int width[N_COLUMNS] = {0};
    for (int j = 0; j < N_COLUMNS; ++j) snprintf(cells[0][j], CELL_BYTES, "%s", titles[j]);
    for (size_t i = 0; i < n; ++i) {
        char(*row)[CELL_BYTES] = cells[i + 1];
        snprintf(row[0], CELL_BYTES, "%zu", i);
        snprintf(row[1], CELL_BYTES, "%.40s", caps[i].platform);
        snprintf(row[2], CELL_BYTES, "%.44s", caps[i].name);
        snprintf(row[3], CELL_BYTES, "%s", program_device_type(caps[i].type));
        snprintf(row[4], CELL_BYTES, "%.1f", (double)caps[i].global_mem_bytes / (1024.0 * 1024.0 * 1024.0));
        snprintf(row[5], CELL_BYTES, "%u", (unsigned)caps[i].compute_units);
        snprintf(row[6], CELL_BYTES, "%s", caps[i].has_fp16 ? "yes" : "no");
        snprintf(row[7], CELL_BYTES, "%s", caps[i].has_fp64 ? "yes" : "no");
        snprintf(row[8], CELL_BYTES, "%s", caps[i].has_subgroups ? "yes" : "no");
        snprintf(row[9], CELL_BYTES, "%.44s", caps[i].driver_version);
    }
    for (size_t i = 0; i <= n; ++i)
        for (int j = 0; j < N_COLUMNS; ++j)
            if ((int)strlen(cells[i][j]) > width[j]) width[j] = (int)strlen(cells[i][j]);
    for (size_t i = 0; i <= n; ++i)
        for (int j = 0; j < N_COLUMNS; ++j) {
            const bool last = j == N_COLUMNS - 1;
            fprintf(file, "%s%*s%s", j ? "  " : "", right[j] ? width[j] : last ? 0 : -width[j], cells[i][j], last ? "\n" : "");
        }
    free(cells);
}

static void print_records(struct output *output, enum output_format format, const struct talpa_device_caps *caps, size_t n)
{
    static const char *const types[] = {[TALPA_DEVICE_CPU] = "cpu", [TALPA_DEVICE_GPU] = "gpu", [TALPA_DEVICE_ACCELERATOR] = "accelerator"};
    output_begin(output, format, false);
    for (size_t i = 0; i < n; ++i) {
        const struct talpa_device_caps *c = &caps[i];
        const struct field fields[] = {
            field_int("index", (int64_t)i),
            field_text("platform", c->platform),
            field_text("name", c->name),
            field_text("vendor_name", c->vendor_name),
            field_text("driver_version", c->driver_version),
            field_text("device_version", c->device_version),
            field_text("c_version", c->c_version),
            field_text("type", types[c->type]),
            field_text("vendor", program_device_vendor(c->vendor)),
            field_int("global_mem_bytes", (int64_t)c->global_mem_bytes),
            field_int("max_alloc_bytes", (int64_t)c->max_alloc_bytes),
            field_int("local_mem_bytes", (int64_t)c->local_mem_bytes),
            field_int("compute_units", c->compute_units),
            field_int("clock_mhz", c->clock_mhz),
            field_int("max_work_group_size", c->max_work_group_size),
            field_int("base_align_bytes", c->base_align_bytes),
            field_bool("has_fp16", c->has_fp16),
            field_bool("has_fp64", c->has_fp64),
            field_bool("has_subgroups", c->has_subgroups),
            field_bool("unified_memory", c->unified_memory),
            field_bool("little_endian", c->little_endian),
            field_bool("in_process", c->in_process),
            field_text("cpu_features", c->cpu_features),
        };
        output_record(output, format, fields, sizeof fields / sizeof *fields);
    }
    output_end(output, format, false);
}

int cmd_devices(int argc, char **argv)
{
    static struct options options;
    static const char *output_file;
    static int format;
    options = (struct options){
        .verb = "devices", .usage = "[options]", .summary = "Lists the OpenCL devices of all platforms; the index is what --device takes."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Result"},
        {.kind = OPTION_CHOICE,
         .name = "output",
         .letter = 'o',
         .target = &format,
         .argument = OUTPUT_FORMATS,
         .help = "format; the others hold the whole capability record"},
        flag_output_file(&output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0) {
        program_log_level();
        struct talpa_device_caps *caps = NULL;
        size_t n = 0;
        const enum talpa_status status = talpa_device_list(&caps, &n);
        struct output output;
        code = status == TALPA_OK ? output_open(&output, output_file) : program_fail(status);
        if (code < 0) {
            if (format == OUTPUT_MD)
                print_table(output.file, caps, n);
            else
                print_records(&output, (enum output_format)format, caps, n);
            code = output_close(&output);
        }
        free(caps);
    }
    options_free(&options);
    return code;
}
