#include "clock.h"

#include <stdio.h>
#include <time.h>

enum { FIRST_YEAR_BASE = 1900 };

int64_t tp_clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t tp_clock_unix_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec;
}

const char *tp_clock_rfc3339(char out[TP_CLOCK_RFC3339_BYTES], int64_t unix_s)
{
    const int64_t first = INT64_C(-62167219200), last = INT64_C(253402300799); /* 0000-01-01T00:00:00Z, 9999-12-31T23:59:59Z */
    const time_t moment = (time_t)(unix_s < first ? first : unix_s > last ? last : unix_s);
    struct tm parts = {0};
    gmtime_r(&moment, &parts);
    snprintf(out, TP_CLOCK_RFC3339_BYTES, "%04u-%02u-%02uT%02u:%02u:%02uZ", (unsigned)(parts.tm_year + FIRST_YEAR_BASE) % 10000u,
             (unsigned)(parts.tm_mon + 1) % 100u, (unsigned)parts.tm_mday % 100u, (unsigned)parts.tm_hour % 100u,
             (unsigned)parts.tm_min % 100u, (unsigned)parts.tm_sec % 100u);
    return out;
}
