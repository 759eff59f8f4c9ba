/* Models: opened from a file, or built in. */
#ifndef TALPA_MODEL_H
#define TALPA_MODEL_H

#include "talpa/status.h"
#include "talpa/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/** An open model: configuration, tokenizer and weights (a mapped file, or generated). Read-only; nothing is on a device yet. */
struct talpa_model;

/** What a model is. Strings are borrowed from the model. */
struct talpa_model_info {
    const char *architecture;      /**< "llama" (Mistral too), "qwen2", "qwen3", "gemma" */
    const char *name;              /**< general.name of the file, the folder's name, or the built-in's name */
    const char *path;              /**< as given */
    int n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, context_length;
    double rope_theta, rms_norm_eps;
    bool tied_embeddings;          /**< the output projection is the embedding table */
    int64_t n_parameters;
    size_t weight_bytes;           /**< of all tensors as stored */
};

/** Opens `path`: a GGUF file; a folder as Hugging Face lays them out (config.json, model.safetensors or model.safetensors.index.json with
 *  its parts in f32, f16 or bf16, tokenizer files); or a built-in model with counter-based random weights and a byte tokenizer:
 *  "random:tiny" (two layers, f32) or "random:135m" (the shape of SmolLM2-135M, Q4_1). Every required tensor must be there with the right
 *  shape, and none that the architecture does not know; a field or key that would change what the model computes and is not understood is
 *  refused by name. Rotary scaling: none, linear, and Llama 3.1's. With a sliding window the context length is cut to it. The caller owns
 *  *out. TALPA_E_NO_INPUT if a file cannot be read, TALPA_E_DATA (file, field, found, expected) if it is refused, TALPA_E_ARGUMENT for an
 *  unknown built-in. */
enum talpa_status talpa_model_open(struct talpa_model **out, const char *path);
/** NULL is allowed. */
void talpa_model_close(struct talpa_model *model);
enum talpa_status talpa_model_info(struct talpa_model_info *info, struct talpa_model *model);
/** XXH3-64 of names, types, shapes and bytes of all tensors: what adapters are tied to. Reads all weights when asked for first. */
enum talpa_status talpa_model_digest(uint64_t *digest, struct talpa_model *model);

/** Token ids of a text; special tokens' texts become those tokens if parse_special. No BOS or EOS is added. *ids is freed with free(). */
enum talpa_status talpa_model_tokenize(int32_t **ids, size_t *n_ids, const struct talpa_model *model, const char *text, size_t n_bytes,
                                       bool parse_special);
/** Bytes of one token (borrowed), *n_bytes of them; NULL and 0 outside the vocabulary. */
const char *talpa_model_piece(size_t *n_bytes, const struct talpa_model *model, int32_t id);

/** Tensors of the model, for listings. Names are those of the file. */
struct talpa_tensor_info {
    const char *name;
    enum talpa_dtype dtype;
    struct talpa_shape shape; /**< outermost first */
    size_t n_bytes;
};
size_t talpa_model_n_tensors(const struct talpa_model *model);
struct talpa_tensor_info talpa_model_tensor(const struct talpa_model *model, size_t i);
/** "f32", "q4_1", ... */
const char *talpa_dtype_name(enum talpa_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
