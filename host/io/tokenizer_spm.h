/* SentencePiece's byte-pair encoding: neighbours whose joined text is a piece are merged, the best score first, the leftmost of equals
 * (Kudo and Richardson 2018; bpe_model.cc). Characters that end without a piece become byte tokens (byte fallback) or <unk>. */
#ifndef TP_TOKENIZER_SPM_H
#define TP_TOKENIZER_SPM_H

#include "base/map.h"
#include "tokenizer_bpe.h"
#include "tokenizer_marks.h"

/** The rules; zero-initialise. `ranks` is owned by the arena given to the build, all else is borrowed and must outlive it. */
struct tp_spm {
    const struct tp_map *pieces; /* normal, user-defined and unused pieces -> id */
    const int32_t *types;        /* [n_tokens] */
    const uint32_t *ranks;       /* [n_tokens], lower for better scores */
    const struct tp_marks *user; /* user-defined pieces, which stay whole */
    size_t n_max_bytes;          /* of the longest piece */
    int32_t byte_id[256];        /* -1: no byte fallback */
    bool has_byte_fallback;
    int32_t unk; /* -1: what has no token is left out */
};

/** Order-preserving number of a score: the higher the score, the lower the number. */
uint32_t tp_tokenizer_spm_rank(float score);

/** Appends the ids of a normalised text of less than 2^31 bytes. Allocates working memory and frees it; O(n log n). */
enum talpa_status tp_tokenizer_spm_encode(struct tp_id_list *out, const struct tp_spm *spm, const char *text, size_t n_bytes);

#endif
