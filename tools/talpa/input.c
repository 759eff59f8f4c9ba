#include "input.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

const char *input_name(const char *path) { return path && strcmp(path, "-") ? path : "standard input"; }

int input_read(char **text, size_t *n_bytes, const char *path)
{
    const bool is_stdin = !path || !strcmp(path, "-");
    FILE *file = is_stdin ? stdin : fopen(path, "rb");
    if (!file) {
        program_error("--file %s: cannot be read: %s", path, strerror(errno));
        return 66;
    }
    size_t n = 0, size = 0;
    char *buffer = NULL;
    for (size_t got = 1; got; n += got) {
        if (n + 1 >= size) {
            size = size ? 2 * size : 65536;
            char *larger = realloc(buffer, size);
            if (!larger) {
                free(buffer);
                if (!is_stdin) fclose(file);
                return program_fail_memory();
            }
            buffer = larger;
        }
        errno = 0;
        got = fread(buffer + n, 1, size - n - 1, file);
    }
    const bool failed = ferror(file) != 0;
    const int reason = errno;
    if (!is_stdin) fclose(file);
    if (failed) {
        program_error("%s: cannot be read: %s", input_name(path), strerror(reason));
        free(buffer);
        return reason == EISDIR ? 66 : 74;
    }
    buffer[n] = '\0';
    *text = buffer;
    *n_bytes = n;
    return -1;
}
