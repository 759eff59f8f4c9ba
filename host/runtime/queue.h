/* The device's in-order queue: launches, waiting, times per launch. */
#ifndef TP_QUEUE_H
#define TP_QUEUE_H

#include "memory.h"
#include "program.h"

enum tp_kernel_arg_type { TP_KERNEL_ARG_BUFFER, TP_KERNEL_ARG_BYTES, TP_KERNEL_ARG_LOCAL };

/** One kernel argument: a buffer (NULL gives a null pointer in the kernel), up to 16 bytes by value, or a size of local memory. */
struct tp_kernel_arg {
    enum tp_kernel_arg_type type;
    uint32_t n_bytes; /* of `bytes` */
    union {
        struct tp_buffer *buffer;
        uint8_t bytes[16];
        size_t local_bytes;
    } value;
};

struct tp_kernel_arg tp_kernel_arg_buffer(struct tp_buffer *buffer);
struct tp_kernel_arg tp_kernel_arg_u32(uint32_t value);
struct tp_kernel_arg tp_kernel_arg_i32(int32_t value);
struct tp_kernel_arg tp_kernel_arg_u64(uint64_t value);
struct tp_kernel_arg tp_kernel_arg_f32(float value);
struct tp_kernel_arg tp_kernel_arg_local(size_t n_bytes);

/** Enqueues one kernel; does not wait. `global` counts work-items per dimension (each >= 1; use 1 for dimensions not needed); `local` is
 *  the group size, NULL or all 0: the driver chooses; otherwise each divides its global. `n_args` equals the kernel's number of arguments.
 *  `label` says for whom ("layer 3 q_proj"); it may be NULL and is copied only when profiling. Buffers may be freed after the call.
 *  Errors: TALPA_E_INTERNAL (wrong arguments or sizes), TALPA_E_DEVICE (driver); the message names kernel and label. */
enum talpa_status tp_queue_launch(struct tp_device *device, const struct tp_kernel *kernel, const struct tp_kernel_arg *args, size_t n_args,
                                  const size_t global[3], const size_t local[3], const char *label);

/** As tp_queue_launch, with get_global_id starting at `offset` (NULL: 0) per dimension: one piece of a launch that was split to bound its
 *  time. get_group_id starts at 0 in every piece. */
enum talpa_status tp_queue_launch_piece(struct tp_device *device, const struct tp_kernel *kernel, const struct tp_kernel_arg *args,
                                        size_t n_args, const size_t offset[3], const size_t global[3], const size_t local[3],
                                        const char *label);

/** Says what the next launch is, for the profile of the process (talpa/profile.h): op and pass ("forward", ...) are static strings, flops
 *  and bytes estimates. Nothing if the device does not record (tp_queue_is_recording). */
void tp_queue_describe(struct tp_device *device, const char *op, const char *pass, double flops, double bytes);
bool tp_queue_is_recording(const struct tp_device *device);

/** Starts what is enqueued; does not wait. */
enum talpa_status tp_queue_flush(struct tp_device *device);

/** Waits for everything enqueued. A launch that failed while running is reported here; when profiling, the message names kernel and
 *  label. */
enum talpa_status tp_queue_finish(struct tp_device *device);

/** Times of one launch, on the device's clock (nanoseconds; only differences mean something). */
struct tp_launch_record {
    const char *label;                            /* "" if none was given */
    const char *kernel_path, *kernel_name;
    uint64_t queued_ns, start_ns, end_ns;
};

/** Launches since opening or since tp_queue_profile_reset, in order. Waits for the queue. `*records` belongs to the device and is valid
 *  until the next call of tp_queue_launch, tp_queue_profile or tp_queue_profile_reset. n is 0 when the device was opened without profiling,
 *  or records into the profile of the process.
 *  BLAS calls (blas.h) are recorded with kernel_path "clblast". */
enum talpa_status tp_queue_profile(struct tp_device *device, const struct tp_launch_record **records, size_t *n);

/** Waits for the queue and forgets all records. */
enum talpa_status tp_queue_profile_reset(struct tp_device *device);

#endif
