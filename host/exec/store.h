/* The store: frozen weights and states of one device, by name, shared by all executors on it (training, evaluation, generation). */
#ifndef TP_STORE_H
#define TP_STORE_H

#include "graph/layout.h"
#include "runtime/memory.h"

struct tp_store;

/** Where the bytes of a weight come from; borrowed, they must live as long as the store (a mapped file). */
struct tp_store_source {
    struct tp_type type;
    const void *data;
    int interleaved_heads; /* > 0: rows are stored [head][pair][2] as in Llama GGUF files (rotary pairs 2i, 2i+1) and are put into
                              [head][2][pair] order (rotate-half) while uploading */
};

/** Creates an empty store. Owned by the caller, freed before the device. */
enum talpa_status tp_store_create(struct tp_store **out, struct tp_device *device);
void tp_store_free(struct tp_store *store);
struct tp_device *tp_store_device(const struct tp_store *store);

/** Declares a weight. TALPA_E_INTERNAL if the name is taken. */
enum talpa_status tp_store_bind(struct tp_store *store, const char *name, const struct tp_store_source *source);
/** NULL if there is none of that name. */
const struct tp_store_source *tp_store_source(const struct tp_store *store, const char *name);

/** Copies units [first, first + n) of the row layout to `target`, un-permuted. */
void tp_store_rows(void *target, const struct tp_store_source *source, int64_t first_unit, int64_t n_units);

/** Uploads units [first, first + n) of the row layout into `buffer` at 0, un-permuted. */
enum talpa_status tp_store_upload(struct tp_buffer *buffer, const struct tp_store_source *source, int64_t first_unit, int64_t n_units);

/** Buffers of a weight in a layout: NULL if not there yet; *n_parts buffers otherwise. Owned by the store. */
struct tp_buffer **tp_store_weight(const struct tp_store *store, const char *name, enum tp_layout layout, int *n_parts);
/** Reserves `n_parts` empty entries for a weight in a layout and returns them; the caller fills them with buffers, which the store then owns. */
enum talpa_status tp_store_reserve(struct tp_buffer ***out, struct tp_store *store, const char *name, enum tp_layout layout, int n_parts);

/** Buffer of a state, created and filled with zeros when asked for first. TALPA_E_INTERNAL if it exists with another size.
 *  `guard_bytes` (tests) are appended and filled with 0xFF. Owned by the store. */
enum talpa_status tp_store_state(struct tp_buffer **out, struct tp_store *store, const char *name, size_t n_bytes, size_t guard_bytes);

#endif
