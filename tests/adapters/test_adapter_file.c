/* Adapter folders: what is written is read back; damaged files and full disks. */
#include "adapter_test.h"

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
        assert_int_equal(n_files(), routing == TALPA_ROUTING_MOELORA ? 4 : 3);
        if (tp_adapter_load(&back, &bank_back, folder, model, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
        assert_int_equal(n_warnings, 0);
        assert_int_equal(back->config.routing, routing);
        assert_int_equal(back->config.rank, 2);
        assert_int_equal(back->config.n_experts, config.n_experts);
        assert_int_equal(back->config.modules, config.modules);
        assert_true(back->config.alpha == 16.0 && back->config.dropout == 0.05);
        if (routing == TALPA_ROUTING_TOPK || routing == TALPA_ROUTING_MOELORA) assert_int_equal(back->config.top_k, 2);
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
    struct talpa_adapter_config config = settings(TALPA_ROUTING_ADAMOLE), found = {0};
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

/* What only moelora's training needs stands in a file of its own; the rest is a top-k mixture for everybody else. */
static void test_moelora(void **state)
{
    (void)state;
    struct talpa_adapter_config config = settings(TALPA_ROUTING_MOELORA), found = {0};
    float *bank;
    config.contrastive = (struct talpa_contrastive_config){.coef = 0.25, .temperature = 0.5, .n_samples = 0, .normalise = false, .gated = true,
                                                           .warmup_steps = 7, .balance_coef = 0.125};
    tp_adapter_free(save(&bank, &config));
    free(bank);
    assert_int_equal(load(&found, false), TALPA_OK);
    const struct talpa_contrastive_config *c = &found.contrastive;
    assert_int_equal(found.routing, TALPA_ROUTING_MOELORA);
    assert_true(c->coef == 0.25 && c->temperature == 0.5 && c->n_samples == 0 && !c->normalise && c->gated);
    assert_true(c->warmup_steps == 7 && c->balance_coef == 0.125);
    static const struct {
        const char *from, *to, *message;
    } damage[] = {{"0.5", "0", "contrastive_temperature"},
                  {"null", "0", "contrastive_samples"},
                  {"null", "\"all\"", "contrastive_samples"},
                  {"0.25", "-1", "contrastive_coef"},
                  {"contrastive_gated", "contrastive_gate", "contrastive_gate: unknown key"},
                  {"{", "[", MOELORA}};
    size_t n_bytes;
    char *whole = read_bytes(MOELORA, &n_bytes);
    for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
        edit(MOELORA, damage[i].from, damage[i].to);
        assert_int_equal(load(NULL, false), TALPA_E_DATA);
        if (!strstr(talpa_error_message(), damage[i].message)) fail_msg("expected %s in: %s", damage[i].message, talpa_error_message());
        write_bytes(MOELORA, whole, n_bytes);
    }
    free(whole);
    /* without the file: still moelora, with the defaults; without ours either: a top-k mixture */
    unlink(path_of(MOELORA));
    assert_int_equal(load(&found, false), TALPA_OK);
    assert_true(found.routing == TALPA_ROUTING_MOELORA && found.contrastive.n_samples == 32);
    unlink(path_of(ABOUT));
    assert_int_equal(load(&found, false), TALPA_OK);
    assert_int_equal(found.routing, TALPA_ROUTING_TOPK);
    /* an adapter of another kind in the same folder leaves nothing of it behind */
    tp_adapter_free(save(&bank, &config));
    assert_int_equal(n_files(), 4);
    config.routing = TALPA_ROUTING_TOPK;
    struct tp_adapter *other;
    assert_int_equal(tp_adapter_create(&other, model, &config), TALPA_OK);
    assert_int_equal(tp_adapter_save(other, bank, folder, model), TALPA_OK);
    tp_adapter_free(other);
    free(bank);
    assert_int_equal(n_files(), 3);
    assert_int_equal(load(&found, false), TALPA_OK);
    assert_int_equal(found.routing, TALPA_ROUTING_TOPK);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_thresholds),
        cmocka_unit_test(test_moelora),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_unwritable),
        cmocka_unit_test(test_old_stays),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
