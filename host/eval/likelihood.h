/* Negative log-likelihoods of chosen tokens at chosen positions of token sequences: the forward graph, sequences packed into passes. */
#ifndef TP_LIKELIHOOD_H
#define TP_LIKELIHOOD_H

#include "train/evaluate.h"

/** One sequence and what is asked of it: nll[k] = -log p(labels[k] | ids[0 .. rows[k]]). Several labels may share a row (options). All
 *  borrowed, nll is written. */
struct tp_likelihood_item {
    const int32_t *ids;
    uint32_t n_ids;
    const uint32_t *rows; /* [n_labels] ascending, equal ones allowed */
    const int32_t *labels;
    uint32_t n_labels;
    float *nll;
    const struct tp_route_about
        *about; /* not NULL: what the routers do with it is added to likelihood->routes (n_tokens, n_prompt: not used) */
};

/** A model and an adapter on a device, prepared for passes of bounded size. */
struct tp_likelihood {
    struct tp_evaluator evaluator; /* its own `routes` stay unused: items say what they are */
    struct tp_route_stats *routes; /* NULL: routing is not looked at; borrowed */
};

/** Prepares passes of up to max_tokens tokens and max_labels labels. Adapter NULL: the base; else `bank` holds its parameters. Engine,
 * model and adapter outlive it, and `routes` (NULL: none), which gets what the routers of a mixture do with items that have `about`. Errors
 *  of planning and of the device. */
enum talpa_status tp_likelihood_create(struct tp_likelihood *out, struct tp_engine *engine, const struct talpa_model *model,
                                       struct tp_adapter *adapter, const float *bank, const struct tp_plan_options *options, bool sparse,
                                       uint32_t max_tokens, uint32_t max_labels, struct tp_route_stats *routes);
/** Zeroed is allowed. */
void tp_likelihood_free(struct tp_likelihood *likelihood);

/** Whether an item of this size can be run. */
bool tp_likelihood_fits(const struct tp_likelihood *likelihood, uint32_t n_tokens, uint32_t n_labels);

/** Runs all items, in order, as many per pass as fit but at most `batch_size`. An item's numbers do not depend on what shares its pass.
 *  TALPA_E_INTERNAL for an item beyond the bounds. */
enum talpa_status tp_likelihood_run(struct tp_likelihood *likelihood, const struct tp_likelihood_item *items, size_t n_items,
                                    int batch_size);

#endif
