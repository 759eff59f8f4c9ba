/* Declarations of parameters, tuning files and what happens to damaged ones. */
#include <unistd.h>

#include "base/log.h"
#include "runtime/tuning.h"
#include "runtime_test.h"

enum { MAX_LINES = 8 };
static char lines[MAX_LINES][512];
static int n_lines;
static char file_name[200], folder_name[160];

static void keep_line(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    if (level == TALPA_LOG_WARN && n_lines < MAX_LINES) snprintf(lines[n_lines++], sizeof lines[0], "%s", line);
}

static struct talpa_device_caps device(const char *features)
{
    struct talpa_device_caps caps = {.platform = "Some Platform", .name = "chip [4] v2", .driver_version = "3.1", .compute_units = 2};
    snprintf(caps.cpu_features, sizeof caps.cpu_features, "%s", features);
    return caps;
}

static void write_file(const char *text)
{
    FILE *file = fopen(file_name, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    setenv("TALPA_TUNING", file_name, 1);
}

static const char *value_of(const struct talpa_device_caps *caps, const char *name)
{
    static char value[TP_TUNING_WORD_BYTES];
    struct tp_tuning *tuning;
    n_lines = 0;
    assert_ok(tp_tuning_create(&tuning, caps));
    snprintf(value, sizeof value, "%s", tp_tuning_word(tuning, "cpu/gemm.cl", name));
    tp_tuning_free(tuning);
    return value;
}

static void declarations_are_read(void **state)
{
    (void)state;
    struct tp_tuning *tuning;
    int n, found = 0;
    setenv("TALPA_TUNING", "none", 1);
    assert_ok(tp_tuning_create_default(&tuning));
    const struct tp_tunable *list = tp_tuning_list(tuning, &n);
    for (int i = 0; i < n; i++) {
        assert_true(list[i].n_choices > 0);
        assert_string_equal(list[i].value, list[i].initial);
        found += !strcmp(list[i].path, "cpu/gemm.cl") && !strcmp(list[i].name, "TILE") && !strcmp(list[i].initial, "auto");
    }
    assert_int_equal(found, 1);
    assert_int_equal(tp_tuning_number(tuning, "cpu/gemm.cl", "STRIP_KB", -1), 320);
    assert_int_equal(tp_tuning_number(tuning, "cpu/gemm.cl", "TILE", -1), -1);
    assert_int_equal(tp_tuning_number(NULL, "cpu/gemm.cl", "STRIP_KB", -1), -1);
    assert_int_equal(tp_tuning_set(tuning, "cpu/gemm.cl", "TILE", "99x2x16"), TALPA_E_ARGUMENT);
    assert_int_equal(tp_tuning_set(tuning, "cpu/gemm.cl", "NONE", "1"), TALPA_E_ARGUMENT);
    assert_ok(tp_tuning_set(tuning, "cpu/gemm.cl", "TILE", "6x2x8"));
    assert_string_equal(tp_tuning_word(tuning, "cpu/gemm.cl", "TILE"), "6x2x8");
    tp_tuning_free(tuning);
}

static void first_matching_entry_counts(void **state)
{
    (void)state;
    const struct talpa_device_caps wide = device("avx avx2 avx512f"), narrow = device("avx avx2");
    write_file("{\"talpa_tuning\": 1, \"devices\": ["
               "{\"platform\": \"Other*\", \"values\": {\"cpu/gemm.cl\": {\"TILE\": \"4x3x8\"}}},"
               "{\"platform\": \"Some*\", \"name\": \"chip \\\\[4] v?\", \"features\": \"avx512f\", \"values\": {\"cpu/gemm.cl\": {\"TILE\": \"8x3x16\"}}},"
               "{\"without\": \"avx512f\", \"values\": {\"cpu/gemm.cl\": {\"TILE\": \"6x2x8\"}}}]}");
    assert_string_equal(value_of(&wide, "TILE"), "8x3x16");
    assert_string_equal(value_of(&narrow, "TILE"), "6x2x8");
    assert_string_equal(value_of(&narrow, "STRIP_KB"), "320");
    assert_int_equal(n_lines, 0);
}

static void strangers_are_passed_over(void **state)
{
    (void)state;
    const struct talpa_device_caps caps = device("avx2");
    write_file("{\"talpa_tuning\": 1, \"devices\": [{\"values\": {\"cpu/gone.cl\": {\"A\": \"1\"}, "
               "\"cpu/gemm.cl\": {\"TILE\": \"13x2x16\", \"NEW\": \"2\", \"STRIP_KB\": \"192\"}}}]}");
    assert_string_equal(value_of(&caps, "STRIP_KB"), "192");
    assert_int_equal(n_lines, 3);
    assert_non_null(strstr(lines[0], "A of cpu/gone.cl"));
    assert_non_null(strstr(lines[1], "'13x2x16' is not among the choices"));
    assert_string_equal(value_of(&caps, "TILE"), "auto");
}

static void damaged_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{\"talpa_tuning\": 1, \"devices\": [", "line 1"},
        {"[]", "expected an object"},
        {"{\"talpa_tuning\": 2, \"devices\": []}", "expected 1"},
        {"{\"talpa_tuning\": 1, \"devices\": 3}", "'devices' is a number"},
        {"{\"talpa_tuning\": 1, \"devices\": [{\"values\": 1}]}", "'values' is a number"},
        {"{\"talpa_tuning\": 1, \"devices\": [{\"values\": {\"cpu/gemm.cl\": {\"STRIP_KB\": \"96\", \"TILE\": 12}}}]}", "TILE"},
        {"{\"talpa_tuning\": 1, \"devices\": [{\"name\": 1, \"values\": {}}]}", "name"},
    };
    const struct talpa_device_caps caps = device("avx2");
    char home[300], path[400];
    snprintf(home, sizeof home, "%s", folder_name);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tp_tuning *tuning = NULL;
        write_file(cases[i].text);
        assert_int_equal(tp_tuning_create(&tuning, &caps), TALPA_E_DATA);
        print_message("%s\n", talpa_error_message());
        assert_non_null(strstr(talpa_error_message(), cases[i].says));
        assert_non_null(strstr(talpa_error_message(), file_name));
        assert_null(tuning);
    }
    setenv("TALPA_TUNING", "/no/such/file.json", 1);
    struct tp_tuning *tuning;
    assert_int_equal(tp_tuning_create(&tuning, &caps), TALPA_E_NO_INPUT);
    /* The same text where nobody named the file: a warning, and nothing of it holds. */
    unsetenv("TALPA_TUNING");
    setenv("XDG_CACHE_HOME", home, 1);
    snprintf(path, sizeof path, "%s/talpa", home);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/talpa/tuning.json", home);
    FILE *file = fopen(path, "wb");
    fputs(cases[5].text, file);
    fclose(file);
    assert_string_equal(value_of(&caps, "STRIP_KB"), "320");
    assert_int_equal(n_lines, 1);
    assert_non_null(strstr(lines[0], "passed over"));
    unlink(path);
    snprintf(path, sizeof path, "%s/talpa", home);
    rmdir(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(declarations_are_read), cmocka_unit_test(first_matching_entry_counts),
                                       cmocka_unit_test(strangers_are_passed_over), cmocka_unit_test(damaged_files)};
    const char *base = getenv("TMPDIR");
    snprintf(folder_name, sizeof folder_name, "%.100s/talpa_tuning_XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(folder_name)) return 1;
    snprintf(file_name, sizeof file_name, "%s/t.json", folder_name);
    talpa_log_set(keep_line, NULL);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file_name);
    rmdir(folder_name);
    return failed;
}
