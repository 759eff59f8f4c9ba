/* The flags that decide a training run: shared by `train` and by `inspect --graph/--plan`. */
#ifndef TRAIN_FLAGS_H
#define TRAIN_FLAGS_H

#include <stdbool.h>
#include <stdio.h>

#include "options.h"
#include "output.h"
#include "talpa/train.h"

struct train_flags {
    struct talpa_train_options options; /**< complete after train_flags_finish */
    const char *routing, *modules;
    const char *contrastive_samples;
    int contrastive_normalise, lora_rank, expert_rank, schedule, aux_on, dropout_mask, compute_dtype, base_dtype, dispatch;
};

/** Sets the defaults and appends the flags of adapter, batch and optimizer to `options`. `flags` must outlive it. */
void train_flags_add(struct options *options, struct train_flags *flags);
/** Checks combinations and fills flags->options. Returns -1, or 2 after a message. */
int train_flags_finish(struct train_flags *flags, const struct options *options);

/** "q,k,v,o" for a set of modules. */
void train_modules_text(char *text, size_t size, unsigned modules);
/** The adapter's configuration as fields (at most 14); returns their number. `text` holds the module list. */
size_t train_adapter_fields(struct field *fields, const struct talpa_adapter_config *config, char *text, size_t size);

/** What `train --dry-run` and `inspect --plan` say about memory: two lines, or a record. */
void train_memory_print(struct output *output, enum output_format format, struct talpa_model *model, const struct talpa_device_caps *caps,
                        const struct talpa_memory_plan *plan);

#endif
