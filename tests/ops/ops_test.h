/* Shared by the tests of host/ops that run a small graph of their own: device, store, plan and executor around one graph. */
#ifndef OPS_TEST_H
#define OPS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exec/executor.h"
#include "runtime/device.h"

enum { TEST_EXIT_SKIP = 77 };

#define assert_ok(expression) test_assert_ok((expression), __FILE__, __LINE__)
static inline void test_assert_ok(enum talpa_status status, const char *file, int line)
{
    if (status == TALPA_OK) return;
    print_error("status %d: %s\n%s\n", (int)status, talpa_error_message(), talpa_error_build_log());
    _fail(file, line);
}

/* Build the graph between test_run_open and test_run_start; free all with test_run_close. */
struct test_run {
    struct tp_device *device;
    struct tp_store *store;
    struct talpa_graph *graph;
    struct tp_plan *plan;
    struct tp_executor *executor;
    const char *tier; /* set before test_run_start to force one, NULL: TALPA_TIER */
};

static inline void test_run_open(struct test_run *run)
{
    struct talpa_device_caps *caps;
    size_t n, index;
    *run = (struct test_run){0};
    assert_ok(talpa_device_list(&caps, &n));
    assert_ok(talpa_device_select(&index, caps, n, NULL));
    free(caps);
    assert_ok(tp_device_open(&run->device, index, false));
    assert_ok(tp_store_create(&run->store, run->device));
    assert_ok(tp_graph_create(&run->graph));
}

static inline void test_run_start(struct test_run *run)
{
    struct tp_plan_options options;
    tp_plan_options_default(&options);
    if (run->tier) snprintf(options.tier, sizeof options.tier, "%s", run->tier);
    assert_ok(tp_graph_verify(run->graph));
    assert_ok(tp_plan_create(&run->plan, run->graph, tp_device_caps(run->device), &options));
    assert_ok(tp_executor_create(&run->executor, run->store, &run->plan, 1));
}

static inline void test_run_close(struct test_run *run)
{
    tp_executor_free(run->executor);
    tp_plan_free(run->plan);
    tp_graph_free(run->graph);
    tp_store_free(run->store);
    tp_device_close(run->device);
}

/* For main(): leaves with the code for "skipped" where no driver is installed. */
static inline void test_need_device(void)
{
    struct talpa_device_caps *caps;
    size_t n;
    if (talpa_device_list(&caps, &n) != TALPA_OK) {
        fprintf(stderr, "skipped: %s\n", talpa_error_message());
        exit(TEST_EXIT_SKIP);
    }
    free(caps);
}

#endif
