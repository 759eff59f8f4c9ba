#include "merge.h"

#include <stdlib.h>
#include <string.h>

#include "adapters/adapter_gguf.h"
#include "base/dtype.h"
#include "io/gguf_write.h"

enum { QUANT_BLOCK = 32, QUANTISATION_VERSION = 2 };

enum talpa_status tp_merge_create(struct tp_merge *out, const struct talpa_model *model, const struct tp_adapter *adapter,
                                  const float *bank)
{
    struct tp_merge merge = {.model = model, .adapter = adapter, .bank = bank};
    if (adapter->config.routing != TALPA_ROUTING_LORA)
        return tp_fail(
            TALPA_E_ARGUMENT,
            "the adapter is a mixture (%s): which experts a token runs through depends on the token, so no single weight matrix is "
            "equal to it; use it unmerged with --lora, or 'talpa export --format gguf' for its experts one by one",
            talpa_routing_name(adapter->config.routing));
    int64_t widest = 1;
    merge.module_of = malloc((model->n_weights + 1) * sizeof *merge.module_of);
    for (size_t i = 0; i < model->n_weights; i++) {
        const struct talpa_shape *shape = &model->weights[i].type.shape;
        if (shape->dim[shape->rank - 1] > widest) widest = shape->dim[shape->rank - 1];
        if (merge.module_of) merge.module_of[i] = -1;
    }
    merge.row = malloc((size_t)widest * sizeof *merge.row);
    if (!merge.module_of || !merge.row) {
        tp_merge_free(&merge);
        return tp_fail_memory(model->path, (size_t)widest * sizeof *merge.row);
    }
    for (int i = 0; i < adapter->n_modules; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", adapter->modules[i].layer, tp_linear_name(adapter->modules[i].linear));
        const struct tp_model_weight *weight = tp_model_weight(model, name);
        if (!weight) {
            tp_merge_free(&merge);
            return tp_fail(TALPA_E_INTERNAL, "%s: no weight '%s' to merge into", model->path, name);
        }
        merge.module_of[weight - model->weights] = i;
    }
    *out = merge;
    return TALPA_OK;
}

void tp_merge_free(struct tp_merge *merge)
{
    free(merge->module_of);
    free(merge->row);
    free(merge->tensors);
    *merge = (struct tp_merge){0};
}

/* ---- rows ---- */

/* values[columns] += scale * B[row] A. */
static void add_delta(float *values, const struct tp_merge *merge, const struct tp_adapter_module *module, int64_t row)
{
    const struct talpa_adapter_config *c = &merge->adapter->config;
    const float scale = (float)(c->alpha / c->rank);
    const float *a = merge->bank + module->offset[TP_TENSOR_A], *bt = merge->bank + module->offset[TP_TENSOR_B];
    for (int r = 0; r < c->rank; r++) {
        const float b = scale * bt[(int64_t)r * module->d_out + row];
        for (int j = 0; j < module->d_in; j++) values[j] += b * a[(int64_t)r * module->d_in + j];
    }
}

/* Rows of GGUF files and of adapters count differently for q and k. */
static int64_t gguf_to_hf(int64_t row, int64_t n_rows, int heads)
{
    if (!heads) return row;
    const int64_t width = n_rows / heads, head = row / width, within = row % width;
    return head * width + within % 2 * (width / 2) + within / 2;
}

static enum talpa_status give_rows(void *user, size_t tensor, int64_t first, int64_t n_rows, void *bytes)
{
    struct tp_merge *merge = user;
    const struct tp_merge_tensor *t = &merge->tensors[tensor];
    const size_t from_bytes = tp_dtype_bytes(t->from, t->columns), to_bytes = tp_dtype_bytes(t->to, t->columns);
    const int module = t->weight < 0 ? -1 : merge->module_of[t->weight];
    if (merge->keep_going && !merge->keep_going(merge->user)) return tp_fail(TALPA_E_INTERRUPTED, "merging stopped; no file is left");
    const int stored_heads = t->weight < 0 ? 0 : merge->model->weights[t->weight].interleaved_heads;
    for (int64_t i = 0; i < n_rows; i++) {
        uint8_t *target = (uint8_t *)bytes + (size_t)i * to_bytes;
        const int64_t stored = tp_adapter_gguf_row(first + i, t->n_rows, t->heads);
        const uint8_t *source = (const uint8_t *)t->data + (size_t)stored * from_bytes;
        if (module < 0 && t->from == t->to) {
            memcpy(target, source, to_bytes);
            continue;
        }
        tp_dtype_to_f32(merge->row, source, t->from, t->columns);
        if (module >= 0) add_delta(merge->row, merge, &merge->adapter->modules[module], gguf_to_hf(stored, t->n_rows, stored_heads));
        tp_dtype_from_f32(target, merge->row, t->to, t->columns);
    }
    return TALPA_OK;
}

struct tp_row_source tp_merge_rows(struct tp_merge *merge) { return (struct tp_row_source){give_rows, merge}; }

/* ---- GGUF ---- */

/* As llama.cpp quantises: norms and other vectors stay f32, matrices get the type. The embedding and the output projection keep at least
 * Q8_0, since each of their rows is one token's whole weight. Rows that are no whole number of blocks become f16. */
static enum talpa_dtype target_type(const struct tp_merge *merge, int weight, enum talpa_dtype from, const struct talpa_shape *shape,
                                    enum talpa_merge_type type)
{
    static const enum talpa_dtype types[TALPA_N_MERGE_TYPES] = {
        [TALPA_MERGE_F32] = TALPA_F32,   [TALPA_MERGE_F16] = TALPA_F16,   [TALPA_MERGE_BF16] = TALPA_BF16,
        [TALPA_MERGE_Q8_0] = TALPA_Q8_0, [TALPA_MERGE_Q4_0] = TALPA_Q4_0,
    };
    const bool is_adapted = weight >= 0 && merge->module_of[weight] >= 0;
    if (weight < 0) return from;
    if (shape->rank < 2) return TALPA_F32;
    if (type == TALPA_MERGE_AUTO) {
        if (!is_adapted || !tp_dtype_is_quantised(from)) return from;
        return TALPA_Q8_0;
    }
    const char *name = merge->model->weights[weight].name;
    enum talpa_dtype to = types[type];
    if (to == TALPA_Q4_0 && (!strcmp(name, "model.embed_tokens.weight") || !strcmp(name, "lm_head.weight"))) to = TALPA_Q8_0;
    return tp_dtype_is_quantised(to) && shape->dim[shape->rank - 1] % QUANT_BLOCK ? TALPA_F16 : to;
}

/* The number that general.file_type has for files whose matrices are mostly of a type (ggml's llama_ftype). */
static uint32_t file_type(const int64_t *elements)
{
    static const uint32_t numbers[TALPA_N_DTYPES] = {
        [TALPA_F32] = 0,  [TALPA_F16] = 1,  [TALPA_BF16] = 32, [TALPA_Q8_0] = 7,  [TALPA_Q4_0] = 2, [TALPA_Q4_1] = 3,
        [TALPA_Q5_0] = 8, [TALPA_Q5_1] = 9, [TALPA_Q4_K] = 15, [TALPA_Q5_K] = 17, [TALPA_Q6_K] = 18};
    int most = 0;
    for (int i = 1; i < TALPA_N_DTYPES; i++)
        if (elements[i] > elements[most]) most = i;
    return numbers[most];
}

static int find_weight(const struct talpa_model *model, const char *file_name)
{
    for (size_t i = 0; i < model->n_weights; i++)
        if (!strcmp(model->weights[i].file_name, file_name)) return (int)i;
    return -1;
}

static enum talpa_status list_gguf(struct tp_merge *merge, struct tp_gguf_writer *writer, struct talpa_merge_result *result,
                                   enum talpa_merge_type type)
{
    static const char *const own[] = {"general.file_type", "general.quantization_version"};
    const struct tp_gguf *gguf = merge->model->gguf;
    const size_t n = (size_t)tp_gguf_n_tensors(gguf);
    int64_t elements[TALPA_N_DTYPES] = {0};
    merge->tensors = calloc(n + 1, sizeof *merge->tensors);
    if (!merge->tensors) return tp_fail_memory(merge->model->path, n * sizeof *merge->tensors);
    tp_gguf_write_copy_keys(writer, gguf, own, sizeof own / sizeof *own);
    for (size_t i = 0; i < n; i++) {
        struct tp_gguf_tensor tensor;
        TP_TRY(tp_gguf_tensor_at(&tensor, gguf, (int64_t)i));
        const int weight = find_weight(merge->model, tensor.name);
        const enum talpa_dtype to = target_type(merge, weight, tensor.dtype, &tensor.shape, type);
        const int64_t columns = tensor.shape.dim[tensor.shape.rank - 1];
        int64_t n_rows = 1;
        for (int d = 0; d < tensor.shape.rank - 1; d++) n_rows *= tensor.shape.dim[d];
        merge->tensors[i] = (struct tp_merge_tensor){
            .weight = weight, .data = tensor.data, .from = tensor.dtype, .to = to, .columns = columns, .n_rows = n_rows};
        merge->n_tensors++;
        result->n_tensors++;
        result->n_merged += weight >= 0 && merge->module_of[weight] >= 0;
        result->n_of_type[to]++;
        result->n_bytes += (int64_t)tp_dtype_bytes(to, n_rows * columns);
        if (tensor.shape.rank > 1) elements[to] += n_rows * columns;
        tp_gguf_write_tensor(writer, tensor.name, to, &tensor.shape, NULL);
    }
    tp_gguf_write_u32(writer, "general.file_type", file_type(elements));
    tp_gguf_write_u32(writer, "general.quantization_version", QUANTISATION_VERSION);
    return TALPA_OK;
}

enum talpa_status tp_merge_save_gguf(struct tp_merge *merge, struct talpa_merge_result *result, const char *path,
                                     enum talpa_merge_type type)
{
    struct tp_gguf_writer *writer;
    if (!merge->model->gguf)
        return tp_fail(
            TALPA_E_ARGUMENT,
            "%s: a GGUF output takes metadata and tokenizer from a GGUF model, and this is none; give --output-file a folder's name "
            "(without .gguf), or a GGUF file to --model",
            merge->model->path);
    TP_TRY(tp_gguf_write_create(&writer));
    struct talpa_merge_result counts = {0};
    enum talpa_status status = list_gguf(merge, writer, &counts, type);
    const struct tp_row_source rows = tp_merge_rows(merge);
    if (status == TALPA_OK) status = tp_gguf_write_save_rows(writer, path, &rows);
    if (status == TALPA_OK) *result = counts;
    tp_gguf_write_free(writer);
    return status;
}
