#include "row_source.h"

#include <stdlib.h>

#include "atomic_file.h"
#include "base/status.h"

enum { PIECE_BYTES = 1 << 20 };

enum talpa_status tp_row_source_write(struct tp_atomic_file *file, const struct tp_row_source *source, size_t tensor, int64_t n_rows,
                                      size_t row_bytes)
{
    int64_t step = row_bytes ? (int64_t)(PIECE_BYTES / row_bytes) : n_rows;
    if (step > n_rows) step = n_rows;
    if (step < 1) step = 1;
    const size_t n_bytes = (size_t)step * row_bytes;
    void *piece = malloc(n_bytes + 1);
    if (!piece) return tp_fail_memory("rows", n_bytes);
    enum talpa_status status = TALPA_OK;
    for (int64_t row = 0; row < n_rows && status == TALPA_OK; row += step) {
        const int64_t n = n_rows - row < step ? n_rows - row : step;
        status = source->rows(source->user, tensor, row, n, piece);
        if (status == TALPA_OK) status = tp_atomic_file_write(file, piece, (size_t)n * row_bytes);
    }
    free(piece);
    return status;
}
