/* A graph of one's own: a top-2 mixture of four LoRA experts on a frozen linear layer, trained with AdamW on the device.
 *
 * The task is one that a single low-rank correction cannot solve: a teacher adds one of two rank-1 corrections to the layer, depending on the
 * sign of the first feature, and the class is the largest of eight frozen outputs. Prints the loss now and then, and the accuracy.
 *
 *   cc train_op.c $(pkg-config --static --cflags --libs talpa) -lm */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <talpa.h>

enum { N_ROWS = 256, WIDTH = 32, N_CLASSES = 8, N_EXPERTS = 4, RANK = 2, TOP_K = 2, N_STEPS = 200 };
enum { LORA_A, LORA_BT, GATING, N_PARAMETERS };

/* Uniform in [-1, 1), the same numbers everywhere. */
static float uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) / 8388608.0f - 1.0f;
}

static void fill(float *data, size_t n, float scale, uint64_t *state)
{
    for (size_t i = 0; i < n; i++) data[i] = scale * uniform(state);
}

/* Class of a row under the teacher: argmax_c <head[c], W x + <u_s, x> v_s>, s by the sign of x[0]. */
static int teach(const float *x, const float *weight, const float *head, float corrections[2][2][WIDTH])
{
    const int s = x[0] > 0.0f;
    float y[WIDTH], along = 0.0f, best = -1e30f;
    int class = 0;
    for (int j = 0; j < WIDTH; j++) along += corrections[s][0][j] * x[j];
    for (int i = 0; i < WIDTH; i++) {
        y[i] = along * corrections[s][1][i];
        for (int j = 0; j < WIDTH; j++) y[i] += weight[i * WIDTH + j] * x[j];
    }
    for (int c = 0; c < N_CLASSES; c++) {
        float logit = 0.0f;
        for (int i = 0; i < WIDTH; i++) logit += head[c * WIDTH + i] * y[i];
        if (logit > best) {
            best = logit;
            class = c;
        }
    }
    return class;
}

struct example {
    struct talpa_graph *graph;
    struct talpa_parameters *parameters;
    struct talpa_program *program;
    talpa_value x, rows, labels, loss, nll, norm;
    float *bank;
};

#define TRY(call)                                             \
    do {                                                      \
        const enum talpa_status try_status = (call);          \
        if (try_status != TALPA_OK) return try_status;        \
    } while (0)

static struct talpa_shape shape2(int64_t rows, int64_t columns) { return (struct talpa_shape){2, {rows, columns}}; }
static struct talpa_shape shape1(int64_t n) { return (struct talpa_shape){1, {n}}; }

/* y = x W^T + sum_e gate[e] (x A_e^T) B_e;  loss = cross entropy of softmax(y head^T). */
static enum talpa_status build(struct example *e)
{
    const struct talpa_shape shapes[N_PARAMETERS] = {[LORA_A] = shape2(N_EXPERTS * RANK, WIDTH), [LORA_BT] = shape2(N_EXPERTS * RANK, WIDTH),
                                                     [GATING] = shape2(N_EXPERTS, WIDTH)};
    talpa_value p[N_PARAMETERS], weight, head, base, scores, gate, chosen, counts, list, y;
    TRY(talpa_graph_create(&e->graph));
    TRY(talpa_graph_input(&e->x, e->graph, "x", TALPA_F32, shape2(N_ROWS, WIDTH), TALPA_ROWS_TOKENS));
    TRY(talpa_graph_input(&e->rows, e->graph, "rows", TALPA_I32, shape1(N_ROWS), TALPA_ROWS_LABELLED));
    TRY(talpa_graph_input(&e->labels, e->graph, "labels", TALPA_I32, shape1(N_ROWS), TALPA_ROWS_LABELLED));
    TRY(talpa_graph_weight(&weight, e->graph, "weight", TALPA_F32, shape2(WIDTH, WIDTH)));
    TRY(talpa_graph_weight(&head, e->graph, "head", TALPA_F32, shape2(N_CLASSES, WIDTH)));
    TRY(talpa_parameters_create(&e->parameters, p, e->graph, shapes, N_PARAMETERS));
    talpa_graph_scope(e->graph, "layer");
    TRY(talpa_matmul(&base, e->graph, e->x, weight, TALPA_NONE, false, true));
    TRY(talpa_matmul(&scores, e->graph, e->x, p[GATING], TALPA_NONE, false, true));
    TRY(talpa_softmax(&scores, e->graph, scores));
    TRY(talpa_topk_gate(&gate, &chosen, e->graph, scores, TOP_K));
    TRY(talpa_dispatch(&counts, &list, e->graph, chosen));
    TRY(talpa_lora_expert(&y, e->graph, base, e->x, p[LORA_A], p[LORA_BT], gate, chosen, counts, list, N_EXPERTS, RANK, 1.0f));
    TRY(talpa_linear_cross_entropy(&e->loss, &e->nll, e->graph, y, head, e->rows, e->labels));
    return talpa_graph_minimise(&e->norm, e->graph, e->loss, e->parameters, NULL);
}

static enum talpa_status prepare(struct example *e, const float *weight, const float *head, uint64_t *state)
{
    struct talpa_device_caps *devices;
    size_t n, device;
    TRY(talpa_device_list(&devices, &n));
    const enum talpa_status status = talpa_device_select(&device, devices, n, NULL);
    if (status == TALPA_OK) printf("device: %s\n", devices[device].name);
    free(devices);
    TRY(status);
    const struct talpa_weight weights[] = {{"weight", weight}, {"head", head}};
    TRY(talpa_program_create(&e->program, e->graph, device, weights, 2, e->parameters, TALPA_BASE_AUTO, TALPA_COMPUTE_AUTO, TALPA_DISPATCH_AUTO));
    /* As usual for LoRA: A random, B zero, so that training starts from the frozen layer. */
    e->bank = calloc((size_t)talpa_parameters_elements(e->parameters), sizeof *e->bank);
    if (!e->bank) return TALPA_E_DEVICE;
    fill(e->bank + talpa_parameters_offset(e->parameters, LORA_A), N_EXPERTS * RANK * WIDTH, 0.18f, state);
    fill(e->bank + talpa_parameters_offset(e->parameters, GATING), N_EXPERTS * WIDTH, 0.18f, state);
    return talpa_program_write_parameters(e->program, e->bank);
}

static enum talpa_status train(struct example *e, const float *weight, const float *head, float corrections[2][2][WIDTH], uint64_t *state)
{
    static float x[N_ROWS * WIDTH];
    static int32_t rows[N_ROWS], labels[N_ROWS];
    talpa_program_scalar(e->program, TALPA_SCALAR_LEARNING_RATE, 2e-2f);
    talpa_program_scalar(e->program, TALPA_SCALAR_MAX_NORM, 1.0f);
    talpa_program_scalar(e->program, TALPA_SCALAR_LOSS_SCALE, 1.0f / N_ROWS);
    for (int step = 0; step < N_STEPS; step++) {
        float loss, norm;
        fill(x, N_ROWS * WIDTH, 1.0f, state);
        for (int r = 0; r < N_ROWS; r++) {
            rows[r] = r;
            labels[r] = teach(x + r * WIDTH, weight, head, corrections);
        }
        TRY(talpa_program_write(e->program, e->x, x, sizeof x));
        TRY(talpa_program_write(e->program, e->rows, rows, sizeof rows));
        TRY(talpa_program_write(e->program, e->labels, labels, sizeof labels));
        TRY(talpa_program_run(e->program, 0));
        TRY(talpa_program_update(e->program));
        TRY(talpa_program_read(e->program, e->loss, &loss, sizeof loss));
        TRY(talpa_program_read(e->program, e->norm, &norm, sizeof norm));
        if (step % 40 == 0 || step == N_STEPS - 1) printf("step %3d  loss %.4f  gradient norm %.4f\n", step + 1, (double)loss, (double)norm);
    }
    return TALPA_OK;
}

int main(void)
{
    struct example e = {0};
    static float weight[WIDTH * WIDTH], head[N_CLASSES * WIDTH], corrections[2][2][WIDTH];
    uint64_t state = 1;
    fill(weight, WIDTH * WIDTH, 0.3f, &state);
    fill(head, N_CLASSES * WIDTH, 1.0f, &state);
    fill(&corrections[0][0][0], 4 * WIDTH, 1.0f, &state);
    enum talpa_status status = build(&e);
    if (status == TALPA_OK) status = prepare(&e, weight, head, &state);
    if (status == TALPA_OK) status = train(&e, weight, head, corrections, &state);
    if (status != TALPA_OK) fprintf(stderr, "%s\n", talpa_error_message());
    talpa_program_free(e.program);
    talpa_parameters_free(e.parameters);
    talpa_graph_free(e.graph);
    free(e.bank);
    return talpa_exit_code(status);
}
