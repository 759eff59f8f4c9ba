/* The bits of a dropout mask (ops/dropout_mask.c), for ops that apply one. */
#ifndef TP_DROPOUT_MASK_H
#define TP_DROPOUT_MASK_H

#include "graph/op.h"

/** Words per row of a mask for `width` columns. */
int64_t tp_dropout_mask_words(int64_t width);
/** For references: whether a row of the mask, given as doubles, keeps the column. */
bool tp_dropout_mask_keeps(const double *row, int64_t column);

#endif
