/* Whole files mapped read-only. */
#ifndef TP_FILE_MAP_H
#define TP_FILE_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"

/** A mapped file; its owner ends it with tp_file_map_close. `bytes` is page-aligned, never NULL for an open map (an empty file has
 *  n_bytes 0). The file must not be shortened meanwhile: the system then ends the process on access. */
struct tp_file_map {
    const uint8_t *bytes;
    size_t n_bytes;
};

/** Maps the regular file at `path`. TALPA_E_NO_INPUT if it is missing, unreadable or no regular file. */
enum talpa_status tp_file_map_open(struct tp_file_map *out, const char *path);

/** Unmaps; a zero-initialised or closed map is allowed. */
void tp_file_map_close(struct tp_file_map *map);

/** Takes the whole pages of [bytes, bytes + n_bytes) out of the process's memory, if they are a part of an open map: what was copied to a
 *  device need not stay here as well. They come back from the system's cache of files when they are read again. Does nothing to other memory. */
void tp_file_map_forget(const void *bytes, size_t n_bytes);

/** Bytes of files that are mapped now, all of the process. */
uint64_t tp_file_map_bytes(void);

#endif
