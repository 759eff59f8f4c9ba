#include "folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

bool tp_folder_is(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

enum talpa_status tp_folder_make(bool *made, const char *path)
{
    *made = mkdir(path, 0777) == 0;
    const int code = errno;
    if (*made || (code == EEXIST && tp_folder_is(path))) return TALPA_OK;
    return tp_fail(code == ENOSPC || code == EDQUOT ? TALPA_E_IO : TALPA_E_CREATE, "%s: cannot be created: %s", path,
                   code == EEXIST ? "a file of that name is there" : strerror(code));
}

enum talpa_status tp_folder_create(const char *path)
{
    bool made;
    return tp_folder_make(&made, path);
}

enum talpa_status tp_folder_check_writable(const char *path)
{
    return access(path, W_OK | X_OK) == 0 ? TALPA_OK : tp_fail(TALPA_E_CREATE, "%s: cannot be written: %s", path, strerror(errno));
}

enum talpa_status tp_folder_sync(const char *path)
{
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    const int result = descriptor >= 0 ? fsync(descriptor) : 0;
    const int code = errno;
    if (descriptor >= 0) close(descriptor);
    return result != 0 && code != EINVAL ? tp_fail(TALPA_E_IO, "%s: cannot sync: %s", path, strerror(code)) : TALPA_OK;
}

enum talpa_status tp_folder_rename(const char *from, const char *to, const char *parent)
{
    if (rename(from, to) != 0) return tp_fail(TALPA_E_CREATE, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
    return tp_folder_sync(parent);
}

/* "folder/name", to be freed; NULL if memory is short. */
static char *join(const char *folder, const char *name)
{
    const size_t n_bytes = strlen(folder) + strlen(name) + 2;
    char *path = malloc(n_bytes);
    if (path) snprintf(path, n_bytes, "%s/%s", folder, name);
    return path;
}

void tp_folder_remove(const char *path)
{
    struct stat info;
    if (lstat(path, &info) != 0) return;
    if (!S_ISDIR(info.st_mode)) {
        unlink(path);
        return;
    }
    DIR *folder = opendir(path);
    for (struct dirent *entry = folder ? readdir(folder) : NULL; entry; entry = readdir(folder)) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char *child = join(path, entry->d_name);
        if (child) tp_folder_remove(child);
        free(child);
    }
    if (folder) closedir(folder);
    rmdir(path);
}

bool tp_folder_has(const char *path, const char *name)
{
    char *child = join(path, name);
    const bool found = child && access(child, F_OK) == 0;
    free(child);
    return found;
}

enum talpa_status tp_folder_visit(const char *path, enum talpa_status (*visit)(void *user, const char *name), void *user)
{
    DIR *folder = opendir(path);
    if (!folder) return tp_fail(TALPA_E_NO_INPUT, "%s: cannot be read: %s", path, strerror(errno));
    enum talpa_status status = TALPA_OK;
    for (struct dirent *entry = readdir(folder); entry && status == TALPA_OK; entry = readdir(folder))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) status = visit(user, entry->d_name);
    closedir(folder);
    return status;
}
