#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "io/file_map.h"
#include "io/safetensors.h"

static const char path[] = "test_safetensors.tmp.safetensors";

static const float values[6] = {1, 2, 3, 4, 5, -6};
static const uint16_t halves[3] = {0x3c00, 0x4000, 0xc000};
static const int64_t longs[2] = {INT64_MIN, 5};

static const struct tp_safetensors_tensor sample[] = {
    {"layers.0.q_proj.lora_A.weight", TP_SAFETENSORS_F32, {2, {2, 3}}, values, sizeof values},
    {"half", TP_SAFETENSORS_BF16, {1, {3}}, halves, sizeof halves},
    {"empty", TP_SAFETENSORS_I32, {2, {0, 7}}, NULL, 0},
    {"long \"quoted\"", TP_SAFETENSORS_I64, {1, {2}}, longs, sizeof longs},
};

static const struct tp_safetensors_meta meta[] = {{"format", "pt"}, {"note", "\xc3\xa9\n"}};

enum { N_SAMPLE = sizeof sample / sizeof *sample };

/* The sample's file as bytes of exact size, owned by the caller. */
static uint8_t *sample_bytes(size_t *n_bytes)
{
    struct tp_file_map map;
    assert_int_equal(tp_safetensors_save(path, sample, N_SAMPLE, meta, 2), TALPA_OK);
    assert_int_equal(tp_file_map_open(&map, path), TALPA_OK);
    uint8_t *bytes = malloc(map.n_bytes);
    memcpy(bytes, map.bytes, map.n_bytes);
    *n_bytes = map.n_bytes;
    tp_file_map_close(&map);
    unlink(path);
    return bytes;
}

static enum talpa_status parse_copy(const uint8_t *bytes, size_t n_bytes)
{
    static volatile uint64_t sink;
    uint8_t *copy = malloc(n_bytes ? n_bytes : 1);
    memcpy(copy, bytes, n_bytes);
    struct tp_safetensors *file = NULL;
    const enum talpa_status status = tp_safetensors_parse(&file, copy, n_bytes, "a.st");
    for (int64_t i = 0; status == TALPA_OK && i < tp_safetensors_n_tensors(file); i++) {
        struct tp_safetensors_tensor tensor;
        if (tp_safetensors_get(&tensor, file, tp_safetensors_name(file, i)) != TALPA_OK) continue;
        for (size_t b = 0; b < tensor.n_bytes; b++) sink = sink + ((const uint8_t *)tensor.data)[b];
    }
    for (int64_t i = 0; status == TALPA_OK && i < tp_safetensors_n_meta(file); i++)
        sink = sink + strlen(tp_safetensors_meta_at(file, i).value);
    tp_safetensors_close(file);
    free(copy);
    return status;
}

static void expect_message(const char *part)
{
    if (!strstr(talpa_error_message(), part)) fail_msg("expected \"%s\" in: %s", part, talpa_error_message());
    assert_memory_equal(talpa_error_message(), "a.st: ", 6);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct tp_safetensors *file;
    assert_int_equal(tp_safetensors_save(path, sample, N_SAMPLE, meta, 2), TALPA_OK);
    assert_int_equal(tp_safetensors_open(&file, path), TALPA_OK);
    assert_string_equal(tp_safetensors_label(file), path);
    assert_int_equal(tp_safetensors_n_tensors(file), N_SAMPLE);
    for (int i = 0; i < N_SAMPLE; i++) {
        struct tp_safetensors_tensor tensor;
        assert_int_equal(tp_safetensors_get(&tensor, file, sample[i].name), TALPA_OK);
        assert_int_equal(tensor.type, sample[i].type);
        assert_int_equal(tensor.shape.rank, sample[i].shape.rank);
        for (int k = 0; k < tensor.shape.rank; k++) assert_int_equal(tensor.shape.dim[k], sample[i].shape.dim[k]);
        assert_int_equal(tensor.n_bytes, sample[i].n_bytes);
        if (tensor.n_bytes) assert_memory_equal(tensor.data, sample[i].data, tensor.n_bytes);
    }
    assert_int_equal(tp_safetensors_n_meta(file), 2);
    assert_string_equal(tp_safetensors_meta_get(file, "format"), "pt");
    assert_string_equal(tp_safetensors_meta_get(file, "note"), "\xc3\xa9\n");
    assert_null(tp_safetensors_meta_get(file, "absent"));
    struct tp_safetensors_tensor tensor;
    enum talpa_dtype dtype;
    assert_int_equal(tp_safetensors_get(&tensor, file, "absent"), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "tensor \"absent\": missing"));
    assert_false(tp_safetensors_has(file, "absent"));
    assert_int_equal(tp_safetensors_get(&tensor, file, "half"), TALPA_OK);
    assert_int_equal(tp_safetensors_dtype(&dtype, &tensor), TALPA_OK);
    assert_int_equal(dtype, TALPA_BF16);
    assert_int_equal(tp_safetensors_get(&tensor, file, "long \"quoted\""), TALPA_OK);
    assert_int_equal(tp_safetensors_dtype(&dtype, &tensor), TALPA_E_DATA);
    tp_safetensors_close(file);
    unlink(path);
}

/* Layout after the specification, checked on the raw bytes. */
static void test_written_layout(void **state)
{
    (void)state;
    size_t n_bytes;
    uint8_t *bytes = sample_bytes(&n_bytes);
    const size_t header = bytes[0] + 256u * bytes[1];
    assert_int_equal(bytes[2] + bytes[3] + bytes[4] + bytes[5] + bytes[6] + bytes[7], 0);
    assert_int_equal((8 + header) % 64, 0);
    assert_int_equal(n_bytes, 8 + header + sizeof values + sizeof halves + sizeof longs);
    assert_memory_equal(bytes + 8, "{\"__metadata__\":{\"format\":\"pt\",", 31);
    assert_memory_equal(bytes + 8 + header, values, sizeof values);
    assert_memory_equal(bytes + n_bytes - sizeof longs, longs, sizeof longs);
    free(bytes);
}

/* Header text and number of data bytes to parse. */
static enum talpa_status parse_header(const char *header, size_t data_bytes)
{
    const size_t n = strlen(header);
    uint8_t *bytes = calloc(1, 8 + n + data_bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(bytes + 8, header, n);
    const enum talpa_status status = parse_copy(bytes, 8 + n + data_bytes);
    free(bytes);
    return status;
}

static void test_accepted_headers(void **state)
{
    (void)state;
    assert_int_equal(parse_header("{}", 0), TALPA_OK);
    assert_int_equal(parse_header("{}      ", 0), TALPA_OK);
    assert_int_equal(parse_header("{\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4), TALPA_OK);
    /* Tensors need not be listed in the order of their data. */
    assert_int_equal(parse_header("{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6]},"
                                  "\"a\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                                  6),
                     TALPA_OK);
}

static void test_refused_headers(void **state)
{
    (void)state;
#define T(name, dtype, shape, offsets) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *message;
    } cases[] = {
        {"[]", 0, "begin with '{'"},
        {" {}", 0, "begin with '{'"},
        {"{\"a\"", 0, "too early"},
        {"{\"a\":1}", 0, "tensor \"a\": found a number"},
        {"{" T("a", "F32", "[1]", "[0,4]") "}", 8, "end at byte 4"},
        {"{" T("a", "F32", "[1]", "[0,4]") "}", 3, "within the 3 bytes"},
        {"{" T("a", "F32", "[2]", "[0,4]") "}", 4, "2 elements of F32"},
        {"{" T("a", "F32", "[1]", "[4,8]") "}", 8, "hole"},
        {"{" T("a", "F32", "[1]", "[0,4]") "," T("b", "F32", "[1]", "[0,4]") "}", 4, "overlaps"},
        {"{" T("a", "F32", "[1]", "[0,4]") "," T("b", "F32", "[1]", "[2,6]") "}", 6, "overlaps"},
        {"{" T("a", "F32", "[1]", "[0,4]") "," T("b", "F32", "[1]", "[8,12]") "}", 12, "hole"},
        {"{" T("a", "F32", "[1]", "[0,4]") "," T("a", "F32", "[1]", "[4,8]") "}", 8, "\"a\" given twice"},
        {"{" T("a", "F33", "[1]", "[0,4]") "}", 4, "tensor \"a\": dtype: found \"F33\""},
        {"{" T("a", "F32", "[-1]", "[0,4]") "}", 4, "negative"},
        {"{" T("a", "F32", "[1.5]", "[0,4]") "}", 4, "shape: found 1.5"},
        {"{" T("a", "F32", "[4294967296,4294967296,4]", "[0,0]") "}", 0, "overflows"},
        {"{" T("a", "I64", "[4611686018427387904]", "[0,0]") "}", 0, "shape"},
        {"{" T("a", "F32", "[1,1,1,1,1]", "[0,4]") "}", 4, "more than 4 dimensions"},
        {"{" T("a", "F32", "1", "[0,4]") "}", 4, "shape: missing or no array"},
        {"{" T("a", "F32", "[1]", "[0,4,8]") "}", 4, "data_offsets"},
        {"{" T("a", "F32", "[1]", "[4,0]") "}", 4, "data_offsets"},
        {"{" T("a", "F32", "[1]", "[-4,0]") "}", 4, "data_offsets"},
        {"{" T("a", "F32", "[1]", "[0,1e300]") "}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets: missing"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype: missing"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__: k: found 1"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{} x", 0, "more text"},
    };
#undef T
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse_header(cases[i].header, cases[i].data_bytes), TALPA_E_DATA);
        expect_message(cases[i].message);
    }
}

static void test_header_length(void **state)
{
    (void)state;
    uint8_t bytes[10] = {3, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    assert_int_equal(parse_copy(bytes, 10), TALPA_E_DATA);
    expect_message("header length 3");
    memset(bytes, 0xff, 8);
    assert_int_equal(parse_copy(bytes, 10), TALPA_E_DATA);
    memset(bytes, 0, 8);
    assert_int_equal(parse_copy(bytes, 10), TALPA_E_DATA);
}

static void test_unsupported_type_only_refused_when_asked(void **state)
{
    (void)state;
    const char *header = "{\"m\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[0,2]}}";
    uint8_t bytes[256] = {0};
    const size_t n = strlen(header);
    struct tp_safetensors *file;
    struct tp_safetensors_tensor tensor;
    bytes[0] = (uint8_t)n;
    memcpy(bytes + 8, header, n);
    assert_int_equal(tp_safetensors_parse(&file, bytes, 8 + n + 2, "a.st"), TALPA_OK);
    assert_true(tp_safetensors_has(file, "m"));
    assert_int_equal(tp_safetensors_get(&tensor, file, "m"), TALPA_E_DATA);
    expect_message("tensor \"m\": found dtype BOOL");
    tp_safetensors_close(file);
}

static void test_every_truncation(void **state)
{
    (void)state;
    size_t n_bytes;
    uint8_t *bytes = sample_bytes(&n_bytes);
    for (size_t n = 0; n < n_bytes; n++) {
        assert_int_equal(parse_copy(bytes, n), TALPA_E_DATA);
        expect_message("");
    }
    assert_int_equal(parse_copy(bytes, n_bytes), TALPA_OK);
    free(bytes);
}

static void test_random_damage(void **state)
{
    (void)state;
    size_t n_bytes, n_refused = 0;
    uint8_t *bytes = sample_bytes(&n_bytes), *copy = malloc(n_bytes);
    for (uint64_t i = 0; i < 2000; i++) {
        const uint64_t r = tp_rng_splitmix64(6, i + 1);
        memcpy(copy, bytes, n_bytes);
        copy[r % n_bytes] ^= (uint8_t)(1u << (r >> 40) % 8);
        if (i % 3 == 0) copy[(r >> 20) % n_bytes] = (uint8_t)(r >> 50);
        const enum talpa_status status = parse_copy(copy, n_bytes);
        assert_true(status == TALPA_OK || status == TALPA_E_DATA);
        if (status == TALPA_OK) continue;
        expect_message("");
        n_refused++;
    }
    assert_true(n_refused > 500);
    free(copy);
    free(bytes);
}

static void test_save_refuses(void **state)
{
    (void)state;
    struct tp_safetensors_tensor tensors[2] = {sample[0], sample[0]};
    assert_int_equal(tp_safetensors_save(path, tensors, 2, NULL, 0), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "given twice"));
    tensors[0].n_bytes = 20;
    assert_int_equal(tp_safetensors_save(path, tensors, 1, NULL, 0), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "20 bytes given"));
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(tp_safetensors_save("absent folder/a.safetensors", sample, 1, NULL, 0), TALPA_E_CREATE);
    assert_int_equal(tp_safetensors_save(path, NULL, 0, NULL, 0), TALPA_OK);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),       cmocka_unit_test(test_written_layout),
        cmocka_unit_test(test_accepted_headers), cmocka_unit_test(test_refused_headers),
        cmocka_unit_test(test_header_length),    cmocka_unit_test(test_unsupported_type_only_refused_when_asked),
        cmocka_unit_test(test_every_truncation), cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_save_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
