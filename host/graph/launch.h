/* Plain launch records: what `lower` writes and the executor enqueues. No OpenCL type, no pointer to device memory. */
#ifndef TP_LAUNCH_H
#define TP_LAUNCH_H

#include "graph/graph.h"
#include "graph/layout.h"
#include "talpa/device.h"

enum { TP_MAX_ARGS = 36, TP_MAX_SCRATCH = 8, TP_LAUNCH_OPTIONS_BYTES = 192 };

enum tp_arg_kind { TP_ARG_VALUE, TP_ARG_SCRATCH, TP_ARG_STEP, TP_ARG_BYTES, TP_ARG_LOCAL };

struct tp_arg {
    enum tp_arg_kind kind;
    talpa_value value;        /* TP_ARG_VALUE */
    enum tp_layout layout; /* TP_ARG_VALUE */
    int32_t part;          /* TP_ARG_VALUE: part of a split storage, 0 otherwise */
    int32_t scratch;       /* TP_ARG_SCRATCH: number within the node */
    bool writes;           /* the kernel writes it */
    uint32_t n_bytes;      /* TP_ARG_BYTES, TP_ARG_LOCAL */
    uint8_t bytes[8];      /* TP_ARG_BYTES */
};

/** The work-groups of a launch are independent of each other, so the executor may split dimension 0 with a global offset to bound its
 *  time: kernels take their group number from tp_group_id() (kernels/common/base.clh), never from get_group_id(). */
struct tp_launch {
    const char *source; /* path below kernels/, static string ("cpu/matmul.cl") */
    const char *kernel; /* function name, static string */
    char options[TP_LAUNCH_OPTIONS_BYTES];
    struct tp_arg args[TP_MAX_ARGS];
    int n_args;
    size_t global[3], local[3];
    double flops, bytes; /* estimate at the bound, for profiles and for splitting */
    int32_t node;        /* node of the graph; -1 for a layout conversion */
    const char *scope;   /* borrowed from the node */
    /* A library call instead of a kernel (CLBlast tier): out (+)= a b with explicit strides; args are a, b, out. */
    bool is_blas;
    /* A plain copy of copy_bytes from args[0] to args[1] at offset copy_offset (concat inputs that could not be placed). */
    bool is_copy;
    size_t copy_bytes, copy_offset;
    struct {
        bool transpose_a, transpose_b, accumulate;
        int64_t m, n, k, lda, ldb, ldc, offset_a, offset_b, offset_c; /* offsets in elements */
        enum tp_step_word m_rows, k_rows; /* run-time size of m or k, TP_STEP_NONE = exact */
    } blas;
};

enum tp_dispatch { TP_DISPATCH_DENSE, TP_DISPATCH_SPARSE };
/** Arithmetic of the products with frozen weights: f32, or bf16 operands with f32 sums where the device has a matrix tier. */
enum tp_compute_dtype { TP_COMPUTE_F32, TP_COMPUTE_BF16 };
/** What a plan is run for. Products of few rows may have other bits than the same products among many, so for text that is generated the
 *  choice must not depend on how many sequences run together: see tp_gemm_is_few. */
enum tp_use { TP_USE_ANY, TP_USE_PROMPT, TP_USE_DECODE };
enum tp_base_dtype { TP_BASE_AUTO, TP_BASE_NATIVE, TP_BASE_BF16, TP_BASE_F32 };

struct tp_tuning; /* runtime/tuning.h */

/** Choices that lowering may depend on besides shapes, attributes and capabilities. */
struct tp_plan_options {
    char tier[16];               /* forced tier (a name of exec/tier.h), "" = best that applies */
    enum tp_dispatch dispatch;   /* expert products: dense or sparse */
    enum tp_base_dtype base_dtype; /* frozen weights: as in the file, or converted */
    const struct tp_tuning *tuning; /* values of the kernels' parameters; borrowed. NULL: the plan reads the device's tuning files */
    enum tp_compute_dtype compute_dtype;
    unsigned matrix_tiers;       /* bits (tp_tier_bit of exec/tier.h) of the matrix tiers that were found to work on the device */
    bool amx_emulate, vnni_emulate; /* tests: x86_amx, x86_vnni in plain C */
    enum tp_use use;
    bool no_fusion;              /* every node has launches of its own */
    size_t guard_bytes;          /* unused bytes kept after each value (tests), a multiple of 1024 or 0 */
};

/** What an op's `lower` works on: reads the node, appends launches. */
struct tp_lower {
    const struct talpa_graph *graph;
    const struct tp_node *node;
    int32_t node_index;
    const struct talpa_device_caps *caps;
    const struct tp_plan_options *options;
    const enum tp_layout *in_layout;  /* chosen for each input */
    const enum tp_layout *out_layout; /* chosen for each output */
    const enum tp_layout *also_layout; /* per output: a second layout that is written too (tp_also), row: none */
    struct tp_launch_list *list;
    size_t scratch_bytes[TP_MAX_SCRATCH];
    int n_scratch;
};

/** Growing list of launches, owned by the plan. */
struct tp_launch_list {
    struct tp_launch *item;
    int n, capacity;
};

/** A tensor operand as seen by code that several ops share (the GEMM emitter): an input, an output or scratch of the present node. */
struct tp_operand {
    enum { TP_OPERAND_IN, TP_OPERAND_OUT, TP_OPERAND_ALSO, TP_OPERAND_SCRATCH } kind;
    int index;
};
static inline struct tp_operand tp_in(int i) { return (struct tp_operand){TP_OPERAND_IN, i}; }
static inline struct tp_operand tp_out(int i) { return (struct tp_operand){TP_OPERAND_OUT, i}; }
/* Output i in its second layout. */
static inline struct tp_operand tp_also(int i) { return (struct tp_operand){TP_OPERAND_ALSO, i}; }
static inline struct tp_operand tp_scratch(int i) { return (struct tp_operand){TP_OPERAND_SCRATCH, i}; }

const struct tp_type *tp_lower_in(const struct tp_lower *lower, int i);
const struct tp_type *tp_lower_out(const struct tp_lower *lower, int i);
bool tp_lower_has_in(const struct tp_lower *lower, int i); /* optional input given? */
/** Layouts of input i, of output i, and of output i's second form (row: there is none). */
enum tp_layout tp_lower_in_layout(const struct tp_lower *lower, int i);
enum tp_layout tp_lower_out_layout(const struct tp_lower *lower, int i);
enum tp_layout tp_lower_also_layout(const struct tp_lower *lower, int i);

/** Reserves device scratch for this node, alive while its launches run; returns its number. */
int tp_lower_scratch(struct tp_lower *lower, size_t n_bytes);

/** Parts that the storage of input i is split into on this device (1 almost always) and the unit range of one part
 *  (units: rows, or panels of 32; see tp_layout_units). A launch passes one part; the op emits one launch per part. */
int tp_lower_n_parts(const struct tp_lower *lower, int i);
void tp_lower_part(const struct tp_lower *lower, int i, int part, int64_t *first_unit, int64_t *n_units);

/** Appends a launch; NULL if out of memory (then every tp_launch_* call below does nothing and lowering fails at its end).
 *  The pointer is valid until the next launch is appended. */
struct tp_launch *tp_lower_launch(struct tp_lower *lower, const char *source, const char *kernel);
void tp_launch_option(struct tp_launch *launch, const char *format, ...) __attribute__((format(printf, 2, 3))); /* " -DNAME=%d" */
/** For kernels that read or make row_bf16: options -DIN<i>_BF16, -DOUT<o>_BF16 and -DALSO<o> (a second form, row_bf16) for those of the first
 *  n_in inputs and n_out outputs whose layouts say so. */
void tp_launch_bf16_options(const struct tp_lower *lower, struct tp_launch *launch, int n_in, int n_out);
/** Output o, followed by its second form if there is one. */
void tp_launch_write_forms(struct tp_lower *lower, struct tp_launch *launch, int o);
/** Whether layouts in bf16 are worth offering for the value: rows in whole blocks of 32 columns, and --compute-dtype bf16. */
bool tp_lower_offers_bf16(const struct tp_lower *lower, const struct tp_type *type);
/** Arguments in kernel order. */
void tp_launch_read(struct tp_lower *lower, struct tp_launch *launch, struct tp_operand operand);
void tp_launch_read_part(struct tp_lower *lower, struct tp_launch *launch, struct tp_operand operand, int part);
void tp_launch_write(struct tp_lower *lower, struct tp_launch *launch, struct tp_operand operand); /* also for read-and-write */
void tp_launch_step(struct tp_launch *launch);
void tp_launch_u32(struct tp_launch *launch, uint32_t value);
void tp_launch_f32(struct tp_launch *launch, float value);
void tp_launch_local(struct tp_launch *launch, size_t n_bytes);
/** Two u32 arguments: the row symbol and the bound of dimension 0; kernels turn them into the run-time size with
 *  tp_rows(step, symbol, bound) of kernels/common/step.clh. */
void tp_launch_rows(struct tp_launch *launch, const struct tp_type *type);
/** Number of work-groups per dimension and their size; unused dimensions are 1. */
void tp_launch_groups(struct tp_launch *launch, size_t gx, size_t gy, size_t gz, size_t lx, size_t ly, size_t lz);
void tp_launch_cost(struct tp_launch *launch, double flops, double bytes);

#endif
