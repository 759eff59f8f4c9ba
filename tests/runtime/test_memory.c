/* Buffers, views, transfers, the account, CLBlast's GEMM. */
#include <math.h>

#include "runtime/blas.h"
#include "runtime/memory.h"
#include "runtime/queue.h"
#include "runtime_test.h"

static void write_fill_copy_read(void **state)
{
    struct tp_device *device = *state;
    struct tp_buffer *a, *b;
    assert_ok(tp_buffer_create(&a, device, 4096));
    assert_ok(tp_buffer_create(&b, device, 4096));
    uint8_t source[4096], result[4096], expected[4096];
    for (size_t i = 0; i < sizeof source; ++i) source[i] = (uint8_t)(i * 7 + i / 256);
    assert_ok(tp_buffer_write(a, 0, source, 4096, false));
    assert_ok(tp_buffer_fill(a, 100, 50, 0xab));
    assert_ok(tp_buffer_fill_u32(a, 200, 8, 0x01020304u));
    assert_ok(tp_buffer_fill(b, 0, 4096, 0));
    assert_ok(tp_buffer_copy(b, 1000, a, 64, 1000));
    assert_ok(tp_buffer_read(result, b, 0, 4096, true));
    memset(expected, 0, sizeof expected);
    memcpy(expected + 1000, source + 64, 1000);
    memset(expected + 1000 + 36, 0xab, 50);
    memcpy(expected + 1000 + 136, "\4\3\2\1\4\3\2\1", 8);
    assert_memory_equal(result, expected, sizeof result);
    /* Not blocking, then finish; offsets on both sides. */
    memset(result, 0, sizeof result);
    assert_ok(tp_buffer_read(result + 5, a, 3000, 11, false));
    assert_ok(tp_queue_finish(device));
    assert_memory_equal(result + 5, source + 3000, 11);
    assert_int_equal(result[16], 0);
    /* Empty transfers are allowed, also at the end. */
    assert_ok(tp_buffer_write(a, 4096, source, 0, true));
    assert_ok(tp_buffer_read(result, a, 4096, 0, true));
    assert_ok(tp_buffer_fill(a, 4096, 0, 1));
    tp_buffer_free(a);
    tp_buffer_free(b);
    tp_buffer_free(NULL);
}

static void ranges_are_checked(void **state)
{
    struct tp_device *device = *state;
    struct tp_buffer *a;
    uint8_t byte[16] = {0};
    void *address = NULL;
    assert_ok(tp_buffer_create(&a, device, 16));
    assert_int_equal(tp_buffer_bytes(a), 16);
    assert_int_equal(tp_buffer_write(a, 10, byte, 7, true), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "[10, +7)");
    assert_int_equal(tp_buffer_write(a, 17, byte, 0, true), TALPA_E_INTERNAL);
    assert_int_equal(tp_buffer_read(byte, a, 8, SIZE_MAX, true), TALPA_E_INTERNAL);
    assert_int_equal(tp_buffer_fill(a, 0, 17, 0), TALPA_E_INTERNAL);
    assert_int_equal(tp_buffer_fill_u32(a, 2, 4, 0), TALPA_E_INTERNAL);
    assert_int_equal(tp_buffer_copy(a, 8, a, 0, 9), TALPA_E_INTERNAL);
    assert_int_equal(tp_buffer_map(&address, a, 8, 9, TP_MAP_READ), TALPA_E_INTERNAL);
    assert_null(address);
    tp_buffer_free(a);
}

static void views_are_windows(void **state)
{
    struct tp_device *device = *state;
    const size_t align = tp_device_caps(device)->base_align_bytes;
    const uint64_t before = tp_device_allocated_bytes(device);
    struct tp_buffer *parent, *view, *none = NULL;
    assert_ok(tp_buffer_create(&parent, device, 4 * align));
    assert_ok(tp_buffer_view(&view, parent, align, align + 4));
    assert_int_equal(tp_device_allocated_bytes(device) - before, 4 * align);
    uint8_t *result = malloc(4 * align);
    assert_ok(tp_buffer_fill(parent, 0, 4 * align, 1));
    assert_ok(tp_buffer_fill(view, 0, align + 4, 2));
    assert_ok(tp_buffer_read(result, parent, 0, 4 * align, true));
    for (size_t i = 0; i < 4 * align; ++i) assert_int_equal(result[i], i >= align && i < 2 * align + 4 ? 2 : 1);
    free(result);
    assert_int_equal(tp_buffer_view(&none, parent, align + 1, 4), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "alignment");
    assert_int_equal(tp_buffer_view(&none, parent, align, 3 * align + 1), TALPA_E_INTERNAL);
    assert_int_equal(tp_buffer_view(&none, parent, 4 * align, 0), TALPA_E_INTERNAL);
    assert_int_equal(tp_buffer_view(&none, view, 0, 4), TALPA_E_INTERNAL);
    assert_null(none);
    tp_buffer_free(view);
    tp_buffer_free(parent);
    assert_int_equal(tp_device_allocated_bytes(device), before);
}

static void mapping_reaches_the_device(void **state)
{
    struct tp_device *device = *state;
    struct tp_buffer *a;
    assert_ok(tp_buffer_create(&a, device, 1 << 16));
    assert_ok(tp_buffer_fill(a, 0, 1 << 16, 9));
    void *address;
    assert_ok(tp_buffer_map(&address, a, 256, 512, TP_MAP_WRITE));
    memset(address, 5, 512);
    assert_ok(tp_buffer_unmap(a, address));
    uint8_t result[1024];
    assert_ok(tp_buffer_read(result, a, 0, sizeof result, true));
    for (size_t i = 0; i < sizeof result; ++i) assert_int_equal(result[i], i >= 256 && i < 768 ? 5 : 9);
    assert_ok(tp_buffer_map(&address, a, 700, 200, TP_MAP_READ));
    for (size_t i = 0; i < 200; ++i) assert_int_equal(((const uint8_t *)address)[i], i < 68 ? 5 : 9);
    assert_ok(tp_buffer_unmap(a, address));
    assert_ok(tp_queue_finish(device));
    tp_buffer_free(a);
}

static void account_and_limits(void **state)
{
    (void)state;
    struct tp_device *device;
    struct tp_buffer *a, *b, *none = NULL;
    assert_int_equal(setenv("TALPA_MAX_ALLOC_BYTES", "65536", 1), 0);
    device = test_device_open(false);
    assert_int_equal(unsetenv("TALPA_MAX_ALLOC_BYTES"), 0);
    assert_ok(tp_buffer_create(&a, device, 65536));
    assert_ok(tp_buffer_create(&b, device, 1000));
    assert_int_equal(tp_buffer_create(&none, device, 65537), TALPA_E_DEVICE);
    assert_contains(talpa_error_message(), "65537");
    assert_contains(talpa_error_message(), "65536");
    assert_int_equal(talpa_error_opencl(), -61); /* CL_INVALID_BUFFER_SIZE, CL/cl.h */
    assert_int_equal(tp_buffer_create(&none, device, 0), TALPA_E_INTERNAL);
    assert_null(none);
    assert_int_equal(tp_device_allocated_bytes(device), 66536);
    tp_buffer_free(a);
    assert_int_equal(tp_device_allocated_bytes(device), 1000);
    assert_int_equal(tp_device_peak_bytes(device), 66536);
    tp_buffer_free(b);
    assert_int_equal(tp_device_allocated_bytes(device), 0);
    tp_device_close(device);
}

static void nth_allocation_fails_on_request(void **state)
{
    (void)state;
    assert_int_equal(setenv("TALPA_FAULT", "launch:7,alloc:2", 1), 0);
    struct tp_device *device = test_device_open(false);
    assert_int_equal(unsetenv("TALPA_FAULT"), 0);
    struct tp_buffer *a, *b = NULL;
    assert_ok(tp_buffer_create(&a, device, 64));
    assert_int_equal(tp_buffer_create(&b, device, 64), TALPA_E_DEVICE);
    assert_int_equal(talpa_error_opencl(), -4); /* CL_MEM_OBJECT_ALLOCATION_FAILURE, CL/cl.h */
    assert_contains(talpa_error_message(), "CL_MEM_OBJECT_ALLOCATION_FAILURE");
    assert_null(b);
    assert_int_equal(tp_device_allocated_bytes(device), 64);
    assert_ok(tp_buffer_create(&b, device, 64));
    tp_buffer_free(a);
    tp_buffer_free(b);
    tp_device_close(device);
}

/* Small whole numbers: every product and sum is exact in f32, so the naive answer is the only right one. */
static void check_gemm(struct tp_device *device, size_t n_batches, size_t m, size_t n, size_t k, bool ta, bool tb, float alpha, float beta,
                       bool share_b)
{
    const size_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2, offset = 5;
    const size_t stride_a = (ta ? k : m) * lda, stride_b = share_b ? 0 : (tb ? n : k) * ldb, stride_c = m * ldc;
    const size_t n_a = offset + n_batches * stride_a, n_b = offset + (share_b ? (tb ? n : k) * ldb : n_batches * stride_b);
    const size_t n_c = offset + n_batches * stride_c;
    float *a = malloc(n_a * sizeof *a), *b = malloc(n_b * sizeof *b), *c = malloc(n_c * sizeof *c), *result = malloc(n_c * sizeof *c);
    for (size_t i = 0; i < n_a; ++i) a[i] = (float)((int)(i * 31 % 11) - 5);
    for (size_t i = 0; i < n_b; ++i) b[i] = (float)((int)(i * 17 % 7) - 3);
    /* With beta 0 the old values must not be read. */
    for (size_t i = 0; i < n_c; ++i) c[i] = beta == 0.0f ? NAN : (float)((int)(i % 5) - 2);
    struct tp_buffer *buffers[3];
    const size_t sizes[3] = {n_a * sizeof *a, n_b * sizeof *b, n_c * sizeof *c};
    const float *const sources[3] = {a, b, c};
    for (int i = 0; i < 3; ++i) {
        assert_ok(tp_buffer_create(&buffers[i], device, sizes[i]));
        assert_ok(tp_buffer_write(buffers[i], 0, sources[i], sizes[i], true));
    }
    const struct tp_blas_matrix ma = {buffers[0], offset, lda, stride_a}, mb = {buffers[1], offset, ldb, stride_b};
    const struct tp_blas_matrix mc = {buffers[2], offset, ldc, stride_c};
    if (n_batches == 1)
        assert_ok(tp_blas_gemm(device, m, n, k, ta, tb, alpha, ma, mb, beta, mc, "test"));
    else
        assert_ok(tp_blas_gemm_batched(device, n_batches, m, n, k, ta, tb, alpha, ma, mb, beta, mc, "test"));
    assert_ok(tp_buffer_read(result, buffers[2], 0, sizes[2], true));
    for (size_t batch = 0; batch < n_batches; ++batch) {
        const float *pa = a + offset + batch * stride_a, *pb = b + offset + batch * stride_b;
        for (size_t i = 0; i < m; ++i) {
            for (size_t j = 0; j < n; ++j) {
                double sum = 0;
                for (size_t l = 0; l < k; ++l)
                    sum += (double)(ta ? pa[l * lda + i] : pa[i * lda + l]) * (double)(tb ? pb[j * ldb + l] : pb[l * ldb + j]);
                const size_t at = offset + batch * stride_c + i * ldc + j;
                const double expected = (double)alpha * sum + (beta == 0.0f ? 0.0 : (double)beta * (double)c[at]);
                if ((double)result[at] != expected) fail_msg("[%zu, %zu, %zu]: %g, expected %g", batch, i, j, (double)result[at], expected);
            }
        }
    }
    for (int i = 0; i < 3; ++i) tp_buffer_free(buffers[i]);
    free(a);
    free(b);
    free(c);
    free(result);
}

static void blas_gemm_is_exact_on_whole_numbers(void **state)
{
    struct tp_device *device = *state;
    check_gemm(device, 1, 7, 5, 9, false, false, 1, 0, false);
    check_gemm(device, 1, 33, 20, 17, true, false, 2, 1, false);
    check_gemm(device, 1, 16, 48, 70, false, true, 1, -1, false);
    check_gemm(device, 1, 5, 6, 7, true, true, 1, 0, false);
    check_gemm(device, 3, 10, 12, 14, false, true, 1, 0, false);
    check_gemm(device, 3, 10, 12, 14, false, false, 1, 1, true);
}

static void blas_refuses_what_leaves_the_buffer(void **state)
{
    struct tp_device *device = *state;
    struct tp_buffer *buffer;
    assert_ok(tp_buffer_create(&buffer, device, 4 * 16));
    const struct tp_blas_matrix whole = {buffer, 0, 4, 0}, shifted = {buffer, 1, 4, 0}, narrow = {buffer, 0, 3, 0};
    assert_int_equal(tp_blas_gemm(device, 4, 4, 4, false, false, 1, shifted, whole, 0, whole, "x"), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "matrix A");
    assert_int_equal(tp_blas_gemm(device, 4, 4, 4, false, false, 1, whole, narrow, 0, whole, "x"), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "matrix B");
    const struct tp_blas_matrix second_outside = {buffer, 0, 4, 4};
    assert_int_equal(tp_blas_gemm_batched(device, 2, 4, 4, 4, false, false, 1, whole, whole, 0, second_outside, "x"), TALPA_E_INTERNAL);
    assert_contains(talpa_error_message(), "matrix C");
    assert_int_equal(tp_blas_gemm(device, 4, 4, 0, false, false, 1, whole, whole, 0, whole, "x"), TALPA_E_INTERNAL);
    tp_buffer_free(buffer);
}

static int open_device(void **state)
{
    *state = test_device_open(true);
    return 0;
}

static int close_device(void **state)
{
    tp_device_close(*state);
    return 0;
}

int main(void)
{
    test_need_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_fill_copy_read),
        cmocka_unit_test(ranges_are_checked),
        cmocka_unit_test(views_are_windows),
        cmocka_unit_test(mapping_reaches_the_device),
        cmocka_unit_test(account_and_limits),
        cmocka_unit_test(nth_allocation_fails_on_request),
        cmocka_unit_test(blas_gemm_is_exact_on_whole_numbers),
        cmocka_unit_test(blas_refuses_what_leaves_the_buffer),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
