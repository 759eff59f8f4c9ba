#include "adapter_gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/hash.h"
#include "io/gguf_write.h"

enum { MAX_RANK = 4096 };

/* ---- names ---- */

/* "blk.3.attn_q.weight.lora_a" -> 3, q, "lora_a" */
static bool parse_name(int *layer, enum tp_linear *linear, const char **suffix, const char *name)
{
    enum { MAX_DIGITS = 6 };
    if (strncmp(name, "blk.", 4)) return false;
    const char *digits = name + 4;
    const size_t n_digits = strspn(digits, "0123456789");
    if (n_digits < 1 || n_digits > MAX_DIGITS || (digits[0] == '0' && n_digits > 1) || digits[n_digits] != '.') return false;
    const char *stem = digits + n_digits + 1;
    for (int i = 0; i < TP_N_LINEARS; i++) {
        const char *known = tp_linear_gguf_name((enum tp_linear)i);
        const size_t n = strlen(known);
        if (strncmp(stem, known, n) || strncmp(stem + n, ".weight.", 8)) continue;
        *layer = atoi(digits);
        *linear = (enum tp_linear)i;
        *suffix = stem + n + 8;
        return true;
    }
    return false;
}

const char *tp_adapter_gguf_name(struct tp_arena *arena, const char *file_name)
{
    int layer;
    enum tp_linear linear;
    const char *suffix;
    const bool is_known = parse_name(&layer, &linear, &suffix, file_name) && (!strcmp(suffix, "lora_a") || !strcmp(suffix, "lora_b"));
    if (!is_known) return tp_arena_strdup(arena, file_name);
    return tp_arena_printf(arena, "base_model.model.model.layers.%d.%s.lora_%c.weight", layer, tp_linear_name(linear),
                           suffix[5] == 'a' ? 'A' : 'B');
}

int tp_adapter_gguf_heads(const struct talpa_model *model, enum tp_linear linear)
{
    if (linear != TP_LINEAR_Q && linear != TP_LINEAR_K) return 0;
    char name[96];
    snprintf(name, sizeof name, "model.layers.0.%s.weight", tp_linear_name(linear));
    const struct tp_model_weight *weight = tp_model_weight(model, name);
    if (weight && weight->interleaved_heads) return weight->interleaved_heads;
    if (model->gguf || strcmp(model->architecture, "llama")) return 0;
    return linear == TP_LINEAR_Q ? model->config.n_heads : model->config.n_kv_heads;
}

int64_t tp_adapter_gguf_row(int64_t row, int64_t d_out, int heads)
{
    if (!heads) return row;
    const int64_t width = d_out / heads, head = row / width, half = row % width / (width / 2), pair = row % width % (width / 2);
    return head * width + 2 * pair + half;
}

/* ---- reading ---- */

static enum talpa_status expect_text(const struct tp_gguf *gguf, const char *key, const char *expected, const char *advice)
{
    const char *found;
    TP_TRY(tp_gguf_get_string_or(&found, gguf, key, ""));
    if (!strcmp(found, expected)) return TALPA_OK;
    return tp_fail(TALPA_E_DATA, "%s: found '%.60s', expected %s; %s", key, found, expected, advice);
}

static enum talpa_status read_rank(int *out, const struct tp_adapter_file *file)
{
    for (size_t i = 0; i < file->n_entries; i++) {
        const struct tp_adapter_entry *entry = &file->entries[i];
        int layer;
        enum tp_linear linear;
        const char *suffix;
        if (!tp_adapter_file_name(&layer, &linear, &suffix, entry->name) || strcmp(suffix, "lora_A.weight")) continue;
        if (entry->shape.rank != 2 || entry->shape.dim[0] < 1 || entry->shape.dim[0] > MAX_RANK)
            return tp_fail(TALPA_E_DATA, "tensor '%s': found %d dimensions and rank %lld, expected 2 and 1 to %d", entry->file_name,
                           entry->shape.rank, (long long)entry->shape.dim[0], MAX_RANK);
        *out = (int)entry->shape.dim[0];
        return TALPA_OK;
    }
    return tp_fail(TALPA_E_DATA, "no tensor blk.N.*.weight.lora_a of a linear of a Llama model among %zu tensors", file->n_entries);
}

static enum talpa_status read_about(struct tp_adapter_about *about, const struct tp_gguf *gguf)
{
    const char *digest;
    *about = (struct tp_adapter_about){.base_name = "", .version = ""};
    if (!tp_gguf_has(gguf, "talpa.base_digest")) return TALPA_OK;
    TP_TRY(tp_gguf_get_string(&digest, NULL, gguf, "talpa.base_digest"));
    TP_TRY(tp_adapter_file_digest(&about->base_digest, digest));
    TP_TRY(tp_gguf_get_string_or(&about->base_name, gguf, "talpa.base_name", ""));
    TP_TRY(tp_gguf_get_string_or(&about->version, gguf, "talpa.version", ""));
    about->is_known = true;
    return TALPA_OK;
}

enum talpa_status tp_adapter_gguf_config(struct talpa_adapter_config *config, struct tp_adapter_about *about,
                                         const struct tp_adapter_file *file)
{
    struct talpa_adapter_config c = {.routing = TALPA_ROUTING_LORA, .n_experts = 1};
    double alpha;
    TP_TRY(expect_text(file->gguf, "general.type", "adapter", "is the file a model? It then belongs to --model"));
    TP_TRY(expect_text(file->gguf, "adapter.type", "lora", "a mixture is loaded from its adapter folder"));
    if (tp_gguf_has(file->gguf, "adapter.alora.invocation_tokens"))
        return tp_fail(TALPA_E_DATA,
                       "adapter.alora.invocation_tokens: found, expected none: adapters that start at a token are not supported");
    TP_TRY(read_rank(&c.rank, file));
    TP_TRY(tp_gguf_get_float_or(&alpha, file->gguf, "adapter.lora.alpha", 0.0));
    c.alpha = alpha == 0.0 ? (double)c.rank : alpha;
    if (!(c.alpha > 0.0 && c.alpha < 1e6)) return tp_fail(TALPA_E_DATA, "adapter.lora.alpha: found %g, expected 0 to 1e6", alpha);
    TP_TRY(read_about(about, file->gguf));
    *config = c;
    return TALPA_OK;
}

enum talpa_status tp_adapter_gguf_architecture(const struct tp_adapter_file *file, const struct talpa_model *model)
{
    const char *found;
    TP_TRY(tp_gguf_get_string(&found, NULL, file->gguf, "general.architecture"));
    if (!strcmp(found, model->architecture)) return TALPA_OK;
    return tp_fail(TALPA_E_DATA, "general.architecture: found '%.60s', expected %s as of %s", found, model->architecture, model->path);
}

/* ---- writing ---- */

static enum talpa_status write_keys(struct tp_gguf_writer *writer, struct talpa_model *model, const char *type)
{
    uint64_t digest;
    char hex[TP_HASH_HEX_BYTES];
    TP_TRY(tp_model_digest(&digest, model));
    tp_gguf_write_string(writer, "general.architecture", model->architecture);
    tp_gguf_write_string(writer, "general.type", "adapter");
    tp_gguf_write_string(writer, "adapter.type", type);
    tp_gguf_write_string(writer, "talpa.base_digest", tp_hash_hex(hex, digest));
    tp_gguf_write_string(writer, "talpa.base_name", model->name);
    tp_gguf_write_string(writer, "talpa.version", TALPA_VERSION_STRING);
    return TALPA_OK;
}

/* One tensor in the file's row order and type, into the arena. */
static enum talpa_status encode(void **out, struct tp_arena *arena, const struct tp_adapter *adapter, const float *bank, int index,
                                int heads, enum talpa_dtype dtype)
{
    const struct tp_adapter_tensor *t = &adapter->tensors[index];
    const size_t n = (size_t)t->rows * (size_t)t->columns, row_bytes = tp_dtype_bytes(dtype, t->columns);
    float *values = malloc((n + 1) * sizeof *values);
    uint8_t *bytes = tp_arena_alloc(arena, (size_t)t->rows * row_bytes);
    enum talpa_status status = values && bytes ? TALPA_OK : tp_fail_memory("adapter", n * sizeof *values);
    if (status == TALPA_OK) tp_adapter_get(values, adapter, bank, index);
    const float largest = dtype == TALPA_F16 ? 65504.0f : INFINITY;
    for (size_t i = 0; i < n && status == TALPA_OK; i++)
        if (!isfinite(values[i]) || fabsf(values[i]) > largest)
            status = tp_fail(TALPA_E_FAILED, "%s: element %zu is %g, expected a finite number%s", t->name, i, (double)values[i],
                             isfinite(values[i]) ? " that f16 holds; export as f32" : "");
    for (int row = 0; row < t->rows && status == TALPA_OK; row++)
        tp_dtype_from_f32(bytes + (size_t)tp_adapter_gguf_row(row, t->rows, heads) * row_bytes, values + (size_t)row * (size_t)t->columns,
                          dtype, t->columns);
    free(values);
    if (status == TALPA_OK) *out = bytes;
    return status;
}

static enum talpa_status write_tensor(struct tp_gguf_writer *writer, struct tp_arena *arena, const struct tp_adapter *adapter,
                                      const float *bank, int index, const struct talpa_model *model, enum talpa_dtype dtype)
{
    static const char *const suffixes[TP_N_TENSOR_KINDS] = {"lora_a", "lora_b", "router", "router_threshold", "router_threshold_bias"};
    const struct tp_adapter_tensor *t = &adapter->tensors[index];
    const struct tp_adapter_module *module = &adapter->modules[t->module];
    const struct talpa_shape shape = {.rank = t->kind == TP_TENSOR_THRESHOLD_BIAS ? 1 : 2, .dim = {t->rows, t->columns}};
    char name[96];
    void *data;
    snprintf(name, sizeof name, "blk.%d.%s.weight.%s", module->layer, tp_linear_gguf_name(module->linear), suffixes[t->kind]);
    TP_TRY(encode(&data, arena, adapter, bank, index, t->kind == TP_TENSOR_B ? tp_adapter_gguf_heads(model, module->linear) : 0, dtype));
    tp_gguf_write_tensor(writer, name, dtype, &shape, data);
    return TALPA_OK;
}

static enum talpa_status write_expert(struct tp_gguf_writer *writer, struct tp_arena *arena, const struct tp_adapter *adapter,
                                      const float *bank, int expert, struct talpa_model *model, enum talpa_dtype dtype)
{
    TP_TRY(write_keys(writer, model, "lora"));
    tp_gguf_write_f32(writer, "adapter.lora.alpha", (float)adapter->config.alpha);
    tp_gguf_write_u32(writer, "general.file_type", dtype == TALPA_F16 ? 1 : 0);
    for (int i = 0; i < adapter->n_tensors; i++)
        if (adapter->tensors[i].kind <= TP_TENSOR_B && adapter->tensors[i].expert == expert)
            TP_TRY(write_tensor(writer, arena, adapter, bank, i, model, dtype));
    return TALPA_OK;
}

enum talpa_status tp_adapter_gguf_save(const struct tp_adapter *adapter, const float *bank, int expert, const char *path,
                                       struct talpa_model *model, enum talpa_dtype dtype)
{
    struct tp_gguf_writer *writer;
    struct tp_arena arena = {0};
    TP_TRY(tp_gguf_write_create(&writer));
    enum talpa_status status = write_expert(writer, &arena, adapter, bank, expert, model, dtype);
    if (status == TALPA_OK) status = tp_gguf_write_save(writer, path);
    tp_gguf_write_free(writer);
    tp_arena_free(&arena);
    return status;
}

static enum talpa_status write_router(struct tp_gguf_writer *writer, struct tp_arena *arena, const struct tp_adapter *adapter,
                                      const float *bank, const char *const *experts, struct talpa_model *model)
{
    const struct talpa_adapter_config *c = &adapter->config;
    const double even = 1.0 / c->n_experts;
    TP_TRY(write_keys(writer, model, "lora_router"));
    tp_gguf_write_string(writer, "adapter.lora_router.strategy", talpa_routing_name(c->routing));
    tp_gguf_write_u32(writer, "adapter.lora_router.n_experts", (uint32_t)c->n_experts);
    tp_gguf_write_string_array(writer, "adapter.lora_router.experts", experts, (size_t)c->n_experts);
    if (tp_router_is_topk(c->routing)) tp_gguf_write_u32(writer, "adapter.lora_router.top_k", (uint32_t)c->top_k);
    if (c->routing == TALPA_ROUTING_THRESHOLD)
        tp_gguf_write_f32(writer, "adapter.lora_router.threshold", (float)(c->threshold > 0.0 ? c->threshold : even));
    if (c->routing == TALPA_ROUTING_ADAMOLE)
        tp_gguf_write_f32(writer, "adapter.lora_router.max_threshold", (float)(c->max_threshold > 0.0 ? c->max_threshold : even));
    for (int i = 0; i < adapter->n_tensors; i++)
        if (adapter->tensors[i].kind > TP_TENSOR_B) TP_TRY(write_tensor(writer, arena, adapter, bank, i, model, TALPA_F32));
    return TALPA_OK;
}

enum talpa_status tp_adapter_gguf_save_router(const struct tp_adapter *adapter, const float *bank, const char *const *experts,
                                              const char *path, struct talpa_model *model)
{
    struct tp_gguf_writer *writer;
    struct tp_arena arena = {0};
    TP_TRY(tp_gguf_write_create(&writer));
    enum talpa_status status = write_router(writer, &arena, adapter, bank, experts, model);
    if (status == TALPA_OK) status = tp_gguf_write_save(writer, path);
    tp_gguf_write_free(writer);
    tp_arena_free(&arena);
    return status;
}
