/* Results: on stdout or in a file that appears complete or not at all, as text, CSV, JSON or JSON lines. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum output_format { OUTPUT_MD, OUTPUT_CSV, OUTPUT_JSON, OUTPUT_JSONL };
#define OUTPUT_FORMATS "md|csv|json|jsonl"

/** An open result. `path` and `temporary` are NULL for stdout, `temporary` also for a device or pipe. */
struct output {
    FILE *file;
    char *path, *temporary;
    const char *flag; /**< that names the file, for messages */
    size_t n_records;
};

/** Opens `path`, or stdout for NULL and "-". Returns -1, or 73 after a message. */
int output_open(struct output *output, const char *path);
/** The same for the file of another flag than --output-file ("--profile"). */
int output_open_flag(struct output *output, const char *path, const char *flag);
/** Flushes, syncs and renames. Returns 0, or 74 (73 for the rename) after a message. */
int output_close(struct output *output);
/** Gives up: removes the temporary file. Harmless after output_close. */
void output_discard(struct output *output);
/** Whether writing failed so far. */
bool output_failed(const struct output *output);

/** Flushes stdout; 0, or 74 after a message. */
int output_flush_stdout(void);
/** Removes the temporary file of the open output, from a signal handler. */
void output_remove_temporary(void);

/** One named value of a record. */
enum field_kind { FIELD_NULL, FIELD_TEXT, FIELD_INT, FIELD_REAL, FIELD_BOOL, FIELD_REALS };
struct field {
    const char *name;
    enum field_kind kind;
    const char *text;
    int64_t integer;
    double real;
    const double *reals; /**< FIELD_REALS: an array in JSON, left out of other formats */
    size_t n_reals;
};
struct field field_text(const char *name, const char *text);
struct field field_int(const char *name, int64_t value);
struct field field_real(const char *name, double value); /**< not finite: null */
struct field field_bool(const char *name, bool value);
struct field field_null(const char *name);
struct field field_reals(const char *name, const double *values, size_t n);

/** Lists of records, every one with the same fields: begin, record..., end. `single` leaves out the array around one JSON object. */
void output_begin(struct output *output, enum output_format format, bool single);
void output_record(struct output *output, enum output_format format, const struct field *fields, size_t n_fields);
void output_end(struct output *output, enum output_format format, bool single);

/** A JSON object of fields, without a newline. */
void output_object(FILE *file, const struct field *fields, size_t n_fields);

/** A JSON string with quotes; bytes that are not UTF-8 become U+FFFD, or "<0xE2>" with `bytes_named`. */
void output_string(FILE *file, const char *text, size_t n_bytes, bool bytes_named);
/** %.9g, or null. */
void output_real(FILE *file, double value);

#endif
