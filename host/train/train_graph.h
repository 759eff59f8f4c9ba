/* The graphs of training and of evaluation. */
#ifndef TP_TRAIN_GRAPH_H
#define TP_TRAIN_GRAPH_H

#include "adapters/adapter.h"

struct tp_train_graph_options {
    int64_t max_tokens, max_labelled; /* bounds of a micro-batch */
    double aux_coef;
    bool aux_on_probability;
    double beta1, beta2, epsilon; /* AdamW */
    bool gradient_checkpointing;  /* keep the residual stream after each layer only */
};

/** Phase batch: forward, loss, backward, accumulation. Phase update: norm, clipping, AdamW. */
struct tp_train_graph {
    struct talpa_graph *graph;
    struct tp_batch_inputs inputs;
    talpa_value params, grads, m, v; /* banks, version 0 */
    talpa_value selected, counts;    /* i32 states: selections per expert in this step, optimizer steps per tensor */
    talpa_value tensors;             /* input: the tensor table [n_tensors, 4] i32 */
    talpa_value loss, nll, aux;      /* outputs per micro-batch; aux is TALPA_NONE for LoRA */
    talpa_value contrastive;         /* output per micro-batch: sum over modules; TALPA_NONE but for moelora */
    talpa_value norm;                /* output of the update phase */
    int32_t *tensor_rows;            /* host contents of `tensors` */
    size_t tensor_bytes;
};

/** Builds the training graph of an adapter; the passes have run. The caller frees it. */
enum talpa_status tp_train_graph_create(struct tp_train_graph *out, const struct talpa_model *model, struct tp_adapter *adapter,
                                        const struct tp_train_graph_options *options);
void tp_train_graph_free(struct tp_train_graph *train);

/** Tokens of all rows whose expert outputs are kept, at most: inner products among them are what costs. */
enum { TP_ROUTE_SAMPLES = 256 };

/** Forward only: nll per labelled row. Adapter NULL: the base. `with_logits` also gives logits [T, vocabulary] (tests, small models). */
struct tp_eval_graph {
    struct talpa_graph *graph;
    struct tp_batch_inputs inputs;
    talpa_value params; /* TALPA_NONE for the base */
    talpa_value nll, loss, logits;
    struct tp_eval_route *routes; /* [n_routes] per module, of tp_eval_graph_create_routed; else NULL */
    int n_routes;
    talpa_value sample;           /* input [n_samples] i32: rows whose expert outputs are to be seen, -1: none; TALPA_NONE without routes */
    int n_samples;
};

/** What the router of a module decides; outputs of the evaluation graph. */
struct tp_eval_route {
    talpa_value weight, sel, raw, sample_z, gram; /* as in struct tp_adapter_module */
};
enum talpa_status tp_eval_graph_create(struct tp_eval_graph *out, const struct talpa_model *model, struct tp_adapter *adapter,
                                       int64_t max_tokens, int64_t max_labelled, bool with_logits);
/** The same without logits; what the routers of `adapter` decide, and samples of what its experts answer, are outputs that can be read
 *  after a pass. TALPA_E_ARGUMENT if nothing is routed (plain LoRA, or NULL: the base). */
enum talpa_status tp_eval_graph_create_routed(struct tp_eval_graph *out, const struct talpa_model *model, struct tp_adapter *adapter,
                                              int64_t max_tokens, int64_t max_labelled);
void tp_eval_graph_free(struct tp_eval_graph *eval);

#endif
