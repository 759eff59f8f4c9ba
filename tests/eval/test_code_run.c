/* Running code: what passes, what fails, and what is stopped. Skipped without python3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "eval/code_run.h"

static struct tp_code_runner runner;
static char base[] = "/tmp/talpa_code_test_XXXXXX";

static enum tp_code_outcome run(const char *source)
{
    struct tp_code_limits limits = tp_code_limits_default();
    enum tp_code_outcome outcome = TP_CODE_TIMED_OUT;
    limits.wall_s = 3;
    limits.cpu_s = 2;
    if (tp_code_run(&outcome, NULL, &runner, source, &limits) != TALPA_OK) fail_msg("not run");
    return outcome;
}

static void test_outcomes(void **state)
{
    (void)state;
    assert_int_equal(run("def f(x):\n    return x + 1\nassert f(1) == 2\n"), TP_CODE_PASSED);
    assert_int_equal(run("def f(x):\n    return x\nassert f(1) == 2\n"), TP_CODE_FAILED);
    assert_int_equal(run("def f(x) return x\n"), TP_CODE_FAILED);
    assert_int_equal(run("import sys\nsys.exit(0)\n"), TP_CODE_FAILED); /* leaving early is not passing */
    assert_int_equal(run("import os\nos._exit(0)\n"), TP_CODE_FAILED);
    assert_int_equal(run("import os\nos.close(3)\n"), TP_CODE_FAILED);
    assert_int_equal(run("import os\nos.kill(os.getpid(), 9)\n"), TP_CODE_FAILED);
    assert_int_equal(run("print('x' * 100000)\nassert input is not None\n"), TP_CODE_PASSED); /* output goes nowhere */
    assert_int_equal(run(""), TP_CODE_PASSED);
}

static void test_limits(void **state)
{
    (void)state;
    const time_t start = time(NULL);
    assert_int_equal(run("while True: pass\n"), TP_CODE_TIMED_OUT);
    assert_int_equal(run("import time\ntime.sleep(60)\n"), TP_CODE_TIMED_OUT);
    /* Something left behind holds the report open; it is ended with the group. */
    assert_int_equal(run("import os, time\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\nos._exit(1)\n"), TP_CODE_FAILED);
    assert_true(time(NULL) - start < 30);
    assert_int_equal(run("try:\n    x = bytearray(4 << 30)\nexcept MemoryError:\n    x = None\nassert x is None\n"), TP_CODE_PASSED);
    assert_int_equal(
        run("import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ntry:\n    f = open('big', 'wb')\n    f.write(bytes(1 << 22))\n"
            "    f.close()\n    ok = True\nexcept OSError:\n    ok = False\nassert not ok\n"),
        TP_CODE_PASSED);
}

static void test_folder(void **state)
{
    (void)state;
    char source[512];
    /* Its own folder with nothing but the program, no environment, no other descriptor. */
    assert_int_equal(run("import os\nassert os.listdir('.') == ['program.py']\nassert 'HOME' not in os.environ\n"
                         "assert sorted(int(d) for d in os.listdir('/proc/self/fd'))[:4] == [0, 1, 2, 3]\nassert "
                         "len(os.listdir('/proc/self/fd')) <= 5\n"),
                     TP_CODE_PASSED);
    snprintf(source, sizeof source,
             "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nassert os.getcwd().startswith(os.path.realpath('%s'))\n", base);
    assert_int_equal(run(source), TP_CODE_PASSED);
    DIR *dir = opendir(base);
    assert_non_null(dir);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir))
        if (entry->d_name[0] != '.') fail_msg("%s was left behind", entry->d_name);
    closedir(dir);
}

int main(void)
{
    if (tp_code_runner_open(&runner) != TALPA_OK) {
        printf("no python3: skipped\n");
        return 77;
    }
    if (!mkdtemp(base) || setenv("TMPDIR", base, 1)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_outcomes), cmocka_unit_test(test_limits), cmocka_unit_test(test_folder)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(base);
    return failed;
}
