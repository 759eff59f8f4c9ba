/* The built-in model random:tiny as a GGUF file, made here from its weights: q and k rows in GGUF's rotary order, its byte tokenizer as
 * keys. */
#ifndef TP_TEST_TINY_GGUF_H
#define TP_TEST_TINY_GGUF_H

#include "talpa/types.h"

/** Writes the file; fails the test if that fails. Matrices get `dtype` (the embedding Q8_0 where that is quantised), norms f32. */
void tiny_gguf_write(const char *path, enum talpa_dtype dtype);

#endif
