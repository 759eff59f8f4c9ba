/* Routing in a training run: counts per step, and at the end what the routers do with the held-out rows. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "train/trainer.h"

enum talpa_status tp_trainer_log_routes(struct tp_trainer *t, const struct talpa_train_row *row)
{
    const struct tp_adapter *adapter = t->adapter;
    for (int m = 0; t->folder.routes.path && m < (adapter->selection_elements ? adapter->n_modules : 0); m++) {
        struct tp_json_writer *json = t->folder.json;
        tp_json_writer_reset(json);
        tp_json_write_object_begin(json);
        tp_json_write_string_member(json, "kind", "step");
        tp_json_write_int_member(json, "step", row->current_steps);
        tp_json_write_int_member(json, "layer", adapter->modules[m].layer);
        tp_json_write_string_member(json, "module", tp_linear_name(adapter->modules[m].linear));
        tp_json_write_key(json, "tokens");
        tp_json_write_array_begin(json);
        for (int e = 0; e < adapter->config.n_experts; e++) tp_json_write_int(json, t->selected[m * TP_CONCAT_ALIGN + e]);
        tp_json_write_array_end(json);
        tp_json_write_object_end(json);
        TP_TRY(tp_run_folder_append(&t->folder, &t->folder.routes));
    }
    return TALPA_OK;
}

enum talpa_status tp_trainer_watch_routes(struct tp_trainer *t)
{
    if (!t->options->route_log || !t->eval_data) return TALPA_OK;
    const char *path = t->options->eval_data, *slash = strrchr(path, '/');
    TP_TRY(tp_route_stats_create(&t->routes, t->adapter));
    t->evaluator.routes = &t->routes;
    t->evaluator.task = slash ? slash + 1 : path;
    return TALPA_OK;
}

static enum talpa_status append(void *user)
{
    struct tp_trainer *t = user;
    return tp_run_folder_append(&t->folder, &t->folder.routes);
}

static enum talpa_status save(struct tp_trainer *t, const struct talpa_route_summary *summary)
{
    char *text;
    const char *map = tp_run_folder_file(&t->folder, "routing.svg");
    if (!map) return TALPA_E_DEVICE;
    TP_TRY(tp_route_map_save(&t->routes, summary, map));
    /* A run that had no step left to do keeps the log that is there. */
    if (t->folder.routes.descriptor >= 0) {
        TP_TRY(tp_route_log_write(&t->routes, summary, t->folder.json, append, t));
        TP_TRY(tp_run_folder_sync(&t->folder));
    }
    TP_TRY(tp_route_summary_text(&text, summary));
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        *end = '\0';
        tp_trainer_note(t, "%s", line);
    }
    free(text);
    return TALPA_OK;
}

enum talpa_status tp_trainer_save_routes(struct tp_trainer *t)
{
    struct tp_arena arena = {0};
    struct talpa_route_summary summary;
    if (!t->evaluator.routes) return TALPA_OK;
    t->evaluator.routes = NULL;
    enum talpa_status status = tp_route_summarise(&summary, &arena, &t->routes);
    if (status == TALPA_OK) status = save(t, &summary);
    tp_arena_free(&arena);
    return status;
}
