#include "run_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/json.h"
#include "base/status.h"
#include "io/atomic_file.h"

const char *tp_run_folder_file(struct tp_run_folder *folder, const char *name) { return tp_arena_printf(&folder->arena, "%s/%s", folder->path, name); }

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

static enum talpa_status open_log(FILE **out, const char *path, const char *flag)
{
    if (!path) return TALPA_E_DEVICE;
    *out = fopen(path, "w");
    return *out ? TALPA_OK : tp_fail(TALPA_E_CREATE, "%s: cannot be created: %s: check %s", path, strerror(errno), flag);
}

static enum talpa_status prepare(struct tp_run_folder *folder, const char *path, const char *route_log)
{
    folder->path = tp_arena_strdup(&folder->arena, path);
    if (!folder->path) return TALPA_E_DEVICE;
    if (mkdir(path, 0755) && errno != EEXIST) return tp_fail(TALPA_E_CREATE, "%s: cannot be created: %s: check --output-dir", path, strerror(errno));
    TP_TRY(take_lock(folder));
    TP_TRY(open_log(&folder->log, tp_run_folder_file(folder, "trainer_log.jsonl"), "--output-dir"));
    if (route_log) TP_TRY(open_log(&folder->routes, route_log, "--route-log"));
    return tp_json_writer_create(&folder->json, 0);
}

enum talpa_status tp_run_folder_open(struct tp_run_folder *out, const char *path, const char *route_log)
{
    struct tp_run_folder folder = {.lock = -1};
    const enum talpa_status status = prepare(&folder, path, route_log);
    if (status == TALPA_OK) *out = folder;
    else tp_run_folder_close(&folder);
    return status;
}

void tp_run_folder_close(struct tp_run_folder *folder)
{
    if (folder->log) fclose(folder->log);
    if (folder->routes) fclose(folder->routes);
    if (folder->lock >= 0) close(folder->lock);
    tp_json_writer_free(folder->json);
    tp_arena_free(&folder->arena);
    *folder = (struct tp_run_folder){.lock = -1};
}

static void write_digest(struct tp_json_writer *json, uint64_t digest)
{
    char hex[TP_HASH_HEX_BYTES];
    tp_json_write_string_member(json, "digest", tp_hash_hex(hex, digest));
}

enum talpa_status tp_run_folder_row(struct tp_run_folder *folder, const struct talpa_train_row *row)
{
    struct tp_json_writer *json = folder->json;
    const char *text;
    size_t n;
    tp_json_writer_reset(json);
    tp_json_write_object_begin(json);
    tp_json_write_int_member(json, "current_steps", row->current_steps);
    tp_json_write_int_member(json, "total_steps", row->total_steps);
    tp_json_write_real_member(json, "loss", row->loss);
    tp_json_write_real_member(json, "aux_loss", row->aux_loss);
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
    tp_json_write_int_member(json, "peak_bytes", (int64_t)row->peak_bytes);
    tp_json_write_int_member(json, "launches", row->n_launches);
    write_digest(json, row->digest);
    tp_json_write_object_end(json);
    TP_TRY(tp_json_writer_text(&text, &n, json));
    if (fwrite(text, 1, n, folder->log) != n || fputc('\n', folder->log) == EOF || fflush(folder->log))
        return tp_fail(TALPA_E_IO, "%s/trainer_log.jsonl: %s", folder->path, strerror(errno));
    return TALPA_OK;
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
    const char *text, *path = tp_run_folder_file(folder, "train_results.json");
    size_t n;
    if (!path) return TALPA_E_DEVICE;
    tp_json_writer_reset(json);
    tp_json_write_object_begin(json);
    tp_json_write_int_member(json, "steps", result->n_steps);
    tp_json_write_int_member(json, "trainable_parameters", result->n_trainable);
    tp_json_write_real_member(json, "throughput", result->throughput);
    write_digest(json, result->digest);
    if (result->has_eval) {
        write_eval(json, "eval_before", &result->before);
        write_eval(json, "eval_after", &result->after);
        tp_json_write_real_member(json, "eval_difference", result->difference);
        tp_json_write_real_member(json, "eval_difference_stderr", result->difference_error);
    }
    tp_json_write_object_end(json);
    TP_TRY(tp_json_writer_text(&text, &n, json));
    return tp_atomic_file_save(path, text, n);
}
