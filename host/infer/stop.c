#include "stop.h"

#include <stdlib.h>
#include <string.h>

enum talpa_status tp_answer_text_create(struct tp_answer_text *out, const char *const *stop, size_t n_stop)
{
    struct tp_answer_text text = {.stop = stop, .n_stop = n_stop, .room = 64};
    for (size_t i = 0; i < n_stop; i++) {
        const size_t n = strlen(stop[i]);
        if (n == 0) return tp_fail(TALPA_E_ARGUMENT, "--stop: text %zu is empty", i + 1);
        if (n > text.longest) text.longest = n;
    }
    text.bytes = calloc(1, text.room);
    if (!text.bytes) return tp_fail_memory("answer", text.room);
    *out = text;
    return TALPA_OK;
}

void tp_answer_text_free(struct tp_answer_text *text)
{
    free(text->bytes);
    *text = (struct tp_answer_text){0};
}

/* First position from `from` on where a stop text is complete, or n_bytes. */
static size_t find_stop(const struct tp_answer_text *text, size_t from)
{
    for (size_t at = from; at < text->n_bytes; at++)
        for (size_t i = 0; i < text->n_stop; i++) {
            const size_t n = strlen(text->stop[i]);
            if (n <= text->n_bytes - at && !memcmp(text->bytes + at, text->stop[i], n)) return at;
        }
    return text->n_bytes;
}

enum talpa_status tp_answer_text_append(struct tp_answer_text *text, const char *bytes, size_t n_bytes, bool *stopped)
{
    const size_t before = text->n_bytes;
    if (text->room - before <= n_bytes) {
        const size_t room = 2 * (before + n_bytes + 1);
        char *grown = realloc(text->bytes, room);
        if (!grown) return tp_fail_memory("answer", room);
        text->bytes = grown;
        text->room = room;
    }
    memcpy(text->bytes + before, bytes, n_bytes);
    text->n_bytes += n_bytes;
    const size_t reach = text->longest ? text->longest - 1 : 0; /* bytes from before that a stop text completed now may begin in */
    const size_t at = text->n_stop ? find_stop(text, before > reach ? before - reach : 0) : text->n_bytes;
    *stopped = at < text->n_bytes;
    text->n_bytes = at;
    text->bytes[at] = 0;
    return TALPA_OK;
}

/* Bytes at the end that may still become a stop text. */
static size_t open_stop(const struct tp_answer_text *text)
{
    const size_t most = text->longest ? text->longest - 1 : 0;
    for (size_t n = most < text->n_bytes ? most : text->n_bytes; n > 0; n--)
        for (size_t i = 0; i < text->n_stop; i++)
            if (strlen(text->stop[i]) > n && !memcmp(text->bytes + text->n_bytes - n, text->stop[i], n)) return n;
    return 0;
}

/* Length of `n` bytes without an unfinished character at their end; bytes that cannot be UTF-8 are finished. */
static size_t whole_characters(const char *bytes, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const unsigned char byte = (unsigned char)bytes[n - back];
        if ((byte & 0xc0) == 0x80) continue; /* continuation */
        const size_t needed = byte >= 0xf0 && byte < 0xf5 ? 4 : byte >= 0xe0 && byte < 0xf0 ? 3 : byte >= 0xc2 && byte < 0xe0 ? 2 : 1;
        return needed > back ? n - back : n;
    }
    return n;
}

size_t tp_answer_text_certain(const struct tp_answer_text *text)
{
    const size_t n = whole_characters(text->bytes, text->n_bytes - open_stop(text));
    return n > text->n_sent ? n : text->n_sent;
}
