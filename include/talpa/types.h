/* Plain types shared by all public headers. */
#ifndef TALPA_TYPES_H
#define TALPA_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Element types. Quantised types are blocks of 32 elements along the innermost dimension, byte for byte as in GGUF:
 *  Q8_0 = f16 d, 32 x i8 (w = d*q); Q4_0 = f16 d, 16 bytes (w = d*(q-8)); Q4_1 = f16 d, f16 m, 16 bytes (w = d*q+m); in the 4-bit types
 *  the low nibbles are elements 0..15 and the high nibbles 16..31 (GGUF specification, ggml block layouts). */
enum talpa_dtype { TALPA_F32, TALPA_F16, TALPA_BF16, TALPA_I32, TALPA_Q8_0, TALPA_Q4_0, TALPA_Q4_1, TALPA_N_DTYPES };

enum { TALPA_MAX_RANK = 4 };

/** Dimensions, outermost first, row-major. rank 0 is not used: a scalar is [1]. */
struct talpa_shape {
    int rank;
    int64_t dim[TALPA_MAX_RANK];
};

#endif
