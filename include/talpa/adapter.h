/* Adapters: LoRA and mixtures of LoRA experts on the linears of a model. */
#ifndef TALPA_ADAPTER_H
#define TALPA_ADAPTER_H

#include "talpa/status.h"
#include "talpa/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum talpa_routing { TALPA_ROUTING_LORA, TALPA_ROUTING_TOPK, TALPA_ROUTING_THRESHOLD, TALPA_ROUTING_ADAMOLE, TALPA_ROUTING_MOELORA, TALPA_N_ROUTINGS };

/** moelora's contrastive loss among expert outputs (talpa_contrastive_loss says what it is). Training only: nothing of it is needed
 *  afterwards. Our reconstruction: the paper's text gives neither formula nor numbers, so none of the defaults is the paper's. */
struct talpa_contrastive_config {
    double coef;               /**< weight of the mean over modules; 0: not computed. Default 1e-2 */
    double temperature;        /**< above 0. Default 0.07 */
    int n_samples;             /**< items per expert, module and micro-batch, drawn uniformly without replacement; 0: all. Default 32 */
    bool normalise;            /**< compare outputs of length 1. Default true */
    bool gated;                /**< compare outputs times their gate weight, so that the gate gets this gradient too. Default false */
    int warmup_steps;          /**< the weight rises linearly over so many steps; -1 (default): as the learning rate's warm-up */
    double balance_coef;       /**< only for the record in moelora_train.json: talpa_train_options.aux_coef of the run */
};

/** What an adapter is made of. Sources: LoRA (arXiv 2106.09685), AdaMoLE and its baselines (arXiv 2405.00361), MoELoRA (arXiv 2402.12851;
 *  top-k experts with a contrastive loss). */
struct talpa_adapter_config {
    enum talpa_routing routing;
    int rank;                  /**< per expert */
    int n_experts;             /**< 1 for LoRA */
    int top_k;                 /**< topk, moelora */
    double threshold;          /**< threshold: fixed bound on the probability; 0: 1/n_experts */
    double max_threshold;      /**< adamole: upper end of the learned threshold; 0: 1/n_experts */
    double alpha;              /**< scale of an expert is alpha / rank */
    double dropout;            /**< on the adapter's input while training */
    bool independent_dropout; /**< a mask per expert, as the published AdaMoLE code draws them, instead of one for all; the experts then run
                                 one by one, at n_experts times the adapter's cost */
    unsigned modules;          /**< set of TALPA_MODULE_* */
    struct talpa_contrastive_config contrastive; /**< moelora */
};

enum talpa_module {
    TALPA_MODULE_Q = 1, TALPA_MODULE_K = 2, TALPA_MODULE_V = 4, TALPA_MODULE_O = 8,
    TALPA_MODULE_GATE = 16, TALPA_MODULE_UP = 32, TALPA_MODULE_DOWN = 64, TALPA_N_MODULES = 7
};

/** adamole, 8 experts of rank 4, alpha 16, dropout 0.05, modules q, k, v, o. */
struct talpa_adapter_config talpa_adapter_default(void);
/** "lora", "topk", "threshold", "adamole", "moelora". */
const char *talpa_routing_name(enum talpa_routing routing);
/** TALPA_E_ARGUMENT, with the known names, for another word. */
enum talpa_status talpa_routing_parse(enum talpa_routing *out, const char *name);
/** "q,k,v,o,gate,up,down" or "all", also with "_proj". TALPA_E_ARGUMENT for an unknown or repeated word. */
enum talpa_status talpa_modules_parse(unsigned *out, const char *list);

/** What `talpa inspect --lora` shows: reads the configuration and every tensor's name and shape of an adapter folder or GGUF LoRA file
 *  (strictly: unknown or missing tensors are TALPA_E_DATA). `lines` is a text, one line per tensor group; freed with free(). */
enum talpa_status talpa_adapter_inspect(struct talpa_adapter_config *config, char **lines, const char *path);

struct talpa_model;

/** For other programs: PEFT's folder (Hugging Face), or GGUF as llama.cpp loads it. */
enum talpa_export_format { TALPA_EXPORT_PEFT, TALPA_EXPORT_GGUF };

struct talpa_export_options {
    const char *lora;                  /**< adapter folder or GGUF LoRA file */
    enum talpa_export_format format;
    const char *output;                /**< PEFT: the folder (created if missing). GGUF: the file; for a mixture the folder */
    enum talpa_dtype dtype;            /**< of GGUF tensors: TALPA_F32 or TALPA_F16 */
    const char *base_name; /**< base_model_name_or_path of the PEFT folder, as its loader will look for; NULL: the model's name */
    bool allow_other_base;
};

struct talpa_export_result {
    int n_files;                       /**< files written */
    int64_t n_parameters;
};

/** Writes an adapter for other programs. LoRA: a PEFT folder, or one GGUF file. Mixtures have no counterpart there: as GGUF they become one
 *  loadable LoRA per expert ("expert-0.gguf", ...) and "router.gguf", whose adapter.type "lora_router" makes others refuse it; as PEFT they
 *  are refused (TALPA_E_ARGUMENT), since the adapter folder is already the published layout. Every file appears whole or not at all. Errors
 *  of the adapter as in training; TALPA_E_CREATE, TALPA_E_IO. */
enum talpa_status talpa_adapter_export(struct talpa_export_result *result, struct talpa_model *model,
                                       const struct talpa_export_options *options);

/** Types of the matrices of a merged model. AUTO: GGUF: a tensor that no adapter changes stays byte for byte, a quantised one that is
 *  changed becomes Q8_0 (4 bits would round most of the change away), others keep their type; folder: f16 for a quantised or f16 source,
 *  else the source's type. Q4_0 leaves the embedding and the output projection at Q8_0; norms are f32 in GGUF. */
enum talpa_merge_type { TALPA_MERGE_AUTO, TALPA_MERGE_F32, TALPA_MERGE_F16, TALPA_MERGE_BF16, TALPA_MERGE_Q8_0, TALPA_MERGE_Q4_0,
                        TALPA_N_MERGE_TYPES };

struct talpa_merge_options {
    const char *lora;                  /**< plain LoRA: a folder or a GGUF LoRA file */
    const char *output;                /**< a name that ends in .gguf: a GGUF file; else a Hugging Face folder (created if missing) */
    enum talpa_merge_type type;
    const char *probe;                 /**< JSONL rows on which logits are compared; NULL: a few sentences that are built in */
    bool no_probe;
    bool allow_other_base;
    bool (*keep_going)(
        void *user); /**< asked about once per megabyte written; false: nothing is left behind, TALPA_E_INTERRUPTED. NULL: go on */
    void *user;
};

struct talpa_merge_result {
    int64_t n_tensors, n_merged, n_bytes;  /**< tensors written, of those changed by the adapter, bytes of all */
    int64_t n_of_type[TALPA_N_DTYPES];     /**< tensors by type */
    bool has_tokenizer;                    /**< the output has a tokenizer */
    bool has_probe;
    int64_t n_positions;                   /**< tokens compared; below: base with adapter against the merged file */
    double max_difference, mean_difference; /**< of logits, absolute */
    double top1_agreement;                 /**< share of positions with the same most likely token */
};

/** Merges a LoRA adapter into its base: W + (alpha / rank) B A in f32 from the dequantised weights, rounded once to the output's type.
 *  Holds about a megabyte of rows at a time. Then opens what it wrote and compares logits on `device` (an index of talpa_device_list) over
 *  up to 512 tokens of the probe. Errors: TALPA_E_ARGUMENT (a mixture; an output that is the base itself), TALPA_E_DATA, TALPA_E_CREATE,
 *  TALPA_E_IO (disk full: no file remains). */
enum talpa_status talpa_merge(struct talpa_merge_result *result, struct talpa_model *model, size_t device,
                              const struct talpa_merge_options *options);

#ifdef __cplusplus
}
#endif
#endif
