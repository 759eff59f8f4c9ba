/* 64-bit content digests (XXH3): for naming and comparing files and programs, not against forgery. */
#ifndef TP_HASH_H
#define TP_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"

enum { TP_HASH_HEX_BYTES = 17 };

struct tp_hash;

/** Digest of `n_bytes`; data may be NULL if n_bytes is 0. */
uint64_t tp_hash_bytes(const void *data, size_t n_bytes);

/** Digest fed in pieces, equal to tp_hash_bytes of their concatenation. The caller owns *out. TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_hash_create(struct tp_hash **out);
void tp_hash_update(struct tp_hash *hash, const void *data, size_t n_bytes);
uint64_t tp_hash_digest(const struct tp_hash *hash);

/** NULL is allowed. */
void tp_hash_free(struct tp_hash *hash);

/** Writes 16 lower-case hexadecimal digits and a NUL, as `xxhsum -H3` prints them, and returns `out`. */
const char *tp_hash_hex(char out[TP_HASH_HEX_BYTES], uint64_t digest);

#endif
