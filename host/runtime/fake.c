#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "device.h"

#define GIB(n) ((uint64_t)(n) << 30)
#define KIB(n) ((uint64_t)(n) << 10)

/* Values as the drivers of one typical device per class report them (clinfo output). */
static const struct {
    const char *word;
    struct talpa_device_caps caps;
} fakes[] = {
    {"amd",
     {.platform = "AMD Accelerated Parallel Processing", .name = "gfx1100 (invented)", .vendor_name = "Advanced Micro Devices, Inc.",
      .driver_version = "3590.0 (HSA1.1,LC)", .device_version = "OpenCL 2.0", .c_version = "OpenCL C 2.0", .type = TALPA_DEVICE_GPU,
      .vendor = TALPA_VENDOR_AMD, .global_mem_bytes = GIB(24), .max_alloc_bytes = GIB(20), .local_mem_bytes = KIB(64), .compute_units = 48,
      .clock_mhz = 2482, .max_work_group_size = 256, .base_align_bytes = 128, .has_fp16 = true, .has_fp64 = true, .has_subgroups = true,
      .little_endian = true}},
    {"intel",
     {.platform = "Intel(R) OpenCL Graphics", .name = "Intel(R) Arc(TM) A770 Graphics (invented)", .vendor_name = "Intel(R) Corporation",
      .driver_version = "24.13.29138", .device_version = "OpenCL 3.0 NEO", .c_version = "OpenCL C 1.2", .type = TALPA_DEVICE_GPU,
      .vendor = TALPA_VENDOR_INTEL, .global_mem_bytes = GIB(16), .max_alloc_bytes = GIB(4), .local_mem_bytes = KIB(64),
      .compute_units = 512, .clock_mhz = 2400, .max_work_group_size = 1024, .base_align_bytes = 128, .has_fp16 = true,
      .has_subgroups = true, .little_endian = true}},
    {"nvidia",
     {.platform = "NVIDIA CUDA", .name = "NVIDIA GeForce RTX 4070 (invented)", .vendor_name = "NVIDIA Corporation",
      .driver_version = "550.54.14", .device_version = "OpenCL 3.0 CUDA", .c_version = "OpenCL C 1.2", .type = TALPA_DEVICE_GPU,
      .vendor = TALPA_VENDOR_NVIDIA, .global_mem_bytes = GIB(12), .max_alloc_bytes = GIB(3), .local_mem_bytes = KIB(48),
      .compute_units = 46, .clock_mhz = 2475, .max_work_group_size = 1024, .base_align_bytes = 512, .has_fp64 = true,
      .little_endian = true}},
    {"cpu",
     {.platform = "Portable Computing Language", .name = "cpu-haswell (invented)", .vendor_name = "GenuineIntel", .driver_version = "3.1",
      .device_version = "OpenCL 3.0 PoCL", .c_version = "OpenCL C 1.2 PoCL", .type = TALPA_DEVICE_CPU, .vendor = TALPA_VENDOR_POCL,
      .global_mem_bytes = GIB(16), .max_alloc_bytes = GIB(4), .local_mem_bytes = KIB(512), .compute_units = 8, .clock_mhz = 3600,
      .max_work_group_size = 4096, .base_align_bytes = 128, .has_fp64 = true, .unified_memory = true, .little_endian = true,
      .in_process = true, .cpu_features = "avx avx2 fma f16c"}},
};

enum talpa_status talpa_device_fake(struct talpa_device_caps *caps, const char *name)
{
    char words[64] = "";
    for (size_t i = 0; i < sizeof fakes / sizeof fakes[0]; ++i) {
        if (name && strcmp(name, fakes[i].word) == 0) {
            *caps = fakes[i].caps;
            return TALPA_OK;
        }
        const size_t used = strlen(words);
        snprintf(words + used, sizeof words - used, "%s%s", used ? ", " : "", fakes[i].word);
    }
    return tp_fail(TALPA_E_ARGUMENT, "invented device '%s': expected one of %s", name ? name : "(null)", words);
}
