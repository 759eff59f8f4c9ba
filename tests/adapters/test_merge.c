/* Merged models: every weight against W + alpha / rank * B A in double, types, metadata, and what is refused. */
#include "adapter_test.h"
#include "adapters/merge.h"
#include "io/gguf.h"
#include "tiny_gguf.h"

static struct talpa_model *base; /* random:tiny as a GGUF file */
static float *bank;
static struct tp_adapter *adapter;
static char lora[128], output[160];

/* Opens the tiny model in a type, with a LoRA on q, k and down whose effect is of the size of the weights. */
static void open_base(enum talpa_dtype dtype)
{
    const struct talpa_adapter_config config = settings(TALPA_ROUTING_LORA);
    clean();
    tiny_gguf_write(path_of("base.gguf"), dtype);
    if (talpa_model_open(&base, path_of("base.gguf")) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_int_equal(tp_adapter_create(&adapter, base, &config), TALPA_OK);
    bank = calloc((size_t)adapter->bank_elements, sizeof *bank);
    for (int64_t i = 0; i < adapter->bank_elements; i++) bank[i] = (float)((i * 7919) % 613 - 306) / 4096.0f;
    snprintf(lora, sizeof lora, "%s/lora", folder);
    snprintf(output, sizeof output, "%s/merged.gguf", folder);
    mkdir(lora, 0755);
    assert_int_equal(tp_adapter_save(adapter, bank, lora, base), TALPA_OK);
}

static void close_base(void)
{
    static const char *const files[] = {"lora/" CONFIG, "lora/" ABOUT, "lora/" TENSORS};
    for (int i = 0; i < 3; i++) unlink(path_of(files[i]));
    rmdir(lora);
    unlink(path_of("base.gguf"));
    unlink(output);
    tp_adapter_free(adapter);
    talpa_model_close(base);
    free(bank);
}

static enum talpa_status merge(struct talpa_merge_result *result, const char *to, enum talpa_merge_type type)
{
    const struct talpa_merge_options o = {.lora = lora, .output = to, .type = type, .no_probe = true};
    return talpa_merge(result, base, 0, &o);
}

/* (W + 8 B A)[row, column] in double; row in Hugging Face's order. */
static double expected(const struct tp_model_weight *weight, int64_t row, int64_t column)
{
    const int64_t rows = weight->type.shape.dim[0], columns = weight->type.shape.dim[1];
    int64_t stored = row;
    if (weight->interleaved_heads) {
        const int64_t width = rows / weight->interleaved_heads;
        stored = row - row % width + (row % width < width / 2 ? 2 * (row % width) : 2 * (row % width - width / 2) + 1);
    }
    float *values = malloc((size_t)columns * sizeof *values);
    tp_dtype_to_f32(values, (const char *)weight->data + (size_t)stored * tp_dtype_bytes(weight->type.dtype, columns), weight->type.dtype,
                    columns);
    double sum = (double)values[column];
    free(values);
    char name[160];
    float a[2 * 128], b[128 * 2];
    snprintf(name, sizeof name, "base_model.model.%.*s.lora_A.weight", (int)(strlen(weight->name) - 7), weight->name);
    const int a_index = tp_adapter_find(adapter, name);
    *strstr(name, "lora_A") = '\0';
    strcat(name, "lora_B.weight");
    if (a_index < 0) return sum;
    tp_adapter_get(a, adapter, bank, a_index);
    tp_adapter_get(b, adapter, bank, tp_adapter_find(adapter, name));
    for (int r = 0; r < 2; r++) sum += 8.0 * (double)b[row * 2 + r] * (double)a[r * columns + column];
    return sum;
}

/* Compares all matrices; `bound` is relative to the largest of the tensor. */
static void compare(const struct talpa_model *merged, double bound)
{
    for (size_t i = 0; i < base->n_weights; i++) {
        const struct tp_model_weight *before = &base->weights[i], *after = tp_model_weight(merged, before->name);
        assert_non_null(after);
        assert_int_equal(after->type.shape.dim[0], before->type.shape.dim[0]);
        if (before->type.shape.rank < 2) continue;
        const int64_t rows = before->type.shape.dim[0], columns = before->type.shape.dim[1];
        float *values = malloc((size_t)columns * sizeof *values);
        double worst = 0.0, largest = 0.0;
        for (int64_t row = 0; row < rows; row++) {
            int64_t stored = row;
            if (after->interleaved_heads) {
                const int64_t width = rows / after->interleaved_heads, within = row % width;
                stored = row - within + (within < width / 2 ? 2 * within : 2 * (within - width / 2) + 1);
            }
            tp_dtype_to_f32(values, (const char *)after->data + (size_t)stored * tp_dtype_bytes(after->type.dtype, columns),
                            after->type.dtype, columns);
            for (int64_t c = 0; c < columns; c += 5) {
                const double e = expected(before, row, c);
                worst = fmax(worst, fabs(e - (double)values[c]));
                largest = fmax(largest, fabs(e));
            }
        }
        if (!(worst <= bound * largest)) fail_msg("%s: off by %g of %g", before->name, worst, largest);
        free(values);
    }
}

static void test_types(void **state)
{
    (void)state;
    /* per source type and requested type: a matrix, an adapted matrix, the embedding, general.file_type, error relative to the largest
     * weight */
    static const struct {
        enum talpa_dtype source;
        enum talpa_merge_type type;
        enum talpa_dtype plain, adapted, table;
        int file_type;
        double bound;
    } cases[] = {
        {TALPA_F32, TALPA_MERGE_AUTO, TALPA_F32, TALPA_F32, TALPA_F32, 0, 1e-6},
        {TALPA_F32, TALPA_MERGE_F16, TALPA_F16, TALPA_F16, TALPA_F16, 1, 0x1p-11},
        {TALPA_F32, TALPA_MERGE_BF16, TALPA_BF16, TALPA_BF16, TALPA_BF16, 32, 0x1p-8},
        {TALPA_F32, TALPA_MERGE_Q8_0, TALPA_Q8_0, TALPA_Q8_0, TALPA_Q8_0, 7, 0.6 / 127},
        {TALPA_F32, TALPA_MERGE_Q4_0, TALPA_Q4_0, TALPA_Q4_0, TALPA_Q8_0, 2, 1.1 / 8},
        {TALPA_Q4_1, TALPA_MERGE_AUTO, TALPA_Q4_1, TALPA_Q8_0, TALPA_Q8_0, 7, 0.6 / 127},
        {TALPA_Q4_1, TALPA_MERGE_F32, TALPA_F32, TALPA_F32, TALPA_F32, 0, 1e-6},
        {TALPA_Q4_0, TALPA_MERGE_Q8_0, TALPA_Q8_0, TALPA_Q8_0, TALPA_Q8_0, 7, 0.6 / 127},
        {TALPA_F16, TALPA_MERGE_AUTO, TALPA_F16, TALPA_F16, TALPA_F16, 1, 0x1p-11},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct talpa_merge_result result;
        struct talpa_model *merged;
        int64_t file_type;
        const char *name;
        open_base(cases[i].source);
        if (merge(&result, output, cases[i].type) != TALPA_OK) fail_msg("%s", talpa_error_message());
        assert_true(result.n_tensors == (int64_t)base->n_weights && result.n_merged == 6 && !result.has_probe);
        if (talpa_model_open(&merged, output) != TALPA_OK) fail_msg("%s", talpa_error_message());
        assert_int_equal(tp_model_weight(merged, "model.layers.0.self_attn.v_proj.weight")->type.dtype, cases[i].plain);
        assert_int_equal(tp_model_weight(merged, "model.layers.0.self_attn.q_proj.weight")->type.dtype, cases[i].adapted);
        assert_int_equal(tp_model_weight(merged, "model.embed_tokens.weight")->type.dtype, cases[i].table);
        assert_int_equal(tp_model_weight(merged, "model.norm.weight")->type.dtype, TALPA_F32);
        assert_int_equal(tp_gguf_get_int(&file_type, merged->gguf, "general.file_type"), TALPA_OK);
        assert_int_equal(file_type, cases[i].file_type);
        assert_int_equal(tp_gguf_get_string(&name, NULL, merged->gguf, "general.name"), TALPA_OK);
        assert_string_equal(name, "tiny");
        assert_int_equal(tp_gguf_n_keys(merged->gguf), tp_gguf_n_keys(base->gguf) + 1); /* general.quantization_version */
        assert_int_equal(tp_tokenizer_n_tokens(merged->tokenizer), tp_tokenizer_n_tokens(base->tokenizer));
        compare(merged, cases[i].bound);
        if (cases[i].type == TALPA_MERGE_AUTO) { /* what no adapter touches is there byte for byte */
            struct tp_gguf_tensor before, after;
            assert_int_equal(tp_gguf_tensor_get(&before, base->gguf, "blk.1.attn_v.weight"), TALPA_OK);
            assert_int_equal(tp_gguf_tensor_get(&after, merged->gguf, "blk.1.attn_v.weight"), TALPA_OK);
            assert_int_equal(before.n_bytes, after.n_bytes);
            assert_memory_equal(before.data, after.data, before.n_bytes);
        }
        talpa_model_close(merged);
        close_base();
    }
}

/* A folder holds the same weights under Hugging Face's names, in its row order. */
static void test_folder(void **state)
{
    (void)state;
    struct talpa_merge_result result;
    struct tp_safetensors *file;
    struct tp_safetensors_tensor tensor;
    struct tp_json *json;
    char to[128];
    size_t n;
    open_base(TALPA_F32);
    snprintf(to, sizeof to, "%s/merged", folder);
    assert_int_equal(merge(&result, to, TALPA_MERGE_Q8_0), TALPA_E_ARGUMENT);
    assert_true(access(to, F_OK) != 0);
    if (merge(&result, to, TALPA_MERGE_AUTO) != TALPA_OK) fail_msg("%s", talpa_error_message());
    assert_true(result.has_tokenizer && result.n_of_type[TALPA_F32] == result.n_tensors);
    assert_int_equal(tp_safetensors_open(&file, path_of("merged/model.safetensors")), TALPA_OK);
    assert_int_equal(tp_safetensors_n_tensors(file), (int64_t)base->n_weights);
    static const char *const names[] = {"model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight",
                                        "model.layers.0.self_attn.v_proj.weight", "model.embed_tokens.weight"};
    for (int i = 0; i < 4; i++) {
        const struct tp_model_weight *weight = tp_model_weight(base, names[i]);
        assert_int_equal(tp_safetensors_get(&tensor, file, names[i]), TALPA_OK);
        const int64_t columns = tensor.shape.dim[1];
        for (int64_t row = 0; row < tensor.shape.dim[0]; row++)
            for (int64_t c = 0; c < columns; c += 9) {
                float value;
                memcpy(&value, (const char *)tensor.data + (size_t)(row * columns + c) * sizeof value, sizeof value);
                assert_true(fabs((double)value - expected(weight, row, c)) < 1e-6);
            }
    }
    tp_safetensors_close(file);
    char *text = read_bytes("merged/config.json", &n);
    int64_t value;
    const char *type;
    assert_int_equal(tp_json_parse(&json, text, n, "config.json"), TALPA_OK);
    assert_int_equal(tp_json_get_int(&value, tp_json_root(json), "num_key_value_heads"), TALPA_OK);
    assert_int_equal(value, 2);
    assert_int_equal(tp_json_get_string(&type, tp_json_root(json), "torch_dtype"), TALPA_OK);
    assert_string_equal(type, "float32");
    tp_json_free(json);
    free(text);
    text = read_bytes("merged/tokenizer.json", &n);
    assert_int_equal(tp_json_parse(&json, text, n, "tokenizer.json"), TALPA_OK);
    assert_int_equal(tp_json_length(tp_json_get(tp_json_get(tp_json_root(json), "model"), "vocab")), 259);
    assert_int_equal(tp_json_length(tp_json_get(tp_json_root(json), "added_tokens")), 3);
    tp_json_free(json);
    free(text);
    static const char *const written[] = {"merged/model.safetensors", "merged/config.json", "merged/tokenizer.json",
                                          "merged/tokenizer_config.json"};
    for (int i = 0; i < 4; i++) assert_int_equal(unlink(path_of(written[i])), 0);
    assert_int_equal(rmdir(to), 0); /* and nothing else */
    close_base();
}

static bool stop_later(void *user) { return ++*(int *)user < 3; }

static void test_interrupted(void **state)
{
    (void)state;
    struct talpa_merge_result result;
    char to[128];
    open_base(TALPA_F32);
    snprintf(to, sizeof to, "%s/merged", folder);
    const int before = n_files();
    for (int i = 0; i < 2; i++) {
        int n = 0;
        const struct talpa_merge_options o = {
            .lora = lora, .output = i ? to : output, .no_probe = true, .keep_going = stop_later, .user = &n};
        assert_int_equal(talpa_merge(&result, base, 0, &o), TALPA_E_INTERRUPTED);
        assert_int_equal(n, 3);
        assert_int_equal(n_files(), before);
    }
    close_base();
}

static void test_refused(void **state)
{
    (void)state;
    struct talpa_merge_result result;
    open_base(TALPA_F32);
    assert_int_equal(merge(&result, path_of("base.gguf"), TALPA_MERGE_AUTO), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "base model itself"));
    assert_int_equal(merge(&result, "test_merge.absent/x.gguf", TALPA_MERGE_AUTO), TALPA_E_CREATE);
    /* a disk that is full half-way: no file, no folder */
    struct rlimit limit, small;
    char to[128];
    snprintf(to, sizeof to, "%s/merged", folder);
    const int before = n_files();
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = 100000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const enum talpa_status file = merge(&result, output, TALPA_MERGE_AUTO), as_folder = merge(&result, to, TALPA_MERGE_AUTO);
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(file, TALPA_E_IO);
    assert_int_equal(talpa_exit_code(file), 74);
    assert_int_equal(as_folder, TALPA_E_IO);
    assert_int_equal(n_files(), before);
    close_base();
    /* a mixture is no matrix; a built-in model has no file to take the metadata from */
    save_default(TALPA_ROUTING_ADAMOLE);
    struct talpa_merge_options o = {.lora = folder, .output = output, .no_probe = true};
    assert_int_equal(talpa_merge(&result, model, 0, &o), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "depends on the token"));
    save_default(TALPA_ROUTING_LORA);
    assert_int_equal(talpa_merge(&result, model, 0, &o), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "GGUF"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_types), cmocka_unit_test(test_folder), cmocka_unit_test(test_interrupted),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
