/* Files that appear under their name only when complete: written beside it, synced, renamed. */
#ifndef TP_ATOMIC_FILE_H
#define TP_ATOMIC_FILE_H

#include <stddef.h>

#include "base/json.h"
#include "talpa/status.h"

/** A file being written. Owned by the caller until tp_atomic_file_commit or tp_atomic_file_discard. */
struct tp_atomic_file;

/** Creates a temporary file in the folder of `path`. TALPA_E_CREATE if that fails (TALPA_E_IO for want of room); nothing at `path` changes
 *  yet. */
enum talpa_status tp_atomic_file_create(struct tp_atomic_file **out, const char *path);

/** Appends bytes, unbuffered. TALPA_E_IO if not all could be written (disk full); the caller then discards. */
enum talpa_status tp_atomic_file_write(struct tp_atomic_file *file, const void *bytes, size_t n_bytes);

/** Syncs what is written. TALPA_E_IO if the disk does not take it; the caller then discards. To replace several files together, sync all
 *  before the first commit. */
enum talpa_status tp_atomic_file_sync(struct tp_atomic_file *file);

/** Syncs the file, renames it to its final name (replacing an old file), syncs the folder. Ends `file` in every case; on failure
 *  (TALPA_E_IO, or TALPA_E_CREATE for the rename) the temporary file is removed. */
enum talpa_status tp_atomic_file_commit(struct tp_atomic_file *file);

/** Removes the temporary file and ends `file`; keeps the error record. NULL is allowed. */
void tp_atomic_file_discard(struct tp_atomic_file *file);

/** All of the above for bytes at hand. */
enum talpa_status tp_atomic_file_save(const char *path, const void *bytes, size_t n_bytes);

/** The same for the text of a writer; its errors too are reported (tp_json_writer_text). */
enum talpa_status tp_atomic_file_save_json(const char *path, struct tp_json_writer *writer);

#endif
