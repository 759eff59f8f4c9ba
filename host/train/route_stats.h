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
    float *weight;                    /* [n_modules, n_experts] sums over tokens; NULL beyond TP_ROUTE_ROW_BYTES of all rows */
};

/** One module under one task. */
struct tp_route_cell {
    int64_t n_tokens[TP_ROUTE_N_SUMS], active[TP_ROUTE_N_SUMS];
    double threshold;
    double entropy; /* of a token's weights, sum over tokens that have an expert; in nats */
    int64_t n_routed;
};

/** A token whose expert outputs are kept. Which ones depends on row and position only: those with the smallest keys of all. */
struct tp_route_sample {
    uint64_t key;
    size_t row;
    uint32_t position, token; /* token: in its pass */
    uint32_t slot;            /* where its numbers lie in tp_route_stats.sample_z and .sample_weight */
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
    size_t row_bytes;    /* of tp_route_row.weight so far */
    struct tp_route_sample *samples; /* [n_samples], ascending keys; at most TP_ROUTE_SAMPLES */
    size_t n_samples;
    struct tp_route_sample *picks;   /* [n_picks] of the present pass, ascending keys */
    size_t n_picks, pick_capacity;
    float *sample_z;      /* [n_modules, TP_ROUTE_SAMPLES, n_experts * rank] A x; NULL: no outputs are seen */
    float *sample_weight; /* [n_modules, TP_ROUTE_SAMPLES, n_experts] */
    float *gram;          /* [n_modules, n_experts * rank, n_experts * rank] */
    float *pass_z;        /* [TP_ROUTE_SAMPLES, n_experts * rank] of one module in one pass */
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

enum { TP_ROUTE_MAX_TASKS = 1024, TP_ROUTE_ROW_BYTES = 1 << 28 };

/** TALPA_E_ARGUMENT if an adapter (NULL: the base) routes nothing. */
enum talpa_status tp_route_check(const struct tp_adapter *adapter);

/** Empty statistics of a mixture. The caller owns *out. TALPA_E_ARGUMENT as tp_route_check. */
enum talpa_status tp_route_stats_create(struct tp_route_stats *out, const struct tp_adapter *adapter);
/** Zeroed is allowed. */
void tp_route_stats_free(struct tp_route_stats *stats);

/** Adds a row; *row is its index. TALPA_E_DATA for more than TP_ROUTE_MAX_TASKS tasks. */
enum talpa_status tp_route_stats_row(size_t *row, struct tp_route_stats *stats, const struct tp_route_about *about);

/** Before a pass of `eval` (tp_eval_graph_create_routed): picks the tokens whose expert outputs it is to keep. */
enum talpa_status tp_route_stats_begin(struct tp_route_stats *stats, struct tp_executor *executor, const struct tp_eval_graph *eval,
                                       const struct tp_route_span *spans, size_t n_spans);
/** After it: reads what it decided and adds it to rows and tasks. `max_tokens`: size of the pass. */
enum talpa_status tp_route_stats_pass(struct tp_route_stats *stats, struct tp_executor *executor, const struct tp_eval_graph *eval,
                                      const struct tp_route_span *spans, size_t n_spans, uint32_t max_tokens);

/** Adds the likelihood of a row's labelled tokens. */
void tp_route_stats_nll(struct tp_route_stats *stats, size_t row, const float *nll, uint32_t n);

/* ---- route_experts.c ---- */

/** The smallest keys of the tokens of `spans` into stats->picks, and the input `sample` of the graph. */
enum talpa_status tp_route_samples_pick(struct tp_route_stats *stats, struct tp_executor *executor, const struct tp_eval_graph *eval,
                                        const struct tp_route_span *spans, size_t n_spans);
/** After the pass: gives the picks that stay among the smallest of all a slot each. stats->picks[0 .. n_picks) are those then. */
enum talpa_status tp_route_samples_merge(struct tp_route_stats *stats);
/** Reads A x and B^T B of module `m` for them; stats->weight and stats->sel hold the module's gate. */
enum talpa_status tp_route_samples_read(struct tp_route_stats *stats, struct tp_executor *executor, const struct tp_eval_graph *eval, int m);

/** What talpa_route_experts says of every module and, as their mean, of all; `modules` [n_modules] are in `arena`. */
enum talpa_status tp_route_experts(struct talpa_route_experts *mean, const struct talpa_route_experts **modules, struct tp_arena *arena,
                                   const struct tp_route_stats *stats);

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
enum talpa_status tp_route_map_save(const struct tp_route_stats *stats, const struct talpa_route_summary *summary, const char *path);

/** True if anything is asked for. */
bool tp_route_output_is_wanted(const struct talpa_route_output *output);
/** TALPA_E_CREATE if a file of `output` could not be written: to be called before the long work. */
enum talpa_status tp_route_output_check(const struct talpa_route_output *output);
/** Writes log and map and calls back. */
enum talpa_status tp_route_output_finish(const struct talpa_route_output *output, const struct tp_route_stats *stats);

#endif
