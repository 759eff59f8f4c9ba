/* Devices: enumeration over all OpenCL platforms and the capability record that planning is made from. */
#ifndef TALPA_DEVICE_H
#define TALPA_DEVICE_H

#include "talpa/status.h"
#include "talpa/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum talpa_device_type { TALPA_DEVICE_CPU, TALPA_DEVICE_GPU, TALPA_DEVICE_ACCELERATOR };

enum talpa_vendor { TALPA_VENDOR_OTHER, TALPA_VENDOR_AMD, TALPA_VENDOR_INTEL, TALPA_VENDOR_NVIDIA, TALPA_VENDOR_POCL, TALPA_VENDOR_MESA };

/** Everything that planning may know about a device. A plain record: it can be invented to plan for a device that is not there
 *  (talpa_device_fake). All strings are NUL-terminated and cut to fit. Source of each field: the clGetDeviceInfo query of the same name. */
struct talpa_device_caps {
    char platform[128], name[128], vendor_name[128], driver_version[128], device_version[64], c_version[64];
    enum talpa_device_type type;
    enum talpa_vendor vendor;
    uint64_t global_mem_bytes;       /**< CL_DEVICE_GLOBAL_MEM_SIZE, or TALPA_MAX_MEMORY_BYTES if that is set and smaller */
    uint64_t max_alloc_bytes;        /**< CL_DEVICE_MAX_MEM_ALLOC_SIZE, or TALPA_MAX_ALLOC_BYTES if that is set and smaller */
    uint64_t local_mem_bytes;        /**< CL_DEVICE_LOCAL_MEM_SIZE */
    uint32_t compute_units;          /**< CL_DEVICE_MAX_COMPUTE_UNITS */
    uint32_t clock_mhz;
    uint32_t max_work_group_size;
    uint32_t base_align_bytes;       /**< CL_DEVICE_MEM_BASE_ADDR_ALIGN / 8: sub-buffers start at multiples of it */
    bool has_fp16, has_fp64, has_subgroups;
    bool unified_memory;             /**< CL_DEVICE_HOST_UNIFIED_MEMORY */
    bool little_endian;
    bool in_process;                 /**< CPU device that gives one work-item the whole vector unit (PoCL, Intel; also Oclgrind), unlike llvmpipe */
    char cpu_features[128];          /**< CPU devices: space-separated flags that change code (avx2 avx512f amx_bf16 ...), part of cache keys */
};

/** All devices of all platforms, in platform order: the index is what `--device N` takes.
 *  `*caps` is an array of `*n` records, freed by the caller with free(). A platform that fails is skipped with a warning in the log.
 *  TALPA_E_NO_DEVICE if none is found (the message says which packages and files to look at). Opens drivers: can take a second. */
enum talpa_status talpa_device_list(struct talpa_device_caps **caps, size_t *n);

/** Loads the drivers, which the first talpa_device_list does otherwise (20 ms and more): for a second thread while a model is read. */
void talpa_device_load_drivers(void);

/** Chooses a device: `selector` NULL or "" means TALPA_DEVICE, else the default (GPU before CPU, then most compute units).
 *  A selector is an index of talpa_device_list, or a case-insensitive part of "platform:name" or vendor. */
enum talpa_status talpa_device_select(size_t *index, const struct talpa_device_caps *caps, size_t n, const char *selector);

/** An invented record for planning without a driver: "amd" (RDNA3 class), "intel" (Arc class), "nvidia" (Ada class), "cpu".
 *  TALPA_E_ARGUMENT for another name. */
enum talpa_status talpa_device_fake(struct talpa_device_caps *caps, const char *name);

/** Memory of this process. Device bytes are what was asked of OpenCL for buffers (views of them and a driver's own needs are not in it);
 *  on a CPU device they are part of the host's. */
struct talpa_memory_use {
    uint64_t device_bytes;      /**< buffers of all open devices now */
    uint64_t device_peak_bytes; /**< the most there were since the process started, or since talpa_device_memory_reset */
    uint64_t mapped_file_bytes; /**< files mapped now (models); pages of them count in the host's bytes once they are read */
    uint64_t host_peak_bytes;   /**< largest resident set so far (getrusage, ru_maxrss); 0 if the system does not say */
};
struct talpa_memory_use talpa_device_memory(void);
/** Makes the present device bytes the peak. */
void talpa_device_memory_reset(void);

#ifdef __cplusplus
}
#endif
#endif
