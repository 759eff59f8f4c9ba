/* Invented capability records and the choice among records: no driver is needed. */
#include "runtime_test.h"

static void records_are_plausible(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum talpa_device_type type;
        enum talpa_vendor vendor;
    } expected[] = {{"amd", TALPA_DEVICE_GPU, TALPA_VENDOR_AMD},
                    {"intel", TALPA_DEVICE_GPU, TALPA_VENDOR_INTEL},
                    {"nvidia", TALPA_DEVICE_GPU, TALPA_VENDOR_NVIDIA},
                    {"cpu", TALPA_DEVICE_CPU, TALPA_VENDOR_POCL}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; ++i) {
        struct talpa_device_caps caps;
        memset(&caps, 0xff, sizeof caps);
        assert_ok(talpa_device_fake(&caps, expected[i].name));
        assert_int_equal(caps.type, expected[i].type);
        assert_int_equal(caps.vendor, expected[i].vendor);
        assert_true(caps.name[0] && caps.platform[0] && caps.driver_version[0]);
        assert_true(caps.max_alloc_bytes <= caps.global_mem_bytes && caps.max_alloc_bytes >= caps.global_mem_bytes / 4);
        assert_true(caps.local_mem_bytes >= 32768 && caps.max_work_group_size >= 256 && caps.compute_units > 0);
        /* A power of two, as OpenCL demands of the alignment. */
        assert_true(caps.base_align_bytes >= 128 && (caps.base_align_bytes & (caps.base_align_bytes - 1)) == 0);
        assert_int_equal(caps.in_process, caps.type == TALPA_DEVICE_CPU);
        assert_int_equal(caps.cpu_features[0] != '\0', caps.type == TALPA_DEVICE_CPU);
        assert_true(caps.little_endian);
    }
}

static void unknown_name_is_refused(void **state)
{
    (void)state;
    struct talpa_device_caps caps = {.compute_units = 12345};
    assert_int_equal(talpa_device_fake(&caps, "vax"), TALPA_E_ARGUMENT);
    assert_contains(talpa_error_message(), "'vax'");
    assert_contains(talpa_error_message(), "amd, intel, nvidia, cpu");
    assert_int_equal(caps.compute_units, 12345);
    assert_int_equal(talpa_device_fake(&caps, NULL), TALPA_E_ARGUMENT);
}

static void fill(struct talpa_device_caps caps[4])
{
    assert_ok(talpa_device_fake(&caps[0], "cpu"));
    assert_ok(talpa_device_fake(&caps[1], "nvidia"));
    assert_ok(talpa_device_fake(&caps[2], "amd"));
    assert_ok(talpa_device_fake(&caps[3], "intel"));
}

static size_t chosen(const char *selector)
{
    struct talpa_device_caps caps[4];
    fill(caps);
    size_t index = 99;
    assert_ok(talpa_device_select(&index, caps, 4, selector));
    return index;
}

static void selectors(void **state)
{
    (void)state;
    assert_int_equal(unsetenv("TALPA_DEVICE"), 0);
    assert_int_equal(chosen("0"), 0);
    assert_int_equal(chosen("2"), 2);
    assert_int_equal(chosen("GFX1100"), 2);
    assert_int_equal(chosen("nvidia"), 1);
    assert_int_equal(chosen("nvidia:nvidia geforce"), 1);
    assert_int_equal(chosen("pocl"), 0);
    assert_int_equal(chosen("pocl:cpu"), 0);
    assert_int_equal(chosen("portable computing language:CPU-has"), 0);
    assert_int_equal(chosen("arc"), 3);
    /* Most compute units among the GPUs. */
    assert_int_equal(chosen(NULL), 3);
    assert_int_equal(chosen(""), 3);
    assert_int_equal(setenv("TALPA_DEVICE", "amd", 1), 0);
    assert_int_equal(chosen(NULL), 2);
    assert_int_equal(chosen("0"), 0);
    assert_int_equal(unsetenv("TALPA_DEVICE"), 0);
}

static void gpu_comes_before_larger_cpu(void **state)
{
    (void)state;
    struct talpa_device_caps caps[3];
    assert_ok(talpa_device_fake(&caps[0], "cpu"));
    caps[0].compute_units = 4096;
    assert_ok(talpa_device_fake(&caps[1], "nvidia"));
    assert_ok(talpa_device_fake(&caps[2], "nvidia"));
    size_t index = 99;
    assert_ok(talpa_device_select(&index, caps, 3, NULL));
    assert_int_equal(index, 1);
    /* Equal CPUs: the one whose kernels run in this process. */
    caps[1] = caps[0];
    caps[0].in_process = false;
    assert_ok(talpa_device_select(&index, caps, 2, NULL));
    assert_int_equal(index, 1);
}

static void wrong_selector_lists_devices(void **state)
{
    (void)state;
    struct talpa_device_caps caps[4];
    fill(caps);
    size_t index = 99;
    const char *const wrong[] = {"4", "18446744073709551616", "no such", "-1"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
        assert_int_equal(talpa_device_select(&index, caps, 4, wrong[i]), TALPA_E_NO_DEVICE);
        assert_contains(talpa_error_message(), wrong[i]);
        assert_contains(talpa_error_message(), "2 = AMD Accelerated Parallel Processing:gfx1100");
    }
    assert_int_equal(talpa_device_select(&index, caps, 0, "0"), TALPA_E_NO_DEVICE);
    assert_int_equal(index, 99);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_plausible),       cmocka_unit_test(unknown_name_is_refused), cmocka_unit_test(selectors),
        cmocka_unit_test(gpu_comes_before_larger_cpu), cmocka_unit_test(wrong_selector_lists_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
