/* Evaluation through the library on random:tiny: numbers against `score`'s path and against rows built by hand, independence of the batch
 * size, resuming, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "eval/likelihood.h"
#include "golden.h"
#include "talpa/eval.h"
#include "talpa/infer.h"

static struct talpa_model *model;
static size_t device;
static char folder[] = "/tmp/talpa_eval_XXXXXX";

static const char *in(const char *name)
{
    static char text[64][256];
    static int next;
    char *p = text[next++ % 64];
    snprintf(p, sizeof text[0], "%s/%s", folder, name);
    return p;
}

static const char *put(const char *name, const char *text)
{
    const char *path = in(name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    return path;
}

static char *get(const char *path)
{
    static char text[4][1 << 16];
    static int next;
    char *p = text[next++ % 4];
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("%s is not there", path);
    p[fread(p, 1, sizeof text[0] - 1, file)] = '\0';
    fclose(file);
    return p;
}

/* ---- what the callbacks saw ---- */

struct seen {
    int n, stop_after;
    char id[64][16], prediction[64][128];
    bool has_prediction[64], correct[64], too_long[64];
    double value[64], weight[64];
    char notes[1024];
};

static bool on_sample(void *user, const struct talpa_eval_sample *sample, int64_t n_rows)
{
    struct seen *s = user;
    assert_int_equal(sample->index, s->n);
    assert_true(s->n < n_rows && s->n < 64);
    snprintf(s->id[s->n], sizeof s->id[0], "%s", sample->id);
    s->has_prediction[s->n] = sample->prediction != NULL;
    snprintf(s->prediction[s->n], sizeof s->prediction[0], "%s", sample->prediction ? sample->prediction : "");
    s->correct[s->n] = sample->correct;
    s->too_long[s->n] = sample->too_long;
    s->value[s->n] = sample->value;
    s->weight[s->n++] = sample->weight;
    return !s->stop_after || s->n < s->stop_after;
}

static void on_note(void *user, const char *line)
{
    struct seen *s = user;
    strncat(s->notes, line, sizeof s->notes - strlen(s->notes) - 1);
}

static enum talpa_status evaluate(struct talpa_eval_score *score, struct seen *seen, const struct talpa_eval_options *options)
{
    const int stop_after = seen->stop_after;
    *seen = (struct seen){.stop_after = stop_after};
    const struct talpa_eval_callbacks callbacks = {.sample = on_sample, .note = on_note, .user = seen};
    return talpa_eval(score, model, device, options, &callbacks);
}

static struct talpa_eval_options defaults(const char *data)
{
    struct talpa_eval_options options;
    talpa_eval_default(&options);
    options.data = data;
    return options;
}

static void refuse(const struct talpa_eval_options *options, enum talpa_status status, const char *message)
{
    struct talpa_eval_score score;
    struct seen seen = {0};
    const enum talpa_status found = evaluate(&score, &seen, options);
    if (found != status) fail_msg("found %d, expected %d: %s", found, status, talpa_error_message());
    if (!strstr(talpa_error_message(), message)) fail_msg("'%s' is missing in: %s", message, talpa_error_message());
}

/* ---- sums of `score` ---- */

struct sums {
    double sum[128], per_token[128];
    int n[128], n_rows;
};

static bool on_score(void *user, const struct talpa_score_row *row)
{
    struct sums *s = user;
    s->sum[s->n_rows] = row->sum;
    s->n[s->n_rows] = (int)row->n;
    s->per_token[s->n_rows] = row->sum / (double)row->n;
    s->n_rows++;
    return true;
}

static struct sums score_rows(const char *text)
{
    struct talpa_score_options options;
    struct sums sums = {.n_rows = 0};
    talpa_score_default(&options);
    options.data = put("score.jsonl", text);
    options.batch_size = 1;
    golden_ok(talpa_score(model, device, &options, on_score, &sums));
    return sums;
}

static void near(double found, double expected)
{
    if (!(fabs(found - expected) <= 2e-5 * (1.0 + fabs(expected)))) fail_msg("found %.9g, expected %.9g", found, expected);
}

/* ---- options ---- */

static const char *const questions[] = {"Where does it dig?", "Who is there?", "Which lamp is wet?", "When?",
                                        "Is the stone in the river or under the old tree?"};
static const char *const choices[][3] = {
    {"soil", "sky", "sea"}, {"a mole", "an owl", "nobody at all"}, {"one", "two", "three"}, {"now", "later", "x"}, {"river", "tree", "z"}};
enum { N_QUESTIONS = 5, N_CHOICES = 3 };

static const char *option_rows(void)
{
    static char text[4096];
    text[0] = '\0';
    for (int i = 0; i < N_QUESTIONS; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"task\": \"pick\", \"id\": \"q%d\", \"prompt\": \"Question: %s\\nA. %s\\nB. %s\\nC. %s\\nAnswer:\", \"completion\": \" "
                 "B\", \"answer\": \"B\", "
                 "\"choices\": [\"%s\", \"%s\", \"%s\"]}\n",
                 i, questions[i], choices[i][0], choices[i][1], choices[i][2], choices[i][0], choices[i][1], choices[i][2]);
    return put("options.jsonl", text);
}

/* What `score` says of every option, as a row of its own; `shot` stands before every prompt. */
static void check_options(const struct seen *seen, bool by_text, const char *shot)
{
    char text[16384] = "";
    for (int i = 0; i < N_QUESTIONS; i++)
        for (int k = 0; k < N_CHOICES; k++) {
            char options[256], continuation[64];
            snprintf(options, sizeof options, "A. %s\\nB. %s\\nC. %s\\n", choices[i][0], choices[i][1], choices[i][2]);
            snprintf(continuation, sizeof continuation, by_text ? "%s" : "%.0s%c", choices[i][k], 'A' + k);
            snprintf(text + strlen(text), sizeof text - strlen(text),
                     "{\"prompt\": \"%sQuestion: %s\\n%sAnswer:\", \"completion\": \" %s\"}\n", shot, questions[i], by_text ? "" : options,
                     continuation);
        }
    const struct sums sums = score_rows(text);
    assert_int_equal(sums.n_rows, N_QUESTIONS * N_CHOICES);
    for (int i = 0; i < N_QUESTIONS; i++) {
        const double *values = (by_text ? sums.per_token : sums.sum) + i * N_CHOICES;
        int best = 0;
        for (int k = 1; k < N_CHOICES; k++)
            if (values[k] > values[best]) best = k;
        if (seen->prediction[i][0] != 'A' + best) fail_msg("row %d: %s, expected %c", i, seen->prediction[i], 'A' + best);
        assert_int_equal(seen->correct[i], best == 1);
    }
}

static void test_options(void **state)
{
    (void)state;
    struct talpa_eval_score score;
    struct seen seen = {0};
    struct talpa_eval_options options = defaults(option_rows());
    golden_ok(evaluate(&score, &seen, &options));
    assert_int_equal(score.metric, TALPA_METRIC_OPTION_LETTER);
    assert_string_equal(score.task, "pick");
    assert_int_equal(score.n, N_QUESTIONS);
    check_options(&seen, false, "");
    options.by = TALPA_OPTION_BY_TEXT;
    golden_ok(evaluate(&score, &seen, &options));
    check_options(&seen, true, "");

    options.by = TALPA_OPTION_BY_LETTER;
    options.few_shot = 1;
    options.few_shot_data = put("shots.jsonl", "{\"prompt\": \"Question: What?\\nA. it\\nB. no\\nAnswer:\", \"completion\": \" A\", "
                                               "\"answer\": \"A\", \"choices\": [\"it\", \"no\"]}\n");
    golden_ok(evaluate(&score, &seen, &options));
    check_options(&seen, false, "Question: What?\\nA. it\\nB. no\\nAnswer: A\\n\\n");
    options.by = TALPA_OPTION_BY_TEXT;
    golden_ok(evaluate(&score, &seen, &options));
    check_options(&seen, true, "Question: What?\\nAnswer: it\\n\\n");
}

/* Several labels at one position equal one label each in passes of their own. */
static void test_repeated_rows(void **state)
{
    (void)state;
    struct tp_engine engine;
    struct tp_likelihood likelihood;
    struct tp_plan_options plan;
    static const int32_t ids[] = {40, 50, 60, 70, 80};
    static const uint32_t rows[] = {1, 4, 4, 4};
    static const int32_t labels[] = {60, 7, 200, 90};
    float together[4], alone[4];
    golden_ok(tp_engine_open(&engine, device, model));
    golden_ok(tp_engine_plan_options(&plan, TALPA_BASE_AUTO, TALPA_COMPUTE_AUTO));
    golden_ok(tp_likelihood_create(&likelihood, &engine, model, NULL, NULL, &plan, false, 64, 16, NULL));
    const struct tp_likelihood_item all = {.ids = ids, .n_ids = 5, .rows = rows, .labels = labels, .n_labels = 4, .nll = together};
    golden_ok(tp_likelihood_run(&likelihood, &all, 1, 1));
    for (int k = 0; k < 4; k++) {
        const struct tp_likelihood_item one = {
            .ids = ids, .n_ids = 5, .rows = rows + k, .labels = labels + k, .n_labels = 1, .nll = alone + k};
        golden_ok(tp_likelihood_run(&likelihood, &one, 1, 1));
    }
    assert_memory_equal(together, alone, sizeof alone);
    assert_true(together[1] != together[2]);
    const struct tp_likelihood_item large = {.ids = ids, .n_ids = 65, .rows = rows, .labels = labels, .n_labels = 1, .nll = alone};
    assert_int_equal(tp_likelihood_run(&likelihood, &large, 1, 1), TALPA_E_INTERNAL);
    tp_likelihood_free(&likelihood);
    tp_engine_close(&engine);
}

/* ---- likelihoods of texts ---- */

static void test_nll(void **state)
{
    (void)state;
    static const char *const rows =
        "{\"prompt\": \"Who digs?\", \"completion\": \" The mole.\"}\n{\"text\": \"Soft black fur.\"}\n"
        "{\"prompt\": \"Where to?\", \"completion\": \" Down, and down again.\"}\n"
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"moles\"}]}\n";
    struct talpa_eval_score score;
    struct seen seen = {0};
    struct talpa_eval_options options = defaults(put("nll.jsonl", rows));
    options.metric = TALPA_METRIC_TOKEN_NLL;
    golden_ok(evaluate(&score, &seen, &options));
    /* score gives the closing EOS only when asked to; in messages the end marker is that token. */
    const struct sums sums = score_rows(rows);
    double sum = 0.0;
    int n = 0;
    for (int i = 0; i < 4; i++) {
        near(seen.value[i], -sums.sum[i]);
        assert_true(seen.weight[i] == sums.n[i]);
        sum -= sums.sum[i];
        n += sums.n[i];
    }
    near(score.value, sum / n);
    assert_int_equal(score.n_tokens, n);

    options.ctx_size = 24; /* the third and the last row are longer */
    golden_ok(evaluate(&score, &seen, &options));
    assert_int_equal(score.n_too_long, 2);
    assert_int_equal(score.n, 2);
    near(score.value, -(sums.sum[0] + sums.sum[1]) / (sums.n[0] + sums.n[1]));
}

static void test_perplexity(void **state)
{
    (void)state;
    enum { N = 90, CTX = 32, STRIDE = 20 };
    char text[N + 1], rows[16384] = "";
    for (int i = 0; i < N; i++) text[i] = (char)('a' + (i * i + i / 7) % 26);
    text[N] = '\0';
    struct talpa_eval_score score;
    struct seen seen = {0};
    struct talpa_eval_options options = defaults(NULL);
    options.text = put("text.txt", text);
    options.ctx_size = CTX;
    options.stride = STRIDE;
    golden_ok(evaluate(&score, &seen, &options));

    /* The windows once more, by the usual description: the first all but its first token, each further one its last `stride`. */
    int n_windows = 0;
    for (int start = 0, end_before = 0; end_before < N; start += STRIDE, n_windows++) {
        const int end = start + CTX < N ? start + CTX : N;
        snprintf(rows + strlen(rows), sizeof rows - strlen(rows), "{\"input_ids\": [");
        for (int i = start; i < end; i++)
            snprintf(rows + strlen(rows), sizeof rows - strlen(rows), "%s%d", i > start ? "," : "", (unsigned char)text[i] + 3);
        snprintf(rows + strlen(rows), sizeof rows - strlen(rows), "], \"labels\": [");
        for (int i = start; i < end; i++)
            snprintf(rows + strlen(rows), sizeof rows - strlen(rows), "%s%d", i > start ? "," : "",
                     i < end_before ? -100 : (unsigned char)text[i] + 3);
        snprintf(rows + strlen(rows), sizeof rows - strlen(rows), "]}\n");
        end_before = end;
    }
    const struct sums sums = score_rows(rows);
    assert_int_equal(seen.n, n_windows);
    double sum = 0.0;
    int n = 0;
    for (int i = 0; i < n_windows; i++) {
        near(seen.value[i], -sums.sum[i]);
        sum -= sums.sum[i];
        n += sums.n[i];
    }
    assert_int_equal(n, N - 1);
    assert_int_equal(score.n_tokens, N - 1);
    near(score.value, exp(sum / n));

    /* The same text as a row, and as two rows of which one fits a window. */
    char line[256];
    snprintf(line, sizeof line, "{\"text\": \"%s\"}\n", text);
    options.text = NULL;
    options.data = put("text.jsonl", line);
    struct talpa_eval_score other;
    golden_ok(evaluate(&other, &seen, &options));
    assert_int_equal(other.metric, TALPA_METRIC_PERPLEXITY);
    near(other.value, score.value);
    assert_int_equal(other.n, 1);
    options.stride = CTX;
    refuse(&options, TALPA_E_ARGUMENT, "--stride is 32, expected 1 to 31");
}

/* ---- generation ---- */

static void test_generation(void **state)
{
    (void)state;
    /* What the model says to two prompts, asked directly. */
    static const char *const prompts[] = {"Q: x\\nAnswer:", "Q: what digs?\\nAnswer:"};
    static const char *const plain[] = {"Q: x\nAnswer:", "Q: what digs?\nAnswer:"};
    struct talpa_session *session;
    struct talpa_session_options session_options;
    struct talpa_sampling sampling;
    struct talpa_request requests[2] = {0};
    struct talpa_answer answers[2];
    talpa_session_default(&session_options);
    talpa_sampling_default(&sampling);
    session_options.n_ctx = 128;
    golden_ok(talpa_session_open(&session, model, device, &session_options));
    for (int i = 0; i < 2; i++) {
        int32_t *ids;
        golden_ok(talpa_prompt_text(&ids, &requests[i].n_ids, model, plain[i], strlen(plain[i]), false));
        requests[i].ids = ids;
        requests[i].max_tokens = 12;
    }
    golden_ok(talpa_generate(answers, session, requests, 2, &sampling, NULL, NULL));
    struct tp_json_writer *json;
    const char *text;
    char rows[2048] = "";
    for (int i = 0; i < 2; i++) {
        golden_ok(tp_json_writer_create(&json, 0));
        tp_json_write_string(json, i ? "something else" : answers[0].text);
        golden_ok(tp_json_writer_text(&text, NULL, json));
        snprintf(rows + strlen(rows), sizeof rows - strlen(rows), "{\"prompt\": \"%s\", \"answer\": %s}\n", prompts[i], text);
        tp_json_writer_free(json);
    }
    struct talpa_eval_score score;
    struct seen seen = {0};
    struct talpa_eval_options options = defaults(put("exact.jsonl", rows));
    options.max_new_tokens = 12;
    golden_ok(evaluate(&score, &seen, &options));
    assert_int_equal(score.metric, TALPA_METRIC_EXACT);
    assert_int_equal(score.n_tokens, (int)(answers[0].n_ids + answers[1].n_ids));
    /* Bytes that are no UTF-8 cannot stand in JSON, so they cannot be asked for; the outputs are compared as far as they are text. */
    if (strlen(answers[0].text) == answers[0].n_bytes && !strstr(rows, "\xEF\xBF\xBD")) assert_true(seen.correct[0]);
    assert_false(seen.correct[1]);
    char *trimmed = answers[1].text;
    while (*trimmed == ' ' || (*trimmed >= '\t' && *trimmed <= '\r')) trimmed++;
    assert_memory_equal(seen.prediction[1], trimmed, strlen(seen.prediction[1]) < 100 ? strlen(seen.prediction[1]) : 100);
    for (int i = 0; i < 2; i++) {
        talpa_answer_free(&answers[i]);
        free((int32_t *)(uintptr_t)requests[i].ids);
    }
    talpa_session_close(session);

    /* Longer than the context: wrong, counted. */
    options.ctx_size = 16;
    golden_ok(evaluate(&score, &seen, &options));
    assert_int_equal(score.n_too_long, 1);
    assert_int_equal(score.n, 2);
    assert_true(seen.too_long[1] && !seen.has_prediction[1] && !seen.correct[1]);
}

static void test_deduced(void **state)
{
    (void)state;
    static const struct {
        const char *row;
        enum talpa_metric metric;
    } cases[] = {
        {"{\"prompt\": \"p\", \"completion\": \" 1 + 1\\n#### 2\", \"answer\": \"2\"}", TALPA_METRIC_EXACT_NUMBER},
        {"{\"prompt\": \"p\", \"completion\": \" 2\", \"answer\": \"2\"}", TALPA_METRIC_EXACT},
        {"{\"prompt\": \"p\", \"completion\": \" #### 2\", \"answer\": \"two\"}", TALPA_METRIC_EXACT},
        {"{\"prompt\": \"p\", \"answer\": 2}", TALPA_METRIC_EXACT},
        {"{\"task\": \"aqua\", \"prompt\": \"p\", \"answer\": \"E\", \"choices\": [\"1\", \"2\"]}", TALPA_METRIC_GENERATED_LETTER},
        {"{\"prompt\": \"p\", \"answer\": \"B\", \"choices\": [\"1\", \"2\"]}", TALPA_METRIC_OPTION_LETTER},
        {"{\"prompt\": \"p\", \"answer\": \"x\", \"answers\": [\"x\", \"y\"]}", TALPA_METRIC_F1_EM},
        {"{\"prompt\": \"p\", \"answer\": \"B\", \"choices\": [\"1\", \"2\"], \"metric\": \"exact\"}", TALPA_METRIC_EXACT},
        {"{\"prompt\": \"p\", \"completion\": \" c\"}", TALPA_METRIC_TOKEN_NLL},
        {"{\"text\": \"some text\"}", TALPA_METRIC_PERPLEXITY},
        {"{\"prompt\": \"p\", \"completion\": \" c\", \"tests\": [\"assert 1\"]}", TALPA_METRIC_TOKEN_NLL}, /* no code may run */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct talpa_eval_score score;
        struct seen seen = {0};
        struct talpa_eval_options options = defaults(put("row.jsonl", cases[i].row));
        options.max_new_tokens = 2;
        golden_ok(evaluate(&score, &seen, &options));
        if (score.metric != cases[i].metric) fail_msg("%s: %s", cases[i].row, talpa_metric_name(score.metric));
        assert_int_equal(score.n, 1);
        assert_int_equal(strstr(seen.notes, "--allow-code-execution") != NULL, strstr(cases[i].row, "tests") != NULL);
    }
}

/* ---- batch size, resuming ---- */

static void test_batch_size(void **state)
{
    (void)state;
    static const enum talpa_option_by by[] = {TALPA_OPTION_BY_LETTER, TALPA_OPTION_BY_GENERATION};
    for (int k = 0; k < 3; k++) {
        char *expected = NULL;
        for (int b = 1; b <= 7; b += 3) {
            struct talpa_eval_score score;
            struct seen seen = {0};
            struct talpa_eval_options options = defaults(k == 2 ? NULL : option_rows());
            if (k == 2) options.text = TALPA_SOURCE_DIR "/tests/data/README.md";
            else options.by = by[k];
            options.batch_size = b;
            options.ctx_size = k == 2 ? 200 : 0;
            options.samples = in("batch.jsonl");
            golden_ok(evaluate(&score, &seen, &options));
            char *found = get(options.samples);
            if (b == 1) expected = strdup(found);
            assert_string_equal(found, expected);
        }
        free(expected);
    }
}

static void test_resume(void **state)
{
    (void)state;
    struct talpa_eval_score whole, score;
    struct seen seen = {0};
    struct talpa_eval_options options = defaults(option_rows());
    options.metric = TALPA_METRIC_TOKEN_NLL;
    options.output_dir = in("whole");
    golden_ok(evaluate(&whole, &seen, &options));
    assert_int_equal(whole.n_resumed, 0);
    assert_int_equal(access(in("whole/samples.jsonl.partial"), F_OK), -1);

    options.output_dir = in("part");
    options.batch_size = 1;
    seen.stop_after = 2;
    assert_int_equal(evaluate(&score, &seen, &options), TALPA_E_INTERRUPTED);
    assert_int_equal(access(in("part/samples.jsonl"), F_OK), -1);
    assert_int_equal(access(in("part/eval_results.json"), F_OK), -1);
    /* A line that the end of the run cut short is done again. */
    FILE *file = fopen(in("part/samples.jsonl.partial"), "a");
    fputs("{\"id\":\"q2\",\"predi", file);
    fclose(file);
    /* Other inputs are refused, and nothing is lost by that. */
    options.ctx_size = 100;
    refuse(&options, TALPA_E_DATA, "options: found metric=token_nll");
    options.ctx_size = 0;
    seen.stop_after = 0;
    options.batch_size = 8;
    golden_ok(evaluate(&score, &seen, &options));
    assert_int_equal(score.n_resumed, 2);
    assert_int_equal(seen.n, N_QUESTIONS);
    assert_memory_equal(&score.value, &whole.value, sizeof score.value); /* the same bits */
    assert_memory_equal(&score.standard_error, &whole.standard_error, sizeof score.value);
    assert_string_equal(get(in("part/samples.jsonl")), get(in("whole/samples.jsonl")));

    /* Complete: nothing is computed, and the same score comes out. */
    golden_ok(evaluate(&score, &seen, &options));
    assert_int_equal(score.n_resumed, N_QUESTIONS);
    assert_memory_equal(&score.value, &whole.value, sizeof score.value);
    options.limit = 2;
    refuse(&options, TALPA_E_DATA, "--overwrite");
    options.overwrite = true;
    golden_ok(evaluate(&score, &seen, &options));
    assert_int_equal(score.n, 2);
    assert_int_equal(score.n_resumed, 0);
    options.limit = 0;
    options.data = put("other.jsonl", "{\"prompt\": \"p\", \"completion\": \" c\"}\n");
    options.overwrite = false;
    refuse(&options, TALPA_E_DATA, "data: found ");
}

static void test_refusals(void **state)
{
    (void)state;
    struct talpa_eval_options options = defaults(in("absent.jsonl"));
    refuse(&options, TALPA_E_NO_INPUT, "absent.jsonl");
    options.data = put("bad.jsonl", "\n \n");
    refuse(&options, TALPA_E_DATA, "found no row");
    options.data =
        put("bad.jsonl", "{\"prompt\": \"p\", \"answer\": \"x\"}\n\n{\"prompt\": \"p\", \"answer\": \"B\", \"choices\": [\"a\", \"b\"]}\n");
    refuse(&options, TALPA_E_DATA, "bad.jsonl:3: the row's fields say option_letter, those of the first row exact");
    options.metric = TALPA_METRIC_F1_EM;
    options.data = put("bad.jsonl", "{\"prompt\": \"p\", \"answers\": [\"a\"]}\n{\"prompt\": \"p\"}\n");
    refuse(&options, TALPA_E_DATA, "bad.jsonl:2: field 'answers' is missing");
    options.metric = TALPA_METRIC_OPTION_LETTER;
    options.data = put("bad.jsonl", "{\"prompt\": \"p\", \"answer\": \"C\", \"choices\": [\"a\", \"b\"]}\n");
    refuse(&options, TALPA_E_DATA, "bad.jsonl:1: answer: found \"C\", expected a letter A to B");
    options.by = TALPA_OPTION_BY_TEXT;
    options.data = put("bad.jsonl", "{\"prompt\": \"p\\nAnswer:\", \"answer\": \"A\", \"choices\": [\"a\", \"b\"]}\n");
    refuse(&options, TALPA_E_DATA, "bad.jsonl:1: prompt: found no line 'B. b'");
    options.by = TALPA_OPTION_BY_LETTER;
    options.few_shot = 2;
    refuse(&options, TALPA_E_ARGUMENT, "--few-shot-data");
    options.few_shot_data = put("one.jsonl", "{\"prompt\": \"p\", \"completion\": \" A\"}\n");
    refuse(&options, TALPA_E_DATA, "found 1 rows, expected at least --few-shot 2");
    options = defaults(put("bad.jsonl", "{\"prompt\": \"p\", \"answer\": \"A\", \"metric\": \"exactly\"}\n"));
    refuse(&options, TALPA_E_DATA, "bad.jsonl:1: metric: unknown name 'exactly'");
    options = defaults(put("bad.jsonl", "[1]\n"));
    refuse(&options, TALPA_E_DATA, "bad.jsonl:1: found an array");
    options = defaults(NULL);
    refuse(&options, TALPA_E_ARGUMENT, "--data");
    options.text = put("empty.txt", "");
    refuse(&options, TALPA_E_DATA, "the file is empty");
}

/* ---- suites ---- */

static void test_suite(void **state)
{
    (void)state;
    struct talpa_eval_table table = {0};
    struct talpa_eval_options options = defaults(NULL);
    option_rows();
    put("nll.jsonl", "{\"prompt\": \"p\", \"completion\": \" c\"}\n{\"prompt\": \"q\", \"completion\": \" dd\"}\n");
    const char *suite = put("suite.json", "{\"tasks\": [{\"name\": \"pick\", \"data\": \"options.jsonl\"},\n"
                                          " {\"name\": \"short\", \"data\": \"options.jsonl\", \"limit\": 2, \"by\": \"text\"}]}");
    options.output_dir = in("suite");
    golden_ok(talpa_eval_suite(&table, model, device, suite, &options, NULL));
    assert_int_equal(table.n_rows, 2);
    assert_string_equal(table.rows[1].score.task, "short");
    assert_int_equal(table.rows[1].score.n, 2);
    assert_int_equal(table.rows[1].score.by, TALPA_OPTION_BY_TEXT);
    assert_true(table.has_mean && table.mean == (table.rows[0].score.value + table.rows[1].score.value) / 2);
    const char *const files[] = {"suite/pick/samples.jsonl", "suite/short/eval_results.json", "suite/suite_results.json"};
    for (size_t i = 0; i < 3; i++) assert_int_equal(access(in(files[i]), R_OK), 0);

    /* Against itself: the same rows, no difference at all. */
    golden_ok(talpa_eval_compare(&table, in("suite/suite_results.json"), in("suite")));
    for (size_t i = 0; i < 2; i++) {
        assert_true(table.rows[i].has_baseline && table.rows[i].is_paired);
        assert_true(table.rows[i].difference == 0.0 && table.rows[i].difference_error == 0.0);
    }
    golden_ok(talpa_eval_compare(&table, in("suite/pick/eval_results.json"), NULL));
    assert_false(table.rows[0].is_paired && !table.rows[0].has_baseline);
    put("base.json", "{\"task\": \"pick\", \"metric\": \"exact\", \"value\": 1}");
    assert_int_equal(talpa_eval_compare(&table, in("base.json"), NULL), TALPA_E_DATA);
    put("base.json", "{\"task\": \"other\", \"metric\": \"exact\", \"value\": 1}");
    assert_int_equal(talpa_eval_compare(&table, in("base.json"), NULL), TALPA_E_DATA);
    talpa_eval_table_free(&table);

    static const char *const bad[][2] = {
        {"{\"tasks\": []}", "found no tasks"},
        {"[{\"name\": \"x\", \"data\": \"d\", \"metrik\": \"exact\"}]", "tasks[0]: unknown key 'metrik', nearest 'metric'"},
        {"[{\"name\": \"x\"}]", "data"},
        {"[{\"name\": \"a/b\", \"data\": \"d\"}]", "name: found \"a/b\""},
        {"[{\"name\": \"x\", \"data\": \"options.jsonl\"}, {\"name\": \"x\", \"data\": \"options.jsonl\"}]",
         "tasks[1]: name: 'x' is there twice"},
        {"[{\"name\": \"x\", \"data\": \"options.jsonl\", \"metric\": \"exakt\"}]", "metric: unknown name 'exakt'"}};
    options.output_dir = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(talpa_eval_suite(&table, model, device, put("bad.json", bad[i][0]), &options, NULL), TALPA_E_DATA);
        if (!strstr(talpa_error_message(), bad[i][1])) fail_msg("'%s' is missing in: %s", bad[i][1], talpa_error_message());
    }
}

int main(void)
{
    device = golden_device();
    golden_ok(talpa_model_open(&model, "random:tiny"));
    if (!mkdtemp(folder)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_options),    cmocka_unit_test(test_repeated_rows),
                                       cmocka_unit_test(test_nll),        cmocka_unit_test(test_perplexity),
                                       cmocka_unit_test(test_generation), cmocka_unit_test(test_deduced),
                                       cmocka_unit_test(test_batch_size), cmocka_unit_test(test_resume),
                                       cmocka_unit_test(test_refusals),   cmocka_unit_test(test_suite)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[300];
    snprintf(command, sizeof command, "rm -r %s", folder);
    if (!failed && system(command)) return 1;
    talpa_model_close(model);
    return failed;
}
