/* Every choice of every parameter of the cpu GEMM, forced through a tuning file, against the references of matmul and of the vocabulary's
 * loss: tiles that are no part of a panel, strips of several panels, few groups. */
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
#include "runtime/tuning.h"

enum { SKIPPED = 77, MAX_ELEMENTS = 7000 };

static struct tp_device *device;
static char folder[200], name[256];

static void report(const struct tp_conformance_result *result, void *user)
{
    (void)user;
    if (result->status != TALPA_OK)
        print_error("%s '%s' %s: %s (error %.3g)\n%.1000s\n", result->op, result->case_name, result->what, result->message, result->max_error,
                    talpa_error_build_log());
}

static void check(const char *parameter, const char *value)
{
    static const char *const ops[] = {"matmul", "linear_cross_entropy"};
    FILE *file = fopen(name, "wb");
    assert_non_null(file);
    fprintf(file, "{\"talpa_tuning\": 1, \"devices\": [{\"values\": {\"cpu/gemm.cl\": {\"%s\": \"%s\"}}}]}\n", parameter, value);
    fclose(file);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        struct tp_conformance_totals totals;
        assert_int_equal(tp_conformance_run_small(&totals, device, ops[i], "cpu", MAX_ELEMENTS, report, NULL), TALPA_OK);
        printf("  %s %s: %s %d cases, %d checks, %d failed\n", parameter, value, ops[i], totals.n_cases, totals.n_checks, totals.n_failed);
        assert_true(totals.n_cases >= 5);
        assert_int_equal(totals.n_failed, 0);
    }
}

static void every_choice_is_right(void **state)
{
    (void)state;
    struct tp_tuning *tuning;
    int n, n_checked = 0;
    assert_int_equal(tp_tuning_create_default(&tuning), TALPA_OK);
    const struct tp_tunable *list = tp_tuning_list(tuning, &n);
    for (int i = 0; i < n; i++)
        for (int c = 0; !strcmp(list[i].path, "cpu/gemm.cl") && c < list[i].n_choices; c++) {
            /* Strips and groups change the order of work only: the least and the most of them. */
            if (strcmp(list[i].name, "TILE") && c && c < list[i].n_choices - 1) continue;
            check(list[i].name, list[i].choices[c]);
            n_checked++;
        }
    tp_tuning_free(tuning);
    assert_true(n_checked > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_choice_is_right)};
    const char *base = getenv("TMPDIR");
    struct talpa_device_caps *caps;
    size_t n, index;
    if (talpa_device_list(&caps, &n) != TALPA_OK) return SKIPPED;
    const bool usable = talpa_device_select(&index, caps, n, NULL) == TALPA_OK && caps[index].in_process;
    free(caps);
    snprintf(folder, sizeof folder, "%.100s/talpa_tiles_XXXXXX", base && *base ? base : "/tmp");
    if (!usable || tp_device_open(&device, index, false) != TALPA_OK || !mkdtemp(folder)) return SKIPPED;
    snprintf(name, sizeof name, "%s/tuning.json", folder);
    setenv("TALPA_TUNING", name, 1);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tp_device_close(device);
    unlink(name);
    rmdir(folder);
    return failed;
}
