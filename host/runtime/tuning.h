/* Tunable parameters of kernels, and their values on a device.
 *
 * A kernel declares a parameter in a line of its head comment,
 *     tune: NAME default | choice choice ...
 * with words of letters, digits, '_' and '.'; the default need not be one of the choices (`auto`: the host decides from the capability
 * record). The value on a device is that of the user's file, else of a file shipped in kernels/tuning/ (embedded at build), else the
 * default. The user's file is TALPA_TUNING (a path; "none": no file at all, not the shipped ones either), else tuning.json in
 * XDG_CACHE_HOME/talpa or HOME/.cache/talpa. Format:
 *
 *     {"talpa_tuning": 1,
 *      "devices": [{"platform": "Portable*", "name": "*", "driver": "3.1*", "features": "avx512f", "without": "amx_tile",
 *                   "date": "2026-11-22", "values": {"cpu/gemm.cl": {"TILE": "12x2x16"}}}]}
 *
 * platform, name and driver are patterns of fnmatch(3) for the record's fields, absent: any; `features` are flags that cpu_features
 * must hold, `without` flags that it must not. The first entry of a file that matches is taken. Names that no kernel declares
 * and values that are not among the choices are passed over with a warning: they are those of another version. A file that is damaged is
 * an error if TALPA_TUNING names it, and passed over with a warning otherwise. */
#ifndef TP_TUNING_H
#define TP_TUNING_H

#include "base/json.h"
#include "talpa/device.h"

enum { TP_TUNING_WORD_BYTES = 24, TP_TUNING_MAX_CHOICES = 12, TP_TUNING_PATH_BYTES = 48 };

/** A declared parameter and its value. */
struct tp_tunable {
    char path[TP_TUNING_PATH_BYTES]; /* of the kernel file, "cpu/gemm.cl" */
    char name[TP_TUNING_WORD_BYTES];
    char initial[TP_TUNING_WORD_BYTES]; /* the default */
    char choices[TP_TUNING_MAX_CHOICES][TP_TUNING_WORD_BYTES];
    int n_choices;
    char value[TP_TUNING_WORD_BYTES];
    const char *origin; /* "default", "shipped", "user" or "set"; static string */
};

/** All declared parameters with their values on one device. */
struct tp_tuning;

/** Values for a device; the caller owns *out. Reads the user's file, allocates. TALPA_E_DATA or TALPA_E_NO_INPUT for a damaged or missing
 *  file that TALPA_TUNING names, TALPA_E_INTERNAL for a malformed declaration in a kernel. */
enum talpa_status tp_tuning_create(struct tp_tuning **out, const struct talpa_device_caps *caps);

/** Defaults only; reads no file but the kernels. */
enum talpa_status tp_tuning_create_default(struct tp_tuning **out);

/** A copy that the caller owns. */
enum talpa_status tp_tuning_copy(struct tp_tuning **out, const struct tp_tuning *tuning);

/** NULL is allowed. */
void tp_tuning_free(struct tp_tuning *tuning);

/** Applies the first matching entry of a parsed file; `origin` is a static string, `label` begins warnings and messages. TALPA_E_DATA if the
 *  file has another form. */
enum talpa_status tp_tuning_apply(struct tp_tuning *tuning, const struct tp_json *json, const struct talpa_device_caps *caps,
                                  const char *origin, const char *label);

/** Value of a parameter, borrowed from `tuning`; a parameter that is not declared gives "". */
const char *tp_tuning_word(const struct tp_tuning *tuning, const char *path, const char *name);

/** The same as a number; `fallback` if it is none (or not declared, or tuning is NULL). */
int64_t tp_tuning_number(const struct tp_tuning *tuning, const char *path, const char *name, int64_t fallback);

/** Sets a value. TALPA_E_ARGUMENT if it is neither the default nor a choice, or not declared. */
enum talpa_status tp_tuning_set(struct tp_tuning *tuning, const char *path, const char *name, const char *value);

/** All parameters, borrowed, in order of path and declaration. */
const struct tp_tunable *tp_tuning_list(const struct tp_tuning *tuning, int *n);

/** Path of the user's file ("" if there is no place for it, or TALPA_TUNING is none). False if it does not fit. */
bool tp_tuning_user_file(char *out, size_t n_room);

#endif
