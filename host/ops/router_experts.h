/* Groups that start from router_scores: router, threshold gate and experts of few rows, of one product or of several with the same input. */
#ifndef TP_ROUTER_EXPERTS_H
#define TP_ROUTER_EXPERTS_H

#include "graph/fusion.h"

/** For tp_op_router_scores. */
enum { TP_N_ROUTER_EXPERTS_FUSIONS = 2 };
extern const struct tp_fusion tp_router_experts_fusions[TP_N_ROUTER_EXPERTS_FUSIONS];

#endif
