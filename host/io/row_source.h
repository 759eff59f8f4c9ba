/* Tensors that are made while they are written, a few rows at a time, so that a file may be larger than the memory. */
#ifndef TP_ROW_SOURCE_H
#define TP_ROW_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"

struct tp_atomic_file;

/** Gives rows [row, row + n_rows) of tensor number `tensor` (in the order in which the tensors were announced) as the file holds them, into
 *  `bytes`. A failure ends the writing. */
struct tp_row_source {
    enum talpa_status (*rows)(void *user, size_t tensor, int64_t row, int64_t n_rows, void *bytes);
    void *user;
};

/** Writes all rows of one tensor in pieces of about 1 MiB, at least one row. Allocates the piece. */
enum talpa_status tp_row_source_write(struct tp_atomic_file *file, const struct tp_row_source *source, size_t tensor, int64_t n_rows,
                                      size_t row_bytes);

#endif
