#include "options_doc.h"

#include <stdio.h>
#include <string.h>

enum options_document options_document;

static bool is_later(const struct option *option) { return option->kind == OPTION_LATER || option->kind == OPTION_LATER_FLAG; }

static bool takes_value(const struct option *option) { return option->kind != OPTION_FLAG && option->kind != OPTION_LATER_FLAG; }

/* "-m, --model FILE" in plain text. */
static void left_text(char *text, size_t size, const struct option *option)
{
    char one_dash[32] = "";
    if (option->letter) snprintf(one_dash, sizeof one_dash, "-%c, ", option->letter);
    else if (option->alias && option->alias[0] == '-') snprintf(one_dash, sizeof one_dash, "%s, ", option->alias);
    snprintf(text, size, "%s--%s%s%s", one_dash, option->name, option->argument ? " " : "", option->argument ? option->argument : "");
}

void options_print_help(const struct options *options, options_default *defaults)
{
    printf("Usage: talpa %s %s\n%s\n", options->verb, options->usage, options->summary);
    for (size_t i = 0; i < options->n; ++i) {
        const struct option *option = &options->list[i];
        if (option->kind == OPTION_GROUP) {
            printf("\n%s:\n", option->help);
            continue;
        }
        char left[160];
        left_text(left, sizeof left, option);
        printf("  %-36s", left);
        if (strlen(left) > 34) printf("\n%38s", "");
        printf("%s%s", is_later(option) ? "not in this version; " : "", option->help);
        if (option->alias && option->alias[0] != '-') printf(" (also --%s)", option->alias);
        if (defaults[i][0]) printf(" [%s]", defaults[i]);
        putchar('\n');
    }
    printf("\nEvery flag can also be given in the environment: --some-flag as TALPA_ARG_SOME_FLAG.\n");
}

/* ---- manual pages ---- */

/* Text for man(7): a backslash and a hyphen are written so that they can be copied; a leading dot or quote is no macro. */
static void roff(const char *text)
{
    if (*text == '.' || *text == '\'') printf("\\&");
    for (; *text; ++text) {
        if (*text == '\\') printf("\\e");
        else if (*text == '-') printf("\\-");
        else putchar(*text);
    }
}

static void heading(const char *verb, const char *summary)
{
    char title[64];
    size_t n = (size_t)snprintf(title, sizeof title, "TALPA%s%s", verb ? "-" : "", verb ? verb : "");
    for (size_t i = 0; i < n && i < sizeof title; ++i)
        if (title[i] >= 'a' && title[i] <= 'z') title[i] = (char)(title[i] - 'a' + 'A');
    printf(".TH %s 1 \"\" \"talpa %s\" \"talpa\"\n.SH NAME\ntalpa%s%s \\- ", title, TALPA_VERSION_STRING, verb ? "\\-" : "",
           verb ? verb : "");
    roff(summary);
    putchar('\n');
}

void options_print_man(const struct options *options, options_default *defaults)
{
    heading(options->verb, options->summary);
    printf(".SH SYNOPSIS\n.B talpa %s\n", options->verb);
    roff(options->usage);
    printf("\n.SH OPTIONS\nEvery flag can also be given in the environment: \\-\\-some\\-flag as TALPA_ARG_SOME_FLAG.\n");
    for (size_t i = 0; i < options->n; ++i) {
        const struct option *option = &options->list[i];
        if (option->kind == OPTION_GROUP) {
            printf(".SS \"");
            roff(option->help);
            printf("\"\n");
            continue;
        }
        char left[160];
        left_text(left, sizeof left, option);
        printf(".TP\n.B ");
        roff(left);
        putchar('\n');
        if (is_later(option)) printf("Not in this version; ");
        roff(option->help);
        if (option->alias && option->alias[0] != '-') {
            printf(" (also \\-\\-");
            roff(option->alias);
            putchar(')');
        }
        if (defaults[i][0]) {
            printf(" [");
            roff(defaults[i]);
            putchar(']');
        }
        putchar('\n');
    }
    printf(".SH SEE ALSO\n.BR talpa (1)\n");
}

void program_print_man(const char *const *names, const char *const *summaries, size_t n)
{
    static const struct {
        const char *name, *meaning;
    } variables[] = {
        {"TALPA_DEVICE", "default device: an index, or part of a platform's or device's name"},
        {"TALPA_CACHE_DIR", "folder for compiled kernels and downloads; else $XDG_CACHE_HOME/talpa, else ~/.cache/talpa"},
        {"TALPA_LOG", "error, warn, info or debug"},
        {"TALPA_ARG_<FLAG>", "value of a flag that the command line does not give"},
        {"TALPA_TIER", "use kernels of one tier only: generic, cpu, x86_avx2, x86_vnni, x86_bf16, x86_amx or clblast"},
        {"TALPA_FUSION", "off: every op has launches of its own"},
        {"TALPA_MAX_ALLOC_BYTES", "split buffers above this size"},
        {"TALPA_MAX_MEMORY_BYTES", "take the device's memory to be no larger than this"},
        {"TALPA_MAX_KERNEL_MS", "bound on a launch's time on a GPU"},
        {"TALPA_KERNEL_DIR", "kernels from this folder instead of the built-in ones"},
        {"POCL_AFFINITY", "1: each thread of PoCL stays on its CPU, as talpa asks for where it may use all CPUs; 0: they move"},
        {"NO_COLOR", "no colours"},
    };
    static const struct {
        int code;
        const char *meaning;
    } codes[] = {{0, "done"},
                 {1, "the work failed"},
                 {2, "wrong flag or combination"},
                 {3, "a check failed, or a loss is not finite"},
                 {65, "malformed or mismatching input"},
                 {66, "input missing"},
                 {69, "no usable OpenCL device"},
                 {70, "a defect of talpa"},
                 {71, "device lost, or out of device or host memory"},
                 {73, "output cannot be created, or another run holds the folder"},
                 {74, "output broke off (disk full)"},
                 {75, "train was asked to stop and has saved"},
                 {130, "interrupted"}};
    heading(NULL, "fine-tunes and runs language models with mixtures of LoRA experts on OpenCL devices");
    printf(".SH SYNOPSIS\n.B talpa\nVERB [options]\n.SH VERBS\n");
    for (size_t i = 0; i < n; ++i) {
        printf(".TP\n.BR talpa\\-%s (1)\n", names[i]);
        roff(summaries[i]);
        putchar('\n');
    }
    printf(".SH ENVIRONMENT\n");
    for (size_t i = 0; i < sizeof variables / sizeof *variables; ++i) {
        printf(".TP\n.B %s\n", variables[i].name);
        roff(variables[i].meaning);
        putchar('\n');
    }
    printf(".SH EXIT STATUS\n");
    for (size_t i = 0; i < sizeof codes / sizeof *codes; ++i) {
        printf(".TP\n.B %d\n", codes[i].code);
        roff(codes[i].meaning);
        putchar('\n');
    }
}

/* ---- completion ---- */

static bool is_path(const char *argument)
{
    static const char *const words[] = {"FILE", "DIR", "PATH", "MODEL"};
    for (size_t i = 0; argument && i < sizeof words / sizeof *words; ++i)
        if (strstr(argument, words[i])) return true;
    return false;
}

void options_print_words(const struct options *options)
{
    for (size_t i = 0; i < options->n; ++i) {
        const struct option *option = &options->list[i];
        if (option->kind == OPTION_GROUP || is_later(option)) continue;
        printf("        '--%s", option->name);
        if (option->letter) printf(" -%c", option->letter);
        if (option->alias) printf(" %s%s", option->alias[0] == '-' ? "" : "--", option->alias);
        putchar('|');
        if (option->kind == OPTION_CHOICE)
            for (const char *c = option->argument; *c; ++c) putchar(*c == '|' ? ' ' : *c);
        else if (takes_value(option))
            printf("%s", is_path(option->argument) ? "@file" : "@value");
        printf("'\n");
    }
}

void program_print_completion(const char *const *names, size_t n, void (*words)(const char *verb))
{
    printf("# bash completion for talpa, made by 'talpa completion' from the flag tables\n"
           "_talpa_table() {\n    local table=()\n    case \"$1\" in\n");
    for (size_t i = 0; i < n; ++i) {
        printf("    %s) table=(\n", names[i]);
        words(names[i]);
        printf("        ) ;;\n");
    }
    printf("    esac\n    [ ${#table[@]} -eq 0 ] || printf '%%s\\n' \"${table[@]}\"\n}\n"
           "_talpa() {\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} line flags values all=\n"
           "    COMPREPLY=()\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        COMPREPLY=($(compgen -W '");
    for (size_t i = 0; i < n; ++i) printf("%s ", names[i]);
    printf("help version --help --version' -- \"$word\"))\n        return\n    fi\n"
           "    while IFS= read -r line; do\n"
           "        flags=${line%%%%|*} values=${line#*|}\n"
           "        all+=\" $flags\"\n"
           "        case \" $flags \" in\n"
           "        *\" $before \"*)\n"
           "            case \"$values\" in\n"
           "            @file) compopt -o filenames 2> /dev/null; COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n"
           "            @value) return ;;\n"
           "            ?*) COMPREPLY=($(compgen -W \"$values\" -- \"$word\")); return ;;\n"
           "            esac ;;\n"
           "        esac\n"
           "    done < <(_talpa_table \"${COMP_WORDS[1]}\")\n"
           "    COMPREPLY=($(compgen -W \"$all\" -- \"$word\"))\n"
           "}\n"
           "complete -F _talpa talpa\n");
}
