/* Kernels from source: embedded .cl files, each overridden by a file of the same path below TALPA_KERNEL_DIR if that is set; built once per
 * (path, options) and device.
 *
 * `#include "common/x.clh"` lines are resolved by the host, relative to the kernel folder, each file once, so they must not stand inside a
 * conditional; #line directives keep the compiler's messages right. Options are followed by -cl-std=CL1.2 unless they hold a -cl-std of
 * their own; -cl-fast-relaxed-math is never passed (TALPA_E_INTERNAL if asked for).
 *
 * On-disk cache of binaries: TALPA_CACHE_DIR/programs, else XDG_CACHE_HOME/talpa/programs, else HOME/.cache/talpa/programs (mode 0700).
 * A per-driver decision: not for Mesa, which caches by itself. PoCL caches too, but looks a program up by its preprocessed source, which
 * takes it 20 to 30 ms each time and a binary 1 ms; as it compiles every kernel once more to hand out a binary, PoCL's are stored only where
 * starts are frequent (tp_program_keep). The key holds source, options, device, driver, platform, CPU features and a format version. A
 * damaged or stale file is built anew, never an error. TALPA_PROGRAM_CACHE=0 switches it off. */
#ifndef TP_PROGRAM_H
#define TP_PROGRAM_H

#include "device.h"

struct tp_kernel;

/** Kernel `name` of the file `path` ("cpu/matmul.cl") built with `options` (NULL or "" for none, e.g. "-DTILE_M=12 -DTILE_N=32").
 *  Cached: the same arguments give the same object. The device owns it; it lives until tp_device_close and is never freed by the caller.
 *  Can compile (seconds). Errors: TALPA_E_INTERNAL (unknown path, include or kernel name), TALPA_E_NO_INPUT (unreadable file below
 *  TALPA_KERNEL_DIR), TALPA_E_DEVICE (the build failed: talpa_error_build_log() holds the compiler's output). A failed build is remembered:
 *  the second request fails at once with the same log. */
enum talpa_status tp_program_kernel(struct tp_kernel **out, struct tp_device *device, const char *path, const char *name,
                                    const char *options);

/** Complete source text of `path` with its includes resolved, NUL-terminated, freed by the caller with free(); `*n_bytes` (may be NULL)
 *  without the NUL. Reads no device. Errors as tp_program_kernel. */
enum talpa_status tp_program_source(char **text, size_t *n_bytes, const char *path);

/** Does the file exist (embedded, or below TALPA_KERNEL_DIR)? */
bool tp_program_exists(const char *path);

/** clGetKernelWorkGroupInfo of the same names. */
struct tp_kernel_info {
    size_t max_work_group_size, preferred_multiple;
    uint64_t local_mem_bytes, private_mem_bytes;
};
enum talpa_status tp_kernel_info(struct tp_kernel_info *info, const struct tp_kernel *kernel);

const char *tp_kernel_name(const struct tp_kernel *kernel);
const char *tp_kernel_path(const struct tp_kernel *kernel);

/** Programs that are built from now on go to the on-disk cache also on PoCL, which makes their first build about twice as long. */
void tp_program_keep(struct tp_device *device);

/** What building cost on this device so far. */
struct tp_program_counts {
    uint64_t n_built;        /* compiled from source */
    uint64_t n_cache_hits;   /* loaded from the on-disk cache */
    uint64_t n_cache_stored; /* written to it */
    uint64_t build_ns;       /* time in compiling and loading */
};
struct tp_program_counts tp_program_counts(const struct tp_device *device);

#endif
