/* LoRA adapters as GGUF files, as llama.cpp loads them (facts: its convert_lora_to_gguf.py and llama-adapter.cpp).
 *
 * Keys: general.type "adapter", general.architecture as the base's, adapter.type "lora", adapter.lora.alpha (0 or absent: the scale is 1).
 * Tensors: <base tensor>.lora_a [rank, d_in] and .lora_b [d_out, rank]. In files of the architecture "llama" the rows of lora_b of q and k
 * lie in that format's rotary order, as the rows of the base's q and k do. Ours add talpa.base_digest, talpa.base_name, talpa.version. */
#ifndef TP_ADAPTER_GGUF_H
#define TP_ADAPTER_GGUF_H

#include "adapters/adapter_file.h"

/** PEFT's name for a tensor of a GGUF adapter, or its own name if it is none that is known. NULL if memory is short. */
const char *tp_adapter_gguf_name(struct tp_arena *arena, const char *file_name);

/** Settings and origin by the keys; the rank is that of the first lora_a, the modules are those of all tensors. TALPA_E_DATA (key, found,
 *  expected), with advice if the file is a model, a router or of another kind. The caller adds the file. */
enum talpa_status tp_adapter_gguf_config(struct talpa_adapter_config *config, struct tp_adapter_about *about,
                                         const struct tp_adapter_file *file);

/** TALPA_E_DATA unless the adapter's general.architecture is the model's. */
enum talpa_status tp_adapter_gguf_architecture(const struct tp_adapter_file *file, const struct talpa_model *model);

/** Heads of q and k if GGUF files of the model's architecture hold their rows in rotary order, else 0. */
int tp_adapter_gguf_heads(const struct talpa_model *model, enum tp_linear linear);

/** The row of a GGUF file at which row `row` of a Hugging Face tensor of d_out rows lies. */
int64_t tp_adapter_gguf_row(int64_t row, int64_t d_out, int heads);

/** Writes expert `expert` (0 for LoRA) as a GGUF LoRA, in TALPA_F32 or TALPA_F16. The file appears whole or not at all. TALPA_E_FAILED if a
 *  parameter is not finite, or too large for f16. */
enum talpa_status tp_adapter_gguf_save(const struct tp_adapter *adapter, const float *bank, int expert, const char *path,
                                       struct talpa_model *model, enum talpa_dtype dtype);

/** Writes what decides between the experts of a mixture, f32: adapter.type "lora_router", adapter.lora_router.{strategy, n_experts, top_k,
 *  threshold, max_threshold, experts}, tensors <base tensor>.router [n_experts, d_in], .router_threshold [1, d_in] and
 *  .router_threshold_bias [1]. No other program knows the type, so that it refuses the file rather than ignore the routing. */
enum talpa_status tp_adapter_gguf_save_router(const struct tp_adapter *adapter, const float *bank, const char *const *experts,
                                              const char *path, struct talpa_model *model);

#endif
