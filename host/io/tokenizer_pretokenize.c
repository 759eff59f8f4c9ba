#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer_pretokenize.h"

#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "base/utf8.h"

struct tp_pretokenizer {
    pcre2_code *code;
};

/* Unicode White_Space. PCRE2's own \s under UCP also holds U+180E, which Unicode took out of that property in version 6.3. */
#define SPACE "\\p{Z}\\x09-\\x0D\\x85"

static const struct {
    const char *name, *pattern;
} KNOWN[] = {
    {"gpt-2", "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"},
    /* In one pass: a number character is a piece, and ends the text for the white space before it. */
    {"smollm", "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+|\\p{N}| ?[^" SPACE "\\p{L}\\p{N}]+|[" SPACE "]+(?![^" SPACE "\\p{N}])|[" SPACE "]+"},
};

enum { N_KNOWN = sizeof KNOWN / sizeof KNOWN[0] };

enum talpa_status tp_tokenizer_pretokenize_create(struct tp_pretokenizer **out, const char *name, const char *label)
{
    int which = 0;
    while (which < N_KNOWN && (!name || strcmp(name, KNOWN[which].name) != 0)) which++;
    if (which == N_KNOWN && !name)
        return tp_fail(TALPA_E_DATA,
                       "%s: tokenizer.ggml.pre is missing, expected the name of a pre-tokenizer (gpt-2, smollm); convert the model "
                       "with a newer converter",
                       label);
    if (which == N_KNOWN)
        return tp_fail(TALPA_E_DATA,
                       "%s: tokenizer.ggml.pre is \"%.64s\", expected one of: gpt-2, smollm; another would split text wrongly", label,
                       name);
    int error = 0;
    PCRE2_SIZE where = 0;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)KNOWN[which].pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED,
                                     &error, &where, NULL);
    if (!code)
        return tp_fail(TALPA_E_INTERNAL, "pre-tokenizer %s: PCRE2 error %d at %zu; was PCRE2 built without Unicode?", KNOWN[which].name,
                       error, where);
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without JIT the same code is interpreted */
    struct tp_pretokenizer *p = malloc(sizeof *p);
    if (!p) {
        pcre2_code_free(code);
        return tp_fail_memory("pre-tokenizer", sizeof *p);
    }
    p->code = code;
    *out = p;
    return TALPA_OK;
}

void tp_tokenizer_pretokenize_free(struct tp_pretokenizer *pretokenizer)
{
    if (!pretokenizer) return;
    pcre2_code_free(pretokenizer->code);
    free(pretokenizer);
}

enum talpa_status tp_tokenizer_pretokenize_open(struct tp_pretokenizer_cursor *cursor, const struct tp_pretokenizer *pretokenizer,
                                                const char *text, size_t n_bytes)
{
    struct tp_pretokenizer_cursor c = {.pretokenizer = pretokenizer, .subject = n_bytes ? text : "", .n_bytes = n_bytes};
    c.match = pcre2_match_data_create(1, NULL);
    if (!c.match) return tp_fail_memory("pre-tokenizer", 64);
    for (size_t i = 0, n; i < n_bytes; i += n ? n : 1) {
        uint32_t code_point;
        n = tp_utf8_decode(&code_point, text + i, n_bytes - i);
        if (n > 0) continue;
        if (!c.copy) {
            c.copy = malloc(n_bytes);
            if (!c.copy) {
                tp_tokenizer_pretokenize_close(&c);
                return tp_fail_memory("pre-tokenizer", n_bytes);
            }
            memcpy(c.copy, text, n_bytes);
            c.subject = c.copy;
        }
        /* A control character is in the same class as U+FFFD for every pattern above, and keeps all offsets. */
        c.copy[i] = '\x01';
    }
    *cursor = c;
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_pretokenize_next(size_t *start, size_t *end, struct tp_pretokenizer_cursor *cursor)
{
    const size_t from = cursor->offset;
    if (from == cursor->n_bytes) {
        *start = *end = from;
        return TALPA_OK;
    }
    int rc = 0;
    for (int attempt = 0; attempt < 2; attempt++) {
        /* The text before `from` does not matter to any pattern. */
        const uint32_t options = PCRE2_NO_UTF_CHECK | (attempt ? PCRE2_NO_JIT : 0u);
        rc = pcre2_match(cursor->pretokenizer->code, (PCRE2_SPTR)cursor->subject + from, cursor->n_bytes - from, 0, options, cursor->match,
                         NULL);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT) break;
    }
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(cursor->match);
    if (rc < 0 || span[0] != 0 || span[1] == 0)
        return tp_fail(TALPA_E_INTERNAL, "pre-tokenizer: PCRE2 error %d at byte %zu of %zu", rc, from, cursor->n_bytes);
    *start = from;
    *end = cursor->offset = from + span[1];
    return TALPA_OK;
}

void tp_tokenizer_pretokenize_close(struct tp_pretokenizer_cursor *cursor)
{
    pcre2_match_data_free(cursor->match);
    free(cursor->copy);
    *cursor = (struct tp_pretokenizer_cursor){0};
}
