#include "tokenizer_bpe.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "base/utf8.h"

struct tp_bpe_pair {
    uint64_t key;   /* left << 32 | right */
    uint32_t merge; /* NO_MERGE: the slot is free */
};

struct tp_bpe_symbol {
    int32_t id; /* UNKNOWN or DEAD if negative */
    uint32_t previous, next;
};

#define NO_MERGE UINT32_MAX
#define NO_SYMBOL UINT32_MAX

enum { UNKNOWN = -1, DEAD = -2 };

static bool is_own_char(unsigned c) { return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255); }

static unsigned byte_code_point(unsigned char byte)
{
    if (is_own_char(byte)) return byte;
    unsigned n = 0;
    for (unsigned b = 0; b < byte; b++) n += !is_own_char(b);
    return 256 + n;
}

size_t tp_tokenizer_bpe_byte_char(char out[2], unsigned char byte)
{
    const unsigned c = byte_code_point(byte);
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(unsigned char)(0xC0 | c >> 6);
    out[1] = (char)(unsigned char)(0x80 | (c & 0x3F));
    return 2;
}

static int byte_of_code_point(unsigned c)
{
    if (c < 256) return is_own_char(c) ? (int)c : -1;
    unsigned n = c - 256;
    for (unsigned b = 0; b < 256; b++)
        if (!is_own_char(b) && n-- == 0) return (int)b;
    return -1;
}

size_t tp_tokenizer_bpe_unescape(char *out, struct tp_text text)
{
    const unsigned char *s = (const unsigned char *)text.bytes;
    size_t n = 0;
    for (size_t i = 0; i < text.n_bytes;) {
        unsigned c = s[i++];
        if (c >= 0x80) {
            if (c < 0xC2 || c > 0xDF || i == text.n_bytes || (s[i] & 0xC0) != 0x80) return (size_t)-1;
            c = (c & 0x1F) << 6 | (s[i++] & 0x3F);
        }
        const int byte = byte_of_code_point(c);
        if (byte < 0) return (size_t)-1;
        out[n++] = (char)(unsigned char)byte;
    }
    return n;
}

static size_t slot_of(const struct tp_bpe *bpe, uint64_t key)
{
    uint64_t h = key;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u; /* all bits of both ids reach the low bits */
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    size_t i = (size_t)(h ^ h >> 32) & (bpe->n_slots - 1);
    while (bpe->pairs[i].merge != NO_MERGE && bpe->pairs[i].key != key) i = (i + 1) & (bpe->n_slots - 1);
    return i;
}

static uint32_t find_merge(const struct tp_bpe *bpe, int32_t left, int32_t right)
{
    if (left < 0 || right < 0 || bpe->n_merges == 0) return NO_MERGE;
    return bpe->pairs[slot_of(bpe, (uint64_t)(uint32_t)left << 32 | (uint32_t)right)].merge;
}

static enum talpa_status add_merge(struct tp_bpe *bpe, const struct tp_map *vocabulary, struct tp_text merge, uint32_t rank,
                                   const char *label)
{
    const int shown = merge.n_bytes < 80 ? (int)merge.n_bytes : 80;
    const char *space = merge.n_bytes ? memchr(merge.bytes, ' ', merge.n_bytes) : NULL;
    const size_t n_left = space ? (size_t)(space - merge.bytes) : 0, n_right = space ? merge.n_bytes - n_left - 1 : 0;
    if (n_left == 0 || n_right == 0 || memchr(space + 1, ' ', n_right))
        return tp_fail(TALPA_E_DATA, "%s: tokenizer merge %u is \"%.*s\", expected two tokens with one space between", label, rank, shown,
                       merge.bytes);
    int64_t left = -1, right = -1, whole = -1;
    char small[256];
    char *joined = merge.n_bytes <= sizeof small ? small : malloc(merge.n_bytes);
    if (!joined) return tp_fail_memory("tokenizer merges", merge.n_bytes);
    memcpy(joined, merge.bytes, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    const bool known = tp_map_get(&left, vocabulary, merge.bytes, n_left) && tp_map_get(&right, vocabulary, space + 1, n_right) &&
                       tp_map_get(&whole, vocabulary, joined, n_left + n_right);
    if (joined != small) free(joined);
    if (!known)
        return tp_fail(TALPA_E_DATA, "%s: tokenizer merge %u \"%.*s\": its parts and their joined text must be tokens, one is not", label,
                       rank, shown, merge.bytes);
    const uint64_t key = (uint64_t)left << 32 | (uint32_t)right;
    struct tp_bpe_pair *pair = &bpe->pairs[slot_of(bpe, key)];
    bpe->merged[rank] = (int32_t)whole;
    if (pair->merge == NO_MERGE) *pair = (struct tp_bpe_pair){key, rank}; /* a pair named twice keeps its lower rank */
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_bpe_build(struct tp_bpe *bpe, const struct tp_map *vocabulary, const struct tp_text *merges, size_t n_merges,
                                         const char *label)
{
    *bpe = (struct tp_bpe){0};
    if (n_merges >= INT32_MAX / 2) return tp_fail(TALPA_E_DATA, "%s: %zu tokenizer merges, expected less than 2^30", label, n_merges);
    for (int b = 0; b < 256; b++) {
        char text[2];
        int64_t id = -1;
        const size_t n = tp_tokenizer_bpe_byte_char(text, (unsigned char)b);
        bpe->byte_id[b] = tp_map_get(&id, vocabulary, text, n) ? (int32_t)id : UNKNOWN;
    }
    if (n_merges == 0) return TALPA_OK;
    struct tp_bpe built = *bpe;
    built.n_slots = 16;
    while (built.n_slots < 2 * n_merges) built.n_slots *= 2;
    built.pairs = malloc(built.n_slots * sizeof *built.pairs);
    built.merged = malloc(n_merges * sizeof *built.merged);
    enum talpa_status status = TALPA_OK;
    if (!built.pairs || !built.merged) {
        status = tp_fail_memory("tokenizer merges", built.n_slots * sizeof *built.pairs);
        goto done;
    }
    for (size_t i = 0; i < built.n_slots; i++) built.pairs[i] = (struct tp_bpe_pair){0, NO_MERGE};
    for (size_t i = 0; i < n_merges; i++) TP_TRY_GOTO(status, add_merge(&built, vocabulary, merges[i], (uint32_t)i, label), done);
    built.n_merges = (uint32_t)n_merges;
done:
    if (status == TALPA_OK) {
        *bpe = built;
    } else {
        free(built.pairs);
        free(built.merged);
        *bpe = (struct tp_bpe){0};
    }
    return status;
}

void tp_tokenizer_bpe_free(struct tp_bpe *bpe)
{
    free(bpe->pairs);
    free(bpe->merged);
    *bpe = (struct tp_bpe){0};
}

enum talpa_status tp_tokenizer_bpe_push(struct tp_id_list *list, int32_t id)
{
    if (list->n_ids == list->capacity) {
        const size_t capacity = list->capacity ? 2 * list->capacity : 64;
        int32_t *ids = realloc(list->ids, capacity * sizeof *ids);
        if (!ids) return tp_fail_memory("token ids", capacity * sizeof *ids);
        list->ids = ids;
        list->capacity = capacity;
    }
    list->ids[list->n_ids++] = id;
    return TALPA_OK;
}

void tp_tokenizer_bpe_scratch_free(struct tp_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (struct tp_bpe_scratch){0};
}

static enum talpa_status scratch_reserve(struct tp_bpe_scratch *scratch, size_t n)
{
    if (n <= scratch->capacity) return TALPA_OK;
    size_t capacity = scratch->capacity ? scratch->capacity : 256;
    while (capacity < n) capacity *= 2;
    tp_tokenizer_bpe_scratch_free(scratch);
    /* Each of at most n merges adds two pairs to the n - 1 of the start. */
    scratch->symbols = malloc(capacity * sizeof *scratch->symbols);
    scratch->heap = malloc(3 * capacity * sizeof *scratch->heap);
    if (!scratch->symbols || !scratch->heap) {
        tp_tokenizer_bpe_scratch_free(scratch);
        return tp_fail_memory("tokenizer", capacity * (sizeof *scratch->symbols + 3 * sizeof *scratch->heap));
    }
    scratch->capacity = capacity;
    return TALPA_OK;
}

/* Binary heap of rank << 32 | position: its smallest is the lowest rank and, of equals, the leftmost. */
static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    const uint64_t value = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (value <= heap[child]) break;
        heap[i] = heap[child];
    }
    heap[i] = value;
}

void tp_tokenizer_bpe_heap_push(uint64_t *heap, size_t *n, uint64_t value)
{
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > value; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = value;
}

uint64_t tp_tokenizer_bpe_heap_pop(uint64_t *heap, size_t *n)
{
    const uint64_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0) sift_down(heap, *n, 0);
    return top;
}

static void push_pair(const struct tp_bpe *bpe, const struct tp_bpe_symbol *symbols, uint64_t *heap, size_t *n, uint32_t left)
{
    const uint32_t rank = find_merge(bpe, symbols[left].id, symbols[symbols[left].next].id);
    if (rank != NO_MERGE) tp_tokenizer_bpe_heap_push(heap, n, (uint64_t)rank << 32 | left);
}

/* Merges the symbols 0..n-1 of the scratch, which are linked, and appends what is left. */
static enum talpa_status merge_all(struct tp_id_list *out, struct tp_bpe_scratch *scratch, const struct tp_bpe *bpe, uint32_t n)
{
    struct tp_bpe_symbol *symbols = scratch->symbols;
    uint64_t *heap = scratch->heap;
    size_t n_heap = 0;
    for (uint32_t i = 0; i + 1 < n; i++) push_pair(bpe, symbols, heap, &n_heap, i);
    while (n_heap > 0) {
        const uint64_t top = tp_tokenizer_bpe_heap_pop(heap, &n_heap);
        const uint32_t rank = (uint32_t)(top >> 32), left = (uint32_t)top;
        const uint32_t right = symbols[left].id == DEAD ? NO_SYMBOL : symbols[left].next;
        /* Entries are not removed when a neighbour changes: one whose pair is no longer the same is stale. */
        if (right == NO_SYMBOL || find_merge(bpe, symbols[left].id, symbols[right].id) != rank) continue;
        symbols[left].id = bpe->merged[rank];
        symbols[left].next = symbols[right].next;
        symbols[right].id = DEAD;
        if (symbols[left].next != NO_SYMBOL) {
            symbols[symbols[left].next].previous = left;
            push_pair(bpe, symbols, heap, &n_heap, left);
        }
        if (symbols[left].previous != NO_SYMBOL) push_pair(bpe, symbols, heap, &n_heap, symbols[left].previous);
    }
    for (uint32_t i = 0; i != NO_SYMBOL; i = symbols[i].next)
        if (symbols[i].id >= 0) TP_TRY(tp_tokenizer_bpe_push(out, symbols[i].id));
    return TALPA_OK;
}

static void link_symbols(struct tp_bpe_symbol *symbols, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        symbols[i].previous = i ? i - 1 : NO_SYMBOL;
        symbols[i].next = i + 1 < n ? i + 1 : NO_SYMBOL;
    }
}

enum talpa_status tp_tokenizer_bpe_word(struct tp_id_list *out, struct tp_bpe_scratch *scratch, const struct tp_bpe *bpe, const char *word,
                                        size_t n_bytes)
{
    if (n_bytes == 0) return TALPA_OK;
    TP_TRY(scratch_reserve(scratch, n_bytes));
    for (size_t i = 0; i < n_bytes; i++) scratch->symbols[i].id = bpe->byte_id[(unsigned char)word[i]];
    link_symbols(scratch->symbols, (uint32_t)n_bytes);
    return merge_all(out, scratch, bpe, (uint32_t)n_bytes);
}

enum talpa_status tp_tokenizer_bpe_chars(struct tp_id_list *out, struct tp_bpe_scratch *scratch, const struct tp_bpe *bpe,
                                         const struct tp_map *vocabulary, int32_t unk, bool fuses_unk, const char *word, size_t n_bytes)
{
    if (n_bytes == 0) return TALPA_OK;
    TP_TRY(scratch_reserve(scratch, n_bytes));
    struct tp_bpe_symbol *symbols = scratch->symbols;
    uint32_t n = 0;
    for (size_t i = 0, length; i < n_bytes; i += length) {
        uint32_t code_point;
        int64_t id;
        length = tp_utf8_decode(&code_point, word + i, n_bytes - i);
        const bool is_known = length > 0 && tp_map_get(&id, vocabulary, word + i, length);
        if (length == 0) length = 1;
        if (is_known) {
            symbols[n++].id = (int32_t)id;
        } else if (bpe->has_byte_tokens) {
            for (size_t k = 0; k < length; k++) symbols[n++].id = bpe->byte_id[(unsigned char)word[i + k]];
        } else if (!(fuses_unk && n > 0 && symbols[n - 1].id == unk)) {
            symbols[n++].id = unk;
        }
    }
    link_symbols(symbols, n);
    return merge_all(out, scratch, bpe, n);
}
