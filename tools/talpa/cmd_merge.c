/* talpa merge */
#include <stdio.h>
#include <string.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "talpa/adapter.h"

struct merge {
    struct talpa_merge_options options;
    const char *model, *device;
    int type, format;
};

static int report(const struct merge *merge, const struct talpa_merge_result *r)
{
    struct output output;
    struct field fields[8 + TALPA_N_DTYPES];
    char names[TALPA_N_DTYPES][32];
    size_t n = 0;
    const int code = output_open(&output, NULL);
    if (code >= 0) return code;
    fields[n++] = field_text("output", merge->options.output);
    fields[n++] = field_int("tensors", r->n_tensors);
    fields[n++] = field_int("merged", r->n_merged);
    fields[n++] = field_int("bytes", r->n_bytes);
    for (int i = 0; i < TALPA_N_DTYPES; ++i) {
        if (!r->n_of_type[i]) continue;
        snprintf(names[i], sizeof names[i], "tensors_%s", talpa_dtype_name((enum talpa_dtype)i));
        fields[n++] = field_int(names[i], r->n_of_type[i]);
    }
    fields[n++] = r->has_probe ? field_int("probe_tokens", r->n_positions) : field_null("probe_tokens");
    fields[n++] = r->has_probe ? field_real("logit_difference_max", r->max_difference) : field_null("logit_difference_max");
    fields[n++] = r->has_probe ? field_real("logit_difference_mean", r->mean_difference) : field_null("logit_difference_mean");
    fields[n++] = r->has_probe ? field_real("top1_agreement", r->top1_agreement) : field_null("top1_agreement");
    output_begin(&output, (enum output_format)merge->format, true);
    output_record(&output, (enum output_format)merge->format, fields, n);
    output_end(&output, (enum output_format)merge->format, true);
    return output_close(&output);
}

static bool keep_going(void *user)
{
    (void)user;
    return !program_stop_requested;
}

static int run(const struct merge *merge)
{
    struct talpa_model *model = NULL;
    struct talpa_merge_result result;
    struct program_device device = {0};
    enum talpa_status status = talpa_model_open(&model, merge->model);
    int code = status == TALPA_OK ? -1 : program_fail(status);
    if (code < 0 && !merge->options.no_probe) code = program_device_choose(&device, merge->device, NULL);
    if (code < 0) {
        if (!merge->options.no_probe) program_device_note(&device);
        program_signals_stop(); /* what is half written is removed before the end */
        status = talpa_merge(&result, model, device.index, &merge->options);
        if (status != TALPA_OK) code = program_fail(status);
        if (program_stop_requested) code = 130;
    }
    talpa_model_close(model);
    if (code >= 0) return code;
    if (!result.has_tokenizer)
        program_note(
            "%s has no tokenizer files: this kind has no counterpart that is known to split alike; copy them from the base model's "
            "own folder",
            merge->options.output);
    if (result.has_probe)
        program_note(
            "merged against base with adapter, %lld tokens: logits differ by %.4g at most, %.4g on average; same first choice %.1f %%",
            (long long)result.n_positions, result.max_difference, result.mean_difference, 100.0 * result.top1_agreement);
    if (result.has_probe && result.top1_agreement < 0.99)
        program_note(
            "rounding to the output's type changes what the model says; a larger --type changes less, and the adapter unmerged (--lora) "
            "loses nothing");
    return report(merge, &result);
}

int cmd_merge(int argc, char **argv)
{
    static struct merge merge;
    static struct options options;
    struct talpa_merge_options *o = &merge.options;
    options =
        (struct options){.verb = "merge",
                         .usage = "-m MODEL --lora DIR --output-file OUT.gguf | OUT_DIR [options]",
                         .summary = "Merges a LoRA adapter into its base: a GGUF file, or a Hugging Face folder. Says what that changed."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Files"},
        {.kind = OPTION_TEXT,
         .name = "model",
         .letter = 'm',
         .target = &merge.model,
         .argument = "MODEL",
         .help = "the adapter's base model"},
        {.kind = OPTION_TEXT,
         .name = "lora",
         .target = &o->lora,
         .argument = "PATH",
         .help = "adapter folder or GGUF LoRA file; plain LoRA only",
         .once = true},
        flag_allow_other_base(&o->allow_other_base),
        {.kind = OPTION_TEXT,
         .name = "output-file",
         .alias = "output-dir",
         .target = &o->output,
         .argument = "PATH",
         .help = "a name that ends in .gguf, or a folder for the Hugging Face layout"},
        {.kind = OPTION_CHOICE,
         .name = "type",
         .target = &merge.type,
         .argument = "auto|f32|f16|bf16|q8_0|q4_0",
         .help = "of the matrices; auto: what no adapter changes stays as it is, changed quantised ones become q8_0"},
        {.kind = OPTION_GROUP, .help = "Check"},
        {.kind = OPTION_TEXT,
         .name = "probe",
         .target = &o->probe,
         .argument = "FILE",
         .help = "JSONL rows whose logits are compared; default: five sentences"},
        {.kind = OPTION_FLAG, .name = "no-probe", .target = &o->no_probe, .help = "do not compare logits (needs no device)"},
        flag_device(&merge.device),
        flag_output(&merge.format, OUTPUT_FORMATS),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0 && !merge.model) code = options_fail(&options, "--model (-m) is missing: the base that the adapter was trained on");
    if (code < 0 && !o->lora) code = options_fail(&options, "--lora is missing: an adapter folder or a GGUF LoRA file");
    if (code < 0 && !o->output) code = options_fail(&options, "--output-file is missing: a name that ends in .gguf, or a folder");
    if (code < 0 && o->probe && o->no_probe) code = options_fail(&options, "--probe and --no-probe exclude each other");
    if (code < 0) {
        program_log_level();
        o->type = (enum talpa_merge_type)merge.type;
        o->keep_going = keep_going;
        code = run(&merge);
    }
    options_free(&options);
    return code;
}
