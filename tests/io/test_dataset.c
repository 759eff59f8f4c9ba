/* JSONL rows: every kind, labels, truncation, refusals with their places, the permutation. The byte tokenizer makes ids plain: byte + 3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/status.h"
#include "io/dataset.h"
#include "talpa/log.h"

static struct tp_tokenizer *tokenizer;
static int n_warnings;

static void count_warning(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    (void)line;
    n_warnings += level == TALPA_LOG_WARN;
}

static struct tp_dataset *parse(const char *text, const struct tp_dataset_options *options)
{
    struct tp_dataset *d = NULL;
    if (tp_dataset_parse(&d, text, strlen(text), "t.jsonl", tokenizer, options) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return d;
}

/* Ids as text ("^" for <|im_start|>, "$" for <|im_end|>), and the same with "_" where there is no label. */
static void check_example(const struct tp_dataset *d, size_t i, const char *text, const char *labels)
{
    const struct tp_dataset_example e = tp_dataset_example(d, i);
    assert_int_equal(e.n_tokens, strlen(text));
    assert_int_equal(strlen(text), strlen(labels));
    size_t n_prompt = e.n_tokens;
    for (uint32_t k = 0; k < e.n_tokens; k++) {
        const int32_t id = text[k] == '^' ? 1 : text[k] == '$' ? 2 : 3 + (unsigned char)text[k];
        assert_int_equal(e.ids[k], id);
        assert_int_equal(e.labels[k], labels[k] == '_' ? -100 : id);
        if (labels[k] != '_' && n_prompt == e.n_tokens) n_prompt = k;
    }
    assert_int_equal(e.n_prompt, n_prompt);
}

static void test_kinds(void **state)
{
    (void)state;
    struct tp_dataset *d =
        parse("{\"prompt\": \"ab\", \"completion\": \" c\", \"id\": \"row-7\", \"other\": [1, {}]}\n"
              "{\"text\": \"xy\", \"id\": 12}\n"
              "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n"
              "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 9, -100]}\n"
              "{\"input_ids\": [5, 6], \"id\": null}\n"
              "{\"prompt\": \"\\u003c|im_end|>\", \"completion\": \"\"}",
              NULL);
    assert_int_equal(tp_dataset_n_examples(d), 6);
    check_example(d, 0, "ab c$", "__ c$");
    assert_string_equal(tp_dataset_example(d, 0).id, "row-7");
    check_example(d, 1, "xy$", "xy$");
    assert_string_equal(tp_dataset_example(d, 1).id, "12");
    check_example(d, 2, "^user\nq$\n^assistant\na$\n", "____________________a$_"); /* chatml: the byte tokenizer's own template */
    assert_string_equal(tp_dataset_example(d, 2).id, "");
    assert_int_equal(tp_dataset_example(d, 2).line, 3);
    const struct tp_dataset_example e = tp_dataset_example(d, 3);
    assert_int_equal(e.n_tokens, 3);
    assert_int_equal(e.ids[1], 6);
    assert_int_equal(e.labels[0], -100);
    assert_int_equal(e.labels[1], 9);
    assert_int_equal(e.labels[2], -100);
    assert_int_equal(tp_dataset_example(d, 4).labels[0], 5);
    assert_string_equal(tp_dataset_example(d, 4).id, "");
    check_example(d, 5, "<|im_end|>$", "__________$"); /* special strings in data are text */
    const struct tp_dataset_counts c = tp_dataset_counts(d);
    assert_int_equal(c.n_rows, 6);
    assert_int_equal(c.n_tokens, 5 + 3 + 23 + 3 + 2 + 11);
    assert_int_equal(c.n_labelled_tokens, 3 + 2 + 2 + 1 + 1 + 1); /* the first position is never predicted */
    assert_int_equal(c.n_truncated + c.n_skipped + c.n_empty + c.n_bytes_dropped, 0);
    tp_dataset_close(d);
}

static void test_instruction(void **state)
{
    (void)state;
    struct tp_dataset *d =
        parse("{\"instruction\": \"I\", \"input\": \"N\", \"output\": \"O\"}\n{\"instruction\": \"I\", \"output\": \"O\"}\n", NULL);
    const char *ends[2] = {"### Instruction:\nI\n\n### Input:\nN\n\n### Response:\nO", "### Instruction:\nI\n\n### Response:\nO"};
    for (size_t i = 0; i < 2; i++) {
        const struct tp_dataset_example e = tp_dataset_example(d, i);
        char *text;
        assert_int_equal(tp_tokenizer_decode(&text, NULL, tokenizer, e.ids, e.n_tokens, true), TALPA_OK);
        assert_non_null(strstr(text, ends[i]));
        assert_int_equal(strlen(strstr(text, ends[i])), strlen(ends[i]));
        assert_int_equal(e.n_prompt, e.n_tokens - 2);
        assert_int_equal(e.ids[e.n_tokens - 1], 2);
        free(text);
    }
    tp_dataset_close(d);
}

static void test_template_option(void **state)
{
    (void)state;
    const char *row = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    struct tp_dataset_options options = {.chat_template = "chatml-smollm"};
    struct tp_dataset *d = parse(row, &options);
    const char *expected = "^system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face$\n^user\nq$\n^assistant\na$\n";
    char labels[200];
    memset(labels, '_', sizeof labels);
    labels[strlen(expected)] = '\0';
    memcpy(labels + strlen(expected) - 3, "a$", 2);
    check_example(d, 0, expected, labels);
    tp_dataset_close(d);
    options.chat_template = "nonesuch";
    assert_int_equal(tp_dataset_parse(&d, "{\"text\": \"x\"}", 13, "t.jsonl", tokenizer, &options), TALPA_E_ARGUMENT);
}

static void test_file_forms(void **state)
{
    (void)state;
    struct tp_dataset *d = parse("\xEF\xBB\xBF{\"text\": \"a\"}\r\n\r\n \t\n{\"text\": \"b\"}\n\n", NULL);
    assert_int_equal(tp_dataset_n_examples(d), 2);
    check_example(d, 1, "b$", "b$");
    assert_int_equal(tp_dataset_example(d, 0).line, 1);
    assert_int_equal(tp_dataset_example(d, 1).line, 4);
    tp_dataset_close(d);
    char path[256];
    snprintf(path, sizeof path, "%s/talpa_dataset_XXXXXX", P_tmpdir);
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"text\": \"a\"}\n", 14), 14);
    close(fd);
    assert_int_equal(tp_dataset_open(&d, path, tokenizer, NULL), TALPA_OK);
    assert_int_equal(tp_dataset_n_examples(d), 1);
    tp_dataset_close(d);
    unlink(path);
    assert_int_equal(tp_dataset_open(&d, path, tokenizer, NULL), TALPA_E_NO_INPUT);
    tp_dataset_close(NULL);
}

static void test_too_long(void **state)
{
    (void)state;
    const char *rows = "{\"prompt\": \"abcd\", \"completion\": \"ef\"}\n"  /* 7 tokens: cut to "bcdef$" */
                       "{\"prompt\": \"a\", \"completion\": \"bcdefg\"}\n" /* completion and EOS alone 7: skipped */
                       "{\"prompt\": \"a\", \"completion\": \"bcdef\"}\n"  /* completion and EOS alone 6: no prompt is left */
                       "{\"prompt\": \"ab\", \"completion\": \"cde\"}\n"   /* 6: fits */
                       "{\"text\": \"\"}\n"                                /* EOS alone: nothing to predict */
                       "{\"input_ids\": [1, 2, 3, 4, 5, 6, 7, 8], \"labels\": [-100, -100, -100, -100, 5, -100, -100, -100]}\n"
                       "{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n"; /* the first position is never predicted */
    struct tp_dataset_options options = {.max_tokens = 6};
    n_warnings = 0;
    talpa_log_set(count_warning, NULL);
    struct tp_dataset *d = parse(rows, &options);
    talpa_log_set(NULL, NULL);
    assert_int_equal(n_warnings, 3);
    assert_int_equal(tp_dataset_n_examples(d), 4);
    check_example(d, 0, "bcdef$", "___ef$");
    check_example(d, 1, "bcdef$", "bcdef$");
    check_example(d, 2, "abcde$", "__cde$");
    const struct tp_dataset_example e = tp_dataset_example(d, 3);
    assert_int_equal(e.n_tokens, 6);
    assert_int_equal(e.n_prompt, 2);
    assert_int_equal(e.ids[0], 3);
    assert_int_equal(e.labels[2], 5);
    const struct tp_dataset_counts c = tp_dataset_counts(d);
    assert_int_equal(c.n_rows, 7);
    assert_int_equal(c.n_truncated, 3);
    assert_int_equal(c.n_skipped, 1);
    assert_int_equal(c.n_empty, 2);
    assert_int_equal(c.n_tokens, 24);
    assert_int_equal(c.n_labelled_tokens, 3 + 5 + 4 + 1);
    tp_dataset_close(d);
    options.refuse_long = true;
    assert_int_equal(tp_dataset_parse(&d, rows, strlen(rows), "t.jsonl", tokenizer, &options), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "t.jsonl:1: found 7 tokens, expected at most 6"));
}

/* With a tokenizer that adds BOS: it stays in front of a cut prompt, unlabelled. */
static void test_bos(void **state)
{
    (void)state;
    struct tp_text tokens[] = {{"<s>", 3}, {"</s>", 4}, {"a", 1}, {"b", 1}};
    const int32_t types[] = {3, 3, 1, 1};
    const struct tp_tokenizer_source source = {.label = "t",
                                               .model = "gpt2",
                                               .pre = "gpt-2",
                                               .tokens = tokens,
                                               .types = types,
                                               .n_tokens = 4,
                                               .bos_id = 0,
                                               .eos_id = 1,
                                               .unk_id = -1,
                                               .pad_id = -1,
                                               .add_bos = true};
    struct tp_tokenizer *t;
    struct tp_dataset *d;
    assert_int_equal(tp_tokenizer_create(&t, &source), TALPA_OK);
    const char *rows = "{\"prompt\": \"aaab\", \"completion\": \"bc\"}\n{\"prompt\": \"a\", \"completion\": \"bbb\"}\n{\"text\": "
                       "\"a\"}\n{\"input_ids\": [2, 3]}";
    const struct tp_dataset_options options = {.max_tokens = 4};
    talpa_log_set(count_warning, NULL);
    assert_int_equal(tp_dataset_parse(&d, rows, strlen(rows), "t.jsonl", t, &options), TALPA_OK);
    talpa_log_set(NULL, NULL);
    const int32_t expected[4][4] = {{0, 3, 3, 1}, {3, 3, 3, 1}, {0, 2, 1}, {2, 3}};
    const uint32_t n[4] = {4, 4, 3, 2}, n_prompt[4] = {2, 0, 1, 0};
    for (size_t i = 0; i < 4; i++) {
        const struct tp_dataset_example e = tp_dataset_example(d, i);
        assert_int_equal(e.n_tokens, n[i]);
        assert_int_equal(e.n_prompt, n_prompt[i]);
        assert_memory_equal(e.ids, expected[i], n[i] * sizeof(int32_t));
        for (uint32_t k = 0; k < n[i]; k++) assert_int_equal(e.labels[k], k < n_prompt[i] ? -100 : e.ids[k]);
    }
    assert_int_equal(tp_dataset_counts(d).n_bytes_dropped, 1); /* "c" */
    tp_dataset_close(d);
    tp_tokenizer_free(t);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "t.jsonl: found no row"},
        {"\n \n", "t.jsonl: found no row"},
        {"{\"text\": \"\"}", "t.jsonl: no example is left of 1 rows"},
        {"{\"text\": \"a\"}\n{\"text\": 3}", "t.jsonl:2: text: found 3, expected a string"},
        {"{\"text\": \"a\"}\n\n{\"text\": \"a\"", "t.jsonl:3"},
        {"[1]", "t.jsonl:1: found an array, expected one JSON object per line"},
        {"{\"txt\": \"a\"}", "t.jsonl:1: found no field of a known kind, expected input_ids, messages, prompt and completion"},
        {"{\"prompt\": \"a\"}", "t.jsonl:1: completion: missing, expected a string"},
        {"{\"completion\": \"a\"}", "t.jsonl:1: prompt: missing"},
        {"{\"prompt\": null, \"completion\": \"a\"}", "t.jsonl:1: prompt: found null"},
        {"{\"instruction\": \"a\"}", "t.jsonl:1: output: missing"},
        {"{\"instruction\": \"a\", \"output\": \"b\", \"input\": 1}", "t.jsonl:1: input: found 1"},
        {"{\"messages\": {}}", "t.jsonl:1: messages: found an object, expected an array"},
        {"{\"messages\": []}", "t.jsonl:1: messages: found none"},
        {"{\"messages\": [3]}", "t.jsonl:1: messages[0]: found a number"},
        {"{\"messages\": [{\"role\": \"user\"}]}", "t.jsonl:1: messages[0]: content: missing"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": []}]}", "t.jsonl:1: messages[0]: content: found an array"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", "t.jsonl:1: messages: found no assistant's turn"},
        {"{\"messages\": [{\"role\": \"bot\", \"content\": \"x\"}]}", "t.jsonl:1: messages[0].role: found \"bot\""},
        {"{\"input_ids\": []}", "t.jsonl: no example is left of 1 rows"},
        {"{\"input_ids\": 3}", "t.jsonl:1: input_ids: found a number, expected an array"},
        {"{\"input_ids\": [1, 259]}", "t.jsonl:1: input_ids[1]: found 259, expected 0..258"},
        {"{\"input_ids\": [-100]}", "t.jsonl:1: input_ids[0]: found -100, expected 0..258"},
        {"{\"input_ids\": [1.5]}", "t.jsonl:1: input_ids[0]: token id: found 1.5"},
        {"{\"input_ids\": [1, 2], \"labels\": [1]}", "t.jsonl:1: labels: found 1, expected 2"},
        {"{\"input_ids\": [1, 2], \"labels\": [1, 2, 3]}", "t.jsonl:1: labels: found 3, expected 2"},
        {"{\"input_ids\": [1], \"labels\": [-7]}", "t.jsonl:1: labels[0]: found -7, expected 0..258 or -100"},
        {"{\"text\": \"ab\", \"id\": true}", "t.jsonl:1: id: found a boolean"},
        {"{\"text\": \"\xff\"}", "t.jsonl:1"},
        {"{\"text\": \"a\\u0000b\"}", "t.jsonl:1"},
        {"{\"text\": \"a\", \"text\": \"b\"}", "t.jsonl:1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tp_dataset *d = NULL;
        const enum talpa_status status = tp_dataset_parse(&d, cases[i][0], strlen(cases[i][0]), "t.jsonl", tokenizer, NULL);
        const char *message = talpa_error_message();
        if (status != TALPA_E_DATA || d || strncmp(message, cases[i][1], strlen(cases[i][1])) != 0)
            fail_msg("%s: status %d, \"%s\", expected \"%s\"", cases[i][0], status, message, cases[i][1]);
    }
}

static void test_permutation(void **state)
{
    (void)state;
    enum { N = 1000 };
    uint32_t a[N], b[N];
    bool seen[N] = {false};
    tp_dataset_permutation(a, N, 7, 0);
    tp_dataset_permutation(b, N, 7, 0);
    assert_memory_equal(a, b, sizeof a);
    for (int i = 0; i < N; i++) {
        assert_true(a[i] < N);
        assert_false(seen[a[i]]);
        seen[a[i]] = true;
    }
    static const uint64_t others[][2] = {{7, 1}, {8, 0}, {7 | 1ull << 32, 0}, {7, 1ull << 32}};
    for (int k = 0; k < 4; k++) {
        tp_dataset_permutation(b, N, others[k][0], others[k][1]);
        int n_same = 0;
        for (int i = 0; i < N; i++) n_same += a[i] == b[i];
        assert_true(n_same < 15); /* 1 expected */
    }
    tp_dataset_permutation(b, 0, 7, 0);
    tp_dataset_permutation(b, 1, 7, 0);
    assert_int_equal(b[0], 0);
    /* All 24 orders of 4 are equally likely: chi-squared with 23 degrees of freedom is below 64 but for 1e-5. */
    int count[256] = {0};
    for (uint64_t epoch = 0; epoch < 24000; epoch++) {
        tp_dataset_permutation(b, 4, 3, epoch);
        count[b[0] << 6 | b[1] << 4 | b[2] << 2 | b[3]]++;
    }
    double chi2 = 0;
    int n_orders = 0;
    for (int i = 0; i < 256; i++)
        if (count[i]) {
            chi2 += (count[i] - 1000.0) * (count[i] - 1000.0) / 1000.0;
            n_orders++;
        }
    assert_int_equal(n_orders, 24);
    assert_true(chi2 < 64);
}

static int open_tokenizer(void **state)
{
    (void)state;
    return tp_tokenizer_byte_level(&tokenizer);
}

static int close_tokenizer(void **state)
{
    (void)state;
    tp_tokenizer_free(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),    cmocka_unit_test(test_instruction), cmocka_unit_test(test_template_option),
        cmocka_unit_test(test_too_long), cmocka_unit_test(test_file_forms),  cmocka_unit_test(test_bos),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_permutation),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
