#include "batch.h"

#include <stdlib.h>

enum talpa_status tp_batch_create(struct tp_batch *out, uint32_t max_tokens, uint32_t max_labelled)
{
    struct tp_batch batch = {.max_tokens = max_tokens, .max_labelled = max_labelled};
    batch.ids = calloc(max_tokens, sizeof *batch.ids);
    batch.positions = calloc(max_tokens, sizeof *batch.positions);
    batch.examples = calloc(max_tokens, sizeof *batch.examples);
    batch.segments = calloc(max_tokens, 2 * sizeof *batch.segments);
    batch.rows = calloc(max_labelled, sizeof *batch.rows);
    batch.labels = calloc(max_labelled, sizeof *batch.labels);
    if (!batch.ids || !batch.positions || !batch.examples || !batch.segments || !batch.rows || !batch.labels) {
        tp_batch_free(&batch);
        return tp_fail_memory("batch", (unsigned long long)max_tokens * 7 * sizeof(int32_t));
    }
    *out = batch;
    return TALPA_OK;
}

void tp_batch_free(struct tp_batch *batch)
{
    free(batch->ids);
    free(batch->positions);
    free(batch->examples);
    free(batch->segments);
    free(batch->rows);
    free(batch->labels);
    *batch = (struct tp_batch){0};
}

void tp_batch_clear(struct tp_batch *batch) { batch->n_tokens = batch->n_labelled = batch->n_segments = batch->n_pads = 0; }

enum talpa_status tp_batch_add(struct tp_batch *batch, const struct tp_dataset_example *example, uint32_t ordinal, uint32_t pad_to,
                               int32_t pad_id)
{
    const uint32_t n = example->n_tokens, n_rows = pad_to > n ? pad_to : n, first = batch->n_tokens;
    uint32_t n_labelled = 0;
    for (uint32_t p = 1; p < n; p++) n_labelled += example->labels[p] != TP_DATASET_IGNORED;
    if (n_rows > batch->max_tokens - first || n_labelled > batch->max_labelled - batch->n_labelled)
        return tp_fail(TALPA_E_DATA, "line %llu: an example of %u tokens does not fit the batch of %u", (unsigned long long)example->line,
                       n_rows, batch->max_tokens);
    for (uint32_t p = 0; p < n_rows; p++) {
        const uint32_t row = first + p;
        batch->ids[row] = p < n ? example->ids[p] : pad_id;
        batch->positions[row] = (int32_t)p;
        batch->examples[row] = (int32_t)ordinal;
        batch->segments[2 * row] = (int32_t)first;
        batch->segments[2 * row + 1] = (int32_t)(first + n_rows);
        if (p + 1 < n && example->labels[p + 1] != TP_DATASET_IGNORED) {
            batch->rows[batch->n_labelled] = (int32_t)row;
            batch->labels[batch->n_labelled++] = example->labels[p + 1];
        }
    }
    batch->n_tokens += n_rows;
    batch->n_pads += n_rows - n;
    batch->n_segments++;
    return TALPA_OK;
}

uint32_t tp_batch_aligned(uint32_t n_rows, uint32_t alignment) { return (n_rows + alignment - 1) / alignment * alignment; }

enum talpa_status tp_batch_align(struct tp_batch *batch, uint32_t alignment)
{
    const uint32_t end = tp_batch_aligned(batch->n_tokens, alignment);
    if (end > batch->max_tokens)
        return tp_fail(TALPA_E_DATA, "row %u of a batch of %u: no room up to row %u", batch->n_tokens, batch->max_tokens, end);
    for (; batch->n_tokens < end; batch->n_tokens++, batch->n_pads++) {
        const uint32_t row = batch->n_tokens;
        batch->ids[row] = batch->positions[row] = batch->examples[row] = 0;
        batch->segments[2 * row] = (int32_t)row;
        batch->segments[2 * row + 1] = (int32_t)row + 1;
    }
    return TALPA_OK;
}

enum talpa_status tp_batch_write(const struct tp_batch *batch, struct tp_executor *executor, const struct tp_batch_inputs *inputs,
                                 struct tp_step *step)
{
    const size_t tokens = batch->n_tokens * sizeof(int32_t), labelled = batch->n_labelled * sizeof(int32_t);
    TP_TRY(tp_executor_write(executor, inputs->ids, batch->ids, tokens));
    TP_TRY(tp_executor_write(executor, inputs->positions, batch->positions, tokens));
    TP_TRY(tp_executor_write(executor, inputs->examples, batch->examples, tokens));
    TP_TRY(tp_executor_write(executor, inputs->segments, batch->segments, 2 * tokens));
    TP_TRY(tp_executor_write(executor, inputs->rows, batch->rows, labelled));
    TP_TRY(tp_executor_write(executor, inputs->labels, batch->labels, labelled));
    step->word[TP_STEP_N_TOKENS] = batch->n_tokens;
    step->word[TP_STEP_N_LABELLED] = batch->n_labelled;
    step->word[TP_STEP_N_SEGMENTS] = batch->n_segments;
    return TALPA_OK;
}
