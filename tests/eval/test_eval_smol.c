/* Evaluation on the real model and task data (skipped without them): options of one token each, against the log-probabilities of `score`;
 * the same bits for every batch size. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "eval/scoring.h"
#include "golden.h"
#include "talpa/eval.h"

enum { N_ROWS = 5, MAX_OPTIONS = 3 };

static struct talpa_model *model;
static size_t device;
static char data[4096];

struct seen {
    int n;
    char prediction[N_ROWS];
};

static bool on_sample(void *user, const struct talpa_eval_sample *sample, int64_t n_rows)
{
    struct seen *seen = user;
    assert_int_equal(n_rows, N_ROWS);
    seen->prediction[seen->n++] = sample->prediction[0];
    return true;
}

static struct seen evaluate(const char *samples, int batch_size)
{
    struct talpa_eval_options options;
    struct talpa_eval_score score;
    struct seen seen = {0};
    const struct talpa_eval_callbacks callbacks = {.sample = on_sample, .user = &seen};
    talpa_eval_default(&options);
    options.data = data;
    options.limit = N_ROWS;
    options.batch_size = batch_size;
    options.samples = samples;
    golden_ok(talpa_eval(&score, model, device, &options, &callbacks));
    assert_int_equal(score.metric, TALPA_METRIC_OPTION_LETTER);
    assert_string_equal(score.task, "cb");
    assert_int_equal(score.n, N_ROWS);
    return seen;
}

struct sums {
    double sum[N_ROWS * MAX_OPTIONS];
    int n;
};

static bool on_score(void *user, const struct talpa_score_row *row)
{
    struct sums *sums = user;
    assert_int_equal(row->n, 1); /* " A" is one token */
    sums->sum[sums->n++] = row->sum;
    return true;
}

static void test_options(void **state)
{
    (void)state;
    char name[] = "/tmp/talpa_smol_XXXXXX", line[8192];
    const int fd = mkstemp(name);
    FILE *rows = fd < 0 ? NULL : fdopen(fd, "w"), *file = fopen(data, "r");
    assert_true(rows && file);
    int n_options[N_ROWS];
    for (int i = 0; i < N_ROWS; i++) {
        struct tp_json *json;
        struct tp_json_writer *writer;
        const char *prompt, *text;
        assert_non_null(fgets(line, sizeof line, file));
        golden_ok(tp_json_parse(&json, line, strlen(line), data));
        golden_ok(tp_json_get_string(&prompt, tp_json_root(json), "prompt"));
        n_options[i] = (int)tp_json_length(tp_json_get(tp_json_root(json), "choices"));
        golden_ok(tp_json_writer_create(&writer, 0));
        for (int k = 0; k < n_options[i]; k++) {
            const char completion[] = {' ', (char)('A' + k), '\0'};
            tp_json_writer_reset(writer);
            tp_json_write_object_begin(writer);
            tp_json_write_string_member(writer, "prompt", prompt);
            tp_json_write_string_member(writer, "completion", completion);
            tp_json_write_object_end(writer);
            golden_ok(tp_json_writer_text(&text, NULL, writer));
            fprintf(rows, "%s\n", text);
        }
        tp_json_writer_free(writer);
        tp_json_free(json);
    }
    fclose(file);
    assert_int_equal(fclose(rows), 0);
    struct talpa_score_options options;
    struct sums sums = {.n = 0};
    talpa_score_default(&options);
    options.data = name;
    options.batch_size = 1;
    golden_ok(talpa_score(model, device, &options, on_score, &sums));
    remove(name);
    const struct seen seen = evaluate(NULL, 8);
    assert_int_equal(seen.n, N_ROWS);
    const double *values = sums.sum;
    for (int i = 0; i < N_ROWS; values += n_options[i++]) assert_int_equal(seen.prediction[i], 'A' + tp_scoring_best(values, n_options[i]));
}

static void test_batch_size(void **state)
{
    (void)state;
    char names[2][32] = {"/tmp/talpa_smol_XXXXXX", "/tmp/talpa_smol_XXXXXX"};
    static char text[2][1 << 14];
    for (int i = 0; i < 2; i++) {
        struct talpa_eval_options options;
        struct talpa_eval_score score;
        close(mkstemp(names[i]));
        talpa_eval_default(&options);
        options.data = data;
        options.limit = N_ROWS;
        options.metric = TALPA_METRIC_TOKEN_NLL; /* every digit of the likelihood is in the file */
        options.batch_size = i ? 3 : 1;
        options.samples = names[i];
        golden_ok(talpa_eval(&score, model, device, &options, NULL));
        FILE *file = fopen(names[i], "r");
        assert_non_null(file);
        text[i][fread(text[i], 1, sizeof text[i] - 1, file)] = '\0';
        fclose(file);
        remove(names[i]);
    }
    assert_string_equal(text[0], text[1]);
}

int main(void)
{
    snprintf(data, sizeof data, "%s", golden_data_path("cb/test.jsonl"));
    const char *path = golden_model_path();
    device = golden_device();
    golden_ok(talpa_model_open(&model, path));
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_options), cmocka_unit_test(test_batch_size)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    talpa_model_close(model);
    return failed;
}
