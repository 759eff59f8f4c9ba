#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/rng.h"
#include "io/gguf.h"
#include "io/gguf_write.h"

struct file {
    uint8_t *bytes;
    size_t n_bytes;
};

static float weights[4 * 64];
static uint8_t blocks[4 * 40];

static struct tp_gguf_writer *sample_writer(void)
{
    static const char *const tokens[] = {"<s>", "", "a b"};
    static const int32_t ids[] = {1, -2, 3};
    static const float scores[] = {0.5f, -1.0f};
    struct tp_gguf_writer *writer;
    tp_rng_fill_splitmix(weights, 4 * 64, 1, 0, 1.0);
    tp_dtype_from_f32(blocks, weights, TALPA_Q4_1, 4 * 64);
    assert_int_equal(tp_gguf_write_create(&writer), TALPA_OK);
    tp_gguf_write_string(writer, "general.architecture", "llama");
    tp_gguf_write_u32(writer, "llama.block_count", 2);
    tp_gguf_write_i32(writer, "i", -7);
    tp_gguf_write_u64(writer, "big", UINT64_MAX);
    tp_gguf_write_f32(writer, "eps", 0.25f);
    tp_gguf_write_bool(writer, "flag", true);
    tp_gguf_write_string_array(writer, "tokens", tokens, 3);
    tp_gguf_write_i32_array(writer, "ids", ids, 3);
    tp_gguf_write_f32_array(writer, "scores", scores, 2);
    tp_gguf_write_tensor(writer, "norm.weight", TALPA_F32, &(struct talpa_shape){1, {3}}, weights);
    tp_gguf_write_tensor(writer, "blk.0.attn_q.weight", TALPA_Q4_1, &(struct talpa_shape){2, {4, 64}}, blocks);
    return writer;
}

static struct file sample(void)
{
    struct file file;
    struct tp_gguf_writer *writer = sample_writer();
    assert_int_equal(tp_gguf_write_bytes(&file.bytes, &file.n_bytes, writer), TALPA_OK);
    tp_gguf_write_free(writer);
    return file;
}

/* Reads everything there is, so that a sanitizer sees a wrong pointer. */
static uint64_t read_everything(const struct tp_gguf *gguf)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < tp_gguf_n_keys(gguf); i++) {
        const char *key = tp_gguf_key(gguf, i), *string;
        const enum tp_gguf_type type = tp_gguf_key_type(gguf, i);
        int64_t integer;
        double real;
        bool flag;
        size_t n;
        struct tp_gguf_array array;
        if (tp_gguf_get_int(&integer, gguf, key) == TALPA_OK) sum += (uint64_t)integer;
        if (tp_gguf_get_float(&real, gguf, key) == TALPA_OK) sum += real > 0.0;
        if (tp_gguf_get_bool(&flag, gguf, key) == TALPA_OK) sum += flag;
        if (tp_gguf_get_string(&string, &n, gguf, key) == TALPA_OK) sum += strlen(string) + n;
        for (int t = 0; type == TP_GGUF_ARRAY && t < TP_GGUF_N_TYPES; t++) {
            if (tp_gguf_get_array(&array, gguf, key, (enum tp_gguf_type)t) != TALPA_OK) continue;
            for (int64_t k = 0; k < array.n && t != TP_GGUF_ARRAY; k++) {
                if (t != TP_GGUF_STRING) {
                    sum += (uint64_t)tp_gguf_array_int(&array, k) + (tp_gguf_array_float(&array, k) > 0.0);
                    continue;
                }
                const struct tp_gguf_string token = tp_gguf_array_string(&array, k);
                for (size_t b = 0; b < token.n_bytes; b++) sum += (unsigned char)token.bytes[b];
            }
        }
    }
    for (int64_t i = 0; i < tp_gguf_n_tensors(gguf); i++) {
        struct tp_gguf_tensor tensor;
        sum += strlen(tp_gguf_tensor_type_name(gguf, i));
        if (tp_gguf_tensor_get(&tensor, gguf, tp_gguf_tensor_name(gguf, i)) != TALPA_OK) continue;
        for (size_t b = 0; b < tensor.n_bytes; b++) sum += ((const uint8_t *)tensor.data)[b];
    }
    return sum;
}

/* Parses a copy of exactly n_bytes. */
static enum talpa_status parse_copy(const uint8_t *bytes, size_t n_bytes)
{
    static volatile uint64_t sink;
    uint8_t *copy = malloc(n_bytes ? n_bytes : 1);
    memcpy(copy, bytes, n_bytes);
    struct tp_gguf *gguf = NULL;
    const enum talpa_status status = tp_gguf_parse(&gguf, copy, n_bytes, "m.gguf");
    if (status == TALPA_OK)
        sink = sink + read_everything(gguf);
    else
        assert_null(gguf);
    tp_gguf_close(gguf);
    free(copy);
    return status;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct file file = sample();
    struct tp_gguf *gguf;
    assert_int_equal(tp_gguf_parse(&gguf, file.bytes, file.n_bytes, "m.gguf"), TALPA_OK);
    int64_t i;
    double d;
    bool b;
    const char *s;
    size_t n;
    struct tp_gguf_array array;
    struct tp_gguf_tensor tensor;
    assert_int_equal(tp_gguf_n_keys(gguf), 9);
    assert_int_equal(tp_gguf_get_string(&s, NULL, gguf, "general.architecture"), TALPA_OK);
    assert_string_equal(s, "llama");
    assert_int_equal(tp_gguf_get_string(&s, &n, gguf, "general.architecture"), TALPA_OK);
    assert_int_equal(n, 5);
    assert_int_equal(tp_gguf_get_int(&i, gguf, "llama.block_count"), TALPA_OK);
    assert_int_equal(i, 2);
    assert_int_equal(tp_gguf_get_int(&i, gguf, "i"), TALPA_OK);
    assert_int_equal(i, -7);
    assert_int_equal(tp_gguf_get_float(&d, gguf, "eps"), TALPA_OK);
    assert_true(d == 0.25);
    assert_int_equal(tp_gguf_get_bool(&b, gguf, "flag"), TALPA_OK);
    assert_true(b);
    assert_int_equal(tp_gguf_get_array(&array, gguf, "tokens", TP_GGUF_STRING), TALPA_OK);
    assert_int_equal(array.n, 3);
    assert_int_equal(tp_gguf_array_string(&array, 1).n_bytes, 0);
    assert_int_equal(tp_gguf_array_string(&array, 2).n_bytes, 3);
    assert_memory_equal(tp_gguf_array_string(&array, 2).bytes, "a b", 3);
    assert_int_equal(tp_gguf_get_array(&array, gguf, "ids", TP_GGUF_INT32), TALPA_OK);
    assert_int_equal(tp_gguf_array_int(&array, 1), -2);
    assert_int_equal(tp_gguf_get_array(&array, gguf, "scores", TP_GGUF_FLOAT32), TALPA_OK);
    assert_true(tp_gguf_array_float(&array, 1) == -1.0);
    assert_int_equal(tp_gguf_tensor_get(&tensor, gguf, "blk.0.attn_q.weight"), TALPA_OK);
    assert_int_equal(tensor.dtype, TALPA_Q4_1);
    assert_int_equal(tensor.shape.rank, 2);
    assert_int_equal(tensor.shape.dim[0], 4);
    assert_int_equal(tensor.shape.dim[1], 64);
    assert_int_equal(tensor.n_bytes, sizeof blocks);
    assert_memory_equal(tensor.data, blocks, sizeof blocks);
    assert_int_equal(((const uint8_t *)tensor.data - file.bytes) % 32, 0);
    assert_int_equal(tp_gguf_tensor_get(&tensor, gguf, "norm.weight"), TALPA_OK);
    assert_memory_equal(tensor.data, weights, 12);
    tp_gguf_close(gguf);
    free(file.bytes);
}

static void expect_message(const char *part)
{
    if (!strstr(talpa_error_message(), part)) fail_msg("expected \"%s\" in: %s", part, talpa_error_message());
    assert_memory_equal(talpa_error_message(), "m.gguf: ", 8);
}

static void test_getters_refuse(void **state)
{
    (void)state;
    struct file file = sample();
    struct tp_gguf *gguf;
    assert_int_equal(tp_gguf_parse(&gguf, file.bytes, file.n_bytes, "m.gguf"), TALPA_OK);
    int64_t i = 99;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    struct tp_gguf_array array;
    struct tp_gguf_tensor tensor;
    assert_int_equal(tp_gguf_get_int(&i, gguf, "absent"), TALPA_E_DATA);
    expect_message("key \"absent\": missing, expected an integer");
    assert_int_equal(tp_gguf_get_int(&i, gguf, "eps"), TALPA_E_DATA);
    expect_message("key \"eps\": found a value of type f32, expected an integer");
    assert_int_equal(tp_gguf_get_int(&i, gguf, "big"), TALPA_E_DATA);
    expect_message("18446744073709551615");
    assert_int_equal(tp_gguf_get_int(&i, gguf, "flag"), TALPA_E_DATA);
    assert_int_equal(tp_gguf_get_int(&i, gguf, "general.architecture"), TALPA_E_DATA);
    assert_int_equal(tp_gguf_get_float(&d, gguf, "tokens"), TALPA_E_DATA);
    expect_message("array of string");
    assert_int_equal(tp_gguf_get_array(&array, gguf, "ids", TP_GGUF_STRING), TALPA_E_DATA);
    expect_message("expected an array of string");
    assert_int_equal(tp_gguf_tensor_get(&tensor, gguf, "output.weight"), TALPA_E_DATA);
    expect_message("tensor \"output.weight\": missing");
    assert_int_equal(i, 99);
    assert_int_equal(tp_gguf_get_int_or(&i, gguf, "absent", 4), TALPA_OK);
    assert_int_equal(i, 4);
    assert_int_equal(tp_gguf_get_float_or(&d, gguf, "absent", 0.5), TALPA_OK);
    assert_true(d == 0.5);
    assert_int_equal(tp_gguf_get_bool_or(&b, gguf, "absent", true), TALPA_OK);
    assert_true(b);
    assert_int_equal(tp_gguf_get_string_or(&s, gguf, "absent", "none"), TALPA_OK);
    assert_string_equal(s, "none");
    assert_int_equal(tp_gguf_get_string_or(&s, gguf, "i", "none"), TALPA_E_DATA);
    tp_gguf_close(gguf);
    free(file.bytes);
}

/* Writes `bytes` over the first occurrence of `pattern` plus `skip`, parses, and restores. */
static enum talpa_status parse_patched(struct file *file, const char *pattern, size_t skip, const void *bytes, size_t n_bytes)
{
    const size_t n = strlen(pattern);
    for (size_t at = 0; at + n + skip + n_bytes <= file->n_bytes; at++) {
        if (memcmp(file->bytes + at, pattern, n) != 0) continue;
        uint8_t old[64];
        memcpy(old, file->bytes + at + n + skip, n_bytes);
        memcpy(file->bytes + at + n + skip, bytes, n_bytes);
        const enum talpa_status status = parse_copy(file->bytes, file->n_bytes);
        memcpy(file->bytes + at + n + skip, old, n_bytes);
        return status;
    }
    fail_msg("pattern not found: %s", pattern);
    return TALPA_OK;
}

static void test_malformed_fields(void **state)
{
    (void)state;
    struct file file = sample();
    static const struct {
        const char *pattern;
        size_t skip;
        uint64_t value;
        size_t n_bytes;
        const char *message;
    } cases[] = {
        {"", 0, 0x46475547, 4, "expected \"GGUF\""},
        {"GGUF", 0, 1, 4, "version 1, expected 2 or 3"},
        {"GGUF", 0, 0x03000000, 4, "big-endian"},
        {"GGUF", 4, 1000, 8, "tensor count 1000"},
        {"GGUF", 4, UINT64_MAX, 8, "tensor count"},
        {"GGUF", 12, UINT64_MAX / 2, 8, "key count"},
        {"GGUF", 20, 0, 8, "length 0, expected 1"},
        {"GGUF", 20, UINT64_MAX, 8, "expected 18446744073709551615 bytes"},
        {"llama.block_count", 0, 13, 4, "value type 13"},
        {"flag", 4, 2, 1, "key \"flag\": found bool 2"},
        {"tokens", 4, 99, 4, "value type 99"},
        {"tokens", 8, UINT64_MAX / 4, 8, "key \"tokens\": array of"},
        {"ids", 8, INT64_MAX, 8, "key \"ids\": array of"},
        {"norm.weight", 0, 5, 4, "5 dimensions, expected at most 4"},
        {"norm.weight", 4, 0, 8, "dimension 0 is 0"},
        {"norm.weight", 4, INT64_MAX, 8, "tensor \"norm.weight\": "},
        {"blk.0.attn_q.weight", 4, 33, 8, "rows of 33 elements"},
        {"blk.0.attn_q.weight", 12, INT64_MAX / 4, 8, "overflows"},
        {"blk.0.attn_q.weight", 12, 5, 8, "tensor \"blk.0.attn_q.weight\": 200 bytes"},
        {"blk.0.attn_q.weight", 24, 33, 8, "multiple of the alignment 32"},
        {"blk.0.attn_q.weight", 24, UINT64_MAX - 31, 8, "is it complete"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t value[8];
        for (int b = 0; b < 8; b++) value[b] = (uint8_t)(cases[i].value >> 8 * b);
        assert_int_equal(parse_patched(&file, cases[i].pattern, cases[i].skip, value, cases[i].n_bytes), TALPA_E_DATA);
        expect_message(cases[i].message);
    }
    assert_int_equal(parse_patched(&file, "flag", 0, "", 0), TALPA_OK);
    free(file.bytes);
}

static void test_duplicates(void **state)
{
    (void)state;
    struct file file;
    struct tp_gguf_writer *writer = sample_writer();
    tp_gguf_write_u32(writer, "i", 1);
    assert_int_equal(tp_gguf_write_bytes(&file.bytes, &file.n_bytes, writer), TALPA_OK);
    assert_int_equal(parse_copy(file.bytes, file.n_bytes), TALPA_E_DATA);
    expect_message("key \"i\" given twice");
    tp_gguf_write_free(writer);
    free(file.bytes);
    writer = sample_writer();
    tp_gguf_write_tensor(writer, "norm.weight", TALPA_F32, &(struct talpa_shape){1, {3}}, weights);
    assert_int_equal(tp_gguf_write_bytes(&file.bytes, &file.n_bytes, writer), TALPA_OK);
    assert_int_equal(parse_copy(file.bytes, file.n_bytes), TALPA_E_DATA);
    expect_message("tensor \"norm.weight\" given twice");
    tp_gguf_write_free(writer);
    free(file.bytes);
}

static void test_alignment_key(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 3, 1u << 31};
    for (size_t i = 0; i < 3; i++) {
        struct file file;
        struct tp_gguf_writer *writer;
        assert_int_equal(tp_gguf_write_create(&writer), TALPA_OK);
        tp_gguf_write_u32(writer, "general.alignment", bad[i]);
        assert_int_equal(tp_gguf_write_bytes(&file.bytes, &file.n_bytes, writer), TALPA_OK);
        assert_int_equal(parse_copy(file.bytes, file.n_bytes), TALPA_E_DATA);
        expect_message("general.alignment");
        tp_gguf_write_free(writer);
        free(file.bytes);
    }
}

static void test_unknown_type_only_refused_when_asked(void **state)
{
    (void)state;
    struct file file = sample();
    const uint8_t q2_k[4] = {10}, strange[4] = {200};
    size_t at = 0;
    while (memcmp(file.bytes + at, "blk.0.attn_q.weight", 19) != 0) at++;
    for (int k = 0; k < 2; k++) {
        struct tp_gguf *gguf;
        struct tp_gguf_tensor tensor;
        memcpy(file.bytes + at + 19 + 4 + 16, k ? strange : q2_k, 4);
        assert_int_equal(tp_gguf_parse(&gguf, file.bytes, file.n_bytes, "m.gguf"), TALPA_OK);
        assert_int_equal(tp_gguf_tensor_get(&tensor, gguf, "norm.weight"), TALPA_OK);
        assert_true(tp_gguf_has_tensor(gguf, "blk.0.attn_q.weight"));
        assert_int_equal(tp_gguf_tensor_get(&tensor, gguf, "blk.0.attn_q.weight"), TALPA_E_DATA);
        expect_message(k ? "found element type type 200" : "found element type Q2_K");
        tp_gguf_close(gguf);
    }
    free(file.bytes);
}

static void test_every_truncation(void **state)
{
    (void)state;
    struct file file = sample();
    /* Nothing of the last tensor's padding is needed, so only lengths up to its last byte must fail. */
    const size_t needed = file.n_bytes - (32 - sizeof blocks % 32) % 32;
    for (size_t n = 0; n < file.n_bytes; n++) {
        assert_int_equal(parse_copy(file.bytes, n), n < needed ? TALPA_E_DATA : TALPA_OK);
        if (n < needed) expect_message("");
    }
    free(file.bytes);
}

static void test_random_damage(void **state)
{
    (void)state;
    struct file file = sample();
    size_t n_refused = 0;
    for (uint64_t i = 0; i < 3000; i++) {
        struct file copy = {.bytes = malloc(file.n_bytes), .n_bytes = file.n_bytes};
        memcpy(copy.bytes, file.bytes, file.n_bytes);
        const uint64_t r = tp_rng_splitmix64(5, i + 1);
        const size_t span = i < 2000 ? file.n_bytes - sizeof blocks - 64 : file.n_bytes;
        copy.bytes[r % span] ^= (uint8_t)(1u << (r >> 40) % 8);
        if (i % 3 == 0) copy.bytes[(r >> 20) % span] = (uint8_t)(r >> 50);
        const enum talpa_status status = parse_copy(copy.bytes, copy.n_bytes);
        assert_true(status == TALPA_OK || status == TALPA_E_DATA);
        if (status != TALPA_OK) {
            expect_message("");
            n_refused++;
        }
        free(copy.bytes);
    }
    assert_true(n_refused > 500);
    free(file.bytes);
}

static void test_nested_arrays(void **state)
{
    (void)state;
    for (unsigned depth = 1; depth <= 8; depth++) {
        uint8_t bytes[256] = "GGUF\3\0\0\0";
        size_t n = 16;
        bytes[n] = 1;
        n += 8;
        bytes[n] = 1;
        n += 8;
        bytes[n++] = 'k';
        bytes[n] = TP_GGUF_ARRAY;
        n += 4;
        for (unsigned i = 1; i < depth; i++) {
            bytes[n] = TP_GGUF_ARRAY;
            bytes[n + 4] = 1;
            n += 12;
        }
        bytes[n] = TP_GGUF_UINT8;
        bytes[n + 4] = 2;
        n += 12 + 2;
        assert_int_equal(parse_copy(bytes, n), depth <= 5 ? TALPA_OK : TALPA_E_DATA);
        if (depth > 5) expect_message("nested deeper");
        assert_int_equal(parse_copy(bytes, n - 1), TALPA_E_DATA);
    }
}

static void test_files(void **state)
{
    (void)state;
    struct tp_gguf *gguf;
    struct tp_gguf_writer *writer = sample_writer();
    const char *path = "test_gguf.tmp.gguf";
    size_t n_bytes;
    assert_int_equal(tp_gguf_open(&gguf, "absent.gguf"), TALPA_E_NO_INPUT);
    assert_int_equal(tp_gguf_write_save(writer, path), TALPA_OK);
    assert_int_equal(tp_gguf_open(&gguf, path), TALPA_OK);
    assert_string_equal(tp_gguf_label(gguf), path);
    struct file file = sample();
    const void *bytes = tp_gguf_bytes(&n_bytes, gguf);
    assert_int_equal(n_bytes, file.n_bytes);
    assert_memory_equal(bytes, file.bytes, n_bytes);
    tp_gguf_close(gguf);
    assert_int_equal(tp_gguf_write_save(writer, "absent folder/x.gguf"), TALPA_E_CREATE);
    tp_gguf_write_free(writer);
    free(file.bytes);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),       cmocka_unit_test(test_getters_refuse),
        cmocka_unit_test(test_malformed_fields), cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_alignment_key),    cmocka_unit_test(test_unknown_type_only_refused_when_asked),
        cmocka_unit_test(test_every_truncation), cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_nested_arrays),    cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
