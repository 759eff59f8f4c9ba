/* Prompts: token ids of raw text and of conversations. */
#include <stdlib.h>
#include <string.h>

#include "io/template.h"
#include "models/model.h"
#include "talpa/infer.h"

/* Copies BOS, if every text starts with it, and the ids given. */
static enum talpa_status put(int32_t **out, size_t *n_out, const struct tp_tokenizer *tokenizer, const int32_t *ids, size_t n_ids)
{
    const int32_t bos = tp_tokenizer_bos(tokenizer);
    const bool has_bos = tp_tokenizer_add_bos(tokenizer) && !(n_ids && ids[0] == bos);
    int32_t *all = malloc((n_ids + 1) * sizeof *all);
    if (!all) return tp_fail_memory("prompt", (n_ids + 1) * sizeof *all);
    if (has_bos) all[0] = bos;
    if (n_ids) memcpy(all + has_bos, ids, n_ids * sizeof *all);
    *out = all;
    *n_out = n_ids + has_bos;
    return TALPA_OK;
}

enum talpa_status talpa_prompt_text(int32_t **ids, size_t *n_ids, const struct talpa_model *model, const char *text, size_t n_bytes,
                                    bool parse_special)
{
    int32_t *plain;
    size_t n;
    TP_TRY(tp_tokenizer_encode(&plain, &n, model->tokenizer, text, n_bytes, parse_special));
    const enum talpa_status status = put(ids, n_ids, model->tokenizer, plain, n);
    free(plain);
    return status;
}

static enum talpa_status render(struct tp_id_list *list, struct tp_arena *arena, const struct talpa_model *model,
                                const struct talpa_message *messages, size_t n_messages, const char *name)
{
    const struct tp_template *chat_template;
    struct tp_template_segments segments;
    TP_TRY(tp_template_select(&chat_template, name, tp_tokenizer_chat_template(model->tokenizer)));
    struct tp_template_message *turns = tp_arena_array(arena, n_messages + 1, sizeof *turns);
    if (!turns) return TALPA_E_DEVICE;
    for (size_t i = 0; i < n_messages; i++) turns[i] = (struct tp_template_message){messages[i].role, messages[i].content};
    TP_TRY(tp_template_messages(&segments, arena, chat_template, turns, n_messages, true));
    return tp_template_encode(list, NULL, model->tokenizer, &segments);
}

enum talpa_status talpa_prompt_chat(int32_t **ids, size_t *n_ids, const struct talpa_model *model, const struct talpa_message *messages,
                                    size_t n_messages, const char *chat_template)
{
    struct tp_id_list list = {0};
    struct tp_arena arena = {0};
    enum talpa_status status = render(&list, &arena, model, messages, n_messages, chat_template);
    if (status == TALPA_OK) status = put(ids, n_ids, model->tokenizer, list.ids, list.n_ids);
    tp_arena_free(&arena);
    free(list.ids);
    return status;
}

const char *talpa_chat_templates(void) { return tp_template_names(); }
