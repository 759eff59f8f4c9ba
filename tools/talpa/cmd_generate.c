/* talpa generate */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "flags_common.h"
#include "generate_flags.h"
#include "input.h"
#include "output.h"
#include "profile.h"

struct generate {
    struct generate_flags flags;
    const char *prompt, *file, *output_file, *stats_file;
    bool jsonl, chat, no_parse_special, logprobs, dry_run;
    int format, batch_size;
    struct output output;
    struct talpa_prompt *prompts;
    size_t n_prompts;
    struct timespec begin;
    double first_text_s; /* since `begin`; negative: no text yet */
};

enum { FORMAT_AUTO, FORMAT_TEXT, FORMAT_JSON, FORMAT_JSONL };

/* ---- prompts ---- */

/* One raw text or one user's message as the only prompt. */
static int take_text(struct generate *g, const struct talpa_model *model, char *text, size_t n_bytes)
{
    struct talpa_prompt *prompt = calloc(1, sizeof *prompt);
    if (!prompt) {
        free(text);
        return program_fail_memory();
    }
    prompt->text = text;
    g->prompts = prompt;
    g->n_prompts = 1;
    const struct talpa_message turns[] = {{"system", g->flags.system}, {"user", text}};
    const size_t skipped = g->flags.system ? 0 : 1;
    const enum talpa_status status =
        g->chat ? talpa_prompt_chat(&prompt->ids, &prompt->n_ids, model, turns + skipped, 2 - skipped, g->flags.chat_template)
                : talpa_prompt_text(&prompt->ids, &prompt->n_ids, model, text, n_bytes, !g->no_parse_special);
    return status == TALPA_OK ? -1 : program_fail(status);
}

static int read_prompts(struct generate *g, const struct talpa_model *model)
{
    char *text = NULL;
    size_t n_bytes = 0;
    if (g->prompt) {
        text = strdup(g->prompt);
        return text ? take_text(g, model, text, strlen(text)) : program_fail_memory();
    }
    const int code = input_read(&text, &n_bytes, g->file);
    if (code >= 0) return code;
    if (!g->jsonl) return take_text(g, model, text, n_bytes);
    const struct talpa_prompt_options options = {.chat = g->chat, .system = g->flags.system, .chat_template = g->flags.chat_template};
    const enum talpa_status status = talpa_prompts_parse(&g->prompts, &g->n_prompts, model, text, n_bytes, input_name(g->file), &options);
    free(text);
    return status == TALPA_OK ? -1 : program_fail(status);
}

/* Sequences and context as large as the prompts need, unless given. */
static int fit_session(struct generate *g, struct talpa_model *model)
{
    struct talpa_session_options *session = &g->flags.session;
    struct talpa_model_info info;
    size_t longest = 0;
    for (size_t i = 0; i < g->n_prompts; ++i)
        if (g->prompts[i].n_ids > longest) longest = g->prompts[i].n_ids;
    session->n_sequences = (size_t)g->batch_size < g->n_prompts ? g->batch_size : (int)g->n_prompts;
    if (session->n_ctx || !g->flags.max_tokens) return -1;
    const enum talpa_status status = talpa_model_info(&info, model);
    if (status != TALPA_OK) return program_fail(status);
    const size_t wanted = longest + (size_t)g->flags.max_tokens;
    session->n_ctx = wanted < (size_t)info.context_length ? (int)wanted : info.context_length;
    if (session->n_ctx < 2) session->n_ctx = 2;
    return -1;
}

/* ---- answers ---- */

static double seconds_since(const struct timespec *begin)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - begin->tv_sec) + 1e-9 * (double)(now.tv_nsec - begin->tv_nsec);
}

static bool on_text(void *user, size_t request, const char *text, size_t n_bytes)
{
    struct generate *g = user;
    (void)request;
    fwrite(text, 1, n_bytes, g->output.file);
    fflush(g->output.file);
    if (g->first_text_s < 0.0) g->first_text_s = seconds_since(&g->begin);
    return !output_failed(&g->output);
}

static void print_text(FILE *file, const struct talpa_answer *answer, bool is_told)
{
    if (!is_told) fwrite(answer->text, 1, answer->n_bytes, file);
    if (!answer->n_bytes || answer->text[answer->n_bytes - 1] != '\n') fputc('\n', file);
}

static void print_object(FILE *file, const struct generate *g, size_t index, const struct talpa_answer *answer)
{
    const struct talpa_prompt *prompt = &g->prompts[index];
    const char *id = prompt->id ? prompt->id : "", *finish = talpa_finish_name(answer->finish);
    fprintf(file, "{\"index\": %zu, \"id\": ", index);
    output_string(file, id, strlen(id), false);
    fputs(", \"prompt\": ", file);
    output_string(file, prompt->text, strlen(prompt->text), false);
    fputs(", \"text\": ", file);
    output_string(file, answer->text, answer->n_bytes, false);
    fprintf(file, ", \"finish\": \"%s\", \"n_prompt\": %d, \"n\": %zu", finish, answer->n_prompt, answer->n_ids);
    if (g->logprobs) {
        fputs(", \"ids\": [", file);
        for (size_t i = 0; i < answer->n_ids; ++i) fprintf(file, i ? ", %d" : "%d", (int)answer->ids[i]);
        fputs("], \"logprobs\": [", file);
        for (size_t i = 0; i < answer->n_ids; ++i) {
            if (i) fputs(", ", file);
            output_real(file, (double)answer->logprobs[i]);
        }
        fputc(']', file);
    }
    fputc('}', file);
}

static void print_answers(const struct generate *g, const struct talpa_answer *answers, bool is_told)
{
    FILE *file = g->output.file;
    const bool array = g->format == FORMAT_JSON && g->jsonl;
    if (array) fputs("[\n", file);
    for (size_t i = 0; i < g->n_prompts; ++i) {
        if (g->format == FORMAT_TEXT) {
            print_text(file, &answers[i], is_told);
            continue;
        }
        print_object(file, g, i, &answers[i]);
        fputs(array && i + 1 < g->n_prompts ? ",\n" : "\n", file);
    }
    if (array) fputs("]\n", file);
}

/* ---- figures ---- */

static struct field rate(const char *name, int64_t n, double seconds)
{
    return field_real(name, seconds > 0.0 ? (double)n / seconds : NAN);
}

/* One object per run, one per answer inside: counts, seconds of the passes and their quotients. */
static void print_stats(FILE *file, const struct generate *g, const struct talpa_answer *answers, const struct talpa_session_info *before,
                        const struct talpa_session_info *now)
{
    const int64_t n_prompt = now->n_prompt_tokens - before->n_prompt_tokens, n_decode = now->n_decode_tokens - before->n_decode_tokens;
    const double prompt_s = now->prompt_s - before->prompt_s, decode_s = now->decode_s - before->decode_s;
    const struct field fields[] = {field_int("n_prompt_tokens", n_prompt),
                                   field_real("prompt_s", prompt_s),
                                   rate("prompt_tokens_per_s", n_prompt, prompt_s),
                                   field_int("n_decode_tokens", n_decode),
                                   field_real("decode_s", decode_s),
                                   rate("decode_tokens_per_s", n_decode, decode_s),
                                   field_int("n_launches_last_pass", now->n_launches),
                                   field_real("first_text_s", g->first_text_s >= 0.0 ? g->first_text_s : NAN),
                                   field_int("weight_bytes", (int64_t)now->weight_bytes),
                                   field_int("adapter_bytes", (int64_t)now->adapter_bytes),
                                   field_int("cache_bytes", (int64_t)now->cache_bytes),
                                   field_int("activation_bytes", (int64_t)now->activation_bytes)};
    fputs("{\"total\": ", file);
    output_object(file, fields, sizeof fields / sizeof *fields);
    fputs(",\n \"answers\": [", file);
    for (size_t i = 0; i < g->n_prompts; ++i) {
        const struct talpa_answer *answer = &answers[i];
        const struct field own[] = {field_int("n_prompt", answer->n_prompt),
                                    field_real("prompt_s", answer->prompt_s),
                                    field_int("n", (int64_t)answer->n_ids),
                                    field_int("n_passes", answer->n_passes),
                                    field_real("decode_s", answer->decode_s)};
        fputs(i ? ",\n  " : "\n  ", file);
        output_object(file, own, sizeof own / sizeof *own);
    }
    fputs("]}\n", file);
}

static int write_stats(const struct generate *g, const struct talpa_answer *answers, const struct talpa_session_info *before,
                       const struct talpa_session *session)
{
    if (!g->stats_file) return 0;
    struct output output;
    const struct talpa_session_info now = talpa_session_info(session);
    const int code = output_open(&output, g->stats_file);
    if (code >= 0) return code;
    print_stats(output.file, g, answers, before, &now);
    return output_close(&output);
}

static int answer_all(struct generate *g, struct talpa_session *session)
{
    struct talpa_request *requests = calloc(g->n_prompts, sizeof *requests);
    struct talpa_answer *answers = calloc(g->n_prompts, sizeof *answers);
    int code = requests && answers ? output_open(&g->output, g->output_file) : program_fail_memory();
    if (code < 0) {
        const bool streams = g->format == FORMAT_TEXT && g->n_prompts == 1;
        const struct talpa_session_info before = talpa_session_info(session);
        for (size_t i = 0; i < g->n_prompts; ++i) requests[i] = generate_flags_request(&g->flags, g->prompts[i].ids, g->prompts[i].n_ids);
        const enum talpa_status status =
            talpa_generate(answers, session, requests, g->n_prompts, &g->flags.sampling, streams ? on_text : NULL, g);
        if (output_failed(&g->output)) {
            code = output_close(&g->output);
        } else if (status != TALPA_OK) {
            output_discard(&g->output);
            code = program_fail(status);
        } else {
            print_answers(g, answers, streams);
            code = output_close(&g->output);
            generate_flags_timing(session, &before);
            if (!code) code = write_stats(g, answers, &before, session);
        }
    }
    for (size_t i = 0; i < g->n_prompts && answers; ++i) talpa_answer_free(&answers[i]);
    free(answers);
    free(requests);
    return code;
}

static int dry_run(struct generate *g, struct talpa_model *model)
{
    struct program_device device;
    struct talpa_session_info info;
    int code = program_device_choose(&device, g->flags.device, NULL);
    if (code < 0) code = output_open(&g->output, g->output_file);
    if (code >= 0) return code;
    const enum talpa_status status = talpa_session_plan(&info, model, &device.caps, &g->flags.session);
    if (status != TALPA_OK) {
        output_discard(&g->output);
        return program_fail(status);
    }
    if (g->format == FORMAT_TEXT) {
        const double mib = 1048576.0;
        fprintf(g->output.file, "%d x %d tokens of context: weights %.1f  adapter %.1f  cache %.1f  activations %.1f  total %.1f MiB of %.1f GiB\n",
                info.n_sequences, info.n_ctx, (double)info.weight_bytes / mib, (double)info.adapter_bytes / mib,
                (double)info.cache_bytes / mib, (double)info.activation_bytes / mib, (double)info.device_bytes / mib,
                (double)device.caps.global_mem_bytes / (1024.0 * mib));
        return output_close(&g->output);
    }
    const struct field fields[] = {field_text("device", device.caps.name),
                                   field_int("n_ctx", info.n_ctx),
                                   field_int("n_sequences", info.n_sequences),
                                   field_int("n_ubatch", info.n_ubatch),
                                   field_int("weight_bytes", (int64_t)info.weight_bytes),
                                   field_int("adapter_bytes", (int64_t)info.adapter_bytes),
                                   field_int("cache_bytes", (int64_t)info.cache_bytes),
                                   field_int("activation_bytes", (int64_t)info.activation_bytes),
                                   field_int("total_bytes", (int64_t)info.device_bytes),
                                   field_int("peak_bytes", (int64_t)info.device_peak_bytes),
                                   field_int("global_mem_bytes", (int64_t)device.caps.global_mem_bytes)};
    output_object(g->output.file, fields, sizeof fields / sizeof *fields);
    fputc('\n', g->output.file);
    return output_close(&g->output);
}

static int run(struct generate *g)
{
    struct talpa_model *model = NULL;
    struct talpa_session *session = NULL;
    program_drivers_load();
    const enum talpa_status status = talpa_model_open(&model, g->flags.model);
    int code = status == TALPA_OK ? read_prompts(g, model) : program_fail(status);
    if (code < 0) code = fit_session(g, model);
    if (code < 0 && g->dry_run) code = dry_run(g, model);
    if (code < 0) code = generate_flags_open(&session, &g->flags, model);
    if (code < 0) code = answer_all(g, session);
    talpa_session_close(session);
    talpa_prompts_free(g->prompts, g->n_prompts);
    talpa_model_close(model);
    return code;
}

int cmd_generate(int argc, char **argv)
{
    static struct generate g = {.batch_size = 8};
    static struct options options;
    g.first_text_s = -1.0;
    clock_gettime(CLOCK_MONOTONIC, &g.begin);
    generate_flags_default(&g.flags, 256);
    options = (struct options){
        .verb = "generate",
        .usage = "-m MODEL [-p TEXT | -f FILE] [--lora DIR] [options]",
        .summary = "Continues a prompt, or answers it with --chat; many prompts at once with --jsonl. Without -p and -f, standard\n"
                   "input is the prompt. The answer alone goes to standard output, as it comes."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Prompt"},
        {.kind = OPTION_TEXT, .name = "prompt", .letter = 'p', .target = &g.prompt, .argument = "TEXT", .help = "the prompt, as it is"},
        {.kind = OPTION_TEXT,
         .name = "file",
         .letter = 'f',
         .target = &g.file,
         .argument = "FILE",
         .help = "the prompt is the whole file; -: standard input"},
        {.kind = OPTION_FLAG,
         .name = "jsonl",
         .target = &g.jsonl,
         .help = "the file has a prompt per line: {\"prompt\"}, {\"text\"}, {\"messages\"} or {\"instruction\"}"},
        {.kind = OPTION_FLAG, .name = "chat", .target = &g.chat, .help = "the prompt is a user's message: put it into the chat template"},
        {.kind = OPTION_FLAG,
         .name = "no-parse-special",
         .target = &g.no_parse_special,
         .help = "special tokens' texts in -p and -f are plain text, as they always are in --jsonl and --chat"},
        {.kind = OPTION_INT,
         .name = "batch-size",
         .letter = 'b',
         .target = &g.batch_size,
         .argument = "N",
         .help = "prompts that are answered together; changes no answer",
         .min = 1,
         .max = 4096},
        {.kind = OPTION_CHOICE,
         .name = "output",
         .letter = 'o',
         .target = &g.format,
         .argument = "auto|text|json|jsonl",
         .help = "format of the result; auto: text, or jsonl with --jsonl"},
        {.kind = OPTION_FLAG, .name = "logprobs", .target = &g.logprobs, .help = "token ids and log-probabilities in json and jsonl"},
        flag_output_file(&g.output_file),
        {.kind = OPTION_TEXT,
         .name = "stats",
         .target = &g.stats_file,
         .argument = "FILE",
         .help = "tokens, seconds and speed of the run and of each answer into FILE, JSON"},
        {.kind = OPTION_FLAG, .name = "dry-run", .target = &g.dry_run, .help = "print the device memory it would take and stop"},
    };
    options_add(&options, table, sizeof table / sizeof *table);
    generate_flags_add(&options, &g.flags);
    int code = options_parse(&options, argc, argv);
    if (code < 0) code = generate_flags_finish(&options, &g.flags);
    if (code < 0 && g.prompt && g.file) code = options_fail(&options, "--prompt and --file exclude each other");
    if (code < 0 && g.prompt && g.jsonl) code = options_fail(&options, "--jsonl reads a file or standard input, not --prompt");
    if (code < 0 && !g.prompt && !g.file && isatty(STDIN_FILENO))
        code = options_fail(&options, "--prompt (-p) or --file (-f) is missing; '-f -' reads the terminal");
    if (code < 0 && !g.chat && !g.jsonl && (g.flags.system || g.flags.chat_template))
        code = options_fail(&options, "--%s needs --chat", g.flags.system ? "system" : "chat-template");
    if (g.format == FORMAT_AUTO) g.format = g.jsonl ? FORMAT_JSONL : FORMAT_TEXT;
    if (code < 0) {
        program_log_level();
        code = profile_begin(g.flags.profile);
        if (code < 0) code = profile_end(run(&g));
    }
    options_free(&options);
    return code;
}
