#include "file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

/* mmap refuses length 0, so an empty file is given this address. */
static const uint8_t empty[1];

static atomic_uint_fast64_t mapped_bytes;

uint64_t tp_file_map_bytes(void) { return atomic_load(&mapped_bytes); }

/* All maps of the process, so that an address can be told from other memory. A map that finds no room here is only never forgotten. */
static struct tp_file_map *maps;
static size_t n_maps;
static pthread_mutex_t maps_lock = PTHREAD_MUTEX_INITIALIZER;

static void remember(const struct tp_file_map *map)
{
    pthread_mutex_lock(&maps_lock);
    struct tp_file_map *grown = realloc(maps, (n_maps + 1) * sizeof *grown);
    if (grown) {
        maps = grown;
        maps[n_maps++] = *map;
    }
    pthread_mutex_unlock(&maps_lock);
}

static void unmap(const struct tp_file_map *map)
{
    pthread_mutex_lock(&maps_lock);
    for (size_t i = 0; i < n_maps; i++)
        if (maps[i].bytes == map->bytes) {
            maps[i] = maps[--n_maps];
            break;
        }
    if (!n_maps) {
        free(maps);
        maps = NULL;
    }
    munmap((void *)(uintptr_t)map->bytes, map->n_bytes);
    pthread_mutex_unlock(&maps_lock);
}

void tp_file_map_forget(const void *bytes, size_t n_bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)bytes + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)bytes + n_bytes) / page * page;
    pthread_mutex_lock(&maps_lock);
    for (size_t i = 0; i < n_maps && begin < end; i++) {
        const uintptr_t first = (uintptr_t)maps[i].bytes;
        if (begin >= first && end <= first + maps[i].n_bytes) madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
    pthread_mutex_unlock(&maps_lock);
}

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
    remember(out);
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
        unmap(map);
        atomic_fetch_sub(&mapped_bytes, map->n_bytes);
    }
    *map = (struct tp_file_map){0};
}
