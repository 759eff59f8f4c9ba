/* talpa bench */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "flags_common.h"
#include "profile.h"
#include "talpa/profile.h"

static void on_note(void *user, const char *line)
{
    (void)user;
    if (options_verbosity > 0) program_note("%s", line);
}

static bool ignore_row(void *user, const struct talpa_bench_row *row)
{
    (void)user;
    (void)row;
    return true;
}

/* ---- flags ---- */

/* Flags of training that change no measurement. */
static void drop(struct options *options, const char *name)
{
    for (size_t i = 0; i < options->n; ++i)
        if (options->list[i].name && !strcmp(options->list[i].name, name)) {
            memmove(&options->list[i], &options->list[i + 1], (options->n - i - 1) * sizeof options->list[0]);
            options->n--;
            return;
        }
}

static void add_flags(struct options *options, struct bench *b)
{
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "What"},
        flag_model(&b->model),
        flag_lora(&b->session.lora),
        flag_allow_other_base(&b->session.allow_other_base),
        {OPTION_TEXT, "n-prompt", 'p', NULL, &b->prompts, "LIST", "generate: prompt lengths, as 128,512 or 128-512+128 or 16-128*2; 0: none", 0, 0, false, 0},
        {OPTION_TEXT, "n-gen", 'n', NULL, &b->gens, "LIST", "generate: tokens to decode", 0, 0, false, 0},
        {OPTION_INT, "ubatch-size", 0, "-ub", &b->n_ubatch, "N", "generate: prompt tokens per pass", 1, 1 << 16, false, 0},
        {OPTION_TEXT, "gemm", 0, NULL, &b->gemm, "MxKxN,..", "gemm: shapes of y[M, N] = x[M, K] W[N, K]^T", 0, 0, false, 0},
        {OPTION_TEXT, "weights", 0, NULL, &b->weights, "TYPE", "gemm: type of W in the file: f32, bf16, q8_0, q4_1, ...", 0, 0, false, 0},
        {OPTION_TEXT, "op", 0, NULL, &b->op, "NAME", "ops: this one, by place in the model", 0, 0, false, 0},
        {.kind = OPTION_GROUP, .help = "How"},
        flag_device(&b->device_selector),
        {OPTION_INT, "repetitions", 'r', NULL, &b->repetitions, "N", "samples per row", 1, 1000000, false, 0},
        {OPTION_INT, "warmup", 0, NULL, &b->warmup, "N", "runs before them that do not count", 0, 1000000, false, 0},
        {OPTION_FLAG, "no-peaks", 0, NULL, &b->no_peaks, NULL, "do not measure the device's peaks first: no %roof", 0, 0, false, 0},
        flag_profile(&b->profile),
        {.kind = OPTION_GROUP, .help = "Result"},
        flag_output(&b->format, BENCH_FORMATS),
        flag_output_file(&b->output_file),
        {OPTION_TEXT, "compare", 0, NULL, &b->compare, "FILE", "earlier results (-o json); exit code 3 if one is slower beyond --threshold", 0, 0, false, 0},
        {OPTION_REAL, "threshold", 0, NULL, &b->threshold, "X", "standard deviations (of a difference, at least 1 % of the time)", 0, 1e9, false, 0},
    };
    static const char *const dropped[] = {"max-steps",    "num-train-epochs", "lr-scheduler", "warmup-steps", "warmup-ratio",
                                          "no-shuffle",   "packing",          "aux-include-pads"};
    options_add(options, table, sizeof table / sizeof *table);
    const size_t first = options->n;
    train_flags_add(options, &b->train);
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; ++i) drop(options, dropped[i]);
    /* -r and --threshold are the benchmark's, -ub is generation's. */
    for (size_t i = first; i < options->n; ++i) {
        struct option *o = &options->list[i];
        if (o->letter == 'r') o->letter = 0;
        if (o->alias && !strcmp(o->alias, "threshold")) o->alias = NULL;
        if (o->name && !strcmp(o->name, "ubatch-size")) {
            memmove(o, o + 1, (options->n - i - 1) * sizeof *o);
            options->n--;
            --i;
        }
    }
}

static int find_dtype(enum talpa_dtype *out, const struct options *options, const char *name)
{
    char known[256] = "";
    for (int d = 0; d < TALPA_N_DTYPES; ++d) {
        if ((enum talpa_dtype)d == TALPA_I32) continue;
        const char *word = talpa_dtype_name((enum talpa_dtype)d);
        if (!strcmp(word, name)) {
            *out = (enum talpa_dtype)d;
            return -1;
        }
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", *known ? ", " : "", word);
    }
    return options_fail(options, "--weights: found '%s', expected one of %s", name, known);
}

static int check(struct bench *b, const struct options *options)
{
    struct talpa_bench_options *o = &b->options;
    static const struct {
        const char *flag;
        enum bench_kind kind;
    } owned[] = {{"n-prompt", BENCH_GENERATE}, {"n-gen", BENCH_GENERATE}, {"ubatch-size", BENCH_GENERATE}, {"lora", BENCH_GENERATE},
                 {"gemm", BENCH_GEMM},         {"weights", BENCH_GEMM},   {"op", BENCH_OPS}};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; ++i)
        if (b->kind != owned[i].kind && options_source(options, owned[i].flag) == OPTION_COMMAND_LINE)
            return options_fail(options, "--%s belongs to 'talpa bench %s', not to '%s'", owned[i].flag, bench_kinds[owned[i].kind], bench_kinds[b->kind]);
    int code = train_flags_finish(&b->train, options);
    if (code >= 0) return code;
    const int n_prompt = bench_parse_values(b->n_prompt, b->prompts), n_gen = bench_parse_values(b->n_gen, b->gens);
    const int n_shapes = bench_parse_shapes(b->shapes, b->gemm);
    if (n_prompt < 0 || n_gen < 0)
        return options_fail(options, "--n-%s: found '%s', expected numbers as in 128,512 or 128-512+128 or 16-128*2", n_prompt < 0 ? "prompt" : "gen",
                            n_prompt < 0 ? b->prompts : b->gens);
    if (n_shapes < 0) return options_fail(options, "--gemm: found '%s', expected shapes MxKxN, as in 512x576x1536,1x576x1536", b->gemm);
    if ((code = find_dtype(&o->weight_dtype, options, b->weights)) >= 0) return code;
    b->lora = b->session.lora;
    b->session.n_ubatch = b->n_ubatch;
    b->session.n_sequences = options_source(options, "batch-size") == OPTION_DEFAULT ? 1 : b->train.options.batch_size;
    b->session.base_dtype = b->train.options.base_dtype;
    b->session.compute_dtype = b->train.options.compute_dtype;
    b->session.dispatch = b->train.options.dispatch;
    o->repetitions = b->repetitions;
    o->warmup = b->warmup;
    o->base_dtype = b->train.options.base_dtype;
    o->compute_dtype = b->train.options.compute_dtype;
    o->shapes = b->shapes;
    o->n_shapes = (size_t)n_shapes;
    o->train = &b->train.options;
    o->session = &b->session;
    o->n_prompt = b->n_prompt;
    o->n_n_prompt = (size_t)n_prompt;
    o->n_gen = b->n_gen;
    o->n_n_gen = (size_t)n_gen;
    o->op = b->op;
    o->row = bench_output_row;
    o->note = on_note;
    o->user = b;
    return -1;
}

/* ---- running ---- */

static enum talpa_status measure_peaks(struct bench *b)
{
    struct talpa_bench_options options = b->options;
    options.row = ignore_row;
    options.repetitions = 3;
    const enum talpa_status status = talpa_bench_peaks(&b->peaks, &options);
    b->has_peaks = status == TALPA_OK;
    if (b->has_peaks) b->options.peaks = &b->peaks;
    return status;
}

static enum talpa_status run_kind(struct bench *b, struct talpa_model *model)
{
    switch (b->kind) {
    case BENCH_GEMM:
        return talpa_bench_gemm(&b->options);
    case BENCH_OPS:
        return talpa_bench_ops(model, &b->options);
    case BENCH_TRAIN:
        return talpa_bench_train(model, &b->options);
    case BENCH_GENERATE:
        return talpa_bench_generate(model, &b->options);
    default:
        return talpa_bench_peaks(&b->peaks, &b->options);
    }
}

/* The adapter that is measured: --lora's, or the one that the training flags describe. */
static enum talpa_status find_adapter(struct bench *b)
{
    char *lines = NULL;
    if (b->kind == BENCH_TRAIN || b->kind == BENCH_OPS) {
        b->adapter = b->train.options.adapter;
        b->has_adapter = true;
    }
    if (!b->lora) return TALPA_OK;
    const enum talpa_status status = talpa_adapter_inspect(&b->adapter, &lines, b->lora);
    free(lines);
    b->has_adapter = status == TALPA_OK;
    return status;
}

static int run_rows(struct bench *b, struct talpa_model *model)
{
    int code = output_open(&b->output, b->output_file);
    if (code >= 0) return code;
    if (b->has_peaks) talpa_profile_peaks(b->peaks.f32_gflops, fmax(b->peaks.read_gbs, b->peaks.copy_gbs));
    bench_output_begin(b);
    const enum talpa_status status = run_kind(b, model);
    if (output_failed(&b->output)) return output_close(&b->output);
    if (status != TALPA_OK) {
        fflush(stdout);
        output_discard(&b->output);
        return program_fail(status);
    }
    bench_output_end(b);
    code = output_close(&b->output);
    if (code || !b->n_slower) return code;
    program_error("%d of the measurements are slower than %s by more than %g sigma", b->n_slower, b->compare, b->threshold);
    return 3;
}

static int run(struct bench *b)
{
    struct talpa_model *model = NULL;
    const bool needs_model = b->kind == BENCH_TRAIN || b->kind == BENCH_OPS || b->kind == BENCH_GENERATE;
    int code = program_device_choose(&b->device, b->device_selector, NULL);
    if (code >= 0) return code;
    program_device_note(&b->device);
    b->options.device = b->device.index;
    enum talpa_status status = b->compare ? talpa_bench_baseline_open(&b->baseline, b->compare) : TALPA_OK;
    if (status == TALPA_OK && needs_model) status = talpa_model_open(&model, b->model);
    if (status == TALPA_OK && needs_model) status = talpa_model_info(&b->info, model);
    if (status == TALPA_OK) status = find_adapter(b);
    if (status == TALPA_OK && !b->no_peaks && b->kind != BENCH_PEAKS) status = measure_peaks(b);
    if (status != TALPA_OK) code = program_fail(status);
    if (code < 0) code = profile_begin(b->profile);
    if (code < 0) {
        talpa_device_memory_reset();
        code = profile_end(run_rows(b, model));
    }
    talpa_model_close(model);
    talpa_bench_baseline_close(b->baseline);
    return code;
}

int cmd_bench(int argc, char **argv)
{
    static struct options options;
    static struct bench b = {.kind = BENCH_N_KINDS, .model = "random:135m", .prompts = "512", .gens = "128", .repetitions = 5, .warmup = 1,
                             .gemm = "1024x576x1536,8x576x1536,1x576x1536,1x576x49152", .weights = "q4_1", .threshold = 3.0};
    options = (struct options){
        .verb = "bench",
        .usage = "gemm|ops|train|generate|peaks [options]",
        .summary = "Measures a device: products, the ops of a training step, whole steps, prompts and decoding, and its peaks.\n"
                   "Results are checked before they are timed. The default model is random:135m: nothing is downloaded."};
    talpa_session_default(&b.session);
    talpa_bench_default(&b.options);
    b.n_ubatch = b.session.n_ubatch;
    add_flags(&options, &b);
    if (argc > 1 && argv[1][0] != '-') {
        for (int k = 0; k < BENCH_N_KINDS; ++k)
            if (!strcmp(argv[1], bench_kinds[k])) b.kind = (enum bench_kind)k;
        if (b.kind == BENCH_N_KINDS) {
            const char *near = options_nearest(argv[1], bench_kinds, BENCH_N_KINDS);
            return options_fail(&options, "found '%s', expected one of gemm, ops, train, generate, peaks%s%s%s", argv[1], near ? "; did you mean '" : "",
                                near ? near : "", near ? "'?" : "");
        }
        argv[1] = argv[0];
        ++argv;
        --argc;
    }
    int code = options_parse(&options, argc, argv);
    if (code < 0 && b.kind == BENCH_N_KINDS) code = options_fail(&options, "what to measure is missing: gemm, ops, train, generate or peaks");
    if (code < 0) code = check(&b, &options);
    if (code < 0) {
        program_log_level();
        code = run(&b);
    }
    options_free(&options);
    return code;
}
