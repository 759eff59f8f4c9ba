/* Launches of the contrastive loss. Both tiers take the same steps (kernels/generic/contrastive_loss.cl); the cpu tier puts some in one
 * launch. */
#include "ops/contrastive_loss.h"
#include "ops/elementwise.h"
#include "ops/gemm.h"

static const char cpu_source[] = "cpu/contrastive_loss.cl", generic_source[] = "generic/contrastive_loss.cl";
static const char cpu_back[] = "cpu/contrastive_loss_backward.cl", generic_back[] = "generic/contrastive_loss_backward.cl";

enum { CPU_MIN_GROUPS = 32, CPU_WIDTH = 64, CPU_ROWS = 4, N_STATS = 6 };

struct shape {
    const struct tp_type *x;
    int64_t n_tokens, d_in, d_out, n_experts, rank, n_all, places;
    float scale, temperature;
    bool normalise, has_weight;
    int weight;
};

static struct shape shape_of(const struct tp_lower *lower, int weight)
{
    const struct tp_attrs *attrs = &lower->node->attrs;
    struct shape s = {.x = tp_lower_in(lower, TP_CONTRAST_X), .weight = weight};
    s.n_tokens = s.x->shape.dim[0];
    s.d_in = s.x->shape.dim[1];
    s.d_out = tp_lower_in(lower, TP_CONTRAST_BT)->shape.dim[1];
    s.n_experts = attrs->i[TP_CONTRAST_EXPERTS];
    s.rank = attrs->i[TP_CONTRAST_RANK];
    s.n_all = s.n_experts * s.rank;
    s.places = tp_contrast_places(attrs, s.n_tokens);
    s.scale = (float)attrs->f[0];
    s.temperature = (float)attrs->f[1];
    s.normalise = attrs->i[TP_CONTRAST_NORMALISE] != 0;
    s.has_weight = tp_lower_has_in(lower, weight);
    return s;
}

/* Does anything read what is made for the gradient? */
static bool with_gradient(const struct tp_lower *lower)
{
    return tp_graph_is_read(lower->graph, lower->node->out[TP_CONTRAST_DZ]) ||
           tp_graph_is_read(lower->graph, lower->node->out[TP_CONTRAST_W]);
}

static size_t floats(int64_t n) { return (size_t)n * sizeof(float); }

static void read_weight(struct tp_lower *lower, struct tp_launch *launch, const struct shape *s)
{
    tp_launch_read(lower, launch, tp_in(s->has_weight ? s->weight : TP_CONTRAST_X));
}

/* The three sizes that most kernels begin with. */
static void sizes(struct tp_launch *launch, const struct shape *s)
{
    tp_launch_u32(launch, (uint32_t)s->n_experts);
    tp_launch_u32(launch, (uint32_t)s->rank);
    tp_launch_u32(launch, (uint32_t)s->places);
}

/* Ends a launch of the cpu tier over up to `units`: the last argument is the number of groups. */
static uint32_t cpu_n_groups(const struct tp_lower *lower, int64_t units)
{
    const int64_t wanted = 4 * (int64_t)lower->caps->compute_units, most = wanted > CPU_MIN_GROUPS ? wanted : CPU_MIN_GROUPS;
    return (uint32_t)(units < 1 ? 1 : units < most ? units : most);
}

static void cpu_groups(const struct tp_lower *lower, struct tp_launch *launch, int64_t units)
{
    const uint32_t n = cpu_n_groups(lower, units);
    tp_launch_u32(launch, n);
    tp_launch_groups(launch, n, 1, 1, 1, 1, 1);
}

static void cost_pairs(struct tp_launch *launch, const struct shape *s)
{
    const double n = (double)s->places;
    tp_launch_cost(launch, n * n * (2.0 * (double)s->rank + 20.0), 4.0 * n * (double)s->n_all);
}

static void cost_rows(struct tp_launch *launch, double n, double width) { tp_launch_cost(launch, 2.0 * n * width, 4.0 * (n + width)); }

/* Inputs of the sampling, from the step buffer on. */
static struct tp_launch *begin_sample(struct tp_lower *lower, const struct shape *s, const char *source)
{
    struct tp_launch *launch = tp_lower_launch(lower, source, "contrast_sample");
    tp_launch_step(launch);
    tp_launch_rows(launch, s->x);
    for (int i = TP_CONTRAST_COUNTS; i <= TP_CONTRAST_POSITIONS; i++) tp_launch_read(lower, launch, tp_in(i));
    return launch;
}

static void sample_numbers(const struct tp_lower *lower, struct tp_launch *launch, const struct shape *s)
{
    const uint64_t stream = lower->node->attrs.key;
    tp_launch_u32(launch, (uint32_t)s->n_experts);
    tp_launch_u32(launch, (uint32_t)lower->node->attrs.i[TP_CONTRAST_SAMPLES]);
    tp_launch_u32(launch, (uint32_t)s->places);
    tp_launch_u32(launch, (uint32_t)stream);
    tp_launch_u32(launch, (uint32_t)(stream >> 32));
}

enum talpa_status tp_contrast_lower_cpu(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_CONTRAST_WEIGHT);
    const bool wants_gradient = with_gradient(lower);
    const int64_t blocks = s.places / TP_CONTRAST_BLOCK;
    const int keys = tp_lower_scratch(lower, (size_t)(s.n_experts * s.n_tokens) * 8),
              gram = tp_lower_scratch(lower, floats(s.n_all * s.n_all));
    const int z = tp_lower_scratch(lower, floats(s.places * s.rank)), zt = tp_lower_scratch(lower, floats(s.places * s.rank));
    const int gt = tp_lower_scratch(lower, floats(s.places * s.n_all)), stat = tp_lower_scratch(lower, floats(N_STATS * s.places));
    const int rows = tp_lower_scratch(lower, floats(s.places * cpu_n_groups(lower, blocks)));

    struct tp_launch *launch = begin_sample(lower, &s, cpu_source);
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BT));
    tp_launch_write(lower, launch, tp_scratch(keys));
    tp_launch_write(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_write(lower, launch, tp_scratch(gram));
    sample_numbers(lower, launch, &s);
    tp_launch_u32(launch, (uint32_t)s.n_all);
    tp_launch_u32(launch, (uint32_t)s.d_out);
    cpu_groups(lower, launch, s.n_experts + (s.n_all + 5) / 6);
    cost_rows(launch, (double)(s.n_all * s.n_all), (double)s.d_out);

    launch = tp_lower_launch(lower, cpu_source, "contrast_prepare");
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_X));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_A));
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(gram));
    read_weight(lower, launch, &s);
    tp_launch_write(lower, launch, tp_scratch(z));
    tp_launch_write(lower, launch, tp_scratch(zt));
    tp_launch_write(lower, launch, tp_scratch(gt));
    tp_launch_write(lower, launch, tp_scratch(stat));
    sizes(launch, &s);
    tp_launch_u32(launch, (uint32_t)s.d_in);
    tp_launch_f32(launch, s.scale);
    tp_launch_f32(launch, s.temperature);
    tp_launch_u32(launch, s.normalise);
    tp_launch_u32(launch, s.has_weight);
    cpu_groups(lower, launch, blocks);
    cost_rows(launch, (double)(s.places * s.rank), (double)(s.d_in + s.n_all));

    launch = tp_lower_launch(lower, cpu_source, "contrast_anchors");
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(zt));
    tp_launch_read(lower, launch, tp_scratch(gt));
    tp_launch_write(lower, launch, tp_scratch(stat));
    tp_launch_write(lower, launch, tp_scratch(rows));
    sizes(launch, &s);
    cpu_groups(lower, launch, blocks);
    cost_pairs(launch, &s);

    int q = zt;
    if (wants_gradient) {
        q = tp_lower_scratch(lower, floats(s.places * s.n_all));
        launch = tp_lower_launch(lower, cpu_source, "contrast_pairs");
        tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
        tp_launch_read(lower, launch, tp_scratch(z));
        tp_launch_read(lower, launch, tp_scratch(gram));
        read_weight(lower, launch, &s);
        tp_launch_read(lower, launch, tp_scratch(zt));
        tp_launch_read(lower, launch, tp_scratch(gt));
        tp_launch_read(lower, launch, tp_scratch(stat));
        tp_launch_write(lower, launch, tp_scratch(rows));
        tp_launch_write(lower, launch, tp_scratch(q));
        tp_launch_write(lower, launch, tp_out(TP_CONTRAST_DZ));
        sizes(launch, &s);
        tp_launch_f32(launch, s.temperature);
        tp_launch_u32(launch, s.normalise);
        tp_launch_u32(launch, s.has_weight);
        cpu_groups(lower, launch, blocks);
        cost_pairs(launch, &s);
    }

    launch = tp_lower_launch(lower, cpu_source, "contrast_outer");
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(zt));
    tp_launch_read(lower, launch, tp_scratch(stat));
    tp_launch_read(lower, launch, tp_scratch(q));
    tp_launch_write(lower, launch, wants_gradient ? tp_out(TP_CONTRAST_W) : tp_out(TP_CONTRAST_LOSS));
    tp_launch_write(lower, launch, tp_out(TP_CONTRAST_LOSS));
    sizes(launch, &s);
    tp_launch_u32(launch, wants_gradient);
    cpu_groups(lower, launch, s.n_all + 1);
    cost_rows(launch, (double)(s.places * s.rank), (double)s.n_all);
    return TALPA_OK;
}

/* One work-item for each of nx times ny. */
static void items_2d(const struct tp_lower *lower, struct tp_launch *launch, int64_t nx, int64_t ny)
{
    const size_t local = tp_elementwise_local(lower, 64);
    tp_launch_groups(launch, ((size_t)nx + local - 1) / local, (size_t)ny, 1, local, 1, 1);
}

enum talpa_status tp_contrast_lower_generic(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_CONTRAST_WEIGHT);
    const size_t local = tp_elementwise_local(lower, 128);
    const int keys = tp_lower_scratch(lower, (size_t)(s.n_experts * s.n_tokens) * 8),
              gram = tp_lower_scratch(lower, floats(s.n_all * s.n_all));
    const int z = tp_lower_scratch(lower, floats(s.places * s.rank)), zt = tp_lower_scratch(lower, floats(s.places * s.rank));
    const int gt = tp_lower_scratch(lower, floats(s.places * s.n_all)), stat = tp_lower_scratch(lower, floats(N_STATS * s.places + 1));

    struct tp_launch *launch = begin_sample(lower, &s, generic_source);
    tp_launch_write(lower, launch, tp_scratch(keys));
    tp_launch_write(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    sample_numbers(lower, launch, &s);
    tp_launch_local(launch, local * sizeof(uint32_t));
    tp_launch_groups(launch, (size_t)s.n_experts, 1, 1, local, 1, 1);

    const struct tp_gemm product = {.a = tp_in(TP_CONTRAST_BT),
                                    .b = tp_in(TP_CONTRAST_BT),
                                    .out = tp_scratch(gram),
                                    .m = s.n_all,
                                    .n = s.n_all,
                                    .k = s.d_out,
                                    .a_stride_m = s.d_out,
                                    .a_stride_k = 1,
                                    .b_layout = TP_LAYOUT_ROW,
                                    .b_dtype = TALPA_F32,
                                    .b_is_nk = true,
                                    .b_stride = s.d_out,
                                    .out_stride = s.n_all};
    TP_TRY(tp_gemm_emit(lower, &product, "generic"));

    launch = tp_lower_launch(lower, generic_source, "contrast_project");
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_X));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_A));
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_write(lower, launch, tp_scratch(z));
    sizes(launch, &s);
    tp_launch_u32(launch, (uint32_t)s.d_in);
    items_2d(lower, launch, s.rank, s.places);
    cost_rows(launch, (double)(s.places * s.rank), (double)s.d_in);

    launch = tp_lower_launch(lower, generic_source, "contrast_prepare");
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(z));
    tp_launch_read(lower, launch, tp_scratch(gram));
    read_weight(lower, launch, &s);
    tp_launch_write(lower, launch, tp_scratch(zt));
    tp_launch_write(lower, launch, tp_scratch(gt));
    tp_launch_write(lower, launch, tp_scratch(stat));
    sizes(launch, &s);
    tp_launch_f32(launch, s.scale);
    tp_launch_f32(launch, s.temperature);
    tp_launch_u32(launch, s.normalise);
    tp_launch_u32(launch, s.has_weight);
    items_2d(lower, launch, s.places, 1);
    cost_rows(launch, (double)(s.places * s.rank), (double)s.n_all);

    launch = tp_lower_launch(lower, generic_source, "contrast_anchors");
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(zt));
    tp_launch_read(lower, launch, tp_scratch(gt));
    tp_launch_write(lower, launch, tp_scratch(stat));
    sizes(launch, &s);
    items_2d(lower, launch, s.places, 1);
    cost_pairs(launch, &s);

    launch = tp_lower_launch(lower, generic_source, "contrast_sum");
    tp_launch_write(lower, launch, tp_scratch(stat));
    tp_launch_write(lower, launch, tp_out(TP_CONTRAST_LOSS));
    tp_launch_u32(launch, (uint32_t)s.places);
    tp_launch_local(launch, 2 * local * sizeof(float));
    tp_launch_groups(launch, 1, 1, 1, local, 1, 1);
    if (!with_gradient(lower)) return TALPA_OK;

    const int q = tp_lower_scratch(lower, floats(s.places * s.n_all));
    launch = tp_lower_launch(lower, generic_source, "contrast_pairs");
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(zt));
    tp_launch_read(lower, launch, tp_scratch(gt));
    tp_launch_read(lower, launch, tp_scratch(stat));
    tp_launch_write(lower, launch, tp_scratch(q));
    sizes(launch, &s);
    items_2d(lower, launch, s.places, s.n_experts);
    cost_pairs(launch, &s);

    launch = tp_lower_launch(lower, generic_source, "contrast_finish");
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(z));
    tp_launch_read(lower, launch, tp_scratch(gram));
    read_weight(lower, launch, &s);
    tp_launch_read(lower, launch, tp_scratch(zt));
    tp_launch_read(lower, launch, tp_scratch(gt));
    tp_launch_read(lower, launch, tp_scratch(stat));
    tp_launch_write(lower, launch, tp_scratch(q));
    tp_launch_write(lower, launch, tp_out(TP_CONTRAST_DZ));
    sizes(launch, &s);
    tp_launch_f32(launch, s.temperature);
    tp_launch_u32(launch, s.normalise);
    tp_launch_u32(launch, s.has_weight);
    items_2d(lower, launch, s.places, 1);
    cost_rows(launch, (double)(s.places * s.rank), (double)s.n_all);

    launch = tp_lower_launch(lower, generic_source, "contrast_outer");
    tp_launch_read(lower, launch, tp_out(TP_CONTRAST_ITEMS));
    tp_launch_read(lower, launch, tp_scratch(zt));
    tp_launch_read(lower, launch, tp_scratch(stat));
    tp_launch_read(lower, launch, tp_scratch(q));
    tp_launch_write(lower, launch, tp_out(TP_CONTRAST_W));
    sizes(launch, &s);
    items_2d(lower, launch, s.n_all, s.n_all);
    cost_rows(launch, (double)(s.places * s.rank), (double)s.n_all);
    return TALPA_OK;
}

/* ---- backward ---- */

/* dx, and on a CPU dweight, up to the sizes. */
static struct tp_launch *begin_dx(struct tp_lower *lower, const struct shape *s, const char *source)
{
    struct tp_launch *launch = tp_lower_launch(lower, source, "contrast_dx");
    tp_launch_step(launch);
    tp_launch_rows(launch, s->x);
    tp_launch_read(lower, launch, tp_in(tp_lower_has_in(lower, TP_CONTRAST_BACK_ADDEND) ? TP_CONTRAST_BACK_ADDEND : TP_CONTRAST_A));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_A));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_ITEMS));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_DZ));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_DLOSS));
    tp_launch_write(lower, launch, tp_out(0));
    cost_rows(launch, (double)(s->places * s->rank), (double)s->d_in);
    return launch;
}

enum talpa_status tp_contrast_lower_cpu_backward(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_CONTRAST_BACK_WEIGHT);
    const bool has_addend = tp_lower_has_in(lower, TP_CONTRAST_BACK_ADDEND);
    struct tp_launch *launch = tp_lower_launch(lower, cpu_back, "contrast_outer");
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_X));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BT));
    for (int i = TP_CONTRAST_BACK_ITEMS; i <= TP_CONTRAST_BACK_DLOSS; i++) tp_launch_read(lower, launch, tp_in(i));
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_write(lower, launch, tp_out(2));
    tp_launch_u32(launch, (uint32_t)s.n_experts);
    tp_launch_u32(launch, (uint32_t)s.rank);
    tp_launch_u32(launch, (uint32_t)s.d_in);
    tp_launch_u32(launch, (uint32_t)s.d_out);
    cpu_groups(lower, launch, (s.d_in + s.d_out) / CPU_WIDTH * s.n_all / CPU_ROWS);
    cost_rows(launch, (double)(s.places * s.rank), (double)(s.d_in + s.d_out));

    launch = begin_dx(lower, &s, cpu_back);
    tp_launch_write(lower, launch, tp_out(s.has_weight ? 3 : 0));
    tp_launch_u32(launch, (uint32_t)s.n_experts);
    tp_launch_u32(launch, (uint32_t)s.rank);
    tp_launch_u32(launch, (uint32_t)s.d_in);
    tp_launch_u32(launch, has_addend);
    tp_launch_u32(launch, s.has_weight);
    cpu_groups(lower, launch, (s.n_tokens + 15) / 16);
    return TALPA_OK;
}

enum talpa_status tp_contrast_lower_generic_backward(struct tp_lower *lower)
{
    const struct shape s = shape_of(lower, TP_CONTRAST_BACK_WEIGHT);
    struct tp_launch *launch = tp_lower_launch(lower, generic_back, "contrast_da");
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_X));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_ITEMS));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_DZ));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_DLOSS));
    tp_launch_write(lower, launch, tp_out(1));
    tp_launch_u32(launch, (uint32_t)s.n_experts);
    tp_launch_u32(launch, (uint32_t)s.rank);
    tp_launch_u32(launch, (uint32_t)s.d_in);
    items_2d(lower, launch, s.d_in, s.n_all);
    cost_rows(launch, (double)(s.places * s.rank), (double)s.d_in);

    launch = tp_lower_launch(lower, generic_back, "contrast_dbt");
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BT));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_W));
    tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_DLOSS));
    tp_launch_write(lower, launch, tp_out(2));
    tp_launch_u32(launch, (uint32_t)s.n_all);
    tp_launch_u32(launch, (uint32_t)s.d_out);
    items_2d(lower, launch, s.d_out, s.n_all);
    cost_rows(launch, (double)(s.n_all * s.n_all), (double)s.d_out);

    if (s.has_weight) {
        launch = tp_lower_launch(lower, generic_back, "contrast_dweight");
        tp_launch_step(launch);
        tp_launch_rows(launch, s.x);
        tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_ITEMS));
        tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_DZ));
        tp_launch_read(lower, launch, tp_in(TP_CONTRAST_BACK_DLOSS));
        tp_launch_write(lower, launch, tp_out(3));
        tp_launch_u32(launch, (uint32_t)s.n_experts);
        tp_launch_u32(launch, (uint32_t)s.rank);
        items_2d(lower, launch, s.n_experts, s.n_tokens);
        cost_rows(launch, (double)s.n_tokens, (double)s.n_experts);
    }

    launch = begin_dx(lower, &s, generic_back);
    tp_launch_u32(launch, (uint32_t)s.n_experts);
    tp_launch_u32(launch, (uint32_t)s.rank);
    tp_launch_u32(launch, (uint32_t)s.d_in);
    tp_launch_u32(launch, tp_lower_has_in(lower, TP_CONTRAST_BACK_ADDEND));
    items_2d(lower, launch, s.d_in, s.n_tokens);
    return TALPA_OK;
}
