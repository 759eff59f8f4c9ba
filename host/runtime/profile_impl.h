/* What profile.c records and profile_write.c writes. */
#ifndef TP_PROFILE_IMPL_H
#define TP_PROFILE_IMPL_H

#include <pthread.h>

#include "base/arena.h"
#include "base/map.h"
#include "talpa/profile.h"

enum { TP_PROFILE_DEVICES = 16 };

struct tp_profile_site {
    size_t row;
    const char *scope;
};

struct tp_profile_event {
    uint64_t start_ns, end_ns;
    double flops, bytes;
    uint32_t site, device;
};

struct tp_profile_host_span {
    const char *name;
    int64_t begun_ns, ended_ns;
};

struct tp_profile_device {
    const char *name;
    int64_t offset_ns; /* host's clock - device's clock */
    bool has_offset;
};

/** The profile of the process. Everything but the flags in profile.c is guarded by `lock`. */
struct tp_profile_data {
    pthread_mutex_t lock;
    struct tp_arena arena; /* strings */
    struct tp_map sites;   /* op, pass, kernel, exact scope -> index of `site` */
    struct tp_map kinds;   /* op, pass, kernel, pattern -> index of `row` */
    struct tp_profile_site *site;
    struct talpa_profile_row *row;
    struct tp_profile_event *trace;
    struct tp_profile_host_span *span;
    size_t n_rows, row_room, n_sites, site_room, n_trace, trace_room, trace_limit, n_spans, span_room;
    struct tp_profile_device device[TP_PROFILE_DEVICES];
    int n_devices;
    int64_t started_ns, first_ns, last_ns;
    struct talpa_profile_totals totals;
    double peak_gflops, peak_gbs;
    bool is_incomplete; /* memory was short */
};
extern struct tp_profile_data tp_profile_data;

#endif
