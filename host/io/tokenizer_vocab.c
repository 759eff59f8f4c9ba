#include "tokenizer_vocab.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

static enum talpa_status reserve(struct tp_vocab *v, size_t n)
{
    if (n > v->capacity) {
        const size_t capacity = n > 2 * v->capacity ? n : 2 * v->capacity;
        struct tp_text *tokens = realloc(v->tokens, capacity * sizeof *tokens);
        if (tokens) v->tokens = tokens;
        int32_t *types = realloc(v->types, capacity * sizeof *types);
        if (types) v->types = types;
        float *scores = realloc(v->scores, capacity * sizeof *scores);
        if (scores) v->scores = scores;
        uint8_t *strips = realloc(v->strips, capacity);
        if (strips) v->strips = strips;
        if (!tokens || !types || !scores || !strips) return tp_fail_memory("vocabulary", capacity * sizeof *tokens);
        v->capacity = capacity;
    }
    for (; v->n < n; v->n++) {
        v->tokens[v->n] = (struct tp_text){"", 0};
        v->types[v->n] = TP_TOKEN_UNUSED;
        v->scores[v->n] = 0.0f;
        v->strips[v->n] = 0;
    }
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_vocab_put(struct tp_vocab *vocab, int64_t id, const char *text, size_t n_bytes, int32_t type, size_t n_limit)
{
    if (id < 0 || (uint64_t)id >= n_limit)
        return tp_fail(TALPA_E_DATA, "token \"%.*s\": its id is %lld, expected 0..%zu", n_bytes < 60 ? (int)n_bytes : 60, text,
                       (long long)id, n_limit - 1);
    if ((uint64_t)id >= vocab->n) TP_TRY(reserve(vocab, (size_t)id + 1));
    vocab->tokens[id] = (struct tp_text){text, n_bytes};
    vocab->types[id] = type;
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_vocab_add(struct tp_vocab *vocab, int64_t id, const struct tp_json_value *token, size_t n_limit,
                                         bool has_prefix_normalizer)
{
    const char *text;
    bool is_special, strips_left, strips_right, is_normalized, is_single;
    TP_TRY(tp_json_get_string(&text, token, "content"));
    TP_TRY(tp_json_get_bool_or(&is_special, token, "special", false));
    TP_TRY(tp_json_get_bool_or(&strips_left, token, "lstrip", false));
    TP_TRY(tp_json_get_bool_or(&strips_right, token, "rstrip", false));
    TP_TRY(tp_json_get_bool_or(&is_normalized, token, "normalized", !is_special));
    TP_TRY(tp_json_get_bool_or(&is_single, token, "single_word", false));
    if (is_single) return tp_fail(TALPA_E_DATA, "added token \"%.60s\": single_word is true, which is not supported", text);
    if (is_normalized && !is_special && has_prefix_normalizer)
        return tp_fail(TALPA_E_DATA,
                       "added token \"%.60s\": normalized is true beside the normaliser Prepend, expected false: it would be found after "
                       "spaces only",
                       text);
    const bool is_unk = id >= 0 && (uint64_t)id < vocab->n && vocab->types[id] == TP_TOKEN_UNKNOWN;
    const int32_t type = is_unk ? TP_TOKEN_UNKNOWN : is_special ? TP_TOKEN_CONTROL : TP_TOKEN_USER_DEFINED;
    TP_TRY(tp_tokenizer_vocab_put(vocab, id, text, strlen(text), type, n_limit));
    vocab->strips[id] = (uint8_t)((strips_left ? TP_TOKEN_STRIPS_LEFT : 0) | (strips_right ? TP_TOKEN_STRIPS_RIGHT : 0));
    return TALPA_OK;
}

int64_t tp_tokenizer_vocab_find(const struct tp_vocab *vocab, const char *text)
{
    const size_t n = strlen(text);
    for (size_t i = 0; i < vocab->n; i++)
        if (vocab->tokens[i].n_bytes == n && memcmp(vocab->tokens[i].bytes, text, n) == 0 &&
            !(n == 0 && vocab->types[i] == TP_TOKEN_UNUSED))
            return (int64_t)i;
    return -1;
}

/* A member like "eos_token": a name, or an object with its content; null and absent change nothing. */
static enum talpa_status read_name(int64_t *id, const struct tp_vocab *vocab, const struct tp_json_value *config, const char *key)
{
    const struct tp_json_value *value = tp_json_get(config, key);
    const char *text;
    if (tp_json_type(value) == TP_JSON_NULL) return TALPA_OK;
    if (tp_json_type(value) == TP_JSON_OBJECT)
        TP_TRY(tp_json_get_string(&text, value, "content"));
    else
        TP_TRY(tp_json_as_string(&text, value, key));
    const int64_t found = tp_tokenizer_vocab_find(vocab, text);
    if (found < 0) return tp_fail(TALPA_E_DATA, "tokenizer_config.json: %s is \"%.60s\", expected a token of the vocabulary", key, text);
    *id = found;
    return TALPA_OK;
}

/* A string, or a list of {name, template}, of which "default" is meant, else the first. */
static enum talpa_status read_template(const char **out, const struct tp_json_value *config)
{
    const struct tp_json_value *value = tp_json_get(config, "chat_template");
    if (tp_json_type(value) == TP_JSON_NULL) return TALPA_OK;
    if (tp_json_type(value) != TP_JSON_ARRAY) return tp_json_as_string(out, value, "chat_template");
    for (const struct tp_json_value *v = tp_json_first(value); v; v = tp_json_next(v)) {
        const char *name, *text;
        TP_TRY(tp_json_get_string(&name, v, "name"));
        TP_TRY(tp_json_get_string(&text, v, "template"));
        if (!*out || strcmp(name, "default") == 0) *out = text;
    }
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_vocab_finish(struct tp_tokenizer_source *source, const struct tp_vocab *vocab,
                                            const struct tp_tokenizer_extras *extras)
{
    const struct tp_json_value *config = extras->config;
    source->tokens = vocab->tokens;
    source->types = vocab->types;
    source->strips = vocab->strips;
    source->n_tokens = vocab->n;
    if (source->bos_id < 0) source->bos_id = extras->bos_id;
    if (source->eos_id < 0) source->eos_id = extras->eos_id;
    if (source->pad_id < 0) source->pad_id = extras->pad_id;
    TP_TRY(read_name(&source->bos_id, vocab, config, "bos_token"));
    TP_TRY(read_name(&source->eos_id, vocab, config, "eos_token"));
    TP_TRY(read_name(&source->unk_id, vocab, config, "unk_token"));
    TP_TRY(read_name(&source->pad_id, vocab, config, "pad_token"));
    TP_TRY(tp_json_get_bool_or(&source->add_bos, config, "add_bos_token", source->add_bos));
    if (source->bos_id < 0) source->add_bos = false;
    TP_TRY(read_template(&source->chat_template, config));
    if (extras->chat_template) source->chat_template = extras->chat_template;
    source->end_ids = extras->end_ids;
    source->n_end_ids = extras->n_end_ids;
    return TALPA_OK;
}

void tp_tokenizer_vocab_free(struct tp_vocab *vocab)
{
    free(vocab->tokens);
    free(vocab->types);
    free(vocab->scores);
    free(vocab->strips);
    *vocab = (struct tp_vocab){0};
}
