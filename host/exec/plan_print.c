#include <inttypes.h>
#include <string.h>

#include "base/hash.h"
#include "plan.h"
#include "runtime/tuning.h"

static size_t groups_of(const struct tp_launch *launch)
{
    size_t n = 1;
    for (int d = 0; d < 3; d++) n *= launch->global[d] / (launch->local[d] ? launch->local[d] : 1);
    return n;
}

/* The op, or the ops of a group joined by '+'. */
static void print_ops(const struct tp_plan *plan, FILE *file, int32_t node)
{
    const struct tp_fused *fused = plan->fused_of[node] < 0 ? NULL : plan->fused[plan->fused_of[node]];
    if (!fused) fputs(tp_graph_node_at(plan->graph, node)->op->name, file);
    for (int m = 0; fused && m < fused->n_members; m++) fprintf(file, "%s%s", m ? "+" : "", tp_graph_node_at(plan->graph, fused->member[m])->op->name);
}

static void print_launch(const struct tp_plan *plan, FILE *file, const struct tp_launch *launch)
{
    const struct tp_node *node = tp_plan_node(plan, launch->node);
    fputs("  ", file);
    print_ops(plan, file, launch->node);
    if (launch->is_copy) {
        fprintf(file, ": copy %zu bytes", launch->copy_bytes);
    } else if (launch->is_blas) {
        fprintf(file, ": clblast gemm m=%" PRId64 " n=%" PRId64 " k=%" PRId64, launch->blas.m, launch->blas.n, launch->blas.k);
    } else {
        fprintf(file, ": %s %s%s global=%zux%zux%zu local=%zux%zux%zu groups=%zu", launch->source, launch->kernel, launch->options,
                launch->global[0], launch->global[1], launch->global[2], launch->local[0], launch->local[1], launch->local[2], groups_of(launch));
    }
    if (!launch->is_copy) fprintf(file, " flops=%.0f bytes=%.0f", launch->flops, launch->bytes);
    for (int a = 0; a < launch->n_args; a++) {
        const struct tp_arg *arg = &launch->args[a];
        if (arg->kind == TP_ARG_VALUE)
            fprintf(file, " %s%%%d%s%s", arg->writes ? ">" : "", arg->value, arg->layout ? ":" : "", arg->layout ? tp_layout_name(arg->layout) : "");
        else if (arg->kind == TP_ARG_SCRATCH) fprintf(file, " %sscratch%d", arg->writes ? ">" : "", arg->scratch);
    }
    fprintf(file, "%s%s\n", node->scope[0] ? " @" : "", node->scope);
}

/* Names of ops, kernels and scopes are plain identifiers and paths of ours: nothing to escape. */
static void print_launch_json(const struct tp_plan *plan, FILE *file, const struct tp_launch *launch)
{
    fputs("{\"op\": \"", file);
    print_ops(plan, file, launch->node);
    fprintf(file, "\", \"scope\": \"%s\", \"kernel\": \"%s\", \"source\": \"%s\", \"options\": \"%s\", \"groups\": %zu, \"flops\": %.0f, \"bytes\": %.0f}",
            tp_plan_node(plan, launch->node)->scope, launch->kernel, launch->source, launch->options, groups_of(launch), launch->flops,
            launch->is_copy ? 2.0 * (double)launch->copy_bytes : launch->bytes);
}

void tp_plan_print_json(const struct tp_plan *plan, FILE *file)
{
    static const char *const phases[TP_N_PHASES] = {"batch", "update"};
    fprintf(file, "{\"n_groups\": %d", plan->n_fused);
    for (int p = 0; p < TP_N_PHASES; p++) {
        if (!plan->phase[p].n) continue;
        fprintf(file, ", \"%s\": {\"n_launches\": %d, \"launches\": [\n", phases[p], plan->phase[p].n);
        for (int i = 0; i < plan->phase[p].n; i++) {
            if (i) fputs(",\n", file);
            print_launch_json(plan, file, &plan->phase[p].item[i]);
        }
        fputs("]}", file);
    }
    fputs("}", file);
}

/* Frozen weights are packed once per orientation in use: training needs a weight and its transpose, inference one of them. */
static void print_packed(const struct tp_plan *plan, FILE *file)
{
    size_t n_bytes[TP_N_LAYOUTS] = {0};
    for (int i = 0; i < plan->n_packed; i++)
        if (plan->packed[i].phase < 0) n_bytes[plan->packed[i].layout] += plan->packed[i].location.n_bytes;
    for (int l = 0; l < TP_N_LAYOUTS; l++)
        if (n_bytes[l]) fprintf(file, "frozen weights in %s: %zu bytes\n", tp_layout_name((enum tp_layout)l), n_bytes[l]);
}

void tp_plan_print(const struct tp_plan *plan, FILE *file)
{
    static const char *const phases[TP_N_PHASES] = {"batch", "update"};
    fprintf(file, "plan for %s (%s), tier %s, experts %s\n", plan->caps.name, plan->caps.platform, plan->options.tier[0] ? plan->options.tier : "best",
            plan->options.dispatch == TP_DISPATCH_SPARSE ? "sparse" : "dense");
    for (int p = 0; p < TP_N_PHASES; p++) {
        if (!plan->phase[p].n) continue;
        fprintf(file, "phase %s: %d launches\n", phases[p], plan->phase[p].n);
        for (int i = 0; i < plan->phase[p].n; i++) print_launch(plan, file, &plan->phase[p].item[i]);
    }
    print_packed(plan, file);
    const struct tp_plan_memory *m = &plan->memory;
    fprintf(file, "memory: weights %zu packed %zu states %zu inputs %zu arena %zu (%d segments) total %zu bytes, largest allocation %zu\n",
            m->weight_bytes, m->packed_bytes, m->state_bytes, m->input_bytes, m->arena_bytes, plan->n_segments, m->total_bytes, m->largest_bytes);
}

uint64_t tp_plan_digest(const struct tp_plan *plan)
{
    /* Chained digests instead of a stream, so that it cannot fail for want of memory. */
    struct {
        uint64_t digest, global[3], local[3], source, kernel, options;
        int32_t node, n_args;
    } item;
    memset(&item, 0, sizeof item);
    /* Some drivers report the present clock, and the memory that is free. */
    struct talpa_device_caps caps;
    memcpy(&caps, &plan->caps, sizeof caps);
    caps.clock_mhz = 0;
    caps.global_mem_bytes = caps.max_alloc_bytes = 0;
    item.digest = tp_hash_bytes(&caps, sizeof caps);
    int n_tunables;
    const struct tp_tunable *tunables = tp_tuning_list(plan->options.tuning, &n_tunables);
    for (int i = 0; i < n_tunables; i++) {
        item.options = tp_hash_bytes(tunables[i].value, strlen(tunables[i].value));
        item.digest = tp_hash_bytes(&item, sizeof item);
    }
    for (int p = 0; p < TP_N_PHASES; p++) {
        for (int i = 0; i < plan->phase[p].n; i++) {
            const struct tp_launch *launch = &plan->phase[p].item[i];
            for (int d = 0; d < 3; d++) {
                item.global[d] = launch->global[d];
                item.local[d] = launch->local[d];
            }
            item.source = launch->source ? tp_hash_bytes(launch->source, strlen(launch->source)) : 0;
            item.kernel = launch->kernel ? tp_hash_bytes(launch->kernel, strlen(launch->kernel)) : 0;
            item.options = tp_hash_bytes(launch->options, strlen(launch->options));
            item.node = launch->node;
            item.n_args = launch->n_args;
            item.digest = tp_hash_bytes(&item, sizeof item);
        }
    }
    return item.digest;
}
