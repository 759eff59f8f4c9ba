/* Rules that turn an output into a prediction and judge it. Pure functions of texts: no allocation unless stated, no state. */
#ifndef TP_SCORING_H
#define TP_SCORING_H

#include <stdbool.h>
#include <stddef.h>

#include "talpa/status.h"

/** The number after the first "####", else the last of the text, ',' and '$' dropped. A number is -?digits[.digits] or -?.digits. *number
 *  is the value; `text` (room for `size` bytes, cut if longer) its digits as found. False if there is none. */
bool tp_scoring_number(double *number, char *text, size_t size, const char *output);

/** Both are numbers and at most 1e-3 apart (the tolerance of LLM-Adapters' evaluate.py). */
bool tp_scoring_number_equal(double a, double b);

/** A whole text is one number (spaces around it, ',' and '$' allowed). */
bool tp_scoring_is_number(double *number, const char *text);

/** The first A-E after the first "####", else the last A-E with no letter, digit or underscore beside it; 0 if there is none. */
char tp_scoring_generated_letter(const char *output);

/** The first letter A.. of the text, A-E or as far as n_choices goes; 0 if there is none. */
char tp_scoring_first_letter(const char *output, int n_choices);

/** Index of the greatest of n values, the earlier of equals; n >= 1. A NaN is never the greatest unless all are. */
int tp_scoring_best(const double *values, int n);

/** SQuAD's normalisation (evaluate-v1.1.py): lower case, ASCII punctuation dropped, the articles a, an, the replaced by a blank, white
 *  space made single blanks. *out is freed by the caller with free(). TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_scoring_normalise(char **out, const char *text);

/** Token F1 of two normalised texts: 0 without a common token. TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_scoring_f1(double *f1, const char *prediction, const char *reference);

/** The text without white space at its ends, as a range of it. */
const char *tp_scoring_trim(size_t *n_bytes, const char *text);

/** Bytes of the output that belong to its code: up to the first unindented line that follows an indented one and does not go on with code
 *  (def, class, import, from, @, #, if, for, while, try, with, their branches, a closing bracket, an assignment). */
size_t tp_scoring_code(const char *output);

/** The bytes of `output` before the newline that follows its first "####"; all if there is none. */
size_t tp_scoring_before_newline_after_marks(const char *output);

#endif
