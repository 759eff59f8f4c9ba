/* Routing statistics on the disk: records, and the heat map. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "io/atomic_file.h"
#include "io/svg_heatmap.h"
#include "train/route_stats.h"

/* ---- records ---- */

static double ratio(double value, double n) { return n > 0.0 ? value / n : NAN; }

static void begin(struct tp_json_writer *json, const char *kind)
{
    tp_json_writer_reset(json);
    tp_json_write_object_begin(json);
    tp_json_write_string_member(json, "kind", kind);
}

/* Active experts per token (and module) of all tokens, prompt and completion. */
static void write_active(struct tp_json_writer *json, const int64_t *active, const int64_t *n_tokens, double n_modules)
{
    static const char *const keys[TP_ROUTE_N_SUMS] = {"active_prompt", "active_completion"};
    tp_json_write_real_member(json, "active_experts",
                              ratio((double)(active[0] + active[1]), (double)(n_tokens[0] + n_tokens[1]) * n_modules));
    for (int i = 0; i < TP_ROUTE_N_SUMS; i++)
        tp_json_write_real_member(json, keys[i], ratio((double)active[i], (double)n_tokens[i] * n_modules));
}

static void write_module(struct tp_json_writer *json, const struct tp_route_stats *s, const struct tp_route_task *task, int m)
{
    const struct tp_route_cell *cell = &task->cells[m];
    const int n_experts = s->adapter->config.n_experts;
    const int64_t n_tokens = cell->n_tokens[0] + cell->n_tokens[1];
    begin(json, "module");
    tp_json_write_string_member(json, "task", task->name);
    tp_json_write_int_member(json, "layer", s->adapter->modules[m].layer);
    tp_json_write_string_member(json, "module", tp_linear_name(s->adapter->modules[m].linear));
    tp_json_write_int_member(json, "n_tokens", n_tokens);
    tp_json_write_key(json, "tokens");
    tp_json_write_array_begin(json);
    for (int e = 0; e < n_experts; e++) tp_json_write_int(json, task->selected[m * n_experts + e]);
    tp_json_write_array_end(json);
    tp_json_write_key(json, "weight");
    tp_json_write_array_begin(json);
    for (int e = 0; e < n_experts; e++) tp_json_write_real(json, ratio(task->weight[m * n_experts + e], (double)n_tokens));
    tp_json_write_array_end(json);
    tp_json_write_real_member(json, "threshold", ratio(cell->threshold, (double)n_tokens));
    write_active(json, cell->active, cell->n_tokens, 1.0);
    tp_json_write_real_member(json, "entropy", ratio(cell->entropy, (double)cell->n_routed));
    tp_json_write_object_end(json);
}

static void write_experts(struct tp_json_writer *json, const struct talpa_route_experts *e)
{
    tp_json_write_real_member(json, "entropy", e->entropy);
    tp_json_write_real_member(json, "entropy_of_mean", e->entropy_of_mean);
    tp_json_write_real_member(json, "task_information", e->information);
    tp_json_write_real_member(json, "task_information_by_chance", e->information_by_chance);
    tp_json_write_real_member(json, "intra_cosine", e->intra_cosine);
    tp_json_write_real_member(json, "inter_cosine", e->inter_cosine);
    tp_json_write_real_member(json, "same_token_cosine", e->same_token_cosine);
}

/* The tokens whose weights the records of kind "experts" hold, as [row, position]. */
static void write_sample(struct tp_json_writer *json, const struct tp_route_stats *s)
{
    begin(json, "sample");
    tp_json_write_int_member(json, "n_experts", s->adapter->config.n_experts);
    tp_json_write_key(json, "tokens");
    tp_json_write_array_begin(json);
    for (size_t i = 0; i < s->n_samples; i++) {
        tp_json_write_array_begin(json);
        tp_json_write_int(json, (int64_t)s->samples[i].row);
        tp_json_write_int(json, s->samples[i].position);
        tp_json_write_array_end(json);
    }
    tp_json_write_array_end(json);
    tp_json_write_object_end(json);
}

/* One module: numbers, and the weights of the sampled tokens in ten thousandths, n_experts of each. */
static void write_expert_module(struct tp_json_writer *json, const struct tp_route_stats *s, const struct talpa_route_summary *summary, int m)
{
    const size_t n_experts = (size_t)s->adapter->config.n_experts;
    begin(json, "experts");
    tp_json_write_int_member(json, "layer", s->adapter->modules[m].layer);
    tp_json_write_string_member(json, "module", tp_linear_name(s->adapter->modules[m].linear));
    write_experts(json, &summary->modules[m]);
    tp_json_write_key(json, "sample_weight");
    tp_json_write_array_begin(json);
    for (size_t i = 0; i < s->n_samples; i++) {
        const float *weight = s->sample_weight + ((size_t)m * TP_ROUTE_SAMPLES + s->samples[i].slot) * n_experts;
        for (size_t e = 0; e < n_experts; e++) tp_json_write_int(json, lrint(10000.0 * (double)weight[e]));
    }
    tp_json_write_array_end(json);
    tp_json_write_object_end(json);
}

static void write_row(struct tp_json_writer *json, const struct tp_route_stats *s, size_t index)
{
    const struct tp_route_row *row = &s->rows[index];
    const double n_modules = s->adapter->n_modules;
    begin(json, "row");
    tp_json_write_int_member(json, "index", (int64_t)index);
    tp_json_write_string_member(json, "id", row->id);
    tp_json_write_string_member(json, "task", s->tasks[row->task].name);
    tp_json_write_real_member(json, "difficulty", row->difficulty);
    tp_json_write_int_member(json, "n_tokens", row->n_tokens[0] + row->n_tokens[1]);
    tp_json_write_int_member(json, "n_prompt_tokens", row->n_tokens[TP_ROUTE_BEFORE]);
    write_active(json, row->active, row->n_tokens, n_modules);
    tp_json_write_real_member(json, "threshold", ratio(row->threshold, (double)(row->n_tokens[0] + row->n_tokens[1]) * n_modules));
    tp_json_write_real_member(json, "nll", ratio(row->nll, (double)row->n_labelled));
    tp_json_write_int_member(json, "n_labelled", row->n_labelled);
    tp_json_write_object_end(json);
}

static void write_mean(struct tp_json_writer *json, const char *key, const char *error_key, const struct talpa_route_mean *mean)
{
    tp_json_write_real_member(json, key, mean->mean);
    tp_json_write_real_member(json, error_key, mean->error);
}

static void write_group(struct tp_json_writer *json, const struct talpa_route_group *g)
{
    static const char *const by[] = {"all", "task", "difficulty"};
    begin(json, "summary");
    tp_json_write_string_member(json, "by", by[g->by]);
    if (g->by == TALPA_ROUTE_BY_TASK) tp_json_write_string_member(json, "task", g->task);
    if (g->by == TALPA_ROUTE_BY_DIFFICULTY) tp_json_write_real_member(json, "difficulty", g->difficulty);
    tp_json_write_int_member(json, "n_rows", g->n_rows);
    tp_json_write_int_member(json, "n_tokens", g->n_tokens);
    write_mean(json, "active_experts", "active_experts_stderr", &g->active[TALPA_ROUTE_WHOLE]);
    write_mean(json, "active_prompt", "active_prompt_stderr", &g->active[TALPA_ROUTE_PROMPT]);
    write_mean(json, "active_completion", "active_completion_stderr", &g->active[TALPA_ROUTE_COMPLETION]);
    write_mean(json, "threshold", "threshold_stderr", &g->threshold);
    write_mean(json, "nll", "nll_stderr", &g->nll);
    tp_json_write_object_end(json);
}

static void write_relation(struct tp_json_writer *json, const struct talpa_route_relation *r)
{
    static const char *const y[TALPA_ROUTE_N_PARTS] = {"active_experts", "active_prompt", "active_completion"};
    begin(json, "summary");
    tp_json_write_string_member(json, "by", "relation");
    tp_json_write_string_member(json, "x", r->x);
    tp_json_write_string_member(json, "y", y[r->part]);
    tp_json_write_int_member(json, "n_rows", r->n_rows);
    tp_json_write_real_member(json, "pearson", r->pearson);
    tp_json_write_real_member(json, "spearman", r->spearman);
    tp_json_write_real_member(json, "pearson_within_tasks", r->pearson_within);
    tp_json_write_real_member(json, "slope_within_tasks", r->slope);
    tp_json_write_real_member(json, "slope_stderr", r->slope_error);
    tp_json_write_object_end(json);
}

enum talpa_status tp_route_log_write(const struct tp_route_stats *s, const struct talpa_route_summary *summary, struct tp_json_writer *json,
                                     enum talpa_status (*emit)(void *user), void *user)
{
    for (size_t t = 0; t < s->n_tasks; t++)
        for (int m = 0; m < s->adapter->n_modules; m++) {
            write_module(json, s, &s->tasks[t], m);
            TP_TRY(emit(user));
        }
    if (s->n_samples) {
        write_sample(json, s);
        TP_TRY(emit(user));
    }
    for (int m = 0; m < s->adapter->n_modules; m++) {
        write_expert_module(json, s, summary, m);
        TP_TRY(emit(user));
    }
    for (size_t i = 0; i < s->n_rows; i++) {
        write_row(json, s, i);
        TP_TRY(emit(user));
    }
    for (size_t i = 0; i < summary->n_groups; i++) {
        write_group(json, &summary->groups[i]);
        TP_TRY(emit(user));
    }
    begin(json, "summary");
    tp_json_write_string_member(json, "by", "experts");
    tp_json_write_int_member(json, "n_samples", summary->n_samples);
    write_experts(json, &summary->experts);
    tp_json_write_object_end(json);
    TP_TRY(emit(user));
    for (int i = 0; i < TALPA_ROUTE_N_RELATIONS; i++) {
        if (!summary->relations[i].n_rows) continue;
        write_relation(json, &summary->relations[i]);
        TP_TRY(emit(user));
    }
    return TALPA_OK;
}

/* ---- heat map ---- */

enum { MAX_MAP_TASKS = 8 };

enum { LANE_ACTIVE, LANE_THRESHOLD, LANE_ENTROPY, LANE_COSINE, N_LANES };

/* Panels: a column per kind of linear, a row per task, or one row for all of them. */
struct map {
    const struct tp_route_stats *stats;
    const struct talpa_route_summary *summary;
    int linears[TP_N_LINEARS], n_linears, n_layers, n_down;
    const char *across[TP_N_LINEARS], *down[MAX_MAP_TASKS];
    double *values; /* [n_down, n_linears, n_layers, n_experts + N_LANES] */
    struct tp_svg_heatmap_panel panels[MAX_MAP_TASKS * TP_N_LINEARS];
    double most_active, most_threshold;
};

static void find_shape(struct map *map)
{
    const struct tp_adapter *adapter = map->stats->adapter;
    for (int linear = 0; linear < TP_N_LINEARS; linear++) {
        if (!(adapter->config.modules & 1u << linear)) continue;
        const char *name = tp_linear_name((enum tp_linear)linear), *dot = strrchr(name, '.');
        map->across[map->n_linears] = dot ? dot + 1 : name;
        map->linears[map->n_linears++] = linear;
    }
    for (int m = 0; m < adapter->n_modules; m++)
        if (adapter->modules[m].layer >= map->n_layers) map->n_layers = adapter->modules[m].layer + 1;
    const bool by_task = map->stats->n_tasks <= MAX_MAP_TASKS;
    map->n_down = by_task ? (int)map->stats->n_tasks : 1;
    for (int i = 0; i < map->n_down; i++) map->down[i] = by_task ? map->stats->tasks[i].name : "all tasks";
}

/* One layer of a panel: shares of tokens, and lanes[k][layer]; tasks [first, end) together (the cosine is of all tasks). */
static void fill_layer(struct map *map, int module, size_t first, size_t end, double *shares, double *const lanes[N_LANES])
{
    const int layer = map->stats->adapter->modules[module].layer;
    const int n_experts = map->stats->adapter->config.n_experts;
    double n_tokens = 0.0, sum = 0.0, n_active = 0.0, entropy = 0.0, n_routed = 0.0;
    for (int e = 0; e < n_experts; e++) shares[e] = 0.0;
    for (size_t t = first; t < end; t++) {
        const struct tp_route_task *task = &map->stats->tasks[t];
        const struct tp_route_cell *cell = &task->cells[module];
        n_tokens += (double)(cell->n_tokens[0] + cell->n_tokens[1]);
        n_active += (double)(cell->active[0] + cell->active[1]);
        sum += cell->threshold;
        entropy += cell->entropy;
        n_routed += (double)cell->n_routed;
        for (int e = 0; e < n_experts; e++) shares[e] += (double)task->selected[module * n_experts + e];
    }
    for (int e = 0; e < n_experts; e++) shares[e] = ratio(shares[e], n_tokens);
    lanes[LANE_ACTIVE][layer] = ratio(n_active, n_tokens);
    lanes[LANE_THRESHOLD][layer] = ratio(sum, n_tokens);
    lanes[LANE_ENTROPY][layer] = ratio(entropy, n_routed);
    lanes[LANE_COSINE][layer] = map->summary->modules[module].inter_cosine;
    if (lanes[LANE_ACTIVE][layer] > map->most_active) map->most_active = lanes[LANE_ACTIVE][layer];
}

static void fill(struct map *map)
{
    const struct tp_route_stats *s = map->stats;
    const int n_experts = s->adapter->config.n_experts;
    const size_t per_panel = (size_t)map->n_layers * ((size_t)n_experts + N_LANES);
    for (int down = 0; down < map->n_down; down++) {
        const bool by_task = s->n_tasks <= MAX_MAP_TASKS;
        const size_t first = by_task ? (size_t)down : 0, end = by_task ? first + 1 : s->n_tasks;
        for (int across = 0; across < map->n_linears; across++) {
            struct tp_svg_heatmap_panel *panel = &map->panels[down * map->n_linears + across];
            double *shares = map->values + (size_t)(down * map->n_linears + across) * per_panel;
            double *lanes[N_LANES];
            for (size_t i = 0; i < per_panel; i++) shares[i] = NAN;
            *panel = (struct tp_svg_heatmap_panel){.cells = shares};
            for (int k = 0; k < N_LANES; k++) panel->lanes[k] = lanes[k] = shares + map->n_layers * (n_experts + k);
            for (int m = 0; m < s->adapter->n_modules; m++) {
                const struct tp_adapter_module *module = &s->adapter->modules[m];
                if ((int)module->linear != map->linears[across]) continue;
                fill_layer(map, m, first, end, shares + module->layer * n_experts, lanes);
            }
        }
    }
}

enum talpa_status tp_route_map_save(const struct tp_route_stats *s, const struct talpa_route_summary *summary, const char *path)
{
    struct map map = {.stats = s, .summary = summary};
    char *text, subtitle[96];
    size_t n_bytes;
    find_shape(&map);
    const int n_experts = s->adapter->config.n_experts;
    const size_t n = (size_t)map.n_down * (size_t)map.n_linears * (size_t)map.n_layers * ((size_t)n_experts + N_LANES);
    map.values = malloc((n + 1) * sizeof *map.values);
    if (!map.values) return tp_fail_memory("heat map", (unsigned long long)n * sizeof *map.values);
    fill(&map);
    const double max_threshold = tp_adapter_max_threshold(s->adapter);
    snprintf(subtitle, sizeof subtitle, "%s, %d experts, %zu rows", s->adapter->router->name, n_experts, s->n_rows);
    const struct tp_svg_heatmap heatmap = {
        .title = "Routing: which experts tokens use",
        .subtitle = subtitle,
        .row_label = "layer",
        .column_label = "expert",
        .scale_label = "share of tokens that use an expert",
        .n_rows = map.n_layers,
        .n_columns = n_experts,
        .panels = map.panels,
        .n_down = map.n_down,
        .n_across = map.n_linears,
        .down_titles = map.down,
        .across_titles = map.across,
        .lane_labels = {"active experts per token", isfinite(max_threshold) ? "mean threshold" : NULL, "entropy of a token's weights",
                        "cosine between experts"},
        .lane_max = {fmin(n_experts, ceil(map.most_active)), max_threshold, log(n_experts), 1.0},
    };
    enum talpa_status status = tp_svg_heatmap_render(&text, &n_bytes, &heatmap);
    free(map.values);
    if (status != TALPA_OK) return status;
    status = tp_atomic_file_save(path, text, n_bytes);
    free(text);
    return status;
}

/* ---- files ---- */

bool tp_route_output_is_wanted(const struct talpa_route_output *output) { return output->log || output->map || output->summary; }

static enum talpa_status check_file(const char *path, const char *flag)
{
    struct tp_atomic_file *file;
    if (!path) return TALPA_OK;
    const enum talpa_status status = tp_atomic_file_create(&file, path);
    if (status == TALPA_OK) tp_atomic_file_discard(file);
    return tp_context(status, "%s", flag);
}

enum talpa_status tp_route_output_check(const struct talpa_route_output *output)
{
    if (output->log && output->map && !strcmp(output->log, output->map))
        return tp_fail(TALPA_E_ARGUMENT, "--route-map and --route-log are the same file '%s': give each its own", output->log);
    TP_TRY(check_file(output->log, "--route-log"));
    return check_file(output->map, "--route-map");
}

struct sink {
    struct tp_atomic_file *file;
    struct tp_json_writer *json;
};

static enum talpa_status emit_line(void *user)
{
    struct sink *sink = user;
    const char *text;
    size_t n;
    TP_TRY(tp_json_writer_text(&text, &n, sink->json));
    TP_TRY(tp_atomic_file_write(sink->file, text, n));
    return tp_atomic_file_write(sink->file, "\n", 1);
}

static enum talpa_status save_log(const char *path, const struct tp_route_stats *stats, const struct talpa_route_summary *summary)
{
    struct sink sink;
    TP_TRY(tp_json_writer_create(&sink.json, 0));
    enum talpa_status status = tp_atomic_file_create(&sink.file, path);
    if (status == TALPA_OK) {
        status = tp_route_log_write(stats, summary, sink.json, emit_line, &sink);
        if (status == TALPA_OK) status = tp_atomic_file_commit(sink.file);
        else tp_atomic_file_discard(sink.file);
    }
    tp_json_writer_free(sink.json);
    return status;
}

enum talpa_status tp_route_output_finish(const struct talpa_route_output *output, const struct tp_route_stats *stats)
{
    struct tp_arena arena = {0};
    struct talpa_route_summary summary;
    enum talpa_status status = tp_route_summarise(&summary, &arena, stats);
    if (status == TALPA_OK && output->log) status = save_log(output->log, stats, &summary);
    if (status == TALPA_OK && output->map) status = tp_route_map_save(stats, &summary, output->map);
    if (status == TALPA_OK && output->summary) output->summary(output->user, &summary);
    tp_arena_free(&arena);
    return status;
}
