/* Tokenizers, by the names of GGUF's tokenizer.ggml.model:
 *
 *   gpt2    byte-level byte-pair encoding (Radford et al. 2019) behind a pre-tokenizer
 *   llama   SentencePiece's byte-pair encoding by scores (Kudo and Richardson 2018), with byte fallback where the vocabulary has bytes
 *
 * and "hf-bpe", which GGUF has no name for: byte-pair encoding of characters by ranked merges, as tokenizer.json files hold converted
 * SentencePiece vocabularies. SentencePiece's unigram model, WordPiece and others are refused by name. */
#ifndef TP_TOKENIZER_H
#define TP_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"
#include "tokenizer_bpe.h"
#include "tokenizer_normalize.h"

struct tp_gguf;
struct tp_json_value;

/** Token types, with the numbers of GGUF's tokenizer.ggml.token_type. */
enum tp_token_type {
    TP_TOKEN_NORMAL = 1,
    TP_TOKEN_UNKNOWN = 2,
    TP_TOKEN_CONTROL = 3,
    TP_TOKEN_USER_DEFINED = 4,
    TP_TOKEN_UNUSED = 5,
    TP_TOKEN_BYTE = 6
};

/** How many end tokens a tokenizer knows at most. */
enum { TP_TOKENIZER_MAX_ENDS = 16 };

/** Flags of one token in tp_tokenizer_source.strips: the white space to its left, to its right is dropped. */
enum { TP_TOKEN_STRIPS_LEFT = 1, TP_TOKEN_STRIPS_RIGHT = 2 };

/** What a tokenizer is made from, whatever file it stands in. Everything is borrowed during tp_tokenizer_create only. */
struct tp_tokenizer_source {
    const char *label;            /* file name or the like: begins every message */
    const char *model;            /* "gpt2", "llama", "hf-bpe" */
    const char *pre;              /* gpt2: pre-tokenizer, see tokenizer_pretokenize.h */
    const struct tp_text *tokens; /* [n_tokens]; gpt2: normal tokens in byte-level characters, special ones as they are */
    const int32_t *types;         /* [n_tokens] enum tp_token_type; NULL: all normal */
    const float *scores;          /* [n_tokens] llama: the higher the sooner merged */
    const uint8_t *strips;        /* [n_tokens] TP_TOKEN_STRIPS_*; NULL: none */
    size_t n_tokens;
    const struct tp_text *merges; /* [n_merges] "left right", by rank */
    size_t n_merges;
    struct tp_normalizer_rules rules;       /* llama and hf-bpe; of gpt2 only is_nfc counts */
    bool ignores_merges;                    /* gpt2: a piece that is a token is that token, whatever the merges say */
    bool splits_at_spaces;                  /* hf-bpe: no token reaches over a U+2581 inside it (Metaspace with split) */
    bool fuses_unk;                         /* hf-bpe: neighbouring characters without a token are one unk_id */
    int64_t bos_id, eos_id, unk_id, pad_id; /* -1: none */
    const int64_t *end_ids;                 /* [n_end_ids] further tokens that end a generated text; those without a token are left out */
    size_t n_end_ids;
    bool add_bos;              /* texts start with bos_id */
    const char *chat_template; /* Jinja text; NULL: none */
};

/** An immutable tokenizer: may be used by several threads at once. */
struct tp_tokenizer;

/** Builds a tokenizer. TALPA_E_DATA if the model or the pre-tokenizer is unknown (the message lists the known ones), a merge or an id is
 *  not of the vocabulary, byte tokens are incomplete, or add_bos has no bos_id. User-defined tokens that are well-known turn markers
 *  ("<|im_end|>", "<start_of_turn>") count as control tokens, so that data cannot forge a turn. The caller owns *out. Allocates. */
enum talpa_status tp_tokenizer_create(struct tp_tokenizer **out, const struct tp_tokenizer_source *source);

/** The tokenizer in the keys tokenizer.ggml.* and tokenizer.chat_template of an open GGUF file, of which nothing is kept. Errors as
 *  tp_tokenizer_create, and TALPA_E_DATA for a missing key or one of another type. */
enum talpa_status tp_tokenizer_from_gguf(struct tp_tokenizer **out, const struct tp_gguf *gguf);

/** The tokenizer of a Hugging Face model folder: tokenizer.json if it is there, else tokenizer.model (SentencePiece), with
 *  tokenizer_config.json, generation_config.json, config.json and chat_template.jinja beside it. What would need a step that is not known
 *  (a normaliser, a pre-tokenizer, a model type) is TALPA_E_DATA, naming file and field; TALPA_E_NO_INPUT if the folder has neither. */
enum talpa_status tp_tokenizer_from_folder(struct tp_tokenizer **out, const char *folder);

/** What stands in the files beside tokenizer.json and tokenizer.model; {0} and -1 for what is not there. Borrowed. */
struct tp_tokenizer_extras {
    const struct tp_json_value *config;     /* tokenizer_config.json */
    const char *chat_template;              /* chat_template.jinja; goes before the configuration's */
    int64_t bos_id, eos_id, pad_id;         /* of config.json, for what tokenizer_config.json does not name; -1: none */
    int64_t end_ids[TP_TOKENIZER_MAX_ENDS]; /* eos_token_id of generation_config.json and config.json */
    size_t n_end_ids;
};

/** The tokenizer of a parsed tokenizer.json. `label` begins messages. */
enum talpa_status tp_tokenizer_from_json(struct tp_tokenizer **out, const struct tp_json_value *json,
                                         const struct tp_tokenizer_extras *extras, const char *label);

/** The tokenizer of the bytes of a SentencePiece tokenizer.model (a ModelProto of sentencepiece_model.proto) with a BPE vocabulary. BOS is
 *  added if the model has one, unless the configuration says no. */
enum talpa_status tp_tokenizer_from_model(struct tp_tokenizer **out, const void *bytes, size_t n_bytes,
                                          const struct tp_tokenizer_extras *extras, const char *label);

/** The tokenizer of the built-in models: 259 tokens, <|endoftext|> 0, <|im_start|> 1 (bos), <|im_end|> 2 (eos, pad), then the bytes 0..255;
 *  no merges, no BOS added, ChatML. */
enum talpa_status tp_tokenizer_byte_level(struct tp_tokenizer **out);

/** NULL is allowed. */
void tp_tokenizer_free(struct tp_tokenizer *tokenizer);

/** Tokens of `n_bytes` of `text`, which may be any bytes. With parse_special, texts of special tokens (types 2, 3) become those tokens;
 *  user-defined ones (type 4) always do: the leftmost first, of those that start together the longest. Neither BOS nor EOS is added.
 *  gpt2: a byte that the vocabulary has no token for is left out, as Hugging Face and llama.cpp do (see tp_tokenizer_has_byte); for all
 *  others decode gives the text back, if the rules normalise nothing. llama and hf-bpe: bytes that are not UTF-8 become byte tokens.
 *  *ids is freed by the caller with free(); it is valid, not NULL, for no tokens too. TALPA_E_DATA for a text of 512 MiB or more.
 *  Time O(n log n). */
enum talpa_status tp_tokenizer_encode(int32_t **ids, size_t *n_ids, const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                      bool parse_special);

/** Where a text stands, which decides about the space that SentencePiece puts before a text. {.is_start = true} for a text of its own. */
struct tp_text_place {
    bool is_start; /* nothing but BOS comes before */
    bool is_after_special;
    bool strips_space; /* after a token that drops the white space to its right */
};

/** A stretch of a text, bytes [start, end). */
struct tp_text_span {
    size_t start, end;
};

/** As tp_tokenizer_encode, for a text that goes on from others, with special tokens parsed inside the spans only (ascending, apart):
 *  appends to `ids`, and moves `place` on. So template and data are cut into words as one text, yet data cannot forge special tokens. */
enum talpa_status tp_tokenizer_encode_spans(struct tp_id_list *ids, struct tp_text_place *place, const struct tp_tokenizer *tokenizer,
                                            const char *text, size_t n_bytes, const struct tp_text_span *spans, size_t n_spans);

/** Bytes of `n_ids` tokens, with a NUL after them that *n_bytes (may be NULL) does not count. skip_special leaves special tokens out.
 *  The space that a prefix rule put before the first text is taken away again.
 *  *text is freed by the caller with free(). TALPA_E_DATA for an id outside the vocabulary. The bytes of a part need not be whole UTF-8. */
enum talpa_status tp_tokenizer_decode(char **text, size_t *n_bytes, const struct tp_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                      bool skip_special);

/** Bytes of one token, borrowed (special tokens: their text); an id outside the vocabulary gives no bytes. */
struct tp_text tp_tokenizer_piece(const struct tp_tokenizer *tokenizer, int64_t id);

/** Special tokens: types 2 and 3. False outside the vocabulary. */
bool tp_tokenizer_is_special(const struct tp_tokenizer *tokenizer, int64_t id);

/** Id of the special or user-defined token with exactly this text, or -1. */
int32_t tp_tokenizer_special_id(const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes);

/** True if a text may hold this byte without losing it. */
bool tp_tokenizer_has_byte(const struct tp_tokenizer *tokenizer, unsigned char byte);

size_t tp_tokenizer_n_tokens(const struct tp_tokenizer *tokenizer);

/** Ids, -1 if there is none. */
int32_t tp_tokenizer_bos(const struct tp_tokenizer *tokenizer);
int32_t tp_tokenizer_eos(const struct tp_tokenizer *tokenizer);
int32_t tp_tokenizer_unk(const struct tp_tokenizer *tokenizer);
int32_t tp_tokenizer_pad(const struct tp_tokenizer *tokenizer);

/** True for tokens that end a generated text: EOS, further ones that the files name, and well-known ends of a turn. */
bool tp_tokenizer_is_end(const struct tp_tokenizer *tokenizer, int64_t id);

/** True if every text starts with BOS. */
bool tp_tokenizer_add_bos(const struct tp_tokenizer *tokenizer);

/** The file's Jinja chat template, borrowed; NULL if it has none. */
const char *tp_tokenizer_chat_template(const struct tp_tokenizer *tokenizer);

#endif
