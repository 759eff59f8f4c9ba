/* The verbs generate and chat, as a user runs them. */
#include "cli/cli_test.h"

static const struct tp_json_value *member(const struct tp_json *json, const char *key)
{
    const struct tp_json_value *value = tp_json_get(tp_json_root(json), key);
    if (!value) fail_msg("member '%s' is missing in: %s", key, out);
    return value;
}

static int64_t integer(const struct tp_json *json, const char *key)
{
    int64_t value = -1;
    assert_int_equal(tp_json_as_int(&value, member(json, key), key), TALPA_OK);
    return value;
}

static const char *string(const struct tp_json *json, const char *key)
{
    const char *value = "";
    assert_int_equal(tp_json_as_string(&value, member(json, key), key), TALPA_OK);
    return value;
}

static void test_flags(void **state)
{
    (void)state;
    expect("generate -p a", 2, "--model");
    expect("generate -m random:tiny -p a -f b", 2, "exclude each other");
    expect("generate -m random:tiny -p a --jsonl", 2, "--jsonl");
    expect("generate -m random:tiny -p a --system b", 2, "--chat");
    expect("generate -m random:tiny -p a --top-p 1.5", 2, "--top-p");
    expect("generate -m random:tiny -p a --temp -1", 2, "--temp");
    expect("generate -m random:tiny -p a -n -3", 2, "--max-new-tokens");
    expect("generate -m random:tiny -p a --temprature 1", 2, "did you mean");
    expect("generate -m random:tiny -f @none", 66, "none");
    expect("chat", 2, "--model");
    expect("chat -m random:tiny --chat-template nosuch", 2, "nosuch");
    const char *const flags[] = {"--stop", "--repeat-last-n", "--min-p", "-ub", "-dev", "--lora", "-n, ", "-c, "};
    for (int verb = 0; verb < 2; verb++) {
        expect(verb ? "chat --help" : "generate --help", 0, NULL);
        for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) assert_non_null(strstr(out, flags[i]));
    }
}

static void test_one(void **state)
{
    (void)state;
    need_device();
    expect("generate -m random:tiny -p mole -n 8 -o json --logprobs --ignore-eos", 0, "tok/s");
    struct tp_json *json = parse(out);
    assert_int_equal(integer(json, "n"), 8);
    assert_int_equal(integer(json, "n_prompt"), 4);
    assert_int_equal(tp_json_length(member(json, "ids")), 8);
    assert_int_equal(tp_json_length(member(json, "logprobs")), 8);
    assert_string_equal(string(json, "prompt"), "mole");
    assert_string_equal(string(json, "finish"), "length");
    tp_json_free(json);
    /* The same from a file and from standard input; text alone on stdout, nothing on stderr with -q. */
    static char text[TEXT_MAX];
    expect("generate -m random:tiny -p mole -n 8 -q", 0, NULL);
    assert_string_equal(err, "");
    snprintf(text, sizeof text, "%s", out);
    assert_true(strlen(text) >= 2 && text[strlen(text) - 1] == '\n');
    write_text("prompt.txt", "mole");
    expect("generate -m random:tiny -f @prompt.txt -n 8", 0, NULL);
    assert_string_equal(out, text);
    char name[512];
    snprintf(name, sizeof name, "%s", path("prompt.txt"));
    input = name;
    expect("generate -m random:tiny -n 8 --output-file @answer.txt", 0, NULL);
    input = "/dev/null";
    assert_string_equal(out, "");
    read_text(out, sizeof out, "answer.txt");
    assert_string_equal(out, text);
}

static void test_seeds(void **state)
{
    (void)state;
    need_device();
    static char first[TEXT_MAX];
    expect("generate -m random:tiny -p mole -n 20 --temp 1.5 --top-k 0 --seed 1", 0, NULL);
    snprintf(first, sizeof first, "%s", out);
    expect("generate -m random:tiny -p mole -n 20 --temp 1.5 --top-k 0 --seed 1 -b 3 -ub 2", 0, NULL);
    assert_string_equal(out, first);
    expect("generate -m random:tiny -p mole -n 20 --temp 1.5 --top-k 0 --seed 2", 0, NULL);
    assert_string_not_equal(out, first);
}

static void test_stop(void **state)
{
    (void)state;
    need_device();
    /* The model's tokens are bytes (plus 3): a letter of the answer becomes a stop text. */
    expect("generate -m random:tiny -p mole -n 60 --temp 2 --top-k 0 --top-p 1 --min-p 0 -o json --logprobs --ignore-eos", 0, NULL);
    struct tp_json *json = parse(out);
    int64_t ids[60], at = -1;
    for (int64_t i = 0; i < 60; i++) assert_int_equal(tp_json_as_int(&ids[i], tp_json_at(member(json, "ids"), i), "ids"), TALPA_OK);
    for (int64_t i = 1; i < 60 && at < 0; i++)
        if (ids[i] - 3 > ' ' && ids[i] - 3 < 127 && ids[i] - 3 != '@' && ids[i] - 3 != '-') at = i;
    assert_true(at > 0);
    for (int64_t i = 0; i < at; i++)
        if (ids[i] == ids[at]) at = i;
    tp_json_free(json);
    char line[256];
    snprintf(line, sizeof line,
             "generate -m random:tiny -p mole -n 60 --temp 2 --top-k 0 --top-p 1 --min-p 0 -o json --ignore-eos --stop nosuch --stop %c",
             (int)(ids[at] - 3));
    expect(line, 0, NULL);
    json = parse(out);
    assert_string_equal(string(json, "finish"), "stop");
    assert_int_equal(integer(json, "n"), at);
    tp_json_free(json);
}

static void test_many(void **state)
{
    (void)state;
    need_device();
    write_text("prompts.jsonl", "{\"id\": \"a\", \"prompt\": \"one mole\"}\n\n{\"text\": \"two\", \"id\": 7}\n"
                                "{\"messages\": [{\"role\": \"user\", \"content\": \"three?\"}]}\n{\"instruction\": \"four\", \"input\": "
                                "\"x\"}\r\n{\"prompt\": \"five\"}\n");
    static char first[TEXT_MAX];
    expect("generate -m random:tiny --jsonl -f @prompts.jsonl -n 12 --temp 1 --logprobs -b 1", 0, NULL);
    snprintf(first, sizeof first, "%s", out);
    expect("generate -m random:tiny --jsonl -f @prompts.jsonl -n 12 --temp 1 --logprobs", 0, NULL);
    assert_string_equal(out, first);
    expect("generate -m random:tiny --jsonl -f @prompts.jsonl -n 12 --temp 1 --logprobs -b 3 -ub 7 -c 300", 0, NULL);
    assert_string_equal(out, first);
    static const char *const ids[] = {"a", "7", "", "", ""}, *const prompts[] = {"one mole", "two", "three?", "four", "five"};
    char *state_of_lines = NULL, *row = strtok_r(first, "\n", &state_of_lines);
    for (int i = 0; i < 5; i++, row = strtok_r(NULL, "\n", &state_of_lines)) {
        struct tp_json *json = parse(row);
        assert_int_equal(integer(json, "index"), i);
        assert_string_equal(string(json, "id"), ids[i]);
        assert_string_equal(string(json, "prompt"), prompts[i]);
        assert_true(integer(json, "n_prompt") >= (i == 2 ? 20 : 3));
        tp_json_free(json);
    }
    assert_null(row);
    expect("generate -m random:tiny --jsonl -f @prompts.jsonl -n 2 -o json", 0, NULL);
    struct tp_json *json = parse(out);
    assert_int_equal(tp_json_length(tp_json_root(json)), 5);
    tp_json_free(json);
}

static double real(const struct tp_json_value *object, const char *key)
{
    double value = -1.0;
    const struct tp_json_value *found = tp_json_get(object, key);
    if (!found) fail_msg("member '%s' is missing in: %s", key, out);
    assert_int_equal(tp_json_as_double(&value, found, key), TALPA_OK);
    return value;
}

/* Two answers of 5 tokens: 4 passes after the prompt's; seconds and rates agree with each other. */
static void test_stats(void **state)
{
    (void)state;
    need_device();
    write_text("prompts.jsonl", "{\"prompt\": \"one mole\"}\n{\"prompt\": \"two\"}\n");
    expect("generate -m random:tiny --jsonl -f @prompts.jsonl -n 5 --ignore-eos -b 1 --stats @stats.json", 0, NULL);
    read_text(out, sizeof out, "stats.json");
    struct tp_json *json = parse(out);
    const struct tp_json_value *total = member(json, "total"), *answers = member(json, "answers");
    assert_int_equal(tp_json_length(answers), 2);
    double n_prompt = 0.0, n_decode = 0.0;
    for (int64_t i = 0; i < 2; i++) {
        const struct tp_json_value *answer = tp_json_at(answers, i);
        assert_true(real(answer, "n") == 5.0 && real(answer, "n_passes") == 4.0);
        assert_true(real(answer, "prompt_s") > 0.0 && real(answer, "decode_s") > 0.0);
        n_prompt += real(answer, "n_prompt");
        n_decode += real(answer, "n_passes");
    }
    assert_true(real(total, "n_prompt_tokens") == n_prompt && real(total, "n_decode_tokens") == n_decode);
    assert_true(fabs(real(total, "decode_tokens_per_s") * real(total, "decode_s") - n_decode) < 1e-6 * n_decode);
    assert_true(real(total, "n_launches_last_pass") > 0.0 && real(total, "weight_bytes") > 0.0);
    tp_json_free(json);
    expect("generate -m random:tiny -p mole -n 3 --ignore-eos --stats @stats.json", 0, NULL);
    read_text(out, sizeof out, "stats.json");
    json = parse(out);
    assert_true(real(member(json, "total"), "first_text_s") > real(member(json, "total"), "prompt_s"));
    tp_json_free(json);
    expect("generate -m random:tiny -p mole -n 3 --stats @none/stats.json", 73, "stats.json");
}

static void test_refusals(void **state)
{
    (void)state;
    need_device();
    write_text("bad.jsonl", "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n");
    expect("generate -m random:tiny --jsonl -f @bad.jsonl", 65, "bad.jsonl:2");
    write_text("bad.jsonl", "{\"prompt\": 3}\n");
    expect("generate -m random:tiny --jsonl -f @bad.jsonl", 65, "prompt");
    write_text("bad.jsonl", "\n");
    expect("generate -m random:tiny --jsonl -f @bad.jsonl", 65, "no prompts");
    expect("generate -m random:tiny -p abcdefghij -c 10", 65, "--ctx-size");
    assert_string_equal(out, "");
    expect("generate -m random:tiny -p a -c 1000000", 2, "--ctx-size");
    expect("generate -m random:tiny", 65, "no tokens");
    expect("generate -m random:tiny -p a --lora @none", 66, NULL);
}

static void test_chat(void **state)
{
    (void)state;
    need_device();
    write_text("lines", "hello\n/reset\n\nhello\n/exit\nnot read\n");
    char name[512];
    snprintf(name, sizeof name, "%s", path("lines"));
    input = name;
    expect("chat -m random:tiny -n 9 --ignore-eos", 0, NULL);
    const size_t half = strlen(out) / 2;
    assert_true(half >= 2 && strlen(out) % 2 == 0);
    assert_memory_equal(out, out + half, half);
    /* A second question without the reset is another prompt; the context fills up and the first question goes. */
    char long_line[200], lines[1024];
    memset(long_line, 'x', sizeof long_line - 1);
    long_line[sizeof long_line - 1] = '\0';
    snprintf(lines, sizeof lines, "/system be brief\n%.60s\n%.60s\n%.60s\n", long_line, long_line, long_line);
    write_text("lines", lines);
    expect("chat -m random:tiny -n 20 -c 256", 0, "oldest questions forgotten");
    snprintf(lines, sizeof lines, "%.190s\n", long_line);
    write_text("lines", lines);
    expect("chat -m random:tiny -c 200", 65, "use a larger --ctx-size");
    input = "/dev/null";
    expect("chat -m random:tiny", 0, NULL);
}

static void test_interrupt(void **state)
{
    (void)state;
    need_device();
    FILE *file = fopen(path("many.jsonl"), "wb");
    assert_non_null(file);
    for (int i = 0; i < 3000; i++) fprintf(file, "{\"prompt\": \"number %d\"}\n", i);
    fclose(file);
    const pid_t pid = start("generate -m random:tiny --jsonl -f @many.jsonl -n 480 --ignore-eos --output-file @many.out", "out", "err");
    pause_ms(1500);
    kill(pid, SIGINT);
    assert_int_equal(finish(pid), 130);
    struct stat info;
    assert_int_not_equal(stat(path("many.out"), &info), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flags), cmocka_unit_test(test_one),      cmocka_unit_test(test_seeds), cmocka_unit_test(test_stop),
        cmocka_unit_test(test_many), cmocka_unit_test(test_stats),  cmocka_unit_test(test_refusals), cmocka_unit_test(test_chat),  cmocka_unit_test(test_interrupt),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
