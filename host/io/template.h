/* Chat templates: named built-ins that turn messages into text segments, so that one path serves training and generation.
 *
 *   chatml-smollm   <|im_start|>ROLE\nCONTENT<|im_end|>\n per message; a default system turn if the first message is none
 *                   (tokenizer.chat_template of SmolLM2-Instruct)
 *   chatml          the same without a default system turn
 *   alpaca          "### Instruction:" / "### Input:" / "### Response:" (Taori et al. 2023, Stanford Alpaca)
 *
 * Jinja is not interpreted: a file's template is recognised if it is one of the known ones, else the user names one (--chat-template). */
#ifndef TP_TEMPLATE_H
#define TP_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "talpa/status.h"
#include "tokenizer.h"

/** A built-in template; static data. */
struct tp_template;

/** One turn; NUL-terminated, borrowed. Roles: "system", "user", "assistant", "tool". */
struct tp_template_message {
    const char *role, *content;
};

/** A piece of a rendered conversation, tokenised by itself. */
struct tp_template_segment {
    const char *text; /* [n_bytes] */
    size_t n_bytes;
    bool is_special_parsed; /* special tokens in it are tokens; text from data never has this */
    bool is_labelled;       /* the loss falls on it: the assistant's content and its end marker */
    bool is_eos;            /* the tokenizer's EOS token instead of a text (text is "") */
};

/** Segments in order; `segments` and their new texts are owned by the arena given, other texts are borrowed from the messages. */
struct tp_template_segments {
    struct tp_template_segment *segments;
    size_t n_segments;
};

/** The template called `name`, or if that is NULL the one that `file_template` (Jinja text, NULL: the model has none) is known to be.
 *  `name` may also be NULL. TALPA_E_ARGUMENT for an unknown name, TALPA_E_DATA for an unknown or missing file template; both messages name
 *  --chat-template and list the known names. */
enum talpa_status tp_template_select(const struct tp_template **out, const char *name, const char *file_template);

const char *tp_template_name(const struct tp_template *chat_template);

/** Names of all built-ins, "a, b, c": for help texts. */
const char *tp_template_names(void);

/** Renders a conversation. With add_generation_prompt, the head of an assistant's turn follows. TALPA_E_DATA if there is no message or a
 *  role is unknown (or, for alpaca, does not fit). Allocates in the arena. */
enum talpa_status tp_template_messages(struct tp_template_segments *out, struct tp_arena *arena, const struct tp_template *chat_template,
                                       const struct tp_template_message *messages, size_t n_messages, bool add_generation_prompt);

/** The alpaca prompt for one instruction; `input` may be NULL or empty (then the form without "### Input:" is used). With `output` not
 * NULL, output and EOS follow, labelled. Allocates in the arena. */
enum talpa_status tp_template_instruction(struct tp_template_segments *out, struct tp_arena *arena, const char *instruction,
                                          const char *input, const char *output);

/** Appends the tokens of the segments to `ids`, each segment tokenised by itself, and if `labels` is not NULL their labels: the id where
 *  labelled, else -100. Neither BOS nor EOS is added beyond the segments. TALPA_E_DATA if a segment is EOS and the tokenizer has none. */
enum talpa_status tp_template_encode(struct tp_id_list *ids, struct tp_id_list *labels, const struct tp_tokenizer *tokenizer,
                                     const struct tp_template_segments *segments);

#endif
