#include "tensor_table.h"

#include <stdlib.h>

#include "graph/op.h"

enum talpa_status tp_tensor_table_add(struct tp_tensor_table *table, int64_t offset, int64_t elements, int32_t flag)
{
    if (offset < table->end || elements < 1 || flag < TP_TENSOR_ALWAYS)
        return tp_fail(TALPA_E_INTERNAL,
                       "tensor table: tensor %d has offset %lld, %lld elements, flag %d; expected an offset of at least %lld",
                       (int)table->n, (long long)offset, (long long)elements, (int)flag, (long long)table->end);
    if (offset > INT32_MAX || elements > INT32_MAX - TP_CONCAT_ALIGN - offset)
        return tp_fail(TALPA_E_ARGUMENT,
                       "tensor table: tensor %d ends at element %lld of its bank, expected below 2^31; train fewer parameters",
                       (int)table->n, (long long)(offset + elements));
    if (table->n == table->capacity) {
        const int32_t capacity = table->capacity ? 2 * table->capacity : 64;
        const size_t n_bytes = (size_t)capacity * TP_TENSOR_COLUMNS * sizeof *table->rows;
        int32_t *rows = realloc(table->rows, n_bytes);
        if (!rows) return tp_fail_memory("tensor table", n_bytes);
        table->rows = rows;
        table->capacity = capacity;
    }
    int32_t *row = table->rows + (size_t)table->n * TP_TENSOR_COLUMNS;
    row[0] = (int32_t)offset;
    row[1] = (int32_t)elements;
    row[2] = flag;
    row[3] = table->n_chunks;
    table->n++;
    table->n_chunks += (int32_t)((elements + TP_TENSOR_CHUNK - 1) / TP_TENSOR_CHUNK);
    table->end = offset + elements;
    table->bank_elements = (table->end + TP_CONCAT_ALIGN - 1) / TP_CONCAT_ALIGN * TP_CONCAT_ALIGN;
    return TALPA_OK;
}

void tp_tensor_table_free(struct tp_tensor_table *table)
{
    free(table->rows);
    *table = (struct tp_tensor_table){0};
}

int64_t tp_tensor_table_max_chunks(int64_t bank_elements, int64_t n_tensors) { return bank_elements / TP_TENSOR_CHUNK + n_tensors; }
