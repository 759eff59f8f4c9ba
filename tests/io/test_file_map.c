#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/atomic_file.h"
#include "io/file_map.h"

static char folder[] = "test_file_map.XXXXXX";

static int enter_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) && chdir(folder) == 0 ? 0 : -1;
}

static int leave_folder(void **state)
{
    (void)state;
    return chdir("..") == 0 && rmdir(folder) == 0 ? 0 : -1;
}

static int n_files(const char *path)
{
    int n = 0;
    DIR *entries = opendir(path);
    for (const struct dirent *entry; entries && (entry = readdir(entries));) n += entry->d_name[0] != '.';
    if (entries) closedir(entries);
    return n;
}

static void expect_content(const char *path, const char *content)
{
    struct tp_file_map map;
    assert_int_equal(tp_file_map_open(&map, path), TALPA_OK);
    assert_int_equal(map.n_bytes, strlen(content));
    assert_memory_equal(map.bytes, content, strlen(content));
    tp_file_map_close(&map);
    assert_null(map.bytes);
}

static void test_save_and_map(void **state)
{
    (void)state;
    assert_int_equal(tp_atomic_file_save("a", "first", 5), TALPA_OK);
    expect_content("a", "first");
    assert_int_equal(tp_atomic_file_save("a", "second", 6), TALPA_OK);
    expect_content("a", "second");
    assert_int_equal(n_files("."), 1);
    unlink("a");
}

/* Pages that were forgotten are read again; memory that is no map keeps what it holds, which the system would otherwise clear. */
static void test_forget(void **state)
{
    (void)state;
    enum { N_BYTES = 5 * 4096 + 77 };
    static unsigned char content[N_BYTES];
    for (int i = 0; i < N_BYTES; i++) content[i] = (unsigned char)(i % 251 + 1);
    assert_int_equal(tp_atomic_file_save("a", content, N_BYTES), TALPA_OK);
    struct tp_file_map map;
    assert_int_equal(tp_file_map_open(&map, "a"), TALPA_OK);
    unlink("a");
    const struct {
        size_t first, n;
    } ranges[] = {{0, N_BYTES}, {100, 3 * 4096}, {4096, 4096}, {4097, 10}, {0, 0}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        tp_file_map_forget(map.bytes + ranges[i].first, ranges[i].n);
        assert_memory_equal(map.bytes, content, N_BYTES);
    }
    tp_file_map_forget(map.bytes, 1 << 30); /* reaches beyond the map: nothing happens */
    tp_file_map_forget(content, N_BYTES);
    assert_memory_equal(map.bytes, content, N_BYTES);
    tp_file_map_close(&map);
    tp_file_map_forget(content, N_BYTES);
    assert_int_equal(content[N_BYTES - 4096], (N_BYTES - 4096) % 251 + 1);
}

static void test_empty_file(void **state)
{
    (void)state;
    struct tp_file_map map;
    assert_int_equal(tp_atomic_file_save("empty", NULL, 0), TALPA_OK);
    assert_int_equal(tp_file_map_open(&map, "empty"), TALPA_OK);
    assert_int_equal(map.n_bytes, 0);
    assert_non_null(map.bytes);
    tp_file_map_close(&map);
    tp_file_map_close(&map);
    unlink("empty");
}

static void test_unreadable(void **state)
{
    (void)state;
    struct tp_file_map map = {.n_bytes = 77};
    assert_int_equal(tp_file_map_open(&map, "absent"), TALPA_E_NO_INPUT);
    assert_non_null(strstr(talpa_error_message(), "absent: cannot open"));
    assert_int_equal(tp_file_map_open(&map, "."), TALPA_E_NO_INPUT);
    assert_non_null(strstr(talpa_error_message(), "folder"));
    assert_int_equal(mkfifo("pipe", 0600), 0);
    assert_int_equal(tp_file_map_open(&map, "pipe"), TALPA_E_NO_INPUT);
    assert_int_equal(map.n_bytes, 77);
    unlink("pipe");
}

static void test_discard_keeps_the_old_file(void **state)
{
    (void)state;
    struct tp_atomic_file *file;
    assert_int_equal(tp_atomic_file_save("a", "old", 3), TALPA_OK);
    assert_int_equal(tp_atomic_file_create(&file, "a"), TALPA_OK);
    assert_int_equal(tp_atomic_file_write(file, "new", 3), TALPA_OK);
    expect_content("a", "old");
    tp_atomic_file_discard(file);
    expect_content("a", "old");
    assert_int_equal(n_files("."), 1);
    tp_atomic_file_discard(NULL);
    unlink("a");
}

static void test_cannot_create(void **state)
{
    (void)state;
    struct tp_atomic_file *file = NULL;
    assert_int_equal(tp_atomic_file_create(&file, "absent/a"), TALPA_E_CREATE);
    assert_non_null(strstr(talpa_error_message(), "absent/a"));
    assert_null(file);
    assert_int_equal(mkdir("taken", 0700), 0);
    assert_int_equal(tp_atomic_file_save("taken", "x", 1), TALPA_E_CREATE);
    assert_int_equal(n_files("."), 1);
    rmdir("taken");
}

/* A file-size limit stands in for a full disk. */
static void test_write_fails_half_way(void **state)
{
    (void)state;
    struct rlimit old;
    static char bytes[100000];
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    const struct rlimit small = {.rlim_cur = 65536, .rlim_max = old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const enum talpa_status status = tp_atomic_file_save("a", bytes, sizeof bytes);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(status, TALPA_E_IO);
    assert_non_null(strstr(talpa_error_message(), "a: cannot write"));
    assert_int_equal(n_files("."), 0);
}

static void test_permissions_follow_the_umask(void **state)
{
    (void)state;
    struct stat info;
    const mode_t old = umask(027);
    assert_int_equal(tp_atomic_file_save("a", "x", 1), TALPA_OK);
    umask(old);
    assert_int_equal(stat("a", &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
    unlink("a");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_save_and_map),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_empty_file),
        cmocka_unit_test(test_unreadable),
        cmocka_unit_test(test_discard_keeps_the_old_file),
        cmocka_unit_test(test_cannot_create),
        cmocka_unit_test(test_write_fails_half_way),
        cmocka_unit_test(test_permissions_follow_the_umask),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
