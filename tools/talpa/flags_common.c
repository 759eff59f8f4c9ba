#include "flags_common.h"

struct option flag_model(const char **target)
{
    return (struct option){.kind = OPTION_TEXT, .name = "model", .letter = 'm', .target = target, .argument = "MODEL",
                           .help = "GGUF file, Hugging Face folder, or random:tiny"};
}

struct option flag_lora(const char **target)
{
    return (struct option){.kind = OPTION_TEXT,
                           .name = "lora",
                           .target = target,
                           .argument = "PATH",
                           .help = "adapter folder or GGUF LoRA file",
                           .once = true};
}

struct option flag_allow_other_base(bool *target)
{
    return (struct option){
        .kind = OPTION_FLAG, .name = "allow-other-base", .target = target, .help = "accept an adapter of another base model"};
}

struct option flag_max_threshold(double *target)
{
    return (struct option){.kind = OPTION_REAL, .name = "max-threshold", .target = target, .argument = "P", .max = 1,
                           .help = "bound of an adamole or threshold adapter's thresholds instead of its own: higher is fewer experts; 0: its own"};
}

struct option flag_chat_template(const char **target)
{
    return (struct option){.kind = OPTION_TEXT, .name = "chat-template", .target = target, .argument = "NAME",
                           .help = "of conversations, instead of the model's own"};
}

struct option flag_route_log(const char **target)
{
    return (struct option){.kind = OPTION_TEXT, .name = "route-log", .target = target, .argument = "FILE",
                           .help = "which experts the tokens of tasks and rows use, JSONL; a table on stderr"};
}

struct option flag_route_map(const char **target)
{
    return (struct option){
        .kind = OPTION_TEXT, .name = "route-map", .target = target, .argument = "FILE", .help = "the same as a heat map, SVG"};
}

struct option flag_device(const char **target)
{
    return (struct option){.kind = OPTION_TEXT, .name = "device", .alias = "-dev", .target = target, .argument = "DEVICE",
                           .help = "index or part of a name, see 'talpa devices'"};
}

struct option flag_fake_device(const char **target)
{
    return (struct option){.kind = OPTION_TEXT, .name = "fake-device", .target = target, .argument = "NAME",
                           .help = "plan for an invented amd, intel, nvidia or cpu"};
}

struct option flag_profile(const char **target)
{
    return (struct option){.kind = OPTION_TEXT, .name = "profile", .target = target, .argument = "FILE",
                           .help = "times of all kernel launches: CSV in FILE (-: stdout), a trace for Perfetto in FILE.trace.json"};
}

struct option flag_base_dtype(int *target)
{
    return (struct option){.kind = OPTION_CHOICE, .name = "base-dtype", .target = target, .argument = "auto|native|bf16|f32",
                           .help = "frozen weights on the device; native: as in the file"};
}

struct option flag_compute_dtype(int *target)
{
    return (struct option){.kind = OPTION_CHOICE, .name = "compute-dtype", .target = target, .argument = "auto|f32|bf16",
                           .help = "products with frozen weights; bf16: operands rounded (error 2^-8 of the sum of absolute terms), faster "
                                   "with AVX512-BF16 or AMX; auto: f32"};
}

struct option flag_expert_dispatch(int *target)
{
    return (struct option){.kind = OPTION_CHOICE, .name = "expert-dispatch", .target = target, .argument = "auto|dense|sparse",
                           .help = "how experts are computed; the result is the same"};
}

struct option flag_output(int *target, const char *formats)
{
    return (struct option){.kind = OPTION_CHOICE, .name = "output", .letter = 'o', .target = target, .argument = formats,
                           .help = "format of the result"};
}

struct option flag_output_file(const char **target)
{
    return (struct option){.kind = OPTION_TEXT, .name = "output-file", .target = target, .argument = "FILE",
                           .help = "result into FILE instead of stdout"};
}

int flags_fail_model(const struct options *options)
{
    return options_fail(options, "--model (-m) is missing: a GGUF file, a model folder, or random:tiny");
}
