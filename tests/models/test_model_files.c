/* Models that are refused: files of the fixtures with one thing changed, and the program on each architecture. */
#include "cli/cli_test.h"

#include "io/gguf_write.h"
#include "talpa/model.h"

static const char *const models[] = {"llama", "llama3", "mistral", "qwen2", "qwen3", "gemma"};
enum { N_MODELS = sizeof models / sizeof *models, FILE_MAX = 1 << 17 };

static size_t read_fixture(char *bytes, const char *model, const char *file)
{
    char name[512];
    snprintf(name, sizeof name, "%s/tests/data/models/%s/%s", TALPA_SOURCE_DIR, model, file);
    FILE *in = fopen(name, "rb");
    if (!in) return 0;
    const size_t n = fread(bytes, 1, FILE_MAX - 1, in);
    bytes[n] = '\0';
    fclose(in);
    return n;
}

static void write_bytes(const char *name, const char *bytes, size_t n)
{
    FILE *file = fopen(path(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

/* Copies a fixture's folder to @model with `from` replaced by `to` (which may be longer) in the file `changed`. */
static void copy_folder(const char *model, const char *changed, const char *from, const char *to)
{
    static const char *const files[] = {"config.json",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "model-00001-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors",
                                        "tokenizer.json",
                                        "tokenizer_config.json"};
    static char bytes[FILE_MAX], edited[FILE_MAX + 4096];
    remove_tree(path("model"));
    assert_int_equal(mkdir(path("model"), 0700), 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char name[128];
        size_t n = read_fixture(bytes, model, files[i]);
        if (!n) continue;
        snprintf(name, sizeof name, "model/%s", files[i]);
        if (strcmp(files[i], changed)) {
            write_bytes(name, bytes, n);
            continue;
        }
        const size_t n_from = strlen(from), n_to = strlen(to);
        char *at = NULL;
        for (size_t k = 0; k + n_from <= n && !at; k++)
            if (!memcmp(bytes + k, from, n_from)) at = bytes + k;
        if (!at) fail_msg("%s: no '%s'", changed, from);
        const size_t before = (size_t)(at - bytes);
        memcpy(edited, bytes, before);
        memcpy(edited + before, to, n_to);
        memcpy(edited + before + n_to, at + n_from, n - before - n_from);
        write_bytes(name, edited, n - n_from + n_to);
    }
}

static void refused(const char *name, enum talpa_status expected, const char *message)
{
    struct talpa_model *model;
    const enum talpa_status status = talpa_model_open(&model, path(name));
    if (status == TALPA_OK) fail_msg("%s was opened, expected '%s'", name, message);
    if (status != expected) fail_msg("status %d, expected %d: %s", status, expected, talpa_error_message());
    if (!strstr(talpa_error_message(), message)) fail_msg("'%s' is missing in: %s", message, talpa_error_message());
    if (!strstr(talpa_error_message(), folder)) fail_msg("the file's name is missing in: %s", talpa_error_message());
}

static void test_folders(void **state)
{
    (void)state;
    static const struct {
        const char *model, *file, *from, *to, *message;
        enum talpa_status status;
    } cases[] = {
        {"llama", "config.json", "LlamaForCausalLM", "OlmoForCausalLM", "OlmoForCausalLM", TALPA_E_DATA},
        {"llama", "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "no tensor 'model.layers.2.", TALPA_E_DATA},
        {"llama", "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "would be ignored", TALPA_E_DATA},
        {"llama", "config.json", "\"intermediate_size\": 48", "\"intermediate_size\": 40", "[48, 32] (2 dimensions), expected [40, 32]",
         TALPA_E_DATA},
        {"llama", "config.json", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true", "lm_head.weight differs", TALPA_E_DATA},
        {"llama", "config.json", "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", "yarn", TALPA_E_DATA},
        {"llama", "config.json", "{", "{{", "config.json", TALPA_E_DATA},
        {"qwen2", "config.json", "Qwen2ForCausalLM", "LlamaForCausalLM", "self_attn.k_proj.bias' is not part", TALPA_E_DATA},
        {"llama", "config.json", "LlamaForCausalLM", "Qwen3ForCausalLM", "no tensor 'model.layers.0.self_attn.q_norm.weight'",
         TALPA_E_DATA},
        {"llama", "model.safetensors", "\"F16\"", "\"I16\"", "I16", TALPA_E_DATA},
        {"mistral", "model.safetensors.index.json", "model-00002-of-00003", "model-00009-of-00003", "model-00009", TALPA_E_NO_INPUT},
        {"mistral", "model.safetensors.index.json", "model-00002-of-00003", "../model-00002-of-00003", "same folder", TALPA_E_DATA},
        {"mistral", "model.safetensors.index.json", "model-00002-of-00003", "model-00003-of-00003", "does not hold it", TALPA_E_DATA},
        {"mistral", "model.safetensors.index.json", "\"weight_map\"", "\"weight_list\"", "weight_map", TALPA_E_DATA},
        {"gemma", "tokenizer.json", "{", "", "tokenizer.json", TALPA_E_DATA},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        copy_folder(cases[i].model, cases[i].file, cases[i].from, cases[i].to);
        refused("model", cases[i].status, cases[i].message);
    }
    copy_folder("llama", "", "", "");
    struct talpa_model *model;
    if (talpa_model_open(&model, path("model")) != TALPA_OK) fail_msg("%s", talpa_error_message());
    talpa_model_close(model);
    unlink(path("model/model.safetensors"));
    refused("model", TALPA_E_NO_INPUT, "model.safetensors.index.json");
    unlink(path("model/config.json"));
    refused("model", TALPA_E_NO_INPUT, "config.json");
}

/* Replaces the bytes of `from` by as many bytes of `to` everywhere in a fixture's GGUF file. */
static void change_gguf(const char *model, const char *from, const char *to, size_t n_bytes)
{
    static char bytes[FILE_MAX];
    const size_t n = read_fixture(bytes, model, "model.gguf");
    bool found = false;
    for (size_t k = 0; k + n_bytes <= n; k++) {
        if (memcmp(bytes + k, from, n_bytes)) continue;
        memcpy(bytes + k, to, n_bytes);
        found = true;
    }
    assert_true(found);
    write_bytes("changed.gguf", bytes, n);
}

static void test_gguf(void **state)
{
    (void)state;
    static const char layers2[] = "block_count\4\0\0\0\2", layers1[] = "block_count\4\0\0\0\1", layers3[] = "block_count\4\0\0\0\3";
    struct tp_gguf_writer *writer;
    assert_int_equal(tp_gguf_write_create(&writer), TALPA_OK);
    tp_gguf_write_string(writer, "general.architecture", "gemma2");
    assert_int_equal(tp_gguf_write_save(writer, path("other.gguf")), TALPA_OK);
    tp_gguf_write_free(writer);
    refused("other.gguf", TALPA_E_DATA, "'gemma2', supported are llama, qwen2, qwen3, gemma");
    change_gguf("qwen3", layers2, layers1, sizeof layers2 - 1);
    refused("changed.gguf", TALPA_E_DATA, "would be ignored");
    change_gguf("qwen3", layers2, layers3, sizeof layers2 - 1);
    refused("changed.gguf", TALPA_E_DATA, "blk.2.attn_norm.weight");
    change_gguf("qwen3", "blk.1.attn_q_norm.weight", "blk.1.attn_x_norm.weight", 24);
    refused("changed.gguf", TALPA_E_DATA, "blk.1.attn_q_norm.weight");
    change_gguf("qwen3", "linear", "yarn!!", 6);
    refused("changed.gguf", TALPA_E_DATA, "qwen3.rope.scaling.type is 'yarn!!'");
    change_gguf("gemma", "gemma.attention.value_length", "gemma.attention.value_lengtx", 28);
    refused("changed.gguf", TALPA_E_DATA, "gemma.attention.value_lengtx is not understood");
    change_gguf("llama3", "rope_freqs.weight", "rope_frexs.weight", 17);
    refused("changed.gguf", TALPA_E_DATA, "'rope_frexs.weight' is not part");
    change_gguf("llama", "llama.feed_forward_length\4\0\0\0\x30", "llama.feed_forward_length\4\0\0\0\x28", 30);
    refused("changed.gguf", TALPA_E_DATA, "expected [40, 32]");
    refused("nothing.gguf", TALPA_E_NO_INPUT, "nothing.gguf");
}

/* One training step and scores of the result, from folder and file. */
static void test_program(void **state)
{
    (void)state;
    need_device();
    write_text("rows.jsonl", "{\"prompt\": \"the mole \", \"completion\": \"digs\"}\n{\"prompt\": \"a \", \"completion\": \"tunnel\"}\n");
    for (int m = 0; m < N_MODELS; m++) {
        for (int is_gguf = 0; is_gguf < 2; is_gguf++) {
            char line[1024], text[2048], name[64];
            snprintf(
                line, sizeof line,
                "train -m %s/tests/data/models/%s%s --data @rows.jsonl --output-dir @%s%d --max-steps 1 --max-seq-length 16 --batch-size 2 "
                "--lora-modules all -q",
                TALPA_SOURCE_DIR, models[m], is_gguf ? "/model.gguf" : "", models[m], is_gguf);
            expect(line, 0, NULL);
            snprintf(name, sizeof name, "%s%d/adapter_config.json", models[m], is_gguf);
            if (!read_text(text, sizeof text, name)) fail_msg("%s: no adapter was saved", models[m]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_folders), cmocka_unit_test(test_gguf), cmocka_unit_test(test_program)};
    return cmocka_run_group_tests_name("model files", tests, set_up, tear_down);
}
