/* The tensors of adapter folders: nothing missing, nothing unexpected; and their listing. */
#include "adapter_test.h"

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
    struct talpa_adapter_config config = {0};
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

static void test_inspect(void **state)
{
    (void)state;
    struct talpa_adapter_config config = {0};
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
        cmocka_unit_test(test_tensors_refused),
        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_inspect),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
