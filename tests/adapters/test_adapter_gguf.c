/* LoRA as GGUF files: written as llama.cpp reads them, read as its converter writes them, nothing wrong accepted. */
#include "adapter_test.h"
#include "adapters/adapter_gguf.h"
#include "io/gguf.h"
#include "io/gguf_write.h"

#define FILE_NAME "lora.gguf"

static void expect_same(const float *a, const float *b, const struct tp_adapter *adapter)
{
    assert_memory_equal(a, b, (size_t)adapter->bank_elements * sizeof *a);
}

static enum talpa_status export_to(const char *path, enum talpa_export_format format, enum talpa_dtype dtype,
                                   struct talpa_export_result *result)
{
    const struct talpa_export_options o = {.lora = folder, .format = format, .output = path, .dtype = dtype};
    return talpa_adapter_export(result, model, &o);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct talpa_adapter_config config = settings(TALPA_ROUTING_LORA);
    config.modules = 127;
    struct talpa_export_result result;
    float *bank, *back;
    struct tp_adapter *adapter = save(&bank, &config), *loaded;
    char path[256];
    snprintf(path, sizeof path, "%s/" FILE_NAME, folder);
    if (export_to(path, TALPA_EXPORT_GGUF, TALPA_F32, &result) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_true(result.n_files == 1 && result.n_parameters == adapter->n_trainable);
    n_warnings = 0;
    if (tp_adapter_load(&loaded, &back, path, model, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_int_equal(n_warnings, 0); /* the base is known */
    assert_true(loaded->config.rank == 2 && loaded->config.alpha == 16.0 && loaded->config.modules == 127);
    expect_same(bank, back, adapter);
    tp_adapter_free(loaded);
    free(back);
    /* half precision: every value rounded once */
    assert_int_equal(export_to(path, TALPA_EXPORT_GGUF, TALPA_F16, &result), TALPA_OK);
    assert_int_equal(tp_adapter_load(&loaded, &back, path, model, false), TALPA_OK);
    for (int64_t i = 0; i < adapter->bank_elements; i++) assert_true(back[i] == tp_f16_to_f32(tp_f32_to_f16(bank[i])));
    tp_adapter_free(loaded);
    free(back);
    assert_int_equal(export_to(path, TALPA_EXPORT_GGUF, TALPA_Q8_0, &result), TALPA_E_ARGUMENT);
    tp_adapter_free(adapter);
    free(bank);
}

/* The file itself, by the published facts: keys, names, shapes, the order of q's and k's rows. */
static void test_contents(void **state)
{
    (void)state;
    const struct talpa_adapter_config config = settings(TALPA_ROUTING_LORA); /* q, k, down; rank 2 */
    struct talpa_export_result result;
    struct tp_gguf *gguf;
    struct tp_gguf_tensor t;
    const char *text;
    double alpha;
    float *bank;
    struct tp_adapter *adapter = save(&bank, &config);
    assert_int_equal(export_to(path_of(FILE_NAME), TALPA_EXPORT_GGUF, TALPA_F32, &result), TALPA_OK);
    assert_int_equal(tp_gguf_open(&gguf, path_of(FILE_NAME)), TALPA_OK);
    assert_int_equal(tp_gguf_get_string(&text, NULL, gguf, "general.type"), TALPA_OK);
    assert_string_equal(text, "adapter");
    assert_int_equal(tp_gguf_get_string(&text, NULL, gguf, "adapter.type"), TALPA_OK);
    assert_string_equal(text, "lora");
    assert_int_equal(tp_gguf_get_string(&text, NULL, gguf, "general.architecture"), TALPA_OK);
    assert_string_equal(text, "llama");
    assert_int_equal(tp_gguf_get_float(&alpha, gguf, "adapter.lora.alpha"), TALPA_OK);
    assert_true(alpha == 16.0);
    assert_int_equal(tp_gguf_n_tensors(gguf), 2 * 3 * 2);
    assert_int_equal(tp_gguf_tensor_get(&t, gguf, "blk.1.ffn_down.weight.lora_a"), TALPA_OK);
    assert_true(t.shape.rank == 2 && t.shape.dim[0] == 2 && t.shape.dim[1] == 128);
    assert_int_equal(tp_gguf_tensor_get(&t, gguf, "blk.1.ffn_down.weight.lora_b"), TALPA_OK);
    assert_true(t.shape.rank == 2 && t.shape.dim[0] == 64 && t.shape.dim[1] == 2);
    /* k has 2 heads of width 16: row 16 + 3 of the saved matrix is pair 3, first half, of head 1: row 16 + 6 of the file */
    float values[32 * 2], file[32 * 2];
    tp_adapter_get(values, adapter, bank, tp_adapter_find(adapter, "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"));
    assert_int_equal(tp_gguf_tensor_get(&t, gguf, "blk.0.attn_k.weight.lora_b"), TALPA_OK);
    assert_true(t.shape.dim[0] == 32 && t.shape.dim[1] == 2 && t.n_bytes == sizeof file);
    memcpy(file, t.data, sizeof file);
    assert_true(file[(16 + 6) * 2] == values[(16 + 3) * 2] && file[(16 + 6) * 2 + 1] == values[(16 + 3) * 2 + 1]);
    assert_true(file[(16 + 7) * 2] == values[(16 + 8 + 3) * 2]);
    /* lora_a is not permuted */
    float a[2 * 64];
    tp_adapter_get(a, adapter, bank, tp_adapter_find(adapter, "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"));
    assert_int_equal(tp_gguf_tensor_get(&t, gguf, "blk.0.attn_k.weight.lora_a"), TALPA_OK);
    assert_memory_equal(t.data, a, sizeof a);
    tp_gguf_close(gguf);
    tp_adapter_free(adapter);
    free(bank);
}

/* ---- files made by hand ---- */

static const char *const names[] = {"blk.0.attn_v.weight.lora_a", "blk.0.attn_v.weight.lora_b", "blk.1.attn_v.weight.lora_a",
                                    "blk.1.attn_v.weight.lora_b"};

/* What differs from a good file. */
struct flaw {
    const char *type, *adapter_type, *architecture, *digest, *drop, *rename, *extra, *key;
    double alpha;
    int64_t b_rows;
    float value;
    const char *message;
};

static void make(const struct flaw *f)
{
    static float values[64 * 4];
    struct tp_gguf_writer *w;
    for (int i = 0; i < 64 * 4; i++) values[i] = 0.25f;
    values[5] = f->value != 0.0f ? f->value : 0.25f;
    clean();
    assert_int_equal(tp_gguf_write_create(&w), TALPA_OK);
    tp_gguf_write_string(w, "general.type", f->type ? f->type : "adapter");
    tp_gguf_write_string(w, "general.architecture", f->architecture ? f->architecture : "llama");
    tp_gguf_write_string(w, "adapter.type", f->adapter_type ? f->adapter_type : "lora");
    if (f->alpha != -1.0) tp_gguf_write_f32(w, "adapter.lora.alpha", f->alpha != 0.0 ? (float)f->alpha : 8.0f);
    if (f->digest) tp_gguf_write_string(w, "talpa.base_digest", f->digest);
    if (f->key) tp_gguf_write_u32(w, f->key, 1);
    for (int i = 0; i < 4; i++) {
        const struct talpa_shape shape = {2, {i % 2 ? (f->b_rows ? f->b_rows : 32) : 4, i % 2 ? 4 : 64}};
        if (f->drop && !strcmp(f->drop, names[i])) continue;
        tp_gguf_write_tensor(w, i == 3 && f->rename ? f->rename : names[i], TALPA_F32, &shape, values);
    }
    const struct talpa_shape small = {1, {64}};
    if (f->extra) tp_gguf_write_tensor(w, f->extra, TALPA_F32, &small, values);
    assert_int_equal(tp_gguf_write_save(w, path_of(FILE_NAME)), TALPA_OK);
    tp_gguf_write_free(w);
}

static enum talpa_status load_file(struct talpa_adapter_config *config, bool allow_other_base)
{
    struct tp_adapter *adapter = NULL;
    float *bank = NULL;
    char path[256];
    snprintf(path, sizeof path, "%s", path_of(FILE_NAME));
    const enum talpa_status status = tp_adapter_load(&adapter, &bank, path, model, allow_other_base);
    if (status == TALPA_OK)
        *config = adapter->config;
    else
        assert_true(!adapter && !bank);
    tp_adapter_free(adapter);
    free(bank);
    return status;
}

static void test_settings(void **state)
{
    (void)state;
    struct talpa_adapter_config config = {0};
    char *lines = NULL;
    make(&(struct flaw){0});
    n_warnings = 0;
    if (load_file(&config, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_int_equal(n_warnings, 1); /* the file does not say which base */
    assert_true(config.rank == 4 && config.alpha == 8.0 && config.modules == TALPA_MODULE_V && config.routing == TALPA_ROUTING_LORA);
    /* no alpha: llama.cpp then scales by 1 */
    make(&(struct flaw){.alpha = -1.0});
    assert_int_equal(load_file(&config, false), TALPA_OK);
    assert_true(config.alpha == 4.0);
    make(&(struct flaw){0});
    assert_int_equal(talpa_adapter_inspect(&config, &lines, path_of(FILE_NAME)), TALPA_OK);
    assert_non_null(strstr(lines, "2 x self_attn.v_proj.lora_B [32, 4]"));
    free(lines);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct flaw flaws[] = {
        {.type = "model", .message = "general.type: found 'model', expected adapter"},
        {.adapter_type = "control_vector", .message = "adapter.type: found 'control_vector'"},
        {.adapter_type = "lora_router", .message = "adapter folder"},
        {.architecture = "qwen2", .message = "general.architecture: found 'qwen2', expected llama"},
        {.alpha = -2.0, .message = "adapter.lora.alpha"},
        {.key = "adapter.alora.invocation_tokens", .message = "alora"},
        {.digest = "00000000000000ab", .message = "--allow-other-base"},
        {.digest = "xyz", .message = "base_digest"},
        {.drop = "blk.0.attn_v.weight.lora_b", .message = "self_attn.v_proj.lora_B.weight' is missing: found 1 of 2"},
        {.drop = "blk.1.attn_v.weight.lora_a", .message = "is missing: found 1 of 2"},
        {.rename = "blk.0.attn_v.weight.lora_x", .message = "lora_x"},
        {.rename = "blk.2.attn_v.weight.lora_b", .message = "blk.2.attn_v.weight.lora_b' is unexpected"},
        {.rename = "blk.01.attn_v.weight.lora_b", .message = "unexpected"},
        {.rename = "blk.1.attn_w.weight.lora_b", .message = "unexpected"},
        {.extra = "blk.0.attn_norm.weight", .message = "attn_norm.weight' is unexpected"},
        {.extra = "token_embd.weight.lora_a", .message = "unexpected"},
        {.b_rows = 64, .message = "shape [64, 4], expected [32, 4]"},
        {.value = INFINITY, .message = "element 5 is inf"},
    };
    struct talpa_adapter_config config = {0};
    for (size_t i = 0; i < sizeof flaws / sizeof *flaws; i++) {
        make(&flaws[i]);
        const enum talpa_status status = load_file(&config, false);
        if (status != TALPA_E_DATA) fail_msg("%s: found %d %s", flaws[i].message, (int)status, talpa_error_message());
        if (!strstr(talpa_error_message(), flaws[i].message)) fail_msg("'%s' is missing in: %s", flaws[i].message, talpa_error_message());
        if (!strstr(talpa_error_message(), FILE_NAME)) fail_msg("no file in: %s", talpa_error_message());
    }
    make(&(struct flaw){.digest = "00000000000000ab"});
    assert_int_equal(load_file(&config, true), TALPA_OK);
    clean();
    assert_int_equal(load_file(&config, false), TALPA_E_NO_INPUT);
    write_text(FILE_NAME, "GGUF");
    assert_int_equal(load_file(&config, false), TALPA_E_DATA);
}

/* ---- PEFT and mixtures ---- */

static void test_export_peft(void **state)
{
    (void)state;
    struct talpa_adapter_config config = settings(TALPA_ROUTING_LORA);
    float *bank, *back;
    struct tp_adapter *adapter = save(&bank, &config), *loaded;
    char path[256];
    size_t n;
    snprintf(path, sizeof path, "%s/out", folder);
    const struct talpa_export_options o = {.lora = folder, .format = TALPA_EXPORT_PEFT, .output = path, .base_name = "owner/base"};
    struct talpa_export_result result;
    if (talpa_adapter_export(&result, model, &o) != TALPA_OK) fail_msg("%s", talpa_error_message());
    char *text = read_bytes("out/" CONFIG, &n);
    assert_non_null(strstr(text, "\"base_model_name_or_path\": \"owner/base\""));
    free(text);
    assert_int_equal(tp_adapter_load(&loaded, &back, path, model, false), TALPA_OK);
    expect_same(bank, back, adapter);
    tp_adapter_free(loaded);
    free(back);
    static const char *const files[] = {"out/" CONFIG, "out/" ABOUT, "out/" TENSORS};
    for (int i = 0; i < 3; i++) assert_int_equal(unlink(path_of(files[i])), 0);
    rmdir(path);
    tp_adapter_free(adapter);
    free(bank);
    save_default(TALPA_ROUTING_ADAMOLE);
    assert_int_equal(talpa_adapter_export(&result, model, &o), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "mixture"));
    assert_true(access(path, F_OK) != 0);
}

static void test_export_mixture(void **state)
{
    (void)state;
    static const char *const keys[TALPA_N_ROUTINGS] = {[TALPA_ROUTING_TOPK] = "adapter.lora_router.top_k",
                                                       [TALPA_ROUTING_THRESHOLD] = "adapter.lora_router.threshold",
                                                       [TALPA_ROUTING_ADAMOLE] = "adapter.lora_router.max_threshold"};
    for (int routing = TALPA_ROUTING_TOPK; routing <= TALPA_ROUTING_ADAMOLE; routing++) {
        const struct talpa_adapter_config config = settings((enum talpa_routing)routing);
        struct talpa_export_result result;
        float *bank, *back, expected[64 * 2], found[64 * 2];
        struct tp_adapter *adapter = save(&bank, &config), *loaded;
        char path[256], file[300];
        snprintf(path, sizeof path, "%s/x.gguf", folder);
        assert_int_equal(export_to(path, TALPA_EXPORT_GGUF, TALPA_F32, &result), TALPA_E_ARGUMENT); /* a mixture is no single file */
        snprintf(path, sizeof path, "%s/set", folder);
        if (export_to(path, TALPA_EXPORT_GGUF, TALPA_F32, &result) != TALPA_OK) fail_msg("%s", talpa_error_message());
        assert_int_equal(result.n_files, 4);
        for (int e = 0; e < 3; e++) { /* every expert is a LoRA by itself */
            char name[128];
            snprintf(file, sizeof file, "%s/expert-%d.gguf", path, e);
            if (tp_adapter_load(&loaded, &back, file, model, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
            snprintf(name, sizeof name, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.%d.weight", e);
            tp_adapter_get(expected, adapter, bank, tp_adapter_find(adapter, name));
            tp_adapter_get(found, loaded, back, tp_adapter_find(loaded, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"));
            assert_memory_equal(found, expected, sizeof expected);
            assert_true(loaded->config.alpha / loaded->config.rank == 8.0);
            tp_adapter_free(loaded);
            free(back);
            unlink(file);
        }
        snprintf(file, sizeof file, "%s/router.gguf", path);
        struct tp_gguf *gguf;
        struct tp_gguf_tensor t;
        assert_int_equal(tp_gguf_open(&gguf, file), TALPA_OK);
        assert_true(tp_gguf_has(gguf, keys[routing]));
        assert_int_equal(tp_gguf_tensor_get(&t, gguf, "blk.0.attn_q.weight.router"), TALPA_OK);
        assert_true(t.shape.dim[0] == 3 && t.shape.dim[1] == 64);
        assert_int_equal(tp_gguf_n_tensors(gguf), 6 * (routing == TALPA_ROUTING_ADAMOLE ? 3 : 1));
        tp_gguf_close(gguf);
        assert_int_equal(tp_adapter_load(&loaded, &back, file, model, false), TALPA_E_DATA);
        assert_non_null(strstr(talpa_error_message(), "lora_router"));
        unlink(file);
        rmdir(path);
        tp_adapter_free(adapter);
        free(bank);
    }
}

static void test_unwritable(void **state)
{
    (void)state;
    struct talpa_export_result result;
    save_default(TALPA_ROUTING_LORA);
    assert_int_equal(export_to("test_adapter_gguf.absent/x.gguf", TALPA_EXPORT_GGUF, TALPA_F32, &result), TALPA_E_CREATE);
    struct rlimit limit, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = 1000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const enum talpa_status status = export_to(path_of(FILE_NAME), TALPA_EXPORT_GGUF, TALPA_F32, &result);
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, TALPA_E_IO);
    assert_int_equal(n_files(), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_contents),    cmocka_unit_test(test_settings),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_export_peft), cmocka_unit_test(test_export_mixture),
        cmocka_unit_test(test_unwritable),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
