/* The feed: order, packing, steps and the cursor. Examples are recognised by their first token. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "golden.h"
#include "train/feed.h"

enum { N = 37, MAX = 24 };

static struct tp_tokenizer *tokenizer;
static struct tp_dataset *data;

/* Example i is i, 200, 201, ...; lengths 2 to 21, one of them MAX. */
static int set_up(void **state)
{
    (void)state;
    static char text[N * 256];
    size_t used = 0;
    for (unsigned i = 0; i < N; i++) {
        const unsigned n = i == 5 ? MAX : 2 + (unsigned)(tp_rng_splitmix64(9, i) % 20);
        used += (size_t)snprintf(text + used, sizeof text - used, "{\"input_ids\": [%u", i);
        for (unsigned k = 1; k < n; k++) used += (size_t)snprintf(text + used, sizeof text - used, ", %u", 199 + k);
        used += (size_t)snprintf(text + used, sizeof text - used, "]}\n");
    }
    golden_ok(tp_tokenizer_byte_level(&tokenizer));
    golden_ok(tp_dataset_parse(&data, text, used, "rows", tokenizer, NULL));
    assert_int_equal(tp_dataset_n_examples(data), N);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tp_dataset_close(data);
    tp_tokenizer_free(tokenizer);
    return 0;
}

static struct tp_feed_options defaults(bool packing)
{
    return (struct tp_feed_options){
        .seed = 11, .batch_size = 3, .accumulation = 2, .num_epochs = 2.0, .max_seq_length = MAX, .packing = packing};
}

static struct tp_feed open_feed(const struct tp_feed_options *options)
{
    struct tp_feed feed;
    golden_ok(tp_feed_create(&feed, data, options));
    return feed;
}

/* First tokens of all segments of a step, in order. */
static int examples_of(uint32_t *out, const struct tp_feed *feed, const struct tp_feed_step *step)
{
    int n = 0;
    for (int m = 0; m < step->n_micro; m++) {
        const struct tp_batch *batch = &feed->batches[m];
        for (uint32_t r = 0; r < batch->n_tokens; r++)
            if (batch->segments[2 * r] == (int32_t)r) out[n++] = (uint32_t)batch->ids[r];
    }
    return n;
}

/* ---- order ---- */

static void test_one_example_per_row(void **state)
{
    (void)state;
    const struct tp_feed_options options = defaults(false);
    struct tp_feed feed = open_feed(&options);
    uint32_t order[2][N], found[64], at = 0;
    for (uint64_t e = 0; e < 2; e++) tp_dataset_permutation(order[e], N, 11, e);
    assert_int_equal(feed.total_steps, (2 * N + 5) / 6);
    for (int s = 0; s < feed.total_steps; s++) {
        struct tp_feed_step step;
        golden_ok(tp_feed_next(&step, &feed));
        const int n = examples_of(found, &feed, &step);
        assert_int_equal(n, step.n_examples);
        for (int i = 0; i < n; i++, at++) assert_int_equal(found[i], order[at / N][at % N]);
        assert_int_equal(feed.cursor, at);
    }
    assert_int_equal(at, 2 * N);
    assert_true(fabs(tp_feed_epoch(&feed) - 2.0) < 1e-12);
    struct tp_feed_step step;
    golden_ok(tp_feed_next(&step, &feed));
    assert_int_equal(step.n_micro, 0);
    tp_feed_free(&feed);
}

/* First fit as it is defined, by trying every row. Writes the order of one epoch and the row of each place; returns the number of rows. */
static int naive(uint32_t *sorted, int *row_at, uint64_t seed, uint64_t epoch)
{
    uint32_t order[N], used[N] = {0};
    int row_of[N], n_rows = 0, at = 0;
    tp_dataset_permutation(order, N, seed, epoch);
    for (int i = 0; i < N; i++) {
        const uint32_t n = tp_dataset_example(data, order[i]).n_tokens;
        int r = 0;
        while (used[r] + n > MAX) r++;
        used[r] += n;
        row_of[i] = r;
        if (r + 1 > n_rows) n_rows = r + 1;
    }
    for (int r = 0; r < n_rows; r++)
        for (int i = 0; i < N; i++)
            if (row_of[i] == r) {
                sorted[at] = order[i];
                row_at[at++] = r;
            }
    assert_int_equal(at, N);
    return n_rows;
}

static void test_packing(void **state)
{
    (void)state;
    enum { EPOCHS = 3 };
    struct tp_feed_options options = defaults(true);
    options.num_epochs = EPOCHS;
    uint32_t order[EPOCHS][N], found[N * 6];
    int row[EPOCHS][N], n_rows = 0, at = 0, n_steps = 0;
    for (int e = 0; e < EPOCHS; e++) n_rows += naive(order[e], row[e], 11, (uint64_t)e);
    struct tp_feed feed = open_feed(&options);
    assert_int_equal(feed.total_steps, (n_rows + 5) / 6);
    int counted = 0;
    golden_ok(tp_feed_count_steps(&counted, data, &options));
    assert_int_equal(counted, feed.total_steps);
    for (;;) {
        struct tp_feed_step step;
        golden_ok(tp_feed_next(&step, &feed));
        if (!step.n_micro) break;
        n_steps++;
        const int n = examples_of(found, &feed, &step);
        int rows_here = 0, i = 0;
        for (int m = 0; m < step.n_micro; m++) {
            const struct tp_batch *batch = &feed.batches[m];
            int rows_of_batch = 0, last = -1;
            for (uint32_t k = 0; k < batch->n_segments; k++, i++, at++) {
                assert_int_equal(found[i], order[at / N][at % N]);
                const int here = at / N * N + row[at / N][at % N];
                rows_of_batch += here != last;
                last = here;
            }
            assert_true(rows_of_batch <= 3 && batch->n_tokens <= 3 * MAX && batch->n_pads == 0);
            for (uint32_t r = 0; r < batch->n_tokens; r++) /* positions restart with every example */
                assert_int_equal(batch->positions[r], (int32_t)r - batch->segments[2 * r]);
            rows_here += rows_of_batch;
        }
        assert_int_equal(i, n);
        assert_true(rows_here == 6 || feed.cursor == EPOCHS * N);
    }
    assert_int_equal(at, EPOCHS * N); /* every example once per epoch */
    assert_int_equal(n_steps, feed.total_steps);
    assert_true(n_rows < EPOCHS * N);
    tp_feed_free(&feed);
}

/* ---- the cursor ---- */

static void check_resume(const struct tp_feed_options *options)
{
    struct tp_feed whole = open_feed(options);
    for (int s = 0; s < whole.total_steps; s++) {
        struct tp_feed resumed = open_feed(options);
        struct tp_feed_step a, b;
        golden_ok(tp_feed_seek(&resumed, whole.cursor));
        golden_ok(tp_feed_next(&a, &whole));
        golden_ok(tp_feed_next(&b, &resumed));
        assert_memory_equal(&a, &b, sizeof a);
        assert_int_equal(whole.cursor, resumed.cursor);
        for (int m = 0; m < a.n_micro; m++) {
            const struct tp_batch *x = &whole.batches[m], *y = &resumed.batches[m];
            assert_int_equal(x->n_tokens, y->n_tokens);
            assert_memory_equal(x->ids, y->ids, x->n_tokens * sizeof *x->ids);
            assert_memory_equal(x->examples, y->examples, x->n_tokens * sizeof *x->examples);
            assert_memory_equal(x->segments, y->segments, 2 * x->n_tokens * sizeof *x->segments);
            assert_memory_equal(x->rows, y->rows, x->n_labelled * sizeof *x->rows);
        }
        tp_feed_free(&resumed);
    }
    tp_feed_free(&whole);
}

static void test_resume(void **state)
{
    (void)state;
    for (int packing = 0; packing < 2; packing++) {
        struct tp_feed_options options = defaults(packing != 0);
        options.num_epochs = 2.6;
        check_resume(&options);
        options.no_shuffle = true;
        check_resume(&options);
        options.max_steps = 9;
        check_resume(&options);
        assert_int_equal(packing, options.packing);
    }
    struct tp_feed_options options = defaults(true);
    struct tp_feed feed = open_feed(&options);
    assert_int_equal(tp_feed_seek(&feed, 2 * N + 1), TALPA_E_DATA);
    tp_feed_free(&feed);
}

/* ---- lengths of runs ---- */

static void test_lengths(void **state)
{
    (void)state;
    struct tp_feed_options options = defaults(true);
    options.max_steps = 17; /* wraps around the epochs */
    struct tp_feed feed = open_feed(&options);
    assert_int_equal(feed.total_steps, 17);
    for (int s = 0; s < 17; s++) {
        struct tp_feed_step step;
        golden_ok(tp_feed_next(&step, &feed));
        assert_int_equal(step.n_micro, 2);
    }
    assert_true(tp_feed_epoch(&feed) > 1.0);
    tp_feed_free(&feed);

    options.max_steps = 0;
    options.num_epochs = 1.4; /* 51.8 examples: 52 */
    feed = open_feed(&options);
    int n_steps = 0;
    uint32_t n_examples = 0;
    for (struct tp_feed_step step; tp_feed_next(&step, &feed) == TALPA_OK && step.n_micro; n_steps++) n_examples += step.n_examples;
    assert_int_equal(n_examples, 52);
    assert_int_equal(n_steps, feed.total_steps);
    tp_feed_free(&feed);
}

static void test_pads(void **state)
{
    (void)state;
    struct tp_feed_options options = defaults(false);
    options.include_pads = true;
    struct tp_feed feed = open_feed(&options);
    struct tp_feed_step step;
    golden_ok(tp_feed_next(&step, &feed));
    for (int m = 0; m < 2; m++) {
        const struct tp_batch *batch = &feed.batches[m];
        const int32_t length = batch->segments[1];
        for (uint32_t r = 0; r < batch->n_tokens; r++) assert_int_equal(batch->segments[2 * r + 1] - batch->segments[2 * r], length);
    }
    tp_feed_free(&feed);
    options.packing = true;
    assert_int_equal(tp_feed_create(&feed, data, &options), TALPA_E_ARGUMENT);
    options = defaults(true);
    options.max_seq_length = MAX - 1;
    assert_int_equal(tp_feed_create(&feed, data, &options), TALPA_E_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_example_per_row), cmocka_unit_test(test_packing),
                                       cmocka_unit_test(test_resume), cmocka_unit_test(test_lengths), cmocka_unit_test(test_pads)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
