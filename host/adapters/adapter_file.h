/* The parts of an opened adapter (folder or GGUF file), for the loader, the listing and tests that have bytes instead of files. */
#ifndef TP_ADAPTER_FILE_H
#define TP_ADAPTER_FILE_H

#include "adapters/adapter.h"
#include "base/json.h"
#include "io/gguf.h"
#include "io/safetensors.h"

enum { TP_ADAPTER_FORMAT_VERSION = 1 };
#define TP_ADAPTER_CONFIG_NAME "adapter_config.json"
#define TP_ADAPTER_ABOUT_NAME "talpa_adapter.json"
#define TP_ADAPTER_MOELORA_NAME "moelora_train.json"
#define TP_ADAPTER_TENSORS_NAME "adapter_model.safetensors"

/** A tensor under PEFT's name, whatever its file calls it. Borrowed from the file. */
struct tp_adapter_entry {
    const char *name, *file_name;
    const char *type_name;  /* "F16" */
    bool is_real;           /* false: a type that holds no parameters (integers); dtype is then undefined */
    enum talpa_dtype dtype;
    struct talpa_shape shape;
    const void *data;
};

/** An adapter's files, parsed: either the three of a folder or one GGUF. The owner ends it with tp_adapter_file_close; `label` is borrowed
 *  and begins messages. */
struct tp_adapter_file {
    const char *label; /* the folder, or the GGUF file */
    struct tp_json *config;
    struct tp_json *about; /* talpa_adapter.json; NULL if there is none */
    struct tp_json *moelora; /* moelora_train.json; NULL if there is none */
    struct tp_safetensors *tensors;
    struct tp_gguf *gguf;  /* not NULL: the three above are */
    struct tp_adapter_entry *entries;
    size_t n_entries;
    struct tp_map entry_of; /* name -> index */
    struct tp_arena arena;
};

/** Opens a folder or a GGUF file and indexes it. TALPA_E_NO_INPUT if configuration or tensors are missing, TALPA_E_DATA if a file is
 *  malformed. */
enum talpa_status tp_adapter_file_open(struct tp_adapter_file *out, const char *path);
void tp_adapter_file_close(struct tp_adapter_file *file);

/** Fills the entries of a file whose parts were set by hand; tp_adapter_file_open has done so. TALPA_E_DATA for a tensor type that cannot
 *  be read, or if two tensors of a GGUF file stand for the same. */
enum talpa_status tp_adapter_file_index(struct tp_adapter_file *file);

/** NULL if there is no such tensor. */
const struct tp_adapter_entry *tp_adapter_file_entry(const struct tp_adapter_file *file, const char *name);

/** Where adapters say which base they were trained on. Texts are borrowed. */
struct tp_adapter_about {
    bool is_known; /* false: the files do not say, all else is empty */
    uint64_t base_digest;
    const char *base_name, *version;
};

/** Configuration (modules derived from the tensors if target_modules is a pattern) and origin. TALPA_E_DATA as tp_adapter_config_read, or
 *  if talpa_adapter.json has another format version or contradicts the configuration. */
enum talpa_status tp_adapter_file_config(struct talpa_adapter_config *config, struct tp_adapter_about *about,
                                         const struct tp_adapter_file *file);

/** Parts of a tensor's name "base_model.model.model.layers.LAYER.LINEAR.SUFFIX"; false for any other name. `suffix` points into it. */
bool tp_adapter_file_name(int *layer, enum tp_linear *linear, const char **suffix, const char *name);

/** True for a name that published mixtures hold beside the tensor itself: "<module>.moe_layer. ...". */
bool tp_adapter_file_is_duplicate(const struct talpa_adapter_config *config, const char *name);

/** 16 lower-case hexadecimal digits. TALPA_E_DATA (with the key `base_digest`) for any other text. */
enum talpa_status tp_adapter_file_digest(uint64_t *out, const char *text);

/** Compares the tensors' names, shapes and types with a layout. TALPA_E_DATA naming the first that does not fit. */
enum talpa_status tp_adapter_file_check(const struct tp_adapter_file *file, const struct tp_adapter *adapter);

/** tp_adapter_load for an opened file. */
enum talpa_status tp_adapter_file_read(struct tp_adapter **out, float **bank, const struct tp_adapter_file *file, struct talpa_model *model,
                                       bool allow_other_base);

/** talpa_adapter_inspect for an opened file (adapter_inspect.c). */
enum talpa_status tp_adapter_file_inspect(struct talpa_adapter_config *config, char **lines, const struct tp_adapter_file *file);

/** "folder/name", owned by the caller. */
enum talpa_status tp_adapter_file_join(char **out, const char *folder, const char *name);

#endif
