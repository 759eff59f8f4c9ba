/* Micro-batches: examples laid end to end as rows, without padding; attention and losses know the segments. */
#ifndef TP_BATCH_H
#define TP_BATCH_H

#include "base/status.h"
#include "exec/executor.h"
#include "io/dataset.h"
#include "models/model.h"

struct tp_batch {
    int32_t *ids, *positions, *examples, *segments; /* [max_tokens], segments [max_tokens][2] */
    int32_t *rows, *labels;                         /* [max_labelled] row that predicts, token that it should predict */
    uint32_t n_tokens, n_labelled, n_segments, n_pads;
    uint32_t max_tokens, max_labelled;
};

enum talpa_status tp_batch_create(struct tp_batch *out, uint32_t max_tokens, uint32_t max_labelled);
void tp_batch_free(struct tp_batch *batch);
void tp_batch_clear(struct tp_batch *batch);

/** Appends an example: its row p predicts token p+1 where that carries a label. `ordinal` identifies it in the optimizer step (random
 *  masks). Rows up to `pad_to` are filled with `pad_id` (0: no padding). TALPA_E_DATA if it does not fit. */
enum talpa_status tp_batch_add(struct tp_batch *batch, const struct tp_dataset_example *example, uint32_t ordinal, uint32_t pad_to,
                               int32_t pad_id);

/** Where sequences start if their bits shall not depend on what else is in the pass: attention works in blocks of 12 rows and panels of 32
 *  columns (CPU) or tiles of 32 (generic) and adds up in their order. */
enum { TP_BATCH_ALIGNMENT = 96 };
/** The number of rows, up to the next multiple. */
uint32_t tp_batch_aligned(uint32_t n_rows, uint32_t alignment);
/** Goes to the next multiple of `alignment` with rows that see nothing but themselves. TALPA_E_DATA if there is no room. */
enum talpa_status tp_batch_align(struct tp_batch *batch, uint32_t alignment);

/** Writes the batch into the inputs and its sizes into the step words (the caller then sets the step). */
enum talpa_status tp_batch_write(const struct tp_batch *batch, struct tp_executor *executor, const struct tp_batch_inputs *inputs,
                                 struct tp_step *step);

#endif
