/* tokenizer.json and tokenizer.model: ids of the fixtures against the libraries that made them (tests/data/tokenizers/golden.json, written
 * by tools/golden/make_tokenizers.py), the files beside them, and what must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "io/file_map.h"
#include "io/gguf.h"
#include "io/gguf_write.h"
#include "io/template.h"
#include "io/tokenizer.h"

#ifndef TALPA_SOURCE_DIR
#define TALPA_SOURCE_DIR "."
#endif

static const struct tp_tokenizer_extras NO_EXTRAS = {.bos_id = -1, .eos_id = -1, .pad_id = -1};

static void temporary(char *out, size_t n_bytes, const char *name)
{
    const char *base = getenv("TMPDIR");
    snprintf(out, n_bytes, "%s/%s", base ? base : "/tmp", name);
}

static const char *fixture(const char *name, const char *suffix)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/tests/data/tokenizers/%s%s", TALPA_SOURCE_DIR, name, suffix);
    return path;
}

static struct tp_json *parse_file(const char *path)
{
    struct tp_json *json;
    if (tp_json_parse_file(&json, path) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return json;
}

static struct tp_tokenizer *load(const char *name)
{
    struct tp_tokenizer *t = NULL;
    enum talpa_status status;
    if (strncmp(name, "spm-", 4) == 0) {
        struct tp_file_map map;
        assert_int_equal(tp_file_map_open(&map, fixture(name, ".model")), TALPA_OK);
        status = tp_tokenizer_from_model(&t, map.bytes, map.n_bytes, NULL, name);
        tp_file_map_close(&map);
    } else {
        struct tp_json *json = parse_file(fixture(name, ".json"));
        status = tp_tokenizer_from_json(&t, tp_json_root(json), NULL, name);
        tp_json_free(json);
    }
    if (status != TALPA_OK) fail_msg("%s", talpa_error_message());
    return t;
}

/* All golden strings. SentencePiece knows no special tokens in a text. */
static void check_golden(const struct tp_tokenizer *t, const char *name, bool parse_special)
{
    struct tp_json *json = parse_file(fixture("golden", ".json"));
    const struct tp_json_value *root = tp_json_root(json);
    const struct tp_json_value *lists = tp_json_first(tp_json_get(tp_json_get(root, "ids"), name));
    assert_non_null(lists);
    size_t n_strings = 0;
    for (const struct tp_json_value *v = tp_json_first(tp_json_get(root, "strings")); v; v = tp_json_next(v), n_strings++) {
        const char *text;
        int32_t *ids;
        size_t n_ids, i = 0;
        assert_int_equal(tp_json_as_string(&text, v, "string"), TALPA_OK);
        assert_int_equal(tp_tokenizer_encode(&ids, &n_ids, t, text, strlen(text), parse_special), TALPA_OK);
        for (const struct tp_json_value *e = tp_json_first(lists); e; e = tp_json_next(e), i++) {
            int64_t expected;
            assert_int_equal(tp_json_as_int(&expected, e, "id"), TALPA_OK);
            if (i >= n_ids || ids[i] != expected) fail_msg("%s: \"%s\": token %zu differs", name, text, i);
        }
        if (n_ids != i) fail_msg("%s: \"%s\": %zu tokens, expected %zu", name, text, n_ids, i);
        free(ids);
        lists = tp_json_next(lists);
    }
    assert_null(lists);
    assert_int_equal(n_strings, 70);
    tp_json_free(json);
}

static void test_golden(void **state)
{
    (void)state;
    static const char *const names[] = {"smollm",    "llama3",     "qwen2",     "llama2",   "gemma",
                                        "metaspace", "spm-llama2", "spm-gemma", "spm-rules"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct tp_tokenizer *t = load(names[i]);
        check_golden(t, names[i], strncmp(names[i], "spm-", 4) != 0);
        tp_tokenizer_free(t);
    }
}

/* The fixture's pieces as a GGUF file give the same ids. */
static void test_gguf_spm(void **state)
{
    (void)state;
    static const char *const names[] = {"spm-llama2", "spm-gemma"};
    for (int which = 0; which < 2; which++) {
        struct tp_file_map map;
        assert_int_equal(tp_file_map_open(&map, fixture(names[which], ".model")), TALPA_OK);
        /* Field 1 of each piece is the text, field 2 the score, field 3 (if not 1) the type; all lengths are below 128. */
        enum { MAX = 600 };
        static char texts[MAX][64];
        const char *tokens[MAX];
        float scores[MAX];
        int32_t types[MAX];
        size_t n = 0;
        for (const uint8_t *p = map.bytes; *p == 0x0A; p += 2 + p[1], n++) {
            const uint8_t *q = p + 2, *end = q + p[1];
            types[n] = 1;
            assert_true(n < MAX && p[1] < 64 && q[0] == 0x0A);
            snprintf(texts[n], sizeof texts[n], "%.*s", q[1], (const char *)q + 2);
            tokens[n] = texts[n];
            for (q += 2 + q[1]; q < end;) {
                if (*q == 0x15) memcpy(&scores[n], q + 1, 4);
                if (*q == 0x18) types[n] = q[1];
                q += *q == 0x15 ? 5 : 2;
            }
        }
        tp_file_map_close(&map);
        char path[4096];
        temporary(path, sizeof path, "talpa-tokenizer-XXXXXX");
        const int fd = mkstemp(path);
        assert_true(fd >= 0);
        close(fd);
        struct tp_gguf_writer *writer;
        assert_int_equal(tp_gguf_write_create(&writer), TALPA_OK);
        tp_gguf_write_string(writer, "general.architecture", "llama");
        tp_gguf_write_string(writer, "tokenizer.ggml.model", "llama");
        tp_gguf_write_string_array(writer, "tokenizer.ggml.tokens", tokens, n);
        tp_gguf_write_f32_array(writer, "tokenizer.ggml.scores", scores, n);
        tp_gguf_write_i32_array(writer, "tokenizer.ggml.token_type", types, n);
        tp_gguf_write_bool(writer, "tokenizer.ggml.add_space_prefix", which == 0);
        assert_int_equal(tp_gguf_write_save(writer, path), TALPA_OK);
        tp_gguf_write_free(writer);
        struct tp_gguf *gguf;
        struct tp_tokenizer *t;
        assert_int_equal(tp_gguf_open(&gguf, path), TALPA_OK);
        if (tp_tokenizer_from_gguf(&t, gguf) != TALPA_OK) fail_msg("%s", talpa_error_message());
        tp_gguf_close(gguf);
        unlink(path);
        check_golden(t, names[which], false);
        assert_true(tp_tokenizer_add_bos(t));
        assert_int_equal(tp_tokenizer_eos(t), 2);
        tp_tokenizer_free(t);
    }
}

static char folder[2048];

static void put(const char *name, const char *text)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static void copy_fixture(const char *from, const char *name)
{
    char path[4096];
    struct tp_file_map map;
    assert_int_equal(tp_file_map_open(&map, fixture(from, "")), TALPA_OK);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(map.bytes, 1, map.n_bytes, f), map.n_bytes);
    fclose(f);
    tp_file_map_close(&map);
}

static void empty_folder(void)
{
    static const char *const names[] = {"tokenizer.json",         "tokenizer.model",     "tokenizer_config.json", "config.json",
                                        "generation_config.json", "chat_template.jinja", "added_tokens.json"};
    char path[4096];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
}

static void test_folder(void **state)
{
    (void)state;
    struct tp_tokenizer *t = NULL;
    temporary(folder, sizeof folder, "talpa-tokenizers-XXXXXX");
    assert_non_null(mkdtemp(folder));
    assert_int_equal(tp_tokenizer_from_folder(&t, folder), TALPA_E_NO_INPUT);
    assert_non_null(strstr(talpa_error_message(), "neither tokenizer.json nor tokenizer.model"));

    copy_fixture("spm-llama2.model", "tokenizer.model");
    assert_int_equal(tp_tokenizer_from_folder(&t, folder), TALPA_OK);
    assert_true(tp_tokenizer_add_bos(t));
    assert_int_equal(tp_tokenizer_bos(t), 1);
    assert_int_equal(tp_tokenizer_pad(t), -1);
    tp_tokenizer_free(t);
    const size_t n_pieces = 420;
    put("tokenizer_config.json",
        "{\"add_bos_token\": false, \"pad_token\": \"<pad>\", \"chat_template\": [{\"name\": \"tools\", \"template\": \"T\"}, "
        "{\"name\": \"default\", \"template\": \"D\"}], \"added_tokens_decoder\": {\"420\": {\"content\": \"<pad>\", "
        "\"special\": true, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"single_word\": false}}}");
    assert_int_equal(tp_tokenizer_from_folder(&t, folder), TALPA_OK);
    assert_false(tp_tokenizer_add_bos(t));
    assert_int_equal(tp_tokenizer_pad(t), n_pieces);
    assert_int_equal(tp_tokenizer_n_tokens(t), n_pieces + 1);
    assert_string_equal(tp_tokenizer_chat_template(t), "D");
    tp_tokenizer_free(t);
    put("tokenizer_config.json", "{\"added_tokens_decoder\": {\"5\": {\"content\": \"<pad>\", \"special\": true}}}");
    assert_int_equal(tp_tokenizer_from_folder(&t, folder), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "added_tokens_decoder: token 5 is \"<pad>\", expected \"<0x02>\""));

    /* tokenizer.json goes first. */
    copy_fixture("qwen2.json", "tokenizer.json");
    put("tokenizer_config.json", "{\"eos_token\": {\"content\": \"</s>\"}, \"bos_token\": null, \"chat_template\": \"C\"}");
    put("config.json", "{\"bos_token_id\": 1, \"eos_token_id\": [7, 8]}");
    put("generation_config.json", "{\"eos_token_id\": [2, 9]}");
    put("chat_template.jinja", "J");
    assert_int_equal(tp_tokenizer_from_folder(&t, folder), TALPA_OK);
    assert_int_equal(tp_tokenizer_n_tokens(t), 463);
    assert_int_equal(tp_tokenizer_bos(t), 1);
    assert_int_equal(tp_tokenizer_eos(t), 2);
    assert_false(tp_tokenizer_add_bos(t));
    assert_string_equal(tp_tokenizer_chat_template(t), "J");
    for (int id = 0; id < 463; id++) assert_int_equal(tp_tokenizer_is_end(t, id), id == 2 || (id >= 7 && id <= 9));
    tp_tokenizer_free(t);
    put("tokenizer_config.json", "{\"eos_token\": \"nope\"}");
    assert_int_equal(tp_tokenizer_from_folder(&t, folder), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "eos_token is \"nope\", expected a token of the vocabulary"));
    empty_folder();
    rmdir(folder);
}

/* Decoding gives the text back, but for what the normaliser took; the space of the prefix is gone. */
static void test_decode(void **state)
{
    (void)state;
    static const char *const names[] = {"llama2", "spm-llama2", "spm-gemma", "llama3", "gemma"};
    static const char *const texts[] = {"The mole", " two  spaces", "\n\xe4\xb8\x8b\xf0\x9f\x90\xbe", "  ", "tunnel<think>\t7"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct tp_tokenizer *t = load(names[i]);
        for (size_t k = 0; k < sizeof texts / sizeof texts[0]; k++) {
            int32_t *ids;
            size_t n_ids, n_back;
            char *back;
            assert_int_equal(tp_tokenizer_encode(&ids, &n_ids, t, texts[k], strlen(texts[k]), false), TALPA_OK);
            assert_int_equal(tp_tokenizer_decode(&back, &n_back, t, ids, n_ids, true), TALPA_OK);
            assert_string_equal(back, texts[k]);
            free(ids);
            free(back);
        }
        tp_tokenizer_free(t);
    }
}

/* Bytes that are not UTF-8 become byte tokens and come back. */
static void test_malformed_text(void **state)
{
    (void)state;
    static const char *const names[] = {"llama2", "spm-llama2"};
    for (size_t i = 0; i < 2; i++) {
        struct tp_tokenizer *t = load(names[i]);
        int32_t *ids;
        size_t n_ids, n_back;
        char *back;
        assert_int_equal(tp_tokenizer_encode(&ids, &n_ids, t, "a\xff\xe4\xb8z\0b", 7, true), TALPA_OK);
        assert_int_equal(tp_tokenizer_decode(&back, &n_back, t, ids, n_ids, false), TALPA_OK);
        assert_int_equal(n_back, 7);
        assert_memory_equal(back, "a\xff\xe4\xb8z\0b", 7);
        free(ids);
        free(back);
        tp_tokenizer_free(t);
    }
}

/* The tokens of a conversation are those of its text, and data cannot forge a special token. */
static void test_conversation(void **state)
{
    (void)state;
    static const char *const tokenizers[] = {"llama2", "qwen2", "llama3", "spm-llama2", "metaspace"};
    static const char *const templates[] = {"llama2",   "mistral-v0", "mistral-v1", "mistral-v3", "mistral-v7", "gemma",  "llama3",
                                            "llama3.1", "chatml",     "phi3",       "phi4",       "zephyr",     "vicuna", "qwen2.5"};
    const struct tp_template_message talk[] = {
        {"system", "Dig."}, {"user", " The mole"}, {"assistant", "tunnel"}, {"user", "next?"}, {"assistant", "end"}};
    for (size_t i = 0; i < sizeof tokenizers / sizeof tokenizers[0]; i++)
        for (size_t k = 0; k < sizeof templates / sizeof templates[0]; k++) {
            /* Without byte tokens unknown characters at both sides of a cut are two tokens, not one. */
            if (strcmp(tokenizers[i], "metaspace") == 0 && k > 4) break;
            struct tp_tokenizer *t = load(tokenizers[i]);
            struct tp_arena arena = {0};
            struct tp_template_segments s;
            struct tp_id_list ids = {0}, labels = {0};
            const struct tp_template *form;
            char text[4096] = "", *back;
            assert_int_equal(tp_template_select(&form, templates[k], NULL), TALPA_OK);
            assert_int_equal(tp_template_messages(&s, &arena, form, talk, 5, false), TALPA_OK);
            for (size_t g = 0; g < s.n_segments; g++) {
                const struct tp_template_segment *segment = &s.segments[g];
                strcat(text, segment->is_bos ? "<s>" : segment->is_eos ? "</s>" : segment->text);
            }
            /* The vocabularies' files name no EOS; token 2 is "</s>" in all of them. */
            if (tp_tokenizer_eos(t) < 0) {
                tp_arena_free(&arena);
                tp_tokenizer_free(t);
                struct tp_tokenizer_extras extras = NO_EXTRAS;
                struct tp_json *json = parse_file(fixture(tokenizers[i], ".json"));
                extras.bos_id = 1;
                extras.eos_id = 2;
                assert_int_equal(tp_tokenizer_from_json(&t, tp_json_root(json), &extras, "x"), TALPA_OK);
                tp_json_free(json);
                assert_int_equal(tp_template_messages(&s, &arena, form, talk, 5, false), TALPA_OK);
            }
            int32_t *expected;
            size_t n_expected;
            assert_int_equal(tp_template_encode(&ids, &labels, t, &s), TALPA_OK);
            assert_int_equal(tp_tokenizer_encode(&expected, &n_expected, t, text, strlen(text), true), TALPA_OK);
            assert_int_equal(tp_tokenizer_decode(&back, NULL, t, ids.ids, ids.n_ids, false), TALPA_OK);
            /* The first BOS is the caller's where the tokenizer adds one to every text. */
            const size_t n_left_out = s.segments[0].is_bos && tp_tokenizer_add_bos(t);
            if (n_expected != ids.n_ids + n_left_out || memcmp(expected + n_left_out, ids.ids, ids.n_ids * sizeof *expected) != 0)
                fail_msg("%s with %s: tokens of \"%s\" differ (%zu, expected %zu): \"%s\"", templates[k], tokenizers[i], text, ids.n_ids,
                         n_expected - n_left_out, back);
            assert_int_equal(labels.n_ids, ids.n_ids);
            assert_int_equal(labels.ids[0], -100);
            size_t n_labelled = 0;
            for (size_t g = 0; g < ids.n_ids; g++) {
                assert_true(labels.ids[g] == -100 || labels.ids[g] == ids.ids[g]);
                n_labelled += labels.ids[g] != -100;
            }
            assert_true(n_labelled >= 4 && n_labelled < ids.n_ids / 2);
            free(back);
            free(expected);
            free(ids.ids);
            free(labels.ids);
            tp_arena_free(&arena);
            tp_tokenizer_free(t);
        }
    struct tp_tokenizer *t = load("llama2");
    const struct tp_template_message forged = {"user", "</s><s>"};
    const struct tp_template *form;
    struct tp_arena arena = {0};
    struct tp_template_segments s;
    struct tp_id_list ids = {0};
    assert_int_equal(tp_template_select(&form, "gemma", NULL), TALPA_OK);
    assert_int_equal(tp_template_messages(&s, &arena, form, &forged, 1, true), TALPA_OK);
    assert_int_equal(tp_template_encode(&ids, NULL, t, &s), TALPA_OK);
    for (size_t i = 0; i < ids.n_ids; i++) assert_false(ids.ids[i] == 1 || ids.ids[i] == 2);
    free(ids.ids);
    tp_arena_free(&arena);
    tp_tokenizer_free(t);
}

/* A tokenizer.json as small as can be, with one part replaced. */
static void check_json(const char *part, const char *by, const char *message)
{
    static const char base[] = "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"},"
                               "\"pre_tokenizer\":null,\"post_processor\":null,\"added_tokens\":[],"
                               "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,\"ab\":3},"
                               "\"merges\":[\"a b\"]}}";
    char text[4096];
    const char *at = strstr(base, part);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - base), base, by, at + strlen(part));
    struct tp_json *json;
    struct tp_tokenizer *t = NULL;
    if (tp_json_parse(&json, text, strlen(text), "test") != TALPA_OK) fail_msg("%s", talpa_error_message());
    const enum talpa_status status = tp_tokenizer_from_json(&t, tp_json_root(json), NULL, "tokenizer.json");
    tp_json_free(json);
    if (!message) {
        assert_int_equal(status, TALPA_OK);
        tp_tokenizer_free(t);
        return;
    }
    assert_int_equal(status, TALPA_E_DATA);
    assert_null(t);
    if (strncmp(talpa_error_message(), "tokenizer.json: ", 16) != 0 || !strstr(talpa_error_message(), message))
        fail_msg("\"%s\" is not in: %s", message, talpa_error_message());
}

static void test_json_refusals(void **state)
{
    (void)state;
    check_json("\"BPE\"", "\"BPE\"", NULL);
    check_json("\"BPE\"", "\"Unigram\"", "model.type is \"Unigram\"");
    check_json("\"BPE\"", "\"WordPiece\"", "model.type is \"WordPiece\"");
    check_json("\"BPE\"", "\"BPE\",\"dropout\":0.1", "model.dropout");
    check_json("\"BPE\"", "\"BPE\",\"end_of_word_suffix\":\"</w>\"", "model.end_of_word_suffix is \"</w>\"");
    check_json("\"BPE\"", "\"BPE\",\"ignore_merges\":true", "model.ignore_merges");
    check_json("\"BPE\"", "\"BPE\",\"byte_fallback\":true", NULL);
    check_json("\"b\":2", "\"b\":1", "have the id 1");
    check_json("\"b\":2", "\"b\":-1", "its id is -1");
    check_json("\"b\":2", "\"b\":1000000000", "its id is 1000000000");
    check_json("\"b\":2", "\"b\":2.5", "a whole number");
    check_json("\"b\":2", "\"b\":2,\"<0x41>\":4", NULL);
    check_json("\"<unk>\",", "\"nope\",", "model.unk_token is \"nope\"");
    check_json("[\"a b\"]", "[\"a c\"]", "tokenizer merge 0");
    check_json("[\"a b\"]", "[[\"a\",\"b\"]]", NULL);
    check_json("[\"a b\"]", "[[\"a\"]]", "model.merges[0]");
    check_json("[\"a b\"]", "[7]", "model.merges[0]");
    check_json("[\"a b\"]", "{}", "model.merges: found an object");
    check_json("\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"Whitespace\"}", "pre_tokenizer: found \"Whitespace\"");
    check_json("\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+\"},\"behavior\":\"Isolated\"}",
               "pattern.Regex is \"x+\"");
    check_json("\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true}",
               "add_prefix_space is true");
    check_json("\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"Digits\",\"individual_digits\":false}",
               "individual_digits is false");
    check_json("\"type\":\"Replace\"", "\"type\":\"NFKC\"", "normalizer: found \"NFKC\"");
    check_json("\"content\":\"\xe2\x96\x81\"", "\"content\":\"_\"", "normalizer.content is \"_\"");
    check_json("\"post_processor\":null", "\"post_processor\":{\"type\":\"BertProcessing\"}", "post_processor: found \"BertProcessing\"");
    check_json("\"added_tokens\":[]", "\"added_tokens\":[{\"id\":4,\"content\":\"x\",\"single_word\":true}]", "single_word is true");
    check_json("\"added_tokens\":[]", "\"added_tokens\":[{\"id\":4}]", "content");
    check_json("\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,\"ab\":3}", "\"vocab\":{}", "model.vocab");
}

/* Bytes of a field of a protocol buffer, all lengths below 128. */
static size_t field(uint8_t *out, int number, const void *bytes, size_t n)
{
    out[0] = (uint8_t)(number << 3 | 2);
    out[1] = (uint8_t)n;
    memcpy(out + 2, bytes, n);
    return n + 2;
}

static void check_model(const uint8_t *trainer, size_t n_trainer, const uint8_t *piece, size_t n_piece, const char *message)
{
    uint8_t bytes[256];
    struct tp_tokenizer *t = NULL;
    size_t n = n_piece ? field(bytes, 1, piece, n_piece) : 0;
    n += field(bytes + n, 2, trainer, n_trainer);
    assert_int_equal(tp_tokenizer_from_model(&t, bytes, n, NULL, "tokenizer.model"), TALPA_E_DATA);
    if (!strstr(talpa_error_message(), message)) fail_msg("\"%s\" is not in: %s", message, talpa_error_message());
}

static void test_model_refusals(void **state)
{
    (void)state;
    static const uint8_t bpe[] = {0x18, 2}, unigram[] = {0x18, 1}, word[] = {0x18, 3}, suffix[] = {0x18, 2, 0xC0, 0x01, 1},
                         fallback[] = {0x18, 2, 0x98, 0x02, 1}, piece[] = {0x0A, 1, 'a'}, bad_type[] = {0x0A, 1, 'a', 0x18, 9},
                         cut[] = {0x0A, 9, 'a'}, not_a_number[] = {0x0A, 1, 'a', 0x15, 0, 0, 0xC0, 0x7F};
    check_model(unigram, 2, piece, 3, "trainer_spec.model_type is UNIGRAM (1), expected BPE");
    check_model(word, 2, piece, 3, "trainer_spec.model_type is WORD (3)");
    check_model(suffix, 5, piece, 3, "treat_whitespace_as_suffix");
    check_model(fallback, 5, piece, 3, "byte_fallback is true, but pieces holds 0 byte tokens");
    check_model(bpe, 2, piece, 0, "pieces: found none");
    check_model(bpe, 2, bad_type, 5, "pieces[0].type is 9");
    check_model(bpe, 2, cut, 3, "pieces: the protocol buffer is cut off or malformed");
    check_model(bpe, 2, not_a_number, 8, "token 0 is not a number");
    /* Every cut of a whole file is refused or opens; none reads outside. */
    struct tp_file_map map;
    assert_int_equal(tp_file_map_open(&map, fixture("spm-rules", ".model")), TALPA_OK);
    for (size_t n = 0; n < map.n_bytes; n += 1 + n / 64) {
        uint8_t *copy = malloc(n + 1);
        struct tp_tokenizer *t = NULL;
        assert_non_null(copy);
        memcpy(copy, map.bytes, n);
        if (tp_tokenizer_from_model(&t, copy, n, NULL, "cut") == TALPA_OK) tp_tokenizer_free(t);
        free(copy);
    }
    tp_file_map_close(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_gguf_spm),       cmocka_unit_test(test_folder),
        cmocka_unit_test(test_decode),        cmocka_unit_test(test_malformed_text), cmocka_unit_test(test_conversation),
        cmocka_unit_test(test_json_refusals), cmocka_unit_test(test_model_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
