/* Source text of kernels: embedded table, TALPA_KERNEL_DIR, #include. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/status.h"
#include "embedded.h"
#include "opencl.h"

enum { MAX_INCLUDES = 64, MAX_DEPTH = 16, MAX_PATH_BYTES = 4096 };

int tp_program_read_file(char **bytes, size_t *n_bytes, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return errno;
    int code = 0;
    char *text = NULL;
    struct stat info;
    if (fstat(fileno(file), &info) != 0)
        code = errno;
    else if (!S_ISREG(info.st_mode))
        code = EISDIR;
    else if (!(text = malloc((size_t)info.st_size + 1)))
        code = ENOMEM;
    else if (fread(text, 1, (size_t)info.st_size, file) != (size_t)info.st_size)
        code = EIO;
    fclose(file);
    if (code != 0) {
        free(text);
        return code;
    }
    text[info.st_size] = '\0';
    *bytes = text;
    *n_bytes = (size_t)info.st_size;
    return 0;
}

static const struct tp_embedded_kernel *find_embedded(const char *path)
{
    for (size_t i = 0; i < tp_n_embedded_kernels; ++i)
        if (strcmp(tp_embedded_kernels[i].path, path) == 0) return &tp_embedded_kernels[i];
    return NULL;
}

/* Name of the overriding file; false if TALPA_KERNEL_DIR is not set (or the name is too long). */
static bool override_name(char out[MAX_PATH_BYTES], const char *path)
{
    const char *folder = getenv("TALPA_KERNEL_DIR");
    if (!folder || !*folder) return false;
    const int n = snprintf(out, MAX_PATH_BYTES, "%s/%s", folder, path);
    return n > 0 && n < MAX_PATH_BYTES;
}

bool tp_program_exists(const char *path)
{
    char name[MAX_PATH_BYTES];
    struct stat info;
    if (override_name(name, path) && stat(name, &info) == 0 && S_ISREG(info.st_mode)) return true;
    return find_embedded(path) != NULL;
}

/* `*owned` is to be freed (NULL if the text is embedded). */
static enum talpa_status load(const char **text, char **owned, const char *path)
{
    char name[MAX_PATH_BYTES];
    if (override_name(name, path)) {
        size_t n_bytes;
        const int code = tp_program_read_file(owned, &n_bytes, name);
        if (code == 0) {
            *text = *owned;
            return TALPA_OK;
        }
        if (code != ENOENT) return tp_fail(TALPA_E_NO_INPUT, "%s: cannot be read: %s", name, strerror(code));
    }
    *owned = NULL;
    const struct tp_embedded_kernel *kernel = find_embedded(path);
    if (!kernel) {
        const char *folder = getenv("TALPA_KERNEL_DIR");
        return tp_fail(TALPA_E_INTERNAL, "kernel file '%s' is neither part of the library nor in TALPA_KERNEL_DIR (%s)", path,
                       folder && *folder ? folder : "not set");
    }
    *text = kernel->text;
    return TALPA_OK;
}

enum talpa_status tp_program_text(const char **text, char **owned, const char *path) { return load(text, owned, path); }

struct source {
    char *text;
    size_t n, n_room;
    char *seen[MAX_INCLUDES];
    int n_seen;
};

static enum talpa_status append(struct source *source, const char *text, size_t n)
{
    if (source->n + n + 1 > source->n_room) {
        const size_t n_room = 2 * (source->n + n + 1);
        char *grown = realloc(source->text, n_room);
        if (!grown) return tp_fail_memory("kernel source", n_room);
        source->text = grown;
        source->n_room = n_room;
    }
    memcpy(source->text + source->n, text, n);
    source->n += n;
    source->text[source->n] = '\0';
    return TALPA_OK;
}

/* The next line's compiler messages name `path` and line `number`. */
static enum talpa_status append_line_mark(struct source *source, const char *path, int number)
{
    char mark[MAX_PATH_BYTES + 32];
    const int n = snprintf(mark, sizeof mark, "#line %d \"%s\"\n", number, path);
    return append(source, mark, (size_t)n < sizeof mark ? (size_t)n : sizeof mark - 1);
}

/* Path of an `#include "path"` line, or false. */
static bool parse_include(char *path, size_t n_room, const char *line, const char *end)
{
    while (line < end && (*line == ' ' || *line == '\t')) ++line;
    if (line == end || *line++ != '#') return false;
    while (line < end && (*line == ' ' || *line == '\t')) ++line;
    if (end - line < 7 || memcmp(line, "include", 7) != 0) return false;
    line += 7;
    while (line < end && (*line == ' ' || *line == '\t')) ++line;
    if (line == end || *line++ != '"') return false;
    const char *close = memchr(line, '"', (size_t)(end - line));
    if (!close || close == line || (size_t)(close - line) >= n_room) return false;
    memcpy(path, line, (size_t)(close - line));
    path[close - line] = '\0';
    return true;
}

static enum talpa_status expand(struct source *source, const char *path, int depth)
{
    for (int i = 0; i < source->n_seen; ++i)
        if (strcmp(source->seen[i], path) == 0) return TALPA_OK;
    if (depth > MAX_DEPTH || source->n_seen == MAX_INCLUDES)
        return tp_fail(TALPA_E_INTERNAL, "kernel file '%s': more than %d includes, or deeper than %d", path, MAX_INCLUDES, MAX_DEPTH);
    const size_t n_path = strlen(path) + 1;
    if (!(source->seen[source->n_seen] = malloc(n_path))) return tp_fail_memory("include path", n_path);
    memcpy(source->seen[source->n_seen++], path, n_path);

    const char *text;
    char *owned = NULL;
    TP_TRY(load(&text, &owned, path));
    enum talpa_status status = append_line_mark(source, path, 1);
    int number = 1;
    for (const char *line = text; status == TALPA_OK && *line; ++number) {
        const char *end = strchr(line, '\n');
        if (!end) end = line + strlen(line);
        char include[256];
        if (parse_include(include, sizeof include, line, end)) {
            status = expand(source, include, depth + 1);
            if (status == TALPA_OK) status = append_line_mark(source, path, number + 1);
            if (status != TALPA_OK) tp_context(status, "%s line %d", path, number);
        } else {
            status = append(source, line, (size_t)(end - line));
            if (status == TALPA_OK) status = append(source, "\n", 1);
        }
        line = *end ? end + 1 : end;
    }
    free(owned);
    return status;
}

enum talpa_status tp_program_source(char **text, size_t *n_bytes, const char *path)
{
    struct source source = {0};
    const enum talpa_status status = expand(&source, path, 0);
    for (int i = 0; i < source.n_seen; ++i) free(source.seen[i]);
    if (status != TALPA_OK) {
        free(source.text);
        return status;
    }
    *text = source.text;
    if (n_bytes) *n_bytes = source.n;
    return TALPA_OK;
}
