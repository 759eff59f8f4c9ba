/* Evaluation: a model, optionally with an adapter, on rows of a task; scores with standard errors; suites of tasks. */
#ifndef TALPA_EVAL_H
#define TALPA_EVAL_H

#include "talpa/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/** How an answer is judged. Generation is greedy; see enum talpa_option_by for option_letter. */
enum talpa_metric {
    TALPA_METRIC_AUTO, /**< from the row: "metric", else task "aqua", "choices", "answers", "tests", "answer" (a number, with #### in
                            "completion": exact_number; else exact), "completion" or "messages" (token_nll), "text" (perplexity) */
    TALPA_METRIC_EXACT_NUMBER,     /**< the number after ####, else the last one (',' and '$' dropped), within 1e-3 of "answer" */
    TALPA_METRIC_GENERATED_LETTER, /**< the first A-E after ####, else the last A-E that stands alone, equals "answer" */
    TALPA_METRIC_OPTION_LETTER,    /**< the option of "choices" that the model prefers is "answer" (a letter) */
    TALPA_METRIC_F1_EM,            /**< SQuAD (Rajpurkar et al. 2016): token F1 (the value) and exact match, the best over "answers" */
    TALPA_METRIC_UNIT_TESTS, /**< the code passes all "tests" (Python asserts); only with allow_code_execution, else token_nll is reported
                              */
    TALPA_METRIC_EXACT,      /**< the output (its first line, if the answer is one line) equals "answer", both trimmed */
    TALPA_METRIC_TOKEN_NLL,  /**< mean negative log-likelihood per token of the completion, natural log, closing EOS not counted */
    TALPA_METRIC_PERPLEXITY, /**< exp of the mean negative log-likelihood per token of raw text, in windows */
    TALPA_N_METRICS
};
/** "auto", "exact_number", ... */
const char *talpa_metric_name(enum talpa_metric metric);
/** TALPA_E_ARGUMENT, with the nearest and all known names, for another word. */
enum talpa_status talpa_metric_parse(enum talpa_metric *out, const char *name);

/** How option_letter finds the model's preference. */
enum talpa_option_by {
    TALPA_OPTION_BY_LETTER,     /**< log-probability of " A", " B", .. after the prompt; ties: the earlier */
    TALPA_OPTION_BY_GENERATION, /**< first capital letter A-E of the output */
    TALPA_OPTION_BY_TEXT        /**< log-likelihood per token of " " and the option's text after the prompt without its option lines */
};

/** What is evaluated, and how. talpa_eval_default() gives the documented defaults; strings are borrowed. */
struct talpa_eval_options {
    const char *data;            /**< JSONL: "prompt" and what the metric needs; every row of one metric */
    const char *text;            /**< or: a plain text, for perplexity */
    const char *lora;            /**< adapter folder; NULL: the base */
    const char *task;            /**< name in results; NULL: the rows' "task", else the file's name */
    enum talpa_metric metric;
    enum talpa_option_by by;
    const char *few_shot_data;   /**< JSONL of worked examples; required if few_shot > 0 */
    int few_shot;                /**< examples before every prompt (prompt and completion, a blank line after each) */
    bool few_shot_random;        /**< a choice drawn with `seed` (Philox) instead of the first rows; the same for every row */
    uint64_t seed;
    int64_t limit;               /**< first rows only; 0: all */
    int max_new_tokens; /**< 0: 256 for numbers and letters, 32 for f1_em, 512 for code, 16 for letters by generation, 64 for exact */
    int batch_size;              /**< rows per pass; a row's result does not depend on it */
    int ctx_size; /**< tokens per row, prompt and answer; 0: the model's context length, at most 4096 (perplexity: at most 1024) */
    int stride;                  /**< perplexity: tokens that a window adds; 0: half of ctx_size */
    const char *output_dir;      /**< eval_results.json and samples.jsonl are written here; created if missing; makes the run resumable */
    const char *samples;         /**< or: the samples alone, in this file */
    bool overwrite;              /**< start anew where output_dir holds the results of other options */
    bool allow_code_execution;   /**< unit_tests may run what the model wrote */
    bool allow_other_base;
    double max_threshold; /**< adamole, threshold: this bound instead of the adapter's: higher is fewer experts, and faster; 0: as saved */
    enum talpa_base_dtype base_dtype;
    enum talpa_compute_dtype compute_dtype;
    enum talpa_expert_dispatch dispatch;
    struct talpa_route_output routes; /**< where the adapter's mixture sends the rows' tokens: prompt (with its worked examples) and
                                         completion are run once more for it, whatever the metric; rows of a suite's tasks together */
};
/** Metric auto, by letter, batch size 8, everything else 0. */
void talpa_eval_default(struct talpa_eval_options *options);

enum { TALPA_EVAL_TEXT_BYTES = 64 };

/** A task's score. */
struct talpa_eval_score {
    char task[TALPA_EVAL_TEXT_BYTES];
    enum talpa_metric metric;    /**< the one that was used */
    enum talpa_option_by by;     /**< for option_letter */
    int64_t n;                   /**< rows (or windows) that count */
    double value;
    double standard_error; /**< sqrt(p(1-p)/n) for shares; of the mean for F1; linearised (delta method) for token_nll and perplexity */
    bool has_em;                 /**< f1_em: share of exact matches as well */
    double em, em_error;
    int64_t n_tokens;            /**< scored tokens for token_nll and perplexity, else generated ones; of this run only */
    int64_t n_too_long;          /**< rows beyond the context: wrong where answers are judged, left out where tokens are scored */
    int64_t n_resumed;           /**< rows taken from an earlier, interrupted run */
    int few_shot;
    uint64_t seed;
    double elapsed_s;            /**< of this run, with preparation */
    uint64_t model_digest, adapter_digest; /**< 0: no adapter */
};

/** One judged row. Strings are borrowed for the call. */
struct talpa_eval_sample {
    int64_t index;               /**< of the row, from 0 */
    const char *id;
    const char *prediction;      /**< NULL: nothing was found in the output, or nothing is predicted */
    const char *answer;          /**< NULL for token_nll and perplexity */
    bool has_correct, correct;
    double value, weight;        /**< the score is sum of values / sum of weights */
    bool too_long;
};

/** Told about every row in file order, and about what else is worth a line. Both may be NULL. */
struct talpa_eval_callbacks {
    bool (*sample)(void *user, const struct talpa_eval_sample *sample, int64_t n_rows); /**< false: stop with TALPA_E_INTERRUPTED */
    void (*note)(void *user, const char *line);
    void *user;
};

/** Evaluates one task. `device` is an index of talpa_device_list. With output_dir (or samples), finished rows stand in a file ending in
 *  ".partial" until all are there; a run that was stopped goes on from it. TALPA_E_ARGUMENT (options), TALPA_E_DATA (a row: FILE:LINE and
 *  field; other options than those of the folder's results), TALPA_E_NO_INPUT, TALPA_E_DEVICE, TALPA_E_CREATE (output; another run is
 *  writing it), TALPA_E_IO. */
enum talpa_status talpa_eval(struct talpa_eval_score *score, struct talpa_model *model, size_t device,
                             const struct talpa_eval_options *options, const struct talpa_eval_callbacks *callbacks);

/** A task of a suite with what it is compared to. */
struct talpa_eval_row {
    struct talpa_eval_score score;
    bool has_baseline, is_paired; /**< paired: the same rows, so that their scores' differences give the error */
    double baseline, difference, difference_error;
};

/** Scores of a suite; rows are freed with talpa_eval_table_free. */
struct talpa_eval_table {
    struct talpa_eval_row *rows;
    size_t n_rows;
    bool has_mean;               /**< false where token_nll or perplexity is among the tasks */
    double mean, mean_error;     /**< unweighted, tasks independent */
};
void talpa_eval_table_free(struct talpa_eval_table *table);

/** Evaluates the tasks of a suite file, {"tasks": [{"name", "data", "metric", "by", "few_shot", "few_shot_data", "limit",
 *  "max_new_tokens"}, ..]} (or the array alone), paths relative to the file. `options` gives everything else; its output_dir gets a folder
 *  per task and suite_results.json. Errors as talpa_eval; TALPA_E_DATA for a suite file with an unknown key. The caller frees *table. */
enum talpa_status talpa_eval_suite(struct talpa_eval_table *table, struct talpa_model *model, size_t device, const char *suite,
                                   const struct talpa_eval_options *options, const struct talpa_eval_callbacks *callbacks);

/** Compares with earlier results: an eval_results.json or suite_results.json; tasks are found by name. Paired if both have their samples
 *  and those are of the same rows: `output_dir` is the folder of the new ones (NULL: unpaired). TALPA_E_DATA if no task is in both. */
enum talpa_status talpa_eval_compare(struct talpa_eval_table *table, const char *baseline, const char *output_dir);

#ifdef __cplusplus
}
#endif
#endif
