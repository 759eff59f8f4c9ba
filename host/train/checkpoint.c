#include "checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "io/atomic_file.h"
#include "io/file_map.h"
#include "io/folder.h"
#include "io/safetensors.h"

const char *const tp_checkpoint_files[TP_CHECKPOINT_N_FILES] = {"adapter_config.json", "adapter_model.safetensors", "talpa_adapter.json",
                                                                "optimizer.safetensors", "trainer_state.json"};

const char *const tp_checkpoint_steering[TP_CHECKPOINT_N_STEERING] = {"log_bound", "gain", "last_error", "measured"};

/* ---- digests ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const struct tp_adapter_tensor *const *)a)->name, (*(const struct tp_adapter_tensor *const *)b)->name);
}

static size_t tensor_elements(const struct tp_adapter_tensor *tensor) { return (size_t)tensor->rows * (size_t)tensor->columns; }

static void hash_bank(struct tp_hash *hash, float *values, const struct tp_adapter *adapter, const struct tp_adapter_tensor *const *sorted,
                      const float *bank, bool with_names)
{
    for (int i = 0; i < adapter->n_tensors; i++) {
        tp_adapter_get(values, adapter, bank, (int)(sorted[i] - adapter->tensors));
        if (with_names) tp_hash_update(hash, sorted[i]->name, strlen(sorted[i]->name) + 1);
        tp_hash_update(hash, values, tensor_elements(sorted[i]) * sizeof *values);
    }
}

enum talpa_status tp_checkpoint_digest(uint64_t *digest, uint64_t *digest_state, const struct tp_checkpoint *state,
                                       const struct tp_adapter *adapter)
{
    const size_t n = (size_t)adapter->n_tensors;
    const struct tp_adapter_tensor **sorted = malloc((n + 1) * sizeof *sorted);
    float *values = malloc(((size_t)adapter->n_trainable + 1) * sizeof *values);
    struct tp_hash *hash = NULL;
    enum talpa_status status =
        sorted && values ? tp_hash_create(&hash) : tp_fail_memory("digest", (size_t)adapter->n_trainable * sizeof *values);
    if (status == TALPA_OK) {
        for (size_t i = 0; i < n; i++) sorted[i] = &adapter->tensors[i];
        qsort(sorted, n, sizeof *sorted, by_name);
        hash_bank(hash, values, adapter, sorted, state->params, true);
        *digest = tp_hash_digest(hash);
        hash_bank(hash, values, adapter, sorted, state->m, false);
        hash_bank(hash, values, adapter, sorted, state->v, false);
        for (size_t i = 0; i < n; i++) tp_hash_update(hash, &state->counts[sorted[i] - adapter->tensors], sizeof *state->counts);
        tp_hash_update(hash, &state->cursor, sizeof state->cursor);
        const double numbers[] = {state->steer.log_bound, state->steer.gain, state->steer.last_error, state->steer.measured};
        if (state->is_steered) {
            tp_hash_update(hash, numbers, sizeof numbers);
            tp_hash_update(hash, &state->steer.n_steps, sizeof state->steer.n_steps);
        }
        *digest_state = tp_hash_digest(hash);
    }
    tp_hash_free(hash);
    free(sorted);
    free(values);
    return status;
}

uint64_t tp_checkpoint_seal(char **at, char *text, size_t n_bytes)
{
    static const char key[] = "\"seal\": \"";
    char kept[TP_HASH_HEX_BYTES];
    char *digits = NULL;
    for (char *found = strstr(text, key); found; found = strstr(found + 1, key)) digits = found + sizeof key - 1;
    *at = NULL;
    if (!digits || (size_t)(text + n_bytes - digits) < TP_HASH_HEX_BYTES) return 0;
    memcpy(kept, digits, TP_HASH_HEX_BYTES - 1);
    memset(digits, '0', TP_HASH_HEX_BYTES - 1);
    const uint64_t seal = tp_hash_bytes(text, n_bytes);
    memcpy(digits, kept, TP_HASH_HEX_BYTES - 1);
    *at = digits;
    return seal;
}

void tp_checkpoint_plan_digest(char hex[17], const struct tp_plan *plan)
{
    if (plan) tp_hash_hex(hex, tp_plan_digest(plan));
    else strcpy(hex, "none");
}

/* ---- files ---- */

static enum talpa_status save_optimizer(const char *path, const struct tp_checkpoint *state, const struct tp_adapter *adapter)
{
    struct tp_arena arena = {0};
    const size_t n = (size_t)adapter->n_tensors, n_values = (size_t)adapter->n_trainable;
    struct tp_safetensors_tensor *tensors = tp_arena_array(&arena, 2 * n + 3, sizeof *tensors);
    float *values = tp_arena_array(&arena, 2 * n_values + 1, sizeof *values), *next = values;
    enum talpa_status status = tensors && values ? TALPA_OK : TALPA_E_DEVICE;
    size_t n_tensors = 0;
    for (int moment = 0; moment < 2 && status == TALPA_OK; moment++)
        for (size_t i = 0; i < n && status == TALPA_OK; i++) {
            const struct tp_adapter_tensor *t = &adapter->tensors[i];
            const char *name = tp_arena_printf(&arena, "%s.%s", moment ? "exp_avg_sq" : "exp_avg", t->name);
            tp_adapter_get(next, adapter, moment ? state->v : state->m, (int)i);
            tensors[n_tensors++] = (struct tp_safetensors_tensor){.name = name, .type = TP_SAFETENSORS_F32,
                                                                  .shape = {.rank = 2, .dim = {t->rows, t->columns}}, .data = next,
                                                                  .n_bytes = tensor_elements(t) * sizeof *next};
            next += tensor_elements(t);
            if (!name) status = TALPA_E_DEVICE;
        }
    if (status == TALPA_OK) {
        tensors[n_tensors++] = (struct tp_safetensors_tensor){.name = "step",
                                                              .type = TP_SAFETENSORS_I32,
                                                              .shape = {.rank = 1, .dim = {adapter->n_tensors}},
                                                              .data = state->counts,
                                                              .n_bytes = n * sizeof *state->counts};
        const struct tp_losses *before = &state->before;
        const struct talpa_shape shape = {.rank = 1, .dim = {(int64_t)before->n_examples}};
        if (before->n_examples) {
            tensors[n_tensors++] = (struct tp_safetensors_tensor){"eval_before.sum", TP_SAFETENSORS_I64, shape, before->sum,
                                                                  before->n_examples * sizeof *before->sum};
            tensors[n_tensors++] = (struct tp_safetensors_tensor){"eval_before.n", TP_SAFETENSORS_I32, shape, before->n,
                                                                  before->n_examples * sizeof *before->n};
        }
        status = tp_safetensors_save(path, tensors, n_tensors, NULL, 0);
    }
    tp_arena_free(&arena);
    return status;
}

/* Sizes and digests of the other files, as they were written. */
static enum talpa_status write_files(struct tp_json_writer *json, struct tp_arena *arena, const char *folder)
{
    tp_json_write_key(json, "files");
    tp_json_write_array_begin(json);
    for (int i = 0; i < TP_CHECKPOINT_N_FILES; i++) {
        struct tp_file_map map;
        const char *path = tp_arena_printf(arena, "%s/%s", folder, tp_checkpoint_files[i]);
        if (!path) return TALPA_E_DEVICE;
        TP_TRY(tp_file_map_open(&map, path));
        tp_json_write_object_begin(json);
        tp_json_write_string_member(json, "name", tp_checkpoint_files[i]);
        tp_json_write_int_member(json, "bytes", (int64_t)map.n_bytes);
        tp_json_write_digest_member(json, "xxh3", tp_hash_bytes(map.bytes, map.n_bytes));
        tp_json_write_object_end(json);
        tp_file_map_close(&map);
    }
    tp_json_write_array_end(json);
    return TALPA_OK;
}

/* Numbers to read, and their bits, which are what a resumed run goes on with. */
static void write_steering(struct tp_json_writer *json, const struct tp_steer_state *s)
{
    const double numbers[] = {s->log_bound, s->gain, s->last_error, s->measured};
    tp_json_write_key(json, "steering");
    tp_json_write_object_begin(json);
    for (int i = 0; i < TP_CHECKPOINT_N_STEERING; i++) {
        char key[32];
        uint64_t bits;
        memcpy(&bits, &numbers[i], sizeof bits);
        tp_json_write_real_member(json, tp_checkpoint_steering[i], numbers[i]);
        snprintf(key, sizeof key, "%s_bits", tp_checkpoint_steering[i]);
        tp_json_write_digest_member(json, key, bits);
    }
    tp_json_write_int_member(json, "steps", s->n_steps);
    tp_json_write_object_end(json);
}

static enum talpa_status write_state(struct tp_json_writer *json, struct tp_arena *arena, const char *folder,
                                     const struct tp_checkpoint *state, const struct tp_checkpoint_run *run)
{
    char hex[TP_HASH_HEX_BYTES];
    uint64_t bits;
    tp_json_write_object_begin(json);
    tp_json_write_int_member(json, "format_version", TP_CHECKPOINT_FORMAT_VERSION);
    tp_json_write_string_member(json, "talpa_version", TALPA_VERSION_STRING);
    tp_json_write_int_member(json, "step", state->step);
    tp_json_write_int_member(json, "total_steps", run->total_steps);
    tp_json_write_int_member(json, "data_cursor", (int64_t)state->cursor);
    tp_json_write_int_member(json, "total_examples", state->total_examples > INT64_MAX / 1024 ? -1 : (int64_t)state->total_examples);
    tp_json_write_string_member(json, "dispatch", state->sparse ? "sparse" : "dense");
    tp_json_write_int_member(json, "total_tokens", state->total_tokens);
    tp_json_write_real_member(json, "elapsed_time", state->elapsed_s);
    tp_json_write_key(json, "best");
    tp_json_write_object_begin(json);
    tp_json_write_int_member(json, "step", state->best.step);
    tp_json_write_real_member(json, "loss", state->best.loss);
    memcpy(&bits, &state->best.loss, sizeof bits);
    tp_json_write_digest_member(json, "loss_bits", bits);
    tp_json_write_digest_member(json, "digest", state->best.digest);
    tp_json_write_int_member(json, "evaluations_since", state->best.n_worse);
    tp_json_write_object_end(json);
    if (state->is_steered) write_steering(json, &state->steer);
    tp_json_write_digest_member(json, "digest", state->digest);
    tp_json_write_digest_member(json, "digest_state", state->digest_state);
    tp_json_write_digest_member(json, "config_digest", tp_train_config_digest(run->config));
    tp_json_write_key(json, "config");
    tp_train_config_write(json, run->config);
    tp_checkpoint_plan_digest(hex, run->plans[0]);
    tp_json_write_string_member(json, "plan_digest_dense", hex);
    tp_checkpoint_plan_digest(hex, run->plans[1]);
    tp_json_write_string_member(json, "plan_digest_sparse", hex);
    tp_json_write_string_member(json, "platform", run->caps->platform);
    tp_json_write_string_member(json, "device", run->caps->name);
    tp_json_write_string_member(json, "driver", run->caps->driver_version);
    TP_TRY(write_files(json, arena, folder));
    tp_json_write_string_member(json, "seal", "0000000000000000");
    tp_json_write_object_end(json);
    return TALPA_OK;
}

/* checkpoint.json, sealed. */
static enum talpa_status save_state(struct tp_json_writer *json, struct tp_arena *arena, const char *folder,
                                    const struct tp_checkpoint *state, const struct tp_checkpoint_run *run)
{
    const char *text, *path = tp_arena_printf(arena, "%s/checkpoint.json", folder);
    size_t n_bytes;
    char hex[TP_HASH_HEX_BYTES], *at;
    if (!path) return TALPA_E_DEVICE;
    tp_json_writer_reset(json);
    TP_TRY(write_state(json, arena, folder, state, run));
    TP_TRY(tp_json_writer_text(&text, &n_bytes, json));
    char *copy = tp_arena_strndup(arena, text, n_bytes);
    if (!copy) return TALPA_E_DEVICE;
    const uint64_t seal = tp_checkpoint_seal(&at, copy, n_bytes);
    if (!at) return tp_fail(TALPA_E_INTERNAL, "%s: no place for the seal", path);
    memcpy(at, tp_hash_hex(hex, seal), TP_HASH_HEX_BYTES - 1);
    return tp_atomic_file_save(path, copy, n_bytes);
}

static enum talpa_status fill(struct tp_arena *arena, const char *folder, const struct tp_checkpoint *state,
                              const struct tp_checkpoint_run *run, const struct tp_history *history)
{
    struct tp_json_writer *json;
    TP_TRY(tp_adapter_save(run->adapter, state->params, folder, run->model));
    const char *optimizer = tp_arena_printf(arena, "%s/optimizer.safetensors", folder),
               *log = tp_arena_printf(arena, "%s/trainer_state.json", folder);
    if (!optimizer || !log) return TALPA_E_DEVICE;
    TP_TRY(save_optimizer(optimizer, state, run->adapter));
    TP_TRY(tp_json_writer_create(&json, 2));
    tp_history_write(json, history, &state->best, run->options, state->step, run->total_steps);
    enum talpa_status status = tp_atomic_file_save_json(log, json);
    if (status == TALPA_OK) status = save_state(json, arena, folder, state, run);
    tp_json_writer_free(json);
    return status;
}

enum talpa_status tp_checkpoint_save(const char *folder, const struct tp_checkpoint *state, const struct tp_checkpoint_run *run,
                                     const struct tp_history *history)
{
    struct tp_arena arena = {0};
    const char *name = tp_arena_printf(&arena, "%s/checkpoint-%d", folder, state->step);
    const char *temporary = tp_arena_printf(&arena, "%s/.checkpoint-%d.tmp-%ld", folder, state->step, (long)getpid());
    const char *old = tp_arena_printf(&arena, "%s/.checkpoint-%d.tmp-%ld-0", folder, state->step, (long)getpid());
    enum talpa_status status = name && temporary && old ? tp_folder_create(temporary) : TALPA_E_DEVICE;
    if (status == TALPA_OK) status = fill(&arena, temporary, state, run, history);
    if (status == TALPA_OK) status = tp_folder_sync(temporary);
    const bool replaces = status == TALPA_OK && access(name, F_OK) == 0;
    if (replaces) status = tp_folder_rename(name, old, folder);
    if (status == TALPA_OK) status = tp_folder_rename(temporary, name, folder);
    if (status != TALPA_OK && replaces && access(name, F_OK) != 0) rename(old, name); /* the one that was there is better than none */
    if (status != TALPA_OK && temporary) tp_folder_remove(temporary);
    if (old) tp_folder_remove(old);
    tp_arena_free(&arena);
    return tp_context(status, "checkpoint-%d", state->step);
}
