#include "smol_fixture.h"

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "golden.h"

struct talpa_adapter_config smol_config(const struct tp_json_value *spec)
{
    struct talpa_adapter_config c = talpa_adapter_default();
    const char *kind;
    int64_t n;
    golden_ok(tp_json_as_string(&kind, tp_json_at(spec, 0), "kind"));
    golden_ok(talpa_routing_parse(&c.routing, kind));
    golden_ok(tp_json_as_int(&n, tp_json_at(spec, 2), "rank"));
    c.rank = (int)n;
    golden_ok(tp_json_as_double(&c.alpha, tp_json_at(spec, 3), "alpha"));
    golden_ok(tp_json_as_int(&n, tp_json_at(spec, 4), "experts"));
    c.n_experts = (int)n;
    if (c.routing == TALPA_ROUTING_TOPK) {
        golden_ok(tp_json_as_int(&n, tp_json_at(spec, 5), "top_k"));
        c.top_k = (int)n;
    }
    if (c.routing == TALPA_ROUTING_ADAMOLE) golden_ok(tp_json_as_double(&c.max_threshold, tp_json_at(spec, 6), "threshold"));
    c.dropout = 0.0;
    return c;
}

void smol_init(struct fixture *f, uint64_t seed, double b_scale)
{
    const struct tp_adapter *adapter = f->adapter;
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        const int64_t n = (int64_t)t->rows * t->columns;
        float *values = malloc((size_t)n * sizeof *values);
        const double width = t->kind == TP_TENSOR_THRESHOLD_BIAS ? adapter->modules[0].d_in : t->columns;
        tp_rng_fill_splitmix(values, n, seed, (uint64_t)i, t->kind == TP_TENSOR_B ? b_scale : 1.0 / sqrt(width));
        tp_adapter_put(f->bank, adapter, i, values);
        free(values);
    }
    fixture_upload(f);
}
