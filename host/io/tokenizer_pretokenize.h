/* Pre-tokenizers: cut text into the pieces inside which byte pairs may merge.
 *
 * Known by the names that GGUF files use. `gpt-2` (Radford et al. 2019), also phi-2, olmo, mpt; `smollm`, also starcoder, refact,
 * command-r, exaone: every character of \p{N} alone, the GPT-2 pattern on what lies between; `llama-bpe` (llama3, llama-v3, dbrx,
 * smaug-bpe): digits in groups of up to three; `qwen2` (deepseek-r1-qwen, stablelm2): the same with single digits; `tekken` and `gpt-4o`:
 * words end where upper case begins anew. */
#ifndef TP_TOKENIZER_PRETOKENIZE_H
#define TP_TOKENIZER_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

#include "talpa/status.h"

/** A compiled pre-tokenizer; immutable, so it may be shared by threads. */
struct tp_pretokenizer;

/** One pass over one text. The fields are private. */
struct tp_pretokenizer_cursor {
    const struct tp_pretokenizer *pretokenizer;
    const char *subject; /* the text, or `copy` */
    char *copy;          /* NULL if the text is UTF-8 */
    size_t n_bytes, offset;
    void *match; /* PCRE2 match data */
};

/** Compiles the pre-tokenizer called `name` (NULL: the file names none). `label` (file or "built-in") begins the message.
 *  TALPA_E_DATA for an unknown name, listing the known ones. The caller owns *out. */
enum talpa_status tp_tokenizer_pretokenize_create(struct tp_pretokenizer **out, const char *name, const char *label);

/** Whether a vocabulary of this pre-tokenizer takes a whole piece that is a token as that token, whatever the merges say; and whether texts
 *  are brought into Unicode form C first. False for unknown names. */
bool tp_tokenizer_pretokenize_ignores_merges(const char *name);
bool tp_tokenizer_pretokenize_is_nfc(const char *name);

/** Name of the pre-tokenizer that has exactly this pattern in tokenizer.json files, or NULL. Only its way of cutting is meant. */
const char *tp_tokenizer_pretokenize_of_pattern(const char *pattern);

/** NULL is allowed. */
void tp_tokenizer_pretokenize_free(struct tp_pretokenizer *pretokenizer);

/** Starts a pass over `text`, which must stay until the cursor is closed. Any bytes are allowed: one that is not part of a well-formed
 *  UTF-8 character counts as a character of its own, neither letter, number nor space (as U+FFFD would). Allocates. */
enum talpa_status tp_tokenizer_pretokenize_open(struct tp_pretokenizer_cursor *cursor, const struct tp_pretokenizer *pretokenizer,
                                                const char *text, size_t n_bytes);

/** Next piece as bytes [*start, *end) of the text; the pieces cover it without gaps. *start == *end at the end of the text. */
enum talpa_status tp_tokenizer_pretokenize_next(size_t *start, size_t *end, struct tp_pretokenizer_cursor *cursor);

/** Releases what open allocated; the cursor may be opened again. */
void tp_tokenizer_pretokenize_close(struct tp_pretokenizer_cursor *cursor);

#endif
