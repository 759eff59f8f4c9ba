#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/map.h"
#include "base/status.h"
#include "tokenizer_marks.h"
#include "tokenizer_pretokenize.h"
#include "tokenizer_spm.h"

enum kind { BYTE_BPE, SPM, CHAR_BPE };

static const char *const KIND_NAMES[] = {"gpt2", "llama", "hf-bpe"};
enum { N_KINDS = sizeof KIND_NAMES / sizeof KIND_NAMES[0] };

struct tp_tokenizer {
    struct tp_arena arena;
    enum kind kind;
    struct tp_text *pieces; /* [n_tokens] bytes that a token stands for */
    int32_t *types;         /* [n_tokens] */
    size_t n_tokens;
    struct tp_marks marks;    /* found before anything else */
    struct tp_marks user;     /* llama: user-defined pieces, found in the normalised text */
    struct tp_map vocabulary; /* llama and hf-bpe: text -> id; gpt2 that ignores merges: bytes -> id of normal tokens */
    struct tp_normalizer normalizer;
    struct tp_pretokenizer *pretokenizer; /* gpt2 */
    struct tp_bpe bpe;                    /* gpt2 and hf-bpe */
    struct tp_spm spm;                    /* llama */
    bool ignores_merges, splits_at_spaces, fuses_unk, add_bos;
    int32_t bos, eos, unk, pad;
    int32_t ends[TP_TOKENIZER_MAX_ENDS];
    size_t n_ends;
    const char *chat_template;
};

/* Every byte can become four bytes of normalised text. */
#define MAX_TEXT_BYTES ((size_t)INT32_MAX / 4)

/* Tokens that bound turns, and of these the ones that end them. Some files call them ordinary added tokens. */
static const char *const TURN_ENDS[] = {"<|im_end|>",      "<|eot_id|>",    "<|eom_id|>", "<end_of_turn>", "<|end|>",
                                        "<|end_of_text|>", "<|endoftext|>", "<|EOT|>",    "<|eot|>",       "<turn|>"};
static const char *const TURN_MARKS[] = {"<|im_start|>",
                                         "<|start_header_id|>",
                                         "<|end_header_id|>",
                                         "<start_of_turn>",
                                         "<|user|>",
                                         "<|assistant|>",
                                         "<|system|>",
                                         "[INST]",
                                         "[/INST]",
                                         "[SYSTEM_PROMPT]",
                                         "[/SYSTEM_PROMPT]",
                                         "<s>",
                                         "</s>",
                                         "<bos>",
                                         "<eos>",
                                         "<pad>",
                                         "<|begin_of_text|>",
                                         "<|turn>"};

static bool is_one_of(struct tp_text text, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(list[i]) == text.n_bytes && memcmp(list[i], text.bytes, text.n_bytes) == 0) return true;
    return false;
}

#define IS_ONE_OF(text, list) is_one_of(text, list, sizeof(list) / sizeof((list)[0]))

static bool type_is_special(int32_t type) { return type == TP_TOKEN_UNKNOWN || type == TP_TOKEN_CONTROL; }
static bool type_is_mark(int32_t type) { return type_is_special(type) || type == TP_TOKEN_USER_DEFINED; }

static enum talpa_status check_id(int32_t *out, const struct tp_tokenizer_source *source, int64_t id, const char *key)
{
    if (id < -1 || id >= (int64_t)source->n_tokens)
        return tp_fail(TALPA_E_DATA, "%s: %s is %lld, expected 0..%zu", source->label, key, (long long)id, source->n_tokens - 1);
    *out = (int32_t)id;
    return TALPA_OK;
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* The byte of a token "<0xNN>", or -1. */
static int byte_of_token(struct tp_text text)
{
    if (text.n_bytes != 6 || memcmp(text.bytes, "<0x", 3) != 0 || text.bytes[5] != '>') return -1;
    const int high = hex_digit(text.bytes[3]), low = hex_digit(text.bytes[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* Writes the bytes that a token of SentencePiece's kind stands for: U+2581 is a space, "<0xNN>" a byte. */
static size_t unescape_spaces(char *out, struct tp_text text, int32_t type)
{
    const int byte = type == TP_TOKEN_BYTE ? byte_of_token(text) : -1;
    size_t n = 0;
    if (byte >= 0) {
        out[0] = (char)(unsigned char)byte;
        return 1;
    }
    for (size_t i = 0; i < text.n_bytes; n++) {
        const bool is_mark = text.n_bytes - i >= 3 && memcmp(text.bytes + i, TP_SPACE_MARK, 3) == 0;
        out[n] = is_mark ? ' ' : text.bytes[i];
        i += is_mark ? 3 : 1;
    }
    return n;
}

static enum talpa_status add_token(struct tp_tokenizer *t, struct tp_map *vocabulary, struct tp_text text, int32_t type, size_t id)
{
    char *bytes = tp_arena_alloc(&t->arena, text.n_bytes);
    if (!bytes) return TALPA_E_DEVICE;
    size_t n = (size_t)-1;
    if (t->kind == BYTE_BPE && !type_is_mark(type)) n = tp_tokenizer_bpe_unescape(bytes, text);
    if (t->kind != BYTE_BPE && !type_is_special(type)) n = unescape_spaces(bytes, text, type);
    if (n == (size_t)-1) {
        n = text.n_bytes;
        if (n > 0) memcpy(bytes, text.bytes, n);
    }
    t->pieces[id] = (struct tp_text){bytes, n};
    t->types[id] = type;
    if (t->kind == BYTE_BPE) {
        if (t->ignores_merges && type == TP_TOKEN_NORMAL) TP_TRY(tp_map_put(&t->vocabulary, bytes, n, (int64_t)id));
        return tp_map_put(vocabulary, text.bytes, text.n_bytes, (int64_t)id);
    }
    if (type_is_special(type) || type == TP_TOKEN_BYTE || text.n_bytes == 0) return TALPA_OK;
    return tp_map_put(&t->vocabulary, text.bytes, text.n_bytes, (int64_t)id);
}

/* Pieces, types and marks; `vocabulary` gets the texts of gpt2. */
static enum talpa_status add_tokens(struct tp_tokenizer *t, struct tp_map *vocabulary, const struct tp_tokenizer_source *source)
{
    t->pieces = tp_arena_array(&t->arena, source->n_tokens, sizeof *t->pieces);
    t->types = tp_arena_array(&t->arena, source->n_tokens, sizeof *t->types);
    if (!t->pieces || !t->types) return TALPA_E_DEVICE;
    t->n_tokens = source->n_tokens;
    TP_TRY(tp_map_reserve(t->kind == BYTE_BPE ? vocabulary : &t->vocabulary, source->n_tokens));
    for (size_t i = 0; i < source->n_tokens; i++) {
        const struct tp_text text = source->tokens[i];
        int32_t type = source->types ? source->types[i] : TP_TOKEN_NORMAL;
        if (type < TP_TOKEN_NORMAL || type > TP_TOKEN_BYTE)
            return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.token_type of token %zu is %d, expected 1..6", source->label, i, type);
        if (type == TP_TOKEN_USER_DEFINED && (IS_ONE_OF(text, TURN_ENDS) || IS_ONE_OF(text, TURN_MARKS))) type = TP_TOKEN_CONTROL;
        TP_TRY(add_token(t, vocabulary, text, type, i));
        if (type_is_special(type) && IS_ONE_OF(text, TURN_ENDS) && t->n_ends < TP_TOKENIZER_MAX_ENDS) t->ends[t->n_ends++] = (int32_t)i;
        t->spm.n_max_bytes = text.n_bytes > t->spm.n_max_bytes ? text.n_bytes : t->spm.n_max_bytes;
    }
    return TALPA_OK;
}

static enum talpa_status add_marks(struct tp_tokenizer *t, const struct tp_tokenizer_source *source)
{
    size_t n_marks = 0, n_user = 0, n_all = 0;
    for (size_t i = 0; i < t->n_tokens; i++) n_all += type_is_mark(t->types[i]);
    struct tp_mark *marks = calloc(2 * n_all + 1, sizeof *marks), *user = marks + n_all;
    if (!marks) return tp_fail_memory("tokenizer", 2 * n_all * sizeof *marks);
    enum talpa_status status = TALPA_OK;
    for (size_t i = 0; i < t->n_tokens; i++) {
        if (!type_is_mark(t->types[i]) || source->tokens[i].n_bytes == 0) continue;
        char *text = tp_arena_alloc(&t->arena, source->tokens[i].n_bytes);
        if (!text) {
            status = TALPA_E_DEVICE;
            goto done;
        }
        memcpy(text, source->tokens[i].bytes, source->tokens[i].n_bytes);
        const uint8_t strips = source->strips ? source->strips[i] : 0;
        const struct tp_mark mark = {.text = {text, source->tokens[i].n_bytes},
                                     .id = (int32_t)i,
                                     .is_gated = type_is_special(t->types[i]),
                                     .strips_left = strips & TP_TOKEN_STRIPS_LEFT,
                                     .strips_right = strips & TP_TOKEN_STRIPS_RIGHT};
        if (t->kind == SPM && !mark.is_gated)
            user[n_user++] = mark;
        else
            marks[n_marks++] = mark;
    }
    TP_TRY_GOTO(status, tp_tokenizer_marks_build(&t->marks, &t->arena, marks, n_marks), done);
    TP_TRY_GOTO(status, tp_tokenizer_marks_build(&t->user, &t->arena, user, n_user), done);
done:
    free(marks);
    return status;
}

/* Ids of "<0x00>".."<0xFF>" in `byte_id`. *has_bytes is false if the vocabulary has no byte tokens. */
static enum talpa_status find_byte_tokens(int32_t byte_id[256], bool *has_bytes, const struct tp_tokenizer *t,
                                          const struct tp_tokenizer_source *source)
{
    int n = 0;
    for (int b = 0; b < 256; b++) byte_id[b] = -1;
    for (size_t i = 0; i < t->n_tokens; i++) {
        const int byte = t->types[i] == TP_TOKEN_BYTE ? byte_of_token(source->tokens[i]) : -1;
        if (byte < 0) continue;
        n += byte_id[byte] < 0;
        byte_id[byte] = (int32_t)i;
    }
    if (n != 0 && n != 256)
        return tp_fail(TALPA_E_DATA, "%s: the vocabulary has %d byte tokens (<0x00> to <0xFF>), expected all 256 or none", source->label,
                       n);
    *has_bytes = n == 256;
    return TALPA_OK;
}

static enum talpa_status build_spm(struct tp_tokenizer *t, const struct tp_tokenizer_source *source)
{
    uint32_t *ranks = tp_arena_array(&t->arena, source->n_tokens, sizeof *ranks);
    if (!ranks) return TALPA_E_DEVICE;
    if (!source->scores) return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.scores is missing, expected one number per token", source->label);
    for (size_t i = 0; i < source->n_tokens; i++) {
        if (source->scores[i] != source->scores[i])
            return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.scores of token %zu is not a number", source->label, i);
        ranks[i] = tp_tokenizer_spm_rank(source->scores[i]);
    }
    t->spm.ranks = ranks;
    t->spm.pieces = &t->vocabulary;
    t->spm.types = t->types;
    t->spm.user = &t->user;
    t->spm.unk = t->unk;
    return find_byte_tokens(t->spm.byte_id, &t->spm.has_byte_fallback, t, source);
}

static enum talpa_status build_chars(struct tp_tokenizer *t, const struct tp_tokenizer_source *source)
{
    TP_TRY(tp_tokenizer_bpe_build(&t->bpe, &t->vocabulary, source->merges, source->n_merges, source->label));
    return find_byte_tokens(t->bpe.byte_id, &t->bpe.has_byte_tokens, t, source);
}

static void add_end(struct tp_tokenizer *t, int64_t id)
{
    if (id >= 0 && (uint64_t)id < t->n_tokens && !tp_tokenizer_is_end(t, id) && t->n_ends < TP_TOKENIZER_MAX_ENDS)
        t->ends[t->n_ends++] = (int32_t)id;
}

static enum talpa_status fill(struct tp_tokenizer *t, struct tp_map *vocabulary, const struct tp_tokenizer_source *source)
{
    TP_TRY(check_id(&t->bos, source, source->bos_id, "tokenizer.ggml.bos_token_id"));
    TP_TRY(check_id(&t->eos, source, source->eos_id, "tokenizer.ggml.eos_token_id"));
    TP_TRY(check_id(&t->unk, source, source->unk_id, "tokenizer.ggml.unknown_token_id"));
    TP_TRY(check_id(&t->pad, source, source->pad_id, "tokenizer.ggml.padding_token_id"));
    if (t->add_bos && t->bos < 0)
        return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.add_bos_token is true, expected tokenizer.ggml.bos_token_id beside it",
                       source->label);
    if (source->chat_template && !(t->chat_template = tp_arena_strdup(&t->arena, source->chat_template))) return TALPA_E_DEVICE;
    struct tp_normalizer_rules rules = {.is_nfc = source->rules.is_nfc};
    if (t->kind != BYTE_BPE) rules = source->rules;
    TP_TRY(tp_tokenizer_normalize_build(&t->normalizer, &t->arena, &rules, source->label));
    if (t->kind == BYTE_BPE) TP_TRY(tp_tokenizer_pretokenize_create(&t->pretokenizer, source->pre, source->label));
    TP_TRY(add_tokens(t, vocabulary, source));
    TP_TRY(add_marks(t, source));
    add_end(t, t->eos);
    for (size_t i = 0; i < source->n_end_ids; i++) add_end(t, source->end_ids[i]);
    if (t->kind == SPM) return build_spm(t, source);
    return t->kind == CHAR_BPE ? build_chars(t, source)
                               : tp_tokenizer_bpe_build(&t->bpe, vocabulary, source->merges, source->n_merges, source->label);
}

enum talpa_status tp_tokenizer_create(struct tp_tokenizer **out, const struct tp_tokenizer_source *source)
{
    int kind = 0;
    while (kind < N_KINDS && (!source->model || strcmp(source->model, KIND_NAMES[kind]) != 0)) kind++;
    if (kind == N_KINDS)
        return tp_fail(TALPA_E_DATA,
                       "%s: tokenizer.ggml.model is %s%.64s%s, expected \"gpt2\" (byte-level BPE) or \"llama\" (SentencePiece BPE)",
                       source->label, source->model ? "\"" : "", source->model ? source->model : "missing", source->model ? "\"" : "");
    if (source->n_tokens == 0 || source->n_tokens >= (size_t)INT32_MAX)
        return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.tokens has %zu entries, expected 1 to 2^31 - 2", source->label, source->n_tokens);
    struct tp_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return tp_fail_memory("tokenizer", sizeof *t);
    t->kind = (enum kind)kind;
    t->add_bos = source->add_bos;
    t->ignores_merges = source->ignores_merges;
    t->splits_at_spaces = source->splits_at_spaces;
    t->fuses_unk = source->fuses_unk;
    struct tp_map vocabulary = {0};
    const enum talpa_status status = fill(t, &vocabulary, source);
    tp_map_free(&vocabulary);
    if (status == TALPA_OK)
        *out = t;
    else
        tp_tokenizer_free(t);
    return status;
}

enum talpa_status tp_tokenizer_byte_level(struct tp_tokenizer **out)
{
    static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    enum { N_SPECIAL = 3, N_TOKENS = N_SPECIAL + 256 };
    char chars[256][2];
    struct tp_text tokens[N_TOKENS];
    int32_t types[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++) {
        const int b = i - N_SPECIAL;
        types[i] = b < 0 ? TP_TOKEN_CONTROL : TP_TOKEN_NORMAL;
        if (b < 0)
            tokens[i] = (struct tp_text){special[i], strlen(special[i])};
        else
            tokens[i] = (struct tp_text){chars[b], tp_tokenizer_bpe_byte_char(chars[b], (unsigned char)b)};
    }
    const struct tp_tokenizer_source source = {
        .label = "built-in tokenizer",
        .model = "gpt2",
        .pre = "gpt-2",
        .tokens = tokens,
        .types = types,
        .n_tokens = N_TOKENS,
        .bos_id = 1,
        .eos_id = 2,
        .unk_id = 0,
        .pad_id = 2,
        .chat_template =
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    };
    return tp_tokenizer_create(out, &source);
}

void tp_tokenizer_free(struct tp_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    tp_tokenizer_pretokenize_free(tokenizer->pretokenizer);
    tp_tokenizer_bpe_free(&tokenizer->bpe);
    tp_map_free(&tokenizer->vocabulary);
    tp_arena_free(&tokenizer->arena);
    free(tokenizer);
}

static enum talpa_status encode_pieces(struct tp_id_list *list, struct tp_bpe_scratch *scratch, const struct tp_tokenizer *t,
                                       const char *text, size_t n_bytes)
{
    struct tp_pretokenizer_cursor cursor;
    TP_TRY(tp_tokenizer_pretokenize_open(&cursor, t->pretokenizer, text, n_bytes));
    enum talpa_status status = TALPA_OK;
    while (status == TALPA_OK) {
        size_t start, end;
        int64_t id;
        status = tp_tokenizer_pretokenize_next(&start, &end, &cursor);
        if (status != TALPA_OK || start == end) break;
        if (t->ignores_merges && tp_map_get(&id, &t->vocabulary, text + start, end - start))
            status = tp_tokenizer_bpe_push(list, (int32_t)id);
        else
            status = tp_tokenizer_bpe_word(list, scratch, &t->bpe, text + start, end - start);
    }
    tp_tokenizer_pretokenize_close(&cursor);
    return status;
}

/* Words of hf-bpe: the whole text, or pieces that start at each U+2581. */
static enum talpa_status encode_chars(struct tp_id_list *list, struct tp_bpe_scratch *scratch, const struct tp_tokenizer *t,
                                      const char *text, size_t n_bytes)
{
    for (size_t from = 0; from < n_bytes;) {
        size_t to = t->splits_at_spaces ? from + 1 : n_bytes;
        while (to < n_bytes && !(n_bytes - to >= 3 && memcmp(text + to, TP_SPACE_MARK, 3) == 0)) to++;
        TP_TRY(tp_tokenizer_bpe_chars(list, scratch, &t->bpe, &t->vocabulary, t->unk, t->fuses_unk, text + from, to - from));
        from = to;
    }
    return TALPA_OK;
}

/* A text without marks. */
static enum talpa_status encode_plain(struct tp_id_list *list, struct tp_bpe_scratch *scratch, struct tp_text_place *place,
                                      const struct tp_tokenizer *t, const char *text, size_t n_bytes)
{
    if (n_bytes == 0) return TALPA_OK;
    const enum tp_prefix prefix = t->normalizer.rules.prefix;
    const bool has_prefix =
        (prefix == TP_PREFIX_EACH && (place->is_start || place->is_after_special)) || (prefix == TP_PREFIX_FIRST && place->is_start);
    char *normal = NULL;
    size_t n = n_bytes;
    if (!tp_tokenizer_normalize_is_identity(&t->normalizer))
        TP_TRY(tp_tokenizer_normalize(&normal, &n, &t->normalizer, &t->user, text, n_bytes, has_prefix));
    enum talpa_status status;
    if (t->kind == BYTE_BPE)
        status = encode_pieces(list, scratch, t, normal ? normal : text, n);
    else if (t->kind == SPM)
        status = tp_tokenizer_spm_encode(list, &t->spm, normal ? normal : text, n);
    else
        status = encode_chars(list, scratch, t, normal ? normal : text, n);
    free(normal);
    *place = (struct tp_text_place){0};
    return status;
}

/* Bytes of the white space character at the start or the end of a text; 0 if there is none. */
static size_t space_at_start(const char *text, size_t n)
{
    static const char *const wide[] = {"\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\xa8",
                                       "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    if (n == 0) return 0;
    if (text[0] == ' ' || (text[0] >= '\t' && text[0] <= '\r')) return 1;
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        if (n >= strlen(wide[i]) && memcmp(text, wide[i], strlen(wide[i])) == 0) return strlen(wide[i]);
    const bool is_quad = n >= 3 && memcmp(text, "\xe2\x80", 2) == 0 && (unsigned char)text[2] >= 0x80 && (unsigned char)text[2] <= 0x8a;
    return is_quad ? 3 : 0;
}

static size_t space_at_end(const char *text, size_t n)
{
    for (size_t width = 1; width <= 3 && width <= n; width++)
        if (space_at_start(text + n - width, width) == width) return width;
    return 0;
}

enum talpa_status tp_tokenizer_encode_spans(struct tp_id_list *ids, struct tp_text_place *place, const struct tp_tokenizer *tokenizer,
                                            const char *text, size_t n_bytes, const struct tp_text_span *spans, size_t n_spans)
{
    if (n_bytes > MAX_TEXT_BYTES) return tp_fail(TALPA_E_DATA, "text of %zu bytes, expected less than 512 MiB; split it", n_bytes);
    const struct tp_marks *marks = &tokenizer->marks;
    const bool has_marks = n_spans > 0 ? marks->n > 0 : marks->n_open > 0;
    struct tp_bpe_scratch scratch = {0};
    enum talpa_status status = TALPA_OK;
    size_t done = 0, span = 0;
    for (size_t n; place->strips_space && (n = space_at_start(text + done, n_bytes - done)) > 0;) done += n;
    for (size_t i = done; has_marks && i < n_bytes;) {
        while (span < n_spans && spans[span].end <= i) span++;
        const bool is_inside = span < n_spans && spans[span].start <= i;
        const size_t end_of_mark = is_inside ? spans[span].end : n_bytes;
        const struct tp_mark *mark = tp_tokenizer_marks_at(marks, text + i, end_of_mark - i, is_inside);
        if (!mark) {
            i++;
            continue;
        }
        size_t end = i;
        for (size_t n; mark->strips_left && (n = space_at_end(text + done, end - done)) > 0;) end -= n;
        TP_TRY_GOTO(status, encode_plain(ids, &scratch, place, tokenizer, text + done, end - done), out);
        TP_TRY_GOTO(status, tp_tokenizer_bpe_push(ids, mark->id), out);
        *place = (struct tp_text_place){.is_after_special = true, .strips_space = mark->strips_right};
        done = i += mark->text.n_bytes;
        for (size_t n; mark->strips_right && (n = space_at_start(text + done, n_bytes - done)) > 0;) done = i += n;
    }
    status = encode_plain(ids, &scratch, place, tokenizer, text + done, n_bytes - done);
out:
    tp_tokenizer_bpe_scratch_free(&scratch);
    return status;
}

enum talpa_status tp_tokenizer_encode(int32_t **ids, size_t *n_ids, const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                      bool parse_special)
{
    struct tp_id_list list = {.capacity = n_bytes / 3 + 8};
    list.ids = malloc(list.capacity * sizeof *list.ids);
    if (!list.ids) return tp_fail_memory("token ids", list.capacity * sizeof *list.ids);
    struct tp_text_place place = {.is_start = true};
    const struct tp_text_span all = {0, n_bytes};
    const enum talpa_status status = tp_tokenizer_encode_spans(&list, &place, tokenizer, n_bytes ? text : "", n_bytes, &all, parse_special);
    if (status != TALPA_OK) {
        free(list.ids);
        return status;
    }
    *ids = list.ids;
    *n_ids = list.n_ids;
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_decode(char **text, size_t *n_bytes, const struct tp_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                      bool skip_special)
{
    size_t n = 0;
    for (size_t i = 0; i < n_ids; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= tokenizer->n_tokens)
            return tp_fail(TALPA_E_DATA, "token id %d at position %zu, expected 0..%zu", ids[i], i, tokenizer->n_tokens - 1);
        if (!skip_special || !type_is_special(tokenizer->types[ids[i]])) n += tokenizer->pieces[ids[i]].n_bytes;
    }
    char *bytes = malloc(n + 1);
    if (!bytes) return tp_fail_memory("text", n + 1);
    n = 0;
    /* The first token of the text, after BOS and its like, has the prefix. */
    size_t first = 0;
    while (first < n_ids && type_is_special(tokenizer->types[ids[first]])) first++;
    if (tokenizer->normalizer.rules.prefix == TP_PREFIX_NONE) first = n_ids;
    for (size_t i = 0; i < n_ids; i++) {
        struct tp_text piece = tokenizer->pieces[ids[i]];
        if (i == first && piece.n_bytes > 0 && piece.bytes[0] == ' ') {
            piece.bytes++;
            piece.n_bytes--;
        }
        if (piece.n_bytes == 0 || (skip_special && type_is_special(tokenizer->types[ids[i]]))) continue;
        memcpy(bytes + n, piece.bytes, piece.n_bytes);
        n += piece.n_bytes;
    }
    bytes[n] = '\0';
    *text = bytes;
    if (n_bytes) *n_bytes = n;
    return TALPA_OK;
}

struct tp_text tp_tokenizer_piece(const struct tp_tokenizer *tokenizer, int64_t id)
{
    return id >= 0 && (uint64_t)id < tokenizer->n_tokens ? tokenizer->pieces[id] : (struct tp_text){"", 0};
}

bool tp_tokenizer_is_special(const struct tp_tokenizer *tokenizer, int64_t id)
{
    return id >= 0 && (uint64_t)id < tokenizer->n_tokens && type_is_special(tokenizer->types[id]);
}

int32_t tp_tokenizer_special_id(const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes)
{
    if (n_bytes == 0) return -1;
    for (int which = 0; which < 2; which++) {
        const struct tp_marks *marks = which ? &tokenizer->user : &tokenizer->marks;
        const struct tp_mark *mark = marks->n ? tp_tokenizer_marks_at(marks, text, n_bytes, true) : NULL;
        if (mark && mark->text.n_bytes == n_bytes) return mark->id;
    }
    return -1;
}

bool tp_tokenizer_has_byte(const struct tp_tokenizer *tokenizer, unsigned char byte)
{
    const char text = (char)byte;
    int64_t id;
    if (tokenizer->kind == BYTE_BPE) return tokenizer->bpe.byte_id[byte] >= 0;
    if (tokenizer->spm.has_byte_fallback || tokenizer->bpe.has_byte_tokens || byte >= 0x80) return true;
    return byte == ' ' || tp_map_get(&id, &tokenizer->vocabulary, &text, 1);
}

bool tp_tokenizer_is_end(const struct tp_tokenizer *tokenizer, int64_t id)
{
    for (size_t i = 0; i < tokenizer->n_ends; i++)
        if (tokenizer->ends[i] == id) return true;
    return false;
}

size_t tp_tokenizer_n_tokens(const struct tp_tokenizer *tokenizer) { return tokenizer->n_tokens; }
int32_t tp_tokenizer_bos(const struct tp_tokenizer *tokenizer) { return tokenizer->bos; }
int32_t tp_tokenizer_eos(const struct tp_tokenizer *tokenizer) { return tokenizer->eos; }
int32_t tp_tokenizer_unk(const struct tp_tokenizer *tokenizer) { return tokenizer->unk; }
int32_t tp_tokenizer_pad(const struct tp_tokenizer *tokenizer) { return tokenizer->pad; }
bool tp_tokenizer_add_bos(const struct tp_tokenizer *tokenizer) { return tokenizer->add_bos; }
const char *tp_tokenizer_chat_template(const struct tp_tokenizer *tokenizer) { return tokenizer->chat_template; }
