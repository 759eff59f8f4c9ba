/* The step-parameter buffer: run-time sizes and scalars that kernels read on the device, so that a plan made for an upper bound serves every
 * batch. An array of 32-bit words; words marked (f32) hold the bits of a float. kernels/common/step.clh repeats these numbers and
 * tests/graph/test_step.c compares the two. */
#ifndef TP_STEP_H
#define TP_STEP_H

#include <stdint.h>

enum tp_step_word {
    TP_STEP_NONE = 0,         /* as a row symbol: the bound in the shape is exact */
    TP_STEP_N_TOKENS = 1,     /* rows of this micro-batch */
    TP_STEP_N_LABELLED = 2,   /* rows that carry a label */
    TP_STEP_N_SEGMENTS = 3,   /* sequences in this micro-batch */
    TP_STEP_N_PAST = 4,       /* tokens already in the KV cache */
    TP_STEP_MICRO = 5,        /* index of the micro-batch in its optimizer step */
    TP_STEP_INDEX = 6,        /* optimizer step, from 0 */
    TP_STEP_SEED_LO = 7,
    TP_STEP_SEED_HI = 8,
    TP_STEP_LEARNING_RATE = 9, /* (f32) */
    TP_STEP_LOSS_SCALE = 10,   /* (f32) 1 / labelled tokens of the whole optimizer step */
    TP_STEP_AUX_WEIGHT = 11,   /* (f32) share of this micro-batch in the optimizer step's tokens */
    TP_STEP_MAX_NORM = 12,     /* (f32) gradient clipping, 0 = none */
    TP_STEP_WEIGHT_DECAY = 13, /* (f32) */
    TP_STEP_ONE = 14,          /* (f32) always 1 */
    TP_STEP_CONTRASTIVE_WEIGHT = 15, /* (f32) the same share times the warm-up of the contrastive loss, 0 to 1 */
    TP_STEP_MAX_THRESHOLD = 16, /* (f32) of threshold gates that a run steers */
    TP_STEP_WORDS = 32
};

struct tp_step {
    uint32_t word[TP_STEP_WORDS];
};

static inline void tp_step_set_f32(struct tp_step *step, enum tp_step_word word, float value)
{
    union {
        float f;
        uint32_t u;
    } bits = {.f = value};
    step->word[word] = bits.u;
}

#endif
