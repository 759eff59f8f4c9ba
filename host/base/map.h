/* Hash map from byte strings to int64 (open addressing, linear probing, XXH3). Not thread-safe while being written. */
#ifndef TP_MAP_H
#define TP_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "talpa/status.h"

struct tp_map_slot;

/** Zero-initialise ({0}) before use; its owner ends it with tp_map_free. Keys are copied, and may hold any bytes, NUL too. */
struct tp_map {
    struct tp_map_slot *slots;
    size_t n_slots; /* 0 or a power of two */
    size_t n_keys;
    struct tp_arena keys;
};

/** Makes room for `n_keys` keys in all, so that the next puts do not rehash. Allocates. TALPA_E_DEVICE if memory is short. */
enum talpa_status tp_map_reserve(struct tp_map *map, size_t n_keys);

/** Sets the value of a key, replacing an old one. May allocate. TALPA_E_DEVICE if memory is short; the map is then unchanged. */
enum talpa_status tp_map_put(struct tp_map *map, const char *key, size_t n_bytes, int64_t value);

/** True and the value in *out if the key is there, else false and *out untouched. */
bool tp_map_get(int64_t *out, const struct tp_map *map, const char *key, size_t n_bytes);

/** The same for NUL-terminated keys. */
enum talpa_status tp_map_put_string(struct tp_map *map, const char *key, int64_t value);
bool tp_map_get_string(int64_t *out, const struct tp_map *map, const char *key);

/** Frees keys and slots; leaves an empty usable map. */
void tp_map_free(struct tp_map *map);

#endif
