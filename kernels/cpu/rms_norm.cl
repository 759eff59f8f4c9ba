/* As generic/rms_norm.cl. Index map: one work-item per group, each takes a contiguous share of the rows; a row is summed in 32 lanes, f32.
 * -DOUT0_BF16: y or dx is row_bf16; -DALSO0: it is made in that form as well. Rows are then a multiple of 32 columns. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"
#if defined(OUT0_BF16) || defined(ALSO0)
#include "common/tile_bf16.clh"
#endif

#ifdef OUT0_BF16
typedef ushort made;
#define STORE(v, at) tp_store16_bf16(v, made_rows + (at))
#define STORE_ONE(v, at)
#else
typedef float made;
#define STORE(v, at) tp_store16(v, made_rows + (at))
#define STORE_ONE(v, at) made_rows[at] = (v)
#endif
#ifdef ALSO0
#define ALSO_ARGUMENT __global ushort *also,
#define STORE_ALSO(v, at) tp_store16_bf16(v, also + (at))
#else
#define ALSO_ARGUMENT
#define STORE_ALSO(v, at)
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void rms_norm(__global const float *x, __global const float *weight,
                                                                      __global made *made_rows, ALSO_ARGUMENT __global float *rstd, __global const uint *step,
                                                                      uint symbol, uint bound, uint parts, uint d, float eps, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound) * parts;
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    for (uint t = tp_share_rows(rows, n_groups, tp_group_id(0)); t < end; t++) {
        const size_t row = (size_t)t * d;
        float16 sum0 = 0.0f, sum1 = 0.0f;
        float tail = 0.0f;
        uint j = 0;
        for (; j + 32 <= d; j += 32) {
            const float16 a = tp_load16(x + row + j), b = tp_load16(x + row + j + 16);
            sum0 = fma(a, a, sum0);
            sum1 = fma(b, b, sum1);
        }
        for (; j < d; j++) tail = fma(x[row + j], x[row + j], tail);
        const float r = 1.0f / sqrt((tp_sum16(sum0 + sum1) + tail) / (float)d + eps);
        for (j = 0; j + 16 <= d; j += 16) {
            const float16 y = tp_load16(x + row + j) * r * tp_load16(weight + j);
            STORE(y, row + j);
            STORE_ALSO(y, row + j);
        }
        for (; j < d; j++) STORE_ONE(x[row + j] * r * weight[j], row + j);
        rstd[t] = r;
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void rms_norm_backward(__global const float *x, __global const float *weight,
                                                                               __global const float *rstd, __global const float *dy,
                                                                               __global const float *addend, __global made *made_rows,
                                                                               ALSO_ARGUMENT __global const uint *step, uint symbol, uint bound,
                                                                               uint parts, uint d, uint has_addend, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound) * parts;
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    for (uint t = tp_share_rows(rows, n_groups, tp_group_id(0)); t < end; t++) {
        const size_t row = (size_t)t * d;
        float16 sum0 = 0.0f, sum1 = 0.0f;
        float tail = 0.0f;
        uint j = 0;
        for (; j + 32 <= d; j += 32) {
            sum0 = fma(tp_load16(weight + j) * tp_load16(dy + row + j), tp_load16(x + row + j), sum0);
            sum1 = fma(tp_load16(weight + j + 16) * tp_load16(dy + row + j + 16), tp_load16(x + row + j + 16), sum1);
        }
        for (; j < d; j++) tail = fma(weight[j] * dy[row + j], x[row + j], tail);
        const float r = rstd[t];
        const float mean = (tp_sum16(sum0 + sum1) + tail) * r / (float)d;
        for (j = 0; j + 16 <= d; j += 16) {
            const float16 v = r * (tp_load16(weight + j) * tp_load16(dy + row + j) - tp_load16(x + row + j) * r * mean);
            const float16 dx = has_addend ? tp_load16(addend + row + j) + v : v;
            STORE(dx, row + j);
            STORE_ALSO(dx, row + j);
        }
        for (; j < d; j++) {
            const float v = r * (weight[j] * dy[row + j] - x[row + j] * r * mean);
            STORE_ONE(has_addend ? addend[row + j] + v : v, row + j);
        }
    }
}
