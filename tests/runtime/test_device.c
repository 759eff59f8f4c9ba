#include "base/json.h"
#include "runtime_test.h"

static void records_are_complete(void **state)
{
    (void)state;
    struct talpa_device_caps *caps;
    size_t n;
    assert_ok(talpa_device_list(&caps, &n));
    assert_true(n > 0);
    for (size_t i = 0; i < n; ++i) {
        const struct talpa_device_caps *c = &caps[i];
        print_message("%zu: %s | %s | %s | %s | %s | align %u, in_process %d, features %s\n", i, c->platform, c->name, c->vendor_name,
                      tp_device_vendor_name(c->vendor), c->driver_version, (unsigned)c->base_align_bytes, c->in_process, c->cpu_features);
        assert_true(c->platform[0] && c->name[0] && c->driver_version[0]);
        assert_memory_equal(c->device_version, "OpenCL ", 7);
        assert_true(c->compute_units > 0 && c->max_work_group_size > 0 && c->local_mem_bytes > 0);
        assert_true(c->max_alloc_bytes > 0 && c->max_alloc_bytes <= c->global_mem_bytes);
        assert_true(c->base_align_bytes > 0 && c->base_align_bytes <= 4096);
        assert_true(c->little_endian);
        if (c->vendor == TALPA_VENDOR_POCL && c->type == TALPA_DEVICE_CPU) assert_true(c->in_process);
        if (c->vendor == TALPA_VENDOR_MESA || c->type != TALPA_DEVICE_CPU) assert_false(c->in_process);
    }
    free(caps);
}

/* The operating system's own list of flags is the independent source. */
static void cpu_features_match_the_kernel(void **state)
{
    (void)state;
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[8192], flags[8192] = "";
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "flags", 5) == 0 && !flags[0]) snprintf(flags, sizeof flags, "%s", strchr(line, ':') + 1);
    if (file) fclose(file);
    struct talpa_device_caps caps;
    test_device_index(&caps);
    if (!flags[0] || caps.type != TALPA_DEVICE_CPU) skip();
    flags[strcspn(flags, "\n")] = ' ';
    static const char *const names[] = {"avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512dq", "avx512bw", "avx512vl",
                                        "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"};
    char mine[sizeof caps.cpu_features + 2];
    snprintf(mine, sizeof mine, " %s ", caps.cpu_features);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
        char word[32];
        snprintf(word, sizeof word, " %s ", names[i]);
        print_message("%s%d%d\n", word, strstr(mine, word) != NULL, strstr(flags, word) != NULL);
        assert_int_equal(strstr(mine, word) != NULL, strstr(flags, word) != NULL);
    }
}

static void allocation_limit_from_environment(void **state)
{
    (void)state;
    struct talpa_device_caps *caps;
    size_t n;
    assert_int_equal(setenv("TALPA_MAX_ALLOC_BYTES", "1048576", 1), 0);
    assert_ok(talpa_device_list(&caps, &n));
    for (size_t i = 0; i < n; ++i) assert_int_equal(caps[i].max_alloc_bytes, 1048576);
    free(caps);
    /* It only lowers. */
    assert_int_equal(setenv("TALPA_MAX_ALLOC_BYTES", "18446744073709551615", 1), 0);
    assert_ok(talpa_device_list(&caps, &n));
    for (size_t i = 0; i < n; ++i) assert_true(caps[i].max_alloc_bytes <= caps[i].global_mem_bytes);
    free(caps);
    const char *const wrong[] = {"0", "1G", "-5", "99999999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
        assert_int_equal(setenv("TALPA_MAX_ALLOC_BYTES", wrong[i], 1), 0);
        assert_int_equal(talpa_device_list(&caps, &n), TALPA_E_ARGUMENT);
        assert_contains(talpa_error_message(), wrong[i]);
    }
    assert_int_equal(unsetenv("TALPA_MAX_ALLOC_BYTES"), 0);
}

static void memory_limit_from_environment(void **state)
{
    (void)state;
    struct talpa_device_caps *caps;
    size_t n;
    assert_int_equal(setenv("TALPA_MAX_MEMORY_BYTES", "67108864", 1), 0);
    assert_ok(talpa_device_list(&caps, &n));
    for (size_t i = 0; i < n; ++i) {
        assert_int_equal(caps[i].global_mem_bytes, 67108864);
        assert_true(caps[i].max_alloc_bytes <= 67108864);
    }
    free(caps);
    assert_int_equal(setenv("TALPA_MAX_MEMORY_BYTES", "12G", 1), 0);
    assert_int_equal(talpa_device_list(&caps, &n), TALPA_E_ARGUMENT);
    assert_contains(talpa_error_message(), "TALPA_MAX_MEMORY_BYTES=12G");
    assert_int_equal(unsetenv("TALPA_MAX_MEMORY_BYTES"), 0);
}

static void open_and_close(void **state)
{
    (void)state;
    struct talpa_device_caps *caps;
    size_t n;
    assert_ok(talpa_device_list(&caps, &n));
    struct tp_device *device = NULL;
    for (size_t i = 0; i < n; ++i) {
        assert_ok(tp_device_open(&device, i, i % 2 == 0));
        assert_memory_equal(tp_device_caps(device), &caps[i], sizeof caps[i]);
        assert_int_equal(tp_device_index(device), i);
        assert_int_equal(tp_device_is_profiling(device), i % 2 == 0);
        tp_device_close(device);
    }
    free(caps);
    struct tp_device *untouched = NULL;
    assert_int_equal(tp_device_open(&untouched, n, false), TALPA_E_ARGUMENT);
    assert_contains(talpa_error_message(), "expected 0 to");
    assert_null(untouched);
    tp_device_close(NULL);
}

static void malformed_fault_is_refused(void **state)
{
    (void)state;
    const char *const wrong[] = {"alloc", "alloc:", "alloc:0", "alloc:x", "alloc:1;launch:2", "disk:1", "alloc:-1"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
        struct tp_device *device = NULL;
        assert_int_equal(setenv("TALPA_FAULT", wrong[i], 1), 0);
        assert_int_equal(tp_device_open(&device, 0, false), TALPA_E_ARGUMENT);
        assert_contains(talpa_error_message(), wrong[i]);
        assert_null(device);
    }
    assert_int_equal(unsetenv("TALPA_FAULT"), 0);
}

static void record_as_json(void **state)
{
    (void)state;
    struct talpa_device_caps caps;
    assert_ok(talpa_device_fake(&caps, "nvidia"));
    struct tp_json_writer *writer;
    assert_ok(tp_json_writer_create(&writer, 0));
    assert_ok(tp_device_caps_json(writer, &caps));
    const char *text;
    size_t n_bytes;
    assert_ok(tp_json_writer_text(&text, &n_bytes, writer));
    struct tp_json *json;
    assert_ok(tp_json_parse(&json, text, n_bytes, "caps"));
    const struct tp_json_value *root = tp_json_root(json);
    assert_int_equal(tp_json_length(root), 22);
    const char *word;
    int64_t number;
    bool flag;
    assert_ok(tp_json_get_string(&word, root, "type"));
    assert_string_equal(word, "gpu");
    assert_ok(tp_json_get_string(&word, root, "vendor"));
    assert_string_equal(word, "nvidia");
    assert_ok(tp_json_get_int(&number, root, "global_mem_bytes"));
    assert_int_equal(number, 12884901888);
    assert_ok(tp_json_get_bool(&flag, root, "has_fp64"));
    assert_true(flag);
    tp_json_free(json);
    tp_json_writer_free(writer);
}

int main(void)
{
    test_need_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_complete), cmocka_unit_test(cpu_features_match_the_kernel),
        cmocka_unit_test(allocation_limit_from_environment), cmocka_unit_test(memory_limit_from_environment),
        cmocka_unit_test(open_and_close),
        cmocka_unit_test(malformed_fault_is_refused), cmocka_unit_test(record_as_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
