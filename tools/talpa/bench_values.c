/* Value lists of `talpa bench`. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { VALUE_MAX = 1 << 20 };

static bool number(int *out, const char **text)
{
    char *end;
    if (**text < '0' || **text > '9') return false;
    const long value = strtol(*text, &end, 10);
    if (value > VALUE_MAX) return false;
    *out = (int)value;
    *text = end;
    return true;
}

int bench_parse_values(int values[BENCH_MAX_VALUES], const char *text)
{
    int n = 0;
    for (;; ++text) {
        int first, last, step = 1;
        bool factor = false;
        if (!number(&first, &text)) return -1;
        last = first;
        if (*text == '-') {
            ++text;
            if (!number(&last, &text)) return -1;
            factor = *text == '*';
            if (*text == '+' || *text == '*') {
                ++text;
                if (!number(&step, &text)) return -1;
            }
            if (last < first || step < (factor ? 2 : 1) || (factor && !first)) return -1;
        }
        for (int64_t value = first; value <= last; value = factor ? value * step : value + step) {
            if (n == BENCH_MAX_VALUES) return -1;
            values[n++] = (int)value;
        }
        if (!*text) return n;
        if (*text != ',') return -1;
    }
}

int bench_parse_shapes(struct talpa_bench_shape shapes[BENCH_MAX_VALUES], const char *text)
{
    for (int n = 0; n < BENCH_MAX_VALUES; ++text) {
        struct talpa_bench_shape *s = &shapes[n];
        if (!number(&s->m, &text) || *text++ != 'x' || !number(&s->k, &text) || *text++ != 'x' || !number(&s->n, &text)) return -1;
        if (s->m < 1 || s->k < 1 || s->n < 1) return -1;
        ++n;
        if (!*text) return n;
        if (*text != ',') return -1;
    }
    return -1;
}
