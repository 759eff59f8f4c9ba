#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <popt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options_config.h"
#include "options_doc.h"
#include "output.h"
#include "program.h"

int options_verbosity;

static bool more_flag, less_flag, help_flag, dump_flag;
static const char *config_path;

void options_add(struct options *options, const struct option *entries, size_t n)
{
    for (size_t i = 0; i < n && options->n < OPTIONS_MAX; ++i) options->list[options->n++] = entries[i];
}

int options_fail(const struct options *options, const char *format, ...)
{
    char text[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    program_error("%s: %s", options->verb, text);
    fprintf(stderr, "Try 'talpa %s --help'.\n", options->verb);
    return 2;
}

/* ---- nearest word ---- */

static size_t edit_distance(const char *a, const char *b)
{
    enum { WORD_MAX = 63 };
    size_t row[WORD_MAX + 1];
    const size_t n = strlen(a), m = strlen(b);
    if (n > WORD_MAX || m > WORD_MAX) return WORD_MAX;
    for (size_t j = 0; j <= m; ++j) row[j] = j;
    for (size_t i = 1; i <= n; ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; ++j) {
            const size_t above = row[j];
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best) best = above + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[m];
}

const char *options_nearest(const char *word, const char *const *words, size_t n_words)
{
    const size_t length = strlen(word);
    const char *nearest = NULL;
    size_t least = length / 3 < 2 ? 3 : length / 3 + 1;
    for (size_t i = 0; i < n_words; ++i) {
        if (!words[i]) continue;
        const size_t distance = edit_distance(word, words[i]);
        /* A short word is within reach of any other short word: it has to share most of its letters. */
        if (distance < least && distance < strlen(words[i]) && distance < length) {
            least = distance;
            nearest = words[i];
        }
    }
    for (size_t i = 0; i < n_words && !nearest && length >= 3; ++i)
        if (words[i] && (!strncmp(words[i], word, length) || strstr(words[i], word))) nearest = words[i];
    return nearest;
}

static int fail_unknown(const struct options *options, const char *found)
{
    const char *names[2 * OPTIONS_MAX];
    size_t n = 0;
    for (size_t i = 0; i < options->n; ++i) {
        const struct option *option = &options->list[i];
        if (option->kind == OPTION_GROUP) continue;
        names[n++] = option->name;
        if (option->alias) names[n++] = option->alias[0] == '-' ? option->alias + 1 : option->alias;
    }
    char word[128];
    snprintf(word, sizeof word, "%s", found + strspn(found, "-"));
    word[strcspn(word, "=")] = '\0';
    for (char *c = word; *c; ++c)
        if (*c == '_') *c = '-';
    const char *nearest = options_nearest(word, names, n);
    if (nearest) return options_fail(options, "unknown flag '%s'; did you mean '--%s'?", found, nearest);
    return options_fail(options, "unknown flag '%s'", found);
}

/* ---- values ---- */

/** Index of `word` among "a|b|c", or -1. */
static int choice_index(const char *choices, const char *word)
{
    const size_t length = strlen(word);
    int index = 0;
    for (const char *c = choices; length;) {
        const size_t n = strcspn(c, "|");
        if (n == length && !memcmp(c, word, n)) return index;
        if (!c[n]) break;
        c += n + 1;
        ++index;
    }
    return -1;
}

int options_choice_text(char *text, size_t size, const char *choices, int index)
{
    const char *c = choices;
    for (; index > 0 && *c; --index) {
        c += strcspn(c, "|");
        if (*c) ++c;
    }
    return snprintf(text, size, "%.*s", (int)strcspn(c, "|"), c);
}

static int set_flag(const struct options *options, const struct option *option, const char *shown, const char *value)
{
    static const char *const words[] = {"1", "true", "on", "yes", "0", "false", "off", "no"};
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i)
        if (!value || !strcmp(value, words[i])) {
            *(bool *)option->target = i < 4;
            return -1;
        }
    return options_fail(options, "%s: found '%s', expected 1, true, on, yes, 0, false, off or no", shown, value);
}

static int set_number(const struct options *options, const struct option *option, const char *shown, const char *value)
{
    char *end = NULL;
    errno = 0;
    const bool is_int = option->kind == OPTION_INT;
    const long integer = is_int ? strtol(value, &end, 10) : 0;
    const double real = is_int ? (double)integer : strtod(value, &end);
    if (end == value || *end || errno == ERANGE || !isfinite(real) || isspace((unsigned char)*value) || real < option->min ||
        real > option->max) {
        char bounds[80];
        if (option->max >= 1e9)
            snprintf(bounds, sizeof bounds, "at least %.10g", option->min);
        else
            snprintf(bounds, sizeof bounds, "from %.10g to %.10g", option->min, option->max);
        return options_fail(options, "%s: found '%s', expected %s %s", shown, value, is_int ? "an integer" : "a number", bounds);
    }
    if (is_int)
        *(int *)option->target = (int)integer;
    else
        *(double *)option->target = real;
    return -1;
}

int options_set(struct options *options, struct option *option, const char *shown, const char *value, enum option_source source)
{
    if (option->once && source == OPTION_COMMAND_LINE && option->source == OPTION_COMMAND_LINE)
        return options_fail(options, "%s is given twice; one only in this version", shown);
    const bool is_first = option->source != source;
    option->source = source;
    switch (option->kind) {
    case OPTION_FLAG:
        return set_flag(options, option, shown, value);
    case OPTION_INT:
    case OPTION_REAL:
        return set_number(options, option, shown, value);
    case OPTION_SEED: {
        char *end = NULL;
        errno = 0;
        const unsigned long long seed = strtoull(value, &end, 0);
        if (!isdigit((unsigned char)*value) || *end || errno == ERANGE)
            return options_fail(options, "%s: found '%s', expected an integer from 0 to 18446744073709551615", shown, value);
        *(uint64_t *)option->target = seed;
        return -1;
    }
    case OPTION_TEXT:
        *(const char **)option->target = value;
        return -1;
    case OPTION_TEXTS: {
        struct option_texts *texts = option->target;
        if (is_first) texts->n = 0;
        if (texts->n == OPTION_TEXTS_MAX) return options_fail(options, "%s is given more than %d times", shown, OPTION_TEXTS_MAX);
        texts->text[texts->n++] = value;
        return -1;
    }
    case OPTION_CHOICE: {
        const int index = choice_index(option->argument, value);
        if (index < 0) return options_fail(options, "%s: found '%s', expected one of %s", shown, value, option->argument);
        *(int *)option->target = index;
        return -1;
    }
    case OPTION_LATER:
    case OPTION_LATER_FLAG:
        if (source == OPTION_ENVIRONMENT && !*value) return -1;
        return options_fail(options, "%s is not in this version; %s", shown, option->help);
    case OPTION_GROUP:
        break;
    }
    return -1;
}

static int read_environment(struct options *options)
{
    for (size_t i = 0; i < options->n; ++i) {
        struct option *option = &options->list[i];
        if (option->kind == OPTION_GROUP || option->target == &help_flag) continue;
        char name[96];
        snprintf(name, sizeof name, "TALPA_ARG_%s", option->name);
        for (char *c = name; *c; ++c) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        const char *value = getenv(name);
        if (!value) continue;
        const int code = options_set(options, option, name, value, OPTION_ENVIRONMENT);
        if (code >= 0) return code;
    }
    return -1;
}

/* ---- help ---- */

static void default_text(char *text, size_t size, const struct option *option)
{
    text[0] = '\0';
    switch (option->kind) {
    case OPTION_INT:
        snprintf(text, size, "%d", *(const int *)option->target);
        break;
    case OPTION_REAL:
        snprintf(text, size, "%g", *(const double *)option->target);
        break;
    case OPTION_SEED:
        snprintf(text, size, "%llu", (unsigned long long)*(const uint64_t *)option->target);
        break;
    case OPTION_TEXT:
        if (*(const char *const *)option->target) snprintf(text, size, "%s", *(const char *const *)option->target);
        break;
    case OPTION_CHOICE:
        options_choice_text(text, size, option->argument, *(const int *)option->target);
        break;
    default:
        break;
    }
}

/* ---- command line ---- */

static int read_command_line(struct options *options, int argc, char **argv)
{
    struct poptOption *table = calloc(2 * options->n + 1, sizeof *table);
    options->owned = calloc((size_t)argc + 1, sizeof *options->owned);
    if (!table || !options->owned) {
        free(table);
        return program_fail_memory();
    }
    size_t n = 0;
    for (size_t i = 0; i < options->n; ++i) {
        const struct option *option = &options->list[i];
        if (option->kind == OPTION_GROUP) continue;
        const unsigned type = option->kind == OPTION_FLAG || option->kind == OPTION_LATER_FLAG ? POPT_ARG_NONE : POPT_ARG_STRING;
        table[n++] = (struct poptOption){option->name, option->letter, type, NULL, (int)i + 1, NULL, NULL};
        if (option->alias) {
            const bool one_dash = option->alias[0] == '-';
            table[n++] = (struct poptOption){
                option->alias + one_dash, '\0', type | (one_dash ? POPT_ARGFLAG_ONEDASH : 0), NULL, (int)i + 1, NULL, NULL};
        }
    }
    poptContext context = poptGetContext("talpa", argc, (const char **)argv, table, POPT_CONTEXT_NO_EXEC);
    int code = -1, value = 0;
    while (code < 0 && (value = poptGetNextOpt(context)) > 0) {
        struct option *option = &options->list[value - 1];
        char shown[80];
        snprintf(shown, sizeof shown, "--%s", option->name);
        char *text = poptGetOptArg(context);
        if (text) options->owned[options->n_owned++] = text;
        code = options_set(options, option, shown, text, OPTION_COMMAND_LINE);
    }
    if (code < 0 && value < -1) {
        const char *bad = poptBadOption(context, POPT_BADOPTION_NOALIAS);
        if (value == POPT_ERROR_BADOPT)
            code = fail_unknown(options, bad);
        else if (value == POPT_ERROR_NOARG)
            code = options_fail(options, "%s needs a value", bad);
        else
            code = options_fail(options, "%s: %s", bad, poptStrerror(value));
    }
    if (code < 0 && !help_flag) {
        const char *rest = poptGetArg(context);
        if (rest) code = options_fail(options, "unexpected argument '%s'", rest);
    }
    poptFreeContext(context);
    free(table);
    return code;
}

int options_parse(struct options *options, int argc, char **argv)
{
    const struct option common[] = {
        {.kind = OPTION_GROUP, .help = "General"},
        {.kind = OPTION_FLAG, .name = "verbose", .letter = 'v', .target = &more_flag, .help = "say more on stderr"},
        {.kind = OPTION_FLAG, .name = "quiet", .letter = 'q', .target = &less_flag, .help = "errors only on stderr"},
        {.kind = OPTION_TEXT, .name = "config", .target = &config_path, .argument = "FILE",
         .help = "flags from a JSON file, some_flag for --some-flag; command line and environment win"},
        {.kind = OPTION_FLAG, .name = "dump-config", .target = &dump_flag, .help = "print all flags as such a file and stop"},
        {.kind = OPTION_FLAG, .name = "help", .letter = 'h', .target = &help_flag, .help = "show this text"},
    };
    options_add(options, common, sizeof common / sizeof *common);
    options_default defaults[OPTIONS_MAX];
    for (size_t i = 0; i < options->n; ++i) default_text(defaults[i], sizeof defaults[i], &options->list[i]);
    if (options_document != OPTIONS_PARSE) {
        if (options_document == OPTIONS_MAN) options_print_man(options, defaults);
        else options_print_words(options);
        return output_flush_stdout();
    }
    int code = read_environment(options);
    if (code < 0) code = read_command_line(options, argc, argv);
    if (code < 0 && config_path && !help_flag) code = options_config_read(options, config_path);
    options_verbosity = less_flag ? -1 : more_flag ? 1 : 0;
    if (code < 0 && help_flag) {
        options_print_help(options, defaults);
        code = output_flush_stdout();
    }
    if (code < 0 && dump_flag) {
        options_config_write(stdout, options);
        code = output_flush_stdout();
    }
    return code;
}

bool options_is_setting(const struct option *option)
{
    /* A profile is asked of one run; its file would be overwritten by every run that goes by the saved settings. */
    return option->target != &help_flag && option->target != &dump_flag && option->target != &config_path && strcmp(option->name, "profile");
}

void options_free(struct options *options)
{
    free(options->config);
    options->config = NULL;
    for (size_t i = 0; i < options->n_owned; ++i) free(options->owned[i]);
    free(options->owned);
    options->owned = NULL;
    options->n_owned = 0;
}

enum option_source options_source(const struct options *options, const char *name)
{
    for (size_t i = 0; i < options->n; ++i)
        if (options->list[i].name && !strcmp(options->list[i].name, name)) return options->list[i].source;
    return OPTION_DEFAULT;
}
