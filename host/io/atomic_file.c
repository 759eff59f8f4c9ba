#include "atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"

enum { SUFFIX_BYTES = 48, N_TRIES = 100, WRITE_BYTES = 1 << 30 };

struct tp_atomic_file {
    int descriptor;
    char *path, *temporary;
};

static void release(struct tp_atomic_file *file)
{
    free(file->path);
    free(file->temporary);
    free(file);
}

static enum talpa_status create_temporary(struct tp_atomic_file *file)
{
    static atomic_uint counter;
    const size_t n_bytes = strlen(file->path) + SUFFIX_BYTES;
    for (int i = 0; i < N_TRIES; i++) {
        const unsigned number = atomic_fetch_add(&counter, 1u);
        snprintf(file->temporary, n_bytes, "%s.tmp-%ld-%u", file->path, (long)getpid(), number);
        file->descriptor = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->descriptor >= 0) return TALPA_OK;
        if (errno != EEXIST) break;
    }
    if (errno == ENOSPC || errno == EDQUOT)
        return tp_fail(TALPA_E_IO, "%s: cannot write: %s; make room and try again", file->path, strerror(errno));
    return tp_fail(TALPA_E_CREATE, "%s: cannot create: %s; check that its folder exists and can be written", file->temporary,
                   strerror(errno));
}

enum talpa_status tp_atomic_file_create(struct tp_atomic_file **out, const char *path)
{
    struct tp_atomic_file *file = calloc(1, sizeof *file);
    if (!file) return tp_fail_memory(path, sizeof *file);
    file->descriptor = -1;
    file->path = malloc(strlen(path) + 1);
    file->temporary = malloc(strlen(path) + SUFFIX_BYTES);
    if (!file->path || !file->temporary) {
        release(file);
        return tp_fail_memory(path, strlen(path));
    }
    memcpy(file->path, path, strlen(path) + 1);
    const enum talpa_status status = create_temporary(file);
    if (status == TALPA_OK)
        *out = file;
    else
        release(file);
    return status;
}

enum talpa_status tp_atomic_file_write(struct tp_atomic_file *file, const void *bytes, size_t n_bytes)
{
    const char *next = bytes;
    while (n_bytes > 0) {
        const ssize_t n = write(file->descriptor, next, n_bytes < WRITE_BYTES ? n_bytes : WRITE_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return tp_fail(TALPA_E_IO, "%s: cannot write: %s; make room and try again", file->path,
                           n < 0 ? strerror(errno) : "no progress");
        next += n;
        n_bytes -= (size_t)n;
    }
    return TALPA_OK;
}

enum talpa_status tp_atomic_file_sync(struct tp_atomic_file *file)
{
    return fsync(file->descriptor) == 0 ? TALPA_OK : tp_fail(TALPA_E_IO, "%s: cannot write: %s", file->path, strerror(errno));
}

/* The rename itself is on disk only once the folder is. Some file systems cannot sync a folder (EINVAL): they are left alone. */
static enum talpa_status sync_folder(char *path)
{
    char *slash = strrchr(path, '/');
    const char *folder = !slash ? "." : slash == path ? "/" : path;
    if (slash && slash != path) *slash = '\0';
    const int descriptor = open(folder, O_RDONLY | O_CLOEXEC);
    const int result = descriptor >= 0 ? fsync(descriptor) : 0;
    const int code = errno;
    if (descriptor >= 0) close(descriptor);
    if (slash && slash != path) *slash = '/';
    if (result != 0 && code != EINVAL) return tp_fail(TALPA_E_IO, "%s: cannot sync its folder: %s", path, strerror(code));
    return TALPA_OK;
}

enum talpa_status tp_atomic_file_commit(struct tp_atomic_file *file)
{
    enum talpa_status status = tp_atomic_file_sync(file);
    if (close(file->descriptor) != 0 && status == TALPA_OK)
        status = tp_fail(TALPA_E_IO, "%s: cannot write: %s", file->path, strerror(errno));
    file->descriptor = -1;
    if (status == TALPA_OK && rename(file->temporary, file->path) != 0)
        status = tp_fail(TALPA_E_CREATE, "%s: cannot replace it with the new file: %s", file->path, strerror(errno));
    if (status != TALPA_OK)
        unlink(file->temporary);
    else
        status = sync_folder(file->path);
    release(file);
    return status;
}

void tp_atomic_file_discard(struct tp_atomic_file *file)
{
    if (!file) return;
    close(file->descriptor);
    unlink(file->temporary);
    release(file);
}

enum talpa_status tp_atomic_file_save(const char *path, const void *bytes, size_t n_bytes)
{
    struct tp_atomic_file *file;
    TP_TRY(tp_atomic_file_create(&file, path));
    const enum talpa_status status = tp_atomic_file_write(file, bytes, n_bytes);
    if (status == TALPA_OK) return tp_atomic_file_commit(file);
    tp_atomic_file_discard(file);
    return status;
}

enum talpa_status tp_atomic_file_save_json(const char *path, struct tp_json_writer *writer)
{
    const char *text;
    size_t n_bytes;
    TP_TRY(tp_json_writer_text(&text, &n_bytes, writer));
    return tp_atomic_file_save(path, text, n_bytes);
}
