/* A group that starts from router_scores: router, threshold gate and experts of few rows. */
#ifndef TP_ROUTER_EXPERTS_H
#define TP_ROUTER_EXPERTS_H

#include "graph/fusion.h"

/** For tp_op_router_scores. */
extern const struct tp_fusion tp_router_experts_fusion;

#endif
