/* The conformance check finds faults: the kernel of `add` is replaced by wrong ones (TALPA_KERNEL_DIR), each must be noticed by the right
 * check and by no other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "check/conformance.h"

#define ROWS_IN_USE "(size_t)(symbol ? min(step[symbol], bound) : bound) * inner"

struct fault {
    const char *name, *body;
    const char *found[4]; /* checks that must fail at least once; all others must pass */
};

static const struct fault faults[] = {
    {"none", "if (i < n) out[i] = a[i] + b[i];", {NULL}},
    {"slightly wrong", "if (i < n) out[i] = a[i] + b[i] * 1.001f;", {"forward"}},
    {"not written", "if (i + 1 < n) out[i] = a[i] + b[i];", {"forward"}},
    {"not a number", "if (i < n) out[i] = i == n / 2 ? NAN : a[i] + b[i];", {"forward"}},
    {"rows out of use written", "if (i < (size_t)bound * inner) out[i] = i < n ? a[i] + b[i] : 0.0f;", {"rows"}},
    {"rows out of use read", "if (i < n) out[i] = a[i] + b[i] + 0.0f * a[(size_t)bound * inner - 1];", {"forward"}},
    {"written past the end",
     "if (i < n) out[i] = a[i] + b[i]; if (i == 0) out[(size_t)bound * inner] = 1.0f;",
     {"guard", "gradient guard"}},
    {"input of the graph written past its end",
     "if (i < n) out[i] = a[i] + b[i]; if (i == 0) ((__global float *)b)[(size_t)bound * inner] = 1.0f;",
     {"guard", "gradient guard"}},
    {"what was left from the last run",
     "if (i < n) out[i] = a[i] + b[i]; if (i == 0) { __global int *c = (__global int *)b + (size_t)bound * inner + 64; "
     "out[0] += 1e-6f * (float)(*c + 1); *c += 1; }",
     {"guard", "repeat", "gradient guard"}},
};
enum { N_FAULTS = sizeof faults / sizeof *faults, MAX_SEEN = 16 };

struct seen {
    char what[MAX_SEEN][64];
    int n, n_results;
};

static void report(const struct tp_conformance_result *result, void *user)
{
    struct seen *seen = user;
    seen->n_results++;
    assert_string_equal(result->op, "add");
    assert_string_equal(result->tier, "generic");
    if (result->status == TALPA_OK) {
        assert_true(result->max_error <= result->tolerance);
        return;
    }
    assert_int_equal(result->status, TALPA_E_CHECK);
    assert_true(strlen(result->message) > 0);
    for (int i = 0; i < seen->n; i++)
        if (!strcmp(seen->what[i], result->what)) return;
    assert_true(seen->n < MAX_SEEN);
    snprintf(seen->what[seen->n++], sizeof *seen->what, "%s", result->what);
}

static struct tp_device *open_device(void)
{
    struct talpa_device_caps *caps;
    size_t n, index;
    struct tp_device *device;
    assert_int_equal(talpa_device_list(&caps, &n), TALPA_OK);
    assert_int_equal(talpa_device_select(&index, caps, n, NULL), TALPA_OK);
    free(caps);
    assert_int_equal(tp_device_open(&device, index, false), TALPA_OK);
    return device;
}

static void write_kernel(const char *folder, const struct fault *fault)
{
    char path[512];
    snprintf(path, sizeof path, "%s/generic/elementwise.cl", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(
        file,
        "__kernel void add(__global const float *a, __global const float *b, __global float *out, __global const uint *step, uint symbol,\n"
        "                  uint bound, uint inner)\n{\n    const size_t i = get_global_id(0), n = %s;\n    %s\n}\n",
        ROWS_IN_USE, fault->body);
    assert_int_equal(fclose(file), 0);
}

static bool expected(const struct fault *fault, const char *what)
{
    for (int i = 0; i < 4 && fault->found[i]; i++)
        if (!strcmp(fault->found[i], what)) return true;
    return false;
}

static void test_faults(void **unused)
{
    (void)unused;
    const char *base = getenv("TMPDIR");
    char folder[256], generic[300];
    snprintf(folder, sizeof folder, "%s/talpa_test_XXXXXX", base && *base && strlen(base) < 200 ? base : P_tmpdir);
    assert_non_null(mkdtemp(folder));
    snprintf(generic, sizeof generic, "%s/generic", folder);
    assert_int_equal(mkdir(generic, 0700), 0);
    assert_int_equal(setenv("TALPA_KERNEL_DIR", folder, 1), 0);
    int n_bad = 0;
    for (int f = 0; f < N_FAULTS; f++) {
        struct seen seen = {.n = 0};
        struct tp_conformance_totals totals;
        write_kernel(folder, &faults[f]);
        struct tp_device *device = open_device();
        assert_int_equal(tp_conformance_run(&totals, device, "add", "generic", report, &seen), TALPA_OK);
        tp_device_close(device);
        assert_int_equal(totals.n_ops, 1);
        assert_int_equal(totals.n_checks, seen.n_results);
        assert_int_equal(totals.n_failed > 0, seen.n > 0);
        for (int i = 0; i < seen.n; i++) {
            if (expected(&faults[f], seen.what[i])) continue;
            print_error("fault '%s': check '%s' failed\n", faults[f].name, seen.what[i]);
            n_bad++;
        }
        for (int i = 0; i < 4 && faults[f].found[i]; i++) {
            bool found = false;
            for (int k = 0; k < seen.n; k++) found = found || !strcmp(seen.what[k], faults[f].found[i]);
            if (found) continue;
            print_error("fault '%s': check '%s' did not notice\n", faults[f].name, faults[f].found[i]);
            n_bad++;
        }
    }
    unsetenv("TALPA_KERNEL_DIR");
    char path[512];
    snprintf(path, sizeof path, "%s/elementwise.cl", generic);
    unlink(path);
    rmdir(generic);
    rmdir(folder);
    assert_int_equal(n_bad, 0);
}

static void test_unknown(void **unused)
{
    (void)unused;
    struct tp_device *device = open_device();
    struct tp_conformance_totals totals;
    assert_int_equal(tp_conformance_run(&totals, device, "no_such_op", "", NULL, NULL), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "no_such_op"));
    tp_device_close(device);
}

int main(void)
{
    struct talpa_device_caps *caps;
    size_t n;
    if (talpa_device_list(&caps, &n) != TALPA_OK) {
        fprintf(stderr, "skipped: %s\n", talpa_error_message());
        return 77;
    }
    free(caps);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_faults), cmocka_unit_test(test_unknown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
