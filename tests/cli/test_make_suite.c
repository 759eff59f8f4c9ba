/* The task suite: same bytes at every run and everywhere, rows of the documented schema, nothing of the test in the training rows. */
#include "cli/cli_test.h"

#include <ctype.h>

#include "base/hash.h"

enum { ROWS_MAX = 2000, N_SKILLS = 8 };

static const char *const skill_names[N_SKILLS] = {"words", "dates", "records", "units", "routes", "shifts", "stores", "moods"};
static const char *const metrics[N_SKILLS] = {"exact", "exact",         "exact",         "exact_number",
                                              "exact", "option_letter", "option_letter", "exact"};

struct rows {
    struct tp_json *json[ROWS_MAX];
    int n;
};

static char *read_all(const char *name)
{
    FILE *file = fopen(path(name), "rb");
    if (!file) fail_msg("%s was not written", name);
    fseek(file, 0, SEEK_END);
    const size_t n = (size_t)ftell(file);
    rewind(file);
    char *text = malloc(n + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, n, file), n);
    text[n] = '\0';
    fclose(file);
    return text;
}

static struct rows read_rows(const char *suite, const char *name)
{
    struct rows rows = {.n = 0};
    char file[128], *state = NULL;
    snprintf(file, sizeof file, "%s/%s", suite, name);
    char *text = read_all(file);
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        assert_true(rows.n < ROWS_MAX);
        rows.json[rows.n++] = parse(line);
    }
    free(text);
    return rows;
}

static void free_rows(struct rows *rows)
{
    for (int i = 0; i < rows->n; ++i) tp_json_free(rows->json[i]);
}

static const char *field(const struct rows *rows, int i, const char *key)
{
    const char *text = NULL;
    if (tp_json_get_string(&text, tp_json_root(rows->json[i]), key) != TALPA_OK) fail_msg("row %d: %s", i, talpa_error_message());
    return text;
}

static int make(const char *arguments)
{
    char line[1024];
    snprintf(line, sizeof line, "'%s/bin/talpa-suite' %s 2> '%s'", TALPA_BINARY_DIR, arguments, path("err"));
    const int status = system(line);
    read_text(err, sizeof err, "err");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void make_suite(const char *name, const char *flags)
{
    char arguments[512];
    snprintf(arguments, sizeof arguments, "'%s' %s", path(name), flags);
    if (make(arguments) != 0) fail_msg("talpa-suite %s: %s", arguments, err);
}

static const char *const parts[] = {"train.jsonl", "valid.jsonl", "test.jsonl"};

static uint64_t digest_of(const char *suite)
{
    static const char *const top[] = {"train.jsonl", "valid.jsonl", "train_permuted.jsonl", "suite.json", "suite_3shot.json"};
    uint64_t digest = 0;
    char file[128];
    for (int i = 0; i < 5 + 3 * N_SKILLS; ++i) {
        if (i < 5)
            snprintf(file, sizeof file, "%s/%s", suite, top[i]);
        else
            snprintf(file, sizeof file, "%s/%s/%s", suite, skill_names[(i - 5) / 3], parts[(i - 5) % 3]);
        char *text = read_all(file);
        digest = digest * 31 + tp_hash_bytes(text, strlen(text));
        free(text);
    }
    return digest;
}

static void test_same_bytes(void **state)
{
    (void)state;
    make_suite("a", "--train 60 --valid 10 --test 50");
    make_suite("b", "--train 60 --valid 10 --test 50 --seed 1");
    make_suite("c", "--train 60 --valid 10 --test 50 --seed 2");
    assert_true(digest_of("a") == digest_of("b"));
    assert_true(digest_of("a") != digest_of("c"));
    /* Recorded: another value here means that results of earlier suites can no longer be compared. */
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)digest_of("a"));
    assert_string_equal(text, "fa8168659d077b35");
    /* The test is the same whatever the number of training rows. */
    make_suite("d", "--train 90 --valid 10 --test 50");
    char *a = read_all("a/units/test.jsonl"), *d = read_all("d/units/test.jsonl");
    assert_string_equal(a, d);
    free(a);
    free(d);
}

static void test_schema(void **state)
{
    (void)state;
    make_suite("full", "--train 200 --valid 20");
    for (int s = 0; s < N_SKILLS; ++s)
        for (int part = 0; part < 3; ++part) {
            char name[64];
            snprintf(name, sizeof name, "%s/%s", skill_names[s], parts[part]);
            struct rows rows = read_rows("full", name);
            assert_int_equal(rows.n, part == 0 ? 200 : part == 1 ? 20 : 500);
            int n_letter[4] = {0};
            for (int i = 0; i < rows.n; ++i) {
                const char *prompt = field(&rows, i, "prompt"), *completion = field(&rows, i, "completion"),
                           *answer = field(&rows, i, "answer");
                char id[64];
                snprintf(id, sizeof id, "%s-%.*s-%05d", skill_names[s], (int)(strchr(parts[part], '.') - parts[part]), parts[part], i);
                assert_string_equal(field(&rows, i, "id"), id);
                assert_string_equal(field(&rows, i, "task"), skill_names[s]);
                assert_string_equal(field(&rows, i, "metric"), metrics[s]);
                assert_true(strlen(prompt) > 20 && strcmp(prompt + strlen(prompt) - 8, "\nAnswer:") == 0);
                assert_null(strchr(prompt, '%')); /* an open place of a wording */
                assert_true(strlen(completion) < 40);
                if (strcmp(metrics[s], "exact_number") == 0) {
                    assert_memory_equal(completion, " #### ", 6);
                    assert_string_equal(completion + 6, answer);
                } else {
                    assert_int_equal(completion[0], ' ');
                    assert_string_equal(completion + 1, answer);
                }
                const struct tp_json_value *choices = tp_json_get(tp_json_root(rows.json[i]), "choices");
                assert_int_equal(choices != NULL, strcmp(metrics[s], "option_letter") == 0);
                if (choices) {
                    assert_int_equal(tp_json_length(choices), 4);
                    assert_true(strlen(answer) == 1 && answer[0] >= 'A' && answer[0] <= 'D');
                    ++n_letter[answer[0] - 'A'];
                    const char *text = NULL; /* the option stands in the prompt under the letter of the answer */
                    char line[64];
                    assert_int_equal(tp_json_as_string(&text, tp_json_at(choices, answer[0] - 'A'), "choice"), TALPA_OK);
                    snprintf(line, sizeof line, "%c. %s\n", answer[0], text);
                    const char *found = strstr(prompt, line);
                    assert_true(found && (found == prompt || found[-1] == '\n'));
                }
                int64_t difficulty = 0;
                assert_int_equal(tp_json_get_int_or(&difficulty, tp_json_root(rows.json[i]), "difficulty", 0), TALPA_OK);
                assert_true(difficulty >= (s == 0 || s == 1 || s == 3 || s == 4) && difficulty <= 3);
            }
            for (int k = 0; k < 4 && strcmp(metrics[s], "option_letter") == 0 && part == 2; ++k)
                assert_true(n_letter[k] > 40 && n_letter[k] < 250); /* no letter wins by itself */
            free_rows(&rows);
        }
    struct tp_json *json = NULL;
    assert_int_equal(tp_json_parse_file(&json, path("full/suite_3shot.json")), TALPA_OK);
    assert_int_equal(tp_json_length(tp_json_get(tp_json_root(json), "tasks")), N_SKILLS);
    tp_json_free(json);
}

/* ---- nothing of the test in training ---- */

static const char *const train_names[] = {"Anna", "Ben",  "Clara", "David", "Emma",   "Frank", "Grace", "Henry",
                                          "Iris", "Jack", "Kate",  "Leo",   "Mary",   "Noah",  "Olive", "Peter",
                                          "Ruth", "Sam",  "Tom",   "Vera",  "Walter", "Alice", "Oscar", "Lucy"};
static const char *const test_names[] = {"Adam", "Bella", "Carl", "Diana", "Eric", "Fiona", "George", "Helen",
                                         "Ivan", "Julia", "Karl", "Laura", "Max",  "Nina",  "Paul",   "Rosa"};
static const char *const test_items[] = {"spade",     "hoe",           "mallet",  "spanner",  "trowel",    "blouse", "mitten",
                                         "cloak",     "sandal",        "biscuit", "peach",    "ham",       "banana", "pudding",
                                         "saxophone", "trombone",      "lute",    "bassoon",  "accordion", "superb", "fantastic",
                                         "brilliant", "disappointing", "useless", "miserable"};

static bool has_word(const char *text, const char *word)
{
    const size_t n = strlen(word);
    for (const char *p = strstr(text, word); p; p = strstr(p + 1, word))
        if ((p == text || !isalpha((unsigned char)p[-1])) && !isalpha((unsigned char)p[n])) return true;
    return false;
}

static int count_words(const char *text, const char *const *words, size_t n)
{
    int count = 0;
    for (size_t i = 0; i < n; ++i) count += has_word(text, words[i]);
    return count;
}

/* The wording of a prompt: what stays when numbers, quoted text, names, months, days, directions and words of the vocabulary go. */
static void wording_of(char *out_text, size_t size, const char *prompt)
{
    static const char *const variable[] = {
        "January",  "February", "March",   "April",     "May",      "June",    "July",     "August",  "September", "October", "November",
        "December", "Monday",   "Tuesday", "Wednesday", "Thursday", "Friday",  "Saturday", "Sunday",  "north",     "east",    "south",
        "west",     "sunny",    "windy",   "rainy",     "foggy",    "cold",    "groms",    "tarns",   "nibs",      "and",     "then",
        "red",      "old",      "small",   "dark",      "two",      "three",   "mill",     "barn",    "cellar",    "market",  "kitchen",
        "tower",    "garden",   "harbour", "school",    "bridge",   "turnips", "candles",  "baskets", "apples",    "nails",   "blankets",
        "jars",     "onions",   "lamp",    "lamps",     "stone",    "stones",  "root",     "roots",   "bell",      "bells",   "map",
        "maps",     "wall",     "walls",   "gift",      "gifts",    "drum",    "drums"};
    size_t n = 0;
    bool quoted = false;
    for (const char *p = prompt; *p && n + 40 < size;) {
        if (*p == '"') quoted = !quoted;
        if (!isalpha((unsigned char)*p) || quoted) {
            ++p;
            continue;
        }
        size_t length = 0;
        while (isalpha((unsigned char)p[length])) ++length;
        char word[40];
        snprintf(word, sizeof word, "%.*s", (int)length, p);
        p += length;
        bool skipped = false;
        for (size_t i = 0; i < sizeof variable / sizeof *variable; ++i) skipped |= strcmp(word, variable[i]) == 0;
        for (size_t i = 0; i < sizeof train_names / sizeof *train_names; ++i) skipped |= strcmp(word, train_names[i]) == 0;
        for (size_t i = 0; i < sizeof test_names / sizeof *test_names; ++i) skipped |= strcmp(word, test_names[i]) == 0;
        if (!skipped) n += (size_t)snprintf(out_text + n, size - n, "%s ", word);
    }
    out_text[n] = '\0';
}

static void mark_numbers(bool *seen, size_t n, const char *text)
{
    for (const char *p = text; *p;) {
        if (!isdigit((unsigned char)*p)) {
            ++p;
            continue;
        }
        char *end = NULL;
        const unsigned long value = strtoul(p, &end, 10);
        assert_true(value < n);
        seen[value] = true;
        p = end;
    }
}

static void test_held_out(void **state)
{
    (void)state;
    make_suite("held", "--train 1000 --valid 50");
    for (int s = 0; s < N_SKILLS; ++s) {
        char name[64];
        bool trained[10000] = {false}, tested[10000] = {false};
        snprintf(name, sizeof name, "%s/train.jsonl", skill_names[s]);
        struct rows train = read_rows("held", name);
        snprintf(name, sizeof name, "%s/test.jsonl", skill_names[s]);
        struct rows test = read_rows("held", name);
        snprintf(name, sizeof name, "%s/valid.jsonl", skill_names[s]);
        struct rows valid = read_rows("held", name);
        for (int i = 0; i < valid.n; ++i) {
            const char *prompt = field(&valid, i, "prompt");
            for (int k = 0; k < train.n; ++k) assert_string_not_equal(prompt, field(&train, k, "prompt"));
        }
        const bool has_names = s == 0 || s == 2 || s == 5, is_item = s >= 6;
        for (int i = 0; i < train.n; ++i) {
            const char *prompt = field(&train, i, "prompt");
            assert_int_equal(count_words(prompt, train_names, sizeof train_names / sizeof *train_names), has_names);
            assert_int_equal(count_words(prompt, test_names, sizeof test_names / sizeof *test_names), 0);
            assert_int_equal(count_words(prompt, test_items, sizeof test_items / sizeof *test_items), 0);
            mark_numbers(trained, 10000, prompt);
        }
        int n_items = 0;
        for (int i = 0; i < test.n; ++i) {
            const char *prompt = field(&test, i, "prompt");
            assert_int_equal(count_words(prompt, test_names, sizeof test_names / sizeof *test_names), has_names);
            assert_int_equal(count_words(prompt, train_names, sizeof train_names / sizeof *train_names), 0);
            n_items += count_words(prompt, test_items, sizeof test_items / sizeof *test_items);
            mark_numbers(tested, 10000, prompt);
        }
        if (is_item) assert_true(n_items > 50);
        for (int i = 0; i < 10000; ++i)
            if (trained[i] && tested[i]) fail_msg("%s: the number %d is in both", skill_names[s], i);
        /* Things and moods fill their wordings with many words: there the lists above stand for the check. */
        static char trained_wording[ROWS_MAX][512];
        for (int k = 0; k < train.n; ++k) wording_of(trained_wording[k], sizeof trained_wording[k], field(&train, k, "prompt"));
        for (int i = 0; i < test.n && s != 6; ++i) {
            char wording[512];
            wording_of(wording, sizeof wording, field(&test, i, "prompt"));
            for (int k = 0; k < train.n; ++k)
                if (strcmp(wording, trained_wording[k]) == 0) fail_msg("%s: the wording '%s' is in both", skill_names[s], wording);
        }
        free_rows(&train);
        free_rows(&test);
        free_rows(&valid);
    }
}

/* ---- permuted answers ---- */

static int compare_texts(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static void test_permuted(void **state)
{
    (void)state;
    make_suite("p", "--train 60 --valid 10 --test 20");
    struct rows train = read_rows("p", "train.jsonl"), permuted = read_rows("p", "train_permuted.jsonl");
    assert_int_equal(train.n, 60 * N_SKILLS);
    assert_int_equal(permuted.n, train.n);
    int n_same_skill = 0;
    for (int i = 0; i < train.n; ++i) {
        assert_string_equal(field(&train, i, "id"), field(&permuted, i, "id"));
        assert_string_equal(field(&train, i, "prompt"), field(&permuted, i, "prompt"));
        if (i) n_same_skill += strcmp(field(&train, i, "task"), field(&train, i - 1, "task")) == 0;
    }
    assert_true(n_same_skill < train.n / 3); /* mixed */
    for (int s = 0; s < N_SKILLS; ++s) {
        const char *a[60], *b[60];
        int n = 0, n_moved = 0;
        for (int i = 0; i < train.n; ++i) {
            if (strcmp(field(&train, i, "task"), skill_names[s]) != 0) continue;
            a[n] = field(&train, i, "completion");
            b[n] = field(&permuted, i, "completion");
            n_moved += strcmp(a[n], b[n]) != 0;
            assert_non_null(strstr(b[n], field(&permuted, i, "answer")));
            ++n;
        }
        assert_int_equal(n, 60);
        assert_true(n_moved > n / 2);
        qsort(a, 60, sizeof *a, compare_texts);
        qsort(b, 60, sizeof *b, compare_texts);
        for (int i = 0; i < 60; ++i) assert_string_equal(a[i], b[i]);
    }
    free_rows(&train);
    free_rows(&permuted);
}

static void test_usage(void **state)
{
    (void)state;
    char line[512];
    assert_int_equal(make(""), 2);
    assert_int_equal(make("x --tets 3"), 2);
    assert_non_null(strstr(err, "--tets"));
    assert_int_equal(make("x --test"), 2);
    assert_int_equal(make("x --test -3"), 2);
    assert_non_null(strstr(err, "'-3'"));
    snprintf(line, sizeof line, "'%s' --test 100000 --train 10", path("many"));
    assert_int_equal(make(line), 2); /* never fills up with repeated rows */
    assert_non_null(strstr(err, "fewer different rows"));
    snprintf(line, sizeof line, "'%s'", path("no/such/folder"));
    assert_int_equal(make(line), 73);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_schema), cmocka_unit_test(test_held_out),
                                       cmocka_unit_test(test_permuted), cmocka_unit_test(test_usage)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
