/* Scoring rules against a second implementation in Python, on random texts made of what the rules look at. Skipped without python3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/rng.h"
#include "eval/scoring.h"

enum { N_TEXTS = 1500, TEXT_BYTES = 512 };

static const char *const number_pieces[] = {"####", "#",  "1", "23", "0.5", ".",     ",",        "$",  "-",
                                            " ",    "\n", "x", "7.", ".5",  "1,000", "\xC3\xA9", "- 4"};
static const char *const letter_pieces[] = {
    "####", "A", "B", "C", "D", "E", "F", "a", " ", "\n", "_", "(", ")", "1", "\xC3\xA9", "\xC2\xB2", "\xCC\x81", "\xE4\xB8\xAD", "."};
static const char *const word_pieces[] = {"the",
                                          "The",
                                          "a",
                                          "A",
                                          "an",
                                          "AN",
                                          " ",
                                          " ",
                                          "\t",
                                          "\n",
                                          ",",
                                          ".",
                                          "-",
                                          "_",
                                          "'",
                                          "\xE2\x80\x99",
                                          "cat",
                                          "Dog",
                                          "\xC3\x89",
                                          "\xC3\x9F",
                                          "\xCC\x81",
                                          "\xC2\xA0",
                                          "\xE3\x80\x80",
                                          "\xE2\x80\x94",
                                          "1",
                                          "\xC4\xB0",
                                          "\xD0\x94",
                                          "\xE4\xB8\xAD",
                                          "\xE2\x80\x8B",
                                          "th",
                                          "e"};
#define PIECES(list) list, sizeof(list) / sizeof *(list)

static uint64_t counter;
static uint32_t draw(uint32_t n) { return (uint32_t)(tp_rng_splitmix64(7, ++counter) >> 33) % n; }

static void make_text(char text[TEXT_BYTES], const char *const *pieces, size_t n_pieces)
{
    text[0] = '\0';
    for (uint32_t i = draw(14); i > 0; i--) strcat(text, pieces[draw((uint32_t)n_pieces)]);
}

struct question {
    const char *rule;
    char text[TEXT_BYTES], reference[TEXT_BYTES];
    int n;
};
static struct question questions[N_TEXTS];

static void ask(FILE *file, const struct question *q)
{
    struct tp_json_writer *json;
    const char *text;
    assert_int_equal(tp_json_writer_create(&json, 0), TALPA_OK);
    tp_json_write_object_begin(json);
    tp_json_write_string_member(json, "rule", q->rule);
    tp_json_write_string_member(json, "text", q->text);
    tp_json_write_string_member(json, "reference", q->reference);
    tp_json_write_int_member(json, "n", q->n);
    tp_json_write_object_end(json);
    assert_int_equal(tp_json_writer_text(&text, NULL, json), TALPA_OK);
    fprintf(file, "%s\n", text);
    tp_json_writer_free(json);
}

static void check(const struct question *q, const struct tp_json_value *answer)
{
    const char *expected = NULL;
    char own[TEXT_BYTES * 4] = "";
    bool found = true;
    if (!strcmp(q->rule, "f1")) {
        double f1, reference;
        char *p, *r;
        assert_int_equal(tp_scoring_normalise(&p, q->text), TALPA_OK);
        assert_int_equal(tp_scoring_normalise(&r, q->reference), TALPA_OK);
        assert_int_equal(tp_scoring_f1(&f1, p, r), TALPA_OK);
        free(p);
        free(r);
        assert_int_equal(tp_json_as_double(&reference, answer, "answer"), TALPA_OK);
        if (fabs(f1 - reference) > 1e-12) fail_msg("f1 of '%s' and '%s': %g, expected %g", q->text, q->reference, f1, reference);
        return;
    }
    if (tp_json_type(answer) == TP_JSON_STRING) assert_int_equal(tp_json_as_string(&expected, answer, "answer"), TALPA_OK);
    if (!strcmp(q->rule, "number")) {
        double value;
        found = tp_scoring_number(&value, own, sizeof own, q->text);
    } else if (!strcmp(q->rule, "normalise")) {
        char *text;
        assert_int_equal(tp_scoring_normalise(&text, q->text), TALPA_OK);
        strcpy(own, text);
        free(text);
    } else {
        own[0] = !strcmp(q->rule, "letter") ? tp_scoring_generated_letter(q->text) : tp_scoring_first_letter(q->text, q->n);
        found = own[0] != '\0';
    }
    if (found != (expected != NULL) || (found && strcmp(own, expected)))
        fail_msg("%s of '%s': found '%s', expected '%s'", q->rule, q->text, found ? own : "(none)", expected ? expected : "(none)");
}

static void test_python(void **state)
{
    (void)state;
    char in_name[] = "/tmp/talpa_scoring_XXXXXX", command[1024];
    const int fd = mkstemp(in_name);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    assert_non_null(file);
    for (int i = 0; i < N_TEXTS; i++) {
        static const char *const rules[] = {"number", "letter", "first", "normalise", "f1"};
        struct question *q = &questions[i];
        q->rule = rules[i % 5];
        q->n = 2 + (int)draw(6);
        if (i % 5 == 0) make_text(q->text, PIECES(number_pieces));
        else if (i % 5 < 3) make_text(q->text, PIECES(letter_pieces));
        else make_text(q->text, PIECES(word_pieces));
        make_text(q->reference, PIECES(word_pieces));
        ask(file, q);
    }
    assert_int_equal(fclose(file), 0);
    snprintf(command, sizeof command, "python3 '%s/tests/eval/scoring_reference.py' < %s", TALPA_SOURCE_DIR, in_name);
    FILE *answers = popen(command, "r");
    assert_non_null(answers);
    static char line[TEXT_BYTES * 8];
    int n = 0;
    while (fgets(line, sizeof line, answers)) {
        struct tp_json *json;
        assert_true(n < N_TEXTS);
        assert_int_equal(tp_json_parse(&json, line, strlen(line), "answer"), TALPA_OK);
        check(&questions[n++], tp_json_get(tp_json_root(json), "answer"));
        tp_json_free(json);
    }
    pclose(answers);
    remove(in_name);
    assert_int_equal(n, N_TEXTS);
}

int main(void)
{
    if (system("python3 -I -c pass >/dev/null 2>&1") != 0) {
        printf("no python3: skipped\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_python)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
