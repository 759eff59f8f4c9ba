#include "nearest.h"

#include <limits.h>
#include <string.h>

int tp_nearest_distance(const char *a, const char *b)
{
    const size_t n_a = strlen(a), n_b = strlen(b);
    int row[64];
    if (n_a > 63 || n_b > 63) return INT_MAX;
    for (size_t k = 0; k <= n_b; k++) row[k] = (int)k;
    for (size_t i = 1; i <= n_a; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t k = 1; k <= n_b; k++) {
            const int replaced = diagonal + (a[i - 1] != b[k - 1]);
            diagonal = row[k];
            const int smaller = row[k] < row[k - 1] ? row[k] + 1 : row[k - 1] + 1;
            row[k] = replaced < smaller ? replaced : smaller;
        }
    }
    return row[n_b];
}

const char *tp_nearest_word(const char *word, const char *const *words, size_t n_words, int limit)
{
    const char *nearest = NULL;
    int least = limit < INT_MAX ? limit + 1 : INT_MAX;
    for (size_t i = 0; i < n_words; i++) {
        const int distance = tp_nearest_distance(word, words[i]);
        if (distance >= least) continue;
        least = distance;
        nearest = words[i];
    }
    return nearest;
}
