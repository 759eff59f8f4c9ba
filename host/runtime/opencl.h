/* The insides of host/runtime: never included from another folder, because it brings in OpenCL's types. */
#ifndef TP_OPENCL_H
#define TP_OPENCL_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "blas.h"
#include "device.h"
#include "memory.h"
#include "program.h"
#include "queue.h"

enum tp_fault_kind { TP_FAULT_ALLOC, TP_FAULT_LAUNCH, TP_FAULT_BUILD, TP_N_FAULTS };

/* One (path, options), built once. `status` is that of the build; a failed one keeps its log and has no cl_program. */
struct tp_program {
    char *path, *options;
    enum talpa_status status;
    int opencl_code;
    char *message, *build_log;
    cl_program handle;
    struct tp_kernel *kernels;
    struct tp_program *next;
};

struct tp_kernel {
    char *name;
    const struct tp_program *program;
    const struct tp_device *device;
    cl_kernel handle;
    cl_uint n_args;
    struct tp_kernel_arg *held; /* [n_args] what `handle` was last given by value or as local memory; buffers are not remembered */
    struct tp_kernel *next;
};

struct tp_buffer {
    struct tp_device *device;
    cl_mem handle;
    size_t n_bytes;
    bool is_view, is_borrowed;
};

/* What a launch record does not hold; of a device that records into the process's profile (profile.h). */
struct tp_launch_extra {
    const char *op, *pass; /* static strings */
    double flops, bytes;
    int64_t host_ns;
    bool is_transfer;
};

/* Launch records; the last `n_pending` of them still wait for their event. */
struct tp_profile {
    struct tp_launch_record *records;
    struct tp_launch_extra *extras;
    cl_event *events;
    size_t n, n_room, n_pending;
};

struct tp_device {
    size_t index;
    struct talpa_device_caps caps;
    cl_platform_id platform;
    cl_device_id id;
    cl_context context;
    cl_command_queue queue;
    bool is_profiling, used_blas;
    bool collects;                /* records go to the profile of the process instead of being kept */
    int profile_device;           /* its number there */
    struct tp_launch_extra extra; /* of the next launch (tp_queue_describe) */
    struct tp_device_tiers tiers;
    bool keeps_programs; /* tp_program_keep */
    struct tp_program *programs;
    struct tp_program_counts counts;
    struct tp_profile profile;
    uint64_t allocated_bytes, peak_bytes, n_buffers;
    uint64_t fault_at[TP_N_FAULTS], fault_calls[TP_N_FAULTS];
};

/** Name of an OpenCL error code ("CL_OUT_OF_RESOURCES"), "unknown OpenCL code" otherwise. */
const char *tp_opencl_error_name(int code);

/** Counts one call of this kind; true if TALPA_FAULT asks for this one to fail. */
bool tp_opencl_fault(struct tp_device *device, enum tp_fault_kind kind);

/** Reads TALPA_FAULT into device->fault_at. TALPA_E_ARGUMENT if malformed. */
enum talpa_status tp_opencl_read_faults(struct tp_device *device);

/** Reads a whole file; `*bytes` has a NUL after its `*n_bytes` and is freed by the caller. Returns 0 or an errno value. */
int tp_program_read_file(char **bytes, size_t *n_bytes, const char *path);

/** Text of one file below kernels/ as it stands, without its includes; `*owned` is freed by the caller (NULL if the text is embedded).
 *  Errors as tp_program_source. */
enum talpa_status tp_program_text(const char **text, char **owned, const char *path);

/** Frees programs and kernels of the device. */
void tp_program_free_all(struct tp_device *device);

/** Frees records and events. */
void tp_queue_free_profile(struct tp_device *device);

/** Whether the next command shall have an event. */
bool tp_queue_wants_event(const struct tp_device *device);

/** Records a transfer, if the device collects and `event` is not NULL; `op` is a static string. The event is owned as below. */
enum talpa_status tp_queue_record_transfer(struct tp_device *device, const char *op, size_t n_bytes, cl_event event);

/** Takes the times of all pending events. */
enum talpa_status tp_queue_collect(struct tp_device *device);

/** Stores one launch whose event is owned by the profile from now on, also on failure. kernel_path and kernel_name outlive the device. */
enum talpa_status tp_queue_record(struct tp_device *device, const char *label, const char *kernel_path, const char *kernel_name,
                                  cl_event event);

/* On-disk cache of binaries (program_cache.c). */

/** Does this driver gain from it, and is it not switched off? */
bool tp_program_cache_enabled(const struct tp_device *device);

/** Are programs that are not in it stored (tp_program_keep)? */
bool tp_program_cache_grows(const struct tp_device *device);

/** Loads and links the program for this source; NULL if absent, damaged or refused (never an error). */
cl_program tp_program_cache_load(struct tp_device *device, const char *source, size_t n_bytes, const char *options);

/** Stores the binary of a built program; true if written. Failures (full disk, no folder) are no error. */
bool tp_program_cache_store(struct tp_device *device, cl_program program, const char *source, size_t n_bytes, const char *options);

#endif
