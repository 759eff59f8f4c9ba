/* The lines of a JSONL text: a UTF-8 byte order mark at the start, CRLF and blank lines are passed over. */
#ifndef TP_TEXT_LINES_H
#define TP_TEXT_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tp_text_lines {
    const char *next, *end;
    const char *text; /**< the current line without white space around it; borrowed from the whole text, no NUL after it */
    size_t n_bytes;
    uint64_t number;  /**< of the current line in the whole text, from 1 */
};

/** `text` may be NULL if n_bytes is 0; it outlives the result. */
struct tp_text_lines tp_text_lines_of(const char *text, size_t n_bytes);

/** Goes to the next line that is not blank; false: there is none. */
bool tp_text_lines_next(struct tp_text_lines *lines);

#endif
