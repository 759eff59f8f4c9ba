/* Where a mixture sends its tokens: a log, a picture and a summary of the experts that rows, tasks and levels of difficulty use. */
#ifndef TALPA_ROUTE_H
#define TALPA_ROUTE_H

#include <stdint.h>
#include <stdio.h>

#include "talpa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A mean and its standard error over rows; the error is NaN for fewer than two rows, the mean where there is nothing to take it of. */
struct talpa_route_mean {
    double mean, error;
};

enum talpa_route_by { TALPA_ROUTE_BY_ALL, TALPA_ROUTE_BY_TASK, TALPA_ROUTE_BY_DIFFICULTY };
/** Tokens of a row: all that the model reads, those before the first label, the rest. */
enum talpa_route_part { TALPA_ROUTE_WHOLE, TALPA_ROUTE_PROMPT, TALPA_ROUTE_COMPLETION, TALPA_ROUTE_N_PARTS };

/** Rows together: all, those of a task, those of a level of difficulty. Means are per token and module. */
struct talpa_route_group {
    enum talpa_route_by by;
    const char *task;                                    /**< for BY_TASK, else NULL */
    double difficulty;                                   /**< for BY_DIFFICULTY, else NaN */
    int64_t n_rows, n_tokens;
    struct talpa_route_mean active[TALPA_ROUTE_N_PARTS]; /**< active experts */
    struct talpa_route_mean threshold;                   /**< mean NaN for top-k */
    struct talpa_route_mean nll;                         /**< negative log-likelihood per labelled token */
};

/** How the active experts of rows go with something else known of them. What cannot be told (no spread) is NaN. */
struct talpa_route_relation {
    const char *x;             /**< "nll" (per labelled token) or "difficulty" */
    enum talpa_route_part part;
    int64_t n_rows;
    double pearson, spearman;  /**< over all rows */
    double pearson_within;     /**< after the mean of each task is taken away from both */
    double slope, slope_error; /**< experts per unit of x with an intercept for each task; error robust to unequal spread (HC1) */
};

enum { TALPA_ROUTE_N_RELATIONS = 6 };

/** Whether the experts of a module differ, and whether its router decides anything. In nats; what cannot be told is NaN. The cosines are
 *  those of expert outputs B A x, over at most 256 tokens of all rows; an output of zero has none. */
struct talpa_route_experts {
    double entropy;         /**< of a token's weights, mean over tokens that have an expert: 0 where one expert takes all */
    double entropy_of_mean; /**< of the mean weights: log(n_experts) where all are used alike */
    double information;     /**< mutual information of expert and task; NaN for fewer than two tasks */
    double information_by_chance; /**< the same with the tasks dealt out to rows at random, mean of 20 times */
    double intra_cosine;    /**< two tokens, the same expert: mean over pairs, then over experts */
    double inter_cosine;    /**< two experts, the same or two tokens: mean over pairs of outputs, then over pairs of experts */
    double same_token_cosine; /**< two active experts of one token: mean over pairs */
};

struct talpa_route_summary {
    int n_modules, n_experts;
    const struct talpa_route_group *groups; /**< all, then tasks in order of appearance, then levels in ascending order */
    size_t n_groups;
    const struct talpa_route_experts *modules; /**< [n_modules], in order of layers, then q, k, v, o, gate, up, down */
    struct talpa_route_experts experts;        /**< mean over modules */
    int64_t n_samples;                         /**< tokens that the cosines are of */
    struct talpa_route_relation relations[TALPA_ROUTE_N_RELATIONS]; /**< nll, then difficulty (n_rows 0: no row says it); by parts */
};

/** What is wanted; all NULL: nothing, and routing is not looked at. With any, plain LoRA or no adapter is TALPA_E_ARGUMENT. */
struct talpa_route_output {
    const char *log; /**< JSONL, records of kind "module" (per task, layer, module), "row" and "summary" */
    const char *map; /**< heat map, SVG: share of tokens by layer, module and expert */
    void (*summary)(void *user, const struct talpa_route_summary *summary); /**< called once at the end; borrowed for the call */
    void *user;
};

/** How alike two runs route the same tokens, one module: experts of the second are matched with those of the first one by one (the best
 *  assignment by the covariance of their weights over half of the tokens), what follows is measured on the other half, and both ways round. */
struct talpa_route_agreement {
    int layer;
    const char *module;
    double top, top_by_chance;         /**< share of tokens whose heaviest expert is the matched one; the same if both chose by themselves */
    double kappa;                      /**< (top - by chance) / (1 - by chance): 1 alike, 0 unrelated */
    double overlap, overlap_by_chance; /**< matched experts in common, of those active in either; the same for tokens of different places */
    const double *match;               /**< [n_experts] the second run's expert for each of the first, by all tokens */
};

struct talpa_route_comparison {
    int n_experts, n_modules;
    int64_t n_tokens;                            /**< sampled tokens that both logs hold */
    const struct talpa_route_agreement *modules; /**< [n_modules] */
    struct talpa_route_agreement mean;           /**< over modules; layer -1, module and match NULL */
};

/** Compares the route logs of two adapters over the same rows (`talpa score --route-log`), such as runs with different seeds. TALPA_E_DATA
 *  if they are of other rows, modules or numbers of experts. The caller frees *out. */
enum talpa_status talpa_route_compare(struct talpa_route_comparison **out, const char *log_a, const char *log_b);
void talpa_route_comparison_free(struct talpa_route_comparison *comparison);

/** Active experts of rows that something answers right, and of those it answers wrong. */
struct talpa_route_split {
    int64_t n_right, n_wrong, n_unknown;          /**< rows of the log; unknown: no sample says */
    struct talpa_route_mean right[TALPA_ROUTE_N_PARTS], wrong[TALPA_ROUTE_N_PARTS];
    struct talpa_route_mean difference[TALPA_ROUTE_N_PARTS];   /**< wrong - right */
    struct talpa_route_mean within_tasks[TALPA_ROUTE_N_PARTS]; /**< the same with a level for each task; error robust to unequal spread (HC1) */
};

/** Splits the rows of a route log by the samples of an evaluation (`talpa eval --output-dir`: samples.jsonl), such as one of the base
 *  model. Rows are known by id. TALPA_E_DATA if no row is in both. */
enum talpa_status talpa_route_split(struct talpa_route_split *out, const char *log, const char *samples);

/** Prints a summary as a small table. TALPA_E_IO if it cannot be written. */
enum talpa_status talpa_route_summary_print(FILE *file, const struct talpa_route_summary *summary);

#ifdef __cplusplus
}
#endif
#endif
