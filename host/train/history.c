#include "history.h"

#include <math.h>
#include <stdlib.h>

#include "base/status.h"
#include "io/atomic_file.h"
#include "io/svg_chart.h"

static enum talpa_status append(struct tp_history *history, const struct tp_history_row *row)
{
    if (history->n == history->room) {
        const int room = history->room ? 2 * history->room : 64;
        struct tp_history_row *larger = realloc(history->row, (size_t)room * sizeof *larger);
        if (!larger) return tp_fail_memory("history", (unsigned long long)room * sizeof *larger);
        history->row = larger;
        history->room = room;
    }
    history->row[history->n++] = *row;
    return TALPA_OK;
}

enum talpa_status tp_history_add(struct tp_history *history, const struct talpa_train_row *row)
{
    const struct tp_history_row added = {.step = row->current_steps, .epoch = row->epoch, .loss = row->loss, .grad_norm = row->grad_norm,
                                         .learning_rate = row->learning_rate, .throughput = row->throughput, .has_eval = row->has_eval,
                                         .eval_loss = row->eval_loss, .eval_error = row->eval_error};
    return append(history, &added);
}

void tp_history_free(struct tp_history *history)
{
    free(history->row);
    *history = (struct tp_history){0};
}

/* ---- trainer_state.json ---- */

void tp_history_write(struct tp_json_writer *json, const struct tp_history *history, const struct tp_best *best,
                      const struct talpa_train_options *options, int step, int total_steps)
{
    tp_json_write_object_begin(json);
    tp_json_write_real_member(json, "best_metric", best->step ? best->loss : NAN); /* NAN: null */
    tp_json_write_string_member(json, "best_model_checkpoint", best->step ? "best" : NULL);
    tp_json_write_int_member(json, "best_global_step", best->step);
    tp_json_write_real_member(json, "epoch", history->n ? history->row[history->n - 1].epoch : 0.0);
    tp_json_write_int_member(json, "eval_steps", options->eval_steps);
    tp_json_write_int_member(json, "global_step", step);
    tp_json_write_bool_member(json, "is_local_process_zero", true);
    tp_json_write_bool_member(json, "is_world_process_zero", true);
    tp_json_write_key(json, "log_history");
    tp_json_write_array_begin(json);
    for (int i = 0; i < history->n; i++) {
        const struct tp_history_row *row = &history->row[i];
        tp_json_write_object_begin(json);
        tp_json_write_int_member(json, "step", row->step);
        tp_json_write_real_member(json, "epoch", row->epoch);
        tp_json_write_real_member(json, "loss", row->loss);
        tp_json_write_real_member(json, "grad_norm", row->grad_norm);
        tp_json_write_real_member(json, "learning_rate", row->learning_rate);
        tp_json_write_real_member(json, "throughput", row->throughput);
        if (row->has_eval) {
            tp_json_write_real_member(json, "eval_loss", row->eval_loss);
            tp_json_write_real_member(json, "eval_stderr", row->eval_error);
        }
        tp_json_write_object_end(json);
    }
    tp_json_write_array_end(json);
    tp_json_write_int_member(json, "logging_steps", options->logging_steps);
    tp_json_write_int_member(json, "max_steps", total_steps);
    tp_json_write_real_member(json, "num_train_epochs", options->num_epochs);
    tp_json_write_int_member(json, "save_steps", options->save_steps);
    tp_json_write_int_member(json, "train_batch_size", options->batch_size);
    tp_json_write_object_end(json);
}

enum talpa_status tp_history_read(struct tp_history *out, const struct tp_json_value *root)
{
    struct tp_history history = {0};
    enum talpa_status status = TALPA_OK;
    for (const struct tp_json_value *item = tp_json_first(tp_json_get(root, "log_history")); item && status == TALPA_OK;
         item = tp_json_next(item)) {
        struct tp_history_row row = {.has_eval = tp_json_get(item, "eval_loss") != NULL};
        int64_t step = 0;
        status = tp_json_get_int(&step, item, "step");
        row.step = (int)step;
        if (status == TALPA_OK) status = tp_json_get_double_or(&row.epoch, item, "epoch", NAN);
        if (status == TALPA_OK) status = tp_json_get_double_or(&row.loss, item, "loss", NAN);
        if (status == TALPA_OK) status = tp_json_get_double_or(&row.grad_norm, item, "grad_norm", NAN);
        if (status == TALPA_OK) status = tp_json_get_double_or(&row.learning_rate, item, "learning_rate", NAN);
        if (status == TALPA_OK) status = tp_json_get_double_or(&row.throughput, item, "throughput", 0.0);
        if (status == TALPA_OK) status = tp_json_get_double_or(&row.eval_loss, item, "eval_loss", NAN);
        if (status == TALPA_OK) status = tp_json_get_double_or(&row.eval_error, item, "eval_stderr", NAN);
        if (status == TALPA_OK) status = append(&history, &row);
    }
    if (status == TALPA_OK) *out = history;
    else tp_history_free(&history);
    return status;
}

/* ---- the picture ---- */

/* Exponential moving averages with bias correction, from the left and from the right: their mean does not lag. */
static void smooth(double *out, const double *y, int n)
{
    const double keep = n > 400 ? 0.96 : n > 100 ? 0.9 : n > 20 ? 0.75 : 0.5;
    for (int direction = 0; direction < 2; direction++) {
        double sum = 0.0, weight = 0.0;
        for (int k = 0; k < n; k++) {
            const int i = direction ? n - 1 - k : k;
            if (isfinite(y[i])) {
                sum = keep * sum + (1.0 - keep) * y[i];
                weight = keep * weight + (1.0 - keep);
            }
            const double mean = weight > 0.0 ? sum / weight : NAN;
            out[i] = direction ? 0.5 * (out[i] + mean) : mean;
        }
    }
}

enum talpa_status tp_history_chart(const struct tp_history *history, const char *path)
{
    const size_t n = (size_t)history->n;
    if (!n) return TALPA_OK;
    double *values = malloc(5 * n * sizeof *values);
    if (!values) return tp_fail_memory(path, 5 * n * sizeof *values);
    double *x = values, *loss = x + n, *smoothed = loss + n, *eval_x = smoothed + n, *eval = eval_x + n;
    int n_eval = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = history->row[i].step;
        loss[i] = history->row[i].loss;
        if (!history->row[i].has_eval) continue;
        eval_x[n_eval] = x[i];
        eval[n_eval++] = history->row[i].eval_loss;
    }
    smooth(smoothed, loss, (int)n);
    const struct tp_svg_series series[] = {
        {.label = "loss per step", .x = x, .y = loss, .n = (int)n, .style = TP_SVG_THIN, .colour = 0},
        {.label = "smoothed", .x = x, .y = smoothed, .n = (int)n, .style = TP_SVG_THICK, .colour = 0},
        {.label = "held-out loss", .x = eval_x, .y = eval, .n = n_eval, .style = TP_SVG_POINTS, .colour = 1}};
    const struct tp_svg_chart chart = {.title = "Training loss",
                                       .x_label = "optimizer step",
                                       .y_label = "nat per labelled token",
                                       .series = series,
                                       .n_series = n_eval ? 3 : 2,
                                       .width = 800,
                                       .height = 450};
    char *text;
    size_t n_bytes;
    enum talpa_status status = tp_svg_chart_render(&text, &n_bytes, &chart);
    free(values);
    if (status != TALPA_OK) return status;
    status = tp_atomic_file_save(path, text, n_bytes);
    free(text);
    return status;
}
