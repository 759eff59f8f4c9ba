/* Generation: requests take turns on the session's sequences; prompts first, then a decoding pass over all sequences at once. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "infer/sampler.h"
#include "infer/session.h"
#include "infer/stop.h"

const char *talpa_finish_name(enum talpa_finish finish)
{
    static const char *const names[] = {"eos", "stop", "length", "context"};
    return (unsigned)finish < sizeof names / sizeof *names ? names[finish] : "?";
}

void talpa_answer_free(struct talpa_answer *answer)
{
    free(answer->ids);
    free(answer->logprobs);
    free(answer->text);
    *answer = (struct talpa_answer){0};
}

/* A request being worked on in one sequence. */
struct job {
    const struct talpa_request *request; /* NULL: the sequence is free */
    size_t index;
    struct talpa_answer *answer;
    struct tp_answer_text text;
    size_t *bytes_with; /* [max_new] bytes of text up to and with each token */
    int max_new;
};

struct generator {
    struct talpa_session *session;
    const struct talpa_request *requests;
    struct talpa_answer *answers;
    size_t n_requests, n_started;
    struct tp_sampler sampler;
    struct job *jobs; /* [n_sequences] */
    int32_t ends[TP_TOKENIZER_MAX_ENDS]; /* for requests that must not end with one */
    size_t n_ends;
    talpa_text_callback *tell;
    void *user;
};

/* ---- requests ---- */

static enum talpa_status check(const struct talpa_session *s, const struct talpa_request *r, size_t index)
{
    if (r->n_ids == 0) return tp_fail(TALPA_E_DATA, "prompt %zu has no tokens: at least one is needed", index);
    if (r->n_ids >= (size_t)s->n_ctx)
        return tp_fail(TALPA_E_DATA,
                       "prompt %zu has %zu tokens and the context is %d: shorten it or use a larger --ctx-size (the model's limit is %d)",
                       index, r->n_ids, s->n_ctx, s->model->config.context_length);
    if (r->max_tokens < 0) return tp_fail(TALPA_E_ARGUMENT, "-n is %d, expected 0 (up to the context's end) or more", r->max_tokens);
    for (size_t i = 0; i < r->n_ids; i++)
        if (r->ids[i] < 0 || r->ids[i] >= s->n_vocab)
            return tp_fail(TALPA_E_DATA, "prompt %zu: token %zu is %d, expected 0 to %d", index, i, r->ids[i], s->n_vocab - 1);
    return TALPA_OK;
}

/* Tokens at the start of the request that the sequence holds; the last one is run anyhow, for its logits. What decoding put into the cache
 * differs in the last bits from what a prompt would have; which of several requests would find it depends on the number of sequences, so
 * only a request by itself (the next turn of a conversation) takes that. */
static int shared_prefix(const struct generator *g, const struct tp_sequence *sequence, const struct talpa_request *request)
{
    const int held = g->n_requests == 1 ? sequence->n_held : sequence->n_prompt;
    int n = 0;
    while (n < held && (size_t)n + 1 < request->n_ids && sequence->ids[n] == request->ids[n]) n++;
    return n;
}

static enum talpa_status start(struct generator *g, int at, size_t index)
{
    struct talpa_session *s = g->session;
    struct tp_sequence *sequence = &s->sequences[at];
    struct job *job = &g->jobs[at];
    const struct talpa_request *r = &g->requests[index];
    const int room = s->n_ctx - (int)r->n_ids;
    *job = (struct job){.request = r,
                        .index = index,
                        .answer = &g->answers[index],
                        .max_new = r->max_tokens && r->max_tokens < room ? r->max_tokens : room};
    sequence->n_held = shared_prefix(g, sequence, r);
    if (sequence->n_prompt > sequence->n_held) sequence->n_prompt = sequence->n_held;
    memcpy(sequence->ids, r->ids, r->n_ids * sizeof *r->ids);
    const size_t n = (size_t)job->max_new;
    job->answer->n_prompt = (int)r->n_ids;
    job->answer->ids = malloc(n * sizeof *job->answer->ids);
    job->answer->logprobs = malloc(n * sizeof *job->answer->logprobs);
    job->bytes_with = malloc(n * sizeof *job->bytes_with);
    if (!job->answer->ids || !job->answer->logprobs || !job->bytes_with) return tp_fail_memory("answer", n * sizeof *job->bytes_with);
    return tp_answer_text_create(&job->text, r->stop, r->n_stop);
}

/* Gives every free sequence the next request: among free ones the one that holds most of its beginning. */
static enum talpa_status start_waiting(struct generator *g)
{
    while (g->n_started < g->n_requests) {
        int best = -1, most = -1;
        for (int i = 0; i < g->session->n_sequences; i++) {
            if (g->jobs[i].request) continue;
            const int n = shared_prefix(g, &g->session->sequences[i], &g->requests[g->n_started]);
            if (n > most) best = i, most = n;
        }
        if (best < 0) return TALPA_OK;
        TP_TRY(start(g, best, g->n_started));
        g->n_started++;
    }
    return TALPA_OK;
}

/* ---- answers ---- */

static enum talpa_status tell(struct generator *g, struct job *job, size_t up_to)
{
    const size_t n = up_to - job->text.n_sent;
    if (!g->tell || n == 0) return TALPA_OK;
    const bool go_on = g->tell(g->user, job->index, job->text.bytes + job->text.n_sent, n);
    job->text.n_sent = up_to;
    return go_on ? TALPA_OK : tp_fail(TALPA_E_INTERRUPTED, "generation was stopped");
}

static enum talpa_status finish(struct generator *g, struct job *job, enum talpa_finish how)
{
    struct talpa_answer *answer = job->answer;
    TP_TRY(tell(g, job, job->text.n_bytes));
    while (how == TALPA_FINISH_STOP && answer->n_ids && job->bytes_with[answer->n_ids - 1] > job->text.n_bytes) answer->n_ids--;
    const size_t room = answer->n_ids ? answer->n_ids : 1;
    int32_t *ids = realloc(answer->ids, room * sizeof *ids); /* smaller: if that fails the old ones are as good */
    float *logprobs = realloc(answer->logprobs, room * sizeof *logprobs);
    if (ids) answer->ids = ids;
    if (logprobs) answer->logprobs = logprobs;
    answer->finish = how;
    answer->text = job->text.bytes;
    answer->n_bytes = job->text.n_bytes;
    job->text.bytes = NULL;
    free(job->bytes_with);
    *job = (struct job){0};
    return TALPA_OK;
}

/* Draws the token that follows and decides whether the answer ends with it. */
static enum talpa_status draw(struct generator *g, int at, const float *logits)
{
    struct job *job = &g->jobs[at];
    struct tp_sequence *sequence = &g->session->sequences[at];
    struct talpa_answer *answer = job->answer;
    const size_t length = job->request->n_ids + answer->n_ids;
    const struct tp_sampler_context context = {.history = sequence->ids,
                                               .n_history = length,
                                               .banned = g->ends,
                                               .n_banned = job->request->ignore_eos ? g->n_ends : 0,
                                               .request = job->index,
                                               .position = (uint32_t)length};
    int32_t id;
    float logprob;
    bool stopped;
    TP_TRY(tp_sampler_next(&id, &logprob, &g->sampler, logits, &context));
    const struct tp_tokenizer *tokenizer = g->session->model->tokenizer;
    if (!job->request->ignore_eos && tp_tokenizer_is_end(tokenizer, id)) return finish(g, job, TALPA_FINISH_EOS);
    const struct tp_text piece = tp_tokenizer_piece(tokenizer, id);
    const size_t begin = job->text.n_bytes;
    TP_TRY(tp_answer_text_append(&job->text, piece.bytes, tp_tokenizer_is_special(tokenizer, id) ? 0 : piece.n_bytes, &stopped));
    answer->ids[answer->n_ids] = id;
    answer->logprobs[answer->n_ids] = logprob;
    job->bytes_with[answer->n_ids] = stopped ? begin + piece.n_bytes : job->text.n_bytes;
    answer->n_ids++;
    if (stopped) return finish(g, job, TALPA_FINISH_STOP);
    TP_TRY(tell(g, job, tp_answer_text_certain(&job->text)));
    if ((int)answer->n_ids < job->max_new) {
        sequence->ids[length] = id;
        return TALPA_OK;
    }
    return finish(g, job,
                  job->request->max_tokens && (int)answer->n_ids == job->request->max_tokens ? TALPA_FINISH_LENGTH : TALPA_FINISH_CONTEXT);
}

/* ---- passes ---- */

static bool has_prompts(const struct generator *g)
{
    for (int i = 0; i < g->session->n_sequences; i++)
        if (g->jobs[i].request && g->session->sequences[i].n_held < (int)g->jobs[i].request->n_ids) return true;
    return false;
}

/* Adds what has to run, as far as there is room, and returns how many sequences get to their end with it: at[] receives them, in the order
 * of their logits. Sequences that are decoding wait while prompts run, so that each kind of token always takes the same plan. */
static int fill(struct generator *g, enum tp_pass pass, int *at)
{
    struct talpa_session *s = g->session;
    int n = 0;
    tp_pass_clear(s);
    for (int i = 0; i < s->n_sequences; i++) {
        const struct job *job = &g->jobs[i];
        if (!job->request) continue;
        const int end = (int)(job->request->n_ids + (pass == TP_PASS_DECODE ? job->answer->n_ids : 0));
        for (int position = s->sequences[i].n_held; position < end; position++) {
            if (!tp_pass_add(s, pass, i, position, position == end - 1)) return n;
            if (position == end - 1) at[n++] = i;
        }
    }
    return n;
}

static enum talpa_status run_pass(struct generator *g, int *at)
{
    struct talpa_session *s = g->session;
    const enum tp_pass pass = has_prompts(g) ? TP_PASS_PROMPT : TP_PASS_DECODE;
    const int n = fill(g, pass, at);
    const int64_t begin = tp_clock_now_ns();
    TP_TRY(tp_pass_run(s, pass));
    const double seconds = (double)(tp_clock_now_ns() - begin) * 1e-9;
    *(pass == TP_PASS_PROMPT ? &s->info.prompt_s : &s->info.decode_s) += seconds;
    *(pass == TP_PASS_PROMPT ? &s->info.n_prompt_tokens : &s->info.n_decode_tokens) += s->n_tokens;
    *(pass == TP_PASS_PROMPT ? &s->info.n_prompt_passes : &s->info.n_decode_passes) += 1;
    for (int t = 0, last = -1; t < s->n_tokens; t++) {
        const int i = s->slots[t] / s->n_ctx;
        if (i == last) continue;
        last = i;
        *(pass == TP_PASS_PROMPT ? &g->jobs[i].answer->prompt_s : &g->jobs[i].answer->decode_s) += seconds;
        g->jobs[i].answer->n_passes += pass == TP_PASS_DECODE;
    }
    for (int r = 0; r < n; r++) TP_TRY(draw(g, at[r], s->logits + (size_t)r * (size_t)s->n_vocab));
    return TALPA_OK;
}

/* ---- all requests ---- */

static void find_ends(struct generator *g)
{
    for (int32_t id = 0; id < g->session->n_vocab && g->n_ends < TP_TOKENIZER_MAX_ENDS; id++)
        if (tp_tokenizer_is_end(g->session->model->tokenizer, id)) g->ends[g->n_ends++] = id;
}

static enum talpa_status generate(struct generator *g, const struct talpa_sampling *sampling)
{
    struct talpa_session *s = g->session;
    for (size_t i = 0; i < g->n_requests; i++) TP_TRY(check(s, &g->requests[i], i));
    TP_TRY(tp_sampler_create(&g->sampler, sampling, s->n_vocab));
    int *at = calloc((size_t)s->n_sequences, sizeof *at);
    g->jobs = calloc((size_t)s->n_sequences, sizeof *g->jobs);
    enum talpa_status status =
        at && g->jobs ? TALPA_OK : tp_fail_memory("generation", (unsigned long long)s->n_sequences * sizeof *g->jobs);
    find_ends(g);
    while (status == TALPA_OK) {
        bool any = false;
        status = start_waiting(g);
        for (int i = 0; i < s->n_sequences; i++) any |= g->jobs[i].request != NULL;
        if (!any) break;
        if (status == TALPA_OK) status = run_pass(g, at);
    }
    free(at);
    return status;
}

enum talpa_status talpa_generate(struct talpa_answer *answers, struct talpa_session *session, const struct talpa_request *requests,
                                 size_t n_requests, const struct talpa_sampling *sampling, talpa_text_callback *text, void *user)
{
    struct generator g = {
        .session = session, .requests = requests, .answers = answers, .n_requests = n_requests, .tell = text, .user = user};
    for (size_t i = 0; i < n_requests; i++) answers[i] = (struct talpa_answer){0};
    const enum talpa_status status = generate(&g, sampling);
    for (int i = 0; i < session->n_sequences && g.jobs; i++) {
        tp_answer_text_free(&g.jobs[i].text);
        free(g.jobs[i].bytes_with);
    }
    if (status != TALPA_OK)
        for (size_t i = 0; i < n_requests; i++) talpa_answer_free(&answers[i]);
    free(g.jobs);
    tp_sampler_free(&g.sampler);
    return status;
}
