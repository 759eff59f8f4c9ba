/* The feed: which examples a run sees, in which order, and how they are laid into the micro-batches of every optimizer step.
 *
 * Order: every epoch goes through all examples once, in a permutation of its own (tp_dataset_permutation of seed and epoch), or in file
 * order. A row is one example or, with packing, several whose tokens sum to at most max_seq_length. Rows are found epoch by epoch with
 * first fit: each example, in the epoch's order, goes into the first row that has room (Johnson 1973); rows keep the order in which they
 * were opened, examples within a row the epoch's order. No row spans two epochs. A micro-batch has batch_size rows, a step `accumulation`
 * micro-batches.
 *
 * Everything is a function of the options and the number of examples consumed so far: that number is the whole cursor. */
#ifndef TP_FEED_H
#define TP_FEED_H

#include "train/batch.h"

struct tp_feed_options {
    uint64_t seed;
    int batch_size;         /* rows per micro-batch */
    int accumulation;       /* micro-batches per step */
    int max_steps;          /* 0: as num_epochs says */
    double num_epochs;      /* passes over the data; a part of an epoch is its first examples */
    uint32_t max_seq_length; /* tokens per row; no example is longer */
    bool no_shuffle, packing;
    bool include_pads;      /* lay pads behind every row up to the longest of its micro-batch; not with packing */
    int32_t pad_id;
};

struct tp_feed {
    const struct tp_dataset *data; /* borrowed */
    struct tp_feed_options options;
    struct tp_batch *batches; /* [accumulation] micro-batches of the present step */
    uint32_t *order;          /* [n_examples] of the present epoch */
    uint32_t *row;            /* [n_examples] packing: number of the row that order[i] is in */
    uint32_t *room;           /* packing: the tree of first fit, see feed.c */
    uint32_t *start;          /* packing: [n_examples + 1] scratch for the sort by row */
    uint64_t order_epoch;
    uint64_t cursor;          /* examples consumed */
    uint64_t total_examples;  /* of the run; UINT64_MAX with packing and max_steps, where steps bound it */
    int total_steps;
};

/** What one step holds. */
struct tp_feed_step {
    int n_micro;         /* micro-batches in use */
    uint32_t n_examples;
    uint32_t n_labelled;
    uint32_t n_tokens;   /* rows of the batches, pads included */
    uint32_t n_pads;
};

/** Counts the run's steps (with packing by packing every epoch once) and allocates the micro-batches. The data set is borrowed and outlives
 *  the feed; the caller frees the feed. TALPA_E_ARGUMENT: pads with packing, or more than 2^31 - 1 steps. */
enum talpa_status tp_feed_create(struct tp_feed *out, const struct tp_dataset *data, const struct tp_feed_options *options);
void tp_feed_free(struct tp_feed *feed);

/** Fills the micro-batches with the next step's examples and moves the cursor. n_micro is 0 when the run's examples are consumed. */
enum talpa_status tp_feed_next(struct tp_feed_step *out, struct tp_feed *feed);

/** Puts the cursor where an earlier run had it (a checkpoint). TALPA_E_DATA if it lies beyond the run. */
enum talpa_status tp_feed_seek(struct tp_feed *feed, uint64_t cursor);

/** Passes over the data so far. */
double tp_feed_epoch(const struct tp_feed *feed);

/** Steps of a run over `data` without allocating its micro-batches (the number that tp_feed_create would find). */
enum talpa_status tp_feed_count_steps(int *out, const struct tp_dataset *data, const struct tp_feed_options *options);

#endif
