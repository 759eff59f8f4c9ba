/* out[m, n] (+)= c[m, n] + sum_k a(m, k) * b(k, n) in bf16 with f32 accumulation by vdpbf16ps (AVX512-BF16): arguments, layouts and index
 * map in common/gemm_bf16.clh. Per lane the sum takes the pairs of k in ascending order, the odd one of a pair first; values below the
 * smallest normal number count as zero.
 * The loop over k of a micro-tile of 12 (8, 4) rows x 32 columns is one asm block with pointer operands only, which is what both PoCL and
 * Intel's runtime accept. AT&T syntax: LLVM drops what it cannot parse in .intel_syntax without failing the build. Intel's compiler knows no
 * vector register in a list of clobbers: there the block saves and restores the registers that it uses. */
#define GEMM_ROWS 12
#include "common/gemm_bf16.clh"

#define EACH8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define EACH16(X) EACH8(X) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define EACH24(X) EACH16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

#define ZERO(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define STORE(i) "vmovups %%zmm" #i ", 64*" #i "(%[sums])\n\t"
#if defined(__x86_64__)
#define SAVE(i)
#define RESTORE(i)
#define CLOBBERS                                                                                                                             \
    "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", \
        "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26"
#else
#define SAVE(i) "vmovups %%zmm" #i ", 1536+64*" #i "(%[sums])\n\t"
#define RESTORE(i) "vmovups 1536+64*" #i "(%[sums]), %%zmm" #i "\n\t"
#define CLOBBERS "memory", "cc"
#endif

/* Row `at` of a, pair P of the block: two accumulators. */
#define ROW(P, at, left, right)                              \
    "vbroadcastss 4*" #P at ", %%zmm26\n\t"                  \
    "vdpbf16ps %%zmm26, %%zmm24, %%zmm" #left "\n\t"         \
    "vdpbf16ps %%zmm26, %%zmm25, %%zmm" #right "\n\t"
#define ROWS4(P) ROW(P, "(%[a0])", 0, 1) ROW(P, "(%[a0],%[s])", 2, 3) ROW(P, "(%[a0],%[s],2)", 4, 5) ROW(P, "(%[a3])", 6, 7)
#define ROWS8(P)                                                                                            \
    ROWS4(P) ROW(P, "(%[a3],%[s])", 8, 9) ROW(P, "(%[a3],%[s],2)", 10, 11) ROW(P, "(%[a6])", 12, 13)        \
    ROW(P, "(%[a6],%[s])", 14, 15)
#define ROWS12(P)                                                                                           \
    ROWS8(P) ROW(P, "(%[a6],%[s],2)", 16, 17) ROW(P, "(%[a9])", 18, 19) ROW(P, "(%[a9],%[s])", 20, 21)      \
    ROW(P, "(%[a9],%[s],2)", 22, 23)
/* Pair P of a block asks for one of the 12 lines that the next micro-tile reads of a in its block of the same number, and for the lines of b
 * that come a block later: rows of a are far apart, and a panel is longer than the first cache. */
#define NEXT0 "prefetcht0 (%[n0])\n\t"
#define NEXT1 "prefetcht0 (%[n0],%[s])\n\t"
#define NEXT2 "prefetcht0 (%[n0],%[s],2)\n\t"
#define NEXT3 "prefetcht0 (%[n3])\n\t"
#define NEXT4 "prefetcht0 (%[n3],%[s])\n\t"
#define NEXT5 "prefetcht0 (%[n3],%[s],2)\n\t"
#define NEXT6 "prefetcht0 (%[n6])\n\t"
#define NEXT7 "prefetcht0 (%[n6],%[s])\n\t"
#define NEXT8 "prefetcht0 (%[n6],%[s],2)\n\t"
#define NEXT9 "prefetcht0 (%[n9])\n\t"
#define NEXT10 "prefetcht0 (%[n9],%[s])\n\t"
#define NEXT11 "prefetcht0 (%[n9],%[s],2)\n\t"
#define NEXT12
#define NEXT13
#define NEXT14
#define NEXT15
#define AHEAD(P) NEXT##P "prefetcht0 2048+64*" #P "(%[b])\n\tprefetcht0 3072+64*" #P "(%[b])\n\t"
#define PAIR(P, ROWS)                            \
    AHEAD(P)                                     \
    "vmovups 64*" #P "(%[b]), %%zmm24\n\t"       \
    "vmovups 1024+64*" #P "(%[b]), %%zmm25\n\t"  \
    ROWS(P)
#define BLOCK(R)                                                                                                            \
    PAIR(0, R) PAIR(1, R) PAIR(2, R) PAIR(3, R) PAIR(4, R) PAIR(5, R) PAIR(6, R) PAIR(7, R) PAIR(8, R) PAIR(9, R)           \
    PAIR(10, R) PAIR(11, R) PAIR(12, R) PAIR(13, R) PAIR(14, R) PAIR(15, R)

/* sums[row*32 + column] over all blocks; 24 further vectors of `sums` are the asm's own. */
#define TILE(name, ROWS, EACH)                                                                                                               \
    static inline void name(__global const ushort *a, ulong stride, __global const ushort *b, ulong blocks, float *sums)                     \
    {                                                                                                                                        \
        __global const char *a0 = (__global const char *)a, *a3 = a0 + 3 * stride, *a6 = a3 + 3 * stride, *a9 = a6 + 3 * stride;             \
        __global const char *n0 = a9 + 3 * stride, *n3 = n0 + 3 * stride, *n6 = n3 + 3 * stride, *n9 = n6 + 3 * stride;                      \
        __asm__ volatile(EACH(SAVE) SAVE(24) SAVE(25) SAVE(26) EACH(ZERO) "2:\n\t" BLOCK(ROWS) "addq $2048, %[b]\n\t"                        \
                         "addq $64, %[a0]\n\taddq $64, %[a3]\n\taddq $64, %[a6]\n\taddq $64, %[a9]\n\t"                                      \
                         "addq $64, %[n0]\n\taddq $64, %[n3]\n\taddq $64, %[n6]\n\taddq $64, %[n9]\n\tdecq %[n]\n\tjnz 2b\n\t"               \
                         EACH(STORE) EACH(RESTORE) RESTORE(24) RESTORE(25) RESTORE(26)                                                       \
                         : [a0] "+r"(a0), [a3] "+r"(a3), [a6] "+r"(a6), [a9] "+r"(a9), [n0] "+r"(n0), [n3] "+r"(n3), [n6] "+r"(n6),          \
                           [n9] "+r"(n9), [b] "+r"(b), [n] "+r"(blocks)                                                                      \
                         : [s] "r"(stride), [sums] "r"(sums)                                                                                 \
                         : CLOBBERS);                                                                                                        \
    }
TILE(tile_12, ROWS12, EACH24)
TILE(tile_8, ROWS8, EACH16)
TILE(tile_4, ROWS4, EACH8)

/* Asks for a tile's lines of c and out before its sums are made: a training step keeps what it writes, so they are rarely in a cache. */
static inline void fetch_tile(__global const float *c, __global made *out, uint rows, size_t out_stride, uint add)
{
    for (uint i = 0; i < rows; i++) {
#ifdef OUT_BF16
        __asm__ volatile("prefetchw (%0)" : : "r"(out + i * out_stride));
#else
        __asm__ volatile("prefetchw (%0)\n\tprefetchw 64(%0)" : : "r"(out + i * out_stride));
#endif
        if (add) __asm__ volatile("prefetcht0 (%0)\n\tprefetcht0 64(%0)" : : "r"(c + i * out_stride));
    }
}

static void gemm_rows(__global const ushort *a, ulong a_stride_m, __global const ushort *panel, uint blocks, __global const float *c,
                      __global made *out, uint rows, uint columns, size_t out_stride, uint add)
{
    float sums[12 * 32 + 27 * 16];
    for (uint row = 0; row < rows; row += 12) {
        const uint count = min(12u, rows - row);
        __global const ushort *from = a + row * a_stride_m;
        const size_t to = row * out_stride;
        fetch_tile(c + to, out + to, count, out_stride, add);
        if (count > 8) tile_12(from, a_stride_m * 2, panel, blocks, sums);
        else if (count > 4) tile_8(from, a_stride_m * 2, panel, blocks, sums);
        else tile_4(from, a_stride_m * 2, panel, blocks, sums);
        gemm_store(sums, c + to, out + to, count, columns, out_stride, add);
    }
}
