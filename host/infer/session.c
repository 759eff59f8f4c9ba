#include "session.h"

#include <stdlib.h>

#include "runtime/memory.h"
#include "runtime/program.h"
#include "runtime/profile.h"

enum { DEFAULT_CTX = 4096, MAX_SEQUENCES = 4096, MAX_UBATCH = 1 << 16 };

void talpa_session_default(struct talpa_session_options *options)
{
    *options = (struct talpa_session_options){.n_sequences = 1, .n_ubatch = 256};
}

/* ---- graphs ---- */

enum talpa_status tp_session_build(struct talpa_session *s, enum tp_pass pass)
{
    struct tp_session_graph *g = &s->graph[pass];
    struct tp_adapter_graph attach = {0};
    talpa_value hidden, weight;
    g->max_rows = pass == TP_PASS_PROMPT ? s->info.n_ubatch : s->n_sequences;
    TP_TRY(tp_graph_create(&g->graph));
    TP_TRY(tp_cached_inputs_create(&g->inputs, g->graph, g->max_rows, pass == TP_PASS_PROMPT ? s->n_sequences : 0,
                                   (int64_t)s->n_sequences * s->n_ctx));
    if (s->adapter) TP_TRY(tp_adapter_begin_frozen(&attach, s->adapter, &g->inputs));
    const struct tp_linear_hook hook = {.apply = tp_adapter_hook, .user = &attach};
    TP_TRY(tp_model_hidden(&hidden, g->graph, s->model, &g->inputs, s->adapter ? &hook : NULL));
    tp_graph_set_scope(g->graph, "lm_head");
    if (pass == TP_PASS_PROMPT) TP_TRY(talpa_gather_rows(&hidden, g->graph, hidden, g->inputs.rows));
    TP_TRY(tp_model_output_weight(&weight, g->graph, s->model));
    TP_TRY(talpa_matmul(&g->logits, g->graph, hidden, weight, TALPA_NONE, false, true));
    tp_graph_mark_output(g->graph, g->logits);
    TP_TRY(tp_graph_name(g->graph, g->logits, "logits"));
    return tp_graph_verify(g->graph);
}

enum talpa_status tp_session_plan_options(struct tp_plan_options *out, const struct talpa_session_options *o, enum tp_pass pass)
{
    TP_TRY(tp_engine_plan_options(out, o->base_dtype, o->compute_dtype));
    out->use = pass == TP_PASS_PROMPT ? TP_USE_PROMPT : TP_USE_DECODE;
    return TALPA_OK;
}

static enum talpa_status prepare(struct talpa_session *s, const struct talpa_session_options *o, enum tp_pass pass)
{
    struct tp_session_graph *g = &s->graph[pass];
    struct tp_plan_options options;
    const bool sparse = tp_adapter_is_sparse(s->adapter, o->dispatch);
    TP_TRY(tp_session_build(s, pass));
    TP_TRY(tp_session_plan_options(&options, o, pass));
    TP_TRY(tp_program_set_create(&g->set, &s->engine, g->graph, &options, !sparse, sparse));
    g->plan = g->set.plan_of[sparse ? TP_DISPATCH_SPARSE : TP_DISPATCH_DENSE];
    return TALPA_OK;
}

/* ---- life ---- */

static enum talpa_status check(const struct talpa_model *model, const struct talpa_session_options *o)
{
    if (o->n_ctx && (o->n_ctx < 2 || o->n_ctx > model->config.context_length))
        return tp_fail(TALPA_E_ARGUMENT, "--ctx-size is %d, expected 2 to the model's context length %d", o->n_ctx,
                       model->config.context_length);
    if (o->n_sequences < 1 || o->n_sequences > MAX_SEQUENCES)
        return tp_fail(TALPA_E_ARGUMENT, "--batch-size is %d sequences, expected 1 to %d", o->n_sequences, MAX_SEQUENCES);
    if (o->n_ubatch < 1 || o->n_ubatch > MAX_UBATCH)
        return tp_fail(TALPA_E_ARGUMENT, "--ubatch-size is %d, expected 1 to %d", o->n_ubatch, MAX_UBATCH);
    return TALPA_OK;
}

static enum talpa_status allocate(struct talpa_session *s)
{
    const size_t n = (size_t)(s->graph[TP_PASS_PROMPT].max_rows > s->n_sequences ? s->graph[TP_PASS_PROMPT].max_rows : s->n_sequences);
    const size_t n_logits = (size_t)s->n_sequences * (size_t)s->n_vocab;
    s->ids = calloc(n, sizeof *s->ids);
    s->positions = calloc(n, sizeof *s->positions);
    s->slots = calloc(n, sizeof *s->slots);
    s->spans = calloc(2 * n, sizeof *s->spans);
    s->rows = calloc((size_t)s->n_sequences, sizeof *s->rows);
    s->logits = calloc(n_logits, sizeof *s->logits);
    s->sequences = calloc((size_t)s->n_sequences, sizeof *s->sequences);
    if (!s->ids || !s->positions || !s->slots || !s->spans || !s->rows || !s->logits || !s->sequences)
        return tp_fail_memory("session", n_logits * sizeof *s->logits);
    for (int i = 0; i < s->n_sequences; i++) {
        s->sequences[i].ids = calloc((size_t)s->n_ctx, sizeof *s->sequences[i].ids);
        if (!s->sequences[i].ids) return tp_fail_memory("session", (unsigned long long)s->n_ctx * sizeof *s->sequences[i].ids);
    }
    return TALPA_OK;
}

enum talpa_status tp_session_settle(struct talpa_session *s, struct talpa_model *model, const struct talpa_session_options *o)
{
    TP_TRY(check(model, o));
    s->model = model;
    s->n_ctx = o->n_ctx ? o->n_ctx : model->config.context_length < DEFAULT_CTX ? model->config.context_length : DEFAULT_CTX;
    s->n_sequences = o->n_sequences;
    s->n_vocab = model->config.vocab_size;
    if ((int64_t)s->n_sequences * s->n_ctx > INT32_MAX)
        return tp_fail(TALPA_E_ARGUMENT, "%d sequences of %d tokens are more than %d slots: use a smaller --ctx-size or --batch-size",
                       s->n_sequences, s->n_ctx, INT32_MAX);
    s->info.n_ctx = s->n_ctx;
    s->info.n_sequences = s->n_sequences;
    s->info.n_ubatch = o->n_ubatch < s->n_sequences * s->n_ctx ? o->n_ubatch : s->n_sequences * s->n_ctx;
    if (o->lora) TP_TRY(tp_adapter_load(&s->adapter, &s->bank, o->lora, model, o->allow_other_base));
    return tp_adapter_override_threshold(s->adapter, o->max_threshold);
}

static enum talpa_status open_session(struct talpa_session *s, struct talpa_model *model, size_t device,
                                      const struct talpa_session_options *o)
{
    TP_TRY(tp_session_settle(s, model, o));
    TP_TRY(tp_engine_open(&s->engine, device, model));
    tp_program_keep(s->engine.device);
    if (s->adapter) TP_TRY(tp_adapter_bind(s->engine.store, s->adapter, s->bank));
    for (int pass = 0; pass < TP_N_PASSES; pass++)
        TP_TRY(tp_context(prepare(s, o, (enum tp_pass)pass), "session of %d x %d tokens", s->n_sequences, s->n_ctx));
    TP_TRY(tp_session_count(s));
    s->info.device_bytes = (size_t)tp_device_allocated_bytes(s->engine.device);
    s->info.device_peak_bytes = (size_t)tp_device_peak_bytes(s->engine.device);
    return allocate(s);
}

enum talpa_status talpa_session_open(struct talpa_session **out, struct talpa_model *model, size_t device,
                                     const struct talpa_session_options *options)
{
    struct talpa_session *session = calloc(1, sizeof *session);
    if (!session) return tp_fail_memory("session", sizeof *session);
    const enum talpa_status status = open_session(session, model, device, options);
    if (status == TALPA_OK) *out = session;
    else talpa_session_close(session);
    return status;
}

void talpa_session_close(struct talpa_session *session)
{
    if (!session) return;
    for (int pass = 0; pass < TP_N_PASSES; pass++) {
        tp_program_set_free(&session->graph[pass].set);
        tp_graph_free(session->graph[pass].graph);
    }
    tp_engine_close(&session->engine);
    tp_adapter_free(session->adapter);
    for (int i = 0; i < session->n_sequences && session->sequences; i++) free(session->sequences[i].ids);
    free(session->sequences);
    free(session->bank);
    free(session->ids);
    free(session->positions);
    free(session->slots);
    free(session->spans);
    free(session->rows);
    free(session->logits);
    free(session);
}

int talpa_session_n_ctx(const struct talpa_session *session) { return session->n_ctx; }
struct talpa_session_info talpa_session_info(const struct talpa_session *session) { return session->info; }

/* ---- passes ---- */

void tp_pass_clear(struct talpa_session *session) { session->n_tokens = session->n_rows = 0; }

bool tp_pass_add(struct talpa_session *s, enum tp_pass pass, int sequence, int position, bool with_logits)
{
    const int t = s->n_tokens;
    if (t == s->graph[pass].max_rows || (with_logits && s->n_rows == s->n_sequences)) return false;
    s->ids[t] = s->sequences[sequence].ids[position];
    s->positions[t] = position;
    s->slots[t] = sequence * s->n_ctx + position;
    s->spans[2 * t] = sequence * s->n_ctx;
    s->spans[2 * t + 1] = s->slots[t] + 1;
    if (with_logits) s->rows[s->n_rows++] = t;
    s->n_tokens++;
    return true;
}

enum talpa_status tp_pass_run(struct talpa_session *s, enum tp_pass pass)
{
    struct tp_session_graph *g = &s->graph[pass];
    struct tp_executor *executor = g->set.executor;
    struct tp_step step = {{0}};
    TP_PROFILE_SPAN(pass == TP_PASS_PROMPT ? "prompt pass" : "decoding pass");
    const size_t n = (size_t)s->n_tokens, word = sizeof(int32_t);
    step.word[TP_STEP_N_TOKENS] = (uint32_t)s->n_tokens;
    step.word[TP_STEP_N_LABELLED] = (uint32_t)s->n_rows;
    TP_TRY(tp_executor_step(executor, &step));
    TP_TRY(tp_executor_write(executor, g->inputs.ids, s->ids, n * word));
    TP_TRY(tp_executor_write(executor, g->inputs.positions, s->positions, n * word));
    TP_TRY(tp_executor_write(executor, g->inputs.slots, s->slots, n * word));
    TP_TRY(tp_executor_write(executor, g->inputs.spans, s->spans, 2 * n * word));
    if (g->inputs.rows != TALPA_NONE && s->n_rows) TP_TRY(tp_executor_write(executor, g->inputs.rows, s->rows, (size_t)s->n_rows * word));
    TP_TRY(tp_executor_run(executor, g->plan, TP_PHASE_BATCH));
    s->info.n_launches = tp_executor_n_launches(executor);
    if (s->n_rows) TP_TRY(tp_executor_read(executor, g->logits, s->logits, (size_t)s->n_rows * (size_t)s->n_vocab * sizeof *s->logits));
    else TP_TRY(tp_executor_finish(executor));
    for (int t = 0; t < s->n_tokens; t++) {
        struct tp_sequence *sequence = &s->sequences[s->slots[t] / s->n_ctx];
        sequence->n_held = s->positions[t] + 1;
        if (pass == TP_PASS_PROMPT && s->positions[t] <= sequence->n_prompt) sequence->n_prompt = sequence->n_held;
    }
    return TALPA_OK;
}
