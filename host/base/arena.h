/* Bump allocator: many small objects with one lifetime, freed at once. Not thread-safe. */
#ifndef TP_ARENA_H
#define TP_ARENA_H

#include <stddef.h>
#include <stdint.h>

struct tp_arena_chunk;

/** Zero-initialise ({0}) before use; its owner ends it with tp_arena_free. Moving the struct is allowed. */
struct tp_arena {
    struct tp_arena_chunk *head;
    size_t n_bytes; /* handed out so far, with padding */
};

/** Zeroed bytes aligned to 16, owned by the arena. Zero bytes give a valid pointer. NULL if memory is short, with the record set: the
 * caller then returns TALPA_E_DEVICE. */
void *tp_arena_alloc(struct tp_arena *arena, size_t n_bytes);

/** As tp_arena_alloc for `n` elements of `element_bytes`; a product that overflows is out of memory. */
void *tp_arena_array(struct tp_arena *arena, size_t n, size_t element_bytes);

/** Copy of `text`, or of its first `n_bytes` with a NUL added. NULL as above. */
char *tp_arena_strdup(struct tp_arena *arena, const char *text);
char *tp_arena_strndup(struct tp_arena *arena, const char *text, size_t n_bytes);

/** Formatted string. NULL as above. */
char *tp_arena_printf(struct tp_arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Frees everything the arena handed out and leaves it empty and usable. */
void tp_arena_free(struct tp_arena *arena);

#endif
