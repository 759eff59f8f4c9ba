/* Flags of a verb: one table feeds the command line (popt), the environment (TALPA_ARG_<FLAG>), --config files and --help.
 * Precedence: command line, then environment, then --config, then the value that the target holds when options_parse is called. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
    OPTION_GROUP,     /**< a heading in --help; only `help` is used */
    OPTION_FLAG,      /**< bool *: set to true (environment: 1, true, on, yes or 0, false, off, no) */
    OPTION_INT,       /**< int *, within [min, max] */
    OPTION_REAL,      /**< double *, finite, within [min, max] */
    OPTION_SEED,      /**< uint64_t * */
    OPTION_TEXT,      /**< const char ** */
    OPTION_TEXTS,     /**< struct option_texts *: may be given again and again; the command line replaces the environment's */
    OPTION_CHOICE,    /**< int *: index of the word among those of `argument`, "a|b|c" */
    OPTION_LATER,     /**< known, takes a value, refused as not in this version; `help` says what to do instead */
    OPTION_LATER_FLAG /**< the same without a value */
};

/** Target of OPTION_TEXTS. */
enum { OPTION_TEXTS_MAX = 32 };
struct option_texts {
    const char *text[OPTION_TEXTS_MAX];
    size_t n;
};

enum option_source { OPTION_DEFAULT, OPTION_CONFIG, OPTION_ENVIRONMENT, OPTION_COMMAND_LINE };

struct option {
    enum option_kind kind;
    const char *name;  /**< long name without dashes */
    char letter;       /**< one-letter form, 0: none */
    const char *alias; /**< another long name; a leading '-' makes it work with one dash as well ("-dev"); NULL: none */
    void *target;
    const char *argument; /**< shown in --help; the words of an OPTION_CHOICE */
    const char *help;
    double min, max;           /**< bounds of OPTION_INT and OPTION_REAL */
    bool once;                 /**< giving it twice is an error rather than the last one winning */
    enum option_source source; /**< written by options_parse */
};

enum { OPTIONS_MAX = 128 };

/** The flags of one verb. Strings in the table are borrowed; the texts given on the command line are owned and live until options_free. */
struct options {
    const char *verb;
    const char *usage; /**< what follows "talpa VERB" in the usage line */
    const char *summary;
    struct option list[OPTIONS_MAX];
    size_t n;
    char **owned;
    size_t n_owned;
    char *config; /**< text of the --config file, whose strings the flags point into */
};

/** Appends copies of `n` entries. */
void options_add(struct options *options, const struct option *entries, size_t n);

/** Appends -v, -q and --help, then reads environment and command line (argv[0] is the verb). Returns -1 to go on, else the exit code:
 *  0 after --help, 2 after a message on stderr that names the flag, what was found and what was expected. */
int options_parse(struct options *options, int argc, char **argv);
void options_free(struct options *options);

/** Where a flag's value came from; `name` must be in the table. */
enum option_source options_source(const struct options *options, const char *name);

/** Prints "talpa VERB: message" and where to find help; returns 2. */
int options_fail(const struct options *options, const char *format, ...);

/** The known word nearest to `word` by edit distance or prefix, NULL if none is near. words[n_words] may hold NULLs. */
const char *options_nearest(const char *word, const char *const *words, size_t n_words);

/** For options_config.c: gives a flag a value, as options_parse does (`shown` begins messages); the word of a choice; whether a flag is a
 *  setting rather than a request like --help. */
int options_set(struct options *options, struct option *option, const char *shown, const char *value, enum option_source source);
int options_choice_text(char *text, size_t size, const char *choices, int index);
bool options_is_setting(const struct option *option);

/** Set by -v (more) and -q (less). */
extern int options_verbosity;

#endif
