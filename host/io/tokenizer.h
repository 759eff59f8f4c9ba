/* Tokenizer: byte-level byte-pair encoding as GGUF's tokenizer model "gpt2" names it. */
#ifndef TP_TOKENIZER_H
#define TP_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"
#include "tokenizer_bpe.h"

struct tp_gguf;

/** Token types, with the numbers of GGUF's tokenizer.ggml.token_type. */
enum tp_token_type {
    TP_TOKEN_NORMAL = 1,
    TP_TOKEN_UNKNOWN = 2,
    TP_TOKEN_CONTROL = 3,
    TP_TOKEN_USER_DEFINED = 4,
    TP_TOKEN_UNUSED = 5,
    TP_TOKEN_BYTE = 6
};

/** What a tokenizer is made from, whatever file it stands in. Everything is borrowed during tp_tokenizer_create only. */
struct tp_tokenizer_source {
    const char *label;            /* file name or the like: begins every message */
    const char *model;            /* "gpt2" is the one supported */
    const char *pre;              /* pre-tokenizer: "gpt-2" or "smollm" */
    const struct tp_text *tokens; /* [n_tokens]; normal tokens in byte-level characters, special ones as they are */
    const int32_t *types;         /* [n_tokens] enum tp_token_type; NULL: all normal */
    size_t n_tokens;
    const struct tp_text *merges; /* [n_merges] "left right", by rank */
    size_t n_merges;
    int64_t bos_id, eos_id, unk_id, pad_id; /* -1: none */
    bool add_bos;                           /* texts start with bos_id */
    const char *chat_template;              /* Jinja text; NULL: none */
};

/** An immutable tokenizer: may be used by several threads at once. */
struct tp_tokenizer;

/** Builds a tokenizer. TALPA_E_DATA if the model or the pre-tokenizer is unknown (the message lists the known ones), a merge or an id is
 *  not of the vocabulary, or add_bos has no bos_id. The caller owns *out. Allocates. */
enum talpa_status tp_tokenizer_create(struct tp_tokenizer **out, const struct tp_tokenizer_source *source);

/** The tokenizer in the keys tokenizer.ggml.* and tokenizer.chat_template of an open GGUF file, of which nothing is kept. Errors as
 *  tp_tokenizer_create, and TALPA_E_DATA for a missing key or one of another type. */
enum talpa_status tp_tokenizer_from_gguf(struct tp_tokenizer **out, const struct tp_gguf *gguf);

/** The tokenizer of the built-in models: 259 tokens, <|endoftext|> 0, <|im_start|> 1 (bos), <|im_end|> 2 (eos, pad), then the bytes 0..255;
 *  no merges, no BOS added, ChatML. */
enum talpa_status tp_tokenizer_byte_level(struct tp_tokenizer **out);

/** NULL is allowed. */
void tp_tokenizer_free(struct tp_tokenizer *tokenizer);

/** Tokens of `n_bytes` of `text`, which may be any bytes. With parse_special, texts of special tokens (types 2, 3, 4) become those tokens:
 *  the leftmost first, of those that start together the longest. Neither BOS nor EOS is added. A byte that the vocabulary has no token for
 *  is left out, as Hugging Face and llama.cpp do (see tp_tokenizer_has_byte); for all others decode gives the text back.
 *  *ids is freed by the caller with free(); it is valid, not NULL, for no tokens too. TALPA_E_DATA for a text of 2 GiB or more.
 *  Time O(n log n). */
enum talpa_status tp_tokenizer_encode(int32_t **ids, size_t *n_ids, const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                      bool parse_special);

/** Bytes of `n_ids` tokens, with a NUL after them that *n_bytes (may be NULL) does not count. skip_special leaves special tokens out.
 *  *text is freed by the caller with free(). TALPA_E_DATA for an id outside the vocabulary. The bytes of a part need not be whole UTF-8. */
enum talpa_status tp_tokenizer_decode(char **text, size_t *n_bytes, const struct tp_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                      bool skip_special);

/** Bytes of one token, borrowed (special tokens: their text); an id outside the vocabulary gives no bytes. */
struct tp_text tp_tokenizer_piece(const struct tp_tokenizer *tokenizer, int64_t id);

/** Special tokens: types 2, 3 and 4. False outside the vocabulary. */
bool tp_tokenizer_is_special(const struct tp_tokenizer *tokenizer, int64_t id);

/** Id of the special token with exactly this text, or -1. */
int32_t tp_tokenizer_special_id(const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes);

/** True if a text may hold this byte without losing it. */
bool tp_tokenizer_has_byte(const struct tp_tokenizer *tokenizer, unsigned char byte);

size_t tp_tokenizer_n_tokens(const struct tp_tokenizer *tokenizer);

/** Ids, -1 if there is none. */
int32_t tp_tokenizer_bos(const struct tp_tokenizer *tokenizer);
int32_t tp_tokenizer_eos(const struct tp_tokenizer *tokenizer);
int32_t tp_tokenizer_unk(const struct tp_tokenizer *tokenizer);
int32_t tp_tokenizer_pad(const struct tp_tokenizer *tokenizer);

/** True if every text starts with BOS. */
bool tp_tokenizer_add_bos(const struct tp_tokenizer *tokenizer);

/** The file's Jinja chat template, borrowed; NULL if it has none. */
const char *tp_tokenizer_chat_template(const struct tp_tokenizer *tokenizer);

#endif
