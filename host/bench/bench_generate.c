/* Prompts and decoding, through the public functions. */
#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"
#include "bench_impl.h"
#include "infer/session.h"

struct generation {
    struct talpa_session *session;
    struct talpa_request *requests;
    struct talpa_answer *answers;
    int32_t *ids;
    int n_sequences, n_prompt, n_gen, vocab_size;
    uint64_t round; /* prompts differ, so that nothing is reused from the cache */
};

static enum talpa_status run_once(void *user, double *ns)
{
    struct generation *g = user;
    struct talpa_sampling sampling;
    const int n = g->n_prompt ? g->n_prompt : 1;
    talpa_sampling_default(&sampling);
    g->round++;
    for (int s = 0; s < g->n_sequences; s++) {
        int32_t *ids = g->ids + (size_t)s * (size_t)n;
        /* The first token counts the rounds: no prompt begins like the one before it. */
        for (int i = 0; i < n; i++)
            ids[i] = (int32_t)((i ? tp_rng_splitmix64(g->round, (uint64_t)(s * n + i) + 1) : g->round) % (uint64_t)g->vocab_size);
        g->requests[s] = (struct talpa_request){.ids = ids, .n_ids = (size_t)n, .max_tokens = g->n_gen ? g->n_gen + 1 : 1, .ignore_eos = true};
    }
    const struct talpa_session_info before = talpa_session_info(g->session);
    TP_TRY(talpa_generate(g->answers, g->session, g->requests, (size_t)g->n_sequences, &sampling, NULL, NULL));
    const struct talpa_session_info after = talpa_session_info(g->session);
    TP_TRY(tp_executor_finish(g->session->graph[TP_PASS_PROMPT].set.executor)); /* recorded launches are handed over */
    for (int s = 0; s < g->n_sequences; s++) talpa_answer_free(&g->answers[s]);
    const int64_t prompt = after.n_prompt_tokens - before.n_prompt_tokens, decode = after.n_decode_tokens - before.n_decode_tokens;
    const int64_t found = g->n_gen ? decode : prompt, wanted = (int64_t)g->n_sequences * (g->n_gen ? g->n_gen : g->n_prompt);
    if (found != wanted)
        return tp_fail(TALPA_E_INTERNAL, "%lld tokens ran, %lld were meant to", (long long)found, (long long)wanted);
    *ns = 1e9 * (g->n_gen ? after.decode_s - before.decode_s : after.prompt_s - before.prompt_s);
    return TALPA_OK;
}

static enum talpa_status measure(struct generation *g, struct tp_bench_recorder *recorder, const struct talpa_bench_options *o)
{
    struct talpa_bench_row row = tp_bench_row();
    if (g->n_gen) snprintf(row.test, sizeof row.test, "tg%d", g->n_gen);
    else snprintf(row.test, sizeof row.test, "pp%d", g->n_prompt);
    row.n_prompt = g->n_prompt;
    row.n_gen = g->n_gen;
    row.n_batch = g->n_sequences;
    row.n_tokens = (double)g->n_sequences * (g->n_gen ? g->n_gen : g->n_prompt);
    return tp_bench_measure(&row, recorder, o, run_once, g);
}

static enum talpa_status run_all(struct generation *g, struct tp_bench_recorder *recorder, const struct talpa_bench_options *o)
{
    for (size_t i = 0; i < o->n_n_prompt; i++) {
        g->n_prompt = o->n_prompt[i];
        g->n_gen = 0;
        if (g->n_prompt) TP_TRY(measure(g, recorder, o));
    }
    for (size_t i = 0; i < o->n_n_gen; i++) {
        g->n_prompt = 0;
        g->n_gen = o->n_gen[i];
        if (g->n_gen) TP_TRY(measure(g, recorder, o));
    }
    return TALPA_OK;
}

static enum talpa_status longest_of(int *longest, const struct talpa_bench_options *o)
{
    *longest = 0;
    for (size_t i = 0; i < o->n_n_prompt + o->n_n_gen; i++) {
        const bool is_prompt = i < o->n_n_prompt;
        const int n = is_prompt ? o->n_prompt[i] : o->n_gen[i - o->n_n_prompt];
        if (n < 0 || n > 1 << 20) return tp_fail(TALPA_E_ARGUMENT, "--n-%s is %d, expected 0 to %d", is_prompt ? "prompt" : "gen", n, 1 << 20);
        if (n > *longest) *longest = n;
    }
    return *longest ? TALPA_OK : tp_fail(TALPA_E_ARGUMENT, "nothing to measure: --n-prompt and --n-gen are 0");
}

enum talpa_status talpa_bench_generate(struct talpa_model *model, const struct talpa_bench_options *o)
{
    struct talpa_session_options options;
    struct talpa_model_info info;
    struct tp_bench_recorder recorder;
    struct generation g = {0};
    int longest = 0;
    TP_TRY(tp_bench_check(o));
    TP_TRY(longest_of(&longest, o));
    TP_TRY(talpa_model_info(&info, model));
    talpa_session_default(&options);
    if (o->session) options = *o->session;
    if (longest + 2 > info.context_length)
        return tp_fail(TALPA_E_ARGUMENT, "%d tokens do not fit the model's context of %d", longest, info.context_length);
    options.n_ctx = longest + 2;
    g.n_sequences = options.n_sequences;
    g.vocab_size = info.vocab_size;
    TP_TRY(tp_bench_recorder_begin(&recorder));
    enum talpa_status status = talpa_session_open(&g.session, model, o->device, &options);
    if (status == TALPA_OK) {
        g.requests = calloc((size_t)g.n_sequences, sizeof *g.requests);
        g.answers = calloc((size_t)g.n_sequences, sizeof *g.answers);
        g.ids = calloc((size_t)g.n_sequences * (size_t)(longest + 1), sizeof *g.ids);
        status = g.requests && g.answers && g.ids ? run_all(&g, &recorder, o) : tp_fail_memory("prompts", (unsigned long long)longest * sizeof *g.ids);
    }
    talpa_session_close(g.session);
    tp_bench_recorder_end(&recorder);
    free(g.requests);
    free(g.answers);
    free(g.ids);
    return status;
}
