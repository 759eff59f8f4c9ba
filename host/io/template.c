#include "template.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

/* How one role's turn is written: MARK and END are template text in which special tokens are parsed, HEAD and TAIL plain text around the
 * content. An answer's HEAD is the question's, LEAD and TRAIL belong to the answer. */
struct turn {
    const char *mark, *head, *lead, *trail, *end, *after;
};

/* In the place of END: the tokenizer's EOS. */
static const char EOS[] = "\x01";

enum system_style { SYSTEM_TURN, SYSTEM_IN_USER };

struct tp_template {
    const char *name;
    struct turn system, user, answer, tool; /* tool: mark NULL if there is none */
    enum system_style system_style;
    const char *default_system;             /* content of the system turn put first if the messages have none; NULL: none */
    const char *system_lead, *system_trail; /* SYSTEM_IN_USER: around the system text */
    bool has_bos, has_bos_each;             /* BOS at the start; before each user's turn */
    bool trims;                             /* white space around every content is dropped */
    bool trims_answer;                      /* around the assistant's */
    bool after_is_between;                  /* AFTER is written only where something follows */
};

#define CHATML_TURN(role)                                                                                                                  \
    {                                                                                                                                      \
        "<|im_start|>", role "\n", "", "", "<|im_end|>", "\n"                                                                              \
    }
#define CHATML(name_, system_text)                                                                                                         \
    {                                                                                                                                      \
        .name = name_, .system = CHATML_TURN("system"), .user = CHATML_TURN("user"), .answer = CHATML_TURN("assistant"),                   \
        .tool = CHATML_TURN("tool"), .default_system = system_text                                                                         \
    }
#define LLAMA3_TURN(role)                                                                                                                  \
    {                                                                                                                                      \
        "<|start_header_id|>" role "<|end_header_id|>", "\n\n", "", "", "<|eot_id|>", ""                                                   \
    }
#define MISTRAL(name_, user_mark, user_head, user_trail, user_end, answer_lead)                                                            \
    .name = name_, .user = {user_mark, user_head, "", user_trail, user_end, ""}, .answer = {"", "", answer_lead, "", EOS, ""},             \
    .has_bos = true
#define IN_USER(lead, trail) .system_style = SYSTEM_IN_USER, .system_lead = lead, .system_trail = trail

static const struct tp_template TEMPLATES[] = {
    CHATML("chatml-smollm", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    CHATML("chatml", NULL),
    {.name = "alpaca",
     .system = {"", "", "", "\n\n", "", ""},
     .user = {"", "### Instruction:\n", "", "\n\n", "", ""},
     .answer = {"", "### Response:\n", "", "", EOS, "\n\n"},
     .default_system = "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
     .after_is_between = true},
    CHATML("qwen2", "You are a helpful assistant."),
    CHATML("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    {.name = "llama2",
     .user = {"", "[INST] ", "", " [/INST]", "", ""},
     .answer = {"", "", " ", " ", EOS, ""},
     IN_USER("<<SYS>>\n", "\n<</SYS>>\n\n"),
     .has_bos_each = true,
     .trims = true},
    {.name = "llama3",
     .system = LLAMA3_TURN("system"),
     .user = LLAMA3_TURN("user"),
     .answer = LLAMA3_TURN("assistant"),
     .has_bos = true,
     .trims = true},
    {.name = "llama3.1",
     .system = {"<|start_header_id|>system<|end_header_id|>", "\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "",
                "", "<|eot_id|>", ""},
     .user = LLAMA3_TURN("user"),
     .answer = LLAMA3_TURN("assistant"),
     .default_system = "",
     .has_bos = true,
     .trims = true},
    {MISTRAL("mistral-v0", "", "[INST] ", " [/INST]", "", ""), IN_USER("", "\n\n")},
    {MISTRAL("mistral-v1", "", " [INST] ", " [/INST]", "", " "), IN_USER("", "\n\n")},
    {MISTRAL("mistral", "", " [INST] ", " [/INST]", "", " "), IN_USER("", "\n\n")},
    {MISTRAL("mistral-v3", "[INST]", " ", "", "[/INST]", " "), IN_USER("", "\n\n"), .trims_answer = true},
    {MISTRAL("mistral-v3-tekken", "[INST]", "", "", "[/INST]", ""), IN_USER("", "\n\n")},
    {MISTRAL("mistral-v7", "[INST]", " ", "", "[/INST]", " "), .system = {"[SYSTEM_PROMPT]", " ", "", "", "[/SYSTEM_PROMPT]", ""}},
    {MISTRAL("mistral-v7-tekken", "[INST]", "", "", "[/INST]", ""), .system = {"[SYSTEM_PROMPT]", "", "", "", "[/SYSTEM_PROMPT]", ""}},
    {.name = "gemma",
     .user = {"<start_of_turn>", "user\n", "", "", "<end_of_turn>", "\n"},
     .answer = {"<start_of_turn>", "model\n", "", "", "<end_of_turn>", "\n"},
     IN_USER("", "\n\n"),
     .has_bos = true,
     .trims = true},
    {.name = "phi3",
     .system = {"<|system|>", "\n", "", "", "<|end|>", "\n"},
     .user = {"<|user|>", "\n", "", "", "<|end|>", "\n"},
     .answer = {"<|assistant|>", "\n", "", "", "<|end|>", "\n"},
     .has_bos = true},
    {.name = "phi4-mini",
     .system = {"<|system|>", "", "", "", "<|end|>", ""},
     .user = {"<|user|>", "", "", "", "<|end|>", ""},
     .answer = {"<|assistant|>", "", "", "", "<|end|>", ""}},
    {.name = "phi4",
     .system = {"<|im_start|>system<|im_sep|>", "", "", "", "<|im_end|>", ""},
     .user = {"<|im_start|>user<|im_sep|>", "", "", "", "<|im_end|>", ""},
     .answer = {"<|im_start|>assistant<|im_sep|>", "", "", "", "<|im_end|>", ""}},
    {.name = "zephyr",
     .system = {"<|system|>", "\n", "", "", EOS, "\n"},
     .user = {"<|user|>", "\n", "", "", EOS, "\n"},
     .answer = {"<|assistant|>", "\n", "", "", EOS, "\n"}},
    {.name = "vicuna",
     .system = {"", "", "", " ", "", ""},
     .user = {"", "USER: ", "", " ", "", ""},
     .answer = {"", "ASSISTANT:", " ", "", EOS, ""},
     .default_system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
                       "polite answers to the user's questions."},
};
enum { N_TEMPLATES = sizeof TEMPLATES / sizeof TEMPLATES[0] };

#define NAMES                                                                                                                              \
    "chatml-smollm, chatml, alpaca, qwen2, qwen2.5, llama2, llama3, llama3.1, mistral-v0, mistral-v1, mistral, mistral-v3, "               \
    "mistral-v3-tekken, mistral-v7, mistral-v7-tekken, gemma, phi3, phi4-mini, phi4, zephyr, vicuna"

/* Jinja texts that are known, in the form that canonical() gives them. */
#define JINJA_MESSAGE "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'"
#define JINJA_MESSAGE_SHORT "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>\n'"
#define JINJA_PROMPT "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}"
#define JINJA_DEFAULT "{%ifnotadd_generation_promptisdefined%}{%setadd_generation_prompt=false%}{%endif%}"
static const struct {
    const char *jinja;
    const char *name;
} KNOWN[] = {
    {"{%formessageinmessages%}{%ifloop.firstandmessages[0]['role']!='system'%}{{'<|im_start|>system\n"
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'}}{%endif%}{{" JINJA_MESSAGE
     "}}{%endfor%}" JINJA_PROMPT,
     "chatml-smollm"},
    {"{%formessageinmessages%}{{" JINJA_MESSAGE "}}{%endfor%}" JINJA_PROMPT, "chatml"},
    {"{%formessageinmessages%}{{" JINJA_MESSAGE_SHORT "}}{%endfor%}" JINJA_PROMPT, "chatml"},
    {JINJA_DEFAULT "{%formessageinmessages%}{{" JINJA_MESSAGE "}}{%endfor%}" JINJA_PROMPT, "chatml"},
    {JINJA_DEFAULT "{%formessageinmessages%}{{" JINJA_MESSAGE_SHORT "}}{%endfor%}" JINJA_PROMPT, "chatml"},
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

static const struct tp_template *find(const char *name)
{
    for (int i = 0; name && i < N_TEMPLATES; i++)
        if (strcmp(name, TEMPLATES[i].name) == 0) return &TEMPLATES[i];
    return NULL;
}

/* ChatML with a system text of its own that is none of the known: rendering without it would be another prompt. */
static bool has_other_default(const char *c)
{
    static const char start[] = "<|im_start|>system\n";
    for (const char *at = c; (at = strstr(at, start)) != NULL;) {
        at += strlen(start);
        if (*at != '\'' && *at != '"' && *at != '{') return true;
    }
    return strstr(c, "set default_system") || strstr(c, "set system_message='");
}

#define HAS(part) (strstr(c, part) != NULL)

static const char *detect_chatml(const char *c)
{
    if (HAS("<|im_start|> ") || HAS(" <|im_end|>")) return NULL;
    if (HAS("<|im_sep|>")) return "phi4";
    if (HAS("named SmolLM, trained by Hugging Face<|im_end|>")) return "chatml-smollm";
    if (HAS("<think>")) return NULL; /* puts or drops thoughts, depending on the turn */
    if (HAS("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")) return "qwen2.5";
    if (HAS("<|im_start|>system\nYou are a helpful assistant.<|im_end|>") ||
        HAS("<|im_start|>system\nYou are a helpful assistant<|im_end|>"))
        return HAS("assistant.<|im_end|>") ? "qwen2" : NULL;
    return has_other_default(c) ? NULL : "chatml";
}

static const char *detect_mistral(const char *c)
{
    if (HAS("[SYSTEM_PROMPT]")) return HAS("[INST] ") ? "mistral-v7" : "mistral-v7-tekken";
    if (HAS("<<SYS>>"))
        return HAS("bos_token+'[INST] '+content.strip()+' [/INST]'") && HAS("' '+content.strip()+' '+eos_token") ? "llama2" : NULL;
    if (HAS("' [INST] '") && HAS("' [/INST]'")) return "mistral-v1";
    if (HAS("'[INST] '") && HAS("' [/INST]'")) return HAS("{{message['content']+eos_token}}") ? "mistral-v0" : NULL;
    if (HAS("'[INST] '") && HAS("'[/INST]'")) return "mistral-v3";
    return HAS("'[INST]'") && HAS("'[/INST]'") ? "mistral-v3-tekken" : NULL;
}

/* Name of the template that a Jinja text in canonical form is, by the texts that only it has; NULL: none. */
static const char *detect(const char *c)
{
    for (size_t i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; i++)
        if (strcmp(c, KNOWN[i].jinja) == 0) return KNOWN[i].name;
    /* Cut off, or with spaces between the blocks, which would be part of the prompt. */
    if (!HAS("endfor") || HAS("%} {") || HAS("}} {")) return NULL;
    if (HAS("<|im_start|>")) return HAS("<|im_end|>") ? detect_chatml(c) : NULL;
    if (HAS("[INST]")) return detect_mistral(c);
    if (HAS("<|start_header_id|>") && HAS("<|eot_id|>")) return HAS("Cutting Knowledge Date") ? "llama3.1" : "llama3";
    if (HAS("<start_of_turn>") && HAS("<end_of_turn>")) return "gemma";
    if (HAS("<|end|>") && (HAS("<|assistant|>") || HAS("'<|'"))) {
        if (HAS("<|user|>'+'\n'") || HAS("<|user|>\n") || HAS("'|>'+'\n'") || HAS("'|>\n'")) return "phi3";
        return HAS("'|>'+message['content']+'<|end|>'") ? "phi4-mini" : NULL;
    }
    if (HAS("'<|user|>\n'+message['content']+eos_token") && (HAS("eos_token}}\n") || HAS("eos_token+'\n'"))) return "zephyr";
    if (HAS("'USER: '+message['content']+' '") && HAS("ASSISTANT:")) return "vicuna";
    return NULL;
}

enum talpa_status tp_template_select(const struct tp_template **out, const char *name, const char *file_template)
{
    const struct tp_template *found = find(name);
    if (name && !found) return tp_fail(TALPA_E_ARGUMENT, "--chat-template: found \"%.64s\", expected one of: " NAMES, name);
    if (!found && !file_template)
        return tp_fail(TALPA_E_DATA,
                       "the model file has no tokenizer.chat_template; name the one it was trained with: --chat-template (" NAMES ")");
    if (!found) {
        char *text = malloc(strlen(file_template) + 1);
        if (!text) return tp_fail_memory("chat template", strlen(file_template) + 1);
        canonical(text, file_template);
        found = find(detect(text));
        free(text);
    }
    if (!found)
        return tp_fail(TALPA_E_DATA,
                       "the model file's tokenizer.chat_template is not a known one (it starts \"%.60s\"); name the nearest: "
                       "--chat-template (" NAMES ")",
                       file_template);
    *out = found;
    return TALPA_OK;
}

const char *tp_template_name(const struct tp_template *chat_template) { return chat_template->name; }
const char *tp_template_names(void) { return NAMES; }

static void push(struct tp_template_segments *list, const char *text, bool is_special_parsed, bool is_labelled)
{
    list->segments[list->n_segments++] = (struct tp_template_segment){text, strlen(text), is_special_parsed, is_labelled, false, false};
}

/* Template text; EOS stands for the token. */
static void push_special(struct tp_template_segments *list, const char *text, bool is_labelled)
{
    if (text == EOS)
        list->segments[list->n_segments++] = (struct tp_template_segment){.text = "", .is_labelled = is_labelled, .is_eos = true};
    else if (*text)
        push(list, text, true, is_labelled);
}

static void push_bos(struct tp_template_segments *list)
{
    list->segments[list->n_segments++] = (struct tp_template_segment){.text = "", .is_bos = true};
}

static const char *trim(struct tp_arena *arena, const char *text)
{
    static const char space[] = " \t\n\r\v\f";
    text += strspn(text, space);
    size_t n = strlen(text);
    while (n > 0 && strchr(space, text[n - 1])) n--;
    return tp_arena_strndup(arena, text, n);
}

/* Head and content of a turn that is not the assistant's are one text, so that they tokenise as the rendered whole does. */
static enum talpa_status push_turn(struct tp_template_segments *list, struct tp_arena *arena, const struct turn *turn, const char *content,
                                   bool is_answer, bool has_after)
{
    char *text = tp_arena_printf(arena, "%s%s%s", turn->lead, content, turn->trail);
    char *whole = is_answer ? text : tp_arena_printf(arena, "%s%s", turn->head, text ? text : "");
    if (!text || !whole) return TALPA_E_DEVICE;
    push_special(list, turn->mark, false);
    if (is_answer && *turn->head) push(list, turn->head, false, false);
    if (is_answer || *whole) push(list, whole, false, is_answer);
    push_special(list, turn->end, is_answer);
    if (has_after && *turn->after) push(list, turn->after, false, false);
    return TALPA_OK;
}

/* The turn of a role, or NULL if the template has none. */
static const struct turn *turn_of(const struct tp_template *t, const char *role)
{
    if (strcmp(role, "system") == 0) return &t->system;
    if (strcmp(role, "user") == 0) return &t->user;
    if (strcmp(role, "assistant") == 0) return &t->answer;
    return strcmp(role, "tool") == 0 && t->tool.mark ? &t->tool : NULL;
}

static enum talpa_status check_roles(const struct tp_template *t, const struct tp_template_message *messages, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct turn *turn = turn_of(t, messages[i].role);
        if (!turn)
            return tp_fail(TALPA_E_DATA, "messages[%zu].role: found \"%.64s\", expected system, user, assistant%s%s%s", i, messages[i].role,
                           t->tool.mark ? " or tool" : " (", t->tool.mark ? "" : t->name, t->tool.mark ? "" : ")");
        if (turn == &t->system && t->system_style == SYSTEM_IN_USER && (i > 0 || n < 2 || strcmp(messages[1].role, "user") != 0))
            return tp_fail(
                TALPA_E_DATA,
                "messages[%zu].role: found system, expected it first and before a user's turn, into which the template %s puts it", i,
                t->name);
    }
    return TALPA_OK;
}

enum talpa_status tp_template_messages(struct tp_template_segments *out, struct tp_arena *arena, const struct tp_template *chat_template,
                                       const struct tp_template_message *messages, size_t n_messages, bool add_generation_prompt)
{
    const struct tp_template *t = chat_template;
    if (n_messages == 0) return tp_fail(TALPA_E_DATA, "messages: found none, expected at least one");
    TP_TRY(check_roles(t, messages, n_messages));
    struct tp_template_segments list = {0};
    if (n_messages > SIZE_MAX / 8) return tp_fail_memory("messages", n_messages);
    list.segments = tp_arena_array(arena, 6 * (n_messages + 2), sizeof *list.segments);
    if (!list.segments) return TALPA_E_DEVICE;
    const bool has_system = strcmp(messages[0].role, "system") == 0;
    const char *system = NULL;
    if (t->has_bos) push_bos(&list);
    if (!has_system && t->default_system) TP_TRY(push_turn(&list, arena, &t->system, t->default_system, false, true));
    for (size_t i = 0; i < n_messages; i++) {
        const struct turn *turn = turn_of(t, messages[i].role);
        const bool is_answer = turn == &t->answer, is_last = i + 1 == n_messages && !add_generation_prompt;
        const char *content = messages[i].content;
        if (t->system_style == SYSTEM_IN_USER && turn == &t->system) {
            system = content;
            continue;
        }
        if (system && !t->has_bos_each && t->trims) content = trim(arena, content);
        if (system && content) content = tp_arena_printf(arena, "%s%s%s%s", t->system_lead, system, t->system_trail, content);
        /* Llama 2 trims system and user text as one. */
        if ((t->trims && (!system || t->has_bos_each)) || (t->trims_answer && is_answer)) content = content ? trim(arena, content) : NULL;
        if (!content) return TALPA_E_DEVICE;
        system = NULL;
        if (t->has_bos_each && turn == &t->user) push_bos(&list);
        TP_TRY(push_turn(&list, arena, turn, content, is_answer, !(t->after_is_between && is_last)));
    }
    if (add_generation_prompt) {
        push_special(&list, t->answer.mark, false);
        if (*t->answer.head) push(&list, t->answer.head, false, false);
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
            : tp_arena_printf(arena, "%s\n\n### Instruction:\n%s\n\n### Response:\n", find("alpaca")->default_system, instruction);
    if (!list.segments || !prompt) return TALPA_E_DEVICE;
    push(&list, prompt, false, false);
    if (output) {
        push(&list, output, false, true);
        push_special(&list, EOS, true);
    }
    *out = list;
    return TALPA_OK;
}

/* The text of neighbouring segments with one label, and where in it special tokens are parsed. */
struct run {
    char *text;
    size_t n_bytes;
    struct tp_text_span *spans;
    size_t n_spans;
    struct tp_text_place place;
};

static enum talpa_status append_labels(struct tp_id_list *labels, const struct tp_id_list *ids, bool is_labelled)
{
    while (labels && labels->n_ids < ids->n_ids) TP_TRY(tp_tokenizer_bpe_push(labels, is_labelled ? ids->ids[labels->n_ids] : -100));
    return TALPA_OK;
}

/* Tokenises segments [from, to), which are text with one label. */
static enum talpa_status encode_run(struct tp_id_list *ids, struct tp_text_place *place, struct run *run,
                                    const struct tp_tokenizer *tokenizer, const struct tp_template_segment *segments, size_t n)
{
    run->n_bytes = run->n_spans = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t start = run->n_bytes, end = start + segments[i].n_bytes;
        if (segments[i].n_bytes > 0) memcpy(run->text + start, segments[i].text, segments[i].n_bytes);
        run->n_bytes = end;
        if (!segments[i].is_special_parsed) continue;
        if (run->n_spans > 0 && run->spans[run->n_spans - 1].end == start)
            run->spans[run->n_spans - 1].end = end;
        else
            run->spans[run->n_spans++] = (struct tp_text_span){start, end};
    }
    return tp_tokenizer_encode_spans(ids, place, tokenizer, run->text, run->n_bytes, run->spans, run->n_spans);
}

static enum talpa_status encode_all(struct tp_id_list *ids, struct tp_id_list *labels, struct run *run,
                                    const struct tp_tokenizer *tokenizer, const struct tp_template_segments *segments)
{
    const struct tp_template_segment *list = segments->segments;
    run->place.is_start = true;
    for (size_t i = 0, n; i < segments->n_segments; i += n) {
        n = 1;
        if (list[i].is_eos || list[i].is_bos) {
            const int32_t id = list[i].is_eos ? tp_tokenizer_eos(tokenizer) : tp_tokenizer_bos(tokenizer);
            if (list[i].is_eos && id < 0)
                return tp_fail(TALPA_E_DATA,
                               "the model file names no end token (tokenizer.ggml.eos_token_id), expected one to end a text with");
            if (id >= 0 && !(list[i].is_bos && i == 0 && tp_tokenizer_add_bos(tokenizer))) TP_TRY(tp_tokenizer_bpe_push(ids, id));
            run->place = (struct tp_text_place){.is_after_special = true};
        } else {
            while (i + n < segments->n_segments && list[i + n].is_labelled == list[i].is_labelled && !list[i + n].is_eos &&
                   !list[i + n].is_bos)
                n++;
            TP_TRY(encode_run(ids, &run->place, run, tokenizer, list + i, n));
        }
        TP_TRY(append_labels(labels, ids, list[i].is_labelled));
    }
    return TALPA_OK;
}

enum talpa_status tp_template_encode(struct tp_id_list *ids, struct tp_id_list *labels, const struct tp_tokenizer *tokenizer,
                                     const struct tp_template_segments *segments)
{
    size_t n_bytes = 0;
    for (size_t i = 0; i < segments->n_segments; i++) n_bytes += segments->segments[i].n_bytes;
    struct run run = {.text = malloc(n_bytes + 1), .spans = malloc((segments->n_segments + 1) * sizeof *run.spans)};
    /* Labels and ids go in step from here on. */
    struct tp_id_list own_ids = {0}, own_labels = {0};
    enum talpa_status status = run.text && run.spans ? TALPA_OK : tp_fail_memory("chat template", n_bytes);
    if (status == TALPA_OK) status = encode_all(&own_ids, labels ? &own_labels : NULL, &run, tokenizer, segments);
    for (size_t i = 0; status == TALPA_OK && i < own_ids.n_ids; i++) {
        status = tp_tokenizer_bpe_push(ids, own_ids.ids[i]);
        if (status == TALPA_OK && labels) status = tp_tokenizer_bpe_push(labels, own_labels.ids[i]);
    }
    free(own_ids.ids);
    free(own_labels.ids);
    free(run.text);
    free(run.spans);
    return status;
}
