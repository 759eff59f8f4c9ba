/* Entries of the flags that several verbs have, for their tables: the same name, argument and help everywhere. Targets are borrowed. */
#ifndef FLAGS_COMMON_H
#define FLAGS_COMMON_H

#include "options.h"

struct option flag_model(const char **target);       /**< -m, --model */
struct option flag_lora(const char **target);        /**< --lora, once */
struct option flag_allow_other_base(bool *target);
struct option flag_max_threshold(double *target);   /**< --allow-other-base */
struct option flag_chat_template(const char **target);
struct option flag_route_log(const char **target);   /**< --route-log of the verbs that only run a model */
struct option flag_route_map(const char **target);
struct option flag_device(const char **target);      /**< --device, -dev */
struct option flag_fake_device(const char **target);
struct option flag_profile(const char **target);      /**< --profile, see profile.h */
struct option flag_base_dtype(int *target);          /**< an enum talpa_base_dtype */
struct option flag_compute_dtype(int *target);       /**< an enum talpa_compute_dtype */
struct option flag_expert_dispatch(int *target);     /**< an enum talpa_expert_dispatch */
/** -o, --output: `formats` is "a|b|c"; the target is the index of the word. */
struct option flag_output(int *target, const char *formats);
struct option flag_output_file(const char **target);

/** Says that --model is missing and what it takes; returns 2. */
int flags_fail_model(const struct options *options);

#endif
