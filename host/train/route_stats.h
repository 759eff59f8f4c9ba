/* What routers decided over rows of data: counts and means per task and module, and per row. Sums are in double precision, in the order of
 * rows, modules and tokens, so that they do not depend on how rows are put into passes. */
#ifndef TP_ROUTE_STATS_H
#define TP_ROUTE_STATS_H

#include "base/arena.h"
#include "base/map.h"
#include "exec/executor.h"
#include "talpa/route.h"
#include "train/train_graph.h"

struct tp_json_writer;

/** Index of the sums below: tokens before the first label, and the rest. */
enum { TP_ROUTE_BEFORE, TP_ROUTE_REST, TP_ROUTE_N_SUMS };

struct tp_route_row {
    const char *id;
    size_t task;
    double difficulty; /* NaN: not known */
    int64_t n_tokens[TP_ROUTE_N_SUMS];
    int64_t active[TP_ROUTE_N_SUMS];  /* over tokens and modules */
    double threshold;                 /* the same */
    double nll;                       /* sum over labelled tokens */
    int64_t n_labelled;
};

/** One module under one task. */
struct tp_route_cell {
    int64_t n_tokens[TP_ROUTE_N_SUMS], active[TP_ROUTE_N_SUMS];
    double threshold;
};

struct tp_route_task {
    const char *name;
    struct tp_route_cell *cells; /* [n_modules] */
    int64_t *selected;           /* [n_modules, n_experts] tokens */
    double *weight;              /* [n_modules, n_experts] sum over tokens; 0 where an expert is not selected */
};

struct tp_route_stats {
    const struct tp_adapter *adapter; /* borrowed */
    struct tp_arena arena;
    struct tp_map task_of;
    struct tp_route_task *tasks;
    size_t n_tasks, task_capacity;
    struct tp_route_row *rows;
    size_t n_rows, row_capacity;
    float *weight, *raw; /* of one module in one pass */
    int32_t *sel;
    size_t room;         /* tokens that they hold */
};

/** What is known of a row before it is run. Borrowed. */
struct tp_route_about {
    const char *id, *task;
    double difficulty;
    uint32_t n_tokens, n_prompt; /* that the model reads */
};

/** Tokens [first, first + n_tokens) of a pass belong to a row. */
struct tp_route_span {
    size_t row;
    uint32_t first, n_tokens, n_prompt;
};

enum { TP_ROUTE_MAX_TASKS = 1024 };

/** TALPA_E_ARGUMENT if an adapter (NULL: the base) routes nothing. */
enum talpa_status tp_route_check(const struct tp_adapter *adapter);

/** Empty statistics of a mixture. The caller owns *out. TALPA_E_ARGUMENT as tp_route_check. */
enum talpa_status tp_route_stats_create(struct tp_route_stats *out, const struct tp_adapter *adapter);
/** Zeroed is allowed. */
void tp_route_stats_free(struct tp_route_stats *stats);

/** Adds a row; *row is its index. TALPA_E_DATA for more than TP_ROUTE_MAX_TASKS tasks. */
enum talpa_status tp_route_stats_row(size_t *row, struct tp_route_stats *stats, const struct tp_route_about *about);

/** Reads what the last pass of `eval` (tp_eval_graph_keep_routes) decided and adds it to rows and tasks. `max_tokens`: size of the pass. */
enum talpa_status tp_route_stats_pass(struct tp_route_stats *stats, struct tp_executor *executor, const struct tp_eval_graph *eval,
                                      const struct tp_route_span *spans, size_t n_spans, uint32_t max_tokens);

/** Adds the likelihood of a row's labelled tokens. */
void tp_route_stats_nll(struct tp_route_stats *stats, size_t row, const float *nll, uint32_t n);

/* ---- route_summary.c ---- */

/** The summary; its groups are in `arena`. */
enum talpa_status tp_route_summarise(struct talpa_route_summary *out, struct tp_arena *arena, const struct tp_route_stats *stats);

/** The summary as text (free()). */
enum talpa_status tp_route_summary_text(char **text, const struct talpa_route_summary *summary);

/* ---- route_log.c ---- */

/** Gives every record, in `json`, to `emit`: modules, rows, summary. */
enum talpa_status tp_route_log_write(const struct tp_route_stats *stats, const struct talpa_route_summary *summary,
                                     struct tp_json_writer *json, enum talpa_status (*emit)(void *user), void *user);

/** The heat map as an SVG file that appears whole: a row of panels per task (beyond 8 tasks: one for all), a panel per kind of linear. */
enum talpa_status tp_route_map_save(const struct tp_route_stats *stats, const char *path);

/** True if anything is asked for. */
bool tp_route_output_is_wanted(const struct talpa_route_output *output);
/** TALPA_E_CREATE if a file of `output` could not be written: to be called before the long work. */
enum talpa_status tp_route_output_check(const struct talpa_route_output *output);
/** Writes log and map and calls back. */
enum talpa_status tp_route_output_finish(const struct talpa_route_output *output, const struct tp_route_stats *stats);

#endif
