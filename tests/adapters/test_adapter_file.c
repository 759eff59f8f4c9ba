/* Adapter folders: what is written, what is read back, and that nothing wrong is accepted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapters/adapter.h"
#include "base/dtype.h"
#include "base/json.h"
#include "base/status.h"
#include "io/safetensors.h"
#include "talpa/log.h"

#define CONFIG "adapter_config.json"
#define ABOUT "talpa_adapter.json"
#define TENSORS "adapter_model.safetensors"

enum { MAX_TENSORS = 512 };

static struct talpa_model *model;
static char folder[64];
static int n_warnings;

static void count_line(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    (void)line;
    n_warnings += level == TALPA_LOG_WARN;
}

static int set_up(void **state)
{
    (void)state;
    talpa_log_set(count_line, NULL);
    /* memory rather than a disk, if there is such a folder: every file is synced */
    snprintf(folder, sizeof folder, "%stest_adapter_file.XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm/" : "");
    return mkdtemp(folder) && talpa_model_open(&model, "random:tiny") == TALPA_OK ? 0 : -1;
}

static void clean(void)
{
    DIR *d = opendir(folder);
    char path[512];
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (unlink(path)) rmdir(path);
    }
    if (d) closedir(d);
}

static int tear_down(void **state)
{
    (void)state;
    clean();
    rmdir(folder);
    talpa_model_close(model);
    return 0;
}

/* ---- files as bytes ---- */

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static char *read_bytes(const char *name, size_t *n_bytes)
{
    FILE *in = fopen(path_of(name), "rb");
    assert_non_null(in);
    fseek(in, 0, SEEK_END);
    *n_bytes = (size_t)ftell(in);
    rewind(in);
    char *bytes = calloc(1, *n_bytes + 1);
    assert_int_equal(fread(bytes, 1, *n_bytes, in), *n_bytes);
    fclose(in);
    return bytes;
}

static void write_bytes(const char *name, const char *bytes, size_t n_bytes)
{
    FILE *out = fopen(path_of(name), "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, n_bytes, out), n_bytes);
    fclose(out);
}

static void write_text(const char *name, const char *text) { write_bytes(name, text, strlen(text)); }

static int n_files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Replaces the only occurrence of a text in a file. */
static void edit(const char *name, const char *from, const char *to)
{
    size_t n_bytes;
    char *bytes = read_bytes(name, &n_bytes), *at = strstr(bytes, from);
    if (!at || strstr(at + 1, from)) fail_msg("'%s' is not once in %s: %s", from, name, bytes);
    char *edited = malloc(n_bytes + strlen(to) + 1);
    const size_t before = (size_t)(at - bytes);
    memcpy(edited, bytes, before);
    strcpy(edited + before, to);
    strcat(edited, at + strlen(from));
    write_text(name, edited);
    free(edited);
    free(bytes);
}

/* ---- adapters ---- */

static struct talpa_adapter_config settings(enum talpa_routing routing)
{
    return (struct talpa_adapter_config){.routing = routing,
                                         .rank = 2,
                                         .n_experts = routing == TALPA_ROUTING_LORA ? 1 : 3,
                                         .top_k = 2,
                                         .alpha = 16.0,
                                         .dropout = 0.05,
                                         .modules = TALPA_MODULE_Q | TALPA_MODULE_K | TALPA_MODULE_DOWN};
}

/* Lays out an adapter, fills it with distinct values and saves it in the emptied folder. */
static struct tp_adapter *save(float **bank, const struct talpa_adapter_config *config)
{
    struct tp_adapter *adapter;
    clean();
    assert_int_equal(tp_adapter_create(&adapter, model, config), TALPA_OK);
    *bank = calloc((size_t)adapter->bank_elements, sizeof **bank);
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        for (int k = 0; k < t->rows * t->columns; k++) (*bank)[t->offset + k] = (float)(i * 1000 + k) / 1024.0f - 3.0f;
    }
    if (tp_adapter_save(adapter, *bank, folder, model) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return adapter;
}

static void save_default(enum talpa_routing routing)
{
    float *bank;
    const struct talpa_adapter_config config = settings(routing);
    tp_adapter_free(save(&bank, &config));
    free(bank);
}

static enum talpa_status load(struct talpa_adapter_config *config, bool allow_other_base)
{
    struct tp_adapter *adapter = NULL;
    float *bank = NULL;
    const enum talpa_status status = tp_adapter_load(&adapter, &bank, folder, model, allow_other_base);
    if (status == TALPA_OK && config) *config = adapter->config;
    if (status == TALPA_OK)
        assert_true(adapter && bank);
    else
        assert_true(!adapter && !bank);
    tp_adapter_free(adapter);
    free(bank);
    return status;
}

static void expect_loads(void)
{
    if (load(NULL, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
}

static void expect_refused(const char *part)
{
    const enum talpa_status status = load(NULL, false);
    if (status != TALPA_E_DATA) fail_msg("expected TALPA_E_DATA for '%s', found %d %s", part, (int)status, talpa_error_message());
    if (!strstr(talpa_error_message(), part)) fail_msg("expected '%s' in: %s", part, talpa_error_message());
    if (!strstr(talpa_error_message(), folder)) fail_msg("no folder in: %s", talpa_error_message());
}

/* ---- round trips ---- */

static void test_round_trip(void **state)
{
    (void)state;
    for (int routing = 0; routing < TALPA_N_ROUTINGS; routing++) {
        struct talpa_adapter_config config = settings((enum talpa_routing)routing);
        struct tp_adapter *back;
        float *bank, *bank_back;
        n_warnings = 0;
        struct tp_adapter *adapter = save(&bank, &config);
        assert_int_equal(n_files(), 3);
        if (tp_adapter_load(&back, &bank_back, folder, model, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
        assert_int_equal(n_warnings, 0);
        assert_int_equal(back->config.routing, routing);
        assert_int_equal(back->config.rank, 2);
        assert_int_equal(back->config.n_experts, config.n_experts);
        assert_int_equal(back->config.modules, config.modules);
        assert_true(back->config.alpha == 16.0 && back->config.dropout == 0.05);
        if (routing == TALPA_ROUTING_TOPK) assert_int_equal(back->config.top_k, 2);
        if (routing == TALPA_ROUTING_THRESHOLD) assert_true((float)back->config.threshold == (float)(1.0 / 3));
        assert_int_equal(back->bank_elements, adapter->bank_elements);
        assert_memory_equal(bank, bank_back, (size_t)adapter->bank_elements * sizeof *bank);
        tp_adapter_free(adapter);
        tp_adapter_free(back);
        free(bank);
        free(bank_back);
    }
}

/* A bound that stands in the file as a decimal number is the same bound in the kernels. */
static void test_thresholds(void **state)
{
    (void)state;
    struct talpa_adapter_config config = settings(TALPA_ROUTING_ADAMOLE), found;
    float *bank;
    for (int n_experts = 1; n_experts <= 256; n_experts += n_experts < 12 ? 1 : 61) {
        for (int given = 0; given < 2; given++) {
            config.n_experts = n_experts;
            config.modules = TALPA_MODULE_K;
            config.routing = TALPA_ROUTING_THRESHOLD;
            config.threshold = config.max_threshold = given ? 0.7 / n_experts : 0.0;
            tp_adapter_free(save(&bank, &config));
            free(bank);
            assert_int_equal(load(&found, false), TALPA_OK);
            assert_true((float)found.threshold == (float)((given ? 0.7 : 1.0) / n_experts));
            config.routing = TALPA_ROUTING_ADAMOLE;
            tp_adapter_free(save(&bank, &config));
            free(bank);
            assert_int_equal(load(&found, false), TALPA_OK);
            assert_true((float)found.max_threshold == (float)config.max_threshold);
        }
    }
}

/* The files byte for byte where other programs read them. */
static void test_config_text(void **state)
{
    (void)state;
    static const char *const common = "  \"auto_mapping\": null,\n  \"base_model_name_or_path\": \"random:tiny\",\n  \"bias\": \"none\",\n";
    static const char *const end =
        "  \"revision\": null,\n  \"target_modules\": [\n    \"q_proj\",\n    \"k_proj\",\n    \"down_proj\"\n  ],\n";
    char expected[2048];
    size_t n;
    char *text;
    for (int routing = TALPA_ROUTING_TOPK; routing <= TALPA_ROUTING_ADAMOLE; routing++) {
        const bool is_adamole = routing == TALPA_ROUTING_ADAMOLE;
        save_default((enum talpa_routing)routing);
        snprintf(expected, sizeof expected,
                 "{\n%s  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n  \"lora_alpha\": 16,\n  \"lora_dropout\": 0.05,\n  "
                 "\"lora_rank\": 2,\n%s"
                 "  \"num_experts\": 3,\n  \"peft_type\": \"%s\",\n%s  \"task_type\": \"CAUSAL_LM\"%s\n}",
                 common, is_adamole ? "  \"max_threshold\": null,\n" : "", is_adamole ? "ADAMOLE" : "MOLE", end,
                 is_adamole                      ? ""
                 : routing == TALPA_ROUTING_TOPK ? ",\n  \"threshold\": null,\n  \"top_k\": 2"
                                                 : ",\n  \"threshold\": 0.333333333,\n  \"top_k\": null");
        text = read_bytes(CONFIG, &n);
        assert_string_equal(text, expected);
        free(text);
    }
    save_default(TALPA_ROUTING_LORA);
    snprintf(expected, sizeof expected,
             "{\n  \"alpha_pattern\": {},\n%s  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n"
             "  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n  \"loftq_config\": {},\n  \"lora_alpha\": 16,\n  "
             "\"lora_dropout\": 0.05,\n"
             "  \"megatron_config\": null,\n  \"megatron_core\": \"megatron.core\",\n  \"modules_to_save\": null,\n  \"peft_type\": "
             "\"LORA\",\n  \"r\": 2,\n"
             "  \"rank_pattern\": {},\n%s  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": false,\n  \"use_rslora\": false\n}",
             common, end);
    text = read_bytes(CONFIG, &n);
    assert_string_equal(text, expected);
    free(text);
    text = read_bytes(TENSORS, &n);
    assert_non_null(strstr(text + 8, "\"__metadata__\":{\"format\":\"pt\"}"));
    free(text);
}

/* ---- configurations ---- */

static void test_config_refused(void **state)
{
    (void)state;
    static const struct {
        enum talpa_routing routing;
        const char *from, *to, *part;
    } cases[] = {
        {TALPA_ROUTING_LORA, "\"LORA\"", "\"IA3\"", "peft_type"},
        {TALPA_ROUTING_LORA, "\"LORA\"", "7", "peft_type"},
        {TALPA_ROUTING_LORA, "\"use_dora\": false", "\"use_dora\": true", "use_dora"},
        {TALPA_ROUTING_LORA, "\"bias\": \"none\"", "\"bias\": \"all\"", "bias"},
        {TALPA_ROUTING_LORA, "\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 4}", "rank_pattern"},
        {TALPA_ROUTING_LORA, "\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": 4}", "alpha_pattern"},
        {TALPA_ROUTING_LORA, "\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"},
        {TALPA_ROUTING_LORA, "\"layers_to_transform\": null", "\"layers_to_transform\": [0]", "layers_to_transform"},
        {TALPA_ROUTING_LORA, "\"layers_to_transform\": null", "\"layers_to_transform\": 0", "layers_to_transform"},
        {TALPA_ROUTING_LORA, "\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", "fan_in_fan_out"},
        {TALPA_ROUTING_LORA, "\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "init_lora_weights"},
        {TALPA_ROUTING_LORA, "\"CAUSAL_LM\"", "\"SEQ_CLS\"", "task_type"},
        {TALPA_ROUTING_LORA, "\"r\": 2", "\"r\": 0", "r: found 0"},
        {TALPA_ROUTING_LORA, "\"r\": 2", "\"r\": 2.5", "r"},
        {TALPA_ROUTING_LORA, "\"r\": 2", "\"r\": 4097", "r: found 4097"},
        {TALPA_ROUTING_LORA, "\"r\": 2", "\"r\": 4", "shape [2, 64], expected [4, 64]"},
        {TALPA_ROUTING_LORA, "\"lora_alpha\": 16", "\"lora_alpha\": -1", "lora_alpha"},
        {TALPA_ROUTING_LORA, "\"lora_alpha\": 16", "\"lora_alpha\": \"16\"", "lora_alpha"},
        {TALPA_ROUTING_LORA, "\"lora_dropout\": 0.05", "\"lora_dropout\": 1", "lora_dropout"},
        {TALPA_ROUTING_LORA, "\"q_proj\",", "\"lm_head\",", "lm_head"},
        {TALPA_ROUTING_LORA, "\"q_proj\",", "", "self_attn.q_proj.lora_A.weight' is unexpected"},
        {TALPA_ROUTING_LORA, "\"q_proj\",", "\"q_proj\", \"v_proj\",", "self_attn.v_proj.lora_A.weight' is missing"},
        {TALPA_ROUTING_LORA, "[\n    \"q_proj\",\n    \"k_proj\",\n    \"down_proj\"\n  ]", "null", "target_modules"},
        {TALPA_ROUTING_LORA, "[\n    \"q_proj\",\n    \"k_proj\",\n    \"down_proj\"\n  ]", "[]", "target_modules"},
        {TALPA_ROUTING_LORA, "\"peft_type\": \"LORA\",", "", "peft_type"},
        {TALPA_ROUTING_ADAMOLE, "\"lora_rank\": 2", "\"r\": 2", "r: unknown key"},
        {TALPA_ROUTING_ADAMOLE, "\"revision\"", "\"top_k\": 1, \"revision\"", "top_k: unknown key"},
        {TALPA_ROUTING_ADAMOLE, "\"max_threshold\": null", "\"max_threshold\": 0", "max_threshold"},
        {TALPA_ROUTING_ADAMOLE, "\"max_threshold\": null", "\"max_threshold\": 1.01", "max_threshold"},
        {TALPA_ROUTING_ADAMOLE, "\"num_experts\": 3", "\"num_experts\": 257", "num_experts"},
        {TALPA_ROUTING_ADAMOLE, "\"num_experts\": 3", "\"num_experts\": 2", "lora_A.2.weight' is unexpected"},
        {TALPA_ROUTING_ADAMOLE, "\"num_experts\": 3", "\"num_experts\": 4", "lora_A.3.weight' is missing"},
        {TALPA_ROUTING_ADAMOLE, "\"ADAMOLE\"", "\"LORA\"", "routing"},
        {TALPA_ROUTING_TOPK, "\"top_k\": 2", "\"top_k\": 4", "top_k"},
        {TALPA_ROUTING_TOPK, "\"top_k\": 2", "\"top_k\": null", "none of them"},
        {TALPA_ROUTING_TOPK, "\"threshold\": null", "\"threshold\": 0.5", "both"},
        {TALPA_ROUTING_THRESHOLD, "\"top_k\": null", "\"top_k\": 1", "both"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        save_default(cases[i].routing);
        edit(CONFIG, cases[i].from, cases[i].to);
        expect_refused(cases[i].part);
    }
    save_default(TALPA_ROUTING_LORA);
    write_text(CONFIG, "[]");
    expect_refused("expected an object");
    write_text(CONFIG, "{\"peft_type\": \"LORA\"");
    expect_refused(CONFIG);
    unlink(path_of(CONFIG));
    assert_int_equal(load(NULL, false), TALPA_E_NO_INPUT);
}

/* As PEFT 0.15 writes it, every key; target_modules is a Python set, so in any order. */
static const char peft_config[] =
    "{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": \"HuggingFaceTB/SmolLM2-135M\",\n  \"bias\": "
    "\"none\",\n"
    "  \"corda_config\": null,\n  \"eva_config\": null,\n  \"exclude_modules\": null,\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": "
    "true,\n"
    "  \"init_lora_weights\": true,\n  \"layer_replication\": null,\n  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n"
    "  \"loftq_config\": {},\n  \"lora_alpha\": 32,\n  \"lora_bias\": false,\n  \"lora_dropout\": 0.1,\n  \"megatron_config\": null,\n"
    "  \"megatron_core\": \"megatron.core\",\n  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n  \"r\": 2,\n  \"rank_pattern\": "
    "{},\n"
    "  \"revision\": null,\n  \"target_modules\": [\n    \"down_proj\",\n    \"k_proj\",\n    \"q_proj\"\n  ],\n  \"task_type\": "
    "\"CAUSAL_LM\",\n"
    "  \"trainable_token_indices\": null,\n  \"use_dora\": false,\n  \"use_rslora\": false\n}";

static void test_peft(void **state)
{
    (void)state;
    struct talpa_adapter_config config;
    save_default(TALPA_ROUTING_LORA);
    unlink(path_of(ABOUT));
    write_text(CONFIG, peft_config);
    n_warnings = 0;
    if (load(&config, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_int_equal(n_warnings, 1); /* the base is unknown */
    assert_true(config.routing == TALPA_ROUTING_LORA && config.rank == 2 && config.alpha == 32.0 && config.dropout == 0.1);
    assert_int_equal(config.modules, TALPA_MODULE_Q | TALPA_MODULE_K | TALPA_MODULE_DOWN);

    edit(CONFIG, "\"use_rslora\": false", "\"use_rslora\": true");
    assert_int_equal(load(&config, false), TALPA_OK);
    assert_true(fabs(config.alpha / config.rank - 32.0 / sqrt(2.0)) < 1e-12);

    /* a pattern in place of the list: the tensors decide */
    static const char *const patterns[] = {"\"all-linear\"", "\".*(self_attn|mlp)\\\\.(q|k|down)_proj\""};
    for (int i = 0; i < 2; i++) {
        write_text(CONFIG, peft_config);
        edit(CONFIG, "[\n    \"down_proj\",\n    \"k_proj\",\n    \"q_proj\"\n  ]", patterns[i]);
        assert_int_equal(load(&config, false), TALPA_OK);
        assert_int_equal(config.modules, TALPA_MODULE_Q | TALPA_MODULE_K | TALPA_MODULE_DOWN);
    }
    write_text(CONFIG, peft_config);
    edit(CONFIG, "\"k_proj\"", "\"self_attn.k_proj\"");
    expect_loads();
    edit(CONFIG, "\"r\": 2", "\"lora_rank\": 2"); /* the LoRA of the published mixture code */
    expect_loads();
    edit(CONFIG, "\"lora_alpha\"", "\"added_by_a_later_version\": 1, \"lora_alpha\"");
    expect_loads();
}

/* ---- base ---- */

static void test_other_base(void **state)
{
    (void)state;
    uint64_t digest;
    char text[17];
    save_default(TALPA_ROUTING_ADAMOLE);
    assert_int_equal(tp_model_digest(&digest, model), TALPA_OK);
    snprintf(text, sizeof text, "%016llx", (unsigned long long)digest);
    edit(ABOUT, text, "00000000000000ab");
    expect_refused("00000000000000ab");
    assert_non_null(strstr(talpa_error_message(), text));
    assert_non_null(strstr(talpa_error_message(), "--allow-other-base"));
    n_warnings = 0;
    assert_int_equal(load(NULL, true), TALPA_OK);
    assert_int_equal(n_warnings, 1);
    edit(ABOUT, "00000000000000ab", "00000000000000aB");
    expect_refused("base_digest");
    edit(ABOUT, "00000000000000aB", text);
    expect_loads();
    edit(ABOUT, "\"format_version\": 1", "\"format_version\": 2");
    expect_refused("format_version");
    write_text(ABOUT, "{}");
    expect_refused(ABOUT);
    write_text(ABOUT, "");
    expect_refused(ABOUT);
}

/* ---- tensors ---- */

struct table {
    struct tp_safetensors *file;
    struct tp_safetensors_tensor tensors[MAX_TENSORS];
    size_t n;
};

static void open_table(struct table *table)
{
    assert_int_equal(tp_safetensors_open(&table->file, path_of(TENSORS)), TALPA_OK);
    table->n = (size_t)tp_safetensors_n_tensors(table->file);
    for (size_t i = 0; i < table->n; i++) assert_int_equal(tp_safetensors_at(&table->tensors[i], table->file, (int64_t)i), TALPA_OK);
}

static void close_table(struct table *table)
{
    assert_int_equal(tp_safetensors_save(path_of(TENSORS), table->tensors, table->n, NULL, 0), TALPA_OK);
    tp_safetensors_close(table->file);
}

static void test_tensors_refused(void **state)
{
    (void)state;
    static struct table t;
    float nan_values[128] = {0}, zeros[192] = {0};
    for (int routing = 0; routing < TALPA_N_ROUTINGS; routing++) {
        save_default((enum talpa_routing)routing);
        open_table(&t);
        const size_t n = t.n;
        close_table(&t);
        for (size_t i = 0; i < n; i++) { /* each one missing in turn */
            char name[128];
            save_default((enum talpa_routing)routing);
            open_table(&t);
            snprintf(name, sizeof name, "%s' is missing", t.tensors[i].name);
            t.tensors[i] = t.tensors[--t.n];
            close_table(&t);
            expect_refused(name);
        }
        static const char *const extra[] = {"base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
                                            "base_model.model.lm_head.weight",
                                            "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
                                            "base_model.model.model.layers.00.self_attn.q_proj.moe_layer.x",
                                            "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"};
        for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
            save_default((enum talpa_routing)routing);
            open_table(&t);
            t.tensors[t.n] = t.tensors[0];
            t.tensors[t.n++].name = extra[i];
            close_table(&t);
            expect_refused(extra[i]);
        }
        save_default((enum talpa_routing)routing);
        open_table(&t);
        t.tensors[0].name = "renamed";
        close_table(&t);
        expect_refused("renamed");

        save_default((enum talpa_routing)routing);
        open_table(&t);
        t.tensors[0].shape = (struct talpa_shape){2, {64, 2}};
        close_table(&t);
        expect_refused("shape [64, 2], expected [2, 64]");

        save_default((enum talpa_routing)routing);
        open_table(&t);
        t.tensors[0].shape = (struct talpa_shape){3, {1, 2, 64}};
        close_table(&t);
        expect_refused("shape [1, 2, 64], expected [2, 64]");

        save_default((enum talpa_routing)routing);
        open_table(&t);
        t.tensors[0].type = TP_SAFETENSORS_I32;
        close_table(&t);
        expect_refused("is I32, expected F32, F16 or BF16");

        save_default((enum talpa_routing)routing);
        open_table(&t);
        nan_values[127] = routing & 1 ? NAN : -INFINITY;
        t.tensors[0].data = nan_values;
        close_table(&t);
        expect_refused("element 127 is");
        assert_non_null(strstr(talpa_error_message(), "layers.0.self_attn.q_proj.lora_A."));
    }
    /* mixtures: what the published code holds twice is ignored, whatever it is */
    save_default(TALPA_ROUTING_ADAMOLE);
    open_table(&t);
    const size_t n = t.n;
    static char names[MAX_TENSORS][160];
    for (size_t i = 0; i < n; i++) {
        const char *at = strstr(t.tensors[i].name, "lora_A.");
        if (!at) at = strstr(t.tensors[i].name, "lora_B.");
        if (!at) continue;
        snprintf(names[i], sizeof names[i], "%.*smoe_layer.experts.%c.%.6s.weight", (int)(at - t.tensors[i].name), t.tensors[i].name, at[7],
                 at);
        t.tensors[t.n] = t.tensors[i];
        t.tensors[t.n++].name = names[i];
    }
    assert_int_equal(t.n, n + 36);
    close_table(&t);
    expect_loads();
    char *lines = NULL;
    struct talpa_adapter_config config;
    assert_int_equal(talpa_adapter_inspect(&config, &lines, folder), TALPA_OK);
    free(lines);
    /* for LoRA there is no such thing */
    save_default(TALPA_ROUTING_LORA);
    open_table(&t);
    t.tensors[t.n++] = (struct tp_safetensors_tensor){
        "base_model.model.model.layers.0.self_attn.q_proj.moe_layer.experts.0.lora_A.weight", TP_SAFETENSORS_F32, {2, {2, 64}}, zeros, 512};
    close_table(&t);
    expect_refused("moe_layer");
}

/* F16 and BF16 files give the rounded values. */
static void test_halves(void **state)
{
    (void)state;
    static struct table t;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const enum talpa_dtype dtype = bf16 ? TALPA_BF16 : TALPA_F16;
        const struct talpa_adapter_config config = settings(TALPA_ROUTING_ADAMOLE);
        float *bank, *back;
        struct tp_adapter *adapter = save(&bank, &config), *loaded;
        uint16_t *halves[MAX_TENSORS];
        open_table(&t);
        for (size_t i = 0; i < t.n; i++) {
            const size_t n = t.tensors[i].n_bytes / 4;
            halves[i] = malloc(n * 2);
            for (size_t k = 0; k < n; k++) {
                float value;
                memcpy(&value, (const char *)t.tensors[i].data + 4 * k, 4);
                halves[i][k] = bf16 ? tp_f32_to_bf16(value) : tp_f32_to_f16(value);
            }
            t.tensors[i].type = bf16 ? TP_SAFETENSORS_BF16 : TP_SAFETENSORS_F16;
            t.tensors[i].data = halves[i];
            t.tensors[i].n_bytes = n * 2;
        }
        close_table(&t);
        for (size_t i = 0; i < t.n; i++) free(halves[i]);
        assert_int_equal(tp_adapter_load(&loaded, &back, folder, model, false), TALPA_OK);
        for (int64_t i = 0; i < adapter->bank_elements; i++) {
            uint16_t half;
            float rounded;
            tp_dtype_from_f32(&half, &bank[i], dtype, 1);
            tp_dtype_to_f32(&rounded, &half, dtype, 1);
            assert_true(back[i] == rounded);
        }
        free(bank);
        free(back);
        tp_adapter_free(adapter);
        tp_adapter_free(loaded);
    }
}

/* ---- damage ---- */

static void test_truncated(void **state)
{
    (void)state;
    static const char *const names[] = {CONFIG, ABOUT, TENSORS};
    save_default(TALPA_ROUTING_ADAMOLE);
    for (int f = 0; f < 3; f++) {
        size_t n_bytes;
        char *bytes = read_bytes(names[f], &n_bytes);
        for (size_t i = 0; i < 100; i++) {
            write_bytes(names[f], bytes, n_bytes * i / 100);
            assert_int_equal(load(NULL, false), TALPA_E_DATA);
        }
        write_bytes(names[f], bytes, n_bytes - 1);
        assert_int_equal(load(NULL, false), TALPA_E_DATA);
        write_bytes(names[f], bytes, n_bytes);
        expect_loads();
        free(bytes);
    }
}

static void test_flipped(void **state)
{
    (void)state;
    static const char *const names[] = {CONFIG, ABOUT, TENSORS};
    uint64_t random = 88172645463325252u;
    int n_refused = 0;
    save_default(TALPA_ROUTING_ADAMOLE);
    for (int i = 0; i < 1000; i++) {
        size_t n_bytes;
        char *bytes = read_bytes(names[i % 3], &n_bytes), *lines = NULL;
        struct talpa_adapter_config config;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        /* half of the flips in the header of the tensors, which is the smaller part of the file */
        const size_t at = random % (i % 2 || n_bytes < 4096 ? n_bytes : 4096);
        bytes[at] ^= (char)(1 << (random >> 40 & 7));
        write_bytes(names[i % 3], bytes, n_bytes);
        const enum talpa_status status = load(NULL, false);
        assert_true(status == TALPA_OK || status == TALPA_E_DATA);
        if (talpa_adapter_inspect(&config, &lines, folder) == TALPA_OK) free(lines);
        n_refused += status != TALPA_OK;
        bytes[at] ^= (char)(1 << (random >> 40 & 7));
        write_bytes(names[i % 3], bytes, n_bytes);
        free(bytes);
    }
    assert_true(n_refused > 300);
    expect_loads();
}

/* ---- failing to write ---- */

static void test_unwritable(void **state)
{
    (void)state;
    const struct talpa_adapter_config config = settings(TALPA_ROUTING_ADAMOLE);
    float *bank;
    struct tp_adapter *adapter = save(&bank, &config);
    /* /proc refuses even the superuser, whom permissions do not stop */
    static const char *const bad[] = {"test_adapter_file.absent/x", "/proc"};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(tp_adapter_save(adapter, bank, bad[i], model), TALPA_E_CREATE);
        assert_int_equal(talpa_exit_code(TALPA_E_CREATE), 73);
    }
    if (geteuid() != 0) {
        clean();
        chmod(folder, 0555);
        assert_int_equal(tp_adapter_save(adapter, bank, folder, model), TALPA_E_CREATE);
        chmod(folder, 0755);
        assert_int_equal(n_files(), 0);
    }
    /* a folder stands in the way of the last file: no half file remains, and nothing loads */
    clean();
    mkdir(path_of(TENSORS), 0755);
    assert_int_equal(tp_adapter_save(adapter, bank, folder, model), TALPA_E_CREATE);
    assert_int_equal(n_files(), 3);
    assert_int_not_equal(load(NULL, false), TALPA_OK);
    rmdir(path_of(TENSORS));
    assert_int_equal(load(NULL, false), TALPA_E_NO_INPUT);
    write_text("adapter_model.bin", "PK");
    assert_int_equal(load(NULL, false), TALPA_E_NO_INPUT);
    assert_non_null(strstr(talpa_error_message(), "adapter_model.bin"));
    free(bank);
    tp_adapter_free(adapter);
}

static void test_old_stays(void **state)
{
    (void)state;
    const struct talpa_adapter_config config = settings(TALPA_ROUTING_ADAMOLE);
    float *bank;
    size_t n_before, n_after;
    struct tp_adapter *adapter = save(&bank, &config);
    char *before = read_bytes(TENSORS, &n_before);
    /* a disk that is full half-way through the tensors */
    struct rlimit limit, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = n_before / 2;
    bank[0] += 1.0f;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const enum talpa_status status = tp_adapter_save(adapter, bank, folder, model);
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, TALPA_E_IO);
    /* parameters that no loader would accept */
    bank[0] = NAN;
    assert_int_equal(tp_adapter_save(adapter, bank, folder, model), TALPA_E_FAILED);
    assert_non_null(strstr(talpa_error_message(), adapter->tensors[0].name));
    char *after = read_bytes(TENSORS, &n_after);
    assert_int_equal(n_after, n_before);
    assert_memory_equal(before, after, n_before);
    assert_int_equal(n_files(), 3);
    expect_loads();
    /* an adapter of another kind: the old configuration stays with the old tensors */
    struct talpa_adapter_config other = settings(TALPA_ROUTING_ADAMOLE);
    other.rank *= 2;
    struct tp_adapter *larger;
    assert_int_equal(tp_adapter_create(&larger, model, &other), TALPA_OK);
    float *zeros = calloc((size_t)larger->bank_elements, sizeof *zeros);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    assert_int_equal(tp_adapter_save(larger, zeros, folder, model), TALPA_E_IO);
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(n_files(), 3);
    expect_loads();
    free(zeros);
    tp_adapter_free(larger);
    free(before);
    free(after);
    free(bank);
    tp_adapter_free(adapter);
}

/* ---- listing ---- */

static void test_inspect(void **state)
{
    (void)state;
    struct talpa_adapter_config config;
    uint64_t digest;
    char *lines = NULL, text[64];
    static struct table t;
    save_default(TALPA_ROUTING_ADAMOLE);
    assert_int_equal(tp_model_digest(&digest, model), TALPA_OK);
    if (talpa_adapter_inspect(&config, &lines, folder) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_true(config.routing == TALPA_ROUTING_ADAMOLE && config.n_experts == 3 && config.modules == (1 | 2 | 64));
    snprintf(text, sizeof text, "base %016llx (random:tiny)", (unsigned long long)digest);
    assert_non_null(strstr(lines, text));
    assert_non_null(strstr(lines, "\n6 x self_attn.k_proj.lora_B [32, 2]\n"));
    assert_non_null(strstr(lines, "\n6 x mlp.down_proj.lora_A [2, 128]\n"));
    assert_non_null(strstr(lines, "\n2 x self_attn.q_proj.lora_gating.weight [3, 64]\n"));
    assert_non_null(strstr(lines, "\n2 x self_attn.q_proj.lora_threshold.bias [1]\n"));
    /* per layer: q 6*64+6*64, k 6*64+6*32, down 6*128+6*64, gates 3*(64+64+128), thresholds 64+64+128+3 */
    snprintf(text, sizeof text, "2 layers, 6 modules, 54 tensors, %d parameters\n", 2 * (768 + 576 + 1152 + 768 + 259));
    assert_non_null(strstr(lines, text));
    free(lines);
    for (int i = 0; i < 3; i++) {
        save_default(TALPA_ROUTING_TOPK);
        open_table(&t);
        if (i == 0) t.n--;
        if (i == 1) t.tensors[3].name = "x";
        if (i == 2) t.tensors[0].shape = (struct talpa_shape){2, {64, 2}};
        close_table(&t);
        lines = NULL;
        assert_int_equal(talpa_adapter_inspect(&config, &lines, folder), TALPA_E_DATA);
        assert_null(lines);
        assert_non_null(strstr(talpa_error_message(), folder));
    }
    clean();
    assert_int_equal(talpa_adapter_inspect(&config, &lines, folder), TALPA_E_NO_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_thresholds), cmocka_unit_test(test_config_text),
        cmocka_unit_test(test_config_refused),  cmocka_unit_test(test_peft),       cmocka_unit_test(test_other_base),
        cmocka_unit_test(test_tensors_refused), cmocka_unit_test(test_halves),     cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),         cmocka_unit_test(test_unwritable), cmocka_unit_test(test_old_stays),
        cmocka_unit_test(test_inspect),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
