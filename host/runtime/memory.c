#include "opencl.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/status.h"

uint64_t tp_device_allocated_bytes(const struct tp_device *device) { return device->allocated_bytes; }
uint64_t tp_device_peak_bytes(const struct tp_device *device) { return device->peak_bytes; }
/* Of all devices; several may be used from several threads. */
static atomic_uint_fast64_t all_bytes, all_peak_bytes;

uint64_t tp_memory_bytes(void) { return atomic_load(&all_bytes); }
uint64_t tp_memory_peak_bytes(void) { return atomic_load(&all_peak_bytes); }
void tp_memory_peak_reset(void) { atomic_store(&all_peak_bytes, atomic_load(&all_bytes)); }

static void count(struct tp_device *device, size_t n_bytes)
{
    device->allocated_bytes += n_bytes;
    if (device->allocated_bytes > device->peak_bytes) device->peak_bytes = device->allocated_bytes;
    const uint_fast64_t now = atomic_fetch_add(&all_bytes, n_bytes) + n_bytes;
    uint_fast64_t peak = atomic_load(&all_peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&all_peak_bytes, &peak, now)) {
    }
}

size_t tp_buffer_bytes(const struct tp_buffer *buffer) { return buffer->n_bytes; }
struct tp_device *tp_buffer_device(const struct tp_buffer *buffer) { return buffer->device; }

static enum talpa_status fail_code(const struct tp_device *device, int code, const char *what, uint64_t n_bytes)
{
    return tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "device %s: %s of %" PRIu64 " bytes failed: %s (%d)", device->caps.name, what,
                          n_bytes, tp_opencl_error_name(code), code);
}

enum talpa_status tp_buffer_create(struct tp_buffer **out, struct tp_device *device, size_t n_bytes)
{
    if (n_bytes == 0) return tp_fail(TALPA_E_INTERNAL, "buffer of 0 bytes asked for");
    const struct talpa_device_caps *caps = &device->caps;
    if (n_bytes > caps->max_alloc_bytes)
        return tp_fail_opencl(TALPA_E_DEVICE, CL_INVALID_BUFFER_SIZE, NULL,
                              "device %s: a buffer of %zu bytes is above its limit of %" PRIu64 " bytes per allocation "
                              "(CL_DEVICE_MAX_MEM_ALLOC_SIZE or TALPA_MAX_ALLOC_BYTES); use a smaller batch or context",
                              caps->name, n_bytes, caps->max_alloc_bytes);
    if (n_bytes > caps->global_mem_bytes || device->allocated_bytes > caps->global_mem_bytes - n_bytes)
        return tp_fail_opencl(TALPA_E_DEVICE, CL_MEM_OBJECT_ALLOCATION_FAILURE, NULL,
                              "device %s: %zu more bytes do not fit: %" PRIu64 " of %" PRIu64
                              " bytes are in use already; use a smaller batch, context or model",
                              caps->name, n_bytes, device->allocated_bytes, caps->global_mem_bytes);

    struct tp_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) return tp_fail_memory("buffer", sizeof *buffer);
    cl_int code = CL_MEM_OBJECT_ALLOCATION_FAILURE;
    if (!tp_opencl_fault(device, TP_FAULT_ALLOC)) {
        /* Memory that the host can reach makes mapping free where both share it. */
        const cl_mem_flags flags = CL_MEM_READ_WRITE | (caps->type == TALPA_DEVICE_CPU ? CL_MEM_ALLOC_HOST_PTR : 0);
        buffer->handle = clCreateBuffer(device->context, flags, n_bytes, NULL, &code);
    }
    if (code != CL_SUCCESS || !buffer->handle) {
        free(buffer);
        return fail_code(device, code, "allocation", n_bytes);
    }
    buffer->device = device;
    buffer->n_bytes = n_bytes;
    count(device, n_bytes);
    ++device->n_buffers;
    *out = buffer;
    return TALPA_OK;
}

enum talpa_status tp_buffer_over(struct tp_buffer **out, struct tp_device *device, const void *memory, size_t n_bytes)
{
    if (n_bytes == 0) return tp_fail(TALPA_E_INTERNAL, "buffer of 0 bytes asked for");
    struct tp_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) return tp_fail_memory("buffer", sizeof *buffer);
    cl_int code = CL_SUCCESS;
    buffer->handle = clCreateBuffer(device->context, CL_MEM_READ_ONLY | CL_MEM_USE_HOST_PTR, n_bytes, (void *)(uintptr_t)memory, &code);
    if (code != CL_SUCCESS || !buffer->handle) {
        free(buffer);
        return fail_code(device, code, "use of the host's memory", n_bytes);
    }
    buffer->device = device;
    buffer->n_bytes = n_bytes;
    buffer->is_borrowed = true;
    ++device->n_buffers;
    *out = buffer;
    return TALPA_OK;
}

enum talpa_status tp_buffer_view(struct tp_buffer **out, struct tp_buffer *parent, size_t offset_bytes, size_t n_bytes)
{
    struct tp_device *device = parent->device;
    if (parent->is_view) return tp_fail(TALPA_E_INTERNAL, "view of a view (OpenCL knows only one level of sub-buffers)");
    if (n_bytes == 0 || offset_bytes > parent->n_bytes || n_bytes > parent->n_bytes - offset_bytes)
        return tp_fail(TALPA_E_INTERNAL, "view [%zu, +%zu) outside its buffer of %zu bytes", offset_bytes, n_bytes, parent->n_bytes);
    if (offset_bytes % device->caps.base_align_bytes != 0)
        return tp_fail(TALPA_E_INTERNAL, "view offset %zu is no multiple of %" PRIu32 " bytes (alignment of device %s)", offset_bytes,
                       device->caps.base_align_bytes, device->caps.name);
    struct tp_buffer *view = calloc(1, sizeof *view);
    if (!view) return tp_fail_memory("buffer view", sizeof *view);
    const cl_buffer_region region = {offset_bytes, n_bytes};
    cl_int code = CL_SUCCESS;
    view->handle = clCreateSubBuffer(parent->handle, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region, &code);
    if (code != CL_SUCCESS || !view->handle) {
        free(view);
        return fail_code(device, code, "sub-buffer", n_bytes);
    }
    view->device = device;
    view->n_bytes = n_bytes;
    view->is_view = true;
    ++device->n_buffers;
    *out = view;
    return TALPA_OK;
}

void tp_buffer_free(struct tp_buffer *buffer)
{
    if (!buffer) return;
    clReleaseMemObject(buffer->handle);
    if (!buffer->is_view && !buffer->is_borrowed) {
        buffer->device->allocated_bytes -= buffer->n_bytes;
        atomic_fetch_sub(&all_bytes, buffer->n_bytes);
    }
    --buffer->device->n_buffers;
    free(buffer);
}

/* Transfers have events only in the profile of the process; a device opened for profiling records launches alone. */
static cl_event *wanted(const struct tp_device *device, cl_event *event)
{
    return device->collects && tp_queue_wants_event(device) ? event : NULL;
}

static enum talpa_status check_range(const struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, const char *what)
{
    if (offset_bytes > buffer->n_bytes || n_bytes > buffer->n_bytes - offset_bytes)
        return tp_fail(TALPA_E_INTERNAL, "%s of [%zu, +%zu) outside its buffer of %zu bytes", what, offset_bytes, n_bytes, buffer->n_bytes);
    return TALPA_OK;
}

enum talpa_status tp_buffer_write(struct tp_buffer *buffer, size_t offset_bytes, const void *source, size_t n_bytes, bool blocking)
{
    TP_TRY(check_range(buffer, offset_bytes, n_bytes, "write"));
    if (n_bytes == 0) return TALPA_OK;
    cl_event event = NULL;
    const cl_int code = clEnqueueWriteBuffer(buffer->device->queue, buffer->handle, blocking ? CL_TRUE : CL_FALSE, offset_bytes, n_bytes,
                                             source, 0, NULL, wanted(buffer->device, &event));
    if (code != CL_SUCCESS) return fail_code(buffer->device, code, "write", n_bytes);
    return tp_queue_record_transfer(buffer->device, "write", n_bytes, event);
}

enum talpa_status tp_buffer_read(void *target, struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, bool blocking)
{
    TP_TRY(check_range(buffer, offset_bytes, n_bytes, "read"));
    if (n_bytes == 0) return TALPA_OK;
    cl_event event = NULL;
    const cl_int code = clEnqueueReadBuffer(buffer->device->queue, buffer->handle, blocking ? CL_TRUE : CL_FALSE, offset_bytes, n_bytes,
                                            target, 0, NULL, wanted(buffer->device, &event));
    if (code != CL_SUCCESS) return fail_code(buffer->device, code, "read", n_bytes);
    return tp_queue_record_transfer(buffer->device, "read", n_bytes, event);
}

static enum talpa_status fill(struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, const void *pattern, size_t n_pattern_bytes)
{
    TP_TRY(check_range(buffer, offset_bytes, n_bytes, "fill"));
    if (n_bytes == 0) return TALPA_OK;
    cl_event event = NULL;
    const cl_int code = clEnqueueFillBuffer(buffer->device->queue, buffer->handle, pattern, n_pattern_bytes, offset_bytes, n_bytes, 0, NULL,
                                            wanted(buffer->device, &event));
    if (code != CL_SUCCESS) return fail_code(buffer->device, code, "fill", n_bytes);
    return tp_queue_record_transfer(buffer->device, "fill", n_bytes, event);
}

enum talpa_status tp_buffer_fill(struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, uint8_t value)
{
    return fill(buffer, offset_bytes, n_bytes, &value, sizeof value);
}

enum talpa_status tp_buffer_fill_u32(struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, uint32_t value)
{
    if (offset_bytes % 4 != 0 || n_bytes % 4 != 0)
        return tp_fail(TALPA_E_INTERNAL, "fill with a word: [%zu, +%zu) is not made of whole words", offset_bytes, n_bytes);
    return fill(buffer, offset_bytes, n_bytes, &value, sizeof value);
}

enum talpa_status tp_buffer_copy(struct tp_buffer *target, size_t target_offset_bytes, struct tp_buffer *source,
                                 size_t source_offset_bytes, size_t n_bytes)
{
    TP_TRY(check_range(target, target_offset_bytes, n_bytes, "copy to"));
    TP_TRY(check_range(source, source_offset_bytes, n_bytes, "copy from"));
    if (target->device != source->device) return tp_fail(TALPA_E_INTERNAL, "copy between buffers of two devices");
    if (n_bytes == 0) return TALPA_OK;
    cl_event event = NULL;
    const cl_int code = clEnqueueCopyBuffer(target->device->queue, source->handle, target->handle, source_offset_bytes, target_offset_bytes,
                                            n_bytes, 0, NULL, wanted(target->device, &event));
    if (code != CL_SUCCESS) return fail_code(target->device, code, "copy", n_bytes);
    return tp_queue_record_transfer(target->device, "copy", n_bytes, event);
}

enum talpa_status tp_buffer_map(void **out, struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, enum tp_map_mode mode)
{
    TP_TRY(check_range(buffer, offset_bytes, n_bytes, "map"));
    if (n_bytes == 0) return tp_fail(TALPA_E_INTERNAL, "map of 0 bytes");
    const cl_map_flags flags = mode == TP_MAP_READ    ? CL_MAP_READ
                               : mode == TP_MAP_WRITE ? CL_MAP_WRITE_INVALIDATE_REGION
                                                      : CL_MAP_READ | CL_MAP_WRITE;
    cl_int code = CL_SUCCESS;
    void *address = clEnqueueMapBuffer(buffer->device->queue, buffer->handle, CL_TRUE, flags, offset_bytes, n_bytes, 0, NULL, NULL, &code);
    if (code != CL_SUCCESS || !address) return fail_code(buffer->device, code, "map", n_bytes);
    *out = address;
    return TALPA_OK;
}

enum talpa_status tp_buffer_unmap(struct tp_buffer *buffer, void *address)
{
    const cl_int code = clEnqueueUnmapMemObject(buffer->device->queue, buffer->handle, address, 0, NULL, NULL);
    return code == CL_SUCCESS ? TALPA_OK : fail_code(buffer->device, code, "unmap", buffer->n_bytes);
}
