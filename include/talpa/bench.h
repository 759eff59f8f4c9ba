/* Measurements: what a device reaches, and how fast products, ops, training steps and generation are on it. */
#ifndef TALPA_BENCH_H
#define TALPA_BENCH_H

#include "talpa/infer.h"

#ifdef __cplusplus
extern "C" {
#endif

/** What a device reaches at most, measured. */
struct talpa_bench_peaks {
    double f32_gflops;  /**< independent chains of f32 multiply-adds, the best of several shapes of work-group and vector */
    double read_gbs;    /**< reading the largest buffer that was tried */
    double copy_gbs;    /**< copying it; bytes read and written counted */
    double launch_ns;   /**< an empty kernel, from its enqueueing to the end of waiting for it */
    double enqueue_ns;  /**< an empty kernel among hundreds of others that are waited for together */
};

/** A product y[m, n] = x[m, k] W[n, k]^T. */
struct talpa_bench_shape {
    int m, k, n;
};

enum { TALPA_BENCH_TEXT_BYTES = 112 };

/** One measurement. NaN: not known. Times are wall clock, waiting for the device included, unless they say otherwise. */
struct talpa_bench_row {
    char test[TALPA_BENCH_TEXT_BYTES]; /**< "pp512", "tg128", "tr4x256", "gemm 512x576x1536 q4_1", "rms_norm forward", "peak f32 fma" */
    int n_prompt, n_gen;       /**< tokens per sequence; 0 if that is not what is measured */
    int n_batch;               /**< sequences, or examples per micro-batch */
    const double *samples_ns;  /**< one per repetition; borrowed for the callback */
    int n_samples;
    double avg_ns, stddev_ns, median_ns, min_ns; /**< stddev: of the samples (n - 1) */
    double n_tokens;           /**< per sample; 0: none are counted */
    double avg_ts, stddev_ts;  /**< tokens per second over the samples; NaN without tokens */
    double flops, bytes;       /**< per sample, estimated when planning */
    double gflops, gbs;        /**< per second of kernel time where that is known, else of avg_ns */
    double roofline_pct;       /**< 100 x (time at min(peak, intensity x bandwidth), kernel by kernel) / time; NaN without peaks */
    double kernel_ns;          /**< times on the device, added up, of one more repetition with every launch recorded */
    double forward_ns, backward_ns, update_ns; /**< its parts */
    int64_t n_launches;        /**< of that repetition */
    double max_rel_err;        /**< largest |got - want| / (1 + |want|) against a reference in double precision, taken before timing */
    struct talpa_memory_use memory;
};

/** Defaults by talpa_bench_default(). Everything is borrowed. */
struct talpa_bench_options {
    size_t device;                             /**< index of talpa_device_list */
    int repetitions;                           /**< samples per row */
    int warmup;                                /**< runs before them that do not count */
    const struct talpa_bench_peaks *peaks;     /**< for roofline_pct; NULL: NaN */
    enum talpa_base_dtype base_dtype;          /**< gemm */
    enum talpa_compute_dtype compute_dtype;    /**< gemm */
    enum talpa_dtype weight_dtype;             /**< gemm: TALPA_F32, TALPA_BF16 or a quantised type, as a model file would hold it */
    const struct talpa_bench_shape *shapes;    /**< gemm */
    size_t n_shapes;
    const struct talpa_train_options *train;   /**< train, ops: batch, sequence length, adapter, ...; its files are not used */
    const struct talpa_session_options *session; /**< generate; n_ctx is set as needed */
    const int *n_prompt, *n_gen;               /**< generate: a row each */
    size_t n_n_prompt, n_n_gen;
    const char *op;                            /**< ops: this one alone, by place in the model; NULL: all, summed over the model */
    bool (*row)(void *user, const struct talpa_bench_row *row); /**< false: stop with TALPA_E_INTERRUPTED */
    void (*note)(void *user, const char *line);                 /**< progress; NULL: none */
    void *user;
};
void talpa_bench_default(struct talpa_bench_options *options);

/** Measures the device; a row for each thing that is tried ("peak f32 fma", "peak read 16 MiB", ...) goes to options->row if that is set. */
enum talpa_status talpa_bench_peaks(struct talpa_bench_peaks *out, const struct talpa_bench_options *options);

/** Products of options->shapes, checked against sums in double precision first. TALPA_E_CHECK if one is wrong. */
enum talpa_status talpa_bench_gemm(const struct talpa_bench_options *options);

/** Optimizer steps on random tokens: every row full, every token labelled. One row, "tr<batch>x<length>". */
enum talpa_status talpa_bench_train(struct talpa_model *model, const struct talpa_bench_options *options);

/** The ops of such a step, at the model's sizes: times on the device per step, from recorded launches. Every op's own small cases are
 *  checked against its reference first. TALPA_E_CHECK if one fails, TALPA_E_ARGUMENT for an unknown op or one that the step does not have. */
enum talpa_status talpa_bench_ops(struct talpa_model *model, const struct talpa_bench_options *options);

/** Reading prompts of n_prompt random tokens ("pp"), and decoding n_gen tokens after a prompt of one ("tg"), for session->n_sequences at
 *  once, the cost of sampling included in neither. */
enum talpa_status talpa_bench_generate(struct talpa_model *model, const struct talpa_bench_options *options);

/** Earlier results: the file that `talpa bench -o json` writes. */
struct talpa_bench_baseline;

/** What has to be equal for two rows to be compared. */
struct talpa_bench_key {
    const char *test, *model_type, *dtype, *base_dtype, *routing;
    int n_experts, rank, n_batch;
};

/** TALPA_E_NO_INPUT, TALPA_E_DATA (not such a file; the message names row and field). The caller owns *out. */
enum talpa_status talpa_bench_baseline_open(struct talpa_bench_baseline **out, const char *path);
/** NULL is allowed. */
void talpa_bench_baseline_close(struct talpa_bench_baseline *baseline);
/** True and the row's mean and standard deviation if there is one. */
bool talpa_bench_baseline_find(double *avg_ns, double *stddev_ns, const struct talpa_bench_baseline *baseline, const struct talpa_bench_key *key);
/** How many standard deviations slower (> 0) the new mean is. The deviation is that of a single difference, sqrt(old^2 + new^2), and at
 *  least 1 % of the old mean: repetitions within one run differ less than runs do. */
double talpa_bench_sigmas(double old_ns, double old_stddev_ns, double new_ns, double new_stddev_ns);

#ifdef __cplusplus
}
#endif
#endif
