#include "tokenizer_normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/status.h"
#include "base/utf8.h"

enum { MARK_BYTES = 3 };

/* A unit of a Darts double array (darts-clone): where a node's children start, its label, and whether it has a value. */
static uint32_t unit_offset(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }
static uint32_t unit_label(uint32_t unit) { return unit & (1u << 31 | 0xFFu); }
static bool unit_has_leaf(uint32_t unit) { return unit >> 8 & 1u; }

enum talpa_status tp_tokenizer_normalize_build(struct tp_normalizer *out, struct tp_arena *arena, const struct tp_normalizer_rules *rules,
                                               const char *label)
{
    struct tp_normalizer built = {.rules = *rules};
    built.rules.charsmap = NULL;
    if (rules->charsmap && rules->n_charsmap_bytes > 0) {
        const uint8_t *bytes = rules->charsmap;
        const size_t n = rules->n_charsmap_bytes;
        uint32_t n_trie = 0;
        for (int i = 0; n > 4 && i < 4; i++) n_trie |= (uint32_t)bytes[i] << 8 * i;
        if (n_trie == 0 || n_trie % 4 != 0 || n_trie >= n - 4 || bytes[n - 1] != 0)
            return tp_fail(TALPA_E_DATA, "%s: precompiled_charsmap of %zu bytes is malformed, expected a trie and texts that end with NUL",
                           label, n);
        built.n_units = n_trie / 4;
        uint32_t *units = tp_arena_array(arena, built.n_units, sizeof *units);
        char *targets = tp_arena_alloc(arena, n - 4 - n_trie);
        if (!units || !targets) return TALPA_E_DEVICE;
        for (size_t i = 0; i < n_trie; i++) units[i / 4] |= (uint32_t)bytes[4 + i] << 8 * (i % 4);
        built.n_target_bytes = n - 4 - n_trie;
        memcpy(targets, bytes + 4 + n_trie, built.n_target_bytes);
        built.units = units;
        built.targets = targets;
    }
    *out = built;
    return TALPA_OK;
}

bool tp_tokenizer_normalize_is_identity(const struct tp_normalizer *normalizer)
{
    const struct tp_normalizer_rules *r = &normalizer->rules;
    return !r->is_nfc && !r->escapes_spaces && !r->removes_extra_whitespace && r->prefix == TP_PREFIX_NONE && !r->replaces_malformed &&
           !normalizer->units;
}

/* The longest key of the character map that `text` starts with: its bytes and its replacement; 0 if there is none. */
static size_t find_mapped(struct tp_text *target, const struct tp_normalizer *z, const char *text, size_t n_bytes)
{
    size_t longest = 0, node = unit_offset(z->units[0]);
    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char c = (unsigned char)text[i];
        node ^= c;
        if (node >= z->n_units || unit_label(z->units[node]) != c) break;
        const uint32_t unit = z->units[node];
        node ^= unit_offset(unit);
        if (node >= z->n_units) break;
        if (!unit_has_leaf(unit)) continue;
        const uint32_t value = z->units[node] & 0x7FFFFFFFu;
        if (value >= z->n_target_bytes) break;
        longest = i + 1;
        target->bytes = z->targets + value;
        target->n_bytes = strlen(target->bytes);
    }
    return longest;
}

/* Steps over one unit of the text (a user's symbol, a mapped sequence or a character) and gives what stands in its place. */
static size_t next_part(struct tp_text *part, const struct tp_normalizer *z, const struct tp_marks *user, const char *text, size_t n_bytes)
{
    const struct tp_mark *mark = user && user->n ? tp_tokenizer_marks_at(user, text, n_bytes, true) : NULL;
    if (mark) {
        *part = (struct tp_text){text, mark->text.n_bytes};
        return mark->text.n_bytes;
    }
    const size_t n_mapped = z->units ? find_mapped(part, z, text, n_bytes) : 0;
    if (n_mapped) return n_mapped;
    uint32_t code_point;
    const size_t n = tp_utf8_decode(&code_point, text, n_bytes);
    if (n == 0 && z->rules.replaces_malformed)
        *part = (struct tp_text){"\xef\xbf\xbd", 3};
    else
        *part = (struct tp_text){text, n ? n : 1};
    return n ? n : 1;
}

struct buffer {
    char *bytes;
    size_t n, capacity;
};

static enum talpa_status append(struct buffer *b, const char *bytes, size_t n)
{
    if (b->capacity - b->n < n) {
        const size_t capacity = 2 * b->capacity + n;
        char *larger = realloc(b->bytes, capacity);
        if (!larger) return tp_fail_memory("normalised text", capacity);
        b->bytes = larger;
        b->capacity = capacity;
    }
    memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
    return TALPA_OK;
}

static enum talpa_status append_escaped(struct buffer *b, const struct tp_normalizer_rules *r, struct tp_text part)
{
    if (!r->escapes_spaces) return append(b, part.bytes, part.n_bytes);
    for (size_t i = 0; i < part.n_bytes; i++)
        TP_TRY(part.bytes[i] == ' ' ? append(b, TP_SPACE_MARK, MARK_BYTES) : append(b, part.bytes + i, 1));
    return TALPA_OK;
}

static bool ends_with_space(const struct buffer *b, const struct tp_normalizer_rules *r)
{
    if (!r->escapes_spaces) return b->n > 0 && b->bytes[b->n - 1] == ' ';
    return b->n >= MARK_BYTES && memcmp(b->bytes + b->n - MARK_BYTES, TP_SPACE_MARK, MARK_BYTES) == 0;
}

static enum talpa_status apply(struct buffer *b, const struct tp_normalizer *z, const struct tp_marks *user, const char *text,
                               size_t n_bytes, bool has_prefix)
{
    const struct tp_normalizer_rules *r = &z->rules;
    size_t at = 0;
    struct tp_text part = {"", 0};
    while (r->removes_extra_whitespace && at < n_bytes) {
        const size_t n = next_part(&part, z, user, text + at, n_bytes - at);
        if (part.n_bytes != 1 || part.bytes[0] != ' ') break;
        at += n;
    }
    if (at == n_bytes) return TALPA_OK;
    const bool starts_with_space = text[at] == ' ' || (n_bytes - at >= MARK_BYTES && memcmp(text + at, TP_SPACE_MARK, MARK_BYTES) == 0);
    if (has_prefix && !(r->is_prefix_conditional && starts_with_space)) TP_TRY(append_escaped(b, r, (struct tp_text){" ", 1}));
    bool after_space = r->removes_extra_whitespace;
    while (at < n_bytes) {
        at += next_part(&part, z, user, text + at, n_bytes - at);
        for (; after_space && part.n_bytes > 0 && part.bytes[0] == ' '; part.n_bytes--) part.bytes++;
        if (part.n_bytes > 0) {
            TP_TRY(append_escaped(b, r, part));
            after_space = r->removes_extra_whitespace && part.bytes[part.n_bytes - 1] == ' ';
        }
    }
    while (r->removes_extra_whitespace && ends_with_space(b, r)) b->n -= r->escapes_spaces ? MARK_BYTES : 1;
    return TALPA_OK;
}

/* Form C of the well-formed stretches; bytes that are not UTF-8 stay where they are. *out is NULL if the text is in form C as it stands
 * for being ASCII. */
static enum talpa_status compose(char **out, size_t *n_out, const char *text, size_t n_bytes)
{
    size_t i = 0;
    while (i < n_bytes && (unsigned char)text[i] < 0x80) i++;
    if (i == n_bytes) return TALPA_OK;
    struct buffer b = {malloc(n_bytes + 1), 0, n_bytes + 1};
    if (!b.bytes) return tp_fail_memory("normalised text", n_bytes + 1);
    enum talpa_status status = TALPA_OK;
    for (size_t from = 0; status == TALPA_OK && from < n_bytes;) {
        size_t to = from;
        uint32_t code_point;
        for (size_t n; to < n_bytes && (n = tp_utf8_decode(&code_point, text + to, n_bytes - to)) > 0; to += n) continue;
        if (to == from) {
            status = append(&b, text + from++, 1);
            continue;
        }
        utf8proc_uint8_t *composed = NULL;
        const utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text + from, (utf8proc_ssize_t)(to - from), &composed,
                                                UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        status = n < 0 ? tp_fail_memory("normalised text", to - from) : append(&b, (const char *)composed, (size_t)n);
        free(composed);
        from = to;
    }
    if (status != TALPA_OK) {
        free(b.bytes);
        return status;
    }
    *out = b.bytes;
    *n_out = b.n;
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_normalize(char **out, size_t *n_out, const struct tp_normalizer *normalizer, const struct tp_marks *user,
                                         const char *text, size_t n_bytes, bool has_prefix)
{
    char *composed = NULL;
    size_t n = n_bytes;
    if (normalizer->rules.is_nfc) TP_TRY(compose(&composed, &n, text, n_bytes));
    struct buffer b = {malloc(n + n / 4 + 8), 0, n + n / 4 + 8};
    enum talpa_status status =
        b.bytes ? apply(&b, normalizer, user, composed ? composed : text, n, has_prefix) : tp_fail_memory("normalised text", n + n / 4 + 8);
    free(composed);
    if (status != TALPA_OK) {
        free(b.bytes);
        return status;
    }
    *out = b.bytes;
    *n_out = b.n;
    return TALPA_OK;
}
