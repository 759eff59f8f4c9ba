/* Architectures: one table says how the members of the Llama family differ, for both file formats. A new member is a row of it, as long as
 * the decoder of forward.c can be it. */
#ifndef TP_ARCH_H
#define TP_ARCH_H

#include "models/model.h"

/** One architecture. */
struct tp_arch {
    const char *name;            /* general.architecture in GGUF, and the prefix of its keys */
    const char *hf_class[3];     /* architectures[0] in config.json; NULL ends */
    enum tp_activation activation;
    bool is_interleaved;         /* GGUF holds the rows of q and k in rotary pairs, see tp_store_source */
    bool has_head_norms;
    bool has_offset_norms;       /* config.json's format stores norm weights minus 1 (GGUF's stores them plain) */
    bool scales_embedding;       /* by sqrt(d_model) */
    bool is_tied;                /* config.json without tie_word_embeddings means tied */
    bool has_optional_window;    /* sliding_window counts only with use_sliding_window */
    unsigned biased_linears;     /* linears that always have a bias */
    int head_dim;                /* width of a head if config.json has none; 0: hidden_size / num_attention_heads */
};

/** By general.architecture, or by class name; NULL if unknown. */
const struct tp_arch *tp_arch_find(const char *name);
const struct tp_arch *tp_arch_find_class(const char *hf_class);
/** The known names, "llama, qwen2, ...", and classes, for messages. */
const char *tp_arch_names(void);
const char *tp_arch_classes(void);

/** Fills in what the architecture says and checks sizes that must fit each other: heads, the parity of a head, eps and theta.
 *  TALPA_E_DATA. */
enum talpa_status tp_arch_configure(struct talpa_model *model, const struct tp_arch *arch);

/** A sliding window of `window` tokens (0 or less: none) makes no difference to texts no longer than it: the context length is cut to it,
 *  with a line in the log. */
void tp_arch_limit_context(struct talpa_model *model, int64_t window);

/** Frequencies theta^(-2i/head_dim) / factors[i]; adds the weight TP_ROTARY_TABLE. factors [head_dim/2]. TALPA_E_DATA for a factor that is
 *  not a positive number. */
enum talpa_status tp_arch_rotary_table(struct talpa_model *model, const double *factors);

/** What a tensor is for. */
enum tp_tensor_role { TP_ROLE_MATRIX, TP_ROLE_NORM, TP_ROLE_BIAS };

/** One tensor of the architecture: how it is called and what shape it must have. Vectors have 1 column. */
struct tp_tensor_spec {
    char name[96], gguf_name[96];
    enum tp_tensor_role role;
    int rows, columns;
    int n_rotary_heads; /* q and k: number of heads; else 0 */
};

typedef enum talpa_status tp_tensor_visit(struct talpa_model *model, const struct tp_tensor_spec *spec, void *user);

/** Calls visit for every tensor that a model of this configuration has; a failure of visit ends it. */
enum talpa_status tp_arch_visit(struct talpa_model *model, tp_tensor_visit *visit, void *user);

/** A tensor as a file holds it. `label` names the file for messages. */
struct tp_tensor_found {
    const char *label, *file_name;
    struct tp_type type;
    const void *data;
    bool is_interleaved, is_offset; /* see struct tp_arch */
};

/** Checks type and shape of a tensor and adds it to the model. Matrices are borrowed from the file; vectors become f32 in the order and
 *  meaning that the decoder wants, in the model's arena. TALPA_E_DATA. */
enum talpa_status tp_arch_bind(struct talpa_model *model, const struct tp_tensor_spec *spec, const struct tp_tensor_found *found);

/* ---- readers: each fills an empty model whose `path` is set ---- */

/** model_gguf.c: configuration, tokenizer and weights of the GGUF file model->path. */
enum talpa_status tp_model_read_gguf(struct talpa_model *model);

/** model_hf.c: the same of a folder with config.json, model.safetensors or model.safetensors.index.json and tokenizer files. */
enum talpa_status tp_model_read_folder(struct talpa_model *model);

struct tp_json_value;

/** hf_config.c: fills the model's configuration (all but weights and tokenizer) from a parsed config.json; factors receives an array
 *  [head_dim/2] in the model's arena for tp_arch_rotary_table, or NULL. TALPA_E_DATA names the field: missing, out of range, or one that
 *  would change the model's function and is not understood. */
enum talpa_status tp_hf_config_read(struct talpa_model *model, const struct tp_arch **arch, const double **factors,
                                    const struct tp_json_value *config);

/** model_random.c: opens the built-in model model->path ("random:tiny"). TALPA_E_ARGUMENT for an unknown name. */
enum talpa_status tp_model_make_built_in(struct talpa_model *model);

#endif
