/* The known word that a wrong one was probably meant to be, for messages. */
#ifndef TP_NEAREST_H
#define TP_NEAREST_H

#include <stddef.h>

/** Letters inserted, deleted or replaced between two words (Levenshtein distance). INT_MAX for words above 63 bytes. */
int tp_nearest_distance(const char *a, const char *b);

/** The word with the least distance to `word`, the first of several; at most `limit` away, else NULL. Borrowed. */
const char *tp_nearest_word(const char *word, const char *const *words, size_t n_words, int limit);

#endif
