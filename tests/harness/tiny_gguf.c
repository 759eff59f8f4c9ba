#include "tiny_gguf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "golden.h"
#include "io/gguf_write.h"
#include "io/tokenizer_bpe.h"
#include "models/model.h"

enum { N_SPECIAL = 3, N_TOKENS = N_SPECIAL + 256 };

static void write_tokenizer(struct tp_gguf_writer *w)
{
    static char chars[256][4];
    static const char *tokens[N_TOKENS] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    int32_t types[N_TOKENS] = {3, 3, 3};
    for (int b = 0; b < 256; b++) {
        memset(chars[b], 0, sizeof chars[b]);
        tp_tokenizer_bpe_byte_char(chars[b], (unsigned char)b);
        tokens[N_SPECIAL + b] = chars[b];
        types[N_SPECIAL + b] = 1;
    }
    tp_gguf_write_string(w, "tokenizer.ggml.model", "gpt2");
    tp_gguf_write_string(w, "tokenizer.ggml.pre", "gpt-2");
    tp_gguf_write_string_array(w, "tokenizer.ggml.tokens", tokens, N_TOKENS);
    tp_gguf_write_i32_array(w, "tokenizer.ggml.token_type", types, N_TOKENS);
    tp_gguf_write_string_array(w, "tokenizer.ggml.merges", NULL, 0);
    tp_gguf_write_u32(w, "tokenizer.ggml.bos_token_id", 1);
    tp_gguf_write_u32(w, "tokenizer.ggml.eos_token_id", 2);
    tp_gguf_write_bool(w, "tokenizer.ggml.add_bos_token", false);
}

static void write_keys(struct tp_gguf_writer *w, const struct tp_model_config *c)
{
    tp_gguf_write_string(w, "general.architecture", "llama");
    tp_gguf_write_string(w, "general.name", "tiny");
    tp_gguf_write_u32(w, "general.file_type", 99); /* whatever merging writes, it is not this */
    tp_gguf_write_u32(w, "llama.block_count", (uint32_t)c->n_layers);
    tp_gguf_write_u32(w, "llama.context_length", (uint32_t)c->context_length);
    tp_gguf_write_u32(w, "llama.embedding_length", (uint32_t)c->d_model);
    tp_gguf_write_u32(w, "llama.feed_forward_length", (uint32_t)c->d_ff);
    tp_gguf_write_u32(w, "llama.attention.head_count", (uint32_t)c->n_heads);
    tp_gguf_write_u32(w, "llama.attention.head_count_kv", (uint32_t)c->n_kv_heads);
    tp_gguf_write_f32(w, "llama.rope.freq_base", (float)c->rope_theta);
    tp_gguf_write_f32(w, "llama.attention.layer_norm_rms_epsilon", (float)c->rms_norm_eps);
}

/* llama.cpp's order of q and k rows: [head][2][width / 2] becomes [head][width / 2][2]. */
static void permute(float *out, const float *in, int rows, int columns, int heads)
{
    const int width = rows / heads;
    for (int h = 0; h < heads; h++)
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < width / 2; i++)
                memcpy(out + (size_t)(h * width + 2 * i + half) * (size_t)columns,
                       in + (size_t)(h * width + half * (width / 2) + i) * (size_t)columns, (size_t)columns * sizeof *out);
}

void tiny_gguf_write(const char *path, enum talpa_dtype dtype)
{
    struct talpa_model *model;
    struct tp_gguf_writer *w;
    golden_ok(talpa_model_open(&model, "random:tiny"));
    golden_ok(tp_gguf_write_create(&w));
    const struct tp_model_config *c = &model->config;
    write_keys(w, c);
    write_tokenizer(w);
    void **kept = calloc(model->n_weights, sizeof *kept);
    for (size_t i = 0; i < model->n_weights; i++) {
        const struct tp_model_weight *weight = &model->weights[i];
        const bool is_matrix = weight->type.shape.rank == 2, is_table = strstr(weight->name, "embed") != NULL;
        const int rows = (int)weight->type.shape.dim[0], columns = is_matrix ? (int)weight->type.shape.dim[1] : 1;
        const size_t n = (size_t)rows * (size_t)columns;
        const int heads = strstr(weight->name, "q_proj") ? c->n_heads : strstr(weight->name, "k_proj") ? c->n_kv_heads : 0;
        const enum talpa_dtype to = !is_matrix ? TALPA_F32 : is_table && tp_dtype_is_quantised(dtype) ? TALPA_Q8_0 : dtype;
        float *values = malloc(n * sizeof *values);
        assert_int_equal(weight->type.dtype, TALPA_F32);
        if (heads)
            permute(values, weight->data, rows, columns, heads);
        else
            memcpy(values, weight->data, n * sizeof *values);
        kept[i] = malloc(tp_dtype_bytes(to, (int64_t)n));
        tp_dtype_from_f32(kept[i], values, to, (int64_t)n);
        free(values);
        tp_gguf_write_tensor(w, weight->file_name, to, &weight->type.shape, kept[i]);
    }
    golden_ok(tp_gguf_write_save(w, path));
    for (size_t i = 0; i < model->n_weights; i++) free(kept[i]);
    free(kept);
    tp_gguf_write_free(w);
    talpa_model_close(model);
}
