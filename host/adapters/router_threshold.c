/* Threshold routing: AdaMoLE's learned one and the fixed one it is compared with (arXiv 2405.00361, equations 4-7). */
#include "graph/step.h"
#include "router.h"

static enum talpa_status gate_fixed(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                                    talpa_value raw, const struct talpa_adapter_config *config)
{
    (void)raw;
    const double threshold = config->threshold > 0.0 ? config->threshold : 1.0 / config->n_experts;
    return talpa_threshold_gate(weight, sel, score, graph, p, TALPA_NONE, (float)threshold);
}

static enum talpa_status gate_learned(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                                      talpa_value raw, const struct talpa_adapter_config *config)
{
    const double max_threshold = config->max_threshold > 0.0 ? config->max_threshold : 1.0 / config->n_experts;
    return talpa_threshold_gate(weight, sel, score, graph, p, raw, (float)max_threshold);
}

/* raw is TALPA_NONE for the fixed threshold. */
static enum talpa_status gate_steered(talpa_value *weight, talpa_value *sel, talpa_value *score, struct talpa_graph *graph, talpa_value p,
                                      talpa_value raw)
{
    return talpa_threshold_gate_step(weight, sel, score, graph, p, raw, 1.0f, TP_STEP_MAX_THRESHOLD);
}

const struct tp_router tp_router_threshold = {.name = "threshold",
                                              .peft_type = "MOLE",
                                              .has_gating = true,
                                              .skips_unselected = true,
                                              .gate = gate_fixed,
                                              .gate_steered = gate_steered};

const struct tp_router tp_router_adamole = {.name = "adamole",
                                            .peft_type = "ADAMOLE",
                                            .has_gating = true,
                                            .has_threshold = true,
                                            .skips_unselected = true,
                                            .gate = gate_learned,
                                            .gate_steered = gate_steered};
