/* Every architecture as a folder and as a GGUF file: merged models compute what base and adapter do, and a GGUF LoRA means the same on
 * both. */
#include "adapter_test.h"
#include "golden.h"

static const char *const names[] = {"llama", "mistral", "llama3", "qwen2", "qwen3", "gemma"};
enum { N_NAMES = sizeof names / sizeof *names };

static char lora[128];

static void open_model(struct talpa_model **out, const char *name, bool is_gguf)
{
    char path[512];
    snprintf(path, sizeof path, TALPA_SOURCE_DIR "/tests/data/models/%s%s", name, is_gguf ? "/model.gguf" : "");
    golden_ok(talpa_model_open(out, path));
}

/* Saves a LoRA on all linears, with an effect that shows. */
static struct tp_adapter *make_lora(float **bank, struct talpa_model *on)
{
    const struct talpa_adapter_config config = {.routing = TALPA_ROUTING_LORA, .rank = 3, .n_experts = 1, .alpha = 6.0, .modules = 127};
    struct tp_adapter *adapter;
    golden_ok(tp_adapter_create(&adapter, on, &config));
    *bank = calloc((size_t)adapter->bank_elements, sizeof **bank);
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        for (int k = 0; k < t->rows * t->columns; k++) (*bank)[t->offset + k] = (float)((i * 131 + k * 7919) % 613 - 306) / 2048.0f;
    }
    snprintf(lora, sizeof lora, "%s/lora", folder);
    mkdir(lora, 0755);
    golden_ok(tp_adapter_save(adapter, *bank, lora, on));
    return adapter;
}

static void remove_folder(const char *name)
{
    char path[256], entry[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(entry, sizeof entry, "%s/%s", path, e->d_name);
        if (e->d_name[0] != '.') unlink(entry);
    }
    if (d) closedir(d);
    rmdir(path);
}

static void check(const struct talpa_merge_result *r, const char *name, const char *kind)
{
    if (!r->has_probe || r->n_positions < 50 || !(r->max_difference < 1e-3) || !(r->top1_agreement > 0.97))
        fail_msg("%s %s: %lld tokens, logits differ by %g, same first choice %g", name, kind, (long long)r->n_positions, r->max_difference,
                 r->top1_agreement);
    if (!(r->mean_difference > 0.0)) fail_msg("%s %s: nothing differs at all: was the adapter merged?", name, kind);
}

static void test_merge(void **state)
{
    (void)state;
    const size_t device = golden_device();
    for (int i = 0; i < N_NAMES; i++) {
        for (int is_gguf = 0; is_gguf < 2; is_gguf++) {
            struct talpa_model *base;
            struct talpa_merge_result result;
            float *bank;
            char to_folder[128], to_file[128];
            snprintf(to_folder, sizeof to_folder, "%s/merged", folder);
            snprintf(to_file, sizeof to_file, "%s/merged.gguf", folder);
            open_model(&base, names[i], is_gguf);
            struct tp_adapter *adapter = make_lora(&bank, base);
            struct talpa_merge_options o = {.lora = lora, .output = to_folder, .type = TALPA_MERGE_F32};
            const enum talpa_status as_folder = talpa_merge(&result, base, device, &o);
            if (!is_gguf || i < 2) {
                golden_ok(as_folder);
                assert_int_equal(result.n_merged, adapter->n_modules);
                check(&result, names[i], is_gguf ? "GGUF to folder" : "folder to folder");
            } else { /* config.json is only made for what it is known to say completely */
                assert_int_equal(as_folder, TALPA_E_ARGUMENT);
            }
            o.output = to_file;
            const enum talpa_status as_file = talpa_merge(&result, base, device, &o);
            if (is_gguf) {
                golden_ok(as_file);
                check(&result, names[i], "GGUF to GGUF");
            } else {
                assert_int_equal(as_file, TALPA_E_ARGUMENT);
            }
            remove_folder("merged");
            remove_folder("lora");
            unlink(to_file);
            tp_adapter_free(adapter);
            free(bank);
            talpa_model_close(base);
        }
    }
}

/* The rows of q and k lie in another order in some architectures' GGUF files, whatever the base is read from. */
static void test_row_order(void **state)
{
    (void)state;
    for (int i = 0; i < N_NAMES; i++) {
        float *bank, *back;
        struct talpa_model *base[2];
        char path[2][128];
        struct tp_adapter *adapter = NULL;
        size_t n[2];
        char *bytes[2];
        for (int is_gguf = 0; is_gguf < 2; is_gguf++) {
            open_model(&base[is_gguf], names[i], is_gguf);
            if (!is_gguf) adapter = make_lora(&bank, base[0]);
            snprintf(path[is_gguf], sizeof path[0], "%s/%d.gguf", folder, is_gguf);
            struct talpa_export_result result;
            const struct talpa_export_options o = {
                .lora = lora, .format = TALPA_EXPORT_GGUF, .output = path[is_gguf], .allow_other_base = true};
            golden_ok(talpa_adapter_export(&result, base[is_gguf], &o));
        }
        for (int k = 0; k < 4; k++) { /* made on either, read on either */
            struct tp_adapter *loaded;
            golden_ok(tp_adapter_load(&loaded, &back, path[k / 2], base[k % 2], true));
            assert_memory_equal(bank, back, (size_t)adapter->bank_elements * sizeof *bank);
            tp_adapter_free(loaded);
            free(back);
        }
        /* the tensors are the same bytes at the end of the two files */
        bytes[0] = read_bytes("0.gguf", &n[0]);
        bytes[1] = read_bytes("1.gguf", &n[1]);
        const size_t n_data = (size_t)adapter->n_trainable * sizeof(float);
        assert_true(n_data < n[0] && n_data < n[1]);
        assert_memory_equal(bytes[0] + n[0] - n_data, bytes[1] + n[1] - n_data, n_data);
        for (int k = 0; k < 2; k++) {
            free(bytes[k]);
            unlink(path[k]);
            talpa_model_close(base[k]);
        }
        remove_folder("lora");
        tp_adapter_free(adapter);
        free(bank);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_row_order), cmocka_unit_test(test_merge)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
