#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 4096, LOG_BYTES = 16384 };

static _Thread_local char message[MESSAGE_BYTES];
static _Thread_local char build_log_text[LOG_BYTES];
static _Thread_local int opencl_code_value;

const char *talpa_error_message(void) { return message; }
int talpa_error_opencl(void) { return opencl_code_value; }
const char *talpa_error_build_log(void) { return build_log_text; }

void tp_status_clear(void)
{
    message[0] = '\0';
    build_log_text[0] = '\0';
    opencl_code_value = 0;
}

int talpa_exit_code(enum talpa_status status)
{
    return status == TALPA_OK ? 0 : -(int)status;
}

enum talpa_status tp_fail(enum talpa_status status, const char *format, ...)
{
    /* The arguments may point into the old record, so it is formatted before it is replaced. */
    char text[MESSAGE_BYTES];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    tp_status_clear();
    memcpy(message, text, sizeof message);
    return status;
}

enum talpa_status tp_fail_opencl(enum talpa_status status, int opencl_code, const char *build_log, const char *format, ...)
{
    char text[MESSAGE_BYTES];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    tp_status_clear();
    memcpy(message, text, sizeof message);
    opencl_code_value = opencl_code;
    if (build_log) snprintf(build_log_text, sizeof build_log_text, "%s", build_log);
    return status;
}

enum talpa_status tp_context(enum talpa_status status, const char *format, ...)
{
    if (status == TALPA_OK) return status;
    char text[MESSAGE_BYTES];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (n < 0) return status;
    const size_t used = (size_t)n < sizeof text - 2 ? (size_t)n : sizeof text - 3;
    memcpy(text + used, ": ", 2);
    const size_t room = sizeof text - used - 3, inner = strlen(message);
    memcpy(text + used + 2, message, inner < room ? inner : room);
    text[used + 2 + (inner < room ? inner : room)] = '\0';
    memcpy(message, text, sizeof message);
    return status;
}

enum talpa_status tp_fail_memory(const char *what, unsigned long long n_bytes)
{
    return tp_fail(TALPA_E_DEVICE, "%s: out of host memory (%llu bytes); close other programs or use a smaller batch", what, n_bytes);
}
