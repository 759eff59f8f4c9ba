/* Tokenizer files of Hugging Face from the keys of a GGUF file (formats: tokenizers' JSON serialisation; ggml, docs/gguf.md, "Tokenizer").
 * Only for byte-level BPE whose pre-tokenizer has a counterpart that splits alike. */
#include <stdlib.h>
#include <string.h>

#include "adapters/adapter_file.h"
#include "adapters/merge.h"

enum { TYPE_CONTROL = 3, TYPE_USER = 4 };

/* A string of the file with a NUL; NULL if memory is short. */
static const char *text_of(struct tp_arena *arena, const struct tp_gguf_array *array, int64_t i)
{
    const struct tp_gguf_string s = tp_gguf_array_string(array, i);
    return tp_arena_strndup(arena, s.bytes, s.n_bytes);
}

static void write_byte_level(struct tp_json_writer *w, bool use_regex)
{
    tp_json_write_object_begin(w);
    tp_json_write_string_member(w, "type", "ByteLevel");
    tp_json_write_bool_member(w, "add_prefix_space", false);
    tp_json_write_bool_member(w, "trim_offsets", true);
    tp_json_write_bool_member(w, "use_regex", use_regex);
    tp_json_write_object_end(w);
}

/* "smollm" is digits one by one, then GPT-2's pattern. */
static void write_pretokenizer(struct tp_json_writer *w, const char *pre)
{
    tp_json_write_key(w, "pre_tokenizer");
    if (!strcmp(pre, "gpt-2")) {
        write_byte_level(w, true);
        return;
    }
    tp_json_write_object_begin(w);
    tp_json_write_string_member(w, "type", "Sequence");
    tp_json_write_key(w, "pretokenizers");
    tp_json_write_array_begin(w);
    tp_json_write_object_begin(w);
    tp_json_write_string_member(w, "type", "Digits");
    tp_json_write_bool_member(w, "individual_digits", true);
    tp_json_write_object_end(w);
    write_byte_level(w, true);
    tp_json_write_array_end(w);
    tp_json_write_object_end(w);
}

static enum talpa_status write_added(struct tp_json_writer *w, struct tp_arena *arena, const struct tp_gguf_array *tokens,
                                     const struct tp_gguf_array *types)
{
    tp_json_write_key(w, "added_tokens");
    tp_json_write_array_begin(w);
    for (int64_t i = 0; i < types->n; i++) {
        const int64_t type = tp_gguf_array_int(types, i);
        if (type != TYPE_CONTROL && type != TYPE_USER) continue;
        const char *text = text_of(arena, tokens, i);
        if (!text) return TALPA_E_DEVICE;
        tp_json_write_object_begin(w);
        tp_json_write_int_member(w, "id", i);
        tp_json_write_string_member(w, "content", text);
        tp_json_write_bool_member(w, "single_word", false);
        tp_json_write_bool_member(w, "lstrip", false);
        tp_json_write_bool_member(w, "rstrip", false);
        tp_json_write_bool_member(w, "normalized", false);
        tp_json_write_bool_member(w, "special", type == TYPE_CONTROL);
        tp_json_write_object_end(w);
    }
    tp_json_write_array_end(w);
    return TALPA_OK;
}

static enum talpa_status write_bpe(struct tp_json_writer *w, struct tp_arena *arena, const struct tp_gguf_array *tokens,
                                   const struct tp_gguf_array *merges)
{
    tp_json_write_key(w, "model");
    tp_json_write_object_begin(w);
    tp_json_write_string_member(w, "type", "BPE");
    tp_json_write_null_member(w, "dropout");
    tp_json_write_null_member(w, "unk_token");
    tp_json_write_null_member(w, "continuing_subword_prefix");
    tp_json_write_null_member(w, "end_of_word_suffix");
    tp_json_write_bool_member(w, "fuse_unk", false);
    tp_json_write_bool_member(w, "byte_fallback", false);
    tp_json_write_bool_member(w, "ignore_merges", false);
    tp_json_write_key(w, "vocab");
    tp_json_write_object_begin(w);
    for (int64_t i = 0; i < tokens->n; i++) {
        const char *text = text_of(arena, tokens, i);
        if (!text) return TALPA_E_DEVICE;
        tp_json_write_int_member(w, text, i);
    }
    tp_json_write_object_end(w);
    tp_json_write_key(w, "merges");
    tp_json_write_array_begin(w);
    for (int64_t i = 0; i < merges->n; i++) {
        const struct tp_gguf_string s = tp_gguf_array_string(merges, i);
        tp_json_write_string_n(w, s.bytes, s.n_bytes);
    }
    tp_json_write_array_end(w);
    tp_json_write_object_end(w);
    return TALPA_OK;
}

static enum talpa_status write_tokenizer(struct tp_json_writer *w, struct tp_arena *arena, const struct tp_gguf *gguf, const char *pre,
                                         const struct tp_gguf_array *tokens)
{
    struct tp_gguf_array types, merges = {.n = 0};
    TP_TRY(tp_gguf_get_array(&types, gguf, "tokenizer.ggml.token_type", TP_GGUF_INT32));
    if (tp_gguf_has(gguf, "tokenizer.ggml.merges")) TP_TRY(tp_gguf_get_array(&merges, gguf, "tokenizer.ggml.merges", TP_GGUF_STRING));
    tp_json_write_object_begin(w);
    tp_json_write_string_member(w, "version", "1.0");
    tp_json_write_null_member(w, "truncation");
    tp_json_write_null_member(w, "padding");
    TP_TRY(write_added(w, arena, tokens, &types));
    tp_json_write_null_member(w, "normalizer");
    write_pretokenizer(w, pre);
    tp_json_write_null_member(w, "post_processor");
    tp_json_write_key(w, "decoder");
    write_byte_level(w, true);
    TP_TRY(write_bpe(w, arena, tokens, &merges));
    tp_json_write_object_end(w);
    return TALPA_OK;
}

static enum talpa_status write_settings(struct tp_json_writer *w, struct tp_arena *arena, const struct talpa_model *model,
                                        const struct tp_gguf_array *tokens)
{
    static const struct {
        const char *key, *gguf;
    } named[] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                 {"eos_token", "tokenizer.ggml.eos_token_id"},
                 {"pad_token", "tokenizer.ggml.padding_token_id"},
                 {"unk_token", "tokenizer.ggml.unknown_token_id"}};
    const char *chat_template;
    TP_TRY(tp_gguf_get_string_or(&chat_template, model->gguf, "tokenizer.chat_template", ""));
    tp_json_write_object_begin(w);
    tp_json_write_bool_member(w, "add_prefix_space", false);
    if (*chat_template) tp_json_write_string_member(w, "chat_template", chat_template);
    tp_json_write_bool_member(w, "clean_up_tokenization_spaces", false);
    tp_json_write_int_member(w, "model_max_length", model->config.context_length);
    tp_json_write_string_member(w, "tokenizer_class", "PreTrainedTokenizerFast");
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        int64_t id;
        TP_TRY(tp_gguf_get_int_or(&id, model->gguf, named[i].gguf, -1));
        if (id < 0 || id >= tokens->n) continue;
        const char *text = text_of(arena, tokens, id);
        if (!text) return TALPA_E_DEVICE;
        tp_json_write_string_member(w, named[i].key, text);
    }
    tp_json_write_object_end(w);
    return TALPA_OK;
}

enum talpa_status tp_merge_save_tokenizer(bool *written, const struct talpa_model *model, const char *folder)
{
    const struct tp_gguf *gguf = model->gguf;
    const char *kind, *pre;
    bool add_bos;
    struct tp_gguf_array tokens;
    *written = false;
    TP_TRY(tp_gguf_get_string_or(&kind, gguf, "tokenizer.ggml.model", ""));
    TP_TRY(tp_gguf_get_string_or(&pre, gguf, "tokenizer.ggml.pre", ""));
    TP_TRY(tp_gguf_get_bool_or(&add_bos, gguf, "tokenizer.ggml.add_bos_token", false));
    if (strcmp(kind, "gpt2") || (strcmp(pre, "smollm") && strcmp(pre, "gpt-2")) || add_bos ||
        !tp_gguf_has(gguf, "tokenizer.ggml.token_type"))
        return TALPA_OK;
    TP_TRY(tp_gguf_get_array(&tokens, gguf, "tokenizer.ggml.tokens", TP_GGUF_STRING));
    struct tp_json_writer *writer;
    struct tp_arena arena = {0};
    TP_TRY(tp_json_writer_create(&writer, 0));
    enum talpa_status status = write_tokenizer(writer, &arena, gguf, pre, &tokens);
    if (status == TALPA_OK) status = tp_merge_save_json(folder, "tokenizer.json", writer);
    tp_json_writer_reset(writer);
    if (status == TALPA_OK) status = write_settings(writer, &arena, model, &tokens);
    if (status == TALPA_OK) status = tp_merge_save_json(folder, "tokenizer_config.json", writer);
    tp_json_writer_free(writer);
    tp_arena_free(&arena);
    *written = status == TALPA_OK;
    return status;
}
