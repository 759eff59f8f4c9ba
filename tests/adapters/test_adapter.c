/* Layout of the parameter bank, starting values, digest, and the words of the command line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "adapters/adapter.h"
#include "base/status.h"

enum { ALL_MODULES = 127, ALIGN = 256 };

static struct talpa_model *model;

static int open_model(void **state)
{
    (void)state;
    return talpa_model_open(&model, "random:tiny") == TALPA_OK ? 0 : -1;
}

static int close_model(void **state)
{
    (void)state;
    talpa_model_close(model);
    return 0;
}

static struct tp_adapter *make(enum talpa_routing routing, int rank, int n_experts, unsigned modules)
{
    struct talpa_adapter_config config = talpa_adapter_default();
    struct tp_adapter *adapter = NULL;
    config.routing = routing;
    config.rank = rank;
    config.n_experts = n_experts;
    config.modules = modules;
    assert_int_equal(tp_adapter_create(&adapter, model, &config), TALPA_OK);
    return adapter;
}

static float *filled(const struct tp_adapter *adapter)
{
    float *bank = malloc((size_t)adapter->bank_elements * sizeof *bank);
    for (int64_t i = 0; i < adapter->bank_elements; i++) bank[i] = (float)(i % 100003) - 5e4f;
    return bank;
}

static size_t size_of(const struct tp_adapter_tensor *t) { return (size_t)t->rows * (size_t)t->columns; }

/* ---- layout ---- */

static void test_layout(void **state)
{
    (void)state;
    for (int routing = 0; routing < TALPA_N_ROUTINGS; routing++) {
        for (unsigned modules = 1; modules <= ALL_MODULES; modules += 21) {
            struct tp_adapter *a = make((enum talpa_routing)routing, 3, 5, modules);
            const int n_experts = routing == TALPA_ROUTING_LORA ? 1 : 5;
            char *owner = calloc(1, (size_t)a->bank_elements);
            int64_t n_owned = 0;
            assert_int_equal(a->config.n_experts, n_experts);
            assert_int_equal(a->bank_elements % ALIGN, 0);
            for (int m = 0; m < a->n_modules; m++)
                for (int k = 0; k < TP_N_TENSOR_KINDS; k++)
                    if (a->modules[m].offset[k] >= 0) assert_int_equal(a->modules[m].offset[k] % ALIGN, 0);
            for (int i = 0; i < a->n_tensors; i++) {
                const struct tp_adapter_tensor *t = &a->tensors[i];
                const struct tp_adapter_module *m = &a->modules[t->module];
                assert_true(t->offset >= 0 && t->offset + (int64_t)size_of(t) <= a->bank_elements);
                for (size_t k = 0; k < size_of(t); k++) assert_int_equal(owner[(size_t)t->offset + k]++, 0);
                n_owned += (int64_t)size_of(t);
                /* experts follow each other without a gap */
                if (t->kind == TP_TENSOR_A) assert_int_equal(t->offset, m->offset[TP_TENSOR_A] + (int64_t)t->expert * 3 * m->d_in);
                if (t->kind == TP_TENSOR_B) assert_int_equal(t->offset, m->offset[TP_TENSOR_B] + (int64_t)t->expert * 3 * m->d_out);
                assert_int_equal(tp_adapter_find(a, t->name), i);
                const bool may_skip = t->kind <= TP_TENSOR_B && (routing == TALPA_ROUTING_THRESHOLD || routing == TALPA_ROUTING_ADAMOLE);
                assert_int_equal(t->flag, may_skip ? t->module * ALIGN + t->expert : -1);
            }
            assert_int_equal(n_owned, a->n_trainable);
            free(owner);
            tp_adapter_free(a);
        }
    }
}

/* Names and shapes written out by hand for one module of the built-in model: d_model 64, 2 of 4 heads of 16 for keys. */
static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *suffix;
        int rows, columns;
    } expected[] = {{"lora_A.0.weight", 2, 64},   {"lora_A.1.weight", 2, 64},    {"lora_B.0.weight", 32, 2},
                    {"lora_B.1.weight", 32, 2},   {"lora_gating.weight", 2, 64}, {"lora_threshold.weight", 1, 64},
                    {"lora_threshold.bias", 1, 1}};
    struct tp_adapter *a = make(TALPA_ROUTING_ADAMOLE, 2, 2, TALPA_MODULE_K);
    assert_int_equal(a->n_tensors, 14);
    assert_int_equal(a->n_trainable, 2 * (2 * 2 * 64 + 2 * 32 * 2 + 2 * 64 + 64 + 1));
    for (int i = 0; i < 14; i++) {
        char name[128];
        snprintf(name, sizeof name, "base_model.model.model.layers.%d.self_attn.k_proj.%s", i / 7, expected[i % 7].suffix);
        assert_string_equal(a->tensors[i].name, name);
        assert_int_equal(a->tensors[i].rows, expected[i % 7].rows);
        assert_int_equal(a->tensors[i].columns, expected[i % 7].columns);
    }
    assert_int_equal(tp_adapter_find(a, "base_model.model.model.layers.0.self_attn.k_proj.lora_A.2.weight"), -1);
    tp_adapter_free(a);
    a = make(TALPA_ROUTING_LORA, 2, 8, TALPA_MODULE_DOWN);
    assert_int_equal(a->n_tensors, 4);
    assert_string_equal(a->tensors[3].name, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    assert_int_equal(a->tensors[2].columns, 128);
    assert_int_equal(a->tensors[3].rows, 64);
    tp_adapter_free(a);
}

static void test_put_get(void **state)
{
    (void)state;
    struct tp_adapter *a = make(TALPA_ROUTING_ADAMOLE, 3, 4, ALL_MODULES);
    float *bank = filled(a), *before = filled(a);
    for (int i = 0; i < a->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &a->tensors[i];
        float *values = malloc(size_of(t) * sizeof *values), *back = malloc(size_of(t) * sizeof *values);
        for (size_t k = 0; k < size_of(t); k++) values[k] = (float)k + 0.5f;
        tp_adapter_put(bank, a, i, values);
        tp_adapter_get(back, a, bank, i);
        assert_memory_equal(values, back, size_of(t) * sizeof *values);
        for (int row = 0; row < t->rows; row++)
            for (int column = 0; column < t->columns; column++) {
                const int at = t->kind == TP_TENSOR_B ? column * t->rows + row : row * t->columns + column;
                assert_true(bank[t->offset + at] == values[row * t->columns + column]);
            }
        /* nothing else moved */
        memcpy(before + t->offset, bank + t->offset, size_of(t) * sizeof *bank);
        if (i % 10 == 0) assert_memory_equal(before, bank, (size_t)a->bank_elements * sizeof *bank);
        free(values);
        free(back);
    }
    assert_memory_equal(before, bank, (size_t)a->bank_elements * sizeof *bank);
    free(bank);
    free(before);
    tp_adapter_free(a);
}

/* ---- starting values ---- */

static void test_init(void **state)
{
    (void)state;
    struct tp_adapter *all = make(TALPA_ROUTING_ADAMOLE, 4, 4, ALL_MODULES),
                      *some = make(TALPA_ROUTING_ADAMOLE, 4, 4, TALPA_MODULE_V | TALPA_MODULE_DOWN);
    float *bank = filled(all), *other = filled(some), *again = filled(all);
    tp_adapter_init(bank, all, 7);
    tp_adapter_init(other, some, 7);
    double sum = 0.0, square = 0.0;
    size_t n = 0;
    int64_t n_non_zero = 0;
    for (int64_t i = 0; i < all->bank_elements; i++) n_non_zero += bank[i] != 0.0f;
    for (int i = 0; i < all->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &all->tensors[i];
        const double bound = 1.0 / sqrt((double)all->modules[t->module].d_in);
        for (size_t k = 0; k < size_of(t); k++) {
            const double value = (double)bank[t->offset + (int64_t)k];
            if (t->kind == TP_TENSOR_B)
                assert_true(value == 0.0);
            else {
                assert_true(fabs(value) <= bound * (1.0 + 1e-6));
                n_non_zero -= value != 0.0;
                sum += value / bound;
                square += value * value / bound / bound;
                n++;
            }
        }
        const int at = tp_adapter_find(some, t->name);
        if (at >= 0) assert_memory_equal(bank + t->offset, other + some->tensors[at].offset, size_of(t) * sizeof *bank);
    }
    assert_int_equal(n_non_zero, 0); /* the gaps between tensors too are zero */
    assert_true(fabs(sum / (double)n) < 0.02 && fabs(square / (double)n - 1.0 / 3.0) < 0.02);
    /* experts differ from each other, seeds too; the same seed gives the same bits */
    assert_memory_not_equal(bank + all->tensors[0].offset, bank + all->tensors[1].offset, 64 * sizeof *bank);
    tp_adapter_init(again, all, 7);
    assert_memory_equal(bank, again, (size_t)all->bank_elements * sizeof *bank);
    tp_adapter_init(again, all, 8);
    assert_memory_not_equal(bank + all->tensors[0].offset, again + all->tensors[0].offset, 64 * sizeof *bank);
    free(bank);
    free(other);
    free(again);
    tp_adapter_free(all);
    tp_adapter_free(some);
}

/* ---- digest ---- */

static int by_text(const void *a, const void *b)
{
    const struct tp_adapter_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static void test_digest(void **state)
{
    (void)state;
    struct tp_adapter *a = make(TALPA_ROUTING_ADAMOLE, 2, 11, TALPA_MODULE_Q | TALPA_MODULE_K);
    float *bank = filled(a);
    uint64_t digest, found;
    assert_int_equal(tp_adapter_digest(&digest, a, bank), TALPA_OK);

    /* the definition, spelled out: "...lora_A.10.weight" sorts before "...lora_A.2.weight" */
    const struct tp_adapter_tensor *sorted[256];
    assert_true(a->n_tensors <= 256);
    for (int i = 0; i < a->n_tensors; i++) sorted[i] = &a->tensors[i];
    qsort(sorted, (size_t)a->n_tensors, sizeof *sorted, by_text);
    XXH3_state_t *hash = XXH3_createState();
    XXH3_64bits_reset(hash);
    for (int i = 0; i < a->n_tensors; i++) {
        const struct tp_adapter_tensor *t = sorted[i];
        XXH3_64bits_update(hash, t->name, strlen(t->name) + 1);
        for (int row = 0; row < t->rows; row++)
            for (int column = 0; column < t->columns; column++)
                XXH3_64bits_update(hash, &bank[t->offset + (t->kind == TP_TENSOR_B ? column * t->rows + row : row * t->columns + column)],
                                   4);
    }
    assert_int_equal(XXH3_64bits_digest(hash), digest);
    XXH3_freeState(hash);

    for (int i = 0; i < a->n_tensors; i++) {
        uint32_t *bits = (uint32_t *)(void *)(bank + a->tensors[i].offset + (int64_t)size_of(&a->tensors[i]) - 1);
        *bits ^= 1u;
        assert_int_equal(tp_adapter_digest(&found, a, bank), TALPA_OK);
        assert_int_not_equal(found, digest);
        *bits ^= 1u;
    }
    /* the order in the table and what lies between the tensors do not count */
    for (int i = 0; i < a->n_tensors / 2; i++) {
        const struct tp_adapter_tensor swap = a->tensors[i];
        a->tensors[i] = a->tensors[a->n_tensors - 1 - i];
        a->tensors[a->n_tensors - 1 - i] = swap;
    }
    bank[a->bank_elements - 1] += 1.0f;
    assert_int_equal(tp_adapter_digest(&found, a, bank), TALPA_OK);
    assert_int_equal(found, digest);
    free(bank);
    tp_adapter_free(a);
}

/* ---- words and numbers ---- */

static void test_modules(void **state)
{
    (void)state;
    static const struct {
        const char *list;
        unsigned modules;
    } good[] = {{"q", 1}, {"q,k,v,o", 15}, {"down,q", 65}, {"q_proj,gate_proj", 17}, {"all", 127}, {"up", 32}, {"v,k_proj", 6}};
    static const char *const bad[] = {"", "q,", ",q", "q,q", "q,q_proj", "x", "qk", "q k", "_proj", "all,q", "lm_head", "Q"};
    unsigned modules;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(talpa_modules_parse(&modules, good[i].list), TALPA_OK);
        assert_int_equal(modules, good[i].modules);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        modules = 99;
        assert_int_equal(talpa_modules_parse(&modules, bad[i]), TALPA_E_ARGUMENT);
        assert_int_equal(modules, 99);
        assert_non_null(strstr(talpa_error_message(), "--lora-modules"));
    }
}

static void test_routing(void **state)
{
    (void)state;
    static const char *const names[TALPA_N_ROUTINGS] = {"lora", "topk", "threshold", "adamole", "moelora"};
    enum talpa_routing routing;
    for (int i = 0; i < TALPA_N_ROUTINGS; i++) {
        assert_int_equal(talpa_routing_parse(&routing, names[i]), TALPA_OK);
        assert_int_equal(routing, i);
        assert_string_equal(talpa_routing_name(routing), names[i]);
    }
    assert_int_equal(talpa_routing_parse(&routing, "AdaMoLE"), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "adamole"));
}

static void expect_refused(const struct talpa_adapter_config *config, const char *flag)
{
    struct tp_adapter *adapter = NULL;
    assert_int_equal(tp_adapter_create(&adapter, model, config), TALPA_E_ARGUMENT);
    assert_null(adapter);
    if (!strstr(talpa_error_message(), flag)) fail_msg("expected %s in: %s", flag, talpa_error_message());
}

static void test_impossible(void **state)
{
    (void)state;
    struct talpa_adapter_config c = talpa_adapter_default();
#define REFUSED(field, value, flag)                                                                                                        \
    do {                                                                                                                                   \
        struct talpa_adapter_config d = c;                                                                                                 \
        d.field = (value);                                                                                                                 \
        expect_refused(&d, flag);                                                                                                          \
    } while (0)
    REFUSED(rank, 0, "-rank");
    REFUSED(rank, 5000, "-rank");
    REFUSED(n_experts, 0, "--num-experts");
    REFUSED(n_experts, 257, "--num-experts");
    REFUSED(alpha, 0.0, "--lora-alpha");
    REFUSED(alpha, (double)NAN, "--lora-alpha");
    REFUSED(dropout, 1.0, "--lora-dropout");
    REFUSED(dropout, -0.1, "--lora-dropout");
    REFUSED(modules, 0, "--lora-modules");
    REFUSED(max_threshold, 1.5, "--max-threshold");
    c.routing = TALPA_ROUTING_TOPK;
    REFUSED(top_k, 9, "--router-top-k");
    REFUSED(top_k, 0, "--router-top-k");
    c.routing = TALPA_ROUTING_THRESHOLD;
    REFUSED(threshold, -0.5, "--router-threshold");
#undef REFUSED
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout), cmocka_unit_test(test_names),   cmocka_unit_test(test_put_get), cmocka_unit_test(test_init),
        cmocka_unit_test(test_digest), cmocka_unit_test(test_modules), cmocka_unit_test(test_routing), cmocka_unit_test(test_impossible),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
