/* The text of an answer as it grows: where a stop text begins, and how much may be shown already. */
#ifndef TP_STOP_H
#define TP_STOP_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct tp_answer_text {
    char *bytes;               /* [n_bytes], then NUL */
    size_t n_bytes, room;
    size_t n_sent;             /* bytes told to the caller */
    const char *const *stop;   /* borrowed */
    size_t n_stop, longest;    /* bytes of the longest stop text */
};

/** Begins with no text. TALPA_E_ARGUMENT if a stop text is empty. */
enum talpa_status tp_answer_text_create(struct tp_answer_text *out, const char *const *stop, size_t n_stop);
void tp_answer_text_free(struct tp_answer_text *text);

/** Appends bytes. If a stop text is complete now, the text is cut where the first one begins and *stopped is set. */
enum talpa_status tp_answer_text_append(struct tp_answer_text *text, const char *bytes, size_t n_bytes, bool *stopped);

/** Length of the beginning that no later byte can change: not part of a possible stop text, nor of an unfinished UTF-8 character. */
size_t tp_answer_text_certain(const struct tp_answer_text *text);

#endif
