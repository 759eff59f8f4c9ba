/* Internal side of talpa/log.h. */
#ifndef TP_LOG_H
#define TP_LOG_H

#include <stdbool.h>

#include "talpa/log.h"

/** True if lines of `level` are passed on: for callers whose line is costly to make. */
bool tp_log_enabled(enum talpa_log_level level);

/** Formats one line (cut at 2047 bytes) and hands it to the callback if the level is enabled. Does not allocate; keeps errno. */
void tp_log(enum talpa_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
