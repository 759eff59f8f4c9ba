/* Groups that start from rms_norm: the products of few normalised rows. */
#ifndef TP_NORM_PRODUCTS_H
#define TP_NORM_PRODUCTS_H

#include "graph/fusion.h"

enum { TP_N_NORM_FUSIONS = 2 };

/** For tp_op_rms_norm. */
extern const struct tp_fusion tp_norm_fusions[TP_N_NORM_FUSIONS];

#endif
