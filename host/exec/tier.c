#include "tier.h"

#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/log.h"
#include "exec/executor.h"
#include "runtime/device.h"
#include "runtime/tile_permission.h"
#include "talpa/ops.h"

const char *const tp_tiers[] = {"generic", "cpu", "x86_avx2", "x86_vnni", "x86_bf16", "x86_amx", "clblast"};
_Static_assert(sizeof tp_tiers / sizeof *tp_tiers == TP_N_TIERS, "the list and its length");

const char *tp_tier_names(void) { return "generic, cpu, x86_avx2, x86_vnni, x86_bf16, x86_amx or clblast"; }

bool tp_tier_is_known(const char *name)
{
    for (int i = 0; i < TP_N_TIERS; i++)
        if (!strcmp(name, tp_tiers[i])) return true;
    return false;
}

/* ---- matrix tiers ---- */

enum { N_FEATURES = 3 };
static const struct matrix_tier {
    const char *name;
    const char *features[N_FEATURES]; /* of the processor, as in talpa_device_caps.cpu_features */
    bool wants_permission;
    bool rounds; /* operands to bf16: only if asked for */
} matrix_tiers[] = {{"x86_amx", {"amx_tile", "amx_bf16"}, true, true},
                    {"x86_bf16", {"avx512f", "avx512_bf16"}, false, true},
                    {"x86_vnni", {"avx512f", "avx512_vnni"}, false, false},
                    {"x86_avx2", {"avx2", "fma", "f16c"}, false, false}}; /* after x86_vnni, which replaces it */
enum { N_MATRIX_TIERS = sizeof matrix_tiers / sizeof *matrix_tiers };

unsigned tp_tier_bit(const char *name)
{
    for (int i = 0; i < N_MATRIX_TIERS; i++)
        if (!strcmp(name, matrix_tiers[i].name)) return 1u << i;
    return 0;
}

bool tp_tier_rounds(const char *name)
{
    for (int i = 0; i < N_MATRIX_TIERS; i++)
        if (!strcmp(name, matrix_tiers[i].name)) return matrix_tiers[i].rounds;
    return false;
}

bool tp_tier_allowed(const struct talpa_device_caps *caps, const struct tp_plan_options *options, const char *tier)
{
    const char *forced = options->tier;
    if (!strcmp(tier, "generic")) return true;
    /* Never the better choice unless measured, so it has to be asked for. */
    if (!strcmp(tier, "clblast")) return !strcmp(forced, "clblast");
    /* One work-item gets the whole vector unit; llvmpipe spreads work-items over the lanes and compiles these kernels for minutes. */
    const bool wide = caps->type == TALPA_DEVICE_CPU && caps->in_process;
    if (!strcmp(tier, "cpu")) return wide && strcmp(forced, "generic");
    const unsigned bit = tp_tier_bit(tier);
    if (!wide || !(options->matrix_tiers & bit)) return false;
    return forced[0] ? !strcmp(forced, tier) : !tp_tier_rounds(tier) || options->compute_dtype == TP_COMPUTE_BF16;
}

static bool has_feature(const char *list, const char *name)
{
    const size_t n = strlen(name);
    for (const char *p = strstr(list, name); p; p = strstr(p + n, name))
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || !p[n])) return true;
    return false;
}

static bool is_set(const char *variable)
{
    const char *text = getenv(variable);
    return text && !strcmp(text, "1");
}

/* For tests: the instructions written out in C, on any processor. */
static bool emulates(const struct matrix_tier *tier)
{
    return tier->wants_permission ? is_set("TALPA_AMX_EMULATE") : !strcmp(tier->name, "x86_vnni") && is_set("TALPA_VNNI_EMULATE");
}

unsigned tp_tier_expected(const struct talpa_device_caps *caps)
{
    unsigned bits = 0;
    if (caps->type != TALPA_DEVICE_CPU || !caps->in_process) return 0;
    for (int i = 0; i < N_MATRIX_TIERS; i++) {
        const struct matrix_tier *tier = &matrix_tiers[i];
        bool has = true;
        for (int f = 0; f < N_FEATURES && tier->features[f]; f++) has = has && has_feature(caps->cpu_features, tier->features[f]);
        if (has || emulates(tier)) bits |= 1u << i;
    }
    return bits;
}

/* ---- the probe ---- */

/* Few rows with a quantised weight for dot products of integers, else rows and columns that fill no whole tile. */
enum { PROBE_M = 45, PROBE_M_FEW = 7, PROBE_K = 96, PROBE_N = 80 };

/* Eighths between -1 and 1: exact in bf16, and so are their products' sums in f32. */
static float probe_value(int64_t i) { return (float)((i * 37 + i / 11 * 5) % 17 - 8) / 8.0f; }

/* Eighths again; every 16 in a row are all of -1 .. 7/8, which Q4_1 keeps exactly. */
static float probe_weight(int64_t i) { return (float)((i * 37 + i / 32 * 5) % 16 - 8) / 8.0f; }

struct probe {
    bool few;
    int64_t m;
    struct talpa_graph *graph;
    struct tp_plan *plan;
    struct tp_store *store;
    struct tp_executor *executor;
    float x[PROBE_M * PROBE_K], w[PROBE_N * PROBE_K], y[PROBE_M * PROBE_N];
    uint8_t quantised[PROBE_N * PROBE_K];
};

static enum talpa_status probe_graph(struct probe *p, struct tp_type w_type, talpa_value *x, talpa_value *y)
{
    talpa_value w;
    tp_graph_set_scope(p->graph, "tier probe"); /* for profiles */
    TP_TRY(tp_graph_input(p->graph, x, "x", tp_type_2d(TALPA_F32, TP_STEP_NONE, p->m, PROBE_K)));
    TP_TRY(tp_graph_weight(p->graph, &w, "w", w_type));
    TP_TRY(talpa_matmul(y, p->graph, *x, w, TALPA_NONE, false, true));
    tp_graph_mark_output(p->graph, *y);
    return tp_graph_verify(p->graph);
}

static enum talpa_status run_probe(struct probe *p, struct tp_device *device, const struct tp_plan_options *options)
{
    talpa_value x, y;
    struct tp_store_source source = {.type = tp_type_2d(p->few ? TALPA_Q4_1 : TALPA_F32, TP_STEP_NONE, PROBE_N, PROBE_K), .data = p->w};
    for (int i = 0; i < PROBE_M * PROBE_K; i++) p->x[i] = probe_value(i);
    for (int i = 0; i < PROBE_N * PROBE_K; i++) p->w[i] = p->few ? probe_weight(i) : probe_value(i + 5);
    if (p->few) {
        tp_dtype_from_f32(p->quantised, p->w, TALPA_Q4_1, PROBE_N * PROBE_K);
        source.data = p->quantised;
    }
    TP_TRY(tp_graph_create(&p->graph));
    TP_TRY(probe_graph(p, source.type, &x, &y));
    TP_TRY(tp_plan_create(&p->plan, p->graph, tp_device_caps(device), options));
    TP_TRY(tp_store_create(&p->store, device));
    TP_TRY(tp_store_bind(p->store, "w", &source));
    TP_TRY(tp_executor_create(&p->executor, p->store, &p->plan, 1));
    TP_TRY(tp_executor_write(p->executor, x, p->x, (size_t)(p->m * PROBE_K) * sizeof *p->x));
    TP_TRY(tp_executor_run(p->executor, 0, TP_PHASE_BATCH));
    TP_TRY(tp_executor_read(p->executor, y, p->y, (size_t)(p->m * PROBE_N) * sizeof *p->y));
    for (int m = 0; m < p->m; m++)
        for (int n = 0; n < PROBE_N; n++) {
            float want = 0;
            for (int k = 0; k < PROBE_K; k++) want += p->x[m * PROBE_K + k] * p->w[n * PROBE_K + k];
            if (p->y[m * PROBE_N + n] != want)
                return tp_fail(TALPA_E_CHECK, "element [%d, %d] of a product is %.9g, expected %.9g", m, n, (double)p->y[m * PROBE_N + n],
                               (double)want);
        }
    return TALPA_OK;
}

static enum talpa_status probe_tier(struct tp_device *device, const struct tp_plan_options *asked, const char *tier)
{
    struct probe *p = calloc(1, sizeof *p);
    if (!p) return tp_fail_memory("matrix tier", sizeof *p);
    struct tp_plan_options options = {.matrix_tiers = tp_tier_bit(tier), .amx_emulate = asked->amx_emulate,
                                      .vnni_emulate = asked->vnni_emulate};
    p->few = !tp_tier_rounds(tier);
    p->m = p->few ? PROBE_M_FEW : PROBE_M;
    snprintf(options.tier, sizeof options.tier, "%s", tier);
    const enum talpa_status status = run_probe(p, device, &options);
    tp_executor_free(p->executor);
    tp_store_free(p->store);
    tp_plan_free(p->plan);
    tp_graph_free(p->graph);
    free(p);
    return status;
}

enum talpa_status tp_tier_find(struct tp_plan_options *options, struct tp_device *device)
{
    options->matrix_tiers = 0;
    const struct talpa_device_caps *caps = tp_device_caps(device);
    const bool wants_bf16 = !options->tier[0] && options->compute_dtype == TP_COMPUTE_BF16;
    unsigned wanted = options->tier[0] ? tp_tier_bit(options->tier) : 0, rounding = 0;
    for (int i = 0; i < N_MATRIX_TIERS; i++) {
        if (matrix_tiers[i].rounds) rounding |= 1u << i;
        if (!options->tier[0] && (wants_bf16 || !matrix_tiers[i].rounds)) wanted |= 1u << i;
    }
    options->amx_emulate = is_set("TALPA_AMX_EMULATE");
    options->vnni_emulate = is_set("TALPA_VNNI_EMULATE");
    struct tp_device_tiers *known = tp_device_tiers(device);
    for (int i = 0; i < N_MATRIX_TIERS; i++) {
        const struct matrix_tier *tier = &matrix_tiers[i];
        const unsigned bit = 1u << i;
        if (!strcmp(tier->name, "x86_avx2") && known->works & wanted & tp_tier_bit("x86_vnni")) wanted &= ~bit;
        if (!(tp_tier_expected(caps) & wanted & bit & ~known->asked)) continue;
        known->asked |= bit;
        enum talpa_status status = tier->wants_permission && !options->amx_emulate ? tp_tile_permission() : TALPA_OK;
        if (status == TALPA_OK) status = probe_tier(device, options, tier->name);
        if (status == TALPA_OK) known->works |= bit;
        else tp_log(TALPA_LOG_WARN, "the matrix tier %s of %s is not used: %s", tier->name, caps->name, talpa_error_message());
    }
    options->matrix_tiers = known->works & wanted;
    if (wants_bf16 && !(options->matrix_tiers & rounding) && !known->told) {
        known->told = true;
        tp_log(TALPA_LOG_WARN, "%s has no matrix tier for bf16 (AMX, AVX512-BF16): products are computed in f32", caps->name);
    }
    return TALPA_OK;
}
