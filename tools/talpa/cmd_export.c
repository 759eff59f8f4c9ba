/* talpa export */
#include <stdio.h>
#include <string.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "talpa/adapter.h"

struct export_run {
    struct talpa_export_options options;
    const char *model, *output_file, *output_dir;
    int format, type, result_format;
};

static int run(const struct export_run *e)
{
    static const char *const formats[] = {"peft", "gguf"};
    struct talpa_model *model = NULL;
    struct talpa_export_result result;
    struct output output;
    enum talpa_status status = talpa_model_open(&model, e->model);
    if (status == TALPA_OK) status = talpa_adapter_export(&result, model, &e->options);
    talpa_model_close(model);
    if (status != TALPA_OK) return program_fail(status);
    int code = output_open(&output, NULL);
    if (code >= 0) return code;
    const struct field fields[] = {field_text("output", e->options.output), field_text("format", formats[e->format]),
                                   field_int("files", result.n_files), field_int("parameters", result.n_parameters)};
    output_begin(&output, (enum output_format)e->result_format, true);
    output_record(&output, (enum output_format)e->result_format, fields, sizeof fields / sizeof *fields);
    output_end(&output, (enum output_format)e->result_format, true);
    return output_close(&output);
}

static int check(const struct options *options, struct export_run *e)
{
    if (!e->model) return options_fail(options, "--model (-m) is missing: the base that the adapter was trained on");
    if (!e->options.lora) return options_fail(options, "--lora is missing: an adapter folder or a GGUF LoRA file");
    if (e->output_file && e->output_dir) return options_fail(options, "--output-file and --output-dir exclude each other");
    if (!e->output_file && !e->output_dir)
        return options_fail(options, e->format == TALPA_EXPORT_PEFT ? "--output-dir is missing: the folder to write"
                                                                    : "--output-file (a LoRA) or --output-dir (a mixture) is missing");
    if (e->format == TALPA_EXPORT_PEFT && e->output_file) return options_fail(options, "--format peft writes a folder: give --output-dir");
    if (e->format == TALPA_EXPORT_PEFT && options_source(options, "type") != OPTION_DEFAULT)
        return options_fail(options, "--type is for --format gguf; PEFT folders are f32");
    if (e->format == TALPA_EXPORT_GGUF && e->options.base_name)
        return options_fail(options, "--base-name is for --format peft; GGUF files do not name their base");
    e->options.format = (enum talpa_export_format)e->format;
    e->options.dtype = e->type ? TALPA_F16 : TALPA_F32;
    e->options.output = e->output_file ? e->output_file : e->output_dir;
    return -1;
}

int cmd_export(int argc, char **argv)
{
    static struct export_run e;
    static struct options options;
    e.result_format = OUTPUT_MD;
    options = (struct options){.verb = "export",
                               .usage = "-m MODEL --lora DIR --format peft|gguf --output-dir DIR | --output-file FILE.gguf [options]",
                               .summary = "Writes an adapter for other programs: a PEFT folder, or GGUF as llama.cpp loads it."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Files"},
        {.kind = OPTION_TEXT, .name = "model", .letter = 'm', .target = &e.model, .argument = "MODEL", .help = "the adapter's base model"},
        flag_lora(&e.options.lora),
        flag_allow_other_base(&e.options.allow_other_base),
        {.kind = OPTION_TEXT,
         .name = "output-file",
         .target = &e.output_file,
         .argument = "FILE",
         .help = "with --format gguf: the file, for a LoRA"},
        {.kind = OPTION_TEXT,
         .name = "output-dir",
         .target = &e.output_dir,
         .argument = "DIR",
         .help = "with --format peft, or for a mixture (a GGUF per expert and a router file)"},
        {.kind = OPTION_GROUP, .help = "What is written"},
        {.kind = OPTION_CHOICE, .name = "format", .target = &e.format, .argument = "peft|gguf", .help = "for whom"},
        {.kind = OPTION_CHOICE, .name = "type", .target = &e.type, .argument = "f32|f16", .help = "of the tensors in GGUF"},
        {.kind = OPTION_TEXT,
         .name = "base-name",
         .target = &e.options.base_name,
         .argument = "NAME",
         .help = "base_model_name_or_path for PEFT; default: the model's own name"},
        flag_output(&e.result_format, OUTPUT_FORMATS),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0) code = check(&options, &e);
    if (code < 0) {
        program_log_level();
        code = run(&e);
    }
    options_free(&options);
    return code;
}
