/* Adapters on a model: where every trainable tensor lives in the parameter bank, how it enters the graph, how it is saved.
 *
 * All trainable parameters lie in one flat f32 bank (state "adapter.params"). Per adapted linear: lora_a [E*rank, d_in], lora_bt [E*rank,
 * d_out] (the B matrices transposed, so that each expert is contiguous), gating [E, d_in], threshold weight [1, d_in], threshold bias [1];
 * each starts at a multiple of TP_CONCAT_ALIGN elements. */
#ifndef TP_ADAPTER_H
#define TP_ADAPTER_H

#include "exec/store.h"
#include "adapters/router.h"
#include "models/model.h"
#include "talpa/train.h"

enum tp_tensor_kind { TP_TENSOR_A, TP_TENSOR_B, TP_TENSOR_GATING, TP_TENSOR_THRESHOLD, TP_TENSOR_THRESHOLD_BIAS, TP_N_TENSOR_KINDS };

/** One saved tensor. */
struct tp_adapter_tensor {
    const char *name;        /* "base_model.model.model.layers.0.self_attn.q_proj.lora_A.0.weight" */
    enum tp_tensor_kind kind;
    int module, expert;
    int rows, columns;       /* saved shape; the bias is [1] */
    int64_t offset;          /* elements into the bank; B lies there transposed */
    int32_t flag;            /* index into the selection counts, -1: always updated */
};

struct tp_adapter_module {
    int layer;
    enum tp_linear linear;
    int d_out, d_in;
    int64_t offset[TP_N_TENSOR_KINDS]; /* into the bank; -1 if the router has no such tensor */
    /* Of the last graph built; TALPA_NONE for LoRA. */
    talpa_value counts;      /* tokens per expert [E] i32 */
    talpa_value weight, sel; /* the gate: weights [T, E] f32 and which experts are chosen [T, E] i32 */
    talpa_value raw;         /* AdaMoLE's threshold before the sigmoid [T, 1], else TALPA_NONE */
    talpa_value sample_z;    /* with tp_adapter_graph.sample: A x of the sampled rows [S, E*rank], else TALPA_NONE */
    talpa_value gram;        /* the same: B^T B of all experts [E*rank, E*rank] */
};

struct tp_adapter {
    struct tp_arena arena;
    struct talpa_adapter_config config;
    const struct tp_router *router;
    struct tp_adapter_module *modules;
    int n_modules;
    struct tp_adapter_tensor *tensors; /* in order of layer, linear, A.0.., B.0.., gating, threshold weight, threshold bias */
    int n_tensors;
    int64_t bank_elements;
    int64_t n_trainable;
    int64_t selection_elements;        /* of the selection counts: n_modules * TP_CONCAT_ALIGN, 0 for LoRA */
    bool is_steered; /* graphs take the bound of the thresholds from the step word TP_STEP_MAX_THRESHOLD, which whoever runs them sets to
                        tp_adapter_max_threshold; else it is a constant of the graph */
};

/** TALPA_E_ARGUMENT naming the flag for numbers that moelora's loss cannot have. */
enum talpa_status tp_adapter_contrastive_check(const struct talpa_contrastive_config *config);

/** Lays out an adapter for a model. TALPA_E_ARGUMENT for impossible numbers (the message names the flag). The caller owns *out. */
enum talpa_status tp_adapter_create(struct tp_adapter **out, const struct talpa_model *model, const struct talpa_adapter_config *config);
void tp_adapter_free(struct tp_adapter *adapter);

/** Upper end of the learned thresholds, or the fixed one, as kernels get it (f32); NaN where the router has none (top-k, LoRA). */
double tp_adapter_max_threshold(const struct tp_adapter *adapter);
/** Makes `value` that bound. It is kept as f32, which is what kernels get, so that a saved adapter has the very bound of the run.
 *  TALPA_E_ARGUMENT, naming `flag`, if the router has none, or for a value outside (0, 1]. */
enum talpa_status tp_adapter_set_max_threshold(struct tp_adapter *adapter, double value, const char *flag);

/** A user's --max-threshold for a loaded adapter (NULL: the base): 0 leaves it alone, else as tp_adapter_set_max_threshold. */
enum talpa_status tp_adapter_override_threshold(struct tp_adapter *adapter, double value);

/** Starting values into bank[bank_elements] (zeroed first): A, gating, threshold uniform in +-1/sqrt(d_in) (nn.Linear's start), B zero;
 *  random streams are keyed by (seed, tensor name). */
void tp_adapter_init(float *bank, const struct tp_adapter *adapter, uint64_t seed);

/** Copies one tensor between the bank and its saved form [rows, columns]. */
void tp_adapter_get(float *values, const struct tp_adapter *adapter, const float *bank, int tensor);
void tp_adapter_put(float *bank, const struct tp_adapter *adapter, int tensor, const float *values);
/** Index of a tensor by saved name, -1 if there is none. */
int tp_adapter_find(const struct tp_adapter *adapter, const char *name);

/** XXH3-64 over the tensors sorted by saved name: name, NUL, little-endian f32 bytes. */
enum talpa_status tp_adapter_digest(uint64_t *out, const struct tp_adapter *adapter, const float *bank);

/* ---- graph ---- */

/** How an adapter is attached to one graph; pass it as the `user` of tp_adapter_hook. */
struct tp_adapter_graph {
    struct tp_adapter *adapter;
    talpa_value params;             /* the bank state; TALPA_NONE: every tensor is a weight of its own */
    talpa_value examples, positions; /* for dropout */
    talpa_value sample;             /* rows [S] i32 whose expert outputs are to be seen (a number outside: none); TALPA_NONE: none */
    bool is_training;               /* dropout and balance loss */
    bool aux_on_probability;
    talpa_value aux_total;          /* out: [1] sum of balance losses, TALPA_NONE if there is none */
    talpa_value contrastive_total;  /* out: [1] moelora: sum of contrastive losses, TALPA_NONE if there is none */
    talpa_value *wrt;               /* out: slices of the bank in the order of the bank, n_wrt of them (5 per module at most) */
    int n_wrt;
};

/** Prepares `attach` (state and slice list). Allocates wrt in the adapter's arena. */
enum talpa_status tp_adapter_begin(struct tp_adapter_graph *attach, struct tp_adapter *adapter, struct talpa_graph *graph,
                                   const struct tp_batch_inputs *inputs, bool is_training);
/** As tp_adapter_begin for parameters that never change: they are frozen weights, so that a plan may pack them, and come from the store
 *  (tp_adapter_bind) instead of the bank state. */
enum talpa_status tp_adapter_begin_frozen(struct tp_adapter_graph *attach, struct tp_adapter *adapter, const struct tp_batch_inputs *inputs);
/** Binds (does not upload) all tensors of a bank, which outlives the store. */
enum talpa_status tp_adapter_bind(struct tp_store *store, const struct tp_adapter *adapter, const float *bank);
/** The linear hook (struct tp_linear_hook.apply). */
enum talpa_status tp_adapter_hook(void *user, talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value weight,
                                  talpa_value residual, int layer, enum tp_linear linear);

/* ---- adapter_save.c, adapter_file.c ---- */

/** Writes adapter_config.json, adapter_model.safetensors (PEFT's layout for LoRA, the published AdaMoLE repository's for mixtures),
 *  talpa_adapter.json (base digest) and, for moelora, moelora_train.json (what only training needs) into an existing folder; every file
 *  appears whole or not at all. `base_name` is what base_model_name_or_path gets; tp_adapter_save gives it the model's name. */
enum talpa_status tp_adapter_save_as(const struct tp_adapter *adapter, const float *bank, const char *folder, struct talpa_model *model,
                                     const char *base_name);
enum talpa_status tp_adapter_save(const struct tp_adapter *adapter, const float *bank, const char *folder, struct talpa_model *model);

/** Opens an adapter for a model: configuration, layout and parameters. `path` is an adapter folder or a GGUF LoRA file. Strict: every
 *  tensor used, every expected one present, shapes right, duplicates of the published code (`moe_layer.*`) ignored. Another base is
 *  TALPA_E_DATA unless allow_other_base; where a file does not say which its base was, a warning. The caller owns *out and *bank (free()).
 */
enum talpa_status tp_adapter_load(struct tp_adapter **out, float **bank, const char *path, struct talpa_model *model,
                                  bool allow_other_base);

/** How a plan without training computes the experts: sparse if that is asked for, or by itself where a token has few of them (top-k). False
 *  for NULL (the base) and where nothing is routed. */
bool tp_adapter_is_sparse(const struct tp_adapter *adapter, enum talpa_expert_dispatch dispatch);

#endif
