#include "options_config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "program.h"

/* ---- reading ---- */

/* The text is changed in place: strings lose their quotes and escapes, and each value ends with a NUL. */
struct reader {
    struct options *options;
    const char *path;
    char *next;
    int line;
};

static int fail_at(const struct reader *r, const char *what) { return options_fail(r->options, "%s:%d: %s", r->path, r->line, what); }

static int skip(struct reader *r)
{
    for (;; ++r->next) {
        if (*r->next == '\n') ++r->line;
        else if (*r->next == '/' && r->next[1] == '/') {
            while (r->next[1] && r->next[1] != '\n') ++r->next;
        } else if (*r->next == '/' && r->next[1] == '*') {
            const int line = r->line;
            for (r->next += 2; *r->next && !(*r->next == '*' && r->next[1] == '/'); ++r->next) r->line += *r->next == '\n';
            if (!*r->next) {
                r->line = line;
                return fail_at(r, "a comment without an end");
            }
            ++r->next;
        } else if (!*r->next || !strchr(" \t\r", *r->next))
            return -1;
    }
}

static char *put_utf8(char *out, unsigned long code)
{
    if (code < 0x80) *out++ = (char)code;
    else if (code < 0x800) {
        *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(0x80 | (code & 63));
    } else {
        *out++ = (char)(0xE0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 63));
        *out++ = (char)(0x80 | (code & 63));
    }
    return out;
}

static int read_string(struct reader *r, char **out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (*r->next != '"') return fail_at(r, "expected a string in double quotes");
    char *end = ++r->next;
    *out = end;
    for (; *r->next != '"'; ++r->next) {
        if ((unsigned char)*r->next < 0x20) return fail_at(r, "a string without an end");
        if (*r->next != '\\') {
            *end++ = *r->next;
            continue;
        }
        const char *found = *++r->next ? strchr(from, *r->next) : NULL;
        if (found) *end++ = to[found - from];
        else if (*r->next == 'u' && strspn(r->next + 1, "0123456789abcdefABCDEF") >= 4) {
            char digits[5] = {r->next[1], r->next[2], r->next[3], r->next[4], '\0'};
            const unsigned long code = strtoul(digits, NULL, 16);
            if (!code || (code >= 0xD800 && code < 0xE000)) return fail_at(r, "an escape \\u that is no character; write it as UTF-8");
            end = put_utf8(end, code);
            r->next += 4;
        } else
            return fail_at(r, "an unknown escape after '\\'");
    }
    *end = '\0';
    ++r->next;
    return -1;
}

static bool is_name(const char *name, const char *key)
{
    if (!name) return false;
    for (; *name && *key; ++name, ++key)
        if (*name != *key && !(*name == '-' && *key == '_')) return false;
    return *name == *key;
}

static int fail_key(const struct reader *r, const char *key)
{
    const char *names[2 * OPTIONS_MAX];
    char word[128], nearest[128];
    size_t n = 0;
    for (size_t i = 0; i < r->options->n; ++i) {
        const struct option *option = &r->options->list[i];
        if (option->kind == OPTION_GROUP) continue;
        names[n++] = option->name;
        if (option->alias) names[n++] = option->alias + (option->alias[0] == '-');
    }
    snprintf(word, sizeof word, "%s", key);
    for (char *c = word; *c; ++c)
        if (*c == '_') *c = '-';
    const char *found = options_nearest(word, names, n);
    snprintf(nearest, sizeof nearest, "%s", found ? found : "");
    for (char *c = nearest; *c; ++c)
        if (*c == '-') *c = '_';
    if (found) return options_fail(r->options, "%s:%d: unknown key '%.80s'; did you mean '%s'?", r->path, r->line, key, nearest);
    return options_fail(r->options, "%s:%d: unknown key '%.80s'", r->path, r->line, key);
}

static int set(struct reader *r, struct option *option, const char *key, const char *value)
{
    char shown[256];
    if (option->source != OPTION_DEFAULT && option->source != OPTION_CONFIG) return -1; /* given closer to the user */
    snprintf(shown, sizeof shown, "%.150s:%d: %.80s", r->path, r->line, key);
    return options_set(r->options, option, shown, value, OPTION_CONFIG);
}

/* One value: its text and what ends it. A number or word is cut off at the next sign, which is kept in *mark. */
static int read_value(struct reader *r, struct option *option, const char *key, char *mark)
{
    char *value;
    int code;
    *mark = '\0';
    if (*r->next == '"') {
        code = read_string(r, &value);
        if (code >= 0) return code;
        if (option &&
            (option->kind == OPTION_FLAG || option->kind == OPTION_INT || option->kind == OPTION_REAL || option->kind == OPTION_SEED))
            return options_fail(r->options, "%s:%d: %s: found a string, expected %s", r->path, r->line, key,
                                option->kind == OPTION_FLAG ? "true or false" : "a number");
        return option ? set(r, option, key, value) : -1;
    }
    value = r->next;
    r->next += strcspn(r->next, ",}] \t\r\n/");
    *mark = *r->next;
    *r->next = '\0';
    const bool is_word = !strcmp(value, "true") || !strcmp(value, "false"), is_null = !strcmp(value, "null");
    if (!*value || !(is_word || is_null || strspn(value, "0123456789+-.eE") == strlen(value)))
        return options_fail(r->options, "%s:%d: %s: found '%.40s', expected a string, a number, true, false or null", r->path, r->line, key,
                            value);
    if (!option || is_null) return -1;
    if (is_word != (option->kind == OPTION_FLAG))
        return options_fail(r->options, "%s:%d: %s: found %s, expected %s", r->path, r->line, key, value,
                            option->kind == OPTION_FLAG ? "true or false" : is_word ? "another value" : "a string");
    if (option->kind == OPTION_TEXT || option->kind == OPTION_TEXTS || option->kind == OPTION_CHOICE)
        return options_fail(r->options, "%s:%d: %s: found %s, expected a string", r->path, r->line, key, value);
    return set(r, option, key, value);
}

static int read_list(struct reader *r, struct option *option, const char *key)
{
    if (option && option->kind != OPTION_TEXTS)
        return options_fail(r->options, "%s:%d: %s: found a list, expected one value", r->path, r->line, key);
    ++r->next;
    int code = skip(r);
    while (code < 0 && *r->next != ']') {
        char *value;
        code = read_string(r, &value);
        if (code < 0 && option) code = set(r, option, key, value);
        if (code < 0) code = skip(r);
        if (code < 0 && *r->next == ',') {
            ++r->next;
            code = skip(r);
        } else if (code < 0 && *r->next != ']')
            code = fail_at(r, "expected ',' or ']'");
    }
    if (code < 0) ++r->next;
    return code;
}

/* "key": value, and the comma or brace behind it in *end. */
static int read_member(struct reader *r, char *end)
{
    char *key, mark = '\0';
    struct option *option = NULL;
    int code = read_string(r, &key);
    if (code < 0) code = skip(r);
    if (code >= 0) return code;
    if (*r->next != ':') return fail_at(r, "expected ':' after the key");
    ++r->next;
    code = skip(r);
    if (code >= 0) return code;
    for (size_t i = 0; i < r->options->n && !option; ++i) {
        struct option *known = &r->options->list[i];
        if (known->kind == OPTION_GROUP || !options_is_setting(known)) continue;
        if (is_name(known->name, key) || (known->alias && is_name(known->alias + (known->alias[0] == '-'), key))) option = known;
    }
    if (!option && strcmp(key, "verb") && strcmp(key, "talpa_version")) return fail_key(r, key);
    if (!strcmp(key, "verb") && *r->next == '"') {
        const char *verb = r->next + 1;
        const size_t n = strcspn(verb, "\"");
        if (n != strlen(r->options->verb) || strncmp(verb, r->options->verb, n))
            return options_fail(r->options, "%s:%d: verb: found \"%.*s\", expected \"%s\"", r->path, r->line, n < 40 ? (int)n : 40, verb,
                                r->options->verb);
    }
    code = *r->next == '[' ? read_list(r, option, key) : read_value(r, option, key, &mark);
    if (code >= 0) return code;
    if (mark) *r->next = mark;
    code = skip(r);
    *end = *r->next;
    if (code < 0 && *end != ',' && *end != '}') return fail_at(r, "expected ',' or '}'");
    if (code < 0) ++r->next;
    return code;
}

static int read_object(struct reader *r)
{
    char end = ',';
    int code = skip(r);
    if (code < 0 && *r->next != '{') return fail_at(r, "expected '{': a JSON object with a member per flag");
    ++r->next;
    if (code < 0) code = skip(r);
    if (code < 0 && *r->next == '}') {
        ++r->next;
        end = '}';
    }
    while (code < 0 && end == ',') {
        code = read_member(r, &end);
        if (code < 0) code = skip(r);
        if (code < 0 && end == ',' && *r->next == '}') { /* a comma behind the last member, as people write */
            ++r->next;
            code = skip(r);
            end = '}';
        }
    }
    if (code < 0 && *r->next) return fail_at(r, "something follows the object");
    return code;
}

int options_config_read(struct options *options, const char *path)
{
    enum { MOST = 1 << 20 };
    FILE *file = fopen(path, "rb");
    if (!file) {
        program_error("--config %s: %s", path, strerror(errno));
        return 66;
    }
    char *text = malloc(MOST + 1);
    if (!text) {
        fclose(file);
        return program_fail_memory();
    }
    const size_t n = fread(text, 1, MOST, file);
    const bool failed = ferror(file) != 0 || n == MOST;
    fclose(file);
    free(options->config);
    options->config = text;
    if (failed) {
        program_error("--config %s: cannot be read, or longer than 1 MiB", path);
        return 66;
    }
    text[n] = '\0';
    struct reader reader = {.options = options, .path = path, .next = text, .line = 1};
    if (memchr(text, '\0', n)) return fail_at(&reader, "a NUL byte, expected text");
    if (!strncmp(text, "\xEF\xBB\xBF", 3)) reader.next += 3;
    return read_object(&reader);
}

/* ---- writing ---- */

static void write_real(FILE *file, double value)
{
    char text[40];
    snprintf(text, sizeof text, "%.15g", value);
    if (strtod(text, NULL) != value) snprintf(text, sizeof text, "%.17g", value);
    fputs(text, file);
}

static void write_text(FILE *file, const char *text)
{
    if (text) output_string(file, text, strlen(text), false);
    else fputs("null", file);
}

static void write_value(FILE *file, const struct option *option)
{
    switch (option->kind) {
    case OPTION_FLAG:
        fputs(*(const bool *)option->target ? "true" : "false", file);
        break;
    case OPTION_INT:
        fprintf(file, "%d", *(const int *)option->target);
        break;
    case OPTION_REAL:
        write_real(file, *(const double *)option->target);
        break;
    case OPTION_SEED:
        fprintf(file, "%llu", (unsigned long long)*(const uint64_t *)option->target);
        break;
    case OPTION_CHOICE: {
        char word[64];
        options_choice_text(word, sizeof word, option->argument, *(const int *)option->target);
        write_text(file, word);
        break;
    }
    case OPTION_TEXTS: {
        const struct option_texts *texts = option->target;
        fputc('[', file);
        for (size_t i = 0; i < texts->n; ++i) {
            if (i) fputs(", ", file);
            write_text(file, texts->text[i]);
        }
        fputc(']', file);
        break;
    }
    default:
        write_text(file, *(const char *const *)option->target);
        break;
    }
}

void options_config_write(FILE *file, const struct options *options)
{
    fprintf(file, "{\n  \"verb\": \"%s\",\n  \"talpa_version\": \"%s\"", options->verb, TALPA_VERSION_STRING);
    for (size_t i = 0; i < options->n; ++i) {
        const struct option *option = &options->list[i];
        if (option->kind == OPTION_GROUP || option->kind == OPTION_LATER || option->kind == OPTION_LATER_FLAG ||
            !options_is_setting(option))
            continue;
        char name[96];
        snprintf(name, sizeof name, "%s", option->name);
        for (char *c = name; *c; ++c)
            if (*c == '-') *c = '_';
        fprintf(file, ",\n  \"%s\": ", name);
        write_value(file, option);
    }
    fputs("\n}\n", file);
}
