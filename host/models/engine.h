/* A device with a model's weights, and graphs prepared on it. */
#ifndef TP_ENGINE_H
#define TP_ENGINE_H

#include "exec/executor.h"
#include "exec/ledger.h"
#include "models/model.h"
#include "talpa/train.h"

/** One device, one store: what training and evaluation graphs share. */
struct tp_engine {
    struct tp_device *device;
    struct tp_store *store;
    bool keeps_native; /* a plan found no room for panels: the ones after it, which share the weights, do as it did */
};

/** Opens the device and binds (not yet uploads) all weights of the model, which outlives the engine. */
enum talpa_status tp_engine_open(struct tp_engine *out, size_t device, const struct talpa_model *model);
void tp_engine_close(struct tp_engine *engine);

/** Plans of one graph (dense and, if asked for, sparse) and their executor. */
struct tp_program_set {
    struct tp_plan *plans[TP_MAX_PLANS]; /* [TP_DISPATCH_DENSE], [TP_DISPATCH_SPARSE]; plans not asked for are NULL */
    int plan_of[TP_MAX_PLANS];           /* executor's number of the dense and of the sparse plan, -1 if there is none */
    struct tp_executor *executor;
};

/** Plan options from public ones: environment, base dtype, compute dtype. The matrix tiers are still to be found: tp_program_set_create
 *  does, tp_program_set_plan takes those that are expected of the record. */
enum talpa_status tp_engine_plan_options(struct tp_plan_options *out, enum talpa_base_dtype base_dtype,
                                         enum talpa_compute_dtype compute_dtype);

/** As tp_plan_create, with a warning in the log if weights stay as in the file for want of memory; options->base_dtype is TP_BASE_NATIVE
 *  then. */
enum talpa_status tp_engine_plan(struct tp_plan **out, const struct talpa_graph *graph, const struct talpa_device_caps *caps,
                                 struct tp_plan_options *options);

/** The plans alone, for a device record: set->executor stays NULL. `keeps_native` as in struct tp_engine, read and written. */
enum talpa_status tp_program_set_plan(struct tp_program_set *out, bool *keeps_native, struct talpa_graph *graph,
                                      const struct talpa_device_caps *caps, const struct tp_plan_options *options, bool dense, bool sparse);

/** Adds what tp_program_set_create would allocate for such plans. */
enum talpa_status tp_program_set_count(struct tp_ledger *ledger, const struct tp_program_set *set);

/** Verifies, plans and prepares a graph. `dense`/`sparse` say which plans are wanted (at least one). */
enum talpa_status tp_program_set_create(struct tp_program_set *out, struct tp_engine *engine, struct talpa_graph *graph,
                                        const struct tp_plan_options *options, bool dense, bool sparse);
void tp_program_set_free(struct tp_program_set *set);

#endif
