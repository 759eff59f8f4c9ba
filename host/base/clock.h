/* Time: a monotonic clock for durations, the calendar for records. */
#ifndef TP_CLOCK_H
#define TP_CLOCK_H

#include <stdint.h>

enum { TP_CLOCK_RFC3339_BYTES = 32 };

/** Nanoseconds since an arbitrary fixed moment; never goes back (CLOCK_MONOTONIC). */
int64_t tp_clock_now_ns(void);

/** Seconds since 1970-01-01T00:00:00Z. */
int64_t tp_clock_unix_s(void);

/** Writes the given moment as RFC 3339 in UTC ("2024-02-29T23:59:59Z"), NUL-terminated, and returns `out`. Moments outside the years
 *  0..9999 are clamped to them. */
const char *tp_clock_rfc3339(char out[TP_CLOCK_RFC3339_BYTES], int64_t unix_s);

#endif
