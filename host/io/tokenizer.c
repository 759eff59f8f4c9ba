#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/map.h"
#include "base/status.h"
#include "tokenizer_pretokenize.h"

struct tp_tokenizer {
    struct tp_arena arena;
    struct tp_text *pieces; /* [n_tokens] */
    bool *is_special;       /* [n_tokens] */
    size_t n_tokens;
    int32_t *specials;         /* ids with a text, by first byte, then by falling length, then by id */
    size_t first_special[257]; /* specials that start with byte b: [b] up to [b + 1] */
    struct tp_pretokenizer *pretokenizer;
    struct tp_bpe bpe;
    int32_t bos, eos, unk, pad;
    bool add_bos;
    const char *chat_template;
};

#define MAX_TEXT_BYTES ((size_t)INT32_MAX)

static bool type_is_special(int32_t type) { return type == TP_TOKEN_UNKNOWN || type == TP_TOKEN_CONTROL || type == TP_TOKEN_USER_DEFINED; }

static enum talpa_status check_id(int32_t *out, const struct tp_tokenizer_source *source, int64_t id, const char *key)
{
    if (id < -1 || id >= (int64_t)source->n_tokens)
        return tp_fail(TALPA_E_DATA, "%s: %s is %lld, expected 0..%zu", source->label, key, (long long)id, source->n_tokens - 1);
    *out = (int32_t)id;
    return TALPA_OK;
}

/* Pieces (unescaped texts) and the vocabulary map. */
static enum talpa_status add_tokens(struct tp_tokenizer *t, struct tp_map *vocabulary, const struct tp_tokenizer_source *source)
{
    t->pieces = tp_arena_array(&t->arena, source->n_tokens, sizeof *t->pieces);
    t->is_special = tp_arena_array(&t->arena, source->n_tokens, sizeof *t->is_special);
    if (!t->pieces || !t->is_special) return TALPA_E_DEVICE;
    t->n_tokens = source->n_tokens;
    TP_TRY(tp_map_reserve(vocabulary, source->n_tokens));
    for (size_t i = 0; i < source->n_tokens; i++) {
        const struct tp_text text = source->tokens[i];
        const int32_t type = source->types ? source->types[i] : TP_TOKEN_NORMAL;
        if (type < TP_TOKEN_NORMAL || type > TP_TOKEN_BYTE)
            return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.token_type of token %zu is %d, expected 1..6", source->label, i, type);
        TP_TRY(tp_map_put(vocabulary, text.bytes, text.n_bytes, (int64_t)i));
        char *bytes = tp_arena_alloc(&t->arena, text.n_bytes);
        if (!bytes) return TALPA_E_DEVICE;
        t->is_special[i] = type_is_special(type);
        size_t n = t->is_special[i] ? (size_t)-1 : tp_tokenizer_bpe_unescape(bytes, text);
        if (n == (size_t)-1) {
            n = text.n_bytes;
            if (n > 0) memcpy(bytes, text.bytes, n);
        }
        t->pieces[i] = (struct tp_text){bytes, n};
    }
    return TALPA_OK;
}

struct special {
    struct tp_text text;
    int32_t id;
};

static int compare_specials(const void *a, const void *b)
{
    const struct special *x = a, *y = b;
    const unsigned char fx = (unsigned char)x->text.bytes[0], fy = (unsigned char)y->text.bytes[0];
    if (fx != fy) return fx < fy ? -1 : 1;
    if (x->text.n_bytes != y->text.n_bytes) return x->text.n_bytes > y->text.n_bytes ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static enum talpa_status sort_specials(struct tp_tokenizer *t)
{
    size_t n = 0;
    for (size_t i = 0; i < t->n_tokens; i++) n += t->is_special[i] && t->pieces[i].n_bytes > 0;
    if (n == 0) return TALPA_OK;
    struct special *list = malloc(n * sizeof *list);
    t->specials = tp_arena_array(&t->arena, n, sizeof *t->specials);
    if (!list || !t->specials) {
        free(list);
        return tp_fail_memory("tokenizer", n * sizeof *list);
    }
    n = 0;
    for (size_t i = 0; i < t->n_tokens; i++)
        if (t->is_special[i] && t->pieces[i].n_bytes > 0) list[n++] = (struct special){t->pieces[i], (int32_t)i};
    qsort(list, n, sizeof *list, compare_specials);
    for (size_t i = 0; i < n; i++) {
        t->specials[i] = list[i].id;
        t->first_special[(unsigned char)list[i].text.bytes[0] + 1] = i + 1;
    }
    for (int b = 0; b < 256; b++)
        if (t->first_special[b + 1] < t->first_special[b]) t->first_special[b + 1] = t->first_special[b];
    free(list);
    return TALPA_OK;
}

enum talpa_status tp_tokenizer_create(struct tp_tokenizer **out, const struct tp_tokenizer_source *source)
{
    if (!source->model || strcmp(source->model, "gpt2") != 0)
        return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.model is %s%.64s%s, expected \"gpt2\" (byte-level BPE), the only one supported",
                       source->label, source->model ? "\"" : "", source->model ? source->model : "missing", source->model ? "\"" : "");
    if (source->n_tokens == 0 || source->n_tokens >= (size_t)INT32_MAX)
        return tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.tokens has %zu entries, expected 1 to 2^31 - 2", source->label, source->n_tokens);
    struct tp_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return tp_fail_memory("tokenizer", sizeof *t);
    struct tp_map vocabulary = {0};
    enum talpa_status status = TALPA_OK;
    t->add_bos = source->add_bos;
    TP_TRY_GOTO(status, check_id(&t->bos, source, source->bos_id, "tokenizer.ggml.bos_token_id"), done);
    TP_TRY_GOTO(status, check_id(&t->eos, source, source->eos_id, "tokenizer.ggml.eos_token_id"), done);
    TP_TRY_GOTO(status, check_id(&t->unk, source, source->unk_id, "tokenizer.ggml.unknown_token_id"), done);
    TP_TRY_GOTO(status, check_id(&t->pad, source, source->pad_id, "tokenizer.ggml.padding_token_id"), done);
    if (t->add_bos && t->bos < 0) {
        status = tp_fail(TALPA_E_DATA, "%s: tokenizer.ggml.add_bos_token is true, expected tokenizer.ggml.bos_token_id beside it",
                         source->label);
        goto done;
    }
    if (source->chat_template && !(t->chat_template = tp_arena_strdup(&t->arena, source->chat_template))) {
        status = TALPA_E_DEVICE;
        goto done;
    }
    TP_TRY_GOTO(status, tp_tokenizer_pretokenize_create(&t->pretokenizer, source->pre, source->label), done);
    TP_TRY_GOTO(status, add_tokens(t, &vocabulary, source), done);
    TP_TRY_GOTO(status, sort_specials(t), done);
    TP_TRY_GOTO(status, tp_tokenizer_bpe_build(&t->bpe, &vocabulary, source->merges, source->n_merges, source->label), done);
    *out = t;
done:
    tp_map_free(&vocabulary);
    if (status != TALPA_OK) tp_tokenizer_free(t);
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
    tp_arena_free(&tokenizer->arena);
    free(tokenizer);
}

/* The special token that starts at `text`, or -1. */
static int32_t special_at(const struct tp_tokenizer *t, const char *text, size_t n_bytes)
{
    const unsigned char first = (unsigned char)text[0];
    for (size_t i = t->first_special[first]; i < t->first_special[first + 1]; i++) {
        const struct tp_text piece = t->pieces[t->specials[i]];
        if (piece.n_bytes <= n_bytes && memcmp(piece.bytes, text, piece.n_bytes) == 0) return t->specials[i];
    }
    return -1;
}

static enum talpa_status encode_plain(struct tp_id_list *list, struct tp_bpe_scratch *scratch, const struct tp_tokenizer *t,
                                      const char *text, size_t n_bytes)
{
    if (n_bytes == 0) return TALPA_OK;
    struct tp_pretokenizer_cursor cursor;
    TP_TRY(tp_tokenizer_pretokenize_open(&cursor, t->pretokenizer, text, n_bytes));
    enum talpa_status status = TALPA_OK;
    while (status == TALPA_OK) {
        size_t start, end;
        status = tp_tokenizer_pretokenize_next(&start, &end, &cursor);
        if (status != TALPA_OK || start == end) break;
        status = tp_tokenizer_bpe_word(list, scratch, &t->bpe, text + start, end - start);
    }
    tp_tokenizer_pretokenize_close(&cursor);
    return status;
}

enum talpa_status tp_tokenizer_encode(int32_t **ids, size_t *n_ids, const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                      bool parse_special)
{
    if (n_bytes > MAX_TEXT_BYTES) return tp_fail(TALPA_E_DATA, "text of %zu bytes, expected less than 2 GiB; split it", n_bytes);
    struct tp_id_list list = {.capacity = n_bytes / 3 + 8};
    list.ids = malloc(list.capacity * sizeof *list.ids);
    if (!list.ids) return tp_fail_memory("token ids", list.capacity * sizeof *list.ids);
    struct tp_bpe_scratch scratch = {0};
    enum talpa_status status = TALPA_OK;
    size_t done = 0;
    for (size_t i = 0; parse_special && i < n_bytes;) {
        const int32_t id = special_at(tokenizer, text + i, n_bytes - i);
        if (id < 0) {
            i++;
            continue;
        }
        TP_TRY_GOTO(status, encode_plain(&list, &scratch, tokenizer, text + done, i - done), out);
        TP_TRY_GOTO(status, tp_tokenizer_bpe_push(&list, id), out);
        done = i += tokenizer->pieces[id].n_bytes;
    }
    if (done < n_bytes) status = encode_plain(&list, &scratch, tokenizer, text + done, n_bytes - done);
out:
    tp_tokenizer_bpe_scratch_free(&scratch);
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
        if (!skip_special || !tokenizer->is_special[ids[i]]) n += tokenizer->pieces[ids[i]].n_bytes;
    }
    char *bytes = malloc(n + 1);
    if (!bytes) return tp_fail_memory("text", n + 1);
    n = 0;
    for (size_t i = 0; i < n_ids; i++) {
        const struct tp_text piece = tokenizer->pieces[ids[i]];
        if (piece.n_bytes == 0 || (skip_special && tokenizer->is_special[ids[i]])) continue;
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
    return id >= 0 && (uint64_t)id < tokenizer->n_tokens && tokenizer->is_special[id];
}

int32_t tp_tokenizer_special_id(const struct tp_tokenizer *tokenizer, const char *text, size_t n_bytes)
{
    if (n_bytes == 0) return -1;
    const int32_t id = special_at(tokenizer, text, n_bytes);
    return id >= 0 && tokenizer->pieces[id].n_bytes == n_bytes ? id : -1;
}

bool tp_tokenizer_has_byte(const struct tp_tokenizer *tokenizer, unsigned char byte) { return tokenizer->bpe.byte_id[byte] >= 0; }
size_t tp_tokenizer_n_tokens(const struct tp_tokenizer *tokenizer) { return tokenizer->n_tokens; }
int32_t tp_tokenizer_bos(const struct tp_tokenizer *tokenizer) { return tokenizer->bos; }
int32_t tp_tokenizer_eos(const struct tp_tokenizer *tokenizer) { return tokenizer->eos; }
int32_t tp_tokenizer_unk(const struct tp_tokenizer *tokenizer) { return tokenizer->unk; }
int32_t tp_tokenizer_pad(const struct tp_tokenizer *tokenizer) { return tokenizer->pad; }
bool tp_tokenizer_add_bos(const struct tp_tokenizer *tokenizer) { return tokenizer->add_bos; }
const char *tp_tokenizer_chat_template(const struct tp_tokenizer *tokenizer) { return tokenizer->chat_template; }
