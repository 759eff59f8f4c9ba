/* Quantised blocks on the host, byte for byte as in GGUF (talpa/types.h says what each holds; source: ggml's block layouts). */
#ifndef TP_QUANT_H
#define TP_QUANT_H

#include "talpa/types.h"

/** dst[block elements] = values of one block. The products are rounded as in ggml's reference code: scale times 6-bit scale first. */
void tp_quant_decode(float *dst, const uint8_t *block, enum talpa_dtype dtype);

/** Encodes one block. Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: the bytes of ggml's reference quantisers. Q4_K, Q5_K, Q6_K: the nearest values for
 *  scales taken from each group's range, without ggml's search for better scales (for tests and for models of our own making). */
void tp_quant_encode(uint8_t *block, const float *src, enum talpa_dtype dtype);

#endif
