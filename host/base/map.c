#include "map.h"

#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "status.h"

struct tp_map_slot {
    const char *key; /* NULL: free */
    size_t n_bytes;
    uint64_t hash;
    int64_t value;
};

enum { FIRST_SLOTS = 16 };

/* The slot of the key, or the free one where it belongs. The table is never more than 3/4 full, so the search ends. */
static struct tp_map_slot *slot_find(struct tp_map_slot *slots, size_t n_slots, uint64_t hash, const char *key, size_t n_bytes)
{
    size_t i = (size_t)hash & (n_slots - 1);
    for (;; i = (i + 1) & (n_slots - 1)) {
        struct tp_map_slot *slot = &slots[i];
        if (!slot->key) return slot;
        if (slot->hash == hash && slot->n_bytes == n_bytes && (n_bytes == 0 || memcmp(slot->key, key, n_bytes) == 0)) return slot;
    }
}

enum talpa_status tp_map_reserve(struct tp_map *map, size_t n_keys)
{
    size_t n_slots = map->n_slots ? map->n_slots : FIRST_SLOTS;
    while (n_slots / 4 * 3 < n_keys) {
        if (n_slots > SIZE_MAX / 2 / sizeof *map->slots) return tp_fail_memory("map", n_keys);
        n_slots *= 2;
    }
    if (n_slots == map->n_slots) return TALPA_OK;
    struct tp_map_slot *slots = calloc(n_slots, sizeof *slots);
    if (!slots) return tp_fail_memory("map", n_slots * sizeof *slots);
    for (size_t i = 0; i < map->n_slots; i++) {
        const struct tp_map_slot *old = &map->slots[i];
        if (old->key) *slot_find(slots, n_slots, old->hash, old->key, old->n_bytes) = *old;
    }
    free(map->slots);
    map->slots = slots;
    map->n_slots = n_slots;
    return TALPA_OK;
}

enum talpa_status tp_map_put(struct tp_map *map, const char *key, size_t n_bytes, int64_t value)
{
    TP_TRY(tp_map_reserve(map, map->n_keys + 1));
    const uint64_t hash = tp_hash_bytes(key, n_bytes);
    struct tp_map_slot *slot = slot_find(map->slots, map->n_slots, hash, key, n_bytes);
    if (!slot->key) {
        const char *copy = tp_arena_strndup(&map->keys, key, n_bytes);
        if (!copy) return TALPA_E_DEVICE;
        *slot = (struct tp_map_slot){.key = copy, .n_bytes = n_bytes, .hash = hash};
        map->n_keys++;
    }
    slot->value = value;
    return TALPA_OK;
}

bool tp_map_get(int64_t *out, const struct tp_map *map, const char *key, size_t n_bytes)
{
    if (map->n_keys == 0) return false;
    const struct tp_map_slot *slot = slot_find(map->slots, map->n_slots, tp_hash_bytes(key, n_bytes), key, n_bytes);
    if (!slot->key) return false;
    *out = slot->value;
    return true;
}

enum talpa_status tp_map_put_string(struct tp_map *map, const char *key, int64_t value) { return tp_map_put(map, key, strlen(key), value); }

bool tp_map_get_string(int64_t *out, const struct tp_map *map, const char *key) { return tp_map_get(out, map, key, strlen(key)); }

void tp_map_free(struct tp_map *map)
{
    free(map->slots);
    tp_arena_free(&map->keys);
    *map = (struct tp_map){0};
}
