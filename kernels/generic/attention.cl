/* Causal attention inside segments, tiles of 32 x 32 in local memory. Options: HEAD_DIM (any), TX and TY (work-group size, divisors of 32).
 *
 *   s(t, j)  = scale * <q[t], k[j]>,  first(t) <= j <= t      lse[t] = log sum_j exp s(t, j)      p = exp(s - lse)
 *   out[t]   = sum_j p(t, j) v[j]
 *   ds(t, j) = p(t, j) * (<dout[t], v[j]> - delta[t]),  delta[t] = <dout[t], out[t]>
 *   dq[t] = scale * sum_j ds(t, j) k[j]     dk[j] = scale * sum_t ds(t, j) q[t]     dv[j] = sum_t p(t, j) dout[t]
 *
 * A work-group keeps a block of 32 rows (queries, or keys for dk and dv) of one head and walks over the other side 32 columns at a time,
 * with a running maximum in the forward (online softmax, Milakov and Gimelshein 2018). Work-item (tx, ty) owns rows ty + r*TY, and columns
 * or dimensions tx + c*TX. Blocks go from the last to the first, the costly ones first. Accumulation in f32, in ascending order of columns
 * (and of query heads for dk and dv). */
#include "common/base.clh"
#include "common/step.clh"

#define TILE 32
#define PITCH (TILE + 1) /* no two rows in the same bank */
#define TILE_ELEMENTS (TILE * PITCH)
#define N_ROWS (TILE / TY)
#define N_COLS (TILE / TX)
#define SLICE_MAX 128 /* dimensions of dk and dv that one group accumulates: bounds the registers */
#define N_TILES(dims) (((dims) + TILE - 1) / TILE)
#define SLICE_DIMS (HEAD_DIM < SLICE_MAX ? HEAD_DIM : SLICE_MAX)
#define NOTHING -1e30f /* score of a masked position: finite, and exp(NOTHING - anything) is 0 */

#define EACH_ROW for (int r = 0; r < N_ROWS; r++)
#define EACH_COL for (int c = 0; c < N_COLS; c++)

/* tile[i][d] = x[first + i][d0 + d] of one head; 0 from row n and from dimension HEAD_DIM on. */
static inline void load_tile(__local float *tile, __global const float *x, size_t stride, int first, int n, int d0)
{
    for (int i = get_local_id(1) * TX + get_local_id(0); i < TILE * TILE; i += TX * TY) {
        const int row = i / TILE, d = i % TILE;
        tile[row * PITCH + d] = first + row < n && d0 + d < HEAD_DIM ? x[(size_t)(first + row) * stride + d0 + d] : 0.0f;
    }
}

/* to[r][c] = <a[a_first + row], b[b_first + column]> over HEAD_DIM. */
static inline void product(float to[N_ROWS][N_COLS], __local float *a_tile, __local float *b_tile, __global const float *a, size_t a_stride,
                           int a_first, __global const float *b, size_t b_stride, int b_first, int n)
{
    const int tx = get_local_id(0), ty = get_local_id(1);
    EACH_ROW EACH_COL to[r][c] = 0.0f;
    for (int d0 = 0; d0 < HEAD_DIM; d0 += TILE) {
        barrier(CLK_LOCAL_MEM_FENCE);
        load_tile(a_tile, a, a_stride, a_first, n, d0);
        load_tile(b_tile, b, b_stride, b_first, n, d0);
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int d = 0; d < TILE; d++) {
            float bv[N_COLS];
            EACH_COL bv[c] = b_tile[(tx + c * TX) * PITCH + d];
            EACH_ROW
            {
                const float av = a_tile[(ty + r * TY) * PITCH + d];
                EACH_COL to[r][c] = fma(av, bv[c], to[r][c]);
            }
        }
    }
}

/* acc[r][i] += sum_j p[row][j] * x[first + j][d_first + tx + i*TX], for `dims` dimensions (a constant). */
#define ACCUMULATE(acc, dims, p, b_tile, x, stride, first, n, d_first)                                                                     \
    _Pragma("unroll") for (int tile_ = 0; tile_ < N_TILES(dims); tile_++)                                                                  \
    {                                                                                                                                      \
        barrier(CLK_LOCAL_MEM_FENCE);                                                                                                      \
        load_tile(b_tile, x, stride, first, n, (d_first) + tile_ * TILE);                                                                  \
        barrier(CLK_LOCAL_MEM_FENCE);                                                                                                      \
        for (int j = 0; j < TILE; j++) {                                                                                                   \
            float bv[N_COLS];                                                                                                              \
            EACH_COL bv[c] = b_tile[j * PITCH + tx + c * TX];                                                                              \
            EACH_ROW                                                                                                                       \
            {                                                                                                                              \
                const float pv = p[(ty + r * TY) * PITCH + j];                                                                             \
                EACH_COL acc[r][tile_ * N_COLS + c] = fma(pv, bv[c], acc[r][tile_ * N_COLS + c]);                                          \
            }                                                                                                                              \
        }                                                                                                                                  \
    }

/* Writes acc * factor[r] to rows first + row; factor is an expression in r. */
#define WRITE_ROWS(to, acc, dims, stride, first, n, d_first, factor)                                                                       \
    EACH_ROW for (int i = 0; i < N_TILES(dims) * N_COLS; i++)                                                                              \
    {                                                                                                                                      \
        const int t_ = (first) + ty + r * TY, d_ = tx + i * TX;                                                                            \
        if (t_ < n && d_ < (dims) && (d_first) + d_ < HEAD_DIM) to[(size_t)t_ * (stride) + (d_first) + d_] = acc[r][i] * (factor);         \
    }

/* Group: (block of 32 queries, query head). */
__kernel __attribute__((reqd_work_group_size(TX, TY, 1))) void attention_forward(__global const float *q, __global const float *k,
                                                                                 __global const float *v, __global const int *segments,
                                                                                 __global float *out, __global float *lse,
                                                                                 __global const uint *step, uint sym, uint bound,
                                                                                 uint n_heads, uint n_kv_heads, float scale)
{
    __local float a_tile[TILE_ELEMENTS], b_tile[TILE_ELEMENTS], p_tile[TILE_ELEMENTS], reduce[TILE * (TX + 1)];
    const int rows = tp_rows(step, sym, bound), block = (rows + TILE - 1) / TILE - 1 - (int)tp_group_id(0);
    const int n = block < 0 ? 0 : rows, t0 = max(block, 0) * TILE, last = min(t0 + TILE, n); /* a surplus group sees no rows */
    const int head = tp_group_id(1), kv = head / (n_heads / n_kv_heads), tx = get_local_id(0), ty = get_local_id(1);
    const size_t q_stride = (size_t)n_heads * HEAD_DIM, kv_stride = (size_t)n_kv_heads * HEAD_DIM;
    q += (size_t)head * HEAD_DIM;
    out += (size_t)head * HEAD_DIM;
    k += (size_t)kv * HEAD_DIM;
    v += (size_t)kv * HEAD_DIM;

    float acc[N_ROWS][N_TILES(HEAD_DIM) * N_COLS], maximum[N_ROWS], sum[N_ROWS], s[N_ROWS][N_COLS];
    int lo[N_ROWS];
    EACH_ROW
    {
        const int t = t0 + ty + r * TY;
        lo[r] = t < n ? segments[2 * (size_t)t] : n;
        maximum[r] = NOTHING;
        sum[r] = 0.0f;
        for (int i = 0; i < N_TILES(HEAD_DIM) * N_COLS; i++) acc[r][i] = 0.0f;
    }
    for (int j0 = n ? max(segments[2 * (size_t)t0], 0) : 0; j0 < last; j0 += TILE) {
        product(s, a_tile, b_tile, q, q_stride, t0, k, kv_stride, j0, n);
        EACH_ROW
        {
            const int row = ty + r * TY;
            float high = NOTHING;
            EACH_COL
            {
                const int j = j0 + tx + c * TX;
                s[r][c] = j >= lo[r] && j <= t0 + row && j < n ? s[r][c] * scale : NOTHING;
                high = max(high, s[r][c]);
            }
            reduce[row * (TX + 1) + tx] = high;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        EACH_ROW
        {
            const int row = ty + r * TY;
            float high = maximum[r];
            for (int i = 0; i < TX; i++) high = max(high, reduce[row * (TX + 1) + i]);
            const float shrink = exp(maximum[r] - high);
            maximum[r] = high;
            sum[r] *= shrink;
            EACH_COL
            {
                const float p = s[r][c] > NOTHING ? exp(s[r][c] - high) : 0.0f;
                sum[r] += p;
                p_tile[row * PITCH + tx + c * TX] = p;
            }
            for (int i = 0; i < N_TILES(HEAD_DIM) * N_COLS; i++) acc[r][i] *= shrink;
        }
        ACCUMULATE(acc, HEAD_DIM, p_tile, b_tile, v, kv_stride, j0, n, 0)
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    EACH_ROW reduce[(ty + r * TY) * (TX + 1) + tx] = sum[r];
    barrier(CLK_LOCAL_MEM_FENCE);
    EACH_ROW
    {
        const int row = ty + r * TY;
        sum[r] = 0.0f;
        for (int i = 0; i < TX; i++) sum[r] += reduce[row * (TX + 1) + i];
        if (tx == 0 && t0 + row < n) lse[(size_t)(t0 + row) * n_heads + head] = maximum[r] + log(sum[r]);
    }
    WRITE_ROWS(out, acc, HEAD_DIM, q_stride, t0, n, 0, 1.0f / sum[r])
}

/* delta[T, n_heads]. Work-item: (row, head). */
__kernel void attention_delta(__global const float *out, __global const float *dout, __global float *delta, __global const uint *step,
                              uint sym, uint bound, uint n_heads)
{
    const size_t i = get_global_id(0);
    if (i >= (size_t)tp_rows(step, sym, bound) * n_heads) return;
    float sum = 0.0f;
    for (int d = 0; d < HEAD_DIM; d++) sum = fma(out[i * HEAD_DIM + d], dout[i * HEAD_DIM + d], sum);
    delta[i] = sum;
}

/* Group: (block of 32 queries, query head). */
__kernel __attribute__((reqd_work_group_size(TX, TY, 1))) void
attention_dq(__global const float *q, __global const float *k, __global const float *v, __global const float *dout,
             __global const float *delta, __global const float *lse, __global const int *segments, __global float *dq,
             __global const uint *step, uint sym, uint bound, uint n_heads, uint n_kv_heads, float scale)
{
    __local float a_tile[TILE_ELEMENTS], b_tile[TILE_ELEMENTS], ds_tile[TILE_ELEMENTS];
    const int rows = tp_rows(step, sym, bound), block = (rows + TILE - 1) / TILE - 1 - (int)tp_group_id(0);
    const int n = block < 0 ? 0 : rows, t0 = max(block, 0) * TILE, last = min(t0 + TILE, n); /* a surplus group sees no rows */
    const int head = tp_group_id(1), kv = head / (n_heads / n_kv_heads), tx = get_local_id(0), ty = get_local_id(1);
    const size_t q_stride = (size_t)n_heads * HEAD_DIM, kv_stride = (size_t)n_kv_heads * HEAD_DIM;
    q += (size_t)head * HEAD_DIM;
    dout += (size_t)head * HEAD_DIM;
    dq += (size_t)head * HEAD_DIM;
    k += (size_t)kv * HEAD_DIM;
    v += (size_t)kv * HEAD_DIM;

    float acc[N_ROWS][N_TILES(HEAD_DIM) * N_COLS], s[N_ROWS][N_COLS], dp[N_ROWS][N_COLS];
    int lo[N_ROWS];
    EACH_ROW
    {
        const int t = t0 + ty + r * TY;
        lo[r] = t < n ? segments[2 * (size_t)t] : n;
        for (int i = 0; i < N_TILES(HEAD_DIM) * N_COLS; i++) acc[r][i] = 0.0f;
    }
    for (int j0 = n ? max(segments[2 * (size_t)t0], 0) : 0; j0 < last; j0 += TILE) {
        product(s, a_tile, b_tile, q, q_stride, t0, k, kv_stride, j0, n);
        product(dp, a_tile, b_tile, dout, q_stride, t0, v, kv_stride, j0, n);
        EACH_ROW
        {
            const int row = ty + r * TY, t = min(t0 + row, n - 1);
            /* Read for every tile: kept in private arrays across the barriers, they came out wrong on Intel's CPU runtime 2026.22. */
            const float l = lse[(size_t)t * n_heads + head], d = delta[(size_t)t * n_heads + head];
            EACH_COL
            {
                const int column = tx + c * TX, j = j0 + column;
                const float p = j >= lo[r] && j <= t0 + row && j < n ? exp(s[r][c] * scale - l) : 0.0f;
                ds_tile[row * PITCH + column] = p * (dp[r][c] - d);
            }
        }
        ACCUMULATE(acc, HEAD_DIM, ds_tile, b_tile, k, kv_stride, j0, n, 0)
    }
    WRITE_ROWS(dq, acc, HEAD_DIM, q_stride, t0, n, 0, scale)
}

/* Group: (block of 32 keys, kv head, slice of SLICE_MAX dimensions). */
__kernel __attribute__((reqd_work_group_size(TX, TY, 1))) void
attention_dkv(__global const float *q, __global const float *k, __global const float *v, __global const float *dout,
              __global const float *delta, __global const float *lse, __global const int *segments, __global float *dk, __global float *dv,
              __global const uint *step, uint sym, uint bound, uint n_heads, uint n_kv_heads, float scale)
{
    __local float a_tile[TILE_ELEMENTS], b_tile[TILE_ELEMENTS], p_tile[TILE_ELEMENTS], ds_tile[TILE_ELEMENTS];
    const int rows = tp_rows(step, sym, bound), t0 = tp_group_id(0) * TILE, n = t0 < rows ? rows : 0; /* a surplus group sees no rows */
    const int kv = tp_group_id(1), d0 = tp_group_id(2) * SLICE_MAX;
    const int tx = get_local_id(0), ty = get_local_id(1), group = n_heads / n_kv_heads;
    const size_t q_stride = (size_t)n_heads * HEAD_DIM, kv_stride = (size_t)n_kv_heads * HEAD_DIM;
    const int last = n ? min(segments[2 * (size_t)min(t0 + TILE - 1, n - 1) + 1], n) : 0;
    k += (size_t)kv * HEAD_DIM;
    v += (size_t)kv * HEAD_DIM;
    dk += (size_t)kv * HEAD_DIM;
    dv += (size_t)kv * HEAD_DIM;

    float k_acc[N_ROWS][N_TILES(SLICE_DIMS) * N_COLS], v_acc[N_ROWS][N_TILES(SLICE_DIMS) * N_COLS], s[N_ROWS][N_COLS], dp[N_ROWS][N_COLS];
    int hi[N_ROWS];
    EACH_ROW
    {
        const int t = t0 + ty + r * TY;
        hi[r] = t < n ? min(segments[2 * (size_t)t + 1], n) : 0;
        for (int i = 0; i < N_TILES(SLICE_DIMS) * N_COLS; i++) k_acc[r][i] = v_acc[r][i] = 0.0f;
    }
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        __global const float *qh = q + (size_t)head * HEAD_DIM, *dh = dout + (size_t)head * HEAD_DIM;
        for (int j0 = t0; j0 < last; j0 += TILE) {
            product(s, a_tile, b_tile, k, kv_stride, t0, qh, q_stride, j0, n);
            product(dp, a_tile, b_tile, v, kv_stride, t0, dh, q_stride, j0, n);
            EACH_COL
            {
                const int column = tx + c * TX, j = j0 + column;
                const float l = j < n ? lse[(size_t)j * n_heads + head] : 0.0f, d = j < n ? delta[(size_t)j * n_heads + head] : 0.0f;
                EACH_ROW
                {
                    const int row = ty + r * TY;
                    const float p = j >= t0 + row && j < hi[r] ? exp(s[r][c] * scale - l) : 0.0f;
                    p_tile[row * PITCH + column] = p;
                    ds_tile[row * PITCH + column] = p * (dp[r][c] - d);
                }
            }
            ACCUMULATE(v_acc, SLICE_DIMS, p_tile, b_tile, dh, q_stride, j0, n, d0)
            ACCUMULATE(k_acc, SLICE_DIMS, ds_tile, b_tile, qh, q_stride, j0, n, d0)
        }
    }
    WRITE_ROWS(dk, k_acc, SLICE_DIMS, kv_stride, t0, n, d0, scale)
    WRITE_ROWS(dv, v_acc, SLICE_DIMS, kv_stride, t0, n, d0, 1.0f)
}
