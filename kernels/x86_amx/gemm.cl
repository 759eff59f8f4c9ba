/* out[m, n] (+)= c[m, n] + sum_k a(m, k) * b(k, n) in bf16 with f32 accumulation by AMX tiles: arguments, layouts and index map in
 * common/gemm_bf16.clh. Micro-tiles of 32 rows x 32 columns: tmm0..3 accumulate, tmm4, 5 hold a (16 rows x 32 k, straight from the rows by
 * their stride), tmm6, 7 hold b (16 pairs of k x 16 columns). A block of 32 k is summed by itself and then added (Intel SDM, TDPBF16PS);
 * values below the smallest normal number count as zero.
 * The process needs the operating system's permission for tiles before this kernel runs, or it dies: host/exec/tier.c. The compiler uses no
 * tile registers, so they are not declared as clobbered. With -DAMX_EMULATE=1 the tile instructions are plain C of the same meaning, which
 * tests layouts, loops and edges on processors without tiles. */
#define GEMM_ROWS 32
#define GEMM_BEGIN TILES_BEGIN
#define GEMM_END TILES_END

#ifdef AMX_EMULATE
/* Configuration: every tile has 16 rows of 64 bytes. Elements are kept as their 32 bits. */
#define TILES_BEGIN
#define TILES_END
#define TILES uint tile[8][256];
#define TILE_ZERO(t) \
    for (uint e = 0; e < 256; e++) tile[t][e] = 0
#define TILE_LOAD(t, p, stride) \
    for (uint e = 0; e < 256; e++) tile[t][e] = (p)[e / 16 * ((stride) / 4) + e % 16]
#define TILE_STORE(t, p, stride) \
    for (uint e = 0; e < 256; e++) (p)[e / 16 * ((stride) / 4) + e % 16] = tile[t][e]
#define TILE_DP(to, a, b) emulate_dp(tile[to], tile[a], tile[b])
/* Values below the smallest normal number are zero, as input and as result; each product is added with one rounding. */
static inline float flushed(float x) { return fabs(x) < 0x1p-126f ? 0.0f : x; }
static inline void emulate_dp(uint *to, const uint *a, const uint *b)
{
    for (uint m = 0; m < 16; m++)
        for (uint n = 0; n < 16; n++) {
            float sum = 0.0f;
            for (uint k = 0; k < 16; k++) {
                const uint x = a[m * 16 + k], y = b[k * 16 + n];
                sum = flushed(fma(flushed(as_float(x << 16)), flushed(as_float(y << 16)), sum));
                sum = flushed(fma(flushed(as_float(x & 0xffff0000u)), flushed(as_float(y & 0xffff0000u)), sum));
            }
            to[m * 16 + n] = as_uint(flushed(flushed(as_float(to[m * 16 + n])) + sum));
        }
}
#else
#define TILES
#define TILES_BEGIN                                                                             \
    {                                                                                           \
        /* Palette 1; eight tiles of 64 bytes (16-bit fields from byte 16) x 16 rows (byte 48). */ \
        uint config[16] = {1, 0, 0, 0, 0x400040, 0x400040, 0x400040, 0x400040, 0, 0, 0, 0, 0x10101010, 0x10101010, 0, 0}; \
        __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory");                          \
    }
#define TILES_END __asm__ volatile("tilerelease" : : : "memory");
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : : : "memory")
#define TILE_LOAD(t, p, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((ulong)(stride)) : "memory")
#define TILE_STORE(t, p, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((ulong)(stride)) : "memory")
#define TILE_DP(to, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #to : : : "memory")
#endif

#include "common/gemm_bf16.clh"

static void gemm_rows(__global const ushort *a, ulong a_stride_m, __global const ushort *panel, uint blocks, __global const float *c,
                      __global made *out, uint rows, uint columns, size_t out_stride, uint add)
{
    TILES
    for (uint row = 0; row < rows; row += 32) {
        __global const uint *top = (__global const uint *)(a + row * a_stride_m), *bottom = top + 8 * a_stride_m;
        __global const uint *left = (__global const uint *)panel;
        const size_t to = row * out_stride;
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (uint k = 0; k < blocks; k++) {
            TILE_LOAD(6, left, 64);
            TILE_LOAD(4, top, a_stride_m * 2);
            TILE_LOAD(7, left + 256, 64);
            TILE_LOAD(5, bottom, a_stride_m * 2);
            TILE_DP(0, 4, 6);
            TILE_DP(1, 4, 7);
            TILE_DP(2, 5, 6);
            TILE_DP(3, 5, 7);
            top += 16;
            bottom += 16;
            left += 512;
        }
#ifndef OUT_BF16
        if (rows - row >= 32 && columns == 32 && !add) {
            __global uint *direct = (__global uint *)(out + to);
            TILE_STORE(0, direct, out_stride * 4);
            TILE_STORE(1, direct + 16, out_stride * 4);
            TILE_STORE(2, direct + 16 * out_stride, out_stride * 4);
            TILE_STORE(3, direct + 16 * out_stride + 16, out_stride * 4);
        } else
#endif
        {
            float sums[32 * 32];
            uint *kept = (uint *)sums;
            TILE_STORE(0, kept, 128);
            TILE_STORE(1, kept + 16, 128);
            TILE_STORE(2, kept + 512, 128);
            TILE_STORE(3, kept + 528, 128);
            gemm_store(sums, c + to, out + to, min(32u, rows - row), columns, out_stride, add);
        }
    }
}
