#include "opencl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/status.h"
#include "profile.h"

/* Events are collected in batches: a long profiled run keeps few of them alive. */
enum { MAX_PENDING = 1024 };

struct tp_kernel_arg tp_kernel_arg_buffer(struct tp_buffer *buffer)
{
    return (struct tp_kernel_arg){.type = TP_KERNEL_ARG_BUFFER, .value.buffer = buffer};
}

static struct tp_kernel_arg bytes_arg(const void *source, uint32_t n_bytes)
{
    struct tp_kernel_arg arg = {.type = TP_KERNEL_ARG_BYTES, .n_bytes = n_bytes};
    memcpy(arg.value.bytes, source, n_bytes);
    return arg;
}

struct tp_kernel_arg tp_kernel_arg_u32(uint32_t value) { return bytes_arg(&value, sizeof value); }
struct tp_kernel_arg tp_kernel_arg_i32(int32_t value) { return bytes_arg(&value, sizeof value); }
struct tp_kernel_arg tp_kernel_arg_u64(uint64_t value) { return bytes_arg(&value, sizeof value); }
struct tp_kernel_arg tp_kernel_arg_f32(float value) { return bytes_arg(&value, sizeof value); }

struct tp_kernel_arg tp_kernel_arg_local(size_t n_bytes)
{
    return (struct tp_kernel_arg){.type = TP_KERNEL_ARG_LOCAL, .value.local_bytes = n_bytes};
}

static enum talpa_status fail_launch(const struct tp_kernel *kernel, const char *label, int code, const char *what)
{
    return tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "%s%skernel %s of %s on device %s: %s: %s (%d)", label && *label ? label : "",
                          label && *label ? ": " : "", kernel->name, kernel->program->path, kernel->device->caps.name, what,
                          tp_opencl_error_name(code), code);
}

static bool is_held(const struct tp_kernel_arg *held, const struct tp_kernel_arg *arg)
{
    if (held->type != arg->type) return false;
    if (arg->type == TP_KERNEL_ARG_LOCAL) return held->value.local_bytes == arg->value.local_bytes;
    return arg->type == TP_KERNEL_ARG_BYTES && held->n_bytes == arg->n_bytes && memcmp(held->value.bytes, arg->value.bytes, arg->n_bytes) == 0;
}

/* Sets what differs from the launch before. A buffer is always set: another one may have come to live at its address. */
static enum talpa_status set_args(const struct tp_kernel *kernel, const struct tp_kernel_arg *args, size_t n_args, const char *label)
{
    const char *name = label && *label ? label : "launch";
    if (n_args != kernel->n_args)
        return tp_fail(TALPA_E_INTERNAL, "%s: kernel %s of %s takes %" PRIu32 " arguments, %zu were given", name, kernel->name,
                       kernel->program->path, (uint32_t)kernel->n_args, n_args);
    for (size_t i = 0; i < n_args; ++i) {
        const struct tp_kernel_arg *arg = &args[i];
        cl_int code = CL_INVALID_ARG_VALUE;
        if (is_held(&kernel->held[i], arg)) continue;
        switch (arg->type) {
        case TP_KERNEL_ARG_BUFFER: {
            const struct tp_buffer *buffer = arg->value.buffer;
            const cl_mem handle = buffer ? buffer->handle : NULL;
            code = clSetKernelArg(kernel->handle, (cl_uint)i, sizeof handle, &handle);
            break;
        }
        case TP_KERNEL_ARG_BYTES:
            if (arg->n_bytes > 0 && arg->n_bytes <= sizeof arg->value.bytes)
                code = clSetKernelArg(kernel->handle, (cl_uint)i, arg->n_bytes, arg->value.bytes);
            break;
        case TP_KERNEL_ARG_LOCAL:
            code = clSetKernelArg(kernel->handle, (cl_uint)i, arg->value.local_bytes, NULL);
            break;
        }
        if (code != CL_SUCCESS)
            return tp_fail_opencl(TALPA_E_INTERNAL, code, NULL, "%s: kernel %s of %s refuses argument %zu: %s (%d)", name, kernel->name,
                                  kernel->program->path, i, tp_opencl_error_name(code), code);
        kernel->held[i] = *arg;
    }
    return TALPA_OK;
}

enum talpa_status tp_queue_launch_piece(struct tp_device *device, const struct tp_kernel *kernel, const struct tp_kernel_arg *args,
                                        size_t n_args, const size_t offset[3], const size_t global[3], const size_t local[3],
                                        const char *label)
{
    const char *name = label && *label ? label : "launch";
    if (kernel->device != device)
        return tp_fail(TALPA_E_INTERNAL, "%s: kernel %s was built for another device", name, kernel->name);
    const bool has_local = local && (local[0] || local[1] || local[2]);
    for (int i = 0; i < 3; ++i) {
        if (global[i] == 0 || (has_local && (local[i] == 0 || global[i] % local[i] != 0)))
            return tp_fail(TALPA_E_INTERNAL, "%s: kernel %s: dimension %d has %zu work-items in groups of %zu", name, kernel->name, i,
                           global[i], has_local ? local[i] : 0);
    }
    TP_TRY(set_args(kernel, args, n_args, label));
    if (tp_opencl_fault(device, TP_FAULT_LAUNCH)) return fail_launch(kernel, label, CL_OUT_OF_RESOURCES, "launch failed");

    const cl_uint n_dims = global[2] > 1 || (offset && offset[2]) ? 3 : global[1] > 1 || (offset && offset[1]) ? 2 : 1;
    cl_event event = NULL;
    const cl_int code = clEnqueueNDRangeKernel(device->queue, kernel->handle, n_dims, offset, global, has_local ? local : NULL, 0, NULL,
                                               tp_queue_wants_event(device) ? &event : NULL);
    if (code != CL_SUCCESS) return fail_launch(kernel, label, code, "launch failed");
    if (!event) return TALPA_OK;
    return tp_queue_record(device, label, kernel->program->path, kernel->name, event);
}

enum talpa_status tp_queue_launch(struct tp_device *device, const struct tp_kernel *kernel, const struct tp_kernel_arg *args, size_t n_args,
                                  const size_t global[3], const size_t local[3], const char *label)
{
    return tp_queue_launch_piece(device, kernel, args, n_args, NULL, global, local, label);
}

bool tp_queue_wants_event(const struct tp_device *device)
{
    return device->is_profiling && (!device->collects || tp_profile_is_recording());
}

bool tp_queue_is_recording(const struct tp_device *device) { return device->collects && tp_profile_is_recording(); }

void tp_queue_describe(struct tp_device *device, const char *op, const char *pass, double flops, double bytes)
{
    if (device->collects) device->extra = (struct tp_launch_extra){.op = op, .pass = pass, .flops = flops, .bytes = bytes};
}

/* Moves all records, whose times are known, into the profile of the process. */
static void hand_over(struct tp_device *device)
{
    struct tp_profile *profile = &device->profile;
    for (size_t i = 0; i < profile->n; ++i) {
        const struct tp_launch_record *record = &profile->records[i];
        const struct tp_launch_extra *extra = &profile->extras[i];
        const struct tp_profile_launch launch = {.device = device->profile_device,
                                                 .is_transfer = extra->is_transfer,
                                                 .op = extra->op ? extra->op : record->kernel_name,
                                                 .pass = extra->pass ? extra->pass : "",
                                                 .scope = record->label,
                                                 .path = record->kernel_path,
                                                 .name = record->kernel_name,
                                                 .flops = extra->flops,
                                                 .bytes = extra->bytes,
                                                 .queued_ns = record->queued_ns,
                                                 .start_ns = record->start_ns,
                                                 .end_ns = record->end_ns,
                                                 .host_ns = extra->host_ns};
        if (record->end_ns) tp_profile_add(&launch);
        free((char *)(uintptr_t)record->label);
    }
    profile->n = 0;
}

/* Waits for the pending events and takes their times. All events are released, also on failure; the first failure is reported. */
enum talpa_status tp_queue_collect(struct tp_device *device)
{
    struct tp_profile *profile = &device->profile;
    enum talpa_status status = TALPA_OK;
    for (size_t i = profile->n - profile->n_pending; i < profile->n; ++i) {
        struct tp_launch_record *record = &profile->records[i];
        cl_event *event = &profile->events[i];
        cl_int state = CL_COMPLETE;
        cl_int code = clWaitForEvents(1, event);
        if (clGetEventInfo(*event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL) == CL_SUCCESS && state < 0) code = state;
        cl_ulong queued = 0, start = 0, end = 0;
        if (code == CL_SUCCESS) code = clGetEventProfilingInfo(*event, CL_PROFILING_COMMAND_QUEUED, sizeof queued, &queued, NULL);
        if (code == CL_SUCCESS) code = clGetEventProfilingInfo(*event, CL_PROFILING_COMMAND_START, sizeof start, &start, NULL);
        if (code == CL_SUCCESS) code = clGetEventProfilingInfo(*event, CL_PROFILING_COMMAND_END, sizeof end, &end, NULL);
        record->queued_ns = queued;
        record->start_ns = start;
        record->end_ns = end;
        clReleaseEvent(*event);
        *event = NULL;
        if (code != CL_SUCCESS && status == TALPA_OK)
            status = tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "%s: kernel %s of %s on device %s failed while running: %s (%d)",
                                    record->label[0] ? record->label : "launch", record->kernel_name, record->kernel_path,
                                    device->caps.name, tp_opencl_error_name(code), code);
    }
    profile->n_pending = 0;
    if (device->collects) hand_over(device);
    return status;
}

static char *copy_text(const char *text)
{
    const size_t n_bytes = strlen(text) + 1;
    char *copy = malloc(n_bytes);
    if (copy) memcpy(copy, text, n_bytes);
    return copy;
}

static enum talpa_status make_room(struct tp_profile *profile)
{
    if (profile->n < profile->n_room) return TALPA_OK;
    const size_t n_room = profile->n_room ? 2 * profile->n_room : 256;
    struct tp_launch_record *records = realloc(profile->records, n_room * sizeof *records);
    if (records) profile->records = records;
    cl_event *events = realloc(profile->events, n_room * sizeof *events);
    if (events) profile->events = events;
    struct tp_launch_extra *extras = realloc(profile->extras, n_room * sizeof *extras);
    if (extras) profile->extras = extras;
    if (!records || !events || !extras)
        return tp_fail_memory("launch records", n_room * (sizeof *records + sizeof *events + sizeof *extras));
    profile->n_room = n_room;
    return TALPA_OK;
}

enum talpa_status tp_queue_record(struct tp_device *device, const char *label, const char *kernel_path, const char *kernel_name,
                                  cl_event event)
{
    struct tp_profile *profile = &device->profile;
    enum talpa_status status = make_room(profile);
    char *text = status == TALPA_OK ? copy_text(label ? label : "") : NULL;
    if (!text) {
        clReleaseEvent(event);
        return status == TALPA_OK ? tp_fail_memory("launch label", 1) : status;
    }
    profile->records[profile->n] = (struct tp_launch_record){.label = text, .kernel_path = kernel_path, .kernel_name = kernel_name};
    profile->events[profile->n] = event;
    profile->extras[profile->n] = device->extra;
    profile->extras[profile->n].host_ns = device->collects ? tp_clock_now_ns() : 0;
    device->extra = (struct tp_launch_extra){0};
    ++profile->n;
    ++profile->n_pending;
    return profile->n_pending < MAX_PENDING ? TALPA_OK : tp_queue_collect(device);
}

enum talpa_status tp_queue_record_transfer(struct tp_device *device, const char *op, size_t n_bytes, cl_event event)
{
    if (!event) return TALPA_OK;
    device->extra = (struct tp_launch_extra){.op = op, .bytes = (double)n_bytes, .is_transfer = true};
    return tp_queue_record(device, "", "", op, event);
}

static void forget_records(struct tp_profile *profile)
{
    for (size_t i = 0; i < profile->n; ++i) {
        free((char *)(uintptr_t)profile->records[i].label);
        if (i >= profile->n - profile->n_pending) clReleaseEvent(profile->events[i]);
    }
    profile->n = profile->n_pending = 0;
}

void tp_queue_free_profile(struct tp_device *device)
{
    forget_records(&device->profile);
    free(device->profile.records);
    free(device->profile.events);
    free(device->profile.extras);
    device->profile = (struct tp_profile){0};
}

enum talpa_status tp_queue_flush(struct tp_device *device)
{
    const cl_int code = clFlush(device->queue);
    if (code == CL_SUCCESS) return TALPA_OK;
    return tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "device %s: starting the queue failed: %s (%d)", device->caps.name,
                          tp_opencl_error_name(code), code);
}

enum talpa_status tp_queue_finish(struct tp_device *device)
{
    const cl_int code = clFinish(device->queue);
    /* The events know which launch it was, so they are asked first. */
    TP_TRY(tp_queue_collect(device));
    if (code == CL_SUCCESS) return TALPA_OK;
    return tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "device %s: waiting for the queue failed: %s (%d)", device->caps.name,
                          tp_opencl_error_name(code), code);
}

enum talpa_status tp_queue_profile(struct tp_device *device, const struct tp_launch_record **records, size_t *n)
{
    TP_TRY(tp_queue_finish(device));
    *records = device->profile.records;
    *n = device->profile.n;
    return TALPA_OK;
}

enum talpa_status tp_queue_profile_reset(struct tp_device *device)
{
    const enum talpa_status status = tp_queue_finish(device);
    forget_records(&device->profile);
    return status;
}
