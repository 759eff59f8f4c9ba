/* Launches of the mixture of LoRA experts. Both tiers run the same steps:
 *   forward    project (z), scale (zs), combine (y)
 *   backward   project (v), scale (dz, zs, dweight), outer (dlora_a = dz^T x, dlora_bt = zs^T dy; the cpu tier in one launch), combine (dx = dz lora_a)
 * With a mask, x is read through it and dx written through it; scale carries 1 / (1 - p).
 * Dense, the projections and combinations are matrix products with all E*rank rows; sparse, they follow the work lists. */
#include "ops/dropout_mask.h"
#include "ops/gemm.h"
#include "ops/lora_expert.h"
#include "ops/elementwise.h"

static const char cpu_source[] = "cpu/lora_expert.cl", generic_source[] = "generic/lora_expert.cl";

enum { CPU_MIN_GROUPS = 32, GENERIC_GROUPS = 256, CPU_CHUNK = 12, CPU_ROWS = 32, CPU_TILE_ROWS = 64, CPU_WIDTH = 96 };

struct shape {
    const struct tp_type *x;
    int64_t n_tokens, d_in, d_out, n_experts, rank, n_all;
    float scale;
    int routing; /* operand that holds weight */
    bool has_weight, is_sparse, has_keep;
    int keep; /* operand that holds the mask */
};

/* What an operand of a launch has to do with the mask. */
enum { NOT_MASKED, MASKED };

static struct shape shape_of(const struct tp_lower *lower, int routing)
{
    const struct tp_attrs *attrs = &lower->node->attrs;
    struct shape s = {.x = tp_lower_in(lower, TP_LORA_X), .routing = routing, .scale = (float)(attrs->f[0] / (1 - attrs->f[1]))};
    s.n_tokens = s.x->shape.dim[0];
    s.d_in = s.x->shape.dim[1];
    s.d_out = tp_lower_in(lower, TP_LORA_Y0)->shape.dim[1];
    s.n_experts = attrs->i[0];
    s.rank = attrs->i[1];
    s.n_all = s.n_experts * s.rank;
    s.has_weight = tp_lower_has_in(lower, routing);
    s.keep = routing + TP_LORA_KEEP - TP_LORA_WEIGHT;
    s.has_keep = tp_lower_has_in(lower, s.keep);
    s.is_sparse = s.has_weight && lower->options->dispatch == TP_DISPATCH_SPARSE;
    return s;
}

static struct tp_launch *begin(struct tp_lower *lower, const struct shape *s, const char *source, const char *kernel)
{
    struct tp_launch *launch = tp_lower_launch(lower, source, kernel);
    tp_launch_step(launch);
    tp_launch_rows(launch, s->x);
    return launch;
}

/* weight, sel, counts or list (0 to 3); some operand where there is none. */
static void read_routing(struct tp_lower *lower, struct tp_launch *launch, const struct shape *s, int which)
{
    tp_launch_read(lower, launch, tp_in(s->has_weight ? s->routing + which : TP_LORA_X));
}

/* Two arguments: the mask (some operand where there is none) and its words per row, 0 without. */
static void read_keep(struct tp_lower *lower, struct tp_launch *launch, const struct shape *s, int masked)
{
    const bool used = s->has_keep && masked == MASKED;
    if (used) tp_launch_option(launch, "-DKEEP=1");
    tp_launch_read(lower, launch, tp_in(used ? s->keep : TP_LORA_X));
    tp_launch_u32(launch, used ? (uint32_t)tp_dropout_mask_words(s->d_in) : 0);
}

static void cost(struct tp_launch *launch, const struct shape *s, int64_t width)
{
    const double t = (double)s->n_tokens, n = (double)width, r = (double)s->n_all;
    tp_launch_cost(launch, 2 * t * n * r, 4 * (t * n + r * n + t * r));
}

static size_t scratch_bytes(const struct shape *s) { return (size_t)s->n_tokens * (size_t)s->n_all * sizeof(float); }

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- cpu ---- */

/* Ends a launch whose kernel loops over up to `units`: the last argument is the number of groups. */
static void cpu_groups(const struct tp_lower *lower, struct tp_launch *launch, int64_t units)
{
    const int64_t wanted = 4 * (int64_t)lower->caps->compute_units, most = wanted > CPU_MIN_GROUPS ? wanted : CPU_MIN_GROUPS;
    const int64_t n = units < 1 ? 1 : units < most ? units : most;
    tp_launch_u32(launch, (uint32_t)n);
    tp_launch_groups(launch, (size_t)n, 1, 1, 1, 1, 1);
}

static void cpu_blocks(struct tp_launch *launch, const struct shape *s)
{
    tp_launch_u32(launch, s->is_sparse ? (uint32_t)s->n_experts : 1);
    tp_launch_u32(launch, (uint32_t)(s->is_sparse ? s->rank : s->n_all));
}

static void cpu_project_end(const struct tp_lower *lower, struct tp_launch *launch, const struct shape *s, int64_t width)
{
    tp_launch_u32(launch, (uint32_t)width);
    cpu_blocks(launch, s);
    tp_launch_u32(launch, (uint32_t)s->rank);
    tp_launch_f32(launch, s->scale);
    tp_launch_u32(launch, s->has_weight);
    tp_launch_u32(launch, s->is_sparse);
    cpu_groups(lower, launch, ceil_div(s->n_tokens, CPU_CHUNK) * (s->is_sparse ? s->n_experts : 1));
    cost(launch, s, width);
}

/* out = init + coef b, width columns; init -1: none. dweight: output that gets its zeros (sparse), or -1. */
static void cpu_combine(struct tp_lower *lower, const struct shape *s, int init, int coef, int b, int dweight, int64_t width, int masked)
{
    struct tp_launch *launch = begin(lower, s, cpu_source, s->is_sparse ? "lora_combine_sparse" : "lora_combine_dense");
    tp_launch_read(lower, launch, tp_in(init >= 0 ? init : TP_LORA_X));
    tp_launch_read(lower, launch, tp_scratch(coef));
    tp_launch_read(lower, launch, tp_in(b));
    read_keep(lower, launch, s, masked);
    if (s->is_sparse) {
        for (int i = 1; i < 4; i++) read_routing(lower, launch, s, i);
        tp_launch_write(lower, launch, tp_out(0));
        tp_launch_write(lower, launch, tp_out(dweight >= 0 ? dweight : 0));
        tp_launch_u32(launch, (uint32_t)s->n_experts);
        tp_launch_u32(launch, (uint32_t)s->rank);
    } else {
        tp_launch_write(lower, launch, tp_out(0));
        tp_launch_u32(launch, (uint32_t)s->n_all);
    }
    tp_launch_u32(launch, (uint32_t)width);
    tp_launch_u32(launch, init >= 0);
    if (s->is_sparse) tp_launch_u32(launch, dweight >= 0);
    cpu_groups(lower, launch, ceil_div(s->n_tokens, s->is_sparse ? CPU_TILE_ROWS : CPU_ROWS) * ceil_div(width, CPU_WIDTH));
    cost(launch, s, width);
}

/* dlora_a = dz^T x and dlora_bt = zs^T dy in one launch. */
static void cpu_outer(struct tp_lower *lower, const struct shape *s, int dz, int zs)
{
    struct tp_launch *launch = begin(lower, s, cpu_source, "lora_outer");
    tp_launch_read(lower, launch, tp_scratch(dz));
    tp_launch_read(lower, launch, tp_in(TP_LORA_X));
    read_keep(lower, launch, s, MASKED);
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_u32(launch, (uint32_t)s->d_in);
    tp_launch_read(lower, launch, tp_scratch(zs));
    tp_launch_read(lower, launch, tp_in(TP_LORA_DY));
    tp_launch_write(lower, launch, tp_out(2));
    tp_launch_u32(launch, (uint32_t)s->d_out);
    read_routing(lower, launch, s, 2);
    read_routing(lower, launch, s, 3);
    cpu_blocks(launch, s);
    tp_launch_u32(launch, s->is_sparse);
    cpu_groups(lower, launch, (ceil_div(s->d_in, CPU_WIDTH) + ceil_div(s->d_out, CPU_WIDTH)) *
                                  (s->is_sparse ? s->n_experts * ceil_div(s->rank, 4) : ceil_div(s->n_all, 4)));
    cost(launch, s, s->d_in + s->d_out);
}

enum talpa_status tp_lora_expert_lower_cpu(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_LORA_WEIGHT);
    const int zs = tp_lower_scratch(lower, scratch_bytes(&s));
    struct tp_launch *launch = begin(lower, &s, cpu_source, "lora_project");
    tp_launch_read(lower, launch, tp_in(TP_LORA_X));
    tp_launch_read(lower, launch, tp_in(TP_LORA_A));
    read_keep(lower, launch, &s, MASKED);
    read_routing(lower, launch, &s, 0);
    read_routing(lower, launch, &s, 2);
    read_routing(lower, launch, &s, 3);
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_write(lower, launch, tp_scratch(zs));
    cpu_project_end(lower, launch, &s, s.d_in);
    cpu_combine(lower, &s, TP_LORA_Y0, zs, TP_LORA_BT, -1, s.d_out, NOT_MASKED);
    return TALPA_OK;
}

/* What dx is added to: an operand, or -1. */
static int addend(const struct tp_lower *lower) { return tp_lower_has_in(lower, TP_LORA_ADDEND) ? TP_LORA_ADDEND : -1; }

enum talpa_status tp_lora_expert_lower_cpu_backward(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_LORA_WEIGHT + TP_LORA_BACKWARD_SHIFT);
    const int dz = tp_lower_scratch(lower, scratch_bytes(&s)), zs = tp_lower_scratch(lower, scratch_bytes(&s));
    struct tp_launch *launch = begin(lower, &s, cpu_source, "lora_project_backward");
    tp_launch_read(lower, launch, tp_in(TP_LORA_DY));
    tp_launch_read(lower, launch, tp_in(TP_LORA_BT));
    tp_launch_read(lower, launch, tp_in(TP_LORA_Z));
    for (int i = 0; i < 4; i++) read_routing(lower, launch, &s, i);
    tp_launch_write(lower, launch, tp_scratch(dz));
    tp_launch_write(lower, launch, tp_scratch(zs));
    tp_launch_write(lower, launch, s.has_weight ? tp_out(3) : tp_scratch(dz));
    cpu_project_end(lower, launch, &s, s.d_out);
    cpu_outer(lower, &s, dz, zs);
    cpu_combine(lower, &s, addend(lower), dz, TP_LORA_A, s.has_weight ? 3 : -1, s.d_in, MASKED);
    return TALPA_OK;
}

/* ---- generic ---- */

/* z and weight to zs; backward also v (in dz) to dz, and dweight. */
static void generic_scale(struct tp_lower *lower, const struct shape *s, bool is_backward, int dz, int zs)
{
    struct tp_launch *launch = begin(lower, s, generic_source, is_backward ? "lora_scale_backward" : "lora_scale");
    if (is_backward) tp_launch_read(lower, launch, tp_in(TP_LORA_Z));
    else tp_launch_read(lower, launch, tp_out(1));
    read_routing(lower, launch, s, 0);
    read_routing(lower, launch, s, 1);
    if (is_backward) tp_launch_write(lower, launch, tp_scratch(dz));
    tp_launch_write(lower, launch, tp_scratch(zs));
    if (is_backward) tp_launch_write(lower, launch, s->has_weight ? tp_out(3) : tp_scratch(dz));
    tp_launch_u32(launch, (uint32_t)s->n_experts);
    tp_launch_u32(launch, (uint32_t)s->rank);
    tp_launch_f32(launch, s->scale);
    tp_launch_u32(launch, s->has_weight);
    tp_launch_u32(launch, s->is_sparse);
    tp_elementwise_groups(lower, launch, s->n_tokens * s->n_experts);
    tp_launch_cost(launch, 4.0 * (double)s->n_tokens * (double)s->n_all, 12.0 * (double)s->n_tokens * (double)s->n_all);
}

static size_t tile_of(const struct tp_lower *lower)
{
    const uint32_t limit = lower->caps->max_work_group_size;
    return limit == 0 || limit >= 256 ? 16 : limit >= 64 ? 8 : limit >= 16 ? 4 : 1;
}

/* out [T, n_all] = in b^T, in [T, width], b [n_all, width]. */
static enum talpa_status generic_project(struct tp_lower *lower, const struct shape *s, struct tp_operand in, int b, struct tp_operand out,
                                         int64_t width)
{
    if (!s->is_sparse) {
        const struct tp_gemm gemm = {.a = in, .b = tp_in(b), .out = out, .m = s->n_tokens, .n = s->n_all, .k = width,
                                     .m_rows = s->x->rows, .a_stride_m = width, .a_stride_k = 1, .b_layout = TP_LAYOUT_ROW,
                                     .b_dtype = TALPA_F32, .b_is_nk = true, .b_stride = width, .out_stride = s->n_all};
        return tp_gemm_emit(lower, &gemm, "generic");
    }
    const size_t tile = tile_of(lower);
    const int64_t units = s->n_experts * ceil_div(s->n_tokens, (int64_t)tile) * ceil_div(s->rank, (int64_t)tile);
    const size_t groups = units < GENERIC_GROUPS ? (size_t)units : GENERIC_GROUPS;
    struct tp_launch *launch = begin(lower, s, generic_source, "lora_project");
    tp_launch_option(launch, "-DTILE=%zu", tile);
    tp_launch_read(lower, launch, in);
    tp_launch_read(lower, launch, tp_in(b));
    read_routing(lower, launch, s, 2);
    read_routing(lower, launch, s, 3);
    tp_launch_write(lower, launch, out);
    tp_launch_u32(launch, (uint32_t)width);
    tp_launch_u32(launch, (uint32_t)s->n_experts);
    tp_launch_u32(launch, (uint32_t)s->rank);
    tp_launch_u32(launch, (uint32_t)groups);
    tp_launch_groups(launch, groups, 1, 1, tile, tile, 1);
    cost(launch, s, width);
    return TALPA_OK;
}

/* out [T, width] = init + coef b, b [n_all, width]; init -1: none. */
static enum talpa_status generic_combine(struct tp_lower *lower, const struct shape *s, int init, int coef, int b, struct tp_operand out,
                                         int64_t width)
{
    if (!s->is_sparse) {
        const struct tp_gemm gemm = {.a = tp_scratch(coef), .b = tp_in(b), .out = out, .m = s->n_tokens, .n = width, .k = s->n_all,
                                     .m_rows = s->x->rows, .a_stride_m = s->n_all, .a_stride_k = 1, .b_layout = TP_LAYOUT_ROW,
                                     .b_dtype = TALPA_F32, .b_stride = width, .out_stride = width, .has_c = init >= 0,
                                     .c = tp_in(init >= 0 ? init : TP_LORA_X)};
        return tp_gemm_emit(lower, &gemm, "generic");
    }
    struct tp_launch *launch = begin(lower, s, generic_source, "lora_combine");
    tp_launch_read(lower, launch, tp_in(init >= 0 ? init : TP_LORA_X));
    tp_launch_read(lower, launch, tp_scratch(coef));
    tp_launch_read(lower, launch, tp_in(b));
    read_routing(lower, launch, s, 1);
    tp_launch_write(lower, launch, out);
    tp_launch_u32(launch, (uint32_t)s->n_experts);
    tp_launch_u32(launch, (uint32_t)s->rank);
    tp_launch_u32(launch, (uint32_t)width);
    tp_launch_u32(launch, init >= 0);
    const size_t local = tp_elementwise_local(lower, 64);
    tp_launch_groups(launch, (size_t)ceil_div(width, (int64_t)local), (size_t)s->n_tokens, 1, local, 1, 1);
    cost(launch, s, width);
    return TALPA_OK;
}

/* Output `out` [n_all, width] = coef^T b, b [T, width]. */
static enum talpa_status generic_outer(struct tp_lower *lower, const struct shape *s, int coef, struct tp_operand b, int out, int64_t width)
{
    if (!s->is_sparse) {
        const struct tp_gemm gemm = {.a = tp_scratch(coef), .b = b, .out = tp_out(out), .m = s->n_all, .n = width, .k = s->n_tokens,
                                     .k_rows = s->x->rows, .a_stride_m = 1, .a_stride_k = s->n_all, .b_layout = TP_LAYOUT_ROW,
                                     .b_dtype = TALPA_F32, .b_stride = width, .out_stride = width};
        return tp_gemm_emit(lower, &gemm, "generic");
    }
    const size_t tile = tile_of(lower);
    struct tp_launch *launch = begin(lower, s, generic_source, "lora_outer");
    tp_launch_option(launch, "-DTILE=%zu", tile);
    tp_launch_read(lower, launch, tp_scratch(coef));
    tp_launch_read(lower, launch, b);
    read_routing(lower, launch, s, 2);
    read_routing(lower, launch, s, 3);
    tp_launch_write(lower, launch, tp_out(out));
    tp_launch_u32(launch, (uint32_t)s->n_experts);
    tp_launch_u32(launch, (uint32_t)s->rank);
    tp_launch_u32(launch, (uint32_t)width);
    const size_t across = (size_t)ceil_div(width, (int64_t)tile), down = (size_t)ceil_div(s->rank, (int64_t)tile);
    tp_launch_groups(launch, across, down, (size_t)s->n_experts, tile, tile, 1);
    cost(launch, s, width);
    return TALPA_OK;
}

static size_t x_bytes(const struct shape *s) { return (size_t)s->n_tokens * (size_t)s->d_in * sizeof(float); }

/* out = init + what the mask keeps of `from`, of the width of x; init -1: none. */
static void generic_keep(struct tp_lower *lower, const struct shape *s, int init, struct tp_operand from, struct tp_operand out)
{
    struct tp_launch *launch = begin(lower, s, generic_source, "lora_keep");
    tp_launch_read(lower, launch, tp_in(init >= 0 ? init : TP_LORA_X));
    tp_launch_read(lower, launch, from);
    tp_launch_read(lower, launch, tp_in(s->keep));
    tp_launch_write(lower, launch, out);
    tp_launch_u32(launch, (uint32_t)s->d_in);
    tp_launch_u32(launch, (uint32_t)tp_dropout_mask_words(s->d_in));
    tp_launch_u32(launch, init >= 0);
    tp_elementwise_groups(lower, launch, s->n_tokens * s->d_in);
    tp_launch_cost(launch, (double)s->n_tokens * (double)s->d_in, 12.0 * (double)s->n_tokens * (double)s->d_in);
}

/* x as the experts see it: through the mask, in scratch, or as it is. */
static struct tp_operand generic_x(struct tp_lower *lower, const struct shape *s)
{
    if (!s->has_keep) return tp_in(TP_LORA_X);
    const struct tp_operand kept = tp_scratch(tp_lower_scratch(lower, x_bytes(s)));
    generic_keep(lower, s, -1, tp_in(TP_LORA_X), kept);
    return kept;
}

enum talpa_status tp_lora_expert_lower_generic(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_LORA_WEIGHT);
    const int zs = tp_lower_scratch(lower, scratch_bytes(&s));
    TP_TRY(generic_project(lower, &s, generic_x(lower, &s), TP_LORA_A, tp_out(1), s.d_in));
    generic_scale(lower, &s, false, -1, zs);
    return generic_combine(lower, &s, TP_LORA_Y0, zs, TP_LORA_BT, tp_out(0), s.d_out);
}

enum talpa_status tp_lora_expert_lower_generic_backward(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_LORA_WEIGHT + TP_LORA_BACKWARD_SHIFT);
    const int dz = tp_lower_scratch(lower, scratch_bytes(&s)), zs = tp_lower_scratch(lower, scratch_bytes(&s));
    TP_TRY(generic_project(lower, &s, tp_in(TP_LORA_DY), TP_LORA_BT, tp_scratch(dz), s.d_out));
    generic_scale(lower, &s, true, dz, zs);
    TP_TRY(generic_outer(lower, &s, dz, generic_x(lower, &s), 1, s.d_in));
    TP_TRY(generic_outer(lower, &s, zs, tp_in(TP_LORA_DY), 2, s.d_out));
    if (!s.has_keep) return generic_combine(lower, &s, addend(lower), dz, TP_LORA_A, tp_out(0), s.d_in);
    const struct tp_operand dx = tp_scratch(tp_lower_scratch(lower, x_bytes(&s)));
    TP_TRY(generic_combine(lower, &s, -1, dz, TP_LORA_A, dx, s.d_in));
    generic_keep(lower, &s, addend(lower), dx, tp_out(0));
    return TALPA_OK;
}
