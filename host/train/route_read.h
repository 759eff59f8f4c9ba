/* Route logs (route_log.c) read again. */
#ifndef TP_ROUTE_READ_H
#define TP_ROUTE_READ_H

#include "base/arena.h"
#include "base/json.h"
#include "base/map.h"
#include "talpa/route.h"

struct tp_route_log_row {
    const char *id;                        /* its index where the row has none */
    size_t task;                           /* in order of appearance */
    int64_t n_tokens[TALPA_ROUTE_N_PARTS];
    double active[TALPA_ROUTE_N_PARTS];    /* NaN where a part has no tokens */
};

struct tp_route_log_module {
    int layer;
    const char *name;
    float *weight; /* [n_samples, n_experts] of the sampled tokens */
};

struct tp_route_log {
    struct tp_arena arena;
    struct tp_route_log_row *rows;
    size_t n_rows;
    struct tp_map task_of;
    size_t n_tasks;
    struct tp_route_log_module *modules; /* none in logs of runs without held-out rows */
    size_t n_modules;
    int64_t (*samples)[2];               /* [n_samples] row and position */
    size_t n_samples;
    int n_experts;
};

/** Calls `visit` for every line of a JSONL file; messages of failures name file and line. TALPA_E_NO_INPUT, TALPA_E_DATA. */
enum talpa_status tp_route_visit_lines(const char *path, enum talpa_status (*visit)(void *user, const struct tp_json_value *row), void *user);

/** Reads a log. TALPA_E_DATA (file, line, field) if it is none, or has no rows. Freed with tp_route_log_free. */
enum talpa_status tp_route_log_read(struct tp_route_log *out, const char *path);
void tp_route_log_free(struct tp_route_log *log);

#endif
