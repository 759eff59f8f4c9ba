#include "doctor.h"

#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

void doctor_free(struct doctor_report *report)
{
    free(report->findings);
    *report = (struct doctor_report){0};
}

void doctor_add(struct doctor_report *report, enum doctor_state state, const char *topic, const char *advice, const char *format, ...)
{
    struct doctor_finding *grown = realloc(report->findings, (report->n + 1) * sizeof *grown);
    if (!grown) {
        report->out_of_memory = true;
        return;
    }
    report->findings = grown;
    struct doctor_finding *finding = &grown[report->n++];
    *finding = (struct doctor_finding){.state = state, .topic = topic};
    va_list list;
    va_start(list, format);
    vsnprintf(finding->found, sizeof finding->found, format, list);
    va_end(list);
    snprintf(finding->advice, sizeof finding->advice, "%s", advice ? advice : "");
}

const char *doctor_packages(enum talpa_vendor vendor)
{
    switch (vendor) {
    case TALPA_VENDOR_AMD:
        return "AMD: package mesa-opencl-icd with RUSTICL_ENABLE=radeonsi (Mesa 24 or later), or AMD's rocm-opencl-runtime; groups render "
               "and video";
    case TALPA_VENDOR_INTEL:
        return "Intel: package intel-opencl-icd (Debian), or Intel's current compute-runtime release; group render";
    case TALPA_VENDOR_NVIDIA:
        return "NVIDIA: package nvidia-opencl-icd beside the NVIDIA driver of the same version";
    default:
        return "CPU: package pocl-opencl-icd, or Intel's CPU runtime (tools/setup --intel)";
    }
}

/* First line of a small text file without its newline; "" if it cannot be read. */
static void read_line(char *line, size_t size, const char *path)
{
    FILE *file = fopen(path, "r");
    *line = 0;
    if (!file) return;
    if (!fgets(line, (int)size, file)) *line = 0;
    line[strcspn(line, "\r\n")] = 0;
    fclose(file);
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* ---- drivers ---- */

static void check_driver(struct doctor_report *report, const char *path)
{
    char library[512];
    read_line(library, sizeof library, path);
    if (!*library) {
        doctor_add(report, DOCTOR_PROBLEM, "icd", "remove the file or install its driver again", "%s: empty or unreadable", path);
        return;
    }
    void *handle = dlopen(library, RTLD_LAZY | RTLD_LOCAL);
    if (handle) {
        doctor_add(report, DOCTOR_OK, "icd", NULL, "%s: %s loads", path, library);
        dlclose(handle);
    } else {
        const char *reason = dlerror();
        doctor_add(report, DOCTOR_PROBLEM, "icd", "install the package that owns this library, or remove the .icd file",
                   "%s: %s does not load: %s", path, library, reason ? reason : "no reason given");
    }
}

void doctor_check_icd(struct doctor_report *report)
{
    const char *vendors = getenv("OCL_ICD_VENDORS");
    const bool is_set = vendors && *vendors;
    const char *folder = is_set ? vendors : "/etc/OpenCL/vendors";
    struct stat info;
    if (is_set && ends_with(vendors, ".icd")) {
        check_driver(report, vendors);
        return;
    }
    DIR *dir = stat(folder, &info) ? NULL : opendir(folder);
    if (!dir) {
        doctor_add(report, DOCTOR_PROBLEM, "icd",
                   is_set ? "unset OCL_ICD_VENDORS or let it name a folder of .icd files" : "install a driver (see below)", "%s: %s",
                   folder, strerror(errno));
        return;
    }
    size_t n = 0;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        char path[1024];
        if (!ends_with(entry->d_name, ".icd")) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        check_driver(report, path);
        n++;
    }
    closedir(dir);
    if (!n)
        doctor_add(report, DOCTOR_PROBLEM, "icd", "install a driver (see below)", "%s: no .icd file, so the loader knows no driver",
                   folder);
}

/* ---- devices and hardware ---- */

static bool contains(const char *text, const char *word)
{
    const size_t n = strlen(word);
    for (; *text; text++)
        if (!strncasecmp(text, word, n)) return true;
    return false;
}

static bool vendor_seen(const struct talpa_device_caps *caps, size_t n, const char *word)
{
    for (size_t i = 0; i < n; i++)
        if (caps[i].type == TALPA_DEVICE_GPU && (contains(caps[i].vendor_name, word) || contains(caps[i].name, word))) return true;
    return false;
}

static void check_hardware(struct doctor_report *report, const struct talpa_device_caps *caps, size_t n)
{
    static const struct {
        const char *id, *name, *word;
        enum talpa_vendor vendor;
    } vendors[] = {{"0x1002", "AMD", "AMD", TALPA_VENDOR_AMD},
                   {"0x8086", "Intel", "Intel", TALPA_VENDOR_INTEL},
                   {"0x10de", "NVIDIA", "NVIDIA", TALPA_VENDOR_NVIDIA}};
    DIR *dir = opendir("/sys/bus/pci/devices");
    if (!dir) return;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        char path[600], class[64], id[64];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/class", entry->d_name);
        read_line(class, sizeof class, path);
        if (strncmp(class, "0x03", 4) && strncmp(class, "0x12", 4)) continue; /* display controllers, processing accelerators */
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vendor", entry->d_name);
        read_line(id, sizeof id, path);
        for (size_t v = 0; v < sizeof vendors / sizeof *vendors; v++) {
            if (strcmp(id, vendors[v].id)) continue;
            if (vendor_seen(caps, n, vendors[v].word))
                doctor_add(report, DOCTOR_OK, "hardware", NULL, "%s: %s graphics, with an OpenCL device", entry->d_name, vendors[v].name);
            else
                doctor_add(report, DOCTOR_PROBLEM, "hardware", doctor_packages(vendors[v].vendor),
                           "%s: %s graphics, but no OpenCL device of it", entry->d_name, vendors[v].name);
        }
    }
    closedir(dir);
}

void doctor_check_devices(struct doctor_report *report, const struct talpa_device_caps *caps, size_t n, const char *message)
{
    for (size_t i = 0; i < n; i++)
        doctor_add(report, DOCTOR_OK, "devices", NULL, "%zu: %s (%s, driver %s), %.1f GiB, largest buffer %.1f GiB", i, caps[i].name,
                   caps[i].platform, caps[i].driver_version, (double)caps[i].global_mem_bytes / 0x1p30,
                   (double)caps[i].max_alloc_bytes / 0x1p30);
    if (!n) {
        doctor_add(report, DOCTOR_PROBLEM, "devices", "install a driver; the CPU is enough for everything talpa does", "%s", message);
        static const enum talpa_vendor vendors[] = {TALPA_VENDOR_AMD, TALPA_VENDOR_INTEL, TALPA_VENDOR_NVIDIA, TALPA_VENDOR_POCL};
        for (size_t v = 0; v < sizeof vendors / sizeof *vendors; v++)
            doctor_add(report, DOCTOR_NOTE, "devices", NULL, "%s", doctor_packages(vendors[v]));
    }
    check_hardware(report, caps, n);
}

/* ---- access ---- */

static void check_node(struct doctor_report *report, const char *path)
{
    struct stat info;
    if (stat(path, &info)) return;
    if (!access(path, R_OK | W_OK)) {
        doctor_add(report, DOCTOR_OK, "access", NULL, "%s can be opened", path);
        return;
    }
    const struct group *group = getgrgid(info.st_gid);
    char advice[256];
    snprintf(advice, sizeof advice, "sudo usermod -aG %s $USER, then log in again", group ? group->gr_name : "render");
    doctor_add(report, DOCTOR_PROBLEM, "access", advice, "%s: %s", path, strerror(EACCES));
}

void doctor_check_access(struct doctor_report *report)
{
    static const char *const nodes[] = {"/dev/kfd", "/dev/nvidiactl", "/dev/nvidia0"};
    struct stat info;
    size_t before = report->n;
    DIR *dir = opendir("/dev/dri");
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[300];
        if (strncmp(entry->d_name, "renderD", 7)) continue;
        snprintf(path, sizeof path, "/dev/dri/%s", entry->d_name);
        check_node(report, path);
    }
    if (dir) closedir(dir);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) check_node(report, nodes[i]);
    const bool in_container = !stat("/.dockerenv", &info) || !stat("/run/.containerenv", &info);
    if (in_container)
        doctor_add(report, DOCTOR_NOTE, "container",
                   "for a GPU start it with --device /dev/dri (and --device /dev/kfd on AMD) --group-add render, or --gpus all on NVIDIA",
                   "this is a container");
    if (report->n == before) doctor_add(report, DOCTOR_NOTE, "access", NULL, "no GPU device node in /dev (fine if there is no GPU)");
}

/* ---- environment ---- */

static void check_cache(struct doctor_report *report)
{
    char path[1024];
    const char *own = getenv("TALPA_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (own && *own) snprintf(path, sizeof path, "%s", own);
    else if (xdg && *xdg) snprintf(path, sizeof path, "%s/talpa", xdg);
    else snprintf(path, sizeof path, "%s/.cache/talpa", home ? home : "");
    if (!access(path, W_OK)) doctor_add(report, DOCTOR_OK, "cache", NULL, "%s can be written", path);
    else if (errno == ENOENT) doctor_add(report, DOCTOR_NOTE, "cache", NULL, "%s does not exist yet", path);
    else
        doctor_add(report, DOCTOR_PROBLEM, "cache",
                   "set TALPA_CACHE_DIR to a folder of yours: without it kernels are compiled at every start", "%s: %s", path,
                   strerror(errno));
}

static void check_memory(struct doctor_report *report)
{
    FILE *file = fopen("/proc/meminfo", "r");
    char line[256];
    unsigned long long total = 0, available = 0;
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "MemTotal: %llu", &total);
        sscanf(line, "MemAvailable: %llu", &available);
    }
    if (file) fclose(file);
    if (total)
        doctor_add(report, DOCTOR_OK, "memory", NULL, "%.1f of %.1f GiB available, %ld processors", (double)available / 0x1p20,
                   (double)total / 0x1p20, sysconf(_SC_NPROCESSORS_ONLN));
}

void doctor_check_environment(struct doctor_report *report)
{
    static const struct {
        const char *name, *meaning;
    } variables[] = {
        {"OCL_ICD_VENDORS", "folder or file from which the loader takes drivers"},
        {"OCL_ICD_FILENAMES", "drivers that the loader takes besides"},
        {"RUSTICL_ENABLE", "Mesa's OpenCL driver shows only the devices named here"},
        {"POCL_DEVICES", "devices that PoCL shows"},
        {"POCL_MAX_PTHREAD_COUNT", "threads of PoCL"},
        {"POCL_AFFINITY", "1: each thread of PoCL stays on its CPU; talpa sets it where it may use all of them"},
        {"POCL_CACHE_DIR", "where PoCL keeps compiled kernels"},
        {"NEO_CACHE_PERSISTENT", "Intel's GPU driver keeps compiled kernels"},
        {"MESA_SHADER_CACHE_DIR", "where Mesa keeps compiled kernels"},
        {"CUDA_CACHE_PATH", "where NVIDIA's driver keeps compiled kernels"},
        {"TALPA_DEVICE", "talpa's default device"},
        {"TALPA_TIER", "talpa uses kernels of this tier only"},
        {"TALPA_MAX_ALLOC_BYTES", "talpa splits buffers above this size"},
        {"TALPA_MAX_MEMORY_BYTES", "talpa takes the device's memory to be no larger"},
    };
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        const char *value = getenv(variables[i].name);
        if (value && *value)
            doctor_add(report, DOCTOR_NOTE, "environment", NULL, "%s=%s (%s)", variables[i].name, value, variables[i].meaning);
    }
    check_cache(report);
    check_memory(report);
}
