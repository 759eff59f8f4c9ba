#include "adapter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/rng.h"
#include "graph/op.h"

/* ---- public words ---- */

static const struct tp_router router_lora = {.name = "lora", .peft_type = "LORA"};
static const struct tp_router *const routers[TALPA_N_ROUTINGS] = {
    [TALPA_ROUTING_LORA] = &router_lora,
    [TALPA_ROUTING_TOPK] = &tp_router_topk,
    [TALPA_ROUTING_THRESHOLD] = &tp_router_threshold,
    [TALPA_ROUTING_ADAMOLE] = &tp_router_adamole,
    [TALPA_ROUTING_MOELORA] = &tp_router_moelora,
};

const struct tp_router *tp_router_get(enum talpa_routing routing) { return routers[routing]; }
const char *talpa_routing_name(enum talpa_routing routing) { return routers[routing]->name; }

enum talpa_status talpa_routing_parse(enum talpa_routing *out, const char *name)
{
    for (int i = 0; i < TALPA_N_ROUTINGS; i++) {
        if (strcmp(routers[i]->name, name)) continue;
        *out = (enum talpa_routing)i;
        return TALPA_OK;
    }
    return tp_fail(TALPA_E_ARGUMENT, "--routing-strategy is '%s', expected lora, topk, threshold, adamole or moelora", name);
}

enum talpa_status talpa_modules_parse(unsigned *out, const char *list)
{
    static const char *const words[TALPA_N_MODULES] = {"q", "k", "v", "o", "gate", "up", "down"};
    unsigned found = 0;
    if (!strcmp(list, "all")) {
        *out = (1u << TALPA_N_MODULES) - 1;
        return TALPA_OK;
    }
    for (const char *at = list;;) {
        const size_t n = strcspn(at, ",");
        const size_t stem = n > 5 && !strncmp(at + n - 5, "_proj", 5) ? n - 5 : n;
        int module = -1;
        for (int i = 0; i < TALPA_N_MODULES; i++)
            if (strlen(words[i]) == stem && !strncmp(words[i], at, stem)) module = i;
        if (module < 0 || found & 1u << module)
            return tp_fail(TALPA_E_ARGUMENT, "--lora-modules '%s': '%.*s' is %s, expected a list of q,k,v,o,gate,up,down, or all", list,
                           (int)n, at, module < 0 ? "unknown" : "given twice");
        found |= 1u << module;
        if (!at[n]) break;
        at += n + 1;
    }
    *out = found;
    return TALPA_OK;
}

struct talpa_adapter_config talpa_adapter_default(void)
{
    return (struct talpa_adapter_config){.routing = TALPA_ROUTING_ADAMOLE,
                                         .rank = 4,
                                         .n_experts = 8,
                                         .top_k = 2,
                                         .alpha = 16.0,
                                         .dropout = 0.05,
                                         .modules = TALPA_MODULE_Q | TALPA_MODULE_K | TALPA_MODULE_V | TALPA_MODULE_O,
                                         .contrastive = {.coef = 1e-2,
                                                         .temperature = 0.07,
                                                         .n_samples = 32,
                                                         .normalise = true,
                                                         .warmup_steps = -1,
                                                         .balance_coef = 1e-2}};
}

/* ---- layout of the bank ---- */

enum talpa_status tp_adapter_contrastive_check(const struct talpa_contrastive_config *c)
{
    if (!(c->coef >= 0.0 && c->coef < 1e9)) return tp_fail(TALPA_E_ARGUMENT, "--contrastive-coef is %g, expected at least 0", c->coef);
    if (!(c->temperature >= 1e-3 && c->temperature <= 1e3))
        return tp_fail(TALPA_E_ARGUMENT, "--contrastive-temperature is %g, expected 0.001 to 1000", c->temperature);
    if (c->n_samples < 0) return tp_fail(TALPA_E_ARGUMENT, "--contrastive-samples is %d, expected a number above 0, or all", c->n_samples);
    if (c->warmup_steps < -1)
        return tp_fail(TALPA_E_ARGUMENT, "--contrastive-warmup-steps is %d, expected at least 0, or -1", c->warmup_steps);
    return TALPA_OK;
}

static enum talpa_status check(const struct talpa_adapter_config *c)
{
    if (c->rank < 1 || c->rank > 4096)
        return tp_fail(TALPA_E_ARGUMENT, "the rank is %d, expected 1 to 4096 (--lora-rank, --expert-rank)", c->rank);
    if (c->n_experts < 1 || c->n_experts > 256) return tp_fail(TALPA_E_ARGUMENT, "--num-experts is %d, expected 1 to 256", c->n_experts);
    if (tp_router_is_topk(c->routing) && (c->top_k < 1 || c->top_k > c->n_experts))
        return tp_fail(TALPA_E_ARGUMENT, "--router-top-k is %d, expected 1 to the number of experts %d", c->top_k, c->n_experts);
    if (!(c->threshold >= 0.0 && c->threshold <= 1.0))
        return tp_fail(TALPA_E_ARGUMENT, "--router-threshold is %g, expected 0 to 1", c->threshold);
    if (!(c->max_threshold >= 0.0 && c->max_threshold <= 1.0))
        return tp_fail(TALPA_E_ARGUMENT, "--max-threshold is %g, expected 0 to 1", c->max_threshold);
    if (!(c->dropout >= 0.0 && c->dropout < 1.0))
        return tp_fail(TALPA_E_ARGUMENT, "--lora-dropout is %g, expected at least 0 and below 1", c->dropout);
    if (!(c->alpha > 0.0 && c->alpha < 1e6)) return tp_fail(TALPA_E_ARGUMENT, "--lora-alpha is %g, expected above 0", c->alpha);
    if (!c->modules) return tp_fail(TALPA_E_ARGUMENT, "--lora-modules names no module");
    return c->routing == TALPA_ROUTING_MOELORA ? tp_adapter_contrastive_check(&c->contrastive) : TALPA_OK;
}

static int64_t reserve(struct tp_adapter *adapter, int64_t n)
{
    const int64_t offset = adapter->bank_elements;
    adapter->bank_elements += (n + TP_CONCAT_ALIGN - 1) / TP_CONCAT_ALIGN * TP_CONCAT_ALIGN;
    adapter->n_trainable += n;
    return offset;
}

static bool has_kind(const struct tp_adapter *adapter, enum tp_tensor_kind kind)
{
    if (kind == TP_TENSOR_GATING) return adapter->router->has_gating;
    return kind <= TP_TENSOR_B || adapter->router->has_threshold;
}

/* Rows and columns in the bank of one kind, all experts together. */
static void bank_shape(const struct tp_adapter *adapter, const struct tp_adapter_module *module, enum tp_tensor_kind kind, int64_t dim[2])
{
    const int stacked = adapter->config.n_experts * adapter->config.rank;
    const int rows[TP_N_TENSOR_KINDS] = {stacked, stacked, adapter->config.n_experts, 1, 1};
    dim[0] = rows[kind];
    dim[1] = kind == TP_TENSOR_B ? module->d_out : kind == TP_TENSOR_THRESHOLD_BIAS ? 1 : module->d_in;
}

static enum talpa_status add_tensor(struct tp_adapter *adapter, int module_index, enum tp_tensor_kind kind, int expert)
{
    static const char *const suffixes[TP_N_TENSOR_KINDS] = {"lora_A", "lora_B", "lora_gating.weight", "lora_threshold.weight",
                                                            "lora_threshold.bias"};
    const struct tp_adapter_module *module = &adapter->modules[module_index];
    const bool per_expert = kind <= TP_TENSOR_B;
    const int rank = adapter->config.rank;
    struct tp_adapter_tensor *tensor = &adapter->tensors[adapter->n_tensors++];
    char suffix[64];
    if (!per_expert) snprintf(suffix, sizeof suffix, "%s", suffixes[kind]);
    else if (adapter->router->has_gating) snprintf(suffix, sizeof suffix, "%s.%d.weight", suffixes[kind], expert);
    else snprintf(suffix, sizeof suffix, "%s.weight", suffixes[kind]);
    int64_t dim[2];
    bank_shape(adapter, module, kind, dim);
    *tensor = (struct tp_adapter_tensor){
        .name = tp_arena_printf(&adapter->arena, "base_model.model.model.layers.%d.%s.%s", module->layer, tp_linear_name(module->linear),
                                suffix),
        .kind = kind,
        .module = module_index,
        .expert = expert,
        .rows = kind == TP_TENSOR_A   ? rank
                : kind == TP_TENSOR_B ? (int)dim[1]
                                      : (int)dim[0],
        .columns = kind == TP_TENSOR_B ? rank : (int)dim[1],
        .offset = module->offset[kind] + (per_expert ? (int64_t)expert * rank * dim[1] : 0),
        .flag = per_expert && adapter->router->skips_unselected ? module_index * TP_CONCAT_ALIGN + expert : -1,
    };
    return tensor->name ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status lay_out(struct tp_adapter *adapter, const struct talpa_model *model)
{
    const int n_layers = model->config.n_layers, n_experts = adapter->config.n_experts;
    adapter->modules = tp_arena_array(&adapter->arena, (size_t)n_layers * TP_N_LINEARS, sizeof *adapter->modules);
    adapter->tensors =
        tp_arena_array(&adapter->arena, (size_t)n_layers * TP_N_LINEARS * (2 * (size_t)n_experts + 3), sizeof *adapter->tensors);
    if (!adapter->modules || !adapter->tensors) return TALPA_E_DEVICE;
    for (int layer = 0; layer < n_layers; layer++) {
        for (int linear = 0; linear < TP_N_LINEARS; linear++) {
            if (!(adapter->config.modules & 1u << linear)) continue;
            const int index = adapter->n_modules++;
            struct tp_adapter_module *module = &adapter->modules[index];
            *module = (struct tp_adapter_module){.layer = layer,
                                                 .linear = (enum tp_linear)linear,
                                                 .counts = TALPA_NONE,
                                                 .weight = TALPA_NONE,
                                                 .sel = TALPA_NONE,
                                                 .raw = TALPA_NONE,
                                                 .sample_z = TALPA_NONE,
                                                 .gram = TALPA_NONE};
            tp_linear_shape(&model->config, module->linear, &module->d_out, &module->d_in);
            for (int kind = 0; kind < TP_N_TENSOR_KINDS; kind++) {
                int64_t dim[2];
                bank_shape(adapter, module, (enum tp_tensor_kind)kind, dim);
                module->offset[kind] = has_kind(adapter, (enum tp_tensor_kind)kind) ? reserve(adapter, dim[0] * dim[1]) : -1;
                for (int e = 0; module->offset[kind] >= 0 && e < (kind <= TP_TENSOR_B ? n_experts : 1); e++)
                    TP_TRY(add_tensor(adapter, index, (enum tp_tensor_kind)kind, e));
            }
        }
    }
    if (adapter->bank_elements > INT32_MAX)
        return tp_fail(TALPA_E_ARGUMENT, "the adapter has %lld parameters, supported are %d: use a smaller rank or fewer modules",
                       (long long)adapter->n_trainable, INT32_MAX);
    adapter->selection_elements = adapter->router->has_gating ? (int64_t)adapter->n_modules * TP_CONCAT_ALIGN : 0;
    return TALPA_OK;
}

enum talpa_status tp_adapter_create(struct tp_adapter **out, const struct talpa_model *model, const struct talpa_adapter_config *config)
{
    TP_TRY(check(config));
    struct tp_adapter *adapter = calloc(1, sizeof *adapter);
    if (!adapter) return tp_fail_memory("adapter", sizeof *adapter);
    adapter->config = *config;
    adapter->router = routers[config->routing];
    if (!adapter->router->has_gating) adapter->config.n_experts = 1;
    const enum talpa_status status = lay_out(adapter, model);
    if (status == TALPA_OK) *out = adapter;
    else tp_adapter_free(adapter);
    return status;
}

void tp_adapter_free(struct tp_adapter *adapter)
{
    if (!adapter) return;
    tp_arena_free(&adapter->arena);
    free(adapter);
}

double tp_adapter_max_threshold(const struct tp_adapter *adapter)
{
    const struct talpa_adapter_config *c = &adapter->config;
    if (!adapter->router->gate_steered) return NAN;
    const double given = adapter->router->has_threshold ? c->max_threshold : c->threshold;
    return (double)(float)(given > 0.0 ? given : 1.0 / c->n_experts);
}

enum talpa_status tp_adapter_set_max_threshold(struct tp_adapter *adapter, double value, const char *flag)
{
    if (!adapter->router->gate_steered)
        return tp_fail(TALPA_E_ARGUMENT, "%s: routing %s has no threshold, expected adamole or threshold", flag, adapter->router->name);
    const double rounded = (double)(float)value;
    if (!(rounded > 0.0 && rounded <= 1.0)) return tp_fail(TALPA_E_ARGUMENT, "%s is %g, expected above 0, at most 1", flag, value);
    if (adapter->router->has_threshold) adapter->config.max_threshold = rounded;
    else adapter->config.threshold = rounded;
    return TALPA_OK;
}

enum talpa_status tp_adapter_override_threshold(struct tp_adapter *adapter, double value)
{
    if (value == 0.0) return TALPA_OK;
    if (!adapter) return tp_fail(TALPA_E_ARGUMENT, "--max-threshold %g: there is no adapter; give one with --lora", value);
    return tp_adapter_set_max_threshold(adapter, value, "--max-threshold");
}

/* ---- parameters on the host ---- */

void tp_adapter_get(float *values, const struct tp_adapter *adapter, const float *bank, int index)
{
    const struct tp_adapter_tensor *t = &adapter->tensors[index];
    const float *source = bank + t->offset;
    for (int i = 0; i < t->rows; i++)
        for (int j = 0; j < t->columns; j++)
            values[(size_t)i * (size_t)t->columns + (size_t)j] = t->kind == TP_TENSOR_B
                                                                     ? source[(size_t)j * (size_t)t->rows + (size_t)i]
                                                                     : source[(size_t)i * (size_t)t->columns + (size_t)j];
}

void tp_adapter_put(float *bank, const struct tp_adapter *adapter, int index, const float *values)
{
    const struct tp_adapter_tensor *t = &adapter->tensors[index];
    float *target = bank + t->offset;
    for (int i = 0; i < t->rows; i++)
        for (int j = 0; j < t->columns; j++)
            target[t->kind == TP_TENSOR_B ? (size_t)j * (size_t)t->rows + (size_t)i : (size_t)i * (size_t)t->columns + (size_t)j] =
                values[(size_t)i * (size_t)t->columns + (size_t)j];
}

int tp_adapter_find(const struct tp_adapter *adapter, const char *name)
{
    for (int i = 0; i < adapter->n_tensors; i++)
        if (!strcmp(adapter->tensors[i].name, name)) return i;
    return -1;
}

void tp_adapter_init(float *bank, const struct tp_adapter *adapter, uint64_t seed)
{
    memset(bank, 0, (size_t)adapter->bank_elements * sizeof *bank);
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        if (t->kind == TP_TENSOR_B) continue; /* zero: the adapted model starts as the base */
        const uint64_t stream = tp_hash_bytes(t->name, strlen(t->name));
        tp_rng_fill_splitmix(bank + t->offset, (int64_t)t->rows * t->columns, seed, stream,
                             1.0 / sqrt((double)adapter->modules[t->module].d_in));
    }
}

static int by_name(const void *a, const void *b)
{
    const struct tp_adapter_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

enum talpa_status tp_adapter_digest(uint64_t *out, const struct tp_adapter *adapter, const float *bank)
{
    const size_t n = (size_t)adapter->n_tensors;
    const struct tp_adapter_tensor **sorted = malloc((n + 1) * sizeof *sorted);
    size_t largest = 1;
    for (size_t i = 0; i < n; i++) {
        const size_t size = (size_t)adapter->tensors[i].rows * (size_t)adapter->tensors[i].columns;
        if (size > largest) largest = size;
    }
    float *values = malloc(largest * sizeof *values);
    struct tp_hash *hash = NULL;
    enum talpa_status status = sorted && values ? tp_hash_create(&hash) : tp_fail_memory("digest", largest * sizeof *values);
    if (status == TALPA_OK) {
        for (size_t i = 0; i < n; i++) sorted[i] = &adapter->tensors[i];
        qsort(sorted, n, sizeof *sorted, by_name);
        for (size_t i = 0; i < n; i++) {
            tp_adapter_get(values, adapter, bank, (int)(sorted[i] - adapter->tensors));
            tp_hash_update(hash, sorted[i]->name, strlen(sorted[i]->name) + 1);
            tp_hash_update(hash, values, (size_t)sorted[i]->rows * (size_t)sorted[i]->columns * sizeof *values);
        }
        *out = tp_hash_digest(hash);
    }
    tp_hash_free(hash);
    free(sorted);
    free(values);
    return status;
}

/* ---- graph ---- */

enum talpa_status tp_adapter_begin_frozen(struct tp_adapter_graph *attach, struct tp_adapter *adapter, const struct tp_batch_inputs *inputs)
{
    *attach = (struct tp_adapter_graph){.adapter = adapter, .params = TALPA_NONE, .examples = inputs->examples, .positions = inputs->positions,
                                        .sample = TALPA_NONE, .aux_total = TALPA_NONE, .contrastive_total = TALPA_NONE};
    attach->wrt = tp_arena_array(&adapter->arena, (size_t)adapter->n_modules * TP_N_TENSOR_KINDS, sizeof *attach->wrt);
    return attach->wrt ? TALPA_OK : TALPA_E_DEVICE;
}

enum talpa_status tp_adapter_begin(struct tp_adapter_graph *attach, struct tp_adapter *adapter, struct talpa_graph *graph,
                                   const struct tp_batch_inputs *inputs, bool is_training)
{
    TP_TRY(tp_adapter_begin_frozen(attach, adapter, inputs));
    attach->is_training = is_training;
    return tp_graph_state(graph, &attach->params, "adapter.params", tp_type_1d(TALPA_F32, TP_STEP_NONE, adapter->bank_elements));
}

enum { WEIGHT_NAME_BYTES = 96 };

static void weight_name(char name[WEIGHT_NAME_BYTES], const struct tp_adapter_module *module, enum tp_tensor_kind kind)
{
    static const char *const kinds[TP_N_TENSOR_KINDS] = {"a", "bt", "gating", "threshold", "threshold_bias"};
    snprintf(name, WEIGHT_NAME_BYTES, "adapter.%d.%s.%s", module->layer, tp_linear_name(module->linear), kinds[kind]);
}

static struct talpa_shape parameter_shape(const struct tp_adapter *adapter, const struct tp_adapter_module *module, enum tp_tensor_kind kind)
{
    struct talpa_shape shape = {.rank = kind == TP_TENSOR_THRESHOLD_BIAS ? 1 : 2};
    bank_shape(adapter, module, kind, shape.dim);
    return shape;
}

enum talpa_status tp_adapter_bind(struct tp_store *store, const struct tp_adapter *adapter, const float *bank)
{
    for (int m = 0; m < adapter->n_modules; m++)
        for (int kind = 0; kind < TP_N_TENSOR_KINDS; kind++) {
            const struct tp_adapter_module *module = &adapter->modules[m];
            if (module->offset[kind] < 0) continue;
            char name[WEIGHT_NAME_BYTES];
            weight_name(name, module, (enum tp_tensor_kind)kind);
            const struct tp_type type = {.dtype = TALPA_F32, .rows = TP_STEP_NONE, .shape = parameter_shape(adapter, module, (enum tp_tensor_kind)kind)};
            const struct tp_store_source source = {.type = type, .data = bank + module->offset[kind]};
            TP_TRY(tp_store_bind(store, name, &source));
        }
    return TALPA_OK;
}

static enum talpa_status parameter(struct tp_adapter_graph *attach, talpa_value *out, struct talpa_graph *graph,
                                   const struct tp_adapter_module *module, enum tp_tensor_kind kind)
{
    const struct talpa_shape shape = parameter_shape(attach->adapter, module, kind);
    char name[WEIGHT_NAME_BYTES];
    weight_name(name, module, kind);
    if (attach->params == TALPA_NONE)
        TP_TRY(tp_graph_weight(graph, out, name, (struct tp_type){.dtype = TALPA_F32, .rows = TP_STEP_NONE, .shape = shape}));
    else TP_TRY(talpa_slice(out, graph, attach->params, module->offset[kind], shape));
    attach->wrt[attach->n_wrt++] = *out;
    return TALPA_OK;
}

/* What decides which experts a token runs through; all TALPA_NONE for LoRA. */
struct gate {
    talpa_value weight, sel, counts, list;
};

/* Gate of one module; the balance loss is added to the running sum. */
static enum talpa_status route(struct tp_adapter_graph *attach, struct talpa_graph *graph, struct tp_adapter_module *module, talpa_value x,
                               struct gate *gate)
{
    const struct tp_router *router = attach->adapter->router;
    talpa_value gating, direction = TALPA_NONE, bias = TALPA_NONE, p, raw, score, aux;
    TP_TRY(parameter(attach, &gating, graph, module, TP_TENSOR_GATING));
    if (router->has_threshold) {
        TP_TRY(parameter(attach, &direction, graph, module, TP_TENSOR_THRESHOLD));
        TP_TRY(parameter(attach, &bias, graph, module, TP_TENSOR_THRESHOLD_BIAS));
    }
    TP_TRY(talpa_router_scores(&p, &raw, graph, x, gating, direction, bias));
    if (attach->adapter->is_steered) TP_TRY(router->gate_steered(&gate->weight, &gate->sel, &score, graph, p, raw));
    else TP_TRY(router->gate(&gate->weight, &gate->sel, &score, graph, p, raw, &attach->adapter->config));
    TP_TRY(talpa_dispatch(&gate->counts, &gate->list, graph, gate->sel));
    module->counts = gate->counts;
    module->weight = gate->weight;
    module->sel = gate->sel;
    module->raw = raw;
    if (!attach->is_training) return TALPA_OK;
    return talpa_balance_loss(&aux, &attach->aux_total, graph, attach->aux_on_probability ? p : score, gate->counts, attach->aux_total);
}

/* moelora: the contrastive loss of one module, on inputs that dropout has not touched; added to the running sum. */
static enum talpa_status contrast(struct tp_adapter_graph *attach, struct talpa_graph *graph, const struct tp_adapter_module *module,
                                  talpa_value x, talpa_value a, talpa_value bt, const struct gate *gate)
{
    const struct talpa_adapter_config *c = &attach->adapter->config;
    char stream[112];
    const int n = snprintf(stream, sizeof stream, "model.layers.%d.%s.contrastive", module->layer, tp_linear_name(module->linear));
    const struct talpa_contrast what = {.n_experts = c->n_experts,
                                        .rank = c->rank,
                                        .scale = (float)(c->alpha / c->rank),
                                        .temperature = (float)c->contrastive.temperature,
                                        .n_samples = c->contrastive.n_samples,
                                        .normalise = c->contrastive.normalise,
                                        .max_per_token = c->top_k,
                                        .stream = tp_hash_bytes(stream, (size_t)n)};
    talpa_value loss;
    TP_TRY(talpa_contrastive_loss(&loss, graph, x, a, bt, gate->counts, gate->list, attach->examples, attach->positions,
                                  c->contrastive.gated ? gate->weight : TALPA_NONE, &what));
    if (attach->contrastive_total == TALPA_NONE) {
        attach->contrastive_total = loss;
        return TALPA_OK;
    }
    return talpa_add(&attach->contrastive_total, graph, attach->contrastive_total, loss);
}

/* Mask of the dropout on the adapter's input in training, else TALPA_NONE; the random stream is the module's, or that of one of its experts. */
static enum talpa_status drop(struct tp_adapter_graph *attach, talpa_value *keep, struct talpa_graph *graph,
                              const struct tp_adapter_module *module, int expert)
{
    const double p = attach->adapter->config.dropout;
    *keep = TALPA_NONE;
    if (!attach->is_training || p <= 0.0) return TALPA_OK;
    char stream[112];
    int n = snprintf(stream, sizeof stream, "model.layers.%d.%s.lora_dropout", module->layer, tp_linear_name(module->linear));
    if (expert >= 0) n += snprintf(stream + n, sizeof stream - (size_t)n, ".%d", expert);
    return talpa_dropout_mask(keep, graph, attach->examples, attach->positions, module->d_in, (float)p, tp_hash_bytes(stream, (size_t)n));
}

static enum talpa_status apply(talpa_value *y, struct talpa_graph *graph, talpa_value y0, talpa_value x, talpa_value a, talpa_value bt,
                               talpa_value keep, const struct gate *gate, const struct talpa_adapter_config *c)
{
    return talpa_lora_expert_dropped(y, graph, y0, x, a, bt, gate->weight, gate->sel, gate->counts, gate->list, keep, c->n_experts, c->rank,
                                     (float)(c->alpha / c->rank), keep == TALPA_NONE ? 0.0f : (float)c->dropout);
}

/* Inner products of expert outputs need no outputs: <B_i A_i x, B_j A_j y> = (A_i x)^T (B_i^T B_j) (A_j y). */
static enum talpa_status sample(const struct tp_adapter_graph *attach, struct talpa_graph *graph, struct tp_adapter_module *module,
                                talpa_value x, talpa_value a, talpa_value bt)
{
    talpa_value rows;
    module->sample_z = module->gram = TALPA_NONE;
    if (attach->sample == TALPA_NONE) return TALPA_OK;
    TP_TRY(talpa_gather_rows(&rows, graph, x, attach->sample));
    TP_TRY(talpa_matmul(&module->sample_z, graph, rows, a, TALPA_NONE, false, true));
    return talpa_matmul(&module->gram, graph, bt, bt, TALPA_NONE, false, true);
}

enum talpa_status tp_adapter_hook(void *user, talpa_value *y, struct talpa_graph *graph, talpa_value x, talpa_value frozen,
                                  talpa_value residual, int layer, enum tp_linear linear)
{
    struct tp_adapter_graph *attach = user;
    struct tp_adapter *adapter = attach->adapter;
    const struct talpa_adapter_config *c = &adapter->config;
    talpa_value y0;
    TP_TRY(talpa_matmul(&y0, graph, x, frozen, residual, false, true));
    struct tp_adapter_module *module = NULL;
    for (int i = 0; i < adapter->n_modules && !module; i++)
        if (adapter->modules[i].layer == layer && adapter->modules[i].linear == linear) module = &adapter->modules[i];
    if (!module) {
        *y = y0;
        return TALPA_OK;
    }
    talpa_value a, bt;
    struct gate gate = {TALPA_NONE, TALPA_NONE, TALPA_NONE, TALPA_NONE};
    TP_TRY(parameter(attach, &a, graph, module, TP_TENSOR_A));
    TP_TRY(parameter(attach, &bt, graph, module, TP_TENSOR_B));
    if (adapter->router->has_gating) TP_TRY(route(attach, graph, module, x, &gate));
    if (attach->is_training && c->routing == TALPA_ROUTING_MOELORA && c->contrastive.coef > 0.0)
        TP_TRY(contrast(attach, graph, module, x, a, bt, &gate));
    TP_TRY(sample(attach, graph, module, x, a, bt));
    const bool one_by_one = c->independent_dropout && adapter->router->has_gating && attach->is_training && c->dropout > 0.0;
    talpa_value keep;
    if (!one_by_one) {
        TP_TRY(drop(attach, &keep, graph, module, -1));
        return apply(y, graph, y0, x, a, bt, keep, &gate, c);
    }
    *y = y0;
    for (int e = 0; e < c->n_experts; e++) {
        struct gate own;
        TP_TRY(drop(attach, &keep, graph, module, e));
        TP_TRY(talpa_keep_column(&own.weight, graph, gate.weight, e));
        TP_TRY(talpa_keep_column(&own.sel, graph, gate.sel, e));
        TP_TRY(talpa_dispatch(&own.counts, &own.list, graph, own.sel));
        TP_TRY(apply(y, graph, *y, x, a, bt, keep, &own, c));
    }
    return TALPA_OK;
}

bool tp_adapter_is_sparse(const struct tp_adapter *adapter, enum talpa_expert_dispatch dispatch)
{
    if (!adapter || !adapter->router->has_gating) return false;
    return dispatch == TALPA_DISPATCH_SPARSE || (dispatch == TALPA_DISPATCH_AUTO && tp_router_is_topk(adapter->config.routing));
}
