/* What happens to a text before it is cut into tokens: Unicode normalisation and SentencePiece's treatment of spaces.
 *
 * The order is SentencePiece's (Kudo and Richardson 2018; normalizer.cc): the character map, white space at the ends and doubled, the
 * prefix, spaces written as U+2581. */
#ifndef TP_TOKENIZER_NORMALIZE_H
#define TP_TOKENIZER_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "talpa/status.h"
#include "tokenizer_marks.h"

/** U+2581, which stands for a space in SentencePiece vocabularies. */
#define TP_SPACE_MARK "\xe2\x96\x81"

/** Where a space mark is put before a text. */
enum tp_prefix {
    TP_PREFIX_NONE,
    TP_PREFIX_FIRST, /* before the first text only */
    TP_PREFIX_EACH   /* before each text that starts or follows a special token */
};

/** The rules; {0} leaves every text as it is. */
struct tp_normalizer_rules {
    bool is_nfc;                   /* Unicode normalisation form C first */
    bool escapes_spaces;           /* ' ' becomes U+2581 */
    bool removes_extra_whitespace; /* spaces at both ends are dropped, runs become one */
    enum tp_prefix prefix;
    bool is_prefix_conditional; /* no prefix if the text starts with a space already (Hugging Face's Metaspace) */
    bool replaces_malformed;    /* bytes that are not UTF-8 become U+FFFD; else they stay */
    const void *charsmap;       /* SentencePiece's precompiled_charsmap; NULL: none */
    size_t n_charsmap_bytes;
};

/** Rules ready for use. Zero-initialise; owned by the arena given to the build. */
struct tp_normalizer {
    struct tp_normalizer_rules rules;
    const uint32_t *units; /* double-array trie (Darts) of the character map */
    size_t n_units;
    const char *targets; /* NUL-terminated texts that its values point into */
    size_t n_target_bytes;
};

/** Checks and copies the rules. TALPA_E_DATA if the character map is malformed. Allocates in the arena. */
enum talpa_status tp_tokenizer_normalize_build(struct tp_normalizer *out, struct tp_arena *arena, const struct tp_normalizer_rules *rules,
                                               const char *label);

/** True if no text is changed, so that tp_tokenizer_normalize need not be called. */
bool tp_tokenizer_normalize_is_identity(const struct tp_normalizer *normalizer);

/** The normalised text, freed by the caller with free(); not NUL-terminated, not NULL. `has_prefix`: the rules' prefix is due here. Texts
 * of `user` (may be NULL) pass the character map unchanged. Time linear in the text. */
enum talpa_status tp_tokenizer_normalize(char **out, size_t *n_out, const struct tp_normalizer *normalizer, const struct tp_marks *user,
                                         const char *text, size_t n_bytes, bool has_prefix);

#endif
