/* Text from a model: a session holds a model on a device with its KV cache, and generates for many prompts at once. */
#ifndef TALPA_INFER_H
#define TALPA_INFER_H

#include "talpa/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A model, optionally with an adapter, prepared on one device for generation. */
struct talpa_session;

struct talpa_session_options {
    const char *lora;        /**< adapter folder, NULL: the base */
    bool allow_other_base;
    double max_threshold;    /**< adamole, threshold: this bound instead of the adapter's: higher is fewer experts, and faster; 0: as saved */
    int n_ctx;               /**< tokens per sequence, prompt and answer together; 0: the model's context length, at most 4096 */
    int n_sequences;         /**< sequences that run together (rows of a decoding pass) */
    int n_ubatch;            /**< prompt tokens per pass, over all sequences */
    enum talpa_base_dtype base_dtype;
    enum talpa_compute_dtype compute_dtype;
    enum talpa_expert_dispatch dispatch;
};
/** No adapter, n_ctx 0, 1 sequence, 256 prompt tokens per pass, automatic types. */
void talpa_session_default(struct talpa_session_options *options);

/** Compiles, uploads, allocates the cache: afterwards only the device can fail. `device` is an index of talpa_device_list; the model
 *  outlives the session. TALPA_E_ARGUMENT (a bound), TALPA_E_DATA / TALPA_E_NO_INPUT (adapter), TALPA_E_DEVICE (memory, build). The caller
 *  owns *out. */
enum talpa_status talpa_session_open(struct talpa_session **out, struct talpa_model *model, size_t device,
                                     const struct talpa_session_options *options);
/** NULL is allowed. */
void talpa_session_close(struct talpa_session *session);
/** Tokens per sequence that the session was opened with. */
int talpa_session_n_ctx(const struct talpa_session *session);

/** What a session takes and has done since it was opened. */
struct talpa_session_info {
    int n_ctx, n_sequences, n_ubatch;
    size_t weight_bytes;     /**< frozen weights on the device, in all layouts in use; both kinds of pass share them */
    size_t adapter_bytes, cache_bytes;
    size_t activation_bytes; /**< activations and inputs of both kinds of pass */
    size_t device_bytes, device_peak_bytes; /**< all buffers of the session on the device; the peak is while weights are prepared */
    int64_t n_prompt_tokens, n_decode_tokens;  /**< rows of the passes: tokens reused from the cache are not among them */
    int n_prompt_passes, n_decode_passes;
    double prompt_s, decode_s;                 /**< time of the passes, logits read */
    int n_launches;                            /**< kernel launches of the last pass */
};
struct talpa_session_info talpa_session_info(const struct talpa_session *session);

/** The same bytes without a device: pure planning for the record `caps`; everything but the bytes, n_ctx, n_sequences and n_ubatch is 0.
 *  device_bytes is what a session with these options holds, to the byte. Errors as talpa_session_open. */
enum talpa_status talpa_session_plan(struct talpa_session_info *out, struct talpa_model *model, const struct talpa_device_caps *caps,
                                     const struct talpa_session_options *options);

/** Prints the launches of a decoding pass (one token of each sequence) and of a prompt pass on that device, nodes that run together joined by
 *  '+', as text or as a JSON object {"decode", "prompt"}. No device is touched. Errors as talpa_session_plan. */
enum talpa_status talpa_session_print(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps,
                                      const struct talpa_session_options *options, bool json);

/** How the next token is drawn. The order is that of llama.cpp: repeat penalty, top-k, top-p, min-p, temperature, draw. */
struct talpa_sampling {
    double temperature;      /**< 0: the most likely token (ties: lower id), all else but the repeat penalty ignored */
    int top_k;               /**< 0: all */
    double top_p, min_p;     /**< 1 and 0: off */
    double repeat_penalty; /**< 1: off; logits of the last `repeat_last_n` tokens are divided by it if positive, else multiplied (Keskar et
                              al. 2019) */
    int repeat_last_n;       /**< 0: none; -1: all */
    uint64_t seed;           /**< draws are keyed by (seed, request index, position): independent of batching */
};
/** Greedy, no penalty: temperature 0, top_k 40, top_p 0.95, min_p 0.05, repeat_penalty 1, repeat_last_n 64, seed 0. */
void talpa_sampling_default(struct talpa_sampling *sampling);

enum talpa_finish { TALPA_FINISH_EOS, TALPA_FINISH_STOP, TALPA_FINISH_LENGTH, TALPA_FINISH_CONTEXT };
/** "eos", "stop", "length", "context". */
const char *talpa_finish_name(enum talpa_finish finish);

/** One prompt. Everything is borrowed for the call. */
struct talpa_request {
    const int32_t *ids;      /**< the prompt, at least one token, fewer than n_ctx */
    size_t n_ids;
    int max_tokens;          /**< new tokens at most; 0: up to the context's end */
    const char *const *stop; /**< generation ends before the first of these texts; they do not appear in the answer */
    size_t n_stop;
    bool ignore_eos;         /**< EOS and other tokens that end a turn are never drawn, instead of ending the answer */
};

/** An answer; freed with talpa_answer_free. */
struct talpa_answer {
    int32_t *ids;            /**< new tokens, without EOS; tokens that a stop text begins in are left out */
    float *logprobs;         /**< natural log of each under the model (before temperature and filters), [n_ids] */
    size_t n_ids;
    char *text;              /**< NUL-terminated bytes of the answer, cut at the stop text */
    size_t n_bytes;
    enum talpa_finish finish;
    int n_prompt, n_passes;  /**< prompt tokens; decoding passes it took part in */
    double prompt_s, decode_s; /**< time of the passes that it took part in */
};
void talpa_answer_free(struct talpa_answer *answer);

/** Told about text as soon as it is certain (not part of a stop text or of an unfinished UTF-8 character); returning false ends everything
 *  with TALPA_E_INTERRUPTED. `request` is the index in the list. */
typedef bool talpa_text_callback(void *user, size_t request, const char *text, size_t n_bytes);

/** Generates for all requests, up to n_sequences together, the next one starting when one ends. answers[n_requests] in the order of the
 *  requests. An answer does not depend on what runs beside it. The tokens of a request that share a beginning with what its sequence holds
 *  from the call before are not computed again. On failure every answer is empty. */
enum talpa_status talpa_generate(struct talpa_answer *answers, struct talpa_session *session, const struct talpa_request *requests,
                                 size_t n_requests, const struct talpa_sampling *sampling, talpa_text_callback *text, void *user);

/** One turn of a conversation. */
struct talpa_message {
    const char *role;        /**< "system", "user", "assistant" */
    const char *content;
};

/** Prompt ids of raw text (BOS only if the model file says so; special strings are text unless parse_special). *ids is freed with free().
 */
enum talpa_status talpa_prompt_text(int32_t **ids, size_t *n_ids, const struct talpa_model *model, const char *text, size_t n_bytes,
                                    bool parse_special);
/** Prompt ids of a conversation, up to where the assistant's answer starts, by the template of that name (NULL: the model's own).
 *  TALPA_E_ARGUMENT for an unknown name, TALPA_E_DATA if the model's own is missing or unknown: the message names --chat-template. */
enum talpa_status talpa_prompt_chat(int32_t **ids, size_t *n_ids, const struct talpa_model *model, const struct talpa_message *messages,
                                    size_t n_messages, const char *chat_template);
/** Prompts of a file. */
struct talpa_prompt {
    char *id;                /**< the row's "id" as text, "" if none */
    char *text;              /**< "prompt", "text" or "instruction", or the last message */
    int32_t *ids;
    size_t n_ids;
};
struct talpa_prompt_options {
    bool chat;                 /**< "prompt" and "text" are a user's message; "messages" always go through the template */
    const char *system;        /**< system turn put before what has none; NULL: none (then the template's own, if it has one) */
    const char *chat_template; /**< NULL: the model's own */
};
/** Prompts of a JSONL text, one object per line: {"prompt"}, {"text"}, {"messages"} (roles and contents) or {"instruction","input"} (the
 *  alpaca prompt); empty lines are skipped, other members ignored. Special strings in them are text. `label` (file name) begins messages.
 *  TALPA_E_DATA names the line. The caller frees with talpa_prompts_free. */
enum talpa_status talpa_prompts_parse(struct talpa_prompt **out, size_t *n_prompts, const struct talpa_model *model, const char *text,
                                      size_t n_bytes, const char *label, const struct talpa_prompt_options *options);
/** NULL is allowed. */
void talpa_prompts_free(struct talpa_prompt *prompts, size_t n_prompts);
/** Names of the built-in templates, "a, b, c". */
const char *talpa_chat_templates(void);

#ifdef __cplusplus
}
#endif
#endif
