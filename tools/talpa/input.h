/* Reading a whole file or standard input. */
#ifndef INPUT_H
#define INPUT_H

#include <stddef.h>

/** Reads the file, or standard input for NULL and "-", into *text (malloc, a NUL after *n_bytes bytes). Returns -1, or 66, 71 or 74 after a
 *  message. */
int input_read(char **text, size_t *n_bytes, const char *path);
/** The path for messages: "standard input" for NULL and "-". */
const char *input_name(const char *path);

#endif
