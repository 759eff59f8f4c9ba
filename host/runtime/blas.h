/* CLBlast as a tier of dense and batched GEMM in f32 (the only user of clblast_c.h). Row-major. */
#ifndef TP_BLAS_H
#define TP_BLAS_H

#include "memory.h"

/** A matrix in a buffer: element offset of its first value, elements from row to row, elements from batch to batch (0 if not batched). */
struct tp_blas_matrix {
    struct tp_buffer *buffer;
    size_t offset, ld, stride;
};

/** C[m,n] = alpha * op(A)[m,k] * op(B)[k,n] + beta * C, op = transpose where asked. With beta 0, C is not read. Enqueued, does not
 *  wait; the first call compiles CLBlast's kernels (seconds). TALPA_E_INTERNAL for matrices that leave their buffers,
 *  TALPA_E_DEVICE with CLBlast's code. */
enum talpa_status tp_blas_gemm(struct tp_device *device, size_t m, size_t n, size_t k, bool transpose_a, bool transpose_b, float alpha,
                               struct tp_blas_matrix a, struct tp_blas_matrix b, float beta, struct tp_blas_matrix c, const char *label);

/** The same for n_batches products, matrix i at offset + i * stride (CLBlastSgemmStridedBatched). Stride 0 shares A or B between
 *  batches. */
enum talpa_status tp_blas_gemm_batched(struct tp_device *device, size_t n_batches, size_t m, size_t n, size_t k, bool transpose_a,
                                       bool transpose_b, float alpha, struct tp_blas_matrix a, struct tp_blas_matrix b, float beta,
                                       struct tp_blas_matrix c, const char *label);

/** Frees CLBlast's compiled programs. tp_device_close calls it: CLBlast keeps them by the address of a context, which the driver may
 *  give to the next context. */
void tp_blas_clear(void);

#endif
