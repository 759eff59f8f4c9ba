/* An open model: configuration, tokenizer, weights by their Hugging Face names. */
#ifndef TP_MODEL_H
#define TP_MODEL_H

#include "base/arena.h"
#include "base/map.h"
#include "graph/graph.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "io/tokenizer.h"
#include "talpa/model.h"

/** What the feed-forward block does to its gate. */
enum tp_activation { TP_ACTIVATION_SILU, TP_ACTIVATION_GELU_TANH };

/** Hyperparameters of a decoder of the Llama family. */
struct tp_model_config {
    int n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, context_length;
    double rope_theta, rms_norm_eps;
    bool tied_embeddings;
    enum tp_activation activation;
    unsigned biased_linears;  /* bit of enum tp_linear: the linear has a bias, "...q_proj.bias" */
    bool has_head_norms;      /* every head of q and k has a norm before the rotation, "...self_attn.q_norm.weight" [head_dim] */
    double embedding_scale;   /* factor on the embedded tokens; 0: none */
    bool has_rotary_table;    /* the rotary frequencies are no powers of theta: the weight TP_ROTARY_TABLE holds them */
};

/** Name of the weight with rotary frequencies, see talpa_rope_table. */
#define TP_ROTARY_TABLE "model.rotary.frequencies"

/** A frozen tensor. `name` is the Hugging Face module path ("model.layers.3.self_attn.q_proj.weight"), whatever the file calls it. */
struct tp_model_weight {
    const char *name, *file_name;
    struct tp_type type;
    const void *data;
    int interleaved_heads; /* > 0: rows lie in GGUF's rotary order, see tp_store_source */
    bool is_derived;       /* computed from the configuration: neither listed nor counted */
};

struct talpa_model {
    struct tp_arena arena;
    const char *path, *name, *architecture;
    struct tp_model_config config;
    struct tp_tokenizer *tokenizer;
    struct tp_gguf *gguf;              /* the file of a GGUF model, else NULL */
    struct tp_safetensors **shards;    /* the files of a folder; the array is the arena's */
    int n_shards;
    struct tp_model_weight *weights;
    size_t n_weights, n_derived; /* in all; of them derived, which stand last */
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
/** What GGUF calls it inside a block: "attn_q". */
const char *tp_linear_gguf_name(enum tp_linear linear);
/** Widths of a linear. */
void tp_linear_shape(const struct tp_model_config *config, enum tp_linear linear, int *d_out, int *d_in);

/* ---- forward.c: graphs ---- */

/** Inputs of a micro-batch. All have dimension 0 = `max_tokens` (rows n_tokens) or `max_labelled` (rows n_labelled). */
struct tp_batch_inputs {
    talpa_value ids, positions, examples, segments; /* [T], [T], [T], [T, 2] i32 */
    talpa_value rows, labels;                       /* [R] i32 */
    talpa_value slots, spans; /* with a cache of keys and values: [T], [T, 2] i32, see talpa_cache_write; else TALPA_NONE */
    int64_t cache_rows;
};
enum talpa_status tp_batch_inputs_create(struct tp_batch_inputs *out, struct talpa_graph *graph, int64_t max_tokens, int64_t max_labelled);
/** Inputs for generation with a cache: ids, positions, slots, spans [max_tokens], rows [max_rows]; the others are TALPA_NONE. The decoder
 *  then keeps keys and values in states "cache.k.N" and "cache.v.N" [cache_rows, d_kv]. max_rows 0: no rows. */
enum talpa_status tp_cached_inputs_create(struct tp_batch_inputs *out, struct talpa_graph *graph, int64_t max_tokens, int64_t max_rows,
                                          int64_t cache_rows);

/** Called at every linear: appends y = residual + x W^T and whatever an adapter adds. `weight` is [d_out, d_in]; residual TALPA_NONE: none.
 */
struct tp_linear_hook {
    enum talpa_status (*apply)(void *user, talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value weight,
                               talpa_value residual, int layer, enum tp_linear linear);
    void *user;
};

/** Appends the decoder up to the final norm: hidden [T, d_model]. hook NULL: plain linears. Named temps "embed", "hidden.N", "final_norm".
 */
enum talpa_status tp_model_hidden(talpa_value *hidden, struct talpa_graph *graph, const struct talpa_model *model,
                                  const struct tp_batch_inputs *inputs, const struct tp_linear_hook *hook);
/** The output projection [vocab, d_model] as a graph weight. */
enum talpa_status tp_model_output_weight(talpa_value *out, struct talpa_graph *graph, const struct talpa_model *model);

#endif
