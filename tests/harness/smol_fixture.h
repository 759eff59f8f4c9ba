/* What the goldens on the real model share: adapter configuration and the deterministic start of its parameters (golden README). */
#ifndef TP_TEST_SMOL_FIXTURE_H
#define TP_TEST_SMOL_FIXTURE_H

#include "base/json.h"
#include "train_fixture.h"

/** "spec": [kind, targets, rank, alpha, experts, top_k, threshold]. */
struct talpa_adapter_config smol_config(const struct tp_json_value *spec);

/** Parameter number j (order of the adapter's tensors) = scale * (2u - 1), u from splitmix64(seed * 1000003 + j); uploads. */
void smol_init(struct fixture *f, uint64_t seed, double b_scale);

#endif
