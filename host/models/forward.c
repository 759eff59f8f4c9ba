/* The decoder as a graph. */
#include "model.h"

enum talpa_status tp_batch_inputs_create(struct tp_batch_inputs *out, struct talpa_graph *graph, int64_t max_tokens, int64_t max_labelled)
{
    const struct tp_type tokens = tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, max_tokens);
    TP_TRY(tp_graph_input(graph, &out->ids, "ids", tokens));
    TP_TRY(tp_graph_input(graph, &out->positions, "positions", tokens));
    TP_TRY(tp_graph_input(graph, &out->examples, "examples", tokens));
    TP_TRY(tp_graph_input(graph, &out->segments, "segments", tp_type_2d(TALPA_I32, TP_STEP_N_TOKENS, max_tokens, 2)));
    const struct tp_type labelled = tp_type_1d(TALPA_I32, TP_STEP_N_LABELLED, max_labelled);
    TP_TRY(tp_graph_input(graph, &out->rows, "rows", labelled));
    out->slots = out->spans = TALPA_NONE;
    out->cache_rows = 0;
    return tp_graph_input(graph, &out->labels, "labels", labelled);
}

enum talpa_status tp_cached_inputs_create(struct tp_batch_inputs *out, struct talpa_graph *graph, int64_t max_tokens, int64_t max_rows,
                                          int64_t cache_rows)
{
    const struct tp_type tokens = tp_type_1d(TALPA_I32, TP_STEP_N_TOKENS, max_tokens);
    *out = (struct tp_batch_inputs){
        .examples = TALPA_NONE, .segments = TALPA_NONE, .rows = TALPA_NONE, .labels = TALPA_NONE, .cache_rows = cache_rows};
    TP_TRY(tp_graph_input(graph, &out->ids, "ids", tokens));
    TP_TRY(tp_graph_input(graph, &out->positions, "positions", tokens));
    TP_TRY(tp_graph_input(graph, &out->slots, "slots", tokens));
    TP_TRY(tp_graph_input(graph, &out->spans, "spans", tp_type_2d(TALPA_I32, TP_STEP_N_TOKENS, max_tokens, 2)));
    return max_rows ? tp_graph_input(graph, &out->rows, "rows", tp_type_1d(TALPA_I32, TP_STEP_N_LABELLED, max_rows)) : TALPA_OK;
}

static enum talpa_status weight_value(talpa_value *out, struct talpa_graph *graph, const struct talpa_model *model, const char *name)
{
    const struct tp_model_weight *weight = tp_model_weight(model, name);
    if (!weight) return tp_fail(TALPA_E_INTERNAL, "%s: no weight '%s'", model->path, name);
    return tp_graph_weight(graph, out, name, weight->type);
}

enum talpa_status tp_model_output_weight(talpa_value *out, struct talpa_graph *graph, const struct talpa_model *model)
{
    return weight_value(out, graph, model, model->config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
}

/* One decoder being built. */
struct decoder {
    struct talpa_graph *graph;
    const struct talpa_model *model;
    const struct tp_batch_inputs *inputs;
    const struct tp_linear_hook *hook;
    int layer;
};

/* `residual` (or TALPA_NONE) is added to the product, which saves a pass over the residual stream. */
static enum talpa_status linear(struct decoder *d, talpa_value *y, talpa_value x, talpa_value residual, enum tp_linear which)
{
    char name[96], scope[64];
    talpa_value weight;
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", d->layer, tp_linear_name(which));
    snprintf(scope, sizeof scope, "layers.%d.%s", d->layer, tp_linear_name(which));
    TP_TRY(weight_value(&weight, d->graph, d->model, name));
    tp_graph_set_scope(d->graph, scope);
    if (d->hook) TP_TRY(d->hook->apply(d->hook->user, y, d->graph, x, weight, residual, d->layer, which));
    else TP_TRY(talpa_matmul(y, d->graph, x, weight, residual, false, true));
    if (d->model->config.biased_linears & 1u << which) {
        snprintf(name, sizeof name, "model.layers.%d.%s.bias", d->layer, tp_linear_name(which));
        TP_TRY(weight_value(&weight, d->graph, d->model, name));
        TP_TRY(talpa_bias_add(y, d->graph, *y, weight));
    }
    snprintf(scope, sizeof scope, "layers.%d", d->layer);
    tp_graph_set_scope(d->graph, scope);
    return TALPA_OK;
}

/* A norm over the width of its weight: the model's, or one head's (every head of a row is then normalised by itself). */
static enum talpa_status norm(struct decoder *d, talpa_value *y, talpa_value x, const char *which)
{
    char name[96];
    talpa_value weight;
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", d->layer, which);
    TP_TRY(weight_value(&weight, d->graph, d->model, name));
    return talpa_rms_norm(y, d->graph, x, weight, (float)d->model->config.rms_norm_eps);
}

/* Rotates the heads of q or k by their positions. */
static enum talpa_status rotate(struct decoder *d, talpa_value *y, talpa_value x, int n_heads)
{
    const struct tp_model_config *c = &d->model->config;
    talpa_value frequencies;
    if (!c->has_rotary_table) return talpa_rope(y, d->graph, x, d->inputs->positions, n_heads, c->head_dim, (float)c->rope_theta);
    TP_TRY(weight_value(&frequencies, d->graph, d->model, TP_ROTARY_TABLE));
    return talpa_rope_table(y, d->graph, x, d->inputs->positions, frequencies, n_heads, c->head_dim);
}

/* Writes rows into this layer's cache; `cached` is the whole cache after that. */
static enum talpa_status cache(struct decoder *d, talpa_value *cached, const char *which, talpa_value rows)
{
    char name[32];
    talpa_value state;
    snprintf(name, sizeof name, "cache.%s.%d", which, d->layer);
    TP_TRY(tp_graph_state(d->graph, &state, name,
                          tp_type_2d(TALPA_F32, TP_STEP_NONE, d->inputs->cache_rows, tp_graph_type(d->graph, rows)->shape.dim[1])));
    return talpa_cache_write(cached, d->graph, state, rows, d->inputs->slots);
}

static enum talpa_status attention(struct decoder *d, talpa_value *y, talpa_value x)
{
    const struct tp_model_config *c = &d->model->config;
    talpa_value h, q, k, v, mixed;
    TP_TRY(norm(d, &h, x, "input_layernorm"));
    TP_TRY(linear(d, &q, h, TALPA_NONE, TP_LINEAR_Q));
    TP_TRY(linear(d, &k, h, TALPA_NONE, TP_LINEAR_K));
    TP_TRY(linear(d, &v, h, TALPA_NONE, TP_LINEAR_V));
    if (c->has_head_norms) {
        TP_TRY(norm(d, &q, q, "self_attn.q_norm"));
        TP_TRY(norm(d, &k, k, "self_attn.k_norm"));
    }
    TP_TRY(rotate(d, &q, q, c->n_heads));
    TP_TRY(rotate(d, &k, k, c->n_kv_heads));
    const float scale = 1.0f / __builtin_sqrtf((float)c->head_dim);
    if (d->inputs->cache_rows) {
        TP_TRY(cache(d, &k, "k", k));
        TP_TRY(cache(d, &v, "v", v));
        TP_TRY(talpa_cached_attention(&mixed, d->graph, q, k, v, d->inputs->spans, c->n_heads, c->n_kv_heads, c->head_dim, scale));
    } else {
        TP_TRY(talpa_attention(&mixed, d->graph, q, k, v, d->inputs->segments, c->n_heads, c->n_kv_heads, c->head_dim, scale));
    }
    return linear(d, y, mixed, x, TP_LINEAR_O);
}

static enum talpa_status feed_forward(struct decoder *d, talpa_value *y, talpa_value x)
{
    talpa_value h, gate, up;
    TP_TRY(norm(d, &h, x, "post_attention_layernorm"));
    TP_TRY(linear(d, &gate, h, TALPA_NONE, TP_LINEAR_GATE));
    TP_TRY(linear(d, &up, h, TALPA_NONE, TP_LINEAR_UP));
    if (d->model->config.activation == TP_ACTIVATION_GELU_TANH) TP_TRY(talpa_geglu(&h, d->graph, gate, up));
    else TP_TRY(talpa_swiglu(&h, d->graph, gate, up));
    return linear(d, y, h, x, TP_LINEAR_DOWN);
}

enum talpa_status tp_model_hidden(talpa_value *hidden, struct talpa_graph *graph, const struct talpa_model *model,
                                  const struct tp_batch_inputs *inputs, const struct tp_linear_hook *hook)
{
    struct decoder d = {.graph = graph, .model = model, .inputs = inputs, .hook = hook};
    talpa_value table, x, weight;
    char name[32];
    tp_graph_set_scope(graph, "embed");
    TP_TRY(weight_value(&table, graph, model, "model.embed_tokens.weight"));
    TP_TRY(talpa_embedding(&x, graph, inputs->ids, table));
    if (model->config.embedding_scale != 0.0) TP_TRY(talpa_scale(&x, graph, x, (float)model->config.embedding_scale));
    TP_TRY(tp_graph_name(graph, x, "embed"));
    for (d.layer = 0; d.layer < model->config.n_layers; d.layer++) {
        snprintf(name, sizeof name, "layers.%d", d.layer);
        tp_graph_set_scope(graph, name);
        TP_TRY(attention(&d, &x, x));
        TP_TRY(feed_forward(&d, &x, x));
        snprintf(name, sizeof name, "hidden.%d", d.layer);
        TP_TRY(tp_graph_name(graph, x, name));
    }
    tp_graph_set_scope(graph, "final_norm");
    TP_TRY(weight_value(&weight, graph, model, "model.norm.weight"));
    TP_TRY(talpa_rms_norm(hidden, graph, x, weight, (float)model->config.rms_norm_eps));
    TP_TRY(tp_graph_name(graph, *hidden, "final_norm"));
    tp_graph_set_scope(graph, "");
    return TALPA_OK;
}
