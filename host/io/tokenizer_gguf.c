/* Tokenizer keys of GGUF files (specification: ggml, docs/gguf.md, "Tokenizer"). */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "gguf.h"
#include "tokenizer.h"
#include "tokenizer_pretokenize.h"

static enum talpa_status read_texts(struct tp_text **out, size_t *n, const struct tp_gguf *gguf, const char *key)
{
    struct tp_gguf_array array;
    TP_TRY(tp_gguf_get_array(&array, gguf, key, TP_GGUF_STRING));
    struct tp_text *texts = calloc((size_t)array.n + 1, sizeof *texts);
    if (!texts) return tp_fail_memory(key, ((unsigned long long)array.n + 1) * sizeof *texts);
    for (int64_t i = 0; i < array.n; i++) {
        const struct tp_gguf_string s = tp_gguf_array_string(&array, i);
        texts[i] = (struct tp_text){s.bytes, s.n_bytes};
    }
    *out = texts;
    *n = (size_t)array.n;
    return TALPA_OK;
}

static enum talpa_status read_types(int32_t **out, const struct tp_gguf *gguf, size_t n_tokens)
{
    static const char key[] = "tokenizer.ggml.token_type";
    if (!tp_gguf_has(gguf, key)) return TALPA_OK;
    struct tp_gguf_array array;
    TP_TRY(tp_gguf_get_array(&array, gguf, key, TP_GGUF_INT32));
    if ((uint64_t)array.n != n_tokens)
        return tp_fail(TALPA_E_DATA, "%s: %s has %lld entries, expected %zu as in tokenizer.ggml.tokens", tp_gguf_label(gguf), key,
                       (long long)array.n, n_tokens);
    int32_t *types = malloc((n_tokens + 1) * sizeof *types);
    if (!types) return tp_fail_memory(key, (n_tokens + 1) * sizeof *types);
    for (size_t i = 0; i < n_tokens; i++) types[i] = (int32_t)tp_gguf_array_int(&array, (int64_t)i);
    *out = types;
    return TALPA_OK;
}

static enum talpa_status read_scores(float **out, const struct tp_gguf *gguf, size_t n_tokens)
{
    static const char key[] = "tokenizer.ggml.scores";
    struct tp_gguf_array array;
    TP_TRY(tp_gguf_get_array(&array, gguf, key, TP_GGUF_FLOAT32));
    if ((uint64_t)array.n != n_tokens)
        return tp_fail(TALPA_E_DATA, "%s: %s has %lld entries, expected %zu as in tokenizer.ggml.tokens", tp_gguf_label(gguf), key,
                       (long long)array.n, n_tokens);
    float *scores = malloc((n_tokens + 1) * sizeof *scores);
    if (!scores) return tp_fail_memory(key, (n_tokens + 1) * sizeof *scores);
    for (size_t i = 0; i < n_tokens; i++) scores[i] = (float)tp_gguf_array_float(&array, (int64_t)i);
    *out = scores;
    return TALPA_OK;
}

/* What converters leave out because it is usual for the model. The keys are llama.cpp's. */
static enum talpa_status read_spm(struct tp_tokenizer_source *source, float **scores, uint8_t **strips, const struct tp_gguf *gguf)
{
    bool has_prefix;
    const char *architecture;
    TP_TRY(read_scores(scores, gguf, source->n_tokens));
    source->scores = *scores;
    TP_TRY(tp_gguf_get_bool_or(&has_prefix, gguf, "tokenizer.ggml.add_space_prefix", true));
    TP_TRY(tp_gguf_get_bool_or(&source->rules.removes_extra_whitespace, gguf, "tokenizer.ggml.remove_extra_whitespaces", false));
    source->rules.prefix = has_prefix ? TP_PREFIX_EACH : TP_PREFIX_NONE;
    source->rules.escapes_spaces = true;
    TP_TRY(tp_gguf_get_string_or(&architecture, gguf, "general.architecture", ""));
    if (strcmp(architecture, "phi3") != 0) return TALPA_OK;
    /* Phi-3's turn markers drop the white space after them, which no key of the file says. */
    *strips = calloc(source->n_tokens + 1, 1);
    if (!*strips) return tp_fail_memory("tokenizer", source->n_tokens);
    for (size_t i = 0; i < source->n_tokens; i++) {
        const struct tp_text text = source->tokens[i];
        if (text.n_bytes > 4 && memcmp(text.bytes, "<|", 2) == 0 && memcmp(text.bytes + text.n_bytes - 2, "|>", 2) == 0 &&
            !(text.n_bytes == 13 && memcmp(text.bytes, "<|endoftext|>", 13) == 0))
            (*strips)[i] = TP_TOKEN_STRIPS_RIGHT;
    }
    source->strips = *strips;
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_from_gguf(struct tp_tokenizer **out, const struct tp_gguf *gguf)
{
    struct tp_tokenizer_source source = {.label = tp_gguf_label(gguf)};
    struct tp_text *tokens = NULL, *merges = NULL;
    int32_t *types = NULL;
    float *scores = NULL;
    uint8_t *strips = NULL;
    int64_t ends[2];
    enum talpa_status status = TALPA_OK;
    TP_TRY_GOTO(status, tp_gguf_get_string(&source.model, NULL, gguf, "tokenizer.ggml.model"), done);
    TP_TRY_GOTO(status, tp_gguf_get_string_or(&source.pre, gguf, "tokenizer.ggml.pre", NULL), done);
    TP_TRY_GOTO(status, tp_gguf_get_string_or(&source.chat_template, gguf, "tokenizer.chat_template", NULL), done);
    const bool is_spm = strcmp(source.model, "llama") == 0;
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.bos_id, gguf, "tokenizer.ggml.bos_token_id", is_spm ? 1 : -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.eos_id, gguf, "tokenizer.ggml.eos_token_id", is_spm ? 2 : -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.unk_id, gguf, "tokenizer.ggml.unknown_token_id", is_spm ? 0 : -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.pad_id, gguf, "tokenizer.ggml.padding_token_id", -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&ends[0], gguf, "tokenizer.ggml.eot_token_id", -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&ends[1], gguf, "tokenizer.ggml.eom_token_id", -1), done);
    source.end_ids = ends;
    source.n_end_ids = 2;
    source.ignores_merges = !is_spm && tp_tokenizer_pretokenize_ignores_merges(source.pre);
    source.rules.is_nfc = !is_spm && tp_tokenizer_pretokenize_is_nfc(source.pre);
    const bool adds_bos = is_spm || (source.ignores_merges && strcmp(source.pre, "tekken") != 0);
    TP_TRY_GOTO(status, tp_gguf_get_bool_or(&source.add_bos, gguf, "tokenizer.ggml.add_bos_token", adds_bos && source.bos_id >= 0), done);
    TP_TRY_GOTO(status, read_texts(&tokens, &source.n_tokens, gguf, "tokenizer.ggml.tokens"), done);
    TP_TRY_GOTO(status, read_types(&types, gguf, source.n_tokens), done);
    /* Other tokenizer models have no merges: they are refused by name, not for the missing key. */
    if (tp_gguf_has(gguf, "tokenizer.ggml.merges"))
        TP_TRY_GOTO(status, read_texts(&merges, &source.n_merges, gguf, "tokenizer.ggml.merges"), done);
    source.tokens = tokens;
    if (is_spm) TP_TRY_GOTO(status, read_spm(&source, &scores, &strips, gguf), done);
    source.types = types;
    source.merges = merges;
    status = tp_tokenizer_create(out, &source);
done:
    free(tokens);
    free(merges);
    free(types);
    free(scores);
    free(strips);
    return status;
}
