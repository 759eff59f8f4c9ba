/* The configuration of a run as far as it decides the numbers: what a checkpoint keeps, so that a run is only continued as it began. */
#ifndef TP_TRAIN_CONFIG_H
#define TP_TRAIN_CONFIG_H

#include "base/json.h"
#include "io/dataset.h"
#include "models/model.h"
#include "talpa/train.h"

enum { TP_TRAIN_CONFIG_FIELDS = 48, TP_TRAIN_CONFIG_TEXT = 64 };

/** Fields as texts, so that they compare exactly; `flag` is what sets a field. */
struct tp_train_config {
    struct tp_train_config_field {
        const char *name, *flag;
        char text[TP_TRAIN_CONFIG_TEXT];
    } field[TP_TRAIN_CONFIG_FIELDS];
    int n;
};

/** `adapter` is the configuration in effect (from --init-lora, if given), `total_steps` the length of the run: it is a field only if the
 *  schedule depends on it. Data are fields as digests of their tokens and labels. Eval_data may be NULL. Digests the model's weights. */
enum talpa_status tp_train_config_make(struct tp_train_config *out, const struct talpa_train_options *options, struct talpa_model *model,
                                       const struct talpa_adapter_config *adapter, const struct tp_dataset *data,
                                       const struct tp_dataset *eval_data, int total_steps);

/** XXH3-64, chained over the fields: of (digest so far, "name=text\n"). */
uint64_t tp_train_config_digest(const struct tp_train_config *config);

/** Writes an object of texts. */
void tp_train_config_write(struct tp_json_writer *json, const struct tp_train_config *config);

/** TALPA_E_DATA naming the first field that differs from a saved object and both values. The caller adds the file. */
enum talpa_status tp_train_config_compare(const struct tp_train_config *config, const struct tp_json_value *saved,
                                          bool allow_schedule_change);

#endif
