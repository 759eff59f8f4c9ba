#include "scoring.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/status.h"
#include "base/utf8.h"

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* ---- numbers ---- */

/* Reads on from `text` with ',' and '$' left out. */
static const char *skip_dropped(const char *text)
{
    while (*text == ',' || *text == '$') text++;
    return text;
}

enum { NUMBER_BYTES = 64 };

/* A number that starts at `text`: its digits into buffer, returns its end; NULL if none starts here. `before` is the character before it.
 */
static const char *number_at(char buffer[NUMBER_BYTES], const char *text, char before)
{
    size_t n = 0;
    const char *c = text;
    bool has_digits = false;
    if (*c == '-') {
        buffer[n++] = '-';
        c = skip_dropped(c + 1);
    }
    while (is_digit(*c)) {
        if (n + 1 < NUMBER_BYTES) buffer[n++] = *c;
        has_digits = true;
        c = skip_dropped(c + 1);
    }
    if (*c == '.' && is_digit(*skip_dropped(c + 1)) && (has_digits || *text == '-' || (before != '.' && !is_digit(before)))) {
        if (n + 1 < NUMBER_BYTES) buffer[n++] = '.';
        for (c = skip_dropped(c + 1); is_digit(*c); c = skip_dropped(c + 1))
            if (n + 1 < NUMBER_BYTES) buffer[n++] = *c;
        has_digits = true;
    }
    buffer[n] = '\0';
    return has_digits ? c : NULL;
}

/* The first number of a text, or its last. */
static bool find_number(char found[NUMBER_BYTES], const char *text, bool last)
{
    char buffer[NUMBER_BYTES], before = '\0';
    bool has_found = false;
    for (const char *c = skip_dropped(text); *c;) {
        const char *end = number_at(buffer, c, before);
        if (end) {
            memcpy(found, buffer, NUMBER_BYTES);
            has_found = true;
            if (!last) return true;
            before = '0';
            c = end;
        } else {
            before = *c;
            c = skip_dropped(c + 1);
        }
    }
    return has_found;
}

bool tp_scoring_number(double *number, char *text, size_t size, const char *output)
{
    char found[NUMBER_BYTES];
    const char *marks = strstr(output, "####");
    if (!(marks && find_number(found, marks + 4, false)) && !find_number(found, output, true)) return false;
    *number = strtod(found, NULL);
    if (size) {
        const size_t n = strlen(found) < size - 1 ? strlen(found) : size - 1;
        memcpy(text, found, n);
        text[n] = '\0';
    }
    return true;
}

bool tp_scoring_number_equal(double a, double b)
{
    /* 1e-3 itself counts, also where the decimal numbers are that far apart only before their rounding to binary. */
    return fabs(a - b) <= 1e-3 + 1e-12 * (1.0 + fabs(a) + fabs(b));
}

bool tp_scoring_is_number(double *number, const char *text)
{
    char buffer[NUMBER_BYTES];
    while (is_space(*text) || *text == ',' || *text == '$') text++;
    const char *end = number_at(buffer, text, '\0');
    if (!end) return false;
    while (is_space(*end) || *end == ',' || *end == '$') end++;
    if (*end) return false;
    *number = strtod(buffer, NULL);
    return true;
}

/* ---- letters ---- */

/* Letters and numbers of any script and the underscore: what Python's \w matches. */
static bool is_word(int32_t c)
{
    if (c == '_') return true;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_NO:
        return true;
    default:
        return false;
    }
}

/* Bytes of the character at `text` and its code point; a malformed byte stands for itself as U+FFFD. */
static size_t next(uint32_t *c, const char *text, size_t n_bytes)
{
    const size_t n = tp_utf8_decode(c, text, n_bytes);
    if (n) return n;
    *c = 0xFFFD;
    return 1;
}

char tp_scoring_generated_letter(const char *output)
{
    const char *marks = strstr(output, "####");
    const char *letter = marks ? strpbrk(marks + 4, "ABCDE") : NULL;
    if (letter) return *letter;
    const size_t n = strlen(output);
    char found = 0;
    bool word_before = false;
    for (size_t i = 0; i < n;) {
        uint32_t c, after = ' ';
        const size_t bytes = next(&c, output + i, n - i);
        if (i + bytes < n) next(&after, output + i + bytes, n - i - bytes);
        if (c >= 'A' && c <= 'E' && !word_before && !is_word((int32_t)after)) found = (char)c;
        word_before = is_word((int32_t)c);
        i += bytes;
    }
    return found;
}

char tp_scoring_first_letter(const char *output, int n_choices)
{
    const char last = (char)('A' + (n_choices > 5 ? n_choices : 5) - 1);
    for (; *output; output++)
        if (*output >= 'A' && *output <= last) return *output;
    return 0;
}

int tp_scoring_best(const double *values, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (values[i] > values[best] || (isnan(values[best]) && !isnan(values[i]))) best = i;
    return best;
}

/* ---- SQuAD ---- */

/* What Python's str.split() splits at. */
static bool is_unicode_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static bool is_punctuation(uint32_t c)
{
    return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
}

static size_t put(char *out, uint32_t c)
{
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)c, (utf8proc_uint8_t *)out);
}

/* Is the word out[first, end) an article? */
static bool is_article(const char *word, size_t n)
{
    return (n == 1 && word[0] == 'a') || (n == 2 && !memcmp(word, "an", 2)) || (n == 3 && !memcmp(word, "the", 3));
}

/* Two passes, since dropping punctuation joins what stood on its sides before articles are looked for. */
enum talpa_status tp_scoring_normalise(char **out, const char *text)
{
    const size_t n = strlen(text);
    char *plain = malloc(4 * n + 1), *result = malloc(4 * n + 1);
    if (!plain || !result) {
        free(plain);
        free(result);
        return tp_fail_memory("a normalised text", 4 * n + 1);
    }
    size_t n_plain = 0, n_result = 0, word = 0;
    for (size_t i = 0; i < n;) {
        uint32_t c;
        i += next(&c, text + i, n - i);
        if (c == 0x130) { /* the one character whose lower case is two */
            n_plain += put(plain + n_plain, 'i');
            c = 0x307;
        }
        c = (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
        if (!is_punctuation(c)) n_plain += put(plain + n_plain, c);
    }
    /* Words in the sense of \b are maximal runs of word characters; an article is a whole run. */
    bool pending = false; /* a blank belongs before the next character */
    for (size_t i = 0; i <= n_plain;) {
        uint32_t c = ' ';
        size_t bytes = 1;
        if (i < n_plain) bytes = next(&c, plain + i, n_plain - i);
        if (i < n_plain && is_word((int32_t)c)) {
            i += bytes;
            continue;
        }
        if (i > word) {
            if (is_article(plain + word, i - word)) {
                pending = true;
            } else {
                if (pending && n_result) result[n_result++] = ' ';
                memcpy(result + n_result, plain + word, i - word);
                n_result += i - word;
                pending = false;
            }
        }
        if (i < n_plain) {
            if (is_unicode_space(c)) {
                pending = true;
            } else {
                if (pending && n_result) result[n_result++] = ' ';
                memcpy(result + n_result, plain + i, bytes);
                n_result += bytes;
                pending = false;
            }
        }
        i += bytes;
        word = i;
    }
    result[n_result] = '\0';
    free(plain);
    *out = result;
    return TALPA_OK;
}

/* Tokens of a normalised text, in place. */
static size_t split(char **tokens, char *text)
{
    size_t n = 0;
    char *state = NULL;
    for (char *token = strtok_r(text, " ", &state); token; token = strtok_r(NULL, " ", &state)) tokens[n++] = token;
    return n;
}

enum talpa_status tp_scoring_f1(double *f1, const char *prediction, const char *reference)
{
    const size_t n_p = strlen(prediction), n_r = strlen(reference);
    char *copy = malloc(n_p + n_r + 2);
    char **p = malloc((n_p + n_r + 2) * sizeof *p);
    if (!copy || !p) {
        free(copy);
        free(p);
        return tp_fail_memory("tokens", (n_p + n_r + 2) * sizeof *p);
    }
    memcpy(copy, prediction, n_p + 1);
    memcpy(copy + n_p + 1, reference, n_r + 1);
    const size_t n_prediction = split(p, copy);
    char **r = p + n_prediction;
    const size_t n_reference = split(r, copy + n_p + 1);
    size_t common = 0;
    for (size_t i = 0; i < n_prediction; i++)
        for (size_t k = 0; k < n_reference; k++)
            if (r[k] && !strcmp(p[i], r[k])) {
                common++;
                r[k] = NULL; /* each token of the reference answers for one of the prediction */
                break;
            }
    *f1 = common ? 2.0 * (double)common / (double)(n_prediction + n_reference) : 0.0;
    free(copy);
    free(p);
    return TALPA_OK;
}

/* ---- texts ---- */

const char *tp_scoring_trim(size_t *n_bytes, const char *text)
{
    while (is_space(*text)) text++;
    size_t n = strlen(text);
    while (n && is_space(text[n - 1])) n--;
    *n_bytes = n;
    return text;
}

static bool goes_on(const char *line, size_t n)
{
    static const char *const words[] = {"def",  "class", "import", "from", "async", "if",      "elif",    "else",   "for",
                                        "while", "try",   "except", "finally", "with",  "return", "global"};
    if (strchr("@#)]}", line[0])) return true;
    size_t end = 0;
    while (end < n && ((line[end] | 32) >= 'a' ? (line[end] | 32) <= 'z' : is_digit(line[end]))) end++;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strlen(words[i]) == end && !memcmp(words[i], line, end) && (end == n || strchr(" \t:({[\"'", line[end]))) return true;
    /* NAME = ..., NAME[..] = ... and the like: one '=' that is no comparison, after nothing but a target. */
    size_t i = 0;
    while (i < n && (line[i] == '_' || line[i] == '.' || line[i] == ',' || line[i] == '[' || line[i] == ']' || is_digit(line[i]) ||
                     ((line[i] | 32) >= 'a' && (line[i] | 32) <= 'z')))
        i++;
    if (i == 0) return false;
    while (i < n && line[i] == ' ') i++;
    if (i < n && strchr("+-*/%", line[i])) i++;
    return i < n && line[i] == '=' && !(i + 1 < n && line[i + 1] == '=');
}

size_t tp_scoring_code(const char *output)
{
    bool has_body = false;
    const char *line = output;
    while (*line) {
        const char *newline = strchr(line, '\n');
        const size_t n = newline ? (size_t)(newline - line) : strlen(line);
        const bool blank = strspn(line, " \t\r") >= n;
        if (!blank && (line[0] == ' ' || line[0] == '\t')) {
            has_body = has_body || line != output; /* the blank before the first line is no indentation */
        } else if (!blank && has_body && !goes_on(line, n)) {
            break;
        }
        line += n + (newline ? 1 : 0);
    }
    return (size_t)(line - output);
}

size_t tp_scoring_before_newline_after_marks(const char *output)
{
    const char *marks = strstr(output, "####");
    const char *newline = marks ? strchr(marks, '\n') : NULL;
    return newline ? (size_t)(newline - output) : strlen(output);
}
