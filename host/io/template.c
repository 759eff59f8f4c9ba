#include "template.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

enum style { CHATML, ALPACA };

struct tp_template {
    const char *name;
    enum style style;
    const char *default_system; /* content of the system turn put first if the messages have none; NULL: none */
};

static const struct tp_template SMOLLM = {"chatml-smollm", CHATML, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"};
static const struct tp_template CHATML_PLAIN = {"chatml", CHATML, NULL};
static const struct tp_template ALPACA_TEMPLATE = {"alpaca", ALPACA,
                                                   "Below is an instruction that describes a task. "
                                                   "Write a response that appropriately completes the request."};
static const struct tp_template *const TEMPLATES[] = {&SMOLLM, &CHATML_PLAIN, &ALPACA_TEMPLATE};
enum { N_TEMPLATES = sizeof TEMPLATES / sizeof TEMPLATES[0] };

#define NAMES "chatml-smollm, chatml, alpaca"

/* Jinja texts that are known, in the form that canonical() gives them. */
#define JINJA_MESSAGE "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'"
#define JINJA_MESSAGE_SHORT "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>\n'"
#define JINJA_PROMPT "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}"
#define JINJA_DEFAULT "{%ifnotadd_generation_promptisdefined%}{%setadd_generation_prompt=false%}{%endif%}"
static const struct {
    const char *jinja;
    const struct tp_template *chat_template;
} KNOWN[] = {
    {"{%formessageinmessages%}{%ifloop.firstandmessages[0]['role']!='system'%}{{'<|im_start|>system\n"
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'}}{%endif%}{{" JINJA_MESSAGE
     "}}{%endfor%}" JINJA_PROMPT,
     &SMOLLM},
    {"{%formessageinmessages%}{{" JINJA_MESSAGE "}}{%endfor%}" JINJA_PROMPT, &CHATML_PLAIN},
    {"{%formessageinmessages%}{{" JINJA_MESSAGE_SHORT "}}{%endfor%}" JINJA_PROMPT, &CHATML_PLAIN},
    {JINJA_DEFAULT "{%formessageinmessages%}{{" JINJA_MESSAGE "}}{%endfor%}" JINJA_PROMPT, &CHATML_PLAIN},
    {JINJA_DEFAULT "{%formessageinmessages%}{{" JINJA_MESSAGE_SHORT "}}{%endfor%}" JINJA_PROMPT, &CHATML_PLAIN},
};
enum { N_KNOWN = sizeof KNOWN / sizeof KNOWN[0] };

/* Writes a Jinja text so that equal templates become equal texts: inside {{ }} and {% %}, white space outside string literals is dropped,
 * literals get single quotes and \n becomes a line feed; all else stays. `out` has room for strlen(jinja) + 1. */
static void canonical(char *out, const char *jinja)
{
    bool is_code = false;
    char quote = 0;
    for (const char *s = jinja; *s; s++) {
        if (quote) {
            if (s[0] == '\\' && s[1] == 'n') {
                *out++ = '\n';
                s++;
            } else if (s[0] == '\\' && s[1]) {
                *out++ = *s++;
                *out++ = *s;
            } else if (*s == quote) {
                quote = 0;
                *out++ = '\'';
            } else {
                *out++ = *s;
            }
        } else if (!is_code) {
            is_code = s[0] == '{' && (s[1] == '{' || s[1] == '%');
            *out++ = *s;
            if (is_code) *out++ = *++s;
        } else if (*s == '\'' || *s == '"') {
            quote = *s;
            *out++ = '\'';
        } else if ((s[0] == '}' || s[0] == '%') && s[1] == '}') {
            is_code = false;
            *out++ = *s++;
            *out++ = *s;
        } else if (!strchr(" \t\r\n", *s)) {
            *out++ = *s;
        }
    }
    *out = '\0';
}

enum talpa_status tp_template_select(const struct tp_template **out, const char *name, const char *file_template)
{
    for (int i = 0; name && i < N_TEMPLATES; i++)
        if (strcmp(name, TEMPLATES[i]->name) == 0) {
            *out = TEMPLATES[i];
            return TALPA_OK;
        }
    if (name) return tp_fail(TALPA_E_ARGUMENT, "--chat-template: found \"%.64s\", expected one of: " NAMES, name);
    if (!file_template)
        return tp_fail(TALPA_E_DATA,
                       "the model file has no tokenizer.chat_template; name the one it was trained with: --chat-template (" NAMES ")");
    char *text = malloc(strlen(file_template) + 1);
    if (!text) return tp_fail_memory("chat template", strlen(file_template) + 1);
    canonical(text, file_template);
    int which = 0;
    while (which < N_KNOWN && strcmp(text, KNOWN[which].jinja) != 0) which++;
    free(text);
    if (which == N_KNOWN)
        return tp_fail(TALPA_E_DATA,
                       "the model file's tokenizer.chat_template is not a known one (it starts \"%.60s\"); name the nearest: "
                       "--chat-template (" NAMES ")",
                       file_template);
    *out = KNOWN[which].chat_template;
    return TALPA_OK;
}

const char *tp_template_name(const struct tp_template *chat_template) { return chat_template->name; }
const char *tp_template_names(void) { return NAMES; }

static void push(struct tp_template_segments *list, const char *text, bool is_special_parsed, bool is_labelled)
{
    list->segments[list->n_segments++] = (struct tp_template_segment){text, strlen(text), is_special_parsed, is_labelled, false};
}

static void push_eos(struct tp_template_segments *list)
{
    list->segments[list->n_segments++] = (struct tp_template_segment){"", 0, false, true, true};
}

/* Head and content of a turn that is not the assistant's are one text, so that they tokenise as the rendered whole does. The assistant's
 * content stands alone, as it does when generated. */
static enum talpa_status push_chatml(struct tp_template_segments *list, struct tp_arena *arena, const char *role, const char *content)
{
    const bool is_assistant = strcmp(role, "assistant") == 0;
    char *text = is_assistant ? "assistant\n" : tp_arena_printf(arena, "%s\n%s", role, content);
    if (!text) return TALPA_E_DEVICE;
    push(list, "<|im_start|>", true, false);
    push(list, text, false, false);
    if (is_assistant) push(list, content, false, true);
    push(list, "<|im_end|>", true, is_assistant);
    push(list, "\n", false, false);
    return TALPA_OK;
}

/* "tool" exists in ChatML only. */
static enum talpa_status check_role(const struct tp_template *chat_template, const char *role, size_t i)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    const size_t n = chat_template->style == CHATML ? 4 : 3;
    for (size_t k = 0; k < n; k++)
        if (strcmp(role, roles[k]) == 0) return TALPA_OK;
    return tp_fail(TALPA_E_DATA, "messages[%zu].role: found \"%.64s\", expected system, user, assistant%s", i, role,
                   n == 4 ? " or tool" : " (alpaca)");
}

enum talpa_status tp_template_messages(struct tp_template_segments *out, struct tp_arena *arena, const struct tp_template *chat_template,
                                       const struct tp_template_message *messages, size_t n_messages, bool add_generation_prompt)
{
    if (n_messages == 0) return tp_fail(TALPA_E_DATA, "messages: found none, expected at least one");
    for (size_t i = 0; i < n_messages; i++) TP_TRY(check_role(chat_template, messages[i].role, i));
    struct tp_template_segments list = {0};
    if (n_messages > SIZE_MAX / 8) return tp_fail_memory("messages", n_messages);
    list.segments = tp_arena_array(arena, 5 * (n_messages + 2), sizeof *list.segments);
    if (!list.segments) return TALPA_E_DEVICE;
    const bool has_system = strcmp(messages[0].role, "system") == 0;
    if (chat_template->style == CHATML) {
        if (!has_system && chat_template->default_system) TP_TRY(push_chatml(&list, arena, "system", chat_template->default_system));
        for (size_t i = 0; i < n_messages; i++) TP_TRY(push_chatml(&list, arena, messages[i].role, messages[i].content));
        if (add_generation_prompt) {
            push(&list, "<|im_start|>", true, false);
            push(&list, "assistant\n", false, false);
        }
    } else {
        char *head = tp_arena_printf(arena, "%s\n\n", has_system ? messages[0].content : chat_template->default_system);
        if (!head) return TALPA_E_DEVICE;
        push(&list, head, false, false);
        for (size_t i = has_system; i < n_messages; i++) {
            if (strcmp(messages[i].role, "assistant") == 0) {
                push(&list, "### Response:\n", false, false);
                push(&list, messages[i].content, false, true);
                push_eos(&list);
                if (i + 1 < n_messages || add_generation_prompt) push(&list, "\n\n", false, false);
            } else {
                const bool is_user = strcmp(messages[i].role, "user") == 0;
                char *text = tp_arena_printf(arena, "%s%s\n\n", is_user ? "### Instruction:\n" : "", messages[i].content);
                if (!text) return TALPA_E_DEVICE;
                push(&list, text, false, false);
            }
        }
        if (add_generation_prompt) push(&list, "### Response:\n", false, false);
    }
    *out = list;
    return TALPA_OK;
}

enum talpa_status tp_template_instruction(struct tp_template_segments *out, struct tp_arena *arena, const char *instruction,
                                          const char *input, const char *output)
{
    struct tp_template_segments list = {.segments = tp_arena_array(arena, 3, sizeof *list.segments)};
    char *prompt =
        input && *input
            ? tp_arena_printf(
                  arena,
                  "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
                  "response that appropriately completes the request.\n\n### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n",
                  instruction, input)
            : tp_arena_printf(arena, "%s\n\n### Instruction:\n%s\n\n### Response:\n", ALPACA_TEMPLATE.default_system, instruction);
    if (!list.segments || !prompt) return TALPA_E_DEVICE;
    push(&list, prompt, false, false);
    if (output) {
        push(&list, output, false, true);
        push_eos(&list);
    }
    *out = list;
    return TALPA_OK;
}

enum talpa_status tp_template_encode(struct tp_id_list *ids, struct tp_id_list *labels, const struct tp_tokenizer *tokenizer,
                                     const struct tp_template_segments *segments)
{
    for (size_t i = 0; i < segments->n_segments; i++) {
        const struct tp_template_segment *segment = &segments->segments[i];
        int32_t eos = tp_tokenizer_eos(tokenizer), *part = &eos;
        size_t n = 1;
        if (segment->is_eos && eos < 0)
            return tp_fail(TALPA_E_DATA,
                           "the model file names no end token (tokenizer.ggml.eos_token_id), expected one to end a text with");
        if (!segment->is_eos)
            TP_TRY(tp_tokenizer_encode(&part, &n, tokenizer, segment->text, segment->n_bytes, segment->is_special_parsed));
        enum talpa_status status = TALPA_OK;
        for (size_t k = 0; k < n && status == TALPA_OK; k++) {
            status = tp_tokenizer_bpe_push(ids, part[k]);
            if (status == TALPA_OK && labels) status = tp_tokenizer_bpe_push(labels, segment->is_labelled ? part[k] : -100);
        }
        if (part != &eos) free(part);
        TP_TRY(status);
    }
    return TALPA_OK;
}
