#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 2048, LEVEL_UNSET = -1 };

static const char *const level_names[] = {"error", "warn", "info", "debug"};

static atomic_int level_limit = LEVEL_UNSET;

static void write_stderr(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    fprintf(stderr, "talpa: %s: %s\n", level_names[level], line);
}

static struct {
    talpa_log_function function;
    void *user;
} sink = {write_stderr, NULL};

static int limit(void)
{
    int value = atomic_load_explicit(&level_limit, memory_order_relaxed);
    if (value != LEVEL_UNSET) return value;
    const char *text = getenv("TALPA_LOG");
    value = TALPA_LOG_WARN;
    for (int i = TALPA_LOG_ERROR; text && i <= TALPA_LOG_DEBUG; i++)
        if (strcmp(text, level_names[i]) == 0) value = i;
    atomic_store_explicit(&level_limit, value, memory_order_relaxed);
    return value;
}

void talpa_log_set(talpa_log_function function, void *user)
{
    sink.function = function ? function : write_stderr;
    sink.user = function ? user : NULL;
}

void talpa_log_level_set(enum talpa_log_level level) { atomic_store_explicit(&level_limit, (int)level, memory_order_relaxed); }

bool tp_log_enabled(enum talpa_log_level level) { return (int)level <= limit(); }

void tp_log(enum talpa_log_level level, const char *format, ...)
{
    if (!tp_log_enabled(level)) return;
    const int saved_errno = errno;
    char line[LINE_BYTES];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    sink.function(sink.user, level, line);
    errno = saved_errno;
}
