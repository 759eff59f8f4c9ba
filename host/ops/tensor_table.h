/* The table that tells grad_norm, step_counts and adamw where the tensors of a flat bank lie: i32 rows
 * [offset, elements, flag, first_chunk]. A chunk is up to 4096 elements of one tensor and chunks are numbered over all tensors, so that a
 * work-group finds its elements by binary search (kernels/common/tensor_table.clh). */
#ifndef TP_TENSOR_TABLE_H
#define TP_TENSOR_TABLE_H

#include "base/status.h"
#include "talpa/types.h"

enum { TP_TENSOR_CHUNK = 4096, TP_TENSOR_COLUMNS = 4, TP_TENSOR_ALWAYS = -1 };

/** Zero-initialised it is empty. Owns `rows`; freed by tp_tensor_table_free. */
struct tp_tensor_table {
    int32_t *rows; /* n x TP_TENSOR_COLUMNS: the contents of the value `tensors` */
    int32_t n, capacity;
    int32_t n_chunks;
    int64_t end;           /* past the last tensor */
    int64_t bank_elements; /* smallest size of the bank: past the last tensor, a multiple of TP_CONCAT_ALIGN (host/graph/op.h) */
};

/** Appends a tensor of `elements` > 0 at `offset` elements in the bank; offsets ascend without overlap (several tensors may lie in one
 *  slice, as the experts of a stacked matrix do). flag: index into `selected`, or TP_TENSOR_ALWAYS. Allocates. TALPA_E_INTERNAL for an
 *  overlap, TALPA_E_ARGUMENT if the bank would pass 2^31 elements, TALPA_E_DEVICE without host memory; the table stays as it was. */
enum talpa_status tp_tensor_table_add(struct tp_tensor_table *table, int64_t offset, int64_t elements, int32_t flag);

/** Frees the rows and empties the table. */
void tp_tensor_table_free(struct tp_tensor_table *table);

/** Most chunks that n_tensors tensors in a bank of this size can have: sum of ceil(elements / 4096). */
int64_t tp_tensor_table_max_chunks(int64_t bank_elements, int64_t n_tensors);

#endif
