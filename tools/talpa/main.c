/* talpa: verb dispatch. */
#include <stdio.h>
#include <string.h>

#include "options.h"
#include "options_doc.h"
#include "output.h"
#include "program.h"

struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
};

static const struct verb verbs[] = {
    {"train", cmd_train, "fine-tune LoRA experts on a frozen model"},
    {"generate", cmd_generate, "text from a model, for one prompt or many"},
    {"chat", cmd_chat, "a conversation"},
    {"score", cmd_score, "log-probabilities of given completions"},
    {"verify", cmd_verify, "does this device compute what the ops are defined to compute?"},
    {"tune", cmd_tune, "find the fastest kernel parameters on this device"},
    {"bench", cmd_bench, "how fast are products, ops, training and generation here?"},
    {"doctor", cmd_doctor, "what OpenCL finds on this machine, and what is missing"},
    {"export", cmd_export, "an adapter for other programs: PEFT or GGUF"},
    {"merge", cmd_merge, "a LoRA adapter merged into its base"},
    {"eval", cmd_eval, "scores on tasks, with standard errors"},
    {"routes", cmd_routes, "whether two runs route alike; experts of rows right and wrong"},
    {"inspect", cmd_inspect, "what a model or adapter holds; training graph and plan"},
    {"tokenize", cmd_tokenize, "token ids of a text"},
    {"devices", cmd_devices, "the OpenCL devices of this machine"},
};
enum { N_VERBS = sizeof verbs / sizeof *verbs };

static void print_help(FILE *file)
{
    fprintf(file, "Usage: talpa VERB [options]\nFine-tuning of mixtures of LoRA experts on any OpenCL device.\n\nVerbs:\n");
    for (size_t i = 0; i < N_VERBS; ++i) fprintf(file, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
    fprintf(file, "\n'talpa VERB --help' lists a verb's options, 'talpa --version' the version;\n"
                  "'talpa man [VERB]' prints a manual page, 'talpa completion' a completion script for bash.\n"
                  "Environment: TALPA_DEVICE (index or part of a name), TALPA_CACHE_DIR, TALPA_LOG (error, warn, info, debug),\n"
                  "TALPA_ARG_<FLAG> (a flag's value), NO_COLOR.\n"
                  "Exit codes: 0 done, 1 failed, 2 usage, 3 check failed, 65 bad data, 66 no input, 69 no device, 70 internal error,\n"
                  "71 device or memory, 73 and 74 output, 75 interrupted and saved, 130 interrupted.\n");
}

static int fail_unknown(const char *word)
{
    static const char *const later[] = {"serve", "cache"};
    const char *names[N_VERBS + 2] = {[N_VERBS] = "--help", [N_VERBS + 1] = "--version"};
    char known[32 * N_VERBS] = "";
    for (size_t i = 0; i < N_VERBS; ++i) {
        names[i] = verbs[i].name;
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", verbs[i].name);
    }
    for (size_t i = 0; i < sizeof later / sizeof *later; ++i)
        if (!strcmp(word, later[i])) {
            program_error("'%s' is not in this version; known: %s", word, known);
            return 2;
        }
    const char *nearest = options_nearest(word, names, N_VERBS + 2);
    const char *what = word[0] == '-' ? "flag" : "verb";
    if (nearest)
        program_error("unknown %s '%s'; did you mean '%s'?", what, word, nearest);
    else
        program_error("unknown %s '%s'; known verbs: %s", what, word, known);
    fprintf(stderr, "Try 'talpa --help'.\n");
    return 2;
}

/* ---- documents ---- */

static int document(const char *verb, enum options_document what)
{
    char name[32];
    char *argv[] = {name, NULL};
    snprintf(name, sizeof name, "%s", verb);
    options_document = what;
    for (size_t i = 0; i < N_VERBS; ++i)
        if (!strcmp(verb, verbs[i].name)) return verbs[i].run(1, argv);
    return fail_unknown(verb);
}

static void print_words(const char *verb) { document(verb, OPTIONS_WORDS); }

/* "talpa man [VERB]", "talpa completion": what packages install; made from the flag tables so that it cannot be out of date. */
static int print_document(const char *word, const char *verb)
{
    const char *names[N_VERBS], *summaries[N_VERBS];
    for (size_t i = 0; i < N_VERBS; ++i) {
        names[i] = verbs[i].name;
        summaries[i] = verbs[i].summary;
    }
    if (!strcmp(word, "man") && verb) return document(verb, OPTIONS_MAN);
    if (!strcmp(word, "man")) program_print_man(names, summaries, N_VERBS);
    else program_print_completion(names, N_VERBS, print_words);
    return output_flush_stdout();
}

int main(int argc, char **argv)
{
    program_signals_default();
    program_keep_pocl_threads();
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    const char *word = argv[1];
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || (!strcmp(word, "help") && argc == 2)) {
        print_help(stdout);
        return output_flush_stdout();
    }
    if (!strcmp(word, "--version") || !strcmp(word, "version")) {
        printf("talpa %s\n", TALPA_VERSION_STRING);
        return output_flush_stdout();
    }
    if ((!strcmp(word, "man") && argc <= 3) || (!strcmp(word, "completion") && argc == 2))
        return print_document(word, argc > 2 ? argv[2] : NULL);
    char *help_argv[] = {argc > 2 ? argv[2] : argv[1], "--help", NULL};
    if (!strcmp(word, "help")) {
        word = argv[2];
        argc = 3;
        argv = help_argv;
    } else {
        ++argv;
    }
    for (size_t i = 0; i < N_VERBS; ++i) {
        if (strcmp(word, verbs[i].name)) continue;
        const int code = verbs[i].run(argc - 1, argv);
        program_drivers_wait();
        return code;
    }
    return fail_unknown(word);
}
