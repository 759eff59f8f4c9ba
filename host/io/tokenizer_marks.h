/* Texts that are whole tokens wherever they stand: special tokens, and the added or user-defined ones of a vocabulary. */
#ifndef TP_TOKENIZER_MARKS_H
#define TP_TOKENIZER_MARKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "talpa/status.h"
#include "tokenizer_bpe.h"

/** One such text. `is_gated`: found only where the caller parses special tokens. `strips_left`, `strips_right`: the white space beside it
 *  is dropped (lstrip and rstrip of Hugging Face's added tokens). */
struct tp_mark {
    struct tp_text text;
    int32_t id;
    bool is_gated, strips_left, strips_right;
};

/** A sorted set of marks; zero-initialise. The list is owned by the arena given to the build. */
struct tp_marks {
    struct tp_mark *list; /* by first byte, then by falling length, then by id */
    size_t n;
    size_t first[257]; /* marks that start with byte b: [b] up to [b + 1] */
    size_t n_open;     /* how many are not gated */
};

/** Builds the set from `n` marks, whose texts must outlive it; empty texts are left out. Allocates in the arena. */
enum talpa_status tp_tokenizer_marks_build(struct tp_marks *out, struct tp_arena *arena, const struct tp_mark *marks, size_t n);

/** The longest mark that `text` starts with, gated ones only if `parse_special`; NULL: none. */
const struct tp_mark *tp_tokenizer_marks_at(const struct tp_marks *marks, const char *text, size_t n_bytes, bool parse_special);

#endif
