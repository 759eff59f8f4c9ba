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
#define NO_WORD " ?[^" SPACE "\\p{L}\\p{N}]+"
#define SPACES "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define ENDINGS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEAD "[^\\r\\n\\p{L}\\p{N}]?"

#define GPT_2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" NO_WORD "|" SPACES
/* In one pass: a number character is a piece, and ends the text for the white space before it. */
#define DIGITS_FIRST "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+|\\p{N}|" NO_WORD "|[" SPACE "]+(?![^" SPACE "\\p{N}])|[" SPACE "]+"
#define LLAMA_3 ENDINGS "|" LEAD "\\p{L}+|\\p{N}{1,3}|" NO_WORD "[\\r\\n]*|[" SPACE "]*[\\r\\n]+|" SPACES
#define QWEN_2 ENDINGS "|" LEAD "\\p{L}+|\\p{N}|" NO_WORD "[\\r\\n]*|[" SPACE "]*[\\r\\n]+|" SPACES
#define TEKKEN LEAD UPPER "*" LOWER "+|" LEAD UPPER "+" LOWER "*|\\p{N}|" NO_WORD "[\\r\\n/]*|[" SPACE "]*[\\r\\n]+|" SPACES
#define GPT_4O                                                                                                                             \
    LEAD UPPER "*" LOWER "+" ENDINGS "?|" LEAD UPPER "+" LOWER "*" ENDINGS "?|\\p{N}{1,3}|" NO_WORD "[\\r\\n/]*|[" SPACE                   \
               "]*[\\r\\n]+|" SPACES

/* Names as llama.cpp's converter writes them. */
static const struct {
    const char *name, *pattern;
    bool ignores_merges, is_nfc;
} KNOWN[] = {
    {"gpt-2", GPT_2, false, false},         {"phi-2", GPT_2, false, false},
    {"olmo", GPT_2, false, false},          {"mpt", GPT_2, false, false},
    {"smollm", DIGITS_FIRST, false, false}, {"starcoder", DIGITS_FIRST, false, false},
    {"refact", DIGITS_FIRST, false, false}, {"command-r", DIGITS_FIRST, false, false},
    {"exaone", DIGITS_FIRST, false, false}, {"llama-bpe", LLAMA_3, true, false},
    {"llama3", LLAMA_3, true, false},       {"llama-v3", LLAMA_3, true, false},
    {"dbrx", LLAMA_3, false, false},        {"smaug-bpe", LLAMA_3, false, false},
    {"qwen2", QWEN_2, false, true},         {"deepseek-r1-qwen", QWEN_2, false, true},
    {"stablelm2", QWEN_2, false, false},    {"tekken", TEKKEN, true, false},
    {"gpt-4o", GPT_4O, false, false},
};

#define NAMES                                                                                                                              \
    "gpt-2, phi-2, olmo, mpt, smollm, starcoder, refact, command-r, exaone, llama-bpe, llama3, llama-v3, dbrx, smaug-bpe, qwen2, "         \
    "deepseek-r1-qwen, stablelm2, tekken, gpt-4o"

enum { N_KNOWN = sizeof KNOWN / sizeof KNOWN[0] };

static int find(const char *name)
{
    int which = 0;
    while (which < N_KNOWN && (!name || strcmp(name, KNOWN[which].name) != 0)) which++;
    return which;
}

bool tp_tokenizer_pretokenize_ignores_merges(const char *name) { return find(name) < N_KNOWN && KNOWN[find(name)].ignores_merges; }
bool tp_tokenizer_pretokenize_is_nfc(const char *name) { return find(name) < N_KNOWN && KNOWN[find(name)].is_nfc; }

/* The patterns as tokenizer.json files write them. */
#define JSON_TAIL "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define JSON_END "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const struct {
    const char *pattern, *name;
} JSON_PATTERNS[] = {
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2"},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" JSON_TAIL "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" JSON_END, "dbrx"},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" JSON_TAIL "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" JSON_END, "stablelm2"},
    {"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
     "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" JSON_END,
     "tekken"},
    {"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
     "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" JSON_END,
     "gpt-4o"},
};

const char *tp_tokenizer_pretokenize_of_pattern(const char *pattern)
{
    for (size_t i = 0; i < sizeof JSON_PATTERNS / sizeof JSON_PATTERNS[0]; i++)
        if (strcmp(pattern, JSON_PATTERNS[i].pattern) == 0) return JSON_PATTERNS[i].name;
    return NULL;
}

enum talpa_status tp_tokenizer_pretokenize_create(struct tp_pretokenizer **out, const char *name, const char *label)
{
    const int which = find(name);
    if (which == N_KNOWN && !name)
        return tp_fail(TALPA_E_DATA,
                       "%s: tokenizer.ggml.pre is missing, expected the name of a pre-tokenizer (" NAMES
                       "); convert the model with a newer "
                       "converter",
                       label);
    if (which == N_KNOWN)
        return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.pre is \"%.64s\", expected one of: " NAMES "; another would split text wrongly",
                       label, name);
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
