/* An open model: configuration, tokenizer, weights by their Hugging Face names. */
#ifndef TP_MODEL_H
#define TP_MODEL_H

#include "base/arena.h"
#include "base/map.h"
#include "graph/graph.h"
#include "io/gguf.h"
#include "io/tokenizer.h"
#include "talpa/model.h"

/** Hyperparameters of a decoder of the Llama family. */
struct tp_model_config {
    int n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, context_length;
    double rope_theta, rms_norm_eps;
    bool tied_embeddings;
};

/** A frozen tensor. `name` is the Hugging Face module path ("model.layers.3.self_attn.q_proj.weight"), whatever the file calls it. */
struct tp_model_weight {
    const char *name, *file_name;
    struct tp_type type;
    const void *data;
    int interleaved_heads; /* > 0: rows lie in GGUF's rotary order, see tp_store_source */
};

struct talpa_model {
    struct tp_arena arena;
    const char *path, *name, *architecture;
    struct tp_model_config config;
    struct tp_tokenizer *tokenizer;
    struct tp_gguf *gguf; /* NULL for built-in models */
    struct tp_model_weight *weights;
    size_t n_weights;
    struct tp_map weight_of; /* HF name -> index */
    uint64_t digest;         /* 0 until asked for */
};

/** NULL if there is no such weight. */
const struct tp_model_weight *tp_model_weight(const struct talpa_model *model, const char *name);
/** Appends a weight (names are copied into the model's arena). TALPA_E_DATA if it is there already. */
enum talpa_status tp_model_add(struct talpa_model *model, const struct tp_model_weight *weight);
/** Digest of names, types, shapes and bytes; computed once. */
enum talpa_status tp_model_digest(uint64_t *out, struct talpa_model *model);

/** Linears of one layer in the order of the forward pass, and their names ("self_attn.q_proj"). */
enum tp_linear { TP_LINEAR_Q, TP_LINEAR_K, TP_LINEAR_V, TP_LINEAR_O, TP_LINEAR_GATE, TP_LINEAR_UP, TP_LINEAR_DOWN, TP_N_LINEARS };
const char *tp_linear_name(enum tp_linear linear);
/** Widths of a linear. */
void tp_linear_shape(const struct tp_model_config *config, enum tp_linear linear, int *d_out, int *d_in);

/* ---- arch_llama.c: files ---- */

/** Reads configuration and weights of a Llama-architecture GGUF file into `model`. */
enum talpa_status tp_llama_read_gguf(struct talpa_model *model);
/** Fills `model` with counter-based random weights for the configuration it holds. */
enum talpa_status tp_llama_random(struct talpa_model *model, uint64_t seed);

/* ---- forward.c: graphs ---- */

/** Inputs of a micro-batch. All have dimension 0 = `max_tokens` (rows n_tokens) or `max_labelled` (rows n_labelled). */
struct tp_batch_inputs {
    talpa_value ids, positions, examples, segments; /* [T], [T], [T], [T, 2] i32 */
    talpa_value rows, labels;                       /* [R] i32 */
};
enum talpa_status tp_batch_inputs_create(struct tp_batch_inputs *out, struct talpa_graph *graph, int64_t max_tokens, int64_t max_labelled);

/** Called at every linear: appends y = x W^T and whatever an adapter adds. `weight` is [d_out, d_in]. */
struct tp_linear_hook {
    enum talpa_status (*apply)(void *user, talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value weight, int layer, enum tp_linear linear);
    void *user;
};

/** Appends the decoder up to the final norm: hidden [T, d_model]. hook NULL: plain linears. Named temps "embed", "hidden.N", "final_norm". */
enum talpa_status tp_model_hidden(talpa_value *hidden, struct talpa_graph *graph, const struct talpa_model *model, const struct tp_batch_inputs *inputs,
                                  const struct tp_linear_hook *hook);
/** The output projection [vocab, d_model] as a graph weight. */
enum talpa_status tp_model_output_weight(talpa_value *out, struct talpa_graph *graph, const struct talpa_model *model);

#endif
