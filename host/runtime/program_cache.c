/* Binaries of built programs on disk, one file per key, checked by a digest before a driver sees them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/status.h"
#include "opencl.h"

enum { FORMAT_VERSION = 1, MAX_PATH_BYTES = 4096 };

/* Written as it lies in memory: the key holds the device, so a file is never shared between kinds of machines. */
struct header {
    char magic[8];
    uint64_t key, n_bytes, digest;
};

static const char magic[8] = {'T', 'A', 'L', 'P', 'A', 'P', 'B', '1'};

bool tp_program_cache_enabled(const struct tp_device *device)
{
    const char *wish = getenv("TALPA_PROGRAM_CACHE");
    if (wish && strcmp(wish, "0") == 0) return false;
    /* Mesa caches by itself (MESA_SHADER_CACHE_DIR). PoCL too (POCL_CACHE_DIR), unless told not to: then it unpacks a binary for nothing. */
    const char *pocl = getenv("POCL_KERNEL_CACHE");
    if (device->caps.vendor == TALPA_VENDOR_POCL) return !pocl || strcmp(pocl, "0") != 0;
    return device->caps.vendor != TALPA_VENDOR_MESA;
}

bool tp_program_cache_grows(const struct tp_device *device)
{
    return tp_program_cache_enabled(device) && (device->keeps_programs || device->caps.vendor != TALPA_VENDOR_POCL);
}

static bool make_folders(char *path)
{
    for (char *p = path + 1;; ++p) {
        if (*p != '/' && *p != '\0') continue;
        const char kept = *p;
        *p = '\0';
        const bool done = mkdir(path, 0700) == 0 || errno == EEXIST;
        *p = kept;
        if (!done) return false;
        if (!kept) return true;
    }
}

/* The folder, made if absent. False where there is no place, or where others could put binaries that would run as this user. */
static bool find_folder(char out[MAX_PATH_BYTES])
{
    const char *own = getenv("TALPA_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n;
    if (own && *own)
        n = snprintf(out, MAX_PATH_BYTES, "%s/programs", own);
    else if (xdg && *xdg == '/')
        n = snprintf(out, MAX_PATH_BYTES, "%s/talpa/programs", xdg);
    else if (home && *home == '/')
        n = snprintf(out, MAX_PATH_BYTES, "%s/.cache/talpa/programs", home);
    else
        return false;
    if (n < 0 || n >= MAX_PATH_BYTES - 64 || !make_folders(out)) return false;
    struct stat info;
    if (stat(out, &info) != 0 || !S_ISDIR(info.st_mode)) return false;
    if (info.st_uid != geteuid() || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        tp_log(TALPA_LOG_WARN, "program cache %s is not used: it must belong to this user and be writable by nobody else", out);
        return false;
    }
    return true;
}

static bool make_key(uint64_t *key, const struct tp_device *device, const char *source, size_t n_bytes, const char *options)
{
    char platform_version[256] = "";
    clGetPlatformInfo(device->platform, CL_PLATFORM_VERSION, sizeof platform_version - 1, platform_version, NULL);
    struct tp_hash *hash;
    if (tp_hash_create(&hash) != TALPA_OK) {
        tp_status_clear();
        return false;
    }
    const struct talpa_device_caps *caps = &device->caps;
    const char *const texts[] = {options,          caps->platform,       platform_version,   caps->name,
                                 caps->vendor_name, caps->driver_version, caps->device_version, caps->cpu_features};
    const uint64_t sizes[] = {FORMAT_VERSION, n_bytes};
    tp_hash_update(hash, sizes, sizeof sizes);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; ++i) tp_hash_update(hash, texts[i], strlen(texts[i]) + 1);
    tp_hash_update(hash, source, n_bytes);
    *key = tp_hash_digest(hash);
    tp_hash_free(hash);
    return true;
}

static bool find_file(char out[MAX_PATH_BYTES], uint64_t *key, const struct tp_device *device, const char *source, size_t n_bytes,
                      const char *options)
{
    if (!find_folder(out) || !make_key(key, device, source, n_bytes, options)) return false;
    char hex[TP_HASH_HEX_BYTES];
    const size_t used = strlen(out);
    snprintf(out + used, MAX_PATH_BYTES - used, "/%s.bin", tp_hash_hex(hex, *key));
    return true;
}

static cl_program link_binary(const struct tp_device *device, const unsigned char *binary, size_t n_bytes, const char *options)
{
    cl_int code = CL_SUCCESS, state = CL_SUCCESS;
    cl_program program = clCreateProgramWithBinary(device->context, 1, &device->id, &n_bytes, &binary, &state, &code);
    if (program && code == CL_SUCCESS && state == CL_SUCCESS && clBuildProgram(program, 1, &device->id, options, NULL, NULL) == CL_SUCCESS)
        return program;
    if (program) clReleaseProgram(program);
    return NULL;
}

cl_program tp_program_cache_load(struct tp_device *device, const char *source, size_t n_bytes, const char *options)
{
    char path[MAX_PATH_BYTES];
    uint64_t key;
    if (!find_file(path, &key, device, source, n_bytes, options)) return NULL;
    char *file;
    size_t n_file;
    if (tp_program_read_file(&file, &n_file, path) != 0) return NULL;
    struct header header;
    cl_program program = NULL;
    if (n_file > sizeof header) {
        memcpy(&header, file, sizeof header);
        const char *binary = file + sizeof header;
        if (memcmp(header.magic, magic, sizeof magic) == 0 && header.key == key && header.n_bytes == n_file - sizeof header &&
            header.digest == tp_hash_bytes(binary, header.n_bytes))
            program = link_binary(device, (const unsigned char *)binary, header.n_bytes, options);
    }
    free(file);
    if (!program) {
        tp_log(TALPA_LOG_WARN, "program cache file %s is damaged or refused by the driver; building anew", path);
        unlink(path);
    }
    return program;
}

/* The program was made for one device, so there is one binary. Caller frees; NULL if the driver gives none. */
static unsigned char *get_binary(size_t *n_bytes, cl_program program)
{
    size_t n = 0;
    if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof n, &n, NULL) != CL_SUCCESS || n == 0) return NULL;
    unsigned char *binary = malloc(n);
    if (binary && clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL) != CL_SUCCESS) {
        free(binary);
        return NULL;
    }
    *n_bytes = n;
    return binary;
}

bool tp_program_cache_store(struct tp_device *device, cl_program program, const char *source, size_t n_bytes, const char *options)
{
    char path[MAX_PATH_BYTES], temporary[MAX_PATH_BYTES + 8];
    uint64_t key;
    size_t n_binary = 0;
    if (!find_file(path, &key, device, source, n_bytes, options)) return false;
    unsigned char *binary = get_binary(&n_binary, program);
    if (!binary) return false;
    struct header header = {.key = key, .n_bytes = n_binary, .digest = tp_hash_bytes(binary, n_binary)};
    memcpy(header.magic, magic, sizeof magic);
    snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    const int descriptor = mkstemp(temporary);
    FILE *file = descriptor >= 0 ? fdopen(descriptor, "wb") : NULL;
    bool done = false;
    if (file) {
        done = fwrite(&header, sizeof header, 1, file) == 1 && fwrite(binary, 1, n_binary, file) == n_binary;
        done = fclose(file) == 0 && done && rename(temporary, path) == 0;
    } else if (descriptor >= 0) {
        close(descriptor);
    }
    if (!done) {
        if (descriptor >= 0) unlink(temporary);
        tp_log(TALPA_LOG_DEBUG, "program cache file %s could not be written: %s", path, strerror(errno));
    }
    free(binary);
    return done;
}
