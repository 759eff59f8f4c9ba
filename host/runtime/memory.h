/* Device memory: counted buffers, aligned views, transfers in queue order.
 *
 * All transfers go through the device's in-order queue, so they see the launches before them and are seen by the launches after them. */
#ifndef TP_MEMORY_H
#define TP_MEMORY_H

#include "device.h"

struct tp_buffer;

/** Allocates `n_bytes` (> 0) of device memory; the contents are undefined. The caller owns `*out`.
 *  TALPA_E_DEVICE if it is larger than caps.max_alloc_bytes (the message names the limit) or the driver has no memory left. */
enum talpa_status tp_buffer_create(struct tp_buffer **out, struct tp_device *device, size_t n_bytes);

/** A buffer over memory of the host that kernels only read: nothing is copied where kernels run in this process. `memory` is aligned to
 *  TP_HOST_MEMORY_ALIGN and outlives the buffer and all work that uses it. Not counted as memory. The caller owns `*out`. */
enum { TP_HOST_MEMORY_ALIGN = 32 };
enum talpa_status tp_buffer_over(struct tp_buffer **out, struct tp_device *device, const void *memory, size_t n_bytes);

/** A window [offset_bytes, offset_bytes + n_bytes) of a root buffer (not of another view). `offset_bytes` must be a multiple of
 *  caps.base_align_bytes. The caller owns `*out` and frees it before the parent. Not counted as memory.
 *  TALPA_E_INTERNAL if the window is empty, misaligned, outside the parent, or the parent is a view. */
enum talpa_status tp_buffer_view(struct tp_buffer **out, struct tp_buffer *parent, size_t offset_bytes, size_t n_bytes);

/** Releases buffer or view; work already in the queue still runs (OpenCL keeps the memory until then). NULL is allowed. */
void tp_buffer_free(struct tp_buffer *buffer);

size_t tp_buffer_bytes(const struct tp_buffer *buffer);
struct tp_device *tp_buffer_device(const struct tp_buffer *buffer);

/** Host to device, `n_bytes` from `source` to `offset_bytes`. With `blocking`, `source` may be reused on return; otherwise it must stay
 *  unchanged until tp_queue_finish. n_bytes 0 does nothing. TALPA_E_INTERNAL outside the buffer, TALPA_E_DEVICE from the driver. */
enum talpa_status tp_buffer_write(struct tp_buffer *buffer, size_t offset_bytes, const void *source, size_t n_bytes, bool blocking);

/** Device to host, as tp_buffer_write. With `blocking` everything enqueued before has finished on return. */
enum talpa_status tp_buffer_read(void *target, struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, bool blocking);

/** Fills a range with one byte value (enqueued, does not wait). */
enum talpa_status tp_buffer_fill(struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, uint8_t value);

/** Fills a range with one 32-bit word (enqueued, does not wait); offset and size are multiples of 4. */
enum talpa_status tp_buffer_fill_u32(struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, uint32_t value);

/** Device to device (enqueued, does not wait). The ranges do not overlap, also not through views of one parent. */
enum talpa_status tp_buffer_copy(struct tp_buffer *target, size_t target_offset_bytes, struct tp_buffer *source,
                                 size_t source_offset_bytes, size_t n_bytes);

enum tp_map_mode { TP_MAP_READ, TP_MAP_WRITE /* previous contents are lost */, TP_MAP_READ_WRITE };

/** Host address of a range, after everything enqueued before has finished (blocks). On CPU devices nothing is copied: the way to pack
 *  large weights straight into device memory. Between map and unmap no launch may use the range. */
enum talpa_status tp_buffer_map(void **out, struct tp_buffer *buffer, size_t offset_bytes, size_t n_bytes, enum tp_map_mode mode);

/** Ends a mapping (enqueued, does not wait); `address` is what tp_buffer_map gave. */
enum talpa_status tp_buffer_unmap(struct tp_buffer *buffer, void *address);

/** Bytes now allocated by tp_buffer_create on this device, and the most there ever were. */
uint64_t tp_device_allocated_bytes(const struct tp_device *device);
uint64_t tp_device_peak_bytes(const struct tp_device *device);

/** The same over all devices of the process, since it started or since tp_memory_peak_reset (which makes the present bytes the peak). */
uint64_t tp_memory_bytes(void);
uint64_t tp_memory_peak_bytes(void);
void tp_memory_peak_reset(void);

#endif
