/* A vocabulary on its way from a Hugging Face folder into a tp_tokenizer_source. */
#ifndef TP_TOKENIZER_VOCAB_H
#define TP_TOKENIZER_VOCAB_H

#include "base/json.h"
#include "tokenizer.h"

/** Arrays by id; texts are borrowed. Zero-initialise; its owner ends it with tp_tokenizer_vocab_free. Ids without a token have the empty
 *  text and the type TP_TOKEN_UNUSED. */
struct tp_vocab {
    struct tp_text *tokens;
    int32_t *types;
    float *scores;
    uint8_t *strips;
    size_t n, capacity;
};

/** Sets the token `id`, growing the arrays. TALPA_E_DATA if the id is negative or beyond `n_limit`. */
enum talpa_status tp_tokenizer_vocab_put(struct tp_vocab *vocab, int64_t id, const char *text, size_t n_bytes, int32_t type,
                                         size_t n_limit);

/** Sets or changes a token from an object of added_tokens or added_tokens_decoder (content, special, lstrip, rstrip, normalized,
 *  single_word). `has_prefix_normalizer`: a prefix is part of the normaliser, so that non-special tokens found after it are refused. */
enum talpa_status tp_tokenizer_vocab_add(struct tp_vocab *vocab, int64_t id, const struct tp_json_value *token, size_t n_limit,
                                         bool has_prefix_normalizer);

/** Id of the token with exactly this text, or -1. Linear. */
int64_t tp_tokenizer_vocab_find(const struct tp_vocab *vocab, const char *text);

/** Fills tokens, special ids, end ids, add_bos and the chat template of `source` from the vocabulary and the extras. add_bos and the ids
 * that the source has already stay where the extras say nothing. */
enum talpa_status tp_tokenizer_vocab_finish(struct tp_tokenizer_source *source, const struct tp_vocab *vocab,
                                            const struct tp_tokenizer_extras *extras);

void tp_tokenizer_vocab_free(struct tp_vocab *vocab);

#endif
