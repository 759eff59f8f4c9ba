/* Contrastive loss among the outputs of experts: what its forward and backward op share. Attributes: enum below; f[0] scale, f[1]
 * temperature; key the random stream of the sampling.
 *
 * An item is a token that chose an expert. The items of expert e stand at places start .. start + count of a list in which every expert
 * begins at a multiple of TP_CONTRAST_BLOCK; places in between are -1. */
#ifndef TP_CONTRASTIVE_LOSS_H
#define TP_CONTRASTIVE_LOSS_H

#include "graph/op.h"

enum { TP_CONTRAST_BLOCK = 16 };

enum {
    TP_CONTRAST_EXPERTS, /* attributes */
    TP_CONTRAST_RANK,
    TP_CONTRAST_SAMPLES,   /* items of an expert at most, 0: all */
    TP_CONTRAST_NORMALISE, /* outputs of length 1 */
    TP_CONTRAST_PER_TOKEN  /* experts of a token at most */
};
enum {
    TP_CONTRAST_X,
    TP_CONTRAST_A,
    TP_CONTRAST_BT,
    TP_CONTRAST_COUNTS,
    TP_CONTRAST_LIST,
    TP_CONTRAST_EXAMPLES,
    TP_CONTRAST_POSITIONS,
    TP_CONTRAST_WEIGHT,
    TP_CONTRAST_N_IN
};
/** Outputs: loss [1]; items i32 [2 n_experts + places]: start and count of every expert, then a token per place; dz [places, rank + 1]: the
 *  loss's derivative by A_e x of every item and, last, by its weight; w [n_experts rank, n_experts rank]: dlora_bt = w lora_bt. */
enum { TP_CONTRAST_LOSS, TP_CONTRAST_ITEMS, TP_CONTRAST_DZ, TP_CONTRAST_W };

/** Operands of the backward op. */
enum {
    TP_CONTRAST_BACK_ITEMS = TP_CONTRAST_BT + 1,
    TP_CONTRAST_BACK_DZ,
    TP_CONTRAST_BACK_W,
    TP_CONTRAST_BACK_DLOSS,
    TP_CONTRAST_BACK_WEIGHT,
    TP_CONTRAST_BACK_ADDEND,
    TP_CONTRAST_BACK_N_IN
};

extern const struct tp_op tp_op_contrastive_loss, tp_op_contrastive_loss_backward;

/** Places for items: what the samples allow, or the tokens, whichever is less; a multiple of TP_CONTRAST_BLOCK. */
int64_t tp_contrast_places(const struct tp_attrs *attrs, int64_t n_tokens);

/** Checks attributes, x, lora_a and lora_bt. */
enum talpa_status tp_contrast_check(const struct tp_infer *infer);

/** contrastive_loss_lower.c: the generic tier is complete, the cpu tier takes everything too. */
enum talpa_status tp_contrast_lower_cpu(struct tp_lower *lower);
enum talpa_status tp_contrast_lower_generic(struct tp_lower *lower);
enum talpa_status tp_contrast_lower_cpu_backward(struct tp_lower *lower);
enum talpa_status tp_contrast_lower_generic_backward(struct tp_lower *lower);

#endif
