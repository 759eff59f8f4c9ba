/* Shared by the tests of host/runtime: a device, a folder of kernels, captured warnings. */
#ifndef RUNTIME_TEST_H
#define RUNTIME_TEST_H

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

#include "runtime/device.h"
#include "runtime/program.h"
#include "talpa/log.h"

enum { TEST_EXIT_SKIP = 77 };

#define assert_ok(expression) test_assert_ok((expression), __FILE__, __LINE__)
static inline void test_assert_ok(enum talpa_status status, const char *file, int line)
{
    if (status == TALPA_OK) return;
    print_error("status %d: %s\n%s\n", (int)status, talpa_error_message(), talpa_error_build_log());
    _fail(file, line);
}

#define assert_contains(text, part) test_assert_contains((text), (part), __FILE__, __LINE__)
static inline void test_assert_contains(const char *text, const char *part, const char *file, int line)
{
    if (strstr(text, part)) return;
    print_error("'%s' lacks '%s'\n", text, part);
    _fail(file, line);
}

/* The device that TALPA_DEVICE or the default rule chooses. */
static inline size_t test_device_index(struct talpa_device_caps *chosen)
{
    struct talpa_device_caps *caps;
    size_t n, index;
    assert_ok(talpa_device_list(&caps, &n));
    assert_ok(talpa_device_select(&index, caps, n, NULL));
    if (chosen) *chosen = caps[index];
    free(caps);
    return index;
}

static inline struct tp_device *test_device_open(bool profiling)
{
    struct tp_device *device;
    assert_ok(tp_device_open(&device, test_device_index(NULL), profiling));
    return device;
}

/* A folder of its own with an empty "common" below; removed by test_folder_remove. */
static inline void test_folder_create(char out[256])
{
    const char *base = getenv("TMPDIR");
    snprintf(out, 256, "%s/talpa_test_XXXXXX", base && *base && strlen(base) < 200 ? base : P_tmpdir);
    assert_non_null(mkdtemp(out));
    char common[280];
    snprintf(common, sizeof common, "%s/common", out);
    assert_int_equal(mkdir(common, 0700), 0);
}

static inline void test_folder_remove(const char *folder)
{
    char command[320];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}

static inline void test_file_write(const char *folder, const char *name, const char *text)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
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
