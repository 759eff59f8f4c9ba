/* Element types: sizes, names, conversion to and from f32 on the host. */
#ifndef TP_DTYPE_H
#define TP_DTYPE_H

#include "talpa/types.h"

/** Name as printed in graphs and plans ("f32", "q4_1"). */
const char *tp_dtype_name(enum talpa_dtype dtype);

/** Elements per block: 1 for plain types, 32 or (the K types) 256 for quantised ones. */
int tp_dtype_block(enum talpa_dtype dtype);

/** Bytes of one block. */
size_t tp_dtype_block_bytes(enum talpa_dtype dtype);

/** Bytes of `n` elements; `n` must be a multiple of the block. */
size_t tp_dtype_bytes(enum talpa_dtype dtype, int64_t n);

bool tp_dtype_is_quantised(enum talpa_dtype dtype);

float tp_f16_to_f32(uint16_t h);
uint16_t tp_f32_to_f16(float f);   /* round to nearest even; overflow to infinity */
float tp_bf16_to_f32(uint16_t h);
uint16_t tp_f32_to_bf16(float f);  /* round to nearest even; NaN stays NaN */

/** dst[i] = value of element i of `src`, for every dtype but I32. `n` must be a multiple of the block. */
void tp_dtype_to_f32(float *dst, const void *src, enum talpa_dtype dtype, int64_t n);

/** Encodes n f32 values; for quantised types see tp_quant_encode. */
void tp_dtype_from_f32(void *dst, const float *src, enum talpa_dtype dtype, int64_t n);

#endif
