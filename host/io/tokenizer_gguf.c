/* Tokenizer keys of GGUF files (specification: ggml, docs/gguf.md, "Tokenizer"). */
#include <stdlib.h>

#include "base/status.h"
#include "gguf.h"
#include "tokenizer.h"

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

enum talpa_status tp_tokenizer_from_gguf(struct tp_tokenizer **out, const struct tp_gguf *gguf)
{
    struct tp_tokenizer_source source = {.label = tp_gguf_label(gguf)};
    struct tp_text *tokens = NULL, *merges = NULL;
    int32_t *types = NULL;
    enum talpa_status status = TALPA_OK;
    TP_TRY_GOTO(status, tp_gguf_get_string(&source.model, NULL, gguf, "tokenizer.ggml.model"), done);
    TP_TRY_GOTO(status, tp_gguf_get_string_or(&source.pre, gguf, "tokenizer.ggml.pre", NULL), done);
    TP_TRY_GOTO(status, tp_gguf_get_string_or(&source.chat_template, gguf, "tokenizer.chat_template", NULL), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.bos_id, gguf, "tokenizer.ggml.bos_token_id", -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.eos_id, gguf, "tokenizer.ggml.eos_token_id", -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.unk_id, gguf, "tokenizer.ggml.unknown_token_id", -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_int_or(&source.pad_id, gguf, "tokenizer.ggml.padding_token_id", -1), done);
    TP_TRY_GOTO(status, tp_gguf_get_bool_or(&source.add_bos, gguf, "tokenizer.ggml.add_bos_token", false), done);
    TP_TRY_GOTO(status, read_texts(&tokens, &source.n_tokens, gguf, "tokenizer.ggml.tokens"), done);
    TP_TRY_GOTO(status, read_types(&types, gguf, source.n_tokens), done);
    /* Other tokenizer models have no merges: they are refused by name, not for the missing key. */
    if (tp_gguf_has(gguf, "tokenizer.ggml.merges"))
        TP_TRY_GOTO(status, read_texts(&merges, &source.n_merges, gguf, "tokenizer.ggml.merges"), done);
    source.tokens = tokens;
    source.types = types;
    source.merges = merges;
    status = tp_tokenizer_create(out, &source);
done:
    free(tokens);
    free(merges);
    free(types);
    return status;
}
