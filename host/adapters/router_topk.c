/* Top-k routing over LoRA experts: the MoLE baseline of arXiv 2405.00361, section 4, and MoELoRA (arXiv 2402.12851), which differs in
 * training only. */
#include "router.h"

static enum talpa_status gate(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                              talpa_value raw, const struct talpa_adapter_config *config)
{
    (void)raw;
    *score = p;
    return talpa_topk_gate(weight, sel, graph, p, config->top_k);
}

const struct tp_router tp_router_topk = {.name = "topk", .peft_type = "MOLE", .has_gating = true, .gate = gate};
const struct tp_router tp_router_moelora = {.name = "moelora", .peft_type = "MOLE", .has_gating = true, .gate = gate};
