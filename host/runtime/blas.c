#include "opencl.h"

#include <clblast_c.h>

#include "base/status.h"

void tp_blas_clear(void) { CLBlastClearCache(); }

/* Elements from the first to behind the last of one batch's matrix with `rows` rows of `columns`. */
static enum talpa_status check_matrix(const struct tp_blas_matrix *matrix, const char *name, size_t n_batches, size_t rows, size_t columns,
                                      const char *label)
{
    const size_t room = matrix->buffer->n_bytes / sizeof(float);
    size_t last = 0, between = 0;
    if (matrix->ld < columns || __builtin_mul_overflow(rows - 1, matrix->ld, &last) ||
        __builtin_mul_overflow(n_batches - 1, matrix->stride, &between) || __builtin_add_overflow(last, between, &last) ||
        __builtin_add_overflow(last, columns, &last) || __builtin_add_overflow(last, matrix->offset, &last) || last > room)
        return tp_fail(TALPA_E_INTERNAL, "%s: gemm matrix %s: %zu x [%zu, %zu] with ld %zu, stride %zu, offset %zu leaves its %zu values",
                       label, name, n_batches, rows, columns, matrix->ld, matrix->stride, matrix->offset, room);
    return TALPA_OK;
}

enum talpa_status tp_blas_gemm_batched(struct tp_device *device, size_t n_batches, size_t m, size_t n, size_t k, bool transpose_a,
                                       bool transpose_b, float alpha, struct tp_blas_matrix a, struct tp_blas_matrix b, float beta,
                                       struct tp_blas_matrix c, const char *label)
{
    const char *name = label && *label ? label : "gemm";
    if (n_batches == 0 || m == 0 || n == 0 || k == 0)
        return tp_fail(TALPA_E_INTERNAL, "%s: gemm of %zu x [%zu, %zu, %zu]: sizes start at 1", name, n_batches, m, n, k);
    TP_TRY(check_matrix(&a, "A", n_batches, transpose_a ? k : m, transpose_a ? m : k, name));
    TP_TRY(check_matrix(&b, "B", n_batches, transpose_b ? n : k, transpose_b ? k : n, name));
    TP_TRY(check_matrix(&c, "C", n_batches, m, n, name));
    if (tp_opencl_fault(device, TP_FAULT_LAUNCH))
        return tp_fail_opencl(TALPA_E_DEVICE, CL_OUT_OF_RESOURCES, NULL, "%s: CLBlast gemm on device %s: CL_OUT_OF_RESOURCES (%d)", name,
                              device->caps.name, CL_OUT_OF_RESOURCES);
    device->used_blas = true;
    cl_event event = NULL, *wanted = tp_queue_wants_event(device) ? &event : NULL;
    const CLBlastTranspose op_a = transpose_a ? CLBlastTransposeYes : CLBlastTransposeNo;
    const CLBlastTranspose op_b = transpose_b ? CLBlastTransposeYes : CLBlastTransposeNo;
    CLBlastStatusCode code;
    if (n_batches == 1)
        code = CLBlastSgemm(CLBlastLayoutRowMajor, op_a, op_b, m, n, k, alpha, a.buffer->handle, a.offset, a.ld, b.buffer->handle, b.offset,
                            b.ld, beta, c.buffer->handle, c.offset, c.ld, &device->queue, wanted);
    else
        code = CLBlastSgemmStridedBatched(CLBlastLayoutRowMajor, op_a, op_b, m, n, k, alpha, a.buffer->handle, a.offset, a.ld, a.stride,
                                          b.buffer->handle, b.offset, b.ld, b.stride, beta, c.buffer->handle, c.offset, c.ld, c.stride,
                                          n_batches, &device->queue, wanted);
    if (code != CLBlastSuccess)
        return tp_fail_opencl(TALPA_E_DEVICE, (int)code, NULL, "%s: CLBlast gemm [%zu, %zu, %zu] x %zu on device %s failed: code %d (%s)",
                              name, m, n, k, n_batches, device->caps.name, (int)code,
                              (int)code > -1024 ? tp_opencl_error_name((int)code) : "see clblast_c.h");
    if (!event) return TALPA_OK;
    return tp_queue_record(device, label, "clblast", n_batches == 1 ? "gemm" : "gemm_batched", event);
}

enum talpa_status tp_blas_gemm(struct tp_device *device, size_t m, size_t n, size_t k, bool transpose_a, bool transpose_b, float alpha,
                               struct tp_blas_matrix a, struct tp_blas_matrix b, float beta, struct tp_blas_matrix c, const char *label)
{
    a.stride = b.stride = c.stride = 0;
    return tp_blas_gemm_batched(device, 1, m, n, k, transpose_a, transpose_b, alpha, a, b, beta, c, label);
}
