/* What is made from the flag tables: --help, manual pages, shell completion. */
#ifndef OPTIONS_DOC_H
#define OPTIONS_DOC_H

#include "options.h"

/** What options_parse makes of a table; anything but OPTIONS_PARSE prints on stdout and ends the verb with code 0. */
enum options_document { OPTIONS_PARSE, OPTIONS_MAN, OPTIONS_WORDS };
extern enum options_document options_document;

/** The value that each flag has before the command line is read, for printing; "" if there is none to show. */
typedef char options_default[64];

void options_print_help(const struct options *options, options_default *defaults);
/** A manual page in man(7) macros, section 1. */
void options_print_man(const struct options *options, options_default *defaults);
/** One line per flag: its spellings, then after a tab the words it takes ("a b c"), "FILE" or nothing. For the completion script. */
void options_print_words(const struct options *options);

/** The manual page of the program itself and its completion script for bash. names[n], summaries[n]: the verbs; `words` prints one verb's
 *  flags. */
void program_print_man(const char *const *names, const char *const *summaries, size_t n);
void program_print_completion(const char *const *names, size_t n, void (*words)(const char *verb));

#endif
