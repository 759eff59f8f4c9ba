/* A session: two graphs over one store, one for prompts (many rows, few logits) and one for decoding (a row per sequence), and what lies in
 * the cache. A pass is one run of either: rows are added, then run, then the logits are read. */
#ifndef TP_SESSION_H
#define TP_SESSION_H

#include "adapters/adapter.h"
#include "models/engine.h"
#include "talpa/infer.h"

/** One graph of a session with its plan. */
struct tp_session_graph {
    struct talpa_graph *graph;
    struct tp_batch_inputs inputs;
    talpa_value logits; /* [rows, n_vocab] */
    struct tp_program_set set;
    int plan;                   /* the executor's number of the plan in use */
    int max_rows;
};

/** What a sequence's slots hold. The last token of `ids` may not have been run yet. */
struct tp_sequence {
    int32_t *ids; /* [n_ctx] */
    int n_held;   /* tokens whose keys and values are in the cache */
    int n_prompt; /* those at the start that passes for prompts put there */
};

enum tp_pass { TP_PASS_PROMPT, TP_PASS_DECODE, TP_N_PASSES };

struct talpa_session {
    const struct talpa_model *model;
    struct tp_engine engine;
    struct tp_adapter *adapter;
    float *bank;
    struct tp_session_graph graph[TP_N_PASSES];
    struct tp_sequence *sequences;                     /* [n_sequences] */
    int n_ctx, n_sequences, n_vocab;
    int32_t *ids, *positions, *slots, *spans, *rows;   /* the pass being made, [max_rows] */
    int n_tokens, n_rows;
    float *logits;                                     /* [n_sequences][n_vocab] */
    struct talpa_session_info info;
};

/* ---- shared by session.c and session_plan.c ---- */

/** Checks the options, resolves n_ctx and n_ubatch into session->info, loads the adapter. */
enum talpa_status tp_session_settle(struct talpa_session *session, struct talpa_model *model, const struct talpa_session_options *options);
/** Builds and verifies the graph of one kind of pass. */
enum talpa_status tp_session_build(struct talpa_session *session, enum tp_pass pass);
/** The options of the plan of one kind of pass. */
enum talpa_status tp_session_plan_options(struct tp_plan_options *out, const struct talpa_session_options *options, enum tp_pass pass);
/** Fills the bytes of session->info from the plans. */
enum talpa_status tp_session_count(struct talpa_session *session);

/* ---- passes ---- */

/** Begins a pass; its rows so far are forgotten. */
void tp_pass_clear(struct talpa_session *session);
/** Adds sequences[sequence].ids[position]; with_logits: the row's logits are wanted (always so when decoding). False if the pass is full.
 */
bool tp_pass_add(struct talpa_session *session, enum tp_pass pass, int sequence, int position, bool with_logits);
/** Runs the pass and reads the logits of the rows that asked, in their order, into session->logits; the rows' tokens are then held. */
enum talpa_status tp_pass_run(struct talpa_session *session, enum tp_pass pass);

#endif
