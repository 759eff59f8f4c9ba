/* The trainer's state to and from the disk: checkpoints, measurements on the way, the best adapter. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "io/atomic_file.h"
#include "io/folder.h"
#include "runtime/device.h"
#include "runtime/profile.h"
#include "train/trainer.h"

static size_t bank_bytes(const struct tp_trainer *t) { return (size_t)t->adapter->bank_elements * sizeof(float); }

static struct tp_checkpoint_run checkpoint_run(struct tp_trainer *t)
{
    return (struct tp_checkpoint_run){.options = t->options, .config = &t->config, .adapter = t->adapter, .model = t->model,
                                      .plans = {t->set.plans[TP_DISPATCH_DENSE], t->set.plans[TP_DISPATCH_SPARSE]},
                                      .caps = tp_device_caps(t->engine.device), .total_steps = t->feed.total_steps};
}

enum talpa_status tp_trainer_parameters(struct tp_trainer *t, uint64_t *digest)
{
    TP_TRY(tp_executor_read(t->set.executor, t->train.params, t->bank, bank_bytes(t)));
    TP_TRY(tp_trainer_check_bank(t, t->bank));
    return tp_adapter_digest(digest, t->adapter, t->bank);
}

/* ---- resuming ---- */

static bool same_folder(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* The run's folder that a checkpoint lies in; NULL if it is the output folder. */
static enum talpa_status find_source(struct tp_trainer *t, const char *checkpoint)
{
    const char *slash = strrchr(checkpoint, '/');
    const char *folder = !slash                ? "."
                         : slash == checkpoint ? "/"
                                               : tp_arena_strndup(&t->folder.arena, checkpoint, (size_t)(slash - checkpoint));
    if (!folder) return TALPA_E_DEVICE;
    t->source = same_folder(folder, t->options->output_dir) ? NULL : folder;
    return TALPA_OK;
}

static enum talpa_status restore(struct tp_trainer *t, struct tp_checkpoint *c)
{
    struct tp_executor *executor = t->set.executor;
    const uint64_t per_step = (uint64_t)t->options->batch_size * (uint64_t)t->options->accumulation;
    /* A run that ended with a part of a batch is not the beginning of a longer one. */
    if (c->cursor >= c->total_examples && c->total_examples < t->feed.total_examples && c->cursor != (uint64_t)c->step * per_step &&
        !t->options->allow_schedule_change)
        return tp_fail(TALPA_E_DATA,
                       "data_cursor: found %llu after %d steps, expected a whole number of batches of %llu: the run ended with a part of a "
                       "batch, so a longer one "
                       "has other batches; --allow-schedule-change accepts that",
                       (unsigned long long)c->cursor, c->step, (unsigned long long)per_step);
    TP_TRY(tp_feed_seek(&t->feed, c->cursor));
    if (t->set.plan_of[c->sparse] < 0)
        return tp_fail(TALPA_E_DATA, "dispatch: found %s, expected a plan of this run", c->sparse ? "sparse" : "dense");
    TP_TRY(tp_executor_write(executor, t->train.params, c->params, bank_bytes(t)));
    TP_TRY(tp_executor_write(executor, t->train.m, c->m, bank_bytes(t)));
    TP_TRY(tp_executor_write(executor, t->train.v, c->v, bank_bytes(t)));
    TP_TRY(tp_executor_write(executor, t->train.counts, c->counts, (size_t)t->adapter->n_tensors * sizeof *c->counts));
    memcpy(t->bank, c->params, bank_bytes(t));
    t->sparse = c->sparse;
    t->first_step = t->saved_step = c->step;
    t->training_s = c->elapsed_s;
    t->total_tokens = c->total_tokens;
    t->best = c->best;
    if (c->is_steered != (t->steer.mode != TP_STEER_OFF))
        return tp_fail(TALPA_E_DATA, "steering: found %s, expected %s", c->is_steered ? "some" : "none", c->is_steered ? "none" : "some");
    TP_TRY(tp_steer_restore(&t->steer, t->adapter, &c->steer));
    t->digest_state = c->digest_state;
    t->before = c->before;
    c->before = (struct tp_losses){0};
    for (int i = 0; i < t->history.n; i++)
        if (t->history.row[i].step >= 1 && t->history.row[i].step <= c->step)
            t->rates[t->history.row[i].step - 1] = t->history.row[i].throughput;
    return TALPA_OK;
}

enum talpa_status tp_trainer_find(struct tp_trainer *t)
{
    const struct talpa_train_options *o = t->options;
    char *path = NULL;
    TP_TRY(tp_train_config_make(&t->config, o, t->model, &t->adapter->config, t->data, t->eval_data, t->feed.total_steps));
    if (!o->resume_from) return TALPA_OK;
    TP_TRY(tp_checkpoint_find(&path, o->resume_from, o->output_dir));
    if (!path) {
        tp_trainer_note(t, "%s has no checkpoint yet: starting from the beginning", o->output_dir);
        return TALPA_OK;
    }
    t->checkpoint_path = tp_arena_strdup(&t->folder.arena, path);
    free(path);
    if (!t->checkpoint_path) return TALPA_E_DEVICE;
    const struct tp_checkpoint_run run = {
        .options = o, .config = &t->config, .adapter = t->adapter, .model = t->model, .total_steps = t->feed.total_steps};
    return tp_checkpoint_open(&t->checkpoint, &t->history, t->checkpoint_path, &run);
}

enum talpa_status tp_trainer_resume(struct tp_trainer *t)
{
    char hex[TP_HASH_HEX_BYTES];
    const struct tp_checkpoint_run run = checkpoint_run(t);
    if (!t->checkpoint_path) return TALPA_OK;
    enum talpa_status status = tp_checkpoint_check_plan(&t->checkpoint, &run);
    if (status == TALPA_OK) status = restore(t, &t->checkpoint);
    if (status != TALPA_OK) return tp_context(status, "%s/checkpoint.json", t->checkpoint_path);
    TP_TRY(find_source(t, t->checkpoint_path));
    tp_trainer_note(t, "resumed %s: step %d, digest %s", t->checkpoint_path, t->first_step, tp_hash_hex(hex, t->checkpoint.digest));
    tp_checkpoint_free(&t->checkpoint);
    return TALPA_OK;
}

/* ---- saving ---- */

enum talpa_status tp_trainer_begin(struct tp_trainer *t)
{
    const char *moved;
    TP_TRY(tp_run_folder_begin(&moved, &t->folder, t->first_step, t->source));
    if (moved)
        tp_trainer_note(t, "%s held later checkpoints of an earlier run: moved to %s/%s", t->options->output_dir, t->options->output_dir,
                        moved);
    const char *config = tp_run_folder_file(&t->folder, "train_config.json");
    if (!config) return TALPA_E_DEVICE;
    return t->options->config_json ? tp_atomic_file_save(config, t->options->config_json, strlen(t->options->config_json)) : TALPA_OK;
}

enum talpa_status tp_trainer_save(struct tp_trainer *t, int step)
{
    TP_PROFILE_SPAN("save a checkpoint");
    const struct talpa_train_options *o = t->options;
    const size_t n = (size_t)t->adapter->bank_elements;
    char hex[2][TP_HASH_HEX_BYTES];
    struct tp_checkpoint c = {.step = step,
                              .cursor = t->feed.cursor,
                              .total_examples = t->feed.total_examples,
                              .total_tokens = t->total_tokens,
                              .elapsed_s = t->training_s,
                              .sparse = t->sparse,
                              .best = t->best,
                              .is_steered = t->steer.mode != TP_STEER_OFF,
                              .steer = t->steer.state,
                              .params = t->bank,
                              .before = t->before};
    const struct tp_checkpoint_run checkpoint_of = checkpoint_run(t);
    const char *chart = tp_run_folder_file(&t->folder, "training_loss.svg");
    if (!chart) return TALPA_E_DEVICE;
    c.m = malloc(2 * n * sizeof *c.m);
    c.counts = malloc(((size_t)t->adapter->n_tensors + 1) * sizeof *c.counts);
    enum talpa_status status = c.m && c.counts ? TALPA_OK : tp_fail_memory("checkpoint", 2 * n * sizeof *c.m);
    if (status == TALPA_OK) {
        c.v = c.m + n;
        status = tp_executor_read(t->set.executor, t->train.m, c.m, bank_bytes(t));
    }
    if (status == TALPA_OK) status = tp_executor_read(t->set.executor, t->train.v, c.v, bank_bytes(t));
    if (status == TALPA_OK)
        status = tp_executor_read(t->set.executor, t->train.counts, c.counts, (size_t)t->adapter->n_tensors * sizeof *c.counts);
    if (status == TALPA_OK) status = tp_trainer_parameters(t, &c.digest);
    if (status == TALPA_OK) status = tp_checkpoint_digest(&c.digest, &c.digest_state, &c, t->adapter);
    if (status == TALPA_OK) status = tp_run_folder_sync(&t->folder);
    if (status == TALPA_OK) status = tp_checkpoint_save(o->output_dir, &c, &checkpoint_of, &t->history);
    free(c.m);
    free(c.counts);
    TP_TRY(status);
    t->saved_step = step;
    t->digest_state = c.digest_state;
    TP_TRY(tp_adapter_save(t->adapter, t->bank, o->output_dir, t->model));
    TP_TRY(tp_history_chart(&t->history, chart));
    if (o->save_total_limit) TP_TRY(tp_run_folder_rotate(&t->folder, o->save_total_limit));
    tp_trainer_note(t, "saved %s/checkpoint-%d, digest %s, state %s", o->output_dir, step, tp_hash_hex(hex[0], c.digest),
                    tp_hash_hex(hex[1], c.digest_state));
    return TALPA_OK;
}

/* ---- the best adapter ---- */

/* A new folder appears complete; later ones replace its tensors, which is one rename. */
static enum talpa_status save_best(struct tp_trainer *t)
{
    const char *best = tp_run_folder_file(&t->folder, "best");
    const char *temporary = tp_arena_printf(&t->folder.arena, "%s/.best.tmp-%ld", t->folder.path, (long)getpid());
    if (!best || !temporary) return TALPA_E_DEVICE;
    if (tp_folder_has(t->folder.path, "best")) return tp_adapter_save(t->adapter, t->bank, best, t->model);
    enum talpa_status status = tp_folder_create(temporary);
    if (status == TALPA_OK) status = tp_adapter_save(t->adapter, t->bank, temporary, t->model);
    if (status == TALPA_OK) status = tp_folder_rename(temporary, best, t->folder.path);
    if (status != TALPA_OK) tp_folder_remove(temporary);
    return status;
}

enum talpa_status tp_trainer_evaluate(struct tp_trainer *t, struct talpa_train_row *row)
{
    const struct talpa_train_options *o = t->options;
    struct tp_losses losses = {0};
    row->has_eval = t->eval_data && o->eval_steps && row->current_steps % o->eval_steps == 0;
    if (!row->has_eval) return TALPA_OK;
    TP_TRY(tp_evaluator_losses(&losses, &t->evaluator, t->eval_data, o->batch_size));
    const struct talpa_eval_result measured = tp_losses_summary(&losses);
    tp_losses_free(&losses);
    row->eval_loss = measured.loss;
    row->eval_error = measured.standard_error;
    /* Both as numbers of this kind: a difference of exactly the threshold is none. */
    const bool is_best = !t->best.step || measured.loss < t->best.loss - o->early_stopping_threshold;
    tp_trainer_note(t, "held-out loss after step %d: %.4f +- %.4f%s", row->current_steps, measured.loss, measured.standard_error,
                    is_best ? ", the best" : "");
    t->best.n_worse = is_best ? 0 : t->best.n_worse + 1;
    if (!is_best) return TALPA_OK;
    t->best.step = row->current_steps;
    t->best.loss = measured.loss;
    TP_TRY(tp_trainer_parameters(t, &t->best.digest));
    return tp_context(save_best(t), "best");
}

enum talpa_status tp_trainer_load_best(struct tp_trainer *t, bool *loaded)
{
    struct tp_adapter *adapter;
    float *bank;
    uint64_t digest;
    const char *folder = tp_run_folder_file(&t->folder, "best");
    *loaded = false;
    if (!t->best.step) return TALPA_OK;
    if (t->source && !tp_folder_has(t->folder.path, "best")) folder = tp_arena_printf(&t->folder.arena, "%s/best", t->source);
    if (!folder) return TALPA_E_DEVICE;
    TP_TRY(tp_adapter_load(&adapter, &bank, folder, t->model, false));
    enum talpa_status status = tp_adapter_digest(&digest, adapter, bank);
    const bool same = status == TALPA_OK && digest == t->best.digest;
    if (same) {
        memcpy(t->bank, bank, bank_bytes(t));
        t->adapter->config.threshold = adapter->config.threshold;
        t->adapter->config.max_threshold = adapter->config.max_threshold;
        status = tp_executor_write(t->set.executor, t->train.params, t->bank, bank_bytes(t));
    }
    tp_adapter_free(adapter);
    free(bank);
    TP_TRY(status);
    if (!same) {
        char hex[2][TP_HASH_HEX_BYTES];
        return tp_fail(TALPA_E_DATA, "%s: digest: found %s, expected %s of step %d: the folder was changed", folder,
                       tp_hash_hex(hex[0], digest), tp_hash_hex(hex[1], t->best.digest), t->best.step);
    }
    TP_TRY(tp_adapter_save(t->adapter, t->bank, t->options->output_dir, t->model));
    tp_trainer_note(t, "the adapter is that of step %d, the best", t->best.step);
    *loaded = true;
    return TALPA_OK;
}
