#include "jsonl_text.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 200 };

struct reader {
    const char *at, *end;
    const char *error;
};

static bool fail(struct reader *r, const char *error)
{
    if (!r->error) r->error = error;
    return false;
}

static void skip_space(struct reader *r)
{
    while (r->at < r->end && strchr(" \t\r\n", *r->at) && *r->at) ++r->at;
}

static bool take(struct reader *r, char c)
{
    skip_space(r);
    if (r->at >= r->end || *r->at != c) return false;
    ++r->at;
    return true;
}

static bool read_hex4(struct reader *r, unsigned *code)
{
    if (r->end - r->at < 4) return fail(r, "string ends inside \\u");
    *code = 0;
    for (int i = 0; i < 4; ++i) {
        const char c = *r->at++;
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return fail(r, "\\u needs four hexadecimal digits");
        *code = *code * 16 + (unsigned)digit;
    }
    return true;
}

static size_t put_utf8(char *out, unsigned c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

static bool read_escape(struct reader *r, char *out, size_t *n)
{
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (r->at >= r->end) return fail(r, "string does not end");
    const char c = *r->at++;
    const char *found = c ? strchr(letters, c) : NULL;
    if (found) {
        out[(*n)++] = values[found - letters];
        return true;
    }
    unsigned code = 0, low = 0;
    if (c != 'u') return fail(r, "unknown escape in a string");
    if (!read_hex4(r, &code)) return false;
    if (code >= 0xDC00 && code <= 0xDFFF) return fail(r, "lone surrogate in a string");
    if (code >= 0xD800 && code <= 0xDBFF) {
        if (r->end - r->at < 2 || r->at[0] != '\\' || r->at[1] != 'u') return fail(r, "lone surrogate in a string");
        r->at += 2;
        if (!read_hex4(r, &low)) return false;
        if (low < 0xDC00 || low > 0xDFFF) return fail(r, "lone surrogate in a string");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *n += put_utf8(out + *n, code);
    return true;
}

/** Reads a string at `at`; `out` has room for all bytes of the line, as unescaping never lengthens. */
static bool read_string(struct reader *r, char *out, size_t *n_out)
{
    size_t n = 0;
    if (!take(r, '"')) return fail(r, "a string is expected");
    while (r->at < r->end && *r->at != '"') {
        const char c = *r->at++;
        if ((unsigned char)c < 0x20) return fail(r, "control character in a string");
        if (c != '\\')
            out[n++] = c;
        else if (!read_escape(r, out, &n))
            return false;
    }
    if (r->at >= r->end) return fail(r, "string does not end");
    ++r->at;
    *n_out = n;
    return true;
}

static bool skip_number(struct reader *r)
{
    const char *digits = "0123456789", *start;
    if (r->at < r->end && *r->at == '-') ++r->at;
    start = r->at;
    while (r->at < r->end && *r->at && strchr(digits, *r->at)) ++r->at;
    if (r->at == start || (*start == '0' && r->at > start + 1)) return fail(r, "a value is expected");
    if (r->at < r->end && *r->at == '.') {
        start = ++r->at;
        while (r->at < r->end && *r->at && strchr(digits, *r->at)) ++r->at;
        if (r->at == start) return fail(r, "number ends after its point");
    }
    if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
        ++r->at;
        if (r->at < r->end && (*r->at == '+' || *r->at == '-')) ++r->at;
        start = r->at;
        while (r->at < r->end && *r->at && strchr(digits, *r->at)) ++r->at;
        if (r->at == start) return fail(r, "number ends in its exponent");
    }
    return true;
}

static bool skip_value(struct reader *r, char *scratch, int depth)
{
    static const char *const words[] = {"true", "false", "null"};
    size_t n;
    skip_space(r);
    if (depth > DEPTH_MAX) return fail(r, "nested too deeply");
    if (r->at >= r->end) return fail(r, "a value is expected");
    if (*r->at == '"') return read_string(r, scratch, &n);
    if (*r->at == '{' || *r->at == '[') {
        const bool object = *r->at++ == '{';
        const char close = object ? '}' : ']';
        if (take(r, close)) return true;
        do {
            if (object && (!read_string(r, scratch, &n) || (!take(r, ':') && !fail(r, "':' is expected")))) return false;
            if (!skip_value(r, scratch, depth + 1)) return false;
        } while (take(r, ','));
        return take(r, close) || fail(r, object ? "',' or '}' is expected" : "',' or ']' is expected");
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i) {
        const size_t length = strlen(words[i]);
        if ((size_t)(r->end - r->at) >= length && !memcmp(r->at, words[i], length)) {
            r->at += length;
            return true;
        }
    }
    return skip_number(r);
}

static bool read_object(struct reader *r, char *text, size_t *n_text, char *scratch)
{
    bool found = false;
    if (!take(r, '{')) return fail(r, "an object like {\"text\": \"...\"} is expected");
    if (!take(r, '}')) {
        do {
            size_t n = 0;
            if (!read_string(r, scratch, &n)) return false;
            if (!take(r, ':')) return fail(r, "':' is expected");
            const bool is_text = n == 4 && !memcmp(scratch, "text", 4);
            skip_space(r);
            if (is_text && (r->at >= r->end || *r->at != '"')) return fail(r, "\"text\" is not a string");
            if (is_text ? !read_string(r, text, n_text) : !skip_value(r, scratch, 0)) return false;
            found = found || is_text;
        } while (take(r, ','));
        if (!take(r, '}')) return fail(r, "',' or '}' is expected");
    }
    skip_space(r);
    if (r->at != r->end) return fail(r, "something follows the object");
    return found || fail(r, "member \"text\" is missing");
}

const char *jsonl_text_read(char **text, size_t *n_text, const char *line, size_t n_bytes)
{
    struct reader reader = {line, line + n_bytes, NULL};
    char *buffer = malloc(n_bytes + 1), *scratch = malloc(n_bytes + 1);
    size_t n = 0;
    const bool ok = buffer && scratch ? read_object(&reader, buffer, &n, scratch) : fail(&reader, "out of host memory");
    free(scratch);
    if (!ok) {
        free(buffer);
        return reader.error;
    }
    buffer[n] = '\0';
    *text = buffer;
    *n_text = n;
    return NULL;
}
