/* Models with a LoRA adapter merged into their weights: W + (alpha / rank) B A, in f32 from the dequantised base, written row by row. */
#ifndef TP_MERGE_H
#define TP_MERGE_H

#include "adapters/adapter.h"
#include "base/json.h"
#include "io/row_source.h"

/** A merge being written. Everything but module_of and the two rows is borrowed. */
struct tp_merge {
    const struct talpa_model *model;
    const struct tp_adapter *adapter;
    const float *bank;
    int *module_of;  /* [model->n_weights] index of the adapter's module, -1: the tensor stays as it is */
    float *row;      /* [widest row] */
    /* the tensors of the file, in its order */
    struct tp_merge_tensor {
        int weight;           /* index, -1: `data` is copied */
        const void *data;     /* first row, as stored */
        enum talpa_dtype from, to;
        int64_t columns;
        int heads;            /* > 0: the source's rows lie in GGUF's order and are wanted in Hugging Face's */
        int64_t n_rows;
    } *tensors;
    size_t n_tensors;
    bool (*keep_going)(void *user); /* NULL: never stopped */
    void *user;
};

/** Starts a merge: checks that the adapter is plain LoRA (TALPA_E_ARGUMENT otherwise, with the reason), finds the adapted tensors. */
enum talpa_status tp_merge_create(struct tp_merge *out, const struct talpa_model *model, const struct tp_adapter *adapter,
                                  const float *bank);
void tp_merge_free(struct tp_merge *merge);

/** The rows of `merge`'s tensors, for a writer. */
struct tp_row_source tp_merge_rows(struct tp_merge *merge);

/** Writes a GGUF file: metadata and tokenizer of the source's file, general.file_type as the weights now are. TALPA_E_ARGUMENT if the model
 *  is no GGUF file. `result` gets the counts. */
enum talpa_status tp_merge_save_gguf(struct tp_merge *merge, struct talpa_merge_result *result, const char *path,
                                     enum talpa_merge_type type);

/** Writes a Hugging Face folder (merge_folder.c): model.safetensors, config.json, and the tokenizer's files, copied from a source folder or
 *  made from a GGUF file's keys as far as they say. TALPA_E_ARGUMENT for a quantised type. */
enum talpa_status tp_merge_save_folder(struct tp_merge *merge, struct talpa_merge_result *result, const char *folder,
                                       enum talpa_merge_type type);

/** Saves a writer's text as a file of a folder (merge_folder.c). */
enum talpa_status tp_merge_save_json(const char *folder, const char *name, struct tp_json_writer *writer);

/** tokenizer.json and tokenizer_config.json from a GGUF file's keys (merge_tokenizer.c) into a folder; *written is false (and nothing is
 *  written) if the tokenizer's kind has no counterpart that is known to split text alike. */
enum talpa_status tp_merge_save_tokenizer(bool *written, const struct talpa_model *model, const char *folder);

#endif
