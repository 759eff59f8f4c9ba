#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

/* For the signal handler: only one output is open at a time. */
static const char *volatile temporary_open;

void output_remove_temporary(void)
{
    if (temporary_open) unlink(temporary_open);
}

int output_open(struct output *output, const char *path) { return output_open_flag(output, path, "--output-file"); }

int output_open_flag(struct output *output, const char *path, const char *flag)
{
    *output = (struct output){.file = stdout, .flag = flag};
    if (!path || !strcmp(path, "-")) return -1;
    /* A rename would put a file in the place of a device, a pipe or a link (/dev/stdout is one): they are written through. */
    struct stat info, own;
    const bool exists = stat(path, &info) == 0, special = exists && !S_ISREG(info.st_mode);
    if (exists && fstat(STDOUT_FILENO, &own) == 0 && info.st_dev == own.st_dev && info.st_ino == own.st_ino) return -1;
    output->path = exists ? realpath(path, NULL) : NULL;
    if (!output->path) output->path = strdup(path);
    const size_t size = output->path ? strlen(output->path) + 32 : 0;
    output->temporary = special ? NULL : malloc(size);
    if (!output->path || (!special && !output->temporary)) {
        output_discard(output);
        return program_fail_memory();
    }
    if (!special) snprintf(output->temporary, size, "%s.tmp.%ld", output->path, (long)getpid());
    const int fd = special ? open(path, O_WRONLY | O_CLOEXEC) : open(output->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    output->file = fd < 0 ? NULL : fdopen(fd, "w");
    if (!output->file) {
        program_error("%s %s: cannot be created: %s; choose a folder that exists and is writable", flag, path, strerror(errno));
        if (fd >= 0) close(fd);
        output_discard(output);
        return 73;
    }
    temporary_open = output->temporary;
    return -1;
}

bool output_failed(const struct output *output) { return ferror(output->file) != 0; }

int output_flush_stdout(void)
{
    errno = 0;
    const bool failed = ferror(stdout) != 0;
    if (fflush(stdout) == 0 && !failed) return 0;
    program_error("standard output: writing failed: %s", errno ? strerror(errno) : "an earlier write failed");
    return 74;
}

int output_close(struct output *output)
{
    if (!output->path) return output_flush_stdout();
    bool ok = !ferror(output->file);
    errno = 0;
    ok = fflush(output->file) == 0 && ok;
    if (output->temporary) ok = fsync(fileno(output->file)) == 0 && ok;
    ok = fclose(output->file) == 0 && ok;
    output->file = NULL;
    int code = 0;
    if (!ok) {
        program_error("%s %s: writing failed: %s", output->flag, output->path, strerror(errno));
        code = 74;
    } else if (output->temporary && rename(output->temporary, output->path) != 0) {
        program_error("%s %s: cannot be replaced: %s", output->flag, output->path, strerror(errno));
        code = 73;
    } else {
        temporary_open = NULL;
    }
    output_discard(output);
    return code;
}

void output_discard(struct output *output)
{
    if (output->file && output->file != stdout) fclose(output->file);
    if (output->temporary && temporary_open == output->temporary) {
        temporary_open = NULL;
        unlink(output->temporary);
    }
    free(output->path);
    free(output->temporary);
    *output = (struct output){.file = stdout};
}

/* ---- fields ---- */

struct field field_text(const char *name, const char *text)
{
    return (struct field){.name = name, .kind = text ? FIELD_TEXT : FIELD_NULL, .text = text};
}
struct field field_int(const char *name, int64_t value) { return (struct field){.name = name, .kind = FIELD_INT, .integer = value}; }
struct field field_real(const char *name, double value)
{
    return (struct field){.name = name, .kind = isfinite(value) ? FIELD_REAL : FIELD_NULL, .real = value};
}
struct field field_bool(const char *name, bool value) { return (struct field){.name = name, .kind = FIELD_BOOL, .integer = value}; }
struct field field_null(const char *name) { return (struct field){.name = name, .kind = FIELD_NULL}; }

struct field field_reals(const char *name, const double *values, size_t n)
{
    return (struct field){.name = name, .kind = FIELD_REALS, .reals = values, .n_reals = n};
}

/* ---- JSON ---- */

/** Length of the UTF-8 sequence at `text` (no overlong form, no surrogate), 0 if there is none. */
static size_t utf8_length(const unsigned char *text, size_t n_bytes)
{
    const unsigned char c = text[0];
    const size_t n = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
    if (n == 0 || n > n_bytes) return 0;
    for (size_t i = 1; i < n; ++i)
        if ((text[i] & 0xC0) != 0x80) return 0;
    if ((c == 0xE0 && text[1] < 0xA0) || (c == 0xED && text[1] > 0x9F) || (c == 0xF0 && text[1] < 0x90) || (c == 0xF4 && text[1] > 0x8F))
        return 0;
    return n;
}

void output_string(FILE *file, const char *text, size_t n_bytes, bool bytes_named)
{
    fputc('"', file);
    for (size_t i = 0; i < n_bytes;) {
        const unsigned char *c = (const unsigned char *)text + i;
        const size_t n = utf8_length(c, n_bytes - i);
        if (n == 0 && bytes_named)
            fprintf(file, "<0x%02X>", *c);
        else if (n == 0)
            fputs("\\ufffd", file);
        else if (*c == '"' || *c == '\\')
            fprintf(file, "\\%c", *c);
        else if (*c == '\n')
            fputs("\\n", file);
        else if (*c == '\t')
            fputs("\\t", file);
        else if (*c == '\r')
            fputs("\\r", file);
        else if (*c < 0x20 || *c == 0x7F)
            fprintf(file, "\\u%04x", *c);
        else
            fwrite(c, 1, n, file);
        i += n ? n : 1;
    }
    fputc('"', file);
}

void output_real(FILE *file, double value)
{
    if (isfinite(value))
        fprintf(file, "%.9g", value);
    else
        fputs("null", file);
}

void output_object(FILE *file, const struct field *fields, size_t n_fields)
{
    fputc('{', file);
    for (size_t i = 0; i < n_fields; ++i) {
        const struct field *field = &fields[i];
        if (i) fputs(", ", file);
        output_string(file, field->name, strlen(field->name), false);
        fputs(": ", file);
        switch (field->kind) {
        case FIELD_NULL:
            fputs("null", file);
            break;
        case FIELD_TEXT:
            output_string(file, field->text, strlen(field->text), false);
            break;
        case FIELD_INT:
            fprintf(file, "%" PRId64, field->integer);
            break;
        case FIELD_REAL:
            output_real(file, field->real);
            break;
        case FIELD_BOOL:
            fputs(field->integer ? "true" : "false", file);
            break;
        case FIELD_REALS:
            fputc('[', file);
            for (size_t k = 0; k < field->n_reals; ++k) {
                if (k) fputs(", ", file);
                output_real(file, field->reals[k]);
            }
            fputc(']', file);
            break;
        }
    }
    fputc('}', file);
}

/* ---- records ---- */

static void cell(FILE *file, const struct field *field, bool csv)
{
    switch (field->kind) {
    case FIELD_NULL:
    case FIELD_REALS:
        break;
    case FIELD_INT:
        fprintf(file, "%" PRId64, field->integer);
        break;
    case FIELD_REAL:
        fprintf(file, "%.9g", field->real);
        break;
    case FIELD_BOOL:
        fputs(field->integer ? (csv ? "true" : "yes") : (csv ? "false" : "no"), file);
        break;
    case FIELD_TEXT:
        /* CSV as in RFC 4180; a bar would end a cell of a Markdown table. */
        if (csv && strpbrk(field->text, ",\"\r\n")) {
            fputc('"', file);
            for (const char *c = field->text; *c; ++c) {
                if (*c == '"') fputc('"', file);
                fputc(*c, file);
            }
            fputc('"', file);
        } else {
            for (const char *c = field->text; *c; ++c) {
                if (!csv && *c == '|') fputc('\\', file);
                fputc(*c, file);
            }
        }
        break;
    }
}

void output_begin(struct output *output, enum output_format format, bool single)
{
    output->n_records = 0;
    if (format == OUTPUT_JSON && !single) fputs("[\n", output->file);
}

void output_record(struct output *output, enum output_format format, const struct field *fields, size_t n_fields)
{
    FILE *file = output->file;
    const bool first = output->n_records++ == 0;
    if (format == OUTPUT_JSON && !first) fputs(",\n", file);
    if (format == OUTPUT_JSON || format == OUTPUT_JSONL) {
        output_object(file, fields, n_fields);
        if (format == OUTPUT_JSONL) fputc('\n', file);
        return;
    }
    const bool csv = format == OUTPUT_CSV;
    if (first) {
        for (size_t i = 0; i < n_fields; ++i) fprintf(file, csv ? (i ? ",%s" : "%s") : (i ? " | %s" : "| %s"), fields[i].name);
        fputs(csv ? "\n" : " |\n", file);
        for (size_t i = 0; i < n_fields && !csv; ++i) fputs(fields[i].kind == FIELD_TEXT ? "| --- " : "| ---: ", file);
        if (!csv) fputs("|\n", file);
    }
    for (size_t i = 0; i < n_fields; ++i) {
        fputs(csv ? (i ? "," : "") : (i ? " | " : "| "), file);
        cell(file, &fields[i], csv);
    }
    fputs(csv ? "\n" : " |\n", file);
}

void output_end(struct output *output, enum output_format format, bool single)
{
    if (format != OUTPUT_JSON) return;
    fputs(single ? "\n" : output->n_records ? "\n]\n" : "]\n", output->file);
}
