/* Mixture of LoRA experts: what its forward and backward op share. Attributes: i[0] experts, i[1] rank, f[0] scale,
 * f[1] probability of dropout (0 without mask). */
#ifndef TP_LORA_EXPERT_H
#define TP_LORA_EXPERT_H

#include "graph/op.h"

/** Operands of the forward op; of the backward op where they differ: dy for y0, then z before weight, and at the end what is added to dx.
 *  Weight to list come all or not at all; keep is the mask of dropout_mask for x. */
enum { TP_LORA_Y0, TP_LORA_X, TP_LORA_A, TP_LORA_BT, TP_LORA_WEIGHT, TP_LORA_SEL, TP_LORA_COUNTS, TP_LORA_LIST, TP_LORA_KEEP, TP_LORA_N_IN };
enum {
    TP_LORA_DY = TP_LORA_Y0,
    TP_LORA_Z = TP_LORA_BT + 1,
    TP_LORA_BACKWARD_SHIFT = 1,
    TP_LORA_ADDEND = TP_LORA_N_IN + TP_LORA_BACKWARD_SHIFT,
    TP_LORA_BACKWARD_N_IN
};

extern const struct tp_op tp_op_lora_expert, tp_op_lora_expert_backward;

/** For references: element (t, k) of x as the experts see it, but for the factor 1 / (1 - p), and that factor with the scale. */
double tp_lora_expert_kept(const struct tp_reference *r, int routing, int64_t t, int64_t k);
double tp_lora_expert_scale(const struct tp_attrs *attrs);

/** Checks the attributes and all operands but z; `routing` is the operand that holds weight. */
enum talpa_status tp_lora_expert_check(const struct tp_infer *infer, int routing);

/** FLOPs and bytes of `products` pairs of skinny products (one forward, two or three backward) at the bounds. */
void tp_lora_expert_cost(const struct talpa_graph *graph, const struct tp_node *node, int products, double *flops, double *bytes);

/** The cpu tier: kernels of kernels/cpu/lora_expert.cl, dense and sparse. */
enum talpa_status tp_lora_expert_lower_cpu(struct tp_lower *lower);
enum talpa_status tp_lora_expert_lower_cpu_backward(struct tp_lower *lower);
/** Portable: dense by the shared matrix product, sparse by kernels/generic/lora_expert.cl. */
enum talpa_status tp_lora_expert_lower_generic(struct tp_lower *lower);
enum talpa_status tp_lora_expert_lower_generic_backward(struct tp_lower *lower);

/** For cases: makes weight, sel, counts and list (in[0..3], bound rows, n_tokens of them in use) agree. `mode` 0 keeps the random choice,
 *  1 lets no token choose expert 0, 2 lets all choose the last expert alone. */
void tp_lora_expert_route(double *const *in, int64_t bound, int64_t n_tokens, int64_t n_experts, int mode);

#endif
