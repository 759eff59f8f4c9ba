#include "store.h"

#include <stdlib.h>
#include <string.h>

#include "base/map.h"

struct source_entry {
    char *name;
    struct tp_store_source source;
};

struct weight_entry {
    struct tp_buffer **parts;
    int n_parts;
};

struct state_entry {
    struct tp_buffer *buffer;
    size_t n_bytes;
};

struct tp_store {
    struct tp_device *device;
    struct tp_map source_of, weight_of, state_of; /* name (weights: with layout) -> index */
    struct source_entry *sources;
    struct weight_entry *weights;
    struct state_entry *states;
    int n_sources, n_weights, n_states;
};

enum talpa_status tp_store_create(struct tp_store **out, struct tp_device *device)
{
    struct tp_store *store = calloc(1, sizeof *store);
    if (!store) return tp_fail_memory("store", sizeof *store);
    store->device = device;
    *out = store;
    return TALPA_OK;
}

void tp_store_free(struct tp_store *store)
{
    if (!store) return;
    for (int i = 0; i < store->n_weights; i++) {
        for (int p = 0; p < store->weights[i].n_parts; p++) tp_buffer_free(store->weights[i].parts[p]);
        free(store->weights[i].parts);
    }
    for (int i = 0; i < store->n_states; i++) tp_buffer_free(store->states[i].buffer);
    for (int i = 0; i < store->n_sources; i++) free(store->sources[i].name);
    tp_map_free(&store->source_of);
    tp_map_free(&store->weight_of);
    tp_map_free(&store->state_of);
    free(store->sources);
    free(store->weights);
    free(store->states);
    free(store);
}

struct tp_device *tp_store_device(const struct tp_store *store) { return store->device; }

static enum talpa_status grow(void **items, int n, size_t item_bytes)
{
    void *grown = realloc(*items, ((size_t)n + 1) * item_bytes);
    if (!grown) return tp_fail_memory("store", ((unsigned long long)n + 1) * item_bytes);
    memset((char *)grown + (size_t)n * item_bytes, 0, item_bytes);
    *items = grown;
    return TALPA_OK;
}

enum talpa_status tp_store_bind(struct tp_store *store, const char *name, const struct tp_store_source *source)
{
    int64_t present;
    if (tp_map_get_string(&present, &store->source_of, name)) return tp_fail(TALPA_E_INTERNAL, "store: weight '%s' is bound already", name);
    TP_TRY(grow((void **)&store->sources, store->n_sources, sizeof *store->sources));
    char *copy = strdup(name);
    if (!copy) return tp_fail_memory("store", strlen(name));
    store->sources[store->n_sources] = (struct source_entry){copy, *source};
    store->n_sources++;
    return tp_map_put_string(&store->source_of, name, store->n_sources - 1);
}

const struct tp_store_source *tp_store_source(const struct tp_store *store, const char *name)
{
    int64_t index;
    return tp_map_get_string(&index, &store->source_of, name) ? &store->sources[index].source : NULL;
}

void tp_store_rows(void *target, const struct tp_store_source *source, int64_t first_unit, int64_t n_units)
{
    const size_t unit_bytes = tp_layout_unit_bytes(&source->type, TP_LAYOUT_ROW);
    const uint8_t *data = source->data;
    if (!source->interleaved_heads) {
        memcpy(target, data + (size_t)first_unit * unit_bytes, (size_t)n_units * unit_bytes);
        return;
    }
    const int64_t width = source->type.shape.dim[0] / source->interleaved_heads;
    for (int64_t i = 0; i < n_units; i++) {
        const int64_t row = first_unit + i, head = row / width, j = row % width / (width / 2), pair = row % width % (width / 2);
        memcpy((uint8_t *)target + (size_t)i * unit_bytes, data + (size_t)(head * width + 2 * pair + j) * unit_bytes, unit_bytes);
    }
}

enum talpa_status tp_store_upload(struct tp_buffer *buffer, const struct tp_store_source *source, int64_t first_unit, int64_t n_units)
{
    const size_t unit_bytes = tp_layout_unit_bytes(&source->type, TP_LAYOUT_ROW);
    const uint8_t *data = source->data;
    if (!source->interleaved_heads)
        return tp_buffer_write(buffer, 0, data + (size_t)first_unit * unit_bytes, (size_t)n_units * unit_bytes, true);
    void *target;
    TP_TRY(tp_buffer_map(&target, buffer, 0, (size_t)n_units * unit_bytes, TP_MAP_WRITE));
    tp_store_rows(target, source, first_unit, n_units);
    return tp_buffer_unmap(buffer, target);
}

/* Key of a weight in a layout: the name, then one byte. */
static bool weight_key(char *key, size_t key_bytes, size_t *n, const char *name, enum tp_layout layout)
{
    *n = strlen(name) + 1;
    if (*n > key_bytes) return false;
    memcpy(key, name, *n - 1);
    key[*n - 1] = (char)layout;
    return true;
}

struct tp_buffer **tp_store_weight(const struct tp_store *store, const char *name, enum tp_layout layout, int *n_parts)
{
    char key[512];
    size_t n;
    int64_t index;
    if (!weight_key(key, sizeof key, &n, name, layout) || !tp_map_get(&index, &store->weight_of, key, n)) return NULL;
    *n_parts = store->weights[index].n_parts;
    return store->weights[index].parts;
}

enum talpa_status tp_store_reserve(struct tp_buffer ***out, struct tp_store *store, const char *name, enum tp_layout layout, int n_parts)
{
    char key[512];
    size_t n;
    if (!weight_key(key, sizeof key, &n, name, layout)) return tp_fail(TALPA_E_DATA, "weight '%.64s...': the name is too long", name);
    TP_TRY(grow((void **)&store->weights, store->n_weights, sizeof *store->weights));
    struct tp_buffer **parts = calloc((size_t)n_parts, sizeof *parts);
    if (!parts) return tp_fail_memory("store", (unsigned long long)n_parts * sizeof *parts);
    store->weights[store->n_weights++] = (struct weight_entry){parts, n_parts};
    TP_TRY(tp_map_put(&store->weight_of, key, n, store->n_weights - 1));
    *out = parts;
    return TALPA_OK;
}

enum talpa_status tp_store_state(struct tp_buffer **out, struct tp_store *store, const char *name, size_t n_bytes, size_t guard_bytes)
{
    int64_t index;
    if (tp_map_get_string(&index, &store->state_of, name)) {
        if (store->states[index].n_bytes != n_bytes)
            return tp_fail(TALPA_E_INTERNAL, "state '%s' has %zu bytes, asked for with %zu", name, store->states[index].n_bytes, n_bytes);
        *out = store->states[index].buffer;
        return TALPA_OK;
    }
    TP_TRY(grow((void **)&store->states, store->n_states, sizeof *store->states));
    struct tp_buffer *buffer;
    TP_TRY(tp_context(tp_buffer_create(&buffer, store->device, n_bytes + guard_bytes), "state '%s'", name));
    store->states[store->n_states++] = (struct state_entry){buffer, n_bytes};
    TP_TRY(tp_map_put_string(&store->state_of, name, store->n_states - 1));
    TP_TRY(tp_buffer_fill(buffer, 0, n_bytes, 0));
    if (guard_bytes) TP_TRY(tp_buffer_fill(buffer, n_bytes, guard_bytes, 0xff));
    *out = buffer;
    return TALPA_OK;
}
