/* config.json: fields of published models in the forms of transformers 4 and 5, and what is refused by name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "models/arch.h"

static enum talpa_status read_text(struct talpa_model *model, const double **factors, const char *text)
{
    const struct tp_arch *arch;
    struct tp_json *json;
    *model = (struct talpa_model){.path = "test"};
    *factors = NULL;
    assert_int_equal(tp_json_parse(&json, text, strlen(text), "test"), TALPA_OK);
    const enum talpa_status status = tp_hf_config_read(model, &arch, factors, tp_json_root(json));
    tp_json_free(json);
    return status;
}

static struct tp_model_config accepted(const char *text)
{
    struct talpa_model model;
    const double *factors;
    if (read_text(&model, &factors, text) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_null(factors);
    tp_arena_free(&model.arena);
    return model.config;
}

#define SIZES                                                                                                                              \
    "\"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "   \
    "\"vocab_size\": 100, \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-05"
#define CONFIG(class, more) "{\"architectures\": [\"" class "\"], " SIZES more "}"

static void test_classes(void **state)
{
    (void)state;
    struct tp_model_config c = accepted(
        CONFIG("LlamaForCausalLM", ", \"hidden_act\": \"silu\", \"rope_scaling\": null, \"pretraining_tp\": 1, "
                                   "\"torch_dtype\": \"bfloat16\", \"attention_bias\": false, \"_attn_implementation_autoset\": true, "
                                   "\"max_sequence_length\": 4096, \"eos_token_id\": [2, 3]"));
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.context_length, 512);
    assert_false(c.tied_embeddings || c.has_head_norms || c.biased_linears || c.embedding_scale != 0.0);
    assert_true(c.rope_theta == 10000.0 && c.rms_norm_eps == 1e-5);
    c = accepted(CONFIG("MistralForCausalLM", ", \"sliding_window\": 128, \"rope_theta\": 1000000.0"));
    assert_int_equal(c.context_length, 128);
    assert_true(c.rope_theta == 1e6);
    assert_int_equal(accepted(CONFIG("MistralForCausalLM", ", \"sliding_window\": null")).context_length, 512);
    c = accepted(CONFIG("Qwen2ForCausalLM", ", \"sliding_window\": 128, \"max_window_layers\": 1, \"use_sliding_window\": false, "
                                            "\"tie_word_embeddings\": true"));
    assert_int_equal(c.context_length, 512);
    assert_int_equal(c.biased_linears, 7); /* q, k, v */
    assert_true(c.tied_embeddings);
    assert_int_equal(accepted(CONFIG("Qwen2ForCausalLM", ", \"sliding_window\": 128, \"use_sliding_window\": true")).context_length, 128);
    c = accepted(CONFIG("Qwen3ForCausalLM", ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5000}"));
    assert_int_equal(c.head_dim, 128);
    assert_true(c.has_head_norms && c.rope_theta == 5000.0);
    c = accepted(CONFIG("GemmaForCausalLM", ", \"head_dim\": 32, \"hidden_act\": \"gelu\", \"hidden_activation\": null"));
    assert_true(c.tied_embeddings && c.embedding_scale == 8.0 && c.activation == TP_ACTIVATION_GELU_TANH);
    assert_int_equal(accepted(CONFIG("LlamaForCausalLM", ", \"attention_bias\": true")).biased_linears, 15);
    assert_int_equal(accepted(CONFIG("LlamaForCausalLM", ", \"mlp_bias\": true")).biased_linears, 0x70);
}

/* Numbers by hand: theta 10000, head_dim 16: pair i has the wavelength 2 pi 10^(i/2). The old context 100 makes 15.9, 5.03, 1.59, 0.503 ...
 * turns of it; with factors 1 to 4 pairs 0 and 1 stay, pair 2 is blended by (1.59 - 1) / 3, pairs from 3 are slowed by 8. */
static void test_scaling(void **state)
{
    (void)state;
    struct talpa_model model;
    const double *factors;
    static const char llama3[] = "{\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
                                 "\"original_max_position_embeddings\": 100}";
    char text[1024];
    snprintf(text, sizeof text, CONFIG("LlamaForCausalLM", ", \"rope_theta\": 10000.0, \"rope_scaling\": %s"), llama3);
    assert_int_equal(read_text(&model, &factors, text), TALPA_OK);
    const double blend = (100.0 / (2.0 * 3.14159265358979 * 10.0) - 1.0) / 3.0;
    const double want[8] = {1, 1, 1.0 / ((1.0 - blend) / 8.0 + blend), 8, 8, 8, 8, 8};
    for (int i = 0; i < 8; i++) assert_true(fabs(factors[i] - want[i]) < 1e-9);
    assert_int_equal(tp_arch_rotary_table(&model, factors), TALPA_OK);
    const struct tp_model_weight *table = tp_model_weight(&model, TP_ROTARY_TABLE);
    const uint32_t *words = table->data;
    assert_true(table->is_derived && model.config.has_rotary_table);
    assert_true(fabs(ldexp(words[0], -32) - 1.0 / (2.0 * 3.14159265358979)) < 1e-9);
    assert_true(fabs(ldexp(words[6], -32) - pow(10.0, -1.5) / 8.0 / (2.0 * 3.14159265358979)) < 1e-9);
    tp_map_free(&model.weight_of);
    free(model.weights);
    tp_arena_free(&model.arena);
    assert_int_equal(read_text(&model, &factors, CONFIG("LlamaForCausalLM", ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}")),
                     TALPA_OK);
    for (int i = 0; i < 8; i++) assert_true(factors[i] == 2.0);
    tp_arena_free(&model.arena);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message[2];
    } cases[] = {
        {"[]", {"array", "object"}},
        {"{\"architectures\": []}", {"architectures[0]", ""}},
        {CONFIG("Gemma2ForCausalLM", ""), {"Gemma2ForCausalLM", "Qwen3ForCausalLM"}},
        {CONFIG("Phi3ForCausalLM", ""), {"Phi3ForCausalLM", "supported are"}},
        {CONFIG("LlamaForCausalLM", ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}"), {"rope_scaling", "'yarn'"}},
        {CONFIG("LlamaForCausalLM", ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 4.0}"), {"rope_scaling", "'dynamic'"}},
        {CONFIG("LlamaForCausalLM", ", \"rope_parameters\": {\"rope_type\": \"longrope\"}"), {"rope_parameters", "'longrope'"}},
        {CONFIG("LlamaForCausalLM", ", \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}"), {"full_attention", ""}},
        {CONFIG("LlamaForCausalLM", ", \"rope_scaling\": {\"type\": \"linear\"}"), {"rope_scaling", "factor"}},
        {CONFIG("LlamaForCausalLM", ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}"), {"factor is 0", ""}},
        {CONFIG("LlamaForCausalLM", ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2, \"beta_fast\": 32}"), {"beta_fast", ""}},
        {CONFIG("LlamaForCausalLM", ", \"rope_scaling\": \"linear\""), {"rope_scaling", "a string"}},
        {CONFIG("LlamaForCausalLM", ", \"partial_rotary_factor\": 0.5"), {"partial_rotary_factor", "0.5"}},
        {CONFIG("LlamaForCausalLM", ", \"rope_interleaved\": true"), {"rope_interleaved", "not understood"}},
        {CONFIG("LlamaForCausalLM", ", \"hidden_act\": \"relu\""), {"hidden_act", "'relu'"}},
        {CONFIG("GemmaForCausalLM", ", \"hidden_activation\": \"gelu\""), {"hidden_activation", "gelu_pytorch_tanh"}},
        {CONFIG("Qwen3ForCausalLM", ", \"layer_types\": [\"full_attention\", \"linear_attention\"]"), {"linear_attention", "layer_types"}},
        {CONFIG("LlamaForCausalLM", ", \"quantization_config\": {\"bits\": 4}"), {"quantization_config", "GGUF"}},
        {CONFIG("LlamaForCausalLM", ", \"logit_scale\": 0.25"), {"logit_scale", "not understood"}},
        {CONFIG("LlamaForCausalLM", ", \"head_dim\": 15"), {"head width", "15"}},
        {"{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 64}", {"num_hidden_layers", ""}},
        {"{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 0}", {"num_hidden_layers is 0", ""}},
        {"{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 1e9}", {"num_hidden_layers", "4096"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct talpa_model model;
        const double *factors;
        if (read_text(&model, &factors, cases[i].text) != TALPA_E_DATA) fail_msg("accepted: %s", cases[i].text);
        for (int k = 0; k < 2; k++)
            if (!strstr(talpa_error_message(), cases[i].message[k]))
                fail_msg("'%s' is missing in: %s", cases[i].message[k], talpa_error_message());
        tp_arena_free(&model.arena);
    }
    /* Switched off, unknown features are harmless. */
    accepted(CONFIG("LlamaForCausalLM", ", \"rope_interleaved\": false, \"logit_scale\": null"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_classes), cmocka_unit_test(test_scaling), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests_name("config.json", tests, NULL, NULL);
}
