/* Packed rows: examples do not see each other, and the loss is that of the examples alone. */
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
#include "train/evaluate.h"
#include "train/feed.h"

enum { N = 9, MAX = 48, ROWS = 2 };

static struct talpa_model *model;
static struct tp_engine engine;
static struct tp_adapter *adapter;

/* Prompts of ignored labels and completions; `change` alters one token of example 0, in its prompt. */
static struct tp_dataset *make_data(bool change)
{
    static char text[N * 1024];
    size_t used = 0;
    struct tp_dataset *data;
    for (unsigned i = 0; i < N; i++) {
        const unsigned n = i ? 4 + (unsigned)(tp_rng_splitmix64(3, i) % 20) : 17;
        for (int labels = 0; labels < 2; labels++) {
            used += (size_t)snprintf(text + used, sizeof text - used, labels ? "], \"labels\": [" : "{\"input_ids\": [");
            for (unsigned k = 0; k < n; k++) {
                const unsigned id = (unsigned)(tp_rng_splitmix64(4, i * 64 + k) % 250) + (change && !i && k == 1);
                if (labels && k < 3) used += (size_t)snprintf(text + used, sizeof text - used, "%s-100", k ? ", " : "");
                else used += (size_t)snprintf(text + used, sizeof text - used, "%s%u", k ? ", " : "", id);
            }
        }
        used += (size_t)snprintf(text + used, sizeof text - used, "]}\n");
    }
    golden_ok(tp_dataset_parse(&data, text, used, "rows", model->tokenizer, NULL));
    assert_int_equal(tp_dataset_n_examples(data), N);
    return data;
}

static int set_up(void **state)
{
    (void)state;
    struct talpa_adapter_config config = talpa_adapter_default();
    config.routing = TALPA_ROUTING_ADAMOLE;
    golden_ok(talpa_model_open(&model, "random:tiny"));
    golden_ok(tp_engine_open(&engine, golden_device(), model));
    golden_ok(tp_adapter_create(&adapter, model, &config));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tp_adapter_free(adapter);
    tp_engine_close(&engine);
    talpa_model_close(model);
    return 0;
}

static struct tp_evaluator make_evaluator(bool sparse)
{
    struct tp_evaluator e;
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    golden_ok(tp_evaluator_create(&e, &engine, model, adapter, ROWS * MAX, &options, sparse));
    float *bank = malloc((size_t)adapter->bank_elements * sizeof *bank);
    assert_non_null(bank);
    tp_rng_fill_splitmix(bank, (size_t)adapter->bank_elements, 5, 1, 0.3); /* B too: the adapter has a say */
    golden_ok(tp_executor_write(e.set.executor, e.eval.params, bank, (size_t)adapter->bank_elements * sizeof *bank));
    free(bank);
    return e;
}

/* Runs a micro-batch of the feed; losses of its labelled tokens in the order of its rows. */
static uint32_t run_batch(float *nll, struct tp_evaluator *e, const struct tp_batch *batch)
{
    struct tp_step step = {{0}};
    tp_step_set_f32(&step, TP_STEP_LOSS_SCALE, 1.0f);
    golden_ok(tp_batch_write(batch, e->set.executor, &e->eval.inputs, &step));
    golden_ok(tp_executor_step(e->set.executor, &step));
    golden_ok(tp_executor_run(e->set.executor, 0, TP_PHASE_BATCH));
    golden_ok(tp_executor_read(e->set.executor, e->eval.nll, nll, batch->n_labelled * sizeof *nll));
    return batch->n_labelled;
}

static struct tp_feed open_feed(const struct tp_dataset *data)
{
    const struct tp_feed_options options = {
        .seed = 1, .batch_size = ROWS, .accumulation = 1, .num_epochs = 1.0, .max_seq_length = MAX, .packing = true};
    struct tp_feed feed;
    golden_ok(tp_feed_create(&feed, data, &options));
    return feed;
}

/* The sum over packed rows is the sum over the examples one by one. */
static void test_loss(void **state)
{
    (void)state;
    struct tp_dataset *data = make_data(false);
    for (int sparse = 0; sparse < 2; sparse++) {
        struct tp_evaluator e = make_evaluator(sparse);
        struct tp_losses alone;
        golden_ok(tp_evaluator_losses(&alone, &e, data, 1));
        double want = 0.0, got = 0.0;
        uint32_t n_want = 0, n_got = 0;
        for (int i = 0; i < N; i++) {
            want += alone.sum[i];
            n_want += alone.n[i];
        }
        tp_losses_free(&alone);
        struct tp_feed feed = open_feed(data);
        assert_true(feed.total_steps < N / ROWS); /* rows do hold several examples */
        float nll[ROWS * MAX];
        for (struct tp_feed_step step; tp_feed_next(&step, &feed) == TALPA_OK && step.n_micro;) {
            const uint32_t n = run_batch(nll, &e, &feed.batches[0]);
            assert_int_equal(n, step.n_labelled);
            n_got += n;
            for (uint32_t i = 0; i < n; i++) got += (double)nll[i];
        }
        assert_int_equal(n_got, n_want);
        if (fabs(got / n_got - want / n_want) > 1e-6 * want / n_want) fail_msg("packed %.9g, alone %.9g", got / n_got, want / n_want);
        tp_feed_free(&feed);
        tp_evaluator_free(&e);
    }
    tp_dataset_close(data);
}

/* Another token in example 0 changes its own losses and no bit of any other's. */
static void test_no_leakage(void **state)
{
    (void)state;
    struct tp_dataset *data[2] = {make_data(false), make_data(true)};
    struct tp_evaluator e = make_evaluator(false);
    struct tp_feed feed[2] = {open_feed(data[0]), open_feed(data[1])};
    int n_changed = 0, n_same = 0, n_neighbours = 0;
    for (struct tp_feed_step step; tp_feed_next(&step, &feed[0]) == TALPA_OK && step.n_micro;) {
        float nll[2][ROWS * MAX];
        golden_ok(tp_feed_next(&step, &feed[1]));
        const struct tp_batch *a = &feed[0].batches[0], *b = &feed[1].batches[0];
        const uint32_t n = run_batch(nll[0], &e, a);
        assert_int_equal(run_batch(nll[1], &e, b), n);
        const int changed_before = n_changed;
        int same_here = 0;
        for (uint32_t i = 0; i < n; i++) {
            const int32_t first = a->segments[2 * a->rows[i]];
            const bool is_changed = a->ids[first + 1] != b->ids[first + 1], is_equal = !memcmp(&nll[0][i], &nll[1][i], sizeof(float));
            if (!is_changed) assert_true(is_equal);
            n_changed += is_changed && !is_equal;
            same_here += !is_changed;
        }
        n_same += same_here;
        if (n_changed > changed_before) n_neighbours = same_here;
    }
    assert_true(n_changed > 0 && n_same > 0 && n_neighbours > 0);
    for (int i = 0; i < 2; i++) {
        tp_feed_free(&feed[i]);
        tp_dataset_close(data[i]);
    }
    tp_evaluator_free(&e);
}

int main(void)
{
    golden_device();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_loss), cmocka_unit_test(test_no_leakage)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
