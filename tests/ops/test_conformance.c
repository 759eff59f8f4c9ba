/* Runs every case of every op on the default device, tier by tier (host/check/conformance.h).
 * For work on one op: `test_ops_conformance OP` or TALPA_CONFORMANCE_OP=OP, and TALPA_TIER=NAME for one tier only; the
 * checks of one op are then printed one by one. TALPA_CONFORMANCE_ELEMENTS=N leaves out the cases with more than N input elements. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "check/conformance.h"
#include "exec/tier.h"

static struct {
    struct tp_device *device;
    const char *op, *tier;
    int64_t max_elements;
    int n_failed, n_printed;
} fixture;

static void report(const struct tp_conformance_result *result, void *user)
{
    double *worst = user;
    if (result->tolerance > 0 && result->max_error / result->tolerance > *worst) *worst = result->max_error / result->tolerance;
    if (fixture.op) {
        printf("    %-10s %-40s %-24s %-9.2g %s\n", result->tier, result->case_name, result->what, result->max_error,
               result->status == TALPA_OK ? "ok" : "FAILED");
        fflush(stdout);
    }
    if (result->status == TALPA_OK) return;
    print_error("%s '%s' tier %s, %s: %s (error %.3g, tolerance %.3g)\n", result->op, result->case_name, result->tier, result->what,
                result->message, result->max_error, result->tolerance);
    if (fixture.n_printed++ < 3) print_error("%.2000s\n", talpa_error_build_log());
}

static void test_op(void **state)
{
    const struct tp_op *op = *state;
    int n_failed = 0;
    for (int t = 0; t < TP_N_TIERS; t++) {
        if (fixture.tier ? strcmp(fixture.tier, tp_tiers[t]) != 0 : false) continue;
        if (!tp_conformance_has_tier(fixture.device, tp_tiers[t])) continue;
        struct tp_conformance_totals totals;
        double worst = 0;
        const int64_t start = tp_clock_now_ns();
        if (tp_conformance_run_small(&totals, fixture.device, op->name, tp_tiers[t], fixture.max_elements, report, &worst) != TALPA_OK) {
            print_error("%s: %s\n", op->name, talpa_error_message());
            fail();
        }
        if (!totals.n_ops) continue;
        printf("  %-32s %-8s %3d cases %4d checks %3d failed, %d variants, error/tolerance %.2g, %.1f s\n", op->name, tp_tiers[t],
               totals.n_cases, totals.n_checks, totals.n_failed, totals.n_variants, worst, (double)(tp_clock_now_ns() - start) * 1e-9);
        fflush(stdout);
        n_failed += totals.n_failed;
    }
    assert_int_equal(n_failed, 0);
}

/* What the descriptor of every op must have. */
static void test_descriptors(void **state)
{
    (void)state;
    assert_true(tp_n_ops > 0);
    int n_bad = 0;
    for (size_t i = 0; i < tp_n_ops; i++) {
        const struct tp_op *op = tp_ops[i];
        const bool has_launches = !(op->flags & (TP_OP_VIEW | TP_OP_CONCAT));
        bool checks_gradient = false, has_real_input = false;
        for (int c = 0; c < op->n_cases; c++) {
            for (int k = 0; k < op->cases[c].n_in; k++) {
                checks_gradient = checks_gradient || op->cases[c].in[k].grad;
                has_real_input = has_real_input || op->cases[c].in[k].dtype != TALPA_I32;
            }
        }
        const char *missing = op->n_cases < 1                                      ? "a case"
                              : !op->reference                                     ? "a reference"
                              : !op->infer                                         ? "infer"
                              : !op->gradient && !op->no_gradient                  ? "a gradient, or a reason for none"
                              : op->gradient && has_real_input && !checks_gradient ? "a case that checks its gradient"
                              : has_launches && op->n_variants < 1                 ? "a variant"
                              : has_launches && strcmp(op->variants[op->n_variants - 1].tier, "generic") ? "a generic variant at the end"
                              : has_launches && op->variants[op->n_variants - 1].applies ? "a generic variant that always applies"
                                                                                         : NULL;
        if (missing) {
            print_error("op %s lacks %s\n", op->name, missing);
            n_bad++;
        }
        assert_ptr_equal(tp_op_find(op->name), op);
    }
    assert_int_equal(n_bad, 0);
}

static int open_device(void **state)
{
    (void)state;
    struct talpa_device_caps *caps;
    size_t n, index;
    if (talpa_device_list(&caps, &n) != TALPA_OK) return -1;
    const enum talpa_status status = talpa_device_select(&index, caps, n, NULL);
    if (status == TALPA_OK) printf("device: %s\n", caps[index].name);
    /* Without tiles in the processor, the kernels of x86_amx run with the instructions written out in C. */
    if (status == TALPA_OK && !strstr(caps[index].cpu_features, "amx_bf16")) setenv("TALPA_AMX_EMULATE", "1", 0);
    free(caps);
    if (status == TALPA_OK && tp_device_open(&fixture.device, index, false) == TALPA_OK) return 0;
    print_error("%s\n", talpa_error_message());
    return -1;
}

static int close_device(void **state)
{
    (void)state;
    tp_device_close(fixture.device);
    return 0;
}

int main(int argc, char **argv)
{
    struct talpa_device_caps *caps;
    size_t n;
    if (talpa_device_list(&caps, &n) != TALPA_OK) {
        fprintf(stderr, "skipped: %s\n", talpa_error_message());
        return 77;
    }
    free(caps);
    fixture.op = argc > 1 ? argv[1] : getenv("TALPA_CONFORMANCE_OP");
    fixture.tier = getenv("TALPA_TIER");
    const char *limit = getenv("TALPA_CONFORMANCE_ELEMENTS");
    fixture.max_elements = limit && *limit ? strtoll(limit, NULL, 10) : INT64_MAX;
    if (fixture.op && !tp_op_find(fixture.op)) {
        fprintf(stderr, "no op is called '%s'\n", fixture.op);
        return 2;
    }
    struct CMUnitTest *tests = calloc(tp_n_ops + 1, sizeof *tests);
    if (!tests) return 1;
    size_t n_tests = 0;
    if (!fixture.op) tests[n_tests++] = (struct CMUnitTest)cmocka_unit_test(test_descriptors);
    for (size_t i = 0; i < tp_n_ops; i++) {
        if (fixture.op && strcmp(fixture.op, tp_ops[i]->name) != 0) continue;
        tests[n_tests++] = (struct CMUnitTest){tp_ops[i]->name, test_op, NULL, NULL, (void *)(uintptr_t)tp_ops[i]};
    }
    const int failed = _cmocka_run_group_tests("conformance", tests, n_tests, open_device, close_device);
    free(tests);
    return failed != 0;
}
