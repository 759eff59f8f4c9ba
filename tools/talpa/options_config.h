/* Flags from and to a JSON file: one object, a member per flag with '_' for '-' ("learning_rate": 1e-4), comments (// and slash-star)
 * allowed. Values are strings, numbers, true or false, lists of strings for flags that may be repeated; null leaves a flag alone. "verb"
 * and "talpa_version", which a dump begins with, are no flags. */
#ifndef OPTIONS_CONFIG_H
#define OPTIONS_CONFIG_H

#include <stdio.h>

#include "options.h"

/** Sets the flags that neither command line nor environment gave. Returns -1, or an exit code after a message that names file, line and key
 *  (2; 66 if the file cannot be read). The texts live until options_free. */
int options_config_read(struct options *options, const char *path);

/** Writes the present value of every flag as such a file. */
void options_config_write(FILE *file, const struct options *options);

#endif
