#include "code_run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/status.h"

struct tp_code_limits tp_code_limits_default(void)
{
    return (struct tp_code_limits){.cpu_s = 5, .wall_s = 10, .memory_bytes = 1L << 30, .file_bytes = 1L << 20};
}

enum talpa_status tp_code_runner_open(struct tp_code_runner *out)
{
    static const char question[] = "import sys; sys.stdout.write(sys.executable)";
    const char *name = getenv("TALPA_PYTHON");
    if (!name || !*name) name = "python3";
    struct tp_code_runner runner = {{0}};
    int ends[2];
    if (pipe(ends)) return tp_fail(TALPA_E_DEVICE, "pipe: %s", strerror(errno));
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execlp(name, name, "-I", "-c", question, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got = 1; child > 0 && got > 0 && n + 1 < sizeof runner.path; n += got > 0 ? (size_t)got : 0)
        do got = read(ends[0], runner.path + n, sizeof runner.path - 1 - n);
        while (got < 0 && errno == EINTR);
    close(ends[0]);
    int status = 1;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status) || !n || access(runner.path, X_OK))
        return tp_fail(TALPA_E_FAILED,
                       "unit_tests: %s does not run: install Python 3 or name one in TALPA_PYTHON, or leave out --allow-code-execution",
                       name);
    *out = runner;
    return TALPA_OK;
}

/* ---- the child: only calls that are safe after fork in a process with threads ---- */

static void limit(int what, rlim_t most)
{
    const struct rlimit value = {most, most};
    setrlimit(what, &value);
}

static void run_child(const struct tp_code_runner *runner, const struct tp_code_limits *limits, const char *folder, int report)
{
    static char *const environment[] = {"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1", NULL};
    char *const argv[] = {(char *)(uintptr_t)runner->path, "-I", "-B", "program.py", NULL};
    setpgid(0, 0);
    /* The report goes to descriptor 3; everything else that this process had open is closed. The report first: it may be one of 0 to 2. */
    if (report != 3) dup2(report, 3);
    const int null = open("/dev/null", O_RDWR);
    if (null < 0 || chdir(folder)) _exit(126);
    for (int fd = 0; fd <= 2; fd++) dup2(null, fd);
    const long n_descriptors = sysconf(_SC_OPEN_MAX);
    for (int fd = 4; fd < (n_descriptors > 0 && n_descriptors < 65536 ? (int)n_descriptors : 65536); fd++) close(fd);
    const bool cut = syscall(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNET) == 0;
    /* Beyond the soft limit comes SIGXCPU, which tells why the program ended; at the hard one SIGKILL, which does not. */
    const struct rlimit cpu = {(rlim_t)limits->cpu_s, (rlim_t)limits->cpu_s + 1};
    setrlimit(RLIMIT_CPU, &cpu);
    limit(RLIMIT_AS, (rlim_t)limits->memory_bytes);
    limit(RLIMIT_FSIZE, (rlim_t)limits->file_bytes);
    limit(RLIMIT_NOFILE, 64);
    limit(RLIMIT_NPROC, 1);
    limit(RLIMIT_CORE, 0);
    if (write(3, cut ? "n" : "-", 1) != 1) _exit(126);
    execve(runner->path, argv, environment);
    _exit(127);
}

/* ---- the parent ---- */

static void remove_folder(const char *name, int depth)
{
    DIR *folder = depth < 16 ? opendir(name) : NULL;
    for (struct dirent *entry = folder ? readdir(folder) : NULL; entry; entry = readdir(folder)) {
        char path[TP_CODE_PATH_BYTES];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        const int n = snprintf(path, sizeof path, "%s/%s", name, entry->d_name);
        if (n > 0 && (size_t)n < sizeof path && unlink(path)) remove_folder(path, depth + 1);
    }
    if (folder) closedir(folder);
    rmdir(name);
}

/* Program and last line: the token comes out of descriptor 3 only if everything before it ran. */
static enum talpa_status write_program(const char *folder, const char *source, const char *token)
{
    char path[TP_CODE_PATH_BYTES];
    snprintf(path, sizeof path, "%s/program.py", folder);
    FILE *file = fopen(path, "wx");
    if (!file) return tp_fail(TALPA_E_CREATE, "%s: %s: set TMPDIR to a folder that can be written", path, strerror(errno));
    fprintf(file, "%s\n\nimport os as _os\n_os.write(3, b'%s')\n", source, token);
    const bool failed = ferror(file) != 0;
    return fclose(file) || failed ? tp_fail(TALPA_E_IO, "%s: writing failed", path) : TALPA_OK;
}

/* Reads the report until the program ends or its time is over. */
static bool collect(char *text, size_t size, int report, pid_t child, int wall_s)
{
    const int64_t end = tp_clock_now_ns() + (int64_t)wall_s * 1000000000;
    size_t n = 0;
    bool in_time = true;
    for (;;) {
        const int64_t left_ms = (end - tp_clock_now_ns()) / 1000000;
        if (left_ms <= 0) {
            in_time = false;
            break;
        }
        struct pollfd waiting = {.fd = report, .events = POLLIN};
        const int ready = poll(&waiting, 1, left_ms > 100 ? 100 : (int)left_ms);
        if (ready > 0) {
            const ssize_t got = read(report, text + n, n + 1 < size ? size - 1 - n : 0);
            if (got <= 0) break; /* all ends closed: the program is over */
            n += (size_t)got;
        }
        siginfo_t info = {.si_pid = 0};
        if (ready == 0 && waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == child) break;
    }
    text[n] = '\0';
    return in_time;
}

static enum talpa_status run_in(enum tp_code_outcome *outcome, bool *no_network, const struct tp_code_runner *runner, const char *source,
                                const struct tp_code_limits *limits, const char *folder)
{
    char token[TP_HASH_HEX_BYTES], text[TP_HASH_HEX_BYTES + 8];
    const uint64_t seed[2] = {(uint64_t)tp_clock_now_ns(), (uint64_t)getpid()};
    tp_hash_hex(token, tp_hash_bytes(seed, sizeof seed));
    TP_TRY(write_program(folder, source, token));
    int ends[2];
    if (pipe(ends)) return tp_fail(TALPA_E_DEVICE, "pipe: %s", strerror(errno));
    const pid_t child = fork();
    if (child == 0) run_child(runner, limits, folder, ends[1]);
    close(ends[1]);
    if (child < 0) {
        close(ends[0]);
        return tp_fail(TALPA_E_DEVICE, "fork: %s", strerror(errno));
    }
    setpgid(child, child); /* also here: the group must exist before it is signalled */
    const bool in_time = collect(text, sizeof text, ends[0], child, limits->wall_s);
    close(ends[0]);
    kill(-child, SIGKILL);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    const bool out_of_time = !in_time || (WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU);
    *outcome = text[0] && !strcmp(text + 1, token) ? TP_CODE_PASSED : out_of_time ? TP_CODE_TIMED_OUT : TP_CODE_FAILED;
    if (no_network) *no_network = text[0] == 'n';
    return TALPA_OK;
}

enum talpa_status tp_code_run(enum tp_code_outcome *outcome, bool *no_network, const struct tp_code_runner *runner, const char *source,
                              const struct tp_code_limits *limits)
{
    const char *base = getenv("TMPDIR");
    char folder[TP_CODE_PATH_BYTES - 64];
    const int n = snprintf(folder, sizeof folder, "%s/talpa_code_XXXXXX", base && *base ? base : "/tmp");
    if (n < 0 || (size_t)n >= sizeof folder || !mkdtemp(folder))
        return tp_fail(TALPA_E_CREATE, "%s: %s: set TMPDIR to a folder that can be written", folder, strerror(errno));
    const enum talpa_status status = run_in(outcome, no_network, runner, source, limits, folder);
    remove_folder(folder, 0);
    return status;
}
