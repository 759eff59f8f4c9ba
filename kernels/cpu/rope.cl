/* As generic/rope.cl, head_dim a multiple of 16 and at most 512. One work-item per group, each takes a contiguous share of the rows;
 * 8 pairs at a time, all heads. -DOUT0_BF16, -DOUT1_BF16: that output of rope or rope_pair is row_bf16; -DALSO0, -DALSO1: it is made so as
 * well. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

typedef float8 tp_rope_float;
typedef int8 tp_rope_int;
typedef uint8 tp_rope_uint;
#define TP_ROPE_TO_FLOAT(x) convert_float8(x)
#define TP_ROPE_TO_INT(x) as_int8(x)
#include "common/rope.clh"

/* Pairs i to i + 7 of all heads of one row; to may be x. */
static inline void rotate(__global const float *x, __global float *to, uint n_heads, uint head_dim, uint i, float8 c, float8 s)
{
    for (uint head = 0; head < n_heads; head++) {
        const size_t at = (size_t)head * head_dim + i;
        const float8 a = vload8(0, x + at), b = vload8(0, x + at + head_dim / 2);
        *(__global float8 *)(to + at) = a * c - b * s; /* aligned: at is a multiple of 8 */
        *(__global float8 *)(to + at + head_dim / 2) = b * c + a * s;
    }
}

#if defined(ALSO0) || defined(ALSO1) || defined(OUT0_BF16) || defined(OUT1_BF16)
#include "common/tile_bf16.clh"

static inline void store_bf16(float8 first, float8 second, __global ushort *to, uint half_dim)
{
    const ushort16 rounded = convert_ushort16(tp_bf16_upper((float16)(first, second)) >> 16);
    vstore8(rounded.lo, 0, to);
    vstore8(rounded.hi, 0, to + half_dim);
}

static inline void rotate_bf16(__global const float *x, __global ushort *to, uint n_heads, uint head_dim, uint i, float8 c, float8 s)
{
    for (uint head = 0; head < n_heads; head++) {
        const size_t at = (size_t)head * head_dim + i;
        const float8 a = vload8(0, x + at), b = vload8(0, x + at + head_dim / 2);
        store_bf16(a * c - b * s, b * c + a * s, to + at, head_dim / 2);
    }
}

static inline void round_rows(__global const float *from, __global ushort *to, uint n_heads, uint head_dim, uint i)
{
    for (uint head = 0; head < n_heads; head++) {
        const size_t at = (size_t)head * head_dim + i;
        store_bf16(vload8(0, from + at), vload8(0, from + at + head_dim / 2), to + at, head_dim / 2);
    }
}
#endif
#ifdef OUT0_BF16
typedef ushort made0;
#define ROTATE0 rotate_bf16
#else
typedef float made0;
#define ROTATE0 rotate
#endif
#ifdef OUT1_BF16
typedef ushort made1;
#define ROTATE1 rotate_bf16
#else
typedef float made1;
#define ROTATE1 rotate
#endif
#ifdef ALSO0
#define ALSO0_ARGUMENT __global ushort *also0,
#define ROUND0(from, at, n_heads) round_rows((from) + (at), also0 + (at), n_heads, head_dim, i);
#else
#define ALSO0_ARGUMENT
#define ROUND0(from, at, n_heads)
#endif
#ifdef ALSO1
#define ALSO1_ARGUMENT __global ushort *also1,
#define ROUND1(from, at, n_heads) round_rows((from) + (at), also1 + (at), n_heads, head_dim, i);
#else
#define ALSO1_ARGUMENT
#define ROUND1(from, at, n_heads)
#endif

#define FREQUENCIES                                                                                                                        \
    uint upper[256], lower[256];                                                                                                           \
    for (uint i = 0; i < head_dim / 2; i++) {                                                                                              \
        const ulong frequency = TP_ROPE_FREQUENCY(i);                                                                                      \
        upper[i] = (uint)(frequency >> 32);                                                                                                \
        lower[i] = (uint)frequency;                                                                                                        \
    }
#define ANGLE(c, s)                                                                                                                        \
    float8 c, s;                                                                                                                           \
    tp_rope_angle(&c, &s, (uint8)((uint)positions[t]), vload8(0, upper + i), vload8(0, lower + i));                                        \
    if (inverse) s = -s;

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void rope(__global const float *x, __global const int *positions,
                                                                  TP_ROPE_TABLE_ARGUMENT __global made0 *y, ALSO0_ARGUMENT __global const uint *step,
                                                                  uint sym, uint bound, uint n_heads, uint head_dim,
                                                                  TP_ROPE_RATIO_ARGUMENTS uint inverse, uint n_groups)
{
    const uint n = tp_rows(step, sym, bound), end = tp_share_rows(n, n_groups, tp_group_id(0) + 1);
    const size_t d = (size_t)n_heads * head_dim;
    FREQUENCIES
    for (uint t = tp_share_rows(n, n_groups, tp_group_id(0)); t < end; t++) {
        for (uint i = 0; i < head_dim / 2; i += 8) {
            ANGLE(c, s)
            ROTATE0(x + t * d, y + t * d, n_heads, head_dim, i, c, s);
            ROUND0(y, t * d, n_heads)
        }
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void rope_pair(__global const float *q, __global const float *k,
                                                                       __global const int *positions, TP_ROPE_TABLE_ARGUMENT
                                                                       __global made0 *rotated_q, ALSO0_ARGUMENT
                                                                       __global made1 *rotated_k, ALSO1_ARGUMENT __global const uint *step, uint sym, uint bound, uint n_heads,
                                                                       uint n_kv_heads, uint head_dim, TP_ROPE_RATIO_ARGUMENTS uint inverse,
                                                                       uint n_groups)
{
    const uint n = tp_rows(step, sym, bound), end = tp_share_rows(n, n_groups, tp_group_id(0) + 1);
    const size_t d = (size_t)n_heads * head_dim, d_kv = (size_t)n_kv_heads * head_dim;
    FREQUENCIES
    for (uint t = tp_share_rows(n, n_groups, tp_group_id(0)); t < end; t++) {
        for (uint i = 0; i < head_dim / 2; i += 8) {
            ANGLE(c, s)
            ROTATE0(q + t * d, rotated_q + t * d, n_heads, head_dim, i, c, s);
            ROUND0(rotated_q, t * d, n_heads)
            ROTATE1(k + t * d_kv, rotated_k + t * d_kv, n_kv_heads, head_dim, i, c, s);
            ROUND1(rotated_k, t * d_kv, n_kv_heads)
        }
    }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void rope_cache(__global const float *q, __global const float *k,
                                                                        __global const float *v, __global const int *positions,
                                                                        __global const int *slots, TP_ROPE_TABLE_ARGUMENT
                                                                        __global float *rotated_q, __global float *k_cache,
                                                                        __global float *v_cache, __global const uint *step, uint sym,
                                                                        uint bound, uint n_slots, uint n_heads, uint n_kv_heads,
                                                                        uint head_dim, TP_ROPE_RATIO_ARGUMENTS uint inverse, uint n_groups)
{
    const uint n = tp_rows(step, sym, bound), end = tp_share_rows(n, n_groups, tp_group_id(0) + 1);
    const size_t d = (size_t)n_heads * head_dim, d_kv = (size_t)n_kv_heads * head_dim;
    FREQUENCIES
    for (uint t = tp_share_rows(n, n_groups, tp_group_id(0)); t < end; t++) {
        const uint slot = (uint)slots[t];
        const bool inside = slot < n_slots;
        for (uint i = 0; i < head_dim / 2; i += 8) {
            ANGLE(c, s)
            rotate(q + t * d, rotated_q + t * d, n_heads, head_dim, i, c, s);
            rotate(k + t * d_kv, k_cache + slot * d_kv, inside ? n_kv_heads : 0, head_dim, i, c, s);
        }
        const size_t width = inside ? d_kv : 0; /* a multiple of 16 */
        for (size_t j = 0; j < width; j += 16) tp_store16(tp_load16(v + t * d_kv + j), v_cache + slot * d_kv + j);
    }
}
