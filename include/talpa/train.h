/* Fine-tuning, scoring, and what can be known beforehand (graph, plan, memory). */
#ifndef TALPA_TRAIN_H
#define TALPA_TRAIN_H

#include <stdio.h>

#include "talpa/adapter.h"
#include "talpa/device.h"
#include "talpa/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum talpa_expert_dispatch { TALPA_DISPATCH_AUTO, TALPA_DISPATCH_DENSE, TALPA_DISPATCH_SPARSE };
enum talpa_base_dtype { TALPA_BASE_AUTO, TALPA_BASE_NATIVE, TALPA_BASE_BF16, TALPA_BASE_F32 };
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
    int batch_size;              /**< examples per micro-batch */
    int max_seq_length;          /**< tokens per example */
    int accumulation;            /**< micro-batches per optimizer step */
    int max_steps;               /**< optimizer steps; 0: as num_epochs says */
    double num_epochs;
    double learning_rate, weight_decay, max_grad_norm; /**< max_grad_norm 0: no clipping */
    enum talpa_schedule schedule;
    int warmup_steps;
    int save_steps;              /**< save the adapter every so many steps; 0: at the end only */
    int logging_steps;
    double aux_coef;             /**< weight of the load-balancing loss */
    bool aux_include_pads;       /**< pad every micro-batch to its longest row and count the pads in the auxiliary loss, as the published code does */
    bool aux_on_probability;     /**< adamole: balance p instead of p - tau */
    bool no_shuffle;
    bool allow_other_base;       /**< accept an init_lora that was trained on another base */
    enum talpa_expert_dispatch dispatch;
    enum talpa_base_dtype base_dtype;
    const char *route_log;       /**< JSONL of routing counts per step and module; NULL: none */
};

/** One row of trainer_log.jsonl. */
struct talpa_train_row {
    int current_steps, total_steps;
    double loss;                 /**< cross entropy per labelled token of this step, natural log */
    double aux_loss;             /**< unscaled, summed over modules; 0 for LoRA */
    double grad_norm;            /**< before clipping */
    double learning_rate, epoch, percentage;
    double elapsed_s, remaining_s, step_ms;
    double throughput;           /**< non-pad tokens per second of this step */
    int64_t total_tokens;
    double active_experts;       /**< mean per token and module */
    size_t peak_bytes;           /**< device memory, most so far */
    uint64_t digest;             /**< XXH3-64 of the trainable tensors after the update */
    int n_launches;              /**< kernel launches of this step */
};

/** Held-out loss: natural log per labelled token. */
struct talpa_eval_result {
    double loss, standard_error; /**< over examples (ratio estimator) */
    int64_t n_tokens, n_examples;
};

struct talpa_train_result {
    int n_steps;
    bool has_eval;
    struct talpa_eval_result before, after;
    double difference, difference_error; /**< after - before, paired by example */
    uint64_t digest;
    int64_t n_trainable;
    double throughput;                   /**< median over the steps */
};

/** Told about every step; return false to stop after saving (the run then ends with TALPA_E_INTERRUPTED). */
struct talpa_train_callbacks {
    bool (*step)(void *user, const struct talpa_train_row *row);
    void (*note)(void *user, const char *line); /**< progress other than steps, for stderr: device, dataset counts, held-out losses */
    void *user;
};

void talpa_train_default(struct talpa_train_options *options);

/** Fine-tunes. `device` is an index of talpa_device_list. Writes output_dir/{adapter_config.json, adapter_model.safetensors, talpa_adapter.json,
 *  trainer_log.jsonl, train_results.json}. Errors: TALPA_E_ARGUMENT (options), TALPA_E_DATA (rows, init adapter), TALPA_E_NO_INPUT, TALPA_E_DEVICE,
 *  TALPA_E_CREATE / TALPA_E_IO (output; TALPA_E_CREATE also if another run holds the folder's lock), TALPA_E_CHECK (a loss that is not finite: the
 *  message names the step; what was saved stays), TALPA_E_INTERRUPTED. */
enum talpa_status talpa_train(struct talpa_train_result *result, struct talpa_model *model, size_t device, const struct talpa_train_options *options,
                              const struct talpa_train_callbacks *callbacks);

/** Bytes by class that training would ask of the device, without touching one: pure planning for the record `caps`. */
struct talpa_memory_plan {
    size_t weight_bytes, packed_bytes; /**< frozen weights as stored; frozen weights in panel layouts */
    size_t adapter_bytes, gradient_bytes, optimizer_bytes, input_bytes;
    size_t activation_bytes;           /**< activations, values kept for the backward part, scratch */
    size_t total_bytes, largest_bytes, max_alloc_bytes;
    int64_t n_trainable, n_parameters;
    int n_modules, n_modules_possible; /**< linears adapted, of those that the modules' names match */
    int n_launches_batch, n_launches_update;
};
enum talpa_status talpa_train_plan_memory(struct talpa_memory_plan *out, struct talpa_model *model, const struct talpa_device_caps *caps,
                                          const struct talpa_train_options *options);

/** Prints the training graph (the same bytes for every device) and, with `plan`, the launches chosen for `caps`. */
enum talpa_status talpa_train_print(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps, const struct talpa_train_options *options,
                                    bool graph, bool plan);

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
    int batch_size;              /**< examples per pass */
    int max_seq_length;          /**< 0: the model's context length, bounded by the longest row */
    bool score_eos, allow_other_base;
    enum talpa_base_dtype base_dtype;
    enum talpa_expert_dispatch dispatch;
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
