/* As generic/dropout_mask.cl, the same bits. Index map: one work-item per group, each takes a contiguous share of the rows; 16 counters,
 * that is 64 columns, at a time. The words of the generator lie in 64-bit lanes whose upper halves hold anything: a product needs its lower
 * halves only, and gives both words of the result in place. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

typedef uint stored16 __attribute__((ext_vector_type(16), aligned(4)));

#define LOWER(v) ((v) & (ulong8)(0xffffffffUL))
#define TURN(c0, c1, c2, c3)                                                                                                               \
    {                                                                                                                                      \
        const ulong8 p0 = LOWER(c0) * (ulong8)(0xD2511F53UL), p1 = LOWER(c2) * (ulong8)(0xCD9E8D57UL);                                     \
        c0 = (p1 >> 32) ^ c1 ^ (ulong8)(key0);                                                                                             \
        c1 = p1;                                                                                                                           \
        c2 = (p0 >> 32) ^ c3 ^ (ulong8)(key1);                                                                                             \
        c3 = p0;                                                                                                                           \
    }

/* 16 columns: lanes i, j, k, l of the four word vectors, interleaved. */
#define COLUMNS(i, j, k, l)                                                                                                                \
    (uint16)(w0.s##i, w1.s##i, w2.s##i, w3.s##i, w0.s##j, w1.s##j, w2.s##j, w3.s##j, w0.s##k, w1.s##k, w2.s##k, w3.s##k, w0.s##l, w1.s##l, \
             w2.s##l, w3.s##l)

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
dropout_mask(__global const int *examples, __global const int *positions, __global uint *keep, __global const uint *step, uint symbol,
             uint bound, uint n, uint n_words, uint threshold, uint stream_lo, uint stream_hi, uint n_groups)
{
    const uint rows = tp_rows(step, symbol, bound);
    const uint end = tp_share_rows(rows, n_groups, tp_group_id(0) + 1);
    const ulong8 lanes = (ulong8)(0, 1, 2, 3, 4, 5, 6, 7);
    const uint16 columns = (uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (uint t = tp_share_rows(rows, n_groups, tp_group_id(0)); t < end; t++) {
        for (uint first = 0; first < n_words * 32; first += 512) {
            uint16 bits = (uint16)(0);
            for (uint j = first; j < min(n, first + 512); j += 64) {
                uint key0 = step[TP_STEP_SEED_LO] ^ stream_lo, key1 = step[TP_STEP_SEED_HI] ^ stream_hi;
                ulong8 a0 = lanes + (ulong8)(j / 4), b0 = a0 + (ulong8)(8);
                ulong8 a1 = (ulong8)((uint)positions[t]), b1 = a1, a2 = (ulong8)((uint)examples[t]), b2 = a2;
                ulong8 a3 = (ulong8)(step[TP_STEP_INDEX]), b3 = a3;
                for (int i = 0; i < 10; i++) {
                    TURN(a0, a1, a2, a3)
                    TURN(b0, b1, b2, b3)
                    key0 += 0x9E3779B9u;
                    key1 += 0xBB67AE85u;
                }
                const uint16 w0 = (uint16)(convert_uint8(LOWER(a0)), convert_uint8(LOWER(b0)));
                const uint16 w1 = (uint16)(convert_uint8(LOWER(a1)), convert_uint8(LOWER(b1)));
                const uint16 w2 = (uint16)(convert_uint8(LOWER(a2)), convert_uint8(LOWER(b2)));
                const uint16 w3 = (uint16)(convert_uint8(LOWER(a3)), convert_uint8(LOWER(b3)));
                const uint bit = j % 512 / 16;
#define KEEP(v, word)                                                                                                                      \
    bits |= select((uint16)(0), (uint16)(1u << (bit + v)), (word >> 8) >= (uint16)(threshold) && columns + (uint16)(j + 16 * v) < (uint16)(n));
                KEEP(0, COLUMNS(0, 1, 2, 3))
                KEEP(1, COLUMNS(4, 5, 6, 7))
                KEEP(2, COLUMNS(8, 9, a, b))
                KEEP(3, COLUMNS(c, d, e, f))
            }
            *(__global stored16 *)(keep + (size_t)t * n_words + first / 32) = bits;
        }
    }
}
