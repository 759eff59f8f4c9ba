/* adapter_config.json: the keys of PEFT for LoRA, of the published AdaMoLE repository for mixtures (its strict list, sorted, none of ours).
 */
#ifndef TP_ADAPTER_CONFIG_H
#define TP_ADAPTER_CONFIG_H

#include "base/json.h"
#include "base/status.h"
#include "talpa/adapter.h"

/** Reads a parsed adapter_config.json. modules is 0 if target_modules is a pattern ("all-linear" or a regular expression): the modules then
 *  follow from the tensors. rsLoRA's scale alpha / sqrt(rank) is folded into alpha. TALPA_E_DATA (key, found, expected) for a value that is
 * out of range or asks for what is not supported; for mixtures also for an unknown key, as the published loader does. The caller adds the
 * file. */
enum talpa_status tp_adapter_config_read(struct talpa_adapter_config *out, const struct tp_json_value *root);

/** Writes the object. `base_name` is what base_model_name_or_path gets. */
void tp_adapter_config_write(struct tp_json_writer *writer, const struct talpa_adapter_config *config, const char *base_name);

/** The same for moelora_train.json, what only training needs of moelora: absent keys keep what *out holds; an unknown key is TALPA_E_DATA. */
enum talpa_status tp_adapter_contrastive_read(struct talpa_contrastive_config *out, const struct tp_json_value *root);
void tp_adapter_contrastive_write(struct tp_json_writer *writer, const struct talpa_contrastive_config *config);

/** The last part of a module's path by its number in the set TALPA_MODULE_*: "q_proj". */
const char *tp_adapter_config_module(int module);

#endif
