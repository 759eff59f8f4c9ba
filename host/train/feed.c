#include "feed.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint32_t n_examples(const struct tp_feed *feed) { return (uint32_t)tp_dataset_n_examples(feed->data); }

/* Leaves of the tree: a power of two, at least one row per example. */
static uint32_t n_leaves(uint32_t n)
{
    uint32_t leaves = 1;
    while (leaves < n) leaves *= 2;
    return leaves;
}

/* ---- the order of an epoch ---- */

/* First fit with a tournament tree: room[leaves + r] is what row r has left, room[i] the larger of its two children, so the leftmost row
 * with room is found on one way down. Rows not opened yet have all their room and lie to the right of the opened ones. */
static uint32_t first_fit(uint32_t *room, uint32_t leaves, uint32_t n_tokens)
{
    uint32_t at = 1;
    while (at < leaves) at = room[2 * at] >= n_tokens ? 2 * at : 2 * at + 1;
    const uint32_t row = at - leaves;
    room[at] -= n_tokens;
    for (at /= 2; at > 0; at /= 2) room[at] = room[2 * at] > room[2 * at + 1] ? room[2 * at] : room[2 * at + 1];
    return row;
}

/* Sorts the epoch's examples by row, stable; row[] then belongs to the new order. Returns the number of rows. */
static uint32_t pack(struct tp_feed *feed)
{
    const uint32_t n = n_examples(feed), leaves = n_leaves(n);
    uint32_t *unsorted = feed->start + n + 1, *row_of = unsorted + n, n_rows = 0;
    for (uint32_t i = 1; i < 2 * leaves; i++) feed->room[i] = feed->options.max_seq_length;
    memset(feed->start, 0, ((size_t)n + 1) * sizeof *feed->start);
    for (uint32_t i = 0; i < n; i++) {
        unsorted[i] = feed->order[i];
        row_of[i] = first_fit(feed->room, leaves, tp_dataset_example(feed->data, feed->order[i]).n_tokens);
        feed->start[row_of[i] + 1]++;
        if (row_of[i] >= n_rows) n_rows = row_of[i] + 1;
    }
    for (uint32_t r = 0; r < n_rows; r++) feed->start[r + 1] += feed->start[r];
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = feed->start[row_of[i]]++;
        feed->order[at] = unsorted[i];
        feed->row[at] = row_of[i];
    }
    return n_rows;
}

/* Makes an epoch the present one; returns its number of rows. */
static uint32_t begin_epoch(struct tp_feed *feed, uint64_t epoch)
{
    const uint32_t n = n_examples(feed);
    if (feed->options.no_shuffle)
        for (uint32_t i = 0; i < n; i++) feed->order[i] = i;
    else tp_dataset_permutation(feed->order, n, feed->options.seed, epoch);
    feed->order_epoch = epoch;
    return feed->options.packing ? pack(feed) : n;
}

/* The example at the cursor; its row differs from that of every example outside the row, also over epochs. */
static struct tp_dataset_example peek(struct tp_feed *feed, uint64_t *row)
{
    const uint32_t n = n_examples(feed);
    const uint64_t epoch = feed->cursor / n;
    const uint32_t i = (uint32_t)(feed->cursor % n);
    if (epoch != feed->order_epoch) begin_epoch(feed, epoch);
    *row = epoch * n + (feed->options.packing ? feed->row[i] : i);
    return tp_dataset_example(feed->data, feed->order[i]);
}

/* ---- how long the run is ---- */

static enum talpa_status steps_of_rows(struct tp_feed *feed, uint64_t n_rows)
{
    const uint64_t per_step = (uint64_t)feed->options.batch_size * (uint64_t)feed->options.accumulation;
    const uint64_t steps = n_rows / per_step + (n_rows % per_step != 0);
    if (steps > INT_MAX)
        return tp_fail(TALPA_E_ARGUMENT, "the run has %llu steps, expected at most %d: fewer --num-train-epochs", (unsigned long long)steps,
                       INT_MAX);
    feed->total_steps = (int)steps;
    return TALPA_OK;
}

static enum talpa_status count_steps(struct tp_feed *feed)
{
    const struct tp_feed_options *o = &feed->options;
    const uint32_t n = n_examples(feed);
    if (o->max_steps) {
        const uint64_t rows = (uint64_t)o->batch_size * (uint64_t)o->accumulation * (uint64_t)o->max_steps;
        feed->total_examples = o->packing ? UINT64_MAX : rows;
        feed->total_steps = o->max_steps;
        return TALPA_OK;
    }
    feed->total_examples = (uint64_t)ceil((double)n * o->num_epochs);
    if (!o->packing) return steps_of_rows(feed, feed->total_examples);
    uint64_t n_rows = 0;
    for (uint64_t epoch = 0; epoch < feed->total_examples / n; epoch++) n_rows += begin_epoch(feed, epoch);
    const uint32_t rest = (uint32_t)(feed->total_examples % n);
    if (rest) {
        begin_epoch(feed, feed->total_examples / n);
        n_rows += feed->row[rest - 1] + 1;
    }
    return steps_of_rows(feed, n_rows);
}

static enum talpa_status create(struct tp_feed *feed, bool with_batches)
{
    const struct tp_feed_options *o = &feed->options;
    if (o->packing && o->include_pads)
        return tp_fail(TALPA_E_ARGUMENT, "packed rows have no pads: --aux-include-pads does not go with --packing");
    for (size_t i = 0; i < tp_dataset_n_examples(feed->data); i++) {
        const struct tp_dataset_example example = tp_dataset_example(feed->data, i);
        if (example.n_tokens > o->max_seq_length)
            return tp_fail(TALPA_E_ARGUMENT, "line %llu: an example of %u tokens does not fit a row of %u",
                           (unsigned long long)example.line, example.n_tokens, o->max_seq_length);
    }
    const size_t n = n_examples(feed), leaves = n_leaves((uint32_t)n);
    feed->order = malloc(n * sizeof *feed->order);
    if (o->packing) {
        feed->row = malloc(n * sizeof *feed->row);
        feed->room = malloc(2 * leaves * sizeof *feed->room);
        feed->start = malloc((3 * n + 1) * sizeof *feed->start);
    }
    if (!feed->order || (o->packing && (!feed->row || !feed->room || !feed->start)))
        return tp_fail_memory("the order of examples", n * sizeof *feed->order);
    TP_TRY(count_steps(feed));
    if (!with_batches) return TALPA_OK;
    feed->batches = calloc((size_t)o->accumulation, sizeof *feed->batches);
    if (!feed->batches) return tp_fail_memory("batches", (unsigned long long)o->accumulation * sizeof *feed->batches);
    const uint32_t max_tokens = (uint32_t)o->batch_size * o->max_seq_length;
    for (int i = 0; i < o->accumulation; i++) TP_TRY(tp_batch_create(&feed->batches[i], max_tokens, max_tokens));
    return TALPA_OK;
}

static enum talpa_status open_feed(struct tp_feed *out, const struct tp_dataset *data, const struct tp_feed_options *options,
                                   bool with_batches)
{
    struct tp_feed feed = {.data = data, .options = *options, .order_epoch = UINT64_MAX};
    const enum talpa_status status = create(&feed, with_batches);
    if (status == TALPA_OK) *out = feed;
    else tp_feed_free(&feed);
    return status;
}

enum talpa_status tp_feed_create(struct tp_feed *out, const struct tp_dataset *data, const struct tp_feed_options *options)
{
    return open_feed(out, data, options, true);
}

enum talpa_status tp_feed_count_steps(int *out, const struct tp_dataset *data, const struct tp_feed_options *options)
{
    struct tp_feed feed;
    TP_TRY(open_feed(&feed, data, options, false));
    *out = feed.total_steps;
    tp_feed_free(&feed);
    return TALPA_OK;
}

void tp_feed_free(struct tp_feed *feed)
{
    for (int i = 0; feed->batches && i < feed->options.accumulation; i++) tp_batch_free(&feed->batches[i]);
    free(feed->batches);
    free(feed->order);
    free(feed->row);
    free(feed->room);
    free(feed->start);
    *feed = (struct tp_feed){0};
}

/* ---- one step ---- */

/* Tokens of the longest of the next rows of a micro-batch (no packing: a row is an example). Leaves the cursor as it was. */
static uint32_t longest_of_next(struct tp_feed *feed)
{
    const uint64_t first = feed->cursor;
    uint32_t longest = 0;
    for (int i = 0; i < feed->options.batch_size && feed->cursor < feed->total_examples; i++, feed->cursor++) {
        uint64_t row;
        const struct tp_dataset_example example = peek(feed, &row);
        if (example.n_tokens > longest) longest = example.n_tokens;
    }
    feed->cursor = first;
    return longest;
}

static enum talpa_status fill(struct tp_feed *feed, struct tp_batch *batch, uint32_t *ordinal)
{
    const uint32_t pad_to = feed->options.include_pads ? longest_of_next(feed) : 0;
    uint64_t last_row = UINT64_MAX;
    int n_rows = 0;
    tp_batch_clear(batch);
    for (; feed->cursor < feed->total_examples; feed->cursor++) {
        uint64_t row;
        const struct tp_dataset_example example = peek(feed, &row);
        if (row != last_row && n_rows++ == feed->options.batch_size) break;
        last_row = row;
        TP_TRY(tp_batch_add(batch, &example, (*ordinal)++, pad_to, feed->options.pad_id));
    }
    return TALPA_OK;
}

enum talpa_status tp_feed_next(struct tp_feed_step *out, struct tp_feed *feed)
{
    struct tp_feed_step step = {0};
    for (; step.n_micro < feed->options.accumulation && feed->cursor < feed->total_examples; step.n_micro++) {
        struct tp_batch *batch = &feed->batches[step.n_micro];
        TP_TRY(fill(feed, batch, &step.n_examples));
        step.n_labelled += batch->n_labelled;
        step.n_tokens += batch->n_tokens;
        step.n_pads += batch->n_pads;
    }
    *out = step;
    return TALPA_OK;
}

enum talpa_status tp_feed_seek(struct tp_feed *feed, uint64_t cursor)
{
    if (cursor > feed->total_examples)
        return tp_fail(
            TALPA_E_DATA,
            "the run has consumed %llu examples, expected at most %llu: --max-steps or --num-train-epochs is smaller than before",
            (unsigned long long)cursor, (unsigned long long)feed->total_examples);
    feed->cursor = cursor;
    return TALPA_OK;
}

double tp_feed_epoch(const struct tp_feed *feed) { return (double)feed->cursor / (double)tp_dataset_n_examples(feed->data); }
