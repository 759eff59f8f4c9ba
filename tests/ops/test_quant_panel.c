/* The layout `quant`: packed from random blocks of every type, with a number of rows that is no multiple of 32 and all kinds of f16 scales,
 * both decoders of kernels/common/quant_panel.clh give the bits of the host's dequantisation. */
#include "ops_test.h"

#include "base/dtype.h"
#include "graph/layout.h"
#include "ops/gemm.h"
#include "runtime/queue.h"

enum { N = 45, K = 512, N_PANELS = 2, N_BLOCKS = K / 32, N_SQUARES = N_PANELS * N_BLOCKS };

static const enum talpa_dtype types[] = {TALPA_Q4_0, TALPA_Q4_1, TALPA_Q5_0, TALPA_Q5_1, TALPA_Q8_0, TALPA_Q4_K, TALPA_Q5_K, TALPA_Q6_K};

static uint32_t next_random(uint32_t *state) { return *state = *state * 1664525u + 1013904223u; }

/* Random bytes; the f16 numbers at `offset` and, if there is a second one, behind it get finite random bits, some of them subnormal or zero. */
static void fill_blocks(uint8_t *bytes, size_t n_bytes, enum talpa_dtype dtype)
{
    const size_t block = tp_dtype_block_bytes(dtype), offset = dtype == TALPA_Q6_K ? 208 : 0;
    const size_t n_halves = dtype == TALPA_Q4_1 || dtype == TALPA_Q5_1 || dtype == TALPA_Q4_K || dtype == TALPA_Q5_K ? 2 : 1;
    uint32_t state = 11;
    for (size_t i = 0; i < n_bytes; i++) bytes[i] = (uint8_t)(next_random(&state) >> 24);
    for (size_t b = 0; b < n_bytes; b += block)
        for (size_t h = 0; h < n_halves; h++) {
            const uint32_t random = next_random(&state) >> 8, exponent = random % 8 == 0 ? 0 : random % 31;
            const uint32_t bits = random % 64 == 0 ? 0 : exponent << 10 | (random >> 6 & 0x83ff);
            bytes[b + offset + 2 * h] = (uint8_t)bits;
            bytes[b + offset + 2 * h + 1] = (uint8_t)(bits >> 8);
        }
}

static struct tp_buffer *buffer_of(struct tp_device *device, const void *data, size_t n_bytes)
{
    struct tp_buffer *buffer;
    assert_ok(tp_buffer_create(&buffer, device, n_bytes));
    if (data) assert_ok(tp_buffer_write(buffer, 0, data, n_bytes, true));
    return buffer;
}

static void check_decoder(struct tp_device *device, struct tp_buffer *packed, const float *want, enum talpa_dtype dtype, bool by_rows, bool to_global)
{
    static float got[N_SQUARES * 1024];
    struct tp_buffer *out = buffer_of(device, NULL, sizeof got);
    struct tp_kernel *kernel;
    char options[128];
    snprintf(options, sizeof options, "%s%s%s", tp_gemm_weight_option(dtype), by_rows ? " -DBY_ROWS=1" : "", to_global ? " -DTO_GLOBAL=1" : "");
    assert_ok(tp_program_kernel(&kernel, device, "cpu/unpack_quant.cl", "unpack_quant", options));
    const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(packed), tp_kernel_arg_buffer(out), tp_kernel_arg_u32(N_BLOCKS)};
    assert_ok(tp_queue_launch(device, kernel, args, 3, (const size_t[]){N_PANELS, 1, 1}, (const size_t[]){1, 1, 1}, NULL));
    assert_ok(tp_buffer_read(got, out, 0, sizeof got, true));
    for (int p = 0; p < N_PANELS; p++)
        for (int b = 0; b < N_BLOCKS; b++)
            for (int j = 0; j < 32; j++)
                for (int c = 0; c < 32; c++) {
                    const float value = got[(p * N_BLOCKS + b) * 1024 + (by_rows ? j * 32 + c : c * 32 + j)];
                    const int row = p * 32 + j;
                    if (row >= N) assert_true(value == 0.0f);
                    else if (memcmp(&value, &want[row * K + b * 32 + c], sizeof value)) {
                        print_error("%s %s %s: [%d, %d] is %a, expected %a\n", tp_dtype_name(dtype), by_rows ? "rows" : "columns",
                                    to_global ? "global" : "private", row, b * 32 + c, (double)value, (double)want[row * K + b * 32 + c]);
                        fail();
                    }
                }
    tp_buffer_free(out);
}

static void check_type(struct tp_device *device, enum talpa_dtype dtype)
{
    static float want[N * K];
    const struct tp_type type = tp_type_2d(dtype, TP_STEP_NONE, N, K);
    const size_t n_bytes = tp_dtype_bytes(dtype, N * K), packed_bytes = tp_layout_bytes(&type, TP_LAYOUT_QUANT);
    assert_true(tp_layout_takes_quant(&type));
    assert_int_equal(packed_bytes, N_SQUARES * tp_layout_quant_block_bytes(dtype));
    assert_int_equal(tp_layout_units(&type, TP_LAYOUT_QUANT), N_PANELS);
    uint8_t *bytes = malloc(n_bytes);
    assert_non_null(bytes);
    fill_blocks(bytes, n_bytes, dtype);
    tp_dtype_to_f32(want, bytes, dtype, N * K);

    /* Two launches for a panel each, as for split storage, with more shares than blocks divide evenly into. */
    struct tp_buffer *rows = buffer_of(device, bytes, n_bytes), *step = buffer_of(device, NULL, sizeof(struct tp_step));
    struct tp_buffer *packed = buffer_of(device, NULL, packed_bytes);
    assert_ok(tp_buffer_fill(step, 0, sizeof(struct tp_step), 0));
    assert_ok(tp_buffer_fill(packed, 0, packed_bytes, 0xff));
    struct tp_kernel *kernel;
    assert_ok(tp_program_kernel(&kernel, device, "cpu/pack_quant.cl", "pack_quant", tp_gemm_weight_option(dtype)));
    for (uint32_t p = 0; p < N_PANELS; p++) {
        struct tp_buffer *part;
        assert_ok(tp_buffer_view(&part, packed, p * (packed_bytes / N_PANELS), packed_bytes / N_PANELS));
        const struct tp_kernel_arg args[] = {tp_kernel_arg_buffer(rows),  tp_kernel_arg_buffer(part), tp_kernel_arg_buffer(step),
                                             tp_kernel_arg_u32(0),        tp_kernel_arg_u32(N),       tp_kernel_arg_u32(K),
                                             tp_kernel_arg_u32(p),        tp_kernel_arg_u32(1),       tp_kernel_arg_u32(1)};
        assert_ok(tp_queue_launch(device, kernel, args, 9, (const size_t[]){1, 3, 1}, (const size_t[]){1, 1, 1}, NULL));
        assert_ok(tp_queue_finish(device));
        tp_buffer_free(part);
    }
    for (int form = 0; form < 4; form++) check_decoder(device, packed, want, dtype, form & 1, form & 2);
    tp_buffer_free(rows);
    tp_buffer_free(step);
    tp_buffer_free(packed);
    free(bytes);
}

static void every_type_keeps_its_values(void **state)
{
    (void)state;
    struct test_run run;
    test_run_open(&run);
    const bool is_cpu = tp_device_caps(run.device)->in_process;
    for (size_t i = 0; i < sizeof types / sizeof *types && is_cpu; i++) check_type(run.device, types[i]);
    test_run_close(&run);
    if (!is_cpu) skip();
}

static void other_values_do_not_have_it(void **state)
{
    (void)state;
    const struct tp_type f32 = tp_type_2d(TALPA_F32, TP_STEP_NONE, 64, 64), flat = tp_type_1d(TALPA_Q8_0, TP_STEP_NONE, 64);
    assert_false(tp_layout_takes_quant(&f32));
    assert_false(tp_layout_takes_quant(&flat));
    assert_string_equal(tp_layout_name(TP_LAYOUT_QUANT), "quant");
}

int main(void)
{
    test_need_device();
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_type_keeps_its_values), cmocka_unit_test(other_values_do_not_have_it)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
