/* libFuzzer: tokenizers built from the input, and round trips of the input through fixed ones.
 * The first byte chooses: bit 0 parses special tokens, bits 1, 3 and 4 the pre-tokenizer, bit 2 builds the vocabulary from the lines. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/template.h"
#include "io/tokenizer.h"

enum { MAX_LINES = 600 };

/* Encodes, decodes and compares; bytes without a token are left out. */
static void round_trip(const struct tp_tokenizer *t, const char *text, size_t n_bytes, bool parse_special, bool is_exact)
{
    int32_t *ids = NULL;
    char *back = NULL;
    size_t n_ids, n_back;
    if (tp_tokenizer_encode(&ids, &n_ids, t, text, n_bytes, parse_special) != TALPA_OK) abort();
    if (tp_tokenizer_decode(&back, &n_back, t, ids, n_ids, false) != TALPA_OK) abort();
    if (n_ids > n_bytes || n_back > n_bytes) abort();
    if (is_exact && (n_back != n_bytes || (n_bytes && memcmp(back, text, n_bytes) != 0))) abort();
    free(ids);
    free(back);
}

/* Lines up to an empty one are tokens, the next up to an empty one merges; the rest is the text. A token line starts with its type. */
static void build(const char *data, size_t size, const char *pre, bool parse_special)
{
    struct tp_text tokens[MAX_LINES], merges[MAX_LINES];
    int32_t types[MAX_LINES];
    struct tp_tokenizer_source source = {.label = "fuzz", .model = "gpt2", .pre = pre, .tokens = tokens, .types = types, .merges = merges};
    source.bos_id = source.eos_id = source.unk_id = source.pad_id = -1;
    size_t at = 0;
    for (int part = 0; part < 2; part++) {
        for (size_t n = 0; at < size && n < MAX_LINES; n++) {
            const char *end = memchr(data + at, '\n', size - at);
            const size_t length = end ? (size_t)(end - data) - at : size - at;
            const char *line = data + at;
            at += length + (end != NULL);
            if (length == 0) break;
            if (part == 0) {
                types[source.n_tokens] = line[0] - '0';
                tokens[source.n_tokens++] = (struct tp_text){line + 1, length - 1};
            } else {
                merges[source.n_merges++] = (struct tp_text){line, length};
            }
        }
    }
    struct tp_tokenizer *t;
    if (tp_tokenizer_create(&t, &source) != TALPA_OK) return;
    round_trip(t, data + at, size - at, parse_special, false);
    tp_tokenizer_free(t);
}

static struct tp_tokenizer *fixed(const char *pre)
{
    static const char *const merges[] = {"a a", "a b", "aa aa", "b a", "\xc4\xa0 a", "1 1", "\xc4\x8a \xc4\x8a"};
    enum { N_MERGES = 7, N_SPECIAL = 3, N_TOKENS = N_SPECIAL + 256 + N_MERGES };
    static const char *const joined[] = {"aa", "ab", "aaaa", "ba", "\304\240a", "11", "\xc4\x8a\xc4\x8a"};
    char chars[256][2];
    struct tp_text tokens[N_TOKENS], pairs[N_MERGES];
    int32_t types[N_TOKENS];
    static const char *const special[N_SPECIAL] = {"<|a|>", "<|a|>b", "aab"};
    for (int i = 0; i < N_TOKENS; i++) {
        const int b = i - N_SPECIAL, m = b - 256;
        types[i] = b < 0 ? TP_TOKEN_CONTROL : TP_TOKEN_NORMAL;
        if (b < 0)
            tokens[i] = (struct tp_text){special[i], strlen(special[i])};
        else if (m < 0)
            tokens[i] = (struct tp_text){chars[b], tp_tokenizer_bpe_byte_char(chars[b], (unsigned char)b)};
        else
            tokens[i] = (struct tp_text){joined[m], strlen(joined[m])};
    }
    for (int m = 0; m < N_MERGES; m++) pairs[m] = (struct tp_text){merges[m], strlen(merges[m])};
    const struct tp_tokenizer_source source = {.label = "fixed",
                                               .model = "gpt2",
                                               .pre = pre,
                                               .tokens = tokens,
                                               .types = types,
                                               .n_tokens = N_TOKENS,
                                               .merges = pairs,
                                               .n_merges = N_MERGES,
                                               .bos_id = -1,
                                               .eos_id = -1,
                                               .unk_id = -1,
                                               .pad_id = -1};
    struct tp_tokenizer *t;
    if (tp_tokenizer_create(&t, &source) != TALPA_OK) abort();
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const pres[8] = {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "stablelm2", "dbrx"};
    static struct tp_tokenizer *tokenizers[8];
    for (int i = 0; i < 8 && !tokenizers[i]; i++) tokenizers[i] = fixed(pres[i]);
    if (size == 0) return 0;
    const unsigned choice = data[0], pre = (choice >> 1 & 1) | (choice >> 2 & 6);
    const char *text = (const char *)data + 1;
    if (choice & 4)
        build(text, size - 1, pres[pre], choice & 1);
    else
        round_trip(tokenizers[pre], text, size - 1, choice & 1, true);
    char *jinja = malloc(size);
    if (!jinja) return 0;
    memcpy(jinja, text, size - 1);
    jinja[size - 1] = '\0';
    const struct tp_template *chat_template;
    (void)tp_template_select(&chat_template, NULL, jinja);
    free(jinja);
    return 0;
}
