/* Prompts of a JSONL text. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "io/template.h"
#include "io/text_lines.h"
#include "models/model.h"
#include "talpa/infer.h"

struct prompt_reader {
    const struct talpa_model *model;
    const struct talpa_prompt_options *options;
    const char *label;
    struct talpa_prompt *prompts;
    size_t n, room;
};

static enum talpa_status copy(char **out, const char *text)
{
    *out = strdup(text);
    return *out ? TALPA_OK : tp_fail_memory("prompt", strlen(text) + 1);
}

/* A conversation, with the system turn of the options before it if it has none. */
static enum talpa_status conversation(struct talpa_prompt *prompt, const struct prompt_reader *r, struct talpa_message *messages, size_t n)
{
    /* messages[0] is free for the system turn. */
    const bool has_system = n && !strcmp(messages[1].role, "system"), adds = r->options->system && !has_system;
    if (adds) messages[0] = (struct talpa_message){"system", r->options->system};
    return talpa_prompt_chat(&prompt->ids, &prompt->n_ids, r->model, adds ? messages : messages + 1, n + adds, r->options->chat_template);
}

static enum talpa_status read_text(struct talpa_prompt *prompt, const struct prompt_reader *r, const char *text)
{
    TP_TRY(copy(&prompt->text, text));
    struct talpa_message messages[2] = {{NULL, NULL}, {"user", text}};
    if (r->options->chat) return conversation(prompt, r, messages, 1);
    return talpa_prompt_text(&prompt->ids, &prompt->n_ids, r->model, text, strlen(text), false);
}

static enum talpa_status read_messages(struct talpa_prompt *prompt, const struct prompt_reader *r, const struct tp_json_value *list)
{
    if (tp_json_type(list) != TP_JSON_ARRAY || !tp_json_first(list))
        return tp_fail(TALPA_E_DATA, "messages: found %s, expected an array of {\"role\", \"content\"}",
                       tp_json_type_name(tp_json_type(list)));
    const size_t n = (size_t)tp_json_length(list);
    struct talpa_message *messages = calloc(n + 1, sizeof *messages);
    if (!messages) return tp_fail_memory("prompt", (n + 1) * sizeof *messages);
    enum talpa_status status = TALPA_OK;
    size_t i = 1;
    for (const struct tp_json_value *m = tp_json_first(list); m && status == TALPA_OK; m = tp_json_next(m), i++) {
        status = tp_json_get_string(&messages[i].role, m, "role");
        if (status == TALPA_OK) status = tp_json_get_string(&messages[i].content, m, "content");
        status = tp_context(status, "messages[%zu]", i - 1);
    }
    if (status == TALPA_OK) status = copy(&prompt->text, messages[n].content);
    if (status == TALPA_OK) status = conversation(prompt, r, messages, n);
    free(messages);
    return status;
}

static enum talpa_status read_instruction(struct talpa_prompt *prompt, const struct prompt_reader *r, const struct tp_json_value *row)
{
    const char *instruction, *input;
    TP_TRY(tp_json_get_string(&instruction, row, "instruction"));
    TP_TRY(tp_json_get_string_or(&input, row, "input", ""));
    TP_TRY(copy(&prompt->text, instruction));
    struct tp_arena arena = {0};
    struct tp_id_list list = {0};
    struct tp_template_segments segments;
    const struct tp_tokenizer *tokenizer = r->model->tokenizer;
    enum talpa_status status = TALPA_OK;
    if (tp_tokenizer_add_bos(tokenizer)) status = tp_tokenizer_bpe_push(&list, tp_tokenizer_bos(tokenizer));
    if (status == TALPA_OK) status = tp_template_instruction(&segments, &arena, instruction, input, NULL);
    if (status == TALPA_OK) status = tp_template_encode(&list, NULL, tokenizer, &segments);
    if (status == TALPA_OK) *prompt = (struct talpa_prompt){.id = prompt->id, .text = prompt->text, .ids = list.ids, .n_ids = list.n_ids};
    else free(list.ids);
    tp_arena_free(&arena);
    return status;
}

static enum talpa_status read_id(struct talpa_prompt *prompt, const struct tp_json_value *id)
{
    char number[32] = "";
    double value;
    const char *text = number;
    if (tp_json_type(id) == TP_JSON_STRING) TP_TRY(tp_json_as_string(&text, id, "id"));
    if (tp_json_type(id) == TP_JSON_NUMBER) {
        TP_TRY(tp_json_as_double(&value, id, "id"));
        snprintf(number, sizeof number, "%.17g", value);
    }
    return copy(&prompt->id, text);
}

static enum talpa_status read_row(struct talpa_prompt *prompt, const struct prompt_reader *r, const struct tp_json_value *row)
{
    const char *text;
    if (tp_json_type(row) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object with prompt, text, messages or instruction",
                       tp_json_type_name(tp_json_type(row)));
    TP_TRY(read_id(prompt, tp_json_get(row, "id")));
    if (tp_json_get(row, "messages")) return read_messages(prompt, r, tp_json_get(row, "messages"));
    if (tp_json_get(row, "instruction")) return read_instruction(prompt, r, row);
    const char *key = tp_json_get(row, "prompt") ? "prompt" : "text";
    if (!tp_json_get(row, key)) return tp_fail(TALPA_E_DATA, "found none of prompt, text, messages and instruction");
    TP_TRY(tp_json_get_string(&text, row, key));
    return read_text(prompt, r, text);
}

static enum talpa_status read_line(struct prompt_reader *r, const struct tp_text_lines *line)
{
    char where[256];
    struct tp_json *json;
    if (r->n == r->room) {
        const size_t room = r->room ? 2 * r->room : 64;
        struct talpa_prompt *grown = realloc(r->prompts, room * sizeof *grown);
        if (!grown) return tp_fail_memory("prompts", room * sizeof *grown);
        r->prompts = grown;
        r->room = room;
    }
    snprintf(where, sizeof where, "%.200s:%" PRIu64, r->label, line->number);
    TP_TRY(tp_json_parse(&json, line->text, line->n_bytes, where));
    struct talpa_prompt *prompt = &r->prompts[r->n++];
    *prompt = (struct talpa_prompt){0};
    const enum talpa_status status = read_row(prompt, r, tp_json_root(json));
    tp_json_free(json);
    return tp_context(status, "%s", where);
}

enum talpa_status talpa_prompts_parse(struct talpa_prompt **out, size_t *n_prompts, const struct talpa_model *model, const char *text,
                                      size_t n_bytes, const char *label, const struct talpa_prompt_options *options)
{
    struct prompt_reader reader = {.model = model, .options = options, .label = label};
    struct tp_text_lines lines = tp_text_lines_of(text, n_bytes);
    enum talpa_status status = TALPA_OK;
    while (status == TALPA_OK && tp_text_lines_next(&lines)) status = read_line(&reader, &lines);
    if (status == TALPA_OK && reader.n == 0) status = tp_fail(TALPA_E_DATA, "%s: no prompts, expected one JSON object per line", label);
    if (status == TALPA_OK) {
        *out = reader.prompts;
        *n_prompts = reader.n;
    } else {
        talpa_prompts_free(reader.prompts, reader.n);
    }
    return status;
}

void talpa_prompts_free(struct talpa_prompt *prompts, size_t n_prompts)
{
    for (size_t i = 0; i < n_prompts && prompts; i++) {
        free(prompts[i].id);
        free(prompts[i].text);
        free(prompts[i].ids);
    }
    free(prompts);
}
