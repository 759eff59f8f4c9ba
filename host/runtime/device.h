/* An opened device: one OpenCL context, one in-order queue, its programs and its memory account.
 *
 * Everything of host/runtime that takes a `struct tp_device *` is used from one thread at a time per device: kernel arguments are state
 * of the kernel object (OpenCL 1.2, clSetKernelArg). Different devices may be used from different threads.
 *
 * Fault injection, for tests: the environment variable TALPA_FAULT="alloc:N", "launch:N" or "build:N" (several separated by commas) makes
 * the N-th call of that kind on a device (counted from 1, per opened device) fail with the code that a driver would give. It is read when
 * the device is opened. */
#ifndef TP_DEVICE_H
#define TP_DEVICE_H

#include "talpa/device.h"

struct tp_device;
struct tp_json_writer;

/** Opens device `index` of talpa_device_list(). With `profiling` the queue records times per launch (tp_queue_profile), which costs some
 *  microseconds each. The caller owns `*out` and gives it to tp_device_close. Allocates; opens drivers (can take a second).
 *  Errors: TALPA_E_ARGUMENT (index beyond the list, message names the range; malformed TALPA_FAULT), TALPA_E_NO_DEVICE (no device at all),
 *  TALPA_E_DEVICE (the driver refused context or queue). */
enum talpa_status tp_device_open(struct tp_device **out, size_t index, bool profiling);

/** Waits for the queue, then frees queue, programs, kernels and context. Every buffer must have been freed before (a leak is logged as a
 *  warning). NULL is allowed. */
void tp_device_close(struct tp_device *device);

/** Capability record; valid until tp_device_close. */
const struct talpa_device_caps *tp_device_caps(const struct tp_device *device);

/** Index it was opened with. */
size_t tp_device_index(const struct tp_device *device);

/** Opened with profiling? */
bool tp_device_is_profiling(const struct tp_device *device);

/** Writes the record as one JSON object; every field of struct talpa_device_caps by its own name, type and vendor as words.
 *  The writer must stand where a value is expected. */
enum talpa_status tp_device_caps_json(struct tp_json_writer *writer, const struct talpa_device_caps *caps);

/** What is known of the matrix tiers on this device (exec/tier.c keeps it here): bits of those that were tried and of those that work. */
struct tp_device_tiers {
    unsigned asked, works;
    bool told; /* that there is none */
};
struct tp_device_tiers *tp_device_tiers(struct tp_device *device);

/** "cpu", "gpu", "accelerator". */
const char *tp_device_type_name(enum talpa_device_type type);

/** "amd", "intel", "nvidia", "pocl", "mesa", "other": the words that a selector and the JSON use. */
const char *tp_device_vendor_name(enum talpa_vendor vendor);

#endif
