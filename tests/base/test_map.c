#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/map.h"
#include "base/utf8.h"

static void test_put_get_replace(void **state)
{
    (void)state;
    struct tp_map map = {0};
    int64_t value = -5;
    assert_false(tp_map_get_string(&value, &map, "a"));
    assert_int_equal(value, -5);
    char key[] = "abc";
    assert_int_equal(tp_map_put_string(&map, key, 1), TALPA_OK);
    key[0] = 'x'; /* the map has its own copy */
    assert_true(tp_map_get_string(&value, &map, "abc"));
    assert_int_equal(value, 1);
    assert_int_equal(tp_map_put_string(&map, "abc", INT64_MIN), TALPA_OK);
    assert_true(tp_map_get_string(&value, &map, "abc"));
    assert_true(value == INT64_MIN);
    assert_int_equal(map.n_keys, 1);
    assert_false(tp_map_get_string(&value, &map, "ab"));
    tp_map_free(&map);
    assert_false(tp_map_get_string(&value, &map, "abc"));
}

static void test_keys_are_bytes(void **state)
{
    (void)state;
    struct tp_map map = {0};
    int64_t value = 0;
    assert_int_equal(tp_map_put(&map, "", 0, 10), TALPA_OK);
    assert_int_equal(tp_map_put(&map, "\0", 1, 11), TALPA_OK);
    assert_int_equal(tp_map_put(&map, "\0\0", 2, 12), TALPA_OK);
    assert_int_equal(tp_map_put(&map, "a\0b", 3, 13), TALPA_OK);
    assert_int_equal(map.n_keys, 4);
    assert_true(tp_map_get(&value, &map, "", 0) && value == 10);
    assert_true(tp_map_get(&value, &map, "\0\0", 2) && value == 12);
    assert_true(tp_map_get(&value, &map, "a\0b", 3) && value == 13);
    assert_false(tp_map_get(&value, &map, "a\0c", 3));
    tp_map_free(&map);
}

static void test_many_keys_survive_growth(void **state)
{
    (void)state;
    struct tp_map map = {0};
    char key[32];
    const int n = 20000;
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "token %d", i);
        assert_int_equal(tp_map_put_string(&map, key, i), TALPA_OK);
    }
    assert_int_equal(map.n_keys, n);
    for (int i = 0; i < n; i++) {
        int64_t value = -1;
        snprintf(key, sizeof key, "token %d", i);
        assert_true(tp_map_get_string(&value, &map, key));
        assert_int_equal(value, i);
        snprintf(key, sizeof key, "token %d", i + n);
        assert_false(tp_map_get_string(&value, &map, key));
    }
    const size_t n_slots = map.n_slots;
    assert_int_equal(tp_map_reserve(&map, 10), TALPA_OK);
    assert_int_equal(map.n_slots, n_slots);
    tp_map_free(&map);
}

/* Digest of the empty input, from the XXH3 reference implementation. */
static void test_hash(void **state)
{
    (void)state;
    char hex[TP_HASH_HEX_BYTES];
    assert_string_equal(tp_hash_hex(hex, tp_hash_bytes(NULL, 0)), "2d06800538d394c2");
    assert_string_equal(tp_hash_hex(hex, 0x1f), "000000000000001f");
    unsigned char bytes[5000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 31 >> 3);
    struct tp_hash *hash;
    assert_int_equal(tp_hash_create(&hash), TALPA_OK);
    for (size_t at = 0, step = 0; at < sizeof bytes; at += step, step = step * 3 + 1) {
        const size_t rest = sizeof bytes - at;
        tp_hash_update(hash, bytes + at, step < rest ? step : rest);
        if (step > rest) break;
    }
    assert_true(tp_hash_digest(hash) == tp_hash_bytes(bytes, sizeof bytes));
    tp_hash_free(hash);
}

static void test_utf8(void **state)
{
    (void)state;
    uint32_t code_point = 0;
    assert_int_equal(tp_utf8_decode(&code_point, "\xc3\xa9", 2), 2);
    assert_int_equal(code_point, 0xe9);
    assert_int_equal(tp_utf8_decode(&code_point, "\xf0\x9f\x98\x80", 4), 4);
    assert_int_equal(code_point, 0x1f600);
    static const char *const malformed[] = {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                            "\xff", "\xc3(",    "\xe2\x82"};
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++)
        assert_int_equal(tp_utf8_decode(&code_point, malformed[i], strlen(malformed[i])), 0);
    assert_int_equal(tp_utf8_decode(&code_point, "a", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_put_get_replace),
        cmocka_unit_test(test_keys_are_bytes),
        cmocka_unit_test(test_many_keys_survive_growth),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
