#include "run_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status.h"
#include "io/atomic_file.h"
#include "io/file_map.h"
#include "io/folder.h"

const char *tp_run_folder_file(struct tp_run_folder *folder, const char *name)
{
    return tp_arena_printf(&folder->arena, "%s/%s", folder->path, name);
}

static enum talpa_status take_lock(struct tp_run_folder *folder)
{
    const char *path = tp_run_folder_file(folder, ".talpa.lock");
    if (!path) return TALPA_E_DEVICE;
    folder->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (folder->lock < 0) return tp_fail(TALPA_E_CREATE, "%s: %s: choose another --output-dir", path, strerror(errno));
    if (flock(folder->lock, LOCK_EX | LOCK_NB))
        return tp_fail(TALPA_E_CREATE, "%s: another run is writing here: wait for it or choose another --output-dir", folder->path);
    return TALPA_OK;
}

/* A log that cannot be made is found before any training; one that is there is not touched. */
static enum talpa_status check_log(struct tp_run_log *log, const char *path, const char *step_key, const char *flag)
{
    *log = (struct tp_run_log){.path = path, .step_key = step_key, .descriptor = -1};
    if (!path) return TALPA_E_DEVICE;
    const int descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor < 0) return tp_fail(TALPA_E_CREATE, "%s: cannot be created: %s: check %s", path, strerror(errno), flag);
    close(descriptor);
    return TALPA_OK;
}

static enum talpa_status prepare(struct tp_run_folder *folder, const char *path, const char *route_log)
{
    folder->path = tp_arena_strdup(&folder->arena, path);
    if (!folder->path) return TALPA_E_DEVICE;
    enum talpa_status status = tp_folder_create(path);
    if (status == TALPA_OK) status = tp_folder_check_writable(path);
    if (status != TALPA_OK) return tp_context(status, "--output-dir");
    TP_TRY(take_lock(folder));
    TP_TRY(tp_run_folder_clean(folder));
    TP_TRY(check_log(&folder->log, tp_run_folder_file(folder, "trainer_log.jsonl"), "current_steps", "--output-dir"));
    if (route_log) TP_TRY(check_log(&folder->routes, tp_arena_strdup(&folder->arena, route_log), "step", "--route-log"));
    return tp_json_writer_create(&folder->json, 0);
}

enum talpa_status tp_run_folder_open(struct tp_run_folder *out, const char *path, const char *route_log)
{
    struct tp_run_folder folder = {.lock = -1, .log.descriptor = -1, .routes.descriptor = -1};
    const enum talpa_status status = prepare(&folder, path, route_log);
    if (status == TALPA_OK) *out = folder;
    else tp_run_folder_close(&folder);
    return status;
}

void tp_run_folder_close(struct tp_run_folder *folder)
{
    if (folder->log.descriptor >= 0) close(folder->log.descriptor);
    if (folder->routes.descriptor >= 0) close(folder->routes.descriptor);
    if (folder->lock >= 0) close(folder->lock);
    tp_json_writer_free(folder->json);
    tp_arena_free(&folder->arena);
    *folder = (struct tp_run_folder){.lock = -1, .log.descriptor = -1, .routes.descriptor = -1};
}

/* ---- logs ---- */

/* Bytes of the rows up to a step. A row that was cut off by a crash ends them. */
static size_t rows_until(const struct tp_file_map *map, const char *step_key, int step)
{
    size_t kept = 0;
    while (kept < map->n_bytes) {
        const char *line = (const char *)map->bytes + kept, *end = memchr(line, '\n', map->n_bytes - kept);
        struct tp_json *json;
        int64_t found = INT64_MAX;
        if (!end || tp_json_parse(&json, line, (size_t)(end - line), "row") != TALPA_OK) break;
        if (tp_json_get_int(&found, tp_json_root(json), step_key) != TALPA_OK) found = INT64_MAX;
        tp_json_free(json);
        if (found > step) break;
        kept += (size_t)(end - line) + 1;
    }
    tp_status_clear();
    return kept;
}

/* The log gets the first rows of `source` (NULL: none), under a temporary name first. Devices and pipes are only written to. */
static enum talpa_status begin_log(struct tp_run_log *log, const char *source, int first_step)
{
    struct stat info;
    if (stat(log->path, &info) != 0 || S_ISREG(info.st_mode)) {
        struct tp_file_map map = {0};
        struct tp_atomic_file *file;
        enum talpa_status status = TALPA_OK;
        if (source && access(source, F_OK) == 0) TP_TRY(tp_file_map_open(&map, source));
        status = tp_atomic_file_create(&file, log->path);
        if (status == TALPA_OK) {
            status = tp_atomic_file_write(file, map.bytes, rows_until(&map, log->step_key, first_step));
            if (status == TALPA_OK) status = tp_atomic_file_commit(file);
            else tp_atomic_file_discard(file);
        }
        tp_file_map_close(&map);
        TP_TRY(status);
    }
    log->descriptor = open(log->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    return log->descriptor >= 0 ? TALPA_OK : tp_fail(TALPA_E_CREATE, "%s: cannot be opened: %s", log->path, strerror(errno));
}

enum talpa_status tp_run_folder_begin(const char **moved, struct tp_run_folder *folder, int first_step, const char *source)
{
    *moved = NULL;
    TP_TRY(tp_run_folder_set_aside(moved, folder, first_step));
    const char *own = first_step ? folder->log.path : NULL;
    const char *log = source ? tp_arena_printf(&folder->arena, "%s/trainer_log.jsonl", source) : own;
    TP_TRY(begin_log(&folder->log, log, first_step));
    return folder->routes.path ? begin_log(&folder->routes, first_step ? folder->routes.path : NULL, first_step) : TALPA_OK;
}

enum talpa_status tp_run_folder_append(struct tp_run_folder *folder, struct tp_run_log *log)
{
    const char *text;
    size_t n, done = 0;
    struct stat info;
    TP_TRY(tp_json_writer_text(&text, &n, folder->json));
    char *line = malloc(n + 1);
    if (!line) return tp_fail_memory(log->path, n + 1);
    memcpy(line, text, n);
    line[n++] = '\n';
    const bool is_file = fstat(log->descriptor, &info) == 0 && S_ISREG(info.st_mode);
    int code = 0;
    while (done < n && !code) {
        const ssize_t written = write(log->descriptor, line + done, n - done);
        if (written > 0) done += (size_t)written;
        else if (written == 0 || errno != EINTR) code = written ? errno : ENOSPC;
    }
    free(line);
    if (!code) return TALPA_OK;
    if (is_file && ftruncate(log->descriptor, info.st_size) != 0) tp_log(TALPA_LOG_WARN, "%s: ends with a part of a row", log->path);
    return tp_fail(TALPA_E_IO, "%s: cannot write: %s; make room, then --resume-from auto", log->path, strerror(code));
}

enum talpa_status tp_run_folder_sync(struct tp_run_folder *folder)
{
    const struct tp_run_log *const logs[] = {&folder->log, &folder->routes};
    for (int i = 0; i < 2; i++)
        if (logs[i]->descriptor >= 0 && fsync(logs[i]->descriptor) != 0 && errno != EINVAL)
            return tp_fail(TALPA_E_IO, "%s: cannot write: %s", logs[i]->path, strerror(errno));
    return TALPA_OK;
}

enum talpa_status tp_run_folder_row(struct tp_run_folder *folder, const struct talpa_train_row *row)
{
    struct tp_json_writer *json = folder->json;
    tp_json_writer_reset(json);
    tp_json_write_object_begin(json);
    tp_json_write_int_member(json, "current_steps", row->current_steps);
    tp_json_write_int_member(json, "total_steps", row->total_steps);
    tp_json_write_real_member(json, "loss", row->loss);
    tp_json_write_real_member(json, "aux_loss", row->aux_loss);
    if (row->has_contrastive) tp_json_write_real_member(json, "contrastive_loss", row->contrastive_loss);
    tp_json_write_real_member(json, "grad_norm", row->grad_norm);
    tp_json_write_real_member(json, "learning_rate", row->learning_rate);
    tp_json_write_real_member(json, "epoch", row->epoch);
    tp_json_write_real_member(json, "percentage", row->percentage);
    tp_json_write_real_member(json, "elapsed_time", row->elapsed_s);
    tp_json_write_real_member(json, "remaining_time", row->remaining_s);
    tp_json_write_real_member(json, "step_ms", row->step_ms);
    tp_json_write_real_member(json, "throughput", row->throughput);
    tp_json_write_int_member(json, "total_tokens", row->total_tokens);
    tp_json_write_real_member(json, "active_experts", row->active_experts);
    if (row->max_threshold > 0.0) {
        tp_json_write_real_member(json, "overhead_percent", row->overhead);
        tp_json_write_real_member(json, "max_threshold", row->max_threshold);
    }
    tp_json_write_int_member(json, "peak_bytes", (int64_t)row->peak_bytes);
    tp_json_write_int_member(json, "launches", row->n_launches);
    if (row->has_eval) {
        tp_json_write_real_member(json, "eval_loss", row->eval_loss);
        tp_json_write_real_member(json, "eval_stderr", row->eval_error);
    }
    tp_json_write_digest_member(json, "digest", row->digest);
    tp_json_write_object_end(json);
    return tp_run_folder_append(folder, &folder->log);
}

static void write_eval(struct tp_json_writer *json, const char *key, const struct talpa_eval_result *eval)
{
    tp_json_write_key(json, key);
    tp_json_write_object_begin(json);
    tp_json_write_real_member(json, "loss", eval->loss);
    tp_json_write_real_member(json, "stderr", eval->standard_error);
    tp_json_write_int_member(json, "tokens", eval->n_tokens);
    tp_json_write_int_member(json, "examples", eval->n_examples);
    tp_json_write_object_end(json);
}

enum talpa_status tp_run_folder_results(struct tp_run_folder *folder, const struct talpa_train_result *result)
{
    struct tp_json_writer *json = folder->json;
    const char *path = tp_run_folder_file(folder, "train_results.json");
    if (!path) return TALPA_E_DEVICE;
    tp_json_writer_reset(json);
    tp_json_write_object_begin(json);
    tp_json_write_int_member(json, "steps", result->n_steps);
    tp_json_write_int_member(json, "trainable_parameters", result->n_trainable);
    tp_json_write_real_member(json, "throughput", result->throughput);
    tp_json_write_digest_member(json, "digest", result->digest);
    tp_json_write_digest_member(json, "digest_state", result->digest_state);
    if (result->max_threshold > 0.0) {
        tp_json_write_real_member(json, "steered_target", result->steered_target);
        tp_json_write_real_member(json, "steered_measured", result->steered_measured);
        tp_json_write_real_member(json, "max_threshold", result->max_threshold);
    }
    if (result->best_step) {
        tp_json_write_int_member(json, "best_step", result->best_step);
        tp_json_write_real_member(json, "best_loss", result->best_loss);
        tp_json_write_bool_member(json, "best_loaded", result->best_loaded);
    }
    tp_json_write_bool_member(json, "stopped_early", result->stopped_early);
    tp_json_write_int_member(json, "device_bytes", (int64_t)result->device_bytes);
    tp_json_write_int_member(json, "device_peak_bytes", (int64_t)result->device_peak_bytes);
    tp_json_write_int_member(json, "mapped_file_bytes", (int64_t)result->mapped_file_bytes);
    tp_json_write_int_member(json, "host_peak_bytes", (int64_t)result->host_peak_bytes);
    if (result->has_eval) {
        write_eval(json, "eval_before", &result->before);
        write_eval(json, "eval_after", &result->after);
        tp_json_write_real_member(json, "eval_difference", result->difference);
        tp_json_write_real_member(json, "eval_difference_stderr", result->difference_error);
    }
    tp_json_write_object_end(json);
    return tp_atomic_file_save_json(path, json);
}
