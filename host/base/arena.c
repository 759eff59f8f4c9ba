#include "arena.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

enum { ALIGNMENT = 16, CHUNK_BYTES = 64 * 1024 };

struct tp_arena_chunk {
    struct tp_arena_chunk *next;
    size_t n_bytes, n_used;
    _Alignas(ALIGNMENT) unsigned char bytes[];
};

/* A large object gets a chunk of its own behind the head, so that the head's rest is not lost. */
static struct tp_arena_chunk *chunk_add(struct tp_arena *arena, size_t n_bytes)
{
    const bool is_large = n_bytes > CHUNK_BYTES / 4;
    const size_t room = is_large ? n_bytes : CHUNK_BYTES;
    struct tp_arena_chunk *chunk = calloc(1, sizeof *chunk + room);
    if (!chunk) return NULL;
    chunk->n_bytes = room;
    if (is_large && arena->head) {
        chunk->next = arena->head->next;
        arena->head->next = chunk;
    } else {
        chunk->next = arena->head;
        arena->head = chunk;
    }
    return chunk;
}

void *tp_arena_alloc(struct tp_arena *arena, size_t n_bytes)
{
    if (n_bytes > SIZE_MAX / 2) {
        tp_fail_memory("arena", n_bytes);
        return NULL;
    }
    const size_t padded = n_bytes ? (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : ALIGNMENT;
    struct tp_arena_chunk *chunk = arena->head;
    if (!chunk || chunk->n_bytes - chunk->n_used < padded) chunk = chunk_add(arena, padded);
    if (!chunk) {
        tp_fail_memory("arena", n_bytes);
        return NULL;
    }
    void *result = chunk->bytes + chunk->n_used;
    chunk->n_used += padded;
    arena->n_bytes += padded;
    return result;
}

void *tp_arena_array(struct tp_arena *arena, size_t n, size_t element_bytes)
{
    if (element_bytes && n > SIZE_MAX / element_bytes) {
        tp_fail_memory("arena", SIZE_MAX);
        return NULL;
    }
    return tp_arena_alloc(arena, n * element_bytes);
}

char *tp_arena_strndup(struct tp_arena *arena, const char *text, size_t n_bytes)
{
    char *copy = n_bytes < SIZE_MAX ? tp_arena_alloc(arena, n_bytes + 1) : NULL;
    if (copy && n_bytes) memcpy(copy, text, n_bytes);
    return copy;
}

char *tp_arena_strdup(struct tp_arena *arena, const char *text) { return tp_arena_strndup(arena, text, strlen(text)); }

char *tp_arena_printf(struct tp_arena *arena, const char *format, ...)
{
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    const int n = vsnprintf(NULL, 0, format, list);
    char *text = n >= 0 ? tp_arena_alloc(arena, (size_t)n + 1) : NULL;
    if (text) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    va_end(list);
    return text;
}

void tp_arena_free(struct tp_arena *arena)
{
    struct tp_arena_chunk *chunk = arena->head;
    while (chunk) {
        struct tp_arena_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    *arena = (struct tp_arena){0};
}
