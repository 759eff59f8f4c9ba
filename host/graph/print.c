#include <inttypes.h>

#include "base/dtype.h"
#include "graph_impl.h"

static const char *const step_words[TP_STEP_WORDS] = {
    [TP_STEP_N_TOKENS] = "n_tokens",
    [TP_STEP_N_LABELLED] = "n_labelled",
    [TP_STEP_N_SEGMENTS] = "n_segments",
};

static void print_type(FILE *file, const struct tp_type *type)
{
    fprintf(file, "%s[", tp_dtype_name(type->dtype));
    for (int i = 0; i < type->shape.rank; i++) fprintf(file, "%s%" PRId64, i ? ", " : "", type->shape.dim[i]);
    fputc(']', file);
    if (type->rows != TP_STEP_NONE) fprintf(file, " rows=%s", step_words[type->rows] ? step_words[type->rows] : "?");
}

static void print_attrs(FILE *file, const struct tp_node *node)
{
    for (int i = 0; i < TP_MAX_ATTR_I; i++)
        if (node->op->attr_i[i]) fprintf(file, " %s=%" PRId64, node->op->attr_i[i], node->attrs.i[i]);
    for (int i = 0; i < TP_MAX_ATTR_F; i++)
        if (node->op->attr_f[i]) fprintf(file, " %s=%.9g", node->op->attr_f[i], node->attrs.f[i]);
    if (node->attrs.key) fprintf(file, " key=%016" PRIx64, node->attrs.key);
}

static void print_node(const struct talpa_graph *graph, FILE *file, const struct tp_node *node)
{
    fputs("  ", file);
    for (int o = 0; o < node->n_out; o++) {
        fprintf(file, "%s%%%d: ", o ? ", " : "", node->out[o]);
        print_type(file, &graph->values[node->out[o]].type);
        if (graph->values[node->out[o]].is_output) fputs(" output", file);
    }
    fprintf(file, " = %s(", node->op->name);
    for (int i = 0; i < node->n_in; i++) {
        if (node->in[i] == TP_NONE) fprintf(file, "%s-", i ? ", " : "");
        else fprintf(file, "%s%%%d", i ? ", " : "", node->in[i]);
    }
    fputc(')', file);
    print_attrs(file, node);
    if (node->is_backward) fputs(" backward", file);
    fprintf(file, "%s%s\n", node->scope[0] ? " @" : "", node->scope);
}

void tp_graph_print(const struct talpa_graph *graph, FILE *file)
{
    static const char *const kinds[] = {[TP_INPUT] = "input", [TP_WEIGHT] = "weight", [TP_STATE] = "state"};
    static const char *const phases[TP_N_PHASES] = {"batch", "update"};
    fprintf(file, "graph: %d values, %d nodes\n", graph->n_values, graph->n_nodes);
    for (int32_t v = 0; v < graph->n_values; v++) {
        const struct tp_value_info *info = &graph->values[v];
        if (info->producer >= 0) continue;
        fprintf(file, "%s %%%d '%s': ", kinds[info->kind], v, info->name);
        print_type(file, &info->type);
        fputc('\n', file);
    }
    for (int phase = 0; phase < TP_N_PHASES; phase++) {
        bool any = false;
        for (int32_t n = 0; n < graph->n_nodes; n++) {
            if (graph->nodes[n].phase != (enum tp_phase)phase) continue;
            if (!any) fprintf(file, "phase %s:\n", phases[phase]);
            any = true;
            print_node(graph, file, &graph->nodes[n]);
        }
    }
}
