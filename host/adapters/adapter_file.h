/* The parts of an opened adapter folder, for the loader, the listing and tests that have bytes instead of a folder. */
#ifndef TP_ADAPTER_FILE_H
#define TP_ADAPTER_FILE_H

#include "adapters/adapter.h"
#include "base/json.h"
#include "io/safetensors.h"

/** An adapter's three files, parsed. The owner ends it with tp_adapter_file_close; `label` is borrowed and begins messages. */
struct tp_adapter_file {
    const char *label; /* the folder */
    struct tp_json *config;
    struct tp_json *about; /* talpa_adapter.json; NULL if there is none */
    struct tp_safetensors *tensors;
};

/** Opens the three files. TALPA_E_NO_INPUT if configuration or tensors are missing, TALPA_E_DATA if a file is malformed. */
enum talpa_status tp_adapter_file_open(struct tp_adapter_file *out, const char *folder);
void tp_adapter_file_close(struct tp_adapter_file *file);

/** What talpa_adapter.json says. Texts are borrowed. */
struct tp_adapter_about {
    bool is_known; /* false: there is no such file, all else is empty */
    uint64_t base_digest;
    const char *base_name, *version;
};

/** Configuration (modules derived from the tensors if target_modules is a pattern) and origin. TALPA_E_DATA as tp_adapter_config_read, or
 * if talpa_adapter.json has another format version or contradicts the configuration. */
enum talpa_status tp_adapter_file_config(struct talpa_adapter_config *config, struct tp_adapter_about *about,
                                         const struct tp_adapter_file *file);

/** Parts of a tensor's name "base_model.model.model.layers.LAYER.LINEAR.SUFFIX"; false for any other name. `suffix` points into it. */
bool tp_adapter_file_name(int *layer, enum tp_linear *linear, const char **suffix, const char *name);

/** True for a name that published mixtures hold beside the tensor itself: "<module>.moe_layer. ...". */
bool tp_adapter_file_is_duplicate(const struct talpa_adapter_config *config, const char *name);

/** Compares the tensors' names, shapes and types with a layout. TALPA_E_DATA naming the first that does not fit. */
enum talpa_status tp_adapter_file_check(const struct tp_adapter_file *file, const struct tp_adapter *adapter);

/** tp_adapter_load for an opened folder. */
enum talpa_status tp_adapter_file_read(struct tp_adapter **out, float **bank, const struct tp_adapter_file *file, struct talpa_model *model,
                                       bool allow_other_base);

/** talpa_adapter_inspect for an opened folder (adapter_inspect.c). */
enum talpa_status tp_adapter_file_inspect(struct talpa_adapter_config *config, char **lines, const struct tp_adapter_file *file);

#endif
