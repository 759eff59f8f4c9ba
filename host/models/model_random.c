/* Built-in models: counter-based random weights, the same bits everywhere. */
#include <math.h>
#include <string.h>

#include "arch.h"
#include "base/dtype.h"
#include "base/rng.h"

enum { BLOCK = 32, BLOCK_BYTES = 20 }; /* Q4_1: scale and minimum (f16), 32 numbers of 4 bits */

struct request {
    uint64_t seed;
    bool quantised;
};

/* Norms 1; everything else uniform with the variance of a linear's usual start, 1 / columns. */
static enum talpa_status make_plain(void **out, struct talpa_model *model, const struct tp_tensor_spec *spec, uint64_t seed)
{
    const int64_t n = (int64_t)spec->rows * spec->columns;
    float *data = tp_arena_array(&model->arena, (size_t)n, sizeof *data);
    if (!data) return TALPA_E_DEVICE;
    if (spec->role == TP_ROLE_NORM) {
        for (int64_t i = 0; i < n; i++) data[i] = 1.0f;
    } else {
        tp_rng_fill_splitmix(data, n, seed, model->n_weights, spec->columns > 0 ? sqrt(3.0 / spec->columns) : 1.0);
    }
    *out = data;
    return TALPA_OK;
}

/* The same variance straight in Q4_1: the 4-bit numbers are the random bits (variance 255/12 of the scale), the minimum puts their mean at
 * 0. The scale's lower bits are cleared so that 7.5 times it is an f16 too. */
static enum talpa_status make_q4_1(void **out, struct talpa_model *model, const struct tp_tensor_spec *spec, uint64_t seed)
{
    const size_t n_blocks = (size_t)spec->rows * (size_t)spec->columns / BLOCK;
    uint8_t *data = tp_arena_array(&model->arena, n_blocks, BLOCK_BYTES);
    if (!data) return TALPA_E_DEVICE;
    const uint16_t scale = tp_f32_to_f16((float)sqrt(12.0 / 255.0 / spec->columns)) & 0xfff0u;
    const uint16_t minimum = tp_f32_to_f16(-7.5f * tp_f16_to_f32(scale));
    const uint64_t state = seed * 1000003u + model->n_weights;
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *block = data + b * BLOCK_BYTES;
        block[0] = (uint8_t)scale, block[1] = (uint8_t)(scale >> 8);
        block[2] = (uint8_t)minimum, block[3] = (uint8_t)(minimum >> 8);
        for (size_t w = 0; w < 2; w++) {
            const uint64_t bits = tp_rng_splitmix64(state, 2 * b + w + 1);
            for (size_t i = 0; i < 8; i++) block[4 + 8 * w + i] = (uint8_t)(bits >> (8 * i));
        }
    }
    *out = data;
    return TALPA_OK;
}

static enum talpa_status make_tensor(struct talpa_model *model, const struct tp_tensor_spec *spec, void *user)
{
    const struct request *request = user;
    const bool quantised = request->quantised && spec->role == TP_ROLE_MATRIX && spec->columns % BLOCK == 0;
    void *data;
    TP_TRY((quantised ? make_q4_1 : make_plain)(&data, model, spec, request->seed));
    const int64_t dim[2] = {spec->rows, spec->columns};
    const struct tp_model_weight weight = {
        .name = spec->name,
        .file_name = spec->gguf_name,
        .type = tp_type_make(quantised ? TALPA_Q4_1 : TALPA_F32, TP_STEP_NONE, spec->role == TP_ROLE_MATRIX ? 2 : 1, dim),
        .data = data};
    return tp_model_add(model, &weight);
}

/* ---- the models ---- */

static const struct {
    const char *name;
    bool quantised;
    struct tp_model_config config;
} built_in[] = {
    {"random:tiny",
     false,
     {.n_layers = 2,
      .d_model = 64,
      .n_heads = 4,
      .n_kv_heads = 2,
      .head_dim = 16,
      .d_ff = 128,
      .vocab_size = 259,
      .context_length = 512,
      .rope_theta = 10000.0,
      .rms_norm_eps = 1e-5,
      .tied_embeddings = true}},
    /* The shape of SmolLM2-135M-Instruct, for measurements without a download. */
    {"random:135m",
     true,
     {.n_layers = 30,
      .d_model = 576,
      .n_heads = 9,
      .n_kv_heads = 3,
      .head_dim = 64,
      .d_ff = 1536,
      .vocab_size = 49152,
      .context_length = 8192,
      .rope_theta = 100000.0,
      .rms_norm_eps = 1e-5,
      .tied_embeddings = true}},
};

enum talpa_status tp_model_make_built_in(struct talpa_model *model)
{
    for (size_t i = 0; i < sizeof built_in / sizeof *built_in; i++) {
        if (strcmp(built_in[i].name, model->path)) continue;
        struct request request = {.seed = 0, .quantised = built_in[i].quantised};
        model->name = built_in[i].name;
        model->config = built_in[i].config;
        TP_TRY(tp_arch_configure(model, tp_arch_find("llama")));
        TP_TRY(tp_tokenizer_byte_level(&model->tokenizer));
        return tp_arch_visit(model, make_tensor, &request);
    }
    return tp_fail(TALPA_E_ARGUMENT, "model '%s': no built-in model of that name, there are %s and %s", model->path, built_in[0].name,
                   built_in[1].name);
}
