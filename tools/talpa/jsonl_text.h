/* The one thing that `tokenize --jsonl` needs of JSON: the member "text" of a line. */
#ifndef JSONL_TEXT_H
#define JSONL_TEXT_H

#include <stddef.h>

/** Finds the string member "text" of the object in line[n_bytes] (RFC 8259; the last one if repeated). *text (malloc, *n_text bytes) is
 * written on success only. Returns NULL, or what is wrong with the line. */
const char *jsonl_text_read(char **text, size_t *n_text, const char *line, size_t n_bytes);

#endif
