/* Routers: how a mixture weighs its experts. One descriptor per routing strategy; the list is tp_routers. */
#ifndef TP_ROUTER_H
#define TP_ROUTER_H

#include "graph/graph.h"
#include "talpa/adapter.h"

struct tp_router {
    const char *name;      /* on the command line */
    const char *peft_type; /* in adapter_config.json */
    bool has_gating;       /* lora_gating.weight [E, d_in] */
    bool has_threshold;    /* lora_threshold.weight [1, d_in] and .bias [1] */
    bool skips_unselected; /* an expert that no token of the step selected gets no optimizer step (published code: its gradient is None) */
    /** Appends the gate on probabilities p [T, E]; raw [T, 1] is given if has_threshold. score feeds the balance loss. */
    enum talpa_status (*gate)(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                              talpa_value raw, const struct talpa_adapter_config *config);
    /** The same with the bound of the step word TP_STEP_MAX_THRESHOLD instead of the configuration's. NULL: no threshold to steer. */
    enum talpa_status (*gate_steered)(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                                      talpa_value raw);
};

extern const struct tp_router tp_router_topk, tp_router_threshold, tp_router_adamole, tp_router_moelora;

/** Does every token run through the top_k experts of highest probability? */
static inline bool tp_router_is_topk(enum talpa_routing routing)
{
    return routing == TALPA_ROUTING_TOPK || routing == TALPA_ROUTING_MOELORA;
}

/** Descriptor of a strategy; plain LoRA has one without gate. */
const struct tp_router *tp_router_get(enum talpa_routing routing);

#endif
