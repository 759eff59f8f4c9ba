/* adapter_config.json and talpa_adapter.json: what is written, what is understood, what is refused. */
#include "adapter_test.h"

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
    struct talpa_adapter_config config = {0};
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_text),
        cmocka_unit_test(test_config_refused),
        cmocka_unit_test(test_peft),
        cmocka_unit_test(test_other_base),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
