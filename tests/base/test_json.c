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

/* Parses from a block of exactly the text's size, so that a sanitizer sees any read beyond it. */
static enum talpa_status parse(struct tp_json **out, const char *text, size_t n_bytes)
{
    char *copy = malloc(n_bytes ? n_bytes : 1);
    memcpy(copy, text, n_bytes);
    const enum talpa_status status = tp_json_parse(out, copy, n_bytes, "f.json");
    free(copy);
    return status;
}

static struct tp_json *must_parse(const char *text)
{
    struct tp_json *json = NULL;
    if (parse(&json, text, strlen(text)) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return json;
}

static void test_getters(void **state)
{
    (void)state;
    struct tp_json *json =
        must_parse("{\"r\": 8, \"alpha\": 16.5, \"bias\": \"none\", \"rs\": true, \"n\": null, \"big\": 9007199254740993,"
                   " \"targets\": [\"q_proj\", \"k_proj\"], \"x\": -3}\n");
    const struct tp_json_value *root = tp_json_root(json);
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = "";
    assert_int_equal(tp_json_get_int(&i, root, "r"), TALPA_OK);
    assert_int_equal(i, 8);
    assert_int_equal(tp_json_get_int(&i, root, "x"), TALPA_OK);
    assert_int_equal(i, -3);
    assert_int_equal(tp_json_get_double(&d, root, "alpha"), TALPA_OK);
    assert_true(d == 16.5);
    assert_int_equal(tp_json_get_double(&d, root, "r"), TALPA_OK);
    assert_true(d == 8.0);
    assert_int_equal(tp_json_get_bool(&b, root, "rs"), TALPA_OK);
    assert_true(b);
    assert_int_equal(tp_json_get_string(&s, root, "bias"), TALPA_OK);
    assert_string_equal(s, "none");
    assert_int_equal(tp_json_get_int(&i, root, "alpha"), TALPA_E_DATA);
    assert_string_equal(talpa_error_message(), "alpha: found 16.5, expected a whole number of at most 2^53");
    assert_int_equal(tp_json_get_int(&i, root, "bias"), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "\"none\""));
    assert_int_equal(tp_json_get_string(&s, root, "absent"), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "absent: missing"));
    assert_int_equal(tp_json_get_bool(&b, root, "r"), TALPA_E_DATA);
    assert_int_equal(i, -3); /* untouched by failures */
    const struct tp_json_value *targets = tp_json_get(root, "targets");
    assert_int_equal(tp_json_length(targets), 2);
    assert_int_equal(tp_json_as_string(&s, tp_json_at(targets, 1), "targets"), TALPA_OK);
    assert_string_equal(s, "k_proj");
    assert_null(tp_json_at(targets, 2));
    assert_null(tp_json_at(targets, -1));
    assert_null(tp_json_get(targets, "x"));
    tp_json_free(json);
}

static void test_fallbacks(void **state)
{
    (void)state;
    struct tp_json *json = must_parse("{\"n\": null, \"r\": 8}");
    const struct tp_json_value *root = tp_json_root(json);
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = "";
    assert_int_equal(tp_json_get_int_or(&i, root, "absent", 5), TALPA_OK);
    assert_int_equal(i, 5);
    assert_int_equal(tp_json_get_int_or(&i, root, "n", 6), TALPA_OK);
    assert_int_equal(i, 6);
    assert_int_equal(tp_json_get_int_or(&i, root, "r", 6), TALPA_OK);
    assert_int_equal(i, 8);
    assert_int_equal(tp_json_get_double_or(&d, root, "absent", 0.25), TALPA_OK);
    assert_true(d == 0.25);
    assert_int_equal(tp_json_get_bool_or(&b, root, "absent", true), TALPA_OK);
    assert_true(b);
    assert_int_equal(tp_json_get_string_or(&s, root, "r", "x"), TALPA_E_DATA);
    assert_int_equal(tp_json_get_string_or(&s, root, "n", "x"), TALPA_OK);
    assert_string_equal(s, "x");
    tp_json_free(json);
}

static void test_iteration_and_escapes(void **state)
{
    (void)state;
    struct tp_json *json = must_parse("{\"a\\n\": 1, \"\\u00e9\\ud83d\\ude00\": [], \"c\": {}}");
    const struct tp_json_value *item = tp_json_first(tp_json_root(json));
    assert_string_equal(tp_json_key(item), "a\n");
    assert_int_equal(tp_json_type(item), TP_JSON_NUMBER);
    item = tp_json_next(item);
    assert_string_equal(tp_json_key(item), "\xc3\xa9\xf0\x9f\x98\x80");
    assert_int_equal(tp_json_type(item), TP_JSON_ARRAY);
    assert_null(tp_json_first(item));
    item = tp_json_next(item);
    assert_int_equal(tp_json_type(item), TP_JSON_OBJECT);
    assert_null(tp_json_next(item));
    assert_null(tp_json_next(NULL));
    tp_json_free(json);
}

static void test_refused_texts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "too early"},
        {" \n ", "too early"},
        {"{\"a\": 1,\n \"b\" 2}", "line 2"},
        {"{\"a\": 1}\n\nx", "line 3: found more text"},
        {"{\"a\": 1, \"b\": 2, \"a\": 3}", "\"a\" given twice"},
        {"[{\"k0\":0,\"k1\":0,\"k2\":0,\"k3\":0,\"k4\":0,\"k5\":0,\"k6\":0,\"k7\":0,\"k8\":0,\"k9\":0,\"k4\":0}]", "\"k4\" given twice"},
        {"\"a\nb\"", "control character"},
        {"\"\xff\"", "UTF-8"},
        {"\"a\\u0000b\"", "\\u0000"},
        {"\"abc", "inside a string"},
        {"\"abc\\", "inside a string"},
        {"\"\\ud800\"", "not valid"},
        {"{\"a\"", "too early"},
        {"[1, 2", "too early"},
        {"nul", "f.json"},
        {"[\xc3\xa9]", "not ASCII"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tp_json *json = NULL;
        assert_int_equal(parse(&json, cases[i].text, strlen(cases[i].text)), TALPA_E_DATA);
        assert_null(json);
        if (!strstr(talpa_error_message(), cases[i].message)) fail_msg("%s: %s", cases[i].text, talpa_error_message());
        assert_memory_equal(talpa_error_message(), "f.json: ", 8);
    }
    struct tp_json *json = NULL;
    assert_int_equal(parse(&json, "[1,\0 2]", 7), TALPA_E_DATA);
}

static void test_nesting_limit(void **state)
{
    (void)state;
    char text[200001];
    struct tp_json *json = NULL;
    for (int depth = 64; depth <= 65; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        assert_int_equal(parse(&json, text, 2 * (size_t)depth), depth == 64 ? TALPA_OK : TALPA_E_DATA);
        tp_json_free(depth == 64 ? json : NULL);
    }
    memset(text, '[', 200000);
    assert_int_equal(parse(&json, text, 200000), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "64"));
}

static void test_truncations_never_crash(void **state)
{
    (void)state;
    const char *text = "{\"a\": [1, -2.5e3, true, false, null, \"x\\u00e9\\n\"], \"b\": {\"c\": \"\xc3\xa9\"}, \"1\":1}";
    for (size_t n = 0; n < strlen(text); n++) {
        struct tp_json *json = NULL;
        assert_int_equal(parse(&json, text, n), TALPA_E_DATA);
    }
}

static void test_files(void **state)
{
    (void)state;
    struct tp_json *json = NULL;
    assert_int_equal(tp_json_parse_file(&json, "no such folder/x.json"), TALPA_E_NO_INPUT);
    assert_non_null(strstr(talpa_error_message(), "no such folder/x.json"));
    const char *path = "test_json.tmp.json";
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs("[", file);
    for (int i = 0; i < 20000; i++) fprintf(file, "%d, ", i);
    fputs("7]\n", file);
    fclose(file);
    assert_int_equal(tp_json_parse_file(&json, path), TALPA_OK);
    assert_int_equal(tp_json_length(tp_json_root(json)), 20001);
    tp_json_free(json);
    remove(path);
}

static void write_sample(struct tp_json_writer *writer)
{
    tp_json_write_object_begin(writer);
    tp_json_write_int_member(writer, "seed", INT64_MIN);
    tp_json_write_string_member(writer, "text", "a\"\\\n\t\x01\xc3\xa9\xff");
    tp_json_write_key(writer, "list");
    tp_json_write_array_begin(writer);
    tp_json_write_real(writer, 0.1);
    tp_json_write_real(writer, (double)NAN);
    tp_json_write_bool(writer, true);
    tp_json_write_string(writer, NULL);
    tp_json_write_array_begin(writer);
    tp_json_write_array_end(writer);
    tp_json_write_array_end(writer);
    tp_json_write_key(writer, "empty");
    tp_json_write_object_begin(writer);
    tp_json_write_object_end(writer);
    tp_json_write_bool_member(writer, "b", false);
    tp_json_write_real_member(writer, "lr", 1e-4);
    tp_json_write_object_end(writer);
}

static void test_writer_compact_and_indented(void **state)
{
    (void)state;
    struct tp_json_writer *writer;
    const char *text;
    size_t n_bytes;
    assert_int_equal(tp_json_writer_create(&writer, 0), TALPA_OK);
    write_sample(writer);
    assert_int_equal(tp_json_writer_text(&text, &n_bytes, writer), TALPA_OK);
    assert_string_equal(text, "{\"seed\":-9223372036854775808,\"text\":\"a\\\"\\\\\\n\\t\\u0001\xc3\xa9\xef\xbf\xbd\","
                              "\"list\":[0.1,null,true,null,[]],\"empty\":{},\"b\":false,\"lr\":0.0001}");
    assert_int_equal(n_bytes, strlen(text));
    tp_json_writer_free(writer);
    assert_int_equal(tp_json_writer_create(&writer, 2), TALPA_OK);
    write_sample(writer);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_OK);
    assert_string_equal(text, "{\n  \"seed\": -9223372036854775808,\n  \"text\": \"a\\\"\\\\\\n\\t\\u0001\xc3\xa9\xef\xbf\xbd\",\n"
                              "  \"list\": [\n    0.1,\n    null,\n    true,\n    null,\n    []\n  ],\n  \"empty\": {},\n"
                              "  \"b\": false,\n  \"lr\": 0.0001\n}");
    tp_json_writer_reset(writer);
    tp_json_write_real(writer, (double)0.1f);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_OK);
    assert_true(strtof(text, NULL) == 0.1f);
    tp_json_writer_free(writer);
}

static void test_writer_refuses_disorder(void **state)
{
    (void)state;
    struct tp_json_writer *writer;
    const char *text;
    assert_int_equal(tp_json_writer_create(&writer, 0), TALPA_OK);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_E_INTERNAL);
    tp_json_writer_reset(writer);
    tp_json_write_object_begin(writer);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_E_INTERNAL);
    tp_json_writer_reset(writer);
    tp_json_write_object_begin(writer);
    tp_json_write_int(writer, 1);
    tp_json_write_object_end(writer);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_E_INTERNAL);
    tp_json_writer_reset(writer);
    tp_json_write_array_begin(writer);
    tp_json_write_object_end(writer);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_E_INTERNAL);
    tp_json_writer_reset(writer);
    tp_json_write_int(writer, 1);
    tp_json_write_int(writer, 2);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_E_INTERNAL);
    tp_json_writer_reset(writer);
    for (int i = 0; i < 1000; i++) tp_json_write_array_begin(writer);
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_E_INTERNAL);
    tp_json_writer_free(writer);
}

static void test_copying_a_value(void **state)
{
    (void)state;
    const char *source = "{\"a\":[1,2.5,\"x\\n\",true,null],\"b\":{\"c\":9007199254740991,\"d\":0.10000000000000001}}";
    struct tp_json *json = must_parse(source);
    struct tp_json_writer *writer;
    const char *text;
    assert_int_equal(tp_json_writer_create(&writer, 0), TALPA_OK);
    tp_json_write_value(writer, tp_json_root(json));
    assert_int_equal(tp_json_writer_text(&text, NULL, writer), TALPA_OK);
    assert_string_equal(text, source);
    tp_json_writer_free(writer);
    tp_json_free(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_getters),
        cmocka_unit_test(test_fallbacks),
        cmocka_unit_test(test_iteration_and_escapes),
        cmocka_unit_test(test_refused_texts),
        cmocka_unit_test(test_nesting_limit),
        cmocka_unit_test(test_truncations_never_crash),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_writer_compact_and_indented),
        cmocka_unit_test(test_writer_refuses_disorder),
        cmocka_unit_test(test_copying_a_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
