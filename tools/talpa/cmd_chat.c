/* talpa chat */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "generate_flags.h"
#include "output.h"
#include "profile.h"

struct chat {
    struct generate_flags flags;
    struct talpa_model *model;
    struct talpa_session *session;
    struct talpa_message *turns; /* [n_turns], contents owned; [0] is the system turn if there is one */
    size_t n_turns, room;
    bool is_terminal;
};

/* ---- history ---- */

static bool has_system(const struct chat *c) { return c->n_turns && !strcmp(c->turns[0].role, "system"); }

static int add_turn(struct chat *c, const char *role, const char *content)
{
    if (c->n_turns == c->room) {
        const size_t room = c->room ? 2 * c->room : 16;
        struct talpa_message *larger = realloc(c->turns, room * sizeof *larger);
        if (!larger) return program_fail_memory();
        c->turns = larger;
        c->room = room;
    }
    char *copy = strdup(content);
    if (!copy) return program_fail_memory();
    c->turns[c->n_turns++] = (struct talpa_message){role, copy};
    return -1;
}

static void drop_turns(struct chat *c, size_t first, size_t n)
{
    if (n == 0) return;
    for (size_t i = first; i < first + n; ++i) free((void *)(uintptr_t)c->turns[i].content);
    memmove(c->turns + first, c->turns + first + n, (c->n_turns - first - n) * sizeof *c->turns);
    c->n_turns -= n;
}

static int reset(struct chat *c, const char *system)
{
    drop_turns(c, 0, c->n_turns);
    return system && *system ? add_turn(c, "system", system) : -1;
}

/* Ids of the conversation; its oldest questions and answers are dropped until there is room for an answer. Returns -1, an exit code, or 0
 * if the last message alone is too long, which is then forgotten. */
static int make_prompt(struct chat *c, int32_t **ids, size_t *n_ids)
{
    const size_t n_ctx = (size_t)talpa_session_n_ctx(c->session), quarter = n_ctx / 4;
    const size_t wanted = c->flags.max_tokens && (size_t)c->flags.max_tokens < quarter ? (size_t)c->flags.max_tokens : quarter;
    for (size_t n_dropped = 0;; ++n_dropped) {
        const enum talpa_status status = talpa_prompt_chat(ids, n_ids, c->model, c->turns, c->n_turns, c->flags.chat_template);
        if (status != TALPA_OK) return program_fail(status);
        const size_t first = has_system(c) ? 1 : 0;
        const bool is_last = c->n_turns - first < 3;
        if (*n_ids + wanted > n_ctx && !is_last) {
            free(*ids);
            drop_turns(c, first, 2);
            continue;
        }
        if (n_dropped) program_note("the context of %zu tokens is full: %zu of the oldest questions forgotten", n_ctx, n_dropped);
        if (*n_ids < n_ctx) return -1;
        program_error("the message has %zu tokens with its template and the context is %zu: shorten it, or use a larger --ctx-size", *n_ids,
                      n_ctx);
        free(*ids);
        drop_turns(c, c->n_turns - 1, 1);
        return 0;
    }
}

/* ---- turns ---- */

static bool on_text(void *user, size_t request, const char *text, size_t n_bytes)
{
    (void)user, (void)request;
    fwrite(text, 1, n_bytes, stdout);
    fflush(stdout);
    return !ferror(stdout);
}

static int answer(struct chat *c, const char *message)
{
    int32_t *ids = NULL;
    size_t n_ids = 0;
    struct talpa_answer reply;
    int code = add_turn(c, "user", message);
    if (code < 0) code = make_prompt(c, &ids, &n_ids);
    if (code >= 0) return code > 0 ? code : c->is_terminal ? -1 : 65;
    const struct talpa_request request = generate_flags_request(&c->flags, ids, n_ids);
    const struct talpa_session_info before = talpa_session_info(c->session);
    const enum talpa_status status = talpa_generate(&reply, c->session, &request, 1, &c->flags.sampling, on_text, c);
    free(ids);
    if (ferror(stdout)) code = output_flush_stdout();
    else if (status != TALPA_OK) code = program_fail(status);
    if (code >= 0) {
        if (status == TALPA_OK) talpa_answer_free(&reply);
        return code;
    }
    fputc('\n', stdout);
    code = output_flush_stdout() ? 74 : -1;
    if (reply.finish == TALPA_FINISH_CONTEXT) program_note("the answer ends here because the context is full; /reset starts over");
    if (options_verbosity > 0) generate_flags_timing(c->session, &before);
    if (code < 0) code = add_turn(c, "assistant", reply.text);
    talpa_answer_free(&reply);
    return code;
}

/* A line that is a command; -2: it is none. */
static int command(struct chat *c, const char *line)
{
    if (!strcmp(line, "/exit") || !strcmp(line, "/quit")) return 0;
    if (!strcmp(line, "/reset")) {
        char *system = has_system(c) ? strdup(c->turns[0].content) : NULL;
        const int code = reset(c, system);
        free(system);
        return code;
    }
    if (!strncmp(line, "/system", 7) && (!line[7] || line[7] == ' ')) return reset(c, line + 7 + strspn(line + 7, " "));
    if (!strcmp(line, "/help")) {
        program_note("/reset forgets the conversation, /system TEXT sets the system turn and starts over, /exit ends");
        return -1;
    }
    return -2;
}

static int converse(struct chat *c)
{
    char *line = NULL;
    size_t room = 0;
    int code = reset(c, c->flags.system);
    while (code < 0) {
        if (c->is_terminal) fputs("> ", stderr);
        ssize_t n = getline(&line, &room, stdin);
        if (n < 0) {
            if (c->is_terminal) fputc('\n', stderr);
            code = ferror(stdin) ? 74 : 0;
            if (code) program_error("standard input: cannot be read");
            break;
        }
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = '\0';
        if (!line[strspn(line, " \t")]) continue;
        code = command(c, line);
        if (code == -2) code = answer(c, line);
    }
    free(line);
    return code;
}

static int run(struct chat *c)
{
    program_drivers_load();
    const enum talpa_status status = talpa_model_open(&c->model, c->flags.model);
    int code = status == TALPA_OK ? -1 : program_fail(status);
    c->is_terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
    if (code < 0) {
        /* A wrong template shows before the session is opened and the first question is typed. */
        int32_t *ids = NULL;
        size_t n_ids = 0;
        const struct talpa_message turn = {"user", "?"};
        const enum talpa_status known = talpa_prompt_chat(&ids, &n_ids, c->model, &turn, 1, c->flags.chat_template);
        free(ids);
        if (known != TALPA_OK) code = program_fail(known);
    }
    if (code < 0) code = generate_flags_open(&c->session, &c->flags, c->model);
    if (code < 0 && c->is_terminal) program_note("/help lists the commands; end with /exit or Ctrl-D");
    if (code < 0) code = converse(c);
    drop_turns(c, 0, c->n_turns);
    free(c->turns);
    talpa_session_close(c->session);
    talpa_model_close(c->model);
    return code;
}

int cmd_chat(int argc, char **argv)
{
    static struct chat chat;
    static struct options options;
    generate_flags_default(&chat.flags, 0);
    options = (struct options){
        .verb = "chat",
        .usage = "-m MODEL [--lora DIR] [options]",
        .summary = "A conversation: one message per line of standard input, each answered on standard output. /reset forgets the\n"
                   "conversation, /system TEXT sets the system turn and starts over, /exit ends. When the context is full, the oldest\n"
                   "questions and their answers are forgotten."};
    generate_flags_add(&options, &chat.flags);
    int code = options_parse(&options, argc, argv);
    if (code < 0) code = generate_flags_finish(&options, &chat.flags);
    if (code < 0) {
        program_log_level();
        code = profile_begin(chat.flags.profile);
        if (code < 0) code = profile_end(run(&chat));
    }
    options_free(&options);
    return code;
}
