/* Groups of nodes that a plan lowers as one, against the same nodes one by one: every value that the host can read has the same bits. */
#include "ops_test.h"

#include <math.h>

#include "base/rng.h"
#include "exec/tier.h"

enum { BOUND = 7, N = 5, N_SLOTS = 23, N_HEADS = 4, N_KV_HEADS = 2, MAX_WIDTH = N_HEADS * 64 };

struct layer {
    talpa_value q, k, v, positions, slots, spans, k_cache, v_cache;   /* leaves */
    talpa_value rotated_q, rotated_k, next_k, next_v, mixed;
};

enum also { NOTHING, KEYS_READ, KEYS_OUTPUT, NO_CACHE };

static void build(struct layer *l, struct talpa_graph *graph, int head_dim, bool table, enum also also)
{
    const struct tp_type rows = tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, BOUND);
    const struct tp_type wide = tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, N_HEADS * head_dim);
    const struct tp_type narrow = tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, BOUND, N_KV_HEADS * head_dim);
    const struct tp_type cache = tp_type_2d(TALPA_F32, TP_STEP_NONE, N_SLOTS, N_KV_HEADS * head_dim);
    talpa_value frequencies, q, k, v;
    assert_ok(tp_graph_input(graph, &l->q, "q", wide));
    assert_ok(tp_graph_input(graph, &l->k, "k", narrow));
    assert_ok(tp_graph_input(graph, &l->v, "v", narrow));
    assert_ok(tp_graph_input(graph, &l->positions, "positions", rows));
    assert_ok(tp_graph_input(graph, &l->slots, "slots", rows));
    assert_ok(tp_graph_input(graph, &l->spans, "spans", tp_type_2d(TALPA_I32, TP_STEP_N_TOKENS, BOUND, 2)));
    assert_ok(tp_graph_state(graph, &l->k_cache, "k_cache", cache));
    assert_ok(tp_graph_state(graph, &l->v_cache, "v_cache", cache));
    assert_ok(tp_graph_input(graph, &frequencies, "frequencies", tp_type_2d(TALPA_I32, TP_STEP_NONE, head_dim / 2, 2)));
    /* Copies in the arena, so that the rotation can be in place. */
    assert_ok(talpa_scale(&q, graph, l->q, 0.5f));
    assert_ok(talpa_scale(&k, graph, l->k, 0.5f));
    assert_ok(talpa_scale(&v, graph, l->v, 0.5f));
    if (table) {
        assert_ok(talpa_rope_table(&l->rotated_q, graph, q, l->positions, frequencies, N_HEADS, head_dim));
        assert_ok(talpa_rope_table(&l->rotated_k, graph, k, l->positions, frequencies, N_KV_HEADS, head_dim));
    } else {
        assert_ok(talpa_rope(&l->rotated_q, graph, q, l->positions, N_HEADS, head_dim, 1e4f));
        assert_ok(talpa_rope(&l->rotated_k, graph, k, l->positions, N_KV_HEADS, head_dim, 1e4f));
    }
    tp_graph_mark_output(graph, l->rotated_q);
    if (also == NO_CACHE || also == KEYS_OUTPUT) tp_graph_mark_output(graph, l->rotated_k);
    if (also == NO_CACHE) return;
    assert_ok(talpa_cache_write(&l->next_k, graph, l->k_cache, l->rotated_k, l->slots));
    assert_ok(talpa_cache_write(&l->next_v, graph, l->v_cache, v, l->slots));
    assert_ok(talpa_cached_attention(&l->mixed, graph, l->rotated_q, l->next_k, l->next_v, l->spans, N_HEADS, N_KV_HEADS, head_dim, 0.125f));
    tp_graph_mark_output(graph, l->mixed);
    if (also != KEYS_READ) return;
    talpa_value sum;
    assert_ok(talpa_reduce_rows(&sum, graph, l->rotated_k));
    tp_graph_mark_output(graph, sum);
}

struct result {
    float q[BOUND * MAX_WIDTH], k[BOUND * MAX_WIDTH], mixed[BOUND * MAX_WIDTH], k_cache[N_SLOTS * MAX_WIDTH], v_cache[N_SLOTS * MAX_WIDTH];
    int n_launches, n_groups;
    char name[64];
};

static void run_layer(struct result *result, int head_dim, bool table, enum also also, bool no_fusion, const char *tier)
{
    static float values[N_SLOTS * MAX_WIDTH];
    const size_t row = (size_t)N_HEADS * (size_t)head_dim * sizeof(float), kv_row = row / N_HEADS * N_KV_HEADS;
    static const int32_t positions[N] = {0, 8000, 3, 17, 1}, slots[N] = {4, 22, 99, 0, 7}; /* one slot outside the cache */
    static const int32_t spans[2 * N] = {0, 5, 3, 23, 0, 1, 0, 23, 6, 9};
    int32_t frequencies[64];
    struct test_run run;
    struct layer l;
    struct tp_plan_options options;
    memset(result, 0, sizeof *result);
    test_run_open(&run);
    build(&l, run.graph, head_dim, table, also);
    tp_plan_options_default(&options);
    options.no_fusion = no_fusion;
    if (tier) snprintf(options.tier, sizeof options.tier, "%s", tier);
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, tp_device_caps(run.device), &options));
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    tp_rng_fill_splitmix(values, N_SLOTS * MAX_WIDTH, 3, 1, 1.0);
    assert_ok(tp_executor_write(run.executor, l.q, values, BOUND * row));
    assert_ok(tp_executor_write(run.executor, l.k, values + 100, BOUND * kv_row));
    assert_ok(tp_executor_write(run.executor, l.v, values + 50, BOUND * kv_row));
    assert_ok(tp_executor_write(run.executor, l.positions, positions, sizeof positions));
    for (int i = 0; i < head_dim / 2; i++) {
        frequencies[2 * i] = (int32_t)(0x28be60dbu >> i);
        frequencies[2 * i + 1] = i * 77777;
    }
    if (table) assert_ok(tp_executor_write(run.executor, tp_graph_find(run.graph, "frequencies"), frequencies, (size_t)head_dim * sizeof(int32_t)));
    if (also != NO_CACHE) {
        assert_ok(tp_executor_write(run.executor, l.slots, slots, sizeof slots));
        assert_ok(tp_executor_write(run.executor, l.spans, spans, sizeof spans));
        assert_ok(tp_executor_write(run.executor, l.k_cache, values, N_SLOTS * kv_row));
        assert_ok(tp_executor_write(run.executor, l.v_cache, values + 9, N_SLOTS * kv_row));
    }
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = N;
    assert_ok(tp_executor_step(run.executor, &step));
    assert_ok(tp_executor_poison(run.executor));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_finish(run.executor));
    assert_ok(tp_executor_read(run.executor, l.rotated_q, result->q, N * row));
    if (also == NO_CACHE || also == KEYS_OUTPUT) assert_ok(tp_executor_read(run.executor, l.rotated_k, result->k, N * kv_row));
    if (also != NO_CACHE) {
        assert_ok(tp_executor_read(run.executor, l.mixed, result->mixed, N * row));
        assert_ok(tp_executor_read(run.executor, l.k_cache, result->k_cache, N_SLOTS * kv_row));
        assert_ok(tp_executor_read(run.executor, l.v_cache, result->v_cache, N_SLOTS * kv_row));
    }
    result->n_launches = run.plan->phase[0].n;
    result->n_groups = run.plan->n_fused;
    if (run.plan->n_fused) snprintf(result->name, sizeof result->name, "%s", run.plan->fused[0]->rule->name);
    test_run_close(&run);
}

static void check_layer(int head_dim, bool table, enum also also, const char *name, int n_saved)
{
    static struct result fused, apart;
    static const char *const tiers[] = {NULL, "generic"};
    for (size_t t = 0; t < sizeof tiers / sizeof *tiers; t++) {
        run_layer(&fused, head_dim, table, also, false, tiers[t]);
        run_layer(&apart, head_dim, table, also, true, tiers[t]);
        assert_int_equal(apart.n_groups, 0);
        assert_int_equal(fused.n_groups, 1);
        assert_string_equal(fused.name, name);
        assert_int_equal(fused.n_launches, apart.n_launches - n_saved);
        assert_memory_equal(fused.q, apart.q, sizeof fused.q);
        assert_memory_equal(fused.k, apart.k, sizeof fused.k);
        assert_memory_equal(fused.mixed, apart.mixed, sizeof fused.mixed);
        assert_memory_equal(fused.k_cache, apart.k_cache, sizeof fused.k_cache);
        assert_memory_equal(fused.v_cache, apart.v_cache, sizeof fused.v_cache);
        assert_true(fused.q[0] != 0.0f); /* something was computed */
    }
}

static const char pair[] = "rope+rope", cached[] = "rope+rope+cache_write+cache_write";

static void test_rope_cache(void **unused)
{
    (void)unused;
    check_layer(64, false, NOTHING, cached, 3);
    check_layer(16, true, NOTHING, cached, 3);
    check_layer(20, false, NOTHING, cached, 3); /* the cpu tier has no kernel for this width */
}

static void test_rope_pair(void **unused)
{
    (void)unused;
    check_layer(64, false, NO_CACHE, pair, 1);
    check_layer(6, true, NO_CACHE, pair, 1);
}

/* Keys that somebody else needs as well have to be stored: only the rotations go together. */
static void test_keys_needed(void **unused)
{
    (void)unused;
    check_layer(32, false, KEYS_OUTPUT, pair, 1);
    check_layer(32, false, KEYS_READ, pair, 1);
}

/* ---- products of normalised rows ---- */

enum { K = 96, MAX_OUT_WIDTH = 70, MAX_PRODUCTS = 3, FEW = 8 };

struct products {
    enum talpa_dtype dtype;
    int n_products;
    int activation;     /* 0: none, 1: swiglu, 2: geglu, of two products */
    bool norm_read;     /* somebody else reads the normalised rows */
    int64_t bound;
};

struct product_result {
    float out[MAX_PRODUCTS + 1][FEW * K];
    int n_launches, n_groups;
    bool norm_stored;
};

static const int64_t widths[MAX_PRODUCTS] = {70, 33, 32};

/* Blocks of 34 (q8_0) or 20 bytes (q4_1) with small f16 scales; the rest are levels. */
static void fill_weight(uint8_t *bytes, size_t n, enum talpa_dtype dtype, uint64_t seed)
{
    if (dtype == TALPA_F32) {
        tp_rng_fill_splitmix((float *)(void *)bytes, (int64_t)(n / sizeof(float)), 5, seed, 0.1);
        return;
    }
    const size_t block = dtype == TALPA_Q8_0 ? 34 : 20;
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(tp_rng_splitmix64(seed, i) >> 20);
    for (size_t b = 0; b + block <= n; b += block) {
        bytes[b + 1] = dtype == TALPA_Q8_0 ? 0x11 : 0x20; /* the f16's upper byte: about 2^-11, 2^-7 */
        if (dtype != TALPA_Q8_0) bytes[b + 3] = 0xa4;
    }
}

static void run_products(struct product_result *result, const struct products *p, uint32_t n_rows, bool no_fusion)
{
    static uint8_t bytes[MAX_PRODUCTS][MAX_OUT_WIDTH * K * 4];
    static float x[FEW * K], norm_bytes[K];
    struct test_run run;
    struct tp_plan_options options;
    talpa_value rows, norm, h, y[MAX_PRODUCTS + 1], weight;
    int n_out = p->n_products;
    memset(result, 0, sizeof *result);
    test_run_open(&run);
    assert_ok(tp_graph_input(run.graph, &rows, "x", tp_type_2d(TALPA_F32, TP_STEP_N_TOKENS, p->bound, K)));
    assert_ok(tp_graph_weight(run.graph, &norm, "norm", tp_type_1d(TALPA_F32, TP_STEP_NONE, K)));
    tp_rng_fill_splitmix(x, FEW * K, 1, 1, 2.0);
    tp_rng_fill_splitmix(norm_bytes, K, 1, 2, 1.0);
    const struct tp_store_source norm_source = {.type = tp_type_1d(TALPA_F32, TP_STEP_NONE, K), .data = norm_bytes};
    assert_ok(tp_store_bind(run.store, "norm", &norm_source));
    assert_ok(talpa_rms_norm(&h, run.graph, rows, norm, 1e-5f));
    for (int i = 0; i < p->n_products; i++) {
        const struct tp_type type = tp_type_2d(p->dtype, TP_STEP_NONE, p->activation ? widths[0] : widths[i], K);
        const struct tp_store_source source = {.type = type, .data = bytes[i]};
        char name[16];
        snprintf(name, sizeof name, "w%d", i);
        fill_weight(bytes[i], tp_type_bytes(&type), p->dtype, (uint64_t)i + 1);
        assert_ok(tp_graph_weight(run.graph, &weight, name, type));
        assert_ok(tp_store_bind(run.store, name, &source));
        assert_ok(talpa_matmul(&y[i], run.graph, h, weight, TALPA_NONE, false, true));
    }
    if (p->activation) {
        if (p->activation == 1) assert_ok(talpa_swiglu(&y[0], run.graph, y[0], y[1]));
        else assert_ok(talpa_geglu(&y[0], run.graph, y[0], y[1]));
        n_out = 1;
    }
    if (p->norm_read) assert_ok(talpa_scale(&y[n_out++], run.graph, h, 1.0f));
    for (int i = 0; i < n_out; i++) tp_graph_mark_output(run.graph, y[i]);
    tp_plan_options_default(&options);
    options.no_fusion = no_fusion;
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, tp_device_caps(run.device), &options));
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = n_rows;
    assert_ok(tp_executor_step(run.executor, &step));
    assert_ok(tp_executor_write(run.executor, rows, x, n_rows * K * sizeof *x));
    assert_ok(tp_executor_poison(run.executor));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_finish(run.executor));
    for (int i = 0; i < n_out; i++) {
        const size_t width = (size_t)tp_graph_type(run.graph, y[i])->shape.dim[1];
        assert_ok(tp_executor_read(run.executor, y[i], result->out[i], n_rows * width * sizeof(float)));
    }
    result->n_launches = run.plan->phase[0].n;
    result->n_groups = run.plan->n_fused;
    result->norm_stored = run.plan->row[h].place != TP_PLACE_NONE;
    test_run_close(&run);
}

/* Whether plans may use the cpu tier here, the only one that has kernels for some of the rules. */
static bool has_cpu_kernels(void)
{
    struct tp_plan_options options;
    struct test_run run;
    test_run_open(&run);
    tp_plan_options_default(&options);
    const bool has = tp_tier_allowed(tp_device_caps(run.device), &options, "cpu");
    test_run_close(&run);
    return has;
}

/* A product may add in another order when it runs by itself: 1e-5 of 1 + |y|. For few rows, each row has the same bits whatever runs beside
 * it. */
static void check_products(const struct products *p)
{
    static struct product_result fused, apart, one;
    run_products(&fused, p, 5, false);
    run_products(&apart, p, 5, true);
    const bool expected = p->bound <= FEW && has_cpu_kernels();
    assert_true(fused.n_groups > 0 || !expected);
    assert_int_equal(apart.n_groups, 0);
    if (fused.n_groups) {
        assert_int_equal(fused.n_launches, 1 + p->norm_read);
        assert_int_equal(fused.norm_stored, p->norm_read);
        assert_true(expected);
    }
    for (int i = 0; i <= MAX_PRODUCTS; i++)
        for (int j = 0; j < FEW * K; j++) {
            const double error = fabs((double)fused.out[i][j] - (double)apart.out[i][j]) / (1.0 + fabs((double)apart.out[i][j]));
            if (!(error <= 1e-5)) fail_msg("product %d, element %d: %g, by itself %g", i, j, (double)fused.out[i][j], (double)apart.out[i][j]);
        }
    assert_true(fused.out[0][0] != 0.0f);
    run_products(&one, p, 1, false);
    assert_memory_equal(one.out[0], fused.out[0], widths[0] * sizeof(float));
}

static void test_products(void **unused)
{
    (void)unused;
    check_products(&(struct products){TALPA_Q4_1, 3, 0, false, 8});
    check_products(&(struct products){TALPA_Q8_0, 3, 0, true, 5});
    check_products(&(struct products){TALPA_F32, 2, 0, true, 8});
    check_products(&(struct products){TALPA_Q8_0, 1, 0, false, 7});
    check_products(&(struct products){TALPA_Q4_1, 2, 0, false, 9}); /* too many rows: apart */
}

static void test_gated(void **unused)
{
    (void)unused;
    check_products(&(struct products){TALPA_Q4_1, 2, 1, false, 8});
    check_products(&(struct products){TALPA_Q8_0, 2, 2, false, 8});
    check_products(&(struct products){TALPA_F32, 2, 1, false, 5});
}

/* ---- router, threshold gate and experts ---- */

enum { X_WIDTH = 112, Y_WIDTH = 208, N_EXPERTS = 5, RANK = 3, N_ALL = N_EXPERTS * RANK };

enum { MAX_ROUTED = 4 };

struct routed {
    float y[MAX_ROUTED][BOUND * Y_WIDTH];
    int n_launches, n_groups;
};

struct routing {
    uint32_t n_rows;
    float threshold; /* below 0: AdaMoLE's, learned */
    int n_products;  /* with the same x; the i-th has Y_WIDTH - 16 i columns */
    bool with_score; /* something outside reads a gate's scores */
    bool is_frozen;  /* A and B^T are weights, and packed to bf16 where products are */
    bool no_fusion;
};

static talpa_value input(struct talpa_graph *graph, const char *name, int64_t rows, int64_t n, bool is_sized)
{
    talpa_value value;
    assert_ok(tp_graph_input(graph, &value, name, tp_type_2d(TALPA_F32, is_sized ? TP_STEP_N_TOKENS : TP_STEP_NONE, rows, n)));
    return value;
}

/* Numbers that bf16 holds, so that packing changes no bit. */
static void fill_leaf(float *values, size_t n, uint64_t stream)
{
    tp_rng_fill_splitmix(values, (int64_t)n, 11, stream, 0.2);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bits &= 0xffff0000u;
        memcpy(&values[i], &bits, sizeof bits);
    }
}

enum { Y0, GATING, LORA_A, LORA_BT, DIRECTION, BIAS, N_LEAVES };
static const char *const leaf_names[N_LEAVES] = {"y0", "gating", "lora_a", "lora_bt", "direction", "bias"};

static talpa_value make_leaf(struct test_run *run, const struct routing *r, int p, int which)
{
    static float frozen[MAX_ROUTED][2][N_ALL * Y_WIDTH]; /* outlives the store */
    const int64_t width = Y_WIDTH - 16 * p, rows[N_LEAVES] = {BOUND, N_EXPERTS, N_ALL, N_ALL, 1, 1};
    const int64_t columns = which == Y0 || which == LORA_BT ? width : which == BIAS ? 1 : X_WIDTH;
    talpa_value leaf;
    char name[32];
    snprintf(name, sizeof name, "%s.%d", leaf_names[which], p);
    if (r->is_frozen && (which == LORA_A || which == LORA_BT)) {
        const struct tp_store_source source = {.type = tp_type_2d(TALPA_F32, TP_STEP_NONE, N_ALL, columns), .data = frozen[p][which - LORA_A]};
        fill_leaf(frozen[p][which - LORA_A], (size_t)(N_ALL * columns), (uint64_t)(1 + p * N_LEAVES + which));
        assert_ok(tp_graph_weight(run->graph, &leaf, name, source.type));
        assert_ok(tp_store_bind(run->store, name, &source));
    } else if (which == BIAS) {
        assert_ok(tp_graph_input(run->graph, &leaf, name, tp_type_1d(TALPA_F32, TP_STEP_NONE, 1)));
    } else {
        leaf = input(run->graph, name, rows[which], columns, which == Y0);
    }
    return leaf;
}

static void run_routed(struct routed *result, const struct routing *r)
{
    static float values[N_ALL * Y_WIDTH];
    struct test_run run;
    struct tp_plan_options options;
    talpa_value x, leaf[MAX_ROUTED][N_LEAVES], y[MAX_ROUTED];
    const bool learned = r->threshold < 0;
    memset(result, 0, sizeof *result);
    test_run_open(&run);
    x = input(run.graph, "x", BOUND, X_WIDTH, true);
    for (int p = 0; p < r->n_products; p++) {
        talpa_value score_p, raw = TP_NONE, weight, sel, score, counts, list;
        for (int i = 0; i < (learned ? N_LEAVES : DIRECTION); i++) leaf[p][i] = make_leaf(&run, r, p, i);
        assert_ok(talpa_router_scores(&score_p, &raw, run.graph, x, leaf[p][GATING], learned ? leaf[p][DIRECTION] : TP_NONE,
                                      learned ? leaf[p][BIAS] : TP_NONE));
        assert_ok(talpa_threshold_gate(&weight, &sel, &score, run.graph, score_p, raw, learned ? 0.3f : r->threshold));
        assert_ok(talpa_dispatch(&counts, &list, run.graph, sel));
        assert_ok(talpa_lora_expert(&y[p], run.graph, leaf[p][Y0], x, leaf[p][LORA_A], leaf[p][LORA_BT], weight, sel, counts, list, N_EXPERTS,
                                    RANK, 1.7f));
        tp_graph_mark_output(run.graph, y[p]);
        if (r->with_score) tp_graph_mark_output(run.graph, score);
    }
    tp_plan_options_default(&options);
    options.no_fusion = r->no_fusion;
    if (r->is_frozen) {
        options.compute_dtype = TP_COMPUTE_BF16;
        assert_ok(tp_tier_find(&options, run.device));
    }
    assert_ok(tp_graph_verify(run.graph));
    assert_ok(tp_plan_create(&run.plan, run.graph, tp_device_caps(run.device), &options));
    assert_ok(tp_executor_create(&run.executor, run.store, &run.plan, 1));
    fill_leaf(values, BOUND * X_WIDTH, 0);
    assert_ok(tp_executor_write(run.executor, x, values, BOUND * X_WIDTH * sizeof(float)));
    for (int p = 0; p < r->n_products; p++)
        for (int i = 0; i < (learned ? N_LEAVES : DIRECTION); i++) {
            const size_t n = (size_t)tp_type_elements(tp_graph_type(run.graph, leaf[p][i]));
            if (r->is_frozen && (i == LORA_A || i == LORA_BT)) continue;
            assert_true(n <= sizeof values / sizeof *values);
            fill_leaf(values, n, (uint64_t)(1 + p * N_LEAVES + i));
            assert_ok(tp_executor_write(run.executor, leaf[p][i], values, n * sizeof(float)));
        }
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = r->n_rows;
    assert_ok(tp_executor_step(run.executor, &step));
    assert_ok(tp_executor_poison(run.executor));
    assert_ok(tp_executor_run(run.executor, 0, TP_PHASE_BATCH));
    assert_ok(tp_executor_finish(run.executor));
    for (int p = 0; p < r->n_products; p++)
        assert_ok(tp_executor_read(run.executor, y[p], result->y[p], r->n_rows * (size_t)(Y_WIDTH - 16 * p) * sizeof(float)));
    result->n_launches = run.plan->phase[0].n;
    result->n_groups = run.plan->n_fused;
    test_run_close(&run);
}

static void check_routed(struct routing r, int n_groups)
{
    static struct routed fused, apart;
    run_routed(&fused, &r);
    r.no_fusion = true;
    r.is_frozen = false;
    run_routed(&apart, &r);
    assert_int_equal(fused.n_groups, n_groups);
    assert_int_equal(fused.n_launches, n_groups);
    assert_int_equal(apart.n_groups, 0);
    assert_memory_equal(fused.y, apart.y, sizeof fused.y);
    assert_true(isfinite(fused.y[r.n_products - 1][0]));
}

static void test_router_experts(void **unused)
{
    static struct routed read;
    (void)unused;
    if (!has_cpu_kernels()) skip(); /* the rule has no other */
    for (int learned = 0; learned < 2; learned++)
        for (uint32_t n_rows = 1; n_rows <= BOUND; n_rows += 3) {
            const float threshold = learned ? -1.0f : 0.2f;
            check_routed((struct routing){n_rows, threshold, 1, false, false, false}, 1);
            check_routed((struct routing){n_rows, threshold, 3, false, false, false}, 1);
        }
    check_routed((struct routing){2, -1.0f, 4, false, false, false}, 2); /* three together, and one */
    check_routed((struct routing){2, -1.0f, 2, false, true, false}, 1);
    run_routed(&read, &(struct routing){2, -1.0f, 2, true, false, false});
    assert_int_equal(read.n_groups, 0); /* the scores are read: all is done one by one */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope_cache), cmocka_unit_test(test_rope_pair), cmocka_unit_test(test_keys_needed),
                                       cmocka_unit_test(test_products), cmocka_unit_test(test_gated), cmocka_unit_test(test_router_experts)};
    test_need_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
