/* Byte-pair merging (Sennrich, Haddow, Birch 2016) by rank, over byte-level symbols (Radford et al. 2019). */
#ifndef TP_TOKENIZER_BPE_H
#define TP_TOKENIZER_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/map.h"
#include "talpa/status.h"

/** Bytes that are borrowed and need not end with NUL. */
struct tp_text {
    const char *bytes;
    size_t n_bytes;
};

/** Merge rules as pairs of ids. Zero-initialise ({0}) before use; its owner ends it with tp_tokenizer_bpe_free. Immutable once built, so it
 *  may be shared by threads. */
struct tp_bpe {
    int32_t byte_id[256];      /* id of the token of one byte, -1 if the vocabulary lacks it */
    bool has_byte_tokens;      /* byte_id are the tokens <0x00>..<0xFF> that stand in for characters without a token */
    struct tp_bpe_pair *pairs; /* hash table from a pair of ids to a merge */
    size_t n_slots;            /* a power of two */
    int32_t *merged;           /* [n_merges] id that merge i makes */
    uint32_t n_merges;
};

/** A growing list of ids; zero-initialise; `ids` is freed by its owner with free(). */
struct tp_id_list {
    int32_t *ids;
    size_t n_ids, capacity;
};

/** Working memory of one caller, reused from word to word; zero-initialise; ended with tp_tokenizer_bpe_scratch_free. */
struct tp_bpe_scratch {
    struct tp_bpe_symbol *symbols;
    uint64_t *heap;
    size_t capacity, heap_capacity;
};

/** Writes the character that stands for `byte` in a byte-level vocabulary as UTF-8 (1 or 2 bytes, not NUL-terminated), and returns its
 *  length: printable characters of Latin-1 stand for themselves, the other 68 bytes for U+0100 and up, in order. */
size_t tp_tokenizer_bpe_byte_char(char out[2], unsigned char byte);

/** Turns the text of a byte-level token into the bytes it stands for; `out` has room for text.n_bytes. Returns the number of bytes, or
 *  (size_t)-1 if a character stands for no byte. */
size_t tp_tokenizer_bpe_unescape(char *out, struct tp_text text);

/** Builds the rules from `vocabulary` (token text -> id) and `merges` ("left right", by rank). `label` begins messages. TALPA_E_DATA if a
 *  merge is no pair or speaks of tokens that are not there; `bpe` is then empty. Allocates. */
enum talpa_status tp_tokenizer_bpe_build(struct tp_bpe *bpe, const struct tp_map *vocabulary, const struct tp_text *merges, size_t n_merges,
                                         const char *label);

void tp_tokenizer_bpe_free(struct tp_bpe *bpe);

/** Appends the ids of one word: the pair of lowest rank is merged, the leftmost of equals, until none is left; O(n log n). A byte without
 *  a token is left out and merges with nothing. `n_bytes` < 2^31. */
enum talpa_status tp_tokenizer_bpe_word(struct tp_id_list *out, struct tp_bpe_scratch *scratch, const struct tp_bpe *bpe, const char *word,
                                        size_t n_bytes);

/** The same for a vocabulary of characters (BPE with byte_fallback): characters that are tokens, else their bytes if the rules have byte
 *  tokens, else `unk` (-1: left out), of which neighbours become one if `fuses_unk`. Malformed bytes count as characters without a token.
 */
enum talpa_status tp_tokenizer_bpe_chars(struct tp_id_list *out, struct tp_bpe_scratch *scratch, const struct tp_bpe *bpe,
                                         const struct tp_map *vocabulary, int32_t unk, bool fuses_unk, const char *word, size_t n_bytes);

/** Binary heap of numbers, the smallest on top; `heap` has room for one more at a push, and is not empty at a pop. */
void tp_tokenizer_bpe_heap_push(uint64_t *heap, size_t *n, uint64_t value);
uint64_t tp_tokenizer_bpe_heap_pop(uint64_t *heap, size_t *n);

void tp_tokenizer_bpe_scratch_free(struct tp_bpe_scratch *scratch);

/** Appends one id. TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_tokenizer_bpe_push(struct tp_id_list *list, int32_t id);

#endif
