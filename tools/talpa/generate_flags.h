/* What `generate` and `chat` share: flags of session and sampling, opening, the line about time. */
#ifndef GENERATE_FLAGS_H
#define GENERATE_FLAGS_H

#include "options.h"
#include "program.h"
#include "talpa/infer.h"

struct generate_flags {
    const char *model, *device, *chat_template, *system, *profile;
    struct talpa_session_options session;
    struct talpa_sampling sampling;
    struct option_texts stop;
    int base_dtype, compute_dtype, dispatch, max_tokens;
    bool ignore_eos;
};

void generate_flags_default(struct generate_flags *flags, int max_tokens);
/** Appends the flags, in groups. */
void generate_flags_add(struct options *options, struct generate_flags *flags);
/** After options_parse: checks what the tables cannot. Returns -1, or 2 after a message. */
int generate_flags_finish(struct options *options, struct generate_flags *flags);
/** Chooses the device and opens a session; says so on stderr. Returns -1, or an exit code after a message. */
int generate_flags_open(struct talpa_session **session, const struct generate_flags *flags, struct talpa_model *model);
/** A request for these ids as the flags say. */
struct talpa_request generate_flags_request(const struct generate_flags *flags, const int32_t *ids, size_t n_ids);
/** Tokens and speed since `before`, on stderr. */
void generate_flags_timing(const struct talpa_session *session, const struct talpa_session_info *before);

#endif
