/* tokenizer.json of Hugging Face's tokenizers: BPE over bytes, and BPE over characters with byte fallback (the form of converted
 * SentencePiece vocabularies). The file is a program of normaliser, pre-tokeniser, model and post-processor; each step that is not one of
 * the known is refused, naming its field, because leaving it out would give other tokens. Decoder, padding and truncation do not bear on
 * encoding. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/json.h"
#include "base/status.h"
#include "tokenizer.h"
#include "tokenizer_pretokenize.h"
#include "tokenizer_vocab.h"

struct loader {
    struct tp_tokenizer_source source;
    struct tp_vocab vocab;
    struct tp_text *merges;
    struct tp_arena arena; /* texts of merges given as pairs */
    bool is_byte_level, has_byte_fallback, has_unk;
    bool has_digits, has_split; /* steps of the pre-tokeniser seen so far */
};

static const char *type_of(const struct tp_json_value *step)
{
    const char *type;
    return tp_json_as_string(&type, tp_json_get(step, "type"), "type") == TALPA_OK ? type : "";
}

static bool is_type(const struct tp_json_value *step, const char *type) { return strcmp(type_of(step), type) == 0; }

/* A member that must be `expected` if it is there. */
static enum talpa_status want_bool(const struct tp_json_value *step, const char *where, const char *key, bool expected, bool fallback)
{
    bool found;
    TP_TRY(tp_context(tp_json_get_bool_or(&found, step, key, fallback), "%s", where));
    if (found == expected) return TALPA_OK;
    return tp_fail(TALPA_E_DATA, "%s.%s is %s, expected %s, the only one supported", where, key, found ? "true" : "false",
                   expected ? "true" : "false");
}

static enum talpa_status want_string(const struct tp_json_value *step, const char *where, const char *key, const char *expected)
{
    const char *found;
    TP_TRY(tp_context(tp_json_get_string(&found, step, key), "%s", where));
    if (strcmp(found, expected) == 0) return TALPA_OK;
    return tp_fail(TALPA_E_DATA, "%s.%s is \"%.60s\", expected \"%s\", the only one supported", where, key, found, expected);
}

static enum talpa_status read_normalizer(struct loader *l, const struct tp_json_value *step)
{
    static const char where[] = "normalizer";
    struct tp_normalizer_rules *rules = &l->source.rules;
    if (tp_json_type(step) == TP_JSON_NULL) return TALPA_OK;
    if (is_type(step, "Sequence")) {
        for (const struct tp_json_value *s = tp_json_first(tp_json_get(step, "normalizers")); s; s = tp_json_next(s)) {
            if (is_type(s, "Sequence")) return tp_fail(TALPA_E_DATA, "%s: a Sequence inside a Sequence, which is not supported", where);
            TP_TRY(read_normalizer(l, s));
        }
        return TALPA_OK;
    }
    const bool is_first = !rules->is_nfc && !rules->escapes_spaces;
    if (is_type(step, "NFC") && is_first && rules->prefix == TP_PREFIX_NONE) {
        rules->is_nfc = true;
        return TALPA_OK;
    }
    if (is_type(step, "Prepend") && is_first && rules->prefix == TP_PREFIX_NONE) {
        rules->prefix = TP_PREFIX_EACH;
        return want_string(step, where, "prepend", TP_SPACE_MARK);
    }
    if (is_type(step, "Replace") && !rules->escapes_spaces) {
        const struct tp_json_value *pattern = tp_json_get(step, "pattern");
        rules->escapes_spaces = true;
        TP_TRY(want_string(pattern, "normalizer.pattern", "String", " "));
        return want_string(step, where, "content", TP_SPACE_MARK);
    }
    return tp_fail(TALPA_E_DATA,
                   "%s: found \"%.60s\", expected null, NFC, or Prepend and Replace of the space mark, in this order and once", where,
                   type_of(step));
}

static enum talpa_status read_metaspace(struct loader *l, const struct tp_json_value *step)
{
    static const char where[] = "pre_tokenizer(Metaspace)";
    struct tp_normalizer_rules *rules = &l->source.rules;
    const char *scheme;
    bool has_prefix;
    TP_TRY(want_string(step, where, "replacement", TP_SPACE_MARK));
    TP_TRY(tp_context(tp_json_get_bool_or(&has_prefix, step, "add_prefix_space", true), "%s", where));
    TP_TRY(tp_context(tp_json_get_string_or(&scheme, step, "prepend_scheme", has_prefix ? "always" : "never"), "%s", where));
    TP_TRY(tp_context(tp_json_get_bool_or(&l->source.splits_at_spaces, step, "split", true), "%s", where));
    if (rules->prefix != TP_PREFIX_NONE) return tp_fail(TALPA_E_DATA, "%s beside the normaliser Prepend, expected one of them", where);
    rules->escapes_spaces = rules->is_prefix_conditional = true;
    if (strcmp(scheme, "always") == 0)
        rules->prefix = TP_PREFIX_EACH;
    else if (strcmp(scheme, "first") == 0)
        rules->prefix = TP_PREFIX_FIRST;
    else if (strcmp(scheme, "never") != 0)
        return tp_fail(TALPA_E_DATA, "%s.prepend_scheme is \"%.60s\", expected always, first or never", where, scheme);
    return TALPA_OK;
}

static enum talpa_status read_split(struct loader *l, const struct tp_json_value *step)
{
    static const char where[] = "pre_tokenizer(Split)";
    const struct tp_json_value *pattern = tp_json_get(step, "pattern");
    const char *text;
    TP_TRY(want_bool(step, where, "invert", false, false));
    if (tp_json_get(pattern, "String")) { /* cuts at spaces that the normaliser has replaced: nothing happens */
        TP_TRY(tp_context(tp_json_get_string(&text, pattern, "String"), "%s", where));
        if (strcmp(text, " ") == 0 && l->source.rules.escapes_spaces) return TALPA_OK;
        return tp_fail(TALPA_E_DATA, "%s.pattern.String is \"%.60s\", expected a known Regex", where, text);
    }
    TP_TRY(tp_context(tp_json_get_string(&text, pattern, "Regex"), "%s.pattern", where));
    TP_TRY(want_string(step, where, "behavior", "Isolated"));
    l->source.pre = tp_tokenizer_pretokenize_of_pattern(text);
    if (!l->source.pre)
        return tp_fail(TALPA_E_DATA, "%s.pattern.Regex is \"%.200s\", expected that of GPT-2, Llama 3, Qwen 2, Tekken or GPT-4o", where,
                       text);
    if (l->has_split || l->has_digits) return tp_fail(TALPA_E_DATA, "%s: more than one step that cuts text, expected one", where);
    l->has_split = true;
    return TALPA_OK;
}

static enum talpa_status read_byte_level(struct loader *l, const struct tp_json_value *step)
{
    static const char where[] = "pre_tokenizer(ByteLevel)";
    bool use_regex;
    TP_TRY(want_bool(step, where, "add_prefix_space", false, true));
    TP_TRY(tp_context(tp_json_get_bool_or(&use_regex, step, "use_regex", true), "%s", where));
    if (use_regex && l->has_split && strcmp(l->source.pre, "gpt-2") != 0)
        return tp_fail(TALPA_E_DATA, "%s.use_regex is true behind a Split, expected false", where);
    if (!use_regex && !l->has_split)
        return tp_fail(TALPA_E_DATA, "%s.use_regex is false, expected true, or a Split with a Regex before it", where);
    if (use_regex) l->source.pre = l->has_digits ? "smollm" : "gpt-2";
    l->is_byte_level = true;
    return TALPA_OK;
}

static enum talpa_status read_pre_tokenizer(struct loader *l, const struct tp_json_value *step)
{
    if (tp_json_type(step) == TP_JSON_NULL) return TALPA_OK;
    if (l->is_byte_level) return tp_fail(TALPA_E_DATA, "pre_tokenizer: a step behind ByteLevel, which is not supported");
    if (is_type(step, "Sequence")) {
        for (const struct tp_json_value *s = tp_json_first(tp_json_get(step, "pretokenizers")); s; s = tp_json_next(s)) {
            if (is_type(s, "Sequence")) return tp_fail(TALPA_E_DATA, "pre_tokenizer: a Sequence inside a Sequence, which is not supported");
            TP_TRY(read_pre_tokenizer(l, s));
        }
        return TALPA_OK;
    }
    if (is_type(step, "ByteLevel")) return read_byte_level(l, step);
    if (is_type(step, "Split")) return read_split(l, step);
    if (is_type(step, "Metaspace")) return read_metaspace(l, step);
    if (is_type(step, "Digits")) {
        if (l->has_split || l->has_digits) return tp_fail(TALPA_E_DATA, "pre_tokenizer(Digits): expected before any other step, and once");
        l->has_digits = true;
        return want_bool(step, "pre_tokenizer(Digits)", "individual_digits", true, false);
    }
    return tp_fail(TALPA_E_DATA, "pre_tokenizer: found \"%.60s\", expected ByteLevel, Digits, Split, Metaspace or a Sequence of them",
                   type_of(step));
}

static enum talpa_status want_empty(const struct tp_json_value *model, const char *key)
{
    const struct tp_json_value *value = tp_json_get(model, key);
    const char *text = "";
    if (tp_json_type(value) == TP_JSON_NULL) return TALPA_OK;
    TP_TRY(tp_json_as_string(&text, value, key));
    return *text ? tp_fail(TALPA_E_DATA, "model.%s is \"%.60s\", expected null", key, text) : TALPA_OK;
}

static enum talpa_status read_vocab(struct loader *l, const struct tp_json_value *model, const struct tp_json_value *added)
{
    const struct tp_json_value *vocab = tp_json_get(model, "vocab");
    if (tp_json_type(vocab) != TP_JSON_OBJECT || !tp_json_first(vocab))
        return tp_fail(TALPA_E_DATA, "model.vocab: found %s, expected an object of tokens and ids", tp_json_type_name(tp_json_type(vocab)));
    const size_t limit = (size_t)tp_json_length(vocab) + (size_t)tp_json_length(added) + 65536;
    const char *unk;
    TP_TRY(tp_json_get_string_or(&unk, model, "unk_token", NULL));
    for (const struct tp_json_value *v = tp_json_first(vocab); v; v = tp_json_next(v)) {
        const char *text = tp_json_key(v);
        const size_t n = strlen(text);
        int64_t id;
        TP_TRY(tp_context(tp_json_as_int(&id, v, text), "model.vocab"));
        const bool is_byte = l->has_byte_fallback && n == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>';
        const bool is_unk = unk && !l->is_byte_level && strcmp(text, unk) == 0;
        if (id >= 0 && (size_t)id < l->vocab.n && (l->vocab.tokens[id].n_bytes || l->vocab.types[id] != TP_TOKEN_UNUSED))
            return tp_fail(TALPA_E_DATA, "model.vocab: \"%.60s\" and another token have the id %lld", text, (long long)id);
        TP_TRY(tp_context(tp_tokenizer_vocab_put(&l->vocab, id, text, n,
                                                 is_byte  ? TP_TOKEN_BYTE
                                                 : is_unk ? TP_TOKEN_UNKNOWN
                                                          : TP_TOKEN_NORMAL,
                                                 limit),
                          "model.vocab"));
        if (unk && strcmp(text, unk) == 0) l->source.unk_id = id;
    }
    if (unk && l->source.unk_id < 0) return tp_fail(TALPA_E_DATA, "model.unk_token is \"%.60s\", expected a token of model.vocab", unk);
    l->has_unk = unk != NULL;
    const bool has_prefix = l->source.rules.prefix != TP_PREFIX_NONE && !l->source.rules.is_prefix_conditional;
    for (const struct tp_json_value *v = tp_json_first(added); v; v = tp_json_next(v)) {
        int64_t id;
        TP_TRY(tp_context(tp_json_get_int(&id, v, "id"), "added_tokens"));
        TP_TRY(tp_context(tp_tokenizer_vocab_add(&l->vocab, id, v, limit, has_prefix), "added_tokens"));
    }
    return TALPA_OK;
}

static enum talpa_status read_merges(struct loader *l, const struct tp_json_value *merges)
{
    if (tp_json_type(merges) != TP_JSON_ARRAY)
        return tp_fail(TALPA_E_DATA, "model.merges: found %s, expected an array", tp_json_type_name(tp_json_type(merges)));
    l->merges = calloc((size_t)tp_json_length(merges) + 1, sizeof *l->merges);
    if (!l->merges) return tp_fail_memory("merges", (size_t)tp_json_length(merges) * sizeof *l->merges);
    size_t n = 0;
    for (const struct tp_json_value *v = tp_json_first(merges); v; v = tp_json_next(v), n++) {
        const char *text, *right;
        if (tp_json_type(v) == TP_JSON_ARRAY) {
            const struct tp_json_value *first = tp_json_first(v), *second = tp_json_next(first);
            TP_TRY(tp_context(tp_json_as_string(&text, first, "left"), "model.merges[%zu]", n));
            TP_TRY(tp_context(tp_json_as_string(&right, second, "right"), "model.merges[%zu]", n));
            text = tp_arena_printf(&l->arena, "%s %s", text, right);
            if (!text) return TALPA_E_DEVICE;
        } else {
            TP_TRY(tp_context(tp_json_as_string(&text, v, "pair"), "model.merges[%zu]", n));
        }
        l->merges[n] = (struct tp_text){text, strlen(text)};
    }
    l->source.merges = l->merges;
    l->source.n_merges = n;
    return TALPA_OK;
}

static enum talpa_status read_model(struct loader *l, const struct tp_json_value *model, const struct tp_json_value *added)
{
    const char *type;
    double dropout;
    TP_TRY(tp_json_get_string_or(&type, model, "type", "BPE"));
    if (strcmp(type, "BPE") != 0) return tp_fail(TALPA_E_DATA, "model.type is \"%.60s\", expected \"BPE\", the only one supported", type);
    TP_TRY(tp_json_get_double_or(&dropout, model, "dropout", 0.0));
    if (dropout != 0.0) return tp_fail(TALPA_E_DATA, "model.dropout is %g, expected null: tokens would be random", dropout);
    TP_TRY(want_empty(model, "continuing_subword_prefix"));
    TP_TRY(want_empty(model, "end_of_word_suffix"));
    TP_TRY(tp_json_get_bool_or(&l->source.ignores_merges, model, "ignore_merges", false));
    TP_TRY(tp_json_get_bool_or(&l->source.fuses_unk, model, "fuse_unk", false));
    TP_TRY(tp_json_get_bool_or(&l->has_byte_fallback, model, "byte_fallback", false));
    if (!l->is_byte_level && l->source.ignores_merges)
        return tp_fail(TALPA_E_DATA, "model.ignore_merges is true without ByteLevel, which is not supported");
    if (!l->is_byte_level && !l->source.rules.escapes_spaces)
        return tp_fail(TALPA_E_DATA, "pre_tokenizer and normalizer: found neither ByteLevel nor a step that marks spaces, expected one");
    if (!l->is_byte_level && l->has_digits) return tp_fail(TALPA_E_DATA, "pre_tokenizer(Digits) without ByteLevel, which is not supported");
    if (!l->is_byte_level && l->has_split) return tp_fail(TALPA_E_DATA, "pre_tokenizer(Split) without ByteLevel, which is not supported");
    if (l->is_byte_level && (l->source.rules.escapes_spaces || l->source.rules.prefix != TP_PREFIX_NONE))
        return tp_fail(TALPA_E_DATA, "normalizer: marks spaces beside the pre_tokenizer ByteLevel, which is not supported");
    l->source.model = l->is_byte_level ? "gpt2" : "hf-bpe";
    TP_TRY(read_vocab(l, model, added));
    return read_merges(l, tp_json_get(model, "merges"));
}

/* A template such as [SpecialToken <s>, Sequence A, SpecialToken </s>]: what comes first is BOS. A token at the end is EOS, which talpa
 * adds where a text ends and nowhere else. */
static enum talpa_status read_template(struct loader *l, const struct tp_json_value *step)
{
    static const char where[] = "post_processor(TemplateProcessing)";
    int n_before = 0, n_after = 0, n_text = 0;
    for (const struct tp_json_value *v = tp_json_first(tp_json_get(step, "single")); v; v = tp_json_next(v)) {
        const struct tp_json_value *special = tp_json_get(v, "SpecialToken");
        const char *name;
        if (!special) {
            n_text++;
            continue;
        }
        TP_TRY(tp_context(tp_json_get_string(&name, special, "id"), "%s", where));
        const struct tp_json_value *ids = tp_json_get(tp_json_get(tp_json_get(step, "special_tokens"), name), "ids");
        if (tp_json_length(ids) != 1) return tp_fail(TALPA_E_DATA, "%s: \"%.60s\" is not one token, expected one", where, name);
        if (n_text == 0) TP_TRY(tp_context(tp_json_as_int(&l->source.bos_id, tp_json_first(ids), "ids"), "%s", where));
        n_before += n_text == 0;
        n_after += n_text > 0;
    }
    if (n_text != 1 || n_before > 1 || n_after > 1)
        return tp_fail(TALPA_E_DATA, "%s.single has %d tokens before and %d after the text, expected at most one each", where, n_before,
                       n_after);
    l->source.add_bos = n_before == 1;
    return TALPA_OK;
}

static enum talpa_status read_post_processor(struct loader *l, const struct tp_json_value *step)
{
    if (tp_json_type(step) == TP_JSON_NULL || is_type(step, "ByteLevel")) return TALPA_OK;
    if (is_type(step, "TemplateProcessing")) return read_template(l, step);
    if (!is_type(step, "Sequence"))
        return tp_fail(TALPA_E_DATA, "post_processor: found \"%.60s\", expected ByteLevel, TemplateProcessing or a Sequence of them",
                       type_of(step));
    for (const struct tp_json_value *s = tp_json_first(tp_json_get(step, "processors")); s; s = tp_json_next(s)) {
        if (is_type(s, "Sequence")) return tp_fail(TALPA_E_DATA, "post_processor: a Sequence inside a Sequence, which is not supported");
        TP_TRY(read_post_processor(l, s));
    }
    return TALPA_OK;
}

/* Hugging Face gives model.unk_token for a byte that has no token, where talpa leaves it out. */
static enum talpa_status check_bytes(const struct loader *l, const struct tp_tokenizer *t)
{
    for (int b = 0; l->is_byte_level && l->has_unk && b < 256; b++)
        if (!tp_tokenizer_has_byte(t, (unsigned char)b))
            return tp_fail(TALPA_E_DATA, "model.vocab: no token for byte %d beside a model.unk_token, expected all bytes or no unk_token",
                           b);
    return TALPA_OK;
}

static enum talpa_status load(struct tp_tokenizer **out, struct loader *l, const struct tp_json_value *json,
                              const struct tp_tokenizer_extras *extras)
{
    if (tp_json_type(json) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected an object", tp_json_type_name(tp_json_type(json)));
    TP_TRY(read_normalizer(l, tp_json_get(json, "normalizer")));
    TP_TRY(read_pre_tokenizer(l, tp_json_get(json, "pre_tokenizer")));
    TP_TRY(read_model(l, tp_json_get(json, "model"), tp_json_get(json, "added_tokens")));
    TP_TRY(read_post_processor(l, tp_json_get(json, "post_processor")));
    TP_TRY(tp_tokenizer_vocab_finish(&l->source, &l->vocab, extras));
    struct tp_tokenizer *built = NULL;
    TP_TRY(tp_tokenizer_create(&built, &l->source));
    const enum talpa_status status = check_bytes(l, built);
    if (status == TALPA_OK)
        *out = built;
    else
        tp_tokenizer_free(built);
    return status;
}

enum talpa_status tp_tokenizer_from_json(struct tp_tokenizer **out, const struct tp_json_value *json,
                                         const struct tp_tokenizer_extras *extras, const char *label)
{
    static const struct tp_tokenizer_extras none = {.bos_id = -1, .eos_id = -1, .pad_id = -1};
    struct loader l = {.source = {.label = label, .bos_id = -1, .eos_id = -1, .unk_id = -1, .pad_id = -1}};
    const enum talpa_status status = load(out, &l, json, extras ? extras : &none);
    tp_tokenizer_vocab_free(&l.vocab);
    tp_arena_free(&l.arena);
    free(l.merges);
    if (status == TALPA_OK || strncmp(talpa_error_message(), label, strlen(label)) == 0) return status;
    return tp_context(status, "%s", label);
}
