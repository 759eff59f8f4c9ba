/* From logits to the next token. */
#ifndef TP_SAMPLER_H
#define TP_SAMPLER_H

#include "base/status.h"
#include "talpa/infer.h"

/** A token that may be drawn. */
struct tp_candidate {
    int32_t id;
    float logit;         /* after the repeat penalty */
    double probability;  /* after temperature, over all candidates */
};

struct tp_sampler {
    struct talpa_sampling sampling;
    int n_vocab;
    float *logits;                   /* [n_vocab] */
    struct tp_candidate *candidates; /* [n_vocab] */
    uint32_t *seen;                  /* [n_vocab] marks of the repeat penalty */
    uint32_t mark;
};

/** What a draw depends on besides logits and options. */
struct tp_sampler_context {
    const int32_t *history; /* prompt and answer so far, for the repeat penalty */
    size_t n_history;
    const int32_t *banned;  /* tokens that are never drawn */
    size_t n_banned;
    uint64_t request;       /* with the position of the token in its sequence: the key of the draw */
    uint32_t position;
};

/** TALPA_E_ARGUMENT for options out of range (the message names the flag). The caller frees with tp_sampler_free. */
enum talpa_status tp_sampler_create(struct tp_sampler *out, const struct talpa_sampling *sampling, int n_vocab);
void tp_sampler_free(struct tp_sampler *sampler);

/** Fills sampler->candidates with the tokens that pass the filters, and their probabilities; returns how many (1 if temperature is 0), best
 *  first where a filter had to sort. Order as in llama.cpp: repeat penalty, top-k, top-p, min-p, temperature. */
size_t tp_sampler_filter(struct tp_sampler *sampler, const float *logits, const struct tp_sampler_context *context);

/** The next token and the natural log of its probability under the plain logits. TALPA_E_CHECK if the logits are not finite. */
enum talpa_status tp_sampler_next(int32_t *id, float *logprob, struct tp_sampler *sampler, const float *logits,
                                  const struct tp_sampler_context *context);

#endif
