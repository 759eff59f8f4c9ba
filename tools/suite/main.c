/* talpa-suite: writes the task suite. tools/make_suite --help tells what it holds. */
#include "suite.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { EXIT_USAGE = 2, EXIT_OUTPUT = 73, DRAWS_MAX = 20000, REPEAT_AFTER = 50, N_SPLITS = 3 };

static const char *const split_names[N_SPLITS] = {"train", "valid", "test"};
enum { TRAIN, VALID, TEST };

struct file {
    FILE *stream;
    char path[1024];
};

static void stop(int code, const char *format, const char *a, const char *b)
{
    fputs("talpa-suite: ", stderr);
    fprintf(stderr, format, a, b);
    fputc('\n', stderr);
    exit(code);
}

static struct file create(const char *folder, const char *name)
{
    struct file file;
    if ((size_t)snprintf(file.path, sizeof file.path, "%s/%s", folder, name) >= sizeof file.path)
        stop(EXIT_OUTPUT, "the path of %s in %s is too long", name, folder);
    file.stream = fopen(file.path, "wb");
    if (!file.stream) stop(EXIT_OUTPUT, "cannot create %s: %s", file.path, strerror(errno));
    return file;
}

static void finish(struct file *file)
{
    const bool broken = ferror(file->stream);
    if (fclose(file->stream) != 0 || broken) stop(EXIT_OUTPUT, "cannot write %s%s", file->path, "");
}

static void make_folder(const char *path)
{
    if (mkdir(path, 0777) != 0 && errno != EEXIST) stop(EXIT_OUTPUT, "cannot create the folder %s: %s", path, strerror(errno));
}

static void put_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; ++text) {
        if (*text == '\n')
            fputs("\\n", out);
        else if (*text == '"' || *text == '\\')
            fprintf(out, "\\%c", *text);
        else
            fputc(*text, out);
    }
    fputc('"', out);
}

/* `given` is the row whose completion and answer are shown: the row itself, or another one in the permuted file. */
static void put_row(FILE *out, const struct skill *skill, const char *split, size_t index, const struct row *row, const struct row *given)
{
    fprintf(out, "{\"task\": \"%s\", \"id\": \"%s-%s-%05zu\", \"prompt\": ", skill->name, skill->name, split, index);
    put_string(out, row->prompt);
    fputs(", \"completion\": ", out);
    put_string(out, given->completion);
    fputs(", \"answer\": ", out);
    put_string(out, given->answer);
    fprintf(out, ", \"metric\": \"%s\"", skill->metric);
    if (skill->choices[0]) {
        for (int i = 0; i < N_CHOICES; ++i) {
            fputs(i ? ", " : ", \"choices\": [", out);
            put_string(out, skill->choices[i]);
        }
        fputc(']', out);
    }
    if (row->difficulty) fprintf(out, ", \"difficulty\": %d", row->difficulty);
    fputs("}\n", out);
}

/* A stream that depends on what it is for, so that more training rows leave the test as it is. */
static struct random stream_of(uint64_t seed, const char *use, const char *part)
{
    uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */
    const char *const texts[] = {use, "/", part};
    for (size_t i = 0; i < 3; ++i)
        for (const char *p = texts[i]; *p; ++p) hash = (hash ^ (unsigned char)*p) * UINT64_C(1099511628211);
    return (struct random){hash ^ seed * UINT64_C(0x9e3779b97f4a7c15)};
}

static void shuffle(struct random *random, size_t *order, size_t n)
{
    for (size_t i = n; i > 1; --i) {
        const size_t j = random_below(random, (unsigned)i), kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

static bool holds(const struct row *rows, size_t n, const char *prompt)
{
    for (size_t i = 0; i < n; ++i)
        if (strcmp(rows[i].prompt, prompt) == 0) return true;
    return false;
}

/* Rows whose prompts differ from each other and from the `n_other` ones. Where a skill has no more of them, training repeats rows (never
 * `other` ones), which does no harm; elsewhere it is an error. */
static void draw(const struct skill *skill, int split, uint64_t seed, struct row *rows, size_t n, const struct row *other, size_t n_other)
{
    struct random random = stream_of(seed, skill->name, split_names[split]);
    for (size_t i = 0; i < n; ++i) {
        int draws = 0;
        bool repeats, other_has_it;
        do {
            memset(&rows[i], 0, sizeof rows[i]);
            skill->make(&random, split == TEST, &rows[i]);
            other_has_it = holds(other, n_other, rows[i].prompt);
            repeats = holds(rows, i, rows[i].prompt) && (split != TRAIN || draws < REPEAT_AFTER);
        } while ((other_has_it || repeats) && ++draws < DRAWS_MAX);
        if (draws == DRAWS_MAX)
            stop(EXIT_USAGE, "%s: the skill has fewer different rows than were asked for in %s; ask for fewer", skill->name,
                 split_names[split]);
    }
}

static void write_split(const char *folder, const struct skill *skill, int split, const struct row *rows, size_t n)
{
    char name[128];
    snprintf(name, sizeof name, "%s/%s.jsonl", skill->name, split_names[split]);
    struct file file = create(folder, name);
    for (size_t i = 0; i < n; ++i) put_row(file.stream, skill, split_names[split], i, &rows[i], &rows[i]);
    finish(&file);
}

/* All skills in one file; with `given`, row i of skill s gets the completion of row given[s * n + i]. */
static void write_mixed(const char *folder, const char *name, int split, const struct row *rows, size_t n, const size_t *order,
                        const size_t *given)
{
    struct file file = create(folder, name);
    for (size_t i = 0; i < N_SKILLS * n; ++i) {
        const size_t k = order[i];
        put_row(file.stream, &skills[k / n], split_names[split], k % n, &rows[k], &rows[given ? given[k] : k]);
    }
    finish(&file);
}

static void write_suite(const char *folder, const char *name, int few_shot)
{
    struct file file = create(folder, name);
    fputs("{\"tasks\": [\n", file.stream);
    for (int s = 0; s < N_SKILLS; ++s) {
        fprintf(file.stream, "  {\"name\": \"%s\", \"data\": \"%s/test.jsonl\", \"metric\": \"%s\", \"few_shot\": %d", skills[s].name,
                skills[s].name, skills[s].metric, few_shot);
        if (!skills[s].choices[0]) fputs(", \"max_new_tokens\": 16", file.stream);
        if (few_shot) fprintf(file.stream, ", \"few_shot_data\": \"%s/train.jsonl\"", skills[s].name);
        fprintf(file.stream, "}%s\n", s + 1 < N_SKILLS ? "," : "");
    }
    fputs("]}\n", file.stream);
    finish(&file);
}

static struct row *new_rows(size_t n)
{
    struct row *rows = calloc(n ? n : 1, sizeof *rows);
    if (!rows) stop(71, "out of memory%s%s", "", "");
    return rows;
}

static void write_all(const char *folder, uint64_t seed, const size_t n_rows[N_SPLITS])
{
    const size_t n_train = n_rows[TRAIN], n_valid = n_rows[VALID], n_all = N_SKILLS * (n_train > n_valid ? n_train : n_valid);
    struct row *train = new_rows(N_SKILLS * n_train), *valid = new_rows(N_SKILLS * n_valid), *test = new_rows(n_rows[TEST]);
    size_t *order = calloc(n_all, sizeof *order), *given = calloc(n_all, sizeof *given);
    if (!order || !given) stop(71, "out of memory%s%s", "", "");
    make_folder(folder);
    for (size_t s = 0; s < N_SKILLS; ++s) {
        const struct skill *skill = &skills[s];
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, skill->name);
        make_folder(path);
        draw(skill, VALID, seed, valid + s * n_valid, n_valid, NULL, 0);
        draw(skill, TRAIN, seed, train + s * n_train, n_train, valid + s * n_valid, n_valid);
        draw(skill, TEST, seed, test, n_rows[TEST], NULL, 0);
        write_split(folder, skill, TRAIN, train + s * n_train, n_train);
        write_split(folder, skill, VALID, valid + s * n_valid, n_valid);
        write_split(folder, skill, TEST, test, n_rows[TEST]);
        struct random random = stream_of(seed, skill->name, "permuted");
        for (size_t i = 0; i < n_train; ++i) given[s * n_train + i] = s * n_train + i;
        shuffle(&random, given + s * n_train, n_train);
    }
    for (int split = TRAIN; split <= VALID; ++split) {
        struct random random = stream_of(seed, "mixed", split_names[split]);
        for (size_t i = 0; i < n_all; ++i) order[i] = i;
        shuffle(&random, order, N_SKILLS * n_rows[split]);
        if (split == TRAIN) {
            write_mixed(folder, "train.jsonl", TRAIN, train, n_train, order, NULL);
            write_mixed(folder, "train_permuted.jsonl", TRAIN, train, n_train, order, given);
        } else {
            write_mixed(folder, "valid.jsonl", VALID, valid, n_valid, order, NULL);
        }
    }
    write_suite(folder, "suite.json", 0);
    write_suite(folder, "suite_3shot.json", 3);
    free(train);
    free(valid);
    free(test);
    free(order);
    free(given);
}

static uint64_t number(const char *flag, const char *text, uint64_t lowest, uint64_t highest)
{
    char *end = NULL;
    errno = 0;
    const unsigned long long value = text ? strtoull(text, &end, 10) : 0;
    if (!text || *text < '0' || *text > '9' || *end || errno || value < lowest || value > highest)
        stop(EXIT_USAGE, "%s needs a whole number in its range, found '%s'", flag, text ? text : "nothing");
    return value;
}

int main(int argc, char **argv)
{
    const char *folder = NULL;
    uint64_t seed = 1;
    size_t n_rows[N_SPLITS] = {600, 100, 500};
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "--seed") == 0) {
            seed = number(argv[i], argv[i + 1], 0, UINT64_MAX);
            ++i;
        } else if (strncmp(argv[i], "--", 2) == 0) {
            int split = 0;
            while (split < N_SPLITS && strcmp(argv[i] + 2, split_names[split]) != 0) ++split;
            if (split == N_SPLITS) stop(EXIT_USAGE, "unknown flag %s%s", argv[i], "");
            n_rows[split] = (size_t)number(argv[i], argv[i + 1], 1, 100000);
            ++i;
        } else if (!folder) {
            folder = argv[i];
        } else {
            stop(EXIT_USAGE, "one folder is enough: %s, %s", folder, argv[i]);
        }
    }
    if (!folder) stop(EXIT_USAGE, "which folder? See tools/make_suite --help%s%s", "", "");
    write_all(folder, seed, n_rows);
    return 0;
}
