/* Adapters saved by the real PEFT (tests/data/peft_lora, made by tools/golden/make_peft_lora.py): they load, and score as PEFT says. */
#include "adapter_test.h"
#include "golden.h"
#include "talpa/train.h"

enum { MAX_TOKENS = 64 };

static const char *data_path(const char *name)
{
    static char path[4][512];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], TALPA_SOURCE_DIR "/tests/data/peft_lora/%s", name);
    return p;
}

static enum talpa_status load_path(struct talpa_adapter_config *config, const char *path)
{
    struct tp_adapter *adapter;
    float *bank;
    const enum talpa_status status = tp_adapter_load(&adapter, &bank, path, model, false);
    if (status != TALPA_OK) return status;
    *config = adapter->config;
    tp_adapter_free(adapter);
    free(bank);
    return TALPA_OK;
}

static void test_loads(void **state)
{
    (void)state;
    struct talpa_adapter_config c = {0};
    golden_ok(load_path(&c, data_path("list")));
    assert_true(c.routing == TALPA_ROUTING_LORA && c.rank == 2 && c.alpha == 16.0 && c.dropout == 0.1);
    assert_int_equal(c.modules, TALPA_MODULE_Q | TALPA_MODULE_V | TALPA_MODULE_DOWN);
    /* all-linear, written as whole paths; rank-stabilised: alpha / sqrt(r) */
    golden_ok(load_path(&c, data_path("linear")));
    assert_int_equal(c.modules, 127);
    assert_true(c.rank == 3 && fabs(c.alpha / c.rank - 6.0 / sqrt(3.0)) < 1e-12);
}

/* Copies a fixture into the test's folder, to be changed. */
static void copy(const char *name)
{
    static const char *const files[] = {CONFIG, TENSORS};
    clean();
    for (int i = 0; i < 2; i++) {
        char from[128];
        static char bytes[1 << 16];
        snprintf(from, sizeof from, "%s/%s", name, files[i]);
        FILE *in = fopen(data_path(from), "rb");
        assert_non_null(in);
        const size_t n = fread(bytes, 1, sizeof bytes, in);
        fclose(in);
        write_bytes(files[i], bytes, n);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *part;
    } cases[] = {
        {"\"use_dora\": false", "\"use_dora\": true", "use_dora"},
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 8}", "rank_pattern"},
        {"\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": 8}", "alpha_pattern"},
        {"\"bias\": \"none\"", "\"bias\": \"lora_only\"", "bias"},
        {"\"layers_to_transform\": null", "\"layers_to_transform\": [1]", "layers_to_transform"},
        {"\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"},
        {"\"kasa_config\": null", "\"kasa_config\": {\"beta\": 1}", "kasa_config"},
        {"\"r\": 3", "\"r\": 4", "shape [3, 64], expected [4, 64]"},
        {"\"model.layers.0.self_attn.q_proj\"", "\"model.layers.q_proj\"", "target_modules"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        copy("linear");
        edit(CONFIG, cases[i].from, cases[i].to);
        expect_refused(cases[i].part);
    }
    /* an adapter of some layers only: the message counts */
    static struct table t;
    copy("list");
    open_table(&t);
    for (size_t i = 0; i < t.n; i++)
        if (strstr(t.tensors[i].name, "layers.1.self_attn.v_proj.lora_B")) t.tensors[i] = t.tensors[--t.n];
    close_table(&t);
    expect_refused("layers.1.self_attn.v_proj.lora_B.weight' is missing: found 1 of 2 for self_attn.v_proj");
    /* torch's own format, which holds code */
    copy("list");
    unlink(path_of(TENSORS));
    write_text("adapter_model.bin", "PK");
    assert_int_equal(load(NULL, false), TALPA_E_NO_INPUT);
    assert_non_null(strstr(talpa_error_message(), "safetensors"));
}

struct scores {
    double found[2][MAX_TOKENS];
    size_t n[2];
};

static bool keep(void *user, const struct talpa_score_row *row)
{
    struct scores *scores = user;
    assert_true(row->index < 2 && row->n < MAX_TOKENS);
    scores->n[row->index] = row->n;
    for (size_t i = 0; i < row->n; i++) scores->found[row->index][i] = (double)row->logprobs[i];
    return true;
}

static void test_scores(void **state)
{
    (void)state;
    static const char *const names[] = {"list", "linear"};
    const size_t device = golden_device();
    for (int k = 0; k < 2; k++) {
        struct scores scores = {.n = {0}};
        struct talpa_score_options o;
        struct tp_json *json;
        char expected[64];
        talpa_score_default(&o);
        o.data = data_path("rows.jsonl");
        o.lora = data_path(names[k]);
        o.score_eos = true;
        o.base_dtype = TALPA_BASE_F32;
        golden_ok(talpa_score(model, device, &o, keep, &scores));
        snprintf(expected, sizeof expected, "%s/expected.json", names[k]);
        golden_ok(tp_json_parse_file(&json, data_path(expected)));
        int row = 0;
        for (const struct tp_json_value *list = tp_json_first(tp_json_get(tp_json_root(json), "logprobs")); list;
             list = tp_json_next(list), row++) {
            size_t i = 0;
            assert_int_equal(tp_json_length(list), scores.n[row]);
            for (const struct tp_json_value *item = tp_json_first(list); item; item = tp_json_next(item), i++) {
                double value;
                golden_ok(tp_json_as_double(&value, item, "logprob"));
                if (!(fabs(value - scores.found[row][i]) < 1e-4))
                    fail_msg("%s, row %d, token %zu: found %g, expected %g", names[k], row, i, scores.found[row][i], value);
            }
        }
        assert_int_equal(row, 2);
        tp_json_free(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_loads), cmocka_unit_test(test_refused), cmocka_unit_test(test_scores)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
