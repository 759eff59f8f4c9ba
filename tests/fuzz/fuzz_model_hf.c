/* libFuzzer target: any bytes as a config.json, and what follows from it: the list of tensors and the rotary table. To begin with a valid
 * text, run with a corpus folder that holds the config.json files of tests/data/models. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/json.h"
#include "models/arch.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static volatile uint64_t sink;

static enum talpa_status visit(struct talpa_model *model, const struct tp_tensor_spec *spec, void *user)
{
    (void)model;
    (void)user;
    if (spec->rows < 1 || spec->columns < 1) abort();
    sink = sink + (uint64_t)spec->name[0] + (uint64_t)spec->gguf_name[0];
    return TALPA_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    const struct tp_arch *arch;
    const double *factors;
    struct tp_json *json;
    struct talpa_model model = {.path = "fuzz"};
    if (tp_json_parse(&json, (const char *)bytes, n_bytes, "fuzz") != TALPA_OK) return 0;
    if (tp_hf_config_read(&model, &arch, &factors, tp_json_root(json)) == TALPA_OK) {
        if (tp_arch_visit(&model, visit, NULL) != TALPA_OK) abort();
        if (factors) tp_arch_rotary_table(&model, factors);
    }
    tp_json_free(json);
    tp_map_free(&model.weight_of);
    tp_arena_free(&model.arena);
    free(model.weights);
    return 0;
}
