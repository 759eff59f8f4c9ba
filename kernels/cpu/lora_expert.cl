/* Mixture of LoRA experts on a CPU: one work-item per work-group, float16 registers, no local memory. E experts of rank r, R = E*r.
 *
 *   lora_project            z[t, j] = <x[t], a[j]>, zs[t, j] = s z[t, j]; e = j / r, s = scale * weight[t, e] (or just scale)
 *   lora_project_backward   v[t, j] = <dy[t], bt[j]>, dweight[t, e] = sel[t, e] * scale * sum_{j of e} v z, dz = s v, zs = s z
 *   lora_combine_dense      out[t, :] = init[t, :] + sum_j coef[t, j] b[j, :]
 *   lora_combine_sparse     the same over the j of experts with sel[t, e] != 0; also dweight[t, e] = 0 for the others
 *   lora_outer              out[j, :] = sum_t coef[t, j] b[t, :]                          (a list: over its tokens, in its order)
 *
 * The experts come in n_blocks blocks of n_columns rows of a, bt (n_blocks * n_columns = R). Dense: one block, all run-time rows. Sparse: a
 * block per expert, rows list[e, 0 .. counts[e]). A fixed number of work-groups, n_groups, shares the units of work: group g takes units
 * g, g + n_groups, ... Everything stands at its dense position [T, R]; what no token chose is neither written nor read.
 * KEEP: x, or dx, goes through the mask of generic/dropout_mask.cl, n_words words per token: what it drops counts as 0. In lora_project that
 * is `x`, in lora_outer `b`, in the combinations the sum before init is added.
 * All sums in f32, in an order that depends on the sizes alone; dense and sparse add the same terms in the same order. */
#include "common/base.clh"
#include "common/step.clh"
#include "common/skinny.clh"

#define CHUNK 12   /* rows of a unit of lora_project */
#define ROWS 32    /* rows of a unit of lora_combine_dense */
#define TILE_ROWS 64 /* rows of a unit of lora_combine_sparse */

/* out[row, first_column + j] = <in[row], b[first_column + j]> for the rows first .. end - 1 of a list (0: the rows themselves). */
static inline void project(__global float *out, __global const float *in, __global const uint *keep, uint n_words, __global const float *b,
                           __global const int *list, uint first, uint end, uint n, uint n_all, uint first_column, uint n_columns)
{
    for (uint i0 = first; i0 < end; i0 += 6) {
        size_t token[6], row[6], keep_row[6];
        for (uint i = 0; i < 6; ++i) {
            const uint at = min(i0 + i, end - 1);
            token[i] = list ? (size_t)list[at] : (size_t)at;
            row[i] = token[i] * n;
            keep_row[i] = token[i] * n_words;
        }
        const uint n_rows = min(6u, end - i0);
        for (uint j0 = 0; j0 < n_columns; j0 += 4) {
            __global const float *column[4];
            for (uint j = 0; j < 4; ++j) column[j] = b + (size_t)(first_column + min(j0 + j, n_columns - 1)) * n;
            float4 r[6];
            dot_6x4(r, in, row, keep, keep_row, column, n);
            for (uint i = 0; i < n_rows; ++i) {
                __global float *to = out + token[i] * n_all + first_column + j0;
                if (j0 + 4 <= n_columns) {
                    vstore4(r[i], 0, to);
                } else {
                    to[0] = r[i].x;
                    if (j0 + 1 < n_columns) to[1] = r[i].y;
                    if (j0 + 2 < n_columns) to[2] = r[i].z;
                }
            }
        }
    }
}

SINGLE void lora_project(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *x, __global const float *a,
                         __global const uint *keep, uint n_words, __global const float *weight, __global const int *counts,
                         __global const int *list, __global float *z, __global float *zs, uint n, uint n_blocks, uint n_columns,
                         uint rank, float scale, uint has_weight, uint is_sparse, uint n_groups)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), n_all = n_blocks * n_columns, n_experts = n_all / rank;
    const uint group = tp_group_id(0);
    uint base = 0;
    for (uint block = 0; block < n_blocks; ++block) {
        const uint count = is_sparse ? min((uint)counts[block], n_tokens) : n_tokens;
        __global const int *rows = is_sparse ? list + (size_t)block * rows_bound : (__global const int *)0;
        const uint n_units = (count + CHUNK - 1) / CHUNK;
        for (uint unit = (group + n_groups - base % n_groups) % n_groups; unit < n_units; unit += n_groups) {
            const uint first = unit * CHUNK, end = min(first + CHUNK, count);
            project(z, x, keep, n_words, a, rows, first, end, n, n_all, block * n_columns, n_columns);
            for (uint i = first; i < end; ++i) {
                const size_t t = rows ? (size_t)rows[i] : (size_t)i;
                for (uint j = block * n_columns; j < (block + 1) * n_columns; j += rank) {
                    const float s = has_weight ? scale * weight[t * n_experts + j / rank] : scale;
                    uint q = j;
                    for (; q + 4 <= j + rank; q += 4) vstore4(s * vload4(0, z + t * n_all + q), 0, zs + t * n_all + q);
                    for (; q < j + rank; ++q) zs[t * n_all + q] = s * z[t * n_all + q];
                }
            }
        }
        base += n_units;
    }
}

SINGLE void lora_project_backward(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *dy,
                                  __global const float *bt, __global const float *z, __global const float *weight,
                                  __global const int *sel, __global const int *counts, __global const int *list, __global float *dz,
                                  __global float *zs, __global float *dweight, uint n, uint n_blocks, uint n_columns, uint rank,
                                  float scale, uint has_weight, uint is_sparse, uint n_groups)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), n_all = n_blocks * n_columns, n_experts = n_all / rank;
    const uint group = tp_group_id(0);
    uint base = 0;
    for (uint block = 0; block < n_blocks; ++block) {
        const uint count = is_sparse ? min((uint)counts[block], n_tokens) : n_tokens;
        __global const int *rows = is_sparse ? list + (size_t)block * rows_bound : (__global const int *)0;
        const uint n_units = (count + CHUNK - 1) / CHUNK;
        for (uint unit = (group + n_groups - base % n_groups) % n_groups; unit < n_units; unit += n_groups) {
            const uint first = unit * CHUNK, end = min(first + CHUNK, count);
            project(dz, dy, (__global const uint *)0, 0, bt, rows, first, end, n, n_all, block * n_columns, n_columns);
            for (uint i = first; i < end; ++i) {
                const size_t t = rows ? (size_t)rows[i] : (size_t)i;
                for (uint j = block * n_columns; j < (block + 1) * n_columns; j += rank) {
                    const size_t at = t * n_experts + j / rank;
                    const float s = has_weight ? scale * weight[at] : scale;
                    float dot = 0.0f;
                    size_t q = t * n_all + j;
                    float4 dots = (float4)(0.0f);
                    for (; q + 4 <= t * n_all + j + rank; q += 4) {
                        const float4 v = vload4(0, dz + q), u = vload4(0, z + q);
                        dots = fma(v, u, dots);
                        vstore4(s * v, 0, dz + q);
                        vstore4(s * u, 0, zs + q);
                    }
                    dot = (dots.x + dots.y) + (dots.z + dots.w);
                    for (; q < t * n_all + j + rank; ++q) {
                        const float v = dz[q], u = z[q];
                        dot = fma(v, u, dot);
                        dz[q] = s * v;
                        zs[q] = s * u;
                    }
                    if (has_weight) dweight[at] = sel[at] ? scale * dot : 0.0f;
                }
            }
        }
        base += n_units;
    }
}

#ifdef KEEP
#define KEEP_ROWS(rows) (rows)
#define KEEP_B(keep) (keep)
#else
#define KEEP_ROWS(rows) 0
#define KEEP_B(keep) ((__global const uint *)0)
#endif

SINGLE void lora_combine_dense(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *init,
                               __global const float *coef, __global const float *b, __global const uint *keep, uint n_words,
                               __global float *out, uint n_all, uint n, uint has_init, uint n_groups)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound);
    const uint n_across = (n + WIDTH - 1) / WIDTH, n_units = (n_tokens + ROWS - 1) / ROWS * n_across;
    for (uint unit = tp_group_id(0); unit < n_units; unit += n_groups) {
        const uint c = unit % n_across * WIDTH, first = unit / n_across * ROWS, end = min(first + ROWS, n_tokens);
        for (uint t0 = first; t0 < end; t0 += 4) {
            size_t row[4], coef_row[4];
            __global const uint *keep_row[4];
            for (uint i = 0; i < 4; ++i) {
                const size_t t = min(t0 + i, end - 1);
                keep_row[i] = keep + t * n_words;
                row[i] = t * n + c;
                coef_row[i] = t * n_all;
            }
            combine_4(out, has_init ? init : (__global const float *)0, row, min(4u, end - t0), coef, coef_row, 1, b + c, n,
                      (__global const int *)0, n_all, min((uint)WIDTH, n - c), (__global const uint *)0, KEEP_ROWS(keep_row), n_words, c,
                      (__global const float *)0);
        }
    }
}

/* Two products in one launch: out = coef^T b with n columns, through the mask, then out1 = coef1^T b1 with n1 columns, without. */
SINGLE void lora_outer(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *coef, __global const float *b,
                       __global const uint *keep, uint n_words, __global float *out, uint n, __global const float *coef1,
                       __global const float *b1, __global float *out1, uint n1, __global const int *counts, __global const int *list,
                       uint n_blocks, uint n_columns, uint is_sparse, uint n_groups)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), n_all = n_blocks * n_columns;
    const uint n_down = (n_columns + 3) / 4 * n_blocks;
    const uint n_first = n_down * ((n + WIDTH - 1) / WIDTH), n_units = n_first + n_down * ((n1 + WIDTH - 1) / WIDTH);
    for (uint unit = tp_group_id(0); unit < n_units; unit += n_groups) {
        /* Neighbours read the same columns of b. */
        const uint down = unit % n_down, block = down / ((n_columns + 3) / 4), j0 = down % ((n_columns + 3) / 4) * 4;
        const uint count = is_sparse ? min((uint)counts[block], n_tokens) : n_tokens;
        __global const int *rows = is_sparse ? list + (size_t)block * rows_bound : (__global const int *)0;
        const bool is_first = unit < n_first;
        const uint width = is_first ? n : n1, c = (is_first ? unit : unit - n_first) / n_down * WIDTH;
        size_t row[4], coef_row[4];
        for (uint i = 0; i < 4; ++i) {
            coef_row[i] = block * n_columns + min(j0 + i, n_columns - 1);
            row[i] = coef_row[i] * width + c;
        }
        if (is_first)
            combine_4(out, (__global const float *)0, row, min(4u, n_columns - j0), coef, coef_row, n_all, b + c, n, rows, count,
                      min((uint)WIDTH, n - c), KEEP_B(keep), 0, n_words, c, (__global const float *)0);
        else
            combine_4(out1, (__global const float *)0, row, min(4u, n_columns - j0), coef1, coef_row, n_all, b1 + c, n1, rows, count,
                      min((uint)WIDTH, n1 - c), (__global const uint *)0, 0, 0, 0, (__global const float *)0);
    }
}

/* Number of entries of an ascending list that are below `bound`. */
static inline uint count_below(__global const int *list, uint n, int bound)
{
    uint at = 0;
    while (n > 0) {
        const uint half_n = (n + 1) / 2;
        at += list[at + half_n - 1] < bound ? half_n : 0;
        n -= half_n;
    }
    return at;
}

/* A unit is a tile of TILE_ROWS tokens and WIDTH columns, kept in private memory. Expert by expert, the tokens of the tile that chose it
 * are looked up in the list, and four of them share every load of b. */
SINGLE void lora_combine_sparse(__global const uint *step, uint rows_symbol, uint rows_bound, __global const float *init,
                                __global const float *coef, __global const float *b, __global const uint *keep, uint n_words,
                                __global const int *sel, __global const int *counts, __global const int *list, __global float *out, __global float *dweight,
                                uint n_experts, uint rank, uint n, uint has_init, uint has_dweight, uint n_groups)
{
    const uint n_tokens = tp_rows(step, rows_symbol, rows_bound), n_all = n_experts * rank;
    const uint n_across = (n + WIDTH - 1) / WIDTH, n_units = (n_tokens + TILE_ROWS - 1) / TILE_ROWS * n_across;
    float16 tile[TILE_ROWS * VECTORS];
    for (uint unit = tp_group_id(0); unit < n_units; unit += n_groups) {
        const uint first_column = unit % n_across * WIDTH, first = unit / n_across * TILE_ROWS;
        const uint n_rows = min((uint)TILE_ROWS, n_tokens - first);
        const uint width = min((uint)WIDTH, n - first_column), n_vectors = width / 16;
        const size_t corner = (size_t)first * n + first_column;
        __global const int *chosen = sel + (size_t)first * n_experts;
        __global const float *f = coef + (size_t)first * n_all;
        for (uint i = 0; i < n_rows * VECTORS; ++i) tile[i] = (float16)(0.0f);
        for (uint e = 0; e < n_experts; ++e) {
            __global const int *token = list + (size_t)e * rows_bound;
            const uint count = min((uint)counts[e], n_tokens), skipped = count_below(token, count, (int)first);
            token += skipped;
            const uint n_chosen = count_below(token, min(count - skipped, n_rows), (int)(first + n_rows));
            __global const float *from = b + (size_t)e * rank * n + first_column;
            for (uint i = 0; i < n_chosen; i += 4) {
                const uint last = n_chosen - 1;
                const size_t t0 = token[i] - first, t1 = token[min(i + 1, last)] - first, t2 = token[min(i + 2, last)] - first,
                             t3 = token[min(i + 3, last)] - first;
#define POINT(i) \
    __global const float *f##i = f + t##i * n_all + e * rank; \
    float16 *sum##i = tile + t##i * VECTORS;
                FOR4(POINT)
                if (n_vectors == VECTORS) {
#define LOAD(i) \
    float16 c##i##0 = sum##i[0], c##i##1 = sum##i[1], c##i##2 = sum##i[2], c##i##3 = sum##i[3], c##i##4 = sum##i[4], c##i##5 = sum##i[5];
                    FOR4(LOAD)
                    for (uint j = 0; j < rank; ++j) {
                        __global const float *p = from + (size_t)j * n;
                        const uint q = j;
                        MULTIPLY_4x6(p, q)
                    }
#define PUT_BACK(i) \
    sum##i[0] = c##i##0, sum##i[1] = c##i##1, sum##i[2] = c##i##2, sum##i[3] = c##i##3, sum##i[4] = c##i##4, sum##i[5] = c##i##5;
                    FOR4(PUT_BACK)
                } else {
                    for (uint v = 0; v < n_vectors; ++v) {
                        float16 c0 = sum0[v], c1 = sum1[v], c2 = sum2[v], c3 = sum3[v];
                        for (uint j = 0; j < rank; ++j) {
                            const float16 w = vload16(v, from + (size_t)j * n);
                            c0 = fma((float16)(f0[j]), w, c0);
                            c1 = fma((float16)(f1[j]), w, c1);
                            c2 = fma((float16)(f2[j]), w, c2);
                            c3 = fma((float16)(f3[j]), w, c3);
                        }
                        sum0[v] = c0, sum1[v] = c1, sum2[v] = c2, sum3[v] = c3;
                    }
                }
            }
            if (has_dweight && first_column == 0) {
                for (uint t = 0; t < n_rows; ++t)
                    if (!chosen[(size_t)t * n_experts + e]) dweight[(size_t)(first + t) * n_experts + e] = 0.0f;
            }
        }
        for (size_t t = 0; t < n_rows; ++t) {
            const size_t row = corner + t * n;
            for (uint v = 0; v < n_vectors; ++v) {
                const float16 sum = KEPT16(tile[t * VECTORS + v], keep + (first + t) * n_words, first_column + 16 * v);
                STORE16(has_init ? vload16(v, init + row) + sum : sum, out + row + 16 * v);
            }
            for (uint c = n_vectors * 16; c < width; ++c) {
                float sum = 0.0f;
                for (uint e = 0; e < n_experts; ++e) {
                    if (!chosen[t * n_experts + e]) continue;
                    for (size_t j = e * rank; j < (size_t)(e + 1) * rank; ++j)
                        sum = fma(f[t * n_all + j], b[j * n + first_column + c], sum);
                }
                sum = KEPT(sum, keep + (first + t) * n_words, first_column + c);
                out[row + c] = has_init ? init[row + c] + sum : sum;
            }
        }
    }
}
