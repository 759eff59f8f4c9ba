/* Fine-tuning, scoring, and what can be known beforehand (graph, plan, memory). */
#ifndef TALPA_TRAIN_H
#define TALPA_TRAIN_H

#include <stdio.h>

#include "talpa/adapter.h"
#include "talpa/device.h"
#include "talpa/model.h"
#include "talpa/route.h"

#ifdef __cplusplus
extern "C" {
#endif

enum talpa_expert_dispatch { TALPA_DISPATCH_AUTO, TALPA_DISPATCH_DENSE, TALPA_DISPATCH_SPARSE };
enum talpa_base_dtype { TALPA_BASE_AUTO, TALPA_BASE_NATIVE, TALPA_BASE_BF16, TALPA_BASE_F32 };
/** Arithmetic of the products with frozen weights. BF16: both operands rounded to bf16 (relative error of a product at most 2^-8 of the sum
 *  of the absolute values of its terms), sums in f32, on devices that have a matrix tier (AVX512-BF16, AMX); on others f32, with a warning.
 *  AUTO: F32. */
enum talpa_compute_dtype { TALPA_COMPUTE_AUTO, TALPA_COMPUTE_F32, TALPA_COMPUTE_BF16 };
enum talpa_schedule { TALPA_SCHEDULE_CONSTANT, TALPA_SCHEDULE_LINEAR, TALPA_SCHEDULE_COSINE };

/** Everything that decides a training run. talpa_train_default() gives the documented defaults; strings are borrowed. */
struct talpa_train_options {
    struct talpa_adapter_config adapter;
    const char *data;            /**< JSONL of training rows */
    const char *eval_data;       /**< JSONL held out: its loss is measured before and after; NULL: none */
    const char *output_dir;      /**< adapter and log are written here; created if missing. NULL only with dry_run */
    const char *init_lora;       /**< start from the parameters of this adapter folder; NULL: fresh */
    const char *chat_template;   /**< name for "messages" rows; NULL: the model's own */
    uint64_t seed;
    int batch_size;              /**< examples, or packed rows, per micro-batch */
    int max_seq_length;          /**< tokens per example or packed row */
    int accumulation;            /**< micro-batches per optimizer step */
    int max_steps;               /**< optimizer steps; 0: as num_epochs says */
    double num_epochs;
    double learning_rate, weight_decay, max_grad_norm; /**< max_grad_norm 0: no clipping */
    enum talpa_schedule schedule;
    int warmup_steps;
    double warmup_ratio;         /**< warm-up as a part of all steps, rounded up; only if warmup_steps is 0 */
    int save_steps;              /**< checkpoint every so many steps; 0: at the end (or when stopped) only */
    int save_total_limit;        /**< keep this many of the newest checkpoints; 0: all */
    int logging_steps;
    int eval_steps;              /**< measure eval_data every so many steps; 0: before and after only */
    int early_stopping_patience; /**< stop after so many measurements without a new best; 0: never */
    double early_stopping_threshold; /**< a measurement is a new best only if it is lower by more than this */
    bool load_best_at_end;       /**< the adapter of output_dir is the best measured one instead of the last */
    const char
        *resume_from; /**< continue a checkpoint: its folder, a run's folder, or "auto" (the newest of output_dir, if any); NULL: fresh */
    bool allow_plan_change;      /**< resume although kernels, device or driver differ: the bits then may */
    bool allow_schedule_change;  /**< resume although the number of steps differs and the schedule depends on it */
    const char *config_json;     /**< saved as output_dir/train_config.json; NULL: none */
    double aux_coef;             /**< weight of the load-balancing loss: of the sum over modules, for moelora of the mean */
    bool aux_include_pads; /**< pad every micro-batch to its longest row and count the pads in the auxiliary loss, as the published code
                              does */
    bool aux_on_probability;     /**< adamole: balance p instead of p - tau */
    bool no_shuffle;
    bool packing;                /**< a row holds several examples (they do not see each other), up to max_seq_length tokens */
    bool gradient_checkpointing; /**< keep each layer's input only and compute the layer again in the backward part: same results, less
                                    memory */
    bool allow_other_base;       /**< accept an init_lora that was trained on another base */
    double target_active_experts; /**< adamole, threshold: the threshold's bound is steered after every step so that a token and module has
                                     so many active experts in the mean; 0: not steered */
    double max_overhead; /**< the same so that the adapter costs at most so many percent of the frozen products of the decoder's layers, in
                            multiplications of routers and active experts; the bound only rises, above where it begins. 0: not steered */
    enum talpa_expert_dispatch dispatch;
    enum talpa_base_dtype base_dtype;
    enum talpa_compute_dtype compute_dtype;
    const char *route_log; /**< mixtures: JSONL of tokens per expert by step and module; with eval_data also what talpa_route_output says of
                                the held-out rows at the end, and output_dir/routing.svg; NULL: none */
};

/** One row of trainer_log.jsonl. */
struct talpa_train_row {
    int current_steps, total_steps;
    double loss;                 /**< cross entropy per labelled token of this step, natural log */
    double aux_loss;             /**< unscaled, summed over modules; 0 for LoRA */
    bool has_contrastive;        /**< moelora with a coefficient above 0 */
    double contrastive_loss;     /**< unscaled, mean over modules, averaged over micro-batches by tokens as aux_loss */
    double grad_norm;            /**< before clipping */
    double learning_rate, epoch, percentage;
    double elapsed_s, remaining_s, step_ms;
    double throughput;           /**< non-pad tokens per second of this step */
    int64_t total_tokens;
    double active_experts;       /**< mean per token and module */
    double overhead;             /**< percent, as talpa_train_options.max_overhead; 0 for LoRA */
    double max_threshold;        /**< of this step, in steered runs; 0: not steered */
    size_t peak_bytes;           /**< device memory, most so far */
    uint64_t digest;             /**< XXH3-64 of the trainable tensors after the update */
    int n_launches;              /**< kernel launches of this step */
    bool has_eval;               /**< the held-out data were measured after this step */
    double eval_loss, eval_error; /**< as talpa_eval_result */
};

/** Held-out loss: natural log per labelled token. */
struct talpa_eval_result {
    double loss, standard_error; /**< over examples (ratio estimator) */
    int64_t n_tokens, n_examples;
};

struct talpa_train_result {
    int n_steps;                         /**< optimizer steps done, those before a resume included */
    int first_step;                      /**< steps done before this run (the checkpoint's); 0: fresh */
    bool stopped_early;                  /**< by early_stopping_patience */
    int best_step;                       /**< of the lowest measured loss, 0: none (eval_steps) */
    double best_loss;
    bool best_loaded;                    /**< output_dir holds the parameters of best_step */
    bool has_eval;
    struct talpa_eval_result before, after;
    double difference, difference_error; /**< after - before, paired by example */
    uint64_t digest;                     /**< of the parameters in output_dir */
    uint64_t digest_state;               /**< of the last checkpoint: parameters, moments, step counts, data cursor */
    int64_t n_trainable;
    double throughput;                   /**< median over the steps */
    double steered_target, steered_measured; /**< experts or percent asked for, and measured over about the last 16 steps; 0: not steered */
    double max_threshold;                /**< of the adapter in output_dir, in steered runs; 0: not steered */
    size_t device_bytes, device_peak_bytes; /**< buffers of the run on the device; the peak is while weights are prepared, or the same */
    uint64_t mapped_file_bytes, host_peak_bytes; /**< as talpa_memory_use, of the process */
};

/** Told about every step; return false to stop after saving (the run then ends with TALPA_E_INTERRUPTED). */
struct talpa_train_callbacks {
    bool (*step)(void *user, const struct talpa_train_row *row);
    void (*note)(void *user, const char *line); /**< progress other than steps, for stderr: device, dataset counts, held-out losses */
    void *user;
};

void talpa_train_default(struct talpa_train_options *options);
/** The defaults of a strategy: as talpa_train_default, but moelora adapts q and v and has aux_coef 1e-2; lora has one expert of rank 32. */
void talpa_train_default_for(struct talpa_train_options *options, enum talpa_routing routing);

/** Fine-tunes. `device` is an index of talpa_device_list. Writes output_dir/{adapter_config.json, adapter_model.safetensors,
 * talpa_adapter.json, trainer_log.jsonl, train_results.json, training_loss.svg} and checkpoint-<step>/ (complete or not there at all); with
 * eval_steps best/, the adapter with the lowest loss. A resumed run gives the same bits as one that was never stopped. Checkpoints that lie
 *  after the point where a run starts are moved to previous-<n>/ when its first step is done. Errors: TALPA_E_DATA also for a damaged
 *  checkpoint, or one made with other options, data or plans (the message names the field and both values); TALPA_E_ARGUMENT (options),
 *  TALPA_E_DATA (rows, init adapter), TALPA_E_NO_INPUT, TALPA_E_DEVICE, TALPA_E_CREATE / TALPA_E_IO (output; TALPA_E_CREATE also if another
 *  run holds the folder's lock), TALPA_E_CHECK (a loss that is not finite: the message names the step; what was saved stays),
 *  TALPA_E_INTERRUPTED. */
enum talpa_status talpa_train(struct talpa_train_result *result, struct talpa_model *model, size_t device,
                              const struct talpa_train_options *options, const struct talpa_train_callbacks *callbacks);

/** Bytes by class that training (with its held-out measurements, if options->eval_data) would ask of the device, to the byte, without
 *  touching one: pure planning for the record `caps`. With options->data
 *  the steps are counted too (with packing they depend on the rows' lengths), for which the file is read. */
struct talpa_memory_plan {
    size_t weight_bytes, packed_bytes; /**< frozen weights as stored; frozen weights in panel layouts */
    size_t adapter_bytes, gradient_bytes, optimizer_bytes, input_bytes;
    size_t activation_bytes;           /**< activations, values kept for the backward part, scratch */
    size_t total_bytes;                /**< all of these: what the run's buffers take, talpa_train_result.device_bytes */
    size_t peak_bytes;                 /**< while weights are prepared: talpa_train_result.device_peak_bytes */
    size_t largest_bytes, max_alloc_bytes;
    int64_t n_trainable, n_parameters;
    int n_modules, n_modules_possible; /**< linears adapted, of those that the modules' names match */
    int n_launches_batch, n_launches_update;
    int n_steps;                       /**< of the run; 0 if the options name no data */
};
enum talpa_status talpa_train_plan_memory(struct talpa_memory_plan *out, struct talpa_model *model, const struct talpa_device_caps *caps,
                                          const struct talpa_train_options *options);

/** Prints the training graph (the same bytes for every device) and, with `plan`, the launches chosen for `caps`. */
enum talpa_status talpa_train_print(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps,
                                    const struct talpa_train_options *options, bool graph, bool plan);
/** The launches of a training step as a JSON object {"n_groups", "batch", "update"}, each of the two with "n_launches" and "launches". */
enum talpa_status talpa_train_print_json(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps,
                                         const struct talpa_train_options *options);

/** One scored row. Arrays are borrowed for the call. */
struct talpa_score_row {
    int64_t index;               /**< of the example, from 0 */
    const char *id;              /**< the row's own id, "" if none */
    const int32_t *prompt_ids;   /**< tokens before the first label */
    size_t n_prompt_ids;
    const int32_t *ids;          /**< labelled tokens (without the closing EOS unless score_eos) */
    const float *logprobs;       /**< natural log, one per id */
    size_t n;
    double sum;
};

struct talpa_score_options {
    const char *data;
    const char *lora;            /**< adapter folder, NULL: the base */
    const char *chat_template;
    int batch_size;              /**< examples per pass at most; no result depends on it */
    int max_seq_length;          /**< 0: the model's context length, bounded by the longest row */
    bool score_eos, allow_other_base;
    double max_threshold;        /**< adamole, threshold: this bound instead of the adapter's: higher is fewer experts, and faster; 0: as saved */
    enum talpa_base_dtype base_dtype;
    enum talpa_compute_dtype compute_dtype;
    enum talpa_expert_dispatch dispatch;
    struct talpa_route_output routes; /**< where the adapter's mixture sends the rows' tokens */
};
void talpa_score_default(struct talpa_score_options *options);

/** Log-probabilities of the labelled tokens of every row, in file order. Never truncates: a row that is too long is TALPA_E_DATA.
 *  `row` is called for every example; returning false stops with TALPA_E_INTERRUPTED. */
enum talpa_status talpa_score(struct talpa_model *model, size_t device, const struct talpa_score_options *options,
                              bool (*row)(void *user, const struct talpa_score_row *row), void *user);

#ifdef __cplusplus
}
#endif
#endif
