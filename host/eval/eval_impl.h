/* What the tasks of a suite share: a model on a device, prepared for scoring or for generation. */
#ifndef TP_EVAL_IMPL_H
#define TP_EVAL_IMPL_H

#include "adapters/adapter.h"
#include "eval/likelihood.h"
#include "eval/units.h"
#include "talpa/eval.h"
#include "talpa/infer.h"

struct tp_json_writer;

struct tp_eval_context {
    struct talpa_model *model;
    size_t device;
    struct tp_adapter *adapter; /* NULL: the base */
    float *bank;
    uint64_t model_digest, adapter_digest;
    struct tp_engine engine;
    bool has_engine;
    struct tp_likelihood likelihood; /* one of these two is there at a time, made when needed, made anew when larger sizes are */
    struct tp_route_stats routes; /* with options->routes: of all rows of all tasks */
    bool has_routes;
    struct talpa_session *session;
    int session_sequences, session_ctx;
};

/** Loads the adapter and takes the digests; the device is opened when needed first. */
enum talpa_status tp_eval_context_open(struct tp_eval_context *out, struct talpa_model *model, size_t device,
                                       const struct talpa_eval_options *options);
void tp_eval_context_close(struct tp_eval_context *context);

/** Makes context->likelihood fit sequences of `longest` tokens with up to `most_labels` labels. */
enum talpa_status tp_eval_context_scorer(struct tp_eval_context *context, const struct talpa_eval_options *options, uint32_t longest,
                                         uint32_t most_labels);
/** Makes context->session fit `n_ctx` tokens per sequence. */
enum talpa_status tp_eval_context_generator(struct tp_eval_context *context, const struct talpa_eval_options *options, int n_ctx);

/** talpa_eval within a context. */
enum talpa_status tp_eval_task(struct talpa_eval_score *score, struct tp_eval_context *context, const struct talpa_eval_options *options,
                               const struct talpa_eval_callbacks *callbacks);

/** Where routing is to be seen: runs prompt and completion of a task's rows and adds what the routers do to context->routes, under the task
 *  that the options name, else the row's own, else the file's name. TALPA_E_DATA (FILE:LINE) for a row without completion. (routes.c) */
enum talpa_status tp_eval_routes(struct tp_eval_context *context, const struct talpa_eval_options *options, const struct tp_eval_rows *rows,
                                 const char *examples, uint32_t ctx);

/** Writes the members of a score. */
void tp_eval_write_score(struct tp_json_writer *json, const struct talpa_eval_score *score);
/** "letter", "generation", "text". */
const char *tp_eval_by_name(enum talpa_option_by by);

/** Judges an output: fills the journal row. Texts are in `arena`. `runner` is NULL unless code may run. (judge.c) */
struct tp_code_runner;
struct tp_journal_row;
enum talpa_status tp_eval_judge(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_row *row, enum talpa_metric metric,
                                const char *output, const struct tp_code_runner *runner, bool *no_network);
/** As above for options: nll per item of the unit. */
void tp_eval_judge_options(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_unit *unit,
                           const struct tp_likelihood_item *items, enum talpa_option_by by);

#endif
