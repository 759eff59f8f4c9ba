/* Running the program in a folder of its own: shared by the tests of the command line. The model is the built-in random:tiny, so that
 * nothing has to be downloaded. */
#ifndef CLI_TEST_H
#define CLI_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"

enum { ARGS_MAX = 40, TEXT_MAX = 1 << 18 };

static char folder[256];
static char out[TEXT_MAX], err[TEXT_MAX]; /* of the last run */
static bool has_device;
static const char *input = "/dev/null"; /* standard input of the runs that follow */

/* ---- running ---- */

static inline const char *path(const char *name)
{
    static char text[4][512];
    static int next;
    char *p = text[next++ % 4];
    snprintf(p, sizeof text[0], "%s/%s", folder, name);
    return p;
}

static inline size_t read_text(char *text, size_t size, const char *name)
{
    FILE *file = fopen(path(name), "rb");
    text[0] = '\0';
    if (!file) return 0;
    const size_t n = fread(text, 1, size - 1, file);
    text[n] = '\0';
    fclose(file);
    return n;
}

static inline void write_text(const char *name, const char *text)
{
    FILE *file = fopen(path(name), "wb");
    assert_non_null(file);
    assert_int_equal(fputs(text, file) >= 0, 1);
    assert_int_equal(fclose(file), 0);
}

/* `line` is split at blanks; a leading @ of a word stands for the test's folder. */
static inline pid_t start(const char *line, const char *out_name, const char *err_name)
{
    char copy[1024], *argv[ARGS_MAX], words[ARGS_MAX][512], *state = NULL;
    int argc = 1;
    snprintf(copy, sizeof copy, "%s", line);
    argv[0] = TALPA_PROGRAM;
    for (char *word = strtok_r(copy, " ", &state); word && argc < ARGS_MAX - 1; word = strtok_r(NULL, " ", &state)) {
        if (*word == '@')
            snprintf(words[argc], sizeof words[0], "%s/%s", folder, word + 1);
        else
            snprintf(words[argc], sizeof words[0], "%s", word);
        argv[argc] = words[argc];
        ++argc;
    }
    argv[argc] = NULL;
    const pid_t pid = fork();
    if (pid == 0) {
        const int out_fd = open(path(out_name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        const int err_fd = open(path(err_name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        const int in_fd = open(input, O_RDONLY);
        dup2(in_fd, 0);
        dup2(out_fd, 1);
        dup2(err_fd, 2);
        execv(TALPA_PROGRAM, argv);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

static inline int finish(pid_t pid)
{
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static inline int run(const char *line)
{
    const int code = finish(start(line, "out", "err"));
    read_text(out, sizeof out, "out");
    read_text(err, sizeof err, "err");
    return code;
}

static inline void expect(const char *line, int code, const char *message)
{
    const int found = run(line);
    if (found != code) fail_msg("talpa %s: exit code %d, expected %d; stderr: %s", line, found, code, err);
    if (message && !strstr(err, message)) fail_msg("talpa %s: '%s' is missing in: %s", line, message, err);
}

static inline struct tp_json *parse(const char *text)
{
    struct tp_json *json = NULL;
    if (tp_json_parse(&json, text, strlen(text), "output") != TALPA_OK) fail_msg("%s in: %s", talpa_error_message(), text);
    return json;
}

/* The losses of a log, whose steps must count up from 1 without a gap. */
static inline int read_log(double *loss, int most, const char *name)
{
    static char text[TEXT_MAX];
    char *rest = NULL;
    int n = 0;
    read_text(text, sizeof text, name);
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        struct tp_json *json = parse(line);
        int64_t step = 0;
        assert_int_equal(tp_json_get_int(&step, tp_json_root(json), "current_steps"), TALPA_OK);
        assert_true(n < most);
        assert_int_equal(tp_json_get_double(&loss[n++], tp_json_root(json), "loss"), TALPA_OK);
        assert_int_equal(step, n);
        tp_json_free(json);
    }
    return n;
}

static inline void need_device(void)
{
    if (has_device) return;
    print_message("no OpenCL device: skipped\n");
    skip();
}

static inline void pause_ms(long ms)
{
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

/* ---- set-up ---- */

static inline void remove_tree(const char *name)
{
    DIR *dir = opendir(name);
    if (dir) {
        for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
            char child[1024];
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            snprintf(child, sizeof child, "%.500s/%.400s", name, entry->d_name);
            if (unlink(child) != 0) remove_tree(child);
        }
        closedir(dir);
    }
    rmdir(name);
}

static inline int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/talpa_cli_XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(folder)) return -1;
    write_text("train.jsonl", "{\"prompt\": \"one: \", \"completion\": \"abcd\"}\n{\"prompt\": \"two: \", \"completion\": \"bcda\"}\n"
                              "{\"prompt\": \"tre: \", \"completion\": \"cdab\"}\n{\"prompt\": \"for: \", \"completion\": \"dabc\"}\n");
    has_device = run("devices -o json") == 0;
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    remove_tree(folder);
    return 0;
}

#endif
