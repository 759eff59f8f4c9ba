/* Adapters: LoRA and mixtures of LoRA experts on the linears of a model. */
#ifndef TALPA_ADAPTER_H
#define TALPA_ADAPTER_H

#include "talpa/status.h"
#include "talpa/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum talpa_routing { TALPA_ROUTING_LORA, TALPA_ROUTING_TOPK, TALPA_ROUTING_THRESHOLD, TALPA_ROUTING_ADAMOLE, TALPA_N_ROUTINGS };

/** What an adapter is made of. Sources: LoRA (arXiv 2106.09685), AdaMoLE and its baselines (arXiv 2405.00361). */
struct talpa_adapter_config {
    enum talpa_routing routing;
    int rank;                  /**< per expert */
    int n_experts;             /**< 1 for LoRA */
    int top_k;                 /**< topk */
    double threshold;          /**< threshold: fixed bound on the probability; 0: 1/n_experts */
    double max_threshold;      /**< adamole: upper end of the learned threshold; 0: 1/n_experts */
    double alpha;              /**< scale of an expert is alpha / rank */
    double dropout;            /**< on the adapter's input while training */
    bool independent_dropout;  /**< a mask per expert, as the published AdaMoLE code draws them, instead of one for all; the experts then run one
                                    by one, at n_experts times the adapter's cost */
    unsigned modules;          /**< set of TALPA_MODULE_* */
};

enum talpa_module {
    TALPA_MODULE_Q = 1, TALPA_MODULE_K = 2, TALPA_MODULE_V = 4, TALPA_MODULE_O = 8,
    TALPA_MODULE_GATE = 16, TALPA_MODULE_UP = 32, TALPA_MODULE_DOWN = 64, TALPA_N_MODULES = 7
};

/** adamole, 8 experts of rank 4, alpha 16, dropout 0.05, modules q, k, v, o. */
struct talpa_adapter_config talpa_adapter_default(void);
/** "lora", "topk", "threshold", "adamole". */
const char *talpa_routing_name(enum talpa_routing routing);
/** TALPA_E_ARGUMENT, with the known names, for another word. */
enum talpa_status talpa_routing_parse(enum talpa_routing *out, const char *name);
/** "q,k,v,o,gate,up,down" or "all", also with "_proj". TALPA_E_ARGUMENT for an unknown or repeated word. */
enum talpa_status talpa_modules_parse(unsigned *out, const char *list);

/** What `talpa inspect --lora` shows: reads the configuration and every tensor's name and shape of an adapter folder (strictly: unknown or
 *  missing tensors are TALPA_E_DATA). `lines` is a text, one line per tensor group; freed with free(). */
enum talpa_status talpa_adapter_inspect(struct talpa_adapter_config *config, char **lines, const char *folder);

#ifdef __cplusplus
}
#endif
#endif
