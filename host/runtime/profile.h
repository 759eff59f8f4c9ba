/* The recording side of include/talpa/profile.h: devices hand over launches, anyone hands over spans of host time. Safe to call from any
 * thread. Failures for want of memory are kept and reported when the profile is read. */
#ifndef TP_PROFILE_H
#define TP_PROFILE_H

#include "talpa/profile.h"

/** Whether a profile is started, and whether it is not paused. */
bool tp_profile_is_started(void);
bool tp_profile_is_recording(void);

/** Registers a device that records; its number for tp_profile_add. The name is copied. */
int tp_profile_add_device(const char *name);

/** One launch or transfer. Strings are copied where they are new. */
struct tp_profile_launch {
    int device;               /* of tp_profile_add_device */
    bool is_transfer;
    const char *op, *pass, *scope;
    const char *path, *name;  /* of the kernel; path "" for transfers */
    double flops, bytes;
    uint64_t queued_ns, start_ns, end_ns; /* the device's clock */
    int64_t host_ns;          /* the host's clock when it was enqueued: brings both clocks together */
};
void tp_profile_add(const struct tp_profile_launch *launch);

/** A span of host time: `begun` is what tp_profile_begin gave (0 while nothing records, which makes the end cost nothing). `name` is a
 *  static string. */
int64_t tp_profile_begin(void);
void tp_profile_end(const char *name, int64_t begun);

/** Ends the span when the variable goes out of scope, on every return of a function. */
struct tp_profile_span {
    const char *name;
    int64_t begun;
};
void tp_profile_span_end(const struct tp_profile_span *span);
#define TP_PROFILE_SPAN(text) \
    __attribute__((cleanup(tp_profile_span_end), unused)) const struct tp_profile_span profile_span_ = {text, tp_profile_begin()}

#endif
