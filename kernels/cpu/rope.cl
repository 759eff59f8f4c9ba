/* As generic/rope.cl, head_dim a multiple of 16 and at most 512. One work-item per group, each takes a contiguous share of the rows;
 * 8 pairs at a time, all heads. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/vector.clh"

typedef float8 tp_rope_float;
typedef int8 tp_rope_int;
typedef uint8 tp_rope_uint;
#define TP_ROPE_TO_FLOAT(x) convert_float8(x)
#define TP_ROPE_TO_INT(x) as_int8(x)
#include "common/rope.clh"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void rope(__global const float *x, __global const int *positions,
                                                                  TP_ROPE_TABLE_ARGUMENT __global float *y, __global const uint *step,
                                                                  uint sym, uint bound, uint n_heads, uint head_dim,
                                                                  TP_ROPE_RATIO_ARGUMENTS uint inverse, uint n_groups)
{
    uint upper[256], lower[256];
    const uint n = tp_rows(step, sym, bound), pairs = head_dim / 2, end = tp_share_rows(n, n_groups, tp_group_id(0) + 1);
    for (uint i = 0; i < pairs; i++) {
        const ulong frequency = TP_ROPE_FREQUENCY(i);
        upper[i] = (uint)(frequency >> 32);
        lower[i] = (uint)frequency;
    }
    for (uint t = tp_share_rows(n, n_groups, tp_group_id(0)); t < end; t++) {
        for (uint i = 0; i < pairs; i += 8) {
            float8 c, s;
            tp_rope_angle(&c, &s, (uint8)((uint)positions[t]), vload8(0, upper + i), vload8(0, lower + i));
            if (inverse) s = -s;
            for (uint head = 0; head < n_heads; head++) {
                const size_t at = ((size_t)t * n_heads + head) * head_dim + i;
                const float8 a = vload8(0, x + at), b = vload8(0, x + at + pairs);
                *(__global float8 *)(y + at) = a * c - b * s; /* aligned: at is a multiple of 8 */
                *(__global float8 *)(y + at + pairs) = b * c + a * s;
            }
        }
    }
}
