/* Chat templates: named built-ins that turn messages into text segments, so that one path serves training and generation.
 *
 *   chatml             <|im_start|>ROLE\nCONTENT<|im_end|>\n per message
 *   chatml-smollm, qwen2, qwen2.5
 *                      the same with the default system turn of SmolLM2-Instruct, Qwen2-Instruct, Qwen2.5-Instruct
 *   alpaca             "### Instruction:" / "### Input:" / "### Response:" (Taori et al. 2023, Stanford Alpaca)
 *   llama2             [INST] ... [/INST], the system text in <<SYS>> (Llama-2-chat)
 *   llama3, llama3.1   <|start_header_id|>ROLE<|end_header_id|>; 3.1 (and 3.2) with the dates in the system turn: today is 26 Jul 2024,
 *                      which is what the published template has unless a date is given
 *   mistral-v0         "[INST] U [/INST]A</s>", Mistral-7B-Instruct v0.1 and v0.2 as first published
 *   mistral-v1         " [INST] U [/INST] A</s>", as published later; `mistral` is another name for it
 *   mistral-v3         "[INST] U[/INST] A</s>" (7B v0.3, Large 2407); mistral-v3-tekken without the spaces (Nemo)
 *   mistral-v7         the same with "[SYSTEM_PROMPT] S[/SYSTEM_PROMPT]" (Large 2411); mistral-v7-tekken without the spaces (Small 3)
 *   gemma              <start_of_turn>user, model (Gemma 1 to 3)
 *   phi3, phi4-mini, phi4
 *                      <|user|>\nU<|end|>\n; without the line feeds; <|im_start|>user<|im_sep|>
 *   zephyr             <|user|>\nU</s>\n (Zephyr, TinyLlama-Chat)
 *   vicuna             "USER: U ASSISTANT: A</s>" (FastChat's conversation vicuna_v1.1)
 *
 * Where a model has no system turn of its own, the system text goes before the first user's. Jinja is not interpreted: a file's template is
 * recognised as one of these by its text, else the user names one (--chat-template). Not rendered: tools, default system texts with
 * today's date, and the end-of-text token that Phi-3's templates put behind a finished conversation. */
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

/** A piece of a rendered conversation. Neighbours with the same label are tokenised as one text. */
struct tp_template_segment {
    const char *text; /* [n_bytes] */
    size_t n_bytes;
    bool is_special_parsed; /* special tokens in it are tokens; text from data never has this */
    bool is_labelled;       /* the loss falls on it: the assistant's content and its end marker */
    bool is_eos;            /* the tokenizer's EOS token instead of a text (text is "") */
    bool is_bos;            /* the same with BOS; the first segment's is left out where the tokenizer adds BOS to every text */
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
 *  role is unknown or does not fit the template (tool; a system text in the middle). Allocates in the arena. */
enum talpa_status tp_template_messages(struct tp_template_segments *out, struct tp_arena *arena, const struct tp_template *chat_template,
                                       const struct tp_template_message *messages, size_t n_messages, bool add_generation_prompt);

/** The alpaca prompt for one instruction; `input` may be NULL or empty (then the form without "### Input:" is used). With `output` not
 * NULL, output and EOS follow, labelled. Allocates in the arena. */
enum talpa_status tp_template_instruction(struct tp_template_segments *out, struct tp_arena *arena, const char *instruction,
                                          const char *input, const char *output);

/** Appends the tokens of the segments to `ids`, and if `labels` is not NULL their labels: the id where labelled, else -100. Where the label
 *  changes, the text is cut, so that an answer has the tokens that it has when it is generated. Neither BOS nor EOS is added beyond the
 * segments. TALPA_E_DATA if a segment is EOS and the tokenizer has none. */
enum talpa_status tp_template_encode(struct tp_id_list *ids, struct tp_id_list *labels, const struct tp_tokenizer *tokenizer,
                                     const struct tp_template_segments *segments);

#endif
