#include "text_lines.h"

#include <string.h>

struct tp_text_lines tp_text_lines_of(const char *text, size_t n_bytes)
{
    const size_t mark = n_bytes >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3) ? 3 : 0;
    return (struct tp_text_lines){.next = n_bytes ? text + mark : text, .end = n_bytes ? text + n_bytes : text};
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r'; }

bool tp_text_lines_next(struct tp_text_lines *lines)
{
    while (lines->next < lines->end) {
        const char *first = lines->next, *newline = memchr(first, '\n', (size_t)(lines->end - first)),
                   *last = newline ? newline : lines->end;
        lines->next = newline ? newline + 1 : lines->end;
        lines->number++;
        while (first < last && is_space(*first)) first++;
        while (last > first && is_space(last[-1])) last--;
        lines->text = first;
        lines->n_bytes = (size_t)(last - first);
        if (first < last) return true;
    }
    return false;
}
