#include "hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

#include "status.h"

/* Only ever used as a pointer to the library's own state. */
struct tp_hash;

uint64_t tp_hash_bytes(const void *data, size_t n_bytes) { return XXH3_64bits(data, n_bytes); }

enum talpa_status tp_hash_create(struct tp_hash **out)
{
    XXH3_state_t *state = XXH3_createState();
    if (!state) return tp_fail_memory("digest state", 576);
    XXH3_64bits_reset(state);
    *out = (struct tp_hash *)state;
    return TALPA_OK;
}

void tp_hash_update(struct tp_hash *hash, const void *data, size_t n_bytes)
{
    if (n_bytes) XXH3_64bits_update((XXH3_state_t *)hash, data, n_bytes);
}

uint64_t tp_hash_digest(const struct tp_hash *hash) { return XXH3_64bits_digest((const XXH3_state_t *)hash); }

void tp_hash_free(struct tp_hash *hash) { XXH3_freeState((XXH3_state_t *)hash); }

const char *tp_hash_hex(char out[TP_HASH_HEX_BYTES], uint64_t digest)
{
    snprintf(out, TP_HASH_HEX_BYTES, "%016" PRIx64, digest);
    return out;
}
