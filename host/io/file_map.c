#include "file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

/* mmap refuses length 0, so an empty file is given this address. */
static const uint8_t empty[1];

static atomic_uint_fast64_t mapped_bytes;

uint64_t tp_file_map_bytes(void) { return atomic_load(&mapped_bytes); }

static enum talpa_status map_descriptor(struct tp_file_map *out, int descriptor, const char *path)
{
    struct stat info;
    if (fstat(descriptor, &info) != 0) return tp_fail(TALPA_E_NO_INPUT, "%s: cannot read: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return tp_fail(TALPA_E_NO_INPUT, "%s: found a %s, expected a regular file", path,
                       S_ISDIR(info.st_mode) ? "folder" : "special file");
    if (info.st_size == 0) {
        *out = (struct tp_file_map){.bytes = empty};
        return TALPA_OK;
    }
    const size_t n_bytes = (size_t)info.st_size;
    void *address = mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address == MAP_FAILED) return tp_fail(TALPA_E_NO_INPUT, "%s: cannot map %zu bytes: %s", path, n_bytes, strerror(errno));
    atomic_fetch_add(&mapped_bytes, n_bytes);
    *out = (struct tp_file_map){.bytes = address, .n_bytes = n_bytes};
    return TALPA_OK;
}

enum talpa_status tp_file_map_open(struct tp_file_map *out, const char *path)
{
    /* Without O_NONBLOCK opening a pipe would wait for its writer. */
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return tp_fail(TALPA_E_NO_INPUT, "%s: cannot open: %s", path, strerror(errno));
    const enum talpa_status status = map_descriptor(out, descriptor, path);
    close(descriptor);
    return status;
}

void tp_file_map_close(struct tp_file_map *map)
{
    if (map->n_bytes) {
        munmap((void *)(uintptr_t)map->bytes, map->n_bytes);
        atomic_fetch_sub(&mapped_bytes, map->n_bytes);
    }
    *map = (struct tp_file_map){0};
}
