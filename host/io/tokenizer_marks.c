#include "tokenizer_marks.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

static int compare(const void *a, const void *b)
{
    const struct tp_mark *x = a, *y = b;
    const unsigned char fx = (unsigned char)x->text.bytes[0], fy = (unsigned char)y->text.bytes[0];
    if (fx != fy) return fx < fy ? -1 : 1;
    if (x->text.n_bytes != y->text.n_bytes) return x->text.n_bytes > y->text.n_bytes ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

enum talpa_status tp_tokenizer_marks_build(struct tp_marks *out, struct tp_arena *arena, const struct tp_mark *marks, size_t n)
{
    struct tp_marks built = {0};
    built.list = tp_arena_array(arena, n, sizeof *built.list);
    if (!built.list) return TALPA_E_DEVICE;
    for (size_t i = 0; i < n; i++) {
        if (marks[i].text.n_bytes == 0) continue;
        built.list[built.n++] = marks[i];
        built.n_open += !marks[i].is_gated;
    }
    qsort(built.list, built.n, sizeof *built.list, compare);
    for (size_t i = 0; i < built.n; i++) built.first[(unsigned char)built.list[i].text.bytes[0] + 1] = i + 1;
    for (int b = 0; b < 256; b++)
        if (built.first[b + 1] < built.first[b]) built.first[b + 1] = built.first[b];
    *out = built;
    return TALPA_OK;
}

const struct tp_mark *tp_tokenizer_marks_at(const struct tp_marks *marks, const char *text, size_t n_bytes, bool parse_special)
{
    const unsigned char first = (unsigned char)text[0];
    for (size_t i = marks->first[first]; i < marks->first[first + 1]; i++) {
        const struct tp_mark *mark = &marks->list[i];
        if (mark->is_gated && !parse_special) continue;
        if (mark->text.n_bytes <= n_bytes && memcmp(mark->text.bytes, text, mark->text.n_bytes) == 0) return mark;
    }
    return NULL;
}
