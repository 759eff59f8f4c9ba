/* Source, includes, builds, launches, profiles, the cache on disk. */
#include <dirent.h>

#include "runtime/memory.h"
#include "runtime/queue.h"
#include "runtime_test.h"

static char folder[256];

static const char scale_cl[] = "/* y = factor * x + bias */\n"
                               "#include \"common/outer.clh\"\n"
                               "#include \"common/inner.clh\"\n"
                               "__kernel void scale(__global float *y, __global const float *x, float factor, uint n, ulong bias)\n"
                               "{\n"
                               "    const uint i = get_global_id(0);\n"
                               "    if (i < n) y[i] = twice(factor * x[i]) / HALF + (float)bias;\n"
                               "}\n"
                               "__kernel void total(__global uint *out, __local uint *part, int sign)\n"
                               "{\n"
                               "    part[get_local_id(0)] = get_global_id(0);\n"
                               "    barrier(CLK_LOCAL_MEM_FENCE);\n"
                               "    if (get_local_id(0) != 0) return;\n"
                               "    uint sum = 0;\n"
                               "    for (uint i = 0; i < get_local_size(0); ++i) sum += part[i];\n"
                               "    out[get_global_id(0) / get_local_size(0)] = sum * sign;\n"
                               "}\n"
                               "__kernel void busy(__global float *y, uint n)\n"
                               "{\n"
                               "    float v = y[get_global_id(0)];\n"
                               "    for (uint i = 0; i < n; ++i) v = v * 0.999f + 0.5f;\n"
                               "    y[get_global_id(0)] = v;\n"
                               "}\n";

static void write_kernels(void)
{
    test_file_write(folder, "scale.cl", scale_cl);
    test_file_write(folder, "common/outer.clh",
                    "  #  include \"common/inner.clh\" /* once */\nfloat twice(float v) { return 2.0f * v; }\n");
    test_file_write(folder, "common/inner.clh", "#define HALF 2.0f\nfloat inner(float v) { return v; }");
    test_file_write(folder, "broken.cl",
                    "#include \"common/inner.clh\"\n\n__kernel void broken(__global float *y)\n{\n    y[0] = no_such_name;\n}\n");
    test_file_write(folder, "lost.cl", "\n\n#include \"common/absent.clh\"\n");
    test_file_write(folder, "self.cl", "#include \"self.cl\"\n#include <not_ours.h>\n// #include \"comment.clh\"\nint x;");
}

static void includes_are_resolved_once(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n_bytes = 0;
    assert_ok(tp_program_source(&text, &n_bytes, "scale.cl"));
    assert_int_equal(strlen(text), n_bytes);
    assert_null(strstr(text, "include \"common"));
    const char *first = strstr(text, "float inner");
    assert_non_null(first);
    assert_null(strstr(first + 1, "float inner"));
    assert_true(first < strstr(text, "float twice"));
    /* Line numbers of the outer file go on behind the include, also when it was skipped. */
    assert_contains(text, "#line 4 \"scale.cl\"\n__kernel void scale");
    free(text);
    assert_ok(tp_program_source(&text, NULL, "self.cl"));
    assert_contains(text, "#include <not_ours.h>");
    assert_contains(text, "// #include \"comment.clh\"");
    assert_contains(text, "int x;");
    free(text);
}

static void missing_files(void **state)
{
    struct tp_device *device = *state;
    struct tp_kernel *kernel = NULL;
    char *text = NULL;
    assert_int_equal(tp_program_source(&text, NULL, "lost.cl"), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "lost.cl line 3: ");
    assert_contains(talpa_error_message(), "common/absent.clh");
    assert_null(text);
    assert_int_equal(tp_program_kernel(&kernel, device, "no/such.cl", "x", NULL), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "no/such.cl");
    assert_contains(talpa_error_message(), folder);
    assert_int_equal(tp_program_kernel(&kernel, device, "common", "x", NULL), TALPA_E_NO_INPUT);
    assert_null(kernel);
    assert_true(tp_program_exists("scale.cl"));
    assert_false(tp_program_exists("no/such.cl"));
    assert_false(tp_program_exists("common"));
}

static void broken_kernel_gives_the_log(void **state)
{
    struct tp_device *device = *state;
    struct tp_kernel *kernel = NULL;
    const struct tp_program_counts before = tp_program_counts(device);
    for (int i = 0; i < 2; ++i) {
        assert_int_equal(tp_program_kernel(&kernel, device, "broken.cl", "broken", "-DX=1"), TALPA_E_DEVICE);
        assert_contains(talpa_error_build_log(), "no_such_name");
        assert_contains(talpa_error_message(), "broken.cl");
        assert_contains(talpa_error_message(), "-DX=1");
        assert_contains(talpa_error_message(), "no_such_name");
        assert_true(talpa_error_opencl() != 0);
    }
    print_message("%s\n", talpa_error_message());
    assert_null(kernel);
    assert_int_equal(tp_program_counts(device).n_built, before.n_built);
}

static void kernels_are_shared(void **state)
{
    struct tp_device *device = *state;
    struct tp_kernel *a = NULL, *b = NULL, *c = NULL, *d = NULL, *none = NULL;
    assert_ok(tp_program_kernel(&a, device, "scale.cl", "scale", NULL));
    const uint64_t n_built = tp_program_counts(device).n_built + tp_program_counts(device).n_cache_hits;
    assert_ok(tp_program_kernel(&b, device, "scale.cl", "scale", ""));
    assert_ok(tp_program_kernel(&c, device, "scale.cl", "total", ""));
    assert_ptr_equal(a, b);
    assert_ptr_not_equal(a, c);
    assert_int_equal(tp_program_counts(device).n_built + tp_program_counts(device).n_cache_hits, n_built);
    assert_ok(tp_program_kernel(&d, device, "scale.cl", "scale", " -DOTHER=1"));
    assert_ptr_not_equal(a, d);
    assert_int_equal(tp_program_counts(device).n_built + tp_program_counts(device).n_cache_hits, n_built + 1);
    assert_string_equal(tp_kernel_name(c), "total");
    assert_string_equal(tp_kernel_path(c), "scale.cl");
    struct tp_kernel_info info;
    assert_ok(tp_kernel_info(&info, a));
    assert_true(info.max_work_group_size > 0 && info.preferred_multiple > 0);
    assert_int_equal(tp_program_kernel(&none, device, "scale.cl", "absent", NULL), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "'absent'");
    assert_int_equal(tp_program_kernel(&none, device, "scale.cl", "scale", "-cl-fast-relaxed-math"), TALPA_E_INTERNAL);
    assert_null(none);
}

static void launches_compute(void **state)
{
    struct tp_device *device = *state;
    struct tp_kernel *scale, *total;
    struct tp_buffer *x, *y;
    float values[100];
    for (int i = 0; i < 100; ++i) values[i] = (float)i;
    assert_ok(tp_program_kernel(&scale, device, "scale.cl", "scale", NULL));
    assert_ok(tp_program_kernel(&total, device, "scale.cl", "total", NULL));
    assert_ok(tp_buffer_create(&x, device, sizeof values));
    assert_ok(tp_buffer_create(&y, device, sizeof values));
    assert_ok(tp_buffer_write(x, 0, values, sizeof values, true));
    assert_ok(tp_buffer_fill_u32(y, 0, sizeof values, 0x3f800000u));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(y), tp_kernel_arg_buffer(x), tp_kernel_arg_f32(0.5f), tp_kernel_arg_u32(90),
                                         tp_kernel_arg_u64(3)};
    assert_ok(tp_queue_launch(device, scale, args, 5, (const size_t[3]){96, 1, 1}, NULL, "a"));
    assert_ok(tp_queue_flush(device));
    assert_ok(tp_buffer_read(values, y, 0, sizeof values, true));
    for (int i = 0; i < 100; ++i) assert_true(values[i] == (i < 90 ? 0.5f * (float)i + 3.0f : 1.0f));

    /* Groups of 8, the second piece starts at work-item 16. */
    uint32_t sums[4] = {0};
    const struct tp_kernel_arg sum_args[] = {tp_kernel_arg_buffer(y), tp_kernel_arg_local(8 * sizeof(uint32_t)), tp_kernel_arg_i32(-1)};
    const size_t local[3] = {8, 1, 1};
    assert_ok(tp_queue_launch(device, total, sum_args, 3, (const size_t[3]){16, 1, 1}, local, NULL));
    assert_ok(tp_queue_launch_piece(device, total, sum_args, 3, (const size_t[3]){16, 0, 0}, (const size_t[3]){16, 1, 1}, local, "b"));
    assert_ok(tp_buffer_read(sums, y, 0, sizeof sums, true));
    for (uint32_t group = 0; group < 4; ++group) assert_int_equal(sums[group], (uint32_t)-(int32_t)(64 * group + 28));
    tp_buffer_free(x);
    tp_buffer_free(y);
}

static void wrong_launches_are_refused(void **state)
{
    struct tp_device *device = *state;
    struct tp_kernel *busy;
    struct tp_buffer *y;
    assert_ok(tp_program_kernel(&busy, device, "scale.cl", "busy", NULL));
    assert_ok(tp_buffer_create(&y, device, 64));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(y), tp_kernel_arg_u64(1)};
    const size_t global[3] = {4, 1, 1};
    assert_int_equal(tp_queue_launch(device, busy, args, 1, global, NULL, "layer 3 q_proj"), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "layer 3 q_proj: kernel busy of scale.cl takes 2 arguments, 1 were given");
    assert_int_equal(tp_queue_launch(device, busy, args, 2, global, NULL, "layer 3 q_proj"), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "layer 3 q_proj: kernel busy of scale.cl refuses argument 1");
    assert_int_equal(talpa_error_opencl(), -51); /* CL_INVALID_ARG_SIZE, CL/cl.h */
    assert_int_equal(tp_queue_launch(device, busy, args, 2, (const size_t[3]){4, 0, 1}, NULL, NULL), TALPA_E_INTERNAL);
    assert_int_equal(tp_queue_launch(device, busy, args, 2, global, (const size_t[3]){3, 1, 1}, NULL), TALPA_E_INTERNAL);
    assert_int_equal(tp_queue_launch(device, busy, args, 2, global, (const size_t[3]){4, 0, 0}, NULL), TALPA_E_INTERNAL);
    struct tp_device *other = test_device_open(false);
    assert_int_equal(tp_queue_launch(other, busy, args, 2, global, NULL, NULL), TALPA_E_INTERNAL);
    tp_device_close(other);
    tp_buffer_free(y);
}

static void profile_is_plausible(void **state)
{
    (void)state;
    struct tp_device *device = test_device_open(true);
    struct tp_kernel *busy;
    struct tp_buffer *y;
    assert_ok(tp_program_kernel(&busy, device, "scale.cl", "busy", NULL));
    assert_ok(tp_buffer_create(&y, device, 4096));
    assert_ok(tp_buffer_fill(y, 0, 4096, 0));
    const size_t global[3] = {1024, 1, 1}, local[3] = {64, 1, 1};
    /* More launches than events are kept at a time. The first compiles on some drivers, so it is not compared. */
    enum { N = 2500, LONG = 2400 };
    for (uint32_t i = 0; i < N; ++i) {
        char label[32];
        snprintf(label, sizeof label, "launch %u", (unsigned)i);
        const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(y), tp_kernel_arg_u32(i == LONG ? 100000 : 1)};
        assert_ok(tp_queue_launch(device, busy, args, 2, global, local, i == 7 ? NULL : label));
    }
    const struct tp_launch_record *records;
    size_t n;
    assert_ok(tp_queue_profile(device, &records, &n));
    assert_int_equal(n, N);
    assert_string_equal(records[0].label, "launch 0");
    assert_string_equal(records[7].label, "");
    assert_string_equal(records[N - 1].label, "launch 2499");
    assert_string_equal(records[0].kernel_path, "scale.cl");
    assert_string_equal(records[0].kernel_name, "busy");
    for (size_t i = 0; i < n; ++i) {
        assert_true(records[i].queued_ns <= records[i].start_ns && records[i].start_ns <= records[i].end_ns);
        if (i > 0) assert_true(records[i].end_ns >= records[i - 1].end_ns);
    }
    /* 1024 x 100 000 dependent multiply-adds: no device of today needs less than 20 us or more than a minute. */
    const uint64_t long_ns = records[LONG].end_ns - records[LONG].start_ns;
    print_message("long launch %llu ns, short %llu ns\n", (unsigned long long)long_ns,
                  (unsigned long long)(records[LONG - 1].end_ns - records[LONG - 1].start_ns));
    if (tp_device_caps(device)->vendor == TALPA_VENDOR_MESA)
        print_message("not compared: rusticl of Mesa 22.3 gives constants for event times\n");
    else
        assert_true(long_ns > 20000 && long_ns < 60000000000u);
    assert_ok(tp_queue_profile_reset(device));
    assert_ok(tp_queue_profile(device, &records, &n));
    assert_int_equal(n, 0);
    tp_buffer_free(y);
    tp_device_close(device);

    device = test_device_open(false);
    assert_ok(tp_queue_profile(device, &records, &n));
    assert_int_equal(n, 0);
    tp_device_close(device);
}

static void faults_on_request(void **state)
{
    (void)state;
    assert_int_equal(setenv("TALPA_FAULT", "build:1,launch:2", 1), 0);
    struct tp_device *device = test_device_open(false);
    assert_int_equal(unsetenv("TALPA_FAULT"), 0);
    struct tp_kernel *busy = NULL;
    struct tp_buffer *y;
    assert_int_equal(tp_program_kernel(&busy, device, "scale.cl", "busy", NULL), TALPA_E_DEVICE);
    assert_int_equal(talpa_error_opencl(), -11); /* CL_BUILD_PROGRAM_FAILURE, CL/cl.h */
    assert_contains(talpa_error_build_log(), "injected");
    assert_null(busy);
    assert_ok(tp_program_kernel(&busy, device, "scale.cl", "busy", "-DSECOND"));
    assert_ok(tp_buffer_create(&y, device, 64));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(y), tp_kernel_arg_u32(1)};
    const size_t global[3] = {4, 1, 1};
    assert_ok(tp_queue_launch(device, busy, args, 2, global, NULL, "first"));
    assert_int_equal(tp_queue_launch(device, busy, args, 2, global, NULL, "second"), TALPA_E_DEVICE);
    assert_int_equal(talpa_error_opencl(), -5); /* CL_OUT_OF_RESOURCES, CL/cl.h */
    assert_contains(talpa_error_message(), "second: kernel busy of scale.cl on device ");
    assert_ok(tp_queue_launch(device, busy, args, 2, global, NULL, "third"));
    assert_ok(tp_queue_finish(device));
    tp_buffer_free(y);
    tp_device_close(device);
}

/* First file of the cache below `cache`; false if there is none. Counts them. */
static int cached_files(char path[1024], const char *cache)
{
    char programs[512];
    snprintf(programs, sizeof programs, "%s/programs", cache);
    DIR *directory = opendir(programs);
    int n = 0;
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') continue;
        if (n++ == 0) snprintf(path, 1024, "%s/%s", programs, entry->d_name);
    }
    closedir(directory);
    return n;
}

static bool keeps_programs;

/* Builds "busy" on a fresh device and runs it; returns the counts. */
static struct tp_program_counts build_and_run(size_t index, const char *options)
{
    struct tp_device *device;
    struct tp_kernel *busy;
    struct tp_buffer *y;
    float value = 0;
    assert_ok(tp_device_open(&device, index, false));
    if (keeps_programs) tp_program_keep(device);
    assert_ok(tp_program_kernel(&busy, device, "scale.cl", "busy", options));
    assert_ok(tp_buffer_create(&y, device, 64));
    assert_ok(tp_buffer_fill(y, 0, 64, 0));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(y), tp_kernel_arg_u32(1)};
    assert_ok(tp_queue_launch(device, busy, args, 2, (const size_t[3]){4, 1, 1}, NULL, NULL));
    assert_ok(tp_buffer_read(&value, y, 0, 4, true));
    assert_true(value == 0.5f);
    const struct tp_program_counts counts = tp_program_counts(device);
    print_message("built %d, hits %d, stored %d: %.1f ms\n", (int)counts.n_built, (int)counts.n_cache_hits, (int)counts.n_cache_stored,
                  (double)counts.build_ns / 1e6);
    tp_buffer_free(y);
    tp_device_close(device);
    return counts;
}

/* Every device but Mesa's, which caches by itself; PoCL's only if asked to keep programs. */
static void cache_on_disk(void **state)
{
    (void)state;
    struct talpa_device_caps *caps;
    size_t n, index = 0;
    assert_ok(talpa_device_list(&caps, &n));
    while (index < n && caps[index].vendor == TALPA_VENDOR_MESA) ++index;
    const bool has_other = index < n;
    char cache[300], path[1024] = "", other[1024];
    snprintf(cache, sizeof cache, "%s/cache/deep", folder);
    assert_int_equal(setenv("TALPA_CACHE_DIR", cache, 1), 0);
    assert_int_equal(unsetenv("TALPA_PROGRAM_CACHE"), 0);
    struct tp_program_counts counts;
    if (!has_other) {
        /* Mesa: nothing is stored. */
        counts = build_and_run(0, NULL);
        assert_true(counts.n_built == 1 && counts.n_cache_stored == 0 && counts.n_cache_hits == 0);
        assert_int_equal(cached_files(path, cache), 0);
        free(caps);
        print_message("no driver whose binaries are cached\n");
        skip();
    }
    print_message("%s\n", caps[index].name);
    if (caps[index].vendor == TALPA_VENDOR_POCL) {
        counts = build_and_run(index, NULL);
        assert_true(counts.n_built == 1 && counts.n_cache_stored == 0 && counts.n_cache_hits == 0);
        keeps_programs = true;
    }
    free(caps);
    counts = build_and_run(index, NULL);
    assert_true(counts.n_built == 1 && counts.n_cache_hits == 0);
    if (counts.n_cache_stored == 0) {
        print_message("this driver gives no binaries\n");
        skip();
    }
    assert_int_equal(cached_files(path, cache), 1);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    counts = build_and_run(index, NULL);
    assert_true(counts.n_built == 0 && counts.n_cache_hits == 1 && counts.n_cache_stored == 0);
    /* Other options, other file. */
    counts = build_and_run(index, "-DOTHER");
    assert_true(counts.n_built == 1 && counts.n_cache_hits == 0);
    assert_int_equal(cached_files(other, cache), 2);
    /* Other source, other file. */
    test_file_write(folder, "common/inner.clh", "#define HALF 2.0f\nfloat inner(float v) { return v + 0.0f; }");
    counts = build_and_run(index, NULL);
    assert_true(counts.n_built == 1 && counts.n_cache_hits == 0);
    write_kernels();
    /* Switched off. */
    assert_int_equal(setenv("TALPA_PROGRAM_CACHE", "0", 1), 0);
    counts = build_and_run(index, NULL);
    assert_true(counts.n_built == 1 && counts.n_cache_hits == 0 && counts.n_cache_stored == 0);
    assert_int_equal(unsetenv("TALPA_PROGRAM_CACHE"), 0);
    /* One flipped bit, a cut file and an empty one: built anew, then good again. */
    for (int damage = 0; damage < 3; ++damage) {
        if (damage == 0) {
            FILE *file = fopen(path, "r+b");
            assert_non_null(file);
            assert_int_equal(fseek(file, info.st_size / 2, SEEK_SET), 0);
            const int byte = fgetc(file);
            assert_int_equal(fseek(file, info.st_size / 2, SEEK_SET), 0);
            assert_int_equal(fputc(byte ^ 4, file), byte ^ 4);
            assert_int_equal(fclose(file), 0);
        } else {
            assert_int_equal(truncate(path, damage == 1 ? info.st_size - 1 : 0), 0);
        }
        counts = build_and_run(index, NULL);
        assert_true(counts.n_built == 1 && counts.n_cache_hits == 0 && counts.n_cache_stored == 1);
        counts = build_and_run(index, NULL);
        assert_true(counts.n_built == 0 && counts.n_cache_hits == 1);
    }
    /* A folder that others can write to is not trusted. */
    char programs[512];
    snprintf(programs, sizeof programs, "%s/programs", cache);
    assert_int_equal(chmod(programs, 0777), 0);
    counts = build_and_run(index, NULL);
    assert_true(counts.n_built == 1 && counts.n_cache_hits == 0 && counts.n_cache_stored == 0);
}

static int set_up(void **state)
{
    test_folder_create(folder);
    write_kernels();
    setenv("TALPA_KERNEL_DIR", folder, 1);
    setenv("TALPA_PROGRAM_CACHE", "0", 1);
    *state = test_device_open(false);
    return 0;
}

static int tear_down(void **state)
{
    tp_device_close(*state);
    test_folder_remove(folder);
    return 0;
}

int main(void)
{
    test_need_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(includes_are_resolved_once), cmocka_unit_test(missing_files),
        cmocka_unit_test(broken_kernel_gives_the_log), cmocka_unit_test(kernels_are_shared),
        cmocka_unit_test(launches_compute),           cmocka_unit_test(wrong_launches_are_refused),
        cmocka_unit_test(profile_is_plausible),       cmocka_unit_test(faults_on_request),
        cmocka_unit_test(cache_on_disk),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
