/* How library code reports failures: the lowest function calls tp_fail() once, callers on the way out may prepend context. */
#ifndef TP_STATUS_H
#define TP_STATUS_H

#include "talpa/status.h"

/** Starts a new error record in this thread and returns `status`. The message says: file or flag, what was found, what was expected, what
 *  to try. */
enum talpa_status tp_fail(enum talpa_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** As tp_fail, with the OpenCL code and the (possibly NULL) build log kept beside the message. */
enum talpa_status tp_fail_opencl(enum talpa_status status, int opencl_code, const char *build_log, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/** Prepends "context: " to the present record if `status` is a failure; returns `status` unchanged. */
enum talpa_status tp_context(enum talpa_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Out of host memory: a message of its own, since nothing may be allocated for it. */
enum talpa_status tp_fail_memory(const char *what, unsigned long long n_bytes);

/** Forgets the record of this thread: used where a failure is expected and handled (a probe). */
void tp_status_clear(void);

/** Returns from the calling function if `expression` is a failure. */
#define TP_TRY(expression)                               \
    do {                                                 \
        const enum talpa_status tp_try_ = (expression);  \
        if (tp_try_ != TALPA_OK) return tp_try_;         \
    } while (0)

/** Jumps to `label` with the variable `status` set if `expression` is a failure. */
#define TP_TRY_GOTO(status, expression, label)           \
    do {                                                 \
        (status) = (expression);                         \
        if ((status) != TALPA_OK) goto label;            \
    } while (0)

#endif
