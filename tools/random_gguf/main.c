/* talpa-random-gguf: a GGUF model of a known shape with random weights, for measuring time and memory without a download. The file is
 * written a megabyte at a time; the same options give the same bytes everywhere. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "io/gguf_write.h"

enum { N_BYTE_TOKENS = 256, FIRST_BYTE_TOKEN = 3, MAX_TENSORS = 1024, PIECE_BYTES = 16 };

struct shape {
    const char *name;
    uint32_t n_layers, d_model, d_ff, n_heads, n_kv_heads, vocab, context;
};

/* Llama 2 7B (arXiv 2307.09288), its proportions in the small, and SmolLM2 135M (arXiv 2502.02737; its output matrix here not tied). */
static const struct shape shapes[] = {{"llama2-7b", 32, 4096, 11008, 32, 32, 32000, 4096},
                                      {"llama2-tiny", 2, 64, 192, 4, 4, 1024, 256},
                                      {"smollm2-135m", 30, 576, 1536, 9, 3, 49152, 8192}};

struct tensor {
    enum talpa_dtype dtype;
    int64_t columns;
};

struct model {
    struct shape shape;
    enum talpa_dtype dtype; /* of matrices; norms are f32 */
    uint64_t state;
    struct tensor tensors[MAX_TENSORS];
    size_t n_tensors;
    struct tp_gguf_writer *writer;
};

/* xorshift64* (Vigna 2016): fast, and any bits will do here. */
static uint64_t next(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

/* ---- weights ---- */

/* Random levels below one constant scale: as cheap as copying, and every block is valid. */
static void fill_blocks(struct model *model, uint8_t *out, int64_t n_blocks, size_t block_bytes, float scale)
{
    uint8_t half[2];
    tp_dtype_from_f32(half, &scale, TALPA_F16, 1);
    for (int64_t b = 0; b < n_blocks; b++, out += block_bytes) {
        memcpy(out, half, sizeof half);
        for (size_t i = sizeof half; i < block_bytes; i += 8) {
            const uint64_t bits = next(&model->state);
            memcpy(out + i, &bits, block_bytes - i < 8 ? block_bytes - i : 8);
        }
    }
}

/* A standard deviation near 1.2 / sqrt(d_in) in every type keeps the activations of a deep model finite. */
static enum talpa_status fill_rows(void *user, size_t index, int64_t row, int64_t n_rows, void *bytes)
{
    struct model *model = user;
    const struct tensor *tensor = &model->tensors[index];
    const int64_t n = n_rows * tensor->columns;
    const float scale = 0.25f / sqrtf((float)tensor->columns);
    (void)row;
    if (tensor->dtype == TALPA_Q4_0) {
        fill_blocks(model, bytes, n / 32, 18, scale);
    } else if (tensor->dtype == TALPA_Q8_0) {
        fill_blocks(model, bytes, n / 32, 34, scale / 16.0f);
    } else {
        const bool is_norm = tensor->columns == n && n_rows == 1;
        float *values = malloc((size_t)n * sizeof *values);
        if (!values) return tp_fail_memory("weights", (unsigned long long)n * sizeof *values);
        for (int64_t i = 0; i < n; i++) {
            const float unit = (float)(next(&model->state) >> 40) * 0x1p-24f;
            values[i] = is_norm ? 1.0f : (16.0f * unit - 8.0f) * scale;
        }
        tp_dtype_from_f32(bytes, values, tensor->dtype, n);
        free(values);
    }
    return TALPA_OK;
}

static void add(struct model *model, const char *name, enum talpa_dtype dtype, int64_t rows, int64_t columns)
{
    const struct talpa_shape shape = rows ? (struct talpa_shape){.rank = 2, .dim = {rows, columns}} : (struct talpa_shape){.rank = 1, .dim = {columns}};
    model->tensors[model->n_tensors++] = (struct tensor){dtype, columns};
    tp_gguf_write_tensor(model->writer, name, dtype, &shape, NULL);
}

static void add_tensors(struct model *model)
{
    const struct shape *s = &model->shape;
    const int64_t d = s->d_model, kv = (int64_t)(s->d_model / s->n_heads) * s->n_kv_heads;
    const struct {
        const char *name;
        int64_t rows, columns;
    } layer[] = {{"attn_norm", 0, d},     {"attn_q", d, d},  {"attn_k", kv, d},          {"attn_v", kv, d},       {"attn_output", d, d},
                 {"ffn_norm", 0, d}, {"ffn_gate", s->d_ff, d}, {"ffn_up", s->d_ff, d}, {"ffn_down", d, s->d_ff}};
    add(model, "token_embd.weight", model->dtype, s->vocab, d);
    for (uint32_t l = 0; l < s->n_layers; l++)
        for (size_t i = 0; i < sizeof layer / sizeof *layer; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%u.%s.weight", (unsigned)l, layer[i].name);
            add(model, name, layer[i].rows ? model->dtype : TALPA_F32, layer[i].rows, layer[i].columns);
        }
    add(model, "output_norm.weight", TALPA_F32, 0, d);
    add(model, "output.weight", model->dtype, s->vocab, d);
}

/* ---- keys ---- */

/* Pieces after the bytes: the printable characters, then "_a" to "_z", "_aa", ...: every beginning of a piece is a piece, so that texts of
 * short words need one token per word as with a real vocabulary. */
static void filler_piece(char *out, uint32_t i)
{
    static const char space[] = "\xe2\x96\x81"; /* U+2581 */
    if (i == 0) {
        snprintf(out, PIECE_BYTES, "%s", space);
    } else if (i < 95) {
        snprintf(out, PIECE_BYTES, "%c", (char)(' ' + i));
    } else {
        char letters[8];
        int n = sizeof letters - 1;
        letters[n] = '\0';
        for (uint32_t rest = i - 94; rest; rest = (rest - 1) / 26) letters[--n] = (char)('a' + (rest - 1) % 26);
        snprintf(out, PIECE_BYTES, "%s%s", space, letters + n);
    }
}

static enum talpa_status add_tokenizer(struct model *model)
{
    const uint32_t n = model->shape.vocab;
    char (*pieces)[PIECE_BYTES] = calloc(n, sizeof *pieces);
    const char **texts = calloc(n, sizeof *texts);
    int32_t *types = calloc(n, sizeof *types);
    float *scores = calloc(n, sizeof *scores);
    enum talpa_status status = TALPA_OK;
    if (!pieces || !texts || !types || !scores) {
        status = tp_fail_memory("vocabulary", (unsigned long long)n * PIECE_BYTES);
    } else {
        static const char *const special[FIRST_BYTE_TOKEN] = {"<unk>", "<s>", "</s>"};
        for (uint32_t i = 0; i < n; i++) {
            texts[i] = pieces[i];
            types[i] = i == 0 ? 2 : i < FIRST_BYTE_TOKEN ? 3 : i < FIRST_BYTE_TOKEN + N_BYTE_TOKENS ? 6 : 1;
            scores[i] = i < FIRST_BYTE_TOKEN + N_BYTE_TOKENS ? 0.0f : -(float)(i - FIRST_BYTE_TOKEN - N_BYTE_TOKENS);
            if (i < FIRST_BYTE_TOKEN) snprintf(pieces[i], PIECE_BYTES, "%s", special[i]);
            else if (i < FIRST_BYTE_TOKEN + N_BYTE_TOKENS) snprintf(pieces[i], PIECE_BYTES, "<0x%02X>", (unsigned)(i - FIRST_BYTE_TOKEN));
            else filler_piece(pieces[i], i - FIRST_BYTE_TOKEN - N_BYTE_TOKENS);
        }
        tp_gguf_write_string(model->writer, "tokenizer.ggml.model", "llama");
        tp_gguf_write_string_array(model->writer, "tokenizer.ggml.tokens", texts, n);
        tp_gguf_write_f32_array(model->writer, "tokenizer.ggml.scores", scores, n);
        tp_gguf_write_i32_array(model->writer, "tokenizer.ggml.token_type", types, n);
        tp_gguf_write_u32(model->writer, "tokenizer.ggml.unknown_token_id", 0);
        tp_gguf_write_u32(model->writer, "tokenizer.ggml.bos_token_id", 1);
        tp_gguf_write_u32(model->writer, "tokenizer.ggml.eos_token_id", 2);
        tp_gguf_write_bool(model->writer, "tokenizer.ggml.add_bos_token", true);
    }
    free(pieces);
    free(texts);
    free(types);
    free(scores);
    return status;
}

static void add_keys(struct model *model)
{
    const struct shape *s = &model->shape;
    struct tp_gguf_writer *w = model->writer;
    tp_gguf_write_string(w, "general.architecture", "llama");
    tp_gguf_write_string(w, "general.name", s->name);
    tp_gguf_write_u32(w, "llama.block_count", s->n_layers);
    tp_gguf_write_u32(w, "llama.context_length", s->context);
    tp_gguf_write_u32(w, "llama.embedding_length", s->d_model);
    tp_gguf_write_u32(w, "llama.feed_forward_length", s->d_ff);
    tp_gguf_write_u32(w, "llama.rope.dimension_count", s->d_model / s->n_heads);
    tp_gguf_write_u32(w, "llama.attention.head_count", s->n_heads);
    tp_gguf_write_u32(w, "llama.attention.head_count_kv", s->n_kv_heads);
    tp_gguf_write_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    tp_gguf_write_f32(w, "llama.rope.freq_base", 10000.0f);
}

static enum talpa_status write_model(struct model *model, const char *path)
{
    TP_TRY(tp_gguf_write_create(&model->writer));
    add_keys(model);
    enum talpa_status status = add_tokenizer(model);
    if (status == TALPA_OK) {
        add_tensors(model);
        status = tp_gguf_write_save_rows(model->writer, path, &(struct tp_row_source){.rows = fill_rows, .user = model});
    }
    tp_gguf_write_free(model->writer);
    return status;
}

/* ---- command line ---- */

static int usage(FILE *out)
{
    fputs("Usage: talpa-random-gguf [--shape NAME] [--layers N] [--type TYPE] [--seed N] OUT.gguf\n"
          "Writes a Llama model with random weights and a vocabulary of bytes and short words.\n"
          "  --shape NAME   [llama2-7b], llama2-tiny or smollm2-135m\n"
          "  --layers N     as many layers, 1 to 100, instead of the shape's\n"
          "  --type TYPE    [q4_0] of the matrices: q4_0, q8_0, f16, bf16 or f32\n"
          "  --seed N       [1] other weights\n",
          out);
    return out == stdout ? 0 : 2;
}

static bool parse(struct model *model, int argc, char **argv)
{
    static const struct option options[] = {
        {"shape", required_argument, NULL, 's'}, {"layers", required_argument, NULL, 'l'}, {"type", required_argument, NULL, 't'},
        {"seed", required_argument, NULL, 'r'}, {0}};
    static const enum talpa_dtype dtypes[] = {TALPA_Q4_0, TALPA_Q8_0, TALPA_F16, TALPA_BF16, TALPA_F32};
    const char *shape = "llama2-7b", *type = "q4_0", *layers = NULL;
    model->state = 1;
    model->dtype = TALPA_N_DTYPES;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 's') shape = optarg;
        else if (c == 'l') layers = optarg;
        else if (c == 't') type = optarg;
        else if (c == 'r') model->state = strtoull(optarg, NULL, 10);
        else return false;
    }
    model->state = (model->state + 1) * UINT64_C(0x9e3779b97f4a7c15);
    if (!model->state) model->state = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!strcmp(shapes[i].name, shape)) model->shape = shapes[i];
    const long n_layers = layers ? strtol(layers, NULL, 10) : (long)model->shape.n_layers;
    const bool has_layers = !model->shape.name || (n_layers >= 1 && n_layers <= 100);
    if (has_layers) model->shape.n_layers = (uint32_t)n_layers;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(tp_dtype_name(dtypes[i]), type)) model->dtype = dtypes[i];
    if (!model->shape.name) fprintf(stderr, "--shape %s: expected llama2-7b, llama2-tiny or smollm2-135m\n", shape);
    if (!has_layers) fprintf(stderr, "--layers %s: expected 1 to 100\n", layers);
    if (model->dtype == TALPA_N_DTYPES) fprintf(stderr, "--type %s: expected q4_0, q8_0, f16, bf16 or f32\n", type);
    return model->shape.name && has_layers && model->dtype != TALPA_N_DTYPES && optind == argc - 1;
}

int main(int argc, char **argv)
{
    static struct model model;
    if (argc > 1 && !strcmp(argv[1], "--help")) return usage(stdout);
    if (!parse(&model, argc, argv)) return usage(stderr);
    const enum talpa_status status = write_model(&model, argv[optind]);
    if (status != TALPA_OK) fprintf(stderr, "talpa-random-gguf: %s\n", talpa_error_message());
    return status == TALPA_OK ? 0 : 1;
}
