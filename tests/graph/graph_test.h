/* Shared by the tests of host/graph and host/exec. */
#ifndef GRAPH_TEST_H
#define GRAPH_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "graph/op.h"

#define assert_ok(expression) test_assert_ok((expression), __FILE__, __LINE__)
static inline void test_assert_ok(enum talpa_status status, const char *file, int line)
{
    if (status == TALPA_OK) return;
    print_error("status %d: %s\n%s\n", (int)status, talpa_error_message(), talpa_error_build_log());
    _fail(file, line);
}

/* The call fails with this status and its message contains every one of the words (a NULL ends them). */
#define assert_refused(expression, status, ...)                                                                                            \
    test_assert_refused((expression), (status), (const char *const[]){__VA_ARGS__, NULL}, __FILE__, __LINE__)
static inline void test_assert_refused(enum talpa_status got, enum talpa_status status, const char *const *words, const char *file,
                                       int line)
{
    bool fine = got == status;
    for (; *words && fine; words++) fine = strstr(talpa_error_message(), *words) != NULL;
    if (fine) return;
    print_error("status %d (expected %d), message '%s'\n", (int)got, (int)status, talpa_error_message());
    _fail(file, line);
}

static inline talpa_value test_input(struct talpa_graph *graph, const char *name, int64_t n, int64_t m)
{
    talpa_value value = TP_NONE;
    assert_ok(tp_graph_input(graph, &value, name, tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, n, m)));
    return value;
}

static inline talpa_value test_add(struct talpa_graph *graph, talpa_value a, talpa_value b)
{
    talpa_value value = TP_NONE;
    assert_ok(talpa_add(&value, graph, a, b));
    return value;
}

/* What a print function writes; freed by the caller. */
static inline char *test_graph_text(const struct talpa_graph *graph)
{
    char *text = NULL;
    size_t n = 0;
    FILE *file = open_memstream(&text, &n);
    assert_non_null(file);
    tp_graph_print(graph, file);
    assert_int_equal(fclose(file), 0);
    return text;
}

#endif
