#include "generate_flags.h"

#include <inttypes.h>
#include <string.h>

#include "flags_common.h"

void generate_flags_default(struct generate_flags *flags, int max_tokens)
{
    *flags = (struct generate_flags){.max_tokens = max_tokens};
    talpa_session_default(&flags->session);
    talpa_sampling_default(&flags->sampling);
    flags->base_dtype = (int)flags->session.base_dtype;
    flags->compute_dtype = (int)flags->session.compute_dtype;
    flags->dispatch = (int)flags->session.dispatch;
}

void generate_flags_add(struct options *options, struct generate_flags *flags)
{
    struct talpa_session_options *session = &flags->session;
    struct talpa_sampling *sampling = &flags->sampling;
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Model"},
        flag_model(&flags->model),
        flag_lora(&session->lora),
        flag_allow_other_base(&session->allow_other_base),
        flag_max_threshold(&session->max_threshold),
        flag_chat_template(&flags->chat_template),
        {.kind = OPTION_TEXT, .name = "system", .target = &flags->system, .argument = "TEXT", .help = "system turn of the conversation"},
        {.kind = OPTION_GROUP, .help = "Length"},
        {.kind = OPTION_INT,
         .name = "max-new-tokens",
         .letter = 'n',
         .alias = "n-predict",
         .target = &flags->max_tokens,
         .argument = "N",
         .help = "tokens of an answer at most; 0: up to the context's end",
         .max = 1 << 20},
        {.kind = OPTION_INT,
         .name = "ctx-size",
         .letter = 'c',
         .target = &session->n_ctx,
         .argument = "N",
         .help = "tokens of prompt and answer together; 0: as needed, or the model's, at most 4096",
         .max = 1 << 20},
        {.kind = OPTION_TEXTS,
         .name = "stop",
         .target = &flags->stop,
         .argument = "TEXT",
         .help = "end before this text (may be repeated)"},
        {.kind = OPTION_FLAG, .name = "ignore-eos", .target = &flags->ignore_eos, .help = "never end with the model's end token"},
        {.kind = OPTION_GROUP, .help = "Sampling, in this order"},
        {.kind = OPTION_REAL,
         .name = "repeat-penalty",
         .target = &sampling->repeat_penalty,
         .argument = "X",
         .help = "divides positive logits of recent tokens, multiplies negative ones; 1: off",
         .min = 1e-6,
         .max = 1e6},
        {.kind = OPTION_INT,
         .name = "repeat-last-n",
         .target = &sampling->repeat_last_n,
         .argument = "N",
         .help = "recent tokens, prompt included; 0: none, -1: all",
         .min = -1,
         .max = 1 << 30},
        {.kind = OPTION_INT,
         .name = "top-k",
         .target = &sampling->top_k,
         .argument = "K",
         .help = "keep the K most likely tokens; 0: all",
         .max = 1 << 30},
        {.kind = OPTION_REAL,
         .name = "top-p",
         .target = &sampling->top_p,
         .argument = "P",
         .help = "keep the most likely ones up to this probability together; 1: off",
         .max = 1},
        {.kind = OPTION_REAL,
         .name = "min-p",
         .target = &sampling->min_p,
         .argument = "P",
         .help = "keep those with this share of the best one's probability; 0: off",
         .max = 1},
        {.kind = OPTION_REAL,
         .name = "temp",
         .alias = "temperature",
         .target = &sampling->temperature,
         .argument = "T",
         .help = "0: always the most likely token, without the filters above",
         .max = 1e6},
        {.kind = OPTION_SEED,
         .name = "seed",
         .target = &sampling->seed,
         .argument = "N",
         .help = "of the draws; the same seed gives the same answer"},
        {.kind = OPTION_GROUP, .help = "Run"},
        flag_device(&flags->device),
        flag_profile(&flags->profile),
        {.kind = OPTION_INT,
         .name = "ubatch-size",
         .alias = "-ub",
         .target = &session->n_ubatch,
         .argument = "N",
         .help = "prompt tokens per pass",
         .min = 1,
         .max = 1 << 16},
        flag_base_dtype(&flags->base_dtype),
        flag_compute_dtype(&flags->compute_dtype),
        flag_expert_dispatch(&flags->dispatch),
    };
    options_add(options, table, sizeof table / sizeof *table);
}

int generate_flags_finish(struct options *options, struct generate_flags *flags)
{
    if (!flags->model) return flags_fail_model(options);
    for (size_t i = 0; i < flags->stop.n; ++i)
        if (!*flags->stop.text[i]) return options_fail(options, "--stop: found an empty text");
    flags->session.base_dtype = (enum talpa_base_dtype)flags->base_dtype;
    flags->session.compute_dtype = (enum talpa_compute_dtype)flags->compute_dtype;
    flags->session.dispatch = (enum talpa_expert_dispatch)flags->dispatch;
    return -1;
}

int generate_flags_open(struct talpa_session **session, const struct generate_flags *flags, struct talpa_model *model)
{
    struct program_device device;
    const int code = program_device_choose(&device, flags->device, NULL);
    if (code >= 0) return code;
    program_device_note(&device);
    const enum talpa_status status = talpa_session_open(session, model, device.index, &flags->session);
    if (status != TALPA_OK) return program_fail(status);
    if (options_verbosity > 0) {
        const struct talpa_session_info info = talpa_session_info(*session);
        program_note("%d x %d tokens of context; weights %.1f MiB, adapter %.1f, cache %.1f, activations %.1f; %zu bytes on the device",
                     info.n_sequences, info.n_ctx, (double)info.weight_bytes / 1048576.0, (double)info.adapter_bytes / 1048576.0,
                     (double)info.cache_bytes / 1048576.0, (double)info.activation_bytes / 1048576.0, info.device_bytes);
    }
    return -1;
}

struct talpa_request generate_flags_request(const struct generate_flags *flags, const int32_t *ids, size_t n_ids)
{
    return (struct talpa_request){.ids = ids,
                                  .n_ids = n_ids,
                                  .max_tokens = flags->max_tokens,
                                  .stop = flags->stop.text,
                                  .n_stop = flags->stop.n,
                                  .ignore_eos = flags->ignore_eos};
}

void generate_flags_timing(const struct talpa_session *session, const struct talpa_session_info *before)
{
    const struct talpa_session_info now = talpa_session_info(session);
    const int64_t prompt = now.n_prompt_tokens - before->n_prompt_tokens, decode = now.n_decode_tokens - before->n_decode_tokens;
    const double prompt_s = now.prompt_s - before->prompt_s, decode_s = now.decode_s - before->decode_s;
    program_note("prompt %" PRId64 " tokens, %.1f tok/s; decoding %" PRId64 " tokens, %.1f tok/s", prompt,
                 prompt_s > 0 ? (double)prompt / prompt_s : 0.0, decode, decode_s > 0 ? (double)decode / decode_s : 0.0);
}
