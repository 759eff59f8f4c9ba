#include "opencl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#include "base/log.h"
#include "base/status.h"
#include "profile.h"

enum { MAX_PLATFORMS = 64, MAX_DEVICES = 64 };

struct found_device {
    cl_platform_id platform;
    cl_device_id id;
    struct talpa_device_caps caps;
};

struct found_list {
    struct found_device *item;
    size_t n;
};

/* Cuts to fit, drops leading and trailing blanks (Intel's driver pads its names). */
static void store_text(char *out, size_t n_out, const char *text)
{
    while (*text == ' ') ++text;
    snprintf(out, n_out, "%s", text);
    size_t n = strlen(out);
    while (n > 0 && out[n - 1] == ' ') out[--n] = '\0';
}

static cl_int get_text(cl_device_id id, cl_device_info what, char *out, size_t n_out)
{
    char text[1024] = "";
    const cl_int code = clGetDeviceInfo(id, what, sizeof text - 1, text, NULL);
    store_text(out, n_out, text);
    return code;
}

static bool has_extension(const char *list, const char *name)
{
    const size_t n = strlen(name);
    for (const char *p = strstr(list, name); p; p = strstr(p + n, name))
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || p[n] == '\0')) return true;
    return false;
}

static enum talpa_vendor vendor_of(const struct talpa_device_caps *caps, cl_uint vendor_id)
{
    /* PoCL and Mesa bring their own compilers, so the platform tells more about the code they make than the chip's vendor does. */
    if (strstr(caps->platform, "Portable Computing Language")) return TALPA_VENDOR_POCL;
    if (strstr(caps->platform, "rusticl") || strstr(caps->platform, "Clover")) return TALPA_VENDOR_MESA;
    switch (vendor_id) {
    case 0x1002: case 0x1022: return TALPA_VENDOR_AMD;
    case 0x8086: return TALPA_VENDOR_INTEL;
    case 0x10de: return TALPA_VENDOR_NVIDIA;
    default: break;
    }
    if (strstr(caps->vendor_name, "Advanced Micro Devices")) return TALPA_VENDOR_AMD;
    if (strstr(caps->vendor_name, "Intel")) return TALPA_VENDOR_INTEL;
    if (strstr(caps->vendor_name, "NVIDIA")) return TALPA_VENDOR_NVIDIA;
    return TALPA_VENDOR_OTHER;
}

#if defined(__x86_64__) || defined(__i386__)
/* Flags named as in Linux's /proc/cpuinfo; one counts only if the operating system saves its registers too (XCR0). */
static void read_cpu_features(char *out, size_t n_out)
{
    enum { LEAF1_ECX, LEAF7_EBX, LEAF7_ECX, LEAF7_EDX, LEAF7_1_EAX, N_REGISTERS };
    enum { AVX_STATE = 0x6, AVX512_STATE = 0xe6, AMX_STATE = 0x60000 };
    static const struct {
        const char *name;
        int where;
        unsigned bit, state;
    } flags[] = {
        {"avx", LEAF1_ECX, 28, AVX_STATE},           {"avx2", LEAF7_EBX, 5, AVX_STATE},
        {"fma", LEAF1_ECX, 12, AVX_STATE},           {"f16c", LEAF1_ECX, 29, AVX_STATE},
        {"avx_vnni", LEAF7_1_EAX, 4, AVX_STATE},     {"avx512f", LEAF7_EBX, 16, AVX512_STATE},
        {"avx512dq", LEAF7_EBX, 17, AVX512_STATE},   {"avx512bw", LEAF7_EBX, 30, AVX512_STATE},
        {"avx512vl", LEAF7_EBX, 31, AVX512_STATE},   {"avx512_vnni", LEAF7_ECX, 11, AVX512_STATE},
        {"avx512_bf16", LEAF7_1_EAX, 5, AVX512_STATE}, {"avx512_fp16", LEAF7_EDX, 23, AVX512_STATE},
        {"amx_tile", LEAF7_EDX, 24, AMX_STATE},      {"amx_int8", LEAF7_EDX, 25, AMX_STATE},
        {"amx_bf16", LEAF7_EDX, 22, AMX_STATE},
    };
    unsigned word[N_REGISTERS] = {0}, a = 0, b = 0, c = 0, d = 0, state = 0;
    if (__get_cpuid(1, &a, &b, &c, &d)) word[LEAF1_ECX] = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        word[LEAF7_EBX] = b;
        word[LEAF7_ECX] = c;
        word[LEAF7_EDX] = d;
        if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) word[LEAF7_1_EAX] = a;
    }
    if (word[LEAF1_ECX] >> 27 & 1u) __asm__ volatile("xgetbv" : "=a"(state), "=d"(d) : "c"(0));
    out[0] = '\0';
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; ++i) {
        if (!(word[flags[i].where] >> flags[i].bit & 1u) || (state & flags[i].state) != flags[i].state) continue;
        const size_t used = strlen(out);
        if (used + strlen(flags[i].name) + 2 > n_out) return;
        snprintf(out + used, n_out - used, "%s%s", used ? " " : "", flags[i].name);
    }
}
#else
static void read_cpu_features(char *out, size_t n_out)
{
    if (n_out > 0) out[0] = '\0';
}
#endif

static void drop_feature(char *list, const char *name)
{
    const size_t n = strlen(name);
    for (char *p = strstr(list, name); p; p = strstr(p + 1, name)) {
        if ((p > list && p[-1] != ' ') || (p[n] != ' ' && p[n] != '\0')) continue;
        char *rest = p + n + (p[n] == ' ');
        memmove(p, rest, strlen(rest) + 1);
        break;
    }
    const size_t left = strlen(list);
    if (left && list[left - 1] == ' ') list[left - 1] = '\0';
}

/* Both CPU runtimes can be told to compile for an older processor than the one they run on; the record then says what kernels may use.
 * Names of Intel's runtime (CL_CONFIG_CPU_TARGET_ARCH) and of LLVM (POCL_LLVM_CPU_NAME); unknown names leave the record alone. */
static void apply_target(char *features, bool is_pocl)
{
    static const char *const wide[] = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
                                       "amx_tile", "amx_int8", "amx_bf16", "avx_vnni"};
    static const char *const avx2[] = {"avx2", "fma", "f16c"};
    static const struct {
        const char *name;
        int level; /* 1: no AVX-512, 2: no AVX2 either, 3: no AVX */
    } targets[] = {{"core-avx2", 1}, {"haswell", 1},     {"broadwell", 1}, {"skylake", 1},   {"x86-64-v3", 1}, {"znver1", 1}, {"znver2", 1},
                   {"znver3", 1},    {"alderlake", 1},   {"bdver4", 1},    {"core-avx-i", 2}, {"corei7-avx", 2}, {"sandybridge", 2},
                   {"ivybridge", 2}, {"x86-64-v2", 3},   {"x86-64", 3},    {"corei7", 3},    {"nehalem", 3},   {"westmere", 3}};
    const char *target = getenv(is_pocl ? "POCL_LLVM_CPU_NAME" : "CL_CONFIG_CPU_TARGET_ARCH");
    int level = 0;
    for (size_t i = 0; target && i < sizeof targets / sizeof *targets; ++i)
        if (!strcmp(target, targets[i].name)) level = targets[i].level;
    for (size_t i = 0; level > 0 && i < sizeof wide / sizeof *wide; ++i) drop_feature(features, wide[i]);
    for (size_t i = 0; level > 1 && i < sizeof avx2 / sizeof *avx2; ++i) drop_feature(features, avx2[i]);
    if (level > 2) drop_feature(features, "avx");
}

/* First failing query's code, or CL_SUCCESS. */
static cl_int read_caps(struct talpa_device_caps *caps, cl_platform_id platform, cl_device_id id)
{
    *caps = (struct talpa_device_caps){0};
    char platform_name[256] = "", extensions[16384] = "";
    cl_device_type type = 0;
    cl_uint vendor_id = 0, compute_units = 0, clock_mhz = 0, align_bits = 0;
    cl_ulong global_mem = 0, max_alloc = 0, local_mem = 0;
    cl_bool unified = CL_FALSE, little = CL_TRUE;
    size_t group_size = 0;
    cl_int code = clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof platform_name - 1, platform_name, NULL);
    if (code != CL_SUCCESS) return code;
    store_text(caps->platform, sizeof caps->platform, platform_name);

    const struct {
        cl_device_info what;
        char *out;
        size_t n_out;
    } texts[] = {
        {CL_DEVICE_NAME, caps->name, sizeof caps->name},
        {CL_DEVICE_VENDOR, caps->vendor_name, sizeof caps->vendor_name},
        {CL_DRIVER_VERSION, caps->driver_version, sizeof caps->driver_version},
        {CL_DEVICE_VERSION, caps->device_version, sizeof caps->device_version},
        {CL_DEVICE_OPENCL_C_VERSION, caps->c_version, sizeof caps->c_version},
        {CL_DEVICE_EXTENSIONS, extensions, sizeof extensions},
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; ++i) {
        if (texts[i].what == CL_DEVICE_EXTENSIONS)
            code = clGetDeviceInfo(id, texts[i].what, texts[i].n_out - 1, texts[i].out, NULL);
        else
            code = get_text(id, texts[i].what, texts[i].out, texts[i].n_out);
        if (code != CL_SUCCESS) return code;
    }
    const struct {
        cl_device_info what;
        void *out;
        size_t n_out;
    } values[] = {
        {CL_DEVICE_TYPE, &type, sizeof type},
        {CL_DEVICE_VENDOR_ID, &vendor_id, sizeof vendor_id},
        {CL_DEVICE_MAX_COMPUTE_UNITS, &compute_units, sizeof compute_units},
        {CL_DEVICE_MAX_CLOCK_FREQUENCY, &clock_mhz, sizeof clock_mhz},
        {CL_DEVICE_MEM_BASE_ADDR_ALIGN, &align_bits, sizeof align_bits},
        {CL_DEVICE_GLOBAL_MEM_SIZE, &global_mem, sizeof global_mem},
        {CL_DEVICE_MAX_MEM_ALLOC_SIZE, &max_alloc, sizeof max_alloc},
        {CL_DEVICE_LOCAL_MEM_SIZE, &local_mem, sizeof local_mem},
        {CL_DEVICE_HOST_UNIFIED_MEMORY, &unified, sizeof unified},
        {CL_DEVICE_ENDIAN_LITTLE, &little, sizeof little},
        {CL_DEVICE_MAX_WORK_GROUP_SIZE, &group_size, sizeof group_size},
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; ++i) {
        code = clGetDeviceInfo(id, values[i].what, values[i].n_out, values[i].out, NULL);
        if (code != CL_SUCCESS) return code;
    }
    /* A processor first: Oclgrind is every type at once, and its kernels are to be those of both tiers. */
    caps->type = type & CL_DEVICE_TYPE_CPU ? TALPA_DEVICE_CPU : type & CL_DEVICE_TYPE_GPU ? TALPA_DEVICE_GPU : TALPA_DEVICE_ACCELERATOR;
    caps->vendor = vendor_of(caps, vendor_id);
    caps->global_mem_bytes = global_mem;
    caps->max_alloc_bytes = max_alloc;
    caps->local_mem_bytes = local_mem;
    caps->compute_units = compute_units;
    caps->clock_mhz = clock_mhz;
    caps->max_work_group_size = (uint32_t)group_size;
    caps->base_align_bytes = align_bits >= 8 ? align_bits / 8 : 1;
    caps->has_fp16 = has_extension(extensions, "cl_khr_fp16");
    caps->has_fp64 = has_extension(extensions, "cl_khr_fp64");
    caps->has_subgroups = has_extension(extensions, "cl_khr_subgroups") || has_extension(extensions, "cl_intel_subgroups");
    caps->unified_memory = unified == CL_TRUE;
    caps->little_endian = little == CL_TRUE;
    caps->in_process = caps->type == TALPA_DEVICE_CPU && (caps->vendor == TALPA_VENDOR_POCL || strstr(caps->platform, "Intel(R)") ||
                                                           strstr(caps->platform, "Oclgrind"));
    if (caps->type == TALPA_DEVICE_CPU) {
        read_cpu_features(caps->cpu_features, sizeof caps->cpu_features);
        if (caps->in_process) apply_target(caps->cpu_features, caps->vendor == TALPA_VENDOR_POCL);
    }
    return CL_SUCCESS;
}

/* Reason for which a device cannot be used, or NULL. */
static const char *refusal(cl_device_id id, const struct talpa_device_caps *caps)
{
    cl_bool available = CL_TRUE, compiler = CL_TRUE;
    clGetDeviceInfo(id, CL_DEVICE_AVAILABLE, sizeof available, &available, NULL);
    clGetDeviceInfo(id, CL_DEVICE_COMPILER_AVAILABLE, sizeof compiler, &compiler, NULL);
    int major = 0, minor = 0;
    if (sscanf(caps->device_version, "OpenCL %d.%d", &major, &minor) != 2 || major < 1 || (major == 1 && minor < 2))
        return "its OpenCL version is below 1.2";
    if (!available) return "it says that it is not available";
    if (!compiler) return "it has no kernel compiler";
    if (!caps->little_endian) return "it is big-endian";
    return NULL;
}

/* From the environment, 0: none. */
struct limits {
    uint64_t memory_bytes, alloc_bytes;
};

static enum talpa_status add_platform(struct found_list *list, cl_platform_id platform, const struct limits *limits)
{
    char name[256] = "?";
    clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof name - 1, name, NULL);
    cl_device_id ids[MAX_DEVICES];
    cl_uint n = 0;
    cl_int code = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, MAX_DEVICES, ids, &n);
    if (code == CL_DEVICE_NOT_FOUND || (code == CL_SUCCESS && n == 0)) {
        tp_log(TALPA_LOG_DEBUG, "OpenCL platform %s has no device", name);
        return TALPA_OK;
    }
    if (code != CL_SUCCESS) {
        tp_log(TALPA_LOG_WARN, "OpenCL platform %s is skipped: listing its devices failed: %s (%d)", name, tp_opencl_error_name(code),
               code);
        return TALPA_OK;
    }
    if (n > MAX_DEVICES) n = MAX_DEVICES;
    struct found_device *item = realloc(list->item, (list->n + n) * sizeof *item);
    if (!item) return tp_fail_memory("device list", (list->n + n) * sizeof *item);
    list->item = item;
    for (cl_uint i = 0; i < n; ++i) {
        struct found_device *found = &item[list->n];
        code = read_caps(&found->caps, platform, ids[i]);
        const char *reason = code == CL_SUCCESS ? refusal(ids[i], &found->caps) : tp_opencl_error_name(code);
        if (reason) {
            tp_log(TALPA_LOG_WARN, "OpenCL device %" PRIu32 " (%s) of platform %s is skipped: %s", (uint32_t)i, found->caps.name, name,
                   reason);
            continue;
        }
        if (limits->memory_bytes && limits->memory_bytes < found->caps.global_mem_bytes) found->caps.global_mem_bytes = limits->memory_bytes;
        if (limits->alloc_bytes && limits->alloc_bytes < found->caps.max_alloc_bytes) found->caps.max_alloc_bytes = limits->alloc_bytes;
        if (found->caps.max_alloc_bytes > found->caps.global_mem_bytes) found->caps.max_alloc_bytes = found->caps.global_mem_bytes;
        found->platform = platform;
        found->id = ids[i];
        ++list->n;
    }
    return TALPA_OK;
}

static enum talpa_status read_limit(uint64_t *limit_bytes, const char *variable)
{
    const char *text = getenv(variable);
    *limit_bytes = 0;
    if (!text || !*text) return TALPA_OK;
    errno = 0;
    const unsigned long long value = strspn(text, "0123456789") == strlen(text) ? strtoull(text, NULL, 10) : 0;
    if (value == 0 || errno) return tp_fail(TALPA_E_ARGUMENT, "%s=%s: expected a number of bytes from 1", variable, text);
    *limit_bytes = value;
    return TALPA_OK;
}

/* On success list->item is owned by the caller (free) and holds at least one device. */
static enum talpa_status find_devices(struct found_list *list)
{
    *list = (struct found_list){0};
    struct limits limits;
    TP_TRY(read_limit(&limits.alloc_bytes, "TALPA_MAX_ALLOC_BYTES"));
    TP_TRY(read_limit(&limits.memory_bytes, "TALPA_MAX_MEMORY_BYTES"));
    cl_platform_id platforms[MAX_PLATFORMS];
    cl_uint n = 0;
    const cl_int code = clGetPlatformIDs(MAX_PLATFORMS, platforms, &n);
    if (code != CL_SUCCESS) n = 0;
    if (n > MAX_PLATFORMS) n = MAX_PLATFORMS;
    for (cl_uint i = 0; i < n; ++i) {
        const enum talpa_status status = add_platform(list, platforms[i], &limits);
        if (status != TALPA_OK) {
            free(list->item);
            return status;
        }
    }
    if (list->n > 0) return TALPA_OK;
    free(list->item);
    const char *vendors = getenv("OCL_ICD_VENDORS");
    return tp_fail_opencl(TALPA_E_NO_DEVICE, code, NULL,
                          "no usable OpenCL device (%" PRIu32 " platforms, %s); drivers are announced by .icd files in %s: install one "
                          "(a CPU needs only the package pocl-opencl-icd, GPUs their vendor's) and compare with the list of clinfo",
                          (uint32_t)n, tp_opencl_error_name(code), vendors && *vendors ? vendors : "/etc/OpenCL/vendors");
}

void talpa_device_load_drivers(void)
{
    cl_platform_id platforms[MAX_PLATFORMS];
    cl_device_id ids[MAX_DEVICES];
    cl_uint n = 0, n_devices;
    if (clGetPlatformIDs(MAX_PLATFORMS, platforms, &n) != CL_SUCCESS) return;
    for (cl_uint i = 0; i < n && i < MAX_PLATFORMS; ++i) clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, MAX_DEVICES, ids, &n_devices);
}

enum talpa_status talpa_device_list(struct talpa_device_caps **caps, size_t *n)
{
    struct found_list list;
    TP_TRY(find_devices(&list));
    struct talpa_device_caps *array = malloc(list.n * sizeof *array);
    if (array)
        for (size_t i = 0; i < list.n; ++i) array[i] = list.item[i].caps;
    free(list.item);
    if (!array) return tp_fail_memory("device list", list.n * sizeof *array);
    *caps = array;
    *n = list.n;
    return TALPA_OK;
}

static enum talpa_status open_found(struct tp_device *device)
{
    const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, (cl_context_properties)device->platform, 0};
    cl_int code = CL_SUCCESS;
    device->context = clCreateContext(properties, 1, &device->id, NULL, NULL, &code);
    if (code != CL_SUCCESS || !device->context)
        return tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "device %s: creating a context failed: %s (%d)", device->caps.name,
                              tp_opencl_error_name(code), code);
    device->queue = clCreateCommandQueue(device->context, device->id, device->is_profiling ? CL_QUEUE_PROFILING_ENABLE : 0, &code);
    if (code != CL_SUCCESS || !device->queue)
        return tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "device %s: creating a command queue failed: %s (%d)", device->caps.name,
                              tp_opencl_error_name(code), code);
    return TALPA_OK;
}

enum talpa_status tp_device_open(struct tp_device **out, size_t index, bool profiling)
{
    struct found_list list;
    TP_TRY(find_devices(&list));
    if (index >= list.n) {
        free(list.item);
        return tp_fail(TALPA_E_ARGUMENT, "device index %zu: expected 0 to %zu", index, list.n - 1);
    }
    struct tp_device *device = calloc(1, sizeof *device);
    if (device) {
        device->index = index;
        device->platform = list.item[index].platform;
        device->id = list.item[index].id;
        device->caps = list.item[index].caps;
        device->collects = !profiling && tp_profile_is_started();
        device->is_profiling = profiling || device->collects;
        if (device->collects) device->profile_device = tp_profile_add_device(device->caps.name);
    }
    free(list.item);
    if (!device) return tp_fail_memory("device", sizeof *device);
    enum talpa_status status = tp_opencl_read_faults(device);
    if (status == TALPA_OK) status = open_found(device);
    if (status != TALPA_OK) {
        tp_device_close(device);
        return status;
    }
    *out = device;
    return TALPA_OK;
}

void tp_device_close(struct tp_device *device)
{
    if (!device) return;
    if (device->queue) clFinish(device->queue);
    if (device->collects) tp_queue_collect(device);
    if (device->used_blas) tp_blas_clear();
    tp_queue_free_profile(device);
    tp_program_free_all(device);
    if (device->n_buffers > 0)
        tp_log(TALPA_LOG_WARN, "device %s is closed with %" PRIu64 " buffers still alive (%" PRIu64 " bytes)", device->caps.name,
               device->n_buffers, device->allocated_bytes);
    if (device->queue) clReleaseCommandQueue(device->queue);
    if (device->context) clReleaseContext(device->context);
    free(device);
}

const struct talpa_device_caps *tp_device_caps(const struct tp_device *device) { return &device->caps; }
size_t tp_device_index(const struct tp_device *device) { return device->index; }
bool tp_device_is_profiling(const struct tp_device *device) { return device->is_profiling; }

struct tp_device_tiers *tp_device_tiers(struct tp_device *device) { return &device->tiers; }
