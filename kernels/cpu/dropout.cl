/* As generic/dropout.cl, the same bits. Index map: one work-item per group, each takes a contiguous share of the rows; 16 counters, that is
 * 64 columns, at a time. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/philox.clh"
#include "common/vector.clh"

/* Product of all lanes with a constant, upper half to hi and lower half to lo. */
static inline void multiply(uint16 *hi, uint16 *lo, uint factor, uint16 a)
{
    const ulong16 product = convert_ulong16(a) * (ulong16)(factor);
    *hi = convert_uint16(product >> 32);
    *lo = convert_uint16(product);
}

/* 16 columns: lanes first .. first + 3 of the four word vectors, interleaved. */
#define COLUMNS(i, j, k, l)                                                                                                                \
    (uint16)(c0.s##i, c1.s##i, c2.s##i, c3.s##i, c0.s##j, c1.s##j, c2.s##j, c3.s##j, c0.s##k, c1.s##k, c2.s##k, c3.s##k, c0.s##l, c1.s##l, \
             c2.s##l, c3.s##l)

static inline void apply16(__global const float *x, __global float *y, uint16 word, uint threshold, float keep_scale)
{
    tp_store16(select((float16)(0.0f), tp_load16(x) * keep_scale, (word >> 8) >= (uint16)(threshold)), y);
}

static inline void dropout64(__global const float *x, __global float *y, uint quad, uint position, uint example, uint step, uint key0,
                             uint key1, uint threshold, float keep_scale)
{
    uint16 c0 = (uint16)(quad) + (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint16 c1 = (uint16)(position), c2 = (uint16)(example), c3 = (uint16)(step);
    for (int i = 0; i < 10; i++) {
        uint16 hi0, lo0, hi1, lo1;
        multiply(&hi0, &lo0, 0xD2511F53u, c0);
        multiply(&hi1, &lo1, 0xCD9E8D57u, c2);
        c0 = hi1 ^ c1 ^ key0;
        c1 = lo1;
        c2 = hi0 ^ c3 ^ key1;
        c3 = lo0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    apply16(x, y, COLUMNS(0, 1, 2, 3), threshold, keep_scale);
    apply16(x + 16, y + 16, COLUMNS(4, 5, 6, 7), threshold, keep_scale);
    apply16(x + 32, y + 32, COLUMNS(8, 9, a, b), threshold, keep_scale);
    apply16(x + 48, y + 48, COLUMNS(c, d, e, f), threshold, keep_scale);
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
dropout(__global const float *x, __global const int *examples, __global const int *positions, __global float *y, __global const uint *step,
        uint symbol, uint bound, uint n, uint threshold, float keep_scale, uint stream_lo, uint stream_hi, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound);
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    const uint key0 = step[TP_STEP_SEED_LO] ^ stream_lo, key1 = step[TP_STEP_SEED_HI] ^ stream_hi, index = step[TP_STEP_INDEX];
    for (uint t = tp_share_rows(rows, n_groups, tp_group_id(0)); t < end; t++) {
        const size_t row = (size_t)t * n;
        const uint position = positions[t], example = examples[t];
        uint j = 0;
        for (; j + 64 <= n; j += 64)
            dropout64(x + row + j, y + row + j, j / 4, position, example, index, key0, key1, threshold, keep_scale);
        for (; j < n; j += 4) {
            const uint4 word = tp_philox((uint4)(j / 4, position, example, index), (uint2)(key0, key1));
            const uint words[4] = {word.x, word.y, word.z, word.w};
            for (uint i = 0; i < 4 && j + i < n; i++) y[row + j + i] = words[i] >> 8 >= threshold ? x[row + j + i] * keep_scale : 0.0f;
        }
    }
}
