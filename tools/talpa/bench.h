/* What the files of `talpa bench` share. */
#ifndef BENCH_H
#define BENCH_H

#include "output.h"
#include "program.h"
#include "talpa/bench.h"
#include "train_flags.h"

enum bench_kind { BENCH_GEMM, BENCH_OPS, BENCH_TRAIN, BENCH_GENERATE, BENCH_PEAKS, BENCH_N_KINDS };
extern const char *const bench_kinds[BENCH_N_KINDS];

enum { BENCH_MD, BENCH_CSV, BENCH_JSON, BENCH_JSONL, BENCH_SQL };
#define BENCH_FORMATS "md|csv|json|jsonl|sql"
enum { BENCH_MAX_VALUES = 64 };

struct bench {
    enum bench_kind kind;
    const char *model, *device_selector, *lora, *output_file, *profile, *compare;
    const char *prompts, *gens, *gemm, *op, *weights; /* value lists as given */
    int format, repetitions, warmup, n_ubatch;
    double threshold;
    bool no_peaks;
    struct train_flags train;
    int n_prompt[BENCH_MAX_VALUES], n_gen[BENCH_MAX_VALUES];
    struct talpa_bench_shape shapes[BENCH_MAX_VALUES];
    struct talpa_session_options session;
    struct talpa_bench_options options;

    /* of the run */
    struct program_device device;
    struct talpa_model_info info;         /* all zero without a model */
    struct talpa_adapter_config adapter;  /* of --lora or of the training flags */
    bool has_adapter, has_peaks;
    struct talpa_bench_peaks peaks;
    struct talpa_bench_baseline *baseline;
    struct output output;
    int n_slower;
};

/** "128", "128,512", "128-512+128" (steps), "16-128*2" (factors), mixed with commas. Returns how many, or -1 if the text is no such list of
 *  numbers from 0 to 2^20, at most BENCH_MAX_VALUES. */
int bench_parse_values(int values[BENCH_MAX_VALUES], const char *text);
/** "MxKxN,MxKxN"; how many, or -1. */
int bench_parse_shapes(struct talpa_bench_shape shapes[BENCH_MAX_VALUES], const char *text);

/** Rows: begin, row (a talpa_bench_options.row with a struct bench), end. */
void bench_output_begin(struct bench *bench);
bool bench_output_row(void *bench, const struct talpa_bench_row *row);
void bench_output_end(struct bench *bench);

#endif
