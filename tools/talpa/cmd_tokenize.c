/* talpa tokenize */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "input.h"
#include "jsonl_text.h"
#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "program.h"

struct tokenize {
    const char *model, *prompt, *file, *output_file;
    int format;
    bool jsonl, no_parse_special;
    size_t n_printed;
};

enum { FORMAT_JSON, FORMAT_JSONL };

static enum talpa_status print_tokens(struct tokenize *tokenize, FILE *file, const struct talpa_model *model, const char *text,
                                      size_t n_bytes)
{
    int32_t *ids = NULL;
    size_t n = 0;
    const enum talpa_status status = talpa_model_tokenize(&ids, &n, model, text, n_bytes, !tokenize->no_parse_special);
    if (status != TALPA_OK) return status;
    if (tokenize->format == FORMAT_JSON && tokenize->n_printed) fputs(",\n", file);
    fputs("{\"ids\": [", file);
    for (size_t i = 0; i < n; ++i) fprintf(file, i ? ", %" PRId32 : "%" PRId32, ids[i]);
    fputs("], \"pieces\": [", file);
    for (size_t i = 0; i < n; ++i) {
        size_t length = 0;
        const char *piece = talpa_model_piece(&length, model, ids[i]);
        if (i) fputs(", ", file);
        output_string(file, piece ? piece : "", length, true);
    }
    fputs(tokenize->format == FORMAT_JSONL ? "]}\n" : "]}", file);
    ++tokenize->n_printed;
    free(ids);
    return TALPA_OK;
}

static int print_jsonl(struct tokenize *tokenize, FILE *file, const struct talpa_model *model, const char *text, size_t n_bytes)
{
    const char *name = input_name(tokenize->file), *end = text + n_bytes;
    if (n_bytes >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) text += 3; /* a byte order mark, as in training data */
    for (size_t number = 1; text < end; ++number) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const size_t n = newline ? (size_t)(newline - text) : (size_t)(end - text);
        char *value = NULL;
        size_t n_value = 0;
        /* Empty lines are skipped, as in training data. */
        if (n > 0 && !(n == 1 && *text == '\r')) {
            const char *wrong = jsonl_text_read(&value, &n_value, text, n);
            if (wrong) {
                program_error("%s:%zu: %s", name, number, wrong);
                return 65;
            }
            const enum talpa_status status = print_tokens(tokenize, file, model, value, n_value);
            free(value);
            if (status != TALPA_OK) {
                program_error("%s:%zu: the next message is about this line", name, number);
                return program_fail(status);
            }
        }
        text += n + (newline != NULL);
    }
    return -1;
}

static int run(struct tokenize *tokenize)
{
    struct talpa_model *model = NULL;
    struct output output;
    char *text = NULL;
    size_t n_bytes = 0;
    enum talpa_status status = talpa_model_open(&model, tokenize->model);
    if (status != TALPA_OK) return program_fail(status);
    int code = tokenize->prompt ? -1 : input_read(&text, &n_bytes, tokenize->file);
    if (code < 0) code = output_open(&output, tokenize->output_file);
    if (code < 0) {
        const bool array = tokenize->jsonl && tokenize->format == FORMAT_JSON;
        if (array) fputs("[\n", output.file);
        if (tokenize->jsonl) {
            code = print_jsonl(tokenize, output.file, model, text, n_bytes);
        } else {
            status = print_tokens(tokenize, output.file, model, tokenize->prompt ? tokenize->prompt : text,
                                  tokenize->prompt ? strlen(tokenize->prompt) : n_bytes);
            if (status != TALPA_OK) code = program_fail(status);
        }
        if (code < 0) {
            if (tokenize->format == FORMAT_JSON) fputs(array ? "\n]\n" : "\n", output.file);
            code = output_close(&output);
        } else {
            fflush(stdout);
            output_discard(&output);
        }
    }
    free(text);
    talpa_model_close(model);
    return code;
}

int cmd_tokenize(int argc, char **argv)
{
    static struct tokenize tokenize = {.format = FORMAT_JSONL};
    static struct options options;
    options = (struct options){
        .verb = "tokenize",
        .usage = "-m MODEL [-p TEXT | -f FILE] [options]",
        .summary = "Token ids and pieces of a text (of standard input without -p and -f). Bytes that are no character of their own\n"
                   "in a piece are shown as <0xE2>."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "What"},
        flag_model(&tokenize.model),
        {.kind = OPTION_TEXT, .name = "prompt", .letter = 'p', .target = &tokenize.prompt, .argument = "TEXT", .help = "the text itself"},
        {.kind = OPTION_TEXT,
         .name = "file",
         .letter = 'f',
         .target = &tokenize.file,
         .argument = "FILE",
         .help = "one raw text; -: standard input"},
        {.kind = OPTION_FLAG, .name = "jsonl", .target = &tokenize.jsonl, .help = "the input has one {\"text\": ...} per line"},
        {.kind = OPTION_FLAG,
         .name = "no-parse-special",
         .target = &tokenize.no_parse_special,
         .help = "special tokens' texts are plain text"},
        flag_output(&tokenize.format, "json|jsonl"),
        flag_output_file(&tokenize.output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0 && !tokenize.model) code = flags_fail_model(&options);
    if (code < 0 && tokenize.prompt && tokenize.file) code = options_fail(&options, "--prompt and --file exclude each other");
    if (code < 0 && tokenize.prompt && tokenize.jsonl)
        code = options_fail(&options, "--jsonl reads a file or standard input, not --prompt");
    if (code < 0) {
        program_log_level();
        code = run(&tokenize);
    }
    options_free(&options);
    return code;
}
