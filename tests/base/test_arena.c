#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/arena.h"
#include "talpa/status.h"

static void test_alloc_is_zeroed_aligned_and_separate(void **state)
{
    (void)state;
    struct tp_arena arena = {0};
    unsigned char *blocks[400];
    size_t sizes[400];
    for (int i = 0; i < 400; i++) {
        sizes[i] = i % 50 == 49 ? 40000 + (size_t)i : (size_t)(i * 7 % 1000);
        blocks[i] = tp_arena_alloc(&arena, sizes[i]);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % 16, 0);
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(blocks[i][k], 0);
        memset(blocks[i], i & 255, sizes[i]);
    }
    for (int i = 0; i < 400; i++)
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(blocks[i][k], i & 255);
    tp_arena_free(&arena);
    assert_null(arena.head);
    assert_non_null(tp_arena_alloc(&arena, 1));
    tp_arena_free(&arena);
}

static void test_strings(void **state)
{
    (void)state;
    struct tp_arena arena = {0};
    assert_string_equal(tp_arena_strdup(&arena, "layer"), "layer");
    assert_string_equal(tp_arena_strndup(&arena, "layer", 3), "lay");
    assert_string_equal(tp_arena_strndup(&arena, "", 0), "");
    assert_string_equal(tp_arena_printf(&arena, "blk.%d.%s", 12, "attn_q"), "blk.12.attn_q");
    char *wide = tp_arena_printf(&arena, "%*d", 70000, 5);
    assert_int_equal(strlen(wide), 70000);
    tp_arena_free(&arena);
}

static void test_overflow_is_refused(void **state)
{
    (void)state;
    struct tp_arena arena = {0};
    assert_null(tp_arena_array(&arena, SIZE_MAX / 2, 3));
    assert_non_null(strstr(talpa_error_message(), "memory"));
    assert_null(tp_arena_alloc(&arena, SIZE_MAX));
    assert_non_null(tp_arena_array(&arena, 0, 8));
    tp_arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc_is_zeroed_aligned_and_separate),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_overflow_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
