#include "tokenizer_spm.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "base/utf8.h"

#define NO_SYMBOL UINT32_MAX
#define NO_PIECE (-1)

enum { TYPE_UNUSED = 5, MAX_SPLIT_DEPTH = 64 };

struct symbol {
    uint32_t start, n_bytes; /* n_bytes 0: merged into another */
    uint32_t previous, next;
    bool is_frozen;
};

/* Working memory of one text. */
struct work {
    const struct tp_spm *spm;
    const char *text;
    struct symbol *symbols;
    uint64_t *heap;
    size_t n_heap;
    struct tp_map splits; /* unused piece -> bytes of its left part */
};

uint32_t tp_tokenizer_spm_rank(float score)
{
    uint32_t bits;
    const float f = score == 0.0f ? 0.0f : score; /* -0 is 0 */
    memcpy(&bits, &f, sizeof bits);
    /* Ascending order of floats as integers, then turned round. */
    return ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}

static int32_t find_piece(const struct tp_spm *spm, const char *text, size_t n_bytes)
{
    int64_t id;
    if (n_bytes > spm->n_max_bytes || !tp_map_get(&id, spm->pieces, text, n_bytes)) return NO_PIECE;
    return (int32_t)id;
}

/* The piece that a symbol and its right neighbour make, or NO_PIECE. */
static int32_t joined(const struct work *w, uint32_t left)
{
    const struct symbol *l = &w->symbols[left];
    if (left == NO_SYMBOL || l->n_bytes == 0 || l->is_frozen || l->next == NO_SYMBOL || w->symbols[l->next].is_frozen) return NO_PIECE;
    return find_piece(w->spm, w->text + l->start, (size_t)l->n_bytes + w->symbols[l->next].n_bytes);
}

static enum talpa_status push_pair(struct work *w, uint32_t left)
{
    if (left == NO_SYMBOL) return TALPA_OK;
    const int32_t id = joined(w, left);
    if (id == NO_PIECE) return TALPA_OK;
    tp_tokenizer_bpe_heap_push(w->heap, &w->n_heap, (uint64_t)w->spm->ranks[id] << 32 | left);
    if (w->spm->types[id] != TYPE_UNUSED) return TALPA_OK;
    const struct symbol *l = &w->symbols[left];
    return tp_map_put(&w->splits, w->text + l->start, (size_t)l->n_bytes + w->symbols[l->next].n_bytes, l->n_bytes);
}

/* Appends a final piece. Unused ones are taken apart again, as they were put together. */
static enum talpa_status emit(struct tp_id_list *out, const struct work *w, const char *text, size_t n_bytes, bool *after_unk, int depth)
{
    const int32_t id = find_piece(w->spm, text, n_bytes);
    int64_t n_left;
    if (id != NO_PIECE && w->spm->types[id] == TYPE_UNUSED && depth < MAX_SPLIT_DEPTH && tp_map_get(&n_left, &w->splits, text, n_bytes)) {
        TP_TRY(emit(out, w, text, (size_t)n_left, after_unk, depth + 1));
        return emit(out, w, text + n_left, n_bytes - (size_t)n_left, after_unk, depth + 1);
    }
    if (id == NO_PIECE && w->spm->has_byte_fallback) {
        for (size_t i = 0; i < n_bytes; i++) TP_TRY(tp_tokenizer_bpe_push(out, w->spm->byte_id[(unsigned char)text[i]]));
        return TALPA_OK;
    }
    const bool is_unk = id == NO_PIECE, is_repeated = is_unk && *after_unk;
    *after_unk = is_unk;
    if (is_repeated || (is_unk && w->spm->unk < 0)) return TALPA_OK;
    return tp_tokenizer_bpe_push(out, is_unk ? w->spm->unk : id);
}

/* Cuts the text into user-defined pieces and characters. */
static uint32_t cut(struct work *w, size_t n_bytes)
{
    uint32_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        const struct tp_mark *mark = w->spm->user->n ? tp_tokenizer_marks_at(w->spm->user, w->text + i, n_bytes - i, true) : NULL;
        uint32_t code_point;
        size_t length = mark ? mark->text.n_bytes : tp_utf8_decode(&code_point, w->text + i, n_bytes - i);
        if (length == 0) length = 1;
        w->symbols[n] = (struct symbol){(uint32_t)i, (uint32_t)length, n ? n - 1 : NO_SYMBOL, n + 1, mark != NULL};
        n++;
        i += length;
    }
    w->symbols[n - 1].next = NO_SYMBOL;
    return n;
}

enum talpa_status tp_tokenizer_spm_encode(struct tp_id_list *out, const struct tp_spm *spm, const char *text, size_t n_bytes)
{
    if (n_bytes == 0) return TALPA_OK;
    struct work w = {.spm = spm, .text = text};
    w.symbols = malloc(n_bytes * sizeof *w.symbols);
    w.heap = malloc(3 * n_bytes * sizeof *w.heap); /* each of at most n merges adds two pairs to the n - 1 of the start */
    enum talpa_status status = TALPA_OK;
    bool after_unk = false;
    if (!w.symbols || !w.heap) {
        status = tp_fail_memory("tokenizer", n_bytes * (sizeof *w.symbols + 3 * sizeof *w.heap));
        goto done;
    }
    const uint32_t n = cut(&w, n_bytes);
    for (uint32_t i = 0; i + 1 < n; i++) TP_TRY_GOTO(status, push_pair(&w, i), done);
    while (w.n_heap > 0) {
        const uint64_t top = tp_tokenizer_bpe_heap_pop(w.heap, &w.n_heap);
        const uint32_t left = (uint32_t)top;
        const int32_t id = joined(&w, left);
        /* Stale entries, whose pair has changed, have another rank; an equal rank is as good as the pair's own entry. */
        if (id == NO_PIECE || spm->ranks[id] != (uint32_t)(top >> 32)) continue;
        struct symbol *l = &w.symbols[left], *r = &w.symbols[l->next];
        l->n_bytes += r->n_bytes;
        l->next = r->next;
        r->n_bytes = 0;
        if (l->next != NO_SYMBOL) w.symbols[l->next].previous = left;
        TP_TRY_GOTO(status, push_pair(&w, l->previous), done);
        TP_TRY_GOTO(status, push_pair(&w, left), done);
    }
    for (uint32_t i = 0; i != NO_SYMBOL; i = w.symbols[i].next)
        TP_TRY_GOTO(status, emit(out, &w, text + w.symbols[i].start, w.symbols[i].n_bytes, &after_unk, 0), done);
done:
    tp_map_free(&w.splits);
    free(w.symbols);
    free(w.heap);
    return status;
}
