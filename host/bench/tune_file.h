/* The tuning file as `talpa tune` writes it; runtime/tuning.h reads it and describes the format. */
#ifndef TP_TUNE_FILE_H
#define TP_TUNE_FILE_H

#include "runtime/tuning.h"

/** Whether the file can be written: a place is known, and what stands there is absent or a tuning file. TALPA_E_ARGUMENT, TALPA_E_DATA,
 *  TALPA_E_NO_INPUT (unreadable), TALPA_E_CREATE (its folder). `path` NULL: the user's file. Makes the folder. */
enum talpa_status tp_tune_file_check(const char *path);

/** Replaces the entry of this device (or puts it first) with the values of the parameters whose flag in `wanted` (parallel to
 *  tp_tuning_list) is set; other entries stay. The file is replaced as a whole. Errors as tp_tune_file_check, TALPA_E_IO. */
enum talpa_status tp_tune_file_write(const char *path, const struct talpa_device_caps *caps, const struct tp_tuning *tuning, const bool *wanted);

#endif
