#include "engine.h"

#include "base/log.h"
#include "exec/tier.h"
#include "runtime/device.h"

enum talpa_status tp_engine_open(struct tp_engine *out, size_t device, const struct talpa_model *model)
{
    struct tp_engine engine = {0};
    TP_TRY(tp_device_open(&engine.device, device, false));
    enum talpa_status status = tp_store_create(&engine.store, engine.device);
    for (size_t i = 0; i < model->n_weights && status == TALPA_OK; i++) {
        const struct tp_model_weight *weight = &model->weights[i];
        const struct tp_store_source source = {.type = weight->type, .data = weight->data, .interleaved_heads = weight->interleaved_heads};
        status = tp_store_bind(engine.store, weight->name, &source);
    }
    if (status == TALPA_OK) *out = engine;
    else tp_engine_close(&engine);
    return status;
}

void tp_engine_close(struct tp_engine *engine)
{
    tp_store_free(engine->store);
    tp_device_close(engine->device);
    *engine = (struct tp_engine){0};
}

enum talpa_status tp_engine_plan_options(struct tp_plan_options *out, enum talpa_base_dtype base_dtype,
                                         enum talpa_compute_dtype compute_dtype)
{
    static const enum tp_base_dtype base[] = {[TALPA_BASE_AUTO] = TP_BASE_AUTO,
                                              [TALPA_BASE_NATIVE] = TP_BASE_NATIVE,
                                              [TALPA_BASE_BF16] = TP_BASE_BF16,
                                              [TALPA_BASE_F32] = TP_BASE_F32};
    if ((size_t)base_dtype >= sizeof base / sizeof *base)
        return tp_fail(TALPA_E_ARGUMENT, "--base-dtype is number %d, expected one of enum talpa_base_dtype", (int)base_dtype);
    if ((unsigned)compute_dtype > TALPA_COMPUTE_BF16)
        return tp_fail(TALPA_E_ARGUMENT, "--compute-dtype is number %d, expected one of enum talpa_compute_dtype", (int)compute_dtype);
    tp_plan_options_default(out);
    out->base_dtype = base[base_dtype];
    out->compute_dtype = compute_dtype == TALPA_COMPUTE_BF16 ? TP_COMPUTE_BF16 : TP_COMPUTE_F32;
    return TALPA_OK;
}

enum talpa_status tp_engine_plan(struct tp_plan **out, const struct talpa_graph *graph, const struct talpa_device_caps *caps,
                                 struct tp_plan_options *options)
{
    TP_TRY(tp_plan_create(out, graph, caps, options));
    if (options->base_dtype == TP_BASE_AUTO && (*out)->options.base_dtype == TP_BASE_NATIVE) {
        options->base_dtype = TP_BASE_NATIVE;
        tp_log(TALPA_LOG_WARN,
               "base weights stay as in the file (as with --base-dtype native), which is slower: unpacked to f32 they do not fit the "
               "%.1f GiB of %s",
               (double)caps->global_mem_bytes / 1073741824.0, caps->name);
    }
    return TALPA_OK;
}

/* The plans in the order that the executor gets them; how many. */
static int plan_list(struct tp_plan *list[TP_MAX_PLANS], const struct tp_program_set *set)
{
    int n = 0;
    for (int d = 0; d < TP_MAX_PLANS; d++)
        if (set->plans[d]) list[n++] = set->plans[d];
    return n;
}

static enum talpa_status plan_all(struct tp_program_set *set, bool *keeps_native, struct talpa_graph *graph,
                                  const struct talpa_device_caps *caps, const struct tp_plan_options *options, bool dense, bool sparse)
{
    const bool wanted[TP_MAX_PLANS] = {[TP_DISPATCH_DENSE] = dense, [TP_DISPATCH_SPARSE] = sparse};
    int n = 0;
    struct tp_plan_options common = *options;
    TP_TRY(tp_graph_verify(graph));
    if (common.base_dtype == TP_BASE_AUTO && *keeps_native) common.base_dtype = TP_BASE_NATIVE;
    for (int d = 0; d < TP_MAX_PLANS; d++) {
        set->plan_of[d] = -1;
        if (!wanted[d]) continue;
        common.dispatch = (enum tp_dispatch)d;
        TP_TRY(tp_engine_plan(&set->plans[d], graph, caps, &common));
        if (common.base_dtype == TP_BASE_NATIVE) *keeps_native = true;
        set->plan_of[d] = n++;
    }
    return TALPA_OK;
}

enum talpa_status tp_program_set_plan(struct tp_program_set *out, bool *keeps_native, struct talpa_graph *graph,
                                      const struct talpa_device_caps *caps, const struct tp_plan_options *options, bool dense, bool sparse)
{
    struct tp_program_set set = {0};
    struct tp_plan_options expected = *options;
    expected.matrix_tiers = tp_tier_expected(caps);
    const enum talpa_status status = plan_all(&set, keeps_native, graph, caps, &expected, dense, sparse);
    if (status == TALPA_OK) *out = set;
    else tp_program_set_free(&set);
    return status;
}

enum talpa_status tp_program_set_count(struct tp_ledger *ledger, const struct tp_program_set *set)
{
    struct tp_plan *list[TP_MAX_PLANS];
    const int n = plan_list(list, set);
    return tp_ledger_add(ledger, (const struct tp_plan *const *)list, n);
}

static enum talpa_status create(struct tp_program_set *set, struct tp_engine *engine, struct talpa_graph *graph,
                                const struct tp_plan_options *options, bool dense, bool sparse)
{
    struct tp_plan *list[TP_MAX_PLANS];
    struct tp_plan_options found = *options;
    TP_TRY(tp_tier_find(&found, engine->device));
    TP_TRY(plan_all(set, &engine->keeps_native, graph, tp_device_caps(engine->device), &found, dense, sparse));
    const int n = plan_list(list, set);
    return tp_executor_create(&set->executor, engine->store, list, n);
}

enum talpa_status tp_program_set_create(struct tp_program_set *out, struct tp_engine *engine, struct talpa_graph *graph,
                                        const struct tp_plan_options *options, bool dense, bool sparse)
{
    struct tp_program_set set = {0};
    const enum talpa_status status = create(&set, engine, graph, options, dense, sparse);
    if (status == TALPA_OK) *out = set;
    else tp_program_set_free(&set);
    return status;
}

void tp_program_set_free(struct tp_program_set *set)
{
    tp_executor_free(set->executor);
    for (int d = 0; d < TP_MAX_PLANS; d++) tp_plan_free(set->plans[d]);
    *set = (struct tp_program_set){0};
}
