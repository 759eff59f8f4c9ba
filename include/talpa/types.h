/* Plain types shared by all public headers. */
#ifndef TALPA_TYPES_H
#define TALPA_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Element types. Quantised types are blocks along the innermost dimension, byte for byte as in GGUF (ggml's block layouts).
 *  Blocks of 32: Q8_0 = f16 d, 32 x i8 (w = d*q); Q4_0 = f16 d, 16 bytes (w = d*(q-8)); Q4_1 = f16 d, f16 m, 16 bytes (w = d*q+m); Q5_0 =
 *  f16 d, 32 high bits, 16 bytes (w = d*(q-16)); Q5_1 = f16 d, f16 m, 32 high bits, 16 bytes (w = d*q+m). Low nibbles are elements 0..15,
 *  high ones 16..31. Blocks of 256: Q4_K, Q5_K = f16 d, f16 dmin, 8 x (6-bit scale, 6-bit minimum) in 12 bytes, [256 high bits], 128 bytes
 *  (w = d*scale*q - dmin*min per 32 elements); Q6_K = 128 bytes of low nibbles, 64 of high bit pairs, 16 x i8 scale, f16 d (w =
 *  d*scale*(q-32) per 16 elements). */
enum talpa_dtype {
    TALPA_F32,
    TALPA_F16,
    TALPA_BF16,
    TALPA_I32,
    TALPA_Q8_0,
    TALPA_Q4_0,
    TALPA_Q4_1,
    TALPA_Q5_0,
    TALPA_Q5_1,
    TALPA_Q4_K,
    TALPA_Q5_K,
    TALPA_Q6_K,
    TALPA_N_DTYPES
};

enum { TALPA_MAX_RANK = 4 };

/** Dimensions, outermost first, row-major. rank 0 is not used: a scalar is [1]. */
struct talpa_shape {
    int rank;
    int64_t dim[TALPA_MAX_RANK];
};

#endif
