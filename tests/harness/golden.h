/* Access to the golden files beside the project (../shared, or TALPA_SHARED), for tests that skip when they are absent. */
#ifndef TP_TEST_GOLDEN_H
#define TP_TEST_GOLDEN_H

#include "base/json.h"
#include "io/safetensors.h"

/** Path of a file below shared/golden, in a static buffer; exits with 77 if the folder is absent. */
const char *golden_path(const char *file);
/** Path of a file below shared/data; exits with 77 if the folder is absent. */
const char *golden_data_path(const char *file);
/** The base model file (TALPA_TEST_MODEL, else the user's cache); exits with 77 if it is absent. */
const char *golden_model_path(void);

/** f32 or i32 data of a tensor; fails the test if it is absent. *n elements. Freed by the caller. */
float *golden_f32(const struct tp_safetensors *file, const char *name, size_t *n);
int32_t *golden_i32(const struct tp_safetensors *file, const char *name, size_t *n);

/** Whole JSON file; fails the test if it is absent. */
struct tp_json *golden_json(const char *file);
/** Array of numbers at a path of keys separated by '/', NULL-valued entries become NaN. Freed by the caller. */
double *golden_numbers(const struct tp_json *json, const char *keys, size_t *n);
double golden_number(const struct tp_json *json, const char *keys);
/** Value at a path, NULL if absent. */
const struct tp_json_value *golden_at(const struct tp_json *json, const char *keys);

/** Fails the test with the library's message unless status is TALPA_OK. */
void golden_ok(enum talpa_status status);

/** The device under test: TALPA_DEVICE or the default; exits with 77 if there is none. */
size_t golden_device(void);

/** Does the device under test compile quickly enough to run every tier? llvmpipe takes minutes per tier, and has only the generic one. */
bool golden_is_quick(void);

#endif
